"""Renders every template with every conversation as transformers does, with Jinja2: template_cases.json.

`pip install jinja2`; with `--check` the file is compared and not written. Templates and conversations are made up here.
"""

import json
import pathlib
import sys

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "the weather\nof a place",
        "parameters": {"type": "object", "required": ["place"], "properties": {
            "place": {"type": "string", "description": "A \"city\" & <country>"},
            "unit": {"type": "string", "enum": ["°C", "°F"]}, "days": {"type": "integer"}}}}},
    {"type": "function", "function": {
        "name": "now", "description": "time", "parameters": {"type": "object", "properties": {}, "required": []}}},
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "You are terse. "}
CALL = {"id": "abcdefghi", "type": "function",
        "function": {"name": "get_weather", "arguments": {"place": "Köln", "days": 2, "deep": {"x": [1.5, None, True]}}}}
RESULT = {"role": "tool", "content": "{\"t\": 7}", "tool_call_id": "abcdefghi"}

CASES = [
    {"messages": [user("Hi")]},
    {"messages": [user("  Hi there \n")], "add_generation_prompt": False},
    {"messages": [SYSTEM, user("Hi")]},
    {"messages": [SYSTEM, user("a"), assistant("b"), user("c")]},
    {"messages": [user("a"), assistant(" b \n"), user("c"), assistant("d")], "add_generation_prompt": False},
    {"messages": [user("What's \"this\" <b>&amp;</b> {{ x }} {% y %} \\n \u2028 é 日本 👩‍👧")]},
    {"messages": [user("")]},
    {"messages": [user("q"), assistant("<think>\nhm\n</think>\n\nanswer"), user("more")]},
    {"messages": [user("q"), assistant("a", reasoning_content="because")], "add_generation_prompt": False},
    {"messages": [user("Weather?")], "tools": TOOLS},
    {"messages": [SYSTEM, user("Weather?"), assistant(None, tool_calls=[CALL]), RESULT], "tools": TOOLS},
    {"messages": [user("Weather?"), assistant("", tool_calls=[CALL, CALL]), RESULT, RESULT, assistant("7"), user("ok")],
     "tools": TOOLS},
    {"messages": [user("Weather?"), assistant(None, tool_calls=[CALL]), RESULT], "tools": TOOLS[:1]},
    {"messages": [user("a"), user("b")]},
    {"messages": [assistant("a"), user("b")]},
    {"messages": [user("a"), SYSTEM]},
    {"messages": [{"role": "critic", "content": "x"}]},
    {"messages": [SYSTEM, user("Hi")], "kwargs": {"enable_thinking": False, "date_string": "26 Jul 2026"}},
    {"messages": [{"role": "system", "content": "Calm. /no_think"}, user("Hi")], "kwargs": {"enable_thinking": True}},
    {"messages": [user("Hi")], "kwargs": {"controls": {"length": "long", "n": 1}}},
    {"messages": [user("Hi")], "documents": [
        {"title": "Wool", "text": "Wool is warm even when it is wet, and it dries slowly."}, {"text": "short\nlines"}]},
    {"messages": [user("a"), {"role": "stop", "content": ""}, user("never")]},
    {"messages": [user(f"question {i}") if i % 2 == 0 else assistant(f"answer {i}") for i in range(21)]},
]


class Generation(Extension):
    """`{% generation %}` as a block that prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception

rendered = []
for path in sorted((HERE / "templates").glob("*.jinja")):
    template = environment.from_string(path.read_text(encoding="utf-8"))
    texts = []
    for case in CASES:
        try:
            texts.append(template.render(
                messages=case["messages"], tools=case.get("tools"), documents=case.get("documents"),
                add_generation_prompt=case.get("add_generation_prompt", True), **TOKENS, **case.get("kwargs", {})))
        except (jinja2.exceptions.TemplateError, TypeError):
            texts.append(None)
    rendered.append({"template": path.name, "texts": texts})

target = HERE / "template_cases.json"
text = json.dumps({"tokens": TOKENS, "cases": CASES, "rendered": rendered}, ensure_ascii=False, indent=1) + "\n"
if "--check" in sys.argv:
    sys.exit(None if target.read_text(encoding="utf-8") == text else f"{target} is not what Jinja2 renders")
target.write_text(text, encoding="utf-8")
