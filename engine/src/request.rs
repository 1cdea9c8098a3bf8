//! What the rest of the world says to the engine, and hears from it. Token ids in, token ids out.

use std::time::Duration;

use crate::{Constraint, TokenId};

/// How tokens are chosen. Validated by [`SamplingParams::validate`] before it reaches the engine thread.
#[derive(Clone, PartialEq, Debug)]
pub struct SamplingParams {
    /// 0 means greedy, and so does anything below 1e-5.
    pub temperature: f32,
    /// Only so many best tokens; `None` means all.
    pub top_k: Option<u32>,
    /// The smallest set of best tokens whose probability reaches this; 1 means all.
    pub top_p: f32,
    /// Drops tokens less likely than this fraction of the best one; 0 drops none.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the output.
    pub presence_penalty: f32,
    /// Subtracted from them once for each occurrence.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Makes the request reproducible; otherwise the engine draws one.
    pub seed: Option<u64>,
    /// Ends the sequence with [`FinishReason::Stop`]; the token is emitted.
    pub stop_token_ids: Vec<TokenId>,
    /// The model's end-of-sequence tokens: as `stop_token_ids`, unless `ignore_eos`.
    pub eos_token_ids: Vec<TokenId>,
    /// Tokens before which neither of the two lists ends the sequence; they are not even sampled.
    pub min_tokens: u32,
    /// Tokens at most.
    pub max_tokens: u32,
    /// Sample on past an end-of-sequence token.
    pub ignore_eos: bool,
    /// Log-probabilities of the sampled token and of so many best ones.
    pub logprobs: Option<u32>,
    /// The same for each prompt token but the first. Such a request does not read the prefix cache.
    pub prompt_logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            stop_token_ids: Vec::new(),
            eos_token_ids: Vec::new(),
            min_tokens: 0,
            max_tokens: 16,
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// A prompt to be continued.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<TokenId>,
    /// How to continue it.
    pub params: SamplingParams,
    /// Independent continuations; each is a sequence of its own that shares the prompt's blocks.
    pub n: u32,
    /// Lower runs first, as in vLLM; equal ones in order of arrival.
    pub priority: i32,
    /// Keeps the prefix cache of one tenant apart from the others'.
    pub cache_salt: Option<String>,
    /// Limits the tokens of each choice.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// A token and its log-probability by the model's own logits, before bias, penalties, mask, temperature and
/// truncation: vLLM's default, `raw_logprobs`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Logprob {
    /// The token.
    pub token: TokenId,
    /// Its natural log-probability.
    pub logprob: f32,
    /// Its rank; 1 is the most likely. Equally likely tokens rank by their ids.
    pub rank: u32,
}

/// The log-probability of a token and of the best ones at its position.
#[derive(Clone, PartialEq, Debug)]
pub struct TokenLogprobs {
    /// The token that stands there.
    pub chosen: Logprob,
    /// The best ones, best first.
    pub top: Vec<Logprob>,
}

/// What a sequence's channel carries: `Started`, then tokens, then exactly one `Finished` or `Failed`. Either
/// of these two may also be all, where the sequence ended before its first token.
#[derive(Clone, Debug)]
pub enum Event {
    /// The prompt has been computed; comes right before the first token.
    Started {
        /// Prompt tokens that were found in the prefix cache.
        cached_tokens: u32,
        /// One for each prompt token, `None` for the first; empty where they were not asked for.
        prompt_logprobs: Vec<Option<TokenLogprobs>>,
    },
    /// The next token.
    Token {
        /// The token.
        token: TokenId,
        /// Where asked for.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// Nothing follows.
    Finished(FinishReason),
    /// The engine could not go on; nothing follows.
    Failed(RequestError),
}

/// Why a sequence ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FinishReason {
    /// An end-of-sequence or stop token, or the end of what the constraint allows.
    Stop,
    /// `max_tokens`, or the model's context is full.
    Length,
    /// The engine shut down before the sequence's end.
    Abort,
}

/// Why a request failed after it was accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// The backend refused its step.
    #[error("the engine could not compute this request: {0}")]
    Refused(String),
    /// The request's constraint could not go on.
    #[error("the constraint on the output failed: {0}")]
    Constraint(String),
    /// The engine is gone.
    #[error("the engine has failed: {0}")]
    EngineDead(String),
}

/// Why a request was not accepted.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// A field is out of its bounds; HTTP 400.
    #[error("{message}")]
    Invalid {
        /// The field, named as in the OpenAI API.
        param: &'static str,
        /// The bound and the value.
        message: String,
    },
    /// The queue is full; HTTP 429.
    #[error("{queued} requests are queued already")]
    QueueFull {
        /// Requests in the queue.
        queued: usize,
        /// When to try again, from the queue's recent pace.
        retry_after: Duration,
    },
    /// The engine no longer accepts requests: it drains, or is dead; HTTP 503.
    #[error("the engine is shutting down")]
    Closed,
}
