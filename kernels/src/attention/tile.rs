//! The inner loops: some queries, and a tile of 8 to 32 cached tokens of one KV head.
//!
//! Scores are a small matrix product whose lanes are tokens, the weighted sum of values one whose lanes are
//! dimensions. Both go through up to [`MAX_ROWS`] queries and two vectors at a time: twelve accumulators, two
//! vectors of the cache and a broadcast fill AVX2's sixteen registers.

use super::{
    Shape,
    simd::{Element, Function, Simd, exp2, tanh},
};
use crate::kv::LANES;

/// Queries whose accumulators fit the registers.
const MAX_ROWS: usize = 6;
/// From so many queries on, a tile of a narrow type is converted once instead of by each [`MAX_ROWS`] of them.
const PANEL_QUERIES: usize = 2 * MAX_ROWS;

/// A tile and the queries that see some of it.
pub(super) struct Tile<'a, E> {
    pub(super) shape: &'a Shape,
    pub(super) softcap: Option<f32>,
    pub(super) queries: usize,
    /// `[D][tile]`
    pub(super) keys: *const E,
    /// `[tile][padded D]`
    pub(super) values: *const E,
    /// `[tile]` each: what keys and values are to be multiplied with, where they are counts.
    pub(super) scales: Option<(*const f32, *const f32)>,
    /// `[queries][D]`, scaled.
    pub(super) q: *const f32,
    /// A record for each query.
    pub(super) state: *mut f32,
    /// The tokens of the tile that the queries of each token see: from, to; at least one.
    pub(super) ranges: &'a [(usize, usize)],
    /// Keys and values that are wanted next, to be fetched meanwhile: blocks lie anywhere, so the processor
    /// cannot guess.
    pub(super) next: Option<(*const u8, *const u8)>,
}

/// Buffers for one tile.
#[derive(Debug)]
pub(super) struct Scratch {
    /// `[queries][tile]`: scores, then weights.
    scores: Vec<f32>,
    /// For each query: what earlier sums are multiplied with, the largest score, and ones.
    rescale: Vec<f32>,
    base: Vec<f32>,
    ones: Vec<f32>,
    /// The tile's keys and values as f32.
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(shape: &Shape, queries: usize) -> Self {
        let queries = queries.next_multiple_of(LANES);
        Scratch {
            scores: vec![0.0; queries * shape.tile],
            rescale: vec![0.0; queries],
            base: vec![0.0; queries],
            ones: vec![1.0; queries],
            keys: vec![0.0; shape.tile * shape.dim],
            values: vec![0.0; shape.tile * shape.padded_dim],
        }
    }
}

/// What scores are measured from: the largest, or 0 where all are -∞, which must not become NaN.
#[inline(always)]
pub(super) fn base(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// Adds the tile to the records of its queries.
///
/// # Safety
/// The tile's pointers are valid for what their docs say, and nobody else uses the records. Scratch is for this
/// shape and as many queries.
pub(super) unsafe fn attend<S: Simd, E: Element>(s: S, tile: &Tile<'_, E>, scratch: &mut Scratch) {
    if !E::CONVERTS || tile.queries < PANEL_QUERIES {
        // SAFETY: the caller's.
        return unsafe { attend_as(s, tile, scratch) };
    }
    let Tile { shape, softcap, queries, scales, q, state, ranges, next, .. } = *tile;
    s.call(Convert { from: tile.keys, to: &mut scratch.keys });
    s.call(Convert { from: tile.values, to: &mut scratch.values });
    let (keys, values) = (scratch.keys.as_ptr(), scratch.values.as_ptr());
    let tile = Tile { shape, softcap, queries, keys, values, scales, q, state, ranges, next };
    // SAFETY: the caller's; the panels hold the tile.
    unsafe { attend_as(s, &tile, scratch) };
}

/// # Safety
/// As for [`attend`].
unsafe fn attend_as<S: Simd, E: Element>(s: S, tile: &Tile<'_, E>, scratch: &mut Scratch) {
    let bytes = tile.shape.tile * tile.shape.dtype.block_bytes();
    if let Some((keys, _)) = tile.next {
        s.prefetch(keys, bytes * tile.shape.dim);
    }
    let scores = scratch.scores.as_mut_ptr();
    let mut at = 0;
    while at < tile.queries {
        let rows = rows(tile.queries - at);
        match rows {
            MAX_ROWS => s.call(Scores::<E, MAX_ROWS> { tile, at, scores }),
            4 => s.call(Scores::<E, 4> { tile, at, scores }),
            3 => s.call(Scores::<E, 3> { tile, at, scores }),
            2 => s.call(Scores::<E, 2> { tile, at, scores }),
            _ => s.call(Scores::<E, 1> { tile, at, scores }),
        }
        at += rows;
    }
    let Tile { shape, softcap, queries, scales, state, ranges, .. } = *tile;
    let values = scales.map(|(_, values)| values);
    s.call(Weights { shape, softcap, queries, values, state, ranges, scratch });
    // Apart from the keys, for a core has only so many misses under way at once.
    if let Some((_, values)) = tile.next {
        s.prefetch(values, bytes * shape.padded_dim);
    }
    // SAFETY: the caller's.
    unsafe { sums(s, tile, scratch) };
}

/// How many of so many queries go through the loops together.
fn rows(left: usize) -> usize {
    match left {
        5 => 4,
        _ => left.min(MAX_ROWS),
    }
}

/// Converts whole vectors; `from` has as many elements as `to`.
struct Convert<'a, E> {
    from: *const E,
    to: &'a mut [f32],
}

