//! From a body to an answer: parse, submit, then collect or stream.

use std::sync::Arc;

use hyper::StatusCode;
use millrace_engine::{Constraint, Request};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::choice::{Choice, Choices, Delta, Finish};
use super::parse::{self, Api, Generation};
use super::render::{Answer, Call, Echo, Usage, echoed};
use super::tools::{Piece, Reader};
use crate::auth::Tenant;
use crate::body::{EventSink, Received, Response, events, json_response};
use crate::error::ApiError;
use crate::service::{Loaded, Running, Service};

/// Who asks.
pub(crate) struct Caller {
    pub(crate) request_id: String,
    pub(crate) tenant: Tenant,
}

/// `POST /v1/chat/completions`.
pub(crate) async fn chat(
    service: &Arc<Service>,
    body: Received<'_>,
    caller: Caller,
) -> Result<Response, ApiError> {
    generate(Api::Chat, service, body, caller).await
}

/// `POST /v1/completions`.
pub(crate) async fn completion(
    service: &Arc<Service>,
    body: Received<'_>,
    caller: Caller,
) -> Result<Response, ApiError> {
    generate(Api::Completion, service, body, caller).await
}

async fn generate(
    api: Api,
    service: &Arc<Service>,
    body: Received<'_>,
    caller: Caller,
) -> Result<Response, ApiError> {
    let asked = Instant::now();
    let model = service.ready()?.clone();
    let (bytes, shared, reader) = (body.bytes.clone(), service.clone(), model.clone());
    let work = move || parse::generation(api, &bytes, &shared, &reader);
    let generation = service.compute(body.bytes.len(), work).await?;
    drop(body);
    let constraint = match &generation.form {
        Some(form) => {
            let compiler = model.grammars().map_err(|error| form.refused(&error))?.clone();
            Some(compiler.compile(form.grammar.clone(), asked).await.map_err(|error| form.refused(&error))?)
        }
        None => None,
    };
    let running = service.admit()?;
    let request = submit(api, service, model, generation, constraint, caller)?;
    if request.generation.stream.is_some() {
        let keep_alive = service.config.limits.keep_alive;
        Ok(events(move |sink| Stream::new(request, sink, keep_alive).run(running)))
    } else {
        collect(request, running).await
    }
}

/// A request that the engine has accepted.
struct Submitted {
    api: Api,
    generation: Generation,
    choices: Choices,
    model: Arc<Loaded>,
    id: String,
    name: String,
    fingerprint: String,
    created: u64,
}

fn submit(
    api: Api,
    service: &Service,
    model: Arc<Loaded>,
    generation: Generation,
    constraint: Option<Box<dyn Constraint>>,
    caller: Caller,
) -> Result<Submitted, ApiError> {
    let salt = caller.tenant.salt(generation.cache_salt.clone());
    let mut list = Vec::new();
    // Where one is refused, those before it are dropped, and so cancelled.
    for prompt in &generation.prompts {
        let max_tokens = generation.max_tokens(prompt, model.handle.max_model_len())?;
        let mut params = generation.params.clone();
        params.max_tokens = max_tokens;
        let request = Request {
            prompt: prompt.ids.clone(),
            params,
            n: generation.n,
            priority: generation.priority,
            cache_salt: salt.clone(),
            constraint: constraint.clone(),
        };
        let channels = model.handle.submit(request)?;
        let rules = &generation.rules;
        list.extend(
            channels.into_iter().map(|events| Choice::new(events, rules.clone(), max_tokens, &model)),
        );
    }
    let prefix = match api {
        Api::Chat => "chatcmpl",
        Api::Completion => "cmpl",
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(Submitted {
        api,
        choices: Choices::new(list),
        id: format!("{prefix}-{}", generation.id.as_ref().unwrap_or(&caller.request_id)),
        name: generation.model.clone().unwrap_or_else(|| service.config.model_names[0].clone()),
        fingerprint: format!("millrace-{}", service.config.version),
        created: now.as_secs(),
        generation,
        model,
    })
}

impl Submitted {
    fn answer(&self) -> Answer<'_> {
        Answer {
            api: self.api,
            id: self.id.clone(),
            created: self.created,
            model: self.name.clone(),
            fingerprint: self.fingerprint.clone(),
            show: self.generation.show,
            tokenizer: &self.model.tokenizer,
        }
    }

    /// The index of a choice's prompt.
    fn prompt(&self, choice: usize) -> usize {
        choice / self.generation.n as usize
    }

    /// For each prompt, what is put before its answers.
    fn echoes(&self) -> Vec<Option<String>> {
        let skip = self.generation.rules.skip_special_tokens;
        let text = |prompt| echoed(prompt, self.generation.show, &self.model.tokenizer, skip);
        self.generation.prompts.iter().map(text).collect()
    }

    /// Tokens up to now; a prompt counts once, however many choices it has.
    fn usage(&self) -> Usage {
        let choices = self.choices.list();
        let per_prompt = choices.chunks(self.generation.n as usize);
        // Of the choices of a prompt the first one computes it; the others find its blocks.
        let cached = |choices: &[Choice]| choices.iter().map(|c| c.cached as usize).min().unwrap_or(0);
        Usage {
            prompt: self.generation.prompts.iter().map(|p| p.ids.len()).sum(),
            completion: choices.iter().map(|c| c.generated as usize).sum(),
            cached: per_prompt.map(cached).sum(),
        }
    }

    /// Tokens up to now of one choice.
    fn usage_of(&self, index: usize) -> Usage {
        let choice = &self.choices.list()[index];
        let prompt = self.generation.prompts[self.prompt(index)].ids.len();
        Usage { prompt, completion: choice.generated as usize, cached: choice.cached as usize }
    }
}

