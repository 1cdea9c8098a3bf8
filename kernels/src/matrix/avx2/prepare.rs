//! Quantised activations, a block of 32 at a time.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_add_epi32, _mm_cvtsi128_si32, _mm_extract_epi32, _mm_max_epu32,
    _mm_shuffle_epi32, _mm256_and_si256, _mm256_castps_si256, _mm256_castsi256_si128, _mm256_cvtps_epi32,
    _mm256_extracti128_si256, _mm256_loadu_ps, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_epu32,
    _mm256_mul_ps, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_permute4x64_epi64, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_ps, _mm256_setzero_ps, _mm256_storeu_si256,
};

use crate::matrix::format::BLOCK;
use crate::matrix::scalar::{Scales, put_scales, read_block, scale, scales};
use crate::matrix::{Activations, TILE};

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn i8(row: *const f32, cols: usize, token: usize, tile: *mut u8) {
    for block in 0..cols.div_ceil(BLOCK) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = load(row, cols, block);
            let m = magnitudes(&x);
            // Lanes 0 and 1 hold columns of the first kind, 2 and 3 of the second.
            let [first, second] = [_mm_cvtsi128_si32(m), _mm_extract_epi32::<2>(m)];
            let Scales { a, factors, inverses: [i, j] } =
                scales([first, second].map(|bits| f32::from_bits(bits as u32)));
            let [low, high] = codes(&x, _mm256_setr_ps(i, i, j, j, i, i, j, j));
            let codes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0b11_01_10_00);
            let record = tile.add(block * Activations::I8.record());
            _mm256_storeu_si256(record.add(token * BLOCK).cast(), codes);
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
            let both = i32::from(factors[0]) | i32::from(factors[1]) << 16;
            let sum = add_lanes(_mm256_madd_epi16(pairs, _mm256_set1_epi32(both)));
            put_scales(record, token, a, sum, factors);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn i16(row: *const f32, cols: usize, token: usize, tile: *mut u8) {
    for block in 0..cols.div_ceil(BLOCK) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = load(row, cols, block);
            let (a, inverse) = scale(largest(&x), 32767.0);
            let record = tile.add(block * Activations::I16.record());
            for (i, codes) in codes(&x, _mm256_set1_ps(inverse)).into_iter().enumerate() {
                _mm256_storeu_si256(record.add(2 * (token * BLOCK + 16 * i)).cast(), codes);
            }
            *record.add(2 * TILE * BLOCK).cast::<f32>().add(token) = a;
        }
    }
}

/// A block of a row, with zeros behind its end.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load(row: *const f32, cols: usize, block: usize) -> [__m256; 4] {
    let mut x = [_mm256_setzero_ps(); 4];
    let mut read = |at: *const f32| {
        for (i, x) in x.iter_mut().enumerate() {
            // SAFETY: there are 32 floats, by either branch below.
            *x = unsafe { _mm256_loadu_ps(at.add(8 * i)) };
        }
    };
    if (block + 1) * BLOCK <= cols {
        // SAFETY: the row has this whole block.
        read(unsafe { row.add(block * BLOCK) });
    } else {
        // SAFETY: the row has more than `block` blocks.
        read(unsafe { read_block(row, cols, block) }.as_ptr());
    }
    x
}

/// As the scalar one: by the bits, so that what is not finite is the largest.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn largest(x: &[__m256; 4]) -> f32 {
    let m = magnitudes(x);
    let m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0b01_00_11_10));
    f32::from_bits(_mm_cvtsi128_si32(m) as u32)
}

/// The bits of the largest magnitude among columns 0 and 1 of each four in lanes 0 and 1, among the others in 2 and 3.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn magnitudes(x: &[__m256; 4]) -> __m128i {
    let magnitude = |x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX));
    let [a, b, c, d] = x.map(magnitude);
    let m = _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d));
    let m = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    _mm_max_epu32(m, _mm_shuffle_epi32(m, 0b10_11_00_01))
}

/// The codes of a block in order, rounded to nearest even.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn codes(x: &[__m256; 4], inverse: __m256) -> [__m256i; 2] {
    let [a, b, c, d] = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
    // Packing works within halves of a register; the permutation restores the order.
    let pack = |a, b| _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0b11_01_10_00);
    [pack(a, b), pack(c, d)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_lanes(x: __m256i) -> i32 {
    let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    let x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0b01_00_11_10));
    _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0b10_11_00_01)))
}
