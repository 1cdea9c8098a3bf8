//! `/v1/completions`.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::model::{BOS, EOS, FAIL, QUIET, SCRIPT, script};
use crate::server::{Server, ids};

fn text_of(chunks: &[Value], index: u64) -> String {
    let of = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index);
    of.map(|c| c["text"].as_str().unwrap()).collect()
}

#[test]
fn one_answer_in_one_piece() {
    let server = Server::start();
    let answer =
        server.complete(json!({ "model": "bytes", "prompt": "Hello", "max_tokens": 7, "temperature": 0 }));
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "bytes");
    assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
    assert!(answer["system_fingerprint"].is_string());
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 1);
    let expected = json!({
        "index": 0, "text": script(6, 7), "logprobs": null, "finish_reason": "length", "stop_reason": null,
    });
    assert_eq!(choices[0], expected);
    let usage = json!({ "prompt_tokens": 6, "completion_tokens": 7, "total_tokens": 13, "prompt_tokens_details": { "cached_tokens": 0 } });
    assert_eq!(answer["usage"], usage);
}

#[test]
fn defaults_and_aliases() {
    let server = Server::start();
    // 16 tokens, as OpenAI has it; the model's canonical name where none was given.
    let answer = server.complete(json!({ "prompt": "a" }));
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    assert_eq!(answer["model"], "bytes");
    assert_eq!(
        server.complete(json!({ "prompt": "a", "model": "alias", "max_tokens": null }))["model"],
        "alias"
    );
    // Where the context is nearly full, the default takes what is left.
    let answer = server.complete(json!({ "prompt": "a".repeat(501) }));
    assert_eq!(
        answer["usage"],
        json!({ "prompt_tokens": 502, "completion_tokens": 10, "total_tokens": 512, "prompt_tokens_details": { "cached_tokens": 0 } })
    );
}

