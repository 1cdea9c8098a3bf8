//! Weights by name, as the kernels want them.

mod file;

use std::collections::HashMap;
use std::fmt;

use millrace_graph::{TensorView, Type};

use super::error::WeightError;
use crate::dequant::dequantise;
use crate::matrix::Matrix;
use crate::pool::Pool;

pub use file::{PACKED_VERSION, PackedError};

/// A model's weights: matrices packed for multiplication in their stored format, vectors as f32.
#[derive(Default)]
pub struct Weights {
    names: HashMap<String, u32>,
    entries: Vec<Weight>,
}

/// One weight.
#[derive(Debug)]
pub(crate) struct Weight {
    /// As stored; a graph has to agree.
    pub(crate) ty: Type,
    pub(crate) data: WeightData,
}

/// What a weight became.
#[derive(Debug)]
pub(crate) enum WeightData {
    Matrix(Matrix),
    Vector(Vec<f32>),
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("count", &self.entries.len()).field("bytes", &self.bytes()).finish()
    }
}

impl Weights {
    /// No weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a weight: a vector is read as f32 (with the view's offset added), a tensor of two or three
    /// dimensions is packed. The view's bytes are not needed afterwards.
    ///
    /// # Errors
    /// Where the name is taken, the bytes are not those of the type, or the format has no kernel.
    pub fn insert(&mut self, name: &str, view: &TensorView<'_>, pool: &Pool) -> Result<(), WeightError> {
        if self.names.contains_key(name) {
            return Err(WeightError::Duplicate(name.into()));
        }
        let data = match view.ty.rank() {
            0 | 1 => WeightData::Vector(vector(name, view)?),
            _ => WeightData::Matrix(
                Matrix::pack(view, pool).map_err(|source| WeightError::Pack { name: name.into(), source })?,
            ),
        };
        self.names.insert(name.into(), self.entries.len() as u32);
        self.entries.push(Weight { ty: view.ty.clone(), data });
        Ok(())
    }

    /// The type of a weight, as stored; `None` where there is none of that name.
    pub fn ty(&self, name: &str) -> Option<&Type> {
        self.find(name).map(|index| &self.get(index).ty)
    }

    /// Lets `alias` mean the weight `name` too: tied embeddings are one packed tensor.
    ///
    /// # Errors
    /// Where `alias` is taken or `name` is not there.
    pub fn share(&mut self, alias: &str, name: &str) -> Result<(), WeightError> {
        if self.names.contains_key(alias) {
            return Err(WeightError::Duplicate(alias.into()));
        }
        let Some(&index) = self.names.get(name) else {
            return Err(WeightError::Unknown { alias: alias.into(), name: name.into() });
        };
        self.names.insert(alias.into(), index);
        Ok(())
    }

    /// Bytes that the weights take in memory, padding included.
    pub fn bytes(&self) -> usize {
        let of = |weight: &Weight| match &weight.data {
            WeightData::Matrix(matrix) => matrix.bytes(),
            WeightData::Vector(vector) => size_of_val(&vector[..]),
        };
        self.entries.iter().map(of).sum()
    }

    pub(crate) fn find(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(crate) fn get(&self, index: u32) -> &Weight {
        &self.entries[index as usize]
    }

    /// A weight that planning has found to be a matrix.
    pub(crate) fn matrix(&self, index: u32) -> &Matrix {
        match &self.get(index).data {
            WeightData::Matrix(matrix) => matrix,
            WeightData::Vector(_) => unreachable!("plans name matrices only where weights are matrices"),
        }
    }

    /// A weight that planning has found to be a vector.
    pub(crate) fn vector(&self, index: u32) -> &[f32] {
        match &self.get(index).data {
            WeightData::Vector(vector) => vector,
            WeightData::Matrix(_) => unreachable!("plans name vectors only where weights are vectors"),
        }
    }
}

fn vector(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, WeightError> {
    let ty = &view.ty;
    let size_error = || WeightError::Size {
        name: name.into(),
        ty: ty.clone(),
        parts: view.parts.len(),
        bytes: view.parts.iter().map(|part| part.len()).sum(),
    };
    let &[bytes] = &view.parts[..] else { return Err(size_error()) };
    if ty.bytes() != Some(bytes.len()) {
        return Err(size_error());
    }
    let mut values = vec![0.0; ty.elements()];
    dequantise(ty.dtype, bytes, &mut values)
        .map_err(|source| WeightError::Format { name: name.into(), source })?;
    values.iter_mut().for_each(|value| *value += view.offset);
    Ok(values)
}
