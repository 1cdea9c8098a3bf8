//! The exponential and the hyperbolic tangent, branch-free so that loops over them vectorise. Reductions and
//! coefficients are those of Cephes' `expf` and `tanhf` (S. Moshier).

/// `e^x`, within 2 ulp; overflows to infinity, underflows through the subnormals to zero, keeps NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HI: f32 = std::f32::consts::LN_2;
    // ln 2 − LN2_HI
    const LN2_LO: f32 = -1.904_654_3e-9;
    // Beyond these the result is infinite or zero whatever x is, and n stays within what two factors can scale.
    let x = x.clamp(-104.0, 89.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let mut p = 1.987_569_2e-4_f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // 2^n as two factors: n reaches beyond what one float's exponent holds.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

/// `tanh x`, within 3 ulp.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3_f32;
    p = p.mul_add(z, 2.063_908_8e-2);
    p = p.mul_add(z, -5.373_971_6e-2);
    p = p.mul_add(z, 1.333_144_2e-1);
    p = p.mul_add(z, -0.333_332_8);
    let small = (p * z).mul_add(x, x);
    let large = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    (if x.abs() < 0.625 { small } else { large }).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the exact value (of the smallest normal below it).
    fn ulps(got: f32, exact: f64) -> f64 {
        let exponent = (exact.abs().max(f64::from(f32::MIN_POSITIVE))).log2().floor();
        (f64::from(got) - exact).abs() / (exponent - 23.0).exp2()
    }

    /// Every 997th float, both signs, subnormals and huge values included.
    fn floats() -> impl Iterator<Item = f32> {
        (0..0x7f80_0000u32).step_by(997).flat_map(|bits| [f32::from_bits(bits), -f32::from_bits(bits)])
    }

    fn worst(range: f32, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> (f64, f32) {
        let within = floats().filter(|x| x.abs() <= range);
        let measured = within.map(|x| (ulps(f(x), exact(f64::from(x))), x));
        measured.fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
    }

    #[test]
    fn functions_are_accurate_over_all_floats() {
        for (name, (ulps, at), bound) in
            [("exp", worst(88.7, exp, f64::exp), 2.0), ("tanh", worst(f32::MAX, tanh, f64::tanh), 3.0)]
        {
            assert!(ulps <= bound, "{name}({at:e}) is off by {ulps} ulp");
        }
    }

    #[test]
    fn edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(-103.0).to_bits(), 1, "the smallest subnormal");
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        assert!(tanh(-0.0).is_sign_negative() && tanh(-0.0) == 0.0);
        for f in [exp, tanh] {
            assert!(f(f32::NAN).is_nan());
        }
    }
}
