//! Requests to a cluster, and what its errors mean to who runs it. A request blocks its thread: an update's own, or one
//! of those that Tokio keeps for that, of which a limit bounds the number.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::Value;
use tokio::sync::Semaphore;
use ureq::http;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::address::Address;
use crate::assistant::index::IndexError;
use crate::assistant::source::RetrieveError;

/// Requests of questions at a time.
const CONCURRENCY: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No question waits for longer.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a request of an update: where graphs are built, one may take minutes.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of an answer at most.
const MOST_BYTES: u64 = 256 << 20;

/// How a body is framed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Json,
    /// One JSON value a line.
    Lines,
}

/// A request that was not answered as it should have been.
#[derive(Debug)]
pub(super) struct Failure {
    /// 0 where no answer came.
    pub(super) status: u16,
    /// For who runs it.
    pub(super) reason: String,
}

impl Failure {
    pub(super) fn is_missing(&self) -> bool {
        self.status == 404
    }

    /// Whether the same request may do better a little later.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.status, 0 | 429 | 502 | 503 | 504)
    }
}

/// A cluster, and the alias in it.
pub(super) struct Server {
    pub(super) address: Address,
    agent: ureq::Agent,
    authorization: Option<String>,
    permits: Arc<Semaphore>,
}

impl Server {
    /// # Errors
    /// [`IndexError::Server`] where the address or what it names cannot be used. Nothing is asked yet.
    pub(super) fn open(place: &str) -> Result<Server, IndexError> {
        let address = Address::parse(place)
            .map_err(|reason| IndexError::Server { server: "OpenSearch".to_owned(), reason })?;
        let wrong = |reason| IndexError::Server { server: address.to_string(), reason };
        let mut tls = TlsConfig::builder();
        if let Some(path) = &address.ca {
            let roots = certificates(path).map_err(|why| wrong(format!("ca: {}: {why}", path.display())))?;
            tls = tls.root_certs(RootCerts::new_with_certs(&roots));
        }
        let agent = ureq::Agent::config_builder()
            .tls_config(tls.build())
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .max_redirects(0)
            .http_status_as_error(false)
            .max_idle_connections_per_host(CONCURRENCY)
            .user_agent("millrace")
            .build()
            .new_agent();
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let user = address.user.clone().or_else(|| set("OPENSEARCH_USERNAME"));
        let password = address.password.clone().or_else(|| set("OPENSEARCH_PASSWORD"));
        let authorization = user.map(|user| {
            let pair = format!("{user}:{}", password.unwrap_or_default());
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
        });
        Ok(Server { address, agent, authorization, permits: Arc::new(Semaphore::new(CONCURRENCY)) })
    }

    pub(super) fn error(&self, failure: Failure) -> IndexError {
        IndexError::Server { server: self.address.to_string(), reason: failure.reason }
    }

    pub(super) fn unavailable(&self, reason: impl std::fmt::Display) -> RetrieveError {
        RetrieveError::Unavailable { backend: "opensearch", reason: format!("{}: {reason}", self.address) }
    }

    /// Asks from where futures run.
    pub(super) async fn ask(
        self: &Arc<Self>,
        method: http::Method,
        path: String,
        body: Option<(Body, Vec<u8>)>,
    ) -> Result<Value, RetrieveError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|error| self.unavailable(error))?;
        let server = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            server
                .send(method, &path, body, ASK_TIMEOUT)
                .map_err(|failure| server.unavailable(failure.reason))
        });
        task.await.unwrap_or_else(|error| Err(self.unavailable(error)))
    }

    /// Asks on this thread, which may wait for minutes.
    pub(super) fn request(
        &self,
        method: http::Method,
        path: &str,
        body: Option<(Body, Vec<u8>)>,
    ) -> Result<Value, Failure> {
        self.send(method, path, body, UPDATE_TIMEOUT)
    }

    fn send(
        &self,
        method: http::Method,
        path: &str,
        body: Option<(Body, Vec<u8>)>,
        timeout: Duration,
    ) -> Result<Value, Failure> {
        let failed = |status, reason| Failure { status, reason };
        let may_have_body = method == http::Method::POST || method == http::Method::PUT;
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}/{path}", self.address.base))
            .header("accept", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let sent = match (body, may_have_body) {
            (None, false) => request.body(()).map_err(ureq::Error::Http).and_then(|request| {
                let request = self.agent.configure_request(request).timeout_global(Some(timeout)).build();
                self.agent.run(request)
            }),
            (body, _) => {
                let kind = match &body {
                    Some((Body::Lines, _)) => "application/x-ndjson",
                    _ => "application/json",
                };
                let bytes = body.map_or_else(Vec::new, |(_, bytes)| bytes);
                // Without its length a body would go in chunks, which OpenSearch advises against.
                let request = request.header("content-type", kind).header("content-length", bytes.len());
                request.body(bytes).map_err(ureq::Error::Http).and_then(|request| {
                    let request = self.agent.configure_request(request).timeout_global(Some(timeout)).build();
                    self.agent.run(request)
                })
            }
        };
        let mut response = sent.map_err(|error| failed(0, unreachable(&error, timeout)))?;
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        let mut reader = response.body_mut().as_reader().take(MOST_BYTES + 1);
        reader
            .read_to_end(&mut bytes)
            .map_err(|error| failed(0, format!("the answer broke off: {error}")))?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(failed(status, format!("the answer has more than {MOST_BYTES} bytes")));
        }
        let answer: Option<Value> = serde_json::from_slice(&bytes).ok();
        match (status, answer) {
            (200..=299, Some(answer)) => Ok(answer),
            (200..=299, None) => Err(failed(
                status,
                "the answer is no JSON: is that OpenSearch, or something in front of it?".into(),
            )),
            (_, answer) => Err(refused(status, answer.as_ref())),
        }
    }
}

