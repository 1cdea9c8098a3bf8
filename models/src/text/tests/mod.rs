//! Tests of several modules together, on tokenizers made for them.

mod byte_level;
mod decoders;
mod guard;
mod sentencepiece;

use super::Tokenizer;
use crate::{Gguf, Value};
use std::path::{Path, PathBuf};

/// A file that is checked in for these tests.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/data").join(name)
}

/// A byte-level vocabulary that knows every byte and the merges given, each the two halves. Ids: bytes in the order of
/// their values, then merges, then the tokens given with their types.
fn byte_level(pre: &str, merges: &[(&str, &str)], more: &[(&str, i64)]) -> Gguf {
    let mut tokens: Vec<String> = (0..=255).map(|byte| spell(&[byte])).collect();
    let (mut types, mut lines) = (vec![1; 256], Vec::new());
    for (left, right) in merges {
        tokens.push(spell(format!("{left}{right}").as_bytes()));
        types.push(1);
        lines.push(format!("{} {}", spell(left.as_bytes()), spell(right.as_bytes())));
    }
    for (token, kind) in more {
        tokens.push((*token).to_owned());
        types.push(*kind);
    }
    Gguf::of([
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String(pre.to_owned())),
        ("tokenizer.ggml.tokens", Value::Strings(tokens)),
        ("tokenizer.ggml.token_type", Value::Ints(types)),
        ("tokenizer.ggml.merges", Value::Strings(lines)),
    ])
}

/// Bytes in GPT-2's alphabet.
fn spell(bytes: &[u8]) -> String {
    let char = |byte: &u8| ('\0'..='\u{143}').find(|char| super::detokenizer::byte_of(*char) == Some(*byte));
    bytes.iter().map(|byte| char(byte).expect("every byte has a character")).collect()
}

/// The ids as the strings they add to a text.
fn parts(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, false).expect("the text is short");
    ids.iter().map(|id| tokenizer.token(*id).expect("the id is the tokenizer's")).collect()
}
