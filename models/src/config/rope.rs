//! Rotary position embeddings: a family's settings as angular frequencies.
//!
//! The arithmetic is in f32 and in the reference implementations' order, so that frequencies agree with theirs to
//! the last bit but one: an angle is a frequency times a position, and a long context multiplies the error.

use std::f32::consts::PI;
use std::sync::Arc;

/// One RoPE table: the frequencies that some of the layers rotate by.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// How many of a head's dimensions are rotated; even.
    pub dim: usize,
    /// The base θ: frequency `i` is `θ^(-2i/dim)` before scaling.
    pub theta: f32,
    /// What stretches the context beyond the one first trained for.
    pub scaling: RopeScaling,
}

/// How the frequencies of a [`Rope`] are scaled.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by a factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by a factor, high ones kept, a ramp between.
    Llama3 {
        /// Divides low frequencies.
        factor: f32,
        /// Wavelengths above `original / low` are low frequencies.
        low: f32,
        /// Wavelengths below `original / high` are high frequencies.
        high: f32,
        /// The context first trained for.
        original: f32,
    },
    /// YaRN (arXiv 2309.00071): the ramp lies between two numbers of rotations over the original context.
    Yarn {
        /// Divides low frequencies.
        factor: f32,
        /// Rotations above which a frequency is kept.
        beta_fast: f32,
        /// Rotations below which it is divided.
        beta_slow: f32,
        /// The context first trained for.
        original: f32,
        /// Whether the ramp's ends are rounded outwards to whole dimensions.
        truncate: bool,
        /// Multiplies cosines and sines.
        attention_factor: f32,
    },
    /// LongRoPE (arXiv 2402.13753): a divisor for each frequency, one set for contexts up to the original one
    /// and another beyond.
    Long {
        /// Divisors up to `original`; `dim / 2` of them.
        short: Arc<[f32]>,
        /// Divisors beyond it; as many.
        long: Arc<[f32]>,
        /// The context first trained for.
        original: usize,
        /// Multiplies cosines and sines.
        attention_factor: f32,
    },
    /// A divisor for each frequency, as GGUF files store Llama 3.1's; `dim / 2` of them.
    Divisors(Arc<[f32]>),
}

