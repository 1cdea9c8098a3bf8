//! Linear layers: weights packed once at load, activations prepared once for each input, products.
//!
//! ```text
//! Matrix::pack            weights as stored → groups of 8 rows × blocks of 32 columns (see `format`)
//! Activations::prepare    rows of x → tiles of 4 tokens × blocks of 32 columns: f32, or quantised with a scale a block
//! multiply                groups × tiles → out;   multiply_gated: act(gate · x) * (up · x)
//! ```
//!
//! **Every element of a result is reduced in one fixed order**: block by block along the columns, whatever the
//! number of tokens, the range of groups, the tile or the instruction set. So a sequence's numbers do not depend
//! on what else is in the batch, and the scalar kernels state exactly what the others compute:
//!
//! - f32 activations: one chain of fused multiply-adds over the columns in order.
//! - quantised: for each block the exact integer product `p` of codes and activations, then
//!   `z = fma(p · d, a, z)` and, for formats with an offset, `z = fma(m, s, z)`, where `a` is the block's
//!   activation scale and `s` that scale times the sum of its codes. 8-bit codes are multiplied by the factor of their
//!   columns first (see [`Activations`]), in `p` and in the sum alike.
//!
//! Files: `format` (stored codes and their meaning), `pack`, `memory`; `drive` (loops over groups, columns and
//! tiles); `scalar` and `avx2` (the innermost loops); `gate` (activation functions).

#[cfg(target_arch = "x86_64")]
mod avx2;
mod drive;
mod format;
mod gate;
mod memory;
mod pack;
mod scalar;
#[cfg(test)]
mod tests;

use std::ops::Range;

use millrace_graph::DType;

pub use drive::{Operand, Output, Scratch, multiply, multiply_gated};
use format::{BLOCK, LANES, with_format};
pub(crate) use memory::LINE;
use memory::Memory;
pub(crate) use pack::LAYOUT;
pub use pack::PackError;

use crate::cpu::{self, Isa};

/// How quantised weights are multiplied. Plain weights (f32, f16, bf16) are always multiplied in f32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// Weights are dequantised exactly and multiplied in f32.
    Reference,
    /// Activations are quantised in blocks of 32: to 8 bits (of two scales) where weights have 4 or 5, to 16 where they
    /// have 6 or 8.
    Fast,
}

/// Weights `[N, K]`, or `[E, N, K]` as E parts, packed for [`multiply`]. Codes and scales keep the stored bits.
#[derive(Debug)]
pub struct Matrix {
    dtype: DType,
    parts: usize,
    rows: usize,
    cols: usize,
    group_bytes: usize,
    memory: Memory,
}

impl Matrix {
    /// The format the weights are stored in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// E of `[E, N, K]`, else 1.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// N: the outputs of each part.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K: the inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory taken, padding included.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// The number of groups of 8 rows in each part; the last may be partly filled. Work is shared out by groups;
    /// ranges of a multiple of 6 groups suit every kernel.
    pub fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Writes the numbers that a stored row stands for, exactly as [`crate::dequant::dequantise`] gives them.
    ///
    /// # Panics
    /// Where `part` or `row` is out of range, or `out` is not of [`Matrix::cols`] elements.
    pub fn row(&self, part: usize, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "a row's elements");
        let (group, lane) = (self.group(part, row / LANES), row % LANES);
        let read = with_format!(self.dtype, F => format::read_row::<F> as format::ReadRow);
        let read = read.expect("packed weights are of a format");
        // SAFETY: the group and the lane lie within the matrix, and the columns are all it has.
        unsafe { read(group, lane, out) }
    }

    /// What [`multiply`] wants prepared for this matrix.
    pub fn activations(&self, precision: Precision) -> Activations {
        match (precision, self.dtype) {
            (Precision::Reference, _) | (_, DType::F32 | DType::F16 | DType::BF16) => Activations::F32,
            (Precision::Fast, DType::Q8_0 | DType::Q6K) => Activations::I16,
            (Precision::Fast, _) => Activations::I8,
        }
    }

    /// The blocks of a row.
    fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// The first byte of a group.
    fn group(&self, part: usize, group: usize) -> *const u8 {
        assert!(part < self.parts && group < self.groups(), "group {group} of part {part}");
        // SAFETY: the index lies within the memory, which holds `parts * groups()` groups.
        unsafe { self.memory.as_ptr().add((part * self.groups() + group) * self.group_bytes) }
    }
}

