//! `/v1/models`.

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::body::{Response, json_response};
use crate::error::ApiError;
use crate::service::Service;

pub(crate) fn models(service: &Service) -> Result<Response, ApiError> {
    let mut cards: Vec<Value> =
        service.config.model_names.iter().map(|name| card(service, name)).collect::<Result<_, _>>()?;
    cards.extend(encoder(service));
    Ok(json_response(StatusCode::OK, &json!({ "object": "list", "data": cards })))
}

pub(crate) fn model(service: &Service, name: &str) -> Result<Response, ApiError> {
    if let Some(card) = encoder(service).filter(|card| card["id"] == name) {
        return Ok(json_response(StatusCode::OK, &card));
    }
    check(service, name)?;
    Ok(json_response(StatusCode::OK, &card(service, name)?))
}

/// The card of the encoder that `/v1/embeddings` serves.
fn encoder(service: &Service) -> Option<Value> {
    let served = service.embeddings()?;
    Some(json!({
        "id": served.name,
        "object": "model",
        "created": service.started,
        "owned_by": "millrace",
        "root": served.name,
        "parent": null,
        "max_model_len": served.encoder.max_tokens(),
    }))
}

/// Refuses names under which nothing is served.
///
/// # Errors
/// 404.
pub(crate) fn check(service: &Service, name: &str) -> Result<(), ApiError> {
    let names = &service.config.model_names;
    if names.iter().any(|n| n == name) { Ok(()) } else { Err(ApiError::no_model(name, &names[0])) }
}

fn card(service: &Service, name: &str) -> Result<Value, ApiError> {
    let root = service.config.model_root.as_ref().unwrap_or(&service.config.model_names[0]);
    Ok(json!({
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "millrace",
        "root": root,
        "parent": null,
        "max_model_len": service.loaded()?.handle.max_model_len(),
    }))
}
