//! A body becomes a [`Generation`], or an error that names the field. Past this line only the engine checks again: the
//! bounds of sampling parameters, which are its own.

use std::collections::HashSet;
use std::sync::Arc;

use millrace_engine::SamplingParams;
use millrace_models::text::StopStrings;
use serde_json::{Map, Value, json};

use super::choice::Rules;
use super::models;
use super::prompt::{self, Prompt};
use super::structured::{self, Wanted};
use super::tools::Tools;
use crate::config::Limits;
use crate::error::ApiError;
use crate::json::{Field, Fields, describe, shorten, wrong};
use crate::service::{Loaded, Service};

/// Which of the two APIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Api {
    Chat,
    Completion,
}

/// A request for text.
pub(crate) struct Generation {
    /// The model's name as the client gave it.
    pub(crate) model: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) prompts: Vec<Prompt>,
    /// Of all prompts; `max_tokens` is set for each by [`Generation::max_tokens`].
    pub(crate) params: SamplingParams,
    pub(crate) n: u32,
    pub(crate) priority: i32,
    pub(crate) cache_salt: Option<String>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) stream: Option<StreamOptions>,
    pub(crate) show: Show,
    /// What the answer must look like.
    pub(super) form: Option<Wanted>,
    pub(super) tools: Option<Tools>,
    max_tokens: Option<u32>,
    api: Api,
}

/// Which usage a stream reports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamOptions {
    /// Once, at the end.
    pub(crate) include_usage: bool,
    /// With every chunk.
    pub(crate) continuous: bool,
}

/// What the answer shows beside text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Show {
    pub(crate) logprobs: bool,
    pub(crate) prompt_logprobs: bool,
    /// Tokens in log-probabilities are named by id.
    pub(crate) tokens_as_ids: bool,
    pub(crate) token_ids: bool,
    /// The prompt's text comes before the answer's.
    pub(crate) echo: bool,
}

impl Generation {
    /// Tokens that a prompt may still get: as many as asked for, by default 16 for a completion and all that fit for a
    /// chat.
    ///
    /// # Errors
    /// 400 where they do not fit.
    pub(crate) fn max_tokens(&self, prompt: &Prompt, max_model_len: usize) -> Result<u32, ApiError> {
        let (length, param) = match self.api {
            Api::Chat => (prompt.ids.len(), "messages"),
            Api::Completion => (prompt.ids.len(), "prompt"),
        };
        let wanted = self.max_tokens.unwrap_or(1) as usize;
        let room = max_model_len.saturating_sub(length);
        if wanted > room {
            let message = format!(
                "the model's context is {max_model_len} tokens long, but {} were asked for: {length} in {param} and {wanted} \
                 to be generated",
                length + wanted
            );
            return Err(ApiError::too_long(param, message));
        }
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        Ok(match (self.max_tokens, self.api) {
            (Some(tokens), _) => tokens,
            (None, Api::Completion) => room.min(16),
            (None, Api::Chat) => room,
        })
    }
}

