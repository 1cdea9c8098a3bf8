//! Shape inference: the type of a result from its operands, or why they do not fit.

use crate::{Attention, Binary, DType, DotDims, Fused, GatherDims, Op, ScatterDims, Type, Unary};

type Inferred = Result<Type, String>;

/// The type of `op` over operands of these types. `wanted` is what the operation cannot infer: the whole type
/// of a leaf, broadcast, reshape or conversion, and the element type alone of a dot or an embedding.
pub(crate) fn infer(op: &Op, inputs: &[&Type], wanted: Option<&Type>) -> Inferred {
    let ty = infer_op(op, inputs, wanted)?;
    ensure(ty.bytes().is_some(), || format!("{ty} has no size in bytes and whole blocks"))?;
    Ok(ty)
}

fn infer_op(op: &Op, inputs: &[&Type], wanted: Option<&Type>) -> Inferred {
    match op {
        Op::Parameter(_) => leaf(inputs, wanted),
        Op::Constant(literal) => {
            let ty = leaf(inputs, wanted)?;
            ensure(literal.suits(ty.dtype), || format!("a literal of another kind than {}", ty.dtype))?;
            let (given, need) = (literal.len(), ty.elements());
            ensure(given == 1 || given == need, || format!("{given} elements for {ty}"))?;
            Ok(ty)
        }
        Op::Iota { dim } => {
            let ty = leaf(inputs, wanted)?;
            ensure(*dim < ty.rank(), || format!("dimension {dim} of {ty}"))?;
            ensure(ty.dtype.is_integer() || ty.dtype.is_float(), || format!("cannot count in {}", ty.dtype))?;
            Ok(ty)
        }
        Op::Broadcast { dims } => {
            let ([x], Some(ty)) = (inputs, wanted) else { return arity(1, inputs) };
            ensure(dims.len() == x.rank(), || format!("{} dimension numbers for {x}", dims.len()))?;
            ensure(dims.is_sorted_by(|a, b| a < b), || format!("dimensions {dims:?} do not ascend"))?;
            for (i, dim) in dims.iter().enumerate() {
                ensure(ty.shape.get(*dim) == Some(&x.shape[i]), || {
                    format!("dimension {i} of {x} as dimension {dim} of {ty}")
                })?;
            }
            plain(x)?;
            ensure(x.dtype == ty.dtype, || format!("{x} as {ty}"))?;
            Ok(ty.clone())
        }
        Op::Reshape => {
            let ([x], Some(ty)) = (inputs, wanted) else { return arity(1, inputs) };
            ensure(x.elements() == ty.elements() && x.dtype == ty.dtype, || format!("{x} as {ty}"))?;
            plain(x)?;
            Ok(ty.clone())
        }
        Op::Transpose { perm } => {
            let [x] = inputs else { return arity(1, inputs) };
            let mut seen = perm.clone();
            seen.sort_unstable();
            ensure(seen.iter().copied().eq(0..x.rank()), || format!("{perm:?} does not permute {x}"))?;
            plain(x)?;
            Ok(Type::new(x.dtype, perm.iter().map(|dim| x.shape[*dim]).collect::<Vec<_>>()))
        }
        Op::Slice { starts, limits, strides } => {
            let [x] = inputs else { return arity(1, inputs) };
            plain(x)?;
            let rank = x.rank();
            ensure([starts, limits, strides].iter().all(|list| list.len() == rank), || {
                format!("{starts:?}..{limits:?} by {strides:?} of {x}")
            })?;
            let mut shape = Vec::with_capacity(rank);
            for dim in 0..rank {
                let (start, limit, stride) = (starts[dim], limits[dim], strides[dim]);
                ensure(start < limit && limit <= x.shape[dim] && stride > 0, || {
                    format!("{start}..{limit} by {stride} in dimension {dim} of {x}")
                })?;
                shape.push((limit - start).div_ceil(stride));
            }
            Ok(Type::new(x.dtype, shape))
        }
        Op::Concatenate { dim } => concatenate(*dim, inputs),
        Op::Convert => {
            let ([x], Some(ty)) = (inputs, wanted) else { return arity(1, inputs) };
            ensure(x.shape == ty.shape, || format!("{x} to {ty}"))?;
            let readable = !x.dtype.is_quantised() || ty.dtype.is_float();
            ensure(readable && !ty.dtype.is_quantised(), || format!("{x} to {ty}"))?;
            Ok(ty.clone())
        }
        Op::Unary(op) => {
            let [x] = inputs else { return arity(1, inputs) };
            let any_number = matches!(op, Unary::Negate | Unary::Abs);
            ensure(x.dtype.is_float() || (any_number && x.dtype.is_integer()), || format!("of {x}"))?;
            Ok((*x).clone())
        }
        Op::Binary(op) => {
            let [x, y] = inputs else { return arity(2, inputs) };
            ensure(x == y, || format!("{x} with {y}"))?;
            let logical = matches!(op, Binary::And | Binary::Or);
            ensure((x.dtype == DType::Pred) == logical && !x.dtype.is_quantised(), || format!("of {x}"))?;
            Ok((*x).clone())
        }
        Op::Compare(_) => {
            let [x, y] = inputs else { return arity(2, inputs) };
            ensure(x == y, || format!("{x} with {y}"))?;
            plain(x)?;
            Ok(Type::new(DType::Pred, x.shape.clone()))
        }
        Op::Select => {
            let [pred, x, y] = inputs else { return arity(3, inputs) };
            ensure(x == y, || format!("{x} or {y}"))?;
            plain(x)?;
            ensure(pred.dtype == DType::Pred && pred.shape == x.shape, || format!("{pred} chooses {x}"))?;
            Ok((*x).clone())
        }
        Op::Reduce { dims, .. } => {
            let [x] = inputs else { return arity(1, inputs) };
            let valid = dims.is_sorted_by(|a, b| a < b) && dims.iter().all(|dim| *dim < x.rank());
            ensure(valid, || format!("dimensions {dims:?} of {x}"))?;
            ensure(!x.dtype.is_quantised() && x.dtype != DType::Pred, || format!("of {x}"))?;
            let kept = (0..x.rank()).filter(|dim| !dims.contains(dim)).map(|dim| x.shape[dim]);
            Ok(Type::new(x.dtype, kept.collect::<Vec<_>>()))
        }
        Op::Dot(dims) => dot(dims, inputs, wanted),
        Op::Gather(dims) => gather(dims, inputs),
        Op::Scatter(dims) => scatter(dims, inputs),
        Op::TopK { k, indices } => {
            let [x] = inputs else { return arity(1, inputs) };
            let columns = x.shape.last().copied().unwrap_or(0);
            ensure(x.dtype.is_float() && (1..=columns).contains(k), || format!("{k} of {x}"))?;
            let mut shape = x.shape.clone();
            shape.iter_mut().rev().take(1).for_each(|last| *last = *k);
            Ok(Type::new(if *indices { DType::U32 } else { x.dtype }, shape))
        }
        Op::AllReduce { .. } => {
            let [x] = inputs else { return arity(1, inputs) };
            Ok((*x).clone())
        }
        Op::Fused(op) => fused(op, inputs, wanted),
    }
}

