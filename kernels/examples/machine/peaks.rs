//! The bandwidth and the arithmetic of this machine: what the benches and `machine` hold a kernel's figures against.

use std::hint::black_box;
use std::time::Instant;

use millrace_kernels::Pool;

/// Larger than any last-level cache that is ours alone.
const DRAM_BYTES: usize = 256 << 20;
/// About SmolLM2's weights in 4 bits: what one decoded token reads.
const MODEL_BYTES: usize = 96 << 20;

/// What all workers of a pool reach together, in units of 10⁹ a second; medians of seven.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "each program that includes this file reads the figures that concern it")]
pub(crate) struct Peaks {
    /// Bytes read, of 256 MiB over and over.
    pub(crate) read: f64,
    /// Bytes read, of 96 MiB over and over.
    pub(crate) read_model: f64,
    /// Multiply-accumulates in float32.
    pub(crate) f32: f64,
    /// Of 16-bit numbers, summed in 32 bits.
    pub(crate) i16: f64,
    /// Of bytes, as the 4-bit kernels do them.
    pub(crate) i8: f64,
}

impl Peaks {
    /// Measures for about a second.
    pub(crate) fn measure(pool: &Pool) -> Peaks {
        let mut memory = vec![0u64; DRAM_BYTES / 8];
        advise_huge(&mut memory);
        memory.fill(0x5a5a_5a5a_5a5a_5a5a);
        Peaks {
            read: bandwidth(pool, &memory),
            read_model: bandwidth(pool, &memory[..MODEL_BYTES / 8]),
            f32: arithmetic(pool, Kind::F32),
            i16: arithmetic(pool, Kind::I16),
            i8: arithmetic(pool, Kind::I8),
        }
    }
}

/// Asks for huge pages, which packed weights have too.
fn advise_huge(memory: &mut [u64]) {
    let range = memory.as_mut_ptr_range();
    let page = 4096;
    let start = (range.start as usize).next_multiple_of(page);
    // SAFETY: the range lies within the vector, on page bounds; the advice changes no content. A refusal costs speed alone.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::madvise(
            start as *mut libc::c_void,
            (range.end as usize - start) / page * page,
            libc::MADV_HUGEPAGE,
        );
    }
    let _ = start;
}

/// The median of seven, in units of 10⁹.
fn median(mut run: impl FnMut() -> f64) -> f64 {
    let mut figures: Vec<f64> = (0..7).map(|_| run()).collect();
    figures.sort_by(f64::total_cmp);
    figures[3] / 1e9
}

/// GB/s of reading `memory` in order, all threads together, each its own part.
fn bandwidth(pool: &Pool, memory: &[u64]) -> f64 {
    median(|| {
        let started = Instant::now();
        pool.run(&|worker| {
            let part = memory.len() / worker.count();
            black_box(simd::sweep(&memory[worker.index() * part..][..part]));
        });
        size_of_val(memory) as f64 / started.elapsed().as_secs_f64()
    })
}

#[derive(Clone, Copy)]
enum Kind {
    /// Fused multiply-adds.
    F32,
    /// 16-bit products summed in 32 bits: the 8-bit kernels'.
    I16,
    /// Unsigned by signed bytes with 16-bit sums over a block of 32, then to 32 bits: the 4-bit kernels' product.
    I8,
}

/// 10⁹ multiply-accumulates a second on data in registers.
fn arithmetic(pool: &Pool, kind: Kind) -> f64 {
    const ROUNDS: usize = 2_000_000;
    median(|| {
        let started = Instant::now();
        pool.run(&|_| match kind {
            Kind::F32 => simd::f32_rounds(ROUNDS),
            Kind::I16 => simd::i16_rounds(ROUNDS),
            Kind::I8 => simd::i8_rounds(ROUNDS),
        });
        let macs = match kind {
            Kind::F32 => simd::F32_MACS,
            Kind::I16 => simd::I16_MACS,
            Kind::I8 => simd::I8_MACS,
        };
        (pool.threads() * ROUNDS * macs) as f64 / started.elapsed().as_secs_f64()
    })
}

#[cfg(target_arch = "x86_64")]
mod simd {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Multiply-accumulates of a round.
    pub(crate) const F32_MACS: usize = 12 * 8;
    pub(crate) const I16_MACS: usize = 8 * 16;
    pub(crate) const I8_MACS: usize = 8 * 32;

