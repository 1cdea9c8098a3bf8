//! One answer from its question to its last event.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::kept::Kept;
use super::log::{Log, Read, Reader};
use super::request::{self, Protocol};
use super::text::Text;
use crate::assistant::compose::{Desk, Summary, TextFailure, compose};
use crate::assistant::event::{End, Event, Plan, Start};
use crate::assistant::grounding::Sentences;
use crate::assistant::hydrate::Shopper;
use crate::assistant::session::{Answer, AnswerKey, Session, SessionKey};
use crate::assistant::stream::{AI_SDK_HEADER, AgUi, AiSdk, Encoder, Whole};
use crate::auth::Tenant;
use crate::body::{Received, Response, events, json_response, whole};
use crate::error::ApiError;
use crate::service::Service;

/// `POST /v1/assist`.
///
/// # Errors
/// What is wrong with the request, or 429 and 503 where there is no room for it. Once events flow, errors are events.
pub(crate) async fn assist(
    service: &Arc<Service>,
    body: Received<'_>,
    tenant: Tenant,
    shopper: Option<Shopper>,
) -> Result<Response, ApiError> {
    let model = service.ready()?.clone();
    let bytes = body.bytes.clone();
    let ask = service.compute(body.bytes.len(), move || request::ask(&bytes)).await?;
    drop(body);
    let running = service.admit()?;
    let protocol = ask.protocol;
    let job = Job::begin(service, model, ask, tenant, shopper, running).await?;
    if protocol == Protocol::Json {
        let mut whole = Whole::default();
        job.run(|event| whole.add(event)).await?;
        return Ok(json_response(StatusCode::OK, &whole.json()));
    }
    let (encoder, headers): (Box<dyn Encoder>, _) = match protocol {
        Protocol::AgUi => (Box::new(AgUi::default()), Vec::new()),
        _ => (Box::new(AiSdk::default()), vec![AI_SDK_HEADER]),
    };
    let log = Log::new(&job.start.message_id, headers);
    service.assistant().logs().put(job.session_key.clone(), log.clone());
    let reader = log.reader(None);
    let grace = Duration::from_millis(service.assistant().config.resume_grace_ms);
    tokio::spawn(write(job, log.clone(), encoder, grace));
    Ok(stream(service, &log, reader))
}

/// `GET /v1/assist/{session}/stream`: the rest of the session's last answer, after `Last-Event-ID`; 204 where there is
/// none.
pub(crate) fn resume(
    service: &Arc<Service>,
    session: &str,
    tenant: &Tenant,
    shopper: Option<&Shopper>,
    last: Option<&str>,
) -> Response {
    let log = service.assistant().log(&SessionKey::new(tenant, session, shopper));
    match log.filter(|log| last.is_some() || !log.has_ended()) {
        Some(log) => stream(service, &log, log.reader(last)),
        None => whole(StatusCode::NO_CONTENT, "text/plain", ""),
    }
}

/// Runs an answer into its log, on its own: its reader may go and come back.
async fn write(job: Job, log: Arc<Log>, mut encoder: Box<dyn Encoder>, grace: Duration) {
    /// However the task ends, no reader waits for more.
    struct Ended(Arc<Log>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.end();
        }
    }
    let ended = Ended(log);
    let log = &ended.0;
    let complete = tokio::select! {
        // An error is in the log.
        _ = job.run(|event| encoder.encode(&event).iter().for_each(|data| log.write(data))) => true,
        () = log.abandoned(grace) => false,
    };
    if !complete {
        encoder.encode(&Event::End(End::Aborted)).iter().for_each(|data| log.write(data));
    }
}

/// A response that reads a log.
fn stream(service: &Service, log: &Log, mut reader: Reader) -> Response {
    let keep_alive = service.config.limits.keep_alive;
    let mut response = events(move |mut sink| async move {
        loop {
            tokio::select! {
                read = reader.read() => match read {
                    Read::Frames(frames) => sink.frames(&frames),
                    Read::End => break,
                    Read::Lost => {
                        sink.comment("what comes next is no longer kept");
                        sink.flush().await;
                        break;
                    }
                },
                () = sleep(keep_alive) => sink.comment("waiting"),
            }
            sink.flush().await;
        }
    });
    for (name, value) in &log.headers {
        response.headers_mut().insert(*name, HeaderValue::from_static(value));
    }
    response
}

