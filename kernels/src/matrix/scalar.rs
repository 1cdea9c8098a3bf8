//! The kernels' plain meaning, in portable Rust. Others compute the same operations in the same order.

use millrace_graph::DType;

use super::drive::{Direct, Kernel, Tile, TileFn};
use super::format::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::format::{BLOCK, Bytes, Format, LANES, Nibbles};
use super::{Activations, Precision, TILE};

/// The kernels of a format.
pub(super) fn kernel(dtype: DType, precision: Precision) -> Kernel {
    let fast = precision == Precision::Fast;
    let nibbles = |float: TileFn, quantised: TileFn| if fast { quantised } else { float };
    let tile: TileFn = match dtype {
        DType::F32 => float_tile::<F32>,
        DType::F16 => float_tile::<F16>,
        DType::BF16 => float_tile::<BF16>,
        DType::Q4_0 => nibbles(float_tile::<Q4_0>, nibble_tile::<Q4_0>),
        DType::Q4_1 => nibbles(float_tile::<Q4_1>, nibble_tile::<Q4_1>),
        DType::Q4K => nibbles(float_tile::<Q4K>, nibble_tile::<Q4K>),
        DType::Q5_0 => nibbles(float_tile::<Q5_0>, nibble_tile::<Q5_0>),
        DType::Q5_1 => nibbles(float_tile::<Q5_1>, nibble_tile::<Q5_1>),
        DType::Q5K => nibbles(float_tile::<Q5K>, nibble_tile::<Q5K>),
        DType::Q6K => nibbles(float_tile::<Q6K>, byte_tile::<Q6K>),
        DType::Q8_0 => nibbles(float_tile::<Q8_0>, byte_tile::<Q8_0>),
        DType::Pred | DType::I8 | DType::U8 | DType::I32 | DType::U32 => {
            unreachable!("refused by Matrix::pack")
        }
    };
    Kernel { direct: Some(Direct { tile, groups: 1, block_bytes: None }), panel: None }
}

/// f32 activations.
unsafe fn float_tile<F: Format>(t: &Tile) {
    for_each_sum(t, |group, block, lane, token, mut z| {
        // SAFETY: `Tile` promises these weights, activations and sums.
        unsafe {
            let acts = t.acts.add(block * Activations::F32.record()).cast::<f32>().add(token);
            for column in 0..BLOCK {
                z = F::value(group, block, lane, column).mul_add(*acts.add(column * TILE), z);
            }
        }
        z
    });
}

/// 8-bit activations.
unsafe fn nibble_tile<F: Nibbles>(t: &Tile) {
    for_each_sum(t, |group, block, lane, token, z| {
        // SAFETY: `Tile` promises these weights, activations and sums.
        unsafe {
            let record = t.acts.add(block * Activations::I8.record());
            let (codes, scales) =
                (record.add(token * BLOCK).cast::<i8>(), record.add(TILE * BLOCK).cast::<f32>());
            let factors = scales.add(2 * TILE).cast::<i16>().add(2 * token);
            // At most 2³¹: 16 · 31 · 127 · 2¹⁴ for either factor.
            let product: i32 = (0..BLOCK)
                .map(|column| {
                    let code = i32::from(*codes.add(column)) * i32::from(*factors.add(column % 4 / 2));
                    i32::from(F::code(group, block, lane, column)) * code
                })
                .sum();
            let (d, m) = F::scales(group, block, lane);
            let (a, s) = (*scales.add(token), *scales.add(TILE + token));
            m.mul_add(s, (product as f32 * d).mul_add(a, z))
        }
    });
}

/// 16-bit activations.
unsafe fn byte_tile<F: Bytes>(t: &Tile) {
    for_each_sum(t, |group, block, lane, token, mut z| {
        // SAFETY: `Tile` promises these weights, activations and sums.
        unsafe {
            let record = t.acts.add(block * Activations::I16.record());
            let codes = record.cast::<i16>().add(token * BLOCK);
            let a = *record.add(TILE * BLOCK * 2).cast::<f32>().add(token);
            let product = |columns: std::ops::Range<usize>| -> i32 {
                columns
                    .map(|column| {
                        i32::from(F::code(group, block, lane, column)) * i32::from(*codes.add(column))
                    })
                    .sum()
            };
            if F::HALVES {
                for half in 0..2 {
                    let p = product(16 * half..16 * half + 16);
                    z = (p as f32 * F::scale(group, block, lane, half)).mul_add(a, z);
                }
                z
            } else {
                (product(0..BLOCK) as f32 * F::scale(group, block, lane, 0)).mul_add(a, z)
            }
        }
    });
}

/// Replaces each sum `z` by `f(group, block, lane, token, z)`, block after block.
fn for_each_sum(t: &Tile, f: impl Fn(*const u8, usize, usize, usize, f32) -> f32) {
    for group in 0..t.groups {
        for token in 0..t.tokens {
            for lane in 0..LANES {
                // SAFETY: `Tile` promises these groups and sums.
                unsafe {
                    let weights = t.weights.add(group * t.stride);
                    let sum = t.sums.add((group * TILE + token) * LANES + lane);
                    *sum = (0..t.blocks).fold(*sum, |z, block| f(weights, block, lane, token, z));
                }
            }
        }
    }
}

