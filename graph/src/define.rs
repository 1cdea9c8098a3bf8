//! What each fused op means, in primitives.
//!
//! A definition is at once the specification that kernels are tested against and the HLO that the device
//! compiler gets, so it keeps to forms which that compiler is known to take: gathers and scatters of whole
//! rows, dot products with at most one free dimension on a side, arg-max over a float iota,
//! 32-bit integers, no infinities. No index is ever out of bounds if the operands' are not.
//!
//! Precision: norms, softmax, angles and gates are computed in f32 and rounded once, to the activations' type.
//! Where activations and weights have one type, dot products read it as it is and accumulate in f32; where
//! they differ, both are converted to f32 first.

mod attention;
mod encoder;
mod experts;

pub use experts::experts;

use std::panic::Location;
use std::sync::Arc;

use crate::infer::infer;
use crate::{
    Activation, Binary, Builder, DType, DotDims, Fused, GatherDims, Graph, GraphError, Literal, Node, NodeId,
    Op, Output, Param, ParamKind, Reduction, Type, Unary,
};

type Built = Result<NodeId, GraphError>;

/// The definition of `fused` over operands of the types `inputs` with a result of type `result`: a graph of
/// primitives whose parameters are the operands in order, named `"0"`, `"1"`, …, and whose one output is the
/// result.
///
/// # Errors
/// Where the operands do not fit the operation, or do not give that result; for an 8-bit KV cache, which kernels alone
/// have.
#[track_caller]
pub fn definition(fused: &Fused, inputs: &[Type], result: &Type) -> Result<Graph, GraphError> {
    let location = Location::caller();
    let refuse = |why| GraphError { op: fused.name(), location, why };
    let types: Vec<&Type> = inputs.iter().collect();
    let inferred = infer(&Op::Fused(fused.clone()), &types, Some(result)).map_err(refuse)?;
    if inferred != *result {
        return Err(refuse(format!("yields {inferred} and not {result}")));
    }
    let cache = match fused {
        Fused::WriteKv => inputs.first(),
        Fused::PagedAttention(_) => inputs.get(1),
        _ => None,
    };
    if let Some(cache) = cache.filter(|cache| cache.dtype == DType::I8) {
        return Err(refuse(format!(
            "the scales of {cache} are the kernels' own: an 8-bit cache has no definition"
        )));
    }

    let mut builder = Builder::new(fused.name());
    let b = &mut builder;
    let operands: Vec<NodeId> = inputs
        .iter()
        .enumerate()
        .map(|(i, ty)| b.param(i.to_string(), ParamKind::Input, ty.clone()))
        .collect::<Result<_, _>>()?;
    let value = match (fused, &operands[..]) {
        (Fused::Embed { scale }, &[table, ids]) => embed(b, table, ids, *scale, result.dtype)?,
        (Fused::RmsNorm { eps, offset }, &[x, weight]) => rms_norm(b, x, weight, *eps, *offset)?,
        (Fused::RopeAngles { inv_freq, scale }, &[positions]) => rope_angles(b, positions, inv_freq, *scale)?,
        (Fused::Rope, &[x, angles]) => rope(b, x, angles)?,
        (Fused::Linear { weights, .. }, [x, rest @ ..]) => {
            let (weights, biases) = rest.split_at(*weights);
            let part = |b: &mut Builder, i: usize, weight: &NodeId| {
                linear(b, *x, Weight::from(*weight), biases.get(i).copied())
            };
            let parts: Vec<NodeId> =
                weights.iter().enumerate().map(|(i, weight)| part(b, i, weight)).collect::<Result<_, _>>()?;
            if let [only] = parts[..] { only } else { b.concatenate(&parts, 1)? }
        }
        (Fused::GatedLinear { act }, &[x, gate, up]) => gated_linear(b, x, gate.into(), up.into(), *act)?,
        (Fused::WriteKv, &[cache, values, slots]) => attention::write_kv(b, cache, values, slots)?,
        (Fused::PagedAttention(attention), operands) => attention::paged_attention(b, attention, operands)?,
        (Fused::Experts { top_k, normalise, act }, &[x, router, gate, up, down]) => {
            experts(b, [x, router], [gate, up, down].map(Weight::from), *top_k, *normalise, *act)?
        }
        (Fused::Softcap { cap }, &[x]) => {
            let dtype = b.ty(x).dtype;
            let x = b.convert(x, DType::F32)?;
            let capped = softcap(b, x, *cap)?;
            b.convert(capped, dtype)?
        }
        (Fused::Scale { factor }, &[x]) => {
            let dtype = b.ty(x).dtype;
            let x = b.convert(x, DType::F32)?;
            let scaled = times(b, x, *factor)?;
            b.convert(scaled, dtype)?
        }
        (Fused::SelectRows, &[x, indices]) => rows(b, x, indices)?,
        (Fused::LayerNorm { eps }, &[x, weight, bias]) => encoder::layer_norm(b, x, weight, bias, *eps)?,
        (Fused::Gelu, &[x]) => encoder::gelu(b, x)?,
        (Fused::FullAttention { scale }, &[q, k, v, last]) => {
            encoder::full_attention(b, [q, k, v], last, *scale)?
        }
        (Fused::MeanPool, &[x, last]) => encoder::mean_pool(b, x, last)?,
        _ => return Err(refuse(format!("{} operands", operands.len()))),
    };
    b.output("result", value, None)?;
    builder.finish()
}

