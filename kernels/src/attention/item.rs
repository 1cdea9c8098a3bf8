//! One item: a KV head for a group of tokens, over some segments of their context.

use std::ops::Range;

use millrace_graph::{DType, Type};

use super::{
    AttentionCall, Shape,
    schedule::{Schedule, group_tokens},
    simd::{Element, Function, Simd, exp2, fold_sum},
    tile::{self, Tile},
};
use crate::kv::{KvTensor, LANES};

/// What a thread needs to run items; its own.
#[derive(Debug)]
pub struct Scratch {
    shape: Shape,
    /// `[queries][D]`, scaled.
    q: Vec<f32>,
    /// Records of the segment at hand, and of all before it.
    segment: Vec<f32>,
    total: Vec<f32>,
    /// What the group's tokens see.
    views: Vec<View>,
    /// What those of a run see of the tile at hand: from, to.
    ranges: Vec<(usize, usize)>,
    tile: tile::Scratch,
}

impl Scratch {
    /// Scratch for calls with `heads` query heads to caches of type `cache`.
    ///
    /// # Panics
    /// Where `cache` is no KV cache's type or its heads do not divide `heads`.
    pub fn new(heads: usize, cache: &Type) -> Self {
        let shape = Shape::new(heads, cache);
        let tokens = group_tokens(shape.queries);
        let queries = tokens * shape.queries;
        Scratch {
            shape,
            q: vec![0.0; queries * shape.dim],
            segment: vec![0.0; queries * shape.record()],
            total: vec![0.0; queries * shape.record()],
            views: vec![View::default(); tokens],
            ranges: vec![(0, 0); tokens],
            tile: tile::Scratch::new(&shape, queries),
        }
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }
}

/// The positions that a token sees, and where its block table starts.
#[derive(Clone, Copy, Default, Debug)]
struct View {
    start: usize,
    end: usize,
    table: usize,
}

/// A tile by its place in the context: its first position, and that position's place in a block table.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    block: usize,
    within: usize,
}

impl Place {
    fn new(shape: &Shape, first: usize) -> Self {
        Place { first, block: first / shape.block, within: first % shape.block }
    }
}

/// An item and what it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) call: &'a AttentionCall<'a>,
    pub(super) schedule: &'a Schedule,
    pub(super) item: usize,
}

