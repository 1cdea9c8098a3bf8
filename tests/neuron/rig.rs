//! What the tests share: a small model with its compiled graphs, a running `millrace serve`, and a client of it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use softnrt::testing::{compiler_path, library_path};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const SHAPE: [&str; 11] = [
    "--target=trn1",
    "--dtype=f32",
    "--max-model-len",
    "64",
    "--block-size",
    "8",
    "--max-num-seqs",
    "2",
    "--max-num-batched-tokens",
    "8",
    "--kv-memory=64KiB",
];

/// One that decodes and one for prompts: as few as serve everything, so that there is little to load.
const BUCKETS: &str = "2x1@8+adjust,1x4@8";

/// A program of ours, without settings that the shell may have.
pub(crate) fn millrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["SOFTNRT_", "SOFTCC_", "NEURON_", "MILLRACE_LOG"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A model of two layers and 48 tokens, and a store that has its graphs.
pub(crate) struct Rig {
    pub(crate) folder: TempDir,
    ranks: String,
    buckets: String,
}

impl Rig {
    /// Compiles the graphs for so many cores by `millrace compile`, which starts the compiler's double.
    pub(crate) fn new(ranks: usize) -> Rig {
        Rig::with(ranks, BUCKETS)
    }

    /// The same with other graphs.
    pub(crate) fn with(ranks: usize, buckets: &str) -> Rig {
        let folder = tempfile::tempdir().expect("a writable temporary directory");
        let model = folder.path().join("model");
        std::fs::create_dir(&model).expect("created");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/data/llama_yarn");
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(source.join(file), model.join(file)).expect("checked in");
        }
        std::fs::write(model.join("tokenizer.json"), tokenizer().to_string()).expect("written");
        let template = "{% for m in messages %}{{ m['content'] }} {% endfor %}";
        let text = json!({ "eos_token": "t2", "chat_template": template }).to_string();
        std::fs::write(model.join("tokenizer_config.json"), text).expect("written");
        let buckets = format!("--buckets={buckets}");
        let rig = Rig { folder, ranks: ranks.to_string(), buckets };
        rig.compile();
        rig
    }

    fn compile(&self) {
        let (model, store) = (self.path("model"), self.path("store"));
        let mut command = millrace(&["compile", "--model", &model, "--output", &store]);
        let compiler = compiler_path();
        command
            .args(SHAPE)
            .args(["--tensor-parallel-size", &self.ranks, &self.buckets])
            .arg("--compiler")
            .arg(compiler);
        let done = command.output().expect("it runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Something in the rig's folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// `millrace serve` on the double, with this store.
    pub(crate) fn serve_from(&self, store: &str, more: &[&str], environment: &[(&str, &str)]) -> Server {
        let (model, store) = (self.path("model"), format!("--neuron-store={store}"));
        let library = format!("--neuron-library={}", library_path().display());
        let flags = ["--model", &model, "--backend=neuron", &store, &library];
        let cores = ["--tensor-parallel-size", &self.ranks, &self.buckets];
        Server::start(&[&flags[..], &SHAPE, &cores, more].concat(), environment)
    }

    /// The same with the store that has all graphs.
    pub(crate) fn serve(&self, more: &[&str], environment: &[(&str, &str)]) -> Server {
        self.serve_from(&self.path("store"), more, environment)
    }
}

/// A word for each token.
fn tokenizer() -> Value {
    let vocab: serde_json::Map<String, Value> = (0..48).map(|id| (format!("t{id}"), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": { "type": "WhitespaceSplit" },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": false },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "t0" },
    })
}

/// A running `millrace serve`. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    started: Instant,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub(crate) fn start(flags: &[&str], environment: &[(&str, &str)]) -> Server {
        let mut command = millrace(&["serve", "--port=0"]);
        command.args(flags).envs(environment.iter().copied());
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("millrace is built");
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, copy) = (child.stderr.take().expect("piped"), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = copy.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        Server { child, log, started: Instant::now() }
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "no {what}; it said:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it has said this.
    pub(crate) fn wait_for_words(&mut self, words: &str) {
        self.wait_for(words, |server| server.log().contains(words).then_some(()));
    }

    /// Waits until it serves. The status with which it has ended where it does not; in between clients are told to wait.
    pub(crate) fn ready(&mut self) -> Result<(), ExitStatus> {
        self.wait_for("readiness", |server| {
            if let Some(status) = server.child.try_wait().expect("it can be waited for") {
                return Some(Err(status));
            }
            let client = server.client()?;
            match client.get("/health") {
                Some((200, _)) => Some(Ok(())),
                Some((503, _)) | None => None,
                Some((status, body)) => panic!("/health while loading: {status} {body}"),
            }
        })
    }

    /// Whoever asks it. `None` until it listens.
    pub(crate) fn client(&self) -> Option<Client> {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("listening"))?;
        let address = line.split_once("address=")?.1.split_whitespace().next()?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        Some(Client { url: format!("http://{address}"), agent })
    }

    /// Waits for its end: the exit code, what it said, and how long it lived.
    pub(crate) fn ended(mut self) -> (Option<i32>, String, Duration) {
        let status = self.wait_for("end", |server| server.child.try_wait().expect("it can be waited for"));
        let lived = self.started.elapsed();
        // The thread that reads has the rest soon.
        std::thread::sleep(Duration::from_millis(50));
        (status.code(), self.log(), lived)
    }

    /// Tells it to end.
    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs");
    }

    /// Drains it: it must end well.
    pub(crate) fn drained(self) -> String {
        self.terminate();
        let (code, log, _) = self.ended();
        assert_eq!(code, Some(0), "it said:\n{log}");
        assert!(log.contains("draining"), "{log}");
        assert!(!log.contains("complaint"), "{log}");
        log
    }
}

