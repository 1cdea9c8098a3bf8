//! The shopping assistant: answers a shopper from a catalog, reviews, questions and answers, and policies.
//!
//! [`source`] holds what a catalog consists of and the [`Retrieve`] trait through which everything else
//! reads it; [`index`] builds a catalog's index, [`retrieve`] answers from it. [`compose`] makes an answer of the model's text and the stores' data: [`directive`] reads the text,
//! [`hydrate`] asks the stores, [`cards`] puts together what they say, and [`stream`] writes the [`event`]s for clients.
//! `assist` is the whole of it over HTTP.

pub mod amounts;
pub(crate) mod assist;
pub mod cards;
pub mod compose;
pub mod connector;
pub mod directive;
pub mod event;
pub mod grounding;
pub mod hydrate;
pub mod index;
pub mod opensearch;
pub mod place;
pub mod planner;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod prompt;
pub mod retrieve;
pub mod session;
pub mod source;
pub mod stream;

pub use assist::{Assistant, AssistantConfig};
pub use place::Place;
pub use source::{
    Evidence, Filters, Media, Passage, Price, PriceRange, Product, Rating, Retrieval, Retrieve,
    RetrieveError, RetrieveRequest, RetrieveResult, Source,
};
