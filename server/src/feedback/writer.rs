//! The one thread that writes. Requests come through a bounded queue; those that have come meanwhile are stored
//! together, with one sync for all of them, and each is answered when it is durable. Work on what is already stored
//! (forgetting, retention) is done a segment at a time between batches, so that no vote waits for all of it.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::disk::{self, Disk};
use super::metrics::FeedbackMetrics;
use super::record::{Answer, Millis, Opinion, Record, Selector, Vote};
use super::store::{Forgetting, Removed, Store, encode};
use super::votes::{Decision, PartState, Undo, Votes};
use super::{FeedbackError, VoteError, now};

/// Told whose conversations are forgotten, so that memory forgets too.
pub(crate) type OnForget = Arc<std::sync::Mutex<Option<Box<dyn Fn(&HashSet<String>) + Send>>>>;

/// What is asked of the thread.
pub(crate) enum Command {
    Answer(Box<Answer>),
    Vote(Vote, oneshot::Sender<Result<PartState, VoteError>>),
    Read(String, oneshot::Sender<Option<BTreeMap<String, PartState>>>),
    Forget(Selector, oneshot::Sender<Result<Removed, FeedbackError>>),
    /// Answered when all that came before is done.
    Flush(oneshot::Sender<()>),
}

/// A vote's request, and its answer once the batch is durable.
type Waiting = (oneshot::Sender<Result<PartState, VoteError>>, Result<PartState, VoteError>, Option<Opinion>);

pub(crate) struct Writer<D> {
    pub(crate) store: Store<D>,
    pub(crate) votes: Votes,
    pub(crate) commands: Receiver<Command>,
    pub(crate) metrics: Arc<FeedbackMetrics>,
    pub(crate) on_forget: OnForget,
    /// Where commands of other processes lie.
    pub(crate) requests: PathBuf,
    pub(crate) retention: Option<Millis>,
    /// How long votes can come in, and so must be known.
    pub(crate) remember: Millis,
    /// Whose records are being removed, answered when all are.
    removing: Vec<(Removed, oneshot::Sender<Result<Removed, FeedbackError>>)>,
    failing: bool,
}

/// Between looks at the requests of other processes.
const TICK: Duration = Duration::from_millis(500);
const HOUR: Duration = Duration::from_secs(3600);
const MOST_IN_BATCH: usize = 256;

impl<D: Disk> Writer<D> {
    pub(crate) fn new(
        store: Store<D>,
        votes: Votes,
        commands: Receiver<Command>,
        metrics: Arc<FeedbackMetrics>,
        requests: PathBuf,
        retention: Option<Millis>,
        remember: Millis,
    ) -> Self {
        Writer {
            store,
            votes,
            commands,
            metrics,
            on_forget: OnForget::default(),
            requests,
            retention,
            remember,
            removing: Vec::new(),
            failing: false,
        }
    }

