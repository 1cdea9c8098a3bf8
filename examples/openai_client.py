#!/usr/bin/env python3
"""What a client of OpenAI's API may expect of Millrace, asked with the official `openai` package.

    pip install openai
    python3 openai_client.py --base-url http://127.0.0.1:8000/v1 [--api-key KEY] [--model NAME]

Each check prints a line. The exit code is 0 if all of them hold.
"""

import argparse
import json
import sys
import time
import traceback

import openai

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def ask(text):
    return [{"role": "user", "content": text}]


def refused(call, error, param=None):
    """Asserts that a call fails with this error, about this field."""
    try:
        call()
    except error as caught:
        assert param is None or caught.param == param, f"param is {caught.param}, not {param}: {caught}"
        assert caught.body and caught.body["message"], caught.body
        return
    raise AssertionError(f"not refused with {error.__name__}")


@check
def models(client, model):
    card = client.models.retrieve(model)
    assert card.id == model and card.object == "model"
    assert card.max_model_len > 0
    refused(lambda: client.models.retrieve("no-such-model"), openai.NotFoundError)


@check
def chat(client, model):
    answer = client.chat.completions.create(
        model=model, messages=ask("Name a colour."), max_completion_tokens=12, temperature=0
    )
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == model
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0


@check
def chat_with_a_history(client, model):
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": [{"type": "text", "text": "Say one."}, {"type": "text", "text": "Or two."}]},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "And now?"},
    ]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=4, temperature=0)
    assert answer.choices[0].message.content is not None


@check
def streaming(client, model):
    arguments = dict(model=model, messages=ask("Count to five."), max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **arguments))
    usage = chunks.pop()
    assert usage.choices == [] and usage.usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1 and len({c.created for c in chunks}) == 1
    first, last = chunks[0].choices[0], chunks[-1].choices[0]
    assert first.delta.role == "assistant" and not first.delta.content
    assert all(c.choices[0].delta.role is None for c in chunks[1:])
    assert last.finish_reason == whole.choices[0].finish_reason and not last.delta.content
    assert all(c.choices[0].finish_reason is None for c in chunks[:-1])
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)


