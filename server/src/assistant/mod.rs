//! The shopping assistant: answers a shopper from a catalog, reviews, questions and answers, and policies.
//!
//! [`source`] holds what a catalog consists of and the [`Retrieve`] trait through which everything else
//! reads it.

pub mod source;

pub use source::{
    Evidence, Filters, Media, Passage, Price, PriceRange, Product, Rating, Retrieval, Retrieve,
    RetrieveError, RetrieveRequest, RetrieveResult, Source,
};
