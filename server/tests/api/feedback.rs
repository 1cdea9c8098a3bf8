//! Votes over HTTP: who may vote, what is refused and how, and what a page finds again after a reload.

use std::path::Path;
use std::sync::Arc;

use millrace_server::feedback::{Answer, Feedback, FeedbackConfig, Opinion, export};
use serde_json::{Value, json};

use crate::assist::plain;
use crate::server::{Reply, Server};

/// A server that keeps feedback, and the id and token of an answer that it gave.
fn answered(folder: &Path) -> (Server, String, String) {
    let server = plain();
    // Each segment takes a record.
    let config = FeedbackConfig { segment_bytes: 1, ..FeedbackConfig::new(folder) };
    server.service.install_feedback(Arc::new(Feedback::open(&config).unwrap()));
    let (message, token) = ask(&server);
    (server, message, token)
}

fn ask(server: &Server) -> (String, String) {
    let body = json!({ "question": "Is the pan safe?", "stream": false, "session": "mine" });
    let headers = [("content-type", "application/json"), ("x-shopper-token", "customer 7")];
    let answer = server.connect().send("POST", "/v1/assist", &headers, body.to_string().as_bytes()).ok();
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    (text(&answer["id"]), text(&answer["metadata"]["feedbackToken"]))
}

fn put(server: &Server, body: &Value) -> Reply {
    let headers = [("content-type", "application/json")];
    server.connect().send("PUT", "/v1/feedback", &headers, body.to_string().as_bytes())
}

fn get(server: &Server, message: &str, token: &str) -> Reply {
    let path = format!("/v1/feedback?messageId={message}");
    server.connect().send("GET", &path, &[("x-feedback-token", token)], b"")
}

#[test]
fn a_vote_is_there_after_a_reload_and_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (mut server, message, token) = answered(folder.path());
    let vote = json!({
        "messageId": message, "feedbackToken": token, "value": "dislike", "reasons": ["wrong"], "comment": "No.",
        "idempotencyKey": "1",
    });
    let state = put(&server, &vote).ok();
    assert_eq!(
        (&state["value"], &state["part"], &state["reasons"]),
        (&json!("dislike"), &json!("answer"), &json!(["wrong"]))
    );
    // Once more, as after a lost reply; then a card; then something else under the same key.
    assert_eq!(put(&server, &vote).ok(), state);
    put(
        &server,
        &json!({ "messageId": message, "feedbackToken": token, "part": "card:c1", "value": "like" }),
    )
    .ok();
    let other =
        json!({ "messageId": message, "feedbackToken": token, "value": "like", "idempotencyKey": "1" });
    assert_eq!(put(&server, &other).error(409)["param"], "idempotencyKey");
    let seen = json!({ "messageId": message, "feedbackToken": token, "implicit": { "copied": true } });
    assert_eq!(put(&server, &seen).ok()["value"], "dislike");
    let parts = get(&server, &message, &token).ok()["parts"].clone();
    assert_eq!(
        (&parts["answer"]["value"], &parts["answer"]["implicit"]),
        (&json!("dislike"), &json!({ "copied": true }))
    );
    assert_eq!(parts["card:c1"]["value"], "like");
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("millrace:feedback_votes_total{value=\"dislike\"} 1\n"), "{metrics}");
    server.service.drain();
    server.join();
    drop(server);

    let server = plain();
    let feedback = Arc::new(Feedback::open(&FeedbackConfig::new(folder.path())).unwrap());
    server.service.install_feedback(feedback.clone());
    assert_eq!(get(&server, &message, &token).ok()["parts"], parts);
    let mut kept: Vec<(Answer, Opinion)> = Vec::new();
    let report = export::entries(folder.path(), |entry| {
        let opinion = entry.opinion();
        kept.push((entry.answer, opinion));
        Ok(())
    });
    assert_eq!((report.unwrap().damage, kept.len()), (vec![], 1));
    let (answer, opinion) = &kept[0];
    assert_eq!((answer.message.as_str(), *opinion), (message.as_str(), Opinion::Dislike));
    assert_eq!((answer.question.as_str(), answer.index.as_str()), ("Is the pan safe?", "1"));
    assert_eq!((answer.user.clone(), answer.session.clone()), {
        let key = feedback.key();
        (key.hash("user", "customer 7"), key.hash("session", "mine"))
    });
    assert_eq!(answer.prompt.iter().map(|m| m.role.as_str()).collect::<Vec<_>>(), ["system", "user"]);
    assert!(answer.prompt[1].content.contains("wash it by hand"), "{:?}", answer.prompt);
    assert!(!answer.token_ids.is_empty() && !answer.completion.is_empty() && !answer.cached);
    assert_eq!((answer.evidence.len(), answer.evidence[0].rank > 0), (4, true));
    assert_eq!((answer.template.len(), answer.evidence[0].hash.len()), (64, 32));
    assert!(answer.plan["sources"].is_array() && answer.timings["totalMs"].is_u64());
}

