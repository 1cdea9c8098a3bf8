//! Reductions and dot products, accumulated in f64.

use millrace_graph::{DType, DotDims, Reduction, Type};

use super::value::{round, wrap};
use super::walk::{Walk, strides};
use super::{Data, Value};

pub(super) fn reduce(op: Reduction, dims: &[usize], x: &Value, ty: &Type) -> Data {
    let shape = &x.ty().shape;
    let mut kept = strides(&ty.shape).into_iter();
    let steps: Vec<usize> =
        (0..shape.len()).map(|dim| if dims.contains(&dim) { 0 } else { kept.next().unwrap_or(0) }).collect();
    let walk = Walk::new(shape, &strides(shape), &steps);
    match x.data() {
        Data::Float(x) => {
            let (start, fold): (f64, fn(f64, f64) -> f64) = match op {
                Reduction::Add => (0.0, |x, y| x + y),
                Reduction::Maximum => (f64::NEG_INFINITY, |x, y| if x > y || x.is_nan() { x } else { y }),
                Reduction::Minimum => (f64::INFINITY, |x, y| if x < y || x.is_nan() { x } else { y }),
            };
            let folded = folded(&walk, ty.elements(), start, |x: f32| f64::from(x), fold, x);
            let mut result: Vec<f32> = folded.into_iter().map(|x| x as f32).collect();
            round(ty.dtype, &mut result);
            Data::Float(result)
        }
        Data::Int(x) => {
            let (low, high) = match ty.dtype {
                DType::I8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
                DType::U8 => (0, i64::from(u8::MAX)),
                DType::U32 => (0, i64::from(u32::MAX)),
                _ => (i64::from(i32::MIN), i64::from(i32::MAX)),
            };
            let (start, fold): (i64, fn(i64, i64) -> i64) = match op {
                Reduction::Add => (0, i64::wrapping_add),
                Reduction::Maximum => (low, i64::max),
                Reduction::Minimum => (high, i64::min),
            };
            let folded = folded(&walk, ty.elements(), start, |x: i64| x, fold, x);
            Data::Int(folded.into_iter().map(|x| wrap(ty.dtype, x)).collect())
        }
        Data::Pred(_) | Data::Blocks(_) => unreachable!("inference refuses such reductions"),
    }
}

/// Folds `x` along `walk`, whose second array is the result.
fn folded<T: Copy, U: Copy>(
    walk: &Walk,
    elements: usize,
    start: U,
    read: impl Fn(T) -> U,
    fold: impl Fn(U, U) -> U,
    x: &[T],
) -> Vec<U> {
    let mut result = vec![start; elements];
    walk.runs(0, 0, |at, to, length, step, step_to| {
        if step_to == 0 {
            let run = x[at..].iter().step_by(step.max(1)).take(length);
            result[to] = run.fold(result[to], |sum, x| fold(sum, read(*x)));
        } else {
            (0..length).for_each(|i| {
                let to = &mut result[to + i * step_to];
                *to = fold(*to, read(x[at + i * step]));
            });
        }
    });
    result
}

pub(super) fn dot(dims: &DotDims, x: &Value, y: &Value, ty: &Type) -> Data {
    match (x.data(), y.data()) {
        (Data::Float(_), Data::Float(_)) => {
            let mut result = contracted(dims, x, y, ty.elements(), floats, |x, y| product(x, y) as f32);
            round(ty.dtype, &mut result);
            Data::Float(result)
        }
        _ => {
            let sum = |x: &[i64], y: &[i64]| {
                x.iter().zip(y).fold(0i64, |sum, (x, y)| sum.wrapping_add(x.wrapping_mul(*y)))
            };
            let sums = contracted(dims, x, y, ty.elements(), integers, sum);
            if ty.dtype.is_float() {
                return Data::Float(sums.into_iter().map(|x| x as f32).collect());
            }
            Data::Int(sums.into_iter().map(|x| wrap(ty.dtype, x)).collect())
        }
    }
}

fn floats(data: &Data) -> &[f32] {
    if let Data::Float(x) = data { x } else { &[] }
}

fn integers(data: &Data) -> &[i64] {
    if let Data::Int(x) = data { x } else { &[] }
}

/// Brings both sides to `[batch, free, contracting]` and multiplies run by run.
fn contracted<T: Copy + Default>(
    dims: &DotDims,
    x: &Value,
    y: &Value,
    elements: usize,
    read: for<'a> fn(&'a Data) -> &'a [T],
    product: impl Fn(&[T], &[T]) -> T,
) -> Vec<T> {
    let (x_shape, y_shape) = (&x.ty().shape, &y.ty().shape);
    let size = |shape: &[usize], of: &[usize]| of.iter().map(|dim| shape[*dim]).product::<usize>();
    let length = size(x_shape, &dims.lhs_contracting);
    let batch = size(x_shape, &dims.lhs_batch);
    let mut result = vec![T::default(); elements];
    if result.is_empty() || length == 0 {
        return result;
    }
    let x = runs(read(x.data()), x_shape, &dims.lhs_batch, &dims.lhs_contracting);
    let y = runs(read(y.data()), y_shape, &dims.rhs_batch, &dims.rhs_contracting);
    let (x_size, y_size) = (x.len() / batch, y.len() / batch);
    let mut to = result.iter_mut();
    for (x, y) in x.chunks_exact(x_size).zip(y.chunks_exact(y_size)) {
        for x in x.chunks_exact(length) {
            for (y, to) in y.chunks_exact(length).zip(&mut to) {
                *to = product(x, y);
            }
        }
    }
    result
}

/// The elements with batch dimensions first, contracting dimensions last.
fn runs<'a, T: Copy + Default>(
    x: &'a [T],
    shape: &[usize],
    batch: &[usize],
    contracting: &[usize],
) -> std::borrow::Cow<'a, [T]> {
    let free = (0..shape.len()).filter(|dim| !batch.contains(dim) && !contracting.contains(dim));
    let order: Vec<usize> = batch.iter().copied().chain(free).chain(contracting.iter().copied()).collect();
    if order.iter().copied().eq(0..shape.len()) {
        return x.into();
    }
    let from = strides(shape);
    let ordered: Vec<usize> = order.iter().map(|dim| shape[*dim]).collect();
    let from: Vec<usize> = order.iter().map(|dim| from[*dim]).collect();
    let mut out = vec![T::default(); x.len()];
    Walk::new(&ordered, &strides(&ordered), &from).copy(&mut out, 0, x, 0);
    out.into()
}

/// The dot product of two runs: exact products, summed in eight interleaved f64 sums.
fn product(x: &[f32], y: &[f32]) -> f64 {
    let (xs, x_rest) = x.as_chunks::<8>();
    let (ys, y_rest) = y.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for (x, y) in xs.iter().zip(ys) {
        for lane in 0..8 {
            sums[lane] += f64::from(x[lane]) * f64::from(y[lane]);
        }
    }
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    sums.iter().sum::<f64>() + rest
}
