//! What has been voted on answers of late, and whether a request changes it. Everything here can be had again from the
//! records, in their order.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::record::{Forget, Implicit, Millis, Opinion, Reason, Selector, Vote};

/// What somebody thinks of a part of an answer: the last vote, and all that was observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartState {
    /// The last vote.
    pub value: Opinion,
    /// Its reasons.
    pub reasons: std::collections::BTreeSet<Reason>,
    /// Its comment.
    pub comment: Option<String>,
    /// What was observed.
    pub implicit: Implicit,
    /// When it last changed.
    pub at: Millis,
    /// Requests that may be repeated: key and content. The last few.
    #[serde(skip)]
    seen: VecDeque<(String, Content)>,
    /// Who, as far as known.
    #[serde(skip)]
    user: String,
}

impl Default for PartState {
    fn default() -> Self {
        PartState {
            value: Opinion::None,
            reasons: Default::default(),
            comment: None,
            implicit: Implicit::default(),
            at: 0,
            seen: VecDeque::new(),
            user: String::new(),
        }
    }
}

type Content = [u8; 16];

/// What a request says, apart from when.
fn content(vote: &Vote) -> Content {
    let said = (&vote.value, &vote.reasons, &vote.comment, &vote.implicit);
    let json = serde_json::to_vec(&said).unwrap_or_else(|_| unreachable!("no maps"));
    let mut content = [0; 16];
    content.copy_from_slice(&Sha256::digest(json)[..16]);
    content
}

impl PartState {
    const MOST_KEYS: usize = 16;

    /// Adds a vote. A vote replaces the one before, with its reasons and comment; observations add up.
    pub fn add(&mut self, vote: &Vote) {
        if let Some(value) = vote.value {
            self.value = value;
            self.reasons.clone_from(&vote.reasons);
            self.comment.clone_from(&vote.comment);
        }
        self.implicit.add(&vote.implicit);
        self.at = vote.at;
        self.user.clone_from(&vote.user);
        if let Some(key) = &vote.key {
            self.seen.truncate(Self::MOST_KEYS - 1);
            self.seen.push_front((key.clone(), content(vote)));
        }
    }
}

/// What becomes of a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// It is new.
    Add,
    /// It was done before, or says nothing new.
    Known(PartState),
    /// Its key was used for something else.
    Conflict,
    /// The answer is gone.
    Forgotten,
    /// Too many parts of this answer have votes.
    TooMany,
}

#[derive(Debug, Default)]
struct Entry {
    at: Millis,
    parts: BTreeMap<String, PartState>,
    forgotten: bool,
}

/// Votes by answer.
#[derive(Debug, Default)]
pub(crate) struct Votes(HashMap<String, Entry>);

/// How to take a vote back that could not be stored.
pub(crate) struct Undo {
    message: String,
    part: String,
    before: Option<PartState>,
}

impl Votes {
    const MOST_PARTS: usize = 64;

    pub(crate) fn decide(&self, vote: &Vote) -> Decision {
        let Some(entry) = self.0.get(&vote.message) else { return Decision::Add };
        if entry.forgotten {
            return Decision::Forgotten;
        }
        let Some(part) = entry.parts.get(&vote.part) else {
            return if entry.parts.len() < Self::MOST_PARTS { Decision::Add } else { Decision::TooMany };
        };
        if let Some(key) = &vote.key
            && let Some((_, before)) = part.seen.iter().find(|(seen, _)| seen == key)
        {
            return if *before == content(vote) { Decision::Known(part.clone()) } else { Decision::Conflict };
        }
        let mut after = part.clone();
        after.add(&Vote { at: part.at, user: part.user.clone(), key: None, ..vote.clone() });
        if after == *part { Decision::Known(after) } else { Decision::Add }
    }

    pub(crate) fn add(&mut self, vote: &Vote) -> (PartState, Undo) {
        let entry = self.0.entry(vote.message.clone()).or_default();
        entry.at = entry.at.max(vote.at);
        let before = entry.parts.get(&vote.part).cloned();
        let part = entry.parts.entry(vote.part.clone()).or_default();
        part.add(vote);
        (part.clone(), Undo { message: vote.message.clone(), part: vote.part.clone(), before })
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        let Some(entry) = self.0.get_mut(&undo.message) else { return };
        match undo.before {
            Some(before) => drop(entry.parts.insert(undo.part, before)),
            None => drop(entry.parts.remove(&undo.part)),
        }
        if entry.parts.is_empty() && !entry.forgotten {
            self.0.remove(&undo.message);
        }
    }

    /// The votes on an answer; `None` where it is gone.
    pub(crate) fn read(&self, message: &str) -> Option<BTreeMap<String, PartState>> {
        match self.0.get(message) {
            Some(entry) if entry.forgotten => None,
            Some(entry) => Some(entry.parts.clone()),
            None => Some(BTreeMap::new()),
        }
    }

