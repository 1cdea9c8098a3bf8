//! What encoders of the BERT family do to a row: layer normalisation, GELU, full attention, pooling.

use super::{math, vectorised};

/// Partial sums: two AVX2 registers' worth, so that additions overlap.
const LANES: usize = 16;

/// The sum of `f` over a row, in an order that depends on its length alone.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += f(*x));
    }
    sums.iter_mut().zip(chunks.remainder()).for_each(|(sum, x)| *sum += f(*x));
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0]
}

vectorised! {
    /// `x ← (x - mean(x)) / √(var(x) + eps) · weight + bias`, for each run of `weight.len()` elements of `x`.
    fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        for x in x.chunks_exact_mut(weight.len()) {
            let count = x.len() as f32;
            let mean = sum(x, |x| x) / count;
            x.iter_mut().for_each(|x| *x -= mean);
            let scale = 1.0 / (sum(x, |x| x * x) / count + eps).sqrt();
            for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
                *x = (*x * scale).mul_add(*weight, *bias);
            }
        }
    }
}

vectorised! {
    /// `x[i] ← x[i] · Φ(x[i])`; the tail of Φ by Abramowitz and Stegun 7.1.26.
    fn gelu(x: &mut [f32]) {
        for x in x {
            let size = x.abs();
            let t = 1.0 / size.mul_add(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2, 1.0);
            let mut p = 1.061_405_4_f32;
            for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
                p = p.mul_add(t, c);
            }
            let tail = 0.5 * p * t * math::exp(-0.5 * size * size);
            *x = x.max(0.0) - size * tail;
        }
    }
}

vectorised! {
    /// One query's attention to all keys. `keys` is `[D, stride]`, of which the first `scores.len()` columns are keys;
    /// `values` is `[keys, D]`; `scores` is scratch.
    fn attend(q: &[f32], keys: &[f32], stride: usize, values: &[f32], scale: f32, scores: &mut [f32], out: &mut [f32]) {
        scores.fill(0.0);
        for (q, keys) in q.iter().zip(keys.chunks_exact(stride)) {
            let q = q * scale;
            scores.iter_mut().zip(keys).for_each(|(score, key)| *score = q.mul_add(*key, *score));
        }
        let max = scores.iter().fold(f32::NEG_INFINITY, |max, score| max.max(*score));
        scores.iter_mut().for_each(|score| *score = math::exp(*score - max));
        let weight = 1.0 / sum(scores, |score| score);
        out.fill(0.0);
        for (score, value) in scores.iter().zip(values.chunks_exact(out.len())) {
            out.iter_mut().zip(value).for_each(|(out, value)| *out = score.mul_add(*value, *out));
        }
        out.iter_mut().for_each(|out| *out *= weight);
    }
}

vectorised! {
    /// `x ← x / |x|`; what is nearly zero stays so.
    fn normalise(x: &mut [f32]) {
        let scale = 1.0 / sum(x, |x| x * x).max(1e-24).sqrt();
        x.iter_mut().for_each(|x| *x *= scale);
    }
}
