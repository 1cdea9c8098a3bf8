//! The detokenizer against the decoders it stands for, and directories with `tokenizer.json`.

use crate::text::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;

/// A folder of its own for each test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(files: &[(&str, Value)]) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique =
            format!("millrace-text-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path).unwrap();
        for (name, content) in files {
            let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
            std::fs::write(path.join(name), text).unwrap();
        }
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Tokens that each decoder treats in some way of its own.
const TOKENS: &[&str] = &[
    "▁", "▁▁", "▁a", "a", "▁b▁", " c", "  ", "##d", "##", "e", ".", "n't", "Ġf", "Ċ", "<0x41>", "<0xC3>",
    "<0xA9>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x20>", "<0x0>", "é", "日", "Ã", "©", "<s>", "</s>",
];

fn tokenizer(decoder: Value) -> (tokenizers::Tokenizer, Tokenizer) {
    let vocab: serde_json::Map<_, _> =
        TOKENS.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let special = |content: &str| {
        json!({"id": vocab[content], "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let file = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [special("<s>"), special("</s>")], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": decoder, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
    });
    let folder = Folder::new(&[("tokenizer.json", file.clone())]);
    let reference = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
    (reference, Tokenizer::from_directory(&folder.0).unwrap())
}

fn decoders() -> Vec<Value> {
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    vec![
        Value::Null,
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": false}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]}),
        json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}),
    ]
}

#[test]
fn any_ids_decode_as_the_library_decodes_them_and_stream_to_the_same() {
    for decoder in decoders() {
        let (reference, tokenizer) = tokenizer(decoder.clone());
        let ids = prop::collection::vec(0..TOKENS.len() as u32 + 2, 0..12);
        proptest!(ProptestConfig::with_cases(600), |(ids in ids, skip: bool)| {
            let mut detokenizer = tokenizer.detokenizer(skip);
            let mut streamed = String::new();
            for id in &ids {
                streamed += &detokenizer.push(*id);
            }
            streamed += &detokenizer.finish();
            let text = tokenizer.decode(&ids, skip);
            prop_assert_eq!(&streamed, &text);
            let expected = reference.decode(&ids, skip).unwrap();
            // For a run of bytes that is no UTF-8 the library gives U+FFFD for every byte of it, whole characters
            // included; here only what is no character is replaced.
            let replaced = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
            if replaced(&expected) {
                prop_assert!(replaced(&text));
            } else {
                prop_assert_eq!(&text, &expected, "{}", decoder);
            }
        });
    }
}

#[test]
fn a_decoder_that_cannot_be_streamed_is_refused_by_name() {
    for decoder in [
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
        json!({"type": "Strip", "content": "a", "start": 1, "stop": 1}),
    ] {
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
        });
        let folder = Folder::new(&[("tokenizer.json", file)]);
        let error = Tokenizer::from_directory(&folder.0).unwrap_err().to_string();
        assert!(
            error.contains("tokenizer.json") && error.contains(decoder["type"].as_str().unwrap()),
            "{error}"
        );
    }
}

/// A word-level tokenizer whose post-processor adds `<s>`.
fn word_level(config: Value) -> Tokenizer {
    let template = json!({
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": template, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3}, "unk_token": "a"},
    });
    let folder = Folder::new(&[("tokenizer.json", file), ("tokenizer_config.json", config)]);
    Tokenizer::from_directory(&folder.0).unwrap()
}

#[test]
fn the_configuration_decides_what_frames_a_text() {
    let cases: [(Value, &[u32]); 5] = [
        (json!({}), &[0, 2, 3]),
        (json!({"bos_token": "<s>", "add_bos_token": true}), &[0, 2, 3]),
        (json!({"bos_token": {"content": "<s>", "lstrip": false}, "add_bos_token": false}), &[2, 3]),
        (json!({"bos_token": "<s>", "eos_token": "</s>", "add_eos_token": true}), &[0, 2, 3, 1]),
        (json!({"bos_token": null, "add_bos_token": true}), &[0, 2, 3]),
    ];
    for (config, expected) in cases {
        let tokenizer = word_level(config.clone());
        assert_eq!(tokenizer.encode("a b", true).unwrap(), expected, "{config}");
        assert_eq!(tokenizer.encode("a b", false).unwrap(), [2, 3], "{config}");
    }
    // Named in the configuration, an entry of the vocabulary is a special token.
    let tokenizer = word_level(json!({"bos_token": "<s>", "eos_token": "</s>"}));
    assert!(tokenizer.is_special(0) && tokenizer.is_special(1) && !tokenizer.is_special(2));
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(0), Some(1)));
    assert_eq!(tokenizer.decode(&[0, 2, 3, 1], true), "a b");
}

#[test]
fn malformed_files_are_refused_by_name() {
    let refused = |files: &[(&str, Value)], expected: &str| {
        let folder = Folder::new(files);
        let error = Tokenizer::from_directory(&folder.0).unwrap_err();
        let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(text.contains(expected), "{text}");
    };
    refused(&[], "tokenizer.json");
    for broken in ["", "{", "[]", "null", "{\"model\": 3}", "{\"version\": \"1.0\", \"added_tokens\": [{}]}"]
    {
        refused(&[("tokenizer.json", json!(broken))], "tokenizer.json");
    }
    let model = |model: Value, decoder: Value| {
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": decoder, "model": model})
    };
    let words = |vocab: Value| json!({"type": "WordLevel", "vocab": vocab, "unk_token": "a"});
    refused(&[("tokenizer.json", model(words(json!({})), Value::Null))], "no tokens");
    refused(&[("tokenizer.json", model(words(json!({"a": u32::MAX})), Value::Null))], "exceeds");
    // The library slices the merged token by the prefix's length.
    let panics = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
        "continuing_subword_prefix": "longer than the token"});
    refused(&[("tokenizer.json", model(panics, Value::Null))], "tokenizer.json");
    let good = || ("tokenizer.json", model(words(json!({"a": 0})), Value::Null));
    refused(&[good(), ("tokenizer_config.json", json!("{"))], "tokenizer_config.json");
    refused(&[good(), ("special_tokens_map.json", json!("[]"))], "special_tokens_map.json");
    let folder = Folder::new(&[good()]);
    assert_eq!(Tokenizer::from_directory(&folder.0).unwrap().vocab_size(), 1);
}
