//! Element by element: constants, conversions and arithmetic.

use millrace_graph::{Binary, DType, Direction, Literal, Type, Unary};

use super::value::{round, wrap};
use super::walk::{Walk, strides};
use super::{Data, Fault, Value};
use crate::dequant::dequantise;

pub(super) fn constant(literal: &Literal, ty: &Type) -> Data {
    fn fill<T: Copy, U: Clone>(given: &[T], elements: usize, read: impl Fn(T) -> U) -> Vec<U> {
        match given {
            [one] => vec![read(*one); elements],
            all => all.iter().map(|x| read(*x)).collect(),
        }
    }
    match literal {
        Literal::Float(given) => {
            let mut elements = fill(given, ty.elements(), |x| x);
            round(ty.dtype, &mut elements);
            Data::Float(elements)
        }
        Literal::Int(given) if ty.dtype == DType::Pred => Data::Pred(fill(given, ty.elements(), |x| x != 0)),
        Literal::Int(given) => Data::Int(fill(given, ty.elements(), |x| wrap(ty.dtype, x))),
    }
}

pub(super) fn iota(dim: usize, ty: &Type) -> Data {
    let mut steps = vec![0; ty.rank()];
    steps[dim] = 1;
    let mut counts = vec![0; ty.elements()];
    Walk::new(&ty.shape, &strides(&ty.shape), &steps).points(0, 0, |at, count| counts[at] = count as i64);
    if ty.dtype.is_float() {
        let mut floats = counts.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        round(ty.dtype, &mut floats);
        return Data::Float(floats);
    }
    Data::Int(counts.into_iter().map(|x| wrap(ty.dtype, x)).collect())
}

/// Whether every number of the one float type is one of the other, so that their elements are the same.
pub(super) fn widens(from: DType, to: DType) -> bool {
    from.is_float() && (from == to || to == DType::F32)
}

/// Floats become integers by truncation, anything becomes `pred` by comparison with zero.
pub(super) fn convert(x: &Value, ty: &Type) -> Result<Data, Fault> {
    let mut floats = match x.data() {
        Data::Float(x) => x.clone(),
        Data::Int(x) if ty.dtype.is_float() => x.iter().map(|x| *x as f32).collect(),
        Data::Pred(x) if ty.dtype.is_float() => x.iter().map(|x| f32::from(u8::from(*x))).collect(),
        Data::Blocks(blocks) => {
            let mut floats = vec![0.0; ty.elements()];
            dequantise(x.ty().dtype, blocks, &mut floats).expect("a value is as long as its type says");
            floats
        }
        Data::Int(x) if ty.dtype == DType::Pred => {
            return Ok(Data::Pred(x.iter().map(|x| *x != 0).collect()));
        }
        Data::Int(x) => return Ok(Data::Int(x.iter().map(|x| wrap(ty.dtype, *x)).collect())),
        Data::Pred(x) if ty.dtype == DType::Pred => return Ok(Data::Pred(x.clone())),
        Data::Pred(x) => return Ok(Data::Int(x.iter().map(|x| i64::from(*x)).collect())),
    };
    if ty.dtype.is_float() {
        round(ty.dtype, &mut floats);
        return Ok(Data::Float(floats));
    }
    if ty.dtype == DType::Pred {
        return Ok(Data::Pred(floats.iter().map(|x| *x != 0.0).collect()));
    }
    let truncated = floats.iter().map(|x| {
        let whole = *x as i64;
        if x.is_nan() || x.is_infinite() || wrap(ty.dtype, whole) != whole {
            return Err(Fault::Conversion { value: x.to_string() });
        }
        Ok(whole)
    });
    Ok(Data::Int(truncated.collect::<Result<_, _>>()?))
}

pub(super) fn unary(op: Unary, x: &Value, ty: &Type) -> Data {
    let floats = match x.data() {
        Data::Float(floats) => floats,
        // Inference lets integers through for these two alone.
        Data::Int(x) if op == Unary::Negate => {
            return Data::Int(x.iter().map(|x| wrap(ty.dtype, -x)).collect());
        }
        Data::Int(x) => return Data::Int(x.iter().map(|x| wrap(ty.dtype, x.abs())).collect()),
        other => return other.clone(),
    };
    let apply = |function: fn(f32) -> f32| floats.iter().map(|x| function(*x)).collect::<Vec<f32>>();
    let mut result = match op {
        Unary::Negate => apply(|x| -x),
        Unary::Abs => apply(f32::abs),
        Unary::Exp => apply(f32::exp),
        Unary::Log => apply(f32::ln),
        Unary::Sqrt => apply(f32::sqrt),
        Unary::Rsqrt => apply(|x| 1.0 / x.sqrt()),
        Unary::Logistic => apply(|x| 1.0 / (1.0 + (-x).exp())),
        Unary::Tanh => apply(f32::tanh),
        Unary::Sin => apply(f32::sin),
        Unary::Cos => apply(f32::cos),
        Unary::Floor => apply(f32::floor),
    };
    round(ty.dtype, &mut result);
    Data::Float(result)
}

