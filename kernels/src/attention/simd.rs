//! The vector operations that attention is written in, and its exponential and hyperbolic tangent.
//!
//! The algorithm exists once, over [`Simd`]; an instruction set is an implementation of this trait. Every
//! operation is an IEEE one or moves bits, so all implementations give the same bits.

use half::{bf16, f16};

use crate::kv::LANES;

/// Operations on eight floats. A value of an implementing type is the proof that its instructions exist, so
/// the operations are safe.
pub(super) trait Simd: Copy {
    /// Eight floats.
    type F32: Copy;

    fn splat(self, x: f32) -> Self::F32;
    /// `[0, 1, … 7]`
    fn iota(self) -> Self::F32;
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`: b where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { yes } else { no }`: no where either is NaN.
    fn select_lt(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// The magnitude of `a` with the sign of `b`.
    fn with_sign_of(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Adds the low bits of `n`'s representation, as an integer, to `a`'s exponent.
    fn add_to_exponent(self, a: Self::F32, n: Self::F32) -> Self::F32;
    /// The largest of the eight, ignoring NaN unless all are.
    fn fold_max(self, a: Self::F32) -> f32;

    /// Asks for `bytes` from here on to be brought close; anywhere is fine.
    fn prefetch(self, from: *const u8, bytes: usize);

    /// Runs a function compiled for these instructions: once in the program, where inlining it into each caller
    /// would compile it many times.
    fn call<F: Function>(self, function: F);

    /// # Safety
    /// `from` is readable for eight floats.
    unsafe fn load(self, from: *const f32) -> Self::F32;
    /// # Safety
    /// `from` is readable for eight elements.
    unsafe fn load_f16(self, from: *const f16) -> Self::F32;
    /// # Safety
    /// `from` is readable for eight elements.
    unsafe fn load_bf16(self, from: *const bf16) -> Self::F32;
    /// # Safety
    /// `from` is readable for eight elements.
    unsafe fn load_i8(self, from: *const i8) -> Self::F32;
    /// # Safety
    /// `to` is writable for eight floats.
    unsafe fn store(self, to: *mut f32, a: Self::F32);
}

/// What [`Simd::call`] calls; its fields are the arguments.
pub(super) trait Function {
    /// The body; `#[inline(always)]`.
    fn run<S: Simd>(self, s: S);
}

/// An element type of the cache.
pub(super) trait Element: Copy {
    /// Whether loading converts, so that repeated loads are worth saving.
    const CONVERTS: bool;

    /// # Safety
    /// `from` is readable for eight elements.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F32;
}

impl Element for f32 {
    const CONVERTS: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F32 {
        // SAFETY: the caller's.
        unsafe { s.load(from) }
    }
}

impl Element for f16 {
    const CONVERTS: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F32 {
        // SAFETY: the caller's.
        unsafe { s.load_f16(from) }
    }
}

impl Element for bf16 {
    const CONVERTS: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F32 {
        // SAFETY: the caller's.
        unsafe { s.load_bf16(from) }
    }
}

impl Element for i8 {
    const CONVERTS: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F32 {
        // SAFETY: the caller's.
        unsafe { s.load_i8(from) }
    }
}

/// `1.5 · 2²³`: the floats around it are the integers, so adding it rounds to the nearest one.
const ROUND: f32 = 12_582_912.0;

/// `2^f = 1 + f · Q(f)` on [-½, ½]; a minimax fit of Q, relative error 2e-9 before rounding.
const EXP2: [f32; 6] =
    [std::f32::consts::LN_2, 0.240_226_48, 0.055_503_324, 0.009_618_437, 0.001_339_887_5, 0.000_153_533_62];

/// `tanh y = y + y³ · R(y²)` below [`TANH_SMALL`]; a minimax fit of R, relative error 4e-9 before rounding.
const TANH: [f32; 5] = [-0.333_332_84, 0.133_314_91, -0.053_743_497, 0.020_650_584, -0.005_717_042_4];
const TANH_SMALL: f32 = 0.625;

/// `2^x`, within 8e-8 of it; 0 below -126 and NaN of NaN. From 128 on it is `x` instead, as no caller gets there.
#[inline(always)]
pub(super) fn exp2<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let n = s.add(x, s.splat(ROUND));
    let f = s.sub(x, s.sub(n, s.splat(ROUND)));
    let mut q = s.splat(EXP2[5]);
    for c in [EXP2[4], EXP2[3], EXP2[2], EXP2[1], EXP2[0], 1.0] {
        q = s.fma(q, f, s.splat(c));
    }
    let y = s.add_to_exponent(q, n);
    let y = s.select_lt(x, s.splat(-126.0), s.splat(0.0), y);
    s.select_lt(x, s.splat(128.0), y, x)
}

/// `tanh x`, within 2e-7 of it relatively.
#[inline(always)]
pub(super) fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let y = s.with_sign_of(x, s.splat(1.0));
    let z = s.mul(y, y);
    let mut r = s.splat(TANH[4]);
    for c in [TANH[3], TANH[2], TANH[1], TANH[0]] {
        r = s.fma(r, z, s.splat(c));
    }
    let small = s.fma(s.mul(r, z), y, y);
    // From 10 on the result is 1 in f32 (`select_lt` keeps a NaN).
    let bounded = s.select_lt(s.splat(10.0), y, s.splat(10.0), y);
    let e = exp2(s, s.mul(bounded, s.splat(2.0 * std::f32::consts::LOG2_E)));
    let large = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    s.with_sign_of(s.select_lt(y, s.splat(TANH_SMALL), small, large), x)
}

