//! Signed codes of 6 and 8 bits with 16-bit activations.
//!
//! Codes are widened to 16 bits and multiplied with `madd`, whose 32-bit sums are exact over a block
//! (32 · 128 · 32,767 < 2³¹). That costs as many instructions as 8-bit activations would and loses nothing.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_and_si128, _mm_loadl_epi64, _mm_loadu_si128, _mm_or_si128, _mm_set_epi32,
    _mm_set1_epi8, _mm_sll_epi16, _mm_srl_epi16, _mm256_add_epi32, _mm256_cvtepi8_epi16,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mul_ps, _mm256_set1_epi16, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srai_epi32, _mm256_storeu_ps, _mm256_storeu_si256,
    _mm256_sub_epi16,
};
use std::marker::PhantomData;
use std::ops::Range;

use super::{broadcast, broadcast_float, load_f16, settle, tile};
use crate::matrix::drive::{Direct, Kernel, Panel, Tile};
use crate::matrix::format::{BLOCK, Bytes, LANES, Q6K, Q8_0};
use crate::matrix::{Activations, TILE};

/// The kernels of a format.
pub(super) fn kernel<F: Vectors>() -> Kernel {
    Kernel {
        direct: Some(Direct { tile: direct_tile::<F>, groups: 2, block_bytes: None }),
        panel: Some(Panel {
            unpack: unpack::<F>,
            tile: panel_tile::<F>,
            block_bytes: panel_block(F::HALVES),
            groups: 2,
        }),
    }
}

/// A format of bytes, eight rows at a time.
pub(super) trait Vectors: Bytes {
    /// Columns `2s` and `2s + 1` of a block: two 16-bit codes for each row.
    ///
    /// # Safety
    /// `group` has more than `block` blocks.
    unsafe fn codes(group: *const u8, block: usize, s: usize) -> __m256i;

    /// The scales of half a block.
    ///
    /// # Safety
    /// As above.
    unsafe fn scales(group: *const u8, block: usize, half: usize) -> __m256;
}

impl Vectors for Q8_0 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(group: *const u8, block: usize, s: usize) -> __m256i {
        // SAFETY: offset within the block's codes.
        _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(group.add(block * Self::STRIDE + 16 * s).cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: *const u8, block: usize, _half: usize) -> __m256 {
        // SAFETY: offset within the block's scales.
        unsafe { load_f16(group.add(block * Self::STRIDE + 256)) }
    }
}

impl Vectors for Q6K {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(group: *const u8, block: usize, s: usize) -> __m256i {
        // SAFETY: offsets within the block's codes.
        unsafe {
            let codes = group.add(Self::block_at(block));
            let both = _mm_loadu_si128(codes.add(16 * (s % 8)).cast());
            let nibble = _mm_and_si128(_mm_srl_epi16(both, count(4 * (s / 8))), _mm_set1_epi8(15));
            // Bits `2f..` of each byte, moved to bit 4; the mask drops what comes from a neighbouring byte.
            let (p, f) = (s / 4, s % 4);
            let bits = _mm_loadu_si128(codes.add(128 + 16 * p).cast());
            let moved = if f < 2 {
                _mm_sll_epi16(bits, count(4 - 2 * f))
            } else {
                _mm_srl_epi16(bits, count(2 * f - 4))
            };
            let code = _mm_or_si128(nibble, _mm_and_si128(moved, _mm_set1_epi8(48)));
            _mm256_sub_epi16(_mm256_cvtepu8_epi16(code), _mm256_set1_epi16(32))
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: *const u8, block: usize, half: usize) -> __m256 {
        // SAFETY: offsets within the block's scales, and the multipliers behind them.
        unsafe {
            let factors = _mm_loadl_epi64(group.add(Self::block_at(block) + 192 + LANES * half).cast());
            let multipliers = load_f16(group.add(Self::super_at(block)));
            _mm256_mul_ps(multipliers, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(factors)))
        }
    }
}

/// A shift count in the form that the vector shifts take; constant once loops are unrolled.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn count(bits: usize) -> __m128i {
    _mm_set_epi32(0, 0, 0, bits as i32)
}

/// Where a tile's codes and scales come from.
trait Source {
    const HALVES: bool;
    unsafe fn codes(group: *const u8, block: usize, s: usize) -> __m256i;
    unsafe fn scales(group: *const u8, block: usize, half: usize) -> __m256;
}

/// A group as it is packed.
struct Packed<F>(PhantomData<F>);