@check
def stream_helper(client, model):
    with client.chat.completions.stream(model=model, messages=ask("Say hello."), max_tokens=8, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        whole = stream.current_completion_snapshot.choices[0].message
    assert text and text == whole.content


@check
def several_choices(client, model):
    arguments = dict(model=model, messages=ask("Invent a word."), max_tokens=12, n=3, temperature=1.5, seed=11)
    answer = client.chat.completions.create(**arguments)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    texts = [c.message.content for c in answer.choices]
    assert len(set(texts)) > 1, "independent choices are all the same"
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(stream=True, **arguments):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts, "the seed decides, streamed or not"


@check
def seeds(client, model):
    def run(seed):
        answer = client.chat.completions.create(
            model=model, messages=ask("Invent a story."), max_tokens=24, temperature=1.5, seed=seed
        )
        return answer.choices[0].message.content

    assert run(1) == run(1)
    assert len({run(seed) for seed in range(4)}) > 1


@check
def logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=ask("Name a colour."), max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob >= token.top_logprobs[2].logprob
        assert token.token == token.top_logprobs[0].token, "greedy takes the best"


@check
def stop(client, model):
    arguments = dict(model=model, messages=ask("Tell me about the sea."), max_tokens=40, temperature=0)
    text = client.chat.completions.create(**arguments).choices[0].message.content
    where = text[len(text) // 2 :][:3]
    answer = client.chat.completions.create(stop=[where], **arguments)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == text[: text.index(where)]
    chunks = client.chat.completions.create(stop=where, stream=True, **arguments)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert streamed == text[: text.index(where)]
    kept = client.chat.completions.create(stop=where, extra_body={"include_stop_str_in_output": True}, **arguments)
    assert kept.choices[0].message.content == text[: text.index(where)] + where


@check
def completions_of_text_and_ids(client, model):
    arguments = dict(model=model, max_tokens=8, temperature=0)
    ids = {"return_token_ids": True}
    answer = client.completions.create(prompt="Once upon a time", extra_body=ids, **arguments)
    choice = answer.choices[0]
    assert answer.object == "text_completion" and len(choice.token_ids) == answer.usage.completion_tokens
    assert len(choice.prompt_token_ids) == answer.usage.prompt_tokens
    again = client.completions.create(prompt=choice.prompt_token_ids, **arguments)
    assert again.choices[0].text == choice.text
    both = client.completions.create(prompt=["Once upon a time", "The end"], **arguments)
    assert [c.index for c in both.choices] == [0, 1] and both.choices[0].text == choice.text
    lists = client.completions.create(prompt=[choice.prompt_token_ids] * 2, **arguments)
    assert [c.text for c in lists.choices] == [choice.text] * 2
    chunks = list(client.completions.create(prompt="Once upon a time", stream=True, **arguments))
    assert "".join(c.choices[0].text for c in chunks) == choice.text
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason


@check
def scoring_a_prompt(client, model):
    """What evaluation harnesses do: no text, only the log-probabilities of a given one."""
    answer = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    scores = answer.choices[0].logprobs
    assert answer.choices[0].text == "Once upon a time"
    assert len(scores.tokens) == len(scores.token_logprobs) == answer.usage.prompt_tokens
    assert scores.token_logprobs[0] is None and all(s <= 0 for s in scores.token_logprobs[1:])
    assert answer.usage.completion_tokens == 0


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def is_person(text):
    person = json.loads(text)
    assert set(person) == {"name", "age"} and len(person["name"]) <= 12 and 0 <= person["age"] <= 120, person


@check
def json_schema(client, model):
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    arguments = dict(model=model, messages=ask("Invent a person."), max_tokens=200, response_format=form, temperature=1.5)
    answer = client.chat.completions.create(n=3, seed=5, **arguments)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        is_person(choice.message.content)
    chunks = client.chat.completions.create(stream=True, seed=6, **arguments)
    is_person("".join(c.choices[0].delta.content or "" for c in chunks))
    colours = {"structured_outputs": {"choice": ["red", "green"]}}
    answer = client.chat.completions.create(model=model, messages=ask("A colour?"), max_tokens=10, extra_body=colours)
    assert answer.choices[0].message.content in ("red", "green")


@check
def tools(client, model):
    function = {"name": "save_person", "description": "Saves a person.", "parameters": PERSON}
    offered = [{"type": "function", "function": function}]
    arguments = dict(
        model=model, messages=ask("Save Ann, 7."), tools=offered, parallel_tool_calls=False, max_tokens=200, seed=3
    )
    named = {"type": "function", "function": {"name": "save_person"}}
    for choice in ("required", named):
        answer = client.chat.completions.create(tool_choice=choice, **arguments).choices[0]
        assert answer.finish_reason == "tool_calls" and len(answer.message.tool_calls) == 1
        call = answer.message.tool_calls[0]
        assert call.id and call.function.name == "save_person"
        is_person(call.function.arguments)
        with client.chat.completions.stream(tool_choice=choice, **arguments) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion().choices[0]
        assert final.message.tool_calls[0].function.arguments == call.function.arguments
    auto = client.chat.completions.create(tool_choice="auto", **arguments).choices[0]
    assert auto.message.content or auto.message.tool_calls
    history = ask("Save Ann, 7.") + [
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "saved"},
    ]
    try:
        answer = client.chat.completions.create(model=model, messages=history, tools=offered, max_tokens=4)
        assert answer.usage.prompt_tokens > 0
    except openai.BadRequestError as error:
        # A model's chat template may refuse the results of tools.
        assert error.param.startswith("messages"), error


@check
def embeddings(client, model):
    served = [known.id for known in client.models.list().data]
    inputs = ["Is it warm?", "Does it keep the cold out?", "The pan is made of carbon steel."]
    for name in reversed(served):
        try:
            # The package asks for base64 by itself.
            answer = client.embeddings.create(model=name, input=inputs)
            break
        except openai.NotFoundError:
            continue
    else:
        print("no embedding model is served")
        return
    vectors = [entry.embedding for entry in answer.data]
    assert [entry.index for entry in answer.data] == [0, 1, 2] and answer.usage.prompt_tokens > 10
    near = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert abs(near(vectors[0], vectors[0]) - 1) < 1e-4 and near(vectors[0], vectors[1]) > near(vectors[0], vectors[2])
    floats = client.embeddings.create(model=name, input=inputs[2], encoding_format="float")
    assert max(abs(x - y) for x, y in zip(floats.data[0].embedding, vectors[2])) < 1e-6
    of_ids = client.embeddings.create(model=name, input=[[101, 2003, 102], [101, 102]])
    assert len(of_ids.data) == 2 and len(of_ids.data[0].embedding) == len(vectors[0])
    call = lambda **changes: lambda: client.embeddings.create(**{"model": name, "input": "x", **changes})
    refused(call(input=""), openai.BadRequestError, "input")
    refused(call(input=["x", "word " * 5000]), openai.BadRequestError, "input[1]")
    refused(call(dimensions=1), openai.BadRequestError, "dimensions")
    refused(call(model="no-such-model"), openai.NotFoundError, "model")


@check
def errors(client, model):
    def call(**changes):
        return lambda: client.chat.completions.create(**{"model": model, "messages": ask("Hi"), "max_tokens": 1, **changes})

    refused(call(model="no-such-model"), openai.NotFoundError, "model")
    refused(call(messages=[]), openai.BadRequestError, "messages")
    refused(call(messages=[{"role": "wizard", "content": "x"}]), openai.BadRequestError, "messages[0].role")
    refused(call(temperature=-1), openai.BadRequestError, "temperature")
    refused(call(max_tokens=-1), openai.BadRequestError, "max_tokens")
    refused(call(n=0), openai.BadRequestError, "n")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "colour"}}}
    refused(call(response_format=schema), openai.BadRequestError, "response_format.json_schema.schema")
    refused(call(tool_choice="required"), openai.BadRequestError, "tool_choice")
    refused(call(top_logprobs=2), openai.BadRequestError, "top_logprobs")
    refused(call(logit_bias={"99999999": 1}), openai.BadRequestError, "logit_bias")
    refused(call(stream_options={"include_usage": True}), openai.BadRequestError, "stream_options")
    refused(call(messages=ask("word " * 200_000)), openai.BadRequestError, "messages")
    refused(lambda: client.completions.create(model=model, prompt=[]), openai.BadRequestError, "prompt")
    call()()


