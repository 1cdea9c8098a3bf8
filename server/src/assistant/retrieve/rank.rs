//! The order of passages: those that the lists found, by how likely each answers the question.
//!
//! A linear model over [`signals`](super::signals), learned from judged passages by `scripts/train-ranker` with the
//! listwise loss of ListNet (Cao et al. 2007). It sees some tens of passages that fused lists put first, so it costs
//! microseconds, and it needs nothing but the passages, the question and the two scores of the search: every
//! implementation of [`Retrieve`](crate::assistant::Retrieve) ranks by this code.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;

use super::signals::{Asked, Found, NAMES, Signals, signals};
use crate::assistant::source::{Evidence, Passage};

/// Passages that are ranked, at least: the first of the fused lists.
pub(crate) const RANKED: usize = 50;

/// A passage that a list found.
pub(crate) struct Candidate {
    pub(crate) passage: Arc<Passage>,
    /// BM25F; 0 where it has none of the question's words.
    pub(crate) words: f32,
    /// Cosine of the question and the passage, where both have a vector.
    pub(crate) meaning: Option<f32>,
    /// The same for the passage without its title, where that is another text.
    pub(crate) answer: Option<f32>,
}

/// The weight of each signal, by its name; one that is not named weighs nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Weights {
    /// Where meanings are at hand.
    meaning: BTreeMap<String, f32>,
    /// Where only words are.
    words: BTreeMap<String, f32>,
}

struct Model {
    meaning: Signals,
    words: Signals,
}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let weights: Weights =
        serde_json::from_str(include_str!("weights.json")).expect("the weights are well-formed");
    let in_order = |weights: &BTreeMap<String, f32>| {
        assert!(weights.keys().all(|name| NAMES.contains(&name.as_str())), "a weight of no signal");
        NAMES.map(|name| weights.get(name).copied().unwrap_or_default())
    };
    Model { meaning: in_order(&weights.meaning), words: in_order(&weights.words) }
});

/// The signals of passages that are ranked together.
pub(crate) fn all_signals(question: &str, candidates: &[Candidate]) -> Vec<Signals> {
    let asked = Asked::of(question);
    let most = candidates.iter().map(|candidate| candidate.words).fold(0.0, f32::max);
    // A text without a vector, as attributes of large catalogs are, is neither near nor far.
    let known = || candidates.iter().filter_map(|candidate| candidate.meaning);
    let mean = known().sum::<f32>() / known().count().max(1) as f32;
    let of = |candidate: &Candidate| {
        let meaning = candidate.meaning.unwrap_or(mean);
        let words = if most > 0.0 { candidate.words / most } else { 0.0 };
        let answer = candidate.answer.unwrap_or(meaning);
        signals(asked, &Found { passage: &candidate.passage, words, meaning, answer })
    };
    candidates.iter().map(of).collect()
}

/// The best passages for a question, equal ones by id.
pub(crate) fn rank(question: &str, candidates: Vec<Candidate>, limit: usize) -> Vec<Evidence> {
    let meant = candidates.iter().any(|candidate| candidate.meaning.is_some());
    let weights = if meant { &MODEL.meaning } else { &MODEL.words };
    let signals = all_signals(question, &candidates);
    let evidence = candidates.into_iter().zip(signals).map(|(candidate, signals)| {
        let score = weights.iter().zip(signals).map(|(weight, signal)| weight * signal).sum();
        Evidence { passage: candidate.passage, score }
    });
    let mut evidence: Vec<Evidence> = evidence.collect();
    let better = |a: &Evidence, b: &Evidence| -> Ordering {
        b.score.total_cmp(&a.score).then_with(|| a.passage.id.cmp(&b.passage.id))
    };
    evidence.sort_by(better);
    evidence.truncate(limit);
    evidence
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::assistant::source::Source;

    fn candidate(id: &str, source: Source, text: &str, words: f32, meaning: Option<f32>) -> Candidate {
        let passage = Passage {
            id: id.into(),
            product: Some("p".into()),
            source,
            text: text.into(),
            title: None,
            rating: None,
            helpful: None,
            date: None,
        };
        Candidate { passage: Arc::new(passage), words, meaning, answer: None }
    }

    #[test]
    fn weights_are_of_signals_and_say_that_near_is_good() {
        let at = |name: &str| NAMES.iter().position(|other| *other == name).unwrap();
        assert!(MODEL.meaning[at("meaning")] + MODEL.meaning[at("answer_meaning")] > 0.0);
        assert!(MODEL.meaning[at("words")] > 0.0 && MODEL.words[at("words")] > 0.0);
        // What meaning would be multiplied with is nothing where there is none.
        for name in ["meaning", "answer_meaning", "review_meaning", "qa_meaning"] {
            assert_eq!(MODEL.words[at(name)], 0.0, "{name}");
        }
    }

    #[test]
    fn an_answer_is_before_what_only_shares_the_words() {
        for meaning in [true, false] {
            let near = |cosine: f32| meaning.then_some(cosine);
            let found = vec![
                candidate("a", Source::Review, "Love it! Great gift.", 0.0, near(0.1)),
                candidate(
                    "b",
                    Source::Review,
                    "The pan is dishwasher safe, we wash it every day.",
                    4.0,
                    near(0.7),
                ),
                candidate("c", Source::Review, "Is the pan any good in the dishwasher?", 3.0, near(0.5)),
            ];
            let ranked = rank("Is the pan dishwasher safe?", found, 2);
            let ids: Vec<&str> = ranked.iter().map(|evidence| evidence.passage.id.as_str()).collect();
            assert_eq!(ids, ["b", "c"]);
        }
    }

    proptest! {
        /// In whatever order passages come, they leave in one order; all else equal, the nearer one is first.
        #[test]
        fn the_order_does_not_depend_on_the_order_before(
            scores in prop::collection::vec((0u8..4, prop::option::of(0u8..4)), 1..30),
            turn in 0usize..30,
        ) {
            let all = || -> Vec<Candidate> {
                let of = |(i, (words, meaning)): (usize, &(u8, Option<u8>))| {
                    let meaning = meaning.map(|meaning| f32::from(meaning) / 4.0);
                    candidate(&format!("{i:02}"), Source::Review, "It does.", f32::from(*words), meaning)
                };
                scores.iter().enumerate().map(of).collect()
            };
            let ids = |found| -> Vec<String> {
                rank("does it", found, 20).iter().map(|evidence| evidence.passage.id.clone()).collect()
            };
            let mut turned = all();
            turned.rotate_left(turn % scores.len());
            let got = ids(all());
            prop_assert_eq!(&got, &ids(turned));
            prop_assert_eq!(got.len(), scores.len().min(20));
            let at = |id: &String| scores[id.parse::<usize>().unwrap()];
            for pair in got.windows(2) {
                let (first, second) = (at(&pair[0]), at(&pair[1]));
                if let (Some(a), Some(b)) = (first.1, second.1) {
                    prop_assert!(first.0 > second.0 || a > b || (first == second && pair[0] < pair[1]));
                }
            }
        }
    }
}