impl Job<'_> {
    /// # Safety
    /// As for [`AttentionCall::run`]; `E` is the caches' element type.
    pub(super) unsafe fn run<S: Simd, E: Element>(self, s: S, scratch: &mut Scratch) {
        let Job { schedule, item, .. } = self;
        let shape = &schedule.shape;
        let (part, head) = schedule.item(item);
        let group = &schedule.groups[part.group];
        let tokens = &schedule.tokens[group.tokens.clone()];
        let queries = tokens.len() * shape.queries;
        let (total, own) = (scratch.total.as_mut_ptr(), scratch.segment.as_mut_ptr());
        // The records of a segment: kept where others merge them, and else used again by the next segment.
        let state = |segment: usize| match group.split {
            None => own,
            Some(split) => {
                let index = head * group.segments.len() + segment - group.segments.start;
                schedule.kept.record(shape, split.record + index * queries)
            }
        };
        // SAFETY: scratch has what a group's queries need, and kept records are this item's by the plan (or, once
        // all parts are complete, only read). Queries and results are the caller's to promise.
        unsafe {
            self.load(tokens, head, &mut scratch.q);
            self.look(tokens, &mut scratch.views);
            reset(shape, total, queries);
            for segment in part.segments.clone() {
                self.attend::<S, E>(s, tokens, head, segment, state(segment), scratch);
                if group.split.is_none() {
                    s.call(Merge { job: self, tokens, segment, total, state: own });
                }
            }
            if let Some(split) = group.split {
                if !schedule.complete(&split, head) {
                    return;
                }
                for segment in group.segments.clone() {
                    s.call(Merge { job: self, tokens, segment, total, state: state(segment) });
                }
            }
            s.call(Finish { job: self, tokens, head, total });
        }
    }

    /// Takes in the group's queries of a KV head, in units in which the softmax is one of powers of two (or,
    /// with a softcap, in which the cap is 1).
    ///
    /// # Safety
    /// The call's `q` is valid for these tokens.
    unsafe fn load(self, tokens: &[u32], head: usize, to: &mut [f32]) {
        let (params, shape) = (&self.call.params, &self.schedule.shape);
        let factor = params.softcap.map_or(params.scale * std::f32::consts::LOG2_E, |cap| params.scale / cap);
        let len = shape.queries * shape.dim;
        for (token, to) in tokens.iter().zip(to.chunks_exact_mut(len)) {
            let start = *token as usize * self.call.q_stride + head * len;
            // SAFETY: as the caller says.
            let from = unsafe { std::slice::from_raw_parts(self.call.q.add(start), len) };
            for (to, from) in to.iter_mut().zip(from) {
                *to = from * factor;
            }
        }
    }

    /// Notes what the tokens see, since it is asked for at every tile.
    fn look(self, tokens: &[u32], views: &mut [View]) {
        for (token, view) in tokens.iter().zip(views) {
            let Range { start, end } = self.call.visible(*token as usize);
            *view = View { start, end, table: self.call.row(*token as usize) * self.call.table_stride };
        }
    }

    /// One segment for all tokens of the group that see some of it.
    ///
    /// # Safety
    /// `state` has a record for each query of the group, and scratch its queries and views; for the rest see
    /// [`AttentionCall::run`].
    unsafe fn attend<S: Simd, E: Element>(
        self,
        s: S,
        tokens: &[u32],
        head: usize,
        segment: usize,
        state: *mut f32,
        scratch: &mut Scratch,
    ) {
        let Job { call, schedule, .. } = self;
        let shape = &schedule.shape;
        let views = &scratch.views[..tokens.len()];
        // SAFETY: as the caller says.
        unsafe { reset(shape, state, tokens.len() * shape.queries) };
        let end = views.iter().map(|view| view.end).max().unwrap_or(0).min((segment + 1) * shape.segment);
        let mut place = Place::new(shape, segment * shape.segment);
        while place.first < end {
            let after = Place::new(shape, place.first + shape.tile);
            let mut at = 0;
            while at < views.len() {
                let run = self.run_of(&views[at..], place, &mut scratch.ranges);
                if run == 0 {
                    at += 1;
                    continue;
                }
                let next = match views.get(at + run) {
                    Some(view) => self.ahead::<E>(view, head, place),
                    None => self.ahead::<E>(&views[0], head, after),
                };
                let (keys, values) = self.pages::<E>(&views[at], head, place);
                let scales = self.scales(&views[at], head, place);
                let tile = Tile {
                    shape,
                    softcap: call.params.softcap,
                    queries: run * shape.queries,
                    keys,
                    values,
                    scales,
                    q: scratch.q[at * shape.queries * shape.dim..].as_ptr(),
                    // SAFETY: the run lies within the group.
                    state: unsafe { state.add(at * shape.queries * shape.record()) },
                    ranges: &scratch.ranges[..run],
                    next,
                };
                // SAFETY: the pointers are to a tile of the cache and to the run's queries and records.
                unsafe { tile::attend(s, &tile, &mut scratch.tile) };
                at += run;
            }
            place = after;
        }
    }

    /// A tile's keys and values in the block where the token finds them.
    fn pages<E: Element>(self, view: &View, head: usize, place: Place) -> (*const E, *const E) {
        let (call, shape) = (self.call, &self.schedule.shape);
        let block = call.tables[view.table + place.block] as usize;
        let (keys, values) = (call.k.page(block, head).cast::<E>(), call.v.page(block, head).cast::<E>());
        // A tile's tokens follow those before it in the head's page.
        (keys.wrapping_add(place.within * shape.dim), values.wrapping_add(place.within * shape.padded_dim))
    }

    /// The scales of a tile's keys and of its values, in an 8-bit cache.
    fn scales(self, view: &View, head: usize, place: Place) -> Option<(*const f32, *const f32)> {
        let (call, shape) = (self.call, &self.schedule.shape);
        if shape.dtype != DType::I8 {
            return None;
        }
        let block = call.tables[view.table + place.block] as usize;
        let of = |cache: &KvTensor| {
            let page = cache.page(block, head).wrapping_add(cache.geometry().page());
            page.cast::<f32>().wrapping_add(place.within)
        };
        Some((of(call.k), of(call.v)))
    }

    /// The tile that comes next, where its token sees some of it.
    fn ahead<E: Element>(self, view: &View, head: usize, place: Place) -> Option<(*const u8, *const u8)> {
        let seen = view.start < place.first + self.schedule.shape.tile && place.first < view.end;
        seen.then(|| self.pages::<E>(view, head, place)).map(|(keys, values)| (keys.cast(), values.cast()))
    }

    /// How many of these tokens, from the first on, see something of a tile and find it in the same block. What
    /// they see of it goes to `ranges`.
    fn run_of(self, views: &[View], place: Place, ranges: &mut [(usize, usize)]) -> usize {
        let tile = self.schedule.shape.tile;
        let mut shared = None;
        for (run, (view, range)) in views.iter().zip(ranges).enumerate() {
            let from = view.start.saturating_sub(place.first);
            let to = view.end.saturating_sub(place.first).min(tile);
            if from >= to {
                return run;
            }
            let block = self.call.tables[view.table + place.block];
            if *shared.get_or_insert(block) != block {
                return run;
            }
            *range = (from, to);
        }
        views.len()
    }
}

