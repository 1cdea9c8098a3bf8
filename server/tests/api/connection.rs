//! Sockets misused: slow, huge, broken, too many.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Connection, Options, Server, eventually};

const COMPLETION: &str = "/v1/completions";

fn body() -> Vec<u8> {
    json!({ "prompt": "Hello", "max_tokens": 2 }).to_string().into_bytes()
}

#[test]
fn one_connection_carries_many_requests() {
    let server = Server::start();
    let mut connection = server.connect();
    for _ in 0..20 {
        connection.send("POST", COMPLETION, &[], &body()).ok();
        connection.send("GET", "/nothing", &[], b"").error(404);
    }
    // Pipelined: answered in order.
    for _ in 0..20 {
        connection.write("POST", COMPLETION, &[], &body());
        connection.write("GET", "/version", &[], b"");
    }
    for _ in 0..20 {
        assert!(connection.read().ok()["choices"].is_array());
        assert!(connection.read().ok()["version"].is_string());
    }
}

#[test]
fn request_ids_are_echoed_or_made() {
    let server = Server::start();
    let id = |headers: &[(&str, &str)]| {
        let reply = server.connect().send("POST", COMPLETION, headers, &body());
        let id = reply.header("x-request-id").unwrap().to_owned();
        assert_eq!(reply.ok()["id"], format!("cmpl-{id}"));
        id
    };
    assert_eq!(id(&[("x-request-id", "abc-123")]), "abc-123");
    assert_ne!(id(&[]), id(&[]));
    let long = "x".repeat(129);
    assert_ne!(id(&[("x-request-id", &long)]), long);
    assert!(server.get("/nothing").header("x-request-id").is_some());
}

