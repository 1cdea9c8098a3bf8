//! [`super::Retrieve`] over an index in this process.
//!
//! Two lists are made, of at most `DEPTH` each: by words and by meaning. They are fused by reciprocal ranks (Cormack,
//! Clarke and Büttcher 2009), which needs no common scale of scores; of products, meaning counts half. Equal ones go by
//! id, so an answer never changes without a cause. Of passages, the first of the fused list are then put in the order of `rank`.

mod lists;
pub(crate) mod rank;
pub(crate) mod signals;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::index::lexical::{self, Lexical};
use super::index::{IndexError, fields, passages, store};
use super::planner::{Group, Probe};
use super::source::{
    Evidence, Filters, Passage, Product, Retrieval, Retrieve, RetrieveError, RetrieveRequest, RetrieveResult,
    Source,
};
use crate::embed::Embed;
#[cfg(feature = "postgres")]
pub(crate) use lists::RRF_K;
pub(crate) use lists::{MEANING_OF_PASSAGES, MEANING_OF_PRODUCTS, fuse};
use lists::{Table, top};
use rank::{Candidate, RANKED, all_signals};
pub use signals::{NAMES as SIGNALS, Signals};

/// Passages of a group that a probe looks at.
pub(crate) const MOST_PROBED: usize = 512;
/// Entries of each list that is fused.
pub(crate) const DEPTH: usize = 200;

/// A version of an index in memory; clones share it.
#[derive(Clone)]
pub struct EmbeddedIndex(Arc<Inner>);

struct Inner {
    version: String,
    /// By id, as are the passages: a lower number is a lower id.
    products: Vec<Arc<Product>>,
    passages: Vec<Arc<Passage>>,
    /// The product of each passage.
    owners: Vec<Option<u32>>,
    /// The passages of each product.
    owned: Vec<Vec<u32>>,
    product_words: Lexical,
    passage_words: Lexical,
    product_vectors: Table,
    passage_vectors: Table,
    /// Of passages without their titles, where those are texts of their own.
    answer_vectors: Table,
    encoder: Option<Arc<dyn Embed>>,
}

impl std::fmt::Debug for EmbeddedIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inner { version, products, passages, .. } = &*self.0;
        write!(f, "EmbeddedIndex {version} of {} products and {} passages", products.len(), passages.len())
    }
}

impl EmbeddedIndex {
    /// Loads the version in force. Meaning is searched where the index has vectors and `encoder` is the one that made
    /// them.
    ///
    /// # Errors
    /// Where there is no index, it is of another format or damaged, or its vectors are another encoder's.
    pub fn open(directory: &Path, encoder: Option<Arc<dyn Embed>>) -> Result<EmbeddedIndex, IndexError> {
        let contents =
            store::load(directory)?.ok_or_else(|| IndexError::Missing { path: directory.into() })?;
        if let (Some(encoder), found) = (&encoder, &contents.encoder)
            && found.as_ref().map(|found| found.id.as_str()) != Some(encoder.id())
        {
            let found = found.as_ref().map_or_else(|| "none".to_owned(), |found| found.id.clone());
            return Err(IndexError::Encoder { found, wanted: encoder.id().to_owned() });
        }
        let vectors = contents.vectors;
        let products: Vec<Arc<Product>> = contents.products.into_values().map(Arc::new).collect();
        let mut all: BTreeMap<String, Passage> = contents.passages;
        for product in &products {
            all.extend(
                passages::of_product(product).into_iter().map(|passage| (passage.id.clone(), passage)),
            );
        }
        let number: FxHashMap<&str, u32> =
            products.iter().enumerate().map(|(i, product)| (product.id.as_str(), i as u32)).collect();

        let mut product_words = lexical::Builder::new(&fields::PRODUCT);
        let mut product_vectors = Table::new(vectors.dim);
        for product in &products {
            product_words.add(&fields::of_product(product).each_ref().map(String::as_str));
            product_vectors.push(Some(&passages::product_text(product)), &vectors);
        }
        let mut passage_words = lexical::Builder::new(&fields::PASSAGE);
        let mut passage_vectors = Table::new(vectors.dim);
        let mut answer_vectors = Table::new(vectors.dim);
        let (mut owners, mut owned) = (Vec::new(), vec![Vec::new(); products.len()]);
        for (i, passage) in all.values().enumerate() {
            let owner = passage.product.as_deref().and_then(|id| number.get(id).copied());
            let title = owner.map_or("", |owner| products[owner as usize].title.as_str());
            passage_words.add(&fields::of_passage(passage, title));
            passage_vectors.push(Some(&passages::embedded_text(passage)), &vectors);
            answer_vectors.push(passages::answer_text(passage), &vectors);
            if let Some(owner) = owner {
                owned[owner as usize].push(i as u32);
            }
            owners.push(owner);
        }
        Ok(EmbeddedIndex(Arc::new(Inner {
            version: contents.version,
            passages: all.into_values().map(Arc::new).collect(),
            product_words: product_words.finish(),
            passage_words: passage_words.finish(),
            products,
            owners,
            owned,
            product_vectors,
            passage_vectors,
            answer_vectors,
            encoder,
        })))
    }

    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, RetrieveError> + Send + 'static,
    ) -> RetrieveResult<'_, T> {
        let inner = self.0.clone();
        Box::pin(async move {
            let task = tokio::task::spawn_blocking(move || work(&inner)).await;
            task.unwrap_or_else(|error| Err(RetrieveError::Index(error.to_string())))
        })
    }
}

