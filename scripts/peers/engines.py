"""One class for each engine: the same questions, answered by its own tools. Rates are tokens a second."""

import json
import os
import pathlib
import signal
import subprocess
import time
import urllib.request


def run_json(command, environment=None):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise SystemExit(f"bench-peers: {' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


class Server:
    """A server on a port of this machine, ready to be asked."""

    def __init__(self, command, port, environment=None, patience=180):
        self.port = port
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
        until = time.monotonic() + patience
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.process.kill()
                    raise SystemExit(f"bench-peers: {command[0]} did not get ready on port {port}")
                time.sleep(0.1)

    def peak_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Millrace:
    name = "millrace"

    def __init__(self, binary, threads):
        self.binary, self.threads = binary, threads

    def bench(self, model, **flags):
        words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
        command = [self.binary, "bench", "--model", model, "--threads", self.threads, "--max-model-len", 4096, "--json", *words]
        return json.loads(run_json(command))

    def prefill(self, model, tokens):
        return self.bench(model, input_len=tokens, output_len=1, num_requests=3, concurrency=1)["prefill_tokens_per_second"]

    def decode(self, model, depth, tokens):
        return self.bench(model, input_len=max(depth, 8), output_len=tokens, num_requests=1)["decode_tokens_per_second"]

    def streams(self, model, count, prompt, tokens):
        return self.bench(model, input_len=prompt, output_len=tokens, num_requests=count)["decode_tokens_per_second"]

    def server(self, model, clients, port):
        # Room for the answers under way and their shared prompt; without a bound the cache keeps old prefixes.
        cache = f"{6 * clients}MiB"
        return Server([self.binary, "serve", "--model", model, "--served-model-name", "m", "--threads", self.threads, "--max-num-seqs", clients, "--max-model-len", 1024, "--kv-memory", cache, "--port", port], port)


class LlamaCpp:
    """Pinned: unpinned, its barriers sometimes take seconds, and one would beat an accident."""

    name = "llama.cpp"
    pinned = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}

    def __init__(self, programs, threads):
        self.programs, self.threads = programs, threads

    def bench(self, model, *flags):
        command = [self.programs / "llama-bench", "-m", model, "-t", self.threads, "-r", 1, "-o", "json", *flags]
        return json.loads(run_json(command, self.pinned))[0]["avg_ts"]

    def prefill(self, model, tokens):
        return self.bench(model, "-p", tokens, "-n", 0)

    def decode(self, model, depth, tokens):
        return self.bench(model, "-p", 0, "-n", tokens, "-d", depth)

    def streams(self, model, count, prompt, tokens):
        command = [self.programs / "llama-batched-bench", "-m", model, "-t", self.threads, "-tb", self.threads, "-c", count * (prompt + tokens + 8)]
        command += ["-b", 2048, "-ub", 512, "-npp", prompt, "-ntg", tokens, "-npl", count, "--output-format", "jsonl"]
        lines = [line for line in run_json(command, self.pinned).splitlines() if line.startswith("{")]
        return json.loads(lines[-1])["speed_tg"]

    def server(self, model, clients, port):
        command = [self.programs / "llama-server", "-m", model, "-np", clients, "-c", clients * 1024, "--cont-batching", "-t", self.threads, "-tb", self.threads]
        command += ["--cache-reuse", 64, "--host", "127.0.0.1", "--port", port]
        return Server(command, port, self.pinned)


OPENVINO_PROGRAM = """
import json, sys, time
import openvino_genai as genai
model, what, count, tokens, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
pipe = genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
def seconds(prompts, n):
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = n
    config.ignore_eos, config.do_sample = True, False
    began = time.perf_counter()
    pipe.generate(prompts, config)
    return time.perf_counter() - began
seconds(["Hello"], 4)
if what == "prefill":
    text = " ".join(f"number{i}" for i in range(count))
    tokenizer = pipe.get_tokenizer()
    while (length := tokenizer.encode(text).input_ids.shape[1]) > count:
        text = text[: int(len(text) * count / length)]
    # Each prompt begins in its own way: an equal beginning would come from the prefix cache.
    print(json.dumps(length / min(seconds([f"{i} {text}"], 1) for i in range(2))))
else:
    print(json.dumps(count * tokens / seconds([f"Tell me about {i}." for i in range(count)], tokens)))
"""


class OpenVino:
    """Its own loop over a batch of short prompts, prefill included in the time; it has no server."""

    name = "openvino"

    def __init__(self, python, threads):
        self.python, self.threads = python, threads

    def ask(self, model, what, count, tokens):
        return json.loads(run_json([self.python, "-c", OPENVINO_PROGRAM, model, what, count, tokens, self.threads]).splitlines()[-1])

    def prefill(self, model, tokens):
        return self.ask(model, "prefill", tokens, 1)

    def decode(self, model, depth, tokens):
        return self.ask(model, "decode", 1, tokens) if depth == 0 else None

    def streams(self, model, count, prompt, tokens):
        return self.ask(model, "decode", count, tokens)