#[test]
fn prompts_of_every_kind() {
    let server = Server::start();
    let one = |prompt: Value| {
        let answer = server.complete(json!({ "prompt": prompt, "max_tokens": 5, "temperature": 0 }));
        answer["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["text"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(one(json!("Hello")), [script(6, 5)]);
    assert_eq!(one(json!(ids("Hello"))), [script(6, 5)]);
    assert_eq!(one(json!(["Hello", "Hi"])), [script(6, 5), script(3, 5)]);
    assert_eq!(one(json!([ids("Hello"), ids("Hi"), [BOS]])), [script(6, 5), script(3, 5), script(1, 5)]);
    let plain = server.complete(
        json!({ "prompt": "Hello", "add_special_tokens": false, "max_tokens": 5, "temperature": 0 }),
    );
    assert_eq!(plain["choices"][0]["text"], script(5, 5));
    assert_eq!(plain["usage"]["prompt_tokens"], 5);
    let both = server.complete(json!({ "prompt": ["Hello", "Hi"], "max_tokens": 5, "n": 2 }));
    assert_eq!(both["usage"]["prompt_tokens"], 9, "a prompt counts once, however many answers it gets");
    assert_eq!(both["usage"]["completion_tokens"], 20);
}

#[test]
fn truncation_keeps_the_asked_side() {
    let server = Server::start();
    let prompt = |extra: Value| {
        let mut body = json!({ "prompt": "abcdef", "max_tokens": 1, "echo": true, "temperature": 0 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = server.complete(body);
        (
            answer["choices"][0]["text"].as_str().unwrap().to_owned(),
            answer["usage"]["prompt_tokens"].as_u64().unwrap(),
        )
    };
    assert_eq!(prompt(json!({ "truncate_prompt_tokens": 3 })), (format!("def{}", script(3, 1)), 3));
    assert_eq!(
        prompt(json!({ "truncate_prompt_tokens": 3, "truncation_side": "right" })),
        (format!("ab{}", script(3, 1)), 3)
    );
    assert_eq!(prompt(json!({ "truncate_prompt_tokens": 300 })).1, 7);
    let long = json!({ "prompt": "a".repeat(600), "truncate_prompt_tokens": -1, "max_tokens": 1 });
    assert_eq!(server.complete(long)["usage"]["prompt_tokens"], 511);
}

#[test]
fn a_stream_is_the_same_text() {
    let server = Server::start();
    let body = json!({ "prompt": "Hello", "max_tokens": 120, "temperature": 0 });
    let whole = server.complete(body.clone());
    let chunks = server.stream("/v1/completions", body);
    assert_eq!(text_of(&chunks, 0), whole["choices"][0]["text"].as_str().unwrap());
    assert_eq!(text_of(&chunks, 0), script(6, 120));
    let id = &chunks[0]["id"];
    assert!(
        chunks.iter().all(|c| c["id"] == *id
            && c["created"] == chunks[0]["created"]
            && c["object"] == "text_completion")
    );
    let reasons: Vec<&Value> =
        chunks.iter().map(|c| &c["choices"][0]["finish_reason"]).filter(|r| !r.is_null()).collect();
    assert_eq!(reasons, ["length"]);
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!(last["finish_reason"], "length");
    assert_ne!(last["text"], "", "the last token's text comes with the reason");
    assert!(chunks.iter().all(|c| c.get("usage").is_none()));
    // A chunk never holds half a character, and is never empty on the way.
    for chunk in &chunks {
        let text = chunk["choices"][0]["text"].as_str().unwrap();
        assert!(!text.is_empty() && !text.contains('\u{fffd}'), "{text:?}");
    }
}

#[test]
fn streams_report_usage_as_asked() {
    let server = Server::start();
    let usage = |completion: u64| json!({ "prompt_tokens": 6, "completion_tokens": completion, "total_tokens": 6 + completion, "prompt_tokens_details": { "cached_tokens": 0 } });
    let run = |options: Value| {
        let body = json!({ "prompt": "Hello", "max_tokens": 5, "temperature": 0, "stream_options": options });
        server.stream("/v1/completions", body)
    };
    for options in [
        Value::Null,
        json!({}),
        json!({ "include_usage": false }),
        json!({ "include_usage": false, "continuous_usage_stats": false }),
    ] {
        let chunks = run(options);
        assert_eq!(chunks.len(), 5);
        assert!(chunks.iter().all(|c| c.get("usage").is_none()));
    }
    let chunks = run(json!({ "include_usage": true }));
    assert_eq!(chunks.len(), 6);
    assert!(chunks[..5].iter().all(|c| c["usage"].is_null() && c["choices"].as_array().unwrap().len() == 1));
    assert_eq!((&chunks[5]["usage"], &chunks[5]["choices"]), (&usage(5), &json!([])));
    let chunks = run(json!({ "include_usage": true, "continuous_usage_stats": true }));
    for (i, chunk) in chunks[..5].iter().enumerate() {
        assert_eq!(chunk["usage"], usage(i as u64 + 1));
    }
    assert_eq!(chunks[5]["usage"], usage(5));
    let chunks = run(json!({ "continuous_usage_stats": true }));
    assert_eq!(chunks.len(), 5);
    assert_eq!(chunks[4]["usage"], usage(5));
    let refused = server
        .post("/v1/completions", &json!({ "prompt": "a", "stream_options": { "include_usage": true } }));
    assert_eq!(refused.error(400)["param"], "stream_options");
}

#[test]
fn several_prompts_stream_under_their_indices() {
    let server = Server::start();
    let prompts = ["Hello", "Hi", "a longer prompt"];
    let body = json!({ "prompt": prompts, "n": 2, "max_tokens": 30, "temperature": 0, "stream_options": { "include_usage": true } });
    let chunks = server.stream("/v1/completions", body);
    for (i, prompt) in prompts.iter().enumerate() {
        for j in 0..2 {
            assert_eq!(text_of(&chunks, (i * 2 + j) as u64), script(prompt.len() + 1, 30));
        }
    }
    let ends = chunks
        .iter()
        .flat_map(|c| c["choices"].as_array().unwrap())
        .filter(|c| !c["finish_reason"].is_null());
    assert_eq!(ends.count(), 6);
    assert_eq!(chunks.last().unwrap()["usage"]["prompt_tokens"], 6 + 3 + 16);
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 180);
}

#[test]
fn seeds_reproduce_and_choices_differ() {
    let server = Server::start();
    let run = |seed: i64| {
        let body = json!({ "prompt": "Hello", "max_tokens": 40, "n": 3, "seed": seed, "temperature": 1.5 });
        let answer = server.complete(body);
        answer["choices"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect::<Vec<_>>()
    };
    let first = run(7);
    assert_eq!(first, run(7));
    assert_ne!(first, run(8));
    assert_ne!(run(-1), run(i64::MIN));
    assert!(first[0] != first[1] && first[1] != first[2]);
}

#[test]
fn stop_strings_end_the_text_and_never_show() {
    let server = Server::start();
    // Behind "Hello" the script goes on at its sixth byte.
    let full = script(6, 60);
    let stop = |stop: Value, extra: Value| {
        let mut body = json!({ "prompt": "Hello", "max_tokens": 60, "temperature": 0, "stop": stop });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let whole = server.complete(body.clone());
        let streamed = server.stream("/v1/completions", body);
        assert_eq!(text_of(&streamed, 0), whole["choices"][0]["text"].as_str().unwrap());
        (whole["choices"][0].clone(), whole["usage"]["completion_tokens"].as_u64().unwrap())
    };
    let (choice, tokens) = stop(json!("fox"), json!({}));
    assert_eq!(choice["text"], full[..full.find("fox").unwrap()]);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!("fox")));
    assert_eq!(tokens as usize, full.find("fox").unwrap() + 3, "tokens count until the stop, text or not");
    let (choice, _) = stop(json!(["göt", "never"]), json!({ "include_stop_str_in_output": true }));
    assert_eq!(choice["text"], full[..full.find("göt").unwrap() + "göt".len()]);
    // The beginning of a stop string is shown once it turned out to be none.
    let (choice, _) = stop(json!(["fox says nothing"]), json!({}));
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(full), &json!("length")));
    assert_eq!(choice["stop_reason"], Value::Null);
    // A stop string that is complete with the very last token.
    let (choice, tokens) = stop(json!("fox"), json!({ "max_tokens": full.find("fox").unwrap() + 3 }));
    assert_eq!((&choice["finish_reason"], tokens as usize), (&json!("stop"), full.find("fox").unwrap() + 3));
    // None before `min_tokens`.
    let (choice, _) =
        stop(json!(["brown", "says"]), json!({ "min_tokens": full.find("brown").unwrap() + 5 }));
    assert_eq!(choice["text"], full[..full.find("says").unwrap()]);
}

