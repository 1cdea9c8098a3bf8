"""ePQA (amazon-science/contextual-product-qa) as a shop's files: what eval-epqa and train-planner share."""
import csv
import sys

from evaluation import gain

# Each kind of candidate, and the group of sources that holds it in an index.
GROUPS = {"attribute": "attributes", "bullet": "attributes", "description": "description", "review": "reviews", "cqa": "qa"}


COLUMNS = ["qid", "question", "ASIN", "candidate", "source", "label"]


def usable(row):
    try:
        label = float(row["label"])
    except (TypeError, ValueError):
        return False
    texts = [row[name] and row[name].strip() for name in ("qid", "question", "ASIN", "candidate")]
    return label in (0, 1, 2) and all(texts) and (row["source"] or "").strip() in GROUPS


class Ranking:
    """How well candidates are ordered, over the questions that have a useful one (label 1 or 2)."""

    def __init__(self):
        self.ndcg, self.first = [], []

    def add(self, labels):
        """The labels of a question's candidates, in the order in which they were ranked."""
        if any(labels):
            self.ndcg.append(gain(labels) / gain(sorted(labels, reverse=True)))
            self.first.append(labels[0] == 2)

    def figures(self):
        mean = lambda values: round(sum(values) / max(1, len(values)), 4)
        return {"ndcg@10": mean(self.ndcg), "p@1": mean(self.first)}


class Epqa:
    """Questions of a CSV, each with the labels of its candidates, and the records of the products they are about."""

    def __init__(self, path):
        self.products, self.reviews, self.qa, self.questions = {}, {}, {}, {}
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            lacking = [name for name in COLUMNS if name not in (rows.fieldnames or [])]
            if lacking:
                raise SystemExit(f"{path}: no column {', '.join(lacking)}")
            left_out = 0
            for row in rows:
                if usable(row):
                    self.add(row)
                else:
                    left_out += 1
        if left_out:
            print(f"{path}: {left_out} lines without a candidate, a label 0 to 2 or a source that is known", file=sys.stderr)
        if not self.questions:
            raise SystemExit(f"{path}: no questions")

    def add(self, row):
        asin, text, source = row["ASIN"].strip(), row["candidate"], row["source"].strip()
        # What the product is called, where the data says so.
        title = row.get("title") or row.get("context") or asin
        product = self.products.setdefault(asin, {"title": title, "lists": {}})
        # The same text is one passage, however many questions it is a candidate of.
        known = product["lists"].setdefault(source, {})
        number = known.setdefault(text, len(known))
        if source == "review":
            id = f"{asin}-{number}"
            self.reviews[id] = {"id": id, "product": asin, "text": text}
            passage = f"review/{id}"
        elif source == "cqa":
            id = f"{asin}-{number}"
            answer, _, question = text.partition("Question: ")
            self.qa[id] = {"id": id, "product": asin, "question": question or "?", "answer": answer or question}
            passage = f"qa/{id}"
        else:
            points = product["lists"].setdefault("points", {})
            passage = f"bullet/{asin}/{points.setdefault(text, len(points))}"
        question = {"text": row["question"], "asin": asin, "labels": {}, "answering": set()}
        question = self.questions.setdefault(row["qid"], question)
        # The same candidate twice is one passage; the better label counts.
        label = int(float(row["label"]))
        question["labels"][passage] = max(question["labels"].get(passage, (0, source)), (label, source))
        if label == 2:
            question["answering"].add(GROUPS[source])

    def catalog_of_points(self):
        """Descriptions, bullets and attributes one by one, as selling points: each candidate is a passage."""
        for asin, product in self.products.items():
            yield {"id": asin, "title": product["title"], "bullets": list(product["lists"].get("points", {}))}

    def catalog(self):
        """Each in its own field, as in a shop's catalog."""
        for asin, product in self.products.items():
            attributes = {}
            for text in product["lists"].get("attribute", {}):
                name, _, value = text.partition(":")
                # Some names come twice.
                while name in attributes:
                    name += "+"
                attributes[name.strip() or "attribute"] = value.strip(" {}") or name
            yield {
                "id": asin,
                "title": product["title"],
                "attributes": attributes,
                "bullets": list(product["lists"].get("bullet", {})),
                "description": " ".join(product["lists"].get("description", {})),
            }

    def asked(self):
        """The questions as `millrace search --queries` takes them."""
        return [{"id": qid, "query": q["text"], "products": [q["asin"]]} for qid, q in self.questions.items()]
