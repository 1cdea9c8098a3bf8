//! What can go wrong, by what a caller would do about it.

use std::{fmt, path::PathBuf};

use crate::result::{NrtError, Reaction};

/// A runtime library could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No file that was tried is a library that can be loaded.
    #[error("no Neuron runtime library could be opened: {}; install aws-neuronx-runtime-lib or give the library's path",
        .tried.iter().map(|(path, why)| format!("{} ({why})", path.display())).collect::<Vec<_>>().join("; "))]
    NotFound {
        /// The files in the order they were tried, each with the loader's reason.
        tried: Vec<(PathBuf, String)>,
    },
    /// The file is a library, but not this one, or one too old.
    #[error("{} is not a usable Neuron runtime library: it lacks {}", .path.display(), .missing.join(", "))]
    MissingSymbols {
        /// The file, as it was asked for.
        path: PathBuf,
        /// The mandatory functions that it does not have.
        missing: Vec<&'static str>,
    },
}

/// Why the runtime is no longer used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// A call returned a fatal status.
    Status(NrtError),
    /// [`crate::Runtime::abandon`] was called.
    Abandoned,
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(error) => error.fmt(f),
            Self::Abandoned => f.write_str("it was given up after a call that did not return"),
        }
    }
}

/// A call on the runtime could not be made, or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library refused or failed.
    #[error(transparent)]
    Nrt(#[from] NrtError),
    /// Something failed while a value was dropped earlier. The call that returns this was not made.
    #[error("an earlier drop failed: {0}")]
    Dropped(NrtError),
    /// A fatal status came before; nothing more can be done with this runtime in this process.
    #[error("the runtime is unusable since {0}; the process must end")]
    Poisoned(Poison),
    /// The library is initialised already, and can be only once at a time.
    #[error("the Neuron runtime is already initialised in this process")]
    AlreadyInitialised,
    /// The library does not have a function that this needs.
    #[error("this Neuron runtime library has no {symbol}; a newer one may")]
    Unsupported {
        /// The function.
        symbol: &'static str,
    },
    /// No such core is visible to the process.
    #[error("core {core} is not among the {visible} visible to this process (NEURON_RT_VISIBLE_CORES)")]
    NoSuchCore {
        /// The core asked for, counted from the first visible one.
        core: u32,
        /// How many are visible.
        visible: u32,
    },
    /// A range does not fit its tensor.
    #[error("{bytes} bytes at {at} do not fit tensor {name:?} of {size} bytes")]
    OutOfBounds {
        /// The tensor's name.
        name: String,
        /// The first byte of the range.
        at: usize,
        /// The range's length.
        bytes: usize,
        /// The tensor's size.
        size: usize,
    },
    /// A tensor was to have no bytes, or a name contains a NUL.
    #[error("tensor {name:?}: {why}")]
    BadTensor {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Things of different cores, or of different runtimes, were used together.
    #[error("{what} belongs to core {found}, not to core {expected} of the same runtime")]
    OtherCore {
        /// What it is.
        what: String,
        /// Its core.
        found: u32,
        /// The core it is used with.
        expected: u32,
    },
    /// What the library says of a model's tensors makes no sense.
    #[error("the library's description of the model's tensors is unusable: {0}")]
    BadTensorInfo(String),
    /// The tensor sets do not suit the model; each problem names its tensor.
    #[error("the tensor sets do not suit the model: {}", .0.join("; "))]
    Unbound(Vec<String>),
}

impl Error {
    /// What to do about it.
    pub fn reaction(&self) -> Reaction {
        match self {
            Self::Nrt(error) | Self::Dropped(error) | Self::Poisoned(Poison::Status(error)) => {
                error.reaction()
            }
            Self::Poisoned(Poison::Abandoned) => Reaction::Restart,
            Self::AlreadyInitialised
            | Self::Unsupported { .. }
            | Self::NoSuchCore { .. }
            | Self::BadTensor { .. }
            | Self::OtherCore { .. }
            | Self::BadTensorInfo(_)
            | Self::Unbound(_) => Reaction::Config,
            Self::OutOfBounds { .. } => Reaction::FailRequest,
        }
    }
}
