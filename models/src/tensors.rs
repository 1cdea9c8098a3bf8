//! The tensors of a checkpoint under the names that its files give them.

use std::collections::HashMap;
use std::ops::Range;

use millrace_graph::{DType, Type};

use crate::ModelError;
use crate::map::MappedFile;

/// A tensor in one of the mapped files; its bytes are known to lie within it and to fit its type.
#[derive(Debug)]
pub(crate) struct Tensor {
    /// Index into [`Tensors::files`].
    pub(crate) file: usize,
    /// Where its bytes are.
    pub(crate) range: Range<usize>,
    /// Dimensions, outermost first.
    pub(crate) shape: Vec<usize>,
    /// Its element type, or the file's name of one that is not supported.
    pub(crate) dtype: Result<DType, String>,
}

/// All tensors of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Tensors {
    pub(crate) files: Vec<MappedFile>,
    pub(crate) by_name: HashMap<String, Tensor>,
}

impl Tensors {
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The file that holds a tensor, for messages.
    pub(crate) fn file(&self, tensor: &Tensor) -> String {
        self.files[tensor.file].path().display().to_string()
    }

    /// The first file, for messages about the whole.
    pub(crate) fn first_file(&self) -> String {
        self.files.first().map_or_else(String::new, |file| file.path().display().to_string())
    }

    /// A tensor's type, if it exists.
    ///
    /// # Errors
    /// Where its element type is not supported.
    pub(crate) fn ty(&self, name: &str) -> Result<Option<Type>, ModelError> {
        let Some(tensor) = self.by_name.get(name) else { return Ok(None) };
        match &tensor.dtype {
            Ok(dtype) => Ok(Some(Type::new(*dtype, tensor.shape.clone()))),
            Err(found) => Err(ModelError::Unsupported {
                file: self.file(tensor),
                field: format!("the element type of {name}"),
                value: found.clone(),
                hint: String::new(),
            }),
        }
    }

    /// A tensor's bytes.
    pub(crate) fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.files[tensor.file].bytes()[tensor.range.clone()]
    }
}
