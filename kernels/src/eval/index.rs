//! Moves elements: views, concatenation, gather and scatter.

use std::collections::HashSet;

use millrace_graph::{GatherDims, ScatterDims, Type};

use super::value::map_data;
use super::walk::{Walk, strides};
use super::{Data, Fault, Value};

/// The elements at `start` and every multiple of `from` beyond, for each dimension of `ty`.
fn strided<T: Copy + Default>(x: &[T], start: usize, from: &[usize], ty: &Type) -> Vec<T> {
    let mut out = vec![T::default(); ty.elements()];
    Walk::new(&ty.shape, &strides(&ty.shape), from).copy(&mut out, 0, x, start);
    out
}

pub(super) fn broadcast(dims: &[usize], x: &Value, ty: &Type) -> Data {
    let mut from = vec![0; ty.rank()];
    for (dim, stride) in dims.iter().zip(strides(&x.ty().shape)) {
        from[*dim] = stride;
    }
    map_data!(x.data(), x => strided(x, 0, &from, ty))
}

pub(super) fn transpose(perm: &[usize], x: &Value, ty: &Type) -> Data {
    let strides = strides(&x.ty().shape);
    let from: Vec<usize> = perm.iter().map(|dim| strides[*dim]).collect();
    map_data!(x.data(), x => strided(x, 0, &from, ty))
}

pub(super) fn slice(starts: &[usize], steps: &[usize], x: &Value, ty: &Type) -> Data {
    let strides = strides(&x.ty().shape);
    let start = starts.iter().zip(&strides).map(|(start, stride)| start * stride).sum();
    let from: Vec<usize> = steps.iter().zip(&strides).map(|(step, stride)| step * stride).collect();
    map_data!(x.data(), x => strided(x, start, &from, ty))
}

pub(super) fn concatenate(dim: usize, xs: &[Value], ty: &Type) -> Data {
    fn all<'a, T: Copy + 'a>(
        xs: &'a [Value],
        rows: usize,
        dim: usize,
        read: fn(&'a Data) -> &'a [T],
    ) -> Vec<T> {
        let mut out = Vec::new();
        for row in 0..rows {
            for x in xs {
                let length: usize = x.ty().shape[dim..].iter().product();
                out.extend_from_slice(&read(x.data())[row * length..][..length]);
            }
        }
        out
    }
    let rows = ty.shape[..dim].iter().product();
    match xs.first().map(Value::data) {
        Some(Data::Float(_)) => {
            Data::Float(all(xs, rows, dim, |data| if let Data::Float(x) = data { x } else { &[] }))
        }
        Some(Data::Int(_)) => {
            Data::Int(all(xs, rows, dim, |data| if let Data::Int(x) = data { x } else { &[] }))
        }
        Some(Data::Pred(_)) => {
            Data::Pred(all(xs, rows, dim, |data| if let Data::Pred(x) = data { x } else { &[] }))
        }
        Some(Data::Blocks(_)) | None => unreachable!("inference refuses block formats and no operands"),
    }
}

/// The shape as it is stored: rows of bytes for block formats.
fn stored(ty: &Type) -> Vec<usize> {
    let mut shape = ty.shape.clone();
    if let (true, Some(last)) = (ty.dtype.is_quantised(), shape.last_mut()) {
        *last = ty.dtype.bytes(*last).expect("a value has whole blocks in a row");
    }
    shape
}

/// Where the windows of a gather or scatter lie in the operand.
struct Windows<'a> {
    indices: &'a [i64],
    /// Step between the elements of an index vector.
    step: usize,
    /// For each element: the operand's dimension, its stride, its size, and the window's extent in it.
    axes: Vec<(usize, usize, usize, usize)>,
}

impl Windows<'_> {
    /// The offset of the window whose index vector starts at `at`.
    fn offset(&self, at: usize) -> Result<usize, Fault> {
        let mut offset = 0;
        for (i, &(dim, stride, size, window)) in self.axes.iter().enumerate() {
            let index = self.indices[at + i * self.step];
            match usize::try_from(index) {
                Ok(start) if start <= size && window <= size - start => offset += start * stride,
                _ => return Err(Fault::OutOfBounds { index, dim, window, size }),
            }
        }
        Ok(offset)
    }

    fn vector(&self, at: usize) -> Vec<i64> {
        (0..self.axes.len()).map(|i| self.indices[at + i * self.step]).collect()
    }
}

/// Calls `window(at result, at indices)` for each index vector, row-major: `batch_dims` are the dimensions of
/// `result` that number them.
fn each_window(
    result: &[usize],
    batch_dims: &[usize],
    indices: &Type,
    index_vector_dim: usize,
    mut window: impl FnMut(usize, usize) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let result = strides(result);
    let to: Vec<usize> = batch_dims.iter().map(|dim| result[*dim]).collect();
    let (mut shape, mut from) = (indices.shape.clone(), strides(&indices.shape));
    if index_vector_dim < shape.len() {
        shape.remove(index_vector_dim);
        from.remove(index_vector_dim);
    }
    let mut outcome = Ok(());
    Walk::new(&shape, &to, &from).points(0, 0, |to, from| {
        if outcome.is_ok() {
            outcome = window(to, from);
        }
    });
    outcome
}

