//! Bodies: what goes out whole or as server-sent events, and what comes in within limits of size and time.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::{Instant, timeout_at};

use crate::config::Limits;
use crate::error::ApiError;

pub(crate) type Response = hyper::Response<Body>;

/// A response's body. Hyper drops it when the client has gone; with it goes whatever still produces it, down to the
/// channels from the engine, which is how a request is cancelled.
pub(crate) enum Body {
    Whole(Option<Bytes>),
    Events(Events),
}

/// Server-sent events, made by a future that is polled by the connection itself: no task to forget, and nobody
/// produces what the client does not read.
pub(crate) struct Events {
    frames: mpsc::Receiver<Bytes>,
    producer: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Where the producer of [`Events`] puts them.
pub(crate) struct EventSink {
    frames: mpsc::Sender<Bytes>,
    buffer: String,
}

impl EventSink {
    /// Adds an event; it leaves with the next [`flush`](EventSink::flush).
    pub(crate) fn event(&mut self, data: &impl Serialize) {
        let json =
            serde_json::to_string(data).unwrap_or_else(|_| unreachable!("JSON values have string keys"));
        self.raw(&json);
    }

    /// Adds an event with data that is no JSON. It must not contain a line break.
    pub(crate) fn raw(&mut self, data: &str) {
        let _ = write!(self.buffer, "data: {data}\n\n");
    }

    /// Adds whole events as they are.
    pub(crate) fn frames(&mut self, frames: &str) {
        self.buffer.push_str(frames);
    }

    /// Adds a comment, which clients skip.
    pub(crate) fn comment(&mut self, text: &str) {
        let _ = write!(self.buffer, ": {text}\n\n");
    }

    /// Whether so much was added that it should leave before more is.
    pub(crate) fn is_full(&self) -> bool {
        self.buffer.len() >= 32 << 10
    }

    /// Hands everything added to the connection and waits until it took the previous frame.
    pub(crate) async fn flush(&mut self) {
        if !self.buffer.is_empty() {
            // The receiver lives in the same body as the future that calls this.
            let _ = self.frames.send(Bytes::from(std::mem::take(&mut self.buffer))).await;
        }
    }
}

/// A response of events.
pub(crate) fn events<F, P>(producer: P) -> Response
where
    P: FnOnce(EventSink) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, frames) = mpsc::channel(1);
    let producer = Box::pin(producer(EventSink { frames: sender, buffer: String::new() }));
    let mut response = Response::new(Body::Events(Events { frames, producer: Some(producer) }));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A response of JSON.
pub(crate) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let json = serde_json::to_vec(value).unwrap_or_else(|_| unreachable!("JSON values have string keys"));
    whole(status, "application/json", json)
}

/// A response of one piece.
pub(crate) fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::Whole(Some(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Body::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b))))
            }
            Body::Events(events) => events.poll_next(cx).map(|frame| frame.map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Body::Events(_) => SizeHint::default(),
        }
    }
}

impl Events {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Poll::Ready(frame) = self.frames.poll_recv(cx) {
                return Poll::Ready(frame);
            }
            // Without a producer the channel still has frames or is closed: what is pending then is only this task's
            // turn, of which tokio has arranged the next.
            let Some(producer) = &mut self.producer else { return Poll::Pending };
            match producer.as_mut().poll(cx) {
                Poll::Ready(()) => self.producer = None,
                // What it may have sent before it had to wait.
                Poll::Pending => return self.frames.poll_recv(cx),
            }
        }
    }
}

/// A request's body, and its share of the memory that all bodies may take.
pub(crate) struct Received<'a> {
    pub(crate) bytes: Bytes,
    _memory: SemaphorePermit<'a>,
}

/// Reads a body of JSON.
///
/// # Errors
/// 408, 413, 415; 400 where its framing is wrong.
pub(crate) async fn read<'a>(
    headers: &HeaderMap,
    mut body: Incoming,
    limits: &Limits,
    memory: &'a Semaphore,
) -> Result<Received<'a>, ApiError> {
    let media = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    if !media.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json") {
        // Strict also because a web page may send any other type across origins without asking.
        return Err(ApiError::media_type("Content-Type must be application/json"));
    }
    if headers.get("content-encoding").is_some_and(|v| v != "identity") {
        return Err(ApiError::media_type("Content-Encoding must be identity"));
    }
    let announced = hyper::body::Body::size_hint(&body).exact();
    if announced.is_some_and(|n| n > limits.body_bytes as u64) {
        if !headers.contains_key("expect") {
            discard(body, limits).await;
        }
        return Err(ApiError::large_body(limits.body_bytes));
    }
    // In KiB, since a permit count must fit 32 bits.
    let share = announced.map_or(limits.body_bytes, |n| n as usize).div_ceil(1024);
    let memory = memory.acquire_many(share as u32).await.map_err(|_| ApiError::draining())?;

    let start = Instant::now();
    let mut bytes = BytesMut::with_capacity(announced.map_or(0, |n| n as usize));
    loop {
        let allowed =
            limits.body_grace + Duration::from_secs_f64(bytes.len() as f64 / limits.body_rate as f64);
        let frame = match timeout_at(start + allowed, body.frame()).await {
            Err(_) => return Err(ApiError::slow_body()),
            Ok(None) => break,
            Ok(Some(frame)) => frame.map_err(|e| {
                tracing::debug!(error = %e, "while reading a body");
                ApiError::invalid("the request body is incomplete or its framing is wrong")
            })?,
        };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limits.body_bytes {
            discard(body, limits).await;
            return Err(ApiError::large_body(limits.body_bytes));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Received { bytes: bytes.freeze(), _memory: memory })
}

/// Lets a client finish a body that is too large, within reason: closing a socket with unread data in it resets the
/// connection, and the client would never see why.
async fn discard(mut body: Incoming, limits: &Limits) {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut left = limits.body_bytes.saturating_mul(16);
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task that has used up its turn sees channels as pending; that must not look like the end.
    #[tokio::test]
    async fn every_event_arrives_however_many_there_are() {
        for (count, used) in (1..200).flat_map(|count| [(count, 0), (count, 1)]) {
            let body = events(|mut sink| async move {
                for i in 0..count {
                    sink.event(&i);
                    sink.flush().await;
                }
            });
            let reader = async move {
                for _ in 0..used {
                    tokio::task::consume_budget().await;
                }
                body.into_body().collect().await
            };
            let bytes = tokio::spawn(reader).await.unwrap().unwrap().to_bytes();
            let expected: String = (0..count).map(|i| format!("data: {i}\n\n")).collect();
            assert_eq!(bytes, expected);
        }
    }
}
