//! Strict JSON: duplicate keys are errors, and fields are taken one by one with the type they must have, so that an
//! error can name the field and what was found there.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::ApiError;

/// Parses a whole body: UTF-8, no key twice, at most 128 levels, numbers within f64.
pub(crate) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(body)
        .map_err(|e| ApiError::invalid(format!("the body is not UTF-8 at byte {}", e.valid_up_to())))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut deserializer);
    value
        .and_then(|v| deserializer.end().map(|()| v))
        .map_err(|e| ApiError::invalid(format!("invalid JSON: {e}")))
}

/// Deserialises a [`Value`] as serde_json does, but refuses duplicate keys, of which serde_json keeps the last: a proxy
/// in front that keeps the first would check another request than the one that runs.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Strict)?;
            if let Some((key, _)) = map.get_key_value(&key) {
                return Err(A::Error::custom(format_args!("key {} appears twice", shorten(key))));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A string from a client, quoted and short enough for a message.
pub(crate) fn shorten(text: &str) -> String {
    const MAX: usize = 48;
    match text.char_indices().nth(MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// What stands where something else was expected.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => shorten(s),
        Value::Array(a) => format!("a list of {}", a.len()),
        Value::Object(o) => format!("an object of {}", o.len()),
    }
}

/// A type that a field may have.
pub(crate) trait Field: Sized {
    /// As in "expected …".
    const WHAT: &'static str;
    /// `None` where the value is something else.
    fn from_value(value: &Value) -> Option<Self>;
}

impl Field for bool {
    const WHAT: &'static str = "true or false";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

/// Whole numbers, also where a client writes them as `16.0`.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let float = value.as_f64()?;
        // Beyond 2^53 a float names no single integer.
        (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0).then_some(float as i64)
    })
}

impl Field for i64 {
    const WHAT: &'static str = "an integer of 64 bits";
    fn from_value(value: &Value) -> Option<Self> {
        integer(value)
    }
}

impl Field for i32 {
    const WHAT: &'static str = "an integer of 32 bits";
    fn from_value(value: &Value) -> Option<Self> {
        integer(value)?.try_into().ok()
    }
}

impl Field for u32 {
    const WHAT: &'static str = "an integer from 0 to 4294967295";
    fn from_value(value: &Value) -> Option<Self> {
        integer(value)?.try_into().ok()
    }
}

impl Field for f32 {
    const WHAT: &'static str = "a number";
    fn from_value(value: &Value) -> Option<Self> {
        let float = value.as_f64()? as f32;
        float.is_finite().then_some(float)
    }
}

impl Field for String {
    const WHAT: &'static str = "a string";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl Field for Vec<u32> {
    const WHAT: &'static str = "a list of integers from 0 to 4294967295";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(u32::from_value).collect()
    }
}

impl Field for Map<String, Value> {
    const WHAT: &'static str = "an object";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_object().cloned()
    }
}

/// An object whose fields are taken one by one. `null` is the same as absent, as in OpenAI's API.
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    /// The object at the top of a body.
    pub(crate) fn body(body: &[u8]) -> Result<Self, ApiError> {
        match parse(body)? {
            Value::Object(map) => Ok(Fields { map, path: String::new() }),
            other => {
                Err(ApiError::invalid(format!("the body must be a JSON object, got {}", describe(&other))))
            }
        }
    }

    /// An object found at `path`.
    pub(crate) fn at(path: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { map, path: format!("{path}.") }),
            other => Err(wrong::<Map<String, Value>>(path, &other)),
        }
    }

    /// The full name of a field, for messages.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// The field's value, whatever it is; `None` where absent or null.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|v| !v.is_null())
    }

    /// Puts back a value that was taken only to be looked at.
    pub(crate) fn put(&mut self, name: &str, value: Value) {
        self.map.insert(name.to_owned(), value);
    }

    /// The field's value as a `T`; `None` where absent or null.
    pub(crate) fn get<T: Field>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        T::from_value(&value).map(Some).ok_or_else(|| wrong::<T>(&self.name(name), &value))
    }

    /// The field's value as a `T`, or its default.
    pub(crate) fn or<T: Field>(&mut self, name: &str, default: T) -> Result<T, ApiError> {
        Ok(self.get(name)?.unwrap_or(default))
    }

    /// Refuses the field unless absent, null, or one of the `neutral` values that ask for nothing.
    pub(crate) fn refuse(&mut self, name: &str, neutral: &[Value]) -> Result<(), ApiError> {
        match self.value(name) {
            Some(value) if !neutral.contains(&value) => Err(ApiError::unsupported(self.name(name))),
            _ => Ok(()),
        }
    }

    /// Names nobody took.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }
}

/// The error for a value of the wrong type.
pub(crate) fn wrong<T: Field>(path: &str, value: &Value) -> ApiError {
    ApiError::field(path, format!("{path}: expected {}, got {}", T::WHAT, describe(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_bounds() {
        let cases: [(&str, Option<u32>, Option<i64>); 9] = [
            ("0", Some(0), Some(0)),
            ("16.0", Some(16), Some(16)),
            ("1.5", None, None),
            ("-1", None, Some(-1)),
            ("4294967295", Some(u32::MAX), Some(4294967295)),
            ("4294967296", None, Some(4294967296)),
            ("18446744073709551615", None, None),
            ("1e300", None, None),
            ("\"1\"", None, None),
        ];
        for (text, unsigned, signed) in cases {
            let value = parse(text.as_bytes()).unwrap();
            assert_eq!(u32::from_value(&value), unsigned, "{text}");
            assert_eq!(i64::from_value(&value), signed, "{text}");
        }
        assert_eq!(f32::from_value(&parse(b"1e300").unwrap()), None);
    }

    #[test]
    fn what_serde_json_would_let_through_is_refused() {
        for body in
            [&b"{\"a\":1,\"a\":2}"[..], b"{\"a\":{\"b\":1,\"b\":1}}", b"[1e999]", b"{} {}", b"\"\xff\""]
        {
            assert!(parse(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(parse(deep.as_bytes()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn accepts_what_serde_json_writes(keys in proptest::collection::vec(".{0,8}", 0..8), number: f64) {
            let mut map = Map::new();
            for key in keys {
                map.insert(key, serde_json::json!([number, null, {"x": "y"}]));
            }
            let value = Value::Object(map);
            let bytes = serde_json::to_vec(&value).unwrap();
            proptest::prop_assert_eq!(parse(&bytes).unwrap(), serde_json::from_slice::<Value>(&bytes).unwrap());
        }
    }
}
