//! A thread that drives one core.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::runtime::{Core, Runtime};

/// The library needs far more stack than Rust's 2 MiB for some executions and then ends the process by SIGSEGV
/// (aws-neuron-sdk issues 670 and 673). Only what is touched of it is ever memory.
const STACK: usize = 64 << 20;

/// What the thread was sent did not come back with a result.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CoreThreadError {
    /// It panicked; the thread goes on.
    #[error("work on a core's thread panicked: {0}")]
    Panicked(String),
    /// The thread has ended.
    #[error("the core's thread has ended")]
    Gone,
    /// There was no result in the given time.
    #[error("the core's thread gave no result in time")]
    TimedOut,
}

type Work<S> = Box<dyn FnOnce(&mut S) + Send>;

/// An OS thread with a large stack that owns what is on a core, `S`: models, tensors, tensor sets. All calls of that
/// core, from loading to the last drop, are made on it, in the order they were sent.
///
/// Dropping it lets the thread finish what it was sent, drop `S`, and end; that is waited for, except when the runtime
/// is poisoned: then the thread may never come back, and is left alone.
pub struct CoreThread<S> {
    work: Option<SyncSender<Work<S>>>,
    thread: Option<JoinHandle<()>>,
    runtime: Arc<Runtime>,
}

impl<S: 'static> CoreThread<S> {
    /// Starts the thread, which first makes `S` by `start`. At most `queue` pieces of work wait for it; a sender of more
    /// waits.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn spawn(
        core: Core,
        queue: usize,
        start: impl FnOnce(Core) -> S + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel::<Work<S>>(queue);
        let runtime = Arc::clone(core.runtime());
        let thread = std::thread::Builder::new()
            .name(format!("core-{}", core.index()))
            .stack_size(STACK)
            .spawn(move || {
                // A panic in `start` ends the thread, which every sender sees as `Gone`; Rust's panic hook says why.
                let mut state = start(core);
                for work in receiver {
                    work(&mut state);
                }
            })?;
        Ok(Self { work: Some(sender), thread: Some(thread), runtime })
    }

    /// Sends work and returns at once, unless the queue is full.
    pub fn submit<R: Send + 'static>(&self, work: impl FnOnce(&mut S) -> R + Send + 'static) -> Pending<R> {
        let (reply, result) = channel();
        let work: Work<S> = Box::new(move |state| {
            let done = catch_unwind(AssertUnwindSafe(|| work(state)));
            // Nobody may be waiting for it any more; that is the sender's choice.
            let _ = reply.send(done.map_err(|panic| CoreThreadError::Panicked(message(&*panic))));
        });
        if let Some(sender) = &self.work {
            // If the thread has ended the reply's sender is dropped here, and waiting says so.
            let _ = sender.send(work);
        }
        Pending(result)
    }

    /// Sends work and waits for its result.
    ///
    /// # Errors
    /// If it panicked or the thread has ended.
    pub fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut S) -> R + Send + 'static,
    ) -> Result<R, CoreThreadError> {
        self.submit(work).wait()
    }
}

impl<S> Drop for CoreThread<S> {
    fn drop(&mut self) {
        drop(self.work.take());
        if self.runtime.poisoned().is_none()
            && let Some(thread) = self.thread.take()
        {
            // A panic in it has been reported when it happened.
            let _ = thread.join();
        }
    }
}

/// The result of work that was sent. May be dropped without waiting; the work is done nevertheless.
#[must_use = "work may fail; wait for its result"]
pub struct Pending<R>(Receiver<Result<R, CoreThreadError>>);

impl<R> Pending<R> {
    /// Waits for the result.
    ///
    /// # Errors
    /// If the work panicked or the thread has ended.
    pub fn wait(self) -> Result<R, CoreThreadError> {
        self.0.recv().unwrap_or(Err(CoreThreadError::Gone))
    }

    /// Waits for the result for that long. After [`CoreThreadError::TimedOut`] it may still come.
    ///
    /// # Errors
    /// If the work panicked, the thread has ended, or there is none in time.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<R, CoreThreadError> {
        match self.0.recv_timeout(timeout) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(CoreThreadError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(CoreThreadError::Gone),
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