/// Prepares one row of `cols` elements as column `token` of a tile, the rest of its last block as zeros.
pub(super) type Prepare = unsafe fn(row: *const f32, cols: usize, token: usize, tile: *mut u8);

/// How activations of a form are prepared.
pub(super) fn prepare(acts: Activations) -> Prepare {
    match acts {
        Activations::F32 => prepare_f32,
        Activations::I8 => prepare_i8,
        Activations::I16 => prepare_i16,
    }
}

/// # Safety
/// As [`Activations::prepare`].
pub(super) unsafe fn prepare_f32(row: *const f32, cols: usize, token: usize, tile: *mut u8) {
    let out = tile.cast::<f32>();
    for column in 0..cols.next_multiple_of(BLOCK) {
        // SAFETY: the caller's promise.
        unsafe { *out.add(column * TILE + token) = if column < cols { *row.add(column) } else { 0.0 } };
    }
}

unsafe fn prepare_i8(row: *const f32, cols: usize, token: usize, tile: *mut u8) {
    for block in 0..cols.div_ceil(BLOCK) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = read_block(row, cols, block);
            let pairs = |odd: usize| (0..BLOCK).filter(move |column| column % 4 / 2 == odd);
            let Scales { a, factors, inverses } = scales([0, 1].map(|odd| largest(pairs(odd).map(|c| x[c]))));
            let record = tile.add(block * Activations::I8.record());
            let mut sum = 0;
            for (column, x) in x.iter().enumerate() {
                let code = (x * inverses[column % 4 / 2]).round_ties_even() as i8;
                *record.add(token * BLOCK + column) = code as u8;
                sum += i32::from(code) * i32::from(factors[column % 4 / 2]);
            }
            put_scales(record, token, a, sum, factors);
        }
    }
}

unsafe fn prepare_i16(row: *const f32, cols: usize, token: usize, tile: *mut u8) {
    for block in 0..cols.div_ceil(BLOCK) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = read_block(row, cols, block);
            let (a, inverse) = scale(largest(x), 32767.0);
            let record = tile.add(block * Activations::I16.record());
            for (column, x) in x.iter().enumerate() {
                *record.cast::<i16>().add(token * BLOCK + column) = (x * inverse).round_ties_even() as i16;
            }
            *record.add(TILE * BLOCK * 2).cast::<f32>().add(token) = a;
        }
    }
}

/// A block of a row, with zeros behind its end.
///
/// # Safety
/// The row has `cols` elements, more than `block * BLOCK`.
pub(super) unsafe fn read_block(row: *const f32, cols: usize, block: usize) -> [f32; BLOCK] {
    let mut x = [0.0; BLOCK];
    let count = BLOCK.min(cols - block * BLOCK);
    // SAFETY: the caller's promise.
    unsafe { row.add(block * BLOCK).copy_to_nonoverlapping(x.as_mut_ptr(), count) };
    x
}

/// The largest magnitude; where an element is infinite or not a number, that (their bits are the largest).
fn largest(x: impl IntoIterator<Item = f32>) -> f32 {
    f32::from_bits(x.into_iter().map(|x| x.abs().to_bits()).fold(0, u32::max))
}

/// How the 8-bit codes of a block are scaled: a column of pair `i` is `a · factors[i]` times its code, and its code the
/// value times `inverses[i]`.
pub(super) struct Scales {
    pub(super) a: f32,
    pub(super) factors: [i16; 2],
    pub(super) inverses: [f32; 2],
}

/// The factor of the pair that has the larger values. With twice as much, sums of products with 5-bit codes could
/// exceed 32 bits.
const FACTOR: f32 = 16384.0;

/// The scales of a block, from the largest magnitudes of its two kinds of columns.
#[inline]
pub(super) fn scales(largest: [f32; 2]) -> Scales {
    // By the bits: what is not finite is the largest.
    let most = f32::from_bits(largest[0].to_bits().max(largest[1].to_bits()));
    let (a, inverse) = scale(most, 127.0 * FACTOR);
    if inverse == 0.0 {
        return Scales { a, factors: [0; 2], inverses: [0.0; 2] };
    }
    // Rounded up, lest a code exceed 127.
    let factors = largest.map(|largest| (largest * inverse * (1.0 / 127.0)).ceil().clamp(1.0, FACTOR));
    Scales { a, factors: factors.map(|f| f as i16), inverses: factors.map(|f| inverse / f) }
}

/// Writes what follows the codes of one token in a block's record.
///
/// # Safety
/// As [`Activations::prepare`].
#[inline]
pub(super) unsafe fn put_scales(record: *mut u8, token: usize, a: f32, sum: i32, factors: [i16; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        let scales = record.add(TILE * BLOCK).cast::<f32>();
        *scales.add(token) = a;
        *scales.add(TILE + token) = a * sum as f32;
        *scales.add(2 * TILE).cast::<[i16; 2]>().add(token) = factors;
    }
}

/// The scale of codes up to `limit` for a block of this largest magnitude, and its inverse. Zero stands for blocks
/// too small to have a finite inverse; for blocks that are not finite the scale is NaN, so that results show
/// it whatever the codes.
pub(super) fn scale(largest: f32, limit: f32) -> (f32, f32) {
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < 1e-30 {
        (0.0, 0.0)
    } else {
        (largest / limit, limit / largest)
    }
}