#[test]
fn a_slow_head_is_given_up() {
    let server = Server::start();
    let mut idle = server.connect();
    let mut slow = server.connect();
    let start = Instant::now();
    let mut dripping = slow.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        for byte in b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        {
            if dripping.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(slow.is_closed());
    assert!(idle.is_closed());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn a_slow_body_is_given_up_with_408() {
    let server = Server::start();
    for first in [&b""[..], b"{\"prompt\":"] {
        let mut connection = server.connect();
        let head = format!(
            "POST {COMPLETION} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        );
        connection.stream.write_all(&[head.as_bytes(), first].concat()).unwrap();
        let start = Instant::now();
        let reply = connection.read();
        reply.error(408);
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(start.elapsed() < Duration::from_secs(3));
        assert!(connection.is_closed());
    }
    // Bytes that keep coming, but too few a second.
    let mut connection = server.connect();
    let head = format!(
        "POST {COMPLETION} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    connection.stream.write_all(head.as_bytes()).unwrap();
    let mut dripping = connection.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        while dripping.write_all(b"1\r\n \r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    connection.read().error(408);
    // Slow, but fast enough.
    let mut connection = server.connect();
    let body = format!("{}{}", " ".repeat(3000), json!({ "prompt": "Hello", "max_tokens": 2 }));
    let head = format!(
        "POST {COMPLETION} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.stream.write_all(head.as_bytes()).unwrap();
    for piece in body.as_bytes().chunks(500) {
        std::thread::sleep(Duration::from_millis(100));
        connection.stream.write_all(piece).unwrap();
    }
    connection.read().ok();
}

#[test]
fn large_bodies_get_413() {
    let server = Server::start();
    let large = format!("{{\"prompt\":\"{}\"}}", "x".repeat(10 << 20));
    // With a length, without one, and by a client that asks first.
    server.connect().send("POST", COMPLETION, &[], large.as_bytes()).error(413);
    let mut connection = server.connect();
    let head = format!("POST {COMPLETION} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
    connection.stream.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    for piece in large.as_bytes().chunks(1 << 16) {
        let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        connection.stream.write_all(&chunk).unwrap();
    }
    connection.stream.write_all(b"0\r\n\r\n").unwrap();
    connection.read().error(413);
    let mut connection = server.connect();
    let asks = format!("{head}content-length: {}\r\nexpect: 100-continue\r\n\r\n", large.len());
    connection.stream.write_all(asks.as_bytes()).unwrap();
    connection.read().error(413);
    // As large as allowed: read, and then too long for the model.
    let allowed = format!("{{\"prompt\":\"{}\"}}", "x".repeat((4 << 20) - 64));
    let error = server.connect().send("POST", COMPLETION, &[], allowed.as_bytes()).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
}

/// While megabytes are parsed and tokenised, others are served: on the threads that serve them, two such bodies at a time
/// would make everybody else wait for half of the whole work.
#[test]
fn large_bodies_do_not_stop_the_others() {
    let server = Server::start();
    let large = json!({ "prompt": "some words ".repeat(60 << 10) }).to_string();
    std::thread::scope(|scope| {
        let start = Instant::now();
        let posts: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| server.connect().send("POST", "/tokenize", &[], large.as_bytes()).ok()))
            .collect();
        let mut worst = Duration::ZERO;
        while !posts.iter().all(|p| p.is_finished()) {
            let start = Instant::now();
            assert_eq!(server.get("/version").status, 200);
            worst = worst.max(start.elapsed());
        }
        assert!(worst < start.elapsed() / 4, "another request waited {worst:?} of {:?}", start.elapsed());
    });
}

#[test]
fn large_heads_get_431() {
    let server = Server::start();
    let line =
        |size: usize| format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(size));
    let many: String = (0..200).map(|i| format!("x-{i}: a\r\n")).collect();
    for head in
        [line(20 << 10), line(1 << 20), format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{many}\r\n")]
    {
        let mut connection = server.connect();
        // The server may answer and close before all of it was written.
        let _ = connection.stream.write_all(head.as_bytes());
        if let Some(reply) = connection.try_read("GET") {
            assert_eq!(reply.status, 431);
        }
    }
    let mut connection = server.connect();
    connection.stream.write_all(line(8 << 10).as_bytes()).unwrap();
    assert_eq!(connection.read().status, 200);
}

/// Framing that proxies and servers understand differently: refused, and nothing in a body is taken for a request.
#[test]
fn ambiguous_framing_is_refused() {
    let server = Server::start();
    let hidden = "GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let post = format!("POST {COMPLETION} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
    let cases = [
        format!("{post}content-length: 4\r\ncontent-length: 5\r\n\r\nnull{hidden}"),
        format!("{post}content-length: +4\r\n\r\nnull{hidden}"),
        format!("{post}content-length: 4x\r\n\r\nnull{hidden}"),
        format!("{post}content-length: -4\r\n\r\nnull{hidden}"),
        format!("{post}transfer-encoding: identity\r\n\r\n{hidden}"),
        format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\n{hidden}"),
        format!("{post}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{hidden}"),
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\n folded: x\r\n\r\n{hidden}"),
        format!("GET /health HTTP/1.1\r\nhost: local\0host\r\n\r\n{hidden}"),
        format!("GET /health HTTP/9.9\r\nhost: localhost\r\n\r\n{hidden}"),
        "\x16\x03\x01\x02\x00\x01\x00".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ];
    for case in cases {
        let mut connection = server.connect();
        connection.stream.write_all(case.as_bytes()).unwrap();
        let mut first = true;
        while let Some(reply) = connection.try_read("GET") {
            assert!(first && reply.status == 400, "{case:?}: {}", reply.status);
            first = false;
        }
    }
}

#[test]
fn tiny_chunks_are_only_a_body() {
    let server = Server::start();
    let mut connection = server.connect();
    let mut bytes = format!("POST {COMPLETION} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
    let body = format!("{}{}", " ".repeat(200_000), json!({ "prompt": "Hello", "max_tokens": 2 }));
    for byte in body.bytes() {
        bytes.extend([b'1', b'\r', b'\n', byte, b'\r', b'\n']);
    }
    bytes.extend(b"0\r\n\r\n");
    connection.stream.write_all(&bytes).unwrap();
    connection.read().ok();
}

#[test]
fn connections_beyond_the_limit_wait() {
    let mut options = Options::default();
    options.config.limits.connections = 4;
    options.config.limits.header_timeout = Duration::from_secs(30);
    let server = Server::with(options);
    let held: Vec<Connection> = (0..4).map(|_| server.connect()).collect();
    std::thread::sleep(Duration::from_millis(50));
    let mut waiting = server.connect();
    waiting.write("GET", "/health", &[], b"");
    waiting.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(waiting.try_read("GET").is_none());
    drop(held);
    waiting.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(waiting.read().status, 200);
}

/// The queue's bound, while one request holds the engine.
#[test]
fn a_full_queue_answers_429_at_once() {
    let mut options = Options::default();
    options.engine.max_queued_requests = 2;
    options.engine.max_num_seqs = 1;
    let server = Server::with(options);
    server.slow(Duration::from_millis(20));
    let body = json!({ "prompt": "Hello", "max_tokens": 20, "stream": true });
    std::thread::scope(|scope| {
        scope.spawn(|| server.post(COMPLETION, &body));
        eventually(Duration::from_secs(2), "it to run", || server.metric("vllm:num_requests_running") == 1.0);
        scope.spawn(|| server.post(COMPLETION, &body));
        scope.spawn(|| server.post(COMPLETION, &body));
        eventually(Duration::from_secs(2), "two to wait", || {
            server.metric("vllm:num_requests_waiting") == 2.0
        });
        let start = Instant::now();
        let reply = server.post(COMPLETION, &body);
        assert_eq!(reply.error(429)["code"], "rate_limit_exceeded");
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
        assert_eq!(reply.header("x-should-retry"), Some("true"));
        assert!(start.elapsed() < Duration::from_millis(500));
    });
    server.complete(json!({ "prompt": "later" }));
}

/// More connections than file descriptors: the loop waits, and serves again once there are some. In a process of its
/// own, since the limit is a process's.
#[test]
fn the_accept_loop_survives_running_out_of_descriptors() {
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -n 48 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "connection::a_server_of_its_own", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines
        .find_map(|l| l.unwrap().split("address=").nth(1).map(|a| a.parse().unwrap()))
        .expect("an address");

    let held: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    drop(held);
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(Connection::to(address).send("GET", "/health", &[], b"").status, 200);
        Connection::to(address).send("POST", COMPLETION, &[], &body()).ok();
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // It ends when its input does.
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "the other half of the test above, which starts it"]
fn a_server_of_its_own() {
    let server = Server::start();
    println!("address={}", server.address);
    let _ = std::io::stdin().read_line(&mut String::new());
}
