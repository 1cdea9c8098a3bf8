//! Words: which documents have the words of a query, by BM25F (Robertson, Zaragoza and Taylor 2004; Robertson and
//! Zaragoza 2009, section 3.6). A document's fields are weighted before saturation, so that a word in the title and
//! in the description counts as one word seen often, not as two.

use std::collections::{BTreeMap, BTreeSet};

use rust_stemmers::{Algorithm, Stemmer};
use rustc_hash::FxHashMap;

/// How fast repetitions of a word stop to count. Lower than for articles: names of goods repeat a word to be found.
pub(crate) const K1: f32 = 0.8;
/// How much of a field's length is held against it.
pub(crate) const B: f32 = 0.75;

/// An inverted index.
pub(crate) struct Lexical {
    terms: FxHashMap<Box<str>, u32>,
    postings: Vec<Vec<Posting>>,
    documents: usize,
}

/// A document that has a word, and how often: over its fields, weighted and normalised by length.
#[derive(Clone, Copy)]
struct Posting {
    document: u32,
    frequency: f32,
}

/// Collects documents, numbered from 0 in the order in which they come.
pub(crate) struct Builder {
    weights: Vec<f32>,
    stemmer: Stemmer,
    stems: FxHashMap<Box<str>, u32>,
    /// For each term, (document, field, occurrences).
    found: Vec<Vec<(u32, u8, u16)>>,
    /// Words of each field of each document.
    lengths: Vec<u32>,
    documents: u32,
}

impl Builder {
    /// For documents of so many fields, with their weights.
    pub(crate) fn new(weights: &[f32]) -> Self {
        Builder {
            weights: weights.to_vec(),
            stemmer: Stemmer::create(Algorithm::English),
            stems: FxHashMap::default(),
            found: Vec::new(),
            lengths: Vec::new(),
            documents: 0,
        }
    }

    /// Adds a document by its fields.
    pub(crate) fn add(&mut self, fields: &[&str]) {
        let document = self.documents;
        self.documents += 1;
        for (field, text) in fields.iter().enumerate() {
            let mut length = 0;
            for term in terms(&self.stemmer, text) {
                length += 1;
                let next = self.found.len() as u32;
                let id = *self.stems.entry(term.into()).or_insert(next);
                if id == next {
                    self.found.push(Vec::new());
                }
                let found = &mut self.found[id as usize];
                match found.last_mut() {
                    Some((d, f, count)) if (*d, *f) == (document, field as u8) => {
                        *count = count.saturating_add(1);
                    }
                    _ => found.push((document, field as u8, 1)),
                }
            }
            self.lengths.push(length);
        }
    }

    pub(crate) fn finish(self) -> Lexical {
        let fields = self.weights.len();
        let mean = |field: usize| {
            let total: u64 = self.lengths.iter().skip(field).step_by(fields).map(|l| u64::from(*l)).sum();
            (total as f32 / self.documents.max(1) as f32).max(1.0)
        };
        let means: Vec<f32> = (0..fields).map(mean).collect();
        let postings = self.found.iter().map(|found| {
            let mut postings: Vec<Posting> = Vec::new();
            for (document, field, count) in found {
                let field = usize::from(*field);
                let length = self.lengths[*document as usize * fields + field] as f32;
                let frequency =
                    self.weights[field] * f32::from(*count) / (1.0 - B + B * length / means[field]);
                match postings.last_mut() {
                    Some(last) if last.document == *document => last.frequency += frequency,
                    _ => postings.push(Posting { document: *document, frequency }),
                }
            }
            postings
        });
        Lexical { postings: postings.collect(), terms: self.stems, documents: self.documents as usize }
    }
}

impl Lexical {
    /// The score of every document; 0 where it has none of the query's words.
    pub(crate) fn scores(&self, query: &str) -> Vec<f32> {
        let mut scores = vec![0.0; self.documents];
        for term in query_terms(query) {
            let Some(id) = self.terms.get(term.as_str()) else { continue };
            let postings = &self.postings[*id as usize];
            let (n, df) = (self.documents as f64, postings.len() as f64);
            let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln() as f32;
            for Posting { document, frequency } in postings {
                scores[*document as usize] += idf * frequency * (K1 + 1.0) / (frequency + K1);
            }
        }
        scores
    }
}

/// The terms of a query, each once and in order. Every implementation sums in this order, and takes the logarithm in
/// double precision: then equal documents score the same bits everywhere.
pub(crate) fn query_terms(query: &str) -> BTreeSet<String> {
    terms(&Stemmer::create(Algorithm::English), query).collect()
}