fn windows<'a>(
    indices: &'a Value,
    index_vector_dim: usize,
    operand: &[usize],
    axes: &[usize],
    window: impl Fn(usize) -> usize,
) -> Windows<'a> {
    let (index_strides, operand_strides) = (strides(&indices.ty().shape), strides(operand));
    let axis = |dim: &usize| (*dim, operand_strides[*dim], operand[*dim], window(*dim));
    Windows {
        indices: indices.ints().unwrap_or(&[]),
        step: index_strides.get(index_vector_dim).copied().unwrap_or(0),
        axes: axes.iter().map(axis).collect(),
    }
}

pub(super) fn gather(dims: &GatherDims, x: &Value, indices: &Value, ty: &Type) -> Result<Data, Fault> {
    let (operand, result) = (stored(x.ty()), stored(ty));
    let mut sizes = dims.slice_sizes.clone();
    if let (true, Some(last)) = (ty.dtype.is_quantised(), sizes.last_mut()) {
        // Inference lets whole rows of block formats through, and nothing less.
        *last = operand[operand.len() - 1];
    }
    let windows = windows(indices, dims.index_vector_dim, &operand, &dims.start_index_map, |dim| sizes[dim]);
    let (from, to) = (strides(&operand), strides(&result));
    let kept: Vec<usize> =
        (0..operand.len()).filter(|dim| !dims.collapsed_slice_dims.contains(dim)).collect();
    let window = Walk::new(
        &kept.iter().map(|dim| sizes[*dim]).collect::<Vec<_>>(),
        &dims.offset_dims.iter().map(|dim| to[*dim]).collect::<Vec<_>>(),
        &kept.iter().map(|dim| from[*dim]).collect::<Vec<_>>(),
    );
    let batch: Vec<usize> = (0..result.len()).filter(|dim| !dims.offset_dims.contains(dim)).collect();
    let elements = result.iter().product();

    fn all<T: Copy + Default>(
        x: &[T],
        elements: usize,
        window: &Walk,
        each: impl FnOnce(&mut dyn FnMut(usize, usize)) -> Result<(), Fault>,
    ) -> Result<Vec<T>, Fault> {
        let mut out = vec![T::default(); elements];
        each(&mut |to, from| window.copy(&mut out, to, x, from))?;
        Ok(out)
    }
    let each = |copy: &mut dyn FnMut(usize, usize)| {
        each_window(&result, &batch, indices.ty(), dims.index_vector_dim, |to, at| {
            copy(to, windows.offset(at)?);
            Ok(())
        })
    };
    Ok(map_data!(x.data(), x => all(x, elements, &window, each)?))
}

/// Writes into `x` itself where nobody else holds its elements. `x` is as it was where an index is refused.
pub(super) fn scatter(
    dims: &ScatterDims,
    x: &mut Value,
    indices: &Value,
    updates: &Value,
) -> Result<(), Fault> {
    let (operand, source) = (&x.ty().shape.clone(), &updates.ty().shape);
    let kept: Vec<usize> =
        (0..operand.len()).filter(|dim| !dims.inserted_window_dims.contains(dim)).collect();
    let mut extent = vec![1; operand.len()];
    for (dim, update) in kept.iter().zip(&dims.update_window_dims) {
        extent[*dim] = source[*update];
    }
    let windows =
        windows(indices, dims.index_vector_dim, operand, &dims.scatter_dims_to_operand_dims, |dim| {
            extent[dim]
        });
    let (to, from) = (strides(operand), strides(source));
    let window = Walk::new(
        &kept.iter().map(|dim| extent[*dim]).collect::<Vec<_>>(),
        &kept.iter().map(|dim| to[*dim]).collect::<Vec<_>>(),
        &dims.update_window_dims.iter().map(|dim| from[*dim]).collect::<Vec<_>>(),
    );
    let batch: Vec<usize> = (0..source.len()).filter(|dim| !dims.update_window_dims.contains(dim)).collect();

    // Windows of one element in every indexed dimension overlap where they are the same and nowhere else.
    let points = dims.scatter_dims_to_operand_dims.iter().all(|dim| extent[*dim] == 1);
    let mut starts = HashSet::new();
    let mut written = vec![false; if points { 0 } else { x.ty().elements() }];
    let mut moves = Vec::new();
    each_window(source, &batch, indices.ty(), dims.index_vector_dim, |from, at| {
        let to = windows.offset(at)?;
        let mut twice = points && !starts.insert(to);
        if !points {
            window.points(to, from, |to, _| twice |= std::mem::replace(&mut written[to], true));
        }
        if twice {
            return Err(Fault::Duplicate { index: windows.vector(at) });
        }
        moves.push((to, from));
        Ok(())
    })?;

    fn all<T: Copy>(x: &mut [T], updates: &[T], window: &Walk, moves: &[(usize, usize)]) {
        for (to, from) in moves {
            window.copy(x, *to, updates, *from);
        }
    }
    match (x.data_mut(), updates.data()) {
        (Data::Float(x), Data::Float(updates)) => all(x, updates, &window, &moves),
        (Data::Int(x), Data::Int(updates)) => all(x, updates, &window, &moves),
        (Data::Pred(x), Data::Pred(updates)) => all(x, updates, &window, &moves),
        _ => unreachable!("inference checks that operands have one plain type"),
    }
    Ok(())
}
