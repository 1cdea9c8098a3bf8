//! The configuration of a sentence encoder of the BERT family, as sentence-transformers lays it out: `config.json`, and
//! beside it how texts are cut (`sentence_bert_config.json`) and how tokens become one vector (`1_Pooling`).

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::{ModelError, json};

/// Bytes that any of these files may have.
const LIMIT: u64 = 1 << 20;

/// Sizes beyond these are not believed.
const MAX_WIDTH: usize = 1 << 16;
const MAX_VOCAB: usize = 1 << 24;
const MAX_LAYERS: usize = 1024;

/// A BERT encoder: absolute positions, norms after each residual, exact GELU.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Rows of the word embeddings.
    pub vocab: usize,
    /// Width of the residual stream, and of an embedding.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Heads; divides `hidden`.
    pub heads: usize,
    /// Width of the feed-forward layers.
    pub ffn: usize,
    /// Rows of the position embeddings.
    pub positions: usize,
    /// Rows of the token type embeddings, of which the first is used.
    pub token_types: usize,
    /// Added to the variance in every norm.
    pub eps: f32,
    /// Tokens of the longest text, special ones included; longer ones are cut.
    pub max_tokens: usize,
}

impl EncoderConfig {
    /// Reads a directory.
    ///
    /// # Errors
    /// Where a file is missing or malformed, or asks for something that would change the embeddings and is not done.
    pub fn read(directory: &Path) -> Result<EncoderConfig, ModelError> {
        let path = directory.join("config.json");
        let file = path.display().to_string();
        let map: Map<String, Value> = json::read(&path, LIMIT)?;
        let fields = Fields::new(&file, "", &map);
        for (key, wanted, default) in [
            ("model_type", "bert", None),
            ("hidden_act", "gelu", Some("gelu")),
            ("position_embedding_type", "absolute", Some("absolute")),
        ] {
            let value = fields.require(key, fields.string(key)?.or(default))?;
            if value != wanted {
                return Err(fields.unsupported(key, value, &format!("; encoders have {wanted:?} here")));
            }
        }
        let size = |key: &str, most: usize| {
            let value = fields.require(key, fields.unsigned(key)?)?;
            if value == 0 || value > most {
                return Err(fields.wrong(key, format!("{value} does not lie between 1 and {most}")));
            }
            Ok(value)
        };
        let positions = size("max_position_embeddings", MAX_WIDTH)?;
        let config = EncoderConfig {
            vocab: size("vocab_size", MAX_VOCAB)?,
            hidden: size("hidden_size", MAX_WIDTH)?,
            layers: size("num_hidden_layers", MAX_LAYERS)?,
            heads: size("num_attention_heads", MAX_WIDTH)?,
            ffn: size("intermediate_size", MAX_WIDTH)?,
            positions,
            token_types: size("type_vocab_size", MAX_WIDTH)?,
            eps: fields.float("layer_norm_eps")?.unwrap_or(1e-12),
            max_tokens: max_tokens(directory, positions)?,
        };
        if !config.hidden.is_multiple_of(config.heads) {
            let why = format!("{} does not divide hidden_size {}", config.heads, config.hidden);
            return Err(fields.wrong("num_attention_heads", why));
        }
        check_pooling(directory)?;
        Ok(config)
    }
}

fn max_tokens(directory: &Path, positions: usize) -> Result<usize, ModelError> {
    let path = directory.join("sentence_bert_config.json");
    if !path.exists() {
        return Ok(positions);
    }
    let file = path.display().to_string();
    let map: Map<String, Value> = json::read(&path, LIMIT)?;
    let fields = Fields::new(&file, "", &map);
    let given = fields.unsigned("max_seq_length")?.unwrap_or(positions);
    // Two are special, and a text without a token of its own means nothing.
    if given < 3 {
        return Err(fields.wrong("max_seq_length", format!("{given} is less than 3")));
    }
    Ok(given.min(positions))
}

/// Refuses any pooling but the mean of all tokens, and layers that come after it.
fn check_pooling(directory: &Path) -> Result<(), ModelError> {
    let path = directory.join("1_Pooling/config.json");
    if path.exists() {
        let file = path.display().to_string();
        let map: Map<String, Value> = json::read(&path, LIMIT)?;
        let fields = Fields::new(&file, "", &map);
        for key in map.keys().filter(|key| key.starts_with("pooling_mode_")) {
            let on = fields.bool(key)?.unwrap_or(false);
            if on != (key == "pooling_mode_mean_tokens") {
                return Err(fields.unsupported(key, on, "; tokens are averaged"));
            }
        }
    }
    let path = directory.join("modules.json");
    if path.exists() {
        let file = path.display().to_string();
        let modules: Vec<Map<String, Value>> = json::read(&path, LIMIT)?;
        for (i, module) in modules.iter().enumerate() {
            let index = format!("{i}.");
            let fields = Fields::new(&file, &index, module);
            let kind = fields.string("type")?.unwrap_or_default();
            let name = kind.rsplit('.').next().unwrap_or_default();
            if !["Transformer", "Pooling", "Normalize"].contains(&name) {
                return Err(fields.unsupported("type", kind, ""));
            }
        }
    }
    Ok(())
}
