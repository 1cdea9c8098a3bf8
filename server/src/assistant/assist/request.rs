//! A body becomes an [`Ask`], or an error that names the field. Three forms are told apart by what they alone have:
//! `question` is the plain one, `threadId` and `runId` are AG-UI's, `messages` alone is the AI SDK's.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::json::{Fields, describe, shorten, wrong};

/// How the answer is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    AiSdk,
    AgUi,
    Json,
}

/// A question.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Ask {
    pub(super) protocol: Protocol,
    /// `None` where the server is to draw one.
    pub(super) session: Option<String>,
    pub(super) run: Option<String>,
    pub(super) question: String,
    /// Earlier questions and answers as the client has them.
    pub(super) history: Vec<(String, String)>,
    /// Products that the shopper looks at.
    pub(super) products: Vec<String>,
    pub(super) order: Option<String>,
    pub(super) locale: String,
    /// The last answer is to be replaced.
    pub(super) again: bool,
}

const MOST_PRODUCTS: usize = 16;
const LONGEST_QUESTION: usize = 4000;
const LONGEST_ID: usize = 128;

/// Reads a body.
///
/// # Errors
/// 400.
pub(super) fn ask(body: &[u8]) -> Result<Ask, ApiError> {
    let mut fields = Fields::body(body)?;
    let f = &mut fields;
    let question = f.value("question");
    let messages = f.value("messages");
    let (session, run) = (f.get::<String>("threadId")?, f.get::<String>("runId")?);
    let is_ag_ui = session.is_some() || run.is_some();
    let (mut ask, mut extra) = match (question, messages) {
        (Some(_), Some(_)) => {
            return Err(ApiError::field("question", "question: cannot be combined with messages"));
        }
        (None, None) => return Err(ApiError::field("question", "question: missing")),
        (Some(Value::String(question)), None) => {
            let protocol = match f.get::<String>("protocol")?.as_deref() {
                _ if !f.or("stream", true)? => Protocol::Json,
                None | Some("ai-sdk") => Protocol::AiSdk,
                Some("ag-ui") => Protocol::AgUi,
                Some(other) => {
                    let message = format!("protocol: expected ai-sdk or ag-ui, got {}", shorten(other));
                    return Err(ApiError::field("protocol", message));
                }
            };
            (blank(protocol, f.get("session")?, question), Fields::at("", Value::Object(Map::new()))?)
        }
        (Some(other), None) => return Err(wrong::<String>("question", &other)),
        (None, Some(messages)) => {
            let (question, history) = conversation(messages)?;
            if is_ag_ui {
                let extra = f.get::<Map<String, Value>>("forwardedProps")?.unwrap_or_default();
                let mut ask = blank(Protocol::AgUi, session, question);
                (ask.run, ask.history) = (run, history);
                (ask, Fields::at("forwardedProps", Value::Object(extra))?)
            } else {
                let protocol = if f.or("stream", true)? { Protocol::AiSdk } else { Protocol::Json };
                let mut ask = blank(protocol, f.get("id")?, question);
                ask.history = history;
                ask.again = match f.get::<String>("trigger")?.as_deref() {
                    None | Some("submit-message") => false,
                    Some("regenerate-message") => true,
                    Some(other) => {
                        let message = format!(
                            "trigger: expected submit-message or regenerate-message, got {}",
                            shorten(other)
                        );
                        return Err(ApiError::field("trigger", message));
                    }
                };
                (ask, Fields::at("", Value::Object(Map::new()))?)
            }
        }
    };
    let f = if is_ag_ui { &mut extra } else { f };
    ask.products = products(f)?;
    ask.order = f.get("order")?;
    ask.locale = f.or("locale", "en".to_owned())?;
    for (name, text) in [("order", ask.order.as_deref()), ("locale", Some(ask.locale.as_str()))] {
        check_id(&f.name(name), text)?;
    }
    let session = match (is_ag_ui, ask.protocol) {
        (true, _) => "threadId",
        (_, _) if ask.history.is_empty() => "session",
        _ => "id",
    };
    check_id(session, ask.session.as_deref())?;
    check_id("runId", ask.run.as_deref())?;
    ask.question = ask.question.trim().to_owned();
    let length = ask.question.chars().count();
    if length == 0 {
        return Err(ApiError::field("question", "question: empty"));
    }
    if length > LONGEST_QUESTION {
        let message = format!("question: at most {LONGEST_QUESTION} characters, got {length}");
        return Err(ApiError::field("question", message));
    }
    Ok(ask)
}

