//! Rotary position embedding.

use super::vectorised;

/// One token's angles: the cosines of `position · inv_freq`, then the sines, all times `scale`. The product is
/// rounded to f32 before the functions are applied, as it is where models are trained.
pub(crate) fn angles(out: &mut [f32], position: i32, inv_freq: &[f32], scale: f32) {
    let (cos, sin) = out.split_at_mut(inv_freq.len());
    for ((cos, sin), freq) in cos.iter_mut().zip(sin).zip(inv_freq) {
        let angle = position as f32 * freq;
        *cos = angle.cos() * scale;
        *sin = angle.sin() * scale;
    }
}

vectorised! {
    /// Rotates the pairs `(i, i + R/2)` of each head of `dim` elements by one token's angles (R of them:
    /// cosines, then sines).
    fn rotate(x: &mut [f32], dim: usize, angles: &[f32]) {
        let half = angles.len() / 2;
        let (cos, sin) = angles.split_at(half);
        for head in x.chunks_exact_mut(dim) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (x, y) = (*a, *b);
                *a = x * cos - y * sin;
                *b = y * cos + x * sin;
            }
        }
    }
}
