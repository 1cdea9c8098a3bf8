//! Whether what was said stands in what was cited, sentence by sentence.
//!
//! A sentence is *cited* where it names a passage. It is *supported* where, besides, every number and colour in it stands
//! in a passage that it names (or in the name of a product), at least a fifth of its content words do, by their stems, and
//! a leading yes or no is not the opposite of what each of these passages begins with. That is cheap enough for every
//! answer and cannot prove anything: it finds numbers that were made up and citations of passages about other things.
//! Judged by hetPQA's answers, written from one passage each, against the same answers under other passages
//! (`answers_are_told_from_those_of_other_passages`).

use std::collections::BTreeSet;

use rust_stemmers::{Algorithm, Stemmer};

/// Sentences of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sentences {
    /// All of them.
    pub total: u32,
    /// Those with a citation.
    pub cited: u32,
    /// Those that stand in what they cite.
    pub supported: u32,
}

/// Of a sentence's content words, one in so many must stand in what it cites.
const SHARED: usize = 5;

/// What a sentence or a passage says that can be compared.
#[derive(Default)]
struct Claims {
    numbers: BTreeSet<String>,
    colours: BTreeSet<&'static str>,
    stems: BTreeSet<String>,
    /// A leading yes or no.
    verdict: Option<bool>,
}

const NUMBERS: [&str; 11] =
    ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
const COLOURS: [&str; 21] = [
    "black",
    "white",
    "red",
    "blue",
    "green",
    "yellow",
    "orange",
    "purple",
    "pink",
    "brown",
    "grey",
    "silver",
    "gold",
    "golden",
    "beige",
    "navy",
    "turquoise",
    "teal",
    "violet",
    "ivory",
    "cream",
];
/// Words that say nothing of a product, as far as they have three letters.
#[rustfmt::skip]
const COMMON: [&str; 88] = [
    "the", "are", "was", "were", "been", "being", "its", "this", "that", "these", "those", "they", "them", "there",
    "she", "you", "our", "their", "your", "his", "her", "for", "from", "with", "and", "but", "not", "yes", "can", "could",
    "will", "would", "should", "may", "might", "does", "did", "has", "have", "had", "very", "just", "about", "than",
    "then", "also", "too", "only", "some", "any", "all", "more", "most", "other", "into", "out", "over", "when", "what",
    "which", "who", "how", "because", "while", "item", "product", "products", "use", "used", "using", "one", "get", "like",
    "reviews", "review", "customer", "customers", "according", "say", "says", "said", "mention", "note", "both", "each",
    "such", "well", "however",
];

impl Claims {
    fn of(text: &str, stemmer: &Stemmer) -> Claims {
        let text = text.to_lowercase();
        let mut claims = Claims::default();
        let mut rest = &text[..];
        let mut first = true;
        while let Some(c) = rest.chars().next() {
            let run = |within: &dyn Fn(char) -> bool| rest.find(|c| !within(c)).unwrap_or(rest.len());
            let taken = if c.is_ascii_digit() {
                let end = run(&|c| c.is_ascii_digit() || matches!(c, '.' | ','));
                claims.numbers.insert(number(&rest[..end]));
                end
            } else if c.is_alphabetic() {
                let end = run(&char::is_alphabetic);
                claims.word(&rest[..end], first, stemmer);
                first = false;
                end
            } else {
                c.len_utf8()
            };
            rest = &rest[taken..];
        }
        claims
    }

    fn word(&mut self, word: &str, first: bool, stemmer: &Stemmer) {
        match word {
            "yes" if first => self.verdict = Some(true),
            "no" if first => self.verdict = Some(false),
            _ => {}
        }
        let word = if word == "gray" { "grey" } else { word };
        if let Some(at) = NUMBERS.iter().position(|number| *number == word) {
            self.numbers.insert((at + 2).to_string());
        } else if let Some(colour) = COLOURS.iter().find(|colour| **colour == word) {
            self.colours.insert(colour);
        } else if word.len() >= 3 && !COMMON.contains(&word) {
            self.stems.insert(stemmer.stem(word).into_owned());
        }
    }

    fn add(&mut self, other: &Claims) {
        self.numbers.extend(other.numbers.iter().cloned());
        self.colours.extend(&other.colours);
        self.stems.extend(other.stems.iter().cloned());
    }

