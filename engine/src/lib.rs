//! The engine: a paged KV cache, a pure scheduler, a sampler, and one thread that owns them. Token ids in,
//! token ids out; it knows no text and no HTTP.
#![forbid(unsafe_code)]

mod config;
mod constraint;
pub mod cpu;
pub mod encoder;
mod engine;
mod figures;
mod handle;
mod live;
mod masks;
pub mod neuron;
mod observe;
mod pool;
mod request;
mod runner;
mod sampler;
mod schedule;
mod sequence;
mod step;
mod validate;

pub use config::{Batching, EngineConfig, StartError};
pub use constraint::{Constraint, ConstraintError};
pub use engine::start;
pub use handle::{Handle, Load};
pub use millrace_kernels::similarity::dots;
pub use observe::{Observer, RequestStats, StepStats};
pub use pool::{Key, Pool};
pub use request::{
    Event, FinishReason, Logprob, Request, RequestError, SamplingParams, SubmitError, TokenLogprobs,
};
pub use runner::{Candidates, Cut, KvSpec, Logits, RunError, Runner, StepLimits};
pub use sampler::{NoCandidate, Sampled, Sampler, SamplerState, penalised};
pub use schedule::{Limits, Plan, Scheduler};
pub use sequence::{Place, Prompt, Sequence};
pub use step::{BlockId, MASKED, Row, SeqId, Step, TokenId, Want};
pub use validate::{MAX_CHOICES, MAX_LOGPROBS};