#[test]
fn stop_tokens_end_the_text_and_say_which() {
    let server = Server::start();
    let full = script(6, 60);
    let body = json!({ "prompt": "Hello", "max_tokens": 60, "temperature": 0, "stop_token_ids": [b'f', b'j'], "return_token_ids": true });
    let choice = &server.complete(body.clone())["choices"][0];
    let until = full.find('f').unwrap();
    assert_eq!(choice["text"], full[..until]);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(u32::from(b'f'))));
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), until + 1);
    assert_eq!(text_of(&server.stream("/v1/completions", body.clone()), 0), full[..until]);
    let mut include = body;
    include["include_stop_str_in_output"] = true.into();
    assert_eq!(server.complete(include)["choices"][0]["text"], full[..=until]);
}

#[test]
fn the_end_of_sequence_ends_unless_ignored() {
    let server = Server::start();
    let body = |extra: Value| {
        let mut body = json!({ "prompt": QUIET, "max_tokens": 9, "temperature": 0 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = server.complete(body);
        (answer["choices"][0].clone(), answer["usage"]["completion_tokens"].clone())
    };
    let (choice, tokens) = body(json!({}));
    assert_eq!(
        choice,
        json!({ "index": 0, "text": "", "logprobs": null, "finish_reason": "stop", "stop_reason": null })
    );
    assert_eq!(tokens, 1);
    let (choice, tokens) = body(json!({ "ignore_eos": true, "skip_special_tokens": false }));
    assert_eq!((&choice["text"], tokens), (&json!("</s>".repeat(9)), json!(9)));
    let (_, tokens) = body(json!({ "min_tokens": 4 }));
    assert_eq!(tokens, 5);
    let (choice, _) = body(json!({ "logit_bias": { EOS.to_string(): -100, "65": 100 } }));
    assert_eq!(choice["text"], "A".repeat(9));
}

#[test]
fn logprobs_in_the_legacy_shape() {
    let server = Server::start();
    let body = json!({ "prompt": "Hello", "max_tokens": 60, "temperature": 0, "logprobs": 2 });
    let answer = server.complete(body.clone());
    let choice = &answer["choices"][0];
    let logprobs = &choice["logprobs"];
    let text = choice["text"].as_str().unwrap();
    let lengths = ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
        .map(|f| logprobs[f].as_array().unwrap().len());
    assert_eq!(lengths, [60; 4]);
    let characters: Vec<char> = text.chars().collect();
    for i in 0..60 {
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        let token = logprobs["tokens"][i].as_str().unwrap();
        let value = logprobs["token_logprobs"][i].as_f64().unwrap();
        assert!((-5.0..=0.0).contains(&value));
        // Bytes of half characters share a name.
        assert!(top.len() == 2 || token == "\u{fffd}", "{top:?}");
        assert!(top.contains_key(token));
        let offset = logprobs["text_offset"][i].as_u64().unwrap() as usize;
        if token != "\u{fffd}" {
            assert_eq!(characters[offset].to_string(), token);
        }
    }
    // The same in a stream.
    let chunks = server.stream("/v1/completions", body);
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let streamed: Vec<Value> = chunks
            .iter()
            .flat_map(|c| c["choices"][0]["logprobs"][field].as_array().unwrap().clone())
            .collect();
        assert_eq!(json!(streamed), logprobs[field], "{field}");
    }
    let zero = server.complete(json!({ "prompt": "Hello", "max_tokens": 2, "logprobs": 0 }));
    assert_eq!(zero["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 1);
    let named = json!({ "prompt": "Hello", "max_tokens": 1, "temperature": 0, "logprobs": 1, "return_tokens_as_token_ids": true });
    let name = format!("token_id:{}", script(6, 1).as_bytes()[0]);
    assert_eq!(server.complete(named)["choices"][0]["logprobs"]["tokens"], json!([name]));
}

#[test]
fn echo_scores_the_prompt() {
    let server = Server::start();
    // What evaluation harnesses ask for: only the prompt's log-probabilities.
    let body = json!({ "prompt": "Hello", "max_tokens": 0, "echo": true, "logprobs": 1, "temperature": 0 });
    let answer = server.complete(body.clone());
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("Hello"), &json!("length")));
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["<s>", "H", "e", "l", "l", "o"]));
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 2, 3, 4]));
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    assert!(logprobs["token_logprobs"][1].as_f64().unwrap() < 0.0);
    assert_eq!(
        logprobs["top_logprobs"][1].as_object().unwrap().len(),
        2,
        "the best one and the prompt's own"
    );
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(server.finished("length"), 1.0);

    let mut longer = body.clone();
    longer["max_tokens"] = 3.into();
    let choice = server.complete(longer.clone())["choices"][0].clone();
    assert_eq!(choice["text"], format!("Hello{}", script(6, 3)));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 0, 1, 2, 3, 4, 5, 6, 7]));
    assert_eq!(choice["logprobs"]["token_logprobs"][3], logprobs["token_logprobs"][3]);
    let chunks = server.stream("/v1/completions", longer);
    assert_eq!(text_of(&chunks, 0), choice["text"].as_str().unwrap());
    let offsets: Vec<Value> = chunks
        .iter()
        .flat_map(|c| c["choices"][0]["logprobs"]["text_offset"].as_array().unwrap().clone())
        .collect();
    assert_eq!(json!(offsets), choice["logprobs"]["text_offset"]);

    let ids = server.complete(json!({ "prompt": [[256, 72], [104, 105]], "max_tokens": 0, "echo": true }));
    assert_eq!([&ids["choices"][0]["text"], &ids["choices"][1]["text"]], ["H", "hi"]);
}

