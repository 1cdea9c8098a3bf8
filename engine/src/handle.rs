//! The rest of the world's end of the engine.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::pool::Key;
use crate::sampler::penalised;
use crate::sequence::Prompt;
use crate::validate::{self, Bounds};
use crate::{Constraint, Event, Request, SamplingParams, SubmitError, TokenId};

/// A request past validation.
pub(crate) struct Incoming {
    pub(crate) prompt: Arc<Prompt>,
    pub(crate) params: SamplingParams,
    pub(crate) penalised: Arc<[TokenId]>,
    pub(crate) priority: i32,
    pub(crate) arrival: Instant,
    pub(crate) choices: Vec<UnboundedSender<Event>>,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
}

pub(crate) enum Message {
    Submit(Box<Incoming>),
    Drain,
    Shutdown,
}

/// What both ends see.
#[derive(Debug)]
pub(crate) struct Shared {
    // Held while a request is let in and while the door is shut, so that none slips in behind.
    open: Mutex<bool>,
    alive: AtomicBool,
    // Requests accepted and not scheduled. Counted up under the lock only, so the bound is never exceeded.
    queued: AtomicUsize,
    running: AtomicUsize,
    // Mean microseconds between two requests that leave the queue.
    pace: AtomicU64,
    unshared: AtomicU64,
}

impl Shared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Shared {
            open: Mutex::new(true),
            alive: AtomicBool::new(true),
            queued: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            pace: AtomicU64::new(0),
            unshared: AtomicU64::new(0),
        })
    }

    fn door(&self) -> MutexGuard<'_, bool> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that are accepted after this find no engine.
    pub(crate) fn close(&self) {
        *self.door() = false;
    }

    pub(crate) fn left_queue(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn set_pace(&self, between: Duration) {
        self.pace.store(between.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_running(&self, sequences: usize) {
        self.running.store(sequences, Ordering::Relaxed);
    }

    pub(crate) fn died(&self) {
        self.close();
        self.alive.store(false, Ordering::Release);
    }
}

/// How busy the engine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Requests that were accepted and have not been scheduled.
    pub queued: usize,
    /// Sequences that run.
    pub running: usize,
}

/// Gives requests to the engine. When the last clone is dropped, the engine finishes what it has and ends.
#[derive(Clone, Debug)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    shared: Arc<Shared>,
    bounds: Arc<Bounds>,
}

impl Handle {
    pub(crate) fn new(inbox: mpsc::Sender<Message>, shared: Arc<Shared>, bounds: Bounds) -> Self {
        Handle { inbox, shared, bounds: Arc::new(bounds) }
    }

    /// Queues a request, without blocking, and yields a receiver for each choice. Dropping a receiver cancels
    /// its choice: the next plan frees its blocks. A channel that closes before `Finished` or `Failed` means
    /// that the engine is gone.
    ///
    /// `max_tokens` may exceed what the context leaves room for; the sequence then ends with
    /// [`FinishReason::Length`](crate::FinishReason::Length) when the context is full.
    ///
    /// # Errors
    /// See [`SubmitError`]. A refused request leaves no trace.
    pub fn submit(&self, mut request: Request) -> Result<Vec<UnboundedReceiver<Event>>, SubmitError> {
        let arrival = Instant::now();
        validate::request(&request, &self.bounds)?;
        let root = if self.bounds.prefix_caching {
            Key::shared(request.cache_salt.as_deref())
        } else {
            Key::private(self.shared.unshared.fetch_add(1, Ordering::Relaxed))
        };
        let penalised = penalised(&request.prompt, &request.params);
        let prompt = Arc::new(Prompt::new(std::mem::take(&mut request.prompt), root, self.bounds.block_size));

        let open = self.shared.door();
        if !*open {
            return Err(SubmitError::Closed);
        }
        let queued = self.shared.queued.load(Ordering::Relaxed);
        if queued >= self.bounds.max_queued_requests {
            return Err(SubmitError::QueueFull { queued, retry_after: self.retry_after(queued) });
        }
        let (choices, receivers) = (0..request.n).map(|_| unbounded_channel()).unzip();
        let Request { params, priority, constraint, .. } = request;
        let incoming =
            Box::new(Incoming { prompt, params, penalised, priority, arrival, choices, constraint });
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        if self.inbox.send(Message::Submit(incoming)).is_err() {
            self.shared.left_queue();
            return Err(SubmitError::Closed);
        }
        Ok(receivers)
    }

    /// When the requests that are queued now will have left the queue, at its recent pace.
    fn retry_after(&self, queued: usize) -> Duration {
        let micros = self.shared.pace.load(Ordering::Relaxed).saturating_mul(queued as u64);
        Duration::from_micros(micros).clamp(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// Refuses new requests from now on. The engine finishes those it has, queued ones too, and ends.
    pub fn drain(&self) {
        self.shared.close();
        // An engine that is gone has nothing to finish.
        let _ = self.inbox.send(Message::Drain);
    }

    /// As [`drain`](Self::drain), but what has not finished ends after the running step with
    /// [`FinishReason::Abort`](crate::FinishReason::Abort).
    pub fn shutdown(&self) {
        self.shared.close();
        let _ = self.inbox.send(Message::Shutdown);
    }

    /// Whether the engine's thread runs: false after a drain, a failure of the backend, or a panic.
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// How busy the engine is, as of its last iteration.
    pub fn load(&self) -> Load {
        Load {
            queued: self.shared.queued.load(Ordering::Relaxed),
            running: self.shared.running.load(Ordering::Relaxed),
        }
    }

    /// Tokens of a sequence at most, prompt and output together.
    pub fn max_model_len(&self) -> usize {
        self.bounds.max_model_len
    }
}
