//! A cursor over a GGUF file's bytes that never reads past them.

use super::Value;
use crate::ModelError;

/// The bytes that are left to read.
pub(super) struct Reader<'a> {
    file: String,
    bytes: &'a [u8],
    position: usize,
}

type Read<T> = Result<T, ModelError>;

impl<'a> Reader<'a> {
    pub(super) fn new(file: String, bytes: &'a [u8]) -> Self {
        Reader { file, bytes, position: 0 }
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn malformed(&self, field: &str, why: impl Into<String>) -> ModelError {
        ModelError::Malformed { file: self.file.clone(), field: field.into(), why: why.into() }
    }

    pub(super) fn take(&mut self, count: usize, field: &str) -> Read<&'a [u8]> {
        let end = self.position.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.malformed(field, "the file ends within it"));
        };
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &str) -> Read<[u8; N]> {
        Ok(self.take(N, field)?.try_into().expect("exactly N bytes were taken"))
    }

    pub(super) fn u32(&mut self, field: &str) -> Read<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u64(&mut self, field: &str) -> Read<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A count of things of at least `size` bytes each, which must fit in what is left of the file.
    pub(super) fn count(&mut self, field: &str, size: usize) -> Read<usize> {
        let count = self.u64(field)?;
        let left = (self.bytes.len() - self.position) as u64;
        if count.checked_mul(size as u64).is_none_or(|need| need > left) {
            return Err(self.malformed(field, format!("{count} of them do not fit in the {left} bytes left")));
        }
        Ok(count as usize)
    }

    pub(super) fn string(&mut self, field: &str) -> Read<String> {
        let length = self.count(field, 1)?;
        let bytes = self.take(length, field)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(self.malformed(field, error.to_string())),
        }
    }

    fn boolean(&mut self, field: &str) -> Read<bool> {
        match self.array(field)? {
            [0u8] => Ok(false),
            [1u8] => Ok(true),
            [other] => Err(self.malformed(field, format!("{other} is not a boolean"))),
        }
    }

    /// The value of `key`, of the format's type number `kind`.
    pub(super) fn value(&mut self, key: &str, kind: u32) -> Read<Value> {
        match kind {
            6 | 12 => Ok(Value::Float(self.float(key, kind)?)),
            7 => Ok(Value::Bool(self.boolean(key)?)),
            8 => Ok(Value::String(self.string(key)?)),
            9 => self.items(key),
            _ => Ok(Value::Int(self.integer(key, kind)?)),
        }
    }

    fn integer(&mut self, key: &str, kind: u32) -> Read<i128> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array(key)?).into(),
            1 => i8::from_le_bytes(self.array(key)?).into(),
            2 => u16::from_le_bytes(self.array(key)?).into(),
            3 => i16::from_le_bytes(self.array(key)?).into(),
            4 => u32::from_le_bytes(self.array(key)?).into(),
            5 => i32::from_le_bytes(self.array(key)?).into(),
            10 => u64::from_le_bytes(self.array(key)?).into(),
            11 => i64::from_le_bytes(self.array(key)?).into(),
            other => return Err(self.malformed(key, format!("{other} is not a type of metadata values"))),
        })
    }

    fn float(&mut self, key: &str, kind: u32) -> Read<f64> {
        match kind {
            6 => Ok(f32::from_le_bytes(self.array(key)?).into()),
            _ => Ok(f64::from_le_bytes(self.array(key)?)),
        }
    }

    /// An array. Arrays of arrays exist in the format but in no key, and would let a file nest without end.
    fn items(&mut self, key: &str) -> Read<Value> {
        let kind = self.u32(key)?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.malformed(key, "an array of arrays")),
            other => return Err(self.malformed(key, format!("{other} is not a type of metadata values"))),
        };
        let count = self.count(key, size)?;
        match kind {
            6 | 12 => {
                let items = (0..count).map(|_| Ok(self.float(key, kind)? as f32));
                Ok(Value::Floats(items.collect::<Read<_>>()?))
            }
            7 => Ok(Value::Bools((0..count).map(|_| self.boolean(key)).collect::<Read<_>>()?)),
            8 => Ok(Value::Strings((0..count).map(|_| self.string(key)).collect::<Read<_>>()?)),
            _ => {
                let mut items = Vec::new();
                for _ in 0..count {
                    let item = self.integer(key, kind)?;
                    let item = i64::try_from(item)
                        .map_err(|_| self.malformed(key, format!("{item} is beyond 64 signed bits")))?;
                    items.push(item);
                }
                Ok(Value::Ints(items))
            }
        }
    }
}
