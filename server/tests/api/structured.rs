//! Output of a certain form, and tools. The model of bytes wants to write its script; what comes out is what it may.

use millrace_engine::EngineConfig;
use serde_json::{Value, json};

use crate::server::{Options, Server, user};

const CHAT: &str = "/v1/chat/completions";

/// A context that holds a description of tools, of which each byte is a token.
fn roomy() -> Server {
    let engine = EngineConfig { max_model_len: 2048, ..EngineConfig::default() };
    Server::with(Options { engine, blocks: 1024, ..Options::default() })
}

fn weather() -> Value {
    let parameters = json!({
        "type": "object", "required": ["city"], "additionalProperties": false,
        "properties": { "city": { "enum": ["Oslo", "Rome"] }, "days": { "type": "integer", "minimum": 1, "maximum": 9 } },
    });
    json!({ "type": "function", "function": { "name": "get_weather", "description": "…", "parameters": parameters } })
}

fn clock() -> Value {
    json!({ "type": "function", "function": { "name": "clock" , "parameters": { "type": "object", "properties": {}, "additionalProperties": false } } })
}

#[test]
fn each_way_to_ask_for_a_form_is_followed() {
    let server = roomy();
    let schema = json!({ "type": "object", "required": ["ok", "n"], "additionalProperties": false,
                         "properties": { "ok": { "type": "boolean" }, "n": { "type": "integer", "minimum": 10, "maximum": 99 } } });
    let is_document = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        value["ok"].is_boolean() && value["n"].as_u64().is_some_and(|n| (10..100).contains(&n))
    };
    type Holds = Box<dyn Fn(&str) -> bool>;
    let forms: Vec<(Value, Holds)> = vec![
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "strict": true, "schema": schema } } }),
            Box::new(is_document),
        ),
        (json!({ "structured_outputs": { "json": schema } }), Box::new(is_document)),
        (json!({ "structured_outputs": { "json": schema.to_string() } }), Box::new(is_document)),
        (json!({ "guided_json": schema }), Box::new(is_document)),
        (
            json!({ "structured_outputs": { "regex": "[0-9]{3}-x" } }),
            Box::new(|text| text.len() == 5 && text.ends_with("-x")),
        ),
        (
            json!({ "structured_outputs": { "choice": ["red", "green"] } }),
            Box::new(|text| ["red", "green"].contains(&text)),
        ),
        (json!({ "guided_choice": ["red", "green"] }), Box::new(|text| ["red", "green"].contains(&text))),
        (
            json!({ "structured_outputs": { "grammar": "start: \"a\"~3 (\"b\" | \"c\")" } }),
            Box::new(|text| ["aaab", "aaac"].contains(&text)),
        ),
    ];
    for (form, holds) in &forms {
        for path in [CHAT, "/v1/completions"] {
            for seed in 0..3 {
                let mut body = json!({ "max_tokens": 64, "seed": seed, "n": 2, "logprobs": if path == CHAT { json!(true) } else { json!(0) } });
                body[if path == CHAT { "messages" } else { "prompt" }] =
                    if path == CHAT { user("Hi") } else { "Hi".into() };
                body.as_object_mut().unwrap().extend(form.as_object().unwrap().clone());
                let answer = server.post(path, &body).ok();
                for choice in answer["choices"].as_array().unwrap() {
                    let text = if path == CHAT { &choice["message"]["content"] } else { &choice["text"] };
                    assert!(holds(text.as_str().unwrap()), "{form}: {text}");
                    assert_eq!(choice["finish_reason"], "stop", "{form}");
                }
            }
        }
    }
    let object = json!({ "messages": user("Hi"), "response_format": { "type": "json_object" }, "max_tokens": 200, "logit_bias": { "125": 12, "34": 8 } });
    let answer = server.chat(object);
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object()), "{text}");
    // Cut short it is not a document, and says so.
    let short = server.chat(json!({ "messages": user("Hi"), "guided_json": schema, "max_tokens": 3 }));
    assert_eq!(short["choices"][0]["finish_reason"], "length");
}

/// The calls of a streamed choice, put together as clients do.
fn streamed(chunks: &[Value]) -> (Vec<(String, String)>, String, Value) {
    let (mut calls, mut text, mut finish): (Vec<(String, String)>, String, Value) = Default::default();
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        text += choice["delta"]["content"].as_str().unwrap_or_default();
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert!(call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function");
                calls.push((call["function"]["name"].as_str().unwrap().to_owned(), String::new()));
            } else {
                assert!(call.get("id").is_none() && call["function"].get("name").is_none());
            }
            calls[index].1 += call["function"]["arguments"].as_str().unwrap();
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    (calls, text, finish)
}