/// An answer about to be given.
pub(super) struct Job {
    pub(super) service: Arc<Service>,
    pub(super) text: Text,
    pub(super) desk: Desk,
    pub(super) start: Start,
    pub(super) plan: Plan,
    /// What the shopper's message is in the conversation.
    pub(super) message: String,
    pub(super) session: Session,
    pub(super) session_key: SessionKey,
    /// Products that the question is about.
    pub(super) about: Vec<String>,
    pub(super) cache_key: Option<AnswerKey>,
    pub(super) arrival: Instant,
    pub(super) kept: Option<Kept>,
}

impl Job {
    /// Gives the answer, to its [`Event::End`].
    ///
    /// # Errors
    /// Where it failed, which the events say too.
    async fn run(mut self, mut emit: impl FnMut(Event) + Send) -> Result<(), ApiError> {
        let waited = self.arrival.elapsed();
        emit(Event::Start(self.start.clone()));
        emit(Event::Plan(self.plan.clone()));
        let (summary, result) = compose(&mut self.text, &self.desk, &mut emit).await;
        if let Err(TextFailure { code, message }) = result {
            emit(Event::End(End::Failed { code, message }));
            let error = match self.text {
                Text::Engine(engine) => engine.error,
                Text::Replay(..) => None,
            };
            return Err(error.unwrap_or_else(ApiError::internal));
        }
        let mut metadata = self.metadata(&summary, waited);
        let kept = self.kept.take();
        if let Some(kept) = &kept {
            metadata.insert("feedbackToken".into(), kept.token().into());
        }
        emit(Event::Metadata(metadata.clone()));
        if let Some(kept) = kept {
            let ids = match &mut self.text {
                Text::Engine(engine) => Some(std::mem::take(&mut engine.token_ids)),
                Text::Replay(..) => None,
            };
            kept.finish(&summary.raw, ids, &self.plan, &metadata);
        }
        // Before the end is out: the next question may follow at once.
        self.remember(summary, waited);
        emit(Event::End(End::Finished));
        Ok(())
    }

    fn metadata(&self, summary: &Summary, waited: Duration) -> Map<String, Value> {
        let millis = |d: Option<Duration>| d.map(|d| (d + waited).as_millis() as u64);
        let (input, output, cached, finish) = match &self.text {
            Text::Engine(engine) => {
                let choice = &engine.choices.list()[0];
                (
                    engine.prompt_tokens as u64,
                    u64::from(choice.generated),
                    u64::from(choice.cached),
                    engine.finish,
                )
            }
            Text::Replay(..) => (0, 0, 0, "stop"),
        };
        let Sentences { total, cited, supported } = summary.sentences;
        let [ready, stale, unavailable] = summary.cards;
        let metadata = json!({
            "finishReason": finish,
            "usage": {
                "inputTokens": input, "outputTokens": output, "totalTokens": input + output, "cachedInputTokens": cached,
            },
            "answerCached": matches!(self.text, Text::Replay(..)),
            "grounding": { "supported": supported, "cited": cited, "total": total },
            "cards": { "ready": ready, "stale": stale, "unavailable": unavailable },
            "dropped": {
                "directives": summary.dropped, "links": summary.links_dropped, "amounts": summary.amounts_dropped,
                "availability": summary.availability_dropped,
            },
            "timings": {
                "retrievalMs": waited.as_millis() as u64,
                "firstTextMs": millis(summary.first_text),
                "firstCardMs": millis(summary.first_card),
                "lastHydrationMs": millis(summary.last_hydration),
                "totalMs": self.arrival.elapsed().as_millis() as u64,
            },
        });
        match metadata {
            Value::Object(map) => map,
            _ => unreachable!("an object"),
        }
    }

    fn remember(&mut self, summary: Summary, waited: Duration) {
        let assistant = self.service.assistant();
        assistant.metrics.answered(&summary, &self.plan, waited);
        let finished = matches!(&self.text, Text::Engine(engine) if engine.finish == "stop");
        if let Some(key) = self.cache_key.filter(|_| finished) {
            let mut products: Vec<String> = self.desk.products.iter().cloned().collect();
            products.sort();
            let (raw, citations) = (summary.raw.clone(), self.desk.citations.clone());
            assistant.answers().put(
                key,
                Answer {
                    raw,
                    citations,
                    products,
                    names: self.desk.names.clone(),
                    message: self.message.clone(),
                },
            );
        }
        let mut session = std::mem::take(&mut self.session);
        let last = self.desk.citations.last().map_or(0, |citation| citation.number);
        if !summary.named.is_empty() {
            session.products = summary.named;
        } else if !self.about.is_empty() {
            session.products.clone_from(&self.about);
        }
        session.add(std::mem::take(&mut self.message), summary.raw, last);
        assistant.sessions().put(self.session_key.clone(), session);
    }
}
