#!/usr/bin/env python3
"""The example store for agents: UCP's catalog capability over MCP, at http://127.0.0.1:PORT/mcp. Needs `pip install mcp`.

  python3 examples/store/ucp.py --port 9001 [--catalog FILE.jsonl]

Tools lookup_catalog and get_product (--only get_product leaves the other out). PUT /faults as store.py has it, and
{"answer": "wrong_ids" | "no_money" | "no_products" | "tool_error" | "right"}: what is wrong with answers.
"""

import argparse
import asyncio
import json
import random
from typing import Any

import store
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from starlette.responses import JSONResponse

PROFILE = {"version": "2026-08-25"}
faults = {"delay_ms": 0, "jitter_ms": 0, "fail_percent": 0, "answer": "right"}


def product(identifier, asked):
    """A product with one variant, which has an id of its own."""
    known = store.product(identifier.removesuffix("-v1"))
    if known is None:
        return None
    price = known["price"] if faults["answer"] != "no_money" else {"amount": "9.99", "currency": "€"}
    return {
        "id": known["id"] if faults["answer"] != "wrong_ids" else f"other-{known['id']}",
        "title": known["id"],
        "description": {"plain": known["id"]},
        "price_range": {"min": price, "max": price},
        "variants": [
            {
                "id": f"{known['id']}-v1" if faults["answer"] != "wrong_ids" else "other",
                "title": "The only one",
                "description": {"plain": ""},
                "price": price,
                "availability": known["availability"],
                "inputs": [{"id": i, "match": "featured"} for i in asked if faults["answer"] != "wrong_ids"],
            }
        ],
    }


async def ready(meta):
    if not (meta.get("ucp-agent") or {}).get("profile"):
        raise ToolError("meta.ucp-agent.profile is missing")
    await asyncio.sleep((faults["delay_ms"] + random.uniform(0, faults["jitter_ms"])) / 1000)
    if faults["answer"] == "tool_error" or random.uniform(0, 100) < faults["fail_percent"]:
        raise ToolError("told to fail")


async def lookup_catalog(meta: dict[str, Any], catalog: dict[str, Any]) -> dict[str, Any]:
    """Products or variants by their ids."""
    await ready(meta)
    found = {}
    for identifier in dict.fromkeys(catalog["ids"]):
        known = identifier.removesuffix("-v1")
        asked = [i for i in catalog["ids"] if i.removesuffix("-v1") == known]
        if known not in found and (item := product(identifier, asked)):
            found[known] = item
    if faults["answer"] == "no_products":
        return {"ucp": PROFILE, "products": "none"}
    return {"ucp": PROFILE, "products": list(found.values())}


async def get_product(meta: dict[str, Any], catalog: dict[str, Any]) -> dict[str, Any]:
    """All of one product."""
    await ready(meta)
    found = product(catalog["id"], [catalog["id"]])
    if found is None:
        messages = [{"type": "error", "code": "not_found", "content": catalog["id"]}]
        return {"ucp": PROFILE | {"status": "error"}, "messages": messages}
    return {"ucp": PROFILE, "product": found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9001, help="0 takes a free one")
    parser.add_argument("--catalog", help="JSON Lines with id and price_range")
    parser.add_argument("--only", choices=["lookup_catalog", "get_product"])
    parser.add_argument("--json", action="store_true", help="answer with JSON instead of a stream of events")
    arguments = parser.parse_args()
    if arguments.catalog:
        with open(arguments.catalog, encoding="utf-8") as lines:
            store.catalog = {item["id"]: item for item in map(json.loads, filter(str.strip, lines))}
    server = MCPServer("example store")
    for tool in (lookup_catalog, get_product):
        if arguments.only in (None, tool.__name__):
            server.add_tool(tool)

    @server.custom_route("/faults", methods=["PUT"])
    async def put_faults(request):
        new = await request.json()
        faults.update({name: type(faults[name])(new[name]) for name in faults if name in new})
        return JSONResponse(faults)

    app = server.streamable_http_app(json_response=arguments.json)
    config = uvicorn.Config(app, host="127.0.0.1", port=arguments.port, log_level="warning")
    listener = config.bind_socket()
    listener.listen()  # So that nobody who reads the line is refused.
    print(f"store on http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
