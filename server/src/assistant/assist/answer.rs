//! One answer from its question to its last event.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use millrace_engine::{Constraint, Request, SamplingParams};
use millrace_models::text::{RenderOptions, StopStrings};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::Assistant;
use super::kept::Kept;
use super::log::{Log, Read, Reader};
use super::request::{self, Ask, Protocol};
use super::retrieve::{Finding, find};
use crate::assistant::compose::{Desk, Summary, TextFailure, TextSource, compose};
use crate::assistant::directive::Directive;
use crate::assistant::event::{Citation, End, Event, Plan, Start};
use crate::assistant::hydrate::{Role, Shopper};
use crate::assistant::prompt::{self, Dossier};
use crate::assistant::session::{Answer, AnswerKey, Session, normalise};
use crate::assistant::source::{Product, Source};
use crate::assistant::stream::{AI_SDK_HEADER, AgUi, AiSdk, Encoder, Whole};
use crate::auth::Tenant;
use crate::body::{Received, Response, events, json_response, whole};
use crate::error::ApiError;
use crate::grammar::{self, Allowed};
use crate::openai::{Choice, Choices, Rules, template_error};
use crate::route::random_id;
use crate::service::{Loaded, Running, Service};

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
pub(crate) fn resume(service: &Arc<Service>, session: &str, tenant: &Tenant, last: Option<&str>) -> Response {
    let log = service.assistant().logs().get(&session_key(tenant, session)).cloned();
    match log.filter(|log| last.is_some() || !log.has_ended()) {
        Some(log) => stream(service, &log, log.reader(last)),
        None => whole(StatusCode::NO_CONTENT, "text/plain", ""),
    }
}