impl<E: Element> Function for Convert<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, to) in self.to.chunks_exact_mut(LANES).enumerate() {
            // SAFETY: both have a vector's elements here.
            unsafe { s.store(to.as_mut_ptr(), E::load(s, self.from.add(i * LANES))) };
        }
    }
}

/// `scores = q · keysᵀ` for `R` queries from `at` on and every token of the tile, seen or not. The tile is valid,
/// and `scores` has a row for each of its queries.
struct Scores<'a, E, const R: usize> {
    tile: &'a Tile<'a, E>,
    at: usize,
    scores: *mut f32,
}

impl<E: Element, const R: usize> Function for Scores<'_, E, R> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.tile.shape.tile;
        if width == LANES {
            // SAFETY: the one column there is.
            return unsafe { self.columns::<S, 1>(s, 0) };
        }
        for column in (0..width).step_by(2 * LANES) {
            // SAFETY: wider tiles are 16 or 32 tokens.
            unsafe { self.columns::<S, 2>(s, column) };
        }
    }
}

impl<E: Element, const R: usize> Scores<'_, E, R> {
    /// # Safety
    /// There are `V` vectors from this column on.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(&self, s: S, column: usize) {
        let &Shape { tile: width, dim, .. } = self.tile.shape;
        let mut sums = [[s.splat(0.0); V]; R];
        // SAFETY: rows are queries of the tile, columns the caller's.
        unsafe {
            let q = self.tile.q.add(self.at * dim);
            let keys = self.tile.keys.add(column);
            for d in 0..dim {
                let mut key = [s.splat(0.0); V];
                for (v, key) in key.iter_mut().enumerate() {
                    *key = E::load(s, keys.add(d * width + v * LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let q = s.splat(*q.add(r * dim + d));
                    for (sum, key) in sums.iter_mut().zip(key) {
                        *sum = s.fma(q, key, *sum);
                    }
                }
            }
            let scores = self.scores.add(self.at * width + column);
            if let Some((keys, _)) = self.tile.scales {
                for sums in &mut sums {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = s.mul(*sum, s.load(keys.add(column + v * LANES)));
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    s.store(scores.add(r * width + v * LANES), *sum);
                }
            }
        }
    }
}

/// Turns scores into weights, and brings the records' largest scores and sums of weights up to date. What the
/// records' sums of values are still to be multiplied with goes to `rescale`. Fields as in [`Tile`].
struct Weights<'a> {
    shape: &'a Shape,
    softcap: Option<f32>,
    queries: usize,
    /// The values' scales, which the weights take in.
    values: Option<*const f32>,
    state: *mut f32,
    ranges: &'a [(usize, usize)],
    scratch: &'a mut Scratch,
}

impl Function for Weights<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.shape;
        let scores = self.scratch.scores.as_mut_ptr();
        let (rescale, base_of) = (self.scratch.rescale.as_mut_ptr(), self.scratch.base.as_mut_ptr());
        // SAFETY: rows of scores and records are there for each query; `rescale` is whole vectors.
        unsafe {
            for (i, range) in self.ranges.iter().enumerate() {
                for query in i * shape.queries..(i + 1) * shape.queries {
                    let max = self.largest(s, *range, scores.add(query * shape.tile));
                    let record = self.state.add(query * shape.record() + shape.padded_dim + LANES);
                    let (old, new) = (*record, if max > *record { max } else { *record });
                    *record = new;
                    *base_of.add(query) = base(new);
                    *rescale.add(query) = old - base(new);
                }
            }
            for query in (0..self.queries).step_by(LANES) {
                s.store(rescale.add(query), exp2(s, s.load(rescale.add(query))));
            }
            for query in 0..self.queries {
                let record = self.state.add(query * shape.record() + shape.padded_dim);
                let base = s.splat(*base_of.add(query));
                let mut sum = s.mul(s.load(record), s.splat(*rescale.add(query)));
                for column in (0..shape.tile).step_by(LANES) {
                    let at = scores.add(query * shape.tile + column);
                    let weight = exp2(s, s.sub(s.load(at), base));
                    sum = s.add(sum, weight);
                    // What is not seen may become NaN here, and is not summed.
                    let weight = match self.values {
                        Some(scales) => s.mul(weight, s.load(scales.add(column))),
                        None => weight,
                    };
                    s.store(at, weight);
                }
                s.store(record, sum);
            }
        }
    }
}