/// The same graph with every fused node replaced by its definition, each of whose nodes takes over the fused
/// node's location. A graph of primitives comes back as it was.
///
/// # Errors
/// Where a node is ill-typed (a graph that has been verified has none).
pub fn inline(graph: &Graph) -> Result<Graph, GraphError> {
    let mut nodes: Vec<Node> = Vec::with_capacity(graph.nodes.len());
    let mut places: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let inputs: Vec<NodeId> = node.inputs.iter().map(|id| places[id.index()]).collect();
        let Op::Fused(fused) = &node.op else {
            places.push(push(&mut nodes, Node { inputs, ..node.clone() }));
            continue;
        };
        let types: Vec<Type> = node.inputs.iter().map(|id| graph.ty(*id).clone()).collect();
        let inner = definition(fused, &types, &node.ty)
            .map_err(|error| GraphError { location: node.location, ..error })?;
        let mut within: Vec<NodeId> = Vec::with_capacity(inner.nodes.len());
        for inner in inner.nodes {
            within.push(match inner.op {
                Op::Parameter(operand) => inputs[operand.index()],
                op => {
                    let inputs = inner.inputs.iter().map(|id| within[id.index()]).collect();
                    push(&mut nodes, Node { op, inputs, ty: inner.ty, location: node.location })
                }
            });
        }
        places.push(within[inner.outputs[0].node.index()]);
    }
    let params = graph.params.iter();
    let outputs = graph.outputs.iter();
    let inlined = Graph {
        name: graph.name.clone(),
        nodes,
        params: params.map(|param| Param { node: places[param.node.index()], ..param.clone() }).collect(),
        outputs: outputs
            .map(|output| Output { node: places[output.node.index()], ..output.clone() })
            .collect(),
    };
    inlined.verify()?;
    Ok(inlined)
}

fn push(nodes: &mut Vec<Node>, node: Node) -> NodeId {
    nodes.push(node);
    NodeId(nodes.len() as u32 - 1)
}

fn embed(b: &mut Builder, table: NodeId, ids: NodeId, scale: f32, dtype: DType) -> Built {
    let x = rows(b, table, ids)?;
    if scale == 1.0 {
        return b.convert(x, dtype);
    }
    let x = b.convert(x, DType::F32)?;
    let x = times(b, x, scale)?;
    b.convert(x, dtype)
}

fn rms_norm(b: &mut Builder, x: NodeId, weight: NodeId, eps: f32, offset: f32) -> Built {
    let ty = b.ty(x).clone();
    let x = b.convert(x, DType::F32)?;
    let square = b.multiply(x, x)?;
    let sum = b.reduce(Reduction::Add, square, &[ty.rank() - 1])?;
    let x = normalise(b, x, sum, ty.cols() as f32, weight, eps, offset)?;
    b.convert(x, ty.dtype)
}

