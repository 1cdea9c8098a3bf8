//! The functions that gate a feed-forward layer.

use millrace_graph::Activation;

use crate::ops::{math::exp, vectorised};

vectorised! {
    /// `gate[i] ← act(gate[i]) · up[i]`.
    fn gate(act: Activation, gate: &mut [f32], up: &[f32]) {
        match act {
            Activation::Silu => gate.iter_mut().zip(up).for_each(|(g, u)| *g = sigmoid_times(*g, *g) * u),
            // ½ (1 + tanh y) = σ(2y), so the tanh approximation of GELU needs no tanh.
            Activation::GeluTanh => gate.iter_mut().zip(up).for_each(|(g, u)| {
                const TWICE_ROOT_2_OVER_PI: f32 = 1.595_769;
                let y = TWICE_ROOT_2_OVER_PI * (*g * *g * *g).mul_add(0.044_715, *g);
                *g = sigmoid_times(*g, y) * u;
            }),
        }
    }
}

/// `x · σ(y)`
#[inline(always)]
fn sigmoid_times(x: f32, y: f32) -> f32 {
    x / (1.0 + exp(-y))
}
