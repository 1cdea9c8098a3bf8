//! The loop. One thread owns every piece of state, so nothing here is locked: requests come in by one channel,
//! and each sequence's tokens leave by its own.

use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::config::StartError;
use crate::constraint::Guide;
use crate::figures::Figures;
use crate::handle::{Handle, Incoming, Message, Shared};
use crate::live::{Choice, End, Live, request_of};
use crate::masks::{Loan, Masks};
use crate::pool::Pool;
use crate::sampler::{Rows, philox};
use crate::schedule::{Limits, Plan, Scheduler};
use crate::sequence::{Place, Sequence};
use crate::validate::Bounds;
use crate::{
    EngineConfig, FinishReason, Logits, Observer, RequestError, Row, RunError, Runner, SeqId, Step, Want,
};

/// Queued sequences that are asked in one iteration whether their client is still there. Those that run are
/// asked in each; a queued one holds no blocks, so it can wait, and the cost of an iteration is independent
/// of the queue's length.
const SWEEP: usize = 256;

/// More sequences at once than any backend has use for.
const MAX_SEQS: usize = 1 << 16;

/// Bytes of stack: constraints may recurse as deep as the grammar they were made of. What is not used costs nothing.
const STACK: usize = 64 << 20;

/// Starts the engine's thread. It ends after [`Handle::drain`] or [`Handle::shutdown`], when the last handle is
/// dropped and nothing is left to do, or with the error that the backend did not survive.
///
/// # Errors
/// Where the configuration contradicts itself or the backend.
pub fn start(
    runner: Box<dyn Runner>,
    config: EngineConfig,
    observer: Box<dyn Observer>,
) -> Result<(Handle, JoinHandle<Result<(), RunError>>), StartError> {
    let limits = limits(&*runner, &config)?;
    let kv = runner.kv();
    let (sender, inbox) = mpsc::channel();
    let shared = Shared::new();
    let handle = Handle::new(sender, shared.clone(), Bounds::new(&config, kv, &*runner));
    let engine = Engine {
        figures: Figures::new(observer, shared.clone(), limits.rows),
        sampling: Rows::new(
            runner.vocab(),
            limits.logits,
            runner.pool().map_or(1, millrace_kernels::Pool::threads),
        ),
        masks: Masks::default(),
        live: FxHashMap::default(),
        // Tables that share blocks may come to need more; then it grows, once.
        plan: Plan::with_capacity(limits.tokens, limits.rows, kv.blocks),
        scheduler: Scheduler::new(Pool::new(kv.blocks, kv.block_size), limits),
        logits: Logits::default(),
        parts: Vec::new(),
        ended: Vec::new(),
        swept: None,
        requests: 0,
        draining: false,
        aborting: false,
        runner,
        inbox,
        config,
    };
    let run = move || {
        let _closes = CloseOnExit(shared);
        engine.run()
    };
    let thread = thread::Builder::new()
        .name("engine".to_owned())
        .stack_size(STACK)
        .spawn(run)
        .map_err(StartError::Thread)?;
    Ok((handle, thread))
}

fn limits(runner: &dyn Runner, config: &EngineConfig) -> Result<Limits, StartError> {
    let (kv, step) = (runner.kv(), runner.limits());
    let refuse = |param, message| Err(StartError::Config { param, message });
    let positive = [
        ("max_num_seqs", config.max_num_seqs),
        ("max_num_batched_tokens", config.max_num_batched_tokens),
        ("max_prefill_beside_decode", config.max_prefill_beside_decode),
        ("max_queued_requests", config.max_queued_requests),
        ("block size", kv.block_size),
        ("tokens of the backend's step", step.tokens),
        ("rows of the backend's step", step.rows),
        ("rows of logits of the backend's step", step.logits),
        ("vocabulary", runner.vocab()),
    ];
    if let Some((param, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
        return refuse(param, "must be at least 1".to_owned());
    }
    let (tokens, max) = (kv.blocks.saturating_mul(kv.block_size), config.max_model_len);
    if max < 2 {
        return refuse("max_model_len", "must hold a prompt and an output of one token each".to_owned());
    }
    if max > tokens {
        let message = format!(
            "one sequence of {max} tokens would not fit the KV cache, which holds {tokens}; lower max_model_len or give the cache more memory"
        );
        return refuse("max_model_len", message);
    }
    // Rows give counts and positions in 32 bits; buffers are made for as many tokens as these sequences can have.
    let seqs = config.max_num_seqs.min(MAX_SEQS);
    let tokens =
        config.max_num_batched_tokens.min(step.tokens).min(seqs.saturating_mul(max)).min(u32::MAX as usize);
    Ok(Limits {
        tokens,
        rows: seqs.min(step.rows).min(step.logits).min(tokens),
        logits: step.logits,
        prefill_beside_decode: config.max_prefill_beside_decode,
        batching: config.batching,
    })
}

struct CloseOnExit(Arc<Shared>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        self.0.died();
    }
}

