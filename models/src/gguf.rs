//! GGUF files, versions 2 and 3, little endian: metadata, and where each tensor lies.
//!
//! The layout is that of the format's specification (ggml's `docs/gguf.md`): a header with two counts, that
//! many key-value pairs, that many tensor descriptions, padding to `general.alignment`, tensor data. Every
//! count and length is compared with the bytes that are left before anything is allocated for it.

mod reader;

use std::collections::HashMap;
use std::path::Path;

use millrace_graph::{DType, Type};

use crate::ModelError;
use crate::map::MappedFile;
use crate::tensors::{Tensor, Tensors};
use reader::Reader;

/// Dimensions that a tensor may have.
const MAX_RANK: u32 = 4;

/// Where tensors start is a multiple of this, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A GGUF file's metadata.
#[derive(Debug)]
pub struct Gguf {
    file: String,
    values: HashMap<String, Value>,
}

/// A metadata value. Integers keep no width: no key depends on it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An integer of any width.
    Int(i128),
    /// A float of either width.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    String(String),
    /// Integers.
    Ints(Vec<i64>),
    /// Floats.
    Floats(Vec<f32>),
    /// Booleans.
    Bools(Vec<bool>),
    /// Strings.
    Strings(Vec<String>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Int(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::String(_) => "a string",
            Value::Ints(_) => "an array of integers",
            Value::Floats(_) => "an array of floats",
            Value::Bools(_) => "an array of booleans",
            Value::Strings(_) => "an array of strings",
        }
    }
}