    pub(crate) fn forget(&mut self, forget: &Forget) {
        let entry = || Entry { at: forget.at, forgotten: true, ..Entry::default() };
        for message in &forget.messages {
            self.0.insert(message.clone(), entry());
        }
        if let Selector::User(user) = &forget.whose {
            self.0.values_mut().for_each(|entry| entry.parts.retain(|_, part| part.user != *user));
        }
    }

    /// Drops what is older: no token lets anybody ask for it.
    pub(crate) fn expire(&mut self, before: Millis) {
        self.0.retain(|_, entry| entry.at >= before);
    }
}

/// What is gone, and by which number: records before it go, those after it stay.
#[derive(Debug, Default)]
pub(crate) struct Forgotten {
    messages: HashMap<String, u64>,
    users: HashMap<String, u64>,
    sessions: HashMap<String, u64>,
}

impl Forgotten {
    pub(crate) fn add(&mut self, seq: u64, forget: &Forget) {
        match &forget.whose {
            Selector::User(user) => drop(self.users.insert(user.clone(), seq)),
            Selector::Session(session) => drop(self.sessions.insert(session.clone(), seq)),
            // It is among the messages.
            Selector::Message(_) => {}
        }
        for message in &forget.messages {
            self.messages.insert(message.clone(), seq);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.users.is_empty() && self.sessions.is_empty()
    }

    /// Whether a record of this number and of these names is gone.
    pub(crate) fn covers(&self, seq: u64, message: &str, user: &str, session: &str) -> bool {
        let before = |map: &HashMap<String, u64>, name: &str| map.get(name).is_some_and(|&limit| seq < limit);
        before(&self.messages, message)
            || (!user.is_empty() && before(&self.users, user))
            || (!session.is_empty() && before(&self.sessions, session))
    }
}

/// The answers of a selector among records that come one by one.
pub(crate) fn matches(whose: &Selector, message: &str, user: &str, session: &str) -> bool {
    match whose {
        Selector::User(wanted) => user == wanted,
        Selector::Session(wanted) => session == wanted,
        Selector::Message(wanted) => message == wanted,
    }
}

/// Distinct answers.
pub(crate) type Messages = HashSet<String>;

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(value: Opinion, key: Option<&str>) -> Vote {
        Vote {
            at: 1,
            message: "m".into(),
            part: "answer".into(),
            value: Some(value),
            key: key.map(str::to_owned),
            ..Vote::default()
        }
    }

    #[test]
    fn the_last_vote_wins_and_a_repeated_one_does_not() {
        let mut votes = Votes::default();
        let (like, dislike) = (vote(Opinion::Like, Some("1")), vote(Opinion::Dislike, Some("2")));
        assert_eq!(votes.decide(&like), Decision::Add);
        votes.add(&like);
        votes.add(&dislike);
        // The first comes again, late: what counts is still the second.
        let Decision::Known(state) = votes.decide(&like) else { panic!() };
        assert_eq!(state.value, Opinion::Dislike);
        assert_eq!(votes.decide(&vote(Opinion::None, Some("1"))), Decision::Conflict);
        // Without a key a request stands for what it says.
        assert!(matches!(votes.decide(&vote(Opinion::Dislike, None)), Decision::Known(_)));
        assert_eq!(votes.decide(&vote(Opinion::Like, None)), Decision::Add);
    }

    #[test]
    fn observations_add_up_beside_the_vote() {
        let mut votes = Votes::default();
        votes.add(&vote(Opinion::Like, None));
        let seen = |id: &str, dwell_ms| {
            let implicit = Implicit { clicked_refs: [id.to_owned()].into(), dwell_ms, ..Implicit::default() };
            Vote { message: "m".into(), part: "answer".into(), implicit, ..Vote::default() }
        };
        votes.add(&seen("a", 10));
        let (state, undo) = votes.add(&seen("b", 5));
        assert_eq!(
            (state.value, state.implicit.dwell_ms, state.implicit.clicked_refs.len()),
            (Opinion::Like, 10, 2)
        );
        assert!(matches!(votes.decide(&seen("b", 7)), Decision::Known(_)));
        votes.undo(undo);
        assert_eq!(votes.decide(&seen("b", 7)), Decision::Add);
    }

    #[test]
    fn undo_is_exact() {
        let mut votes = Votes::default();
        let (_, first) = votes.add(&vote(Opinion::Like, Some("1")));
        let (_, second) = votes.add(&vote(Opinion::Dislike, Some("2")));
        votes.undo(second);
        assert_eq!(votes.decide(&vote(Opinion::Dislike, Some("2"))), Decision::Add);
        assert_eq!(votes.read("m").unwrap()["answer"].value, Opinion::Like);
        votes.undo(first);
        assert!(votes.0.is_empty());
    }

    #[test]
    fn what_is_forgotten_stays_so_until_nobody_can_ask() {
        let mut votes = Votes::default();
        votes.add(&vote(Opinion::Like, None));
        let whose = Selector::Message("m".into());
        votes.forget(&Forget { at: 5, whose, messages: vec!["m".into()] });
        assert_eq!((votes.read("m"), votes.decide(&vote(Opinion::Like, None))), (None, Decision::Forgotten));
        votes.expire(6);
        assert!(votes.0.is_empty());
    }
}
