//! `PUT /v1/feedback` takes a vote, `GET /v1/feedback?messageId=…` tells what was voted.

use std::collections::BTreeSet;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::record::{Implicit, Opinion, Reason, Vote};
use super::token::TokenError;
use super::{Feedback, VoteError, now};
use crate::auth::Tenant;
use crate::body::{self, Response, json_response};
use crate::config::Limits;
use crate::error::ApiError;
use crate::json::{Fields, describe, shorten, wrong};
use crate::service::Service;

/// Bytes of a request.
const MOST_BYTES: usize = 64 << 10;
/// Characters of a comment.
const LONGEST_COMMENT: usize = 2000;
/// Bytes of an id.
const LONGEST_ID: usize = 128;
/// Sentences that can be voted on.
const MOST_SENTENCES: u32 = 10_000;
const TOKEN: &str = "x-feedback-token";

/// `PUT /v1/feedback`.
///
/// # Errors
/// 400, 401, 403, 404, 409, 413; 503 where the vote could not be made durable.
pub(crate) async fn vote(
    service: &Service,
    headers: &HeaderMap,
    body: Incoming,
    tenant: &Tenant,
) -> Result<Response, ApiError> {
    let feedback = open(service)?;
    let limits = Limits { body_bytes: MOST_BYTES, ..service.config.limits };
    let body = body::read(headers, body, &limits, &service.bodies).await?;
    let Request { mut vote, token } = request(&body.bytes)?;
    if let Some(key) = header(headers, "idempotency-key")? {
        if vote.key.as_ref().is_some_and(|own| *own != key) {
            let message = "idempotencyKey: the Idempotency-Key header says otherwise";
            return Err(ApiError::field("idempotencyKey", message));
        }
        check_id("Idempotency-Key", &key)?;
        vote.key = Some(key);
    }
    let token = token.or(header(headers, TOKEN)?);
    check(feedback, token.as_deref(), &vote.message, tenant)?;
    if let Some(shopper) = header(headers, "x-shopper-token")? {
        vote.user = feedback.key().hash("user", &shopper);
    }
    let (message, part) = (vote.message.clone(), vote.part.clone());
    let state = feedback.vote(vote).await?;
    let mut answer = json!(state);
    answer["messageId"] = message.into();
    answer["part"] = part.into();
    Ok(json_response(StatusCode::OK, &answer))
}

/// `GET /v1/feedback?messageId=…`, with the token in `X-Feedback-Token`.
///
/// # Errors
/// 400, 401, 403, 404.
pub(crate) async fn read(
    service: &Service,
    headers: &HeaderMap,
    query: Option<&str>,
    tenant: &Tenant,
) -> Result<Response, ApiError> {
    let feedback = open(service)?;
    let mut pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let message = pairs.find(|(name, _)| *name == "messageId").map(|(_, value)| value);
    let Some(message) = message else {
        return Err(ApiError::field("messageId", "messageId: needed, as in /v1/feedback?messageId=msg_…"));
    };
    check_id("messageId", message)?;
    check(feedback, header(headers, TOKEN)?.as_deref(), message, tenant)?;
    let parts = feedback.votes(message).await?;
    Ok(json_response(StatusCode::OK, &json!({ "messageId": message, "parts": parts })))
}

fn open(service: &Service) -> Result<&Arc<Feedback>, ApiError> {
    let message = "this server keeps no feedback (serve --feedback DIR makes it)";
    service.feedback().ok_or_else(|| ApiError::not_found("feedback_disabled", message))
}

fn header(headers: &HeaderMap, name: &str) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str().map(|text| Some(text.to_owned()));
    text.map_err(|_| ApiError::field(name, format!("{name}: not printable ASCII")))
}

fn check(feedback: &Feedback, token: Option<&str>, message: &str, tenant: &Tenant) -> Result<(), ApiError> {
    let Some(token) = token else {
        let message =
            "feedbackToken: needed; the answer's metadata has it (for GET in the header X-Feedback-Token)";
        return Err(ApiError::missing_token("feedbackToken", message));
    };
    let tenant = tenant.salt(None).unwrap_or_default();
    feedback.key().check(token, message, &tenant, now()).map_err(|error| {
        let code = match error {
            TokenError::Forged => "invalid_feedback_token",
            TokenError::Expired => "expired_feedback_token",
        };
        ApiError::forbidden(code, "feedbackToken", format!("feedbackToken: {error}"))
    })
}

