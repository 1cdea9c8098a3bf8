//! Hugging Face weights: one `model.safetensors`, or shards that `model.safetensors.index.json` lists.

use std::collections::BTreeMap;
use std::path::Path;

use millrace_graph::{DType, Type};
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::ModelError;
use crate::json;
use crate::map::MappedFile;
use crate::tensors::{Tensor, Tensors};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Bytes that an index may have: the largest published ones stay below a tenth of it.
const INDEX_LIMIT: u64 = 100 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Maps a directory's weights.
///
/// # Errors
/// Where there are none, or a file is malformed; nothing of a file is used before its header has been checked.
pub(crate) fn open(directory: &Path) -> Result<Tensors, ModelError> {
    let single = directory.join(SINGLE);
    if single.exists() {
        let mut tensors = Tensors::default();
        let all = read(&single, &mut tensors)?;
        tensors.by_name.extend(all);
        return Ok(tensors);
    }
    let index_path = directory.join(INDEX);
    if !index_path.exists() {
        let why = format!("it has neither {SINGLE} nor {INDEX}");
        return Err(ModelError::NotACheckpoint { path: directory.into(), why });
    }
    open_shards(directory, &index_path)
}

fn open_shards(directory: &Path, index_path: &Path) -> Result<Tensors, ModelError> {
    let file = index_path.display().to_string();
    let malformed =
        |field: &str, why: String| ModelError::Malformed { file: file.clone(), field: field.into(), why };
    let index: Index = json::read(index_path, INDEX_LIMIT)?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        // A shard lies beside its index; anything else could name a file of the machine.
        let plain = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
        if !plain || shard.contains(['/', '\\', '\0']) {
            return Err(malformed(
                &format!("weight_map.{tensor}"),
                format!("{shard:?} is not the name of a file beside the index"),
            ));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    let mut tensors = Tensors::default();
    for (shard, names) in shards {
        let mut held = read(&directory.join(shard), &mut tensors)?;
        for name in names {
            let tensor = held.remove(name).ok_or_else(|| {
                malformed(&format!("weight_map.{name}"), format!("{shard} holds no such tensor"))
            })?;
            tensors.by_name.insert(name.into(), tensor);
        }
    }
    Ok(tensors)
}

/// Maps one file and checks its header: its length (at most 100 MB), that the tensors follow one another
/// without a gap or an overlap, that each has as many bytes as its type, and that they fill the file.
fn read(path: &Path, into: &mut Tensors) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let file = MappedFile::open(path)?;
    let malformed = |field: &str, why: String| ModelError::Malformed {
        file: path.display().to_string(),
        field: field.into(),
        why,
    };
    let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|error| match error {
        SafeTensorError::InvalidOffset(tensor) => malformed(
            &format!("tensor {tensor}"),
            "its offsets leave a gap, overlap another tensor or run backwards".into(),
        ),
        SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow => {
            let tensor = misfit(file.bytes()).unwrap_or_else(|| "of the header".into());
            malformed(&format!("tensor {tensor}"), "its offsets do not fit its shape and type".into())
        }
        SafeTensorError::MetadataIncompleteBuffer => malformed(
            "header",
            "the tensors do not fill the file: it is cut short or has bytes left over".into(),
        ),
        other => malformed("header", other.to_string()),
    })?;
    let data = header + 8;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let dtype = match info.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            other => Err(format!("{other:?}")),
        };
        // The header's reader has checked this; a slice of the map must not depend on it alone.
        let inside = data.checked_add(end).is_some_and(|end| end <= file.bytes().len()) && start <= end;
        let fits = match &dtype {
            Ok(dtype) => Type::new(*dtype, info.shape.clone()).bytes() == Some(end.wrapping_sub(start)),
            Err(_) => true,
        };
        if !inside || !fits {
            return Err(malformed(&format!("tensor {name}"), "its offsets do not fit the file".into()));
        }
        let range = data + start..data + end;
        let tensor = Tensor { file: into.files.len(), range, shape: info.shape.clone(), dtype };
        tensors.insert(name, tensor);
    }
    into.files.push(file);
    Ok(tensors)
}

/// The first tensor whose offsets do not fit its type: the header's reader finds that there is one, and keeps
/// its name to itself.
fn misfit(bytes: &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first_chunk()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let header: Map<String, Value> = serde_json::from_slice(header).ok()?;
    let unfit = |info: &Value| {
        let Ok(info) = serde_json::from_value::<TensorInfo>(info.clone()) else { return false };
        let (start, end) = info.data_offsets;
        let elements = info.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
        let bits = elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize()));
        bits.is_none_or(|bits| end.checked_sub(start) != Some(bits / 8))
    };
    header.into_iter().find(|(_, info)| unfit(info)).map(|(name, _)| name)
}
