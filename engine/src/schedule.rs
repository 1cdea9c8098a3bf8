//! Which tokens the next step computes. A pure decision: no clock, lock, channel, or log.
//!
//! There is no prefill phase and no decode phase. A sequence has a length and a count of computed tokens, and
//! each step lets counts catch up with lengths within a budget of tokens (the idea of vLLM's V1 scheduler).
//! A chunk of a prompt, a decode, the rest of a prompt whose start was cached, and the second run of a sequence
//! that lost its blocks are the same arithmetic.
//!
//! Sequences stand in line by priority, then arrival, and nobody overtakes: running ones are served in that
//! order, and waiting ones are admitted in it. Each decode has its token reserved before prompts share the rest.
//! Sequences hold the blocks they use, not those they may come to need, so the pool can run out; then the last
//! in line gives its blocks back and computes its tokens again later.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Bound;

use rustc_hash::FxHashSet;

use crate::pool::{Key, Pool};
use crate::sequence::{Place, Sequence};
use crate::{Batching, Row, SeqId, Step, TokenId, Want};

/// What a step may hold, by the operator and the backend.
#[derive(Clone, Debug)]
pub struct Limits {
    /// New tokens; at least as many as `rows`.
    pub tokens: usize,
    /// Sequences that run at once, and rows.
    pub rows: usize,
    /// Rows of logits; at least as many as `rows`.
    pub logits: usize,
    /// Tokens of prompts in a step that also decodes.
    pub prefill_beside_decode: usize,
    /// When sequences are admitted.
    pub batching: Batching,
}

/// A step, and what its planning did. Reused from step to step.
#[derive(Debug, Default)]
pub struct Plan {
    /// The step; empty where nothing is left to do.
    pub step: Step,
    /// Sequences that got their first tokens scheduled, or lost their blocks before and are back.
    pub admitted: Vec<SeqId>,
    /// Sequences that lost their blocks.
    pub preemptions: usize,
    /// Prompt tokens that were looked up in the prefix cache.
    pub prefix_queries: usize,
    /// Prompt tokens that were found in it.
    pub prefix_hits: usize,
}

impl Plan {
    /// With room for steps of so many tokens and rows, and for tables of so many blocks together.
    pub fn with_capacity(tokens: usize, rows: usize, blocks: usize) -> Self {
        let step = Step {
            tokens: Vec::with_capacity(tokens),
            blocks: Vec::with_capacity(blocks),
            rows: Vec::with_capacity(rows),
            ..Step::default()
        };
        Plan { step, admitted: Vec::with_capacity(rows), ..Plan::default() }
    }
}

/// What prompts may still take from a step.
struct Left {
    tokens: usize,
    logits: usize,
}

/// The sequences, in line, and the blocks.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: Pool,
    // In line, until a plan admits sequences behind them; the next one puts those in their places.
    running: Vec<Sequence>,
    waiting: BTreeMap<Place, Sequence>,
    // Of each row of the step, the place of its sequence in `running`.
    planned: Vec<usize>,
    // Blocks that a sequence further up the line is about to fill.
    claims: FxHashSet<Key>,
}

impl Scheduler {
    /// No sequences.
    ///
    /// # Panics
    /// If the limits let a batch of decodes starve.
    pub fn new(pool: Pool, limits: Limits) -> Self {
        let Limits { tokens, rows, logits, prefill_beside_decode, .. } = limits;
        assert!(rows > 0 && tokens >= rows && logits >= rows && prefill_beside_decode > 0, "{limits:?}");
        Scheduler {
            running: Vec::with_capacity(rows),
            planned: Vec::with_capacity(rows),
            waiting: BTreeMap::new(),
            claims: FxHashSet::default(),
            pool,
            limits,
        }
    }

    /// Puts a sequence in line.
    pub fn add(&mut self, seq: Sequence) {
        self.waiting.insert(seq.place, seq);
    }