impl Rope {
    /// The `dim / 2` angular frequencies for sequences of at most `context` tokens, and what cosines and sines
    /// are multiplied by.
    pub fn frequencies(&self, context: usize) -> (Arc<[f32]>, f32) {
        let half = self.dim / 2;
        let powers = (0..half).map(|i| {
            let exponent = (2 * i) as f32 / self.dim as f32;
            f64::from(self.theta).powf(f64::from(exponent)) as f32
        });
        let divided = |divisors: &[f32]| powers.clone().zip(divisors).map(|(p, d)| 1.0 / (d * p)).collect();
        match &self.scaling {
            RopeScaling::None => (powers.map(|power| 1.0 / power).collect(), 1.0),
            RopeScaling::Linear { factor } => (powers.map(|power| 1.0 / power / factor).collect(), 1.0),
            RopeScaling::Llama3 { factor, low, high, original } => {
                let scale = |power: f32| {
                    let frequency = 1.0 / power;
                    let wavelength = 2.0 * PI / frequency;
                    if wavelength < original / high {
                        frequency
                    } else if wavelength > original / low {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                (powers.map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original, truncate, attention_factor } => {
                let (low, high) = self.yarn_range(*beta_fast, *beta_slow, *original, *truncate);
                let scale = |(i, power): (usize, f32)| {
                    let keep = 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    1.0 / (factor * power) * (1.0 - keep) + 1.0 / power * keep
                };
                (powers.enumerate().map(scale).collect(), *attention_factor)
            }
            RopeScaling::Long { short, long, original, attention_factor } => {
                let divisors = if context > *original { long } else { short };
                (divided(divisors), *attention_factor)
            }
            RopeScaling::Divisors(divisors) => (divided(divisors), 1.0),
        }
    }

    /// The context first trained for, where longer ones use other frequencies.
    pub(super) fn original_context(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::Long { original, .. } => Some(original),
            _ => None,
        }
    }

    /// The longest context, for a checkpoint that names `max_position`: YaRN's files may name the original one.
    pub(super) fn stretched_context(&self, max_position: usize) -> usize {
        match self.scaling {
            RopeScaling::Yarn { factor, original, .. } => max_position.max((original * factor) as usize),
            _ => max_position,
        }
    }

    /// Why the table cannot be used with heads of this width, if it cannot.
    pub(super) fn validate(&self, head_dim: usize) -> Result<(), String> {
        let dim = self.dim;
        if dim == 0 || dim > head_dim || !dim.is_multiple_of(2) {
            return Err(format!("{dim} rotated dimensions of a head of {head_dim}"));
        }
        let (short, scale) = self.frequencies(1);
        let (long, _) = self.frequencies(usize::MAX);
        let usable = |frequency: &f32| frequency.is_finite() && *frequency > 0.0;
        if short.len() != dim / 2 || long.len() != dim / 2 {
            return Err(format!("{} frequencies for {dim} rotated dimensions", short.len()));
        }
        let sound = self.theta > 1.0 && scale > 0.0 && scale.is_finite();
        if !sound || !short.iter().chain(&*long).all(usable) {
            return Err("its settings yield frequencies that are not positive numbers".into());
        }
        Ok(())
    }

    /// The dimensions between which YaRN ramps.
    fn yarn_range(&self, beta_fast: f32, beta_slow: f32, original: f32, truncate: bool) -> (f32, f32) {
        let (dim, theta) = (self.dim as f64, f64::from(self.theta));
        let dimension = |rotations: f32| {
            let wavelengths = f64::from(original) / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
            dim * wavelengths.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        (low as f32, high as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frequencies and factors that transformers 5.23 computes for heads of 16 and an original context of 64.
    #[test]
    fn frequencies_agree_with_the_reference() {
        let long: Arc<[f32]> = (1..9).map(|i| i as f32).collect();
        let cases = [
            (
                5e5,
                RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 },
                [
                    1.0,
                    0.079_403_01,
                    0.004_700_754,
                    0.000_911_583_13,
                    0.000_176_776_68,
                    3.428_102_4e-5,
                    6.647_869_7e-6,
                    1.289_173_2e-6,
                ],
                1.0,
            ),
            (
                1e4,
                RopeScaling::Yarn {
                    factor: 4.0,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    original: 64.0,
                    truncate: true,
                    attention_factor: 1.138_629_4,
                },
                [
                    1.0,
                    0.237_170_82,
                    0.049_999_997,
                    0.007_905_695,
                    0.002_5,
                    0.000_790_569_47,
                    0.000_25,
                    7.905_695e-5,
                ],
                1.138_629_4,
            ),
            (
                1e4,
                RopeScaling::Linear { factor: 4.0 },
                [0.25, 0.079_056_94, 0.025, 0.007_905_695, 0.002_5, 0.000_790_569_47, 0.000_25, 7.905_695e-5],
                1.0,
            ),
            (
                1e4,
                RopeScaling::Long {
                    short: Arc::new([1.0; 8]),
                    long,
                    original: 64,
                    attention_factor: 1.154_700_5,
                },
                [
                    1.0,
                    0.158_113_88,
                    0.033_333_335,
                    0.007_905_695,
                    0.002,
                    0.000_527_046_33,
                    0.000_142_857_14,
                    3.952_847_3e-5,
                ],
                1.154_700_5,
            ),
        ];
        for (theta, scaling, expected, factor) in cases {
            let rope = Rope { dim: 16, theta, scaling };
            let (found, scale) = rope.frequencies(128);
            assert_eq!(scale, factor, "{rope:?}");
            for (found, expected) in found.iter().zip(expected) {
                let off = (found - expected).abs() / expected;
                assert!(off < 3e-7, "{found} instead of {expected} in {rope:?}");
            }
        }
    }
}
