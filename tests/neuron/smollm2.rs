//! SmolLM2-135M-Instruct, dequantised to bf16, through all there is: the compiler as a program of its own, the store,
//! the runtime's interface, HTTP. What it answers is judged by its numbers, against the CPU backend's in f32.
//!
//! The model is `MILLRACE_TEST_MODEL`, or what `scripts/fetch-model` has cached.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};
use softnrt::testing::{compiler_path, library_path};

use crate::cached;
use crate::rig::Server;

/// Largest and mean difference of a log-probability from f32 that bf16 may make: 8 bits of mantissa in weights,
/// activations and cache of 30 layers.
const LARGEST: f64 = 0.5;
const MEAN: f64 = 0.1;

const ANSWER: usize = 4;

/// Log-probabilities by token.
type Row = BTreeMap<u64, f64>;

fn id(name: &Value) -> u64 {
    let text = name.as_str().expect("a token").trim_start_matches("token_id:");
    text.parse().expect("its id")
}

/// Largest and mean difference, over the tokens that both have, and how many those are.
fn distance(ours: &[Row], theirs: &[Row]) -> (f64, f64, usize) {
    let pairs = ours.iter().zip(theirs).flat_map(|(ours, theirs)| {
        ours.iter().filter_map(|(token, ours)| Some((ours - theirs.get(token)?).abs()))
    });
    let all: Vec<f64> = pairs.collect();
    let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
    (all.iter().copied().fold(0.0, f64::max), mean, all.len())
}

