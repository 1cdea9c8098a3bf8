//! The best few of a row of logits, in plain HLO: what sampling needs of a vocabulary, so that the host reads K
//! numbers a row and not V.

use crate::{
    Binary, Builder, DType, Direction, GatherDims, GraphError, Literal, NodeId, Op, Reduction, Type, Unary,
};

/// What a float counts to.
const EXACT: usize = 1 << 24;

/// Columns come in whole groups of so many to the custom call: what open code that uses it does.
pub(crate) const CALL_GROUP: usize = 8;

type Built = Result<NodeId, GraphError>;

/// What [`top_k`] built.
#[derive(Clone, Copy, Debug)]
pub struct TopK {
    /// `f32[L, K]`: the largest logits, descending; the lower index first on a tie.
    pub values: NodeId,
    /// `s32[L, K]`: where they are in the row.
    pub indices: NodeId,
    /// `f32[L]`: the logarithm of the sum of all exponentials, so that `exp(value - log_sum_exp)` is the
    /// probability under the whole vocabulary.
    pub log_sum_exp: NodeId,
}

/// The largest `k` of each row of `logits`, `f32[L, V]`, for finite logits above the lowest f32.
///
/// A row is cut into about √V chunks of about √V logits. One pass finds the largest of each chunk; then, `k` times,
/// the best chunk gives its best logit and the chunk's maximum is found anew among what is left of it. Logits are
/// taken in one order, descending and by index on a tie, so what is left is what comes after the last one taken:
/// nothing is written back. That is V + 2k√V comparisons, where k rounds over whole rows are kV; and it takes
/// neither a sort nor a custom call, of which the device may have none. Indices are counted in floats, since
/// integer reductions are not known to work there; a float counts to 2²⁴.
///
/// A row with a NaN gives some indices within the row, and values that are of no use.
///
/// # Errors
/// Where `logits` is not `f32[L, V]` with `1 ≤ k ≤ V`, or a row has more than 2²⁴ of them, or all rows have so many
/// chunks.
#[track_caller]
pub fn top_k(b: &mut Builder, logits: NodeId, k: usize) -> Result<TopK, GraphError> {
    let ty = b.ty(logits).clone();
    let location = std::panic::Location::caller();
    let refuse = |why: String| GraphError { op: "top-k", location, why };
    let [rows, vocab] = ty.shape[..] else { return Err(refuse(format!("{k} of {ty}"))) };
    if ty.dtype != DType::F32 || k == 0 || k > vocab || rows == 0 {
        return Err(refuse(format!("{k} of {ty}")));
    }
    let size = vocab.isqrt().max(1);
    let chunks = vocab.div_ceil(size);
    let padded = chunks * size;
    if padded > EXACT || rows.saturating_mul(chunks) > EXACT {
        return Err(refuse(format!("the indices of {ty} are no exact floats")));
    }

    // Padding comes after every logit, whatever it is, since it has higher indices.
    let mut whole = logits;
    if padded > vocab {
        let padding = splat(b, &[rows, padded - vocab], f32::MIN)?;
        whole = b.concatenate(&[logits, padding], 1)?;
    }
    let by_chunk = b.reshape(whole, &[rows, chunks, size])?;
    let flat = b.reshape(whole, &[rows * chunks, size])?;
    let mut left = b.reduce(Reduction::Maximum, by_chunk, &[2])?;
    let first_chunk_of_row = {
        let row = b.iota(Type::new(DType::F32, [rows]), 0)?;
        let step = splat(b, &[rows], chunks as f32)?;
        b.multiply(row, step)?
    };
    let chunk_ids = b.iota(Type::new(DType::F32, [rows, chunks]), 1)?;
    let places = b.iota(Type::new(DType::F32, [rows, size]), 1)?;
    let none = splat(b, &[rows, size], f32::MIN)?;

    let max = b.reduce(Reduction::Maximum, left, &[1])?;
    let log_sum_exp = log_sum_exp(b, logits, max)?;
    let (mut values, mut indices) = (Vec::with_capacity(k), Vec::with_capacity(k));
    // The last logit taken, and its index: all that are larger have been taken, and all before it that are equal.
    let mut last: Option<(NodeId, NodeId)> = None;
    for taken in 1..=k {
        let best = b.reduce(Reduction::Maximum, left, &[1])?;
        let chunk = first_equal(b, left, best, chunk_ids, None)?;
        let row = b.add(first_chunk_of_row, chunk)?;
        let row = b.convert(row, DType::I32)?;
        let logits = b.gather(flat, row, whole_rows(size))?;
        // The index in the row of each of the chunk's logits.
        let length = splat(b, &[rows], size as f32)?;
        let start = b.multiply(chunk, length)?;
        let starts = across(b, start, size)?;
        let ids = b.add(starts, places)?;

        let fresh = match last {
            None => None,
            Some((value, index)) => Some(after(b, logits, ids, value, index)?),
        };
        let place = first_equal(b, logits, best, places, fresh)?;
        let index = b.add(start, place)?;
        if taken < k {
            let rest = after(b, logits, ids, best, index)?;
            let rest = b.select(rest, logits, none)?;
            let rest = b.reduce(Reduction::Maximum, rest, &[1])?;
            let rest = across(b, rest, chunks)?;
            let chosen = across(b, chunk, chunks)?;
            let chosen = b.compare(Direction::Eq, chunk_ids, chosen)?;
            left = b.select(chosen, rest, left)?;
        }
        last = Some((best, index));
        values.push(b.reshape(best, &[rows, 1])?);
        indices.push(b.reshape(index, &[rows, 1])?);
    }
    let values = b.concatenate(&values, 1)?;
    let indices = b.concatenate(&indices, 1)?;
    // Only among NaNs is there none to find, and the place of the last column may be padding.
    let last = splat(b, &[rows, k], (vocab - 1) as f32)?;
    let indices = b.binary(Binary::Minimum, indices, last)?;
    Ok(TopK { values, indices: b.convert(indices, DType::I32)?, log_sum_exp })
}