/// The second half of [`Fused::RmsNorm`]: `x f32[.., D] / √(sum / count + eps) · (weight [D] + offset)`, where
/// `sum f32[..]` is that of `count` squares, of which `x` may have a part.
///
/// # Errors
/// Where the shapes do not fit.
pub fn normalise(
    b: &mut Builder,
    x: NodeId,
    sum: NodeId,
    count: f32,
    weight: NodeId,
    eps: f32,
    offset: f32,
) -> Built {
    let shape = &b.ty(x).shape.clone();
    let last = shape.len() - 1;
    let count = splat(b, sum, count)?;
    let mean = b.binary(Binary::Divide, sum, count)?;
    let eps = splat(b, mean, eps)?;
    let mean = b.add(mean, eps)?;
    let norm = b.unary(Unary::Rsqrt, mean)?;
    let norm = over_last(b, norm, shape)?;
    let x = b.multiply(x, norm)?;

    let mut weight = b.convert(weight, DType::F32)?;
    if offset != 0.0 {
        let offset = splat(b, weight, offset)?;
        weight = b.add(weight, offset)?;
    }
    let weight = b.broadcast(weight, shape, &[last])?;
    b.multiply(x, weight)
}

fn rope_angles(b: &mut Builder, positions: NodeId, inv_freq: &Arc<[f32]>, scale: f32) -> Built {
    let shape = [b.ty(positions).shape[0], inv_freq.len()];
    let positions = b.convert(positions, DType::F32)?;
    let positions = b.broadcast(positions, &shape, &[0])?;
    let inv_freq = b.constant(Type::new(DType::F32, [shape[1]]), Literal::Float(inv_freq.clone()))?;
    let inv_freq = b.broadcast(inv_freq, &shape, &[1])?;
    let angles = b.multiply(positions, inv_freq)?;
    let half = |b: &mut Builder, function: Unary| {
        let mut half = b.unary(function, angles)?;
        if scale != 1.0 {
            half = times(b, half, scale)?;
        }
        b.reshape(half, &[shape[0], 1, shape[1]])
    };
    let (cos, sin) = (half(b, Unary::Cos)?, half(b, Unary::Sin)?);
    b.concatenate(&[cos, sin], 1)
}

fn rope(b: &mut Builder, x: NodeId, angles: NodeId) -> Built {
    let ty = b.ty(x).clone();
    let (tokens, heads, dim) = (ty.shape[0], ty.shape[1], ty.shape[2]);
    let half = b.ty(angles).cols();
    let angle = |b: &mut Builder, which: usize| {
        let one = b.slice(angles, 1, which, which + 1)?;
        let one = b.reshape(one, &[tokens, half])?;
        b.broadcast(one, &[tokens, heads, half], &[0, 2])
    };
    let (cos, sin) = (angle(b, 0)?, angle(b, 1)?);
    let part = |b: &mut Builder, start: usize| {
        let part = b.slice(x, 2, start, start + half)?;
        b.convert(part, DType::F32)
    };
    let (first, second) = (part(b, 0)?, part(b, half)?);
    let (a, c) = (b.multiply(first, cos)?, b.multiply(second, sin)?);
    let turned_first = b.binary(Binary::Subtract, a, c)?;
    let (a, c) = (b.multiply(second, cos)?, b.multiply(first, sin)?);
    let turned_second = b.add(a, c)?;
    let mut parts = vec![b.convert(turned_first, ty.dtype)?, b.convert(turned_second, ty.dtype)?];
    if 2 * half < dim {
        parts.push(b.slice(x, 2, 2 * half, dim)?);
    }
    b.concatenate(&parts, 2)
}

/// A weight `[.., N, K]` as a dot product reads it.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// Its elements; of an integer type where there are scales.
    pub values: NodeId,
    /// `f32[.., N]`: what the products with each row are multiplied by.
    pub scales: Option<NodeId>,
}

impl From<NodeId> for Weight {
    fn from(values: NodeId) -> Weight {
        Weight { values, scales: None }
    }
}

/// One weight of [`Fused::Linear`], in primitives: `x [T, K] · wᵀ [N, K] + bias [N]`, in the type of `x`.
///
/// # Errors
/// Where the shapes do not fit.
pub fn linear(b: &mut Builder, x: NodeId, weight: Weight, bias: Option<NodeId>) -> Built {
    let Type { dtype, shape } = b.ty(x).clone();
    let Some(bias) = bias else { return project(b, x, weight, dtype) };
    let product = project(b, x, weight, DType::F32)?;
    let bias = b.convert(bias, DType::F32)?;
    let columns = b.ty(bias).cols();
    let bias = b.broadcast(bias, &[shape[0], columns], &[1])?;
    let sum = b.add(product, bias)?;
    b.convert(sum, dtype)
}

