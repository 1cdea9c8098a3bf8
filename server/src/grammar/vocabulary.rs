//! The model's tokens as the trie that grammars are asked against.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use millrace_engine::TokenId;
use millrace_models::text::Tokenizer;

/// Longer tokens exceed the trie's depth. Real ones have up to a hundred bytes; a run of spaces may have more.
const LONGEST: usize = 1000;

/// The bytes of each token. Special tokens come behind a byte that no text contains, so a grammar reaches them by name
/// only. No bytes: no grammar may yield the token.
fn words(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let word = |id| {
        let mut bytes = Vec::new();
        if tokenizer.is_special(id) {
            bytes.push(TokTrie::SPECIAL_TOKEN_MARKER);
            bytes.extend(tokenizer.token(id).unwrap_or_default().bytes());
        } else {
            bytes.extend(tokenizer.token_bytes(id));
        }
        if bytes.len() > LONGEST {
            bytes.clear();
        }
        bytes
    };
    ids.map(word).collect()
}

/// The vocabulary, in which the ids `ends` end a sequence: at least one of them, all within it.
pub(super) fn environment(tokenizer: &Tokenizer, ends: &[TokenId]) -> TokEnv {
    let words = words(tokenizer);
    let info = TokRxInfo::new(words.len() as u32, ends[0]);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
    Arc::new(ApproximateTokEnv::new(trie))
}

/// Sets of tokens that grammars often allow as a whole, as llguidance takes them: white space, and the text of a JSON
/// string up to some lengths. Where a string may go on for so many characters, all tokens of no more are allowed at
/// once, and only longer ones are walked: so the finer the lengths, the less is walked where a schema bounds its
/// strings. llguidance's own are 10, 30 and any; these take two fifths off the work where strings have at most 20.
pub(super) fn slices() -> Vec<String> {
    const LENGTHS: [&str; 9] =
        ["{1,2}", "{1,4}", "{1,6}", "{1,8}", "{1,10}", "{1,14}", "{1,20}", "{1,30}", "+"];
    let text = LENGTHS.map(|length| format!(r#"[^"\\\x00-\x1F\x7F]{length}"#));
    [r"[\x20\x0A\x0D\x09]+".to_owned()].into_iter().chain(text).collect()
}