fn checked(name: &str, arguments: &str) {
    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"));
    match name {
        "get_weather" => assert!(["Oslo", "Rome"].contains(&value["city"].as_str().unwrap()), "{value}"),
        "clock" => assert_eq!(value, json!({})),
        other => panic!("{other} is not a tool"),
    }
}

#[test]
fn calls_that_must_come_come_streamed_or_not() {
    let server = roomy();
    let named = json!({ "type": "function", "function": { "name": "clock" } });
    for (choice, parallel) in [(json!("required"), true), (json!("required"), false), (named, true)] {
        for seed in 0..4 {
            let body = json!({ "messages": user("Hi"), "tools": [weather(), clock()], "tool_choice": choice, "seed": seed,
                               "parallel_tool_calls": parallel, "max_tokens": 200, "temperature": 1.0,
                               "logit_bias": { EOS: 20 } });
            let answer = server.chat(body.clone());
            let (message, finish) =
                (&answer["choices"][0]["message"], &answer["choices"][0]["finish_reason"]);
            let calls = message["tool_calls"].as_array().unwrap_or_else(|| panic!("{answer}"));
            assert_eq!((finish, &message["content"]), (&json!("tool_calls"), &Value::Null));
            assert!(!calls.is_empty() && (parallel || calls.len() == 1));
            let mut found = Vec::new();
            for call in calls {
                let (name, arguments) = (&call["function"]["name"], &call["function"]["arguments"]);
                checked(name.as_str().unwrap(), arguments.as_str().unwrap());
                assert!(choice == "required" || name == "clock");
                found.push((name.as_str().unwrap().to_owned(), arguments.as_str().unwrap().to_owned()));
            }
            let (calls, text, finish) = streamed(&server.stream(CHAT, body));
            assert_eq!((calls, text.as_str(), finish), (found, "", json!("tool_calls")));
        }
    }
}

const EOS: &str = "257";

#[test]
fn prose_is_free_where_calls_only_may_come() {
    let server = roomy();
    let body = json!({ "messages": user("Hi"), "tools": [weather()], "max_tokens": 60, "temperature": 0 });
    let answer = server.chat(body.clone());
    let choice = &answer["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(text.contains(" and ") && choice["message"].get("tool_calls").is_none(), "{text}");
    assert_eq!(choice["finish_reason"], "length");
    let (calls, streamed, finish) = streamed(&server.stream(CHAT, body.clone()));
    assert_eq!((calls.len(), streamed.as_str(), finish), (0, text, json!("length")));
    // A form for what is not a call.
    let mut formed = body;
    formed["structured_outputs"] = json!({ "json": { "enum": ["a", "b"] } });
    formed["temperature"] = json!(1);
    let answer = server.chat(formed);
    let message = &answer["choices"][0]["message"];
    match message["content"].as_str() {
        Some(text) => assert!(["\"a\"", "\"b\""].contains(&text), "{text}"),
        None => assert_eq!(message["tool_calls"][0]["function"]["name"], "get_weather"),
    }
}

#[test]
fn results_of_calls_go_into_the_conversation() {
    let server = roomy();
    let call =
        json!({ "id": "call_1", "type": "function", "function": { "name": "clock", "arguments": "{}" } });
    let messages = json!([
        { "role": "user", "content": "What time is it?" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call_1", "content": "12:30" },
    ]);
    let answer =
        server.post(CHAT, &json!({ "messages": messages, "tools": [clock()], "max_tokens": 4 })).ok();
    let with = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(with > 300, "the tools, the call and its result are in the prompt of {with} tokens");
}

#[test]
fn a_hostile_schema_is_a_400_within_half_a_second_and_others_go_on() {
    let server = roomy();
    let branch = |i: usize| json!({ "properties": { (format!("p{i}")): { "pattern": format!("^(a|b{i})*$"), "type": "string" } }, "required": [format!("p{i}")] });
    let product: Vec<Value> =
        (0..24).map(|_| json!({ "anyOf": (0..8).map(branch).collect::<Vec<_>>() })).collect();
    for schema in [
        json!({ "allOf": product }),
        json!({ "$ref": "#/$defs/none" }),
        json!({ "type": "array", "items": 7 }),
    ] {
        let started = std::time::Instant::now();
        let body = json!({ "messages": user("Hi"), "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } } });
        let error = server.post(CHAT, &body).error(400);
        assert_eq!(error["param"], "response_format.json_schema.schema", "{error}");
        assert!(started.elapsed().as_secs() < 5, "{:?} {error}", started.elapsed());
    }
    server.complete(json!({ "prompt": "still there" }));
}
