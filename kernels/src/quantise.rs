//! Quantisers from f32 to every stored format: for requantising weights at load, tests and benches.
//!
//! Round to nearest on a grid spanned by each block's extremes, without a search for a scale of smaller error.
//! Scales are rounded to their stored precision *before* elements are, and upwards where an element would
//! otherwise fall off the grid's end, so that the error of an element stays within one step of its block's grid
//! (half a step, save for the positive extreme of Q4_0 and Q5_0, whose grids reach one step less far up than
//! down, and for the f16 rounding of a minimum).

use half::{bf16, f16};
use millrace_graph::DType;

use crate::dequant::{FormatError, check_lengths};

/// Writes `values` in format `dtype` to `out`.
///
/// # Errors
/// [`FormatError::NotFloat`] for integers, [`FormatError::Length`] where `out` is not exactly the space that
/// `values.len()` elements take, [`FormatError::Range`] for a number that is not finite or exceeds
/// the largest of the format (of f16, for the block formats): `out` is unspecified then.
pub fn quantise(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), FormatError> {
    check_lengths(dtype, values.len(), out.len())?;
    let bound = match dtype {
        DType::F32 => f32::MAX,
        DType::BF16 => bf16::MAX.to_f32(),
        _ => f16::MAX.to_f32(),
    };
    if let Some(index) = values.iter().position(|x| x.is_nan() || x.abs() > bound) {
        return Err(FormatError::Range { dtype, index });
    }
    match dtype {
        DType::F32 => blocks::<1, 4>(values, out, |x, b| *b = x[0].to_le_bytes()),
        DType::F16 => blocks::<1, 2>(values, out, |x, b| *b = f16::from_f32(x[0]).to_le_bytes()),
        DType::BF16 => blocks::<1, 2>(values, out, |x, b| *b = bf16::from_f32(x[0]).to_le_bytes()),
        DType::Q4_0 => blocks(values, out, q4_0),
        DType::Q4_1 => blocks(values, out, q4_1),
        DType::Q5_0 => blocks(values, out, q5_0),
        DType::Q5_1 => blocks(values, out, q5_1),
        DType::Q8_0 => blocks(values, out, q8_0),
        DType::Q4K => blocks(values, out, q4_k),
        DType::Q5K => blocks(values, out, q5_k),
        DType::Q6K => blocks(values, out, q6_k),
        DType::Pred | DType::I8 | DType::U8 | DType::I32 | DType::U32 => {
            return Err(FormatError::NotFloat(dtype));
        }
    }
    Ok(())
}

fn blocks<const N: usize, const B: usize>(
    values: &[f32],
    out: &mut [u8],
    write: impl Fn(&[f32; N], &mut [u8; B]),
) {
    let (values, _) = values.as_chunks();
    let (out, _) = out.as_chunks_mut();
    for (values, block) in values.iter().zip(out) {
        write(values, block);
    }
}

/// The smallest f16 not below `x ≥ 0`, which must not exceed f16's largest.
fn ceil_f16(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32() < x { f16::from_bits(near.to_bits() + 1) } else { near }
}

/// `x / step` to the nearest integer in `low ..= high`; 0 where the grid has no step.
fn nearest(x: f32, step: f32, low: i32, high: i32) -> i32 {
    if step == 0.0 { 0.clamp(low, high) } else { ((x / step).round() as i32).clamp(low, high) }
}

fn extremes(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)))
}

fn absmax(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max: f32, x| max.max(x.abs()))
}

/// A step whose sign makes the element of largest magnitude `-levels` steps: the grid `-levels .. levels`
/// reaches one step further on the negative side.
fn signed_step(x: &[f32], levels: f32) -> f16 {
    let extreme = x.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0);
    let step = ceil_f16(extreme.abs() / levels);
    if extreme > 0.0 { -step } else { step }
}

/// Step and minimum of a grid of `levels` steps over all of `x`.
fn grid(x: &[f32], levels: f32) -> (f16, f16) {
    let (low, high) = extremes(x);
    let mut min = f16::from_f32(low);
    if min.to_f32() > low {
        min = f16::from_f32(low - (min.to_f32() - low));
    }
    (ceil_f16((high - min.to_f32()).max(0.0) / levels), min)
}

fn q4_0(x: &[f32; 32], block: &mut [u8; 18]) {
    let d = signed_step(x, 8.0);
    let q = |j: usize| (nearest(x[j], d.to_f32(), -8, 7) + 8) as u8;
    block[..2].copy_from_slice(&d.to_le_bytes());
    for j in 0..16 {
        block[2 + j] = q(j) | (q(j + 16) << 4);
    }
}

fn q4_1(x: &[f32; 32], block: &mut [u8; 20]) {
    let (d, m) = grid(x, 15.0);
    let q = |j: usize| nearest(x[j] - m.to_f32(), d.to_f32(), 0, 15) as u8;
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&m.to_le_bytes());
    for j in 0..16 {
        block[4 + j] = q(j) | (q(j + 16) << 4);
    }
}

/// Writes 5-bit quants: 4 bytes of fifth bits, then 16 of nibbles.
fn five_bits(tail: &mut [u8], q: impl Fn(usize) -> u8) {
    let high = (0..32).fold(0u32, |bits, j| bits | (u32::from(q(j) >> 4) << j));
    tail[..4].copy_from_slice(&high.to_le_bytes());
    for j in 0..16 {
        tail[4 + j] = (q(j) & 15) | ((q(j + 16) & 15) << 4);
    }
}

