//! A request while it lives: its choices, their channels, and the times that become metrics.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use crate::constraint::Guide;
use crate::handle::Incoming;
use crate::sampler::{Sampled, Sampler, SamplerState};
use crate::sequence::{Place, Prompt, Sequence};
use crate::validate::MAX_CHOICES;
use crate::{Event, FinishReason, RequestError, RequestStats, Row, SamplingParams, SeqId, TokenLogprobs};

/// One choice of a request.
pub(crate) struct Choice {
    pub(crate) place: Place,
    pub(crate) sampler: SamplerState,
    pub(crate) guide: Option<Guide>,
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
    events: UnboundedSender<Event>,
    tokens: usize,
    last_token: Option<Instant>,
    end: Option<End>,
}

/// How a choice ended.
pub(crate) enum End {
    Finished(FinishReason),
    Failed(RequestError),
    /// Its receiver was dropped.
    Cancelled,
}

/// A request whose choices have not all ended.
pub(crate) struct Live {
    pub(crate) prompt: Arc<Prompt>,
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) choices: Vec<Choice>,
    pub(crate) open: usize,
    pub(crate) scheduled: Option<Instant>,
    max_len: usize,
    pub(crate) arrival: Instant,
    first_token: Option<Instant>,
}

impl Choice {
    pub(crate) fn is_open(&self) -> bool {
        self.end.is_none()
    }
}

/// What a token means for the metrics.
pub(crate) enum Interval {
    /// The first one of its request: seconds since arrival.
    FirstOfRequest(f64),
    /// The first one of a further choice.
    FirstOfChoice,
    /// Seconds since the one before.
    Next(f64),
}

/// Sequence ids carry their request's number, so that one map finds both.
pub(crate) fn request_of(seq: SeqId) -> (u64, usize) {
    (seq.0 / u64::from(MAX_CHOICES), (seq.0 % u64::from(MAX_CHOICES)) as usize)
}

impl Live {
    pub(crate) fn new(number: u64, incoming: Incoming, seed: u64, max_model_len: usize) -> Self {
        let Incoming { prompt, params, penalised, priority, arrival, choices, constraint } = incoming;
        let params = Arc::new(params);
        let choice = |(index, events): (usize, _)| Choice {
            place: Place { priority, seq: SeqId(number * u64::from(MAX_CHOICES) + index as u64) },
            sampler: SamplerState::new(params.clone(), seed, index as u32, penalised.clone()),
            guide: constraint.clone().map(Guide::new),
            prompt_logprobs: params.prompt_logprobs.iter().map(|_| None).collect(),
            events,
            tokens: 0,
            last_token: None,
            end: None,
        };
        let choices: Vec<_> = choices.into_iter().enumerate().map(choice).collect();
        Live {
            max_len: prompt.tokens.len().saturating_add(params.max_tokens as usize).min(max_model_len),
            open: choices.len(),
            choices,
            prompt,
            params,
            scheduled: None,
            arrival,
            first_token: None,
        }
    }

    pub(crate) fn sequences(&self) -> impl Iterator<Item = Sequence> {
        let scored = self.params.prompt_logprobs.is_some();
        self.choices
            .iter()
            .map(move |choice| Sequence::new(choice.place, self.prompt.clone(), self.max_len, scored))
    }

    pub(crate) fn is_cancelled(&self, choice: usize) -> bool {
        self.choices[choice].events.is_closed()
    }

    /// Scores the prompt's tokens by the logits of the positions before them.
    pub(crate) fn score<'a>(
        &mut self,
        choice: usize,
        row: &Row,
        logits: impl Fn(usize) -> &'a [f32],
        sampler: &mut Sampler,
    ) {
        let scores = &mut self.choices[choice].prompt_logprobs;
        let top = self.params.prompt_logprobs.unwrap_or(0);
        for at in 0..row.count as usize {
            let scored = row.position as usize + at + 1;
            // A chunk may reach back to what was scored before its sequence lost its blocks, and beyond the prompt.
            if scored == scores.len() && scored < self.prompt.tokens.len() {
                scores.push(Some(sampler.logprobs(logits(at), self.prompt.tokens[scored], top)));
            }
        }
    }

    /// Hands a token to the client; if it is the last one, says why.
    pub(crate) fn emit(
        &mut self,
        choice: usize,
        (token, logprobs): Sampled,
        cached: usize,
        now: Instant,
    ) -> (Interval, Option<End>) {
        let choice = &mut self.choices[choice];
        let interval = match (choice.last_token.replace(now), self.first_token) {
            (Some(last), _) => Interval::Next((now - last).as_secs_f64()),
            (None, Some(_)) => Interval::FirstOfChoice,
            (None, None) => {
                self.first_token = Some(now);
                Interval::FirstOfRequest((now - self.arrival).as_secs_f64())
            }
        };
        // A client that is gone is noticed before the next plan.
        if choice.tokens == 0 {
            let prompt_logprobs = std::mem::take(&mut choice.prompt_logprobs);
            let _ = choice.events.send(Event::Started { cached_tokens: cached as u32, prompt_logprobs });
        }
        let _ = choice.events.send(Event::Token { token, logprobs });
        choice.sampler.accept(token);
        choice.tokens += 1;

        let stops = choice.tokens >= self.params.min_tokens as usize
            && (self.params.stop_token_ids.contains(&token)
                || !self.params.ignore_eos && self.params.eos_token_ids.contains(&token));
        let over = match &mut choice.guide {
            Some(guide) if !stops => guide.accept(token),
            _ => Ok(stops),
        };
        let end = if let Err(error) = over {
            Some(End::Failed(RequestError::Constraint(error.0)))
        } else if over == Ok(true) {
            Some(End::Finished(FinishReason::Stop))
        } else if self.prompt.tokens.len() + choice.tokens == self.max_len {
            Some(End::Finished(FinishReason::Length))
        } else {
            None
        };
        (interval, end)
    }

    /// Ends a choice and says so.
    pub(crate) fn end(&mut self, choice: usize, end: End) {
        let choice = &mut self.choices[choice];
        let last = match &end {
            End::Finished(reason) => Some(Event::Finished(*reason)),
            End::Failed(error) => Some(Event::Failed(error.clone())),
            End::Cancelled => None,
        };
        if let Some(event) = last {
            let _ = choice.events.send(event);
        }
        choice.end = Some(end);
        self.open -= 1;
    }

    pub(crate) fn stats(&self, now: Instant) -> RequestStats {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => (to - from).as_secs_f64(),
            _ => 0.0,
        };
        let finished = |choice: &Choice| match choice.end {
            Some(End::Finished(reason)) => Some(reason),
            _ => None,
        };
        RequestStats {
            finished: self.choices.iter().map(finished).collect(),
            prompt_tokens: self.prompt.tokens.len(),
            generation_tokens: self.choices.iter().map(|choice| choice.tokens).sum(),
            n: self.choices.len() as u32,
            max_tokens: self.params.max_tokens,
            e2e: between(Some(self.arrival), Some(now)),
            queue: between(Some(self.arrival), Some(self.scheduled.unwrap_or(now))),
            prefill: between(self.scheduled, self.first_token),
            decode: between(self.first_token, Some(now)),
        }
    }
}
