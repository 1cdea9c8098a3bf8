//! Where an answer's text comes from: the model, or an answer that was given before.

use std::sync::Arc;

use millrace_engine::{Constraint, Request, SamplingParams};
use millrace_models::text::StopStrings;

use super::kept::Kept;
use crate::assistant::compose::{TextFailure, TextSource};
use crate::auth::Tenant;
use crate::error::ApiError;
use crate::openai::{Choice, Choices, Rules};
use crate::service::{Loaded, Running, Service};

/// Where the text comes from: the model, or an earlier answer.
pub(super) enum Text {
    /// As it is written.
    Engine(Box<Engine>),
    /// The whole of it, until it is given; and what counts the request as running.
    Replay(Option<String>, #[allow(dead_code)] Option<Running>),
}

/// A request that the engine works on.
pub(super) struct Engine {
    pub(super) choices: Choices,
    running: Running,
    pub(super) prompt_tokens: usize,
    pub(super) finish: &'static str,
    pub(super) error: Option<ApiError>,
    pub(super) token_ids: Vec<u32>,
}

impl TextSource for Text {
    async fn next(&mut self) -> Option<Result<String, TextFailure>> {
        let engine = match self {
            Text::Replay(text, _) => return text.take().map(Ok),
            Text::Engine(engine) => engine,
        };
        loop {
            let new = tokio::select! {
                biased;
                () = engine.running.aborted() => Some(Err(ApiError::draining())),
                new = engine.choices.next() => new,
            };
            match new? {
                Ok((_, delta)) => {
                    engine.token_ids.extend(delta.token_ids);
                    if let Some(finish) = delta.finish {
                        engine.finish = finish.reason();
                    }
                    if !delta.text.is_empty() {
                        return Some(Ok(delta.text));
                    }
                }
                Err(error) => {
                    let body = error.body();
                    let text = |name: &str| body["error"][name].as_str().unwrap_or("server_error").to_owned();
                    let failure = TextFailure { code: text("code"), message: text("message") };
                    engine.error = Some(error);
                    return Some(Err(failure));
                }
            }
        }
    }
}

/// Hands a prompt to the engine.
///
/// # Errors
/// 429 or 503 where there is no room for it.
pub(super) fn submit(
    service: &Service,
    model: &Arc<Loaded>,
    prompt: Vec<u32>,
    constraint: Option<Box<dyn Constraint>>,
    tenant: &Tenant,
    running: Running,
    kept: Option<&mut Kept>,
) -> Result<Text, ApiError> {
    let config = &service.assistant().config;
    let eos = model.defaults.eos_token_ids.clone();
    let room = model.handle.max_model_len() - prompt.len();
    let max_tokens = config.max_tokens.min(u32::try_from(room).unwrap_or(u32::MAX));
    let params = SamplingParams {
        temperature: config.temperature,
        top_k: model.defaults.top_k,
        top_p: model.defaults.top_p.unwrap_or(1.0),
        max_tokens,
        eos_token_ids: eos.clone(),
        ..SamplingParams::default()
    };
    if let Some(kept) = kept {
        kept.sampler(&params);
    }
    let prompt_tokens = prompt.len();
    let salt = tenant.salt(None);
    let request = Request { prompt, params, constraint, n: 1, cache_salt: salt, ..Request::default() };
    let rules = Arc::new(Rules {
        stop: StopStrings::new::<&str>(&[], false),
        stop_strings: Vec::new(),
        stop_token_ids: Default::default(),
        eos_token_ids: eos.into_iter().collect(),
        include_stop: false,
        min_tokens: 0,
        skip_special_tokens: true,
        prompt_only: false,
    });
    let channels = model.handle.submit(request)?;
    let list =
        channels.into_iter().map(|events| Choice::new(events, rules.clone(), max_tokens, model)).collect();
    let (choices, finish) = (Choices::new(list), "stop");
    Ok(Text::Engine(Box::new(Engine {
        choices,
        running,
        prompt_tokens,
        finish,
        error: None,
        token_ids: Vec::new(),
    })))
}