struct Engine {
    runner: Box<dyn Runner>,
    config: EngineConfig,
    inbox: mpsc::Receiver<Message>,
    scheduler: Scheduler,
    sampling: Rows,
    masks: Masks,
    live: FxHashMap<u64, Live>,
    plan: Plan,
    logits: Logits,
    // Rows that are still to be run.
    parts: Vec<Range<usize>>,
    ended: Vec<Place>,
    figures: Figures,
    swept: Option<Place>,
    requests: u64,
    // No more requests will come.
    draining: bool,
    // Nor will those that are here be finished.
    aborting: bool,
}

impl Engine {
    fn run(mut self) -> Result<(), RunError> {
        loop {
            self.receive();
            self.cancel();
            if self.live.is_empty() {
                self.figures.idle(&self.scheduler);
                if self.draining {
                    return Ok(());
                }
                continue;
            }
            self.figures.start();
            self.scheduler.plan(&mut self.plan);
            self.leave_queue();
            self.adjust();
            if let Err(error) = self.run_step() {
                self.die(&error);
                return Err(error);
            }
            self.retire();
            self.figures.report(&self.scheduler, &self.plan);
        }
    }

    /// Takes what has arrived; waits for it if there is nothing else to do.
    fn receive(&mut self) {
        loop {
            let idle = self.live.is_empty() && !self.draining;
            let message = if idle { self.inbox.recv().map_err(Into::into) } else { self.inbox.try_recv() };
            match message {
                Ok(Message::Submit(incoming)) => self.enter(*incoming),
                Ok(Message::Drain) => self.draining = true,
                Ok(Message::Shutdown) => (self.draining, self.aborting) = (true, true),
                Err(mpsc::TryRecvError::Empty) => return,
                Err(mpsc::TryRecvError::Disconnected) => {
                    self.draining = true;
                    return;
                }
            }
        }
    }

    fn enter(&mut self, incoming: Incoming) {
        let number = self.requests;
        self.requests += 1;
        let seed = incoming.params.seed.unwrap_or_else(|| philox::draw(self.config.seed, 0, number));
        let live = Live::new(number, incoming, seed, self.config.max_model_len);
        live.sequences().for_each(|seq| self.scheduler.add(seq));
        self.live.insert(number, live);
        self.figures.changed();
    }

    /// Ends what nobody waits for: a dropped receiver is the cancellation.
    fn cancel(&mut self) {
        if self.aborting {
            self.end_all(|| End::Finished(FinishReason::Abort));
        }
        let live = &self.live;
        let abandoned = |place: &Place| {
            let (request, choice) = request_of(place.seq);
            live[&request].is_cancelled(choice)
        };
        self.ended.extend(self.scheduler.running().map(Sequence::place).filter(abandoned));
        let (mut asked, mut last) = (0, None);
        for place in self.scheduler.waiting_behind(self.swept).take(SWEEP) {
            (asked, last) = (asked + 1, Some(place));
            if abandoned(&place) {
                self.ended.push(place);
            }
        }
        self.swept = last.filter(|_| asked == SWEEP);
        for at in 0..self.ended.len() {
            let (request, choice) = request_of(self.ended[at].seq);
            self.live.get_mut(&request).expect("a sequence's request lives").end(choice, End::Cancelled);
        }
        self.retire();
    }

