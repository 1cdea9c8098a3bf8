//! The binary as a shop runs it: an index of a small catalog, a real model, a question, and a stream of an answer.
//!
//! The model is `MILLRACE_TEST_MODEL`, or what `scripts/fetch-model` has cached; the encoder `MILLRACE_TEST_ENCODER`, or
//! what `scripts/fetch-encoder` has.
#![allow(clippy::print_stderr, reason = "a test that skips says so")]

#[path = "support/cached.rs"]
mod cached;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// A folder that is gone with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn lines(&self, name: &str, lines: &[Value]) -> PathBuf {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn millrace() -> Command {
    Command::new(env!("CARGO_BIN_EXE_millrace"))
}

/// Three products with what is said of them.
fn index(folder: &Folder, encoder: Option<&Path>) -> PathBuf {
    let catalog = folder.lines(
        "catalog.jsonl",
        &[
            json!({ "id": "B1", "title": "Carbon steel pan", "categories": ["Kitchen"],
                    "attributes": { "material": "carbon steel", "weight": "1.4 kg" } }),
            json!({ "id": "B2", "title": "Wool beanie", "categories": ["Clothing"],
                    "attributes": { "material": "merino wool" }, "bullets": ["Keeps warm when the wind is icy"] }),
            json!({ "id": "B3", "title": "Thermal golf gloves", "categories": ["Clothing", "Golf"],
                    "attributes": { "lining": "fleece" } }),
        ],
    );
    let reviews = folder.lines(
        "reviews.jsonl",
        &[json!({ "id": "r1", "product": "B2", "rating": 5, "title": "Warm", "text": "Wore it for winter golf." })],
    );
    let qa = folder.lines(
        "qa.jsonl",
        &[json!({ "id": "q1", "product": "B1", "question": "Is this pan dishwasher safe?",
                  "answer": "No, the seasoning comes off; wash it by hand." })],
    );
    let output = folder.0.join("shop.index");
    let mut command = millrace();
    command.arg("index").arg("--catalog").arg(catalog).arg("--reviews").arg(reviews).arg("--qa").arg(qa);
    command.arg("--output").arg(&output);
    if let Some(encoder) = encoder {
        command.arg("--embedding-model").arg(encoder);
    }
    let done = command.output().expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    output
}

/// A serving process, ended with its test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(model: &Path, flags: &[&str]) -> Server {
        let mut child = millrace()
            .args(["serve", "--port=0", "--max-model-len=4096", "--kv-memory=200MB", "--model"])
            .arg(model)
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let (mut said, mut line) = (String::new(), String::new());
        let address = loop {
            line.clear();
            assert!(lines.read_line(&mut line).expect("text") > 0, "it ended:\n{said}");
            said += &line;
            if let Some((_, address)) = line.trim().split_once("ready on http://") {
                break address.to_owned();
            }
        };
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Server { child, address }
    }

    /// Status and body of an answer.
    fn post(&self, path: &str, body: &Value) -> (u16, String) {
        self.send("POST", path, body)
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
        let body = body.to_string();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_question_is_answered_from_an_index() {
    let Some(model) = cached::smollm2() else {
        eprintln!("skipped: no model; scripts/fetch-model fetches it");
        return;
    };
    let encoder = cached::cached("MILLRACE_TEST_ENCODER", "all-MiniLM-L6-v2");
    if encoder.is_none() {
        eprintln!("partly skipped: no encoder; scripts/fetch-encoder fetches it");
    }
    let folder = Folder::new("assist");
    let index = index(&folder, encoder.as_deref());
    // Paths of the configuration start from its folder.
    let mut config = "index = \"shop.index\"\nmax_tokens = 48\nretrieval_deadline_ms = 5000\n".to_owned();
    if let Some(encoder) = &encoder {
        config += &format!("embedding_model = {encoder:?}\n");
    }
    assert_eq!(index.parent(), Some(&*folder.0));
    let file = folder.0.join("assistant.toml");
    std::fs::write(&file, config).expect("written");
    let server = Server::start(&model, &["--assistant-config", file.to_str().expect("text")]);

    let question = json!({ "question": "Is this pan dishwasher safe?", "products": ["B1"] });
    let (status, stream) = server.post("/v1/assist", &question);
    assert_eq!(status, 200, "{stream}");
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|line| *line != "[DONE]");
    let events: Vec<Value> = data.map(|line| serde_json::from_str(line).expect(line)).collect();
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let sources = of("data-plan")[0]["data"]["sources"].to_string();
    assert!(sources.contains("\"ready\""), "{sources}");
    assert!(!of("text-delta").is_empty() && of("finish").len() == 1, "{stream}");
    let usage = &of("message-metadata")[0]["messageMetadata"]["usage"];
    assert!(usage["inputTokens"].as_u64() > Some(200), "the evidence is in the prompt: {usage}");

    if encoder.is_some() {
        let (status, body) =
            server.post("/v1/embeddings", &json!({ "input": ["warm hat", "beanie", "frying pan"] }));
        assert_eq!(status, 200, "{body}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        let vector = |i: usize| -> Vec<f64> {
            let list = body["data"][i]["embedding"].as_array().expect("a list");
            list.iter().map(|x| x.as_f64().expect("a number")).collect()
        };
        let near = |a: usize, b: usize| vector(a).iter().zip(vector(b)).map(|(x, y)| x * y).sum::<f64>();
        assert!((near(0, 0) - 1.0).abs() < 1e-4 && near(0, 1) > near(0, 2), "{} {}", near(0, 1), near(0, 2));
        // By meaning: no word of the question is in what it finds.
        let cold = json!({ "question": "headgear against cold weather", "stream": false });
        let (status, body) = server.post("/v1/assist", &cold);
        assert_eq!(status, 200, "{body}");
    }
}