impl<F: Vectors> Source for Packed<F> {
    const HALVES: bool = F::HALVES;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(group: *const u8, block: usize, s: usize) -> __m256i {
        // SAFETY: the same promise.
        unsafe { F::codes(group, block, s) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: *const u8, block: usize, half: usize) -> __m256 {
        // SAFETY: the same promise.
        unsafe { F::scales(group, block, half) }
    }
}

/// Bytes of a block in a panel: 16-bit codes in the order of their use, and 8 f32 scales, for each half if they differ.
const fn panel_block(halves: bool) -> usize {
    2 * LANES * BLOCK + if halves { 2 } else { 1 } * 4 * LANES
}

/// A group in a panel.
struct Unpacked<F>(PhantomData<F>);

impl<F: Vectors> Source for Unpacked<F> {
    const HALVES: bool = F::HALVES;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(group: *const u8, block: usize, s: usize) -> __m256i {
        // SAFETY: offset within the block.
        unsafe { _mm256_loadu_si256(group.add(block * panel_block(F::HALVES) + 32 * s).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: *const u8, block: usize, half: usize) -> __m256 {
        // SAFETY: offset within the block.
        unsafe {
            let block = group.add(block * panel_block(F::HALVES));
            _mm256_loadu_ps(block.add(2 * LANES * BLOCK + 4 * LANES * half).cast())
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<F: Vectors>(group: *const u8, blocks: Range<usize>, panel: *mut u8) {
    for (i, block) in blocks.enumerate() {
        // SAFETY: the group has the block, and the panel has room for it.
        unsafe {
            let out = panel.add(i * panel_block(F::HALVES));
            for s in 0..16 {
                _mm256_storeu_si256(out.add(32 * s).cast(), F::codes(group, block, s));
            }
            for half in 0..1 + usize::from(F::HALVES) {
                let scales = out.add(2 * LANES * BLOCK + 4 * LANES * half);
                _mm256_storeu_ps(scales.cast(), F::scales(group, block, half));
            }
        }
    }
}

unsafe fn direct_tile<F: Vectors>(t: &Tile) {
    // SAFETY: the caller's promises are those asked for.
    unsafe { tile!(products::<Packed<F>>(t), groups 1 2) }
}

unsafe fn panel_tile<F: Vectors>(t: &Tile) {
    // SAFETY: the caller's promises are those asked for.
    unsafe { tile!(products::<Unpacked<F>>(t), groups 1 2) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop, reason = "sums are indexed by group and token, in either order")]
unsafe fn products<S: Source, const R: usize, const C: usize>(t: &Tile) {
    let halves = if S::HALVES { 2 } else { 1 };
    // A single token's sums stay in registers; those of more would not fit beside the codes.
    let mut held = [_mm256_setzero_ps(); R];
    if C == 1 {
        for (r, z) in held.iter_mut().enumerate() {
            // SAFETY: `Tile` promises these sums.
            *z = unsafe { _mm256_loadu_ps(t.sums.add(r * TILE * LANES)) };
        }
    }
    for block in 0..t.blocks {
        // SAFETY: `Tile` promises these weights, activations and sums.
        unsafe {
            let acts = t.acts.add(block * Activations::I16.record());
            let scales = acts.add(2 * TILE * BLOCK);
            for half in 0..halves {
                let mut long = [[_mm256_setzero_si256(); C]; R];
                for s in 16 / halves * half..16 / halves * (half + 1) {
                    let mut codes = [_mm256_setzero_si256(); R];
                    for (r, codes) in codes.iter_mut().enumerate() {
                        *codes = S::codes(t.weights.add(r * t.stride), block, s);
                    }
                    for c in 0..C {
                        let x = broadcast(acts.add(2 * c * BLOCK + 4 * s));
                        for r in 0..R {
                            long[r][c] = _mm256_add_epi32(long[r][c], _mm256_madd_epi16(codes[r], x));
                        }
                    }
                    long.as_flattened_mut().iter_mut().for_each(|sum| settle(sum));
                }
                for (r, long) in long.iter().enumerate() {
                    let d = S::scales(t.weights.add(r * t.stride), block, half);
                    for (c, long) in long.iter().enumerate() {
                        let a = broadcast_float(scales.add(4 * c));
                        let sums = t.sums.add((r * TILE + c) * LANES);
                        let p = _mm256_mul_ps(_mm256_cvtepi32_ps(*long), d);
                        if C == 1 {
                            held[r] = _mm256_fmadd_ps(p, a, held[r]);
                        } else {
                            _mm256_storeu_ps(sums, _mm256_fmadd_ps(p, a, _mm256_loadu_ps(sums)));
                        }
                    }
                }
            }
        }
    }
    if C == 1 {
        for (r, z) in held.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(t.sums.add(r * TILE * LANES), *z) };
        }
    }
}

/// Writes the numbers that a run of blocks stands for, `[column][row]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dequantise<F: Vectors>(group: *const u8, blocks: Range<usize>, panel: *mut u8) {
    for (i, block) in blocks.enumerate() {
        // SAFETY: the group has the block, and the panel has room for it.
        unsafe {
            let out = panel.add(i * BLOCK * LANES * 4).cast::<f32>();
            for s in 0..16 {
                let d = F::scales(group, block, s / 8);
                let codes = F::codes(group, block, s);
                let even = _mm256_srai_epi32(_mm256_slli_epi32(codes, 16), 16);
                let odd = _mm256_srai_epi32(codes, 16);
                _mm256_storeu_ps(out.add(2 * s * LANES), _mm256_mul_ps(d, _mm256_cvtepi32_ps(even)));
                _mm256_storeu_ps(out.add((2 * s + 1) * LANES), _mm256_mul_ps(d, _mm256_cvtepi32_ps(odd)));
            }
        }
    }
}
