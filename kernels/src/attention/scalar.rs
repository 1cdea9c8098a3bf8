//! Portable vectors: what each operation means.

use half::{bf16, f16};

use super::simd::{Function, Simd};

/// Eight floats in an array.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scalar;

type F32 = [f32; 8];

#[inline(always)]
fn each(a: F32, b: F32, f: impl Fn(f32, f32) -> f32) -> F32 {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type F32 = F32;

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        [x; 8]
    }

    #[inline(always)]
    fn iota(self) -> F32 {
        std::array::from_fn(|i| i as f32)
    }

    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: F32, b: F32, c: F32) -> F32 {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        each(a, b, larger)
    }

    #[inline(always)]
    fn select_lt(self, a: F32, b: F32, yes: F32, no: F32) -> F32 {
        std::array::from_fn(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    fn with_sign_of(self, a: F32, b: F32) -> F32 {
        each(a, b, f32::copysign)
    }

    #[inline(always)]
    fn add_to_exponent(self, a: F32, n: F32) -> F32 {
        each(a, n, |a, n| f32::from_bits(a.to_bits().wrapping_add(n.to_bits() << 23)))
    }

    #[inline(always)]
    fn fold_max(self, a: F32) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |max, x| larger(x, max))
    }

    #[inline(always)]
    fn prefetch(self, _from: *const u8, _bytes: usize) {}

    #[inline(always)]
    fn call<F: Function>(self, function: F) {
        outlined(function);
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F32 {
        // SAFETY: the caller's; an array is aligned as its elements are.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> F32 {
        // SAFETY: the caller's; an array is aligned as its elements are.
        unsafe { *from.cast::<[f16; 8]>() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> F32 {
        // SAFETY: the caller's; an array is aligned as its elements are.
        unsafe { *from.cast::<[bf16; 8]>() }.map(bf16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> F32 {
        // SAFETY: the caller's; an array is aligned as its elements are.
        unsafe { *from.cast::<[i8; 8]>() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: F32) {
        // SAFETY: the caller's; an array is aligned as its elements are.
        unsafe { to.cast::<F32>().write(a) }
    }
}

/// As x86's `maxps`.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(never)]
fn outlined<F: Function>(function: F) {
    function.run(Scalar);
}