/// [`Fused::GatedLinear`] in primitives.
///
/// # Errors
/// Where the shapes do not fit.
pub fn gated_linear(b: &mut Builder, x: NodeId, gate: Weight, up: Weight, act: Activation) -> Built {
    let dtype = b.ty(x).dtype;
    let (gate, up) = (project(b, x, gate, DType::F32)?, project(b, x, up, DType::F32)?);
    let gate = activate(b, act, gate)?;
    let product = b.multiply(gate, up)?;
    b.convert(product, dtype)
}

/// `x [T, K] · wᵀ [N, K] → [T, N]`, rounded once to `dtype`. Integers are small enough to be exact in any type of
/// activations.
fn project(b: &mut Builder, x: NodeId, w: Weight, dtype: DType) -> Built {
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![1], ..DotDims::default() };
    let Some(scales) = w.scales else { return dot(b, x, w.values, dims, dtype) };
    let values = b.convert(w.values, b.ty(x).dtype)?;
    let product = dot(b, x, values, dims, DType::F32)?;
    let scales = b.broadcast(scales, &b.ty(product).shape.clone(), &[1])?;
    let product = b.multiply(product, scales)?;
    b.convert(product, dtype)
}

/// A dot product, in f32 unless both sides have the same type.
fn dot(b: &mut Builder, mut x: NodeId, mut y: NodeId, dims: DotDims, dtype: DType) -> Built {
    if b.ty(x).dtype != b.ty(y).dtype {
        (x, y) = (b.convert(x, DType::F32)?, b.convert(y, DType::F32)?);
        let product = b.dot(x, y, dims, DType::F32)?;
        return b.convert(product, dtype);
    }
    b.dot(x, y, dims, dtype)
}

/// `act(x)` of an f32 tensor.
fn activate(b: &mut Builder, act: Activation, x: NodeId) -> Built {
    match act {
        Activation::Silu => {
            let gate = b.unary(Unary::Logistic, x)?;
            b.multiply(x, gate)
        }
        Activation::GeluTanh => {
            // x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))): Hendrycks and Gimpel 2016, section 2.
            let square = b.multiply(x, x)?;
            let cube = b.multiply(square, x)?;
            let cube = times(b, cube, 0.044_715)?;
            let inner = b.add(x, cube)?;
            let inner = times(b, inner, std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2)?;
            let tanh = b.unary(Unary::Tanh, inner)?;
            let one = splat(b, tanh, 1.0)?;
            let tanh = b.add(tanh, one)?;
            let half = times(b, x, 0.5)?;
            b.multiply(half, tanh)
        }
    }
}

/// `cap · tanh(x / cap)` of an f32 tensor.
fn softcap(b: &mut Builder, x: NodeId, cap: f32) -> Built {
    let bound = splat(b, x, cap)?;
    let x = b.binary(Binary::Divide, x, bound)?;
    let x = b.unary(Unary::Tanh, x)?;
    b.multiply(x, bound)
}

/// Rows `indices […]` of `x [N, …]`: `[…, …]`.
fn rows(b: &mut Builder, x: NodeId, indices: NodeId) -> Built {
    let (x_rank, batch) = (b.ty(x).rank(), b.ty(indices).rank());
    let mut slice_sizes = b.ty(x).shape.clone();
    slice_sizes[0] = 1;
    let dims = GatherDims {
        offset_dims: (batch..batch + x_rank - 1).collect(),
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        index_vector_dim: batch,
        slice_sizes,
    };
    b.gather(x, indices, dims)
}

/// One float in the shape and type of `like`.
fn splat(b: &mut Builder, like: NodeId, value: f32) -> Built {
    let ty = b.ty(like).clone();
    b.constant(ty, Literal::float(value))
}

/// `x · factor`.
fn times(b: &mut Builder, x: NodeId, factor: f32) -> Built {
    let factor = splat(b, x, factor)?;
    b.multiply(x, factor)
}

/// `x [..]` repeated along a new last dimension.
fn over_last(b: &mut Builder, x: NodeId, shape: &[usize]) -> Built {
    let dims: Vec<usize> = (0..shape.len() - 1).collect();
    b.broadcast(x, shape, &dims)
}
