//! What encoders of the BERT family have beside what decoders have.

use super::{Built, dot, over_last, splat, times};
use crate::{Binary, Builder, DType, Direction, DotDims, Literal, NodeId, Reduction, Type, Unary};

/// Stands for minus infinity, as in paged attention.
const MASKED: f32 = -1e30;

/// The least squared length that is divided by: what PyTorch's `normalize` clamps to.
const LEAST_SQUARE: f32 = 1e-24;

pub(super) fn layer_norm(b: &mut Builder, x: NodeId, weight: NodeId, bias: NodeId, eps: f32) -> Built {
    let ty = b.ty(x).clone();
    let (shape, last) = (&ty.shape, ty.rank() - 1);
    let x = b.convert(x, DType::F32)?;
    let mean = |b: &mut Builder, x: NodeId| {
        let sum = b.reduce(Reduction::Add, x, &[last])?;
        let count = splat(b, sum, ty.cols() as f32)?;
        b.binary(Binary::Divide, sum, count)
    };
    let centre = mean(b, x)?;
    let centre = over_last(b, centre, shape)?;
    let x = b.binary(Binary::Subtract, x, centre)?;
    let square = b.multiply(x, x)?;
    let variance = mean(b, square)?;
    let eps = splat(b, variance, eps)?;
    let variance = b.add(variance, eps)?;
    let norm = b.unary(Unary::Rsqrt, variance)?;
    let norm = over_last(b, norm, shape)?;
    let x = b.multiply(x, norm)?;
    let spread = |b: &mut Builder, vector: NodeId| {
        let vector = b.convert(vector, DType::F32)?;
        b.broadcast(vector, shape, &[last])
    };
    let (weight, bias) = (spread(b, weight)?, spread(b, bias)?);
    let x = b.multiply(x, weight)?;
    let x = b.add(x, bias)?;
    b.convert(x, ty.dtype)
}

/// `max(x, 0) - |x| · Q(|x|)`, where Q is the normal distribution's upper tail: there is no erf among the proven
/// primitives. The tail is Abramowitz and Stegun 7.1.26, whose error is below 7.5e-8.
pub(super) fn gelu(b: &mut Builder, x: NodeId) -> Built {
    let dtype = b.ty(x).dtype;
    let x = b.convert(x, DType::F32)?;
    let size = b.unary(Unary::Abs, x)?;
    let one = splat(b, x, 1.0)?;
    let t = times(b, size, 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2)?;
    let t = b.add(one, t)?;
    let t = b.binary(Binary::Divide, one, t)?;
    let mut tail = splat(b, x, 1.061_405_4)?;
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        tail = b.multiply(tail, t)?;
        let coefficient = splat(b, x, coefficient)?;
        tail = b.add(tail, coefficient)?;
    }
    tail = b.multiply(tail, t)?;
    let square = b.multiply(x, x)?;
    let exponent = times(b, square, -0.5)?;
    let density = b.unary(Unary::Exp, exponent)?;
    tail = b.multiply(tail, density)?;
    tail = times(b, tail, 0.5)?;
    let zero = splat(b, x, 0.0)?;
    let positive = b.binary(Binary::Maximum, x, zero)?;
    let lost = b.multiply(size, tail)?;
    let gelu = b.binary(Binary::Subtract, positive, lost)?;
    b.convert(gelu, dtype)
}

/// Each head of each sequence is one batch element of two dot products.
pub(super) fn full_attention(b: &mut Builder, [q, k, v]: [NodeId; 3], last: NodeId, scale: f32) -> Built {
    let result = b.ty(q).clone();
    let (heads, dim) = (result.shape[1], result.shape[2]);
    let rows = b.ty(last).shape[0];
    let width = result.shape[0] / rows;
    let apart = |b: &mut Builder, x: NodeId| b.reshape(x, &[rows, width, heads, dim]);
    let (q, k, v) = (apart(b, q)?, apart(b, k)?, apart(b, v)?);
    let q = b.transpose(q, &[0, 2, 1, 3])?;
    let per_head = |contracting: usize| DotDims {
        lhs_batch: vec![0, 1],
        rhs_batch: vec![0, 2],
        lhs_contracting: vec![3],
        rhs_contracting: vec![contracting],
    };
    let scores = dot(b, q, k, per_head(3), DType::F32)?;
    let scores = times(b, scores, scale)?;
    let shape = b.ty(scores).shape.clone();
    let key = b.iota(Type::new(DType::I32, shape.clone()), 3)?;
    let last = b.broadcast(last, &shape, &[0])?;
    let seen = b.compare(Direction::Le, key, last)?;
    let masked = b.constant(Type::new(DType::F32, shape.clone()), Literal::float(MASKED))?;
    let scores = b.select(seen, scores, masked)?;
    let max = b.reduce(Reduction::Maximum, scores, &[3])?;
    let max = over_last(b, max, &shape)?;
    let shifted = b.binary(Binary::Subtract, scores, max)?;
    let weights = b.unary(Unary::Exp, shifted)?;
    let sum = b.reduce(Reduction::Add, weights, &[3])?;
    let weights = b.convert(weights, result.dtype)?;
    let mixed = dot(b, weights, v, per_head(1), DType::F32)?;
    let sum = over_last(b, sum, &[rows, heads, width, dim])?;
    let mixed = b.binary(Binary::Divide, mixed, sum)?;
    let mixed = b.transpose(mixed, &[0, 2, 1, 3])?;
    let mixed = b.reshape(mixed, &result.shape)?;
    b.convert(mixed, result.dtype)
}

/// The sum instead of the mean: both point the same way.
pub(super) fn mean_pool(b: &mut Builder, x: NodeId, last: NodeId) -> Built {
    let Type { dtype, shape } = b.ty(x).clone();
    let (rows, dim) = (b.ty(last).shape[0], shape[1]);
    let shape = [rows, shape[0] / rows, dim];
    let x = b.convert(x, DType::F32)?;
    let x = b.reshape(x, &shape)?;
    let token = b.iota(Type::new(DType::I32, shape), 1)?;
    let last = b.broadcast(last, &shape, &[0])?;
    let counts = b.compare(Direction::Le, token, last)?;
    let zero = splat(b, x, 0.0)?;
    let x = b.select(counts, x, zero)?;
    let sum = b.reduce(Reduction::Add, x, &[1])?;
    let square = b.multiply(sum, sum)?;
    let square = b.reduce(Reduction::Add, square, &[1])?;
    let least = splat(b, square, LEAST_SQUARE)?;
    let square = b.binary(Binary::Maximum, square, least)?;
    let length = b.unary(Unary::Rsqrt, square)?;
    let length = over_last(b, length, &[rows, dim])?;
    let pooled = b.multiply(sum, length)?;
    b.convert(pooled, dtype)
}
