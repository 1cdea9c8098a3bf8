//! Live data for cards: prices, stock, delivery, orders.
//!
//! A [`Connector`] asks one store system for many keys at once. A [`Source`] stands in front of it for all requests of
//! the process: asks for the same key are one ask, asks at about the same time are one batch, and nothing it does can
//! take longer than its deadline, ask more often than its limits, or go on asking a system that does not answer.

mod cache;
mod source;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;

pub use source::Source;

/// Why a value could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// No connection, or one that broke.
    #[error("cannot be reached")]
    Unreachable,
    /// It answered with an error of its own.
    #[error("answered with an error")]
    Failed,
    /// It refused: not allowed, or not asked properly.
    #[error("refused the request")]
    Refused,
    /// There is nothing of that key.
    #[error("knows nothing of it")]
    NotFound,
    /// It has failed so often that it is left alone for a while.
    #[error("is left alone after failures")]
    Open,
    /// The answer is not what was agreed.
    #[error("gave an answer that cannot be read")]
    Invalid,
    /// Nobody waits any more.
    #[error("was given up")]
    Aborted,
}

impl FetchError {
    /// As in a card's `error.code`.
    pub fn code(self) -> &'static str {
        match self {
            FetchError::Timeout => "timeout",
            FetchError::Unreachable | FetchError::Failed => "unreachable",
            FetchError::Refused => "refused",
            FetchError::NotFound => "not_found",
            FetchError::Open => "overloaded",
            FetchError::Invalid => "invalid",
            FetchError::Aborted => "aborted",
        }
    }

    /// Whether asking again at once may help.
    fn is_passing(self) -> bool {
        matches!(self, FetchError::Timeout | FetchError::Unreachable | FetchError::Failed)
    }

    /// Whether it speaks against the system that was asked.
    fn is_fault(self) -> bool {
        self.is_passing() || self == FetchError::Invalid
    }
}

/// What a connector is asked for.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Ids, none twice.
    pub keys: Vec<String>,
    /// What identifies the shopper to the store, for personal data.
    pub shopper: Option<Shopper>,
}

/// A shopper's credential, which no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Shopper(pub String);

impl std::fmt::Debug for Shopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shopper(…)")
    }
}

/// The values that were found, by key; a key that is not there does not exist.
pub type Found = Result<HashMap<String, Value>, FetchError>;

/// A store system. Dropping the future gives the ask up.
pub trait Connector: Send + Sync {
    /// Asks for several keys. Reads only: an ask may be repeated.
    fn lookup(&self, lookup: Lookup) -> Pin<Box<dyn Future<Output = Found> + Send + '_>>;
}

/// What became of asking for a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Fetched {
    /// The value.
    Fresh {
        /// What the store says.
        value: Arc<Value>,
        /// When it said so.
        as_of: SystemTime,
    },
    /// An older value, since a new one could not be had.
    Stale {
        /// What the store said.
        value: Arc<Value>,
        /// When it said so.
        as_of: SystemTime,
        /// Why there is no newer one.
        error: FetchError,
    },
    /// Nothing.
    Failed(FetchError),
}

/// How patiently and how often a source is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// From the ask to the end of waiting, everything included.
    pub deadline: Duration,
    /// How long an ask waits for others to go with it.
    pub window: Duration,
    /// Keys in one batch at most.
    pub batch: usize,
    /// Batches under way at a time.
    pub concurrency: usize,
    /// After so long without an answer the same batch is asked once more, in parallel; `None` for never. A batch that
    /// fails before is repeated at once.
    pub hedge_after: Option<Duration>,
    /// A value may be shown as current for so long.
    pub fresh_for: Duration,
    /// A value may be shown as stale for so long.
    pub stale_for: Duration,
    /// That a key does not exist is believed for so long.
    pub missing_for: Duration,
    /// Keys remembered at most.
    pub remembered: usize,
    /// After so many batches in a row that failed, the source is left alone …
    pub failures: u32,
    /// … for so long; then one batch tries.
    pub cooldown: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            deadline: Duration::from_millis(800),
            window: Duration::from_millis(2),
            batch: 50,
            concurrency: 8,
            hedge_after: Some(Duration::from_millis(300)),
            fresh_for: Duration::from_secs(2),
            stale_for: Duration::from_secs(600),
            missing_for: Duration::from_secs(30),
            remembered: 10_000,
            failures: 5,
            cooldown: Duration::from_secs(5),
        }
    }
}

/// What a source tells about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Products as the catalog describes them.
    Catalog,
    /// What changes about products: price, stock, delivery.
    Live,
    /// What customers say of a product, counted.
    Reviews,
    /// Orders of the shopper: asked for with their credential, never shared, never remembered.
    Orders,
}