/// As [`top_k`], by the vendor's custom call. Rows are filled up to whole groups of eight, which it wants, with the lowest
/// f32.
///
/// # Errors
/// Where `logits` is not `f32[L, V]` with `1 ≤ k ≤ V`.
#[track_caller]
pub fn top_k_call(b: &mut Builder, logits: NodeId, k: usize) -> Result<TopK, GraphError> {
    let ty = b.ty(logits).clone();
    let location = std::panic::Location::caller();
    let [rows, vocab] = ty.shape[..] else {
        return Err(GraphError { op: "top-k", location, why: format!("{k} of {ty}") });
    };
    if ty.dtype != DType::F32 || k == 0 || k > vocab || rows == 0 {
        return Err(GraphError { op: "top-k", location, why: format!("{k} of {ty}") });
    }
    let padding = vocab.next_multiple_of(CALL_GROUP) - vocab;
    let mut whole = logits;
    if padding > 0 {
        let padding = splat(b, &[rows, padding], f32::MIN)?;
        whole = b.concatenate(&[logits, padding], 1)?;
    }
    let values = b.push(Op::TopK { k, indices: false }, &[whole])?;
    let indices = b.push(Op::TopK { k, indices: true }, &[whole])?;
    let max = b.slice(values, 1, 0, 1)?;
    let max = b.reshape(max, &[rows])?;
    let log_sum_exp = log_sum_exp(b, logits, max)?;
    Ok(TopK { values, indices: b.convert(indices, DType::I32)?, log_sum_exp })
}

/// `max + log Σ exp(x - max)` of each row.
fn log_sum_exp(b: &mut Builder, x: NodeId, max: NodeId) -> Built {
    let columns = b.ty(x).cols();
    let bound = across(b, max, columns)?;
    let shifted = b.binary(Binary::Subtract, x, bound)?;
    let exp = b.unary(Unary::Exp, shifted)?;
    let sum = b.reduce(Reduction::Add, exp, &[1])?;
    let log = b.unary(Unary::Log, sum)?;
    b.add(max, log)
}

/// The first column whose number equals the row's `value`, where `among` holds; the last column if there is none,
/// so that an index is within bounds whatever the numbers are.
fn first_equal(b: &mut Builder, x: NodeId, value: NodeId, columns: NodeId, among: Option<NodeId>) -> Built {
    let shape = b.ty(x).shape.clone();
    let value = across(b, value, shape[1])?;
    let mut equal = b.compare(Direction::Eq, x, value)?;
    if let Some(among) = among {
        equal = b.binary(Binary::And, equal, among)?;
    }
    let last = splat(b, &shape, (shape[1] - 1) as f32)?;
    let candidates = b.select(equal, columns, last)?;
    b.reduce(Reduction::Minimum, candidates, &[1])
}

/// Which numbers come after `value` at `index`: smaller ones, and equal ones behind it.
fn after(b: &mut Builder, x: NodeId, ids: NodeId, value: NodeId, index: NodeId) -> Built {
    let columns = b.ty(x).cols();
    let (value, index) = (across(b, value, columns)?, across(b, index, columns)?);
    let smaller = b.compare(Direction::Lt, x, value)?;
    let equal = b.compare(Direction::Eq, x, value)?;
    let behind = b.compare(Direction::Gt, ids, index)?;
    let behind = b.binary(Binary::And, equal, behind)?;
    b.binary(Binary::Or, smaller, behind)
}

fn whole_rows(size: usize) -> GatherDims {
    GatherDims {
        offset_dims: vec![1],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        index_vector_dim: 1,
        slice_sizes: vec![1, size],
    }
}

/// One number a row, repeated over columns.
fn across(b: &mut Builder, x: NodeId, columns: usize) -> Built {
    let rows = b.ty(x).shape[0];
    b.broadcast(x, &[rows, columns], &[0])
}

fn splat(b: &mut Builder, shape: &[usize], value: f32) -> Built {
    b.constant(Type::new(DType::F32, shape), Literal::float(value))
}