#[test]
fn a_chat_with_a_real_model() {
    let Some(model) = cached::smollm2() else {
        return eprintln!("skipped: no SmolLM2 (scripts/fetch-model fetches it)");
    };
    let model = model.display().to_string();
    let folder = tempfile::tempdir().expect("a writable temporary directory");
    let store = format!("--neuron-store={}", folder.path().join("store").display());
    let library = format!("--neuron-library={}", library_path().display());
    let compiler = format!("--compiler={}", compiler_path().display());
    let common =
        ["--model", &model, "--max-model-len=128", "--max-num-seqs=1", "--max-num-batched-tokens=32"];
    let neuron = [
        "--backend=neuron",
        "--target=trn1",
        "--dtype=bf16",
        "--kv-memory=32MB",
        &store,
        &library,
        &compiler,
        "--buckets=1x1@8+adjust,1x32@8",
    ];
    let started = Instant::now();
    let mut server = Server::start(&[&common[..], &neuron].concat(), &[]);
    assert!(server.ready().is_ok(), "{}", server.log());
    let ready = started.elapsed();
    let client = server.client().expect("it listens");

    let question = json!({
        "messages": [{ "role": "user", "content": "What is the capital of France?" }],
        "temperature": 0, "max_tokens": ANSWER, "logprobs": true, "top_logprobs": 20,
        "return_tokens_as_token_ids": true, "return_token_ids": true,
        "stream": true, "stream_options": { "include_usage": true },
    });
    let streamed = client.stream("/v1/chat/completions", &question, || {});
    assert!(streamed.is_whole(), "{streamed:?}");
    assert_eq!(streamed.finish.as_deref(), Some("length"));
    assert!(streamed.pieces > 1, "it is a stream: {streamed:?}");
    assert_eq!(streamed.usage["completion_tokens"], ANSWER);
    let prompt: Vec<u64> =
        serde_json::from_value(streamed.events[0]["prompt_token_ids"].clone()).expect("ids of the prompt");
    assert_eq!(streamed.usage["prompt_tokens"], prompt.len());
    let scored =
        streamed.events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    let scored: Vec<&Value> = scored.flatten().collect();
    let answer: Vec<u64> = scored.iter().map(|token| id(&token["token"])).collect();
    assert_eq!(answer.len(), ANSWER, "{streamed:?}");
    let row = |token: &&Value| -> Row {
        let top = token["top_logprobs"].as_array().expect("the best");
        top.iter().map(|one| (id(&one["token"]), one["logprob"].as_f64().expect("a number"))).collect()
    };
    let ours: Vec<Row> = scored.iter().map(row).collect();

    let metric = |name: &str| {
        let name = format!("vllm_neuron:{name}");
        client.metric(&name).unwrap_or_else(|| panic!("no metric {name}"))
    };
    // The prompt in chunks of at most 32 tokens, and a token at a time.
    let executions = metric("neff_execution_count_total");
    assert!(executions >= (prompt.len() / 32 + ANSWER - 1) as f64, "{executions}");
    // 135 million weights of 2 bytes, and the embedding a second time, as the head.
    assert!((3.2e8..3.3e8).contains(&metric("model_load_size_bytes")), "{}", metric("model_load_size_bytes"));
    for seconds in ["startup_time_seconds", "model_load_time_seconds", "compilation_time_seconds"] {
        let value = metric(seconds);
        assert!(value > 0.0 && value < started.elapsed().as_secs_f64() * 4.0, "{seconds}: {value}");
    }
    let tokens = executions_of(&client, "1x32@8") * 32.0 + executions_of(&client, "1x1@8+adjust");
    let computed = (prompt.len() + ANSWER - 1) as f64;
    assert_eq!(metric("num_batched_tokens_padding_total"), tokens - computed);
    assert_eq!(metric("num_seqs_padding_total"), 0.0);
    let (_, version) = client.get("/version").expect("an answer");
    assert!(version.contains("libsoftnrt.so") && version.contains("2.30.50.0"), "{version}");
    let log = server.drained();
    assert!(log.contains("Compiled("), "the compiler ran: {log}");

    let reference = ["--backend=cpu", "--precision=reference", "--kv-dtype=f32", "--kv-memory=64MB"];
    let mut server = Server::start(&[&common[..], &reference].concat(), &[]);
    assert!(server.ready().is_ok(), "{}", server.log());
    let client = server.client().expect("it listens");
    let ids: Vec<u64> = prompt.iter().chain(&answer).copied().collect();
    let forced = json!({ "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 20 });
    let judged = client.post("/v1/completions", &forced);
    let all = judged.body["choices"][0]["prompt_logprobs"].as_array().expect("of each token").clone();
    server.drained();
    let row = |position: &Value| -> Row {
        let entries = position.as_object().expect("a position behind the first");
        let one = |(token, entry): (&String, &Value)| {
            (token.parse().expect("an id"), entry["logprob"].as_f64().expect("a number"))
        };
        entries.iter().map(one).collect()
    };
    let theirs: Vec<Row> = all[prompt.len()..].iter().map(row).collect();
    assert_eq!(theirs.len(), ANSWER);

    let (largest, mean, common) = distance(&ours, &theirs);
    eprintln!(
        "{:?}: ready in {:.1} s; of {common} log-probabilities the largest difference from f32 is {largest:.3}, the mean {mean:.3}",
        streamed.text,
        ready.as_secs_f64()
    );
    assert!(common >= ANSWER * 12, "only {common} tokens are among the best 20 of both");
    assert!(largest < LARGEST && mean < MEAN, "largest {largest}, mean {mean}");
    // The tolerance tells right from wrong: another position's numbers are far outside.
    let mut shifted = theirs.clone();
    shifted.rotate_left(1);
    let (_, wrong, found) = distance(&ours, &shifted);
    assert!(found < common / 2 || wrong > 4.0 * MEAN, "{found} in common, {wrong} apart");
}

fn executions_of(client: &crate::rig::Client, bucket: &str) -> f64 {
    let (_, text) = client.get("/metrics").expect("an answer");
    let label = format!("bucket_name=\"{bucket}\"");
    let line = text.lines().find(|line| line.contains("neff_execution_count_total") && line.contains(&label));
    line.and_then(|line| line.rsplit_once(' '))
        .and_then(|(_, value)| value.parse().ok())
        .expect("it is counted")
}
