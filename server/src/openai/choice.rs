//! One sequence of a request: events with token ids come in, text that may be shown goes out.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll};

use millrace_engine::{Event, FinishReason, TokenId, TokenLogprobs};
use millrace_models::text::{Detokenizer, StopMatcher, StopStrings};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::service::Loaded;

/// What ends a sequence and how its text is made; the same for all choices of a request.
pub(crate) struct Rules {
    pub(crate) stop: StopStrings,
    /// As the client gave them, for `stop_reason`.
    pub(crate) stop_strings: Vec<String>,
    pub(crate) stop_token_ids: HashSet<TokenId>,
    /// Empty where the request ignores them.
    pub(crate) eos_token_ids: HashSet<TokenId>,
    pub(crate) include_stop: bool,
    pub(crate) min_tokens: u32,
    pub(crate) skip_special_tokens: bool,
    /// Only the prompt is wanted: its log-probabilities.
    pub(crate) prompt_only: bool,
}

/// Why a sequence ended, for the client.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Finish {
    /// At an end-of-sequence token.
    Eos,
    /// At one of the request's tokens.
    Token(TokenId),
    /// At one of the request's strings.
    Text(String),
    Length,
    /// At the end of calls, which the client is to make.
    ToolCalls,
    /// The server could not wait.
    Abort,
}

impl Finish {
    /// `finish_reason`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Finish::Eos | Finish::Token(_) | Finish::Text(_) => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
            Finish::Abort => "abort",
        }
    }

    /// `stop_reason`, which vLLM adds.
    pub(crate) fn stop_reason(&self) -> serde_json::Value {
        match self {
            Finish::Token(id) => (*id).into(),
            Finish::Text(text) => text.as_str().into(),
            _ => serde_json::Value::Null,
        }
    }
}

/// A token's log-probabilities, and where in the generated text it begins, in characters.
#[derive(Clone, Debug)]
pub(crate) struct Scored {
    pub(crate) logprobs: TokenLogprobs,
    pub(crate) offset: usize,
}

/// What the client has not seen yet.
#[derive(Clone, Default, Debug)]
pub(crate) struct Delta {
    /// The prompt has been computed.
    pub(crate) started: bool,
    pub(crate) prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub(crate) text: String,
    pub(crate) token_ids: Vec<TokenId>,
    pub(crate) logprobs: Vec<Scored>,
    pub(crate) finish: Option<Finish>,
}

impl Delta {
    /// Whether it is worth an event: tokens whose text is held back wait for it.
    fn is_ready(&self) -> bool {
        self.started || !self.text.is_empty() || self.finish.is_some()
    }

    /// Adds what came later.
    pub(crate) fn extend(&mut self, later: Delta) {
        self.started |= later.started;
        self.prompt_logprobs.extend(later.prompt_logprobs);
        self.text.push_str(&later.text);
        self.token_ids.extend(later.token_ids);
        self.logprobs.extend(later.logprobs);
        self.finish = later.finish.or(self.finish.take());
    }
}

/// One sequence.
pub(crate) struct Choice {
    /// Dropping it cancels the sequence.
    events: Option<UnboundedReceiver<Event>>,
    rules: Arc<Rules>,
    metrics: Metrics,
    max_tokens: u32,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    pending: Delta,
    /// Characters of all text so far, shown or not.
    characters: usize,
    /// Tokens so far.
    pub(crate) generated: u32,
    /// Prompt tokens found in the prefix cache.
    pub(crate) cached: u32,
}

impl Choice {
    pub(crate) fn new(
        events: UnboundedReceiver<Event>,
        rules: Arc<Rules>,
        max_tokens: u32,
        model: &Loaded,
    ) -> Self {
        Choice {
            events: Some(events),
            detokenizer: model.tokenizer.detokenizer(rules.skip_special_tokens),
            matcher: rules.stop.matcher(),
            rules,
            max_tokens,
            metrics: model.metrics.clone(),
            pending: Delta::default(),
            characters: 0,
            generated: 0,
            cached: 0,
        }
    }

