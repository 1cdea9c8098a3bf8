//! The library's state: what is open, which handles there are, what has been complained about.
//!
//! Handles are numbers that look like pointers, and everything is found through tables: a wrong handle is an error, and
//! never memory of something else.

use std::collections::BTreeMap;
use std::ptr::without_provenance_mut;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use millrace_kernels::eval::Meeting;
use neuron_sys::Status;
use neuron_sys::sys::NRT_STATUS;

use crate::execute::Bound;
use crate::memory::Tensor;
use crate::neff::Neff;
use crate::options::{Effect, Fault, Settings};
use crate::ranks::Gathering;

/// Why a call is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: NRT_STATUS,
    pub(crate) why: String,
}

impl Refusal {
    pub(crate) fn new(status: NRT_STATUS, why: impl Into<String>) -> Refusal {
        Refusal { status, why: why.into() }
    }

    pub(crate) fn invalid(why: impl Into<String>) -> Refusal {
        Refusal::new(NRT_STATUS::NRT_INVALID, why)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Fresh,
    Open,
    Closed,
}

pub(crate) struct World {
    phase: Phase,
    /// As of the last `nrt_init`, or of the last change by a test.
    settings: Option<Settings>,
    overrides: BTreeMap<String, String>,
    /// How often each function has been called.
    calls: BTreeMap<&'static str, u64>,
    complaints: Vec<String>,
    next: usize,
    pub(crate) tensors: BTreeMap<usize, Arc<Tensor>>,
    pub(crate) sets: BTreeMap<usize, BTreeMap<String, (usize, Arc<Tensor>)>>,
    pub(crate) models: BTreeMap<usize, Arc<Model>>,
    /// Descriptions of tensors that were given out, by address.
    pub(crate) infos: BTreeMap<usize, Description>,
    pub(crate) cores: Vec<CoreState>,
    pub(crate) gathering: Option<Gathering>,
}

/// The memory of a description of tensors, which is never looked at through this: the structures, and the shapes that
/// they point to.
pub(crate) struct Description(#[allow(dead_code, reason = "held for whom it was given")] pub(crate) Parts);

type Parts = (Vec<u64>, Vec<Vec<u32>>);

#[derive(Debug, Default)]
pub(crate) struct CoreState {
    pub(crate) used: Arc<AtomicUsize>,
    /// Whether something is being executed.
    pub(crate) busy: bool,
}

/// A loaded program.
pub(crate) struct Model {
    pub(crate) core: u32,
    pub(crate) neff: Neff,
    /// Device memory that the program takes.
    pub(crate) bytes: usize,
    /// For a program with collectives: the other ranks, and which one this is.
    pub(crate) ranks: Option<(Arc<Meeting>, u32)>,
    /// Executions so far.
    pub(crate) runs: AtomicU64,
    /// The last pair of sets that was found to suit it, so that checking takes no part in what a caller measures.
    pub(crate) bound: Mutex<Option<(Sets, Arc<Bound>)>>,
}

/// The handles of an input set and an output set.
type Sets = (usize, usize);

impl Model {
    fn last(&self) -> MutexGuard<'_, Option<(Sets, Arc<Bound>)>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What these sets were found to be, unless one has changed since.
    pub(crate) fn bound(&self, inputs: usize, outputs: usize) -> Option<Arc<Bound>> {
        let last = self.last();
        last.as_ref().filter(|(sets, _)| *sets == (inputs, outputs)).map(|(_, bound)| Arc::clone(bound))
    }

    pub(crate) fn set_bound(&self, inputs: usize, outputs: usize, bound: Bound) -> Arc<Bound> {
        let bound = Arc::new(bound);
        *self.last() = Some(((inputs, outputs), Arc::clone(&bound)));
        bound
    }
}

static WORLD: Mutex<World> = Mutex::new(World {
    phase: Phase::Fresh,
    settings: None,
    overrides: BTreeMap::new(),
    calls: BTreeMap::new(),
    complaints: Vec::new(),
    next: 0,
    tensors: BTreeMap::new(),
    sets: BTreeMap::new(),
    models: BTreeMap::new(),
    infos: BTreeMap::new(),
    cores: Vec::new(),
    gathering: None,
});

/// Signalled when ranks come together.
pub(crate) static CHANGED: Condvar = Condvar::new();

pub(crate) fn world() -> MutexGuard<'static, World> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(
    clippy::print_stderr,
    reason = "the vendor's library logs there too, and nothing of this one is deployed"
)]
pub(crate) fn say(what: &str) {
    // In one piece, since ranks talk at the same time.
    let line = format!("softnrt: {what}\n");
    eprint!("{line}");
}

impl World {
    /// Counts a call, and says what is to go wrong with it.
    pub(crate) fn count(&mut self, call: &'static str) -> Option<Effect> {
        let count = self.calls.entry(call).or_default();
        *count += 1;
        let count = *count;
        if self.settings.is_none() {
            // Wrong settings are refused by `nrt_init`, which can say so.
            self.settings = Settings::read(&self.overrides).ok();
        }
        self.settings.as_ref().and_then(|settings| Fault::effect(&settings.faults, call, count))
    }

