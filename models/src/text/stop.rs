//! Stop strings: found in text that arrives in pieces, and never shown by mistake.

use super::automaton::{Automaton, Position};
use std::sync::Arc;

/// The stop strings of a request. Cheap to clone; one [`StopMatcher`] per generated sequence.
#[derive(Clone, Debug)]
pub struct StopStrings {
    automaton: Arc<Automaton>,
    include: bool,
}

impl StopStrings {
    /// Empty strings are ignored. `include_in_output`: whether the text ends with the stop string found or before it
    /// (vLLM's `include_stop_str_in_output`).
    pub fn new<S: AsRef<str>>(strings: &[S], include_in_output: bool) -> Self {
        let automaton = Arc::new(Automaton::new(strings.iter().map(AsRef::as_ref)));
        Self { automaton, include: include_in_output }
    }

    /// A search that has seen no text.
    pub fn matcher(&self) -> StopMatcher {
        StopMatcher {
            stops: self.clone(),
            at: Position::default(),
            text: String::new(),
            shown: 0,
            stopped: None,
        }
    }
}

/// Passes text on as soon as it can no longer belong to a stop string.
///
/// Of several stop strings the one that is complete first counts, and of those that end at the same byte the longest;
/// so the answer does not depend on how the text was cut into pieces. Time is linear in the text.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: StopStrings,
    at: Position,
    /// The end of the text so far; from `shown` on it is the beginning of a stop string.
    text: String,
    shown: usize,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// Takes the next piece of text; gives the text that may be shown and, once a stop string is complete, its index in
    /// the list given. After a match every further piece is dropped.
    pub fn push(&mut self, text: &str) -> (String, Option<usize>) {
        if self.stopped.is_some() {
            return (String::new(), self.stopped);
        }
        let before = self.text.len();
        self.text.push_str(text);
        for (index, &byte) in text.as_bytes().iter().enumerate() {
            self.at = self.stops.automaton.step(self.at, byte);
            if let Some(found) = self.stops.automaton.found(self.at) {
                let end = before + index + 1;
                self.stopped = Some(found.pattern);
                self.text.truncate(if self.stops.include { end } else { end - found.length });
                return (self.finish(), self.stopped);
            }
        }
        // A stop string begins at a character boundary, so what may be one does too.
        let safe = self.text.len() - self.stops.automaton.held(self.at);
        let show = self.text[self.shown..safe].to_owned();
        self.shown = safe;
        // What is held moves only once as much text has passed: linear however long the stop strings are.
        if self.shown * 2 >= self.text.len() {
            self.text.drain(..self.shown);
            self.shown = 0;
        }
        (show, None)
    }

    /// The text still held back, now that none follows.
    pub fn finish(&mut self) -> String {
        self.at = Position::default();
        let rest = self.text.split_off(self.shown);
        self.text.clear();
        self.shown = 0;
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tries every end and, for it, every stop string.
    fn naive(text: &str, stops: &[String], include: bool) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let found = stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
            let found = found.filter(|(_, s)| text.as_bytes()[..end].ends_with(s.as_bytes()));
            if let Some((index, stop)) = found.rev().max_by_key(|(_, s)| s.len()) {
                return (text[..if include { end } else { end - stop.len() }].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_search_however_the_text_is_cut(
            pieces in prop::collection::vec("[abé ]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            include: bool,
        ) {
            let text = pieces.concat();
            let mut matcher = StopStrings::new(&stops, include).matcher();
            let (mut shown, mut stopped) = (String::new(), None);
            for piece in &pieces {
                let (safe, found) = matcher.push(piece);
                shown.push_str(&safe);
                stopped = stopped.or(found);
                let (full, _) = naive(&text, &stops, include);
                prop_assert!(full.starts_with(&shown), "showed {shown:?} of {full:?}");
            }
            if stopped.is_none() {
                shown.push_str(&matcher.finish());
            }
            prop_assert_eq!((shown, stopped), naive(&text, &stops, include));
        }

        #[test]
        fn holds_back_only_what_may_become_a_stop_string(text in "[ab]{0,12}", stop in "[ab]{1,4}") {
            let mut matcher = StopStrings::new(std::slice::from_ref(&stop), false).matcher();
            let (shown, stopped) = matcher.push(&text);
            if stopped.is_none() {
                let held = &text[shown.len()..];
                prop_assert!(stop.starts_with(held));
                let longer = text.char_indices().map(|(at, _)| &text[at..]).find(|s| stop.starts_with(*s));
                prop_assert_eq!(longer.unwrap_or(""), held);
            }
        }
    }

    #[test]
    fn time_is_linear_in_a_text_that_keeps_almost_matching() {
        let stop = "a".repeat(2000) + "b";
        let mut matcher = StopStrings::new(&[stop], false).matcher();
        let started = std::time::Instant::now();
        let shown: usize = (0..400_000).map(|_| matcher.push("a").0.len()).sum();
        assert_eq!(shown + matcher.finish().len(), 400_000);
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }
}