    /// What is new; `None` once it has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delta, ApiError>>> {
        while let Some(events) = &mut self.events {
            let event = match events.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(event) => event,
            };
            if let Err(error) = self.accept(event) {
                self.events = None;
                self.metrics.finished("error");
                return Poll::Ready(Some(Err(error)));
            }
            if self.pending.is_ready() && !self.awaits_end() {
                return Poll::Ready(Some(Ok(std::mem::take(&mut self.pending))));
            }
        }
        Poll::Ready(None)
    }

    /// The last token's text goes with the reason why it is the last, which comes right behind it.
    fn awaits_end(&self) -> bool {
        let last = self.pending.token_ids.last();
        let ends = self.generated == self.max_tokens || last.is_some_and(|id| self.ends_at(*id).is_some());
        ends && self.pending.finish.is_none() && !self.pending.started
    }

    fn ends_at(&self, token: TokenId) -> Option<Finish> {
        if self.rules.stop_token_ids.contains(&token) {
            Some(Finish::Token(token))
        } else {
            self.rules.eos_token_ids.contains(&token).then_some(Finish::Eos)
        }
    }

    fn accept(&mut self, event: Option<Event>) -> Result<(), ApiError> {
        match event {
            Some(Event::Started { cached_tokens, prompt_logprobs }) => {
                self.cached = cached_tokens;
                self.pending.started = true;
                self.pending.prompt_logprobs = prompt_logprobs;
                if self.rules.prompt_only {
                    self.finish(Finish::Length);
                }
            }
            Some(Event::Token { token, logprobs }) => self.token(token, logprobs),
            Some(Event::Finished(reason)) => {
                let ended = self.pending.token_ids.last().and_then(|id| self.ends_at(*id));
                let finish = match reason {
                    FinishReason::Stop => ended.unwrap_or(Finish::Eos),
                    FinishReason::Length => Finish::Length,
                    FinishReason::Abort => return Err(ApiError::draining()),
                };
                let rest = self.detokenizer.finish();
                if !self.show(&rest) {
                    let held = self.matcher.finish();
                    self.pending.text.push_str(&held);
                    self.finish(finish);
                }
            }
            Some(Event::Failed(error)) => return Err(error.into()),
            None => return Err(ApiError::unavailable("engine_dead", "the engine has stopped")),
        }
        Ok(())
    }

    fn token(&mut self, token: TokenId, logprobs: Option<Box<TokenLogprobs>>) {
        self.generated += 1;
        self.pending.token_ids.push(token);
        if let Some(logprobs) = logprobs {
            self.pending.logprobs.push(Scored { logprobs: *logprobs, offset: self.characters });
        }
        if self.ends_at(token).is_some() && !self.rules.include_stop {
            return;
        }
        let text = self.detokenizer.push(token);
        self.characters += text.chars().count();
        if self.generated <= self.rules.min_tokens {
            // Too early for any stop: this text is not even part of one.
            self.pending.text.push_str(&text);
        } else {
            self.show(&text);
        }
    }

    /// Passes text through the search for stop strings; true if that ended the sequence.
    fn show(&mut self, text: &str) -> bool {
        let (safe, matched) = self.matcher.push(text);
        self.pending.text.push_str(&safe);
        if let Some(index) = matched {
            self.finish(Finish::Text(self.rules.stop_strings[index].clone()));
        }
        matched.is_some()
    }

    /// Ends the sequence, here and, where it still runs, in the engine.
    fn finish(&mut self, finish: Finish) {
        self.metrics.finished(finish.reason());
        self.pending.finish = Some(finish);
        self.events = None;
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        if self.events.is_some() {
            self.metrics.finished(Finish::Abort.reason());
        }
    }
}

/// The sequences of a request, all prompts' choices in order.
pub(crate) struct Choices {
    list: Vec<Choice>,
    next: usize,
}

impl Choices {
    pub(crate) fn new(list: Vec<Choice>) -> Self {
        Choices { list, next: 0 }
    }

    pub(crate) fn list(&self) -> &[Choice] {
        &self.list
    }

    /// Waits for something new of any sequence; `None` once all have ended.
    ///
    /// # Errors
    /// Where one of them failed.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Delta), ApiError>> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// Something new that is there already.
    pub(crate) fn ready(&mut self) -> Option<Result<(usize, Delta), ApiError>> {
        match self.poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(new) => new,
            Poll::Pending => None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, Delta), ApiError>>> {
        let mut open = false;
        for step in 0..self.list.len() {
            let index = (self.next + step) % self.list.len();
            match self.list[index].poll(cx) {
                Poll::Ready(Some(new)) => {
                    // The others get their turn first.
                    self.next = index + 1;
                    return Poll::Ready(Some(new.map(|delta| (index, delta))));
                }
                Poll::Ready(None) => {}
                Poll::Pending => open = true,
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }
}
