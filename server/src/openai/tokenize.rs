//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::json;

use super::{models, prompt};
use crate::body::{Received, Response, json_response};
use crate::error::ApiError;
use crate::json::Fields;
use crate::service::Service;

/// `POST /tokenize` of a `prompt` or of `messages`.
pub(crate) async fn tokenize(service: &Arc<Service>, body: Received<'_>) -> Result<Response, ApiError> {
    let (shared, bytes) = (service.clone(), body.bytes.clone());
    let work = move || {
        let model = shared.loaded()?;
        let mut fields = Fields::body(&bytes)?;
        check_model(&shared, &mut fields)?;
        let strings = fields.or("return_token_strs", false)?;
        let conversation = fields.value("messages");
        let ids = match conversation {
            None => {
                let add_special = fields.or("add_special_tokens", true)?;
                let text: String = fields
                    .get("prompt")?
                    .ok_or_else(|| ApiError::field("prompt", "prompt or messages: missing"))?;
                let ids = model.tokenizer.encode(&text, add_special);
                ids.map_err(|e| ApiError::field("prompt", format!("prompt: {e}")))?
            }
            Some(messages) => {
                fields.put("messages", messages);
                fields.refuse("prompt", &[])?;
                fields.refuse("tools", &[json!([])])?;
                prompt::conversation(&mut fields, model, None)?.ids
            }
        };
        let names = strings.then(|| ids.iter().map(|&id| model.tokenizer.token(id)).collect::<Vec<_>>());
        Ok(json!({
            "count": ids.len(),
            "max_model_len": model.handle.max_model_len(),
            "tokens": ids,
            "token_strs": names,
        }))
    };
    Ok(json_response(StatusCode::OK, &service.compute(body.bytes.len(), work).await?))
}

/// `POST /detokenize` of `tokens`.
pub(crate) async fn detokenize(service: &Arc<Service>, body: Received<'_>) -> Result<Response, ApiError> {
    let (shared, bytes) = (service.clone(), body.bytes.clone());
    let work = move || {
        let tokenizer = &shared.loaded()?.tokenizer;
        let mut fields = Fields::body(&bytes)?;
        check_model(&shared, &mut fields)?;
        let tokens: Vec<u32> =
            fields.get("tokens")?.ok_or_else(|| ApiError::field("tokens", "tokens: missing"))?;
        if let Some(id) = tokens.iter().find(|&&id| tokenizer.token(id).is_none()) {
            return Err(ApiError::field("tokens", format!("tokens: there is no token {id}")));
        }
        Ok(json!({ "prompt": tokenizer.decode(&tokens, false) }))
    };
    Ok(json_response(StatusCode::OK, &service.compute(body.bytes.len(), work).await?))
}

fn check_model(service: &Service, fields: &mut Fields) -> Result<(), ApiError> {
    match fields.get::<String>("model")? {
        Some(name) => models::check(service, &name),
        None => Ok(()),
    }
}