/// XLA's maximum: not a number if either side is not.
pub(super) fn maximum(x: f32, y: f32) -> f32 {
    if x > y || x.is_nan() { x } else { y }
}

/// XLA's minimum: not a number if either side is not.
pub(super) fn minimum(x: f32, y: f32) -> f32 {
    if x < y || x.is_nan() { x } else { y }
}

pub(super) fn binary(op: Binary, x: &Value, y: &Value, ty: &Type) -> Result<Data, Fault> {
    Ok(match (x.data(), y.data()) {
        (Data::Float(x), Data::Float(y)) => {
            let apply = |function: fn(f32, f32) -> f32| {
                x.iter().zip(y).map(|(x, y)| function(*x, *y)).collect::<Vec<f32>>()
            };
            let mut result = match op {
                Binary::Add => apply(|x, y| x + y),
                Binary::Subtract => apply(|x, y| x - y),
                Binary::Multiply => apply(|x, y| x * y),
                Binary::Divide => apply(|x, y| x / y),
                Binary::Maximum => apply(maximum),
                Binary::Minimum => apply(minimum),
                Binary::Power => apply(f32::powf),
                Binary::And | Binary::Or => unreachable!("inference checks that these are of pred"),
            };
            round(ty.dtype, &mut result);
            Data::Float(result)
        }
        (Data::Int(x), Data::Int(y)) => {
            let pairs = x.iter().zip(y);
            let result = pairs.map(|(x, y)| integer(op, *x, *y).map(|x| wrap(ty.dtype, x)));
            Data::Int(result.collect::<Option<_>>().ok_or(Fault::Division)?)
        }
        (Data::Pred(x), Data::Pred(y)) => {
            let pairs = x.iter().zip(y);
            Data::Pred(if op == Binary::And {
                pairs.map(|(x, y)| *x && *y).collect()
            } else {
                pairs.map(|(x, y)| *x || *y).collect()
            })
        }
        _ => unreachable!("inference checks that operands have one type"),
    })
}

/// Before wrap-around, which i64 holds for 32-bit operands; `None` for a division by zero or a negative power.
fn integer(op: Binary, x: i64, y: i64) -> Option<i64> {
    Some(match op {
        Binary::Add => x + y,
        Binary::Subtract => x - y,
        Binary::Multiply => x.wrapping_mul(y),
        Binary::Divide => x.checked_div(y)?,
        Binary::Maximum => x.max(y),
        Binary::Minimum => x.min(y),
        Binary::Power => x.wrapping_pow(u32::try_from(y).ok()?),
        Binary::And | Binary::Or => unreachable!("inference checks that these are of pred"),
    })
}

pub(super) fn compare(direction: Direction, x: &Value, y: &Value) -> Data {
    fn all<T: PartialOrd>(direction: Direction, x: &[T], y: &[T]) -> Vec<bool> {
        let holds: fn(&T, &T) -> bool = match direction {
            Direction::Eq => T::eq,
            Direction::Ne => T::ne,
            Direction::Lt => T::lt,
            Direction::Le => T::le,
            Direction::Gt => T::gt,
            Direction::Ge => T::ge,
        };
        x.iter().zip(y).map(|(x, y)| holds(x, y)).collect()
    }
    Data::Pred(match (x.data(), y.data()) {
        (Data::Float(x), Data::Float(y)) => all(direction, x, y),
        (Data::Int(x), Data::Int(y)) => all(direction, x, y),
        (Data::Pred(x), Data::Pred(y)) => all(direction, x, y),
        _ => unreachable!("inference checks that operands have one plain type"),
    })
}

pub(super) fn select(pred: &Value, on_true: &Value, on_false: &Value) -> Data {
    fn choose<T: Copy>(pred: &[bool], x: &[T], y: &[T]) -> Vec<T> {
        pred.iter().zip(x.iter().zip(y)).map(|(pred, (x, y))| if *pred { *x } else { *y }).collect()
    }
    let Data::Pred(pred) = pred.data() else { unreachable!("inference checks the predicate") };
    match (on_true.data(), on_false.data()) {
        (Data::Float(x), Data::Float(y)) => Data::Float(choose(pred, x, y)),
        (Data::Int(x), Data::Int(y)) => Data::Int(choose(pred, x, y)),
        (Data::Pred(x), Data::Pred(y)) => Data::Pred(choose(pred, x, y)),
        _ => unreachable!("inference checks that operands have one plain type"),
    }
}
