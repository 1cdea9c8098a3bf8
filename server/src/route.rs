//! From a request's method and path to its answer. Everything is decided on [`Route`]: what exists, who may use it, and
//! how it is counted.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use crate::assistant::assist;
use crate::assistant::hydrate::Shopper;
use crate::auth;
use crate::body::{Response, json_response, read, whole};
use crate::error::ApiError;
use crate::feedback;
use crate::metrics::to_prometheus_text;
use crate::openai::{self, Caller};
use crate::page;
use crate::service::Service;

/// What the server can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Route<'a> {
    Chat,
    Completion,
    Embeddings,
    Assist,
    /// The stream of a session's last answer.
    AssistStream(&'a str),
    Feedback,
    Tokenize,
    Detokenize,
    Models,
    Model(&'a str),
    Health,
    Ping,
    Version,
    Metrics,
    /// A file of the page.
    Page(&'static page::Asset),
}

/// The route, or 404, or 405.
fn find<'a>(method: &Method, path: &'a str) -> Result<Route<'a>, ApiError> {
    let get = matches!(*method, Method::GET | Method::HEAD);
    let post = *method == Method::POST;
    let (route, allowed, allow) = match path {
        "/v1/chat/completions" => (Route::Chat, post, "POST"),
        "/v1/completions" => (Route::Completion, post, "POST"),
        "/v1/embeddings" => (Route::Embeddings, post, "POST"),
        "/v1/assist" => (Route::Assist, post, "POST"),
        "/v1/feedback" => (Route::Feedback, get || *method == Method::PUT, "GET, HEAD, PUT"),
        "/tokenize" => (Route::Tokenize, post, "POST"),
        "/detokenize" => (Route::Detokenize, post, "POST"),
        "/v1/models" => (Route::Models, get, "GET, HEAD"),
        "/health" => (Route::Health, get, "GET, HEAD"),
        "/ping" => (Route::Ping, get || post, "GET, HEAD, POST"),
        "/version" => (Route::Version, get, "GET, HEAD"),
        "/metrics" => (Route::Metrics, get, "GET, HEAD"),
        _ => match (path.strip_prefix("/v1/models/"), session_of(path)) {
            (Some(name), _) if !name.is_empty() => (Route::Model(name), get, "GET, HEAD"),
            (_, Some(session)) => (Route::AssistStream(session), *method == Method::GET, "GET"),
            _ => (Route::Page(page::find(path).ok_or_else(|| ApiError::no_route(path))?), get, "GET, HEAD"),
        },
    };
    if allowed { Ok(route) } else { Err(ApiError::method(allow)) }
}

/// What identifies the shopper to the store.
fn shopper(headers: &HeaderMap) -> Option<Shopper> {
    let token = headers.get("x-shopper-token")?.to_str().ok()?;
    Some(Shopper(token.to_owned()))
}

/// The session in the path of its stream.
fn session_of(path: &str) -> Option<&str> {
    let session = path.strip_prefix("/v1/assist/")?.strip_suffix("/stream")?;
    (!session.is_empty() && !session.contains('/')).then_some(session)
}

impl Route<'_> {
    /// Whether the route needs no key. Only probes do not, which cannot carry one and tell no more than that the
    /// server is up, and the page, which a browser opens without one and which tells nothing; `/metrics` and `/version`
    /// tell more. A new route is closed until it is named here.
    fn is_open(self) -> bool {
        matches!(self, Route::Health | Route::Ping | Route::Page(_))
    }

    /// As in `handler` of the HTTP metrics.
    fn name(self) -> &'static str {
        match self {
            Route::Chat => "/v1/chat/completions",
            Route::Completion => "/v1/completions",
            Route::Embeddings => "/v1/embeddings",
            Route::Assist => "/v1/assist",
            Route::AssistStream(_) => "/v1/assist/{session}/stream",
            Route::Feedback => "/v1/feedback",
            Route::Tokenize => "/tokenize",
            Route::Detokenize => "/detokenize",
            Route::Models => "/v1/models",
            Route::Model(_) => "/v1/models/{id}",
            Route::Health => "/health",
            Route::Ping => "/ping",
            Route::Version => "/version",
            Route::Metrics => "/metrics",
            Route::Page(_) => "/",
        }
    }
}

