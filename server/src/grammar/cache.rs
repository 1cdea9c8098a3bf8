//! What was compiled, the least recently used first to go.

use std::collections::HashMap;

use llguidance::Matcher;

use super::Grammar;

/// What is kept at most, by [`weight`].
const MAX_BYTES: usize = 64 << 20;

/// A guess at what a compiled grammar takes, which was not measured: the compiler does not tell.
fn weight(grammar: &Grammar) -> usize {
    (96 << 10) + 320 * grammar.len()
}

#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<Grammar, (Matcher, u64)>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    /// A matcher of its own, at the grammar's start.
    pub(super) fn get(&mut self, grammar: &Grammar) -> Option<Matcher> {
        self.clock += 1;
        let (matcher, used) = self.entries.get_mut(grammar)?;
        *used = self.clock;
        Some(matcher.deep_clone())
    }

    pub(super) fn insert(&mut self, grammar: Grammar, matcher: Matcher) {
        let weight = weight(&grammar);
        self.clock += 1;
        if weight > MAX_BYTES / 4 || self.entries.contains_key(&grammar) {
            return;
        }
        while self.bytes + weight > MAX_BYTES {
            let oldest =
                self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(grammar, _)| grammar.clone());
            let Some(oldest) = oldest else { break };
            self.bytes -= self::weight(&oldest);
            self.entries.remove(&oldest);
        }
        self.bytes += weight;
        self.entries.insert(grammar, (matcher, self.clock));
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    #[cfg(test)]
    pub(super) const LIMIT: usize = MAX_BYTES;
}
