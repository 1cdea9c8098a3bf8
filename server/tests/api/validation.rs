//! Bad input: a 4xx that names the field, within milliseconds, and a server that goes on.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::server::{Server, user};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

fn base(path: &str) -> Value {
    match path {
        CHAT => json!({ "messages": user("Hi"), "max_tokens": 2 }),
        _ => json!({ "prompt": "Hi", "max_tokens": 2 }),
    }
}

fn with(path: &str, extra: &Value) -> Value {
    let mut body = base(path);
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[test]
fn each_bad_field_is_named() {
    let server = Server::start();
    let long = "x".repeat(2000);
    let many: Vec<String> = (0..17).map(|i| i.to_string()).collect();
    let biases: Map<String, Value> = (0..1025).map(|i| (i.to_string(), json!(1))).collect();
    let cases = [
        (json!({ "temperature": -0.1 }), "temperature"),
        (json!({ "temperature": 1e39 }), "temperature"),
        (json!({ "temperature": "0.5" }), "temperature"),
        (json!({ "temperature": [0.5] }), "temperature"),
        (json!({ "top_p": 0 }), "top_p"),
        (json!({ "top_p": 1.1 }), "top_p"),
        (json!({ "top_k": -2 }), "top_k"),
        (json!({ "top_k": 1.5 }), "top_k"),
        (json!({ "min_p": -0.1 }), "min_p"),
        (json!({ "min_p": 2 }), "min_p"),
        (json!({ "presence_penalty": 2.1 }), "presence_penalty"),
        (json!({ "frequency_penalty": -2.1 }), "frequency_penalty"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty"),
        (json!({ "repetition_penalty": -1 }), "repetition_penalty"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": -1 }), "n"),
        (json!({ "n": 257 }), "n"),
        (json!({ "n": 4294967296u64 }), "n"),
        (json!({ "best_of": 2 }), "best_of"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "max_tokens": 1.5 }), "max_tokens"),
        (json!({ "max_completion_tokens": 0 }), "max_completion_tokens"),
        (json!({ "min_tokens": 3 }), "min_tokens"),
        (json!({ "min_tokens": -3 }), "min_tokens"),
        (json!({ "seed": 1.5 }), "seed"),
        (json!({ "seed": 9223372036854775808u64 }), "seed"),
        (json!({ "seed": "1" }), "seed"),
        (json!({ "stop": "" }), "stop"),
        (json!({ "stop": [""] }), "stop"),
        (json!({ "stop": 5 }), "stop"),
        (json!({ "stop": [5] }), "stop"),
        (json!({ "stop": many }), "stop"),
        (json!({ "stop": long }), "stop"),
        (json!({ "stop_token_ids": [260] }), "stop_token_ids"),
        (json!({ "stop_token_ids": [-1] }), "stop_token_ids"),
        (json!({ "stop_token_ids": ["1"] }), "stop_token_ids"),
        (json!({ "stop_token_ids": 1 }), "stop_token_ids"),
        (json!({ "logit_bias": { "260": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "4294967296": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "-1": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "word": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias"),
        (json!({ "logit_bias": { "1": "1" } }), "logit_bias"),
        (json!({ "logit_bias": [1] }), "logit_bias"),
        (json!({ "logit_bias": biases }), "logit_bias"),
        (json!({ "stream": "yes" }), "stream"),
        (json!({ "stream": 1 }), "stream"),
        (json!({ "stream_options": {} }), "stream_options"),
        (json!({ "stream": true, "stream_options": 1 }), "stream_options"),
        (json!({ "stream": true, "stream_options": { "include_usage": 1 } }), "stream_options.include_usage"),
        (json!({ "ignore_eos": "no" }), "ignore_eos"),
        (json!({ "priority": 2147483648u64 }), "priority"),
        (json!({ "cache_salt": "" }), "cache_salt"),
        (json!({ "cache_salt": 7 }), "cache_salt"),
        (json!({ "request_id": "" }), "request_id"),
        (json!({ "user": 7 }), "user"),
        (json!({ "metadata": 7 }), "metadata"),
        (json!({ "prompt_logprobs": -1 }), "prompt_logprobs"),
        (json!({ "truncate_prompt_tokens": 0 }), "truncate_prompt_tokens"),
        (json!({ "truncate_prompt_tokens": 1, "truncation_side": "top" }), "truncation_side"),
        (json!({ "model": 7 }), "model"),
        // Known, and not implemented.
        (json!({ "tools": {} }), "tools"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "functions": [{}] }), "functions"),
        (json!({ "response_format": 1 }), "response_format"),
        (json!({ "response_format": {} }), "response_format.type"),
        (json!({ "response_format": { "type": "xml" } }), "response_format.type"),
        (json!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema"),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": {} } }),
            "response_format.json_schema.schema",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "colour" } } } }),
            "response_format.json_schema.schema",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "not": { "type": "string" } } } } }),
            "response_format.json_schema.schema",
        ),
        (
            json!({ "response_format": { "type": "json_object" }, "structured_outputs": { "regex": "a" } }),
            "structured_outputs.regex",
        ),
        (json!({ "use_beam_search": true }), "use_beam_search"),
        (json!({ "length_penalty": 1.1 }), "length_penalty"),
        (json!({ "allowed_token_ids": [1] }), "allowed_token_ids"),
        (json!({ "bad_words": ["x"] }), "bad_words"),
        (json!({ "guided_json": 7 }), "guided_json"),
        (json!({ "guided_json": "{" }), "guided_json"),
        (json!({ "guided_regex": "(" }), "guided_regex"),
        (json!({ "guided_choice": [] }), "guided_choice"),
        (json!({ "guided_choice": ["a", 1] }), "guided_choice"),
        (json!({ "guided_grammar": "root ::= x" }), "guided_grammar"),
        (json!({ "guided_regex": "a", "guided_choice": ["a"] }), "guided_choice"),
        (json!({ "structured_outputs": {} }), "structured_outputs"),
        (json!({ "structured_outputs": { "json": false } }), "structured_outputs.json"),
        (json!({ "structured_outputs": { "regex": 7 } }), "structured_outputs.regex"),
        (json!({ "structured_outputs": { "choice": [""] } }), "structured_outputs.choice"),
        (json!({ "structured_outputs": { "grammar": "start: /a/ &" } }), "structured_outputs.grammar"),
        (json!({ "structured_outputs": { "json": {}, "regex": "a" } }), "structured_outputs"),
        (json!({ "structured_outputs": { "structural_tag": {} } }), "structured_outputs.structural_tag"),
        (json!({ "spaces_between_special_tokens": false }), "spaces_between_special_tokens"),
        (json!({ "logits_processors": ["f"] }), "logits_processors"),
        (json!({ "suffix": "x" }), "suffix"),
        (json!({ "prompt_embeds": "x" }), "prompt_embeds"),
        (json!({ "store": true }), "store"),
    ];
    for (extra, param) in cases {
        for path in [CHAT, COMPLETION] {
            let start = Instant::now();
            let reply = server.post(path, &with(path, &extra));
            let error = reply.error(400);
            assert_eq!(error["param"], param, "{path} {extra}: {error}");
            assert_eq!(error["type"], "invalid_request_error");
            assert!(error["message"].as_str().unwrap().contains(param.split('.').next().unwrap()), "{error}");
            assert!(start.elapsed() < Duration::from_secs(1));
        }
    }
    server.complete(json!({ "prompt": "still there" }));
}

