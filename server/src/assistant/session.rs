//! What is remembered between requests, all of it bounded in number, size and time: conversations, and answers to
//! questions that were asked before in the same words.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::event::Citation;
use super::hydrate::Shopper;
use crate::auth::Tenant;

/// Memory that a value takes.
pub trait Weigh {
    /// In bytes, about.
    fn weight(&self) -> usize;
}

/// Values that were used lately.
#[derive(Debug)]
pub struct Recent<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Counts uses.
    uses: u64,
    most: usize,
    bytes: usize,
    keep: Duration,
    tidied: Instant,
}

#[derive(Debug)]
struct Entry<V> {
    /// Which use was the last one.
    use_: u64,
    at: Instant,
    value: V,
}

impl<K: Hash + Eq, V: Weigh> Recent<K, V> {
    /// Keeps at most so many values of so many bytes, each so long after its last use.
    pub fn new(most: usize, bytes: usize, keep: Duration) -> Self {
        let entries = HashMap::new();
        Recent { entries, uses: 0, most: most.max(1), bytes, keep, tidied: Instant::now() }
    }

    /// The value, which counts as a use.
    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        let now = Instant::now();
        if self.entries.get(key).is_some_and(|entry| now - entry.at > self.keep) {
            self.entries.remove(key);
        }
        let entry = self.entries.get_mut(key)?;
        self.uses += 1;
        (entry.use_, entry.at) = (self.uses, now);
        Some(&mut entry.value)
    }

    /// The value, which is kept no longer.
    pub fn take(&mut self, key: &K) -> Option<V> {
        self.get(key)?;
        self.entries.remove(key).map(|entry| entry.value)
    }

    /// Puts a value in; the oldest make room for it.
    pub fn put(&mut self, key: K, value: V) {
        let now = Instant::now();
        // What nobody asks for any more goes too, if not at once.
        if now - self.tidied > self.keep / 8 {
            let keep = self.keep;
            self.entries.retain(|_, entry| now - entry.at <= keep);
            self.tidied = now;
        }
        self.uses += 1;
        self.entries.insert(key, Entry { use_: self.uses, at: now, value });
        let mut bytes: usize = self.entries.values().map(|entry| entry.value.weight()).sum();
        if self.entries.len() <= self.most && bytes <= self.bytes {
            return;
        }
        // An eighth at a time, so that a full store does not sort itself for each request.
        let mut oldest: Vec<(u64, usize)> =
            self.entries.values().map(|entry| (entry.use_, entry.value.weight())).collect();
        oldest.sort_unstable();
        let (mut left, mut limit) = (oldest.len(), 0);
        for (use_, weight) in oldest {
            // One value may be larger than all of it, and is of use still.
            if (left <= self.most - self.most / 8 && bytes <= self.bytes - self.bytes / 8) || left == 1 {
                break;
            }
            (left, bytes, limit) = (left - 1, bytes - weight, use_);
        }
        self.entries.retain(|_, entry| entry.use_ > limit);
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

/// Whose conversation it is. One that a shopper has who is signed in is nobody else's, even if they know its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    tenant: String,
    session: String,
    /// The hash of what identifies the shopper to stores.
    shopper: Option<[u8; 32]>,
}

impl SessionKey {
    pub(crate) fn new(tenant: &Tenant, session: &str, shopper: Option<&Shopper>) -> Self {
        let shopper = shopper.filter(|shopper| !shopper.0.is_empty());
        SessionKey {
            tenant: tenant.salt(None).unwrap_or_default(),
            session: session.to_owned(),
            shopper: shopper.map(|shopper| Sha256::digest(&shopper.0).into()),
        }
    }

    /// The conversation of that id before somebody signed in; `None` where nobody has.
    pub(crate) fn guest(&self) -> Option<Self> {
        self.shopper.map(|_| SessionKey { shopper: None, ..self.clone() })
    }

    /// Its id.
    pub fn session(&self) -> &str {
        &self.session
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
    /// The same before the last turn.
    before: u32,
}

impl Weigh for Session {
    fn weight(&self) -> usize {
        self.bytes() + self.products.iter().map(String::len).sum::<usize>()
    }
}

impl Session {
    const MOST_TURNS: usize = 16;
    const MOST_BYTES: usize = 64 << 10;

    /// Adds a turn, whose last evidence has this number; 0 where it has none.
    pub fn add(&mut self, user: String, assistant: String, evidence: u32) {
        self.turns.push((user, assistant));
        (self.before, self.evidence) = (self.evidence, self.evidence.max(evidence));
        while self.turns.len() > Self::MOST_TURNS || (self.bytes() > Self::MOST_BYTES && self.turns.len() > 1)
        {
            self.forget();
        }
    }

