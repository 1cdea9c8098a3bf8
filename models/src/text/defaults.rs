//! The sampling parameters a model's authors recommend.

use super::{TextError, files, gguf};
use crate::Gguf;
use serde_json::{Map, Value};
use std::path::Path;

/// What `generation_config.json` (or a GGUF file) says; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Divides the logits; 0 is greedy.
    pub temperature: Option<f32>,
    /// Sample from so many best tokens.
    pub top_k: Option<u32>,
    /// Sample from the best tokens that have this probability together.
    pub top_p: Option<f32>,
    /// Sample from tokens at least this probable, relative to the best.
    pub min_p: Option<f32>,
    /// Divides or multiplies the logits of tokens that occurred.
    pub repetition_penalty: Option<f32>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<u32>,
    /// Begins a sequence.
    pub bos_token_id: Option<u32>,
    /// Each of these ends a sequence. Without duplicates, the first named first.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json`, and `config.json` for the ids that the former does not name.
    ///
    /// # Errors
    /// If a file cannot be read or a value is not of its type or out of its range, by file and key.
    pub fn from_directory(dir: &Path) -> Result<Self, TextError> {
        let name = "generation_config.json";
        let place = dir.join(name).display().to_string();
        let own = Fields(&files::object(dir, name)?.unwrap_or_default(), &place).defaults()?;
        if own.bos_token_id.is_some() && !own.eos_token_ids.is_empty() {
            return Ok(own);
        }
        let place = dir.join("config.json").display().to_string();
        let config = files::object(dir, "config.json")?.unwrap_or_default();
        // Multimodal checkpoints keep the language model's settings in an object of their own.
        let nested = config.get("text_config").and_then(Value::as_object);
        let mut ids = (own.bos_token_id, own.eos_token_ids);
        for fields in [Some(&config), nested].into_iter().flatten().map(|object| Fields(object, &place)) {
            ids.0 = ids.0.or(fields.ids("bos_token_id")?.first().copied());
            if ids.1.is_empty() {
                ids.1 = fields.ids("eos_token_id")?;
            }
        }
        Ok(Self { bos_token_id: ids.0, eos_token_ids: ids.1, ..own })
    }

    /// Reads the ids of a GGUF file, the only recommendation it holds: the end of a sequence, of a turn and of a
    /// message all end the generation.
    ///
    /// # Errors
    /// If a value is no token id.
    pub fn from_gguf(metadata: &Gguf) -> Result<Self, TextError> {
        let mut ends = Vec::new();
        for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            ends.extend(gguf::id(metadata, name)?.filter(|id| !ends.contains(id)));
        }
        let bos_token_id = gguf::id(metadata, "bos_token_id")?;
        Ok(Self { bos_token_id, eos_token_ids: ends, ..Self::default() })
    }
}

/// An object with the name of the file it is from.
struct Fields<'a>(&'a Map<String, Value>, &'a str);

impl Fields<'_> {
    fn defaults(&self) -> Result<GenerationDefaults, TextError> {
        // Where sampling is off, the other parameters are leftovers of a training script.
        let greedy = self.0.get("do_sample") == Some(&Value::Bool(false));
        Ok(GenerationDefaults {
            temperature: self.float("temperature", 0.0..=f64::from(f32::MAX))?.filter(|_| !greedy),
            top_k: self.integer("top_k")?.filter(|_| !greedy),
            top_p: self.float("top_p", 0.0..=1.0)?.filter(|_| !greedy),
            min_p: self.float("min_p", 0.0..=1.0)?.filter(|_| !greedy),
            repetition_penalty: self.float("repetition_penalty", f64::MIN_POSITIVE..=f64::from(f32::MAX))?,
            max_new_tokens: self.integer("max_new_tokens")?,
            bos_token_id: self.ids("bos_token_id")?.first().copied(),
            eos_token_ids: self.ids("eos_token_id")?,
        })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: impl std::fmt::Display) -> TextError {
        TextError::malformed(self.1, format!("{key} must be {expected}"))
    }

    fn float(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f32>, TextError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let float = value.as_f64().filter(|float| range.contains(float));
        let wrong =
            || self.wrong(key, format_args!("a number from {:e} to {:e}", range.start(), range.end()));
        Ok(Some(float.ok_or_else(wrong)? as f32))
    }

    fn integer(&self, key: &str) -> Result<Option<u32>, TextError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let integer = value.as_u64().and_then(|value| u32::try_from(value).ok());
        Ok(Some(integer.ok_or_else(|| self.wrong(key, "a whole number"))?))
    }

    /// One id or a list of them.
    fn ids(&self, key: &str) -> Result<Vec<u32>, TextError> {
        let values = match self.value(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let mut ids = Vec::new();
        for value in values {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| self.wrong(key, "a token id or a list of token ids"))?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value as Entry;
    use serde_json::json;

    fn read(value: Value) -> Result<GenerationDefaults, String> {
        Fields(value.as_object().unwrap(), "generation_config.json")
            .defaults()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_field_is_read() {
        let defaults = read(json!({
            "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05,
            "max_new_tokens": 2048, "bos_token_id": 1, "eos_token_id": [7, 5, 7], "transformers_version": "5.0.0",
        }));
        let expected = GenerationDefaults {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            min_p: Some(0.0),
            repetition_penalty: Some(1.05),
            max_new_tokens: Some(2048),
            bos_token_id: Some(1),
            eos_token_ids: vec![7, 5],
        };
        assert_eq!(defaults, Ok(expected));
        assert_eq!(
            read(json!({"temperature": null, "eos_token_id": null})),
            Ok(GenerationDefaults::default())
        );
        let greedy = read(json!({"do_sample": false, "temperature": 0.6, "eos_token_id": 3})).unwrap();
        assert_eq!((greedy.temperature, greedy.eos_token_ids), (None, vec![3]));
    }

    #[test]
    fn a_wrong_value_is_refused_by_file_and_key() {
        for (key, value) in [
            ("temperature", json!(-1)),
            ("temperature", json!("hot")),
            ("top_p", json!(1.5)),
            ("top_k", json!(-1)),
            ("top_k", json!(2.5)),
            ("repetition_penalty", json!(0)),
            ("max_new_tokens", json!(1u64 << 40)),
            ("eos_token_id", json!(["x"])),
            ("eos_token_id", json!(-2)),
            ("bos_token_id", json!({})),
        ] {
            let error = read(json!({ key: value })).unwrap_err();
            assert!(error.contains("generation_config.json") && error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_gguf_file_may_name_several_ends() {
        let key =
            ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
        let file = Gguf::of([(key[0], Entry::Int(4)), (key[1], Entry::Int(9)), (key[2], Entry::Int(4))]);
        assert_eq!(GenerationDefaults::from_gguf(&file).unwrap().eos_token_ids, [4, 9]);
        assert!(GenerationDefaults::from_gguf(&Gguf::of([(key[0], Entry::Int(1 << 40))])).is_err());
    }
}
