//! `/metrics`: the names and the exact counts that vLLM's own test asserts.

use std::time::Duration;

use serde_json::json;

use crate::server::{Server, user};

/// vLLM's list.
const EXPECTED: [&str; 38] = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:iteration_tokens_total_sum",
    "vllm:iteration_tokens_total_bucket",
    "vllm:iteration_tokens_total_count",
    "vllm:request_prompt_tokens_sum",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_prompt_tokens_count",
    "vllm:request_generation_tokens_sum",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_generation_tokens_count",
    "vllm:request_params_n_sum",
    "vllm:request_params_n_bucket",
    "vllm:request_params_n_count",
    "vllm:request_params_max_tokens_sum",
    "vllm:request_params_max_tokens_bucket",
    "vllm:request_params_max_tokens_count",
    "vllm:time_to_first_token_seconds_sum",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_sum",
    "vllm:inter_token_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_sum",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_queue_time_seconds_count",
    "vllm:request_inference_time_seconds_count",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_prefill_time_seconds_count",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_decode_time_seconds_count",
];

#[test]
fn every_name_is_there_from_the_start() {
    let server = Server::start();
    for name in EXPECTED {
        server.metric(name);
    }
    let text = server.get("/metrics").text();
    let info = text.lines().find(|l| l.starts_with("vllm:cache_config_info{")).unwrap();
    assert!(info.contains("block_size=\"16\"") && info.contains("num_gpu_blocks=\"256\""), "{info}");
    for line in text.lines().filter(|l| l.starts_with("vllm:")) {
        assert!(line.contains("model_name=\"bytes\"") && line.contains("engine=\"0\""), "{line}");
    }
    assert!(!text.contains("EOF"));
    let open = server.connect().send(
        "GET",
        "/metrics",
        &[("accept", "application/openmetrics-text;version=1.0.0")],
        b"",
    );
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(open.text().ends_with("# EOF\n"));
}

/// Every line of the text format that scrapers parse: a sample belongs to the family declared before it.
#[test]
fn the_text_format_is_well_formed() {
    let server = Server::start();
    server.complete(json!({ "prompt": "Hello" }));
    let mut family: Option<(String, String)> = None;
    for line in server.get("/metrics").text().lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            family = Some((name.to_owned(), kind.to_owned()));
        } else if !line.starts_with("# HELP ") {
            let (name, kind) = family.as_ref().unwrap();
            let sample = &line[..line.find(['{', ' ']).unwrap()];
            let suffix = sample.strip_prefix(name.as_str()).unwrap_or_else(|| panic!("{line} under {name}"));
            let expected: &[&str] = if kind == "histogram" { &["_sum", "_count", "_bucket"] } else { &[""] };
            assert!(expected.contains(&suffix), "{line}");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn counts_are_exact() {
    let server = Server::start();
    let (requests, prompt, tokens) = (10, 6, 10);
    for _ in 0..requests {
        server.complete(json!({ "prompt": "Hello", "max_tokens": tokens, "temperature": 0 }));
    }
    server.wait_idle(Duration::from_secs(2));
    for (name, value) in [
        ("vllm:prompt_tokens_total", requests * prompt),
        ("vllm:generation_tokens_total", requests * tokens),
        ("vllm:iteration_tokens_total_sum", requests * (prompt + tokens)),
        ("vllm:iteration_tokens_total_count", requests * tokens),
        ("vllm:time_to_first_token_seconds_count", requests),
        ("vllm:inter_token_latency_seconds_count", requests * (tokens - 1)),
        ("vllm:e2e_request_latency_seconds_count", requests),
        ("vllm:request_queue_time_seconds_count", requests),
        ("vllm:request_inference_time_seconds_count", requests),
        ("vllm:request_prefill_time_seconds_count", requests),
        ("vllm:request_decode_time_seconds_count", requests),
        ("vllm:request_prompt_tokens_sum", requests * prompt),
        ("vllm:request_prompt_tokens_count", requests),
        ("vllm:request_generation_tokens_sum", requests * tokens),
        ("vllm:request_generation_tokens_count", requests),
        ("vllm:request_params_n_sum", requests),
        ("vllm:request_params_n_count", requests),
        ("vllm:request_params_max_tokens_sum", requests * tokens),
        ("vllm:request_params_max_tokens_count", requests),
        ("vllm:num_preemptions_total", 0),
    ] {
        assert_eq!(server.metric(name), f64::from(value), "{name}");
    }
    assert_eq!(
        ["stop", "length", "abort", "error"].map(|r| server.finished(r)),
        [0.0, f64::from(requests), 0.0, 0.0]
    );
}

#[test]
fn hits_in_the_prefix_cache_count_tokens() {
    let server = Server::start();
    for _ in 0..3 {
        server.complete(json!({ "prompt": "x".repeat(99), "max_tokens": 1 }));
    }
    server.wait_idle(Duration::from_secs(2));
    assert_eq!(server.metric("vllm:prefix_cache_queries_total"), 300.0);
    assert_eq!(server.metric("vllm:prefix_cache_hits_total"), 192.0);
    assert_eq!(server.metric("vllm:prompt_tokens_total"), 300.0);
}

#[test]
fn reasons_are_the_clients() {
    let server = Server::start();
    let stop = json!({ "prompt": "Hello", "max_tokens": 60, "temperature": 0, "stop": "fox", "n": 2 });
    server.complete(stop.clone());
    server.stream("/v1/completions", stop);
    server.chat(json!({ "messages": user(crate::model::QUIET), "temperature": 0 }));
    assert_eq!(["stop", "length", "abort"].map(|r| server.finished(r)), [5.0, 0.0, 0.0]);
}

#[test]
fn responses_are_counted_by_route() {
    let server = Server::start();
    server.complete(json!({ "prompt": "Hello" }));
    server.post("/v1/completions", &json!({ "prompt": 7 })).error(400);
    server.get("/some/invention").error(404);
    server.get("/v1/models/bytes").ok();
    let text = server.get("/metrics").text();
    for line in [
        "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"200\"} 1",
        "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"400\"} 1",
        "http_requests_total{handler=\"none\",method=\"none\",status=\"404\"} 1",
        "http_requests_total{handler=\"/v1/models/{id}\",method=\"GET\",status=\"200\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}
