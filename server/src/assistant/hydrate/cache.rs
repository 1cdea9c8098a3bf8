//! What a source has said, in bounded number and for bounded time; and whether it is worth asking.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use tokio::time::Instant;

use super::Policy;

/// The last thing that was said of a key.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// `None` where the key does not exist.
    pub(super) value: Option<Arc<Value>>,
    pub(super) at: Instant,
    pub(super) as_of: SystemTime,
}

/// Entries by key; the ones that were written longest ago make room.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<String, Entry>,
    /// Every write, oldest first; a key that was written again is there twice.
    writes: VecDeque<(Instant, String)>,
}

impl Cache {
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn put(&mut self, key: String, entry: Entry, policy: &Policy) {
        self.writes.push_back((entry.at, key.clone()));
        self.entries.insert(key, entry);
        // Written-again keys leave their old mark behind: it is dropped before marks are twice the entries.
        while self.entries.len() > policy.remembered || self.writes.len() > policy.remembered.max(1) * 2 {
            let Some((at, key)) = self.writes.pop_front() else { break };
            if self.entries.get(&key).is_some_and(|entry| entry.at == at) {
                self.entries.remove(&key);
            }
        }
    }
}

/// A circuit breaker: closed, open until a moment, or waiting for the one batch that tries.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
    trying: bool,
}

/// Whether a batch may be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leave {
    Yes,
    /// It is the one that finds out whether the source is back.
    Trial,
    No,
}

impl Breaker {
    pub(super) fn ask(&mut self, now: Instant) -> Leave {
        match self.open_until {
            None => Leave::Yes,
            Some(until) if now < until || self.trying => Leave::No,
            Some(_) => {
                self.trying = true;
                Leave::Trial
            }
        }
    }

    /// Whether an ask at this moment would be refused.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.open_until.is_some_and(|until| now < until || self.trying)
    }

    /// Lets another batch try.
    pub(super) fn release(&mut self) {
        self.trying = false;
    }

    pub(super) fn report(&mut self, failed: bool, now: Instant, policy: &Policy) {
        self.trying = false;
        if !failed {
            *self = Breaker::default();
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= policy.failures.max(1) {
            self.open_until = Some(now + policy.cooldown);
        }
    }
}
