//! What the engine tells whoever keeps the metrics, without locks on its side of the line.

use crate::FinishReason;

/// One iteration. Slices are borrowed from buffers that the engine reuses.
#[derive(Debug)]
pub struct StepStats<'a> {
    /// Sequences that hold blocks and were, or could have been, in the step.
    pub running: usize,
    /// Sequences that wait to be admitted, preempted ones among them.
    pub waiting: usize,
    /// Blocks held by sequences; cached blocks that nobody holds count as free.
    pub blocks_used: usize,
    /// Blocks in the pool.
    pub blocks_total: usize,
    /// Prompt lengths of the requests whose first token this iteration yielded: vLLM counts a prompt then, as
    /// a whole, cached tokens included.
    pub prompt_tokens: usize,
    /// Tokens sampled.
    pub generation_tokens: usize,
    /// New tokens computed, prompt or not.
    pub computed_tokens: usize,
    /// Rows in the step.
    pub rows: usize,
    /// Sequences preempted while this iteration was planned.
    pub preemptions: usize,
    /// Prompt tokens looked up in the prefix cache while this iteration was planned.
    pub prefix_queries: usize,
    /// Those of them that were found.
    pub prefix_hits: usize,
    /// Seconds from arrival to first token, of each request that got one.
    pub time_to_first_token: &'a [f64],
    /// Seconds since the sequence's previous token, for each token but first ones.
    pub inter_token_latency: &'a [f64],
    /// Seconds spent on planning, sampling and committing: the engine's own share.
    pub host_seconds: f64,
    /// Seconds that the backend took.
    pub device_seconds: f64,
}

/// A request that ended: all of its choices have.
#[derive(Clone, Debug)]
pub struct RequestStats {
    /// Why each choice ended; `None` where the client went away or the choice failed.
    pub finished: Vec<Option<FinishReason>>,
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Tokens sampled, of all choices.
    pub generation_tokens: usize,
    /// Choices asked for.
    pub n: u32,
    /// `max_tokens` asked for.
    pub max_tokens: u32,
    /// Seconds from arrival to the end.
    pub e2e: f64,
    /// Seconds from arrival until first scheduled.
    pub queue: f64,
    /// Seconds from first scheduled to the first token.
    pub prefill: f64,
    /// Seconds from the first token to the end.
    pub decode: f64,
}

/// Receives the figures on the engine thread, so it must be quick.
pub trait Observer: Send {
    /// After each iteration, and after a change of the queue without one.
    fn step(&mut self, stats: &StepStats<'_>);
    /// After the end of each request.
    fn request(&mut self, stats: &RequestStats);
}

/// Keeps no metrics.
impl Observer for () {
    fn step(&mut self, _: &StepStats<'_>) {}
    fn request(&mut self, _: &RequestStats) {}
}