/// The certificates of a file in PEM.
fn certificates(path: &std::path::Path) -> Result<Vec<Certificate<'static>>, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| error.to_string())? {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err("there is no certificate in it".to_owned());
    }
    Ok(found)
}

/// Why no answer came, and what to look at.
fn unreachable(error: &ureq::Error, timeout: Duration) -> String {
    match error {
        ureq::Error::Timeout(ureq::Timeout::Connect) => {
            format!(
                "no connection within {} s: is the host right, and does a firewall let it through?",
                CONNECT_TIMEOUT.as_secs()
            )
        }
        ureq::Error::Timeout(_) => format!("no answer within {} s", timeout.as_secs()),
        ureq::Error::HostNotFound => "there is no such host".to_owned(),
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            "the connection is refused: does OpenSearch run there, and is the port right?".to_owned()
        }
        error => {
            let text = error.to_string();
            let lower = text.to_lowercase();
            let advice = if lower.contains("unknownissuer") || lower.contains("unknown issuer") {
                "; name the authority that signed its certificate with ?ca=FILE"
            } else if lower.contains("certificate") {
                "; the certificate must be valid and name this host"
            } else if lower.contains("corrupt") || lower.contains("invalidcontenttype") {
                "; where the cluster speaks plain HTTP, begin the address with opensearch+http://"
            } else {
                ""
            };
            format!("no answer: {text}{advice}")
        }
    }
}

/// What a status other than 2xx means.
fn refused(status: u16, answer: Option<&Value>) -> Failure {
    let said = answer.map(|answer| cause(&answer["error"])).unwrap_or_default();
    let reason = match status {
        401 => "does not accept the credentials (401): set OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD, or put the user into the address".to_owned(),
        403 => format!("the user may not do this (403): {said}"),
        413 => "the request is too large for it (413): raise http.max_content_length there, or the limit of a proxy in front".to_owned(),
        429 => format!("is overloaded (429): {said}"),
        status if said.is_empty() => format!("answers with status {status}"),
        status => format!("{said} ({status})"),
    };
    Failure { status, reason }
}

/// What an error says, the root cause where it has one: its name, and why.
pub(super) fn cause(error: &Value) -> String {
    if let Some(text) = error.as_str() {
        return text.to_owned();
    }
    let root = error["root_cause"].get(0).filter(|root| root["reason"].is_string()).unwrap_or(error);
    let kind = root["type"].as_str().unwrap_or_default();
    let mut said = match root["reason"].as_str() {
        Some(reason) => format!("{kind}: {reason}"),
        None => kind.to_owned(),
    };
    // A document's error says first which field, then why.
    if let Some(deeper) = error["caused_by"]["reason"].as_str().filter(|deeper| !said.contains(deeper)) {
        said += &format!(": {deeper}");
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_say_what_to_do() {
        let body = json!({ "error": {
            "root_cause": [{ "type": "parsing_exception", "reason": "unknown query [x]" }],
            "type": "x_content_parse_exception", "reason": "failed to parse",
        }, "status": 400 });
        let failure = refused(400, Some(&body));
        assert_eq!(failure.reason, "parsing_exception: unknown query [x] (400)");
        assert!(refused(401, None).reason.contains("OPENSEARCH_PASSWORD"));
        assert!(
            refused(404, Some(&json!({ "error": "no handler found", "status": 404 })))
                .reason
                .contains("no handler")
        );
        assert!(refused(503, None).is_passing() && !refused(400, None).is_passing());
        let item = json!({ "type": "mapper_parsing_exception", "reason": "failed to parse field [x]",
            "caused_by": { "type": "illegal_argument_exception", "reason": "Vector dimension mismatch" } });
        assert_eq!(
            cause(&item),
            "mapper_parsing_exception: failed to parse field [x]: Vector dimension mismatch"
        );
    }

    #[test]
    fn a_cluster_that_is_not_there_is_named() {
        let server = Server::open("opensearch+http://me:geheim@127.0.0.1:1/shop").unwrap();
        let failure = server.request(http::Method::GET, "shop/_mapping", None).unwrap_err();
        let error = server.error(failure).to_string();
        assert!(
            error.starts_with("opensearch+http://127.0.0.1:1/shop: the connection is refused"),
            "{error}"
        );
        let error = Server::open("opensearch://host/shop?ca=/nowhere.pem").err().unwrap().to_string();
        assert!(error.contains("ca: /nowhere.pem"), "{error}");
    }
}
