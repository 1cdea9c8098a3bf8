//! The messages of MCP over HTTP: one POST each, whose answer is JSON or a stream of events of which one is the answer.
//! What a server would like to say unasked is not listened to.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use futures_util::stream::BoxStream;
use hyper::header::{HeaderName, HeaderValue};
use rmcp::model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    HttpStatusError, SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::Sse;

use super::http::MOST_BYTES;

const SESSION: &str = "mcp-session-id";

type Headers = HashMap<HeaderName, HeaderValue>;
type Failure = StreamableHttpError<HttpError>;

/// Why a message did not get through.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("no answer in time")]
    Timeout,
    #[error("no connection, or one that broke")]
    Unreachable,
    #[error("HTTP {0}")]
    Status(u16),
    #[error("the answer is no message")]
    Malformed,
}

/// An HTTP client that blocks a thread for each message under way, of which the source's `concurrency` bounds the number.
#[derive(Clone)]
pub(super) struct Client(Arc<Inner>);

struct Inner {
    agent: ureq::Agent,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Client {
    /// One that sends these headers with each message.
    pub(super) fn new(agent: ureq::Agent, headers: &BTreeMap<String, String>) -> Result<Self, ()> {
        let header = |(name, value): (&String, &String)| {
            Ok((name.parse().map_err(|_| ())?, value.parse().map_err(|_| ())?))
        };
        let headers = headers.iter().map(header).collect::<Result<_, ()>>()?;
        Ok(Client(Arc::new(Inner { agent, headers })))
    }
}

impl StreamableHttpClient for Client {
    type Error = HttpError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _authorization: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || inner.post(&uri, &message, session.as_deref(), &headers)).await?
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        _authorization: Option<String>,
        headers: Headers,
    ) -> Result<(), Failure> {
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let mut request = inner.agent.delete(&*uri).header(SESSION, &*session);
            for (name, value) in inner.headers.iter().map(|(n, v)| (n, v)).chain(&headers) {
                request = request.header(name, value);
            }
            request.call().map(drop).map_err(|error| failure(&error))
        })
        .await?
    }

    async fn get_stream(
        &self,
        _uri: Arc<str>,
        _session: Option<Arc<str>>,
        _last_event_id: Option<String>,
        _authorization: Option<String>,
        _headers: Headers,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
        Err(StreamableHttpError::ServerDoesNotSupportSse)
    }
}

fn failure(error: &ureq::Error) -> Failure {
    StreamableHttpError::Client(match error {
        ureq::Error::Timeout(_) => HttpError::Timeout,
        _ => HttpError::Unreachable,
    })
}

fn broken(error: &std::io::Error) -> Failure {
    // The client wraps its own errors where a body is read.
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    if let Some(inner) = inner {
        return failure(inner);
    }
    StreamableHttpError::Client(match error.kind() {
        std::io::ErrorKind::TimedOut => HttpError::Timeout,
        _ => HttpError::Unreachable,
    })
}

impl Inner {
    fn post(
        &self,
        uri: &str,
        message: &ClientJsonRpcMessage,
        session: Option<&str>,
        headers: &Headers,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let mut request = self
            .agent
            .post(uri)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        for (name, value) in self.headers.iter().map(|(n, v)| (n, v)).chain(headers) {
            request = request.header(name, value);
        }
        if let Some(session) = session {
            request = request.header(SESSION, session);
        }
        let response = request.send(&serde_json::to_vec(message)?[..]).map_err(|error| failure(&error))?;
        let status = response.status().as_u16();
        match status {
            202 | 204 => return Ok(StreamableHttpPostResponse::Accepted),
            404 if session.is_some() => return Err(StreamableHttpError::SessionExpired),
            401 | 403 => return Err(StreamableHttpError::Client(HttpError::Status(status))),
            429 => return Err(HttpStatusError::new(status, None).into()),
            _ => {}
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let (kind, opened) =
            (header("content-type").unwrap_or_default().to_ascii_lowercase(), header(SESSION));
        let opened = opened.map(str::to_owned);
        let body = response.into_body().into_reader().take(MOST_BYTES + 1);
        let awaited = matches!(message, JsonRpcMessage::Request(_));
        let answer = if kind.starts_with("text/event-stream") {
            from_events(BufReader::new(body))?
        } else {
            let text = whole(body)?;
            if !awaited && (200..300).contains(&status) {
                return Ok(StreamableHttpPostResponse::Accepted);
            }
            serde_json::from_slice(&text).ok()
        };
        match (status, answer) {
            // An error of JSON-RPC says more than the status that comes with it.
            (_, Some(answer @ JsonRpcMessage::Error(_))) => {
                Ok(StreamableHttpPostResponse::Json(answer, opened))
            }
            (200..=299, Some(answer)) => Ok(StreamableHttpPostResponse::Json(answer, opened)),
            (200..=299, None) => Err(StreamableHttpError::Client(HttpError::Malformed)),
            (500.., _) => Err(HttpStatusError::new(status, None).into()),
            _ => Err(StreamableHttpError::Client(HttpError::Status(status))),
        }
    }
}

fn whole(mut body: impl Read) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    body.read_to_end(&mut text).map_err(|error| broken(&error))?;
    match text.len() as u64 > MOST_BYTES {
        true => Err(StreamableHttpError::ResponseBodyTooLarge { max_size: MOST_BYTES as usize }),
        false => Ok(text),
    }
}

/// The first event that is an answer; the connection need not end behind it. `None` where an event is no message.
fn from_events(mut body: impl BufRead) -> Result<Option<ServerJsonRpcMessage>, Failure> {
    let (mut line, mut data) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let end = body.read_until(b'\n', &mut line).map_err(|error| broken(&error))? == 0;
        let text = line.trim_ascii_end();
        if let Some(more) = text.strip_prefix(b"data:") {
            if !data.is_empty() {
                data.push(b'\n');
            }
            data.extend(more.strip_prefix(b" ").unwrap_or(more));
        }
        if (end || text.is_empty()) && !data.trim_ascii().is_empty() {
            match serde_json::from_slice(&data) {
                Ok(answer @ (JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_))) => {
                    return Ok(Some(answer));
                }
                Ok(_) => data.clear(),
                Err(_) => return Ok(None),
            }
        }
        if end {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_found_among_events() {
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}"#;
        let progress =
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}"#;
        let (first, second) = answer.split_at(16);
        for (stream, found) in [
            (format!("event: message\r\nid: 1\r\ndata: {answer}\r\n\r\n"), true),
            (format!(": ping\n\ndata:\n\ndata: {progress}\n\ndata:{answer}\n\nnever read"), true),
            (format!("data: {first}\ndata: {second}"), true),
            (format!("data: {progress}\n\n"), false),
            ("data: {\n\n".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(from_events(stream.as_bytes()).unwrap().is_some(), found, "{stream}");
        }
    }
}