    /// Chooses the next step. Each of its rows is then committed, or its sequence cancelled, before the next
    /// plan.
    pub fn plan(&mut self, plan: &mut Plan) {
        plan.step.clear();
        plan.admitted.clear();
        (plan.preemptions, plan.prefix_queries, plan.prefix_hits) = (0, 0, 0);
        self.planned.clear();
        self.claims.clear();
        if !self.running.is_sorted_by_key(|seq| seq.place) {
            self.running.sort_unstable_by_key(|seq| seq.place);
        }

        let open = self.limits.batching == Batching::Continuous || self.running.is_empty();
        let decodes = self.running.iter().filter(|seq| seq.missing() == 1).count();
        let mut left = Left { tokens: self.limits.tokens - decodes, logits: self.limits.logits - decodes };
        if decodes > 0 {
            left.tokens = left.tokens.min(self.limits.prefill_beside_decode);
        }

        let mut at = 0;
        while at < self.running.len() {
            let count = match self.running[at].missing() {
                1 => 1,
                _ => self.chunk(at, &mut left, plan),
            };
            if count > 0 && !self.schedule(at, count, plan) {
                break;
            }
            at += 1;
        }
        // Whoever was admitted into a pool that has just run out would lose its blocks next.
        if open && plan.preemptions == 0 {
            self.admit(left, plan);
        }
    }

    fn admit(&mut self, mut left: Left, plan: &mut Plan) {
        let mut promised: usize = self.running.iter().map(|seq| self.owed(seq)).sum();
        let whole_batch = self.limits.batching == Batching::Static;
        while self.running.len() < self.limits.rows && (left.tokens > 0 || whole_batch) {
            let Some(first) = self.waiting.first_entry() else { break };
            if !self.running.is_empty() && !fits(first.get(), &self.pool, promised) {
                break;
            }
            let mut seq = first.remove();
            seq.make_room(&self.pool);
            plan.admitted.push(seq.place.seq);
            if !seq.preempted && seq.reads_cache() {
                plan.prefix_queries += seq.prompt_len();
            }
            let at = self.running.len();
            self.running.push(seq);
            let count = self.chunk(at, &mut left, plan);
            if count > 0 && !self.schedule(at, count, plan) {
                break;
            }
            promised += self.owed(&self.running[at]);
        }
    }

    /// Blocks that a sequence lacks to compute all of its tokens and go on.
    fn owed(&self, seq: &Sequence) -> usize {
        seq.room(&self.pool) - seq.table.len()
    }

    /// How many tokens of a prompt (or of a sequence that lost its blocks) to compute, after those that are
    /// found in the cache. Zero where nothing is left of the budget, or where somebody further up the line is
    /// filling the very block that is needed next: it will be there to share when it is filled.
    fn chunk(&mut self, at: usize, left: &mut Left, plan: &mut Plan) -> usize {
        let (seq, pool) = (&mut self.running[at], &mut self.pool);
        let size = pool.block_size();
        // At least one token is computed, as its logits are wanted; so a block that ends the sequence is not shared.
        while seq.reads_cache() && seq.computed.is_multiple_of(size) && seq.computed + size < seq.len() {
            let block = seq.computed / size;
            let key = seq.key(block).expect("full blocks of known tokens have keys");
            let Some(found) = pool.find(key, seq.tokens(block * size, size)) else {
                if self.claims.contains(key) {
                    return 0;
                }
                break;
            };
            pool.share(found);
            seq.table.push(found);
            seq.computed += size;
            if !seq.preempted {
                let hit = size.min(seq.prompt_len().saturating_sub(block * size));
                seq.cached += hit;
                plan.prefix_hits += hit;
            }
        }

        let mut count = seq.missing().min(left.tokens);
        let mut want = seq.want(count);
        if want == Want::All {
            count = count.min(left.logits);
            want = seq.want(count);
        }
        if want == Want::Last && left.logits == 0 {
            count -= 1;
            want = Want::Nothing;
        }
        left.tokens -= count;
        left.logits -= logits(want, count);
        for block in seq.computed / size..(seq.computed + count).div_ceil(size) {
            if let Some(key) = seq.key(block) {
                self.claims.insert(*key);
            }
        }
        count
    }

