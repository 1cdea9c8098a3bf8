//! What each row-wise op does to one row: plain slices in, plain slices out, no memory of its own.
//!
//! Every function here works in place on a row (the executor copies the operand there first where it must be
//! kept) and folds in one order that depends on the row's length alone. So the bits of a row are the same
//! alone, in any batch, and on any worker.

pub(crate) mod elementwise;
pub(crate) mod encode;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod route;

/// Defines a function twice from one body: for any machine, and with AVX2 and FMA enabled so that the compiler
/// vectorises it for those, chosen at run time. Rust neither reorders nor contracts float arithmetic, and
/// `mul_add` rounds once with or without hardware support, so both give the same bits.
macro_rules! vectorised {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        pub(crate) fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn body($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features that `avx2` asks for were detected in the line above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorised;
