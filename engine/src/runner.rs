//! What a backend is to the engine.

use crate::Step;

/// The KV cache that the backend could afford.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvSpec {
    /// Tokens in a block.
    pub block_size: usize,
    /// Blocks that sequences may hold. A backend may keep more for itself (a dummy for padding rows).
    pub blocks: usize,
    /// Bytes of all of them.
    pub bytes: usize,
}

/// What one step may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepLimits {
    /// New tokens over all rows.
    pub tokens: usize,
    /// Rows.
    pub rows: usize,
    /// Rows of logits: bounds chunks whose every token wants logits.
    pub logits: usize,
}

/// Logits of a step, in the order of [`Step::logit_rows`].
#[derive(Debug, Default)]
pub struct Logits {
    /// Columns of each row.
    pub vocab: usize,
    /// Row-major; reused from step to step.
    pub values: Vec<f32>,
}

impl Logits {
    /// One row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab..][..self.vocab]
    }

    /// One row, to be adjusted before sampling.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.vocab..][..self.vocab]
    }
}

/// Why a step failed; what the engine does about it follows from the variant.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RunError {
    /// This step's input was refused; other steps may succeed. The requests in it fail.
    #[error("the backend refused the step: {0}")]
    Step(String),
    /// The backend is beyond use; every request fails and the process should end.
    #[error("the backend failed: {0}")]
    Fatal(String),
}

/// A backend. `submit` hands over a step and may return while it runs; `wait` ends it. One step at a time.
pub trait Runner: Send {
    /// The KV cache it holds.
    fn kv(&self) -> KvSpec;

    /// What one step may hold.
    fn limits(&self) -> StepLimits;

    /// Columns of a row of logits.
    fn vocab(&self) -> usize;

    /// Starts a step.
    ///
    /// # Errors
    /// Where the step cannot be started; nothing was written to the KV cache then.
    fn submit(&mut self, step: &Step) -> Result<(), RunError>;

    /// Waits for the step that was submitted last and yields its logits.
    ///
    /// # Errors
    /// Where the step failed: what it wrote to the KV cache must not be used.
    fn wait(&mut self, logits: &mut Logits) -> Result<(), RunError>;
}