    fn leave_queue(&mut self) {
        let now = Instant::now();
        for seq in &self.plan.admitted {
            let live = self.live.get_mut(&request_of(*seq).0).expect("a sequence's request lives");
            if live.scheduled.is_none() {
                live.scheduled = Some(now);
                self.figures.left_queue(live.arrival, now);
            }
        }
    }

    /// Gives a backend that cuts rows what is to be added to them before. All others get whole rows adjusted after.
    fn adjust(&mut self) {
        if self.runner.candidates().is_none() {
            return;
        }
        let vocab = self.runner.vocab();
        self.constrain(0..self.plan.step.rows.len());
        for at in 0..self.plan.step.rows.len() {
            let row = &self.plan.step.rows[at];
            let (request, choice) = request_of(row.seq);
            let sampler = &self.live[&request].choices[choice].sampler;
            if row.want == Want::Last && sampler.biases() {
                sampler.bias(self.plan.step.add_bias(at, vocab));
            }
        }
    }

    /// Runs the planned step. If the backend refuses it, halves of it are tried until each row that it refuses
    /// is known by itself; only those fail. No row reads what another row of the same step writes, and what a
    /// failed step wrote is written again, so halves compute what the whole would have.
    fn run_step(&mut self) -> Result<(), RunError> {
        self.parts.push(0..self.plan.step.rows.len());
        while let Some(rows) = self.parts.pop() {
            match self.compute(&rows) {
                Ok(()) => self.commit(rows),
                Err(RunError::Step(reason)) if rows.len() == 1 => {
                    tracing::warn!(seq = ?self.plan.step.rows[rows.start].seq, reason, "the backend refused a sequence");
                    self.fail(rows.start, RequestError::Refused(reason));
                }
                Err(RunError::Step(_)) => {
                    let middle = rows.start + rows.len() / 2;
                    self.parts.extend([middle..rows.end, rows.start..middle]);
                }
                Err(error @ RunError::Fatal(_)) => return Err(error),
            }
        }
        Ok(())
    }

    fn compute(&mut self, rows: &Range<usize>) -> Result<(), RunError> {
        let part: Step;
        let whole = &self.plan.step;
        let step = if rows.len() == whole.rows.len() {
            whole
        } else {
            part = select(whole, rows.clone());
            &part
        };
        self.figures.device(|| self.runner.submit(step))?;
        // The backend may be computing now: the time for the host's work.
        self.constrain(rows.clone());
        self.receive();
        self.figures.device(|| self.runner.wait(&mut self.logits))
    }

    /// Works out which tokens may be sampled from the rows that complete their sequences.
    fn constrain(&mut self, rows: Range<usize>) {
        for at in rows {
            let row = &self.plan.step.rows[at];
            if self.scheduler.planned(at).missing() != row.count as usize {
                continue;
            }
            let choice = choice_of(&mut self.live, row.seq);
            if let Some(guide) = choice.guide.take_if(|guide| guide.waits()) {
                self.masks.lend(Loan { row: at, guide, allowed: std::mem::take(choice.sampler.allowed()) });
            }
        }
        for Loan { row, guide, allowed } in self.masks.work_out(self.runner.pool()) {
            let choice = choice_of(&mut self.live, self.plan.step.rows[row].seq);
            choice.guide = Some(guide);
            *choice.sampler.allowed() = allowed;
        }
    }

    /// Scores prompts, and chooses the next token of every sequence that is complete.
    fn sample(&mut self, rows: Range<usize>) {
        let step = &self.plan.step;
        self.sampling.clear(step.rows[rows.clone()].iter().map(Row::logit_rows).sum());
        let mut logits = 0;
        for at in rows {
            let row = &step.rows[at];
            let (request, choice) = request_of(row.seq);
            let live = self.live.get_mut(&request).expect("a sequence's request lives");
            let first = logits;
            logits += row.logit_rows();
            if row.want == Want::All {
                live.score(choice, row, |row| self.logits.row(first + row), self.sampling.sampler());
            }
            let failed = live.choices[choice].guide.as_ref().is_some_and(|guide| guide.failure().is_some());
            if !failed && self.scheduler.planned(at).missing() == row.count as usize {
                self.sampling.want(logits - 1, at);
            }
        }
        let live = &self.live;
        self.sampling.sample(self.runner.pool(), &mut self.logits, step, |at| {
            let (request, choice) = request_of(step.rows[at].seq);
            &live[&request].choices[choice].sampler
        });
    }

