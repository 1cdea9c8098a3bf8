//! Passes over a whole row of logits, written so that the compiler turns them into vector instructions: no
//! branch, no call, several independent lanes. NaN is never chosen and weighs nothing.

/// Logits in a block. The largest logit of each block, once known, spares the passes that look for a few
/// large ones almost all of the row.
pub(crate) const BLOCK: usize = 64;
const LANES: usize = 16;

/// e^x for x ≤ 0, and 0 where it would be subnormal or x is not a number. Within 2 ulp; the polynomial is that
/// of Cephes' `expf` (S. L. Moshier, 1989).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LOWEST: f32 = -87.0;
    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let mantissa = p * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x > LOWEST { mantissa * power } else { 0.0 }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    // Unlike `f32::max` this is one instruction; it drops a `b` that is NaN.
    if b > a { b } else { a }
}

/// The largest logit of each block of the row.
pub(crate) fn maxima(row: &[f32], out: &mut Vec<f32>) {
    out.clear();
    out.extend(row.chunks(BLOCK).map(|block| {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (vectors, rest) = block.as_chunks::<LANES>();
        for vector in vectors {
            for (lane, x) in lanes.iter_mut().zip(vector) {
                *lane = larger(*lane, *x);
            }
        }
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| larger(a, *b))
    }));
}

/// The largest of the maxima.
pub(crate) fn max(maxima: &[f32]) -> f32 {
    maxima.iter().fold(f32::NEG_INFINITY, |a, b| larger(a, *b))
}

/// Where `value` first stands in the row whose blocks have these maxima.
pub(crate) fn first(row: &[f32], maxima: &[f32], value: f32) -> Option<usize> {
    let block = maxima.iter().position(|max| *max == value)? * BLOCK;
    row[block..].iter().position(|x| *x == value).map(|at| block + at)
}

/// Sum of e^((x - max) · scale): in single precision within a block, in double over blocks. The order of
/// additions is fixed.
pub(crate) fn sum_exp(row: &[f32], max: f32, scale: f32) -> f64 {
    let blocks = row.chunks(BLOCK).map(|block| {
        let mut lanes = [0.0f32; LANES];
        let (vectors, rest) = block.as_chunks::<LANES>();
        for vector in vectors {
            for (lane, x) in lanes.iter_mut().zip(vector) {
                *lane += exp((x - max) * scale);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += exp((x - max) * scale);
        }
        for half in [8, 4, 2, 1] {
            for at in 0..half {
                lanes[at] += lanes[at + half];
            }
        }
        f64::from(lanes[0])
    });
    blocks.sum()
}

/// How many logits stand before this one in the order of rank: larger ones, and equal ones before it.
pub(crate) fn before(row: &[f32], at: usize) -> usize {
    let value = row[at];
    let larger: usize = row
        .chunks(1 << 16)
        .map(|part| part.iter().map(|x| u32::from(*x > value)).sum::<u32>() as usize)
        .sum();
    larger + row[..at].iter().filter(|x| **x == value).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close() {
        let mut worst = 0.0f64;
        for i in 0..870_000 {
            let x = i as f32 * -1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.5e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
        for x in [f32::NEG_INFINITY, f32::NAN, -88.0, -1e30] {
            assert_eq!(exp(x), 0.0, "{x}");
        }
    }
}