/// Waits for all choices and answers in one piece.
async fn collect(mut request: Submitted, mut running: Running) -> Result<Response, ApiError> {
    let mut deltas = vec![Delta::default(); request.choices.list().len()];
    loop {
        let new = tokio::select! {
            biased;
            () = running.aborted() => return Err(ApiError::draining()),
            new = request.choices.next() => new,
        };
        let Some(new) = new else { break };
        let (index, delta) = new?;
        deltas[index].extend(delta);
    }
    let answer = request.answer();
    let echoes = request.echoes();
    let choice = |(index, delta): (usize, &Delta)| {
        let number = request.prompt(index);
        let prompt = &request.generation.prompts[number];
        let echo = echoes[number].as_ref().map(|text| echo(&request, text, number, true));
        let mut choice = answer.choice(index, delta, prompt, echo.as_ref());
        if let Some(tools) = &request.generation.tools {
            let mut reader = tools.reader();
            let mut pieces = reader.push(&delta.text);
            pieces.extend(reader.finish());
            answer.add_calls(&mut choice, index, &pieces, called(delta, &reader).as_ref());
        }
        choice
    };
    let choices: Vec<Value> = deltas.iter().enumerate().map(choice).collect();
    let mut whole = answer.whole(choices, request.usage());
    if request.api == Api::Chat {
        if request.generation.show.prompt_logprobs {
            whole["prompt_logprobs"] = answer.prompt_logprobs(&deltas[0]);
        }
        if request.generation.show.token_ids {
            whole["prompt_token_ids"] = request.generation.prompts[0].ids.clone().into();
        }
    }
    Ok(json_response(StatusCode::OK, &whole))
}

/// The delta's end, where it comes after calls.
fn called(delta: &Delta, reader: &Reader) -> Option<Finish> {
    let ended = matches!(delta.finish, Some(Finish::Eos | Finish::Token(_) | Finish::Text(_)));
    (ended && reader.calls > 0).then_some(Finish::ToolCalls)
}

fn echo<'a>(request: &'a Submitted, text: &'a str, prompt: usize, first: bool) -> Echo<'a> {
    Echo {
        text: if first { text } else { "" },
        start: text.chars().count(),
        ids: &request.generation.prompts[prompt].ids,
        skip_special: request.generation.rules.skip_special_tokens,
    }
}

/// Answers with an event for each piece of text.
struct Stream {
    request: Submitted,
    sink: EventSink,
    keep_alive: std::time::Duration,
    /// One for each choice, where calls are looked for.
    readers: Vec<Reader>,
}

impl Stream {
    fn new(request: Submitted, sink: EventSink, keep_alive: std::time::Duration) -> Self {
        let tools = request.generation.tools.iter();
        let readers = tools.flat_map(|tools| request.choices.list().iter().map(|_| tools.reader())).collect();
        Stream { request, sink, keep_alive, readers }
    }

    /// To the end, or to the error that takes its place: a stream that merely ended would pass for a complete one.
    async fn run(mut self, running: Running) {
        match self.pieces(running).await {
            Ok(()) => {
                if self.request.generation.stream.is_some_and(|s| s.include_usage) {
                    let mut chunk = self.request.answer().chunk(Vec::new());
                    chunk["usage"] = self.request.usage().json();
                    self.sink.event(&chunk);
                }
                self.sink.raw("[DONE]");
            }
            Err(error) => self.sink.event(&error.event()),
        }
        self.sink.flush().await;
    }