#[test]
fn each_bad_field_of_one_api_is_named() {
    let server = Server::start();
    let cases = [
        (COMPLETION, json!({ "prompt": null }), "prompt"),
        (COMPLETION, json!({ "prompt": "" }), "prompt"),
        (COMPLETION, json!({ "prompt": [] }), "prompt"),
        (COMPLETION, json!({ "prompt": [[]] }), "prompt[0]"),
        (COMPLETION, json!({ "prompt": ["a", ""] }), "prompt[1]"),
        (COMPLETION, json!({ "prompt": ["a", 1] }), "prompt[1]"),
        (COMPLETION, json!({ "prompt": [1, "a"] }), "prompt"),
        (COMPLETION, json!({ "prompt": [[1], "a"] }), "prompt[1]"),
        (COMPLETION, json!({ "prompt": { "a": 1 } }), "prompt"),
        (COMPLETION, json!({ "prompt": 1 }), "prompt"),
        (COMPLETION, json!({ "prompt": [-1] }), "prompt"),
        (COMPLETION, json!({ "prompt": [1.5] }), "prompt"),
        (COMPLETION, json!({ "prompt": [260] }), "prompt"),
        (COMPLETION, json!({ "prompt": [[1], [2147483648u32]] }), "prompt"),
        (COMPLETION, json!({ "prompt": [4294967296u64] }), "prompt"),
        (COMPLETION, json!({ "prompt": vec!["a"; 300] }), "prompt"),
        (COMPLETION, json!({ "prompt": ["a", "b"], "n": 129 }), "n"),
        (COMPLETION, json!({ "logprobs": 21 }), "logprobs"),
        (COMPLETION, json!({ "logprobs": -1 }), "logprobs"),
        (COMPLETION, json!({ "logprobs": true }), "logprobs"),
        (COMPLETION, json!({ "echo": "yes" }), "echo"),
        (CHAT, json!({ "messages": null }), "messages"),
        (CHAT, json!({ "messages": [] }), "messages"),
        (CHAT, json!({ "messages": "Hi" }), "messages"),
        (CHAT, json!({ "messages": ["Hi"] }), "messages[0]"),
        (CHAT, json!({ "messages": [{}] }), "messages[0].role"),
        (CHAT, json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (CHAT, json!({ "messages": [{ "role": "wizard", "content": "" }] }), "messages[0].role"),
        (CHAT, json!({ "messages": [{ "role": 1, "content": "" }] }), "messages[0].role"),
        (CHAT, json!({ "messages": [{ "role": "user", "content": 1 }] }), "messages[0].content"),
        (CHAT, json!({ "messages": [{ "role": "user", "content": ["a"] }] }), "messages[0].content[0]"),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text" }] }] }),
            "messages[0].content[0].text",
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": [{ "text": "x" }] }] }),
            "messages[0].content[0].type",
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "http://127.1" } }] }] }),
            "messages[0].content[0].type",
        ),
        (CHAT, json!({ "messages": [{ "role": "assistant", "tool_calls": 1 }] }), "messages[0].tool_calls"),
        (
            CHAT,
            json!({ "messages": [{ "role": "assistant", "tool_calls": [1] }] }),
            "messages[0].tool_calls[0]",
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "assistant", "tool_calls": [{}] }] }),
            "messages[0].tool_calls[0].function",
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": "[" } }] }] }),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (CHAT, json!({ "tools": [{}] }), "tools[0].type"),
        (CHAT, json!({ "tools": [{ "type": "retrieval" }] }), "tools[0].type"),
        (CHAT, json!({ "tools": [{ "type": "function" }] }), "tools[0].function"),
        (
            CHAT,
            json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }),
            "tools[0].function.name",
        ),
        (
            CHAT,
            json!({ "tools": [{ "type": "function", "function": { "name": "f" } }, { "type": "function", "function": { "name": "f" } }] }),
            "tools[1].function.name",
        ),
        (
            CHAT,
            json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": 1 } }] }),
            "tools[0].function.parameters",
        ),
        (
            CHAT,
            json!({ "tools": [{ "type": "function", "function": { "name": "f" } }], "tool_choice": "g" }),
            "tool_choice",
        ),
        (
            CHAT,
            json!({ "tools": [{ "type": "function", "function": { "name": "f" } }], "tool_choice": { "type": "function", "function": { "name": "g" } } }),
            "tool_choice",
        ),
        (
            CHAT,
            json!({ "tools": [{ "type": "function", "function": { "name": "f" } }], "tool_choice": "required", "response_format": { "type": "json_object" } }),
            "response_format",
        ),
        (COMPLETION, json!({ "tools": [{ "type": "function", "function": { "name": "f" } }] }), "tools"),
        (CHAT, json!({ "logprobs": 1 }), "logprobs"),
        (CHAT, json!({ "top_logprobs": 1 }), "top_logprobs"),
        (CHAT, json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (CHAT, json!({ "chat_template": "{{ 1 }}" }), "chat_template"),
        (CHAT, json!({ "chat_template_kwargs": 1 }), "chat_template_kwargs"),
        (CHAT, json!({ "chat_template_kwargs": { "a": [1] } }), "chat_template_kwargs"),
        (CHAT, json!({ "chat_template_kwargs": { "a": "x".repeat(300) } }), "chat_template_kwargs"),
        (CHAT, json!({ "documents": [{}] }), "documents"),
        (CHAT, json!({ "add_special_tokens": true }), "add_special_tokens"),
        (
            CHAT,
            json!({ "continue_final_message": true, "add_generation_prompt": true }),
            "continue_final_message",
        ),
        (CHAT, json!({ "echo": true }), "echo"),
        (CHAT, json!({ "modalities": ["audio"] }), "modalities"),
    ];
    for (path, extra, param) in cases {
        let error = server.post(path, &with(path, &extra)).error(400);
        assert_eq!(error["param"], param, "{path} {extra}: {error}");
    }
    server.complete(json!({ "prompt": "still there" }));
}

