//! Which tokens are attended for together, and what may run at once.
//!
//! Tokens are sorted by the contents of their block tables, so that those that share physical blocks become
//! neighbours: the tokens of a prompt chunk, and sequences with a common prefix. Neighbours form **groups** of
//! as many queries as fit a core's caches; a group loads each page once. A group's context is cut into
//! **segments** of fixed positions. Where there are fewer groups than the workers need, their segments run as
//! items of their own and the last to finish merges them; else one item does them all in turn. Both ways give
//! the same bits, for each segment's result is merged in order of position.

use std::{
    cell::UnsafeCell,
    cmp::Ordering,
    ops::Range,
    sync::atomic::{self, AtomicU32},
};

use millrace_graph::Type;

use super::{AttentionCall, Shape};
use crate::cpu::{self, Isa};

/// Queries of a group, where one token has not more: with keys, values and states they stay in a core's L2, and
/// pages cost little beside the arithmetic on them.
const QUERIES: usize = 64;
/// Items that each worker should find, so that the last ones to finish leave little idle.
const ITEMS_PER_WORKER: usize = 8;
/// Segments, for each query head, that there is room to keep the results of until they are merged.
const KEPT_SEGMENTS: usize = 1024;

/// The division of a call into items that threads may run in any order. It depends on the tables, positions,
/// rows and window, and not on the layer: one plan serves all layers of a step that have these in common.
#[derive(Debug)]
pub struct Schedule {
    pub(super) isa: Isa,
    pub(super) shape: Shape,
    workers: usize,
    /// Tokens of the call, those that share blocks side by side.
    pub(super) tokens: Vec<u32>,
    pub(super) groups: Vec<Group>,
    parts: Vec<Part>,
    pub(super) kept: Kept,
    /// Unfinished parts of each group that has several, for each KV head.
    pub(super) pending: Vec<AtomicU32>,
}

/// Tokens that are attended for together.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Indices into [`Schedule::tokens`].
    pub(super) tokens: Range<usize>,
    /// Segments that any of them sees.
    pub(super) segments: Range<usize>,
    /// Where the group runs as several items.
    pub(super) split: Option<Split>,
}

/// Where the results of a group's segments are kept until they are merged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    pub(super) parts: u32,
    /// Of KV head 0, in [`Schedule::pending`]; the other heads follow.
    pub(super) counter: usize,
    /// The first record in [`Kept`]; records follow by KV head, segment, query.
    pub(super) record: usize,
}

/// Consecutive segments of a group; with a KV head it is an item.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) group: usize,
    pub(super) segments: Range<usize>,
    work: usize,
}

/// Records that items of one group hand to each other.
#[derive(Debug)]
pub(super) struct Kept(Box<[UnsafeCell<f32>]>);

// SAFETY: items write disjoint records, and read others' only after the counter said that they are complete.
unsafe impl Sync for Kept {}

impl Kept {
    fn new(floats: usize) -> Self {
        // From a vector, because untouched zeros of a vector take no memory.
        let floats: *mut [f32] = Box::into_raw(vec![0.0; floats].into_boxed_slice());
        // SAFETY: a cell has the layout of what is in it.
        Kept(unsafe { Box::from_raw(floats as *mut [UnsafeCell<f32>]) })
    }

    /// The record's first float.
    pub(super) fn record(&self, shape: &Shape, record: usize) -> *mut f32 {
        UnsafeCell::raw_get(self.0[record * shape.record()..].as_ptr())
    }
}

