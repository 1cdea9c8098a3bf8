//! JSON files of a bounded size.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::ModelError;

/// Reads a JSON file of at most `limit` bytes.
///
/// # Errors
/// Where it cannot be read, is larger, or does not parse.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T, ModelError> {
    let io = |source| ModelError::Io { path: path.into(), source };
    let malformed =
        |why: String| ModelError::Malformed { file: path.display().to_string(), field: "JSON".into(), why };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(malformed(format!("it has more than {limit} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))
}