#[test]
fn values_that_ask_for_nothing_are_accepted() {
    let server = Server::start();
    let neutral = json!({
        "model": "bytes", "temperature": null, "top_p": 1, "top_k": -1, "min_p": 0, "n": 1, "best_of": 1, "stop": null,
        "seed": -7, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
        "min_tokens": 0, "ignore_eos": false, "stop_token_ids": [], "include_stop_str_in_output": false,
        "skip_special_tokens": true, "spaces_between_special_tokens": true, "stream": false, "stream_options": null,
        "response_format": { "type": "text" }, "tools": null, "tool_choice": "none", "parallel_tool_calls": true,
        "user": "ann", "metadata": { "a": "b" }, "priority": 0, "request_id": "mine", "use_beam_search": false,
        "length_penalty": 1.0, "bad_words": [], "store": false, "service_tier": "auto", "suffix": null,
        "return_token_ids": false, "return_tokens_as_token_ids": false, "unknown_to_everyone": { "x": 1 },
    });
    for path in [CHAT, COMPLETION] {
        let answer = server.post(path, &with(path, &neutral)).ok();
        assert!(answer["id"].as_str().unwrap().ends_with("-mine"));
    }
    let tools =
        json!({ "tools": [{ "type": "function", "function": { "name": "f" } }], "tool_choice": "none" });
    server.chat(with(CHAT, &tools));
}

