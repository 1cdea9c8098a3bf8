//! Paged attention: causal attention of a step's new tokens to the cache blocks of their sequences.
//!
//! [`Schedule`] divides a call into items once per step; threads then run items ([`AttentionCall::run`]) in any
//! order. An item is one KV head for a group of tokens that share blocks: it goes page by page, and each page is
//! loaded once for all query heads of the KV head and all tokens of the group, be they a prompt chunk or
//! sequences with a common prefix.
//!
//! **Bits.** A token's result depends on its query, its position and the cached tokens it sees, and on nothing
//! else in the call. Every score is one chain of fused multiply-adds over the dimensions; the softmax is the
//! online one (Milakov and Gimelshein 2018, as in FlashAttention), rescaled after every *tile* of 8 to 32
//! tokens; every output element is one chain over the tokens of a *segment* of 128, and segments are merged in
//! order. Tiles and segments lie at fixed positions. How many queries or threads take part decides only what is
//! computed next to what.
//!
//! **Stale memory.** Tokens that a query does not see never enter its arithmetic, not even with weight 0: the
//! cache may hold NaN there.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod item;
mod scalar;
mod schedule;
mod simd;
mod tile;

use std::ops::Range;

use half::{bf16, f16};
use millrace_graph::{Attention, DType, Type};

use crate::{
    cpu::Isa,
    kv::{Geometry, KvRole, KvTensor, LANES},
};
pub use item::Scratch;
pub use schedule::Schedule;

/// Tokens of a segment, or one block where that is more.
const SEGMENT: usize = 128;

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

/// The sizes that buffers and loops depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    /// Query heads of a KV head.
    queries: usize,
    dtype: DType,
    /// Tokens of a block.
    block: usize,
    /// Tokens of a tile; divides the block.
    tile: usize,
    /// Tokens of a segment; a multiple of the block.
    segment: usize,
    dim: usize,
    /// The dimension in whole vectors.
    padded_dim: usize,
}

impl Shape {
    fn new(heads: usize, cache: &Type) -> Self {
        let geometry = Geometry::new(cache, KvRole::Key);
        let Geometry { dtype, block, heads: kv_heads, dim, tile, .. } =
            geometry.unwrap_or_else(|error| panic!("{error}"));
        assert!(heads.is_multiple_of(kv_heads) && heads > 0, "{heads} query heads to {cache}");
        Shape {
            heads,
            kv_heads,
            queries: heads / kv_heads,
            dtype,
            block,
            tile,
            segment: (SEGMENT / block).max(1) * block,
            dim,
            padded_dim: dim.next_multiple_of(LANES),
        }
    }

    /// Floats of a query's state: the weighted sum of values, the sum of weights in eight parts, and the
    /// largest score (in the first of eight).
    fn record(&self) -> usize {
        self.padded_dim + 2 * LANES
    }
}

impl AttentionCall<'_> {
    /// Runs one item of the schedule.
    ///
    /// # Safety
    /// - `schedule` was planned for this call, or one that differs in pointers, caches, scale and softcap alone.
    /// - `q` and `out` are valid for all tokens, and nobody writes `q` or the caches meanwhile.
    /// - Every position is at least 0, every row is one of the tables, and the first `position / S + 1` table
    ///   entries of a token's row are blocks of the caches. (Of these, the ones before the window are not
    ///   followed.)
    /// - No item runs twice; a reader of `out` comes after all of them.
    ///
    /// # Panics
    /// Where the schedule or the scratch was made for other heads or caches.
    pub unsafe fn run(&self, schedule: &Schedule, item: usize, scratch: &mut Scratch) {
        self.check(&schedule.shape);
        assert_eq!(schedule.shape, *scratch.shape(), "schedule and scratch of one shape");
        assert_eq!(schedule.tokens.len(), self.positions.len(), "the schedule of another call");
        let job = item::Job { call: self, schedule, item };
        match schedule.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the schedule chose an instruction set that is there; the rest is the caller's.
            Isa::Avx2 => unsafe { run_with(avx2::Avx2::new(), job, scratch) },
            // SAFETY: the caller's.
            _ => unsafe { run_with(scalar::Scalar, job, scratch) },
        }
    }

    fn check(&self, shape: &Shape) {
        assert_eq!(*shape, Shape::new(self.heads, self.k.ty()), "heads and cache of the schedule");
        assert!(self.v.ty() == self.k.ty(), "values {} for keys {}", self.v.ty(), self.k.ty());
        assert!(
            self.k.role() == KvRole::Key && self.v.role() == KvRole::Value,
            "keys and values changed places"
        );
        assert!(self.params.window != Some(0), "a window in which a token does not see itself");
        if let Rows::PerToken(rows) = self.rows {
            assert_eq!(rows.len(), self.positions.len(), "rows for tokens");
        }
    }

    fn row(&self, token: usize) -> usize {
        match self.rows {
            Rows::PerToken(rows) => rows[token] as usize,
            Rows::Width(width) => token / width,
        }
    }

    /// The blocks of the positions up to a token's.
    fn table(&self, token: usize) -> &[i32] {
        let blocks = self.positions[token] as usize / self.k.geometry().block + 1;
        &self.tables[self.row(token) * self.table_stride..][..blocks]
    }

    /// The positions that a token sees; never empty.
    fn visible(&self, token: usize) -> Range<usize> {
        let end = self.positions[token] as usize + 1;
        self.params.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// The segments that these positions lie in.
    fn segments(&self, shape: &Shape, token: usize) -> Range<usize> {
        let visible = self.visible(token);
        visible.start / shape.segment..visible.end.div_ceil(shape.segment)
    }
}

/// # Safety
/// As for [`AttentionCall::run`].
unsafe fn run_with<S: simd::Simd>(s: S, job: item::Job<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller's; the element type is the cache's.
    unsafe {
        match job.schedule.shape.dtype {
            DType::F32 => job.run::<S, f32>(s, scratch),
            DType::F16 => job.run::<S, f16>(s, scratch),
            DType::BF16 => job.run::<S, bf16>(s, scratch),
            _ => job.run::<S, i8>(s, scratch),
        }
    }
}
