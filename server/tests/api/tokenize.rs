//! `/tokenize`, `/detokenize`, `/v1/models` and the small routes.

use serde_json::json;

use crate::model::BOS;
use crate::server::{Options, Server, ids, user};

#[test]
fn text_to_ids_and_back() {
    let server = Server::start();
    let reply = server.post("/tokenize", &json!({ "model": "bytes", "prompt": "Hé" })).ok();
    assert_eq!(reply, json!({ "count": 4, "max_model_len": 512, "tokens": ids("Hé"), "token_strs": null }));
    let plain = json!({ "prompt": "Hi", "add_special_tokens": false, "return_token_strs": true });
    let reply = server.post("/tokenize", &plain).ok();
    assert_eq!((&reply["tokens"], &reply["token_strs"]), (&json!([72, 105]), &json!(["H", "i"])));
    let chat = server.post("/tokenize", &json!({ "messages": user("Hi") })).ok();
    assert_eq!(chat["count"], "[user]Hi\n[assistant]".len());
    let open =
        server.post("/tokenize", &json!({ "messages": user("Hi"), "add_generation_prompt": false })).ok();
    assert_eq!(open["count"], "[user]Hi\n".len());
    assert_eq!(server.post("/tokenize", &json!({ "prompt": "" })).ok()["tokens"], json!([BOS]));

    let text = server.post("/detokenize", &json!({ "tokens": ids("Hé") })).ok();
    assert_eq!(text, json!({ "prompt": "<s>Hé" }));
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({ "prompt": 7 }), "prompt"),
        ("/tokenize", json!({ "prompt": "a", "messages": user("a") }), "prompt"),
        ("/tokenize", json!({ "messages": [] }), "messages"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({ "tokens": "a" }), "tokens"),
        ("/detokenize", json!({ "tokens": [-1] }), "tokens"),
        ("/detokenize", json!({ "tokens": [9999] }), "tokens"),
    ] {
        assert_eq!(server.post(path, &body).error(400)["param"], param, "{path} {body}");
    }
    server.post("/tokenize", &json!({ "model": "x", "prompt": "a" })).error(404);
}

#[test]
fn models_and_the_small_routes() {
    let server = Server::start();
    let list = server.get("/v1/models").ok();
    assert_eq!(list["object"], "list");
    let cards = list["data"].as_array().unwrap();
    assert_eq!(cards.iter().map(|c| &c["id"]).collect::<Vec<_>>(), ["bytes", "alias"]);
    for card in cards {
        assert_eq!(
            (&card["object"], &card["max_model_len"], &card["root"]),
            (&json!("model"), &json!(512), &json!("bytes"))
        );
        assert_eq!(&server.get(&format!("/v1/models/{}", card["id"].as_str().unwrap())).ok(), card);
    }
    assert_eq!(server.get("/version").ok(), json!({ "version": env!("CARGO_PKG_VERSION") }));
    for (method, path) in
        [("GET", "/health"), ("HEAD", "/health"), ("GET", "/ping"), ("POST", "/ping"), ("HEAD", "/v1/models")]
    {
        let reply = server.connect().send(method, path, &[], b"");
        assert_eq!((reply.status, reply.body.len()), (200, 0), "{method} {path}");
    }
}

#[test]
fn until_the_model_is_there_everything_waits() {
    let server = Server::with(Options { loading: true, ..Default::default() });
    for path in ["/health", "/ping", "/v1/models"] {
        let reply = server.get(path);
        assert_eq!(reply.error(503)["code"], "model_loading");
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(reply.header("x-should-retry"), Some("true"));
    }
    server.post("/v1/completions", &json!({ "prompt": "a" })).error(503);
    server.post("/tokenize", &json!({ "prompt": "a" })).error(503);
    assert_eq!(server.get("/version").status, 200);
    assert!(server.get("/metrics").text().contains("http_requests_total"));
}
