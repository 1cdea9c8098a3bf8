//! The pool by itself; the scheduler's tests drive it through every state.

use super::*;

impl Pool {
    /// Every block is either held or once in the list, and those that are published are what the map says.
    pub(crate) fn check(&self) {
        let mut listed = vec![false; self.total()];
        let (mut at, mut before) = (self.blocks[self.total()].after as usize, self.total());
        while at != self.total() {
            assert!(!std::mem::replace(&mut listed[at], true), "block {at} is listed twice");
            assert_eq!(self.blocks[at].before as usize, before);
            (at, before) = (self.blocks[at].after as usize, at);
        }
        assert_eq!(self.free(), listed.iter().filter(|listed| **listed).count());
        for (at, listed) in listed.iter().enumerate() {
            assert_eq!(*listed, self.blocks[at].holders == 0, "block {at} is free or held");
            if let Some(key) = self.blocks[at].key {
                assert_eq!(self.published[&key].0 as usize, at);
            }
        }
        assert_eq!(self.published.len(), self.blocks.iter().filter(|block| block.key.is_some()).count());
    }
}

fn fill(pool: &mut Pool, prompt: &[TokenId]) -> Vec<BlockId> {
    let size = pool.block_size();
    let mut key = Key::shared(None);
    let mut table = Vec::new();
    for tokens in prompt.chunks(size) {
        let block = pool.allocate().expect("a free block");
        table.push(block);
        if tokens.len() == size {
            key = key.child(tokens.iter().copied());
            pool.publish(block, key, tokens.iter().copied());
        }
    }
    table
}

fn found(pool: &Pool, prompt: &[TokenId]) -> usize {
    let mut key = Key::shared(None);
    let blocks = prompt.chunks_exact(pool.block_size()).map_while(|tokens| {
        key = key.child(tokens.iter().copied());
        pool.find(&key, tokens.iter().copied())
    });
    blocks.count()
}

#[test]
fn the_least_recently_used_prefix_goes_first_and_its_deepest_block_before_the_rest() {
    let mut pool = Pool::new(8, 2);
    let (old, new) = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]);
    let mut tables = [fill(&mut pool, &old), fill(&mut pool, &new)];
    tables.iter_mut().for_each(|table| pool.release(table));
    pool.check();
    assert_eq!((pool.free(), found(&pool, &old), found(&pool, &new)), (8, 3, 2));
    // The two never used and the one that is not full; then the old prefix from its end.
    for (old_left, new_left) in [(3, 2), (3, 2), (3, 2), (2, 2), (1, 2), (0, 2), (0, 1), (0, 0)] {
        pool.allocate().expect("a free block");
        pool.check();
        assert_eq!((found(&pool, &old), found(&pool, &new)), (old_left, new_left));
    }
    assert_eq!(pool.allocate(), None);
}

#[test]
fn a_key_is_only_a_hint() {
    let mut pool = Pool::new(2, 2);
    let key = Key::shared(None).child([1, 2]);
    let block = pool.allocate().expect("a free block");
    pool.publish(block, key, [1, 2]);
    assert_eq!(pool.find(&key, [1, 2]), Some(block));
    assert_eq!(pool.find(&key, [1, 3]), None);
}

#[test]
fn keys_depend_on_the_salt_the_parent_and_the_tokens() {
    let roots =
        [Key::shared(None), Key::shared(Some("")), Key::shared(Some("a")), Key::private(0), Key::private(1)];
    let mut keys: Vec<_> = roots
        .iter()
        .flat_map(|root| [*root, root.child([1, 2]), root.child([2, 1]), root.child([1]).child([2])])
        .collect();
    let all = keys.len();
    keys.sort_by_key(|key| key.0);
    keys.dedup();
    assert_eq!(keys.len(), all);
}

#[test]
fn a_second_block_of_the_same_content_stays_private() {
    let mut pool = Pool::new(3, 2);
    let (mut first, mut second) = (fill(&mut pool, &[1, 2]), fill(&mut pool, &[1, 2]));
    let key = Key::shared(None).child([1, 2]);
    assert_eq!(pool.find(&key, [1, 2]), Some(first[0]));
    pool.release(&mut first);
    pool.share(pool.find(&key, [1, 2]).expect("it is cached"));
    assert_eq!(pool.free(), 1);
    pool.release(&mut second);
    pool.check();
    assert_eq!(pool.free(), 2);
}
