"""ePQA (amazon-science/contextual-product-qa) as a shop's files: what eval-epqa and train-planner share."""
import csv

# Each kind of candidate, and the group of sources that holds it in an index.
GROUPS = {"attribute": "attributes", "bullet": "attributes", "description": "description", "review": "reviews", "cqa": "qa"}


class Epqa:
    """Questions of a CSV, each with the labels of its candidates, and the records of the products they are about."""

    def __init__(self, path):
        self.products, self.reviews, self.qa, self.questions = {}, {}, {}, {}
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                self.add(row)

    def add(self, row):
        asin, text, source = row["ASIN"], row["candidate"], row["source"]
        product = self.products.setdefault(asin, {"title": row.get("title") or asin, "lists": {}})
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
        question["labels"].setdefault(passage, (int(row["label"]), source))
        if int(row["label"]) == 2:
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