    /// Overrides an environment variable. Calls are counted anew for the faults.
    pub(crate) fn set(&mut self, name: String, value: String) -> Result<(), String> {
        self.overrides.insert(name, value);
        let new = Settings::read(&self.overrides)?;
        self.calls.clear();
        match (&mut self.settings, self.phase) {
            // What cores there are stays as it was at initialisation.
            (Some(settings), Phase::Open) => {
                let Settings { total, visible, .. } = *settings;
                *settings = Settings { total, visible, ..new };
            }
            (settings, _) => *settings = Some(new),
        }
        Ok(())
    }

    /// The settings of a library that is not open, too.
    pub(crate) fn settings(&self) -> Result<Settings, Refusal> {
        match (&self.settings, self.phase) {
            (Some(settings), Phase::Open) => Ok(settings.clone()),
            _ => Settings::read(&self.overrides).map_err(Refusal::invalid),
        }
    }

    /// The settings of an open library.
    pub(crate) fn open(&self) -> Result<&Settings, Refusal> {
        match (self.phase, &self.settings) {
            (Phase::Open, Some(settings)) => Ok(settings),
            (Phase::Closed, _) => Err(Refusal::new(NRT_STATUS::NRT_CLOSED, "nrt_close has been called")),
            _ => Err(Refusal::new(NRT_STATUS::NRT_UNINITIALIZED, "nrt_init has not been called")),
        }
    }

    pub(crate) fn init(&mut self) -> Result<(), Refusal> {
        if self.phase == Phase::Open {
            return Err(Refusal::invalid("nrt_init has been called already"));
        }
        let settings = Settings::read(&self.overrides).map_err(|why| {
            Refusal::new(NRT_STATUS::NRT_FAILURE, format!("NeuronCore(s) not available: {why}"))
        })?;
        self.cores = (0..settings.visible).map(|_| CoreState::default()).collect();
        self.settings = Some(settings);
        self.phase = Phase::Open;
        Ok(())
    }

    pub(crate) fn close(&mut self) {
        if let Err(refusal) = self.open() {
            return self.complain(format!("nrt_close: {}", refusal.why));
        }
        let names: Vec<String> = self.tensors.values().map(|tensor| tensor.name.clone()).collect();
        let lists = [
            ("tensors", self.tensors.len()),
            ("tensor sets", self.sets.len()),
            ("models", self.models.len()),
            ("descriptions of tensors", self.infos.len()),
        ];
        for (what, count) in lists.iter().filter(|(_, count)| *count > 0) {
            let named = if *what == "tensors" { format!(" ({})", some(&names)) } else { String::new() };
            self.complain(format!("nrt_close: {count} {what}{named} have not been freed"));
        }
        if let Some(core) = self.cores.iter().position(|core| core.busy) {
            self.complain(format!("nrt_close: core {core} is executing"));
        }
        self.sets.clear();
        self.tensors.clear();
        self.models.clear();
        self.infos.clear();
        self.cores.clear();
        self.phase = Phase::Closed;
    }

    /// Forgets what a set was found to be: it changes.
    pub(crate) fn forget(&self, set: usize) {
        for model in self.models.values() {
            model.last().take_if(|((inputs, outputs), _)| *inputs == set || *outputs == set);
        }
    }

    /// Something is wrong, and there is no status to say so.
    pub(crate) fn complain(&mut self, what: String) {
        say(&format!("COMPLAINT: {what}"));
        if self.settings.as_ref().is_some_and(|settings| settings.strict) {
            std::process::abort();
        }
        self.complaints.push(what);
    }

    pub(crate) fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// A new handle. Never one that was given before.
    pub(crate) fn handle<T>(&mut self) -> *mut T {
        self.next += 1;
        without_provenance_mut(self.next << 4)
    }

    /// The core of a number as the interface counts.
    pub(crate) fn core(&self, core: i32) -> Result<u32, Refusal> {
        let visible = self.open()?.visible;
        let found = u32::try_from(core).ok().filter(|core| *core < visible);
        found.ok_or_else(|| Refusal::invalid(format!("core {core} is not among the {visible} visible ones")))
    }

    /// Whether a core has so many bytes left.
    pub(crate) fn fits(&self, core: u32, bytes: usize) -> Result<(), Refusal> {
        let limit = self.open()?.memory;
        let used = self.cores[core as usize].used.load(Ordering::Relaxed);
        if bytes <= limit.saturating_sub(used) {
            return Ok(());
        }
        let why = format!("core {core} has {used} of {limit} bytes in use, and {bytes} more are wanted");
        Err(Refusal::new(NRT_STATUS::NRT_RESOURCE, why))
    }

    pub(crate) fn tensor(&self, handle: usize) -> Result<&Arc<Tensor>, Refusal> {
        self.tensors.get(&handle).ok_or_else(|| unknown("tensor"))
    }

    pub(crate) fn model(&self, handle: usize) -> Result<&Arc<Model>, Refusal> {
        self.models.get(&handle).ok_or_else(|| unknown("model"))
    }
}

pub(crate) fn unknown(what: &str) -> Refusal {
    let why = format!("this {what} does not exist, or no longer");
    Refusal::new(NRT_STATUS::NRT_INVALID_HANDLE, why)
}

/// The first few names of a list.
pub(crate) fn some(names: &[String]) -> String {
    let more = if names.len() > 8 { ", …" } else { "" };
    names.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ") + more
}

pub(crate) fn named(status: NRT_STATUS) -> String {
    let status = Status(status);
    status.name().map_or_else(|| status.to_string(), |name| format!("{name} ({})", status.code()))
}
