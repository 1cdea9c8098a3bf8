//! What a backend is to the engine.

use millrace_kernels::Pool;

use crate::{Step, TokenId};

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

/// Logits of a step, in the order of [`Step::logit_rows`]: whole rows, or of each row the best tokens only.
#[derive(Debug, Default)]
pub struct Logits {
    /// Columns of each row: the vocabulary, or the candidates.
    pub columns: usize,
    /// Row-major; reused from step to step.
    pub values: Vec<f32>,
    /// What the values are of, where rows were cut.
    pub cut: Option<Cut>,
}

/// What goes with rows of logits that were cut to their best tokens.
#[derive(Debug, Default)]
pub struct Cut {
    /// The token of each value.
    pub tokens: Vec<TokenId>,
    /// Of each row, the natural logarithm of the sum of e^logit over the *whole* vocabulary and *without* the step's
    /// bias: what makes log-probabilities of the model out of single logits.
    pub log_sum_exp: Vec<f32>,
}

/// The best tokens of one row of logits, by logit with the step's bias, and all of them where the row is no longer.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Each at most once; in any order.
    pub tokens: &'a [TokenId],
    /// Their logits, bias included.
    pub logits: &'a [f32],
    /// As in [`Cut`].
    pub log_sum_exp: f32,
}

impl Logits {
    /// One row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.columns..][..self.columns]
    }

    /// Natural logarithms of the probabilities of a row's columns: exact, not fast.
    pub fn log_probabilities(&self, index: usize) -> Vec<f64> {
        let row = self.row(index);
        let max = row.iter().fold(f64::NEG_INFINITY, |max, x| max.max(f64::from(*x)));
        let sum: f64 = row.iter().map(|x| (f64::from(*x) - max).exp()).sum();
        row.iter().map(|x| f64::from(*x) - max - sum.ln()).collect()
    }

    /// One row, to be adjusted before sampling.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.columns..][..self.columns]
    }

    /// One row that was cut; `None` where rows are whole.
    pub fn candidates(&self, index: usize) -> Option<Candidates<'_>> {
        let cut = self.cut.as_ref()?;
        Some(Candidates {
            tokens: &cut.tokens[index * self.columns..][..self.columns],
            logits: self.row(index),
            log_sum_exp: cut.log_sum_exp[index],
        })
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

    /// Tokens in the vocabulary.
    fn vocab(&self) -> usize;

    /// How many best tokens of each row it yields, where it cuts rows of logits on its device; it adds the step's
    /// bias before that. `None` where it yields whole rows, and is given no bias.
    fn candidates(&self) -> Option<usize> {
        None
    }

    /// Workers that have nothing to do between steps, to share what the host does then. `None` where there are none.
    fn pool(&self) -> Option<&Pool> {
        None
    }

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
