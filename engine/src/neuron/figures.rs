//! What the Neuron backend counts, for whoever keeps the metrics. Read while it runs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of the backend; shared by its runner and its readers.
#[derive(Debug, Default)]
pub struct NeuronFigures {
    /// The runtime library: file, version, and which optional functions it has.
    pub library: String,
    /// Cores that run the model together.
    pub ranks: usize,
    /// Seconds from opening the library to readiness.
    pub startup_seconds: f64,
    /// Seconds that weights took to get to the device.
    pub model_load_seconds: f64,
    /// Bytes of weights on the device, all ranks together.
    pub model_load_bytes: u64,
    /// Each program, those that are still to be loaded among them.
    pub programs: Vec<ProgramFigures>,
    pub(super) sequences_padding: AtomicU64,
    pub(super) tokens_padding: AtomicU64,
}

/// Counts of one compiled program.
#[derive(Debug, Default)]
pub struct ProgramFigures {
    /// Its bucket: rows, width, blocks.
    pub bucket: String,
    /// Seconds that its compilation took, and seconds of an execution, once it is loaded.
    loaded: OnceLock<(f64, f64)>,
    pub(super) executions: AtomicU64,
}

impl NeuronFigures {
    /// Rows of executions that stood for nothing.
    pub fn sequences_padding(&self) -> u64 {
        self.sequences_padding.load(Ordering::Relaxed)
    }

    /// New tokens of executions that stood for nothing, those of empty rows among them.
    pub fn tokens_padding(&self) -> u64 {
        self.tokens_padding.load(Ordering::Relaxed)
    }
}

impl ProgramFigures {
    /// Of a program that is still to be loaded.
    pub(super) fn of(bucket: String) -> Self {
        ProgramFigures { bucket, ..ProgramFigures::default() }
    }

    /// It is loaded.
    pub(super) fn set_loaded(&self, compilation_seconds: f64, execution_seconds: f64) {
        // It is loaded once; were it again, the first figures are as good.
        let _ = self.loaded.set((compilation_seconds, execution_seconds));
    }

    /// Seconds that its compilation took, whenever that was; `None` before it is loaded.
    pub fn compilation_seconds(&self) -> Option<f64> {
        self.loaded.get().map(|(compilation, _)| *compilation)
    }

    /// Seconds of one execution, as measured when it was loaded; `None` before.
    pub fn execution_seconds(&self) -> Option<f64> {
        self.loaded.get().map(|(_, execution)| *execution)
    }

    /// Executions for requests.
    pub fn executions(&self) -> u64 {
        self.executions.load(Ordering::Relaxed)
    }
}