impl Schedule {
    /// A schedule for calls of up to `tokens` tokens with `heads` query heads to caches of type `cache`, run
    /// by `workers` threads (which has no influence on results). It takes all memory that planning will need.
    ///
    /// # Panics
    /// Where `cache` is no KV cache's type or its heads do not divide `heads`.
    pub fn new(heads: usize, cache: &Type, tokens: usize, workers: usize) -> Self {
        let shape = Shape::new(heads, cache);
        let items = workers * ITEMS_PER_WORKER;
        let kept = if workers > 1 { KEPT_SEGMENTS * heads * shape.record() } else { 0 };
        Schedule {
            isa: cpu::isa(),
            shape,
            workers,
            tokens: Vec::with_capacity(tokens),
            groups: Vec::with_capacity(tokens),
            parts: Vec::with_capacity(tokens + items),
            kept: Kept::new(kept),
            pending: (0..items * shape.kv_heads).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Has calls run with other instructions than the best; the results are the same.
    ///
    /// # Panics
    /// Where the processor does not have them.
    #[must_use]
    pub fn with_isa(mut self, isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "{isa:?} on a processor without it");
        self.isa = isa;
        self
    }

    /// Divides the call. Allocates nothing where it has not more tokens than were promised.
    ///
    /// # Panics
    /// Where heads or caches are not those that the schedule was made for, or rows are missing.
    pub fn plan(&mut self, call: &AttentionCall<'_>) {
        call.check(&self.shape);
        self.tokens.clear();
        self.tokens.extend(0..call.positions.len() as u32);
        self.tokens.sort_unstable_by(|a, b| by_blocks(call, *a as usize, *b as usize));
        self.group(call);
        self.divide(call);
    }

    /// Items to run: `0 .. items()`.
    pub fn items(&self) -> usize {
        self.parts.len() * self.shape.kv_heads
    }

    /// What an item is: a part and a KV head. Items with much work come first.
    pub(super) fn item(&self, item: usize) -> (&Part, usize) {
        (&self.parts[item / self.shape.kv_heads], item % self.shape.kv_heads)
    }

    fn group(&mut self, call: &AttentionCall<'_>) {
        self.groups.clear();
        let most = group_tokens(self.shape.queries);
        for (i, token) in self.tokens.iter().enumerate() {
            let segments = call.segments(&self.shape, *token as usize);
            match self.groups.last_mut() {
                Some(group)
                    if group.tokens.len() < most
                        && share(call, &self.shape, self.tokens[i - 1] as usize, *token as usize) =>
                {
                    group.tokens.end += 1;
                    group.segments.start = group.segments.start.min(segments.start);
                    group.segments.end = group.segments.end.max(segments.end);
                }
                _ => self.groups.push(Group { tokens: i..i + 1, segments, split: None }),
            }
        }
    }

    fn divide(&mut self, call: &AttentionCall<'_>) {
        self.parts.clear();
        let shape = self.shape;
        let work = |group: &Group| {
            self.tokens[group.tokens.clone()].iter().map(|t| call.visible(*t as usize).len()).sum::<usize>()
        };
        let total: usize = self.groups.iter().map(work).sum();
        let wanted =
            if self.workers > 1 { (self.workers * ITEMS_PER_WORKER).div_ceil(shape.kv_heads) } else { 1 };
        let room = self.kept.0.len() / shape.record();
        let (mut record, mut counter) = (0, 0);
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let (work, segments) = (work(group), group.segments.clone());
            // Segments of a part, so that parts come near their share of the work.
            let share = (work * wanted / total.max(1)).clamp(1, segments.len());
            let step = segments.len().div_ceil(share);
            let parts = segments.len().div_ceil(step);
            let records = shape.kv_heads * segments.len() * group.tokens.len() * shape.queries;
            let fits = record + records <= room && counter + shape.kv_heads <= self.pending.len();
            if parts == 1 || !fits {
                self.parts.push(Part { group: index, segments, work });
                continue;
            }
            self.groups[index].split = Some(Split { parts: parts as u32, counter, record });
            for head in &mut self.pending[counter..counter + shape.kv_heads] {
                *head.get_mut() = parts as u32;
            }
            for start in segments.clone().step_by(step) {
                let segments = start..segments.end.min(start + step);
                self.parts.push(Part { group: index, segments, work: work / parts });
            }
            record += records;
            counter += shape.kv_heads;
        }
        self.parts
            .sort_unstable_by_key(|part| (std::cmp::Reverse(part.work), part.group, part.segments.start));
    }

    /// Says that a part of a split group is complete for a KV head; true for the last one, which then sees what
    /// all of them wrote. The counter is ready for the next layer then.
    pub(super) fn complete(&self, split: &Split, head: usize) -> bool {
        let pending = &self.pending[split.counter + head];
        let last = pending.fetch_sub(1, atomic::Ordering::AcqRel) == 1;
        if last {
            pending.store(split.parts, atomic::Ordering::Relaxed);
        }
        last
    }
}

/// Tokens of a group when each has so many queries to a KV head.
pub(super) fn group_tokens(queries: usize) -> usize {
    (QUERIES / queries).max(1)
}

/// Sorts tokens by the blocks they see from the first on, then by row and position.
fn by_blocks(call: &AttentionCall<'_>, a: usize, b: usize) -> Ordering {
    let (row_a, row_b) = (call.row(a), call.row(b));
    let tables = if row_a == row_b { Ordering::Equal } else { call.table(a).cmp(call.table(b)) };
    tables.then_with(|| (row_a, call.positions[a], a).cmp(&(row_b, call.positions[b], b)))
}

/// Whether two tokens have a block in common, judged by the first that both see: blocks are shared as prefixes.
fn share(call: &AttentionCall<'_>, shape: &Shape, a: usize, b: usize) -> bool {
    let first = call.visible(a).start.max(call.visible(b).start) / shape.block;
    match (call.table(a).get(first), call.table(b).get(first)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}
