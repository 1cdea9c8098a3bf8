#!/usr/bin/env python3
"""A small store for demonstrations and tests: prices, stock, delivery and orders over HTTP with JSON.

  python3 examples/store/store.py --port 9000 [--catalog FILE.jsonl] [--delay-ms 50] [--jitter-ms 30] [--fail-percent 5]

  GET /products?ids=A,B   {"items": [{"id": "A", "price": {...}, "availability": {...}, "delivery": {...}}]}
  GET /orders?ids=10042   the same for orders; needs the header X-Shopper-Token, and shows a shopper only their own
  PUT /faults             {"delay_ms": 5000, "jitter_ms": 0, "fail_percent": 100}: takes effect at once

With --catalog only its products exist, at its prices; without, every id does, and its price follows from the id.
"""

import argparse
import datetime
import hashlib
import json
import random
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

faults = {"delay_ms": 0, "jitter_ms": 0, "fail_percent": 0}
catalog = None


def number(text, salt):
    """The same for the same text in every process."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:6], "big")


def day(offset):
    return (datetime.date.today() + datetime.timedelta(days=offset)).isoformat()


def product(identifier):
    if catalog is not None and identifier not in catalog:
        return None
    known = (catalog or {}).get(identifier) or {}
    price = (known.get("price_range") or {}).get("min") or {
        "amount": 999 + number(identifier, "price") % 200 * 100,
        "currency": "EUR",
    }
    stock = number(identifier, "stock") % 40
    availability = {"available": stock > 0, "status": "in_stock" if stock > 0 else "out_of_stock", "quantity": stock}
    days = 1 + number(identifier, "delivery") % 5
    return {
        "id": identifier,
        "price": price,
        "availability": availability,
        "delivery": {"earliest": day(days), "latest": day(days + 2)} if stock else None,
    }


def order(identifier, shopper):
    # An order belongs to whose token ends like it: enough to show that nobody sees another's.
    if not shopper.endswith(identifier[-2:]):
        return None
    status = ["processing", "shipped", "out_for_delivery", "delivered"][number(identifier, "status") % 4]
    return {"id": identifier, "status": status, "expected": day(number(identifier, "expected") % 4)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        delay = faults["delay_ms"] + random.uniform(0, faults["jitter_ms"])
        time.sleep(delay / 1000)
        if random.uniform(0, 100) < faults["fail_percent"]:
            return self.reply(503, {"error": "told to fail"})
        path, _, query = self.path.partition("?")
        # Commas separate ids, so they are cut before they are unescaped.
        fields = dict(part.partition("=")[::2] for part in query.split("&"))
        ids = [unquote(part) for part in fields.get("ids", "").split(",") if part]
        if path == "/products":
            return self.reply(200, {"items": [item for item in map(product, ids) if item]})
        if path == "/orders":
            shopper = self.headers.get("X-Shopper-Token")
            if not shopper:
                return self.reply(401, {"error": "X-Shopper-Token is missing"})
            return self.reply(200, {"items": [item for item in (order(i, shopper) for i in ids) if item]})
        return self.reply(404, {"error": "no such path"})

    def do_PUT(self):
        try:
            new = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            new = {name: float(new[name]) for name in faults if name in new}
        except (ValueError, TypeError) as error:
            return self.reply(400, {"error": str(error)})
        faults.update(new)
        return self.reply(200, faults)

    def reply(self, status, body):
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_):
        pass


def main():
    global catalog
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9000, help="0 takes a free one")
    parser.add_argument("--catalog", help="JSON Lines with id and price_range")
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--jitter-ms", type=float, default=0)
    parser.add_argument("--fail-percent", type=float, default=0)
    arguments = parser.parse_args()
    faults.update(
        delay_ms=arguments.delay_ms, jitter_ms=arguments.jitter_ms, fail_percent=arguments.fail_percent
    )
    if arguments.catalog:
        with open(arguments.catalog, encoding="utf-8") as lines:
            catalog = {item["id"]: item for item in map(json.loads, filter(str.strip, lines))}
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    print(f"store on http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
