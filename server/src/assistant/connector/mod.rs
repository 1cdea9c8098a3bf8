//! The systems that know what a card shows, by name in the operator's configuration: nothing in a request can choose
//! an address, a header or a field.

mod catalog;
mod http;
mod mcp_http;
mod ucp;

use std::time::Duration;

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::hydrate::{Connector, Policy, Role};

pub(crate) use catalog::{CatalogConnector, ReviewConnector};
use http::HttpConnector;
use ucp::UcpConnector;

/// What a live source may say of a product: not its name, say, which is the catalog's.
const LIVE: [&str; 7] =
    ["price", "price_range", "list_price", "availability", "stock", "delivery", "variants"];

/// A store system, and how it is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Its name in errors and metrics.
    pub name: String,
    /// What it tells about.
    pub role: StoreRole,
    /// How it is asked.
    #[serde(default)]
    pub protocol: StoreProtocol,
    /// Over HTTP asked with GET; `{ids}` stands for the ids, escaped and with commas between them. Of UCP the address
    /// where the store speaks MCP.
    pub url: String,
    /// UCP: the address of the profile that says who asks.
    pub profile: Option<String>,
    /// UCP: the country that prices and delivery are for, as in ISO 3166: `DE`.
    pub country: Option<String>,
    /// HTTP: where in the answer the list of objects is; each has an `id`.
    #[serde(default = "items")]
    pub items: String,
    /// What is taken of each object; the usual ones of its role unless given.
    pub fields: Option<Vec<String>>,
    /// Sent with each request.
    #[serde(default)]
    pub headers: std::collections::BTreeMap<String, String>,
    /// The header in which the shopper's credential goes to it; orders only.
    pub shopper_header: Option<String>,
    /// From the ask to the end of waiting.
    pub deadline_ms: Option<u64>,
    /// Requests at a time.
    pub concurrency: Option<usize>,
    /// Ids in one request.
    pub batch: Option<usize>,
    /// Silence after which it is asked once more; 0 for never.
    pub hedge_after_ms: Option<u64>,
    /// How long a value is current.
    pub fresh_for_ms: Option<u64>,
    /// How long a value may be shown as stale.
    pub stale_for_ms: Option<u64>,
}

/// How a store system is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreProtocol {
    /// HTTP with JSON.
    #[default]
    Http,
    /// UCP's catalog over MCP.
    Ucp,
}

/// What a store system tells about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreRole {
    /// What changes about products.
    Live,
    /// Orders of the shopper.
    Orders,
}

fn items() -> String {
    "items".to_owned()
}

/// Why a store system cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is no place to ask.
    #[error("store {name}: url: {reason}")]
    Url {
        /// Which one.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another field is wrong.
    #[error("store {name}: {field}: {reason}")]
    Field {
        /// Which one.
        name: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A number is out of its bounds.
    #[error("store {name}: {field}: must be from {least} to {most}, got {got}")]
    Bound {
        /// Which one.
        name: String,
        /// The field.
        field: &'static str,
        /// The bounds.
        least: u64,
        /// The bounds.
        most: u64,
        /// What stands there.
        got: u64,
    },
}

impl StoreConfig {
    /// What asks it.
    ///
    /// # Errors
    /// [`StoreError`] for what cannot be used as it is configured.
    pub(crate) fn connector(&self, policy: &Policy) -> Result<Arc<dyn Connector>, StoreError> {
        Ok(match self.protocol {
            StoreProtocol::Http => Arc::new(HttpConnector::new(self.clone(), policy)?),
            StoreProtocol::Ucp => Arc::new(UcpConnector::new(self.clone(), policy)?),
        })
    }

    /// What is taken of an object.
    fn wanted(&self, object: Map<String, Value>) -> Map<String, Value> {
        let wanted = |name: &String| match (&self.fields, self.role) {
            (Some(fields), _) => fields.contains(name),
            (None, StoreRole::Live) => LIVE.contains(&name.as_str()),
            (None, StoreRole::Orders) => true,
        };
        object.into_iter().filter(|(name, _)| wanted(name)).collect()
    }

    pub(crate) fn role(&self) -> Role {
        match self.role {
            StoreRole::Live => Role::Live,
            StoreRole::Orders => Role::Orders,
        }
    }

    /// # Errors
    /// [`StoreError`] for a number out of its bounds.
    pub(crate) fn policy(&self) -> Result<Policy, StoreError> {
        let number = |field, value: Option<u64>, least, most, default: u64| match value {
            Some(got) if !(least..=most).contains(&got) => {
                Err(StoreError::Bound { name: self.name.clone(), field, least, most, got })
            }
            value => Ok(value.unwrap_or(default)),
        };
        let usual = Policy::default();
        let millis = |d: Duration| d.as_millis() as u64;
        let size = |n: Option<usize>| n.map(|n| n as u64);
        let deadline = number("deadline_ms", self.deadline_ms, 10, 30_000, millis(usual.deadline))?;
        let hedge = number("hedge_after_ms", self.hedge_after_ms, 0, 30_000, deadline * 3 / 8)?;
        let most = 30 * 24 * 3_600_000;
        Ok(Policy {
            deadline: Duration::from_millis(deadline),
            concurrency: number("concurrency", size(self.concurrency), 1, 256, usual.concurrency as u64)?
                as usize,
            batch: number("batch", size(self.batch), 1, 200, usual.batch as u64)? as usize,
            hedge_after: (hedge > 0).then(|| Duration::from_millis(hedge)),
            fresh_for: Duration::from_millis(number(
                "fresh_for_ms",
                self.fresh_for_ms,
                0,
                most,
                millis(usual.fresh_for),
            )?),
            stale_for: Duration::from_millis(number(
                "stale_for_ms",
                self.stale_for_ms,
                0,
                most,
                millis(usual.stale_for),
            )?),
            ..usual
        })
    }
}
