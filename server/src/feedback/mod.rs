//! Feedback: what answers were given, what shoppers made of them, and both together as data to train on.
//!
//! An answer goes to the `store` in the background; serving never waits for a disk. A vote is durable
//! before it is acknowledged, or it is refused. Who may vote is whoever has the answer's `token`. The
//! [`export`] joins answers and votes in the columns that trainers expect.

mod api;
mod disk;
pub mod export;
mod frame;
mod metrics;
mod record;
mod store;
mod token;
mod votes;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

pub use record::{
    Answer, EvidenceDoc, Forget, Implicit, Message, Millis, Opinion, Reason, Record, Selector, Vote,
};
pub use store::{Damage, Removed};
pub use token::Key;
pub use votes::PartState;

pub(crate) use api::{read, vote};
use disk::{Directory, Disk};
use metrics::FeedbackMetrics;
use store::{Limits, Store};
use votes::Votes;
use writer::{Command, OnForget, Outcome, Writer};

/// What is wrong with a store of feedback.
#[derive(Debug, thiserror::Error)]
pub enum FeedbackError {
    /// The disk, or the folder.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another process writes there.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A file of another version of this program.
    #[error("{file} has format {version}, which this version cannot read")]
    Version {
        /// The file.
        file: String,
        /// Its format.
        version: u32,
    },
    /// The process that writes there did not answer.
    #[error("the process that uses the store did not answer within {0:?}; the request stays for it")]
    NoAnswer(Duration),
    /// What is forgotten could not yet be removed.
    #[error("it is left out from now on, but the files could not be rewritten yet: {message}")]
    StillThere {
        /// Why.
        message: String,
    },
    /// The writer's thread is gone.
    #[error("the feedback writer has ended")]
    Closed,
}

/// Why a vote was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VoteError {
    /// Its key was used for another request.
    #[error("this idempotency key was used for another vote on the same part")]
    KeyReused,
    /// The answer was deleted.
    #[error("this answer was deleted")]
    Forgotten,
    /// Too many parts of the answer have votes.
    #[error("too many parts of this answer have votes")]
    TooManyParts,
    /// It could not be made durable.
    #[error("the vote could not be stored")]
    NotStored,
    /// Too many wait.
    #[error("too many votes wait to be stored")]
    Busy,
}

/// How feedback is kept.
#[derive(Clone, Debug)]
pub struct FeedbackConfig {
    /// The folder; it is made where there is none.
    pub directory: PathBuf,
    /// Days after which records are removed; `None` keeps them.
    pub retention_days: Option<u32>,
    /// How long an answer can be voted on.
    pub token_lifetime: Duration,
    /// Records and requests that may wait to be stored.
    pub queue: usize,
    /// Bytes after which another segment is begun.
    pub segment_bytes: u64,
}

impl FeedbackConfig {
    /// The defaults, in this folder.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        FeedbackConfig {
            directory: directory.into(),
            retention_days: None,
            token_lifetime: Duration::from_secs(7 * 24 * 3600),
            queue: 1024,
            segment_bytes: Limits::default().bytes,
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as Millis
}

/// An open store of feedback. Dropping it writes what is queued.
pub struct Feedback {
    /// `None` once it is closed.
    commands: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
    key: Key,
    token_lifetime: Millis,
    metrics: Arc<FeedbackMetrics>,
    on_forget: OnForget,
    damage: Vec<Damage>,
}

