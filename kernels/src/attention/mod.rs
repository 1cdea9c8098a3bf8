//! Paged attention: causal attention of a step's new tokens to the cache blocks of their sequences.

use millrace_graph::{Attention, Type};

use crate::kv::KvTensor;

/// Which row of the block tables each new token belongs to.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Token `t` belongs to row `rows[t]`.
    PerToken(&'a [i32]),
    /// Token `t` belongs to row `t / width`.
    Width(usize),
}

/// One paged attention: `[T, H, D]` queries to the caches of one layer. Plan it with [`Schedule::plan`], then
/// have each item run once, by any thread.
#[derive(Clone, Copy, Debug)]
pub struct AttentionCall<'a> {
    /// Queries: token `t`'s `[H, D]` at `q + t · q_stride`.
    pub q: *const f32,
    /// Elements from one token's queries to the next's.
    pub q_stride: usize,
    /// H; a multiple of the caches' G.
    pub heads: usize,
    /// Keys.
    pub k: &'a KvTensor,
    /// Values, of the same type.
    pub v: &'a KvTensor,
    /// Block tables, row-major.
    pub tables: &'a [i32],
    /// Entries from one row of the tables to the next.
    pub table_stride: usize,
    /// Position of each token in its sequence; T of them.
    pub positions: &'a [i32],
    /// Each token's row.
    pub rows: Rows<'a>,
    /// Scale, window, softcap (the width is in `rows`).
    pub params: Attention,
    /// Results: token `t`'s `[H, D]` at `out + t · out_stride`.
    pub out: *mut f32,
    /// Elements from one token's results to the next's.
    pub out_stride: usize,
}

// SAFETY: the pointers are used by `run` alone, whose contract covers threads.
unsafe impl Send for AttentionCall<'_> {}
// SAFETY: as above.
unsafe impl Sync for AttentionCall<'_> {}

/// The division of a call into items that threads may run in any order. Depends on tables, positions, rows
/// and window, and not on the layer: one plan serves all layers of a step that have these in common.
#[derive(Debug)]
pub struct Schedule {
    items: usize,
}

impl Schedule {
    /// A schedule for calls of up to `tokens` tokens with `heads` query heads to caches of type `cache`, run
    /// by `workers` threads. Takes all memory that planning will need.
    pub fn new(_heads: usize, _cache: &Type, _tokens: usize, _workers: usize) -> Self {
        Schedule { items: 0 }
    }

    /// Divides the call. Allocates nothing.
    pub fn plan(&mut self, call: &AttentionCall<'_>) {
        self.items = call.positions.len() * call.heads;
    }

    /// Items to run: `0 .. items`.
    pub fn items(&self) -> usize {
        self.items
    }
}

/// What a thread needs to run items; its own.
#[derive(Debug)]
pub struct Scratch {
    row: Vec<f32>,
}

impl Scratch {
    /// Scratch for calls with `heads` query heads to caches of type `cache`.
    pub fn new(_heads: usize, cache: &Type) -> Self {
        Scratch { row: vec![0.0; cache.shape[2] * cache.shape[3]] }
    }
}

impl AttentionCall<'_> {
    /// Runs one item of the schedule.
    ///
    /// # Safety
    /// - `schedule` was planned for this call (or one that differs in pointers and caches alone).
    /// - `q` and `out` are valid for all tokens, and nobody writes `q` or the caches meanwhile.
    /// - Every position is at least 0, every row is one of the tables, and the first `position / S + 1` table
    ///   entries of a token's row are blocks of the caches.
    /// - No item runs twice at once; a reader of `out` comes after all of them.
    pub unsafe fn run(&self, _schedule: &Schedule, item: usize, scratch: &mut Scratch) {
        let (token, head) = (item / self.heads, item % self.heads);
        let &[_, block, groups, dim] = &self.k.ty().shape[..] else { unreachable!("checked by the cache") };
        let group = head * groups / self.heads;
        let row = match self.rows {
            Rows::PerToken(rows) => rows[token] as usize,
            Rows::Width(width) => token / width,
        };
        let table = &self.tables[row * self.table_stride..];
        let end = self.positions[token] as usize + 1;
        let first = self.params.window.map_or(0, |window| end.saturating_sub(window));
        // SAFETY: the caller's.
        let q = unsafe { std::slice::from_raw_parts(self.q.add(token * self.q_stride + head * dim), dim) };
        // SAFETY: the caller's.
        let out =
            unsafe { std::slice::from_raw_parts_mut(self.out.add(token * self.out_stride + head * dim), dim) };
        let mut sum = 0.0;
        let mut max = f32::NEG_INFINITY;
        out.fill(0.0);
        for position in first..end {
            let slot = table[position / block] as usize * block + position % block;
            self.k.read(slot, &mut scratch.row);
            let key = &scratch.row[group * dim..][..dim];
            let mut score = q.iter().zip(key).map(|(a, b)| a * b).sum::<f32>() * self.params.scale;
            if let Some(cap) = self.params.softcap {
                score = cap * (score / cap).tanh();
            }
            let new = score.max(max);
            let (rescale, weight) = ((max - new).exp(), (score - new).exp());
            max = new;
            sum = sum * rescale + weight;
            self.v.read(slot, &mut scratch.row);
            for (out, value) in out.iter_mut().zip(&scratch.row[group * dim..]) {
                *out = *out * rescale + weight * value;
            }
        }
        out.iter_mut().for_each(|out| *out /= sum);
    }
}
