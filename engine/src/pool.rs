//! The KV blocks: who holds which, and which hold something worth finding again.
//!
//! A block is *held* while its count of holders is above zero, else it waits in one list in the order of
//! eviction. A full block whose content is known is *published* under a [`Key`]; it can be found and shared,
//! also while nobody holds it, until it is evicted for new content. Only published blocks are ever shared,
//! and they are full, so nobody writes to a block that has two holders.

#[cfg(test)]
pub(crate) mod tests;

use std::hash::{Hash, Hasher};

use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

use crate::{BlockId, TokenId};

/// Identity of a full block's content: a hash over the tenant's salt and all tokens up to the block's end.
/// SHA-256, since who can make two prompts collide can read another's cache; the block's own tokens are
/// compared nevertheless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key([u8; 32]);

impl Key {
    /// The parent of first blocks that are shared between all requests with the same salt.
    pub fn shared(salt: Option<&str>) -> Self {
        Self::digest(|hash| match salt {
            None => hash.update(b"shared"),
            Some(salt) => {
                hash.update(b"salted");
                hash.update(salt.as_bytes());
            }
        })
    }

    /// The parent of first blocks that only one request shares among its choices.
    pub fn private(request: u64) -> Self {
        Self::digest(|hash| {
            hash.update(b"private");
            hash.update(request.to_le_bytes());
        })
    }

    /// The block that follows and holds `tokens`.
    pub fn child(&self, tokens: impl IntoIterator<Item = TokenId>) -> Self {
        Self::digest(|hash| {
            hash.update(self.0);
            for token in tokens {
                hash.update(token.to_le_bytes());
            }
        })
    }

    fn digest(write: impl FnOnce(&mut Sha256)) -> Self {
        let mut hash = Sha256::new();
        write(&mut hash);
        Key(hash.finalize().into())
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Any eight bytes of a digest are as good as all of them.
        state.write_u64(u64::from_le_bytes(self.0[..8].try_into().expect("eight bytes")));
    }
}

#[derive(Clone, Debug)]
struct Block {
    holders: u32,
    key: Option<Key>,
    // Neighbours in the circular list of blocks without holders.
    before: u32,
    after: u32,
}

/// All blocks of the backend.
#[derive(Debug)]
pub struct Pool {
    block_size: usize,
    // One more than there are blocks: the last is the list's head.
    blocks: Vec<Block>,
    // What the published blocks hold, block after block.
    contents: Vec<TokenId>,
    published: FxHashMap<Key, BlockId>,
    free: usize,
}

impl Pool {
    /// `blocks` free blocks of `block_size` tokens.
    ///
    /// # Panics
    /// If `block_size` is 0, or there are 2³² blocks.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        assert!(block_size > 0, "a block holds at least one token");
        let head = u32::try_from(blocks).expect("block ids are 32 bits wide");
        let link = |at: u32| Block {
            holders: 0,
            key: None,
            before: if at == 0 { head } else { at - 1 },
            after: if at == head { 0 } else { at + 1 },
        };
        Pool {
            block_size,
            blocks: (0..=head).map(link).collect(),
            contents: vec![0; blocks * block_size],
            // Twice what can be in it, so that it never grows, whatever is erased and inserted.
            published: FxHashMap::with_capacity_and_hasher(2 * blocks, Default::default()),
            free: blocks,
        }
    }

    /// Tokens in a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in the pool.
    pub fn total(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Blocks that nobody holds, cached ones included.
    pub fn free(&self) -> usize {
        self.free
    }

    /// How many tables a block is in.
    pub fn holders(&self, block: BlockId) -> usize {
        self.blocks[block.0 as usize].holders as usize
    }

    /// Blocks that hold `tokens` tokens.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Takes the block that is the first to be evicted.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let first = self.blocks[self.total()].after;
        if first as usize == self.total() {
            return None;
        }
        self.unlink(first);
        let block = &mut self.blocks[first as usize];
        block.holders = 1;
        if let Some(key) = block.key.take() {
            self.published.remove(&key);
        }
        Some(BlockId(first))
    }

    /// The published block of this key and these tokens.
    pub fn find(&self, key: &Key, tokens: impl IntoIterator<Item = TokenId>) -> Option<BlockId> {
        let block = *self.published.get(key)?;
        let content = &self.contents[block.0 as usize * self.block_size..][..self.block_size];
        content.iter().copied().eq(tokens).then_some(block)
    }

    /// One more holder of a block that was found.
    pub fn share(&mut self, block: BlockId) {
        debug_assert!(self.blocks[block.0 as usize].key.is_some(), "{block:?} is not published");
        if self.blocks[block.0 as usize].holders == 0 {
            self.unlink(block.0);
        }
        self.blocks[block.0 as usize].holders += 1;
    }

    /// Lets others find a block that its holder has filled. Where another block has the same content already,
    /// this one stays private: block tables are never rewritten.
    pub fn publish(&mut self, block: BlockId, key: Key, tokens: impl IntoIterator<Item = TokenId>) {
        let entry = &mut self.blocks[block.0 as usize];
        debug_assert!(entry.holders == 1 && entry.key.is_none(), "{block:?} is not its holder's to publish");
        if self.published.contains_key(&key) {
            return;
        }
        entry.key = Some(key);
        self.published.insert(key, block);
        let content = &mut self.contents[block.0 as usize * self.block_size..][..self.block_size];
        content.iter_mut().zip(tokens).for_each(|(to, token)| *to = token);
    }

    /// Gives a table back, deepest block first: a prefix is of use without its continuation, but not the
    /// other way round. Blocks that nobody can find are the next to be used.
    pub fn release(&mut self, table: &mut Vec<BlockId>) {
        while let Some(BlockId(id)) = table.pop() {
            let block = &mut self.blocks[id as usize];
            block.holders = block.holders.checked_sub(1).expect("a block is given back by a holder");
            if block.holders == 0 {
                let (last, head) = (block.key.is_some(), self.total());
                self.link_before(id, if last { head as u32 } else { self.blocks[head].after });
            }
        }
    }

    fn link_before(&mut self, id: u32, after: u32) {
        let before = self.blocks[after as usize].before;
        (self.blocks[id as usize].before, self.blocks[id as usize].after) = (before, after);
        self.blocks[before as usize].after = id;
        self.blocks[after as usize].before = id;
        self.free += 1;
    }

    fn unlink(&mut self, id: u32) {
        let Block { before, after, .. } = self.blocks[id as usize];
        self.blocks[before as usize].after = after;
        self.blocks[after as usize].before = before;
        self.free -= 1;
    }
}