impl Feedback {
    /// Opens or makes a store, which no other process may have open.
    ///
    /// # Errors
    /// Where it is in use, cannot be read or written, or is of another version.
    pub fn open(config: &FeedbackConfig) -> Result<Feedback, FeedbackError> {
        let folder = &config.directory;
        let disk = Directory::open(folder).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => FeedbackError::InUse(folder.clone()),
            _ => error.into(),
        })?;
        let requests = folder.join(REQUESTS);
        disk::make(&requests)?;
        let key = Key::open(folder)?;
        Feedback::over(disk, key, requests, config)
    }

    fn over<D: Disk + 'static>(
        disk: D,
        key: Key,
        requests: PathBuf,
        config: &FeedbackConfig,
    ) -> Result<Feedback, FeedbackError> {
        const DAY: Millis = 24 * 3600 * 1000;
        let mut votes = Votes::default();
        let limits = Limits { bytes: config.segment_bytes, ..Limits::default() };
        let (store, damage) = Store::open(disk, limits, &mut votes)?;
        for damage in &damage {
            tracing::warn!("feedback: {damage}");
        }
        let token_lifetime = config.token_lifetime.as_millis() as Millis;
        let (commands, receiver) = sync_channel(config.queue.max(1));
        let metrics = Arc::new(FeedbackMetrics::new());
        let retention = config.retention_days.map(|days| Millis::from(days) * DAY);
        let writer =
            Writer::new(store, votes, receiver, metrics.clone(), requests, retention, token_lifetime + DAY);
        let on_forget = writer.on_forget.clone();
        let thread = std::thread::Builder::new().name("feedback".into()).spawn(move || writer.run())?;
        let (commands, thread) = (Some(commands), Some(thread));
        Ok(Feedback { commands, thread, key, token_lifetime, metrics, on_forget, damage })
    }

    /// What could not be read when it was opened.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// The store's key, which names users and sessions in its records.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// A token that lets whoever gets this answer vote on it.
    pub(crate) fn token(&self, message: &str, tenant: &str) -> String {
        self.key.token(message, tenant, now() + self.token_lifetime)
    }

    /// Keeps an answer. Never waits: where too many wait already, it is dropped and counted.
    pub fn record(&self, answer: Answer) {
        if self.send(Command::Answer(Box::new(answer))).is_err() {
            self.metrics.answer("dropped", 1);
        }
    }

    /// Stores a vote, which is durable when this returns.
    ///
    /// # Errors
    /// [`VoteError`]; then it does not count.
    pub async fn vote(&self, vote: Vote) -> Result<PartState, VoteError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Vote(vote, reply)).map_err(|()| VoteError::Busy)?;
        answer.await.unwrap_or(Err(VoteError::NotStored))
    }

    /// The votes on an answer, by part.
    ///
    /// # Errors
    /// [`VoteError::Forgotten`] or [`VoteError::Busy`].
    pub async fn votes(&self, message: &str) -> Result<BTreeMap<String, PartState>, VoteError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Read(message.to_owned(), reply)).map_err(|()| VoteError::Busy)?;
        answer.await.unwrap_or(None).ok_or(VoteError::Forgotten)
    }

    /// Removes records from the disk; returns when they are gone.
    ///
    /// # Errors
    /// Where files cannot be rewritten; what was there is then left out of everything nevertheless.
    pub fn forget(&self, whose: Selector) -> Result<Removed, FeedbackError> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(FeedbackError::Closed)?;
        self.metrics.queue.inc();
        commands.send(Command::Forget(whose, reply)).map_err(|_| FeedbackError::Closed)?;
        answer.blocking_recv().map_err(|_| FeedbackError::Closed)?
    }

    /// Has this called with the conversations that are forgotten, as [`Key::hash`] names them, also at the word of
    /// another process.
    pub(crate) fn on_forget(&self, hook: impl Fn(&HashSet<String>) + Send + 'static) {
        *self.on_forget.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    /// Waits until all that came before is stored.
    pub async fn flush(&self) {
        let (reply, answer) = oneshot::channel();
        if self.send(Command::Flush(reply)).is_ok() {
            let _ = answer.await;
        }
    }

    fn send(&self, command: Command) -> Result<(), ()> {
        let Some(commands) = &self.commands else { return Err(()) };
        self.metrics.queue.inc();
        commands.try_send(command).map_err(|error| {
            self.metrics.queue.dec();
            if matches!(error, TrySendError::Disconnected(_)) {
                tracing::error!("the feedback writer has ended");
            }
        })
    }

    pub(crate) fn encode_metrics(&self, text: &mut String) {
        self.metrics.encode(text);
    }
}

impl Drop for Feedback {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the feedback writer has panicked");
        }
    }
}

const REQUESTS: &str = "requests";

/// Removes records from a store, whoever has it open: a process that does is asked through a file.
///
/// # Errors
/// As [`Feedback::forget`]; [`FeedbackError::NoAnswer`] where the process does not answer in time.
pub fn forget(folder: &Path, whose: Selector, patience: Duration) -> Result<Removed, FeedbackError> {
    if !folder.is_dir() {
        return Err(
            io::Error::new(io::ErrorKind::NotFound, format!("{} is no folder", folder.display())).into()
        );
    }
    match Feedback::open(&FeedbackConfig::new(folder)) {
        Ok(feedback) => return feedback.forget(whose),
        Err(FeedbackError::InUse(_)) => {}
        Err(error) => return Err(error),
    }
    let (requests, name) = (folder.join(REQUESTS), crate::route::random_id());
    let json = serde_json::to_vec(&whose).unwrap_or_else(|_| unreachable!("no maps"));
    disk::write_whole(&requests, &format!("{name}.json"), &json)?;
    let (done, deadline) = (requests.join(format!("{name}.done")), Instant::now() + patience);
    loop {
        if let Ok(json) = std::fs::read(&done) {
            std::fs::remove_file(&done)?;
            let outcome: Outcome = serde_json::from_slice(&json).map_err(io::Error::from)?;
            let message = outcome.error.unwrap_or_default();
            return outcome.removed.ok_or(FeedbackError::StillThere { message });
        }
        if Instant::now() >= deadline {
            return Err(FeedbackError::NoAnswer(patience));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
