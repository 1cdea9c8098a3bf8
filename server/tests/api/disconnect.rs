//! Clients that go away, at every moment of a request: nothing of it stays.

use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Options, Server, eventually, user};

const PATIENCE: Duration = Duration::from_secs(5);

fn long(stream: bool, n: u32) -> Vec<u8> {
    json!({ "prompt": "Hello", "max_tokens": 500, "ignore_eos": true, "stream": stream, "n": n })
        .to_string()
        .into_bytes()
}

/// Waits until the engine is idle, in which it must not have taken more than `steps` further steps.
fn assert_freed_within(server: &Server, steps: usize) {
    let before = server.knobs.steps.load(Ordering::Relaxed);
    server.wait_idle(PATIENCE);
    let after = server.knobs.steps.load(Ordering::Relaxed);
    assert!(after - before <= steps, "{} steps for nobody", after - before);
}

#[test]
fn in_the_middle_of_a_stream() {
    let server = Server::start();
    server.slow(Duration::from_millis(10));
    for n in [1, 4] {
        let mut connection = server.connect();
        connection.write("POST", "/v1/completions", &[], &long(true, n));
        assert_eq!(connection.read_head().status, 200);
        for _ in 0..5 {
            connection.chunk().unwrap();
        }
        assert_eq!(server.metric("vllm:num_requests_running"), f64::from(n));
        drop(connection);
        // One step may be running, another may have been planned before the socket told.
        assert_freed_within(&server, 5);
    }
    assert_eq!(server.finished("abort"), 5.0);
    assert_eq!(server.finished("length"), 0.0);
}

#[test]
fn while_waiting_for_a_whole_answer() {
    let server = Server::start();
    server.slow(Duration::from_millis(10));
    for n in [1, 3] {
        let mut connection = server.connect();
        connection.write("POST", "/v1/completions", &[], &long(false, n));
        eventually(PATIENCE, "it to run", || server.metric("vllm:num_requests_running") == f64::from(n));
        drop(connection);
        assert_freed_within(&server, 5);
    }
    assert_eq!(server.finished("abort"), 4.0);
}

#[test]
fn a_client_that_closes_only_its_half_is_gone_too() {
    let server = Server::start();
    server.slow(Duration::from_millis(10));
    let mut connection = server.connect();
    connection.write("POST", "/v1/completions", &[], &long(false, 1));
    eventually(PATIENCE, "it to run", || server.metric("vllm:num_requests_running") == 1.0);
    connection.stream.shutdown(Shutdown::Write).unwrap();
    assert_freed_within(&server, 5);
}

#[test]
fn while_queued_it_is_never_computed() {
    let mut options = Options::default();
    options.engine.max_num_seqs = 1;
    let server = Server::with(options);
    server.slow(Duration::from_millis(10));
    let mut running = server.connect();
    running.write("POST", "/v1/completions", &[], &long(true, 1));
    eventually(PATIENCE, "it to run", || server.metric("vllm:num_requests_running") == 1.0);
    for stream in [false, true] {
        let mut queued = server.connect();
        queued.write("POST", "/v1/completions", &[], &long(stream, 1));
        eventually(PATIENCE, "it to wait", || server.metric("vllm:num_requests_waiting") == 1.0);
        drop(queued);
        eventually(Duration::from_millis(500), "it to leave", || {
            server.metric("vllm:num_requests_waiting") == 0.0
        });
    }
    drop(running);
    server.wait_idle(PATIENCE);
    assert_eq!(server.metric("vllm:prompt_tokens_total"), 6.0, "only the first prompt was computed");
}

#[test]
fn while_the_prompt_is_computed() {
    let mut options = Options::default();
    options.engine.max_num_batched_tokens = 16;
    options.engine.max_num_seqs = 8;
    let server = Server::with(options);
    server.slow(Duration::from_millis(15));
    let mut connection = server.connect();
    let body = json!({ "messages": user(&"x".repeat(450)), "stream": true }).to_string();
    connection.write("POST", "/v1/chat/completions", &[], body.as_bytes());
    eventually(PATIENCE, "a chunk", || server.knobs.steps.load(Ordering::Relaxed) >= 3);
    drop(connection);
    assert_freed_within(&server, 5);
    assert_eq!(server.metric("vllm:prompt_tokens_total"), 0.0);
}

#[test]
fn before_the_request_is_complete() {
    let server = Server::start();
    for part in [
        "POST /v1/compl",
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"pro",
    ] {
        let mut connection = server.connect();
        std::io::Write::write_all(&mut connection.stream, part.as_bytes()).unwrap();
        drop(connection);
    }
    server.wait_idle(PATIENCE);
    server.complete(json!({ "prompt": "Hello" }));
    assert_eq!(server.finished("abort"), 0.0);
}

/// Many clients, each of which leaves at some moment; those who stay get their whole answer.
#[test]
fn many_at_random_moments() {
    let server = Server::with(Options { blocks: 64, ..Default::default() });
    server.slow(Duration::from_millis(1));
    std::thread::scope(|scope| {
        for worker in 0..6u64 {
            let server = &server;
            scope.spawn(move || {
                let mut state = worker + 1;
                for round in 0..15 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let stay = round % 5 == 0;
                    let mut connection = server.connect();
                    let stream = state >> 40 & 1 == 0 || stay;
                    let body = json!({ "prompt": "x".repeat((state >> 50) as usize % 100 + 1), "max_tokens": 60, "stream": stream, "n": (state >> 45) % 3 + 1 });
                    connection.write("POST", "/v1/completions", &[], body.to_string().as_bytes());
                    if stay {
                        let reply = connection.read();
                        assert_eq!(reply.events().last().map(String::as_str), Some("[DONE]"));
                    } else {
                        std::thread::sleep(Duration::from_micros((state >> 33) % 60_000));
                    }
                }
            });
        }
    });
    server.wait_idle(PATIENCE);
    let text = server.complete(json!({ "prompt": "Hello", "max_tokens": 5, "temperature": 0 }));
    assert_eq!(text["choices"][0]["text"], crate::model::script(6, 5));
}

/// A reader that never reads: its answer piles up in bounds, and others do not notice.
#[test]
fn a_client_that_does_not_read_stops_nobody() {
    let server = Server::start();
    let mut deaf = server.connect();
    let body = json!({ "prompt": "Hello", "max_tokens": 500, "stream": true, "n": 32, "logprobs": 20, "ignore_eos": true });
    deaf.write("POST", "/v1/completions", &[], body.to_string().as_bytes());
    for _ in 0..5 {
        let answer: Value = server.complete(json!({ "prompt": "Hello", "max_tokens": 30 }));
        assert_eq!(answer["usage"]["completion_tokens"], 30);
    }
    drop(deaf);
    server.wait_idle(PATIENCE);
}

/// And after a while it is taken for gone, though its machine still answers.
#[test]
fn a_client_that_does_not_read_is_given_up() {
    let mut options = Options::default();
    options.config.limits.peer_timeout = Duration::from_secs(1);
    let server = Server::with(options);
    let mut deaf = server.connect();
    let body = json!({ "prompt": "Hello", "max_tokens": 500, "stream": true, "n": 32, "logprobs": 20, "ignore_eos": true });
    deaf.write("POST", "/v1/completions", &[], body.to_string().as_bytes());
    eventually(Duration::from_secs(20), "it to be given up", || server.finished("abort") > 0.0);
    server.wait_idle(PATIENCE);
    drop(deaf);
}