fn session_key(tenant: &Tenant, session: &str) -> String {
    tenant.salt(Some(session.to_owned())).unwrap_or_default()
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
struct Job {
    service: Arc<Service>,
    text: Text,
    desk: Desk,
    start: Start,
    plan: Plan,
    /// What the shopper's message is in the conversation.
    message: String,
    session: Session,
    session_key: String,
    /// Products that the question is about.
    about: Vec<String>,
    cache_key: Option<AnswerKey>,
    arrival: Instant,
    kept: Option<Kept>,
}

/// Where the text comes from: the model, or an earlier answer.
enum Text {
    Engine(Box<Engine>),
    Replay(Option<String>, #[allow(dead_code)] Running),
}

struct Engine {
    choices: Choices,
    running: Running,
    prompt_tokens: usize,
    finish: &'static str,
    error: Option<ApiError>,
    token_ids: Vec<u32>,
}

impl TextSource for Text {
    async fn next(&mut self) -> Option<Result<String, TextFailure>> {
        let engine = match self {
            Text::Replay(text, _) => return text.take().map(Ok),
            Text::Engine(engine) => engine,
        };
        loop {
            let new = tokio::select! {
                biased;
                () = engine.running.aborted() => Some(Err(ApiError::draining())),
                new = engine.choices.next() => new,
            };
            match new? {
                Ok((_, delta)) => {
                    engine.token_ids.extend(delta.token_ids);
                    if let Some(finish) = delta.finish {
                        engine.finish = finish.reason();
                    }
                    if !delta.text.is_empty() {
                        return Some(Ok(delta.text));
                    }
                }
                Err(error) => {
                    let body = error.body();
                    let text = |name: &str| body["error"][name].as_str().unwrap_or("server_error").to_owned();
                    let failure = TextFailure { code: text("code"), message: text("message") };
                    engine.error = Some(error);
                    return Some(Err(failure));
                }
            }
        }
    }
}

impl Job {
    async fn begin(
        service: &Arc<Service>,
        model: Arc<Loaded>,
        ask: Ask,
        tenant: Tenant,
        shopper: Option<Shopper>,
        running: Running,
    ) -> Result<Job, ApiError> {
        let (assistant, arrival) = (service.assistant(), Instant::now());
        let session_id = ask.session.clone().unwrap_or_else(random_id);
        let session_key = session_key(&tenant, &session_id);
        let known = assistant.sessions().get(&session_key).cloned();
        let session = recall(known, &ask);
        let about = if ask.products.is_empty() && refers_back(&ask.question) {
            session.products.clone()
        } else {
            ask.products.clone()
        };
        let personal = ask.order.is_some() || is_about_orders(&ask.question);
        let version = assistant.retrieve.as_ref().map(|retrieve| retrieve.version()).unwrap_or_default();
        let salt = tenant.salt(None).unwrap_or_default();
        let cacheable = assistant.config.answer_cache && !personal && session.turns.is_empty() && !ask.again;
        let cache_key = cacheable.then(|| {
            let mut products = about.clone();
            products.sort();
            let asked = normalise(&ask.question);
            let head: [&str; 6] =
                [salt.as_str(), &asked, &ask.locale, &version, &service.config.model_names[0], prompt::RULES];
            AnswerKey::new(head.into_iter().chain(products.iter().map(String::as_str)))
        });
        let start = Start {
            message_id: format!("msg_{}", random_id()),
            thread_id: session_id,
            run_id: ask.run.clone().unwrap_or_else(random_id),
            trace_id: random_id(),
            model: service.config.model_names[0].clone(),
        };
        let mut kept = Kept::begin(service, &ask, &start, &tenant, shopper.as_ref(), &version);
        let mut desk = Desk {
            sources: assistant.sources.clone(),
            shopper,
            allowed: assistant.allowed.clone(),
            ..Desk::default()
        };
        let service = service.clone();
        let known = cache_key.as_ref().and_then(|key| assistant.answers().get(key).cloned());
        if let Some(Answer { raw, citations, products, message }) = known {
            (desk.citations, desk.products) = (citations, products.into_iter().collect());
            if let (Some(kept), Some(template)) = (&mut kept, &model.template) {
                kept.prompt(&[], &message, &desk.citations, template.source());
            }
            let (text, plan) = (Text::Replay(Some(raw), running), Plan::default());
            return Ok(Job {
                text,
                desk,
                start,
                plan,
                message,
                session,
                session_key,
                about,
                cache_key,
                arrival,
                service,
                kept,
            });
        }

        let Finding { plan, evidence, products } = find(assistant, &ask.question, &about).await;
        if let Some(kept) = &mut kept {
            kept.found(&evidence);
        }
        desk.products = products.iter().map(|product| product.id.clone()).collect();
        desk.suggestions = suggestions(&evidence, &ask.question);
        let has = |role| assistant.sources.iter().any(|source| source.role() == role);
        if personal && has(Role::Orders) {
            desk.order = ask.order.clone().or_else(|| order_number(&ask.question));
            desk.opening.push(Directive::Order);
        }
        if let [id] = &about[..]
            && asks_for_opinions(&ask.question)
            && has(Role::Reviews)
            && desk.products.contains(id)
        {
            desk.opening.push(Directive::Reviews { id: id.clone() });
        }
        if !personal && !evidence.is_empty() {
            desk.closing = closing(&products);
        }
        let names = products.iter().map(|product| (product.id.clone(), product.title.clone())).collect();
        let draft = Draft { session, evidence, names, question: ask.question.clone() };
        let (shared, reader) = (service.clone(), model.clone());
        let bytes =
            ask.question.len() + draft.session.turns.iter().map(|(u, a)| u.len() + a.len()).sum::<usize>();
        let attributes: BTreeSet<String> =
            products.iter().flat_map(|product| product.attributes.keys().cloned()).collect();
        let attributes: Vec<String> = attributes.into_iter().collect();
        let work = move || {
            let prepared = draft.prepare(shared.assistant(), &reader)?;
            let constraint = constraint(&reader, &prepared.dossier, &attributes);
            Ok((prepared, constraint))
        };
        // Evidence and rules make it more than it looks.
        let (prepared, constraint) = service.compute(bytes + (2 << 10), work).await?;
        desk.citations =
            prepared.dossier.numbered().map(|(number, passage)| citation(number, passage)).collect();
        if let (Some(kept), Some(template)) = (&mut kept, &model.template) {
            kept.prompt(&prepared.session.turns, &prepared.message, &desk.citations, template.source());
        }
        let text = submit(&service, &model, prepared.ids, constraint, &tenant, running, kept.as_mut())?;
        let mut session = prepared.session;
        session.evidence = prepared.dossier.first + prepared.dossier.passages.len() as u32 - 1;
        let message = prepared.message;
        Ok(Job {
            text,
            desk,
            start,
            plan,
            message,
            session,
            session_key,
            about,
            cache_key,
            arrival,
            kept,
            service,
        })
    }

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
        let (total, supported) = summary.sentences;
        let [ready, stale, unavailable] = summary.cards;
        let metadata = json!({
            "finishReason": finish,
            "usage": {
                "inputTokens": input, "outputTokens": output, "totalTokens": input + output, "cachedInputTokens": cached,
            },
            "answerCached": matches!(self.text, Text::Replay(..)),
            "grounding": { "supported": supported, "total": total },
            "cards": { "ready": ready, "stale": stale, "unavailable": unavailable },
            "dropped": { "directives": summary.dropped, "links": summary.links_dropped, "amounts": summary.amounts_dropped },
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
            assistant.answers().put(key, Answer { raw, citations, products, message: self.message.clone() });
        }
        let mut session = std::mem::take(&mut self.session);
        let last = self.desk.citations.last().map_or(0, |citation| citation.number);
        session.evidence = session.evidence.max(last);
        if !summary.named.is_empty() {
            session.products = summary.named;
        } else if !self.about.is_empty() {
            session.products.clone_from(&self.about);
        }
        session.add(std::mem::take(&mut self.message), summary.raw);
        assistant.sessions().put(self.session_key.clone(), session);
    }
}

/// What the server remembers of a conversation, else what the client says it was.
fn recall(known: Option<Session>, ask: &Ask) -> Session {
    match known {
        Some(mut session) => {
            if ask.again {
                session.turns.pop();
                if session.turns.is_empty() {
                    // The same question has the same prompt, so that its answers can be compared.
                    session.evidence = 0;
                }
            }
            session
        }
        None => {
            let mut session = Session::default();
            for (question, answer) in &ask.history {
                session.add(question.clone(), answer.clone());
            }
            session
        }
    }
}

/// What a prompt is made of.
struct Draft {
    session: Session,
    evidence: Vec<crate::assistant::Evidence>,
    names: Vec<(String, String)>,
    question: String,
}

struct Prepared {
    session: Session,
    dossier: Dossier,
    message: String,
    ids: Vec<u32>,
}

impl Draft {
    /// The prompt, with as much of conversation and evidence as leaves room for an answer.
    ///
    /// # Errors
    /// 400 where not even the question does.
    fn prepare(mut self, assistant: &Assistant, model: &Loaded) -> Result<Prepared, ApiError> {
        let Some(template) = &model.template else {
            let message = "question: this model has no chat template, which the assistant needs";
            return Err(ApiError::field("question", message));
        };
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let max = model.handle.max_model_len();
        let reserve = (assistant.config.max_tokens as usize).min(max / 4).max(1);
        let mut most = assistant.config.passages.min(self.evidence.len());
        loop {
            let first = self.session.evidence + 1;
            let dossier = Dossier::new(first, self.evidence.clone(), most, self.names.clone());
            let message = prompt::question(&assistant.mark_key, &dossier, &self.question);
            let messages = prompt::messages(&self.session.turns, &message);
            let ids =
                template.encode(&model.tokenizer, &messages, &options).map_err(|e| template_error(&e))?;
            if ids.len() + reserve <= max {
                return Ok(Prepared { session: self.session, dossier, message, ids });
            }
            if !self.session.forget() {
                if most == 0 && self.names.is_empty() {
                    let length = ids.len();
                    let message = format!(
                        "question: the model's context is {max} tokens long, of which {reserve} are for the answer, and \
                         the question with the assistant's rules has {length}"
                    );
                    return Err(ApiError::too_long("question", message));
                }
                if most == 0 {
                    self.names.clear();
                }
                most /= 2;
            }
        }
    }
}

/// Holds an answer to what was found for it. A model whose output cannot be constrained goes without: what it may not
/// name is dropped from its text.
fn constraint(model: &Loaded, dossier: &Dossier, attributes: &[String]) -> Option<Box<dyn Constraint>> {
    let products: Vec<String> = dossier.products.iter().map(|(id, _)| id.clone()).collect();
    let citations: Vec<u32> = dossier.numbered().map(|(number, _)| number).collect();
    let allowed = Allowed { products: &products, attributes, citations: &citations };
    let compiled =
        model.grammars().and_then(|compiler| compiler.compile_own(&grammar::for_assistant(&allowed)));
    compiled.inspect_err(|error| tracing::debug!(%error, "an answer goes without a grammar")).ok()
}

fn submit(
    service: &Service,
    model: &Arc<Loaded>,
    prompt: Vec<u32>,
    constraint: Option<Box<dyn Constraint>>,
    tenant: &Tenant,
    running: Running,
    kept: Option<&mut Kept>,
) -> Result<Text, ApiError> {
    let config = &service.assistant().config;
    let eos = model.defaults.eos_token_ids.clone();
    let room = model.handle.max_model_len() - prompt.len();
    let max_tokens = config.max_tokens.min(u32::try_from(room).unwrap_or(u32::MAX));
    let params = SamplingParams {
        temperature: config.temperature,
        top_k: model.defaults.top_k,
        top_p: model.defaults.top_p.unwrap_or(1.0),
        max_tokens,
        eos_token_ids: eos.clone(),
        ..SamplingParams::default()
    };
    if let Some(kept) = kept {
        kept.sampler(&params);
    }
    let prompt_tokens = prompt.len();
    let salt = tenant.salt(None);
    let request = Request { prompt, params, constraint, n: 1, cache_salt: salt, ..Request::default() };
    let rules = Arc::new(Rules {
        stop: StopStrings::new::<&str>(&[], false),
        stop_strings: Vec::new(),
        stop_token_ids: Default::default(),
        eos_token_ids: eos.into_iter().collect(),
        include_stop: false,
        min_tokens: 0,
        skip_special_tokens: true,
        prompt_only: false,
    });
    let channels = model.handle.submit(request)?;
    let list =
        channels.into_iter().map(|events| Choice::new(events, rules.clone(), max_tokens, model)).collect();
    let (choices, finish) = (Choices::new(list), "stop");
    Ok(Text::Engine(Box::new(Engine {
        choices,
        running,
        prompt_tokens,
        finish,
        error: None,
        token_ids: Vec::new(),
    })))
}

fn citation(number: u32, passage: &crate::assistant::Passage) -> Citation {
    Citation {
        number,
        source: passage.source.name().to_owned(),
        doc_id: passage.id.clone(),
        product: passage.product.clone(),
        title: passage.title.clone().unwrap_or_else(|| prompt::label(passage.source).to_owned()),
        quote: passage.text.clone(),
    }
}

/// Questions that other customers had asked about the same.
fn suggestions(evidence: &[crate::assistant::Evidence], question: &str) -> Vec<String> {
    let asked = normalise(question);
    let mut questions: Vec<String> = Vec::new();
    for passage in evidence.iter().map(|e| &e.passage).filter(|p| p.source == Source::Qa) {
        let Some(title) = passage.title.as_ref().filter(|t| (8..=120).contains(&t.len())) else { continue };
        if normalise(title) != asked && !questions.contains(title) {
            questions.push(title.clone());
        }
    }
    questions.truncate(3);
    questions
}

/// The products that fit a question best, for an answer that shows none.
fn closing(products: &[Arc<Product>]) -> Option<Directive> {
    const MOST: usize = 3;
    match products {
        [] => None,
        [one] => Some(Directive::Product { id: one.id.clone(), layout: None }),
        _ => {
            let ids = products.iter().take(MOST).map(|product| product.id.clone()).collect();
            Some(Directive::List { ids, layout: None })
        }
    }
}

fn words(question: &str) -> Vec<String> {
    let words = question.split(|c: char| !c.is_alphanumeric() && c != '-');
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Whether a question speaks of what was spoken of before.
fn refers_back(question: &str) -> bool {
    let back =
        ["it", "its", "this", "that", "these", "those", "they", "them", "their", "one", "ones", "both"];
    words(question).iter().any(|word| back.contains(&word.as_str()))
}

fn is_about_orders(question: &str) -> bool {
    let words = words(question);
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    let thing = ["order", "orders", "package", "parcel", "shipment", "delivery"];
    has(&["ordered"]) || (has(&["my", "our"]) && has(&thing))
}

fn asks_for_opinions(question: &str) -> bool {
    let words = words(question);
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    has(&["review", "reviews", "opinion", "opinions", "complaints", "complain"])
        || (has(&["people", "customers", "buyers", "others"]) && has(&["say", "think", "like", "dislike"]))
}

/// What looks like the number of an order in the shopper's own words.
fn order_number(question: &str) -> Option<String> {
    let digits = |word: &&str| word.bytes().filter(u8::is_ascii_digit).count() >= 4;
    let tidy = |word: &'_ str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_owned();
    let plain =
        |word: &String| word.len() <= 64 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    question.split_whitespace().filter(digits).map(tidy).find(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_understood() {
        assert_eq!(order_number("Where is my order #A-12345?").as_deref(), Some("A-12345"));
        assert_eq!(order_number("Where is my order?"), None);
        assert!(is_about_orders("Where is my order?") && !is_about_orders("In what order do I assemble it?"));
        assert!(refers_back("Is it safe?") && !refers_back("Is the pan safe?"));
        assert!(asks_for_opinions("What do people say?") && !asks_for_opinions("Is the pan safe?"));
    }
}