fn concatenate(dim: usize, inputs: &[&Type]) -> Inferred {
    let [first, rest @ ..] = inputs else { return arity(1, inputs) };
    ensure(dim < first.rank(), || format!("dimension {dim} of {first}"))?;
    plain(first)?;
    let mut shape = first.shape.clone();
    for x in rest {
        let mut expected = first.shape.clone();
        expected[dim] = x.shape.get(dim).copied().unwrap_or(0);
        ensure(x.dtype == first.dtype && x.shape == expected, || format!("{x} behind {first}"))?;
        shape[dim] += x.shape[dim];
    }
    Ok(Type::new(first.dtype, shape))
}

fn dot(dims: &DotDims, inputs: &[&Type], wanted: Option<&Type>) -> Inferred {
    let ([x, y], Some(wanted)) = (inputs, wanted) else { return arity(2, inputs) };
    let kinds = |is: fn(DType) -> bool| is(x.dtype) && is(wanted.dtype);
    let numbers = kinds(DType::is_float) || kinds(DType::is_integer);
    ensure(x.dtype == y.dtype && numbers, || format!("{x} with {y} to {}", wanted.dtype))?;
    for (ty, batch, contracting) in
        [(x, &dims.lhs_batch, &dims.lhs_contracting), (y, &dims.rhs_batch, &dims.rhs_contracting)]
    {
        let distinct = distinct(batch.iter().chain(contracting));
        ensure(distinct, || format!("dimensions {batch:?} and {contracting:?} of {ty}"))?;
    }
    let pairs = |lhs: &[usize], rhs: &[usize]| -> Result<(), String> {
        ensure(lhs.len() == rhs.len(), || format!("dimensions {lhs:?} against {rhs:?}"))?;
        for (l, r) in lhs.iter().zip(rhs) {
            let (l, r) = (x.shape.get(*l), y.shape.get(*r));
            ensure(l.is_some() && l == r, || format!("dimensions {lhs:?} of {x} against {rhs:?} of {y}"))?;
        }
        Ok(())
    };
    pairs(&dims.lhs_batch, &dims.rhs_batch)?;
    pairs(&dims.lhs_contracting, &dims.rhs_contracting)?;
    let mut shape: Vec<usize> = dims.lhs_batch.iter().map(|dim| x.shape[*dim]).collect();
    let free = |ty: &Type, batch: &[usize], contracting: &[usize]| -> Vec<usize> {
        let kept = (0..ty.rank()).filter(|dim| !batch.contains(dim) && !contracting.contains(dim));
        kept.map(|dim| ty.shape[dim]).collect()
    };
    shape.extend(free(x, &dims.lhs_batch, &dims.lhs_contracting));
    shape.extend(free(y, &dims.rhs_batch, &dims.rhs_contracting));
    Ok(Type::new(wanted.dtype, shape))
}

