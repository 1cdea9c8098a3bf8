//! Reductions and dot products, accumulated in f64.

use std::sync::Arc;

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
            let (start, fold) = floating(op);
            let folded = folded(&walk, ty.elements(), start, |x: f32| f64::from(x), fold, x);
            let mut result: Vec<f32> = folded.into_iter().map(|x| x as f32).collect();
            round(ty.dtype, &mut result);
            Data::Float(result)
        }
        Data::Int(x) => {
            let (start, fold) = whole(op, ty.dtype);
            let folded = folded(&walk, ty.elements(), start, |x: i64| x, fold, x);
            Data::Int(folded.into_iter().map(|x| wrap(ty.dtype, x)).collect())
        }
        Data::Pred(_) | Data::Blocks(_) => unreachable!("inference refuses such reductions"),
    }
}

/// What a fold of floats starts from, and its step.
fn floating(op: Reduction) -> (f64, fn(f64, f64) -> f64) {
    match op {
        Reduction::Add => (0.0, |x, y| x + y),
        Reduction::Maximum => (f64::NEG_INFINITY, |x, y| if x > y || x.is_nan() { x } else { y }),
        Reduction::Minimum => (f64::INFINITY, |x, y| if x < y || x.is_nan() { x } else { y }),
    }
}

/// What a fold of integers starts from, and its step.
fn whole(op: Reduction, dtype: DType) -> (i64, fn(i64, i64) -> i64) {
    let (low, high) = match dtype {
        DType::I8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        DType::U8 => (0, i64::from(u8::MAX)),
        DType::U32 => (0, i64::from(u32::MAX)),
        _ => (i64::from(i32::MIN), i64::from(i32::MAX)),
    };
    match op {
        Reduction::Add => (0, i64::wrapping_add),
        Reduction::Maximum => (low, i64::max),
        Reduction::Minimum => (high, i64::min),
    }
}

/// Folds values of one type into one, element by element, in their order.
pub(super) fn fold(op: Reduction, values: &[&Value]) -> Value {
    let ty = values[0].ty().clone();
    let data = match values[0].data() {
        Data::Float(_) => {
            let (start, step) = floating(op);
            let mut sums = vec![start; ty.elements()];
            for value in values {
                sums.iter_mut()
                    .zip(floats(value.data()))
                    .for_each(|(sum, x)| *sum = step(*sum, f64::from(*x)));
            }
            let mut result: Vec<f32> = sums.into_iter().map(|x| x as f32).collect();
            round(ty.dtype, &mut result);
            Data::Float(result)
        }
        _ => {
            let (start, step) = whole(op, ty.dtype);
            let mut sums = vec![start; ty.elements()];
            for value in values {
                sums.iter_mut().zip(integers(value.data())).for_each(|(sum, x)| *sum = step(*sum, *x));
            }
            Data::Int(sums.into_iter().map(|x| wrap(ty.dtype, x)).collect())
        }
    };
    Value::new(ty, Arc::new(data))
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
fn contracted<T: Copy + Default + Send + Sync>(
    dims: &DotDims,
    x: &Value,
    y: &Value,
    elements: usize,
    read: for<'a> fn(&'a Data) -> &'a [T],
    product: impl Fn(&[T], &[T]) -> T + Sync,
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
    let (rows, columns) = (x.len() / batch / length, y.len() / batch / length);
    // One side of a large product is a weight of many columns; where it is not, there are many batches.
    let threads = match x.len().saturating_mul(columns) {
        work if work < PARALLEL => 1,
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    };
    if threads == 1 || batch > 1 || columns < 2 * threads {
        let each = batch.div_ceil(threads);
        let parts = result.chunks_mut(each * rows * columns);
        let sides = x.chunks(each * rows * length).zip(y.chunks(each * columns * length));
        let multiply = |to: &mut [T], x: &[T], y: &[T]| {
            let sides = x.chunks_exact(rows * length).zip(y.chunks_exact(columns * length));
            for (to, (x, y)) in to.chunks_exact_mut(rows * columns).zip(sides) {
                tiled(to, columns, x, y, length, &product);
            }
        };
        std::thread::scope(|scope| {
            let multiply = &multiply;
            let mut works = parts.zip(sides).map(|(to, (x, y))| move || multiply(to, x, y));
            let mine = works.next();
            for work in works {
                scope.spawn(work);
            }
            if let Some(mut work) = mine {
                work();
            }
        });
        return result;
    }
    let each = columns.div_ceil(threads);
    std::thread::scope(|scope| {
        let (x, product) = (&x, &product);
        let parts: Vec<_> = y
            .chunks(each * length)
            .map(|y| {
                let columns = y.len() / length;
                let multiply = move || {
                    let mut part = vec![T::default(); rows * columns];
                    tiled(&mut part, columns, x, y, length, product);
                    part
                };
                (columns, scope.spawn(multiply))
            })
            .collect();
        let mut at = 0;
        for (some, part) in parts {
            let part = part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            for (to, from) in result.chunks_exact_mut(columns).zip(part.chunks_exact(some)) {
                to[at..at + some].copy_from_slice(from);
            }
            at += some;
        }
    });
    result
}

/// Multiplications from which on threads are worth their start.
const PARALLEL: usize = 1 << 20;

/// Every run of `x` by every run of `y`, a few runs of `y` at a time, so that they are read from memory once.
fn tiled<T: Copy>(
    to: &mut [T],
    columns: usize,
    x: &[T],
    y: &[T],
    length: usize,
    product: &impl Fn(&[T], &[T]) -> T,
) {
    const TILE: usize = 16;
    for (tile, y) in y.chunks(TILE * length).enumerate() {
        for (x, to) in x.chunks_exact(length).zip(to.chunks_exact_mut(columns)) {
            for (y, to) in y.chunks_exact(length).zip(&mut to[tile * TILE..]) {
                *to = product(x, y);
            }
        }
    }
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

/// The largest elements of each row, descending, the lower index first on a tie, or their indices.
pub(super) fn top_k(k: usize, indices: bool, x: &Value) -> Data {
    let Data::Float(elements) = x.data() else { unreachable!("inference checks that these are floats") };
    let columns = x.ty().cols();
    let rows = elements.chunks_exact(columns).map(|row| {
        let mut order: Vec<usize> = (0..columns).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.truncate(k);
        (row, order)
    });
    match indices {
        true => Data::Int(rows.flat_map(|(_, order)| order.into_iter().map(|at| at as i64)).collect()),
        false => Data::Float(rows.flat_map(|(row, order)| order.into_iter().map(|at| row[at])).collect()),
    }
}
