//! Typed access to the fields of a `config.json`: every refusal names the file and the field.

use serde_json::{Map, Value};

use crate::ModelError;

/// A JSON object of a file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    file: &'a str,
    /// Precedes field names in messages: `text_config.`, or empty.
    path: &'a str,
    map: &'a Map<String, Value>,
}

type Field<T> = Result<Option<T>, ModelError>;

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a str, path: &'a str, map: &'a Map<String, Value>) -> Self {
        Fields { file, path, map }
    }

    /// Whether the field is there, even as `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The field, unless it is absent or `null`.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, key: &str, why: impl Into<String>) -> ModelError {
        ModelError::Config { file: self.file.into(), field: format!("{}{key}", self.path), why: why.into() }
    }

    pub(super) fn unsupported(&self, key: &str, value: impl ToString, hint: &str) -> ModelError {
        ModelError::Unsupported {
            file: self.file.into(),
            field: format!("{}{key}", self.path),
            value: value.to_string(),
            hint: hint.into(),
        }
    }

    fn typed<T>(&self, key: &str, wanted: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Field<T> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(key, format!("{} where {wanted} belongs", shown(value)))),
        }
    }

    pub(super) fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| self.wrong(key, "it is missing"))
    }

    pub(super) fn unsigned(&self, key: &str) -> Field<usize> {
        self.typed(key, "an integer that is not negative", |value| {
            value.as_u64().and_then(|number| usize::try_from(number).ok())
        })
    }

    pub(super) fn float(&self, key: &str) -> Field<f32> {
        self.typed(key, "a finite number", |value| {
            value.as_f64().map(|number| number as f32).filter(|number| number.is_finite())
        })
    }

    pub(super) fn bool(&self, key: &str) -> Field<bool> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    pub(super) fn string(&self, key: &str) -> Field<&'a str> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn list(&self, key: &str) -> Field<&'a [Value]> {
        self.typed(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub(super) fn object(&self, key: &str, path: &'a str) -> Field<Fields<'a>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields { file: self.file, path, map }))
    }

    /// A list of numbers.
    pub(super) fn floats(&self, key: &str) -> Field<Vec<f32>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let items: Option<Vec<f32>> = list
            .iter()
            .map(|item| item.as_f64().map(|number| number as f32).filter(|number| number.is_finite()))
            .collect();
        items.map(Some).ok_or_else(|| self.wrong(key, "not all its items are finite numbers"))
    }

    /// An id or a list of ids; those that are not ids (`-1` stands for none in some files) are left out.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items.iter().filter_map(id).collect()),
            Some(value @ Value::Number(_)) => Ok(id(value).into_iter().collect()),
            Some(other) => Err(self.wrong(key, format!("{} where a token id belongs", shown(other)))),
        }
    }

    /// Refuses a switch that is on.
    pub(super) fn refuse_if_set(&self, key: &str) -> Result<(), ModelError> {
        match self.bool(key)? {
            Some(true) => Err(self.unsupported(key, true, "")),
            _ => Ok(()),
        }
    }
}

/// A value for a message, cut to a readable length.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
