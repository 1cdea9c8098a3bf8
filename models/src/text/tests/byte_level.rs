//! Byte-level tokenizers from GGUF metadata: where texts are cut, and what is refused.

use super::{Tokenizer, byte_level, parts, spell};
use crate::text::{ChatTemplate, TemplateError};
use crate::{Gguf, Value};

/// Merges that join whatever stands in one word, so that tokens are words.
fn words(pre: &str, words: &[&str]) -> Tokenizer {
    let mut merges: Vec<(String, String)> = Vec::new();
    for word in words {
        for end in 1..word.len() {
            let merge = (word[..end].to_owned(), word[end..=end].to_owned());
            if !merges.contains(&merge) {
                merges.push(merge);
            }
        }
    }
    let merges: Vec<(&str, &str)> =
        merges.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect();
    Tokenizer::from_gguf(&byte_level(pre, &merges, &[("<|end|>", 3), ("<tool>", 4)])).unwrap()
}

#[test]
fn each_pre_tokenizer_cuts_as_its_models_do() {
    let known = ["1234567", "AB", "bA", "ABcd", "'LL", "'ll", ".\n\n", " \n\n", "x/y", " we"];
    let cut = |pre: &str, text: &str| parts(&words(pre, &known), text).join("|");
    // Digits: all together, one by one, or by threes.
    assert_eq!(cut("gpt-2", "1234567"), "1234567");
    assert_eq!(cut("smollm", "1234567"), "1|2|3|4|5|6|7");
    assert_eq!(cut("qwen2", "1234567"), "1|2|3|4|5|6|7");
    assert_eq!(cut("llama-bpe", "1234567123"), "123|4|5|6|7|12|3");
    assert_eq!(cut("dbrx", "123123"), "123|123");
    // Line breaks go with the punctuation before them, or apart.
    assert_eq!(cut("llama-bpe", ".\n\n"), ".\n\n");
    assert_eq!(cut("gpt-2", ".\n\n"), ".|\n|\n");
    // Contractions in capitals.
    assert_eq!(cut("qwen2", "we'LL"), "w|e|'LL");
    assert_eq!(cut("gpt-2", "we'LL"), "w|e|'|L|L");
    assert_eq!(cut("gpt-2", "we'll we"), "w|e|'ll| we");
    // A change of case ends a word.
    assert_eq!(cut("gpt-2", "ABcd"), "ABcd");
    assert_eq!(cut("gpt-2", "abA"), "a|bA");
    assert_eq!(cut("tekken", "abA"), "a|b|A");
    assert_eq!(cut("gpt-4o", "we'll"), "w|e|'ll");
}

#[test]
fn a_word_that_is_a_token_is_whole_where_the_family_says_so() {
    // The only merge makes "bc", so merging alone never reaches "abc".
    let more = [("abc", 1)];
    for (pre, expected) in [("llama-bpe", "abc"), ("dbrx", "a|bc")] {
        let tokenizer = Tokenizer::from_gguf(&byte_level(pre, &[("b", "c")], &more)).unwrap();
        assert_eq!(parts(&tokenizer, "abc").join("|"), expected);
    }
}

#[test]
fn control_tokens_are_special_and_user_defined_ones_are_not() {
    let tokenizer = words("gpt-2", &[]);
    let text = "a<|end|><tool>b";
    assert_eq!(parts(&tokenizer, text), ["a", "<|end|>", "<tool>", "b"]);
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "a<tool>b");
    let plain = tokenizer.encode_plain(text).unwrap();
    assert_eq!(tokenizer.decode(&plain, true), text);
    assert!(plain.contains(&tokenizer.id("<tool>").unwrap()));
}

#[test]
fn what_is_not_supported_is_named() {
    let error = Tokenizer::from_gguf(&byte_level("whatever", &[], &[])).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.pre") && error.contains("whatever"), "{error}");
    let without = |key: &str| {
        let whole = byte_level("gpt-2", &[("a", "b")], &[]);
        let keys = ["model", "pre", "tokens", "token_type", "merges"];
        let keys = keys.map(|name| -> &'static str {
            match name {
                "model" => "tokenizer.ggml.model",
                "pre" => "tokenizer.ggml.pre",
                "tokens" => "tokenizer.ggml.tokens",
                "token_type" => "tokenizer.ggml.token_type",
                _ => "tokenizer.ggml.merges",
            }
        });
        let kept = keys.into_iter().filter(|name| *name != key);
        Gguf::of(kept.map(|name| (name, whole.get(name).unwrap().clone())).collect::<Vec<_>>())
    };
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        let error = Tokenizer::from_gguf(&without(key)).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    assert!(matches!(ChatTemplate::from_gguf(&without("")), Err(TemplateError::Missing { .. })));
}

#[test]
fn malformed_merges_are_refused() {
    let spelled = spell(b"a");
    for merge in ["", "a", " a", "a ", "a b c", "a nothere", &format!("{spelled} {spelled}")] {
        let whole = byte_level("gpt-2", &[], &[]);
        let keys = ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"];
        let mut values: Vec<_> = keys.map(|key| (key, whole.get(key).unwrap().clone())).into();
        values.push(("tokenizer.ggml.merges", Value::Strings(vec![merge.to_owned()])));
        let error = Tokenizer::from_gguf(&Gguf::of(values)).unwrap_err().to_string();
        assert!(error.contains("tokenizer.ggml.merges"), "{merge:?}: {error}");
    }
}
