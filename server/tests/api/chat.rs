//! `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::model::{DIE, QUIET, script};
use crate::server::{Options, Server, eventually, user, user_len};

fn text_of(chunks: &[Value], index: u64) -> String {
    let of = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index);
    of.filter_map(|c| c["delta"]["content"].as_str()).collect()
}

#[test]
fn one_answer_in_one_piece() {
    let server = Server::start();
    let body =
        json!({ "model": "bytes", "messages": user("Hi"), "max_completion_tokens": 7, "temperature": 0 });
    let answer = server.chat(body);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    let length = user_len("Hi");
    let expected = json!([{
        "index": 0,
        "message": { "role": "assistant", "content": script(length, 7), "refusal": null },
        "logprobs": null,
        "finish_reason": "length",
        "stop_reason": null,
    }]);
    assert_eq!(answer["choices"], expected);
    assert_eq!(answer["usage"]["prompt_tokens"], length);
    assert_eq!(answer["usage"]["total_tokens"], length + 7);
    let rest = server.chat(json!({ "messages": user("Hi"), "ignore_eos": true }));
    assert_eq!(rest["usage"]["total_tokens"], 512, "by default a chat may fill the context");
    let quiet = server.chat(json!({ "messages": user(QUIET), "temperature": 0 }));
    assert_eq!(
        (&quiet["choices"][0]["finish_reason"], &quiet["choices"][0]["message"]["content"]),
        (&json!("stop"), &json!(""))
    );
}

#[test]
fn a_stream_opens_with_the_role_and_ends_with_the_reason() {
    let server = Server::start();
    let body = json!({ "messages": user("Hi"), "max_tokens": 100, "temperature": 0, "n": 2, "stream_options": { "include_usage": true } });
    let whole = server.chat(
        body.as_object()
            .unwrap()
            .iter()
            .filter(|(k, _)| *k != "stream_options")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    );
    let mut chunks = server.stream("/v1/chat/completions", body);
    let usage = chunks.pop().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(200)));
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk"
        && c["id"] == usage["id"]
        && c["created"] == usage["created"]));
    for index in 0..2u64 {
        let of: Vec<&Value> =
            chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).collect();
        assert_eq!(of[0]["delta"], json!({ "role": "assistant", "content": "" }));
        let (last, middle) = of[1..].split_last().unwrap();
        assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
        for chunk in middle {
            assert!(chunk["finish_reason"].is_null() && chunk["delta"].get("role").is_none());
            let content = chunk["delta"]["content"].as_str().unwrap();
            assert!(!content.is_empty() && !content.contains('\u{fffd}'));
        }
        assert_eq!(
            text_of(&chunks, index),
            whole["choices"][index as usize]["message"]["content"].as_str().unwrap()
        );
    }
    // Nothing to say: still a role and a reason.
    let quiet = server.stream("/v1/chat/completions", json!({ "messages": user(QUIET), "temperature": 0 }));
    let deltas: Vec<&Value> = quiet.iter().map(|c| &c["choices"][0]["delta"]).collect();
    assert_eq!(deltas, [&json!({ "role": "assistant", "content": "" }), &json!({})]);
}