/// Reads a body.
///
/// # Errors
/// 400; 404 for the model's name.
pub(crate) fn generation(
    api: Api,
    body: &[u8],
    service: &Service,
    model: &Loaded,
) -> Result<Generation, ApiError> {
    let limits = &service.config.limits;
    let mut fields = Fields::body(body)?;
    let f = &mut fields;
    let name: Option<String> = f.get("model")?;
    if let Some(name) = &name {
        models::check(service, name)?;
    }
    refuse_unsupported(f, api)?;
    let form = structured::wanted(f)?;
    let tools = Tools::of(f, model)?;
    // Before the prompt: what is refused for its size is not tokenised.
    let form = match &tools {
        Some(tools) => tools.grammar(form)?,
        None => form,
    };
    let stream = stream(f)?;
    let echo = api == Api::Completion && f.or("echo", false)?;
    let (max_tokens, prompt_only) = max_tokens(f, echo)?;
    let (logprobs, prompt_logprobs, show) = logprobs(f, api, echo, stream.is_some(), limits)?;
    let n = choices(f)?;
    let (mut params, mut rules) = sampling(f, model, limits, prompt_only)?;
    params.logprobs = logprobs;
    params.prompt_logprobs = prompt_logprobs;
    let priority = f.or("priority", 0)?;
    let cache_salt: Option<String> = f.get("cache_salt")?;
    if cache_salt.as_deref() == Some("") {
        return Err(ApiError::field("cache_salt", "cache_salt: empty"));
    }
    let id: Option<String> = f.get("request_id")?;
    if id.as_ref().is_some_and(|id| id.is_empty() || id.len() > 128) {
        return Err(ApiError::field("request_id", "request_id: must have 1 to 128 bytes"));
    }
    // Read by others, or only hints: of the right type is enough.
    f.get::<String>("user")?;
    f.get::<Map<String, Value>>("metadata")?;
    let cut = truncation(f)?;

    let mut prompts = match api {
        Api::Chat => vec![prompt::conversation(f, model, tools.as_ref())?],
        Api::Completion => prompt::prompts(f, model, limits.choices)?,
    };
    if prompts.len() * n as usize > limits.choices {
        let message =
            format!("n: at most {} sequences in one request, got {} × {n}", limits.choices, prompts.len());
        return Err(ApiError::field("n", message));
    }
    for prompt in &mut prompts {
        cut.apply(prompt, model.handle.max_model_len());
    }
    for unknown in f.rest() {
        tracing::debug!(field = shorten(unknown), "unknown field ignored");
    }
    if let Some(tools) = &tools {
        // Calls are found by their marks.
        rules.skip_special_tokens &= !tools.needs_special(model);
    }
    let rules = Arc::new(rules);
    Ok(Generation {
        model: name,
        id,
        prompts,
        params,
        n,
        priority,
        cache_salt,
        rules,
        stream,
        show,
        form,
        tools,
        max_tokens,
        api,
    })
}

/// Fields of OpenAI's or vLLM's API that would change the answer and are not implemented, with the values that ask for
/// nothing.
fn refuse_unsupported(f: &mut Fields, api: Api) -> Result<(), ApiError> {
    if api == Api::Completion {
        f.refuse("tools", &[json!([])])?;
        f.refuse("tool_choice", &[json!("none"), json!("auto")])?;
    }
    f.refuse("functions", &[json!([])])?;
    f.refuse("function_call", &[json!("none"), json!("auto")])?;
    f.refuse("suffix", &[json!("")])?;
    f.refuse("modalities", &[json!(["text"])])?;
    f.refuse("service_tier", &[json!("auto"), json!("default")])?;
    f.refuse("store", &[json!(false)])?;
    f.refuse("use_beam_search", &[json!(false)])?;
    f.refuse("early_stopping", &[json!(false)])?;
    f.refuse("length_penalty", &[json!(1), json!(1.0)])?;
    f.refuse("spaces_between_special_tokens", &[json!(true)])?;
    for list in ["bad_words", "logits_processors", "allowed_token_ids"] {
        f.refuse(list, &[json!([])])?;
    }
    for name in [
        "audio",
        "prediction",
        "web_search_options",
        "structural_tag",
        "guided_decoding_backend",
        "guided_whitespace_pattern",
        "prompt_embeds",
        "mm_processor_kwargs",
        "kv_transfer_params",
        "vllm_xargs",
    ] {
        f.refuse(name, &[])?;
    }
    Ok(())
}

fn stream(f: &mut Fields) -> Result<Option<StreamOptions>, ApiError> {
    let stream = f.or("stream", false)?;
    let Some(options) = f.value("stream_options") else {
        return Ok(stream.then(StreamOptions::default));
    };
    if !stream {
        return Err(ApiError::field("stream_options", "stream_options: only allowed with stream: true"));
    }
    let mut options = Fields::at("stream_options", options)?;
    Ok(Some(StreamOptions {
        include_usage: options.or("include_usage", false)?,
        continuous: options.or("continuous_usage_stats", false)?,
    }))
}

