//! The engine: a paged KV cache, a pure scheduler, a sampler, and one thread that owns them. Token ids in,
//! token ids out; it knows no text and no HTTP.
#![forbid(unsafe_code)]

mod observe;
mod request;
mod runner;
mod step;

pub use observe::{Observer, RequestStats, StepStats};
pub use request::{
    Event, FinishReason, Logprob, Request, RequestError, SamplingParams, SubmitError, TokenLogprobs,
};
pub use runner::{KvSpec, Logits, RunError, Runner, StepLimits};
pub use step::{BlockId, Row, SeqId, Step, TokenId, Want};