impl Weights<'_> {
    /// The largest of a row of scores; caps them and makes those of tokens outside the range -∞.
    ///
    /// # Safety
    /// `scores` is the row.
    #[inline(always)]
    unsafe fn largest<S: Simd>(&self, s: S, (from, to): (usize, usize), scores: *mut f32) -> f32 {
        let whole = to - from == self.shape.tile;
        let mut max = s.splat(f32::NEG_INFINITY);
        for column in (0..self.shape.tile).step_by(LANES) {
            // SAFETY: a vector of the row.
            let mut score = unsafe { s.load(scores.add(column)) };
            if let Some(cap) = self.softcap {
                score = s.mul(tanh(s, score), s.splat(cap * std::f32::consts::LOG2_E));
            }
            if !whole {
                let token = s.add(s.iota(), s.splat(column as f32));
                let unseen = s.splat(f32::NEG_INFINITY);
                score = s.select_lt(token, s.splat(to as f32), score, unseen);
                score = s.select_lt(token, s.splat(from as f32), unseen, score);
            }
            // SAFETY: as above.
            unsafe { s.store(scores.add(column), score) };
            max = s.max(score, max);
        }
        s.fold_max(max)
    }
}

/// `sums = rescale · sums + weights · values`, over the tokens that each query sees.
///
/// # Safety
/// As for [`attend`].
unsafe fn sums<S: Simd, E: Element>(s: S, tile: &Tile<'_, E>, scratch: &Scratch) {
    let weights = scratch.scores.as_ptr();
    let (rescale, ones) = (scratch.rescale.as_ptr(), scratch.ones.as_ptr());
    let range = |query: usize| tile.ranges[query / tile.shape.queries];
    let sum = |at: usize, rows: usize, tokens: (usize, usize), rescale: *const f32| match rows {
        MAX_ROWS => s.call(Sums::<E, MAX_ROWS> { tile, at, tokens, weights, rescale }),
        4 => s.call(Sums::<E, 4> { tile, at, tokens, weights, rescale }),
        3 => s.call(Sums::<E, 3> { tile, at, tokens, weights, rescale }),
        2 => s.call(Sums::<E, 2> { tile, at, tokens, weights, rescale }),
        _ => s.call(Sums::<E, 1> { tile, at, tokens, weights, rescale }),
    };
    let uniform = tile.ranges.iter().all(|range| *range == tile.ranges[0]);
    let mut at = 0;
    while at < tile.queries {
        let rows = rows(tile.queries - at);
        if uniform {
            sum(at, rows, tile.ranges[0], rescale);
            at += rows;
            continue;
        }
        let ranges = (at..at + rows).map(range);
        let common = ranges.fold((0, tile.shape.tile), |all, range| (all.0.max(range.0), all.1.min(range.1)));
        if (at..at + rows).all(|query| range(query) == common) {
            sum(at, rows, common, rescale);
        } else if common.0 < common.1 {
            // Each query's own tokens come before and after those that all see: its order is as if it were alone.
            (at..at + rows).for_each(|query| sum(query, 1, (range(query).0, common.0), rescale));
            sum(at, rows, common, ones);
            (at..at + rows).for_each(|query| sum(query, 1, (common.1, range(query).1), ones));
        } else {
            (at..at + rows).for_each(|query| sum(query, 1, range(query), rescale));
        }
        at += rows;
    }
}

/// The sums of `R` queries from `at` on, all over the same tokens. The tile is valid, and there are a row of
/// weights and a factor for each of its queries.
struct Sums<'a, E, const R: usize> {
    tile: &'a Tile<'a, E>,
    at: usize,
    tokens: (usize, usize),
    weights: *const f32,
    rescale: *const f32,
}

impl<E: Element, const R: usize> Function for Sums<'_, E, R> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dim = self.tile.shape.padded_dim;
        let pairs = dim / (2 * LANES) * (2 * LANES);
        // SAFETY: the dimension is whole vectors.
        unsafe {
            for column in (0..pairs).step_by(2 * LANES) {
                self.columns::<S, 2>(s, column);
            }
            if pairs < dim {
                self.columns::<S, 1>(s, pairs);
            }
        }
    }
}

impl<E: Element, const R: usize> Sums<'_, E, R> {
    /// # Safety
    /// There are `V` vectors from this column on.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(&self, s: S, column: usize) {
        let shape = self.tile.shape;
        let mut sums = [[s.splat(0.0); V]; R];
        // SAFETY: rows are queries of the tile, columns the caller's.
        unsafe {
            let weights = self.weights.add(self.at * shape.tile);
            let values = self.tile.values.add(column);
            let state = self.tile.state.add(self.at * shape.record() + column);
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = s.splat(*self.rescale.add(self.at + r));
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = s.mul(s.load(state.add(r * shape.record() + v * LANES)), factor);
                }
            }
            for token in self.tokens.0..self.tokens.1 {
                let mut value = [s.splat(0.0); V];
                for (v, value) in value.iter_mut().enumerate() {
                    *value = E::load(s, values.add(token * shape.padded_dim + v * LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = s.splat(*weights.add(r * shape.tile + token));
                    for (sum, value) in sums.iter_mut().zip(value) {
                        *sum = s.fma(weight, value, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    s.store(state.add(r * shape.record() + v * LANES), *sum);
                }
            }
        }
    }
}