    pub(crate) fn f32_rounds(rounds: usize) {
        assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"), "needs AVX2 and FMA");
        // SAFETY: the processor has the instructions.
        unsafe { f32_avx2(rounds) }
    }

    pub(crate) fn i16_rounds(rounds: usize) {
        assert!(is_x86_feature_detected!("avx2"), "needs AVX2");
        // SAFETY: the processor has the instructions.
        unsafe { i16_avx2(rounds) }
    }

    pub(crate) fn i8_rounds(rounds: usize) {
        assert!(is_x86_feature_detected!("avx2"), "needs AVX2");
        // SAFETY: the processor has the instructions.
        unsafe { i8_avx2(rounds) }
    }

    /// Reads everything.
    pub(crate) fn sweep(memory: &[u64]) -> u64 {
        assert!(is_x86_feature_detected!("avx2"), "needs AVX2");
        // SAFETY: the processor has the instructions.
        unsafe { sweep_avx2(memory) }
    }

    #[target_feature(enable = "avx2")]
    fn sweep_avx2(memory: &[u64]) -> u64 {
        let mut sums = [0u64; 32];
        for lines in memory.chunks_exact(32) {
            for (sum, value) in sums.iter_mut().zip(lines) {
                *sum ^= value;
            }
        }
        sums.iter().fold(0, |all, sum| all ^ sum)
    }

    #[target_feature(enable = "avx2,fma")]
    fn f32_avx2(rounds: usize) {
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
        // Twelve chains hide the latency of the two units.
        let mut sums = [_mm256_set1_ps(1.0); 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    fn i16_avx2(rounds: usize) {
        let w: [__m256i; 8] = std::array::from_fn(|i| _mm256_set1_epi16(black_box(i as i16)));
        let (mut a, one) = (_mm256_set1_epi16(black_box(-3)), _mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); 4];
        for _ in 0..rounds {
            for (i, w) in w.into_iter().enumerate() {
                sums[i % 4] = _mm256_add_epi32(sums[i % 4], _mm256_madd_epi16(w, a));
            }
            a = _mm256_xor_si256(a, one);
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    fn i8_avx2(rounds: usize) {
        let w: [__m256i; 8] = std::array::from_fn(|i| _mm256_set1_epi8(black_box(i as i8)));
        // Another activation each round, or the products would be computed once.
        let (mut a, one) = (_mm256_set1_epi8(black_box(-3)), _mm256_set1_epi8(1));
        let (ones, scale) = (_mm256_set1_epi16(1), _mm256_set1_ps(black_box(0.5)));
        let mut total = _mm256_setzero_ps();
        for _ in 0..rounds {
            let mut block = _mm256_setzero_si256();
            for w in w {
                block = _mm256_add_epi16(block, _mm256_maddubs_epi16(w, a));
            }
            a = _mm256_xor_si256(a, one);
            let block = _mm256_cvtepi32_ps(_mm256_madd_epi16(block, ones));
            total = _mm256_add_ps(total, _mm256_mul_ps(block, scale));
        }
        black_box(total);
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod simd {
    use std::hint::black_box;

    pub(crate) const F32_MACS: usize = 64;
    pub(crate) const I16_MACS: usize = 64;
    pub(crate) const I8_MACS: usize = 64;

    pub(crate) fn sweep(memory: &[u64]) -> u64 {
        memory.iter().fold(0, |all, value| all ^ value)
    }

    pub(crate) fn f32_rounds(rounds: usize) {
        let (a, b) = (black_box(0.999f32), black_box(1e-3f32));
        let mut sums = [1.0f32; F32_MACS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = *sum * a + b);
        }
        black_box(sums);
    }

    pub(crate) fn i16_rounds(rounds: usize) {
        let (w, a) = (black_box(7i16), black_box(-3i16));
        let mut sums = [0i32; I16_MACS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = sum.wrapping_add(i32::from(w) * i32::from(a)));
        }
        black_box(sums);
    }

    pub(crate) fn i8_rounds(rounds: usize) {
        let (w, a) = (black_box(7i8), black_box(-3i8));
        let mut sums = [0i32; I8_MACS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = sum.wrapping_add(i32::from(w) * i32::from(a)));
        }
        black_box(sums);
    }
}