    async fn pieces(&mut self, mut running: Running) -> Result<(), ApiError> {
        let echoes = self.request.echoes();
        let mut ended = vec![false; self.request.choices.list().len()];
        loop {
            let new = tokio::select! {
                biased;
                () = running.aborted() => {
                    self.abort(&ended);
                    return Err(ApiError::draining());
                }
                new = self.request.choices.next() => new,
                () = sleep_until(Instant::now() + self.keep_alive) => {
                    self.sink.comment("waiting");
                    self.sink.flush().await;
                    continue;
                }
            };
            let Some(mut new) = new else { return Ok(()) };
            // What is there already leaves in the same write.
            loop {
                let (index, delta) = new?;
                ended[index] = delta.finish.is_some();
                self.piece(index, &delta, echoes[self.request.prompt(index)].as_deref());
                if self.sink.is_full() {
                    break;
                }
                match self.request.choices.ready() {
                    Some(next) => new = next,
                    None => break,
                }
            }
            self.sink.flush().await;
        }
    }

    /// The calls that a delta brings, and the delta without them.
    fn calls(&mut self, index: usize, delta: &Delta) -> (Vec<Call>, Option<Delta>) {
        let Some(reader) = self.readers.get_mut(index) else { return (Vec::new(), None) };
        let before = reader.calls;
        let mut pieces = reader.push(&delta.text);
        if delta.finish.is_some() {
            pieces.extend(reader.finish());
        }
        let mut rest = Delta { text: String::new(), ..delta.clone() };
        let (mut calls, mut number) = (Vec::new(), before);
        for piece in pieces {
            match piece {
                Piece::Text(text) => rest.text.push_str(&text),
                Piece::Call(name) => {
                    calls.push(Call::begin(&self.request.id, index, number, name));
                    number += 1;
                }
                Piece::Arguments(text) => calls.push(Call::more(number - 1, text)),
            }
        }
        rest.finish = called(delta, reader).or(rest.finish);
        (calls, Some(rest))
    }

    fn piece(&mut self, index: usize, delta: &Delta, echoed: Option<&str>) {
        let (calls, rest) = self.calls(index, delta);
        let delta = rest.as_ref().unwrap_or(delta);
        let Submitted { api, generation, .. } = &self.request;
        let answer = self.request.answer();
        let number = self.request.prompt(index);
        let mut chunks = Vec::with_capacity(2);
        match api {
            Api::Chat => {
                if delta.started {
                    chunks.push(answer.chunk(vec![answer.role(index)]));
                    if generation.show.token_ids {
                        chunks[0]["prompt_token_ids"] = generation.prompts[number].ids.clone().into();
                    }
                }
                let shows_tokens = generation.show.logprobs || generation.show.token_ids;
                if !delta.text.is_empty() || (shows_tokens && !delta.token_ids.is_empty()) {
                    chunks.push(answer.chunk(vec![answer.piece(index, delta, None)]));
                }
                chunks.extend(calls.iter().map(|call| answer.chunk(vec![answer.call(index, call)])));
                if delta.finish.is_some() {
                    chunks.push(answer.chunk(vec![answer.finish(index, delta)]));
                }
            }
            Api::Completion => {
                let echo = echoed.map(|text| echo(&self.request, text, number, delta.started));
                // The start alone is worth a chunk only where there is something to show of the prompt.
                if !delta.started || echo.is_some() || generation.show.token_ids {
                    let mut piece = answer.piece(index, delta, echo.as_ref());
                    if delta.started && generation.show.token_ids {
                        piece["prompt_token_ids"] = generation.prompts[number].ids.clone().into();
                    }
                    chunks.push(answer.chunk(vec![piece]));
                }
            }
        }
        let options = generation.stream.unwrap_or_default();
        let usage = if options.continuous { self.request.usage_of(index).json() } else { Value::Null };
        for mut chunk in chunks {
            if options.include_usage || options.continuous {
                chunk["usage"] = usage.clone();
            }
            self.sink.event(&chunk);
        }
    }

    /// Says of each choice that it did not come to its end.
    fn abort(&mut self, ended: &[bool]) {
        let delta = Delta { finish: Some(Finish::Abort), ..Delta::default() };
        for index in (0..ended.len()).filter(|&i| !ended[i]) {
            let answer = self.request.answer();
            let choice = match self.request.api {
                Api::Chat => answer.finish(index, &delta),
                Api::Completion => answer.piece(index, &delta, None),
            };
            let chunk = answer.chunk(vec![choice]);
            self.sink.event(&chunk);
        }
    }
}
