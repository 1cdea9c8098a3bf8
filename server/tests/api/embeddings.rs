//! `/v1/embeddings` over an encoder whose vectors say which ids they were made of.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_engine::encoder::{EncodeError, Encoder};
use millrace_models::EncoderConfig;
use millrace_server::TextEncoder;
use serde_json::{Value, json};

use crate::model::TempDir;
use crate::server::{Options, Server};

const CLS: u32 = 0;
const SEP: u32 = 1;
const WORDS: [&str; 6] = ["[CLS]", "[SEP]", "[UNK]", "red", "green", "blue"];
const MOST: usize = 8;

/// A vector is the number of ids, the first, the last and their sum. Ids are refused as the real one refuses them.
struct Sums {
    config: EncoderConfig,
    calls: Arc<AtomicUsize>,
    /// Held by a test while an embedding is to wait.
    gate: Arc<Mutex<()>>,
}

impl Encoder for Sums {
    fn config(&self) -> &EncoderConfig {
        &self.config
    }

    fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        drop(self.gate.lock().unwrap());
        for (index, text) in texts.iter().enumerate() {
            let tokens = text.len();
            if tokens > MOST {
                return Err(EncodeError::TooLong { index, tokens, max: MOST });
            }
            if let Some(token) = text.iter().find(|token| **token as usize >= WORDS.len()) {
                return Err(EncodeError::Token { index, token: *token });
            }
        }
        Ok(texts.iter().map(|text| vector(text)).collect())
    }
}

fn vector(ids: &[u32]) -> Vec<f32> {
    vec![ids.len() as f32, ids[0] as f32, ids[ids.len() - 1] as f32, ids.iter().sum::<u32>() as f32 / 3.0]
}

struct Bench {
    server: Server,
    calls: Arc<AtomicUsize>,
    gate: Arc<Mutex<()>>,
    _files: TempDir,
}

fn bench() -> Bench {
    let files = TempDir::new("encoder");
    let vocab: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |id: u32| {
        json!({ "id": id, "content": WORDS[id as usize], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(CLS), special(SEP)],
        "normalizer": null, "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", SEP], "cls": ["[CLS]", CLS] },
        "decoder": null, "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    });
    std::fs::write(files.0.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = EncoderConfig {
        vocab: WORDS.len(),
        hidden: 4,
        layers: 1,
        heads: 1,
        ffn: 4,
        positions: MOST,
        token_types: 1,
        eps: 1e-12,
        max_tokens: MOST,
    };
    let (calls, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(())));
    let sums = Sums { config, calls: calls.clone(), gate: gate.clone() };
    let encoder = Arc::new(TextEncoder::new(&files.0, Box::new(sums)).unwrap());
    let server = Server::with(Options::default());
    server.service.install_embeddings("sums".into(), encoder);
    Bench { server, calls, gate, _files: files }
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn every_form_of_input_is_embedded_in_its_order() {
    let Bench { server, .. } = bench();
    let ask = |input: Value| server.post("/v1/embeddings", &json!({ "model": "sums", "input": input })).ok();
    for (input, ids) in [
        (json!("red"), vec![vec![CLS, 3, SEP]]),
        (json!(["green blue", "red"]), vec![vec![CLS, 4, 5, SEP], vec![CLS, 3, SEP]]),
        (json!([3, 4]), vec![vec![3, 4]]),
        (json!([[5], [CLS, 3, SEP]]), vec![vec![5], vec![CLS, 3, SEP]]),
    ] {
        let answer = ask(input.clone());
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("sums")));
        let data = answer["data"].as_array().unwrap();
        assert_eq!(data.len(), ids.len(), "{input}");
        for (index, (entry, ids)) in data.iter().zip(&ids).enumerate() {
            assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
            assert_eq!(floats(&entry["embedding"]), vector(ids), "{input}");
        }
        let tokens: usize = ids.iter().map(Vec::len).sum();
        assert_eq!(answer["usage"], json!({ "prompt_tokens": tokens, "total_tokens": tokens }));
    }
    // Little-endian floats: what OpenAI's client asks for by itself.
    let answer = server.post("/v1/embeddings", &json!({ "input": "red", "encoding_format": "base64" })).ok();
    let expected = [3.0f32, 0.0, 1.0, 4.0 / 3.0].map(f32::to_le_bytes).concat();
    use base64::Engine;
    let got = answer["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(base64::prelude::BASE64_STANDARD.decode(got).unwrap(), expected);
}

