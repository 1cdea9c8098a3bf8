//! What a client hears when something is wrong, in OpenAI's shape.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use millrace_engine::{RequestError, SubmitError};
use serde_json::{Value, json};

use crate::body::{Body, Response, json_response};

/// An answer other than 2xx. Its message names the field, the bound and the value, and nothing of the inside.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
    allow: Option<&'static str>,
    close: bool,
}

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        ApiError { status, kind, code, param: None, message, retry_after: None, allow: None, close: false }
    }

    /// 400 for one field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError { param: Some(param.into()), ..ApiError::invalid(message) }
    }

    /// 400 for the request as a whole.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// 400: a field of the API that this server does not implement. It is refused, since ignoring it would give another
    /// answer than the one asked for.
    pub(crate) fn unsupported(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("{param}: not supported by this server");
        ApiError { code: Some("unsupported_parameter"), ..ApiError::field(param, message) }
    }

    /// 400: prompt and answer do not fit.
    pub(crate) fn too_long(param: &str, message: String) -> Self {
        ApiError { code: Some("context_length_exceeded"), ..ApiError::field(param, message) }
    }

    /// 401.
    pub(crate) fn unauthorized(message: &str) -> Self {
        ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message)
    }

    /// 403: this server is not meant to be reached under that name.
    pub(crate) fn host(host: &str) -> Self {
        let message = format!("host {host:?} is not a name of this server; use localhost or an IP address");
        ApiError::new(StatusCode::FORBIDDEN, "permission_error", Some("host_not_allowed"), message)
    }

    /// 401: what authorises this one request is not there.
    pub(crate) fn missing_token(param: &str, message: &str) -> Self {
        let code = Some("missing_token");
        let error = ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", code, message);
        ApiError { param: Some(param.into()), ..error }
    }

    /// 403 for a field.
    pub(crate) fn forbidden(code: &'static str, param: &str, message: String) -> Self {
        let error = ApiError::new(StatusCode::FORBIDDEN, "permission_error", Some(code), message);
        ApiError { param: Some(param.into()), ..error }
    }

    /// 404 for something other than a path.
    pub(crate) fn not_found(code: &'static str, message: &str) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, "not_found_error", Some(code), message)
    }

    /// 409 for a field.
    pub(crate) fn conflict(code: &'static str, param: &str, message: String) -> Self {
        let error = ApiError::new(StatusCode::CONFLICT, "invalid_request_error", Some(code), message);
        ApiError { param: Some(param.into()), ..error }
    }

    /// 404 for a path.
    pub(crate) fn no_route(path: &str) -> Self {
        let message = format!("there is no {}", crate::json::shorten(path));
        ApiError::new(StatusCode::NOT_FOUND, "not_found_error", None, message)
    }

    /// 404 for a model.
    pub(crate) fn no_model(name: &str, served: &str) -> Self {
        let message =
            format!("model: {} does not exist here; served is {served:?}", crate::json::shorten(name));
        let error = ApiError::new(StatusCode::NOT_FOUND, "not_found_error", Some("model_not_found"), message);
        ApiError { param: Some("model".into()), ..error }
    }

    /// 404: no encoder was loaded.
    pub(crate) fn no_embeddings() -> Self {
        let message = "this server has no embedding model; millrace serve --embedding-model loads one";
        ApiError::new(StatusCode::NOT_FOUND, "not_found_error", Some("model_not_found"), message)
    }

    /// 405.
    pub(crate) fn method(allow: &'static str) -> Self {
        let message = format!("this path answers to {allow}");
        let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", None, message);
        ApiError { allow: Some(allow), ..error }
    }

    /// 408.
    pub(crate) fn slow_body() -> Self {
        let message = "the request body arrived too slowly";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", None, message).closing()
    }

    /// 413.
    pub(crate) fn large_body(limit: usize) -> Self {
        let message = format!("the request body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", None, message).closing()
    }

    /// 415.
    pub(crate) fn media_type(message: &str) -> Self {
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", None, message)
    }

    /// 500. The cause goes to the log, not to the client.
    pub(crate) fn internal() -> Self {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, "internal error")
    }

    /// 503: not ready yet, or not any more.
    pub(crate) fn unavailable(code: &'static str, message: &str) -> Self {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some(code), message);
        ApiError { retry_after: Some(Duration::from_secs(1)), ..error }
    }

    /// 503: the server shuts down.
    pub(crate) fn draining() -> Self {
        ApiError::unavailable("server_draining", "the server is shutting down").closing()
    }

    /// The connection is of no further use.
    fn closing(self) -> Self {
        ApiError { close: true, ..self }
    }

    /// Whether the same request may succeed later, here or on another server.
    fn retryable(&self) -> bool {
        matches!(
            self.status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        )
    }

    /// The JSON body.
    pub(crate) fn body(&self) -> Value {
        json!({ "error": self.fields() })
    }

    /// The event that ends a stream. Clients that see a stream merely end take it for complete, so the error says
    /// itself whether to try again.
    pub(crate) fn event(&self) -> Value {
        let mut error = self.fields();
        error["retryable"] = self.retryable().into();
        json!({ "error": error })
    }

    fn fields(&self) -> Value {
        json!({ "message": self.message, "type": self.kind, "param": self.param, "code": self.code })
    }
}

impl From<ApiError> for Response {
    fn from(error: ApiError) -> Response {
        let mut response: hyper::Response<Body> = json_response(error.status, &error.body());
        let headers = response.headers_mut();
        if error.status.as_u16() >= 429 || error.status == StatusCode::REQUEST_TIMEOUT {
            // SDKs retry 408, 429 and every 5xx unless told otherwise; a request that failed by itself must not come
            // back three times.
            let retry = if error.retryable() { "true" } else { "false" };
            headers.insert("x-should-retry", HeaderValue::from_static(retry));
        }
        if let Some(after) = error.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil().max(1.0) as u64));
        }
        if let Some(allow) = error.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if error.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if error.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        match error {
            SubmitError::Invalid { param, message } => ApiError::field(param, message),
            SubmitError::QueueFull { retry_after, .. } => {
                let (status, code) = (StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"));
                let error = ApiError::new(status, "rate_limit_error", code, error.to_string());
                ApiError { retry_after: Some(retry_after), ..error }
            }
            SubmitError::Closed => ApiError::draining(),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> ApiError {
        match error {
            RequestError::Refused(cause) => {
                tracing::error!(cause, "a request failed in the engine");
                let message = "the engine could not compute this request";
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                ApiError::new(status, "server_error", Some("request_failed"), message)
            }
            RequestError::Constraint(cause) => {
                let message = format!("the grammar of the output could not be followed further: {cause}");
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                ApiError::new(status, "invalid_request_error", Some("grammar_failed"), message)
            }
            RequestError::EngineDead(cause) => {
                tracing::error!(cause, "the engine has failed");
                ApiError::unavailable("engine_dead", "the engine has failed").closing()
            }
        }
    }
}
