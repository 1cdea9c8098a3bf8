//! What the operator decides.

use std::io;

/// How sequences join a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Batching {
    /// At every iteration.
    #[default]
    Continuous,
    /// Only when the batch before has ended, to the last of its sequences: what continuous batching is
    /// measured against.
    Static,
}

/// The engine's bounds. What the backend's [`StepLimits`](crate::StepLimits) allow is a bound as well: the
/// smaller one holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineConfig {
    /// Sequences in a batch. As each of them may want a token of every step, no more than
    /// `max_num_batched_tokens` are run, nor than 65536.
    pub max_num_seqs: usize,
    /// New tokens in a step, of prompts and decodes together.
    pub max_num_batched_tokens: usize,
    /// Prompt tokens in a step that also decodes: bounds the time between two tokens of a stream while
    /// somebody else's long prompt is computed.
    pub max_prefill_beside_decode: usize,
    /// Tokens of a sequence, prompt and output together. The pool must hold them.
    pub max_model_len: usize,
    /// Requests that were accepted and have not been scheduled yet.
    pub max_queued_requests: usize,
    /// Whether a request may use blocks that another one computed. The choices of one request always may.
    pub prefix_caching: bool,
    /// How sequences join a batch.
    pub batching: Batching,
    /// Where the seeds of requests without one come from.
    pub seed: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_num_seqs: 128,
            max_num_batched_tokens: 2048,
            max_prefill_beside_decode: 256,
            max_model_len: 2048,
            max_queued_requests: 1024,
            prefix_caching: true,
            batching: Batching::Continuous,
            seed: 0,
        }
    }
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself or the backend.
    #[error("{param}: {message}")]
    Config {
        /// The field.
        param: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// The operating system gave no thread.
    #[error("cannot start the engine's thread")]
    Thread(#[source] io::Error),
}
