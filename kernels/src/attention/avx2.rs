//! Vectors of AVX2, with FMA and F16C.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::simd::{Function, Simd};

/// The proof that AVX2, FMA and F16C are here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2, FMA and F16C. (For speed the caller also has to be compiled for them, or no
    /// operation is inlined.)
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Avx2(())
    }
}

/// Operations that are one expression over intrinsics.
macro_rules! operations {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self $(, $arg: $ty)*) -> $out {
            // SAFETY: the instructions exist, as `self` proves; they touch registers alone.
            unsafe { $body }
        }
    )*};
}

impl Simd for Avx2 {
    type F32 = __m256;

    operations! {
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        iota() -> __m256 = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        select_lt(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 =
            _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
        with_sign_of(a: __m256, b: __m256) -> __m256 = {
            let sign = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b))
        };
        add_to_exponent(a: __m256, n: __m256) -> __m256 = {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n))
        };
        fold_max(a: __m256) -> f32 = {
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        };
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8, bytes: usize) {
        for line in (0..bytes).step_by(64) {
            // SAFETY: a hint, which cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) };
        }
    }

    #[inline(always)]
    fn call<F: Function>(self, function: F) {
        // SAFETY: the instructions exist, as `self` proves.
        unsafe { outlined(self, function) };
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        // SAFETY: the caller's.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: __m256) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(to, a) }
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn outlined<F: Function>(s: Avx2, function: F) {
    function.run(s);
}
