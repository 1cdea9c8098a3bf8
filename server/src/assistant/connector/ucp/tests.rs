//! Against examples/store/ucp.py, a server on the Python SDK of MCP (needs `MILLRACE_TEST_PYTHON`), and against a socket
//! that answers what no SDK would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

fn config(url: &str) -> StoreConfig {
    let config = json!({
        "name": "s", "role": "live", "protocol": "ucp", "url": url, "profile": "https://shop.example/agent.json",
        "headers": { "x-api-key": "k" }, "country": "DE",
    });
    serde_json::from_value(config).unwrap()
}

fn connector(url: &str, deadline: Duration) -> UcpConnector {
    UcpConnector::new(config(url), &Policy { deadline, ..Policy::default() }).unwrap()
}

async fn ask(connector: &UcpConnector, keys: &[&str]) -> Found {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    connector.lookup(Lookup { keys, shopper: None }).await
}

/// The example store while it runs.
struct Store {
    process: Child,
    url: String,
}

impl Store {
    fn start(arguments: &[&str]) -> Option<Store> {
        let Ok(python) = std::env::var("MILLRACE_TEST_PYTHON") else {
            println!("skipped: MILLRACE_TEST_PYTHON is not set (scripts/python makes one)");
            return None;
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/store/ucp.py");
        let mut command = Command::new(python);
        command.arg(script).args(["--port", "0"]).args(arguments).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("store on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        Some(Store { process, url })
    }

    fn set(&self, faults: &Value) {
        let url = self.url.replace("/mcp", "/faults");
        ureq::put(&url).send(&serde_json::to_vec(faults).unwrap()[..]).unwrap();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_store_on_another_sdk_is_asked_in_one_call() {
    for arguments in [&[][..], &["--json"], &["--only", "get_product"]] {
        let Some(store) = Store::start(arguments) else { return };
        let connector = connector(&store.url, LONG);
        let found = ask(&connector, &["p1", "p2-v1", "p3"]).await.unwrap();
        assert_eq!(found.len(), 3, "{arguments:?}: {found:?}");
        let live = &found["p2-v1"];
        assert!(live["price"]["amount"].is_u64() && live["price"]["currency"] == "EUR", "{live}");
        assert!(live["availability"]["available"].is_boolean() && live.get("title").is_none(), "{live}");
        assert_eq!(found["p1"], ask(&connector, &["p1-v1"]).await.unwrap()["p1-v1"]);
        let shared = (0..8).map(|_| {
            let connector = connector.clone();
            tokio::spawn(async move { ask(&connector, &["p1"]).await.map(|found| found.len()) })
        });
        for task in shared.collect::<Vec<_>>() {
            assert_eq!(task.await.unwrap(), Ok(1));
        }
    }
}

#[tokio::test]
async fn a_store_that_does_wrong_is_told_apart() {
    let Some(store) = Store::start(&[]) else { return };
    let connector = connector(&store.url, LONG);
    assert_eq!(ask(&connector, &["p1"]).await.map(|found| found.len()), Ok(1));
    for (answer, expected) in [
        ("wrong_ids", Ok(0)),
        ("no_money", Err(FetchError::Invalid)),
        ("no_products", Err(FetchError::Invalid)),
        ("tool_error", Err(FetchError::Failed)),
        ("right", Ok(1)),
    ] {
        store.set(&json!({ "answer": answer }));
        assert_eq!(ask(&connector, &["p1"]).await.map(|found| found.len()), expected, "{answer}");
    }
}

#[tokio::test]
async fn a_slow_store_takes_no_longer_than_it_may() {
    let Some(store) = Store::start(&[]) else { return };
    let deadline = Duration::from_millis(1500);
    let connector = connector(&store.url, deadline);
    // The first ask may be lost to the handshake on a busy machine; it goes on behind it.
    for _ in 0..20 {
        if ask(&connector, &["p1"]).await.is_ok() {
            break;
        }
    }
    store.set(&json!({ "delay_ms": 60_000 }));
    let start = Instant::now();
    assert_eq!(ask(&connector, &["p1"]).await, Err(FetchError::Timeout));
    assert!(start.elapsed() < deadline * 6, "{:?}", start.elapsed());
    store.set(&json!({ "delay_ms": 0 }));
    assert_eq!(ask(&connector, &["p1"]).await.map(|found| found.len()), Ok(1), "the session outlives it");
}

/// A server that gives one answer to whatever it is asked. Returns its address.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/mcp", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            // All of the request, or closing would reset the connection under the answer.
            let mut request = [0; 8192];
            while stream.read(&mut request).is_ok_and(|count| count > 0) {}
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[tokio::test]
async fn what_is_no_mcp_is_an_error_of_its_kind() {
    for (answer, expected) in [
        ("", FetchError::Unreachable),
        ("HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", FetchError::Failed),
        ("HTTP/1.1 429 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", FetchError::Failed),
        ("HTTP/1.1 401 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", FetchError::Refused),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{\"items\": []}",
            FetchError::Invalid,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: {\n\n",
            FetchError::Invalid,
        ),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>", FetchError::Invalid),
    ] {
        let connector = connector(&answering(answer), LONG);
        assert_eq!(ask(&connector, &["p1"]).await, Err(expected), "{answer}");
    }
    let connector = connector("http://127.0.0.1:1/mcp", LONG);
    assert_eq!(ask(&connector, &["p1"]).await, Err(FetchError::Unreachable));
}

#[test]
fn only_what_was_agreed_is_taken() {
    let connector = connector("http://s/mcp", LONG);
    let keys = ["a".to_owned(), "v2".to_owned()];
    let read = |answer: Value| connector.0.read(&answer, &keys);
    let money = |amount: u64| json!({ "amount": amount, "currency": "EUR", "html": "<b>" });
    let found = read(json!({ "products": [
        { "id": "a", "title": "<script>", "price_range": { "min": money(5), "max": money(9) }, "variants": [
            { "id": "v1", "price": money(5), "availability": { "available": true }, "inputs": [{ "id": "a" }] },
            { "id": "v2", "price": money(9), "list_price": money(12), "description": "x" },
        ]},
        { "id": "z", "price_range": { "min": money(1), "max": money(1) } },
    ]}))
    .unwrap();
    assert_eq!(found.len(), 2);
    let euro = |amount: u64| json!({ "amount": amount, "currency": "EUR" });
    assert_eq!((&found["a"]["price"], &found["v2"]["price"]), (&euro(5), &euro(9)));
    assert_eq!(found["v2"]["list_price"], euro(12));
    assert_eq!(found["a"]["variants"][1], json!({ "id": "v2", "price": euro(9), "list_price": euro(12) }));
    assert_eq!(found["a"]["price_range"], json!({ "min": euro(5), "max": euro(9) }));
    assert!(found["a"].get("title").is_none());

    // More than a card can show is left out.
    let long = "x".repeat(2000);
    let variants: Vec<Value> =
        (0..400).map(|i| json!({ "id": format!("w{i}"), "title": long, "price": money(5) })).collect();
    let found = read(json!({ "products": [{ "id": "a", "variants": variants }] })).unwrap();
    assert!(found["a"]["variants"].as_array().unwrap().len() < 100 && found["a"].to_string().len() < 10_000);

    assert_eq!(read(json!({ "messages": [{ "code": "not_found" }] })), Some(HashMap::new()));
    for bad in [
        json!({}),
        json!({ "messages": [{ "code": "internal" }] }),
        json!({ "products": {} }),
        json!({ "products": [{}] }),
        json!({ "products": [{ "id": "a", "variants": 1 }] }),
        json!({ "products": [{ "id": "a", "price_range": { "min": 5 } }] }),
        json!({ "products": [{ "id": "a", "variants": [{ "price": { "amount": -1, "currency": "EUR" } }] }] }),
        json!({ "products": [{ "id": "a", "variants": [{ "price": { "amount": 1.5, "currency": "EUR" } }] }] }),
        json!({ "products": [{ "id": "a", "variants": [{ "price": { "amount": 1, "currency": "euro" } }] }] }),
        json!({ "products": [{ "id": "a", "price_range": { "min": money(5), "max": money(4) } }] }),
        json!({ "products": [{ "id": "a", "price_range": { "min": money(5), "max": { "amount": 9, "currency": "USD" } } }] }),
        json!({ "products": [{ "id": "a", "price_range": { "min": money(5), "max": money(5) },
            "variants": [{ "price": { "amount": 5, "currency": "USD" } }] }] }),
        json!({ "products": [{ "id": "a", "variants": [{ "price": money(5) },
            { "price": money(5), "list_price": { "amount": 5, "currency": "USD" } }] }] }),
    ] {
        assert_eq!(read(bad.clone()), None, "{bad}");
    }
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let refused = |change: &dyn Fn(&mut StoreConfig)| {
        let mut config = config("http://s/mcp");
        change(&mut config);
        UcpConnector::new(config, &Policy::default()).map(drop).unwrap_err().to_string()
    };
    assert!(refused(&|config| config.url = "file:///etc".into()).contains("url"));
    assert!(refused(&|config| config.profile = None).contains("profile"));
    assert!(refused(&|config| config.shopper_header = Some("x".into())).contains("shopper_header"));
    assert!(refused(&|config| drop(config.headers.insert("a\n".into(), "b".into()))).contains("headers"));
}
