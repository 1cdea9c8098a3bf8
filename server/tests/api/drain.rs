//! The end of the server: nobody is left without an answer or an error.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{Options, Server, eventually};

fn body(stream: bool, tokens: u32) -> Vec<u8> {
    json!({ "prompt": "Hello", "max_tokens": tokens, "temperature": 0, "stream": stream })
        .to_string()
        .into_bytes()
}

fn with_timeout(timeout: Duration) -> Server {
    let mut options = Options::default();
    options.config.shutdown_timeout = timeout;
    let server = Server::with(options);
    server.slow(Duration::from_millis(10));
    server
}

#[test]
fn running_requests_finish_and_new_ones_are_refused() {
    let mut server = with_timeout(Duration::from_secs(30));
    let mut stream = server.connect();
    stream.write("POST", "/v1/completions", &[], &body(true, 60));
    stream.read_head();
    let mut whole = server.connect();
    whole.write("POST", "/v1/completions", &[], &body(false, 60));
    eventually(Duration::from_secs(2), "both to run", || server.metric("vllm:num_requests_running") == 2.0);
    let mut idle = server.connect();
    idle.send("GET", "/version", &[], b"").ok();

    server.service.drain();
    eventually(Duration::from_millis(100), "readiness to fall", || server.get("/health").status == 503);
    for mut connection in [server.connect(), idle] {
        let reply = connection.send("POST", "/v1/completions", &[], &body(false, 1));
        assert_eq!(reply.error(503)["code"], "server_draining");
        assert_eq!(reply.header("x-should-retry"), Some("true"));
        assert!(reply.header("retry-after").is_some());
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(connection.is_closed());
    }
    assert!(server.is_running());

    let mut text = Vec::new();
    while let Some(chunk) = stream.chunk() {
        text.extend(chunk);
    }
    assert!(String::from_utf8(text).unwrap().ends_with("data: [DONE]\n\n"));
    assert_eq!(whole.read().ok()["usage"]["completion_tokens"], 60);
    let start = Instant::now();
    server.join();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(std::net::TcpStream::connect(server.address).is_err(), "nobody listens any more");
}

#[test]
fn an_idle_server_ends_at_once() {
    let mut server = with_timeout(Duration::from_secs(30));
    let mut idle = server.connect();
    idle.send("GET", "/version", &[], b"").ok();
    let start = Instant::now();
    server.service.drain();
    server.join();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(idle.is_closed());
}

fn aborted(server: &mut Server, begin: impl FnOnce(&Server)) {
    let mut stream = server.connect();
    let two = json!({ "prompt": "Hello", "max_tokens": 500, "stream": true, "n": 2 }).to_string();
    stream.write("POST", "/v1/completions", &[], two.as_bytes());
    stream.read_head();
    let mut chat = server.connect();
    let message = json!({ "messages": [{ "role": "user", "content": "x" }], "stream": true }).to_string();
    chat.write("POST", "/v1/chat/completions", &[], message.as_bytes());
    chat.read_head();
    let mut whole = server.connect();
    whole.write("POST", "/v1/completions", &[], &body(false, 500));
    eventually(Duration::from_secs(2), "all to run", || server.metric("vllm:num_requests_running") == 4.0);
    begin(server);
    for (connection, choices) in [(&mut stream, 2), (&mut chat, 1)] {
        let mut bytes = Vec::new();
        while let Some(chunk) = connection.chunk() {
            bytes.extend(chunk);
        }
        let events = crate::server::events(&String::from_utf8(bytes).unwrap());
        let events: Vec<Value> = events.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
        let reasons = events.iter().filter(|e| e["choices"][0]["finish_reason"] == "abort").count();
        assert_eq!(reasons, choices);
        let error = &events.last().unwrap()["error"];
        assert_eq!((&error["code"], &error["retryable"]), (&json!("server_draining"), &json!(true)));
    }
    let reply = whole.read();
    assert_eq!(reply.error(503)["code"], "server_draining");
    let start = Instant::now();
    server.join();
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn what_is_not_done_in_time_is_aborted() {
    let mut server = with_timeout(Duration::from_millis(200));
    let start = Instant::now();
    aborted(&mut server, |server| server.service.drain());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = with_timeout(Duration::from_secs(60));
    aborted(&mut server, |server| {
        server.service.drain();
        server.service.abort();
    });
}

/// At whatever moment the end comes, every request has an answer or an error.
#[test]
fn no_request_goes_unanswered() {
    for round in 0..12 {
        let server = with_timeout(Duration::from_millis([0, 30, 5000][round % 3]));
        server.slow(Duration::from_millis(2));
        std::thread::scope(|scope| {
            for i in 0..6 {
                let server = &server;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(i * 7));
                    let Ok(stream) = std::net::TcpStream::connect(server.address) else { return };
                    drop(stream);
                    let mut connection = server.connect();
                    connection.write("POST", "/v1/completions", &[], &body(i % 2 == 0, 30));
                    let Some(reply) = connection.try_read("POST") else { return };
                    if reply.header("content-type") == Some("text/event-stream; charset=utf-8") {
                        let events = reply.events();
                        let last = events.last().expect("an event");
                        assert!(last == "[DONE]" || last.contains("\"error\""), "{last}");
                    } else {
                        assert!(matches!(reply.status, 200 | 503), "{reply:?}");
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(10 + 5 * round as u64));
            server.service.drain();
        });
    }
}
