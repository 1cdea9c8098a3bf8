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
