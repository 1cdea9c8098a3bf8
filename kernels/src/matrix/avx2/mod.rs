//! Kernels for x86-64 with AVX2, FMA and F16C. Each computes what `scalar` says, bit for bit: a row is a 32-bit
//! lane, so lanes never mix.
//!
//! Register tiles are 2 groups by 4 tokens: enough independent sums to hide the latency of a multiply-add, few
//! enough for 16 registers (3 by 4 f32 sums would fit too, but not the way compilers allocate). Sizes are constants, so that the compiler
//! unrolls the tile and keeps it in registers; `tile!` picks the instance.

mod byte;
mod float;
mod nibble;
mod prepare;

use std::arch::asm;
use std::arch::x86_64::{__m256, __m256i};
use std::arch::x86_64::{_mm_loadu_si128, _mm256_broadcast_ss, _mm256_cvtph_ps, _mm256_set1_epi32};

use millrace_graph::DType;

use super::drive::Kernel;
use super::format::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::scalar::Prepare;
use super::{Activations, Precision, scalar};

/// The kernels of a format.
pub(super) fn kernel(dtype: DType, precision: Precision) -> Kernel {
    use Precision::{Fast, Reference};
    match (dtype, precision) {
        (DType::F32, _) => float::plain::<F32>(),
        (DType::F16, _) => float::plain::<F16>(),
        (DType::BF16, _) => float::plain::<BF16>(),
        (DType::Q4_0, Fast) => nibble::kernel::<Q4_0>(),
        (DType::Q4_1, Fast) => nibble::kernel::<Q4_1>(),
        (DType::Q4K, Fast) => nibble::kernel::<Q4K>(),
        (DType::Q5_0, Fast) => nibble::kernel::<Q5_0>(),
        (DType::Q5_1, Fast) => nibble::kernel::<Q5_1>(),
        (DType::Q5K, Fast) => nibble::kernel::<Q5K>(),
        (DType::Q6K, Fast) => byte::kernel::<Q6K>(),
        (DType::Q8_0, Fast) => byte::kernel::<Q8_0>(),
        (DType::Q4_0, Reference) => float::dequantised(nibble::dequantise::<Q4_0>),
        (DType::Q4_1, Reference) => float::dequantised(nibble::dequantise::<Q4_1>),
        (DType::Q4K, Reference) => float::dequantised(nibble::dequantise::<Q4K>),
        (DType::Q5_0, Reference) => float::dequantised(nibble::dequantise::<Q5_0>),
        (DType::Q5_1, Reference) => float::dequantised(nibble::dequantise::<Q5_1>),
        (DType::Q5K, Reference) => float::dequantised(nibble::dequantise::<Q5K>),
        (DType::Q6K, Reference) => float::dequantised(byte::dequantise::<Q6K>),
        (DType::Q8_0, Reference) => float::dequantised(byte::dequantise::<Q8_0>),
        (DType::Pred | DType::I8 | DType::U8 | DType::I32 | DType::U32, _) => {
            unreachable!("refused by Matrix::pack")
        }
    }
}

/// How activations of a form are prepared.
pub(super) fn prepare(acts: Activations) -> Prepare {
    match acts {
        Activations::F32 => scalar::prepare_f32,
        Activations::I8 => prepare::i8,
        Activations::I16 => prepare::i16,
    }
}

/// Takes a tile through the instances of a function for its number of tokens, so many groups at a time for one token
/// and for more.
macro_rules! tile {
    ($f:ident::<$source:ty>($tile:expr), groups $one:literal $more:literal) => {
        match $tile.tokens {
            1 => tile!($f::<$source, $one, 1>($tile)),
            2 => tile!($f::<$source, $more, 2>($tile)),
            3 => tile!($f::<$source, $more, 3>($tile)),
            4 => tile!($f::<$source, $more, 4>($tile)),
            tokens => unreachable!("a tile of {tokens} tokens"),
        }
    };
    ($f:ident::<$source:ty, $groups:literal, $tokens:literal>($tile:expr)) => {{
        let mut rest = *$tile;
        while rest.groups >= $groups {
            $f::<$source, $groups, $tokens>(&rest);
            rest.skip($groups);
        }
        while rest.groups > 0 {
            $f::<$source, 1, $tokens>(&rest);
            rest.skip(1);
        }
    }};
}
use tile;

/// Makes the compiler finish a sum here and load nothing for later before. Left alone it gathers the loads of a whole
/// unrolled block at its start, or computes one group after the other, and spills what it then holds too long:
/// that doubles the time of a tile.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn settle(sum: &mut __m256i) {
    // SAFETY: no instruction at all; the value is given back as it was.
    unsafe { asm!("/* {0} */", inout(ymm_reg) * sum, options(nostack, preserves_flags)) }
}

/// [`settle`] for floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn settle_floats(sum: &mut __m256) {
    // SAFETY: as above.
    unsafe { asm!("/* {0} */", inout(ymm_reg) * sum, options(nostack, preserves_flags)) }
}

/// Four bytes at `at`, in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn broadcast(at: *const u8) -> __m256i {
    // SAFETY: the caller has four readable bytes there.
    _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
}

/// The float at `at`, in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn broadcast_float(at: *const u8) -> __m256 {
    // SAFETY: the caller has a float there, aligned as activations are.
    _mm256_broadcast_ss(unsafe { &*at.cast::<f32>() })
}

/// Eight f16 numbers at `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_f16(at: *const u8) -> __m256 {
    // SAFETY: the caller has 16 readable bytes there.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}
