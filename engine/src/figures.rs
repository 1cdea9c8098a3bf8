//! What an iteration amounts to, gathered for the observer in buffers that are reused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::handle::Shared;
use crate::live::{Interval, Live};
use crate::schedule::{Plan, Scheduler};
use crate::{Observer, Row, StepStats};

pub(crate) struct Figures {
    observer: Box<dyn Observer>,
    shared: Arc<Shared>,
    // Something happened that no report has told yet.
    changed: bool,
    started: Instant,
    device: Duration,
    rows: usize,
    computed_tokens: usize,
    prompt_tokens: usize,
    generation_tokens: usize,
    time_to_first_token: Vec<f64>,
    inter_token_latency: Vec<f64>,
    last_left: Instant,
    pace: Duration,
}

impl Figures {
    /// `rows` bounds the tokens of an iteration.
    pub(crate) fn new(observer: Box<dyn Observer>, shared: Arc<Shared>, rows: usize) -> Self {
        Figures {
            observer,
            shared,
            changed: true,
            started: Instant::now(),
            device: Duration::ZERO,
            rows: 0,
            computed_tokens: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            time_to_first_token: Vec::with_capacity(rows),
            inter_token_latency: Vec::with_capacity(rows),
            last_left: Instant::now(),
            pace: Duration::ZERO,
        }
    }

    pub(crate) fn changed(&mut self) {
        self.changed = true;
    }

    pub(crate) fn start(&mut self) {
        self.started = Instant::now();
        self.device = Duration::ZERO;
        (self.rows, self.computed_tokens, self.prompt_tokens, self.generation_tokens) = (0, 0, 0, 0);
        self.time_to_first_token.clear();
        self.inter_token_latency.clear();
    }

    /// Times what the backend does.
    pub(crate) fn device<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.device += start.elapsed();
        result
    }

    pub(crate) fn computed(&mut self, row: &Row) {
        self.rows += 1;
        self.computed_tokens += row.count as usize;
    }

    pub(crate) fn token(&mut self, interval: Interval, prompt: usize) {
        self.generation_tokens += 1;
        match interval {
            Interval::FirstOfRequest(seconds) => {
                self.prompt_tokens += prompt;
                self.time_to_first_token.push(seconds);
            }
            Interval::FirstOfChoice => {}
            Interval::Next(seconds) => self.inter_token_latency.push(seconds),
        }
    }

    /// A request was scheduled. The queue's pace is how long the request stood first in it, on average.
    pub(crate) fn left_queue(&mut self, arrival: Instant, now: Instant) {
        self.pace = (self.pace * 7 + (now - arrival.max(self.last_left).min(now))) / 8;
        self.last_left = now;
        self.shared.set_pace(self.pace);
        self.shared.left_queue();
    }

    pub(crate) fn request(&mut self, live: &Live) {
        if live.scheduled.is_none() {
            self.shared.left_queue();
        }
        self.observer.request(&live.stats(Instant::now()));
    }

    pub(crate) fn died(&self) {
        self.shared.died();
    }

    pub(crate) fn report(&mut self, scheduler: &Scheduler, plan: &Plan) {
        self.changed = false;
        let (running, pool) = (scheduler.running().len(), scheduler.pool());
        self.shared.set_running(running);
        let elapsed = self.started.elapsed();
        self.observer.step(&StepStats {
            running,
            waiting: scheduler.waiting(),
            blocks_used: pool.total() - pool.free(),
            blocks_total: pool.total(),
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.generation_tokens,
            computed_tokens: self.computed_tokens,
            rows: self.rows,
            preemptions: plan.preemptions,
            prefix_queries: plan.prefix_queries,
            prefix_hits: plan.prefix_hits,
            time_to_first_token: &self.time_to_first_token,
            inter_token_latency: &self.inter_token_latency,
            host_seconds: elapsed.saturating_sub(self.device).as_secs_f64(),
            device_seconds: self.device.as_secs_f64(),
        });
    }

    /// Reports what changed without an iteration: the end of everything.
    pub(crate) fn idle(&mut self, scheduler: &Scheduler) {
        if self.changed {
            self.start();
            self.report(scheduler, &Plan::default());
        }
    }
}