#[test]
fn prompt_logprobs_in_vllms_shape() {
    let server = Server::start();
    let answer = server.complete(json!({ "prompt": "Hi", "max_tokens": 1, "prompt_logprobs": 1 }));
    let scored = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!(scored.len(), 3);
    assert_eq!(scored[0], Value::Null);
    let entry = &scored[1]["72"];
    assert_eq!(entry["decoded_token"], "H");
    assert!(entry["rank"].as_u64().unwrap() >= 1 && entry["logprob"].as_f64().unwrap() < 0.0);
    for (extra, param) in [
        (json!({ "prompt_logprobs": -1 }), "prompt_logprobs"),
        (json!({ "prompt_logprobs": 1, "stream": true }), "prompt_logprobs"),
        (json!({ "prompt_logprobs": 21 }), "prompt_logprobs"),
    ] {
        let mut body = json!({ "prompt": "Hi" });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        assert_eq!(server.post("/v1/completions", &body).error(400)["param"], param);
    }
}

#[test]
fn token_ids_in_and_out() {
    let server = Server::start();
    let body = json!({ "prompt": "Hello", "max_tokens": 40, "temperature": 0, "return_token_ids": true });
    let choice = server.complete(body.clone())["choices"][0].clone();
    assert_eq!(choice["prompt_token_ids"], json!(ids("Hello")));
    let generated: Vec<u8> =
        choice["token_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8_lossy(&generated), script(6, 40));
    let chunks = server.stream("/v1/completions", body);
    assert_eq!(chunks[0]["choices"][0]["prompt_token_ids"], json!(ids("Hello")));
    let streamed: Vec<Value> =
        chunks.iter().flat_map(|c| c["choices"][0]["token_ids"].as_array().unwrap().clone()).collect();
    assert_eq!(json!(streamed), choice["token_ids"]);
    // What came out, put in, goes on as one text.
    let mut next = ids("Hello");
    next.extend(generated.iter().map(|&b| u32::from(b)));
    let more = server.complete(json!({ "prompt": next, "max_tokens": 40, "temperature": 0 }));
    assert_eq!(more["choices"][0]["text"], script(46, 40));
}

#[test]
fn cached_prompt_tokens_are_reported() {
    let server = Server::start();
    let prompt = "x".repeat(99);
    let cached = |extra: Value| {
        let mut body = json!({ "prompt": prompt, "max_tokens": 2 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.complete(body)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(json!({})), 0);
    assert_eq!(cached(json!({})), 96);
    assert_eq!(cached(json!({ "cache_salt": "mine" })), 0, "another salt is another cache");
    assert_eq!(cached(json!({ "cache_salt": "mine", "n": 3 })), 96);
    assert_eq!(
        cached(json!({ "cache_salt": "other", "n": 3 })),
        0,
        "siblings find each other's blocks, which is no hit"
    );
}

#[test]
fn a_request_that_the_backend_refuses_fails_alone() {
    let server = Server::start();
    let reply = server.post("/v1/completions", &json!({ "prompt": FAIL, "max_tokens": 3 }));
    assert_eq!(reply.error(500)["code"], "request_failed");
    assert_eq!(reply.header("x-should-retry"), Some("false"), "it would fail again");
    let reply = server.post("/v1/completions", &json!({ "prompt": FAIL, "max_tokens": 3, "stream": true }));
    let events = reply.events();
    let error: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(
        (&error["error"]["code"], &error["error"]["retryable"]),
        (&json!("request_failed"), &json!(false))
    );
    assert!(!events.contains(&"[DONE]".to_owned()));
    assert!(!reply.text().contains("told to fail"), "the inside stays inside");
    assert_eq!(server.finished("error"), 2.0);
    server.complete(json!({ "prompt": "fine" }));
}

#[test]
fn long_prompts_keep_the_stream_alive() {
    let server = Server::start();
    server.knobs.paused.store(true, std::sync::atomic::Ordering::Release);
    let mut connection = server.connect();
    connection.write(
        "POST",
        "/v1/completions",
        &[],
        json!({ "prompt": "Hello", "stream": true }).to_string().as_bytes(),
    );
    assert_eq!(connection.read_head().status, 200);
    for _ in 0..2 {
        assert_eq!(connection.chunk().unwrap(), b": waiting\n\n");
    }
    server.knobs.paused.store(false, std::sync::atomic::Ordering::Release);
    let mut text = String::new();
    while let Some(chunk) = connection.chunk() {
        text += std::str::from_utf8(&chunk).unwrap();
    }
    assert!(text.ends_with("data: [DONE]\n\n"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever is asked for, a stream is the whole answer in pieces: text, tokens, scores, reasons.
    #[test]
    fn stream_and_whole_agree(
        prompt in "[a-z]{1,40}",
        max_tokens in 1..90u32,
        n in 1..4u32,
        stop in proptest::collection::vec((0..SCRIPT.len(), 1..9usize), 0..3),
        include in any::<bool>(),
        echo in any::<bool>(),
        min_tokens in 0..30u32,
        temperature in prop_oneof![Just(0.0), Just(1.0)],
        seed in any::<i32>(),
    ) {
        thread_local!(static SERVER: Server = Server::start());
        SERVER.with(|server| {
            let cut = |(start, length): (usize, usize)| SCRIPT.chars().cycle().skip(start).take(length).collect::<String>();
            let stop: Vec<String> = stop.into_iter().map(cut).collect();
            let body = json!({
                "prompt": prompt, "max_tokens": max_tokens, "n": n, "stop": stop, "include_stop_str_in_output": include,
                "echo": echo, "min_tokens": min_tokens.min(max_tokens), "temperature": temperature, "seed": seed,
                "logprobs": 1, "return_token_ids": true,
            });
            let whole = server.complete(body.clone());
            let mut streaming = body;
            streaming["stream_options"] = json!({ "include_usage": true });
            let chunks = server.stream("/v1/completions", streaming);
            for choice in whole["choices"].as_array().unwrap() {
                let index = &choice["index"];
                let pieces: Vec<&Value> = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == *index).collect();
                let text: String = pieces.iter().map(|p| p["text"].as_str().unwrap()).collect();
                prop_assert_eq!(&json!(text), &choice["text"]);
                let ids: Vec<Value> = pieces.iter().flat_map(|p| p["token_ids"].as_array().unwrap().clone()).collect();
                prop_assert_eq!(&json!(ids), &choice["token_ids"]);
                let scores: Vec<Value> = pieces.iter().flat_map(|p| p["logprobs"]["token_logprobs"].as_array().unwrap().clone()).collect();
                prop_assert_eq!(&json!(scores), &choice["logprobs"]["token_logprobs"]);
                let last = pieces.last().unwrap();
                prop_assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&choice["finish_reason"], &choice["stop_reason"]));
                let generated = text.strip_prefix(if echo { prompt.as_str() } else { "" }).unwrap();
                if !include && min_tokens == 0 {
                    prop_assert!(stop.iter().all(|s| !generated.contains(s)), "{:?} in {:?}", stop, generated);
                }
            }
            let usage = |v: &Value| (v["usage"]["prompt_tokens"].clone(), v["usage"]["completion_tokens"].clone());
            prop_assert_eq!(usage(chunks.last().unwrap()), usage(&whole));
            Ok(())
        })?;
    }
}
