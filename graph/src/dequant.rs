//! Exact dequantisation: the f32 numbers that stored elements stand for, bit for bit those of the format's
//! reference implementation (the products and sums below are in its order, each rounded to f32).
//!
//! Layouts are GGUF's, all little-endian. In the 32-element formats byte `j` of the quants holds element `j` in
//! its low and `j + 16` in its high nibble. The K formats hold 256 elements as 8 or 16 sub-blocks, whose scales
//! are integers times one f16 of the block.

use crate::DType;
use half::{bf16, f16};

/// Why stored elements cannot be read or written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// The format holds no numbers that convert to floats.
    #[error("{0} holds no floating-point numbers")]
    NotFloat(DType),
    /// The number of elements or bytes is not that of whole blocks, or they do not match.
    #[error("{elements} elements of {dtype} in {bytes} bytes: they fill no whole number of blocks")]
    Length {
        /// The format.
        dtype: DType,
        /// Elements asked for.
        elements: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// A number that the format cannot hold.
    #[error("element {index} is too large for {dtype}, infinite or not a number")]
    Range {
        /// The format.
        dtype: DType,
        /// The first such element.
        index: usize,
    },
}

/// Refuses lengths that do not match.
///
/// # Errors
/// As [`dequantise`].
pub fn check_lengths(dtype: DType, elements: usize, bytes: usize) -> Result<(), FormatError> {
    if !dtype.is_float() && !dtype.is_quantised() {
        return Err(FormatError::NotFloat(dtype));
    }
    if dtype.bytes(elements) != Some(bytes) {
        return Err(FormatError::Length { dtype, elements, bytes });
    }
    Ok(())
}

/// Reads `out.len()` elements of format `dtype`: a row, or any run of whole blocks.
///
/// # Errors
/// [`FormatError::NotFloat`] for integers, [`FormatError::Length`] where `bytes` is not exactly the space
/// that `out.len()` elements take.
pub fn dequantise(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), FormatError> {
    check_lengths(dtype, out.len(), bytes.len())?;
    match dtype {
        DType::F32 => blocks::<4, 1>(bytes, out, |b, y| y[0] = f32::from_le_bytes(*b)),
        DType::F16 => blocks::<2, 1>(bytes, out, |b, y| y[0] = f16::from_le_bytes(*b).to_f32()),
        DType::BF16 => blocks::<2, 1>(bytes, out, |b, y| y[0] = bf16::from_le_bytes(*b).to_f32()),
        DType::Q4_0 => blocks(bytes, out, q4_0),
        DType::Q4_1 => blocks(bytes, out, q4_1),
        DType::Q5_0 => blocks(bytes, out, q5_0),
        DType::Q5_1 => blocks(bytes, out, q5_1),
        DType::Q8_0 => blocks(bytes, out, q8_0),
        DType::Q4K => blocks(bytes, out, q4_k),
        DType::Q5K => blocks(bytes, out, q5_k),
        DType::Q6K => blocks(bytes, out, q6_k),
        DType::Pred | DType::I8 | DType::U8 | DType::I32 | DType::U32 => {
            return Err(FormatError::NotFloat(dtype));
        }
    }
    Ok(())
}

/// Calls `read` with each block of `B` bytes and its `N` elements.
fn blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (bytes, _) = bytes.as_chunks();
    let (out, _) = out.as_chunks_mut();
    for (block, out) in bytes.iter().zip(out) {
        read(block, out);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, q) in block[2..].iter().enumerate() {
        out[j] = d * (i32::from(q & 15) - 8) as f32;
        out[j + 16] = d * (i32::from(q >> 4) - 8) as f32;
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, q) in block[4..].iter().enumerate() {
        out[j] = d * f32::from(q & 15) + m;
        out[j + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The 5-bit quants of a 32-element block whose bytes end in 4 bytes of fifth bits and 16 of nibbles: bit `j`
/// of the former belongs to element `j`.
fn five_bits(tail: &[u8], mut set: impl FnMut(usize, u8)) {
    let high = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    let fifth = |j: usize| ((high >> j) as u8 & 1) << 4;
    for (j, q) in tail[4..].iter().enumerate() {
        set(j, (q & 15) | fifth(j));
        set(j + 16, (q >> 4) | fifth(j + 16));
    }
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    five_bits(&block[2..], |j, q| out[j] = d * (i32::from(q) - 16) as f32);
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    five_bits(&block[4..], |j, q| out[j] = d * f32::from(q) + m);
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (y, q) in out.iter_mut().zip(&block[2..]) {
        *y = d * f32::from(*q as i8);
    }
}

/// The 6-bit scale and minimum of sub-block `j` (of 8) from the 12 bytes that Q4_K and Q5_K pack them in: the
/// first four lie whole in the low six bits of bytes `j` and `j + 4`; of the others, the low four bits lie in
/// byte `j + 4` and the high two in the top bits of bytes `j - 4` and `j`.
pub fn scale_and_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let low = packed[j + 4];
        ((low & 15) | (packed[j - 4] >> 6 << 4), (low >> 4) | (packed[j] >> 6 << 4))
    }
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (j, y) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], j);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        // Sub-blocks 2i and 2i + 1 are the low and high nibbles of the same 32 bytes.
        let quants = &block[16 + j / 2 * 32..][..32];
        for (y, q) in y.iter_mut().zip(quants) {
            *y = scale * f32::from((q >> (j % 2 * 4)) & 15) - min;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let fifth = &block[16..48];
    for (j, y) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], j);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let quants = &block[48 + j / 2 * 32..][..32];
        for ((y, q), fifth) in y.iter_mut().zip(quants).zip(fifth) {
            let q = ((q >> (j % 2 * 4)) & 15) | (((fifth >> j) & 1) << 4);
            *y = scale * f32::from(q) - min;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    // Each half of the block: 64 bytes of nibbles, 32 bytes of two-bit tops, and 4 runs of 32 elements.
    for (j, y) in out.chunks_exact_mut(32).enumerate() {
        let (half, run) = (j / 4, j % 4);
        let nibbles = &block[half * 64 + run % 2 * 32..][..32];
        let tops = &block[128 + half * 32..][..32];
        for (i, y) in y.iter_mut().enumerate() {
            let scale = d * f32::from(block[192 + 2 * j + i / 16] as i8);
            let q = ((nibbles[i] >> (run / 2 * 4)) & 15) | (((tops[i] >> (2 * run)) & 3) << 4);
            *y = scale * (i32::from(q) - 32) as f32;
        }
    }
}
