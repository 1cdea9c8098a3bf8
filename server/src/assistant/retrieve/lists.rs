//! Ranked lists: the best by a score, the nearest by meaning, several lists as one.

use std::cmp::Ordering;

use millrace_engine::dots;
use rustc_hash::FxHashMap;

use crate::assistant::index::store::{Key, Vectors, key};

/// How slowly a rank loses weight in fusion: the constant of the original paper, and of OpenSearch.
pub(crate) const RRF_K: f32 = 60.0;

/// What a rank by meaning counts beside one by words, among products. Names and attributes are found by their words: on
/// Icecat's rated queries words alone are far ahead of meaning alone, and any share from 0.3 to 0.6 is better than 1.
pub(crate) const MEANING_OF_PRODUCTS: f32 = 0.5;

/// The same among passages, where neither is ahead.
pub(crate) const MEANING_OF_PASSAGES: f32 = 1.0;

/// The vectors of documents in order, those of equal texts once.
pub(super) struct Table {
    dim: usize,
    rows: Vec<f32>,
    /// The row of each document; `None` where it has no vector.
    row_of: Vec<Option<u32>>,
    known: FxHashMap<Key, u32>,
}

impl Table {
    pub(super) fn new(dim: usize) -> Self {
        Table { dim, rows: Vec::new(), row_of: Vec::new(), known: FxHashMap::default() }
    }

    /// The next document, by its text; `None` where it has none.
    pub(super) fn push(&mut self, text: Option<&str>, vectors: &Vectors) {
        let row = text.filter(|_| self.dim > 0).map(key).and_then(|key| {
            if let Some(row) = self.known.get(&key) {
                return Some(*row);
            }
            let vector = vectors.by_text.get(&key).filter(|vector| vector.len() == self.dim)?;
            let row = (self.rows.len() / self.dim) as u32;
            self.rows.extend(vector);
            self.known.insert(key, row);
            Some(row)
        });
        self.row_of.push(row);
    }

    /// The documents, of those allowed, whose vectors are nearest to the query's.
    pub(super) fn nearest(&self, query: &[f32], allowed: Option<&[u32]>, limit: usize) -> Vec<(u32, f32)> {
        if self.dim == 0 || query.len() != self.dim {
            return Vec::new();
        }
        match allowed {
            None => {
                let mut scores = vec![0.0; self.rows.len() / self.dim];
                dots(query, &self.rows, &mut scores);
                let score = |document: u32| Some(scores[self.row_of[document as usize]? as usize]);
                top(0..self.row_of.len() as u32, score, limit)
            }
            Some(allowed) => top(allowed.iter().copied(), |document| self.similarity(query, document), limit),
        }
    }

    /// How near a document is to the query; `None` where either has no vector of this table's kind.
    pub(super) fn similarity(&self, query: &[f32], document: u32) -> Option<f32> {
        let row = self.row_of[document as usize]? as usize;
        if query.len() != self.dim {
            return None;
        }
        let mut score = [0.0];
        dots(query, &self.rows[row * self.dim..][..self.dim], &mut score);
        Some(score[0])
    }
}

fn better(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The documents with the highest scores, the best first, equal ones in their order.
pub(super) fn top(
    documents: impl Iterator<Item = u32>,
    score: impl Fn(u32) -> Option<f32>,
    limit: usize,
) -> Vec<(u32, f32)> {
    let mut scored: Vec<(u32, f32)> =
        documents.filter_map(|document| Some((document, score(document)?))).collect();
    if scored.len() > limit && limit > 0 {
        scored.select_nth_unstable_by(limit - 1, better);
    }
    scored.truncate(limit);
    scored.sort_unstable_by(better);
    scored
}

/// One list of several, each with what it counts, by the weighted sum of reciprocal ranks.
pub(crate) fn fuse(lists: &[(f32, Vec<(u32, f32)>)], limit: usize) -> Vec<(u32, f32)> {
    let mut sums: FxHashMap<u32, f32> = FxHashMap::default();
    for (weight, list) in lists {
        for (rank, (document, _)) in list.iter().enumerate() {
            *sums.entry(*document).or_default() += weight / (RRF_K + 1.0 + rank as f32);
        }
    }
    let documents: Vec<u32> = sums.keys().copied().collect();
    top(documents.into_iter(), |document| sums.get(&document).copied(), limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fusion_is_the_formula() {
        let fused = fuse(&[(1.0, vec![(7, 9.0), (3, 1.0)]), (0.5, vec![(3, 0.5), (9, 0.1)])], 10);
        let order: Vec<u32> = fused.iter().map(|(document, _)| *document).collect();
        assert_eq!(order, [3, 7, 9]);
        assert!((fused[0].1 - (1.0 / 62.0 + 0.5 / 61.0)).abs() < 1e-7);
    }

    proptest! {
        #[test]
        fn top_is_the_head_of_the_sorted_list(scores in prop::collection::vec(0u8..6, 0..60), limit in 0usize..70) {
            let score = |i: u32| Some(f32::from(scores[i as usize])).filter(|score| *score > 0.0);
            let mut want: Vec<(u32, f32)> =
                (0..scores.len() as u32).filter_map(|i| Some((i, score(i)?))).collect();
            want.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            want.truncate(limit);
            prop_assert_eq!(top(0..scores.len() as u32, score, limit), want);
        }
    }
}