    /// Works until nobody is left who could ask.
    pub(crate) fn run(mut self) {
        let (mut looked, mut cleaned) = (Instant::now(), None::<Instant>);
        let mut busy = true;
        loop {
            let wait = if busy { Duration::ZERO } else { TICK };
            match self.commands.recv_timeout(wait) {
                Ok(first) => {
                    let mut batch = vec![first];
                    while batch.len() < MOST_IN_BATCH
                        && let Ok(next) = self.commands.try_recv()
                    {
                        batch.push(next);
                    }
                    self.metrics.queue.dec_by(batch.len() as i64);
                    self.batch(batch);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            busy = self.compact();
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.read_requests();
            }
            if cleaned.is_none_or(|cleaned| cleaned.elapsed() >= HOUR) {
                cleaned = Some(Instant::now());
                self.clean(now());
            }
        }
        while self.compact() {}
    }

    pub(crate) fn batch(&mut self, batch: Vec<Command>) {
        let (mut records, mut waiting, mut undo) = (Vec::new(), Vec::<Waiting>::new(), Vec::<Undo>::new());
        let (mut answers, mut reads, mut forgets, mut flushes) = (0, Vec::new(), Vec::new(), Vec::new());
        for command in batch {
            match command {
                Command::Answer(answer) => {
                    let at = answer.at;
                    match encode(&Record::Answer(answer)) {
                        Some(json) => {
                            answers += 1;
                            records.push((at, json));
                        }
                        None => self.metrics.answer("dropped", 1),
                    }
                }
                Command::Vote(vote, reply) => {
                    let (result, counted) = match self.votes.decide(&vote) {
                        Decision::Known(state) => (Ok(state), None),
                        Decision::Conflict => (Err(VoteError::KeyReused), None),
                        Decision::Forgotten => (Err(VoteError::Forgotten), None),
                        Decision::TooMany => (Err(VoteError::TooManyParts), None),
                        Decision::Add => {
                            let (state, before) = self.votes.add(&vote);
                            undo.push(before);
                            records.extend(encode(&Record::Vote(vote.clone())).map(|json| (vote.at, json)));
                            (Ok(state), vote.value)
                        }
                    };
                    waiting.push((reply, result, counted));
                }
                Command::Read(message, reply) => reads.push((message, reply)),
                Command::Forget(whose, reply) => forgets.push((whose, reply)),
                Command::Flush(reply) => flushes.push(reply),
            }
        }
        let stored = self.append(&records);
        self.metrics.answer(if stored { "stored" } else { "dropped" }, answers);
        if !stored {
            undo.into_iter().rev().for_each(|undo| self.votes.undo(undo));
        }
        // Whoever is gone does not need to know.
        for (reply, result, counted) in waiting {
            // Also one that was known already may be so by a vote of this batch.
            let result = if stored { result } else { result.and(Err(VoteError::NotStored)) };
            if let (Ok(_), Some(value)) = (&result, counted) {
                self.metrics.vote(value);
            }
            let _ = reply.send(result);
        }
        for (message, reply) in reads {
            let _ = reply.send(self.votes.read(&message));
        }
        for (whose, reply) in forgets {
            match self.forget(&whose) {
                Ok(removed) => self.removing.push((removed, reply)),
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        for reply in flushes {
            let _ = reply.send(());
        }
    }

    /// Whether the records are durable.
    fn append(&mut self, records: &[(Millis, Vec<u8>)]) -> bool {
        if records.is_empty() {
            return true;
        }
        let start = Instant::now();
        let result = self.store.append(records);
        self.metrics.write_seconds.observe(start.elapsed().as_secs_f64());
        match result {
            Ok(()) if self.failing => tracing::info!("feedback can be stored again"),
            // One line, not one for each record of a full disk.
            Err(ref error) if !self.failing => tracing::error!(%error, "feedback cannot be stored"),
            _ => {}
        }
        self.failing = result.is_err();
        if self.failing {
            self.metrics.failures.inc();
        }
        !self.failing
    }

    pub(crate) fn forget(&mut self, whose: &Selector) -> Result<Removed, FeedbackError> {
        let Forgetting { forgets, removed, sessions } = self.store.forget(whose, now())?;
        forgets.iter().for_each(|forget| self.votes.forget(forget));
        let hook = self.on_forget.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(hook) = &*hook {
            hook(&sessions);
        }
        Ok(removed)
    }

    /// Does a part of what is left to remove; whether there is more.
    fn compact(&mut self) -> bool {
        match self.store.compact() {
            Ok(true) => return true,
            Ok(false) => {
                for (removed, reply) in self.removing.drain(..) {
                    let _ = reply.send(Ok(removed));
                }
            }
            Err(error) => {
                let waiting = std::mem::take(&mut self.removing);
                if !waiting.is_empty() {
                    tracing::error!(%error, "forgotten records are left out from now on but still on the disk");
                }
                for (_, reply) in waiting {
                    let message = error.to_string();
                    let _ = reply.send(Err(FeedbackError::StillThere { message }));
                }
            }
        }
        false
    }

    /// Retention, and what need not be remembered.
    pub(crate) fn clean(&mut self, now: Millis) {
        self.votes.expire(now.saturating_sub(self.remember));
        let Some(retention) = self.retention else { return };
        let before = now.saturating_sub(retention);
        match self.store.seal(before, now).and_then(|()| self.store.expire(before)) {
            Ok(0) => {}
            Ok(count) => tracing::info!(segments = count, "feedback has reached the end of its retention"),
            Err(error) => tracing::error!(%error, "feedback past its retention cannot be removed"),
        }
    }

    /// Does what another process has put down, and puts the result beside it.
    fn read_requests(&mut self) {
        let Ok(entries) = std::fs::read_dir(&self.requests) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let whose = std::fs::read(&path).map_err(|error| error.to_string());
            let whose =
                whose.and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()));
            let outcome = match whose {
                Ok(whose) => self.forget(&whose).map_err(|error| error.to_string()),
                Err(error) => Err(format!("the request cannot be read: {error}")),
            };
            let outcome = outcome.and_then(|removed| {
                loop {
                    match self.store.compact() {
                        Ok(true) => {}
                        Ok(false) => break Ok(removed),
                        Err(error) => break Err(error.to_string()),
                    }
                }
            });
            let (removed, error) = match outcome {
                Ok(removed) => (Some(removed), None),
                Err(error) => (None, Some(error)),
            };
            let json = serde_json::to_vec(&Outcome { removed, error });
            let json = json.unwrap_or_else(|_| unreachable!("no maps"));
            let name =
                path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned() + ".done";
            let done =
                disk::write_whole(&self.requests, &name, &json).and_then(|()| std::fs::remove_file(&path));
            if let Err(error) = done {
                tracing::error!(%error, file = %path.display(), "the outcome of a request cannot be written");
            }
        }
    }
}

/// What became of another process's request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) removed: Option<Removed>,
    pub(crate) error: Option<String>,
}