impl Gguf {
    /// Metadata without a file.
    #[cfg(test)]
    pub(crate) fn of(values: impl IntoIterator<Item = (&'static str, Value)>) -> Gguf {
        let values = values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Gguf { file: "test.gguf".to_owned(), values }
    }

    /// The file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// A value by key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A string.
    ///
    /// # Errors
    /// Where the value is of another kind.
    pub fn string(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A boolean.
    ///
    /// # Errors
    /// Where the value is of another kind.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "a boolean", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An integer that is not negative.
    ///
    /// # Errors
    /// Where the value is of another kind, or does not fit.
    pub fn unsigned(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.typed(key, "an integer that is not negative", |value| match value {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A float.
    ///
    /// # Errors
    /// Where the value is of another kind.
    pub fn float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.typed(key, "a float", |value| match value {
            Value::Float(number) => Some(*number as f32),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// Where the value is of another kind.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, ModelError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Strings(items) => Some(items.as_slice()),
            _ => None,
        })
    }

    /// An array of integers.
    ///
    /// # Errors
    /// Where the value is of another kind.
    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>, ModelError> {
        self.typed(key, "an array of integers", |value| match value {
            Value::Ints(items) => Some(items.as_slice()),
            _ => None,
        })
    }

    /// An array of floats.
    ///
    /// # Errors
    /// Where the value is of another kind.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, ModelError> {
        self.typed(key, "an array of floats", |value| match value {
            Value::Floats(items) => Some(items.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(ModelError::Config {
                file: self.file.clone(),
                field: key.into(),
                why: format!("it is {} where {wanted} belongs", value.kind()),
            }),
        }
    }
}

/// Maps a file and checks all of it but the tensors' contents.
///
/// # Errors
/// Where the file is malformed, of another version, or has a tensor of a type that is not supported.
pub(crate) fn open(path: &Path) -> Result<(Gguf, Tensors), ModelError> {
    let file = MappedFile::open(path)?;
    let mut reader = Reader::new(path.display().to_string(), file.bytes());
    let (gguf, by_name) = parse(&mut reader)?;
    Ok((gguf, Tensors { files: vec![file], by_name }))
}

fn parse(r: &mut Reader<'_>) -> Result<(Gguf, HashMap<String, Tensor>), ModelError> {
    if r.take(4, "magic")? != b"GGUF" {
        return Err(r.malformed("magic", "the file does not begin with GGUF"));
    }
    let version = r.u32("version")?;
    if !(2..=3).contains(&version) {
        let hint = match version.swap_bytes() {
            1..=3 => "it is big endian",
            _ => "versions 2 and 3 are supported",
        };
        return Err(r.malformed("version", format!("{version}: {hint}")));
    }
    // The smallest tensor description and the smallest pair bound their counts.
    let tensor_count = r.count("tensor count", 8 + 4 + 4 + 8)?;
    let value_count = r.count("metadata count", 8 + 4 + 1)?;

    let mut values = HashMap::new();
    for _ in 0..value_count {
        let key = r.string("metadata key")?;
        let kind = r.u32(&key)?;
        let value = r.value(&key, kind)?;
        if values.insert(key.clone(), value).is_some() {
            return Err(r.malformed(&key, "the key appears twice"));
        }
    }
    let gguf = Gguf { file: r.file().into(), values };
    if gguf.unsigned("split.count")?.is_some_and(|count| count > 1) {
        return Err(ModelError::Unsupported {
            file: gguf.file,
            field: "split.count".into(),
            value: "more than one".into(),
            hint: "; join the parts into one file".into(),
        });
    }
    let alignment = gguf.unsigned("general.alignment")?.map_or(DEFAULT_ALIGNMENT, |value| value as u64);
    if !alignment.is_power_of_two() {
        return Err(r.malformed("general.alignment", format!("{alignment} is not a power of two")));
    }

    let mut described = Vec::new();
    for _ in 0..tensor_count {
        described.push(describe(r, alignment)?);
    }
    let tensors = place(r, described, alignment)?;
    Ok((gguf, tensors))
}

struct Described {
    name: String,
    ty: Type,
    offset: u64,
    bytes: u64,
}

fn describe(r: &mut Reader<'_>, alignment: u64) -> Result<Described, ModelError> {
    let name = r.string("tensor name")?;
    let field = format!("tensor {name}");
    let rank = r.u32(&field)?;
    if rank > MAX_RANK {
        return Err(r.malformed(&field, format!("it has {rank} dimensions; at most {MAX_RANK} are allowed")));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        let dim = r.u64(&field)?;
        if dim == 0 || dim > i64::MAX as u64 {
            return Err(r.malformed(&field, format!("{dim} is not a dimension")));
        }
        shape.push(dim as usize);
    }
    shape.reverse();
    let dtype = dtype(r.u32(&field)?).map_err(|found| ModelError::Unsupported {
        file: r.file().into(),
        field: format!("the type of tensor {name}"),
        value: found,
        hint: "; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K".into(),
    })?;
    let ty = Type::new(dtype, shape);
    let Some(bytes) = ty.bytes() else {
        return Err(r.malformed(&field, format!("{ty} has no size in whole blocks")));
    };
    let offset = r.u64(&field)?;
    if !offset.is_multiple_of(alignment) {
        return Err(r.malformed(&field, format!("its offset {offset} is not a multiple of {alignment}")));
    }
    Ok(Described { name, ty, offset, bytes: bytes as u64 })
}

/// Gives each tensor its place in the file; none reaches into another or past the end.
fn place(
    r: &Reader<'_>,
    mut described: Vec<Described>,
    alignment: u64,
) -> Result<HashMap<String, Tensor>, ModelError> {
    let data = (r.position() as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    described.sort_by_key(|tensor| tensor.offset);
    let mut end = 0;
    let mut tensors = HashMap::new();
    for Described { name, ty, offset, bytes } in described {
        let field = format!("tensor {name}");
        if offset < end {
            return Err(r.malformed(&field, format!("its offset {offset} lies within another tensor")));
        }
        let stop = offset.checked_add(bytes).and_then(|stop| {
            end = stop;
            stop.checked_add(data)
        });
        let Some(stop) = stop.filter(|stop| *stop <= r.len() as u64) else {
            return Err(r.malformed(
                &field,
                format!("{bytes} bytes at offset {offset} reach past the end of the file"),
            ));
        };
        let range = (stop - bytes) as usize..stop as usize;
        let tensor = Tensor { file: 0, range, shape: ty.shape, dtype: Ok(ty.dtype) };
        if tensors.insert(name, tensor).is_some() {
            return Err(r.malformed(&field, "the name appears twice"));
        }
    }
    Ok(tensors)
}

/// ggml's type numbers.
fn dtype(number: u32) -> Result<DType, String> {
    Ok(match number {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        30 => DType::BF16,
        10 => return Err("Q2_K".into()),
        11 => return Err("Q3_K".into()),
        other => return Err(format!("ggml type {other}")),
    })
}