/// The sum of the eight floats at `from`, pairwise.
///
/// # Safety
/// `from` is readable for eight floats.
#[inline(always)]
pub(super) unsafe fn fold_sum(from: *const f32) -> f32 {
    // SAFETY: the caller's; an array of floats is aligned as a float is.
    let x: [f32; LANES] = unsafe { *from.cast() };
    ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::scalar::Scalar;
    use super::*;

    /// `f` of eight floats by each instruction set this processor has.
    fn everywhere(x: [f32; 8], f: impl Fn(f32) -> f64, tolerance: f64, which: Which) {
        let portable = which.apply(Scalar, x);
        for (x, y) in x.iter().zip(portable) {
            let want = f(*x);
            assert!(
                (f64::from(y) - want).abs() <= tolerance * want.abs(),
                "{which:?} {x} is {y}, not {want}"
            );
        }
        #[cfg(target_arch = "x86_64")]
        if crate::cpu::isa() == crate::cpu::Isa::Avx2 {
            // SAFETY: just checked.
            let avx2 = which.apply(unsafe { super::super::avx2::Avx2::new() }, x);
            assert_eq!(portable.map(f32::to_bits), avx2.map(f32::to_bits), "{which:?} of {x:?}");
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Which {
        Exp2,
        Tanh,
    }

    impl Which {
        fn apply<S: Simd>(self, s: S, x: [f32; 8]) -> [f32; 8] {
            let mut y = [0.0; 8];
            // SAFETY: both arrays hold eight floats.
            unsafe {
                let x = s.load(x.as_ptr());
                s.store(
                    y.as_mut_ptr(),
                    match self {
                        Which::Exp2 => exp2(s, x),
                        Which::Tanh => tanh(s, x),
                    },
                );
            }
            y
        }
    }

    proptest! {
        #[test]
        fn exp2_is_close_and_the_same_everywhere(x in prop::array::uniform8(-126.0f32..30.0)) {
            everywhere(x, |x| f64::from(x).exp2(), 1e-7, Which::Exp2);
        }

        #[test]
        fn tanh_is_close_and_the_same_everywhere(x in prop::array::uniform8(-12.0f32..12.0)) {
            everywhere(x, |x| f64::from(x).tanh(), 2e-7, Which::Tanh);
        }
    }

    #[test]
    fn edges() {
        let (inf, nan) = (f32::INFINITY, f32::from_bits(u32::MAX));
        let y = Which::Exp2.apply(Scalar, [0.0, -0.0, -126.5, -inf, f32::MIN, nan, -f32::MIN_POSITIVE, 1.0]);
        assert_eq!(y[..5], [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert!(y[5].is_nan(), "a NaN of all ones must survive the exponent's arithmetic");
        assert_eq!(y[6..], [1.0, 2.0]);
        let y = Which::Tanh.apply(Scalar, [0.0, inf, -inf, 1e30, -1e30, nan, 1e-30, -1e-30]);
        assert_eq!(y[..5], [0.0, 1.0, -1.0, 1.0, -1.0]);
        assert!(y[5].is_nan());
        assert_eq!(y[6..], [1e-30, -1e-30]);
        everywhere(
            [0.625, -0.625, 0.62499994, 9.999_999, 10.0, 10.1, 88.0, -88.0],
            |x| f64::from(x).tanh(),
            2e-7,
            Which::Tanh,
        );
    }
}