struct Request {
    vote: Vote,
    token: Option<String>,
}

fn request(body: &[u8]) -> Result<Request, ApiError> {
    let mut f = Fields::body(body)?;
    let message: Option<String> = f.get("messageId")?;
    let message = message.ok_or_else(|| ApiError::field("messageId", "messageId: needed"))?;
    check_id("messageId", &message)?;
    let part = f.or("part", "answer".to_owned())?;
    check_part(&part)?;
    let value = match f.get::<String>("value")? {
        None => None,
        Some(name) => Some(one_of("value", &name, &Opinion::ALL, Opinion::name)?),
    };
    let mut reasons = BTreeSet::new();
    match f.value("reasons") {
        None => {}
        Some(Value::Array(names)) => {
            for (i, name) in names.iter().enumerate() {
                let field = format!("reasons[{i}]");
                let name = name.as_str().ok_or_else(|| wrong::<String>(&field, name))?;
                reasons.insert(one_of(&field, name, &Reason::ALL, Reason::name)?);
            }
        }
        Some(other) => {
            let message = format!("reasons: expected a list of strings, got {}", describe(&other));
            return Err(ApiError::field("reasons", message));
        }
    }
    let comment = f.get::<String>("comment")?.filter(|comment| !comment.trim().is_empty());
    let length = comment.as_ref().map_or(0, |comment| comment.chars().count());
    if length > LONGEST_COMMENT {
        let message = format!("comment: at most {LONGEST_COMMENT} characters, got {length}");
        return Err(ApiError::field("comment", message));
    }
    let implicit = match f.value("implicit") {
        None => Implicit::default(),
        Some(value) => implicit(Fields::at("implicit", value)?)?,
    };
    let key: Option<String> = f.get("idempotencyKey")?;
    if let Some(key) = &key {
        check_id("idempotencyKey", key)?;
    }
    let token = f.get("feedbackToken")?;
    refuse_rest(&f, "")?;
    if value.is_none() {
        for (name, given) in [("reasons", !reasons.is_empty()), ("comment", comment.is_some())] {
            if given {
                return Err(ApiError::field(name, format!("{name}: belongs to a vote; give value too")));
            }
        }
        if implicit.is_empty() {
            return Err(ApiError::field("value", "value: needed, unless implicit tells something"));
        }
    }
    let vote = Vote { at: now(), message, part, user: String::new(), key, value, reasons, comment, implicit };
    Ok(Request { vote, token })
}

fn implicit(mut f: Fields) -> Result<Implicit, ApiError> {
    let mut clicked_refs = BTreeSet::new();
    match f.value("clickedRefs") {
        None => {}
        Some(Value::Array(ids)) if ids.len() <= Implicit::MOST_REFS => {
            for (i, id) in ids.iter().enumerate() {
                let field = format!("implicit.clickedRefs[{i}]");
                let id = id.as_str().ok_or_else(|| wrong::<String>(&field, id))?;
                check_id(&field, id)?;
                clicked_refs.insert(id.to_owned());
            }
        }
        Some(other) => {
            let (name, most) = ("implicit.clickedRefs", Implicit::MOST_REFS);
            let message = format!("{name}: expected a list of at most {most} ids, got {}", describe(&other));
            return Err(ApiError::field(name, message));
        }
    }
    let (regenerated, copied) = (f.or("regenerated", false)?, f.or("copied", false)?);
    let dwell_ms = f.or("dwellMs", 0u32)?.into();
    refuse_rest(&f, "implicit.")?;
    Ok(Implicit { clicked_refs, regenerated, copied, dwell_ms })
}

fn refuse_rest(f: &Fields, path: &str) -> Result<(), ApiError> {
    match f.rest().next() {
        None => Ok(()),
        Some(name) => {
            let name = format!("{path}{name}");
            let message = format!("{}: there is no such field", shorten(&name));
            Err(ApiError::field(name, message))
        }
    }
}

fn one_of<T: Copy>(
    field: &str,
    name: &str,
    all: &[T],
    of: impl Fn(T) -> &'static str,
) -> Result<T, ApiError> {
    all.iter().copied().find(|&one| of(one) == name).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|&one| of(one)).collect();
        ApiError::field(
            field,
            format!("{field}: expected one of {}, got {}", names.join(", "), shorten(name)),
        )
    })
}

