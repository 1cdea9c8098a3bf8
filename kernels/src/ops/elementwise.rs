//! Element by element: arithmetic of two rows, scaling, soft capping, biases.

use millrace_graph::Binary;

use super::{math, vectorised};

/// The binary ops that have a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl Arithmetic {
    pub(crate) fn of(op: Binary) -> Option<Self> {
        match op {
            Binary::Add => Some(Arithmetic::Add),
            Binary::Subtract => Some(Arithmetic::Subtract),
            Binary::Multiply => Some(Arithmetic::Multiply),
            Binary::Divide => Some(Arithmetic::Divide),
            _ => None,
        }
    }

    /// XLA's opcode.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Arithmetic::Add => Binary::Add.name(),
            Arithmetic::Subtract => Binary::Subtract.name(),
            Arithmetic::Multiply => Binary::Multiply.name(),
            Arithmetic::Divide => Binary::Divide.name(),
        }
    }

    pub(crate) fn commutes(self) -> bool {
        matches!(self, Arithmetic::Add | Arithmetic::Multiply)
    }

    /// `x[i] ← x[i] ∘ y[i]`.
    pub(crate) fn apply(self, x: &mut [f32], y: &[f32]) {
        match self {
            Arithmetic::Add => add(x, y),
            Arithmetic::Subtract => subtract(x, y),
            Arithmetic::Multiply => multiply(x, y),
            Arithmetic::Divide => divide(x, y),
        }
    }
}

vectorised! {
    /// `x[i] ← x[i] + y[i]`.
    fn add(x: &mut [f32], y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}

vectorised! {
    fn subtract(x: &mut [f32], y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x -= y);
    }
}

vectorised! {
    fn multiply(x: &mut [f32], y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x *= y);
    }
}

vectorised! {
    fn divide(x: &mut [f32], y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x /= y);
    }
}

vectorised! {
    /// `x[i] ← factor · x[i]`.
    fn scale(x: &mut [f32], factor: f32) {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

vectorised! {
    /// `x[i] ← x[i] + factor · y[i]`, rounded twice.
    fn add_scaled(x: &mut [f32], y: &[f32], factor: f32) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * y);
    }
}

vectorised! {
    /// `x[i] ← cap · tanh(x[i] / cap)`.
    fn softcap(x: &mut [f32], cap: f32) {
        x.iter_mut().for_each(|x| *x = cap * math::tanh(*x / cap));
    }
}