fn q5_0(x: &[f32; 32], block: &mut [u8; 22]) {
    let d = signed_step(x, 16.0);
    block[..2].copy_from_slice(&d.to_le_bytes());
    five_bits(&mut block[2..], |j| (nearest(x[j], d.to_f32(), -16, 15) + 16) as u8);
}

fn q5_1(x: &[f32; 32], block: &mut [u8; 24]) {
    let (d, m) = grid(x, 31.0);
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&m.to_le_bytes());
    five_bits(&mut block[4..], |j| nearest(x[j] - m.to_f32(), d.to_f32(), 0, 31) as u8);
}

fn q8_0(x: &[f32; 32], block: &mut [u8; 34]) {
    let d = ceil_f16(absmax(x) / 127.0);
    block[..2].copy_from_slice(&d.to_le_bytes());
    for (q, x) in block[2..].iter_mut().zip(x) {
        *q = nearest(*x, d.to_f32(), -127, 127) as i8 as u8;
    }
}

/// The least multiple of `unit` among `0 ..= max` not below `x`.
fn ceil_multiple(x: f32, unit: f32, max: u8) -> u8 {
    if unit == 0.0 { 0 } else { (x / unit).ceil().clamp(0.0, f32::from(max)) as u8 }
}

/// Header (scales and minima) and quants of the two K formats with minima; `levels` is the largest quant.
fn with_minima(x: &[f32; 256], levels: u8, header: &mut [u8]) -> [u8; 256] {
    let ranges: Vec<(f32, f32)> = x.chunks_exact(32).map(extremes).collect();
    // A sub-block's grid starts at or below zero: the format stores minima negated and unsigned.
    let deepest = ranges.iter().fold(0.0, |deep: f32, (low, _)| deep.max(-low));
    let dmin = ceil_f16(deepest / 63.0).to_f32();
    let mins: Vec<u8> = ranges.iter().map(|(low, _)| ceil_multiple(-low, dmin, 63)).collect();
    let steps: Vec<f32> = ranges
        .iter()
        .zip(&mins)
        .map(|((_, high), min)| (high + dmin * f32::from(*min)).max(0.0) / f32::from(levels))
        .collect();
    let d = ceil_f16(steps.iter().copied().fold(0.0, f32::max) / 63.0).to_f32();
    let scales: Vec<u8> = steps.iter().map(|step| ceil_multiple(*step, d, 63)).collect();

    header[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    header[2..4].copy_from_slice(&f16::from_f32(dmin).to_le_bytes());
    for j in 0..4 {
        // The inverse of `dequant::scale_and_min`.
        header[4 + j] = scales[j] | (scales[j + 4] >> 4 << 6);
        header[8 + j] = mins[j] | (mins[j + 4] >> 4 << 6);
        header[12 + j] = (scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4);
    }
    std::array::from_fn(|i| {
        let (step, min) = (d * f32::from(scales[i / 32]), dmin * f32::from(mins[i / 32]));
        nearest(x[i] + min, step, 0, i32::from(levels)) as u8
    })
}

fn q4_k(x: &[f32; 256], block: &mut [u8; 144]) {
    let q = with_minima(x, 15, &mut block[..16]);
    for (byte, out) in block[16..].iter_mut().enumerate() {
        let low = byte / 32 * 64 + byte % 32;
        *out = q[low] | (q[low + 32] << 4);
    }
}

fn q5_k(x: &[f32; 256], block: &mut [u8; 176]) {
    let q = with_minima(x, 31, &mut block[..16]);
    for byte in 0..32 {
        block[16 + byte] = (0..8).fold(0, |bits, j| bits | (q[j * 32 + byte] >> 4 << j));
    }
    for (byte, out) in block[48..].iter_mut().enumerate() {
        let low = byte / 32 * 64 + byte % 32;
        *out = (q[low] & 15) | ((q[low + 32] & 15) << 4);
    }
}

fn q6_k(x: &[f32; 256], block: &mut [u8; 210]) {
    let steps: Vec<f32> = x.chunks_exact(16).map(|x| absmax(x) / 31.0).collect();
    let d = ceil_f16(steps.iter().copied().fold(0.0, f32::max) / 127.0).to_f32();
    let scales: Vec<u8> = steps.iter().map(|step| ceil_multiple(*step, d, 127)).collect();
    let q = |i: usize| (nearest(x[i], d * f32::from(scales[i / 16]), -32, 31) + 32) as u8;
    let (nibbles, rest) = block.split_at_mut(128);
    for (byte, out) in nibbles.iter_mut().enumerate() {
        let low = byte / 64 * 128 + byte % 64;
        *out = (q(low) & 15) | ((q(low + 64) & 15) << 4);
    }
    for (byte, out) in rest[..64].iter_mut().enumerate() {
        let first = byte / 32 * 128 + byte % 32;
        *out = (0..4).fold(0, |bits, run| bits | (q(first + 32 * run) >> 4 << (2 * run)));
    }
    rest[64..80].copy_from_slice(&scales);
    rest[80..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
}
