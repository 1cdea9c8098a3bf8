#!/usr/bin/env python3
"""Writes the sample catalog from kinds_a.py and kinds_b.py: products.jsonl, reviews.jsonl, qa.jsonl, policies.jsonl.

  python3 examples/catalog/make.py          writes them beside this file, the same each time
  python3 examples/catalog/make.py --check  fails where they are not what it would write

Every text follows from a product's own attributes: `{name}` is a value, `{name=x?A|B}` is A where it is x and B
elsewhere, `{name>x?A|B}` and `{name<x?A|B}` compare numbers, `&` joins conditions, `{name*x:format}` computes,
`{~a-b}` draws a number. A sentence that comes out empty is one that does not apply to the product.

Brands, products, people and opinions are made up. All of this folder is CC0 1.0: do with it what you like.
"""

import json
import pathlib
import random
import re
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.dont_write_bytecode = True

from kinds_a import KINDS as FIRST  # noqa: E402
from kinds_b import KINDS as SECOND  # noqa: E402

WHO = [
    "Bought it for myself in spring.", "A present for my father.", "We are a family of four.", "My second one.",
    "Replaced one that was twelve years old.", "Use it nearly every day.", "Picked it for its size.",
    "I was sceptical at the price.", "Ordered it after a friend showed me hers.", "Read the other reviews first.",
    "Bought two, one for my sister.", "I compared five of these before I chose.", "For a birthday.",
    "Came two days earlier than announced.", "It was on sale.", "Delivered quickly and well packed.", "I write reviews rarely.",
    "My wife picked it.", "Ordered on a colleague's advice.", "Took it along on a three-week trip.", "",
    "", "", "",
]
END = {
    5: ["Would buy it again.", "Full marks.", "Recommended.", "My neighbours have one now, too.", "", "No complaints."],
    4: ["One star less for that.", "Otherwise happy with it.", "Recommended with that in mind.", "Good overall.", ""],
    3: ["All in all average.", "It does what it should, no more.", "I keep it, but I am not thrilled.", "Mixed feelings."],
    2: ["I expected more for the money.", "Would not buy it again.", "Thinking about sending it back."],
    1: ["Sent it back.", "Not for me.", "Disappointed."],
}
TITLES = {
    5: ["Exactly what I wanted", "Very happy", "Excellent {noun}", "Worth every cent", "Best {noun} I have had", "Simply good", "Does what it promises", "A joy to use"],
    4: ["Good, with one small thing", "Nearly perfect", "Solid {noun}", "Happy overall", "Good choice", "Four stars"],
    3: ["All right", "Good and bad sides", "Average {noun}", "It is fine", "Not sure yet"],
    2: ["Expected more", "Not convinced", "Rather not", "Weak points"],
    1: ["Disappointing", "Went back", "Not recommended"],
}
POLICIES = [
    ("returns", "Returns", "You can return an item within 30 days of delivery, without giving a reason. An opened item can be returned too, if it is complete and not worn out. Return shipping is free within the country; start the return in your account and bring the parcel to any drop-off point. The money is back within five working days after the parcel has reached us."),
    ("returns-hygiene", "Returns of hygiene products", "Sleeping bags, pillows, duvets and base layers can be returned only while the hygiene seal is intact."),
    ("delivery", "Delivery", "Standard delivery takes two to four working days and is free from 49 euros; below that it costs 4.90 euros. Express delivery by the next working day costs 9.90 euros for orders before 2 pm. We deliver to all countries of the European Union, Norway and Switzerland."),
    ("delivery-bulky", "Delivery of bulky goods", "Office chairs, pushchairs and large cat trees come with a forwarder, who calls to agree on a day. Delivery is to the kerb; carrying to the flat can be added in the checkout."),
    ("warranty", "Warranty", "All products have two years of statutory warranty. Makers' guarantees come on top where the product page names one. Write to us with the order number and a photo; we decide within three working days whether we repair, replace or refund."),
    ("payment", "Payment", "We take credit cards, direct debit, bank transfer and invoice. Your card is charged when the parcel leaves the warehouse, not before."),
    ("batteries", "Batteries and old devices", "We take back old batteries and electrical devices free of charge: put them into the parcel's box and use the label from your account."),
    ("gift", "Gift wrapping", "Gift wrapping costs 3.50 euros an item and comes with a card. The delivery note then shows no prices."),
    ("price-match", "Prices", "Prices on product pages are current and include value added tax. We do not match prices of other shops."),
    ("contact", "Contact", "Customer service answers by chat on working days from 8 am to 8 pm, and by mail within one working day."),
]


def number(text):
    try:
        return float(text)
    except ValueError:
        return None


def holds(condition, values):
    for part in condition.split("&"):
        name, operator, wanted = re.fullmatch(r"(\w+)([=<>])(.*)", part).groups()
        value = values[name]
        if operator == "=":
            true = value == wanted
        else:
            true = number(value) is not None and (number(value) > float(wanted)) == (operator == ">") and number(value) != float(wanted)
        if not true:
            return False
    return True


