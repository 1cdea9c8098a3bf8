//! Where a library is in its life, and which calls may not overlap in a process.
//!
//! Starting, closing, loading and unloading exclude each other: releases are known to race there. The exception are the
//! ranks of a model with collectives: their loads wait *for each other*, so whatever kept a second rank out while the
//! first is inside, be it only until an unload on that rank's thread has had its turn, would stop all of them for ever.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

#[derive(Debug)]
pub(crate) struct Gate {
    /// Held during such a call; whether the library is initialised.
    open: Mutex<bool>,
    /// Left open for ever after a fatal status. Not under the lock: a call that holds it may hang.
    lost: AtomicBool,
}

impl Gate {
    pub(crate) const fn new() -> Self {
        Self { open: Mutex::new(false), lost: AtomicBool::new(false) }
    }

    /// Waits until no other such call is being made. The value says whether the library is initialised.
    pub(crate) fn pass(&self) -> MutexGuard<'_, bool> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}