#[test]
fn only_who_got_the_answer_may_vote() {
    let folder = tempfile::tempdir().unwrap();
    let (server, message, token) = answered(folder.path());
    let (other, other_token) = ask(&server);
    assert_ne!(message, other);
    let vote = |token: Option<&str>| {
        let mut body = json!({ "messageId": message, "value": "like" });
        token.inspect(|token| body["feedbackToken"] = (*token).into());
        put(&server, &body)
    };
    assert_eq!(vote(None).error(401)["param"], "feedbackToken");
    for wrong in ["", "v1", &other_token, &token[..token.len() - 1], &token.replace("v1.", "v1.f")] {
        assert_eq!(vote(Some(wrong)).error(403)["code"], "invalid_feedback_token", "{wrong}");
        assert_eq!(get(&server, &message, wrong).error(403)["param"], "feedbackToken");
    }
    assert_eq!(server.get(&format!("/v1/feedback?messageId={message}")).error(401)["param"], "feedbackToken");
    assert_eq!(server.get("/v1/feedback").error(400)["param"], "messageId");
    let headers = [("content-type", "application/json"), ("x-feedback-token", token.as_str())];
    let body = json!({ "messageId": message, "value": "like" }).to_string();
    server.connect().send("PUT", "/v1/feedback", &headers, body.as_bytes()).ok();
}

#[test]
fn bad_requests_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (server, message, token) = answered(folder.path());
    let base = json!({ "messageId": message, "feedbackToken": token, "value": "like" });
    for (field, value) in
        [("value", json!("love")), ("reasons", json!(["x"])), ("part", json!("all")), ("foo", json!(1))]
    {
        let mut body = base.clone();
        body[field] = value;
        let error = put(&server, &body).error(400);
        assert!(error["param"].as_str().unwrap().starts_with(field), "{error}");
    }
    let mut long = base.clone();
    long["comment"] = "x".repeat(70 << 10).into();
    put(&server, &long).error(413);
    server.connect().send("DELETE", "/v1/feedback", &[], b"").error(405);
    assert_eq!(get(&server, &message, &token).ok()["parts"], json!({}));
    assert_eq!(put(&plain(), &base).error(404)["code"], "feedback_disabled");
}

#[test]
fn a_store_that_cannot_write_refuses_and_answers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (server, message, token) = answered(folder.path());
    let vote =
        |value: &str| put(&server, &json!({ "messageId": message, "feedbackToken": token, "value": value }));
    vote("like").ok();
    let (path, aside) = (folder.path().to_owned(), folder.path().with_extension("aside"));
    std::fs::rename(&path, &aside).unwrap();
    let refused = vote("dislike");
    assert_eq!(refused.error(503)["code"], "feedback_not_stored");
    assert_eq!(refused.header("x-should-retry"), Some("true"));
    assert_eq!(get(&server, &message, &token).ok()["parts"]["answer"]["value"], "like");
    ask(&server);
    std::fs::rename(&aside, &path).unwrap();
    assert_eq!(vote("dislike").ok()["value"], "dislike");
}
