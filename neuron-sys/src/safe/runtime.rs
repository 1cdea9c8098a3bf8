//! The cores claimed for this process.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    error::{Error, Poison},
    library::Library,
};
use crate::{
    result::{self, NrtError},
    sys::Nrt,
};

/// An initialised library: the visible cores belong to this process until the last `Arc` of it, and of everything that
/// lives in it, is gone.
///
/// Environment variables (`NEURON_RT_VISIBLE_CORES` and the like) are read by the library when it is initialised, some
/// when a model is loaded; setting them is the program's business, before it starts threads.
#[derive(Debug)]
pub struct Runtime {
    library: Arc<Library>,
    /// One lock for each core that was asked for.
    cores: Mutex<BTreeMap<u32, Arc<Mutex<()>>>>,
    poison: OnceLock<Poison>,
    /// Set while `dropped` holds an error, so that the hot path takes no lock.
    has_dropped: AtomicBool,
    dropped: Mutex<Option<NrtError>>,
}

impl Runtime {
    /// Initialises the library, which claims the visible cores.
    ///
    /// Closing and initialising again is possible; a library that was left open after a fatal status is never
    /// initialised again.
    ///
    /// # Errors
    /// If it is initialised already, is lost, or `nrt_init` fails. A failure whose [`Error::reaction`] is
    /// [`RetryInit`](result::Reaction::RetryInit) may be tried again.
    pub fn init(library: Arc<Library>) -> Result<Arc<Self>, Error> {
        let mut open = library.gate.pass();
        if library.gate.is_lost() {
            return Err(Error::Poisoned(Poison::Abandoned));
        }
        if *open {
            return Err(Error::AlreadyInitialised);
        }
        // SAFETY: the gate says that the library is not initialised and keeps every other call out.
        if let Err(error) = unsafe { result::init(library.nrt) } {
            if error.reaction().is_fatal() {
                library.gate.lose();
            }
            return Err(error.into());
        }
        *open = true;
        drop(open);
        Ok(Arc::new(Self {
            library,
            cores: Mutex::default(),
            poison: OnceLock::new(),
            has_dropped: AtomicBool::new(false),
            dropped: Mutex::default(),
        }))
    }

    /// The library it runs in.
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// One core, counted from the first visible one.
    ///
    /// # Errors
    /// If the library says that there are fewer.
    pub fn core(self: &Arc<Self>, core: u32) -> Result<Core, Error> {
        self.ready()?;
        if let Some(visible) = self.library.visible_cores()
            && core >= visible
        {
            return Err(Error::NoSuchCore { core, visible });
        }
        if i32::try_from(core).is_err() {
            return Err(Error::NoSuchCore { core, visible: i32::MAX.unsigned_abs() });
        }
        let lock = Arc::clone(lock(&self.cores).entry(core).or_default());
        Ok(Core { runtime: Arc::clone(self), index: core, lock })
    }

    /// Gives the runtime up, as a fatal status does: from now on calls fail, and nothing is closed, unloaded or freed.
    /// For a watchdog that sees a call not return.
    pub fn abandon(&self) {
        self.lose(Poison::Abandoned);
    }

    /// Why the runtime is unusable, if it is.
    pub fn poisoned(&self) -> Option<Poison> {
        self.poison.get().copied()
    }

    fn lose(&self, poison: Poison) {
        if self.poison.set(poison).is_ok() {
            tracing::error!(%poison, "the Neuron runtime is unusable; nothing of it will be closed");
            self.library.gate.lose();
        }
    }

    /// Before a call: whether it may be made.
    pub(super) fn ready(&self) -> Result<(), Error> {
        if let Some(poison) = self.poisoned() {
            return Err(Error::Poisoned(poison));
        }
        if self.has_dropped.load(Ordering::Acquire) {
            let mut dropped = lock(&self.dropped);
            self.has_dropped.store(false, Ordering::Release);
            if let Some(error) = dropped.take() {
                return Err(Error::Dropped(error));
            }
        }
        Ok(())
    }

    /// After a call: remembers a fatal status.
    pub(super) fn done<T>(&self, result: Result<T, NrtError>) -> Result<T, Error> {
        if let Err(error) = &result
            && error.reaction().is_fatal()
        {
            self.lose(Poison::Status(*error));
        }
        Ok(result?)
    }