fn blank(protocol: Protocol, session: Option<String>, question: String) -> Ask {
    Ask {
        protocol,
        session,
        run: None,
        question,
        history: Vec::new(),
        products: Vec::new(),
        order: None,
        locale: String::new(),
        again: false,
    }
}

fn check_id(name: &str, id: Option<&str>) -> Result<(), ApiError> {
    let good = |id: &str| (1..=LONGEST_ID).contains(&id.len()) && !id.chars().any(char::is_control);
    match id {
        Some(id) if !good(id) => {
            let message = format!("{name}: must have 1 to {LONGEST_ID} bytes and no control characters");
            Err(ApiError::field(name, message))
        }
        _ => Ok(()),
    }
}

fn products(f: &mut Fields) -> Result<Vec<String>, ApiError> {
    let name = f.name("products");
    let list = match f.value("products") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => {
            let message = format!("{name}: expected a list of product ids, got {}", describe(&other));
            return Err(ApiError::field(name, message));
        }
    };
    if list.len() > MOST_PRODUCTS {
        let message = format!("{name}: at most {MOST_PRODUCTS}, got {}", list.len());
        return Err(ApiError::field(name, message));
    }
    let product = |(i, value): (usize, Value)| {
        let name = format!("{name}[{i}]");
        let Value::String(id) = value else { return Err(wrong::<String>(&name, &value)) };
        check_id(&name, Some(&id))?;
        Ok(id)
    };
    list.into_iter().enumerate().map(product).collect()
}

/// The last question of a conversation and what came before it.
fn conversation(messages: Value) -> Result<(String, Vec<(String, String)>), ApiError> {
    let Value::Array(list) = messages else {
        let message = format!("messages: expected a list, got {}", describe(&messages));
        return Err(ApiError::field("messages", message));
    };
    let (mut turns, mut question) = (Vec::new(), None::<String>);
    for (i, message) in list.into_iter().enumerate() {
        let mut message = Fields::at(&format!("messages[{i}]"), message)?;
        let role = message.get::<String>("role")?;
        let text = text_of(&mut message)?;
        match role.as_deref() {
            Some("user") => question = Some(text),
            Some("assistant") => {
                if let Some(question) = question.take() {
                    turns.push((question, text));
                }
            }
            // Instructions are the operator's; tools and activities are what clients keep of earlier answers.
            Some("system" | "developer" | "tool" | "activity" | "reasoning") => {}
            _ => {
                let name = message.name("role");
                let message = format!("{name}: expected user or assistant");
                return Err(ApiError::field(name, message));
            }
        }
    }
    // A client that regenerates may send the answer that is to be replaced.
    let question = question.or_else(|| turns.pop().map(|(question, _)| question));
    let question = question.ok_or_else(|| ApiError::field("messages", "messages: no message of the user"))?;
    Ok((question, turns))
}

