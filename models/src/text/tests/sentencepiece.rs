//! Segmentation against the sentencepiece library, whose answers `sentencepiece_cases.py` recorded.

use super::super::spm::{Kind, Spm};
use super::{Tokenizer, data};
use crate::{Gguf, Value};
use proptest::prelude::*;
use serde_json::Value as Json;

/// A recorded model as GGUF metadata, and its cases.
struct Recorded {
    name: String,
    prefix: bool,
    metadata: Gguf,
    cases: Vec<(String, Vec<u32>)>,
}

fn recorded() -> Vec<Recorded> {
    let models: Vec<Json> =
        serde_json::from_slice(&std::fs::read(data("sentencepiece.json")).unwrap()).unwrap();
    let read = |model: Json| {
        let pieces: Vec<(String, f32, i64)> = serde_json::from_value(model["pieces"].clone()).unwrap();
        let prefix = model["prefix"].as_bool().unwrap();
        // Converters write the spaces of user defined pieces as spaces.
        let token = |(piece, _, kind): &(String, f32, i64)| {
            if *kind == 4 { piece.replace('▁', " ") } else { piece.clone() }
        };
        let metadata = Gguf::of([
            ("tokenizer.ggml.model", Value::String("llama".to_owned())),
            ("tokenizer.ggml.tokens", Value::Strings(pieces.iter().map(token).collect())),
            ("tokenizer.ggml.scores", Value::Floats(pieces.iter().map(|(_, score, _)| *score).collect())),
            ("tokenizer.ggml.token_type", Value::Ints(pieces.iter().map(|(_, _, kind)| *kind).collect())),
            ("tokenizer.ggml.add_space_prefix", Value::Bool(prefix)),
            ("tokenizer.ggml.bos_token_id", Value::Int(1)),
            ("tokenizer.ggml.eos_token_id", Value::Int(2)),
        ]);
        let cases = serde_json::from_value(model["cases"].clone()).unwrap();
        Recorded { name: model["name"].as_str().unwrap().to_owned(), prefix, metadata, cases }
    };
    models.into_iter().map(read).collect()
}

#[test]
fn ids_are_those_of_the_sentencepiece_library() {
    for model in recorded() {
        let tokenizer = Tokenizer::from_gguf(&model.metadata).unwrap();
        assert!(model.cases.len() > 200);
        for (text, expected) in &model.cases {
            // The library never finds control pieces in text.
            let ids = tokenizer.encode_plain(text).unwrap();
            assert_eq!(&ids, expected, "{}: {text:?}", model.name);
        }
    }
}

#[test]
fn texts_survive_a_round_trip_where_bytes_spell_what_pieces_do_not() {
    for model in recorded().into_iter().filter(|model| model.name != "unknown characters") {
        let tokenizer = Tokenizer::from_gguf(&model.metadata).unwrap();
        for text in model.cases.iter().map(|(text, _)| text).filter(|text| !text.contains('▁')) {
            let ids = tokenizer.encode_plain(text).unwrap();
            assert_eq!(&tokenizer.decode(&ids, true), text, "{}", model.name);
        }
    }
}

#[test]
fn a_beginning_is_added_once() {
    for model in recorded() {
        let tokenizer = Tokenizer::from_gguf(&model.metadata).unwrap();
        let plain = tokenizer.encode("the a", false).unwrap();
        assert_eq!(tokenizer.encode("the a", true).unwrap(), [&[1], &plain[..]].concat(), "{}", model.name);
        assert_eq!(tokenizer.encode("<s>the a", true).unwrap()[..1], [1]);
        assert_ne!(tokenizer.encode("<s>the a", true).unwrap()[1], 1);
        // Text after a token begins anew, so it has the prefix again.
        let expected = if model.prefix {
            [&[1], &plain[..]].concat()
        } else {
            tokenizer.encode("<s>the a", false).unwrap()
        };
        assert_eq!(tokenizer.encode("<s>the a", false).unwrap(), expected, "{}", model.name);
    }
}