/// `max_tokens`, and whether it is 0 because only the prompt is of interest.
fn max_tokens(f: &mut Fields, echo: bool) -> Result<(Option<u32>, bool), ApiError> {
    let old: Option<u32> = f.get("max_tokens")?;
    let new: Option<u32> = f.get("max_completion_tokens")?;
    let name = if new.is_some() { "max_completion_tokens" } else { "max_tokens" };
    match new.or(old) {
        // The engine samples one token, which is not shown.
        Some(0) if echo => Ok((Some(1), true)),
        Some(0) => Err(ApiError::field(name, format!("{name}: must be at least 1, got 0"))),
        tokens => Ok((tokens, false)),
    }
}

fn logprobs(
    f: &mut Fields,
    api: Api,
    echo: bool,
    stream: bool,
    limits: &Limits,
) -> Result<(Option<u32>, Option<u32>, Show), ApiError> {
    let bounded = |f: &mut Fields, name: &str| match f.get::<u32>(name)? {
        Some(n) if n > limits.logprobs => {
            Err(ApiError::field(name, format!("{name}: must be from 0 to {}, got {n}", limits.logprobs)))
        }
        n => Ok(n),
    };
    let logprobs = match api {
        Api::Completion => bounded(f, "logprobs")?,
        Api::Chat => {
            let wanted = f.or("logprobs", false)?;
            match bounded(f, "top_logprobs")? {
                Some(top) if top > 0 && !wanted => {
                    return Err(ApiError::field(
                        "top_logprobs",
                        "top_logprobs: only allowed with logprobs: true",
                    ));
                }
                top => wanted.then_some(top.unwrap_or(0)),
            }
        }
    };
    let asked = bounded(f, "prompt_logprobs")?;
    if asked.is_some() && stream {
        return Err(ApiError::field("prompt_logprobs", "prompt_logprobs: not available with stream: true"));
    }
    let show = Show {
        logprobs: logprobs.is_some(),
        prompt_logprobs: asked.is_some(),
        tokens_as_ids: f.or("return_tokens_as_token_ids", false)?,
        token_ids: f.or("return_token_ids", false)?,
        echo,
    };
    // An echoed prompt is shown like the answer, log-probabilities included.
    let echoed = logprobs.filter(|_| echo);
    Ok((logprobs, asked.max(echoed), show))
}

fn choices(f: &mut Fields) -> Result<u32, ApiError> {
    let n: u32 = f.or("n", 1)?;
    match f.get::<u32>("best_of")? {
        Some(best_of) if best_of != n => Err(ApiError::field(
            "best_of",
            format!("best_of: only supported where equal to n, which is {n}, got {best_of}"),
        )),
        _ => Ok(n),
    }
}

fn sampling(
    f: &mut Fields,
    model: &Loaded,
    limits: &Limits,
    prompt_only: bool,
) -> Result<(SamplingParams, Rules), ApiError> {
    let defaults = &model.defaults;
    let top_k = match f.get::<i64>("top_k")? {
        None => defaults.top_k,
        Some(-1 | 0) => None,
        Some(k @ 1..) => Some(u32::try_from(k).unwrap_or(u32::MAX)),
        Some(k) => {
            return Err(ApiError::field("top_k", format!("top_k: must be -1, 0 or at least 1, got {k}")));
        }
    };
    let ignore_eos = f.or("ignore_eos", false)?;
    let stop_token_ids: Vec<u32> = f.or("stop_token_ids", Vec::new())?;
    let min_tokens = f.or("min_tokens", 0)?;
    let params = SamplingParams {
        temperature: f.or("temperature", defaults.temperature.unwrap_or(1.0))?,
        top_k,
        top_p: f.or("top_p", defaults.top_p.unwrap_or(1.0))?,
        min_p: f.or("min_p", defaults.min_p.unwrap_or(0.0))?,
        repetition_penalty: f.or("repetition_penalty", defaults.repetition_penalty.unwrap_or(1.0))?,
        presence_penalty: f.or("presence_penalty", 0.0)?,
        frequency_penalty: f.or("frequency_penalty", 0.0)?,
        logit_bias: logit_bias(f)?,
        seed: f.get::<i64>("seed")?.map(|seed| seed as u64),
        stop_token_ids: stop_token_ids.clone(),
        eos_token_ids: defaults.eos_token_ids.clone(),
        min_tokens: if prompt_only { 0 } else { min_tokens },
        ignore_eos,
        ..SamplingParams::default()
    };
    let stop_strings = stop_strings(f, limits)?;
    let include_stop = f.or("include_stop_str_in_output", false)?;
    let rules = Rules {
        stop: StopStrings::new(&stop_strings, include_stop),
        stop_strings,
        stop_token_ids: stop_token_ids.into_iter().collect(),
        eos_token_ids: if ignore_eos {
            HashSet::new()
        } else {
            defaults.eos_token_ids.iter().copied().collect()
        },
        include_stop,
        min_tokens,
        skip_special_tokens: f.or("skip_special_tokens", true)?,
        prompt_only,
    };
    Ok((params, rules))
}

