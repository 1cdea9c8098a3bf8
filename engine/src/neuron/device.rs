//! From a library to a runner: claim cores, put weights on them, load programs, warm and time each.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_models::device::{DeviceModel, device_weight, device_weights};
use millrace_models::{Checkpoint, Config, ModelError};
use neuron_sys::{CoreThread, CoreThreadError, Error, Library, OpenError, Pending, Phase, Reaction, Runtime};

use super::failure::advice;
use super::label;
use super::rank::{BindError, Rank};
use super::store::Artefact;

/// Work that waits for a core: as much as a step of many prompts becomes.
const QUEUE: usize = 256;

/// How long cores that another process has are waited for: the driver cleans up after a process that has ended.
const CLAIM: Duration = Duration::from_secs(20);

/// Why the Neuron backend does not start.
#[derive(Debug, thiserror::Error)]
pub enum NeuronLoadError {
    /// There is no usable runtime library.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The cores could not be claimed.
    #[error("cannot claim the NeuronCores: {source}; {advice}")]
    Claim {
        /// What the runtime says.
        source: Error,
        /// What to do.
        advice: &'static str,
    },
    /// There are fewer cores than ranks.
    #[error(
        "--tensor-parallel-size {ranks} needs as many NeuronCores, but {visible} are visible \
         (NEURON_RT_VISIBLE_CORES, NEURON_RT_NUM_CORES)"
    )]
    Cores {
        /// Ranks asked for.
        ranks: usize,
        /// Cores there are.
        visible: u32,
    },
    /// A call failed while loading.
    #[error("core {rank}, {what}: {source}; {advice}")]
    Core {
        /// The core.
        rank: usize,
        /// What was done.
        what: String,
        /// What the runtime says.
        source: Error,
        /// What to do.
        advice: &'static str,
    },
    /// A program is not what the store says.
    #[error("core {rank}: {source}")]
    Program {
        /// The core.
        rank: usize,
        /// What is wrong.
        source: BindError,
    },
    /// The checkpoint cannot give what the graphs need.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The thread of a core ended.
    #[error("the thread of core {rank}: {source}")]
    Thread {
        /// The core.
        rank: usize,
        /// Why.
        source: CoreThreadError,
    },
    /// The operating system gave no thread.
    #[error("cannot start the thread of a core")]
    Spawn(#[source] std::io::Error),
    /// The programs do not serve every step.
    #[error("the compiled programs cannot serve: {0}; compile with other --buckets")]
    Uncovered(String),
    /// Device memory is short however few KV blocks there are.
    #[error(
        "device memory does not suffice: {blocks} KV blocks of {block_size} tokens are needed for one sequence of \
         --max-model-len; lower it, or raise --tensor-parallel-size"
    )]
    Memory {
        /// Blocks for one sequence and for padding.
        blocks: usize,
        /// Tokens in a block.
        block_size: usize,
    },
    /// The programs could not be provided.
    #[error("the compiled programs could not be provided: {0}")]
    Provide(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl NeuronLoadError {
    /// Whether fewer KV blocks may help.
    pub(super) fn is_memory(&self) -> bool {
        let error = match self {
            NeuronLoadError::Core { source, .. }
            | NeuronLoadError::Program { source: BindError::Runtime(source), .. } => source,
            _ => return false,
        };
        matches!(error, Error::Nrt(nrt) if nrt.status.reaction(Phase::Load) == Reaction::Shrink)
    }

    pub(super) fn core(rank: usize, what: impl Into<String>, source: Error) -> Self {
        let reaction = match &source {
            Error::Nrt(nrt) => nrt.status.reaction(Phase::Load),
            other => other.reaction(),
        };
        NeuronLoadError::Core { rank, what: what.into(), source, advice: advice(reaction) }
    }
}

/// Cores that were claimed, each with its thread. Dropped, they are given back.
pub struct Device {
    threads: Vec<CoreThread<Rank>>,
    /// Held while work is sent to all cores: it must reach each of them in the same order, or ranks of two programs
    /// would wait for each other.
    order: Mutex<()>,
    pub(super) runtime: Arc<Runtime>,
    pub(super) opened: Instant,
}

impl Device {
    /// Opens the runtime library, at `library` or where the vendor installs it, and claims its visible cores for this
    /// process; `ranks` of them are used, from the first on.
    ///
    /// # Errors
    /// Where there is no library, no device, or too few cores; cores that another process has are waited for a while.
    pub fn open(library: Option<&Path>, ranks: usize) -> Result<Device, NeuronLoadError> {
        Self::claim(Library::open(library)?, ranks)
    }

    /// The same with a library that is open.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn claim(library: Arc<Library>, ranks: usize) -> Result<Device, NeuronLoadError> {
        let opened = Instant::now();
        let runtime = claim(library)?;
        let threads = (0..ranks)
            .map(|rank| {
                let core = runtime.core(rank as u32).map_err(|error| match error {
                    Error::NoSuchCore { visible, .. } => NeuronLoadError::Cores { ranks, visible },
                    error => NeuronLoadError::core(rank, "claim", error),
                })?;
                CoreThread::spawn(core, QUEUE, move |core| Rank::new(core, ranks))
                    .map_err(NeuronLoadError::Spawn)
            })
            .collect::<Result<_, _>>()?;
        Ok(Device { threads, order: Mutex::new(()), runtime, opened })
    }

    /// The library.
    pub fn library(&self) -> &Arc<Library> {
        self.runtime.library()
    }

    /// Puts each rank's share of every weight on its core. `progress` hears of weights and of all.
    ///
    /// # Errors
    /// Where the checkpoint lacks one, or the device's memory does not suffice.
    pub fn upload(
        &self,
        checkpoint: &Checkpoint,
        model: &DeviceModel,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, NeuronLoadError> {
        let weights = device_weights(checkpoint.config(), model)?;
        let upload = |rank: usize, thread: &CoreThread<Rank>| {
            let mut total = 0;
            for (name, _) in &weights {
                let bytes = device_weight(checkpoint, model, rank, name)?;
                let (size, owned) = (bytes.len() as u64, name.clone());
                let done = thread.run(move |state| state.upload(&owned, &bytes));
                done.map_err(|source| NeuronLoadError::Thread { rank, source })?
                    .map_err(|error| NeuronLoadError::core(rank, format!("weight {name}"), error))?;
                total += size;
                progress(size);
            }
            Ok(total)
        };
        std::thread::scope(|scope| {
            let upload = &upload;
            let ranks: Vec<_> = (self.threads.iter().enumerate())
                .map(|(rank, thread)| scope.spawn(move || upload(rank, thread)))
                .collect();
            let uploaded = ranks
                .into_iter()
                .map(|rank| rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            uploaded.sum()
        })
    }

    /// Bytes that can still be allocated on the fullest of the cores; `None` where the library cannot tell.
    ///
    /// # Errors
    /// Where the library fails.
    pub fn free_memory(&self) -> Result<Option<u64>, NeuronLoadError> {
        let free = self.on_all("free memory", |rank| rank.free_memory())?;
        Ok(free.into_iter().flatten().min())
    }

    /// Forgets all programs and caches.
    pub(super) fn unload(&self) -> Result<(), NeuronLoadError> {
        let unloaded = self.on_all("unload", |rank| {
            rank.unload();
            Ok(())
        });
        unloaded.map(drop)
    }

    /// Loads a program on all cores, under this number; the first one makes the caches.
    pub(super) fn load(&self, program: usize, artefact: &Artefact) -> Result<(), NeuronLoadError> {
        let neff: Arc<[u8]> = artefact.neff.as_slice().into();
        let manifest = Arc::new(artefact.manifest.clone());
        // Ranks of a program with collectives wait for each other inside of the call.
        let loading = {
            let manifest = manifest.clone();
            self.send(move |rank| rank.load(program, &neff, &manifest))
        };
        // All are waited for, so that none is loading still when the caller makes something of an error.
        let mut failed = None;
        for (rank, loaded) in loading.into_iter().enumerate() {
            let error = match loaded.wait() {
                Ok(Ok(())) => continue,
                Ok(Err(BindError::Runtime(error))) => {
                    NeuronLoadError::core(rank, format!("program {}", label(&manifest.bucket)), error)
                }
                Ok(Err(source)) => NeuronLoadError::Program { rank, source },
                Err(source) => NeuronLoadError::Thread { rank, source },
            };
            failed.get_or_insert(error);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sends work to all cores.
    pub(super) fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Rank) -> T + Send + Clone + 'static,
    ) -> Vec<Pending<T>> {
        // A panic while it was held left nothing half done that is not sent.
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        self.threads.iter().map(|thread| thread.submit(work.clone())).collect()
    }

    /// Does something on all cores at once.
    pub(super) fn on_all<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&mut Rank) -> Result<T, Error> + Send + Clone + 'static,
    ) -> Result<Vec<T>, NeuronLoadError> {
        let done = self.send(work).into_iter().enumerate().map(|(rank, pending)| {
            let done = pending.wait().map_err(|source| NeuronLoadError::Thread { rank, source })?;
            done.map_err(|error| NeuronLoadError::core(rank, what, error))
        });
        done.collect()
    }
}

/// Claims the visible cores for this process; those that another process has are waited for a while.
pub(super) fn claim(library: Arc<Library>) -> Result<Arc<Runtime>, NeuronLoadError> {
    let started = Instant::now();
    tracing::info!(library = library.describe(), "Neuron runtime");
    let mut pause = Duration::from_millis(100);
    loop {
        match Runtime::init(library.clone()) {
            Ok(runtime) => return Ok(runtime),
            Err(error)
                if matches!(error.reaction(), Reaction::RetryInit | Reaction::Wait)
                    && started.elapsed() + pause < CLAIM =>
            {
                tracing::warn!(%error, "the NeuronCores are not free yet");
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(4));
            }
            Err(source) => {
                return Err(NeuronLoadError::Claim { advice: advice(source.reaction()), source });
            }
        }
    }
}

/// Bytes that a KV block takes on each core: keys and values of all layers.
pub fn kv_block_bytes(config: &Config, model: &DeviceModel) -> u64 {
    let heads = (config.kv_heads / model.ranks).max(1);
    let width = 2 * heads * config.head_dim * model.dtype.block_bytes();
    (config.layers.len() * model.block_size * width) as u64
}
