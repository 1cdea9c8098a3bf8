//! A sequence: a length, a count of computed tokens, and the blocks that hold them.

use std::sync::Arc;

use crate::pool::{Key, Pool};
use crate::{BlockId, SeqId, TokenId, Want};

/// Where a sequence stands in line: lower priority values first, then the order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// Lower runs first.
    pub priority: i32,
    /// Ascending in the order of arrival.
    pub seq: SeqId,
}

/// A prompt, shared by the choices of a request.
#[derive(Debug)]
pub struct Prompt {
    /// At least one.
    pub tokens: Vec<TokenId>,
    // The parent of the first block, then the key of each full block.
    keys: Vec<Key>,
}

impl Prompt {
    /// Hashes the full blocks, so that the engine's thread need not.
    pub fn new(tokens: Vec<TokenId>, root: Key, block_size: usize) -> Self {
        let mut keys = Vec::with_capacity(1 + tokens.len() / block_size);
        keys.push(root);
        for block in tokens.chunks_exact(block_size) {
            keys.push(keys[keys.len() - 1].child(block.iter().copied()));
        }
        Prompt { tokens, keys }
    }
}

/// What the scheduler knows of a choice of a request.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) place: Place,
    prompt: Arc<Prompt>,
    output: Vec<TokenId>,
    // Of the full blocks that follow the prompt's.
    keys: Vec<Key>,
    /// Tokens whose keys and values are in `table`.
    pub(crate) computed: usize,
    pub(crate) table: Vec<BlockId>,
    // Tokens at most; the last one is never computed.
    max_len: usize,
    // Logits are wanted of the prompt's first `scored` positions; those of the first `seen` were had.
    scored: usize,
    seen: usize,
    pub(crate) preempted: bool,
    pub(crate) cached: usize,
}

impl Sequence {
    /// A sequence of at most `max_len` tokens, prompt included. With `prompt_logits`, each token of the
    /// prompt but the last yields logits.
    ///
    /// # Panics
    /// If the prompt is empty or leaves no room for a token.
    pub fn new(place: Place, prompt: Arc<Prompt>, max_len: usize, prompt_logits: bool) -> Self {
        let length = prompt.tokens.len();
        assert!(0 < length && length < max_len, "a prompt of {length} tokens in a sequence of {max_len}");
        Sequence {
            place,
            prompt,
            output: Vec::new(),
            keys: Vec::new(),
            computed: 0,
            table: Vec::new(),
            max_len,
            scored: if prompt_logits { length - 1 } else { 0 },
            seen: 0,
            preempted: false,
            cached: 0,
        }
    }

    /// Tokens, computed or not.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.prompt.tokens.len() + self.output.len()
    }

    /// Tokens in the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt.tokens.len()
    }

    /// Tokens that are not computed yet.
    pub fn missing(&self) -> usize {
        self.len() - self.computed
    }

    /// Memory for all it may come to hold, so that decoding allocates none.
    /// Where it stands.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Prompt tokens that it found in the prefix cache.
    pub fn cached(&self) -> usize {
        self.cached
    }

    pub(crate) fn make_room(&mut self, pool: &Pool) {
        let blocks = pool.blocks_for(self.max_len - 1);
        self.table.reserve_exact(blocks - self.table.len());
        self.output.reserve_exact(self.max_len - self.len());
        let keys = self.max_len / pool.block_size() + 1 - self.prompt.keys.len();
        self.keys.reserve_exact(keys - self.keys.len());
    }

    /// Blocks to have before it needs one more than it holds: those of its tokens, and one to go on with.
    pub(crate) fn room(&self, pool: &Pool) -> usize {
        let tokens = (self.len() + pool.block_size()).min(self.max_len - 1);
        pool.blocks_for(tokens)
    }

    pub(crate) fn tokens(&self, from: usize, count: usize) -> impl Iterator<Item = TokenId> {
        let prompt = self.prompt.tokens.len();
        let (a, b) = (from.min(prompt), (from + count).min(prompt));
        let (c, d) = (from.saturating_sub(prompt), (from + count).saturating_sub(prompt));
        self.prompt.tokens[a..b].iter().chain(&self.output[c..d]).copied()
    }

    pub(crate) fn key(&self, block: usize) -> Option<&Key> {
        let prompt = self.prompt.keys.len() - 1;
        if block < prompt { Some(&self.prompt.keys[block + 1]) } else { self.keys.get(block - prompt) }
    }

    /// Scoring the prompt needs logits that a cached block does not have.
    pub(crate) fn reads_cache(&self) -> bool {
        self.seen >= self.scored
    }

    pub(crate) fn want(&self, count: usize) -> Want {
        let end = self.computed + count;
        if !self.reads_cache() && end > self.seen {
            Want::All
        } else if end == self.len() {
            Want::Last
        } else {
            Want::Nothing
        }
    }

    /// The next `count` tokens are computed; publishes the blocks that they filled.
    pub(crate) fn advance(&mut self, count: usize, pool: &mut Pool) {
        let size = pool.block_size();
        let first = self.computed / size;
        if self.want(count) == Want::All {
            self.seen = self.computed + count;
        }
        self.computed += count;
        for block in first..self.computed / size {
            let key = match self.key(block) {
                Some(key) => *key,
                None => {
                    let parent = match block {
                        0 => &self.prompt.keys[0],
                        _ => self.key(block - 1).expect("blocks are filled in order"),
                    };
                    let key = parent.child(self.tokens(block * size, size));
                    self.keys.push(key);
                    key
                }
            };
            pool.publish(self.table[block], key, self.tokens(block * size, size));
        }
    }

    pub(crate) fn push(&mut self, token: TokenId) {
        debug_assert!(self.len() < self.max_len, "the sequence should have ended");
        self.output.push(token);
    }
}
