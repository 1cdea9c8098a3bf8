//! A store that speaks UCP's catalog capability (Universal Commerce Protocol, 2026-08-25) over MCP, streamable HTTP.
//! A batch of ids is one call of `lookup_catalog`; a store that has only `get_product` is asked for one after another.
//! MCP itself is `rmcp`'s; its messages go through the HTTP client of the other connector (`mcp_http`).

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use rmcp::model::{CallToolRequestParams, CallToolResult, ErrorCode};
use rmcp::service::{ClientInitializeError, RunningService, ServiceError};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransport, StreamableHttpClientTransportConfig, StreamableHttpError,
};
use rmcp::{RoleClient, ServiceExt};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use super::http::{MOST_BYTES, agent};
use super::mcp_http::{Client, HttpError};
use super::{StoreConfig, StoreError};
use crate::assistant::hydrate::{Connector, FetchError, Found, Lookup, Policy};

/// What a variant may say.
const OF_VARIANT: [&str; 6] = ["id", "title", "price", "list_price", "availability", "selected_options"];

/// Variants of a product that are passed on: a card shows a few.
const MOST_VARIANTS: usize = 50;
/// Bytes of a field of a variant that is passed on.
const MOST_FIELD: usize = 1000;

#[derive(Clone)]
pub(crate) struct UcpConnector(Arc<Inner>);

struct Inner {
    config: StoreConfig,
    profile: String,
    client: Client,
    /// Made when it is first needed, and again when it has ended.
    session: Mutex<Option<Arc<Session>>>,
}

struct Session {
    service: RunningService<RoleClient, ()>,
    /// Whether the store takes many ids at once.
    batched: bool,
}

impl UcpConnector {
    /// # Errors
    /// [`StoreError`] for an address, a profile or a header that is none.
    pub(crate) fn new(config: StoreConfig, policy: &Policy) -> Result<Self, StoreError> {
        let wrong = |field, reason| StoreError::Field { name: config.name.clone(), field, reason };
        if !config.url.starts_with("http://") && !config.url.starts_with("https://") {
            return Err(StoreError::Url {
                name: config.name.clone(),
                reason: "must begin with http:// or https://",
            });
        }
        let profile = config.profile.clone().unwrap_or_default();
        if !profile.starts_with("https://") && !profile.starts_with("http://") {
            return Err(wrong(
                "profile",
                "a store with protocol = \"ucp\" needs the address of your UCP profile",
            ));
        }
        if config.shopper_header.is_some() {
            return Err(wrong("shopper_header", "a store with protocol = \"ucp\" tells about products only"));
        }
        let client = Client::new(agent(policy), &config.headers)
            .map_err(|()| wrong("headers", "a name or a value is no HTTP header"))?;
        Ok(UcpConnector(Arc::new(Inner { config, profile, client, session: Mutex::default() })))
    }
}

impl Connector for UcpConnector {
    fn lookup(&self, lookup: Lookup) -> Pin<Box<dyn Future<Output = Found> + Send + '_>> {
        Box::pin(async move {
            // In a task of its own: a handshake that takes longer than one ask waits still serves the next one.
            let inner = self.0.clone();
            let session = tokio::spawn(async move { inner.session().await }).await;
            let session = session.unwrap_or(Err(FetchError::Aborted))?;
            if session.batched {
                let answer = self.0.call(&session, "lookup_catalog", "ids", json!(lookup.keys)).await?;
                return self.0.read(&answer, &lookup.keys).ok_or(FetchError::Invalid);
            }
            let mut found = HashMap::new();
            for key in lookup.keys {
                let answer = self.0.call(&session, "get_product", "id", json!(key)).await?;
                found.extend(self.0.read(&answer, &[key]).ok_or(FetchError::Invalid)?);
            }
            Ok(found)
        })
    }
}