/// The batch dimensions of gather and scatter indices, and the length of an index vector.
fn index_dims(indices: &Type, index_vector_dim: usize) -> Result<(Vec<usize>, usize), String> {
    ensure(indices.dtype.is_integer(), || format!("indices of type {indices}"))?;
    ensure(index_vector_dim <= indices.rank(), || {
        format!("index vectors along dimension {index_vector_dim} of {indices}")
    })?;
    let mut batch = indices.shape.clone();
    let length = if index_vector_dim == indices.rank() { 1 } else { batch.remove(index_vector_dim) };
    Ok((batch, length))
}

fn gather(dims: &GatherDims, inputs: &[&Type]) -> Inferred {
    let [operand, indices] = inputs else { return arity(2, inputs) };
    let (batch, length) = index_dims(indices, dims.index_vector_dim)?;
    let rank = operand.rank();
    let in_range = dims.slice_sizes.len() == rank
        && dims.slice_sizes.iter().zip(&operand.shape).all(|(size, dim)| size <= dim)
        && dims.start_index_map.len() == length
        && dims.offset_dims.is_sorted_by(|a, b| a < b)
        && dims.collapsed_slice_dims.is_sorted_by(|a, b| a < b)
        && distinct(&dims.start_index_map)
        && dims.start_index_map.iter().chain(&dims.collapsed_slice_dims).all(|dim| *dim < rank)
        && dims.collapsed_slice_dims.iter().all(|dim| dims.slice_sizes[*dim] == 1);
    ensure(in_range, || format!("{dims:?} of {operand} at {indices}"))?;
    let whole_rows = rank > 1
        && dims.slice_sizes[rank - 1] == operand.cols()
        && !dims.collapsed_slice_dims.contains(&(rank - 1))
        && !dims.start_index_map.contains(&(rank - 1))
        && dims.offset_dims.last().is_some_and(|last| last + 1 == batch.len() + dims.offset_dims.len());
    ensure(whole_rows || !operand.dtype.is_quantised(), || format!("parts of blocks of {operand}"))?;
    let kept = (0..rank).filter(|dim| !dims.collapsed_slice_dims.contains(dim));
    let mut window = kept.map(|dim| dims.slice_sizes[dim]);
    let result_rank = batch.len() + dims.offset_dims.len();
    let mut batch = batch.into_iter();
    let shape: Vec<usize> = (0..result_rank)
        .filter_map(|dim| if dims.offset_dims.contains(&dim) { window.next() } else { batch.next() })
        .collect();
    ensure(shape.len() == result_rank && window.next().is_none(), || format!("{dims:?} of {operand}"))?;
    Ok(Type::new(operand.dtype, shape))
}

fn scatter(dims: &ScatterDims, inputs: &[&Type]) -> Inferred {
    let [operand, indices, updates] = inputs else { return arity(3, inputs) };
    let (batch, length) = index_dims(indices, dims.index_vector_dim)?;
    let rank = operand.rank();
    let in_range = dims.scatter_dims_to_operand_dims.len() == length
        && dims.scatter_dims_to_operand_dims.iter().chain(&dims.inserted_window_dims).all(|dim| *dim < rank)
        && dims.update_window_dims.len() + dims.inserted_window_dims.len() == rank
        && dims.update_window_dims.len() + batch.len() == updates.rank()
        && dims.update_window_dims.is_sorted_by(|a, b| a < b)
        && dims.inserted_window_dims.is_sorted_by(|a, b| a < b)
        && distinct(&dims.scatter_dims_to_operand_dims)
        && dims.update_window_dims.iter().all(|dim| *dim < updates.rank())
        && !operand.dtype.is_quantised()
        && operand.dtype == updates.dtype;
    ensure(in_range, || format!("{dims:?} of {updates} into {operand} at {indices}"))?;
    let scattered: Vec<usize> = (0..updates.rank())
        .filter(|dim| !dims.update_window_dims.contains(dim))
        .map(|dim| updates.shape[dim])
        .collect();
    ensure(scattered == batch, || format!("{updates} at {indices}"))?;
    let window = (0..rank).filter(|dim| !dims.inserted_window_dims.contains(dim));
    for (dim, update) in window.zip(&dims.update_window_dims) {
        ensure(updates.shape[*update] <= operand.shape[dim], || format!("{updates} into {operand}"))?;
    }
    Ok((*operand).clone())
}