fn stop_strings(f: &mut Fields, limits: &Limits) -> Result<Vec<String>, ApiError> {
    const MAX_BYTES: usize = 1024;
    let list = match f.value("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(list)) => list,
        Some(other) => {
            let message = format!("stop: expected a string or a list of strings, got {}", describe(&other));
            return Err(ApiError::field("stop", message));
        }
    };
    if list.len() > limits.stop_strings {
        let message = format!("stop: at most {} strings, got {}", limits.stop_strings, list.len());
        return Err(ApiError::field("stop", message));
    }
    let string = |value| match value {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::field("stop", "stop: an empty string stops nothing"))
        }
        Value::String(text) if text.len() > MAX_BYTES => {
            Err(ApiError::field("stop", format!("stop: at most {MAX_BYTES} bytes, got {}", text.len())))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong::<String>("stop", &other)),
    };
    list.into_iter().map(string).collect()
}

fn logit_bias(f: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    const MAX: usize = 1024;
    let map: Map<String, Value> = f.or("logit_bias", Map::new())?;
    if map.len() > MAX {
        return Err(ApiError::field(
            "logit_bias",
            format!("logit_bias: at most {MAX} entries, got {}", map.len()),
        ));
    }
    let entry = |(key, value): (&String, &Value)| {
        let message = |what: &str, got: String| format!("logit_bias: expected {what}, got {got}");
        let id = key.parse().map_err(|_| message("token ids as keys", shorten(key)));
        let bias = f32::from_value(value).ok_or_else(|| message("numbers as values", describe(value)));
        Ok((id?, bias?))
    };
    map.iter()
        .map(entry)
        .collect::<Result<_, String>>()
        .map_err(|message| ApiError::field("logit_bias", message))
}

/// How a prompt that is too long is cut.
enum Cut {
    No,
    /// The last so many tokens stay, or as many as the model takes.
    Left(Option<usize>),
    /// The first.
    Right(Option<usize>),
}

fn truncation(f: &mut Fields) -> Result<Cut, ApiError> {
    let name = "truncate_prompt_tokens";
    let side: Option<String> = f.get("truncation_side")?;
    let keep = match f.get::<i64>(name)? {
        None => return Ok(Cut::No),
        Some(-1) => None,
        Some(keep @ 1..) => Some(usize::try_from(keep).unwrap_or(usize::MAX)),
        Some(other) => {
            return Err(ApiError::field(name, format!("{name}: must be -1 or at least 1, got {other}")));
        }
    };
    match side.as_deref() {
        None | Some("left") => Ok(Cut::Left(keep)),
        Some("right") => Ok(Cut::Right(keep)),
        Some(other) => {
            let message = format!("truncation_side: expected left or right, got {}", shorten(other));
            Err(ApiError::field("truncation_side", message))
        }
    }
}

impl Cut {
    fn apply(&self, prompt: &mut Prompt, max_model_len: usize) {
        // A prompt leaves room for one token.
        let most = max_model_len.saturating_sub(1);
        let (keep, left) = match self {
            Cut::No => return,
            Cut::Left(keep) => (keep.unwrap_or(most), true),
            Cut::Right(keep) => (keep.unwrap_or(most), false),
        };
        if prompt.ids.len() > keep {
            prompt.text = None;
            if left {
                prompt.ids.drain(..prompt.ids.len() - keep);
            } else {
                prompt.ids.truncate(keep);
            }
        }
    }
}