impl Inner {
    async fn session(&self) -> Result<Arc<Session>, FetchError> {
        let mut held = self.session.lock().await;
        if let Some(session) = held.as_ref().filter(|session| !session.service.is_closed()) {
            return Ok(session.clone());
        }
        let mut config = StreamableHttpClientTransportConfig::with_uri(self.config.url.as_str());
        config.max_json_response_size = MOST_BYTES as usize;
        let transport = StreamableHttpClientTransport::with_client(self.client.clone(), config);
        let service = ().serve(transport).await.map_err(|error| self.failed(&error, refused(&error)))?;
        let tools = service.list_all_tools().await.map_err(|error| self.failed(&error, reason(&error)))?;
        let has = |name: &str| tools.iter().any(|tool| tool.name == name);
        if !has("lookup_catalog") && !has("get_product") {
            tracing::error!(store = self.config.name, "has neither lookup_catalog nor get_product");
            return Err(FetchError::Refused);
        }
        let session = Arc::new(Session { batched: has("lookup_catalog"), service });
        *held = Some(session.clone());
        Ok(session)
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static), kind: FetchError) -> FetchError {
        tracing::debug!(store = self.config.name, error, "a store does not answer");
        kind
    }

    async fn call(
        &self,
        session: &Session,
        tool: &'static str,
        of: &'static str,
        ids: Value,
    ) -> Result<Value, FetchError> {
        let mut catalog = Map::from_iter([(of.to_owned(), ids)]);
        if let Some(country) = &self.config.country {
            catalog.insert("context".into(), json!({ "address_country": country }));
        }
        let arguments = Map::from_iter([
            ("meta".to_owned(), json!({ "ucp-agent": { "profile": self.profile } })),
            ("catalog".to_owned(), Value::Object(catalog)),
        ]);
        let asked =
            session.service.call_tool(CallToolRequestParams::new(tool).with_arguments(arguments)).await;
        let result = asked.map_err(|error| self.failed(&error, reason(&error)))?;
        if result.is_error == Some(true) {
            tracing::debug!(store = self.config.name, tool, "answered with an error");
            return Err(FetchError::Failed);
        }
        content(result).ok_or(FetchError::Invalid)
    }

    /// The products that were asked for, by the ids they were asked by.
    fn read(&self, answer: &Value, keys: &[String]) -> Option<HashMap<String, Value>> {
        let products = match (answer.get("products"), answer.get("product")) {
            (Some(Value::Array(products)), _) => products.iter().collect(),
            (None, Some(product)) => vec![product],
            // How get_product says that there is none.
            (None, None) => {
                let codes = answer.get("messages")?.as_array()?.iter().map(|message| message.get("code"));
                let mut codes = codes.map(|code| code.and_then(Value::as_str));
                return codes.any(|code| code == Some("not_found")).then(HashMap::new);
            }
            _ => return None,
        };
        let mut found = HashMap::new();
        for product in products {
            let id = product.get("id")?.as_str()?;
            let variants = match product.get("variants") {
                None => &[][..],
                Some(variants) => variants.as_array()?,
            };
            if keys.iter().any(|key| key == id) {
                found.insert(id.to_owned(), self.live(product, variants, variants.first())?);
            }
            for variant in variants {
                let own = variant.get("id").and_then(Value::as_str);
                let inputs = ["inputs", "input"].iter().find_map(|name| variant.get(*name)?.as_array());
                let asked = inputs.into_iter().flatten().filter_map(|input| input.get("id")?.as_str());
                for name in asked.chain(own).filter(|name| *name != id) {
                    if keys.iter().any(|key| key == name) && !found.contains_key(name) {
                        found.insert(name.to_owned(), self.live(product, variants, Some(variant))?);
                    }
                }
            }
        }
        Some(found)
    }

    /// What changes about a product, of which one variant is shown.
    fn live(&self, product: &Value, variants: &[Value], shown: Option<&Value>) -> Option<Value> {
        let mut live = Map::new();
        if let Some(range) = product.get("price_range") {
            let range = json!({ "min": money(range.get("min")?)?, "max": money(range.get("max")?)? });
            if range["min"]["amount"].as_u64() > range["max"]["amount"].as_u64() {
                return None;
            }
            if range["min"] == range["max"] {
                live.insert("price".into(), range["min"].clone());
            }
            live.insert("price_range".into(), range);
        }
        let of = |variant: &Value| {
            let mut kept = Map::new();
            for name in OF_VARIANT {
                match variant.get(name) {
                    None | Some(Value::Null) => {}
                    Some(value) if name.ends_with("price") => drop(kept.insert(name.into(), money(value)?)),
                    Some(value) if value.to_string().len() > MOST_FIELD => {}
                    Some(value) => drop(kept.insert(name.into(), value.clone())),
                }
            }
            Some(kept)
        };
        let kept = variants.iter().take(MOST_VARIANTS).map(|variant| of(variant).map(Value::Object));
        let kept: Vec<Value> = kept.collect::<Option<_>>()?;
        if let Some(shown) = shown {
            let mut shown = of(shown)?;
            for name in ["price", "list_price", "availability"] {
                live.extend(shown.remove_entry(name));
            }
        }
        if kept.len() > 1 {
            live.insert("variants".into(), Value::Array(kept));
        }
        if !of_one_currency(&live) {
            return None;
        }
        Some(Value::Object(self.config.wanted(live)))
    }
}

