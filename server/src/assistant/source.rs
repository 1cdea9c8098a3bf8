//! What the assistant knows: products, the passages that say something about them, and how passages are
//! found. Field names are those of UCP's catalog (`price_range`, `media`, `rating`, `categories`) and
//! schema.org (`brand`).

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::planner::Probe;
use super::retrieve::Signals;

/// A product as the catalog describes it. Price and rating are what the catalog said when it was indexed:
/// good for filtering, not for showing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Product {
    /// The shop's own name for it: what cards and citations refer to.
    pub id: String,
    /// Its name.
    pub title: String,
    /// Who makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brand: Option<String>,
    /// Plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Selling points, one a line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bullets: Vec<String>,
    /// From the broadest to the narrowest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// Technical data by name: `material` → `carbon steel`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// The product's page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Pictures and films.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub media: Vec<Media>,
    /// Over all variants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_range: Option<PriceRange>,
    /// What customers gave it on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<Rating>,
}

/// A picture or a film.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Media {
    /// `image`, `video` or `model_3d`.
    #[serde(rename = "type", default = "image")]
    pub kind: String,
    /// Where it is.
    pub url: String,
    /// What it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alt_text: Option<String>,
}

fn image() -> String {
    "image".to_owned()
}

/// An amount of money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// In the currency's minor unit: cents.
    pub amount: u64,
    /// ISO 4217: `EUR`.
    pub currency: String,
}

/// The cheapest and the dearest variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceRange {
    /// The cheapest.
    pub min: Price,
    /// The dearest.
    pub max: Price,
}

/// An average over customers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rating {
    /// The average.
    pub value: f32,
    /// The best value there is.
    pub scale_max: f32,
    /// Customers.
    pub count: u64,
}

/// Where a passage comes from: what a planner chooses between, and what a citation shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A technical datum of the catalog.
    Attribute,
    /// A selling point of the catalog.
    Bullet,
    /// The catalog's description.
    Description,
    /// A customer's review.
    Review,
    /// A question of a customer with another's answer.
    Qa,
    /// A policy of the shop: returns, delivery, warranty.
    Policy,
}

impl Source {
    /// All of them, in the order in which evidence is presented.
    pub const ALL: [Source; 6] =
        [Source::Attribute, Source::Bullet, Source::Description, Source::Review, Source::Qa, Source::Policy];

    /// The name in requests, events and files.
    pub fn name(self) -> &'static str {
        match self {
            Source::Attribute => "attribute",
            Source::Bullet => "bullet",
            Source::Description => "description",
            Source::Review => "review",
            Source::Qa => "qa",
            Source::Policy => "policy",
        }
    }

    /// The source of that name.
    pub fn from_name(name: &str) -> Option<Source> {
        Source::ALL.into_iter().find(|source| source.name() == name)
    }
}

/// A piece of text that can be quoted. Its text is cleaned: no markup, no invisible characters, no e-mail
/// address, phone or card number. Reviews and answers are still written by strangers: data, never
/// instructions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// Unique in the index, and the same in every index of the same data.
    pub id: String,
    /// The product it speaks of; a policy may speak of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Where it comes from.
    pub source: Source,
    /// What it says; of [`Source::Qa`] the answer.
    pub text: String,
    /// The question that [`Source::Qa`] answers, a review's headline, an attribute's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Stars of a review, 1 to 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<f32>,
    /// Customers who found it helpful.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helpful: Option<u32>,
    /// ISO 8601 date of publication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

/// A passage that a query found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// What was found.
    pub passage: Arc<Passage>,
    /// Higher is better; comparable within one retrieval only.
    pub score: f32,
}

/// Which passages may be found; an empty list does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filters {
    /// Only passages of these products.
    pub products: Vec<String>,
    /// Only passages of products in any of these categories.
    pub categories: Vec<String>,
    /// Only passages from these sources.
    pub sources: Vec<Source>,
    /// Only products that can be had for this much or more, in minor units.
    pub price_min: Option<u64>,
    /// Only products that can be had for this much or less, in minor units.
    pub price_max: Option<u64>,
    /// Only products with all of these attributes, compared without regard to case.
    pub attributes: BTreeMap<String, String>,
}

/// What to look for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetrieveRequest {
    /// The shopper's words, or the planner's.
    pub query: String,
    /// Which passages may be found.
    pub filters: Filters,
    /// Passages at most.
    pub limit: usize,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retrieval {
    /// The best first; equal scores in the order of passage ids.
    pub evidence: Vec<Evidence>,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum RetrieveError {
    /// The index cannot be read.
    #[error("the index cannot be read: {0}")]
    Index(String),
    /// The store behind the trait does not answer.
    #[error("{backend} does not answer: {reason}")]
    Unavailable {
        /// Which one.
        backend: &'static str,
        /// What it said.
        reason: String,
    },
}

/// What a retrieval promises.
pub type RetrieveResult<'a, T> = Pin<Box<dyn Future<Output = Result<T, RetrieveError>> + Send + 'a>>;

/// A store of products and passages: embedded, or a server. Every implementation gives the same answer in
/// the same order for the same data. A caller that stops waiting drops the future.
pub trait Retrieve: Send + Sync {
    /// The passages that fit best.
    fn retrieve(&self, request: RetrieveRequest) -> RetrieveResult<'_, Retrieval>;

    /// The passages among which the best are chosen, with what they are judged by, in no order that matters: to learn
    /// from, and to see why. Nothing for a query without words, or where an implementation has no ranker of ours.
    fn signals(&self, _request: RetrieveRequest) -> RetrieveResult<'_, Vec<(Arc<Passage>, Signals)>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// The products that fit best, the best first, by what the catalog says of them. [`Filters::sources`] does not
    /// matter here.
    fn search_products(&self, request: RetrieveRequest) -> RetrieveResult<'_, Vec<(Arc<Product>, f32)>>;

    /// Products by id, in the order asked for; unknown ones are left out.
    fn products(&self, ids: Vec<String>) -> RetrieveResult<'_, Vec<Arc<Product>>>;

    /// All passages of a product from these sources, in the order of their ids: to count over, not to rank.
    fn passages(&self, product: String, sources: Vec<Source>) -> RetrieveResult<'_, Vec<Arc<Passage>>>;

    /// What each group of sources holds for a question about these products, for the planner; `None` where looking
    /// would cost as much as asking.
    fn probe(&self, _query: String, _products: Vec<String>) -> RetrieveResult<'_, Option<Vec<Probe>>> {
        Box::pin(async { Ok(None) })
    }

    /// Changes whenever the data does: part of the key of every cached answer.
    fn version(&self) -> String;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_names_are_those_of_the_files() {
        for source in Source::ALL {
            assert_eq!(Source::from_name(source.name()), Some(source));
            assert_eq!(serde_json::to_value(source).expect("a name"), source.name());
        }
        assert_eq!(Source::from_name("Review"), None);
    }
}
