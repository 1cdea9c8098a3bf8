"""Mean KL divergence of llama.cpp's quantised run from its own float32 run, over the whole vocabulary, at given positions.
Millrace's own comes from `millrace bench --divergence` on the same positions."""

import json
import math
import urllib.request


def positions(path, count):
    """Token sequences of a JSON file, cut so that about `count` positions are left."""
    sequences = json.load(open(path))
    total = sum(len(s["tokens"]) - s["from"] for s in sequences)
    share = min(1.0, count / total)
    return [{**s, "tokens": s["tokens"][: s["from"] + max(1, round((len(s["tokens"]) - s["from"]) * share))]} for s in sequences]


def from_golden(path):
    """Prompts and greedy answers of a golden file, as sequences."""
    entries = json.load(open(path))
    return [{"tokens": e["prompt_ids"] + e["greedy_ids"][:-1], "from": len(e["prompt_ids"]) - 1} for e in entries]


def from_text(server, text, sequences=6, length=72, start=40):
    """Pieces of a text, tokenised by a Millrace server."""
    body = json.dumps({"prompt": text, "add_special_tokens": False}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/tokenize", body, {"Content-Type": "application/json"})
    tokens = json.load(urllib.request.urlopen(request))["tokens"]
    return [{"tokens": tokens[i * length : (i + 1) * length], "from": start} for i in range(sequences) if (i + 1) * length <= len(tokens)]


def distributions(server, sequences, vocab):
    """Log-probabilities of every token of the vocabulary, by id, after each position."""
    for sequence in sequences:
        for end in range(sequence["from"] + 1, len(sequence["tokens"]) + 1):
            body = {"prompt": sequence["tokens"][:end], "n_predict": 1, "n_probs": vocab, "temperature": 0, "cache_prompt": True}
            request = urllib.request.Request(f"http://127.0.0.1:{server.port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
            answer = json.load(urllib.request.urlopen(request))
            row = [-math.inf] * vocab
            for candidate in answer["completion_probabilities"][0]["top_logprobs"]:
                row[candidate["id"]] = candidate["logprob"]
            # The server rounds; what is given is normalised anew.
            total = math.log(sum(math.exp(value) for value in row if value > -math.inf))
            yield [value - total for value in row]


def llama_cpp(engine, float_model, model, sequences, vocab, port):
    """Mean KL and number of positions. Both servers run side by side: each distribution is compared and dropped."""
    with engine.server(float_model, 1, port) as exact, engine.server(model, 1, port + 1) as quantised:
        divergences = []
        for p, q in zip(distributions(exact, sequences, vocab), distributions(quantised, sequences, vocab)):
            divergences.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q) if a > -30 and b > -math.inf))
    return {"mean_kl": sum(divergences) / len(divergences), "positions": len(divergences)}
