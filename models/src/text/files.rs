//! The JSON files beside a model's weights, as far as they concern text.

use super::TextError;
use serde_json::{Map, Value};
use std::path::Path;

/// Files of this kind are megabytes at most; a larger one is not what its name says.
const LARGEST: u64 = 256 << 20;

/// The text of `dir/name`, or `None` where there is no such file.
pub(super) fn text(dir: &Path, name: &str) -> Result<Option<String>, TextError> {
    let path = dir.join(name);
    let read = || {
        let size = std::fs::metadata(&path)?.len();
        if size > LARGEST {
            return Err(std::io::Error::other(format!("{size} bytes, more than the {LARGEST} allowed")));
        }
        std::fs::read_to_string(&path)
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Read { path, source }),
    }
}

/// The object in `dir/name`, or `None` where there is no such file.
pub(super) fn object(dir: &Path, name: &str) -> Result<Option<Map<String, Value>>, TextError> {
    let Some(text) = text(dir, name)? else { return Ok(None) };
    let object =
        serde_json::from_str(&text).map_err(|error| TextError::malformed(dir.join(name).display(), error))?;
    Ok(Some(object))
}

/// A token as these files write it: a string, or an object whose `content` is one.
pub(super) fn token(object: &Map<String, Value>, key: &str) -> Option<String> {
    let value = object.get(key)?;
    Some(value.as_str().or_else(|| value.get("content")?.as_str())?.to_owned())
}
