//! A store system over plain HTTP and JSON. Each ask blocks a thread, of which a source's `concurrency` bounds the
//! number, and ends with the source's deadline also where nobody waits for it any more.

use std::collections::HashMap;
use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;

use super::{StoreConfig, StoreError};
use crate::assistant::hydrate::{Connector, FetchError, Found, Lookup, Policy};

/// Bytes of an answer at most.
pub(super) const MOST_BYTES: u64 = 4 << 20;

pub(crate) struct HttpConnector(Arc<Inner>);

struct Inner {
    agent: ureq::Agent,
    config: StoreConfig,
}

impl HttpConnector {
    /// # Errors
    /// [`StoreError::Url`].
    pub(crate) fn new(config: StoreConfig, policy: &Policy) -> Result<Self, StoreError> {
        let wrong = |reason| StoreError::Url { name: config.name.clone(), reason };
        if !config.url.starts_with("http://") && !config.url.starts_with("https://") {
            return Err(wrong("must begin with http:// or https://"));
        }
        match config.url.split_once("{ids}") {
            None => return Err(wrong("must contain {ids}")),
            // The host is the operator's, all of it.
            Some((before, _)) if before.splitn(4, '/').count() < 4 => {
                return Err(wrong("{ids} must come after the host"));
            }
            Some(_) => {}
        }
        let agent = agent(policy);
        Ok(HttpConnector(Arc::new(Inner { agent, config })))
    }
}

/// An HTTP client for a source: nothing takes longer than its deadline.
pub(super) fn agent(policy: &Policy) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(policy.deadline))
        // A redirect could lead anywhere, credentials included.
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent("millrace")
        .build()
        .new_agent()
}

impl Connector for HttpConnector {
    fn lookup(&self, lookup: Lookup) -> Pin<Box<dyn Future<Output = Found> + Send + '_>> {
        let inner = self.0.clone();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || inner.ask(&lookup)).await.unwrap_or(Err(FetchError::Aborted))
        })
    }
}

impl Inner {
    fn ask(&self, lookup: &Lookup) -> Found {
        let ids: Vec<String> = lookup.keys.iter().map(|key| escape(key)).collect();
        let url = self.config.url.replace("{ids}", &ids.join(","));
        let mut request = self.agent.get(&url).header("accept", "application/json");
        for (name, value) in &self.config.headers {
            request = request.header(name.as_str(), value.as_str());
        }
        if let (Some(name), Some(shopper)) = (&self.config.shopper_header, &lookup.shopper) {
            request = request.header(name.as_str(), shopper.0.as_str());
        }
        let mut response = request.call().map_err(|error| {
            tracing::debug!(store = self.config.name, %error, "a store does not answer");
            match error {
                ureq::Error::Timeout(_) => FetchError::Timeout,
                _ => FetchError::Unreachable,
            }
        })?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(HashMap::new()),
            429 | 500.. => return Err(FetchError::Failed),
            _ => return Err(FetchError::Refused),
        }
        let mut bytes = Vec::new();
        let mut body = response.body_mut().as_reader().take(MOST_BYTES + 1);
        body.read_to_end(&mut bytes).map_err(|_| FetchError::Unreachable)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(FetchError::Invalid);
        }
        self.read(&bytes, &lookup.keys).ok_or(FetchError::Invalid)
    }

    /// The objects that were asked for, each with the fields that are wanted.
    fn read(&self, bytes: &[u8], keys: &[String]) -> Option<HashMap<String, Value>> {
        let mut answer: Value = serde_json::from_slice(bytes).ok()?;
        let Value::Array(items) = answer.get_mut(&self.config.items)?.take() else { return None };
        let mut found = HashMap::new();
        for item in items {
            let Value::Object(item) = item else { return None };
            let id = item.get("id").and_then(Value::as_str)?.to_owned();
            if keys.contains(&id) {
                found.insert(id, Value::Object(self.config.wanted(item)));
            }
        }
        Some(found)
    }
}

/// As RFC 3986 escapes what is not unreserved.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(url: &str) -> StoreConfig {
        serde_json::from_value(json!({ "name": "s", "role": "live", "url": url })).unwrap()
    }

    fn connector(url: &str) -> Result<HttpConnector, StoreError> {
        HttpConnector::new(config(url), &Policy::default())
    }

    #[test]
    fn only_the_operator_chooses_the_host() {
        assert!(connector("http://s/p?ids={ids}").is_ok());
        for url in ["http://{ids}/", "http://s{ids}", "ftp://s/{ids}", "http://s/", "/{ids}"] {
            assert!(connector(url).is_err(), "{url}");
        }
        assert_eq!(escape("a/../b?x=1,#é"), "a%2F..%2Fb%3Fx%3D1%2C%23%C3%A9");
    }

    #[test]
    fn an_answer_is_read_strictly_and_taken_sparingly() {
        let connector = connector("http://s/{ids}").unwrap();
        let read = |body: &Value| connector.0.read(body.to_string().as_bytes(), &["a".into(), "b".into()]);
        let body = json!({ "items": [
            { "id": "a", "price": { "amount": 1, "currency": "EUR" }, "title": "<script>" },
            { "id": "z", "price": 1 },
        ]});
        let found = read(&body).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found["a"], json!({ "price": { "amount": 1, "currency": "EUR" } }));
        for body in
            [json!([]), json!({}), json!({ "items": {} }), json!({ "items": [1] }), json!({ "items": [{}] })]
        {
            assert_eq!(read(&body), None, "{body}");
        }
    }
}
