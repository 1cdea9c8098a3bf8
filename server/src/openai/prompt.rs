//! What is to be continued: prompts as text or ids, or a conversation.

use millrace_models::text::{RenderOptions, TemplateError, TextError};
use serde_json::{Map, Value, json};

use super::tools::Tools;
use crate::error::ApiError;
use crate::json::{Field, Fields, describe, shorten, wrong};
use crate::service::Loaded;

/// A prompt to be continued.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    /// As the client wrote it, where it did.
    pub(crate) text: Option<String>,
}

/// The prompts in `prompt`: a string, a list of strings, a list of ids, or a list of lists of ids.
///
/// # Errors
/// 400.
pub(crate) fn prompts(fields: &mut Fields, model: &Loaded, max: usize) -> Result<Vec<Prompt>, ApiError> {
    let add_special = fields.or("add_special_tokens", true)?;
    let many = |n: usize| {
        let fits = n <= max;
        let message = || format!("prompt: at most {max} prompts in one request, got {n}");
        if fits { Ok(()) } else { Err(ApiError::field("prompt", message())) }
    };
    match fields.value("prompt") {
        None => Err(ApiError::field("prompt", "prompt: missing")),
        Some(Value::String(text)) => Ok(vec![of_text(text, "prompt", model, add_special)?]),
        Some(Value::Array(list)) => match list.first() {
            None => Err(ApiError::field("prompt", "prompt: empty")),
            Some(Value::Number(_)) => Ok(vec![of_ids(&Value::Array(list), "prompt")?]),
            Some(Value::Array(_)) => {
                many(list.len())?;
                list.iter().enumerate().map(|(i, ids)| of_ids(ids, &format!("prompt[{i}]"))).collect()
            }
            Some(_) => {
                many(list.len())?;
                let text = |(i, value)| match value {
                    Value::String(text) => of_text(text, &format!("prompt[{i}]"), model, add_special),
                    other => Err(wrong::<String>(&format!("prompt[{i}]"), &other)),
                };
                list.into_iter().enumerate().map(text).collect()
            }
        },
        Some(other) => {
            let got = describe(&other);
            Err(ApiError::field(
                "prompt",
                format!("prompt: expected a string, token ids, or a list of either, got {got}"),
            ))
        }
    }
}

fn of_text(text: String, path: &str, model: &Loaded, add_special: bool) -> Result<Prompt, ApiError> {
    if text.is_empty() {
        return Err(ApiError::field(path, format!("{path}: empty")));
    }
    model.check_length(text.len(), path)?;
    let ids = model.tokenizer.encode(&text, add_special).map_err(|e| text_error(path, &e))?;
    Ok(Prompt { ids, text: Some(text) })
}

fn of_ids(ids: &Value, path: &str) -> Result<Prompt, ApiError> {
    let ids = Vec::<u32>::from_value(ids).ok_or_else(|| wrong::<Vec<u32>>(path, ids))?;
    if ids.is_empty() {
        return Err(ApiError::field(path, format!("{path}: empty")));
    }
    Ok(Prompt { ids, text: None })
}

fn text_error(path: &str, error: &TextError) -> ApiError {
    let message = match error {
        TextError::Encode(_) => error.to_string(),
        _ => "cannot be tokenized".into(),
    };
    ApiError::field(path, format!("{path}: {message}"))
}