#[test]
fn prompts_that_do_not_fit_say_both_numbers() {
    let server = Server::start();
    let cases = [
        (COMPLETION, json!({ "prompt": "x".repeat(600), "max_tokens": 1 }), "prompt", ["601", "512"]),
        (COMPLETION, json!({ "prompt": "x".repeat(511) }), "prompt", ["512", "512"]),
        (COMPLETION, json!({ "prompt": "x", "max_tokens": 511 }), "prompt", ["513", "512"]),
        (COMPLETION, json!({ "prompt": "x", "max_tokens": 4294967295u32 }), "prompt", ["4294967297", "512"]),
        (CHAT, json!({ "messages": user(&"x".repeat(500)) }), "messages", ["519", "512"]),
        (CHAT, json!({ "messages": user("x"), "max_completion_tokens": 500 }), "messages", ["519", "512"]),
        // So long that it is not even tokenised; the longest token, a special one, has five bytes.
        (COMPLETION, json!({ "prompt": "x".repeat(100_000) }), "prompt", ["20000", "512"]),
        (CHAT, json!({ "messages": user(&"x".repeat(100_000)) }), "messages", ["20000", "512"]),
    ];
    for (path, body, param, numbers) in cases {
        let error = server.post(path, &body).error(400);
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!("context_length_exceeded")));
        let message = error["message"].as_str().unwrap();
        assert!(numbers.iter().all(|n| message.contains(n)), "{message}");
    }
    // Exactly full is not too long.
    server.complete(json!({ "prompt": "x".repeat(510), "max_tokens": 1 }));
    server.complete(json!({ "prompt": "x", "max_tokens": 510 }));
}

