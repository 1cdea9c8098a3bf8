//! Root-mean-square normalisation.

use super::vectorised;

/// Partial sums of the mean square: two AVX2 registers' worth, so that additions overlap.
const LANES: usize = 16;

vectorised! {
    /// `x ← x / √(mean(x²) + eps) · (weight + offset)`, for each run of `weight.len()` elements of `x`.
    fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32, offset: f32) {
        for x in x.chunks_exact_mut(weight.len()) {
            let mut sums = [0.0f32; LANES];
            let mut chunks = x.chunks_exact(LANES);
            for chunk in &mut chunks {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum = x.mul_add(*x, *sum);
                }
            }
            for (sum, x) in sums.iter_mut().zip(chunks.remainder()) {
                *sum = x.mul_add(*x, *sum);
            }
            let mut width = LANES;
            while width > 1 {
                width /= 2;
                for i in 0..width {
                    sums[i] += sums[i + width];
                }
            }
            let scale = 1.0 / (sums[0] / weight.len() as f32 + eps).sqrt();
            for (x, weight) in x.iter_mut().zip(weight) {
                *x = *x * scale * (weight + offset);
            }
        }
    }
}