/// The ids of the conversation in `messages`, written with the model's template.
///
/// # Errors
/// 400.
pub(super) fn conversation(
    fields: &mut Fields,
    model: &Loaded,
    tools: Option<&Tools>,
) -> Result<Prompt, ApiError> {
    let messages = match fields.value("messages") {
        None => return Err(ApiError::field("messages", "messages: missing")),
        Some(Value::Array(list)) if list.is_empty() => {
            return Err(ApiError::field("messages", "messages: empty"));
        }
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(ApiError::field(
                "messages",
                format!("messages: expected a list, got {}", describe(&other)),
            ));
        }
    };
    let mut messages: Vec<Value> = messages
        .into_iter()
        .enumerate()
        .map(|(i, m)| message(&format!("messages[{i}]"), m))
        .collect::<Result<_, _>>()?;

    if let Some(tools) = tools {
        tools.describe(&mut messages);
    }
    let contents: usize = messages.iter().filter_map(|m| m["content"].as_str()).map(str::len).sum();
    let listed = tools.and_then(Tools::for_template).map_or(0, written);
    model.check_length(contents + listed, "messages")?;

    // Templates are programs; they come with the model and never from a client.
    fields.refuse("chat_template", &[])?;
    fields.refuse("documents", &[json!([])])?;
    // The template writes the special tokens.
    fields.refuse("add_special_tokens", &[json!(false)])?;
    fields.refuse("echo", &[json!(false)])?;
    let continue_final_message = fields.or("continue_final_message", false)?;
    let add_generation_prompt = fields.or("add_generation_prompt", !continue_final_message)?;
    if continue_final_message && add_generation_prompt {
        let message = "continue_final_message: cannot be combined with add_generation_prompt";
        return Err(ApiError::field("continue_final_message", message));
    }
    let options = RenderOptions {
        add_generation_prompt,
        continue_final_message,
        tools: tools.and_then(Tools::for_template),
        kwargs: kwargs(fields)?,
        ..RenderOptions::default()
    };
    let Some(template) = &model.template else {
        return Err(ApiError::field(
            "messages",
            "messages: this model has no chat template; use /v1/completions",
        ));
    };
    let ids = template.encode(&model.tokenizer, &messages, &options).map_err(|e| template_error(&e))?;
    Ok(Prompt { ids, text: None })
}

/// The error for a conversation that cannot be written or encoded.
pub(crate) fn template_error(error: &TemplateError) -> ApiError {
    let message = match error {
        TemplateError::Refused(_) | TemplateError::Message { .. } | TemplateError::Options(_) => {
            error.to_string()
        }
        TemplateError::Text(error) => return text_error("messages", error),
        // Where the template lies is not the client's business.
        TemplateError::Failed { line, message, .. } => {
            format!("the chat template fails on this conversation at its line {line}: {message}")
        }
        _ => "the chat template cannot be used".into(),
    };
    ApiError::field("messages", format!("messages: {message}"))
}

/// Bytes of text in a value, which a template writes however it writes the rest.
fn written(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(written).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + written(value)).sum(),
        _ => 0,
    }
}

/// Variables for the template: few, small, and scalars only, so that they cannot make a template work hard.
fn kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    const MAX: usize = 16;
    const MAX_BYTES: usize = 256;
    let name = "chat_template_kwargs";
    let mut kwargs: Map<String, Value> = fields.or(name, Map::new())?;
    if kwargs.len() > MAX {
        return Err(ApiError::field(name, format!("{name}: at most {MAX} entries, got {}", kwargs.len())));
    }
    for (key, value) in &kwargs {
        let what = match value {
            _ if key.len() > MAX_BYTES => "the name is too long",
            Value::Array(_) | Value::Object(_) => "must be a string, a number, true, false or null",
            Value::String(text) if text.len() > MAX_BYTES => "too long",
            _ => continue,
        };
        return Err(ApiError::field(name, format!("{name}: {}: {what}", shorten(key))));
    }
    if let Some(effort) = fields.get::<String>("reasoning_effort")? {
        if effort.len() > MAX_BYTES {
            return Err(ApiError::field("reasoning_effort", "reasoning_effort: too long"));
        }
        kwargs.entry("reasoning_effort").or_insert(effort.into());
    }
    Ok(kwargs)
}

