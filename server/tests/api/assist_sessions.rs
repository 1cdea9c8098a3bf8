//! Conversations over HTTP: streams that are taken up again, and what must stay apart: shoppers, tenants, and indexes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_server::ApiKey;
use millrace_server::assistant::{
    Assistant, Evidence, Passage, Product, Retrieval, Retrieve, RetrieveRequest, RetrieveResult, Source,
};
use serde_json::{Value, json};

use crate::assist::{options, passage, plain, question, with};
use crate::assist_clients::{ask, judge};
use crate::model::QUIET;
use crate::server::Server;

/// Both halves of a stream that broke off, in both protocols, as real clients read them.
#[test]
fn real_clients_read_a_stream_that_was_taken_up() {
    let server = plain();
    server.slow(Duration::from_millis(5));
    let ag_ui = json!({ "threadId": "t", "runId": "r", "messages": [{ "id": "1", "role": "user", "content": "Safe?" }],
                        "state": {}, "tools": [], "context": [], "forwardedProps": {} });
    for (protocol, session, body, delta) in [
        ("ai", "s", question("Is the pan safe?"), "text-delta"),
        ("ag-ui", "t", ag_ui, "TEXT_MESSAGE_CONTENT"),
    ] {
        let mut connection = server.connect();
        connection.write("POST", "/v1/assist", &[], body.to_string().as_bytes());
        assert_eq!(connection.read_head().status, 200);
        let mut seen = String::new();
        while seen.matches(delta).count() < 5 {
            seen += &String::from_utf8(connection.chunk().expect("more text")).unwrap();
        }
        drop(connection);
        let last = seen.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap();
        let path = format!("/v1/assist/{session}/stream");
        let rest = server.connect().send("GET", &path, &[("last-event-id", last)], b"");
        assert_eq!(rest.status, 200);
        let text = |body: &str| body.matches(delta).count();
        assert!(text(&rest.text()) > 5, "{protocol}: {}", rest.text());
        let joined = seen.clone() + &rest.text();
        let Some(judge) = judge() else { return };
        let output = ask(&judge, protocol, &format!("resumed-{protocol}"), &joined);
        assert!(output.status.success(), "{}\n{joined}", String::from_utf8_lossy(&output.stdout));
        // The judges would notice if something were missing between the halves.
        let lines =
            joined.lines().filter(|line| !line.contains("text-start") && !line.contains("RUN_STARTED"));
        let broken = lines.collect::<Vec<_>>().join("\n") + "\n";
        assert!(
            !ask(&judge, protocol, &format!("broken-{protocol}"), &broken).status.success(),
            "{protocol}"
        );
    }
}

/// What a question of this session cost: tokens of its prompt, which grow with what is remembered.
fn prompt_tokens(server: &Server, headers: &[(&str, &str)], text: &str) -> u64 {
    let mut body = question(text);
    body["stream"] = false.into();
    let answer = server.connect().send("POST", "/v1/assist", headers, body.to_string().as_bytes()).ok();
    answer["metadata"]["usage"]["inputTokens"].as_u64().unwrap()
}

#[test]
fn a_conversation_belongs_to_its_shopper_and_its_tenant() {
    let mut locked = options();
    locked.config.api_keys = ApiKey::parse_file("first-key\nsecond-key").unwrap();
    let server = with(locked);
    let (first, second) = (("authorization", "Bearer first-key"), ("authorization", "Bearer second-key"));
    let (anna, ben) = (("x-shopper-token", "anna"), ("x-shopper-token", "ben"));
    let alone = prompt_tokens(&server, &[first, anna], "Is the pan safe?");
    // The same session id, from whoever else may have guessed it.
    for others in [&[first, ben][..], &[second, anna], &[second, ben], &[second], &[first]] {
        assert_eq!(prompt_tokens(&server, others, "Is the pan safe?"), alone, "{others:?}");
    }
    assert!(prompt_tokens(&server, &[first, anna], "Is the pan safe?") > alone);
    // Nor can anybody else read what it said.
    let stream = |headers: &[(&str, &str)]| {
        let body = question("And heavy?").to_string();
        let own = [&[first, anna][..], &[("accept", "text/event-stream")]].concat();
        let reply = server.connect().send("POST", "/v1/assist", &own, body.as_bytes());
        let id = reply.text().lines().find_map(|line| line.strip_prefix("id: ").map(str::to_owned)).unwrap();
        let headers = [headers, &[("last-event-id", id.as_str())]].concat();
        let again = server.connect().send("GET", "/v1/assist/s/stream", &headers, b"");
        (again.status, again.text().contains(id.rsplit_once(':').unwrap().0))
    };
    assert_eq!(stream(&[first, anna]), (200, true));
    for others in [&[first, ben][..], &[second, anna], &[second], &[first]] {
        assert!(!stream(others).1, "{others:?}");
    }
}

/// An index that is exchanged while the server runs.
#[derive(Default)]
struct Swapped(AtomicU64);

impl Swapped {
    fn all(&self) -> Vec<Arc<Passage>> {
        let text = format!("Version {} of the answer.", self.0.load(Ordering::Relaxed));
        vec![passage("q1", Source::Qa, "Is it dishwasher-safe?", &text)]
    }
}

impl Retrieve for Swapped {
    fn retrieve(&self, request: RetrieveRequest) -> RetrieveResult<'_, Retrieval> {
        let fits = |p: &Arc<Passage>| request.filters.sources.contains(&p.source);
        let evidence = self.all().into_iter().filter(fits);
        let evidence = evidence.map(|passage| Evidence { passage, score: 1.0 }).collect();
        Box::pin(async { Ok(Retrieval { evidence }) })
    }
    fn search_products(&self, _: RetrieveRequest) -> RetrieveResult<'_, Vec<(Arc<Product>, f32)>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn products(&self, _: Vec<String>) -> RetrieveResult<'_, Vec<Arc<Product>>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn passages(&self, _: String, sources: Vec<Source>) -> RetrieveResult<'_, Vec<Arc<Passage>>> {
        Box::pin(async move { Ok(self.all().into_iter().filter(|p| sources.contains(&p.source)).collect()) })
    }
    fn version(&self) -> String {
        self.0.load(Ordering::Relaxed).to_string()
    }
}

#[test]
fn an_answer_of_another_index_is_not_given_again() {
    let index = Arc::new(Swapped::default());
    let server = Server::with(options());
    let config = serde_json::from_value(json!({ "max_tokens": 60, "temperature": 0.0 })).unwrap();
    server.service.install_assistant(Assistant::new(config, Some(index.clone()), [7; 32]).unwrap());
    // The model ends at once, and what ended is kept.
    let ask = || {
        let question =
            json!({ "question": format!("{QUIET} is it safe?"), "products": ["B1"], "stream": false });
        server.post("/v1/assist", &question).ok()["metadata"]["answerCached"].clone()
    };
    assert_eq!([ask(), ask()], [Value::Bool(false), Value::Bool(true)]);
    index.0.fetch_add(1, Ordering::Relaxed);
    assert_eq!([ask(), ask()], [Value::Bool(false), Value::Bool(true)]);
}
