//! What a request must satisfy. Past this line nothing re-checks.

use crate::{EngineConfig, KvSpec, Request, Runner, SamplingParams, SubmitError, TokenId};

/// Choices of a request at most.
pub const MAX_CHOICES: u32 = 128;
/// Best tokens whose log-probabilities may be asked for.
pub const MAX_LOGPROBS: u32 = 20;

/// What requests are checked against.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) vocab: usize,
    /// As [`Runner::candidates`].
    pub(crate) candidates: Option<usize>,
    pub(crate) block_size: usize,
    pub(crate) max_model_len: usize,
    pub(crate) max_queued_requests: usize,
    pub(crate) prefix_caching: bool,
}

impl Bounds {
    pub(crate) fn new(config: &EngineConfig, kv: KvSpec, runner: &dyn Runner) -> Self {
        Bounds {
            vocab: runner.vocab(),
            candidates: runner.candidates(),
            block_size: kv.block_size,
            max_model_len: config.max_model_len,
            max_queued_requests: config.max_queued_requests,
            prefix_caching: config.prefix_caching,
        }
    }
}

fn check(holds: bool, param: &'static str, message: impl FnOnce() -> String) -> Result<(), SubmitError> {
    if holds { Ok(()) } else { Err(SubmitError::Invalid { param, message: message() }) }
}

fn ids(ids: impl IntoIterator<Item = TokenId>, vocab: usize, param: &'static str) -> Result<(), SubmitError> {
    match ids.into_iter().find(|id| *id as usize >= vocab) {
        None => Ok(()),
        Some(id) => check(false, param, || {
            format!("{param} has token id {id}, but the vocabulary ends at {}", vocab - 1)
        }),
    }
}

pub(crate) fn request(request: &Request, bounds: &Bounds) -> Result<(), SubmitError> {
    let (n, length, max) = (request.n, request.prompt.len(), bounds.max_model_len);
    check((1..=MAX_CHOICES).contains(&n), "n", || format!("n must be from 1 to {MAX_CHOICES}, not {n}"))?;
    check(length > 0, "prompt", || "the prompt is empty".to_owned())?;
    check(length < max, "prompt", || {
        format!(
            "the prompt has {length} tokens, but the model's context is {max} tokens long, of which at least one must be left for the output"
        )
    })?;
    ids(request.prompt.iter().copied(), bounds.vocab, "prompt")?;
    request.params.validate(bounds.vocab)?;
    bounds.candidates.map_or(Ok(()), |candidates| from_candidates(&request.params, candidates))
}

/// What cannot be had of rows of logits that the device cut to their `candidates` best tokens.
fn from_candidates(params: &SamplingParams, candidates: usize) -> Result<(), SubmitError> {
    check(params.prompt_logprobs.is_none(), "prompt_logprobs", || {
        "prompt_logprobs: this backend yields the best tokens of each position only, and not those of the prompt"
            .to_owned()
    })?;
    let asked = params.logprobs.unwrap_or(0);
    check(asked as usize <= candidates, "logprobs", || {
        format!("logprobs must be at most {candidates} on this backend, not {asked}")
    })?;
    let penalty = params.repetition_penalty;
    check(penalty >= 1.0, "repetition_penalty", || {
        format!("repetition_penalty must be at least 1 on this backend, not {penalty}")
    })
}

impl SamplingParams {
    /// Checks every field against its bounds, with token ids below `vocab`.
    ///
    /// # Errors
    /// [`SubmitError::Invalid`] for the first field that is out of bounds.
    pub fn validate(&self, vocab: usize) -> Result<(), SubmitError> {
        let between = |value: f32, low: f32, high: f32, param: &'static str| {
            check((low..=high).contains(&value), param, || {
                format!("{param} must be from {low} to {high}, not {value}")
            })
        };
        check(self.temperature.is_finite() && self.temperature >= 0.0, "temperature", || {
            format!("temperature must be a finite number from 0 up, not {}", self.temperature)
        })?;
        check(self.top_k != Some(0), "top_k", || "top_k must be at least 1".to_owned())?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", || {
            format!("top_p must be above 0 and at most 1, not {}", self.top_p)
        })?;
        between(self.min_p, 0.0, 1.0, "min_p")?;
        let repetition = self.repetition_penalty;
        check(repetition.is_finite() && repetition > 0.0, "repetition_penalty", || {
            format!("repetition_penalty must be a finite number above 0, not {repetition}")
        })?;
        between(self.presence_penalty, -2.0, 2.0, "presence_penalty")?;
        between(self.frequency_penalty, -2.0, 2.0, "frequency_penalty")?;
        for (_, bias) in &self.logit_bias {
            between(*bias, -100.0, 100.0, "logit_bias")?;
        }
        ids(self.logit_bias.iter().map(|(id, _)| *id), vocab, "logit_bias")?;
        ids(self.stop_token_ids.iter().copied(), vocab, "stop_token_ids")?;
        check(self.max_tokens > 0, "max_tokens", || "max_tokens must be at least 1".to_owned())?;
        check(self.min_tokens <= self.max_tokens, "min_tokens", || {
            format!("min_tokens is {}, above max_tokens, which is {}", self.min_tokens, self.max_tokens)
        })?;
        for (asked, param) in [(self.logprobs, "logprobs"), (self.prompt_logprobs, "prompt_logprobs")] {
            let asked = asked.unwrap_or(0);
            check(asked <= MAX_LOGPROBS, param, || {
                format!("{param} must be at most {MAX_LOGPROBS}, not {asked}")
            })?;
        }
        Ok(())
    }
}