/// An amount in minor units with its currency, and nothing else.
fn money(value: &Value) -> Option<Value> {
    let amount = value.get("amount")?.as_u64()?;
    let currency = value.get("currency")?.as_str()?;
    let is_code = currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_uppercase());
    is_code.then(|| json!({ "amount": amount, "currency": currency }))
}

/// Whether all prices of a product can be compared.
fn of_one_currency(live: &Map<String, Value>) -> bool {
    let of = |value: &Value| value["currency"].as_str().map(str::to_owned);
    let range = live.get("price_range").into_iter().flat_map(|range| [of(&range["min"]), of(&range["max"])]);
    let own = ["price", "list_price"].map(|name| live.get(name).and_then(of));
    let variants = live.get("variants").and_then(Value::as_array).into_iter().flatten();
    let variants = variants.flat_map(|variant| [of(&variant["price"]), of(&variant["list_price"])]);
    let mut all = range.chain(own).chain(variants).flatten();
    let first = all.next();
    all.all(|currency| Some(currency) == first)
}

/// The JSON of an answer: structured, or as the text that older servers send.
fn content(result: CallToolResult) -> Option<Value> {
    let value = match result.structured_content {
        Some(value) => value,
        None => serde_json::from_str(&result.content.first()?.as_text()?.text).ok()?,
    };
    value.is_object().then_some(value)
}

fn reason(error: &ServiceError) -> FetchError {
    match error {
        ServiceError::McpError(error) => match error.code {
            ErrorCode::INVALID_PARAMS | ErrorCode::INVALID_REQUEST | ErrorCode::METHOD_NOT_FOUND => {
                FetchError::Refused
            }
            _ => FetchError::Failed,
        },
        ServiceError::Timeout { .. } => FetchError::Timeout,
        ServiceError::Cancelled { .. } => FetchError::Aborted,
        ServiceError::UnexpectedResponse => FetchError::Invalid,
        error => cause(error),
    }
}

/// Why there is no session.
fn refused(error: &ClientInitializeError) -> FetchError {
    match error {
        ClientInitializeError::TransportError { error, .. } => cause(&*error.error),
        ClientInitializeError::JsonRpcError(_) => FetchError::Refused,
        ClientInitializeError::ConnectionClosed(_) => FetchError::Unreachable,
        _ => FetchError::Invalid,
    }
}

/// Why a message did not get through.
fn cause(error: &(dyn std::error::Error + 'static)) -> FetchError {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<StreamableHttpError<HttpError>>() {
            return match error {
                StreamableHttpError::Client(HttpError::Timeout) => FetchError::Timeout,
                StreamableHttpError::Client(HttpError::Unreachable) => FetchError::Unreachable,
                StreamableHttpError::Client(HttpError::Status(_)) => FetchError::Refused,
                StreamableHttpError::Client(HttpError::Malformed)
                | StreamableHttpError::Deserialize(_)
                | StreamableHttpError::UnexpectedContentType(_)
                | StreamableHttpError::UnexpectedServerResponse(_)
                | StreamableHttpError::ResponseBodyTooLarge { .. } => FetchError::Invalid,
                StreamableHttpError::HttpStatus(_) => FetchError::Failed,
                _ => FetchError::Unreachable,
            };
        }
        next = error.source();
    }
    FetchError::Unreachable
}

#[cfg(test)]
mod tests;
