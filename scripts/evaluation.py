"""What the eval scripts share: an index built and asked by the commands that users have, and some arithmetic."""
import argparse
import atexit
import json
import math
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def gain(grades):
    """Discounted gain of the first ten, 2^grade - 1 each."""
    return sum((2**grade - 1) / math.log2(i + 2) for i, grade in enumerate(grades[:10]))


def arguments(doc, data):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar=data)
    parser.add_argument("--binary", help="millrace; built in release mode unless given")
    parser.add_argument("--encoder", help="folder of the sentence encoder; fetched unless given")
    parser.add_argument("--words-only", action="store_true", help="search words, not meaning")
    parser.add_argument("--index", help="keep the index here, and only update it where it is there")
    args = parser.parse_args()
    if not args.index:
        # One for the whole run: what is built later is an update of what was built before.
        folder = tempfile.TemporaryDirectory(prefix="millrace-eval-")
        atexit.register(folder.cleanup)
        args.index = folder.name
    if not args.binary:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
        args.binary = os.path.join(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), "release", "millrace")
    if not args.encoder and not args.words_only:
        args.encoder = subprocess.check_output([ROOT / "scripts/fetch-encoder"], text=True).strip()
    return args


def model(args):
    return [] if args.words_only else ["--embedding-model", args.encoder]


def build(args, **files):
    """Writes each keyword's records to a file and indexes them under the flag of its name."""
    folder = Path(args.index)
    folder.mkdir(parents=True, exist_ok=True)
    command = [args.binary, "index", "--output", str(folder / "index"), *model(args)]
    for flag, records in files.items():
        path = folder / f"{flag}.jsonl"
        with open(path, "w") as out:
            for record in records:
                out.write(json.dumps(record) + "\n")
        command += [f"--{flag}", str(path)]
    subprocess.run(command, check=True)
    return folder


def search(args, folder, queries, flags):
    """(id, results) of each query."""
    path = folder / "queries.jsonl"
    path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    command = [args.binary, "search", "--index", str(folder / "index"), "--queries", str(path), *flags, *model(args)]
    for line in subprocess.check_output(command, text=True).splitlines():
        answer = json.loads(line)
        yield answer["id"], answer["results"]


def solve(matrix, right):
    """Linear equations, by Gauss-Jordan with pivots."""
    rows = [row[:] + [value] for row, value in zip(matrix, right)]
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(len(rows)):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i])]
    return [row[-1] for row in rows]