/// A client of a server.
#[derive(Clone)]
pub(crate) struct Client {
    url: String,
    agent: ureq::Agent,
}

/// An answer that is not a stream.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The header by which clients of OpenAI know.
    pub(crate) should_retry: Option<String>,
    pub(crate) body: Value,
}

impl Client {
    /// Status and body; `None` where nobody answers.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut response = self.agent.get(format!("{}{path}", self.url)).call().ok()?;
        let body = response.body_mut().read_to_string().ok()?;
        Some((response.status().as_u16(), body))
    }

    fn send(&self, path: &str, body: &Value) -> ureq::http::Response<ureq::Body> {
        let request =
            self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        request.send(body.to_string()).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A request with one answer.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        let mut response = self.send(path, body);
        let header = response.headers().get("x-should-retry").and_then(|value| value.to_str().ok());
        let should_retry = header.map(str::to_owned);
        let text = response.body_mut().read_to_string().expect("a whole body");
        let body = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        Answer { status: response.status().as_u16(), should_retry, body }
    }

    /// A request with a stream of events, of which `first` hears when the first text is there.
    pub(crate) fn stream(&self, path: &str, body: &Value, first: impl FnOnce()) -> Streamed {
        let response = self.send(path, body);
        assert_eq!(response.status().as_u16(), 200, "streams begin well");
        let mut streamed = Streamed::default();
        let mut first = Some(first);
        for line in BufReader::new(Box::new(response.into_body().into_reader()) as Box<dyn Read>).lines() {
            // A body that is cut off is an error here.
            let line = line.expect("a whole body");
            let Some(data) = line.strip_prefix("data: ") else {
                assert!(line.is_empty() || line.starts_with(':'), "{line}");
                continue;
            };
            assert!(!streamed.done && streamed.error.is_none(), "{data} after the end");
            streamed.take(data);
            if !streamed.text.is_empty()
                && let Some(first) = first.take()
            {
                first();
            }
        }
        streamed
    }

    /// The value of a metric, all its series together.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        let mut values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let found = series == name || series.strip_prefix(name)?.starts_with('{');
            found.then(|| value.parse::<f64>().ok())?
        });
        values.next().map(|first| first + values.sum::<f64>())
    }
}

/// What came of a stream.
#[derive(Default, Debug)]
pub(crate) struct Streamed {
    pub(crate) role: bool,
    pub(crate) text: String,
    pub(crate) pieces: usize,
    pub(crate) finish: Option<String>,
    pub(crate) usage: Value,
    pub(crate) error: Option<Value>,
    pub(crate) done: bool,
    /// All events but the last mark.
    pub(crate) events: Vec<Value>,
}

impl Streamed {
    fn take(&mut self, data: &str) {
        if data == "[DONE]" {
            self.done = true;
            return;
        }
        let event: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
        if let Some(error) = event.get("error") {
            self.error = Some(error.clone());
        }
        if event["choices"].as_array().is_some_and(Vec::is_empty) {
            assert!(self.finish.is_some(), "usage before the end");
            self.usage = event["usage"].clone();
        }
        let choice = &event["choices"][0];
        if choice["delta"]["role"] == "assistant" {
            assert!(self.pieces == 0 && !self.role, "the role comes first, and once");
            self.role = true;
        }
        if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            assert!(self.role && self.finish.is_none(), "text lies between role and end");
            self.text += text;
            self.pieces += 1;
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            assert_eq!(self.finish, None, "one end");
            self.finish = Some(finish.to_owned());
        }
        self.events.push(event);
    }

    /// Whether it is an answer from beginning to end.
    pub(crate) fn is_whole(&self) -> bool {
        self.role && self.done && self.error.is_none() && self.finish.is_some() && self.usage.is_object()
    }
}

/// A chat request that does not end by itself before `max_tokens`.
pub(crate) fn chat(max_tokens: usize, stream: bool) -> Value {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "t5 t17 t9" }],
        "temperature": 0, "max_tokens": max_tokens, "ignore_eos": true,
    });
    if stream {
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
    }
    body
}

/// The text of a chat's answer.
pub(crate) fn text(answer: &Answer) -> &str {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["choices"][0]["message"]["content"].as_str().expect("text")
}

/// Runs cases on a few threads, since most of each is waiting; all that fail are told.
pub(crate) fn all<T: Send + Sync>(cases: &[T], run: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(case)));
            if let Err(panic) = done {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                failed.lock().expect("no panic inside").push(text.unwrap_or_default());
            }
        }
    };
    std::thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().expect("no panic inside");
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), cases.len(), failed.join("\n---\n"));
}

/// A copy of a directory that holds directories of files.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(from).expect("listed") {
        let path = entry.expect("listed").path();
        let target = to.join(path.file_name().expect("named"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, target).expect("copied");
        }
    }
}

/// The artefacts of a store, whole or not.
pub(crate) fn artefacts(store: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(store).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .filter(|path| ["manifest.json", "model.neff"].iter().any(|name| path.join(name).exists()))
        .collect()
}

/// The artefact of the decode graph.
pub(crate) fn decode(store: &Path) -> PathBuf {
    let decodes = |path: &PathBuf| {
        let text = std::fs::read_to_string(path.join("manifest.json")).expect("it is sound");
        let manifest: Value = serde_json::from_str(&text).expect("JSON");
        manifest["bucket"]["width"] == 1
    };
    artefacts(store).into_iter().find(decodes).expect("there is one")
}