#[test]
fn logprobs_carry_bytes() {
    let server = Server::start();
    let body = json!({ "messages": user("Hi"), "max_tokens": 60, "temperature": 0, "logprobs": true, "top_logprobs": 3 });
    let answer = server.chat(body.clone());
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 60);
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|t| t["bytes"].as_array().unwrap())
        .map(|b| b.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), answer["choices"][0]["message"]["content"].as_str().unwrap());
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(
            (&top[0]["bytes"], &top[0]["logprob"]),
            (&token["bytes"], &token["logprob"]),
            "greedy takes the best"
        );
        assert!(
            top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64()
                && top[1]["logprob"].as_f64() >= top[2]["logprob"].as_f64()
        );
    }
    let streamed: Vec<Value> = server
        .stream("/v1/chat/completions", body)
        .iter()
        .flat_map(|c| c["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(&streamed, content);
    let none = server.chat(json!({ "messages": user("Hi"), "max_tokens": 2, "logprobs": true }));
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[test]
fn token_ids_and_prompt_logprobs_stand_at_the_top() {
    let server = Server::start();
    let body = json!({ "messages": user("Hi"), "max_tokens": 5, "return_token_ids": true, "prompt_logprobs": 0, "temperature": 0 });
    let answer = server.chat(body.clone());
    let prompt: Vec<u8> =
        answer["prompt_token_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u8).collect();
    assert_eq!(prompt, b"[user]Hi\n[assistant]");
    assert_eq!(answer["prompt_logprobs"].as_array().unwrap().len(), prompt.len());
    assert_eq!(answer["choices"][0]["token_ids"].as_array().unwrap().len(), 5);
    let mut streaming = body;
    streaming["prompt_logprobs"] = Value::Null;
    let chunks = server.stream("/v1/chat/completions", streaming);
    assert_eq!(chunks[0]["prompt_token_ids"], answer["prompt_token_ids"]);
    let streamed: Vec<Value> = chunks
        .iter()
        .flat_map(|c| c["choices"][0]["token_ids"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(json!(streamed), answer["choices"][0]["token_ids"]);
}

#[test]
fn the_template_sees_what_it_should() {
    let server = Server::start();
    let prompt = |body: Value| {
        let mut body = body;
        body["max_tokens"] = 1.into();
        body["return_token_ids"] = true.into();
        let answer = server.chat(body);
        let ids: Vec<u32> = serde_json::from_value(answer["prompt_token_ids"].clone()).unwrap();
        assert!(ids.iter().all(|id| *id < 256), "a special token came from a client's text: {ids:?}");
        String::from_utf8(ids.into_iter().map(|id| id as u8).collect()).unwrap()
    };
    let history = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "one" }, { "type": "text", "text": "two" }], "name": "ann" },
        { "role": "assistant", "content": "ok" },
        { "role": "user", "content": "" },
    ]);
    assert_eq!(
        prompt(json!({ "messages": history })),
        "[system]Be brief.\n[user]one\ntwo\n[assistant]ok\n[user]\n[assistant]"
    );
    assert_eq!(
        prompt(json!({ "messages": [{ "role": "developer", "content": "x" }] })),
        "[system]x\n[assistant]"
    );
    assert_eq!(prompt(json!({ "messages": user("x"), "add_generation_prompt": false })), "[user]x\n");
    let open = json!({ "messages": [{ "role": "user", "content": "x" }, { "role": "assistant", "content": "I th" }], "continue_final_message": true });
    assert_eq!(prompt(open), "[user]x\n[assistant]I th");
    assert_eq!(
        prompt(json!({ "messages": user("x"), "chat_template_kwargs": { "shout": true } })),
        "[user]x!\n[assistant]"
    );
    // What spells a special token, in a message or in a variable, is text.
    let text = "</s><s><|x|> <|y|>";
    assert_eq!(prompt(json!({ "messages": user(text) })), format!("[user]{text}\n[assistant]"));
    let refused = server.post(
        "/v1/chat/completions",
        &json!({ "messages": [{ "role": "tool", "content": "x", "tool_call_id": "1" }] }),
    );
    let error = refused.error(400);
    assert!(error["message"].as_str().unwrap().contains("no tools here"), "{error}");
}

#[test]
fn a_model_without_a_template_has_no_chat() {
    let server = Server::with(Options { loading: true, ..Default::default() });
    let runner = crate::model::ByteRunner::new(64, server.knobs.clone());
    let metrics = millrace_server::Metrics::new("bytes", 64, millrace_engine::Runner::kv(&runner));
    let config = millrace_engine::EngineConfig { max_model_len: 64, ..Default::default() };
    let (handle, _) = millrace_engine::start(Box::new(runner), config, Box::new(metrics.clone())).unwrap();
    let (tokenizer, _, defaults) = crate::model::text();
    server.service.install(millrace_server::Model { handle, tokenizer, template: None, defaults, metrics });
    let error = server.post("/v1/chat/completions", &json!({ "messages": user("Hi") })).error(400);
    assert!(error["message"].as_str().unwrap().contains("chat template"), "{error}");
    server.complete(json!({ "prompt": "Hi" }));
}

#[test]
fn defaults_of_the_model_hold_unless_overridden() {
    let server = Server::with(Options { loading: true, ..Default::default() });
    let runner = crate::model::ByteRunner::new(64, server.knobs.clone());
    let metrics = millrace_server::Metrics::new("bytes", 128, millrace_engine::Runner::kv(&runner));
    let config = millrace_engine::EngineConfig { max_model_len: 128, ..Default::default() };
    let (handle, _) = millrace_engine::start(Box::new(runner), config, Box::new(metrics.clone())).unwrap();
    let (tokenizer, template, mut defaults) = crate::model::text();
    defaults.temperature = Some(1.9);
    defaults.top_k = Some(1);
    server.service.install(millrace_server::Model {
        handle,
        tokenizer,
        template: Some(template),
        defaults,
        metrics,
    });
    let text = |extra: Value| {
        let mut body = json!({ "prompt": "Hello", "max_tokens": 50, "seed": 3 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.complete(body)["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(text(json!({})), script(6, 50), "top_k 1 is greedy");
    assert_ne!(text(json!({ "top_k": -1 })), script(6, 50));
    assert_ne!(text(json!({ "top_k": 0 })), script(6, 50));
    assert_eq!(text(json!({ "top_k": 0, "temperature": 0 })), script(6, 50));
}

#[test]
fn a_dead_engine_is_reported_everywhere() {
    let server = Server::start();
    assert_eq!(server.get("/health").status, 200);
    let reply = server.post("/v1/chat/completions", &json!({ "messages": user(DIE) }));
    let error = reply.error(503);
    assert_eq!(error["code"], "engine_dead");
    assert!(reply.header("retry-after").is_some());
    eventually(std::time::Duration::from_secs(2), "health to fail", || server.get("/health").status == 503);
    assert_eq!(server.post("/v1/completions", &json!({ "prompt": "x" })).error(503)["code"], "engine_dead");
    assert_eq!(server.get("/metrics").status, 200);
}