    /// Reserves the blocks of a row and writes it. False where the sequence was itself the last in line to
    /// take blocks from.
    fn schedule(&mut self, at: usize, count: usize, plan: &mut Plan) -> bool {
        let seq = &self.running[at];
        let needed = self.pool.blocks_for(seq.computed + count) - seq.table.len();
        while self.pool.free() < needed {
            plan.preemptions += 1;
            self.preempt_last();
            if at == self.running.len() {
                return false;
            }
        }
        let seq = &mut self.running[at];
        seq.table.extend((0..needed).map(|_| self.pool.allocate().expect("enough are free")));

        let step = &mut plan.step;
        step.rows.push(Row {
            seq: seq.place.seq,
            first: step.tokens.len() as u32,
            count: count as u32,
            position: seq.computed as u32,
            first_block: step.blocks.len() as u32,
            blocks: seq.table.len() as u32,
            want: seq.want(count),
        });
        step.tokens.extend(seq.tokens(seq.computed, count));
        step.blocks.extend_from_slice(&seq.table);
        self.planned.push(at);
        true
    }

    fn preempt_last(&mut self) {
        let mut seq = self.running.pop().expect("who needs blocks is running");
        self.pool.release(&mut seq.table);
        seq.computed = 0;
        seq.preempted = true;
        self.waiting.insert(seq.place, seq);
    }

    /// The sequence of a row of the last plan.
    pub fn planned(&self, row: usize) -> &Sequence {
        &self.running[self.planned[row]]
    }

    /// A row was computed, and `token` was sampled from its logits, if any.
    ///
    /// # Panics
    /// If a token comes for a row that does not complete its sequence, or a sequence was cancelled since the plan.
    pub fn commit(&mut self, plan: &Plan, row: usize, token: Option<TokenId>) {
        let Row { seq: id, count, .. } = plan.step.rows[row];
        let seq = &mut self.running[self.planned[row]];
        assert_eq!(seq.place.seq, id, "no cancellation between plan and commit");
        seq.advance(count as usize, &mut self.pool);
        if let Some(token) = token {
            assert_eq!(seq.missing(), 0, "{id:?} has tokens left to compute");
            seq.push(token);
        }
    }

    /// Forgets a sequence, wherever it stands, and takes its blocks back: the one way out, for those that have
    /// ended too. Not to be called between a plan and the last commit of its rows. Yields whether the sequence was there.
    pub fn cancel(&mut self, place: Place) -> bool {
        self.planned.clear();
        match self.running.iter().position(|seq| seq.place == place) {
            Some(at) => {
                let mut seq = self.running.remove(at);
                self.pool.release(&mut seq.table);
                true
            }
            None => self.waiting.remove(&place).is_some(),
        }
    }

    /// Running sequences, in no particular order.
    pub fn running(&self) -> impl ExactSizeIterator<Item = &Sequence> {
        self.running.iter()
    }

    /// Waiting sequences.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Waiting sequences in line, from behind `place` on.
    pub fn waiting_behind(&self, place: Option<Place>) -> impl Iterator<Item = Place> {
        let from = place.map_or(Bound::Unbounded, Bound::Excluded);
        self.waiting.range((from, Bound::Unbounded)).map(|(place, _)| *place)
    }

    /// The blocks.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}

fn logits(want: Want, count: usize) -> usize {
    match want {
        Want::Nothing => 0,
        Want::Last => 1,
        Want::All => count,
    }
}

/// Whether the pool holds all known tokens of a waiting sequence, one block more for it to go on, and what is
/// `promised` to those that run. Without the slack, a sequence that lost its blocks would come back only to
/// lose them again.
fn fits(seq: &Sequence, pool: &Pool, promised: usize) -> bool {
    let Some(free) = pool.free().checked_sub(promised) else { return false };
    let size = pool.block_size();
    let shareable = if seq.reads_cache() { (seq.len() - 1) / size } else { 0 };
    let find = |block| pool.find(seq.key(block)?, seq.tokens(block * size, size));
    // A cached block that nobody holds counts as free, and is not once it is shared.
    let held = (0..shareable).map_while(find).filter(|block| pool.holders(*block) > 0).count();
    free + held >= seq.room(pool)
}