/// A message as templates expect it: content is one string.
fn message(path: &str, value: Value) -> Result<Value, ApiError> {
    let mut fields = Fields::at(path, value)?;
    let missing = |name: &str| ApiError::field(format!("{path}.{name}"), format!("{path}.{name}: missing"));
    let role = fields.get::<String>("role")?.ok_or_else(|| missing("role"))?;
    let role = match role.as_str() {
        "system" | "user" | "assistant" | "tool" => role.as_str(),
        // OpenAI's newer name of the same role, which templates do not know.
        "developer" => "system",
        other => {
            let name = format!("{path}.role");
            let message = format!(
                "{name}: expected system, developer, user, assistant or tool, got {}",
                shorten(other)
            );
            return Err(ApiError::field(name, message));
        }
    };
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    let content = match fields.value("content") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => Some(text_of_parts(&format!("{path}.content"), parts)?),
        Some(other) => {
            let name = format!("{path}.content");
            let message =
                format!("{name}: expected a string or a list of text parts, got {}", describe(&other));
            return Err(ApiError::field(name, message));
        }
        None => None,
    };
    fields.refuse("audio", &[])?;
    fields.refuse("function_call", &[])?;
    fields.refuse("refusal", &[json!("")])?;
    if let Some(name) = fields.get::<String>("name")? {
        message.insert("name".into(), name.into());
    }
    if let Some(id) = fields.get::<String>("tool_call_id")? {
        message.insert("tool_call_id".into(), id.into());
    }
    let calls = fields.value("tool_calls").map(|calls| tool_calls(path, calls)).transpose()?;
    match (content, calls) {
        (None, None) => return Err(missing("content")),
        (content, calls) => {
            message.insert("content".into(), content.map_or(Value::Null, Value::String));
            if let Some(calls) = calls.filter(|c| !c.is_empty()) {
                message.insert("tool_calls".into(), calls.into());
            }
        }
    }
    Ok(Value::Object(message))
}

fn text_of_parts(path: &str, parts: Vec<Value>) -> Result<String, ApiError> {
    let part = |(i, part)| {
        let mut fields = Fields::at(&format!("{path}[{i}]"), part)?;
        match fields.get::<String>("type")?.as_deref() {
            Some("text") => {}
            Some(_) => return Err(ApiError::unsupported(fields.name("type"))),
            None => {
                return Err(ApiError::field(
                    fields.name("type"),
                    format!("{}: missing", fields.name("type")),
                ));
            }
        }
        let text = fields.get::<String>("text")?;
        text.ok_or_else(|| ApiError::field(fields.name("text"), format!("{}: missing", fields.name("text"))))
    };
    let texts: Vec<String> = parts.into_iter().enumerate().map(part).collect::<Result<_, ApiError>>()?;
    Ok(texts.join("\n"))
}

/// Calls in the history of a conversation, for the template to write: what it takes for granted of them.
fn tool_calls(path: &str, calls: Value) -> Result<Vec<Value>, ApiError> {
    let path = format!("{path}.tool_calls");
    let Value::Array(calls) = calls else {
        let message = format!("{path}: expected a list of objects, got {}", describe(&calls));
        return Err(ApiError::field(path, message));
    };
    let missing = |field: &str| ApiError::field(field, format!("{field}: missing"));
    for (index, call) in calls.iter().enumerate() {
        let mut call = Fields::at(&format!("{path}[{index}]"), call.clone())?;
        let field = call.name("function");
        let function = call.value("function").ok_or_else(|| missing(&field))?;
        let mut function = Fields::at(&field, function)?;
        let field = function.name("name");
        function.get::<String>("name")?.ok_or_else(|| missing(&field))?;
        let field = function.name("arguments");
        let object = match function.value("arguments") {
            None | Some(Value::Object(_)) => true,
            Some(Value::String(text)) => {
                text.is_empty() || crate::json::parse(text.as_bytes()).is_ok_and(|value| value.is_object())
            }
            Some(_) => false,
        };
        if !object {
            return Err(ApiError::field(&field, format!("{field}: expected a JSON object as a string")));
        }
    }
    Ok(calls)
}
