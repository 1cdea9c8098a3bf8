//! What the Neuron backend counts, for whoever keeps the metrics. Read while it runs.

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
    /// Each compiled program.
    pub programs: Vec<ProgramFigures>,
    pub(super) sequences_padding: AtomicU64,
    pub(super) tokens_padding: AtomicU64,
}

/// Counts of one compiled program.
#[derive(Debug, Default)]
pub struct ProgramFigures {
    /// Its bucket: rows, width, blocks.
    pub bucket: String,
    /// Seconds that its compilation took, whenever that was.
    pub compilation_seconds: f64,
    /// Seconds of one execution, as measured when it was loaded.
    pub execution_seconds: f64,
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
    /// Executions for requests.
    pub fn executions(&self) -> u64 {
        self.executions.load(Ordering::Relaxed)
    }
}