@check
def headers(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=ask("Hi"), max_tokens=1, extra_headers={"X-Request-Id": "request-7"}
    )
    assert raw.headers["x-request-id"] == "request-7"
    assert raw.parse().id == "chatcmpl-request-7"


@check
def cancellation(client, model):
    """Leaves streams in the middle; what follows must not wait for them."""
    for _ in range(3):
        stream = client.chat.completions.create(
            model=model, messages=ask("Tell a very long story."), stream=True, extra_body={"ignore_eos": True}
        )
        for count, _ in enumerate(stream):
            if count == 3:
                break
        stream.close()
    try:
        client.with_options(timeout=0.05, max_retries=0).chat.completions.create(
            model=model, messages=ask("Tell a very long story."), extra_body={"ignore_eos": True}
        )
    except openai.APITimeoutError:
        pass
    client.chat.completions.create(model=model, messages=ask("Hi"), max_tokens=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", help="default: the first one that is served")
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=arguments.base_url, api_key=arguments.api_key, timeout=120)
    model = arguments.model or client.models.list().data[0].id
    failed = 0
    for function in CHECKS:
        start = time.monotonic()
        try:
            function(client, model)
            result = "ok"
        except Exception:
            traceback.print_exc()
            failed += 1
            result = "FAILED"
        print(f"{function.__name__:32} {result:6} {time.monotonic() - start:6.2f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