    /// Takes the last turn back, so that the same question has the same prompt again and its answers can be compared.
    pub fn undo(&mut self) {
        if self.turns.pop().is_some() {
            self.evidence = self.before;
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
    /// What they are called.
    pub names: Vec<String>,
    /// The message as the model had read it.
    pub message: String,
}

impl Weigh for Answer {
    fn weight(&self) -> usize {
        let quoted =
            |citation: &Citation| citation.quote.len() + citation.title.len() + citation.doc_id.len();
        let citations: usize = self.citations.iter().map(quoted).sum();
        let products: usize = self.products.iter().chain(&self.names).map(String::len).sum();
        self.raw.len() + self.message.len() + citations + products
    }
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
    use crate::assistant::prompt;
    use crate::assistant::prompt::{Dossier, MarkKey};
    use crate::assistant::source::{Evidence, Passage, Source};
    use proptest::prelude::*;
    use std::sync::Arc;

    impl Weigh for u64 {
        fn weight(&self) -> usize {
            *self as usize
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_recent_are_kept() {
        let mut recent = Recent::new(8, 1000, Duration::from_secs(60));
        for i in 0..8 {
            recent.put(i, 1u64);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(recent.get(&0).is_some());
        recent.put(8, 8);
        assert!(recent.len() <= 8 && recent.get(&0).is_some() && recent.get(&8).is_some());
        assert!(recent.get(&1).is_none());
        assert_eq!((recent.take(&8), recent.get(&8)), (Some(8), None));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(recent.get(&0).is_none());
        // Without being asked for, too.
        recent.put(9, 1);
        assert_eq!(recent.len(), 1);
    }

    proptest! {
        /// Neither their number nor their size grows, and what was used last is there.
        #[test]
        fn what_is_remembered_is_bounded(puts in prop::collection::vec((0u8..40, 0u64..400), 1..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let _guard = runtime.enter();
            let mut recent = Recent::new(16, 1000, Duration::from_secs(60));
            for (key, weight) in puts {
                recent.put(key, weight);
                let bytes: u64 = recent.entries.values().map(|entry| entry.value).sum();
                prop_assert!(recent.len() <= 16 && bytes <= 1000, "{} of {bytes}", recent.len());
                prop_assert_eq!(recent.get(&key).copied(), Some(weight));
            }
        }

        /// What a prompt and its answer were is what the next prompt begins with, byte for byte, unless the older half of
        /// the conversation was dropped; and taking a turn back leads to the very same prompt.
        #[test]
        fn prompts_only_grow(turns in prop::collection::vec((prop::collection::vec(".{0,30}", 0..4), ".{1,30}", "(?s).{0,60}"), 1..12)) {
            let key = MarkKey::new([7; 32]);
            let render = |messages: &[serde_json::Value]| -> String {
                messages.iter().map(|m| format!("<{}>{}</>", m["role"], m["content"].as_str().unwrap())).collect()
            };
            let draft = |session: &Session, texts: &[String], question: &str| {
                let passage = |(i, text): (usize, &String)| Evidence {
                    passage: Arc::new(Passage {
                        id: format!("r{i}"), product: None, source: Source::Review, text: text.clone(), title: None,
                        rating: None, helpful: None, date: None,
                    }),
                    score: 1.0,
                };
                let evidence = texts.iter().enumerate().map(passage).collect();
                let dossier = Dossier::new(session.evidence + 1, evidence, 8, Vec::new());
                let message = prompt::question(&key, &dossier, question);
                (render(&prompt::messages(&session.turns, &message)), message, session.evidence + texts.len() as u32)
            };
            let (mut session, mut before) = (Session::default(), None::<String>);
            for (texts, question, answer) in &turns {
                let (prompt, message, last) = draft(&session, texts, question);
                if let Some(before) = before {
                    prop_assert!(prompt.starts_with(&before), "{prompt:?} after {before:?}");
                }
                session.add(message.clone(), answer.clone(), last);
                let mut again = session.clone();
                again.undo();
                prop_assert_eq!(&draft(&again, texts, question).0, &prompt);
                before = Some(format!("{prompt}<\"assistant\">{answer}</>"));
            }
        }
    }

    #[test]
    fn a_session_is_bounded() {
        let mut session = Session::default();
        for i in 0..100 {
            session.add(format!("question {i}"), "x".repeat(3000), i);
            assert!(session.turns.len() <= Session::MOST_TURNS && session.bytes() <= Session::MOST_BYTES);
            assert_eq!(session.turns.last().unwrap().0, format!("question {i}"));
        }
        session.add("big".into(), "x".repeat(200 << 10), 100);
        assert_eq!((session.turns.len(), session.evidence), (1, 100));
    }

    #[test]
    fn questions() {
        assert_eq!(normalise(" Is  it Safe ?"), normalise("is it safe"));
        assert_ne!(AnswerKey::new(["a", "bc"]), AnswerKey::new(["ab", "c"]));
    }

    #[test]
    fn conversations_are_whose_they_are() {
        let (tenant, shopper) = (Tenant::default(), |name: &str| Shopper(name.into()));
        let key = |name: &str| SessionKey::new(&tenant, "s", Some(&shopper(name)));
        assert_ne!(key("a"), key("b"));
        assert_eq!(key("a").guest(), Some(SessionKey::new(&tenant, "s", None)));
        assert_eq!((key("").guest(), key("a").session()), (None, "s"));
        assert!(!format!("{:?}", key("secret")).contains("secret"));
    }
}
