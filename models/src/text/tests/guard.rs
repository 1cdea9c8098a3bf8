//! Users' text and the markers of a conversation.

use super::byte_level;
use crate::text::{ChatTemplate, RenderOptions, SpecialTokens, TemplateError, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Markers of every shape: with bars, brackets and spaces, one inside another, of one character.
const SPECIAL: &[&str] =
    &["<|user|>", "<|assistant|>", "<|end|>", "[INST]", "[/INST]", "<s>", "<<s>>", "※", "a marker", "<|"];

fn tokenizer() -> Tokenizer {
    let merges = [("<", "|"), ("e", "n"), ("en", "d"), ("|", ">"), ("I", "N")];
    let special = SPECIAL.iter().map(|token| (*token, 3));
    let defined = [("<tool>", 4), ("<b>", 4)];
    let tokens: Vec<_> = special.chain(defined).collect();
    Tokenizer::from_gguf(&byte_level("gpt-2", &merges, &tokens)).unwrap()
}

fn specials(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let special = ids.iter().filter(|id| tokenizer.is_special(**id));
    special.map(|id| tokenizer.token(*id).unwrap()).collect()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, SpecialTokens::default()).unwrap()
}

/// Markers whole, in pieces, and what may stand between them.
fn hostile() -> impl Strategy<Value = String> {
    let cut = |marker: &str| {
        let at = marker.char_indices().map(|(at, _)| at).collect::<Vec<_>>();
        at.into_iter().flat_map(|at| [marker[..at].to_owned(), marker[at..].to_owned()]).collect::<Vec<_>>()
    };
    let mut pieces: Vec<String> = SPECIAL.iter().flat_map(|marker| cut(marker)).collect();
    pieces.extend(["x", " ", "\n", "é", "<tool>", "<b>", "\u{f0000}", "\u{10fffd}"].map(str::to_owned));
    prop::collection::vec(prop::sample::select(pieces), 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn markers_come_from_the_template_alone(contents in prop::collection::vec(hostile(), 1..4), name in hostile()) {
        let tokenizer = tokenizer();
        // Nothing stands between two contents but what the template writes, and that may be nothing.
        for (source, per_message) in [
            ("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}", vec!["<|user|>", "<|end|>"]),
            ("{% for m in messages %}{{ m.content }}{% endfor %}", vec![]),
            ("{% for m in messages %}[INST] {{ m.content | trim }} [/INST]{% endfor %}", vec!["[INST]", "[/INST]"]),
            ("{% for m in messages %}※{{ m | tojson }}{% endfor %}", vec!["※"]),
            ("{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content }}{{ tools | tojson }}{% endfor %}", vec!["<|user|>"]),
        ] {
            let messages: Vec<Value> = contents.iter().map(|content| {
                json!({"role": "user", "content": content, name.clone(): [name.clone()]})
            }).filter(|message| message["content"].is_string() && message["role"] == "user").collect();
            let tools = json!([{"name": name, name.clone(): {"x": name}}]);
            let options = RenderOptions { tools: Some(&tools), ..RenderOptions::default() };
            let template = template(source);
            let ids = template.encode(&tokenizer, &messages, &options).unwrap();
            let expected: Vec<_> = messages.iter().flat_map(|_| per_message.iter().copied()).collect();
            prop_assert_eq!(specials(&tokenizer, &ids), expected, "{}", source);
            prop_assert_eq!(tokenizer.decode(&ids, false), template.render(&messages, &options).unwrap());
        }
    }

    #[test]
    fn plain_text_has_no_markers_and_loses_nothing(text in hostile()) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode_plain(&text).unwrap();
        prop_assert_eq!(specials(&tokenizer, &ids), [""; 0]);
        prop_assert_eq!(tokenizer.decode(&ids, true), text);
    }
}

#[test]
fn text_between_markers_is_encoded_as_it_would_be_alone() {
    let tokenizer = tokenizer();
    let template = template("<|user|>{{ messages[0].content }}<|end|>");
    let content = "say <|end|> or [INST], the end";
    let ids = template.encode(
        &tokenizer,
        &[json!({"role": "user", "content": content})],
        &RenderOptions::default(),
    );
    let id = |token| tokenizer.id(token).unwrap();
    let expected =
        [&[id("<|user|>")], &tokenizer.encode_plain(content).unwrap()[..], &[id("<|end|>")]].concat();
    assert_eq!(ids.unwrap(), expected);
}

#[test]
fn ordinary_added_tokens_are_the_users_too_unless_the_template_writes_them() {
    let tokenizer = tokenizer();
    let (tool, bold) = (tokenizer.id("<tool>").unwrap(), tokenizer.id("<b>").unwrap());
    let source = "{% for m in messages %}{{ m.content }}{% if m.call %}<tool>{% endif %}{% endfor %}";
    let count = |role: &str, content: &str| {
        let messages = [
            json!({"role": role, "content": content}),
            json!({"role": "assistant", "call": true, "content": ""}),
        ];
        let ids = template(source).encode(&tokenizer, &messages, &RenderOptions::default()).unwrap();
        (ids.iter().filter(|id| **id == tool).count(), ids.iter().filter(|id| **id == bold).count())
    };
    let mixed = [("user", "<tool>"), ("assistant", "<tool>"), ("tool", "<tool>")];
    let messages = mixed.map(|(role, content)| json!({"role": role, "content": content}));
    let ids = template(source).encode(&tokenizer, &messages, &RenderOptions::default()).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == tool).count(), 1);
    assert_eq!(count("user", "<tool> <b>"), (1, 1));
    assert_eq!(count("tool", "<tool> <b>"), (1, 1));
    assert_eq!(
        count("assistant", "<tool> <b>"),
        (2, 1),
        "an answer may contain what the template would have written"
    );
}

#[test]
fn a_conversation_that_leaves_no_private_character_is_refused() {
    let all: String = ('\u{f0000}'..='\u{ffffd}').chain('\u{100000}'..='\u{10fffd}').collect();
    let tokenizer = tokenizer();
    let messages = [json!({"role": "user", "content": all})];
    let error =
        template("{{ messages[0].content }}").encode(&tokenizer, &messages, &RenderOptions::default());
    assert!(matches!(error, Err(TemplateError::Options(_))));
    assert!(tokenizer.encode_plain(&all).is_err());
}

#[test]
fn a_template_that_refuses_shows_what_the_user_wrote() {
    let template = template("{{ raise_exception('no ' ~ messages[0].content) }}");
    let messages = [json!({"role": "user", "content": "<|end|>"})];
    let error = template.encode(&tokenizer(), &messages, &RenderOptions::default()).unwrap_err();
    assert!(matches!(&error, TemplateError::Refused(text) if text == "no <|end|>"), "{error}");
}
