//! A server over the model of bytes on a loopback port, and a client that sees every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_engine::{EngineConfig, Runner};
use millrace_server::{Limits, Metrics, Model, ServerConfig, Service, serve};
use serde_json::{Value, json};

use crate::model::{ByteRunner, Knobs, text};

pub(crate) const MODEL: &str = "bytes";

/// What a test may want otherwise.
pub(crate) struct Options {
    pub(crate) config: ServerConfig,
    pub(crate) engine: EngineConfig,
    pub(crate) blocks: usize,
    /// Leave the model out, as while it loads.
    pub(crate) loading: bool,
}

impl Default for Options {
    fn default() -> Self {
        let limits = Limits {
            header_timeout: Duration::from_millis(600),
            body_grace: Duration::from_millis(400),
            keep_alive: Duration::from_millis(200),
            ..Default::default()
        };
        let names = vec![MODEL.to_owned(), "alias".to_owned()];
        let config = ServerConfig { model_names: names, limits, ..Default::default() };
        let engine = EngineConfig { max_model_len: 512, max_queued_requests: 64, ..Default::default() };
        Options { config, engine, blocks: 256, loading: false }
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) service: Arc<Service>,
    pub(crate) knobs: Arc<Knobs>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Server::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let knobs = Arc::new(Knobs::default());
        let service = Service::new(options.config.clone());
        if !options.loading {
            let runner = ByteRunner::new(options.blocks, knobs.clone());
            let metrics = Metrics::new(MODEL, options.engine.max_model_len, runner.kv());
            let (handle, _) =
                millrace_engine::start(Box::new(runner), options.engine, Box::new(metrics.clone())).unwrap();
            let (tokenizer, template, defaults) = text();
            service.install(Model { handle, tokenizer, template: Some(template), defaults, metrics });
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = service.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                serve(listener, shared).await.unwrap();
            });
        });
        Server { address, service, knobs, thread: Some(thread) }
    }

    pub(crate) fn slow(&self, step: Duration) {
        self.knobs.step_micros.store(step.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::to(self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.connect().send("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.connect().send("POST", path, &[], body.to_string().as_bytes())
    }

    /// A completion with the model's name added, which must succeed.
    pub(crate) fn complete(&self, body: Value) -> Value {
        self.post("/v1/completions", &body).ok()
    }

    /// A chat that must succeed.
    pub(crate) fn chat(&self, body: Value) -> Value {
        self.post("/v1/chat/completions", &body).ok()
    }

    /// The chunks of a stream that must end well.
    pub(crate) fn stream(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = true.into();
        let reply = self.post(path, &body);
        assert_eq!(reply.status, 200, "{}", reply.text());
        let mut events = reply.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|e| serde_json::from_str(e).unwrap()).collect()
    }

    /// The value of a metric, by the beginning of its line: name and first labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|l| l.starts_with(name) && l[name.len()..].starts_with([' ', '{']));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Counts of `request_success_total` for one reason.
    pub(crate) fn finished(&self, reason: &str) -> f64 {
        let text = self.get("/metrics").text();
        let label = format!("finished_reason=\"{reason}\"");
        let line = text.lines().find(|l| l.starts_with("vllm:request_success_total") && l.contains(&label));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until the engine has nothing any more.
    pub(crate) fn wait_idle(&self, patience: Duration) {
        eventually(patience, "the engine to be idle", || {
            ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
                .iter()
                .all(|name| self.metric(name) == 0.0)
        });
    }

    /// Waits for the server to end.
    pub(crate) fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    pub(crate) fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|t| !t.is_finished())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.knobs.paused.store(false, Ordering::Release);
        self.service.abort();
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

pub(crate) fn eventually(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < end, "waited {patience:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One connection, which may carry several requests.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Connection { stream, buffer: Vec::new() }
    }

    /// Writes a request and reads its answer.
    pub(crate) fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.write(method, path, headers, body);
        self.read_for(method)
    }

    pub(crate) fn write(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        for (name, default) in [("host", "localhost"), ("content-type", "application/json")] {
            if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) {
                head += &format!("{name}: {default}\r\n");
            }
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        self.stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    }

    pub(crate) fn read(&mut self) -> Reply {
        self.read_for("GET")
    }

    /// More bytes from the server; false at the end.
    fn more(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        let count = self.stream.read(&mut chunk).unwrap_or(0);
        self.buffer.extend_from_slice(&chunk[..count]);
        count > 0
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count && self.more() {}
        assert!(self.buffer.len() >= count, "cut short: {}", String::from_utf8_lossy(&self.buffer));
        self.buffer.drain(..count).collect()
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            if !self.more() {
                return None;
            }
        }
    }

    fn head(&mut self) -> Option<Reply> {
        let status = self.line()?.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        while let Some(line) = self.line().filter(|l| !l.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Some(Reply { status, headers, body: Vec::new() })
    }

    /// Reads the head of an answer of events.
    pub(crate) fn read_head(&mut self) -> Reply {
        self.head().expect("an answer")
    }

    /// The next chunk of a chunked body; `None` at its end.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line().expect("a chunk"), 16).unwrap();
        let chunk = self.take(size);
        self.take(2);
        (size > 0).then_some(chunk)
    }

    fn read_for(&mut self, method: &str) -> Reply {
        self.try_read(method).expect("an answer")
    }

    /// An answer, or `None` where the server closes without one.
    pub(crate) fn try_read(&mut self, method: &str) -> Option<Reply> {
        let mut reply = self.head()?;
        while reply.status == 100 {
            reply = self.head()?;
        }
        if method == "HEAD" {
        } else if let Some(length) = reply.header("content-length") {
            let length = length.parse().unwrap();
            reply.body = self.take(length);
        } else if reply.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                reply.body.extend(chunk);
            }
        }
        Some(reply)
    }

    /// Whether the server has closed its side.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.more()
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Asserts an error in OpenAI's shape and yields its object.
    pub(crate) fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        let error = &body["error"];
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{body}");
        assert!(error["type"].is_string(), "{body}");
        for field in ["param", "code"] {
            assert!(error.get(field).is_some_and(|v| v.is_null() || v.is_string()), "{body}");
        }
        error.clone()
    }

    /// The data of the events, and nothing but events and comments.
    pub(crate) fn events(&self) -> Vec<String> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        events(&self.text())
    }
}

/// The data of the events in a stream.
pub(crate) fn events(text: &str) -> Vec<String> {
    assert!(text.ends_with("\n\n"), "{text:?}");
    let frames = text.split_terminator("\n\n");
    let data = |frame: &str| {
        assert!(!frame.contains('\n'), "{frame:?}");
        if frame.starts_with(':') {
            None
        } else {
            Some(frame.strip_prefix("data: ").expect(frame).to_owned())
        }
    };
    frames.filter_map(data).collect()
}

/// Ids of a prompt: the beginning-of-sequence token and its bytes.
pub(crate) fn ids(prompt: &str) -> Vec<u32> {
    std::iter::once(crate::model::BOS).chain(prompt.bytes().map(u32::from)).collect()
}

/// A chat of one user message.
pub(crate) fn user(content: &str) -> Value {
    json!([{ "role": "user", "content": content }])
}

/// Tokens of such a chat's prompt in the model's template.
pub(crate) fn user_len(content: &str) -> usize {
    format!("[user]{content}\n[assistant]").len()
}