/// Answers a request.
pub(crate) async fn handle(service: Arc<Service>, request: Request<Incoming>) -> Response {
    let (head, body) = request.into_parts();
    let request_id = request_id(&head.headers);
    let route = find(&head.method, head.uri.path());
    // Paths and methods that do not exist are the client's invention, and each would be a new time series.
    let (name, method) = match &route {
        Ok(route) => (route.name(), Some(head.method.clone())),
        Err(_) => ("none", None),
    };
    let answer = answer(&service, route, &head, body, request_id.clone()).await;
    let mut response = answer.unwrap_or_else(Response::from);
    service.http.count(name, method.as_ref().map_or("none", Method::as_str), response.status().as_u16());
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

async fn answer(
    service: &Arc<Service>,
    route: Result<Route<'_>, ApiError>,
    head: &Parts,
    body: Incoming,
    request_id: String,
) -> Result<Response, ApiError> {
    let headers = &head.headers;
    auth::check_host(&service.config, headers)?;
    let tenant = match &route {
        Ok(route) if route.is_open() => auth::Tenant::default(),
        // Also before 404 and 405: without a key nothing is told.
        _ => auth::check(&service.config, headers)?,
    };
    let read = |body| read(headers, body, &service.config.limits, &service.bodies);
    match route? {
        Route::Chat => {
            // Nothing is read that could not be answered.
            service.ready()?;
            let body = read(body).await?;
            openai::chat(service, body, Caller { request_id, tenant }).await
        }
        Route::Completion => {
            service.ready()?;
            let body = read(body).await?;
            openai::completion(service, body, Caller { request_id, tenant }).await
        }
        Route::Embeddings => {
            service.ready()?;
            openai::embeddings(service, read(body).await?).await
        }
        Route::Assist => {
            service.ready()?;
            assist::assist(service, read(body).await?, tenant, shopper(headers)).await
        }
        Route::AssistStream(session) => {
            // Until the model is there nothing has been answered, and the assistant itself may still be on its way.
            service.loaded()?;
            let last = headers.get("last-event-id").and_then(|v| v.to_str().ok());
            Ok(assist::resume(service, session, &tenant, shopper(headers).as_ref(), last))
        }
        Route::Feedback if head.method == Method::PUT => {
            feedback::vote(service, headers, body, &tenant).await
        }
        Route::Feedback => feedback::read(service, headers, head.uri.query(), &tenant).await,
        Route::Tokenize => {
            service.loaded()?;
            openai::tokenize(service, read(body).await?).await
        }
        Route::Detokenize => {
            service.loaded()?;
            openai::detokenize(service, read(body).await?).await
        }
        Route::Models => openai::models(service),
        Route::Model(name) => openai::model(service, name),
        Route::Health | Route::Ping => {
            service.ready()?;
            Ok(whole(StatusCode::OK, "text/plain", ""))
        }
        Route::Version => {
            let mut body = json!({ "version": service.config.version });
            if let Some(neuron) = service.loaded().ok().and_then(|model| model.metrics.neuron()) {
                body["neuron"] = json!({ "library": neuron.library, "ranks": neuron.ranks });
            }
            Ok(json_response(StatusCode::OK, &body))
        }
        Route::Metrics => Ok(metrics(service, headers)),
        Route::Page(asset) => Ok(page::serve(asset, headers)),
    }
}

/// OpenMetrics for those who ask for it, else the older text format, which everybody reads.
fn metrics(service: &Service, headers: &HeaderMap) -> Response {
    let mut text = String::new();
    if let Ok(model) = service.loaded() {
        model.metrics.encode(&mut text);
    }
    if let Some(feedback) = service.feedback() {
        feedback.encode_metrics(&mut text);
    }
    service.http.encode(&mut text);
    service.encode_assistant(&mut text);
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    if accept.contains("application/openmetrics-text") {
        text += "# EOF\n";
        whole(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
    } else {
        whole(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", to_prometheus_text(&text))
    }
}

/// The client's `X-Request-Id` where it can be echoed safely, else one of 128 random bits.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|v| v.to_str().ok());
    let safe = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    given.filter(safe).map_or_else(random_id, str::to_owned)
}

/// 128 random bits in hexadecimal.
pub(crate) fn random_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    // Each state has keys of its own, drawn by the system.
    let half = || RandomState::new().hash_one(std::time::Instant::now());
    format!("{:016x}{:016x}", half(), half())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_paths_are_routes() {
        for path in [
            "/v1/chat/completions/",
            "//v1/models",
            "/V1/models",
            "/v1/models;x",
            "/v1/%6dodels",
            "/v1/models/",
            "/page",
            "/page/",
            "/page/index.html",
            "/page/../page/app.js",
            "",
        ] {
            let found = find(&Method::GET, path);
            assert!(found.is_err(), "{path}: {found:?}");
        }
        assert!(matches!(find(&Method::HEAD, "/"), Ok(Route::Page(_))));
        assert!(find(&Method::POST, "/").is_err());
        assert_eq!(find(&Method::GET, "/v1/models/a/b").unwrap(), Route::Model("a/b"));
    }

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| random_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }
}
