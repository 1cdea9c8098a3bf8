//! `/v1/embeddings` in OpenAI's shape, with vLLM's `truncate_prompt_tokens`.
//!
//! Inputs are computed in batches of like length, and others may go between them: a question of the assistant that needs
//! the encoder gets its turn, and a client that has gone away is noticed.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::StatusCode;
use millrace_engine::encoder::EncodeError;
use serde::Serialize;
use serde_json::Value;

use crate::body::{Received, Response, json_response};
use crate::embed::TextEncoder;
use crate::error::ApiError;
use crate::json::{Field, Fields, describe, shorten, wrong};
use crate::service::Service;

/// Inputs of one request, as in OpenAI's API.
const MOST_INPUTS: usize = 2048;
/// Tokens of one request, as in OpenAI's API.
const MOST_TOKENS: usize = 300_000;
/// Tokens between two turns of the encoder: some tens of milliseconds.
const BATCH_TOKENS: usize = 2048;

/// How a vector is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Float,
    Base64,
}

#[derive(Debug)]
struct Wanted {
    ids: Vec<Vec<u32>>,
    format: Format,
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Entry>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// `POST /v1/embeddings`.
///
/// # Errors
/// 400 naming the field, 404 where no encoder or another one is served, 503 at the end of the process.
pub(crate) async fn embeddings(service: &Arc<Service>, body: Received<'_>) -> Result<Response, ApiError> {
    let served = service.embeddings().ok_or_else(ApiError::no_embeddings)?;
    let mut running = service.admit()?;
    let (bytes, encoder, name) = (body.bytes.clone(), served.encoder.clone(), served.name.clone());
    let Wanted { ids, format } =
        service.compute(body.bytes.len(), move || parse(&bytes, &encoder, &name)).await?;
    drop(body);

    let tokens = ids.iter().map(Vec::len).sum();
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|index| ids[*index].len());
    let mut ids = ids;
    let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); ids.len()];
    let mut rest = &order[..];
    while !rest.is_empty() {
        let mut room = BATCH_TOKENS;
        let fit = rest.iter().take_while(|index| {
            let fits = room >= ids[**index].len();
            room = room.saturating_sub(ids[**index].len());
            fits
        });
        let (now, later) = rest.split_at(fit.count().max(1));
        rest = later;
        let batch: Vec<Vec<u32>> = now.iter().map(|index| std::mem::take(&mut ids[*index])).collect();
        let encoder = served.encoder.clone();
        let work = async move { tokio::task::spawn_blocking(move || encoder.embed_ids(&batch)).await };
        let done = tokio::select! {
            biased;
            () = running.aborted() => return Err(ApiError::draining()),
            done = work => done,
        };
        let done = done.map_err(|error| {
            tracing::error!(%error, "while embedding");
            ApiError::internal()
        })?;
        for (index, vector) in now.iter().zip(done.map_err(|error| refused(&error))?) {
            vectors[*index] = vector;
        }
    }

    let vector = |vector: Vec<f32>| match format {
        Format::Float => Vector::Float(vector),
        Format::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            Vector::Base64(BASE64_STANDARD.encode(bytes))
        }
    };
    let entry = |(index, v)| Entry { object: "embedding", index, embedding: vector(v) };
    let answer = Answer {
        object: "list",
        data: vectors.into_iter().enumerate().map(entry).collect(),
        model: &served.name,
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
    };
    Ok(json_response(StatusCode::OK, &answer))
}

/// What was wrong with ids that were checked: nothing the client could mend.
fn refused(error: &EncodeError) -> ApiError {
    tracing::error!(%error, "while embedding");
    ApiError::internal()
}

