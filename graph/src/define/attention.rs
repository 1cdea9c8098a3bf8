//! Writing the KV cache and attending to it.

use super::{Built, dot, over_last, rows, softcap, times};
use crate::{
    Attention, Binary, Builder, DType, Direction, DotDims, Literal, NodeId, Reduction, ScatterDims, Type,
    Unary,
};

/// Stands for minus infinity: its exponential is zero beside any score, yet no arithmetic on it overflows.
const MASKED: f32 = -1e30;

/// A scatter of whole rows into the cache seen as `[B · S, G · D]`.
pub(super) fn write_kv(b: &mut Builder, cache: NodeId, values: NodeId, slots: NodeId) -> Built {
    let Type { dtype, shape } = b.ty(cache).clone();
    let (slots_in_cache, width) = (shape[0] * shape[1], shape[2] * shape[3]);
    let tokens = b.ty(values).shape[0];
    let flat = b.reshape(cache, &[slots_in_cache, width])?;
    let values = b.reshape(values, &[tokens, width])?;
    let values = b.convert(values, dtype)?;
    let dims = ScatterDims {
        update_window_dims: vec![1],
        inserted_window_dims: vec![0],
        scatter_dims_to_operand_dims: vec![0],
        index_vector_dim: 1,
    };
    let written = b.scatter(flat, slots, values, dims)?;
    b.reshape(written, &shape)
}

/// Every table row's blocks are gathered whole, and each KV head serves its group of query heads as one batch
/// dimension of two dot products. Keys that a token must not see get no weight, but their values are still
/// multiplied by it: what lies in the cache must be finite everywhere.
pub(super) fn paged_attention(b: &mut Builder, attention: &Attention, operands: &[NodeId]) -> Built {
    let [q, k, v, mut tables, positions] = operands[..5] else {
        unreachable!("inference checks the operands")
    };
    let width = match (attention.width, operands.get(5)) {
        (None, Some(row_of_token)) => {
            tables = rows(b, tables, *row_of_token)?;
            1
        }
        (width, _) => width.unwrap_or(1),
    };
    let result = b.ty(q).clone();
    let (heads, dim) = (result.shape[1], result.shape[2]);
    let (block, groups) = (b.ty(k).shape[1], b.ty(k).shape[2]);
    let (table_rows, keys) = (b.ty(tables).shape[0], b.ty(tables).shape[1] * block);
    let group = heads / groups;

    // Queries as [R, G, width · H/G, D]: the free dimension of both dot products.
    let mut q = b.reshape(q, &[table_rows, width, groups, group, dim])?;
    if width > 1 {
        q = b.transpose(q, &[0, 2, 1, 3, 4])?;
    }
    let q = b.reshape(q, &[table_rows, groups, width * group, dim])?;
    let gather = |b: &mut Builder, cache: NodeId| {
        let blocks = b.ty(cache).shape[0];
        let cache = b.reshape(cache, &[blocks, block * groups * dim])?;
        let gathered = rows(b, cache, tables)?;
        b.reshape(gathered, &[table_rows, keys, groups, dim])
    };
    let (k, v) = (gather(b, k)?, gather(b, v)?);
    let per_head = |contracting: usize| DotDims {
        lhs_batch: vec![0, 1],
        rhs_batch: vec![0, 2],
        lhs_contracting: vec![3],
        rhs_contracting: vec![contracting],
    };

    let scores = dot(b, q, k, per_head(3), DType::F32)?;
    let mut scores = times(b, scores, attention.scale)?;
    if let Some(cap) = attention.softcap {
        scores = softcap(b, scores, cap)?;
    }
    let shape = b.ty(scores).shape.clone();
    let visible = visible(b, attention.window, positions, [table_rows, width, keys])?;
    let visible = b.broadcast(visible, &[table_rows, groups, width, group, keys], &[0, 2, 4])?;
    let visible = b.reshape(visible, &shape)?;
    let masked = b.constant(Type::new(DType::F32, shape.clone()), Literal::float(MASKED))?;
    let scores = b.select(visible, scores, masked)?;

    // The softmax is normalised after the second product, on D columns instead of all keys.
    let max = b.reduce(Reduction::Maximum, scores, &[3])?;
    let max = over_last(b, max, &shape)?;
    let shifted = b.binary(Binary::Subtract, scores, max)?;
    let weights = b.unary(Unary::Exp, shifted)?;
    let sum = b.reduce(Reduction::Add, weights, &[3])?;
    let cache_dtype = b.ty(v).dtype;
    let weights = if result.dtype == cache_dtype { b.convert(weights, cache_dtype)? } else { weights };
    let mixed = dot(b, weights, v, per_head(1), DType::F32)?;
    let sum = over_last(b, sum, &[table_rows, groups, width * group, dim])?;
    let mut mixed = b.binary(Binary::Divide, mixed, sum)?;
    if width > 1 {
        mixed = b.reshape(mixed, &[table_rows, groups, width, group, dim])?;
        mixed = b.transpose(mixed, &[0, 2, 1, 3, 4])?;
    }
    let mixed = b.reshape(mixed, &result.shape)?;
    b.convert(mixed, result.dtype)
}

/// Which keys each token sees: `pred[R, width, keys]`.
fn visible(b: &mut Builder, window: Option<usize>, positions: NodeId, shape: [usize; 3]) -> Built {
    let key = b.iota(Type::new(DType::I32, shape), 2)?;
    let position = b.reshape(positions, &shape[..2])?;
    let position = over_last(b, position, &shape)?;
    let causal = b.compare(Direction::Le, key, position)?;
    let Some(window) = window else { return Ok(causal) };
    let age = b.binary(Binary::Subtract, position, key)?;
    let window = Literal::int(window.min(i32::MAX as usize) as i64);
    let window = b.constant(Type::new(DType::I32, shape), window)?;
    let recent = b.compare(Direction::Lt, age, window)?;
    b.binary(Binary::And, causal, recent)
}
