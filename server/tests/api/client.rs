//! The official Python client against the server: `examples/openai_client.py`.

use std::path::Path;
use std::process::Command;

use crate::server::{Options, Server};

#[test]
fn the_openai_package_is_content() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let known = Command::new(&python).args(["-c", "import openai"]).output();
    if !known.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: {python} has no package openai");
        return;
    }
    // A byte is a token, and tools are described in hundreds of them.
    let mut options = Options::default();
    options.engine.max_model_len = 2048;
    let server = Server::with(options);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/openai_client.py");
    let url = format!("http://{}/v1", server.address);
    let output = Command::new(&python).arg(script).args(["--base-url", &url]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    server.wait_idle(std::time::Duration::from_secs(5));
}
