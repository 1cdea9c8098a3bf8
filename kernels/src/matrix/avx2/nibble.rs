//! Codes of 4 and 5 bits with 8-bit activations.
//!
//! Codes stay unsigned, so `maddubs` takes them as they are (no sign trick) and the formats' centre goes into the offset
//! `m`. Products are added as 16-bit numbers for as long as they cannot overflow: with activations within
//! ±127, 4-bit codes over a whole block (16 · 2 · 15 · 127 / 2 = 30,480), 5-bit codes over half of one (31,496). Each
//! 16-bit sum is of columns with one factor; the `madd` that makes 32 bits of two of them multiplies by it.

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sllv_epi32,
    _mm256_srli_epi16, _mm256_srlv_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps,
};
use std::marker::PhantomData;
use std::ops::Range;

use super::{broadcast, broadcast_float, load_f16, settle, tile};
use crate::matrix::drive::{Direct, Kernel, Panel, Tile};
use crate::matrix::format::{BLOCK, LANES, Nibbles, Scales};
use crate::matrix::{Activations, TILE};

/// The kernels of a format.
pub(super) fn kernel<F: Nibbles>() -> Kernel {
    let (panel, groups) = match F::BITS {
        4 => (panel_tile::<4> as unsafe fn(&Tile), 2),
        _ => (panel_tile::<5> as unsafe fn(&Tile), 2),
    };
    Kernel {
        direct: Some(Direct { tile: direct_tile::<F>, groups: 2, block_bytes: None }),
        panel: Some(Panel { unpack: unpack::<F>, tile: panel, block_bytes: PANEL_BLOCK, groups }),
    }
}

/// Where a tile's codes and scales come from.
trait Source {
    const BITS: usize;

    /// Columns `16 * half + 4v ..` of a block: four bytes for each row.
    unsafe fn codes(group: *const u8, block: usize, half: usize, v: usize) -> __m256i;

    /// `d` and `m`.
    unsafe fn scales(group: *const u8, block: usize) -> (__m256, __m256);
}

/// A group as it is packed.
struct Packed<F>(PhantomData<F>);

impl<F: Nibbles> Source for Packed<F> {
    const BITS: usize = F::BITS;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(group: *const u8, block: usize, half: usize, v: usize) -> __m256i {
        // SAFETY: offsets within the block's codes.
        unsafe {
            let codes = group.add(F::block_at(block));
            let both = _mm256_loadu_si256(codes.add(32 * v).cast());
            let shifted = if half == 0 { both } else { _mm256_srli_epi16(both, 4) };
            let nibble = _mm256_and_si256(shifted, _mm256_set1_epi8(15));
            if F::BITS == 4 {
                return nibble;
            }
            // Bit `4 * half + v` of each byte, moved to bit 4. Lanes are 32 bits wide, but the mask drops what
            // comes from a neighbouring byte.
            let bits = _mm256_loadu_si256(codes.add(128).cast());
            let moved = if half == 0 {
                _mm256_sllv_epi32(bits, _mm256_set1_epi32(4 - v as i32))
            } else {
                _mm256_srlv_epi32(bits, _mm256_set1_epi32(v as i32))
            };
            _mm256_or_si256(nibble, _mm256_and_si256(moved, _mm256_set1_epi8(16)))
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: *const u8, block: usize) -> (__m256, __m256) {
        // SAFETY: offsets within the block's scales, and the multipliers behind them.
        unsafe {
            let scales = group.add(F::block_at(block) + F::CODES);
            match F::SCALES {
                Scales::Centred => {
                    let d = load_f16(scales);
                    (d, _mm256_mul_ps(d, _mm256_set1_ps(-F::CENTRE)))
                }
                Scales::Affine => (load_f16(scales), load_f16(scales.add(2 * LANES))),
                Scales::Super => {
                    let multipliers = group.add(F::super_at(block));
                    let d = _mm256_mul_ps(load_f16(multipliers), load_u8(scales));
                    let m = _mm256_mul_ps(load_f16(multipliers.add(2 * LANES)), load_u8(scales.add(LANES)));
                    (d, m)
                }
            }
        }
    }
}

/// Eight bytes as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_u8(at: *const u8) -> __m256 {
    // SAFETY: the caller has eight readable bytes there.
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
}

/// Bytes of a block in a panel: codes as bytes in the order of their use, 8 f32 `d`, 8 f32 `m`.
const PANEL_BLOCK: usize = LANES * BLOCK + 4 * LANES + 4 * LANES;

/// A group in a panel.
struct Unpacked<const BITS: usize>;

