//! Values: a type and its elements.

use std::sync::Arc;

use half::{bf16, f16};
use millrace_graph::{DType, Type};

use super::EvalError;
use crate::dequant::dequantise;

/// A tensor. Copies share their elements.
#[derive(Clone, Debug)]
pub struct Value {
    ty: Type,
    data: Arc<Data>,
}

/// Elements, row-major, in the form that the evaluator computes with.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Data {
    /// f32, f16 and bf16: each a number of the element type.
    Float(Vec<f32>),
    /// Integers: each within the element type's range.
    Int(Vec<i64>),
    Pred(Vec<bool>),
    /// Block formats, as they are stored.
    Blocks(Vec<u8>),
}

/// Calls a generic function on whatever the elements are, and wraps the result likewise.
macro_rules! map_data {
    ($data:expr, $elements:ident => $body:expr) => {
        match $data {
            Data::Float($elements) => Data::Float($body),
            Data::Int($elements) => Data::Int($body),
            Data::Pred($elements) => Data::Pred($body),
            Data::Blocks($elements) => Data::Blocks($body),
        }
    };
}
pub(super) use map_data;

impl Value {
    /// A float tensor; the elements are rounded to `ty`'s element type.
    ///
    /// # Errors
    /// Where `ty` is not of a plain float type or has another number of elements.
    pub fn from_floats(ty: Type, mut elements: Vec<f32>) -> Result<Value, EvalError> {
        if !ty.dtype.is_float() || ty.bytes() != ty.dtype.bytes(elements.len()) {
            return Err(EvalError::Value { ty, given: elements.len() });
        }
        round(ty.dtype, &mut elements);
        Ok(Value::new(ty, Arc::new(Data::Float(elements))))
    }

    /// An integer tensor, or one of `pred` from zeros and others.
    ///
    /// # Errors
    /// Where `ty` is not of such a type or has another number of elements, or an element is out of its range.
    pub fn from_ints(ty: Type, elements: Vec<i64>) -> Result<Value, EvalError> {
        let dtype = ty.dtype;
        let whole = dtype.is_integer() && elements.iter().all(|x| wrap(dtype, *x) == *x);
        if ty.bytes() != dtype.bytes(elements.len()) || !(whole || dtype == DType::Pred) {
            return Err(EvalError::Value { ty, given: elements.len() });
        }
        let data = match dtype {
            DType::Pred => Data::Pred(elements.iter().map(|x| *x != 0).collect()),
            _ => Data::Int(elements),
        };
        Ok(Value::new(ty, Arc::new(data)))
    }

    /// A tensor from its dense little-endian storage; block formats are kept as they are.
    ///
    /// # Errors
    /// Where `bytes` is not as long as `ty` says.
    pub fn from_bytes(ty: Type, bytes: &[u8]) -> Result<Value, EvalError> {
        if ty.bytes() != Some(bytes.len()) {
            return Err(EvalError::Value { ty, given: bytes.len() });
        }
        let words = || bytes.as_chunks::<4>().0.iter();
        let data = match ty.dtype {
            DType::Pred => Data::Pred(bytes.iter().map(|x| *x != 0).collect()),
            DType::I8 => Data::Int(bytes.iter().map(|x| i64::from(*x as i8)).collect()),
            DType::U8 => Data::Int(bytes.iter().map(|x| i64::from(*x)).collect()),
            DType::I32 => Data::Int(words().map(|x| i64::from(i32::from_le_bytes(*x))).collect()),
            DType::U32 => Data::Int(words().map(|x| i64::from(u32::from_le_bytes(*x))).collect()),
            dtype if dtype.is_quantised() => Data::Blocks(bytes.to_vec()),
            dtype => {
                let mut floats = vec![0.0; ty.elements()];
                dequantise(dtype, bytes, &mut floats)
                    .map_err(|_| EvalError::Value { ty: ty.clone(), given: bytes.len() })?;
                Data::Float(floats)
            }
        };
        Ok(Value::new(ty, Arc::new(data)))
    }

    /// The dense little-endian storage: the inverse of [`Value::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        match (&*self.data, self.ty.dtype) {
            (Data::Float(x), DType::F16) => x.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            (Data::Float(x), DType::BF16) => {
                x.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
            }
            (Data::Float(x), _) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (Data::Int(x), DType::I8 | DType::U8) => x.iter().map(|x| *x as u8).collect(),
            (Data::Int(x), _) => x.iter().flat_map(|x| (*x as u32).to_le_bytes()).collect(),
            (Data::Pred(x), _) => x.iter().map(|x| u8::from(*x)).collect(),
            (Data::Blocks(x), _) => x.clone(),
        }
    }

    /// The type.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// The elements of a float tensor.
    pub fn floats(&self) -> Option<&[f32]> {
        if let Data::Float(elements) = &*self.data { Some(elements) } else { None }
    }

    /// The elements of an integer tensor.
    pub fn ints(&self) -> Option<&[i64]> {
        if let Data::Int(elements) = &*self.data { Some(elements) } else { None }
    }

    pub(super) fn new(ty: Type, data: Arc<Data>) -> Value {
        Value { ty, data }
    }

    pub(super) fn data(&self) -> &Data {
        &self.data
    }

    /// Its elements, copied first if another value shares them.
    pub(super) fn data_mut(&mut self) -> &mut Data {
        Arc::make_mut(&mut self.data)
    }

    /// The same elements under another type of as many.
    pub(super) fn retyped(self, ty: Type) -> Value {
        Value { ty, data: self.data }
    }

    pub(super) fn shared(&self) -> Arc<Data> {
        self.data.clone()
    }
}

/// Rounds every element to a number of the float type.
pub(super) fn round(dtype: DType, elements: &mut [f32]) {
    match dtype {
        DType::F16 => elements.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
        DType::BF16 => elements.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        _ => {}
    }
}

/// The integer's value after two's complement wrap-around in its type.
pub(super) fn wrap(dtype: DType, x: i64) -> i64 {
    match dtype {
        DType::I8 => i64::from(x as i8),
        DType::U8 => i64::from(x as u8),
        DType::U32 => i64::from(x as u32),
        _ => i64::from(x as i32),
    }
}