    /// Whether all of it stands in `cited`, numbers and colours perhaps in `names`.
    fn stand_in(&self, cited: &[Claims], names: &Claims) -> bool {
        let mut whole = Claims::default();
        cited.iter().for_each(|claims| whole.add(claims));
        let numbers = self.numbers.iter().all(|n| whole.numbers.contains(n) || names.numbers.contains(n));
        let colours = self.colours.iter().all(|c| whole.colours.contains(c) || names.colours.contains(c));
        // The name of what is spoken of supports nothing, and does not count against it either.
        let own = || self.stems.difference(&names.stems);
        let shared = own().filter(|stem| whole.stems.contains(*stem)).count();
        let contradicts =
            |claims: &Claims| matches!((self.verdict, claims.verdict), (Some(a), Some(b)) if a != b);
        let opposite = !cited.is_empty() && cited.iter().all(contradicts);
        numbers && colours && shared * SHARED >= own().count() && !opposite
    }
}

/// Digits without separators of thousands and what does not count: `1,000` is `1000`, `1.50` is `1.5`.
fn number(text: &str) -> String {
    let text = text.trim_end_matches(['.', ',']);
    let groups: Vec<&str> = text.split(',').collect();
    let thousands =
        groups.len() > 1 && groups[1..].iter().all(|group| group.split('.').next().unwrap_or("").len() == 3);
    let plain = if thousands { text.replace(',', "") } else { text.replace(',', ".") };
    let plain = match plain.contains('.') {
        true => plain.trim_end_matches('0').trim_end_matches('.'),
        false => &plain,
    };
    match plain.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}

/// Follows a text as it is shown, and holds each sentence against what it cites.
pub(super) struct Grounding<'a> {
    /// The text of a passage, by its number.
    quote: Box<dyn Fn(u32) -> Option<String> + Send + 'a>,
    stemmer: Stemmer,
    names: Claims,
    sentence: String,
    cited: BTreeSet<u32>,
    /// The number within brackets that are open.
    open: Option<String>,
    /// What ended the sentence, until it is known whether it did.
    stop: Option<char>,
    counts: Sentences,
}

impl<'a> Grounding<'a> {
    /// `names` are those of products, which may have numbers in them.
    pub(super) fn new(
        quote: impl Fn(u32) -> Option<String> + Send + 'a,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let stemmer = Stemmer::create(Algorithm::English);
        let mut all = Claims::default();
        names.into_iter().for_each(|name| all.add(&Claims::of(name, &stemmer)));
        Grounding {
            quote: Box::new(quote),
            stemmer,
            names: all,
            sentence: String::new(),
            cited: BTreeSet::new(),
            open: None,
            stop: None,
            counts: Sentences::default(),
        }
    }

    pub(super) fn push(&mut self, text: &str) {
        for c in text.chars() {
            match (&mut self.open, c) {
                (Some(number), '0'..='9') => number.push(c),
                (Some(number), _) => {
                    if let (']', Ok(number)) = (c, number.parse()) {
                        self.cited.insert(number);
                    }
                    self.open = None;
                }
                // A citation may follow the full stop.
                (None, '[') => self.open = Some(String::new()),
                (None, '\n') => self.stop = Some('\n'),
                (None, '.' | '!' | '?') => {
                    self.sentence.push(c);
                    self.stop = Some(c);
                }
                (None, _) if c.is_whitespace() => {
                    // Behind a space, a full stop was one.
                    self.stop = self.stop.map(|_| '\n');
                    self.sentence.push(' ');
                }
                (None, _) => {
                    if self.stop == Some('\n') && c.is_alphanumeric() {
                        self.close();
                    }
                    // Within a number or a name, it was none.
                    if self.stop != Some('\n') {
                        self.stop = None;
                    }
                    self.sentence.push(c);
                }
            }
        }
    }

    fn close(&mut self) {
        let sentence = std::mem::take(&mut self.sentence);
        let cited = std::mem::take(&mut self.cited);
        self.stop = None;
        if !sentence.contains(char::is_alphanumeric) {
            return;
        }
        self.counts.total += 1;
        if cited.is_empty() {
            return;
        }
        self.counts.cited += 1;
        let quotes: Vec<Claims> = cited
            .into_iter()
            .filter_map(|number| (self.quote)(number))
            .map(|quote| Claims::of(&quote, &self.stemmer))
            .collect();
        let claims = Claims::of(&sentence, &self.stemmer);
        self.counts.supported += u32::from(!quotes.is_empty() && claims.stand_in(&quotes, &self.names));
    }

    /// What became of the sentences.
    pub(super) fn finish(&mut self) -> Sentences {
        self.close();
        self.counts
    }
}

#[cfg(test)]
mod tests;
