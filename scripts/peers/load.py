"""Load on an OpenAI-compatible server: the same requests in the same order for every server, over raw asyncio, since the
client shares the machine with what it measures."""

import asyncio
import json
import math
import random
import statistics
import time

WORDS = (
    "market engine season kitchen market winter island answer question doctor teacher method signal language memory "
    "window garden river bridge mountain yellow quiet simple modern strong early little many under after before while "
    "again about their which would could people water paper house light night small large group point world state"
).split()


def workload(count, seed=1, shared=330, own=(70, 110), output=(16, 256)):
    """Requests whose prompts begin with the same `shared` words; answers are log-normal between `output`'s bounds."""
    draw = random.Random(seed)
    sentence = lambda n: " ".join(draw.choice(WORDS) for _ in range(n)).capitalize() + "."
    text = lambda n: " ".join(sentence(min(12, n - at)) for at in range(0, n, 12))
    system = text(shared)
    low, high = (math.log(bound) for bound in output)
    items = []
    for _ in range(count):
        length = round(math.exp(draw.gauss((low + high) / 2, (high - low) / 4)))
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text(draw.randint(*own))}]
        items.append({"messages": messages, "max_tokens": min(max(length, output[0]), output[1])})
    return items


async def ask(port, item, timeout):
    body = json.dumps({**item, "model": "m", "temperature": 0, "stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    stamps, usage, status = [], {}, None
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        while line := await asyncio.wait_for(reader.readline(), timeout):
            status = status or int(line.split()[1])
            if not line.startswith(b"data:") or b"[DONE]" in line:
                continue
            # Cheap tests first: parsing every chunk would cost the server its processor.
            if b'"content":"' in line and b'"content":""' not in line:
                stamps.append(time.perf_counter())
            if b'"usage":{' in line:
                usage = json.loads(line[5:])["usage"]
    finally:
        writer.close()
    if status != 200 or not stamps:
        raise RuntimeError(f"the server on port {port} answered {status} with {len(stamps)} chunks")
    return {"began": began, "stamps": stamps, "tokens": usage.get("completion_tokens", len(stamps)), "prompt": usage.get("prompt_tokens", 0), "wanted": item["max_tokens"]}


async def drive(port, items, clients, timeout):
    queue = iter(items)
    answers = []

    async def client():
        for item in queue:
            answers.append(await ask(port, item, timeout))

    began = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(clients)])
    return answers, time.perf_counter() - began


def percentile(values, share):
    values = sorted(values)
    place = (len(values) - 1) * share
    low = int(place)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (place - low)


def measure(port, items, clients, timeout=300):
    """Figures of a closed loop of `clients` over `items`."""
    try:
        answers, wall = asyncio.run(drive(port, items, clients, timeout))
    except (RuntimeError, OSError, asyncio.TimeoutError) as error:
        raise SystemExit(f"bench-peers: {error or 'a server did not answer in time'}") from None
    first = [answer["stamps"][0] - answer["began"] for answer in answers]
    gaps = [b - a for answer in answers for a, b in zip(answer["stamps"], answer["stamps"][1:])]
    return {
        "output_tokens_per_second": sum(answer["tokens"] for answer in answers) / wall,
        "ttft_p50_ms": statistics.median(first) * 1e3,
        "ttft_p99_ms": percentile(first, 0.99) * 1e3,
        "itl_p50_ms": statistics.median(gaps) * 1e3,
        "itl_p99_ms": percentile(gaps, 0.99) * 1e3,
        "prompt_tokens": statistics.mean(answer["prompt"] for answer in answers),
        "short_answers": sum(answer["tokens"] != answer["wanted"] for answer in answers),
    }