/// The same evidence is the same prompt after a restart, so an answer that is liked and one that is not become a pair to
/// train on; and what was acknowledged before the process was killed is there.
#[test]
fn answers_before_and_after_a_kill_make_a_pair() {
    let Some(model) = cached::smollm2() else {
        eprintln!("skipped: no model; scripts/fetch-model fetches it");
        return;
    };
    let folder = Folder::new("assist-pair");
    index(&folder, None);
    // Hot, so that the model says something else each time.
    let config = "index = \"shop.index\"\nmax_tokens = 24\ntemperature = 1.5\nanswer_cache = false\n\
                  retrieval_deadline_ms = 5000\n";
    let (file, votes) = (folder.0.join("assistant.toml"), folder.0.join("votes"));
    std::fs::write(&file, config).expect("written");
    let flags =
        ["--assistant-config", file.to_str().expect("text"), "--feedback", votes.to_str().expect("text")];
    let ask = |server: &Server| {
        let question =
            json!({ "question": "Is this pan dishwasher safe?", "products": ["B1"], "stream": false });
        let (status, body) = server.post("/v1/assist", &question);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).expect("JSON")
    };
    let vote = |server: &Server, answer: &Value, value: &str| {
        let vote = json!({ "messageId": answer["id"], "feedbackToken": answer["metadata"]["feedbackToken"], "value": value });
        let (status, body) = server.send("PUT", "/v1/feedback", &vote);
        assert_eq!(status, 200, "{body}");
    };
    let server = Server::start(&model, &flags);
    let first = ask(&server);
    vote(&server, &first, "like");
    // SIGKILL.
    drop(server);
    let server = Server::start(&model, &flags);
    let other = (0..10).map(|_| ask(&server)).find(|answer| answer["text"] != first["text"]);
    vote(&server, &other.expect("another answer in ten"), "dislike");
    drop(server);

    let output = folder.0.join("pairs.jsonl");
    let done = millrace()
        .args(["feedback", "export", "--format", "dpo", "--feedback"])
        .arg(&votes)
        .arg("--output")
        .arg(&output)
        .output()
        .expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let rows = std::fs::read_to_string(output).expect("text");
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(rows.len(), 1, "{rows:#?}");
    let said = |column: &str| rows[0][column][0]["content"].as_str().expect("text").to_owned();
    assert!(!said("chosen").is_empty() && said("chosen") != said("rejected"), "{rows:#?}");
    let prompt = rows[0]["prompt"].to_string();
    assert!(
        prompt.contains("Is this pan dishwasher safe?") && prompt.contains("wash it by hand"),
        "{prompt}"
    );
}

/// An index that cannot be used ends the command, which says what to do.
#[test]
fn an_index_of_another_version_is_refused() {
    let folder = Folder::new("assist-refused");
    let index = index(&folder, None);
    let start = |index: &Path| {
        // The index is opened before the model, so none is needed.
        let done = millrace()
            .args(["serve", "--port=0", "--model", "no-such-model.gguf", "--index"])
            .arg(index)
            .output()
            .expect("it runs");
        assert!(!done.status.success());
        String::from_utf8(done.stderr).expect("text")
    };
    let said = start(&index);
    assert!(said.contains("no-such-model") && !said.contains("cannot open the index"), "{said}");
    let said = start(&folder.0.join("nowhere"));
    assert!(said.contains("millrace index --catalog FILE"), "{said}");
    let version = std::fs::read_to_string(index.join("CURRENT")).expect("a version");
    let path = index.join(version.trim()).join("manifest.json");
    let manifest = std::fs::read_to_string(&path).expect("a manifest");
    let mut manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    manifest["format"] = 9999.into();
    std::fs::write(path, manifest.to_string()).expect("written");
    let said = start(&index);
    assert!(said.contains("format 9999") && said.contains("millrace index --catalog FILE"), "{said}");
}
