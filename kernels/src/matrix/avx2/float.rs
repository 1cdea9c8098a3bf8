//! f32 arithmetic: plain formats, and all others in reference precision.

use std::arch::x86_64::{
    __m256, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_set1_epi32, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};
use std::ops::Range;

use super::{broadcast_float, load_f16, settle_floats, tile};
use crate::matrix::TILE;
use crate::matrix::drive::{Direct, Kernel, Panel, Tile};
use crate::matrix::format::{BF16, BLOCK, F16, F32, LANES};

/// The kernel of a plain format. Widening costs so little that a panel of floats would not pay.
pub(super) fn plain<F: Pairs>() -> Kernel {
    let block_bytes = Some(F::STRIDE * BLOCK / 2);
    Kernel { direct: Some(Direct { tile: direct_tile::<F>, groups: 2, block_bytes }), panel: None }
}

/// The kernel of a format that a function can dequantise to `[column][row]` floats.
pub(super) fn dequantised(unpack: unsafe fn(*const u8, Range<usize>, *mut u8)) -> Kernel {
    let tile = direct_tile::<F32>;
    let block_bytes = F32::STRIDE * BLOCK / 2;
    Kernel { direct: None, panel: Some(Panel { unpack, tile, block_bytes, groups: 2 }) }
}

/// A plain format, two columns of eight rows at a time.
pub(super) trait Pairs {
    /// Bytes of two columns.
    const STRIDE: usize;

    /// The first column of the pair at `at`.
    ///
    /// # Safety
    /// `at` is valid for reads of a pair.
    unsafe fn even(at: *const u8) -> __m256;

    /// The second.
    ///
    /// # Safety
    /// As above.
    unsafe fn odd(at: *const u8) -> __m256;
}

impl Pairs for F32 {
    const STRIDE: usize = 8 * LANES;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn even(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn odd(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at.add(4 * LANES).cast()) }
    }
}

impl Pairs for F16 {
    const STRIDE: usize = 4 * LANES;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn even(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { load_f16(at) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn odd(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { load_f16(at.add(2 * LANES)) }
    }
}

impl Pairs for BF16 {
    const STRIDE: usize = 4 * LANES;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn even(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        let pair = unsafe { _mm256_loadu_si256(at.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn odd(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        let pair = unsafe { _mm256_loadu_si256(at.cast()) };
        _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
    }
}

unsafe fn direct_tile<F: Pairs>(t: &Tile) {
    // SAFETY: the caller's promises are those asked for.
    unsafe { tile!(products::<F>(t), groups 3 2) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop, reason = "sums are indexed by group and token, in either order")]
unsafe fn products<F: Pairs, const R: usize, const C: usize>(t: &Tile) {
    let mut z = [[_mm256_setzero_ps(); C]; R];
    // SAFETY: `Tile` promises these weights, activations and sums.
    unsafe {
        for (r, z) in z.iter_mut().enumerate() {
            for (c, z) in z.iter_mut().enumerate() {
                *z = _mm256_loadu_ps(t.sums.add((r * TILE + c) * LANES));
            }
        }
        for pair in 0..t.blocks * BLOCK / 2 {
            let weights = t.weights.add(pair * F::STRIDE);
            let acts = t.acts.add(2 * pair * TILE * 4);
            let mut w = [_mm256_setzero_ps(); R];
            // One column after the other: both of three groups at once would not fit the registers.
            for (r, w) in w.iter_mut().enumerate() {
                *w = F::even(weights.add(r * t.stride));
            }
            for c in 0..C {
                let x = broadcast_float(acts.add(4 * c));
                for r in 0..R {
                    z[r][c] = _mm256_fmadd_ps(w[r], x, z[r][c]);
                }
            }
            z.as_flattened_mut().iter_mut().for_each(|sum| settle_floats(sum));
            for (r, w) in w.iter_mut().enumerate() {
                *w = F::odd(weights.add(r * t.stride));
            }
            for c in 0..C {
                let x = broadcast_float(acts.add(4 * (TILE + c)));
                for r in 0..R {
                    z[r][c] = _mm256_fmadd_ps(w[r], x, z[r][c]);
                }
            }
            z.as_flattened_mut().iter_mut().for_each(|sum| settle_floats(sum));
        }
        for (r, z) in z.iter().enumerate() {
            for (c, z) in z.iter().enumerate() {
                _mm256_storeu_ps(t.sums.add((r * TILE + c) * LANES), *z);
            }
        }
    }
}