impl Inner {
    /// Whether a product passes; `true` for all where nothing restricts products.
    fn passing(&self, filters: &Filters) -> Option<Vec<bool>> {
        let Filters { products, categories, sources: _, price_min, price_max, attributes } = filters;
        let restricts = !products.is_empty()
            || !categories.is_empty()
            || price_min.is_some()
            || price_max.is_some()
            || !attributes.is_empty();
        let same = |a: &str, b: &str| a.to_lowercase() == b.to_lowercase();
        let passes = |product: &Arc<Product>| {
            let price = product.price_range.as_ref();
            (products.is_empty() || products.contains(&product.id))
                && (categories.is_empty()
                    || categories.iter().any(|wanted| product.categories.iter().any(|c| same(c, wanted))))
                && price_min.is_none_or(|min| price.is_some_and(|price| price.max.amount >= min))
                && price_max.is_none_or(|max| price.is_some_and(|price| price.min.amount <= max))
                && attributes.iter().all(|(name, wanted)| {
                    let mut held = product.attributes.iter().filter(|(held, _)| same(held, name));
                    held.any(|(_, value)| same(value, wanted))
                })
        };
        restricts.then(|| self.products.iter().map(passes).collect())
    }

    /// The passages that may be found, in order; `None` for all.
    fn allowed(&self, filters: &Filters) -> Option<Vec<u32>> {
        let source = |passage: &u32| {
            filters.sources.is_empty() || filters.sources.contains(&self.passages[*passage as usize].source)
        };
        match self.passing(filters) {
            None if filters.sources.is_empty() => None,
            None => Some((0..self.passages.len() as u32).filter(source).collect()),
            Some(passing) => {
                // A policy without a product speaks of all.
                let general = (0..self.passages.len() as u32).filter(|passage| {
                    self.owners[*passage as usize].is_none()
                        && self.passages[*passage as usize].source == Source::Policy
                        && filters.sources.contains(&Source::Policy)
                });
                let of_products = self.owned.iter().zip(passing).filter(|(_, passes)| *passes);
                let mut allowed: Vec<u32> =
                    of_products.flat_map(|(passages, _)| passages.iter().copied()).filter(source).collect();
                allowed.extend(general);
                allowed.sort_unstable();
                Some(allowed)
            }
        }
    }

    /// What each group of sources holds of some products.
    fn probe(&self, query: &str, products: &[String]) -> Result<Vec<Probe>, RetrieveError> {
        let vector = match &self.encoder {
            Some(encoder) => {
                encoder.embed(&[query]).map_err(|error| RetrieveError::Index(error.to_string()))?
            }
            None => Vec::new(),
        };
        let wanted = lexical::content_words(query);
        let overlap = |passage: &u32| {
            let text = passages::embedded_text(&self.passages[*passage as usize]);
            let has = lexical::content_words(&text);
            wanted.intersection(&has).count() as f32 / wanted.len().max(1) as f32
        };
        let probe = |group: Group| {
            let filters = Filters {
                products: products.to_vec(),
                sources: group.sources().to_vec(),
                ..Filters::default()
            };
            let mut held = self.allowed(&filters).unwrap_or_default();
            let passages = held.len();
            held.truncate(MOST_PROBED);
            let nearest =
                vector.first().and_then(|vector| self.passage_vectors.nearest(vector, Some(&held), 1).pop());
            Probe {
                group,
                passages,
                similarity: nearest.map(|(_, similarity)| similarity),
                overlap: held.iter().map(overlap).fold(0.0, f32::max),
            }
        };
        Ok(Group::OF_PRODUCTS.into_iter().map(probe).collect())
    }

    /// The vector of a query, where meaning is searched and anything is asked.
    fn embed(&self, query: &str) -> Result<Option<Vec<f32>>, RetrieveError> {
        let Some(encoder) = self.encoder.as_ref().filter(|_| !query.trim().is_empty()) else {
            return Ok(None);
        };
        let embedded = encoder.embed(&[query]).map_err(|error| RetrieveError::Index(error.to_string()))?;
        Ok(embedded.into_iter().next())
    }