/// Joins the best adjacent pair, found by looking at all of them, until there is none.
fn naive(text: &str, pieces: &[(String, f32)]) -> Vec<u32> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    let score = |joined: &String| pieces.iter().find(|(piece, _)| piece == joined).map(|(_, score)| *score);
    loop {
        let mut best: Option<(usize, f32)> = None;
        for at in 0..parts.len().saturating_sub(1) {
            if let Some(score) = score(&format!("{}{}", parts[at], parts[at + 1]))
                && best.is_none_or(|(_, other)| score > other)
            {
                best = Some((at, score));
            }
        }
        let Some((at, _)) = best else { break };
        let right = parts.remove(at + 1);
        parts[at].push_str(&right);
    }
    let id = |part: &String| pieces.iter().position(|(piece, _)| piece == part);
    parts.iter().map(|part| id(part).map_or(u32::MAX, |id| id as u32)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn segmentation_agrees_with_a_naive_one_whatever_the_scores(
        mut longer in prop::collection::vec("[ab]{2,5}", 0..20),
        scores in prop::collection::vec(-4i8..4, 22),
        text in "[ab]{0,24}",
    ) {
        longer.sort();
        longer.dedup();
        let pieces = ["a".to_owned(), "b".to_owned()].into_iter().chain(longer);
        let pieces: Vec<_> = pieces.zip(scores.iter().map(|score| f32::from(*score))).collect();
        let spm = Spm::new(pieces.iter().map(|(piece, score)| (piece.as_str(), *score, Kind::Normal)));
        let ids: Vec<u32> = spm.tokenize(&text).iter().map(|token| token.id).collect();
        prop_assert_eq!(ids, naive(&text, &pieces));
    }
}

#[test]
fn long_texts_take_little_time() {
    let model = recorded().remove(0);
    let tokenizer = Tokenizer::from_gguf(&model.metadata).unwrap();
    for unit in ["a", " ", "the ", "日", "\n"] {
        let text = unit.repeat(100_000 / unit.len());
        let started = std::time::Instant::now();
        let ids = tokenizer.encode(&text, false).unwrap();
        assert!(started.elapsed().as_secs() < 3, "{unit:?}: {:?}", started.elapsed());
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn malformed_metadata_is_refused_by_key() {
    let tokens = |tokens: &[&str]| Value::Strings(tokens.iter().map(|token| (*token).to_owned()).collect());
    let base = || {
        vec![
            ("tokenizer.ggml.model", Value::String("llama".to_owned())),
            ("tokenizer.ggml.tokens", tokens(&["<unk>", "a", "b"])),
            ("tokenizer.ggml.scores", Value::Floats(vec![0.0, -1.0, -2.0])),
            ("tokenizer.ggml.token_type", Value::Ints(vec![2, 1, 1])),
        ]
    };
    assert_eq!(Tokenizer::from_gguf(&Gguf::of(base())).unwrap().vocab_size(), 3);
    let wrong = [
        ("tokenizer.ggml.model", Some(Value::String("wordpiece".to_owned()))),
        ("tokenizer.ggml.model", None),
        ("tokenizer.ggml.tokens", None),
        ("tokenizer.ggml.tokens", Some(tokens(&[]))),
        ("tokenizer.ggml.tokens", Some(Value::Int(3))),
        ("tokenizer.ggml.scores", None),
        ("tokenizer.ggml.scores", Some(Value::Floats(vec![0.0]))),
        ("tokenizer.ggml.scores", Some(Value::Floats(vec![0.0, f32::NAN, 0.0]))),
        ("tokenizer.ggml.token_type", Some(Value::Ints(vec![1, 1]))),
        ("tokenizer.ggml.token_type", Some(Value::Ints(vec![1, 1, 9]))),
        ("tokenizer.ggml.bos_token_id", Some(Value::Int(3))),
        ("tokenizer.ggml.eos_token_id", Some(Value::Int(1 << 40))),
        ("tokenizer.ggml.add_bos_token", Some(Value::String("yes".to_owned()))),
    ];
    for (key, value) in wrong {
        let mut values: Vec<_> = base().into_iter().filter(|(other, _)| *other != key).collect();
        values.extend(value.clone().map(|value| (key, value)));
        let error = Tokenizer::from_gguf(&Gguf::of(values)).expect_err(key).to_string();
        let named = error.contains(key) || (error.contains("tokenizer.ggml.") && key.ends_with("tokens"));
        assert!(named, "{key} {value:?}: {error}");
    }
}