#[test]
fn unknown_models_and_paths_are_404_in_json() {
    let server = Server::start();
    for path in [CHAT, COMPLETION] {
        let error = server.post(path, &with(path, &json!({ "model": "gpt-4" }))).error(404);
        assert_eq!((&error["param"], &error["code"]), (&json!("model"), &json!("model_not_found")));
    }
    for path in ["/page/none", "/v1", "/v1/chat", "/v1/audio", "/admin", "/v1/models/gpt-4"] {
        server.get(path).error(404);
    }
    for (method, path, allow) in [
        ("GET", CHAT, "POST"),
        ("PUT", "/v1/models", "GET, HEAD"),
        ("DELETE", "/health", "GET, HEAD"),
        ("OPTIONS", CHAT, "POST"),
    ] {
        let reply = server.connect().send(method, path, &[], b"");
        reply.error(405);
        assert_eq!(reply.header("allow"), Some(allow));
    }
}

#[test]
fn bodies_that_are_no_json_objects() {
    let server = Server::start();
    for body in [
        &b""[..],
        b"null",
        b"[]",
        b"\"x\"",
        b"7",
        b"{",
        b"{\"a\":1,}",
        b"\xff\xfe",
        b"{\"prompt\":\"\xc3\"}",
        b"{} {}",
    ] {
        for path in [CHAT, COMPLETION, "/tokenize", "/detokenize"] {
            server.connect().send("POST", path, &[], body).error(400);
        }
    }
    let twice = br#"{"prompt":"a","prompt":"b"}"#;
    let error = server.connect().send("POST", COMPLETION, &[], twice).error(400);
    assert!(error["message"].as_str().unwrap().contains("\"prompt\" appears twice"), "{error}");
    let huge = br#"{"prompt":"a","temperature":1e999}"#;
    server.connect().send("POST", COMPLETION, &[], huge).error(400);
    let deep = format!(r#"{{"prompt":"a","metadata":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    server.connect().send("POST", COMPLETION, &[], deep.as_bytes()).error(400);
    for media in ["text/plain", "application/x-www-form-urlencoded", ""] {
        server
            .connect()
            .send("POST", COMPLETION, &[("content-type", media)], br#"{"prompt":"a"}"#)
            .error(415);
    }
    let body = br#"{"prompt":"a"}"#;
    let media = ("content-type", "Application/JSON; charset=utf-8");
    assert_eq!(server.connect().send("POST", COMPLETION, &[media], body).status, 200);
    server.connect().send("POST", COMPLETION, &[("content-encoding", "gzip")], body).error(415);
}

/// Every numeric field with every kind of number and non-number: an answer or a 400, never anything else.
#[test]
fn every_field_with_every_kind_of_value() {
    let server = Server::start();
    let fields = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "best_of",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "seed",
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "priority",
        "truncate_prompt_tokens",
        "stop",
        "stop_token_ids",
        "logit_bias",
        "stream",
        "stream_options",
        "echo",
        "messages",
        "prompt",
        "model",
        "user",
        "metadata",
        "chat_template_kwargs",
        "cache_salt",
        "request_id",
        "skip_special_tokens",
        "tools",
    ];
    let values = [
        "-1",
        "0",
        "1",
        "2",
        "20",
        "21",
        "2147483647",
        "2147483648",
        "4294967295",
        "4294967296",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
        "1e308",
        "-1e308",
        "1e-400",
        "1.5",
        "-0",
        "0.0",
        "\"1\"",
        "\"NaN\"",
        "\"\"",
        "null",
        "[]",
        "[null]",
        "[[]]",
        "[1]",
        "{}",
        "{\"a\":1}",
        "true",
        "false",
        "\"\\ud83e\\udd80\"",
        "\"\\u0000\"",
    ];
    let mut connection = server.connect();
    for path in [CHAT, COMPLETION] {
        for field in fields {
            for value in values {
                let mut body = base(path);
                body[field] = json!("PLACE");
                let body = body.to_string().replace("\"PLACE\"", value);
                let reply = connection.send("POST", path, &[], body.as_bytes());
                match reply.status {
                    200 => {}
                    404 => assert_eq!(field, "model"),
                    _ => {
                        let error = reply.error(400);
                        let text = error["message"].as_str().unwrap();
                        assert!(!text.contains(".rs") && !text.contains("panicked"), "{text}");
                    }
                }
            }
        }
    }
    assert_eq!(server.get("/health").status, 200);
}