/// The text of a message: of its `parts`, or its `content`.
fn text_of(message: &mut Fields) -> Result<String, ApiError> {
    let (name, parts) = match (message.value("parts"), message.value("content")) {
        (Some(parts), _) => (message.name("parts"), parts),
        (None, Some(content)) => (message.name("content"), content),
        (None, None) => return Ok(String::new()),
    };
    let parts = match parts {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        Value::Object(_) => return Ok(String::new()),
        other => {
            let message = format!("{name}: expected a string or a list of parts, got {}", describe(&other));
            return Err(ApiError::field(name, message));
        }
    };
    let text = |part: &Value| {
        let is_text = part.get("type").and_then(Value::as_str) == Some("text");
        part.get("text").and_then(Value::as_str).filter(|_| is_text).map(str::to_owned)
    };
    Ok(parts.iter().filter_map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Ask, ApiError> {
        ask(body.to_string().as_bytes())
    }

    #[test]
    fn three_forms_ask_the_same() {
        let expected = |protocol| {
            let mut ask = blank(protocol, Some("s".into()), "Is it safe?".into());
            (ask.products, ask.locale) = (vec!["B1".into()], "de".into());
            ask
        };
        let plain =
            json!({ "question": " Is it safe? ", "session": "s", "products": ["B1"], "locale": "de" });
        assert_eq!(read(plain).unwrap(), expected(Protocol::AiSdk));
        let parts =
            json!([{ "type": "step-start" }, { "type": "text", "text": "Is it safe?", "state": "done" }]);
        let sdk = json!({
            "id": "s", "trigger": "submit-message", "messages": [{ "id": "1", "role": "user", "parts": parts }],
            "products": ["B1"], "locale": "de",
        });
        assert_eq!(read(sdk).unwrap(), expected(Protocol::AiSdk));
        let ag_ui = json!({
            "threadId": "s", "runId": "r", "state": {}, "tools": [], "context": [],
            "messages": [{ "id": "1", "role": "user", "content": "Is it safe?" }],
            "forwardedProps": { "products": ["B1"], "locale": "de" },
        });
        assert_eq!(read(ag_ui).unwrap(), Ask { run: Some("r".into()), ..expected(Protocol::AgUi) });
    }

    #[test]
    fn history_and_regeneration() {
        let message =
            |role: &str, text: &str| json!({ "role": role, "parts": [{ "type": "text", "text": text }] });
        let list = [
            message("user", "a"),
            message("assistant", "b"),
            message("user", "c"),
            message("assistant", "d"),
        ];
        let asked = read(json!({ "messages": list, "trigger": "regenerate-message" })).unwrap();
        assert_eq!((asked.question.as_str(), asked.again), ("c", true));
        assert_eq!(asked.history, [("a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn errors_name_the_field() {
        let user = json!([{ "role": "user", "content": "a" }]);
        for (body, param) in [
            (json!({}), "question"),
            (json!({ "question": "" }), "question"),
            (json!({ "question": 1 }), "question"),
            (json!({ "question": "x".repeat(4001) }), "question"),
            (json!({ "question": "a", "messages": [] }), "question"),
            (json!({ "question": "a", "stream": 1 }), "stream"),
            (json!({ "question": "a", "protocol": "x" }), "protocol"),
            (json!({ "question": "a", "session": "" }), "session"),
            (json!({ "question": "a", "products": "B1" }), "products"),
            (json!({ "question": "a", "products": [1] }), "products[0]"),
            (json!({ "question": "a", "products": vec!["a"; 17] }), "products"),
            (json!({ "question": "a", "locale": "x".repeat(129) }), "locale"),
            (json!({ "question": "a", "order": "a\nb" }), "order"),
            (json!({ "messages": [] }), "messages"),
            (json!({ "messages": {} }), "messages"),
            (json!({ "messages": [1] }), "messages[0]"),
            (json!({ "messages": [{ "role": "x" }] }), "messages[0].role"),
            (json!({ "messages": [{ "role": "user", "parts": 1 }] }), "messages[0].parts"),
            (json!({ "messages": user, "trigger": "x" }), "trigger"),
            (
                json!({ "messages": user, "threadId": "t", "forwardedProps": { "order": 1 } }),
                "forwardedProps.order",
            ),
        ] {
            let error = read(body.clone()).expect_err(&body.to_string()).body();
            assert_eq!(error["error"]["param"], param, "{body}: {error}");
        }
    }
}