fn check_id(name: &str, id: &str) -> Result<(), ApiError> {
    let good = (1..=LONGEST_ID).contains(&id.len()) && !id.chars().any(char::is_control);
    let message = || format!("{name}: must have 1 to {LONGEST_ID} bytes and no control characters");
    if good { Ok(()) } else { Err(ApiError::field(name, message())) }
}

fn check_part(part: &str) -> Result<(), ApiError> {
    let good = match part.split_once(':') {
        None => part == "answer",
        Some(("card", id)) => check_id("part", id).is_ok(),
        Some(("sentence", number)) => {
            number.parse::<u32>().is_ok_and(|n| n < MOST_SENTENCES && n.to_string() == number)
        }
        Some(_) => false,
    };
    let message = || format!("part: expected answer, card:ID or sentence:NUMBER, got {}", shorten(part));
    if good { Ok(()) } else { Err(ApiError::field("part", message())) }
}

impl From<VoteError> for ApiError {
    fn from(error: VoteError) -> ApiError {
        let message = error.to_string();
        match error {
            VoteError::KeyReused => ApiError::conflict("idempotency_key_reused", "idempotencyKey", message),
            VoteError::Forgotten => ApiError::not_found("message_deleted", &message),
            VoteError::TooManyParts => ApiError::field("part", format!("part: {message}")),
            VoteError::NotStored => ApiError::unavailable("feedback_not_stored", &message),
            VoteError::Busy => ApiError::unavailable("feedback_busy", &message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_request() {
        let body = json!({
            "messageId": "msg_1", "part": "card:c1", "value": "dislike", "reasons": ["wrong", "too_long"],
            "comment": "No.", "implicit": { "clickedRefs": ["B1"], "copied": true, "dwellMs": 5 },
            "idempotencyKey": "k", "feedbackToken": "t",
        });
        let Request { vote, token } = request(body.to_string().as_bytes()).unwrap();
        assert_eq!(
            (vote.value, vote.reasons.len(), token.as_deref()),
            (Some(Opinion::Dislike), 2, Some("t"))
        );
        assert_eq!((vote.implicit.dwell_ms, vote.key.as_deref()), (5, Some("k")));
    }

    #[test]
    fn errors_name_the_field() {
        let base = json!({ "messageId": "m", "value": "like" });
        let many: Vec<String> = (0..65).map(|i| i.to_string()).collect();
        for (name, value, param) in [
            ("messageId", json!(null), "messageId"),
            ("messageId", json!(""), "messageId"),
            ("messageId", json!("x".repeat(129)), "messageId"),
            ("messageId", json!(7), "messageId"),
            ("part", json!("cards:1"), "part"),
            ("part", json!("card:"), "part"),
            ("part", json!("sentence:+1"), "part"),
            ("part", json!("sentence:99999999999"), "part"),
            ("value", json!("love"), "value"),
            ("value", json!(true), "value"),
            ("value", json!(null), "value"),
            ("reasons", json!("wrong"), "reasons"),
            ("reasons", json!(["wrong", "price"]), "reasons[1]"),
            ("reasons", json!([1]), "reasons[0]"),
            ("comment", json!("x".repeat(2001)), "comment"),
            ("implicit", json!([]), "implicit"),
            ("implicit", json!({ "clickedRefs": many }), "implicit.clickedRefs"),
            ("implicit", json!({ "clickedRefs": [""] }), "implicit.clickedRefs[0]"),
            ("implicit", json!({ "dwellMs": -1 }), "implicit.dwellMs"),
            ("implicit", json!({ "bought": true }), "implicit.bought"),
            ("idempotencyKey", json!("\n"), "idempotencyKey"),
            ("score", json!(1), "score"),
        ] {
            let mut body = base.clone();
            body[name] = value;
            let refused = request(body.to_string().as_bytes()).err();
            let error = refused.unwrap_or_else(|| panic!("{body} was taken")).body();
            assert_eq!(error["error"]["param"], param, "{body}: {error}");
        }
        let lone = json!({ "messageId": "m", "comment": "x" });
        let error = request(lone.to_string().as_bytes()).err().unwrap().body();
        assert_eq!(error["error"]["param"], "comment");
    }
}
