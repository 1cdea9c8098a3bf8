//! What a step asks of a backend: plain data that can be logged, replayed, or sent to another process.

use serde::{Deserialize, Serialize};

/// A token's index in the vocabulary.
pub type TokenId = u32;

/// A sequence: one choice of one request. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SeqId(pub u64);

/// A physical KV block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BlockId(pub u32);

/// Which of a row's new tokens yield logits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Want {
    /// None: a prompt chunk that is not the last.
    Nothing,
    /// The last: the next token is sampled from them.
    Last,
    /// All: prompt log-probabilities were asked for.
    All,
}

/// One sequence's share of a step: `count` new tokens at `position ..`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Whose tokens they are.
    pub seq: SeqId,
    /// Where they start in [`Step::tokens`].
    pub first: u32,
    /// How many they are; at least one.
    pub count: u32,
    /// The position of the first one in its sequence: so many tokens are in the KV cache already.
    pub position: u32,
    /// Where the sequence's block table starts in [`Step::blocks`].
    pub first_block: u32,
    /// Blocks in the table; they hold `position + count` tokens.
    pub blocks: u32,
    /// Which tokens yield logits.
    pub want: Want,
}

/// One iteration's work. The vectors are reused from step to step, so planning a step allocates nothing.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Step {
    /// New tokens, row after row.
    pub tokens: Vec<TokenId>,
    /// Block tables, row after row.
    pub blocks: Vec<BlockId>,
    /// The rows; no sequence has two.
    pub rows: Vec<Row>,
    /// Indices of rows whose logits are adjusted before they are cut, ascending. Only for a backend that
    /// [cuts](crate::Runner::candidates), and only of rows that want their last token's logits.
    pub biased: Vec<u32>,
    /// What is added to those logits: a whole vocabulary for each, [`MASKED`] for a token that may not come.
    pub bias: Vec<f32>,
}

/// Added to the logit of a token that may not be sampled. Finite, as a device may make a not-a-number of an infinite
/// one, and far below any logit.
pub const MASKED: f32 = -1e30;

impl Step {
    /// Forgets the rows and keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.blocks.clear();
        self.rows.clear();
        self.biased.clear();
        self.bias.clear();
    }

    /// What is added to a row's logits; `None` where nothing is.
    pub fn bias_of(&self, row: usize) -> Option<&[f32]> {
        let at = self.biased.binary_search(&u32::try_from(row).ok()?).ok()?;
        let vocab = self.bias.len() / self.biased.len();
        Some(&self.bias[at * vocab..][..vocab])
    }

    /// Adds a bias of zeros for a row behind all that have one, to be filled in.
    pub fn add_bias(&mut self, row: usize, vocab: usize) -> &mut [f32] {
        debug_assert!(self.biased.last().is_none_or(|last| (*last as usize) < row), "biased rows ascend");
        let start = self.bias.len();
        self.biased.push(row as u32);
        self.bias.resize(start + vocab, 0.0);
        &mut self.bias[start..]
    }

    /// A row's new tokens.
    pub fn tokens_of(&self, row: &Row) -> &[TokenId] {
        &self.tokens[row.first as usize..][..row.count as usize]
    }

    /// A row's block table.
    pub fn blocks_of(&self, row: &Row) -> &[BlockId] {
        &self.blocks[row.first_block as usize..][..row.blocks as usize]
    }

    /// Rows of logits that the step yields, in the order of the rows and of the tokens within a row.
    pub fn logit_rows(&self) -> usize {
        self.rows.iter().map(Row::logit_rows).sum()
    }
}

impl Row {
    /// Rows of logits that the row yields.
    pub fn logit_rows(&self) -> usize {
        match self.want {
            Want::Nothing => 0,
            Want::Last => 1,
            Want::All => self.count as usize,
        }
    }
}