fn fused(op: &Fused, inputs: &[&Type], wanted: Option<&Type>) -> Inferred {
    match op {
        Fused::Embed { .. } => {
            let ([table, ids], Some(wanted)) = (inputs, wanted) else { return arity(2, inputs) };
            let ([_, dim], [tokens]) = (&table.shape[..], &ids.shape[..]) else {
                return Err(format!("{ids} of {table}"));
            };
            index(ids)?;
            activation(wanted)?;
            Ok(Type::new(wanted.dtype, [*tokens, *dim]))
        }
        Fused::RmsNorm { .. } => {
            let [x, weight] = inputs else { return arity(2, inputs) };
            activation(x)?;
            ensure(x.rank() > 0 && weight.shape == [x.cols()], || format!("{x} by {weight}"))?;
            Ok((*x).clone())
        }
        Fused::LayerNorm { .. } => {
            let [x, weight, bias] = inputs else { return arity(3, inputs) };
            activation(x)?;
            let fits = x.rank() > 0 && weight.shape == [x.cols()] && bias.shape == weight.shape;
            ensure(fits, || format!("{x} by {weight} and {bias}"))?;
            Ok((*x).clone())
        }
        Fused::FullAttention { .. } => {
            let [q, k, v, last] = inputs else { return arity(4, inputs) };
            activation(q)?;
            index(last)?;
            let fits = matches!((&q.shape[..], &last.shape[..]), ([t, _, _], [b]) if *b > 0 && t % b == 0);
            ensure(fits && k == q && v == q, || format!("{q} to {k} and {v} up to {last}"))?;
            Ok((*q).clone())
        }
        Fused::MeanPool => {
            let [x, last] = inputs else { return arity(2, inputs) };
            activation(x)?;
            index(last)?;
            match (&x.shape[..], &last.shape[..]) {
                ([t, d], [b]) if *b > 0 && t % b == 0 => Ok(Type::new(x.dtype, [*b, *d])),
                _ => Err(format!("{x} up to {last}")),
            }
        }
        Fused::RopeAngles { inv_freq, .. } => {
            let [positions] = inputs else { return arity(1, inputs) };
            index(positions)?;
            let [tokens] = positions.shape[..] else { return Err(format!("of {positions}")) };
            Ok(Type::new(DType::F32, [tokens, 2, inv_freq.len()]))
        }
        Fused::Rope => {
            let [x, angles] = inputs else { return arity(2, inputs) };
            activation(x)?;
            let ([tokens, _, dim], [t, 2, half]) = (&x.shape[..], &angles.shape[..]) else {
                return Err(format!("{x} by {angles}"));
            };
            ensure(t == tokens && 2 * half <= *dim && angles.dtype == DType::F32, || {
                format!("{x} by {angles}")
            })?;
            Ok((*x).clone())
        }
        Fused::Linear { weights, bias } => {
            let need = 1 + weights * (1 + usize::from(*bias));
            let [x, rest @ ..] = inputs else { return arity(need, inputs) };
            ensure(*weights > 0 && inputs.len() == need, || format!("{} operands", inputs.len()))?;
            activation(x)?;
            let [tokens, k] = x.shape[..] else { return Err(format!("of {x}")) };
            let mut columns = 0;
            for w in &rest[..*weights] {
                ensure(w.rank() == 2 && w.shape[1] == k, || format!("{x} by {w}"))?;
                columns += w.shape[0];
            }
            for (b, w) in rest[*weights..].iter().zip(rest) {
                ensure(b.shape == [w.shape[0]], || format!("bias {b} for {w}"))?;
            }
            Ok(Type::new(x.dtype, [tokens, columns]))
        }
        Fused::GatedLinear { .. } => {
            let [x, gate, up] = inputs else { return arity(3, inputs) };
            activation(x)?;
            let ([tokens, k], [f, gate_k]) = (&x.shape[..], &gate.shape[..]) else {
                return Err(format!("{x} by {gate}"));
            };
            ensure(gate_k == k && up.shape == gate.shape, || format!("{x} by {gate} and {up}"))?;
            Ok(Type::new(x.dtype, [*tokens, *f]))
        }
        Fused::WriteKv => {
            let [cache, values, slots] = inputs else { return arity(3, inputs) };
            index(slots)?;
            let fits = matches!((&cache.shape[..], &values.shape[..], &slots.shape[..]),
                ([_, _, g, d], [t, vg, vd], [n]) if g == vg && d == vd && t == n);
            ensure(fits && cached(cache), || format!("{values} into {cache} at {slots}"))?;
            Ok((*cache).clone())
        }
        Fused::PagedAttention(attention) => paged_attention(attention, inputs),
        Fused::Experts { top_k, .. } => {
            let [x, router, gate, up, down] = inputs else { return arity(5, inputs) };
            activation(x)?;
            let fits = matches!((&x.shape[..], &router.shape[..], &gate.shape[..], &down.shape[..]),
                ([t, d], [rt, e], [ge, f, gd], [de, dd, df])
                    if t == rt && e == ge && e == de && d == gd && d == dd && f == df
                        && (1..=*e).contains(top_k))
                && up.shape == gate.shape
                && router.dtype == x.dtype;
            ensure(fits, || format!("{top_k} of {gate}, {up}, {down} for {x} by {router}"))?;
            Ok((*x).clone())
        }
        Fused::Softcap { .. } | Fused::Scale { .. } | Fused::Gelu => {
            let [x] = inputs else { return arity(1, inputs) };
            activation(x)?;
            Ok((*x).clone())
        }
        Fused::SelectRows => {
            let [x, indices] = inputs else { return arity(2, inputs) };
            index(indices)?;
            let ([_, d], [l]) = (&x.shape[..], &indices.shape[..]) else {
                return Err(format!("{indices} of {x}"));
            };
            Ok(Type::new(x.dtype, [*l, *d]))
        }
    }
}