/// A form in which activations are prepared. Matrices of one input that want the same form share them.
///
/// Prepared activations are tiles of 4 tokens, each a run of blocks of 32 columns (zero-padded):
/// f32 `[column][token]`; or codes `[token][column]`, then `[token]` f32 scales `a`, and for 8-bit codes `[token]`
/// f32 sums of `a · factor · code` and `[token][2]` i16 factors: the first for columns 0 and 1 of each four, the second
/// for 2 and 3. The product's 16-bit sums keep these two apart until its last multiplication, which takes the factors
/// in at no cost; so half as many activations share a scale, and rounding loses a quarter less.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Activations {
    /// As they are.
    F32,
    /// 8-bit codes within ±127, one scale for each block, two factors within `0..=2¹⁴` of it.
    I8,
    /// 16-bit codes within ±32767, one scale for each block.
    I16,
}

/// Tokens of a tile.
const TILE: usize = 4;

impl Activations {
    /// Bytes of one block of one tile.
    const fn record(self) -> usize {
        match self {
            Activations::F32 => BLOCK * TILE * 4,
            Activations::I8 => TILE * (BLOCK + 4 + 4 + 4),
            Activations::I16 => TILE * (2 * BLOCK + 4),
        }
    }

    /// Bytes that `tokens` prepared rows of `cols` elements take. Any alignment of at least 16 will do; 64 is best.
    pub fn bytes(self, tokens: usize, cols: usize) -> usize {
        tokens.div_ceil(TILE) * cols.div_ceil(BLOCK) * self.record()
    }

    /// Tokens that share a tile. Preparing is best shared out in multiples of this.
    pub fn tile(self) -> usize {
        TILE
    }

    /// Prepares the rows `tokens` of `x`, whose row `t` is `cols` elements from `x + t * stride`, in their place in
    /// `into`. A block with an element that is infinite or not a number makes its whole row of results NaN, if
    /// codes are asked for. Results do not depend on how the tokens are divided among calls; several threads may
    /// prepare different tokens at once. For one token it is cheaper to let every worker prepare a copy of its own
    /// than to wait for one of them.
    ///
    /// # Safety
    /// - `x` is valid for reads of all those rows.
    /// - `into` is valid for writes of [`Activations::bytes`] of all tokens (`tokens.end` at least), and aligned
    ///   to 4 bytes. Nobody else reads or writes the places of `tokens` meanwhile.
    pub unsafe fn prepare(
        self,
        x: *const f32,
        stride: usize,
        cols: usize,
        tokens: Range<usize>,
        into: *mut u8,
    ) {
        // SAFETY: the caller's promise, and the instruction set is this processor's.
        unsafe { self.prepare_with(cpu::isa(), x, stride, cols, tokens, into) }
    }

    unsafe fn prepare_with(
        self,
        isa: Isa,
        x: *const f32,
        stride: usize,
        cols: usize,
        tokens: Range<usize>,
        into: *mut u8,
    ) {
        let blocks = cols.div_ceil(BLOCK);
        let prepare = match isa {
            Isa::Scalar => scalar::prepare(self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::prepare(self),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 => unreachable!("never detected here"),
        };
        for token in tokens {
            // SAFETY: the row and its tile are within what the caller promises.
            unsafe {
                let tile = into.add(token / TILE * blocks * self.record());
                prepare(x.add(token * stride), cols, token % TILE, tile);
            }
        }
    }
}