    /// Samples from the rows that were computed and hands the tokens out.
    fn commit(&mut self, rows: Range<usize>) {
        self.sample(rows.clone());
        let now = Instant::now();
        let mut logits = 0;
        for at in rows {
            let row = &self.plan.step.rows[at];
            let (request, choice) = request_of(row.seq);
            let live = self.live.get_mut(&request).expect("a sequence's request lives");
            logits += row.logit_rows();
            let seq = self.scheduler.planned(at);
            let (cached, completes) = (seq.cached(), seq.missing() == row.count as usize);
            self.figures.computed(row);
            if !completes {
                self.scheduler.commit(&self.plan, at, None);
                continue;
            }
            if let Some(failure) = live.choices[choice].guide.as_ref().and_then(Guide::failure) {
                let error = RequestError::Constraint(failure.0.clone());
                self.fail(at, error);
                continue;
            }
            let sampled = self.sampling.take(logits - 1);
            let sampled = match sampled.unwrap_or_else(|| unreachable!("its sequence is complete")) {
                Ok(sampled) => sampled,
                Err(error) => {
                    self.fail(at, RequestError::Refused(error.to_string()));
                    continue;
                }
            };
            self.scheduler.commit(&self.plan, at, Some(sampled.0));
            let (interval, end) = live.emit(choice, sampled, cached, now);
            self.figures.token(interval, live.prompt.tokens.len());
            if let Some(end) = end {
                self.ended.push(live.choices[choice].place);
                live.end(choice, end);
            }
        }
    }

    fn fail(&mut self, row: usize, error: RequestError) {
        let (request, choice) = request_of(self.plan.step.rows[row].seq);
        let live = self.live.get_mut(&request).expect("a sequence's request lives");
        self.ended.push(live.choices[choice].place);
        live.end(choice, End::Failed(error));
    }

    /// Forgets the sequences that have ended, and the requests that ended with them.
    fn retire(&mut self) {
        while let Some(place) = self.ended.pop() {
            self.scheduler.cancel(place);
            self.figures.changed();
            if let Entry::Occupied(live) = self.live.entry(request_of(place.seq).0)
                && live.get().open == 0
            {
                self.figures.request(&live.remove());
            }
        }
    }

    fn end_all(&mut self, end: impl Fn() -> End) {
        for live in self.live.values_mut() {
            for choice in 0..live.choices.len() {
                if live.choices[choice].is_open() {
                    live.end(choice, end());
                    self.ended.push(live.choices[choice].place);
                }
            }
        }
        self.retire();
    }

    /// Tells everybody, also those who have just come.
    fn die(&mut self, error: &RunError) {
        self.figures.died();
        self.draining = true;
        self.receive();
        self.end_all(|| End::Failed(RequestError::EngineDead(error.to_string())));
        self.figures.idle(&self.scheduler);
    }
}

/// The choice that a sequence is.
fn choice_of(live: &mut FxHashMap<u64, Live>, seq: SeqId) -> &mut Choice {
    let (request, choice) = request_of(seq);
    &mut live.get_mut(&request).expect("a sequence's request lives").choices[choice]
}

/// A step of some of another's rows.
fn select(step: &Step, rows: Range<usize>) -> Step {
    let mut part = Step::default();
    for (at, row) in step.rows[rows.clone()].iter().enumerate() {
        if let Some(bias) = step.bias_of(rows.start + at) {
            part.add_bias(at, bias.len()).copy_from_slice(bias);
        }
        let (first, first_block) = (part.tokens.len() as u32, part.blocks.len() as u32);
        part.tokens.extend_from_slice(step.tokens_of(row));
        part.blocks.extend_from_slice(step.blocks_of(row));
        part.rows.push(Row { first, first_block, ..row.clone() });
    }
    part
}