    /// After a call in a drop: the error is logged, and returned by the next call that can return one.
    pub(super) fn done_in_drop(&self, result: Result<(), NrtError>) {
        let Err(error) = result else { return };
        tracing::error!(%error, "failed in a drop");
        if error.reaction().is_fatal() {
            return self.lose(Poison::Status(error));
        }
        lock(&self.dropped).get_or_insert(error);
        self.has_dropped.store(true, Ordering::Release);
    }

    pub(super) fn nrt(&self) -> &'static Nrt {
        self.library.nrt
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // A poisoned runtime may have a call inside that never returns: the gate is not waited for.
        if self.poisoned().is_none() {
            let mut open = self.library.gate.pass();
            // SAFETY: nothing that lives in the runtime is left, since each of it holds an `Arc` of the runtime, and the
            // gate keeps every other call out.
            unsafe { result::close(self.nrt()) };
            *open = false;
        }
    }
}

/// Memory of a core's device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    /// In use, by this process's tensors and models and by the runtime.
    pub used: usize,
    /// All there is.
    pub limit: usize,
}

/// One core. Clones are the same core.
#[derive(Clone, Debug)]
pub struct Core {
    pub(super) runtime: Arc<Runtime>,
    index: u32,
    lock: Arc<Mutex<()>>,
}

impl Core {
    /// Counted from the first visible one.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The runtime it belongs to.
    pub fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }

    /// How much of its memory is in use.
    ///
    /// # Errors
    /// If the library cannot tell, or fails.
    pub fn memory(&self) -> Result<MemoryStats, Error> {
        let _lock = self.enter()?;
        // SAFETY: the runtime is initialised as long as it is alive.
        let stats = unsafe { result::memory_stats(self.nrt(), self.index) };
        let stats = self.optional("nrt_get_vnc_memory_stats", stats)?;
        Ok(MemoryStats { used: stats.bytes_used, limit: stats.bytes_limit })
    }

    /// Joins the communicator of `ranks` cores, for models whose own groups are smaller. Returns when all ranks have
    /// joined.
    ///
    /// # Errors
    /// If the library cannot, or fails.
    pub fn build_global_comm(&self, rank: u32, ranks: u32) -> Result<(), Error> {
        let _lock = self.enter()?;
        // SAFETY: the runtime is initialised as long as it is alive.
        let joined = unsafe { result::build_global_comm(self.nrt(), self.number(), rank, ranks) };
        self.optional("nrt_build_global_comm", joined)
    }

    /// Takes the core's lock for a call that can return an error.
    pub(super) fn enter(&self) -> Result<MutexGuard<'_, ()>, Error> {
        self.runtime.ready()?;
        let guard = lock(&self.lock);
        // The call that held the lock may have been a fatal one.
        match self.runtime.poisoned() {
            None => Ok(guard),
            Some(poison) => Err(Error::Poisoned(poison)),
        }
    }

    /// Takes the core's lock for a call in a drop; `None` if the runtime is poisoned, and all is to be left as it is.
    pub(super) fn enter_drop(&self) -> Option<MutexGuard<'_, ()>> {
        if self.runtime.poisoned().is_some() {
            return None;
        }
        let guard = lock(&self.lock);
        self.runtime.poisoned().is_none().then_some(guard)
    }

    /// Waits until no other model is being loaded or unloaded in this process, and keeps others out.
    pub(super) fn pass(&self) -> MutexGuard<'_, bool> {
        self.runtime.library.gate.pass()
    }

    /// The result of an optional call: an error if the library does not have it.
    pub(super) fn optional<T>(
        &self,
        symbol: &'static str,
        called: Option<Result<T, NrtError>>,
    ) -> Result<T, Error> {
        self.runtime.done(called.ok_or(Error::Unsupported { symbol })?)
    }

    pub(super) fn nrt(&self) -> &'static Nrt {
        self.runtime.nrt()
    }

    /// The core as the library counts, which takes signed numbers; `Runtime::core` made sure that it is one.
    pub(super) fn number(&self) -> i32 {
        self.index.cast_signed()
    }

    /// Whether both are the same core of the same runtime; else an error that says `what` is not.
    pub(super) fn same(&self, other: &Self, what: impl FnOnce() -> String) -> Result<(), Error> {
        if Arc::ptr_eq(&self.lock, &other.lock) {
            return Ok(());
        }
        Err(Error::OtherCore { what: what(), found: other.index, expected: self.index })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic interrupted here is never half done: the locks guard calls, and values replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