fn paged_attention(attention: &Attention, inputs: &[&Type]) -> Inferred {
    let need = if attention.width.is_some() { 5 } else { 6 };
    let [q, k, v, tables, positions, rows @ ..] = inputs else { return arity(need, inputs) };
    ensure(inputs.len() == need, || format!("{} operands instead of {need}", inputs.len()))?;
    activation(q)?;
    for indices in [tables, positions].into_iter().chain(rows) {
        index(indices)?;
    }
    let fits = matches!((&q.shape[..], &k.shape[..], &tables.shape[..], &positions.shape[..]),
        ([t, h, d], [_, _, g, kd], [r, _], [pt])
            if d == kd && t == pt && *g > 0 && h % g == 0
                && attention.width.is_none_or(|width| r * width == *t))
        && v == k
        && cached(k)
        && rows.iter().all(|rows| rows.shape == positions.shape);
    ensure(fits, || format!("{q} to {k} and {v} by {tables} at {positions}"))?;
    Ok((*q).clone())
}

fn leaf(inputs: &[&Type], wanted: Option<&Type>) -> Inferred {
    match (inputs, wanted) {
        ([], Some(ty)) => Ok(ty.clone()),
        _ => arity(0, inputs),
    }
}

fn activation(x: &Type) -> Result<(), String> {
    ensure(x.dtype.is_float(), || format!("{x} where a float tensor belongs"))
}

/// Whether a KV cache may have this type. In an 8-bit one each token's row has a scale, which is no part of the tensor.
fn cached(x: &Type) -> bool {
    x.dtype.is_float() || x.dtype == DType::I8
}

fn index(x: &Type) -> Result<(), String> {
    ensure(x.dtype == DType::I32, || format!("{x} where s32 indices belong"))
}

/// Refuses block formats, whose elements only conversion can tell apart.
fn plain(x: &Type) -> Result<(), String> {
    ensure(!x.dtype.is_quantised(), || format!("{x} is in a block format"))
}

fn distinct<'a>(dims: impl IntoIterator<Item = &'a usize>) -> bool {
    let mut dims: Vec<&usize> = dims.into_iter().collect();
    dims.sort_unstable();
    dims.is_sorted_by(|a, b| a < b)
}

fn ensure(condition: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why()) }
}

fn arity(need: usize, inputs: &[&Type]) -> Inferred {
    Err(format!("{} operands instead of {need}, or no result type", inputs.len()))
}