fn parse(body: &[u8], encoder: &TextEncoder, name: &str) -> Result<Wanted, ApiError> {
    let mut fields = Fields::body(body)?;
    let f = &mut fields;
    match f.get::<String>("model")? {
        Some(model) if model != name => return Err(ApiError::no_model(&model, name)),
        _ => {}
    }
    let format = match f.get::<String>("encoding_format")?.as_deref() {
        None | Some("float") => Format::Float,
        Some("base64") => Format::Base64,
        Some(other) => {
            let message = format!("encoding_format: expected float or base64, got {}", shorten(other));
            return Err(ApiError::field("encoding_format", message));
        }
    };
    let dim = crate::embed::Embed::dim(encoder);
    if let Some(wanted) = f.get::<u32>("dimensions")?
        && wanted as usize != dim
    {
        // A vector may be shortened only where the encoder was trained for it.
        let message =
            format!("dimensions: {name} gives vectors of {dim} numbers and no others, got {wanted}");
        return Err(ApiError::field("dimensions", message));
    }
    f.get::<String>("user")?;
    let cut = cut(f, encoder.max_tokens())?;
    let inputs = inputs(f)?;
    for unknown in f.rest() {
        tracing::debug!(field = shorten(unknown), "unknown field ignored");
    }

    let (one, count) = (inputs.one, inputs.list.len());
    if count > MOST_INPUTS {
        let message = format!("input: at most {MOST_INPUTS} inputs in one request, got {count}");
        return Err(ApiError::field("input", message));
    }
    let (mut ids, mut tokens) = (Vec::with_capacity(count), 0);
    for (index, input) in inputs.list.into_iter().enumerate() {
        let path = if one { "input".to_owned() } else { format!("input[{index}]") };
        let input = of(input, &path, encoder, cut)?;
        tokens += input.len();
        if tokens > MOST_TOKENS {
            let message = format!("{path}: at most {MOST_TOKENS} tokens in one request");
            return Err(ApiError::field(path, message));
        }
        ids.push(input);
    }
    Ok(Wanted { ids, format })
}

/// Tokens that an input is cut to; `None` where one that is too long is refused.
fn cut(fields: &mut Fields, max: usize) -> Result<Option<usize>, ApiError> {
    match fields.get::<i64>("truncate_prompt_tokens")? {
        None => Ok(None),
        Some(-1) => Ok(Some(max)),
        Some(count) if (3..=max as i64).contains(&count) => Ok(Some(count as usize)),
        Some(count) => {
            let message = format!("truncate_prompt_tokens: expected -1 or 3 to {max}, got {count}");
            Err(ApiError::field("truncate_prompt_tokens", message))
        }
    }
}

enum Input {
    Text(String),
    Ids(Vec<u32>),
}

struct Inputs {
    /// Whether the client gave no list.
    one: bool,
    list: Vec<Input>,
}

fn inputs(fields: &mut Fields) -> Result<Inputs, ApiError> {
    let list = match fields.value("input") {
        None => return Err(ApiError::field("input", "input: missing")),
        Some(Value::String(text)) => return Ok(Inputs { one: true, list: vec![Input::Text(text)] }),
        Some(Value::Array(list)) => list,
        Some(other) => {
            let got = describe(&other);
            let message = format!("input: expected a string, a list of strings, or token ids, got {got}");
            return Err(ApiError::field("input", message));
        }
    };
    let ids = |path: &str, value: &Value| {
        Vec::<u32>::from_value(value).map(Input::Ids).ok_or_else(|| wrong::<Vec<u32>>(path, value))
    };
    match list.first() {
        None => Err(ApiError::field("input", "input: empty")),
        Some(Value::Number(_)) => Ok(Inputs { one: true, list: vec![ids("input", &Value::Array(list))?] }),
        Some(_) => {
            let input = |(index, value)| match value {
                Value::String(text) => Ok(Input::Text(text)),
                Value::Array(_) => ids(&format!("input[{index}]"), &value),
                other => Err(wrong::<String>(&format!("input[{index}]"), &other)),
            };
            Ok(Inputs {
                one: false,
                list: list.into_iter().enumerate().map(input).collect::<Result<_, _>>()?,
            })
        }
    }
}

fn of(input: Input, path: &str, encoder: &TextEncoder, cut: Option<usize>) -> Result<Vec<u32>, ApiError> {
    let mut ids = match input {
        Input::Text(text) if text.is_empty() => return Err(ApiError::field(path, format!("{path}: empty"))),
        Input::Text(text) => {
            let ids = encoder.tokenize_whole(&text);
            ids.map_err(|error| ApiError::field(path, format!("{path}: {error}")))?
        }
        Input::Ids(ids) if ids.is_empty() => return Err(ApiError::field(path, format!("{path}: empty"))),
        Input::Ids(ids) => {
            if let Some(id) = ids.iter().find(|id| **id as usize >= encoder.vocab()) {
                return Err(ApiError::field(path, format!("{path}: there is no token {id}")));
            }
            ids
        }
    };
    let most = encoder.max_tokens();
    match cut {
        // The last token closes the text.
        Some(cut) if ids.len() > cut => {
            let last = ids.last().copied();
            ids.truncate(cut - 1);
            ids.extend(last);
        }
        None if ids.len() > most => {
            let message = format!(
                "{path}: {} tokens, and the encoder takes {most}; truncate_prompt_tokens -1 cuts what is longer",
                ids.len()
            );
            return Err(ApiError::too_long(path, message));
        }
        _ => {}
    }
    Ok(ids)
}