def fill(text, values, dice):
    """The text with the innermost braces replaced first, until there are none."""
    pattern = re.compile(r"\{([^{}]*)\}")

    def replace(match):
        inner = match.group(1)
        if "?" in inner:
            condition, _, rest = inner.partition("?")
            yes, _, no = rest.partition("|")
            return yes if holds(condition, values) else no
        if inner.startswith("~"):
            low, high = map(int, inner[1:].split("-"))
            return str(dice.randint(low, high))
        if "*" in inner:
            term, _, form = inner.partition(":")
            name, _, factor = term.partition("*")
            return format(float(values[name]) * float(factor), form)
        return values[inner]

    while pattern.search(text):
        text = pattern.sub(replace, text)
    text = re.sub(r"\s+", " ", text).strip()
    return text[:1].upper() + text[1:]


def date(dice):
    return f"{dice.choice([2024, 2025, 2026])}-{dice.randint(1, 9):02}-{dice.randint(1, 28):02}"


class Deck:
    """Sentences dealt in turn, so that none comes twice before all that apply have come once."""

    def __init__(self, sentences, dice):
        self.sentences, self.dice, self.used = sentences, dice, {}

    def draw(self, values, avoid):
        options = [(self.used.get(s, 0), self.dice.random(), s) for s in self.sentences]
        for _, _, sentence in sorted(options):
            text = fill(sentence, values, self.dice)
            if text and text not in avoid:
                self.used[sentence] = self.used.get(sentence, 0) + 1
                return text
        return ""


def stars(good, dice):
    """1 to 5 around how good a product is."""
    return max(1, min(5, round(dice.gauss(good, 1.1))))


def review(kind, values, rating, decks, dice, seen):
    plus, minus = {5: (2, 0), 4: (2, 1), 3: (1, 1), 2: (0, 2), 1: (0, 2)}[rating]
    said = []
    for deck, count in ((decks["pos"], plus), (decks["neg"], minus)):
        for _ in range(count):
            text = deck.draw(values, said)
            if text:
                said.append(text)
    sentences = [dice.choice(WHO), *said, dice.choice(END[rating])]
    text = " ".join(filter(None, sentences))
    title = dice.choice([t for t in TITLES[rating] if t not in seen] or TITLES[rating])
    seen.add(title)
    return title.replace("{noun}", kind["noun"].split(" ")[-1]), text


def build():
    products, reviews, questions = [], [], []
    for kind in FIRST + SECOND:
        dice = random.Random(kind["prefix"])
        decks = {name: Deck(kind[name], dice) for name in ("pos", "neg")}
        for index, line in enumerate(filter(None, map(str.strip, kind["models"].strip().splitlines()))):
            brand, model, price, data = line.split("|")
            values = dict(zip(kind["keys"].split(), data.split(","), strict=True))
            identifier = f"{kind['prefix']}-{index + 1:02}"
            noun = values.get("type") or kind["noun"]
            # A model whose name says what it is needs no noun behind it.
            named = any(word in model.lower() for word in noun.lower().split())
            title = f"{brand} {model}" if named else f"{brand} {model} {noun}"
            good, count, seen = dice.uniform(3.3, 4.7), dice.randint(3, 7), set()
            ratings = []
            for n in range(count):
                rating = stars(good, dice)
                headline, text = review(kind, values, rating, decks, dice, seen)
                ratings.append(rating)
                reviews.append({
                    "id": f"{identifier}-r{n + 1}", "product": identifier, "rating": rating, "title": headline,
                    "text": text, "helpful": int(dice.expovariate(0.25)), "date": date(dice),
                })
            for n, (question, answer) in enumerate(kind["qa"]):
                questions.append({
                    "id": f"{identifier}-q{n + 1}", "product": identifier, "question": fill(question, values, dice),
                    "answer": fill(answer, values, dice), "helpful": int(dice.expovariate(0.3)), "date": date(dice),
                })
            price = {"amount": int(price), "currency": "EUR"}
            shown = {name: value for name, value in values.items() if value not in ("none", "0")}
            products.append({
                "id": identifier, "title": title, "brand": brand, "categories": kind["path"],
                "description": fill(kind["text"], values, dice),
                "bullets": [text for text in (fill(b, values, dice) for b in kind["bullets"]) if text],
                "attributes": shown, "price_range": {"min": price, "max": price},
                "rating": {"value": round(sum(ratings) / count, 1), "scale_max": 5, "count": count},
            })
    policies = [{"id": f"policy-{name}", "title": title, "text": text} for name, title, text in POLICIES]
    return {"products": products, "reviews": reviews, "qa": questions, "policies": policies}


def main():
    wrong = []
    for name, rows in build().items():
        path = HERE / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                wrong.append(path.name)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name}: {len(rows)}")
    if wrong:
        sys.exit(f"not what make.py writes: {', '.join(wrong)}; run it")


if __name__ == "__main__":
    main()