/// Merges the records of a segment into those of the ones before it, for the tokens that see some of it. Both
/// have a record for each query of the group.
struct Merge<'a> {
    job: Job<'a>,
    tokens: &'a [u32],
    segment: usize,
    total: *mut f32,
    state: *const f32,
}

impl Function for Merge<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = &self.job.schedule.shape;
        let max = shape.padded_dim + LANES;
        for (i, token) in self.tokens.iter().enumerate() {
            if !self.job.call.segments(shape, *token as usize).contains(&self.segment) {
                continue;
            }
            for record in (i * shape.queries..(i + 1) * shape.queries).map(|query| query * shape.record()) {
                // SAFETY: the record of a query of the group; it is a whole number of vectors.
                unsafe {
                    let (total, state) = (self.total.add(record), self.state.add(record));
                    let (old, new) = (*total.add(max), *state.add(max));
                    let both = if new > old { new } else { old };
                    let base = tile::base(both);
                    let (old, new) = (exp2(s, s.splat(old - base)), exp2(s, s.splat(new - base)));
                    for i in (0..max).step_by(LANES) {
                        let sum = s.fma(s.load(total.add(i)), old, s.mul(s.load(state.add(i)), new));
                        s.store(total.add(i), sum);
                    }
                    *total.add(max) = both;
                }
            }
        }
    }
}

/// Divides the sums by the weights and puts them out. There is a record for each query of the group, and the
/// call's `out` is valid for these tokens.
struct Finish<'a> {
    job: Job<'a>,
    tokens: &'a [u32],
    head: usize,
    total: *mut f32,
}

impl Function for Finish<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Job { call, schedule, .. } = self.job;
        let shape = &schedule.shape;
        for (i, token) in self.tokens.iter().enumerate() {
            for query in 0..shape.queries {
                // SAFETY: a query of the group, whose result nobody else writes.
                unsafe {
                    let total = self.total.add((i * shape.queries + query) * shape.record());
                    let weights = s.splat(fold_sum(total.add(shape.padded_dim)));
                    for d in (0..shape.padded_dim).step_by(LANES) {
                        s.store(total.add(d), s.div(s.load(total.add(d)), weights));
                    }
                    let head = self.head * shape.queries + query;
                    let out = call.out.add(*token as usize * call.out_stride + head * shape.dim);
                    out.copy_from_nonoverlapping(total, shape.dim);
                }
            }
        }
    }
}

/// Sets records to those of nothing seen.
///
/// # Safety
/// `records` has so many.
unsafe fn reset(shape: &Shape, records: *mut f32, count: usize) {
    for record in 0..count {
        // SAFETY: as the caller says.
        unsafe {
            let record = records.add(record * shape.record());
            record.write_bytes(0, shape.record());
            *record.add(shape.padded_dim + LANES) = f32::NEG_INFINITY;
        }
    }
}