impl<const BITS: usize> Source for Unpacked<BITS> {
    const BITS: usize = BITS;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(group: *const u8, block: usize, half: usize, v: usize) -> __m256i {
        // SAFETY: offset within the block.
        unsafe { _mm256_loadu_si256(group.add(block * PANEL_BLOCK + 128 * half + 32 * v).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: *const u8, block: usize) -> (__m256, __m256) {
        // SAFETY: offsets within the block.
        unsafe {
            let scales = group.add(block * PANEL_BLOCK + LANES * BLOCK).cast::<f32>();
            (_mm256_loadu_ps(scales), _mm256_loadu_ps(scales.add(LANES)))
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<F: Nibbles>(group: *const u8, blocks: Range<usize>, panel: *mut u8) {
    for (i, block) in blocks.enumerate() {
        // SAFETY: the group has the block, and the panel has room for it.
        unsafe {
            let out = panel.add(i * PANEL_BLOCK);
            for half in 0..2 {
                for v in 0..4 {
                    let codes = Packed::<F>::codes(group, block, half, v);
                    _mm256_storeu_si256(out.add(128 * half + 32 * v).cast(), codes);
                }
            }
            let (d, m) = Packed::<F>::scales(group, block);
            let scales = out.add(LANES * BLOCK).cast::<f32>();
            _mm256_storeu_ps(scales, d);
            _mm256_storeu_ps(scales.add(LANES), m);
        }
    }
}

unsafe fn direct_tile<F: Nibbles>(t: &Tile) {
    // SAFETY: the caller's promises are those asked for.
    unsafe { tile!(products::<Packed<F>>(t), groups 1 2) }
}

unsafe fn panel_tile<const BITS: usize>(t: &Tile) {
    // SAFETY: the caller's promises are those asked for.
    unsafe { tile!(products::<Unpacked<BITS>>(t), groups 1 2) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop, reason = "sums are indexed by group and token, in either order")]
unsafe fn products<S: Source, const R: usize, const C: usize>(t: &Tile) {
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
            let acts = t.acts.add(block * Activations::I8.record());
            let mut short = [[_mm256_setzero_si256(); C]; R];
            let mut long = [[_mm256_setzero_si256(); C]; R];
            for half in 0..2 {
                for v in 0..4 {
                    let mut codes = [_mm256_setzero_si256(); R];
                    for (r, codes) in codes.iter_mut().enumerate() {
                        *codes = S::codes(t.weights.add(r * t.stride), block, half, v);
                    }
                    for c in 0..C {
                        let x = broadcast(acts.add(c * BLOCK + 16 * half + 4 * v));
                        for r in 0..R {
                            short[r][c] = _mm256_add_epi16(short[r][c], _mm256_maddubs_epi16(codes[r], x));
                        }
                    }
                    short.as_flattened_mut().iter_mut().for_each(|sum| settle(sum));
                }
                if half == 1 || S::BITS == 5 {
                    for c in 0..C {
                        let factors = broadcast(acts.add(TILE * (BLOCK + 8) + 4 * c));
                        for r in 0..R {
                            long[r][c] =
                                _mm256_add_epi32(long[r][c], _mm256_madd_epi16(short[r][c], factors));
                            short[r][c] = _mm256_setzero_si256();
                        }
                    }
                }
            }
            let scales = acts.add(TILE * BLOCK);
            for (r, long) in long.iter().enumerate() {
                let (d, m) = S::scales(t.weights.add(r * t.stride), block);
                for (c, long) in long.iter().enumerate() {
                    let a = broadcast_float(scales.add(4 * c));
                    let s = broadcast_float(scales.add(4 * (TILE + c)));
                    let sums = t.sums.add((r * TILE + c) * LANES);
                    let z = if C == 1 { held[r] } else { _mm256_loadu_ps(sums) };
                    let z = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(*long), d), a, z);
                    let z = _mm256_fmadd_ps(m, s, z);
                    if C == 1 {
                        held[r] = z;
                    } else {
                        _mm256_storeu_ps(sums, z);
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
pub(super) unsafe fn dequantise<F: Nibbles>(group: *const u8, blocks: Range<usize>, panel: *mut u8) {
    let byte = _mm256_set1_epi32(255);
    for (i, block) in blocks.enumerate() {
        // SAFETY: the group has the block, and the panel has room for it.
        unsafe {
            let out = panel.add(i * BLOCK * LANES * 4).cast::<f32>();
            let (d, m) = Packed::<F>::scales(group, block);
            for half in 0..2 {
                for v in 0..4 {
                    let codes = Packed::<F>::codes(group, block, half, v);
                    for j in 0..4 {
                        let code = _mm256_srlv_epi32(codes, _mm256_set1_epi32(8 * j as i32));
                        let q = _mm256_cvtepi32_ps(_mm256_and_si256(code, byte));
                        // The product of a code and a scale is exact: one rounding, as `Format::value` has it.
                        let value = match F::SCALES {
                            Scales::Centred => _mm256_mul_ps(d, _mm256_sub_ps(q, _mm256_set1_ps(F::CENTRE))),
                            Scales::Affine | Scales::Super => _mm256_fmadd_ps(d, q, m),
                        };
                        _mm256_storeu_ps(out.add((16 * half + 4 * v + j) * LANES), value);
                    }
                }
            }
        }
    }
}
