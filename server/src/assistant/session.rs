//! What is remembered between requests, all of it bounded in number, size and time: conversations, and answers to
//! questions that were asked before in the same words.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::event::Citation;

/// Values that were used lately.
#[derive(Debug)]
pub struct Recent<K, V> {
    entries: HashMap<K, (Instant, V)>,
    most: usize,
    keep: Duration,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    /// Keeps at most so many values, each so long after its last use.
    pub fn new(most: usize, keep: Duration) -> Self {
        Recent { entries: HashMap::new(), most: most.max(1), keep }
    }

    /// The value, which counts as a use.
    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        let now = Instant::now();
        if self.entries.get(key).is_some_and(|(used, _)| now - *used > self.keep) {
            self.entries.remove(key);
        }
        let (used, value) = self.entries.get_mut(key)?;
        *used = now;
        Some(value)
    }

    /// Puts a value in, and makes room first.
    pub fn put(&mut self, key: K, value: V) {
        let now = Instant::now();
        if self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            let keep = self.keep;
            self.entries.retain(|_, (used, _)| now - *used <= keep);
            // An eighth at a time, so that a full store does not look through itself for each request.
            if self.entries.len() >= self.most {
                let mut uses: Vec<Instant> = self.entries.values().map(|(used, _)| *used).collect();
                uses.sort_unstable();
                let limit = uses[uses.len() / 8];
                self.entries.retain(|_, (used, _)| *used > limit);
            }
        }
        self.entries.insert(key, (now, value));
    }

    /// Drops all whose key is not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.entries.retain(|key, _| keep(key));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A conversation. It only grows at its end, so that each prompt begins with the one before; where it gets too long,
/// its older half goes at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Session {
    /// Messages of the shopper with their evidence, and the model's raw answers.
    pub turns: Vec<(String, String)>,
    /// Products that the last turn was about.
    pub products: Vec<String>,
    /// Evidence up to now; the next passage has the number behind it.
    pub evidence: u32,
}

impl Session {
    const MOST_TURNS: usize = 16;
    const MOST_BYTES: usize = 64 << 10;

    /// Adds a turn.
    pub fn add(&mut self, user: String, assistant: String) {
        self.turns.push((user, assistant));
        while self.turns.len() > Self::MOST_TURNS || (self.bytes() > Self::MOST_BYTES && self.turns.len() > 1)
        {
            self.forget();
        }
    }

    /// Drops the older half; false where there is nothing to drop.
    pub fn forget(&mut self) -> bool {
        let half = self.turns.len().div_ceil(2);
        self.turns.drain(..half);
        half > 0
    }

    fn bytes(&self) -> usize {
        self.turns.iter().map(|(user, assistant)| user.len() + assistant.len()).sum()
    }
}

/// An answer that was given: text with unhydrated cards, and what it may cite and name.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The model's text, directives included.
    pub raw: String,
    /// Its evidence.
    pub citations: Vec<Citation>,
    /// Products it may name.
    pub products: Vec<String>,
    /// The message as the model had read it.
    pub message: String,
}

/// What makes two questions the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AnswerKey([u8; 32]);

impl AnswerKey {
    /// A hash over all parts and their lengths.
    pub fn new<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        AnswerKey(hash.finalize().into())
    }
}

/// A question without what makes no difference: case, spaces, marks at its end.
pub fn normalise(question: &str) -> String {
    let words: Vec<String> = question.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ").trim_end_matches(['?', '!', '.', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_recent_are_kept() {
        let mut recent = Recent::new(8, Duration::from_secs(60));
        for i in 0..8 {
            recent.put(i, i);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(recent.get(&0).is_some());
        recent.put(8, 8);
        assert!(recent.len() <= 8 && recent.get(&0).is_some() && recent.get(&8).is_some());
        assert!(recent.get(&1).is_none());
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(recent.get(&8).is_none());
    }

    #[test]
    fn a_session_is_bounded() {
        let mut session = Session::default();
        for i in 0..100 {
            session.add(format!("question {i}"), "x".repeat(3000));
            assert!(session.turns.len() <= Session::MOST_TURNS && session.bytes() <= Session::MOST_BYTES);
            assert_eq!(session.turns.last().unwrap().0, format!("question {i}"));
        }
        session.add("big".into(), "x".repeat(200 << 10));
        assert_eq!(session.turns.len(), 1);
    }

    #[test]
    fn questions() {
        assert_eq!(normalise(" Is  it Safe ?"), normalise("is it safe"));
        assert_ne!(AnswerKey::new(["a", "bc"]), AnswerKey::new(["ab", "c"]));
    }
}