/// More than a batch holds, of all lengths: each input gets its own vector.
#[test]
fn many_inputs_keep_their_places() {
    let Bench { server, calls, .. } = bench();
    let inputs: Vec<Vec<u32>> =
        (0..2048usize).map(|i| (0..1 + i * 7 % MOST).map(|j| 3 + ((i + j) % 3) as u32).collect()).collect();
    let answer = server.post("/v1/embeddings", &json!({ "input": inputs })).ok();
    for (ids, entry) in inputs.iter().zip(answer["data"].as_array().unwrap()) {
        assert_eq!(floats(&entry["embedding"]), vector(ids));
    }
    assert!(calls.load(Ordering::Relaxed) > 3);
}

#[test]
fn long_inputs_are_refused_or_cut() {
    let Bench { server, .. } = bench();
    let long = "red ".repeat(20);
    let body = |cut: Value| json!({ "input": ["red", long], "truncate_prompt_tokens": cut });
    let error = server.post("/v1/embeddings", &body(Value::Null)).error(400);
    assert_eq!((&error["param"], &error["code"]), (&json!("input[1]"), &json!("context_length_exceeded")));
    assert!(error["message"].as_str().unwrap().contains("22 tokens"), "{error}");
    for (cut, length) in [(-1, MOST), (5, 5)] {
        let answer = server.post("/v1/embeddings", &body(json!(cut))).ok();
        let vectors: Vec<Vec<f32>> =
            answer["data"].as_array().unwrap().iter().map(|entry| floats(&entry["embedding"])).collect();
        assert_eq!(vectors[0][0], 3.0);
        assert_eq!(vectors[1][..3], [length as f32, CLS as f32, SEP as f32]);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let Bench { server, calls, .. } = bench();
    for (body, param) in [
        (json!({}), "input"),
        (json!({ "input": "" }), "input"),
        (json!({ "input": [] }), "input"),
        (json!({ "input": ["red", ""] }), "input[1]"),
        (json!({ "input": ["red", 7] }), "input[1]"),
        (json!({ "input": ["red", []] }), "input[1]"),
        (json!({ "input": [3, "red"] }), "input"),
        (json!({ "input": [3, -1] }), "input"),
        (json!({ "input": [3, 6] }), "input"),
        (json!({ "input": [[3], [600]] }), "input[1]"),
        (json!({ "input": { "text": "red" } }), "input"),
        (json!({ "input": vec!["red"; 2049] }), "input"),
        (json!({ "input": "red", "encoding_format": "hex" }), "encoding_format"),
        (json!({ "input": "red", "dimensions": 2 }), "dimensions"),
        (json!({ "input": "red", "dimensions": 0 }), "dimensions"),
        (json!({ "input": "red", "truncate_prompt_tokens": 9 }), "truncate_prompt_tokens"),
        (json!({ "input": "red", "user": 1 }), "user"),
    ] {
        let error = server.post("/v1/embeddings", &body).error(400);
        assert_eq!(error["param"], param, "{error}");
    }
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    server.post("/v1/embeddings", &json!({ "input": "red", "dimensions": 4 })).ok();
    let error = server.post("/v1/embeddings", &json!({ "input": "red", "model": "bytes" })).error(404);
    assert_eq!((&error["param"], &error["code"]), (&json!("model"), &json!("model_not_found")));
    server.get("/v1/embeddings").error(405);
    // The encoder is listed, but writes no text.
    let models = server.get("/v1/models").ok();
    assert_eq!(models["data"][2]["id"], "sums");
    assert_eq!(server.get("/v1/models/sums").ok()["max_model_len"], MOST);
    server.post("/v1/completions", &json!({ "model": "sums", "prompt": "a" })).error(404);
    let none = Server::start();
    assert_eq!(none.post("/v1/embeddings", &json!({ "input": "red" })).error(404)["code"], "model_not_found");
}

/// The process ends although an embedding is under way, and its client hears why.
#[test]
fn an_embedding_is_given_up_at_the_end() {
    let Bench { server, gate, calls, .. } = bench();
    let held = gate.lock().unwrap();
    let mut connection = server.connect();
    connection.write("POST", "/v1/embeddings", &[], json!({ "input": "red" }).to_string().as_bytes());
    crate::server::eventually(Duration::from_secs(5), "a call", || calls.load(Ordering::Relaxed) == 1);
    server.service.abort();
    connection.read().error(503);
    drop(held);
}