/// How often each term of a document is in each of its fields, and how many words each field has.
pub(crate) fn counts(stemmer: &Stemmer, fields: &[String]) -> (BTreeMap<String, Vec<u16>>, Vec<u32>) {
    let (mut found, mut lengths) = (BTreeMap::new(), vec![0; fields.len()]);
    for (field, text) in fields.iter().enumerate() {
        for term in terms(stemmer, text) {
            lengths[field] += 1;
            let counts = found.entry(term).or_insert_with(|| vec![0u16; fields.len()]);
            counts[field] = counts[field].saturating_add(1);
        }
    }
    (found, lengths)
}

/// The different terms of a text that have more than two letters or digits.
pub(crate) fn content_words(text: &str) -> BTreeSet<String> {
    terms(&Stemmer::create(Algorithm::English), text).filter(|term| term.chars().count() > 2).collect()
}

/// Words: runs of letters and of digits in lower case, without accents on Latin letters, stemmed as English.
fn terms<'a>(stemmer: &'a Stemmer, text: &'a str) -> impl Iterator<Item = String> + 'a {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(|word| {
        let lower: String = word.chars().flat_map(char::to_lowercase).map(without_accent).collect();
        // What is longer is no word.
        match lower.len() {
            0..=40 => stemmer.stem(&lower).into_owned(),
            _ => lower.chars().take(40).collect(),
        }
    })
}

fn without_accent(c: char) -> char {
    match c {
        'à'..='å' => 'a',
        'ç' => 'c',
        'è'..='ë' => 'e',
        'ì'..='ï' => 'i',
        'ñ' => 'n',
        'ò'..='ö' | 'ø' => 'o',
        'ù'..='ü' => 'u',
        'ý' | 'ÿ' => 'y',
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(documents: &[[&str; 2]]) -> Lexical {
        let mut builder = Builder::new(&[2.0, 1.0]);
        documents.iter().for_each(|fields| builder.add(fields));
        builder.finish()
    }

    /// BM25F by its formula, over documents as lists of words.
    fn formula(documents: &[[&str; 2]], query: &[&str]) -> Vec<f32> {
        let words =
            |text: &str| text.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let mean = |f: usize| {
            let total: usize = documents.iter().map(|d| words(d[f]).len()).sum();
            (total as f32 / documents.len() as f32).max(1.0)
        };
        let frequency = |d: &[&str; 2], term: &str| -> f32 {
            [2.0, 1.0]
                .iter()
                .enumerate()
                .map(|(f, weight)| {
                    let all = words(d[f]);
                    let count = all.iter().filter(|word| *word == term).count() as f32;
                    weight * count / (1.0 - B + B * all.len() as f32 / mean(f))
                })
                .sum()
        };
        let n = documents.len() as f32;
        let score = |d: &[&str; 2]| -> f32 {
            query
                .iter()
                .map(|term| {
                    let df = documents.iter().filter(|d| frequency(d, term) > 0.0).count() as f32;
                    let f = frequency(d, term);
                    (1.0 + (n - df + 0.5) / (df + 0.5)).ln() * f * (K1 + 1.0) / (f + K1)
                })
                .sum()
        };
        documents.iter().map(score).collect()
    }

    #[test]
    fn scores_are_those_of_the_formula() {
        let documents = [
            ["iron pan", "a pan of iron for the stove"],
            ["steel pan", ""],
            ["", "iron iron iron"],
            ["wool hat", "warm hat"],
        ];
        let index = index(&documents);
        for query in [&["iron"][..], &["pan", "iron"], &["hat"], &["absent"], &[]] {
            let got = index.scores(&query.join(" "));
            for (got, want) in got.iter().zip(formula(&documents, query)) {
                assert!((got - want).abs() < 1e-5, "{query:?}: {got} and not {want}");
            }
        }
    }

    #[test]
    fn words_meet_whatever_their_form() {
        let index = index(&[["Café-Röster", "washing dishwashers"], ["dv7-1211ea", ""]]);
        for (query, document) in [("CAFE", 0), ("roster", 0), ("dishwasher", 0), ("wash", 0), ("1211EA", 1)] {
            let scores = index.scores(query);
            assert!(scores[document] > 0.0 && scores[1 - document] == 0.0, "{query}: {scores:?}");
        }
        assert_eq!(index.scores("... !?"), [0.0, 0.0]);
    }
}
