//! Keeps text that users wrote from turning into the markers that structure a conversation.
//!
//! A chat template mixes its own markers (`<|im_start|>`) with what users wrote, and the tokenizer sees one string. So
//! before rendering, what spells a marker in a user's string is *disguised*: its characters are replaced by private-use
//! characters that occur nowhere in the input. The template's own markers are then the only ones the tokenizer can
//! find, and once it has found them the disguise is taken off and the rest is ordinary text. Text without markers is
//! never touched, so templates that look into honest messages see them as they are.

use super::automaton::{Automaton, Position};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The added tokens of a tokenizer, as strings to look for.
#[derive(Debug)]
pub(super) struct Markers {
    automaton: Automaton,
    tokens: Vec<(String, bool)>,
    /// Every beginning and every end of a special token, short of all of it.
    prefixes: HashSet<String>,
    suffixes: HashSet<String>,
    longest: usize,
    /// The distinct characters of all markers.
    alphabet: BTreeSet<char>,
}

impl Markers {
    /// Each token with whether it is special.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (&'a str, bool)>) -> Self {
        // Runs of white space are vocabulary, not markers.
        let tokens = tokens.filter(|(token, special)| *special || !token.trim().is_empty());
        let tokens: Vec<_> = tokens.map(|(token, special)| (token.to_owned(), special)).collect();
        let specials = || tokens.iter().filter(|(_, special)| *special).map(|(token, _)| token);
        let cuts = |token: &String| token.char_indices().skip(1).map(|(at, _)| at).collect::<Vec<_>>();
        Self {
            automaton: Automaton::new(tokens.iter().map(|(token, _)| token.as_str())),
            prefixes: specials().flat_map(|t| cuts(t).into_iter().map(|at| t[..at].to_owned())).collect(),
            suffixes: specials().flat_map(|t| cuts(t).into_iter().map(|at| t[at..].to_owned())).collect(),
            longest: specials().map(String::len).max().unwrap_or(0),
            alphabet: tokens.iter().flat_map(|(token, _)| token.chars()).collect(),
            tokens,
        }
    }
}

/// A one-to-one replacement of the characters of markers by private-use ones.
#[derive(Debug)]
pub(super) struct Disguise {
    on: HashMap<char, char>,
    off: HashMap<char, char>,
    /// Whether the template writes a token that is not special, once it was looked for.
    written: HashMap<usize, bool>,
}

/// The two private-use planes: nothing that people write.
const PRIVATE: [std::ops::RangeInclusive<char>; 2] = ['\u{f0000}'..='\u{ffffd}', '\u{100000}'..='\u{10fffd}'];

impl Disguise {
    /// Chooses characters that occur in none of `inputs`, or `None` if these leave too few.
    pub(super) fn new<'a>(markers: &Markers, inputs: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let private = |char: &char| PRIVATE.iter().any(|plane| plane.contains(char));
        let used: HashSet<char> = inputs.into_iter().flat_map(str::chars).filter(private).collect();
        let mut free = PRIVATE.into_iter().flatten().filter(|char| !used.contains(char));
        let mut on = HashMap::new();
        for &char in &markers.alphabet {
            on.insert(char, free.next()?);
        }
        let off = on.iter().map(|(&plain, &private)| (private, plain)).collect();
        Some(Self { on, off, written: HashMap::new() })
    }

    /// `text` with every special token in it disguised, and every other added token that is found in `template`, where
    /// one is given (the same in all calls). With `borders`, also what could become a special token together with the
    /// text before or after it. `None` if there is nothing to disguise.
    pub(super) fn apply(
        &mut self,
        markers: &Markers,
        text: &str,
        borders: bool,
        template: Option<&str>,
    ) -> Option<String> {
        // Byte ranges of `text`, in the order of their ends.
        let mut spans: Vec<(usize, usize)> = Vec::new();
        let lengths = || (1..=markers.longest.min(text.len())).rev();
        // White space alone is no sign of a marker, and templates trim it.
        let begins = |part: Option<&str>, cuts: &HashSet<String>| {
            borders && part.is_some_and(|part| cuts.contains(part) && !part.trim().is_empty())
        };
        if let Some(length) = lengths().find(|&n| begins(text.get(..n), &markers.suffixes)) {
            spans.push((0, length));
        }
        let mut at = Position::default();
        for (index, &byte) in text.as_bytes().iter().enumerate() {
            at = markers.automaton.step(at, byte);
            let Some(found) = markers.automaton.found(at) else { continue };
            let (token, special) = &markers.tokens[found.pattern];
            let written = &mut self.written;
            let mut in_template = |source: &str| {
                *written.entry(found.pattern).or_insert_with(|| source.contains(token.as_str()))
            };
            if *special || template.is_some_and(&mut in_template) {
                spans.push((index + 1 - found.length, index + 1));
            }
        }
        if let Some(length) = lengths().find(|&n| begins(text.get(text.len() - n..), &markers.prefixes)) {
            spans.push((text.len() - length, text.len()));
        }
        if spans.is_empty() {
            return None;
        }
        spans.sort_unstable();
        let (mut out, mut done) = (String::with_capacity(text.len()), 0);
        for (start, end) in spans {
            out.push_str(&text[done..start.max(done)]);
            let span = &text[start.max(done)..end.max(done)];
            let keep = |char: char| char.is_whitespace() && !span.trim().is_empty();
            out.extend(span.chars().map(|char| match self.on.get(&char) {
                Some(&private) if !keep(char) => private,
                _ => char,
            }));
            done = done.max(end);
        }
        out.push_str(&text[done..]);
        Some(out)
    }

    /// The character itself, or the one it stands for.
    pub(super) fn restore(&self, char: char) -> char {
        self.off.get(&char).copied().unwrap_or(char)
    }

    /// The text without disguise.
    pub(super) fn take_off(&self, text: &str) -> String {
        text.chars().map(|char| self.restore(char)).collect()
    }
}
