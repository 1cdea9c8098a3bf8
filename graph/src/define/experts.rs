//! A mixture of experts, densely: every expert computes every token, and those that were not chosen weigh
//! nothing. Its meaning, and for a handful of experts its HLO.

use super::{Built, Weight, activate, dot, over_last, project, splat};
use crate::{Activation, Binary, Builder, DType, Direction, DotDims, NodeId, Reduction, Type, Unary};

/// [`Fused::Experts`](crate::Fused::Experts) in primitives.
///
/// # Errors
/// Where the shapes do not fit.
pub fn experts(
    b: &mut Builder,
    [x, router]: [NodeId; 2],
    [gate, up, down]: [Weight; 3],
    top_k: usize,
    normalise: bool,
    act: Activation,
) -> Built {
    let Type { dtype, shape: out_shape } = b.ty(x).clone();
    let (experts, inner, dim) =
        (b.ty(gate.values).shape[0], b.ty(gate.values).shape[1], b.ty(gate.values).shape[2]);
    let tokens = out_shape[0];
    let weights = routing_weights(b, router, top_k, normalise)?;

    // All experts' rows as one matrix: [T, E · F].
    let up_projection = |b: &mut Builder, Weight { values, scales }: Weight| {
        let values = if b.ty(values).dtype.is_quantised() { b.convert(values, DType::F32)? } else { values };
        let values = b.reshape(values, &[experts * inner, dim])?;
        let scales = scales.map(|scales| b.reshape(scales, &[experts * inner])).transpose()?;
        project(b, x, Weight { values, scales }, DType::F32)
    };
    let (gate, up) = (up_projection(b, gate)?, up_projection(b, up)?);
    let gate = activate(b, act, gate)?;
    let hidden = b.multiply(gate, up)?;
    let hidden = b.convert(hidden, dtype)?;
    let hidden = b.reshape(hidden, &[tokens, experts, inner])?;
    let per_expert = DotDims {
        lhs_batch: vec![1],
        rhs_batch: vec![0],
        lhs_contracting: vec![2],
        rhs_contracting: vec![2],
    };
    let values = if down.scales.is_some() { b.convert(down.values, dtype)? } else { down.values };
    let mut each = dot(b, hidden, values, per_expert, DType::F32)?;
    if let Some(scales) = down.scales {
        let scales = b.broadcast(scales, &[experts, tokens, dim], &[0, 2])?;
        each = b.multiply(each, scales)?;
    }

    let weights = b.transpose(weights, &[1, 0])?;
    let weights = over_last(b, weights, &[experts, tokens, dim])?;
    let each = b.multiply(each, weights)?;
    let sum = b.reduce(Reduction::Add, each, &[0])?;
    b.convert(sum, dtype)
}

/// Softmax over all experts; then, `top_k` times, the largest probability left and the lowest index that has
/// it. `f32[T, E]`, zero where an expert is not chosen.
fn routing_weights(b: &mut Builder, router: NodeId, top_k: usize, normalise: bool) -> Built {
    let shape = b.ty(router).shape.clone();
    let logits = b.convert(router, DType::F32)?;
    let max = b.reduce(Reduction::Maximum, logits, &[1])?;
    let max = over_last(b, max, &shape)?;
    let shifted = b.binary(Binary::Subtract, logits, max)?;
    let exp = b.unary(Unary::Exp, shifted)?;
    let sum = b.reduce(Reduction::Add, exp, &[1])?;
    let sum = over_last(b, sum, &shape)?;
    let probabilities = b.binary(Binary::Divide, exp, sum)?;

    // Indices as floats: integer reductions are not known to work on the device, and these are exact.
    let index = b.iota(Type::new(DType::F32, shape.clone()), 1)?;
    let none = splat(b, index, shape[1] as f32)?;
    let mut left = probabilities;
    let mut weights = splat(b, index, 0.0)?;
    for taken in 1..=top_k {
        let best = b.reduce(Reduction::Maximum, left, &[1])?;
        let best = over_last(b, best, &shape)?;
        let is_best = b.compare(Direction::Eq, left, best)?;
        let candidates = b.select(is_best, index, none)?;
        let first = b.reduce(Reduction::Minimum, candidates, &[1])?;
        let first = over_last(b, first, &shape)?;
        let chosen = b.compare(Direction::Eq, index, first)?;
        weights = b.select(chosen, probabilities, weights)?;
        if taken < top_k {
            let less_than_any = splat(b, index, -1.0)?;
            left = b.select(chosen, less_than_any, left)?;
        }
    }
    if normalise {
        let sum = b.reduce(Reduction::Add, weights, &[1])?;
        let sum = over_last(b, sum, &shape)?;
        weights = b.binary(Binary::Divide, weights, sum)?;
    }
    Ok(weights)
}