    /// The passages that the lists found, the first of them fused.
    fn candidates(&self, request: &RetrieveRequest) -> Result<Vec<Candidate>, RetrieveError> {
        let allowed = self.allowed(&request.filters);
        let vector = self.embed(&request.query)?;
        let scores = self.passage_words.scores(&request.query);
        let found = fused(
            &scores,
            vector.as_deref().map(|vector| (MEANING_OF_PASSAGES, vector, &self.passage_vectors)),
            allowed.as_deref(),
            request.limit.max(RANKED),
        );
        let candidate = |(passage, _): (u32, f32)| {
            let near = |table: &Table| table.similarity(vector.as_deref()?, passage);
            Candidate {
                passage: self.passages[passage as usize].clone(),
                words: scores[passage as usize],
                meaning: near(&self.passage_vectors),
                answer: near(&self.answer_vectors),
            }
        };
        Ok(found.into_iter().map(candidate).collect())
    }
}

/// The lists by words and by meaning, of which the latter counts so much, fused.
fn fused(
    scores: &[f32],
    meaning: Option<(f32, &[f32], &Table)>,
    allowed: Option<&[u32]>,
    limit: usize,
) -> Vec<(u32, f32)> {
    let depth = DEPTH.max(limit);
    let found = |document: u32| Some(scores[document as usize]).filter(|score| *score > 0.0);
    let by_words = match allowed {
        Some(allowed) => top(allowed.iter().copied(), found, depth),
        None => top(0..scores.len() as u32, found, depth),
    };
    let mut lists = vec![(1.0, by_words)];
    lists.extend(meaning.map(|(weight, vector, table)| (weight, table.nearest(vector, allowed, depth))));
    fuse(&lists, limit)
}

/// What is answered when nothing is asked: documents in their order.
fn unasked(allowed: Option<&[u32]>, count: usize, limit: usize) -> Vec<u32> {
    allowed.map_or_else(
        || (0..count as u32).take(limit).collect(),
        |all| all.iter().copied().take(limit).collect(),
    )
}

impl Retrieve for EmbeddedIndex {
    fn retrieve(&self, request: RetrieveRequest) -> RetrieveResult<'_, Retrieval> {
        self.blocking(move |inner| {
            if request.query.trim().is_empty() {
                let allowed = inner.allowed(&request.filters);
                let found = unasked(allowed.as_deref(), inner.passages.len(), request.limit).into_iter();
                let evidence =
                    found.map(|at| Evidence { passage: inner.passages[at as usize].clone(), score: 0.0 });
                return Ok(Retrieval { evidence: evidence.collect() });
            }
            let candidates = inner.candidates(&request)?;
            Ok(Retrieval { evidence: rank::rank(&request.query, candidates, request.limit) })
        })
    }

    fn signals(&self, request: RetrieveRequest) -> RetrieveResult<'_, Vec<(Arc<Passage>, Signals)>> {
        self.blocking(move |inner| {
            let candidates = inner.candidates(&request)?;
            let signals = all_signals(&request.query, &candidates);
            Ok(candidates.into_iter().map(|candidate| candidate.passage).zip(signals).collect())
        })
    }

    fn search_products(&self, request: RetrieveRequest) -> RetrieveResult<'_, Vec<(Arc<Product>, f32)>> {
        self.blocking(move |inner| {
            let allowed = inner.passing(&request.filters).map(|passing| {
                let numbers = (0..passing.len() as u32).filter(|number| passing[*number as usize]);
                numbers.collect::<Vec<u32>>()
            });
            let allowed = allowed.as_deref();
            let found = if request.query.trim().is_empty() {
                let unasked = unasked(allowed, inner.products.len(), request.limit);
                unasked.into_iter().map(|product| (product, 0.0)).collect()
            } else {
                let vector = inner.embed(&request.query)?;
                let scores = inner.product_words.scores(&request.query);
                let meaning =
                    vector.as_deref().map(|vector| (MEANING_OF_PRODUCTS, vector, &inner.product_vectors));
                fused(&scores, meaning, allowed, request.limit)
            };
            Ok(found
                .into_iter()
                .map(|(product, score)| (inner.products[product as usize].clone(), score))
                .collect())
        })
    }

    fn products(&self, ids: Vec<String>) -> RetrieveResult<'_, Vec<Arc<Product>>> {
        let all = &self.0.products;
        let found = ids.iter().filter_map(|id| {
            let at = all.binary_search_by(|product| product.id.as_str().cmp(id)).ok()?;
            Some(all[at].clone())
        });
        let found = found.collect();
        Box::pin(async move { Ok(found) })
    }

    fn passages(&self, product: String, sources: Vec<Source>) -> RetrieveResult<'_, Vec<Arc<Passage>>> {
        let Inner { products, passages, owned, .. } = &*self.0;
        let at = products.binary_search_by(|held| held.id.cmp(&product));
        let of = at.map_or(&[][..], |at| &owned[at]);
        let found = of.iter().map(|passage| passages[*passage as usize].clone());
        let found = found.filter(|passage| sources.is_empty() || sources.contains(&passage.source)).collect();
        Box::pin(async move { Ok(found) })
    }

    fn probe(&self, query: String, products: Vec<String>) -> RetrieveResult<'_, Option<Vec<Probe>>> {
        self.blocking(move |inner| inner.probe(&query, &products).map(Some))
    }

    fn version(&self) -> String {
        self.0.version.clone()
    }
}
