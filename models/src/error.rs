//! Why a checkpoint cannot be used.

use std::path::PathBuf;

use millrace_graph::GraphError;

/// What is wrong with a checkpoint. Each message names the file and the field, tensor or key in it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The path cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The path holds no checkpoint in a known layout.
    #[error("{} holds no checkpoint: {why}", path.display())]
    NotACheckpoint {
        /// The path.
        path: PathBuf,
        /// What was looked for.
        why: String,
    },
    /// The checkpoint's architecture is not one of those that the decoder covers.
    #[error("{file}: architecture {name:?} is not supported; supported are {supported}")]
    UnsupportedArchitecture {
        /// Where the architecture is named.
        file: String,
        /// Its name there.
        name: String,
        /// The names that would have been accepted.
        supported: String,
    },
    /// The architecture is known, but not with this setting: it would change the answers if it were ignored.
    #[error("{file}: {field} = {value} is not supported{hint}")]
    Unsupported {
        /// Where the setting stands.
        file: String,
        /// Its name.
        field: String,
        /// Its value.
        value: String,
        /// What would be accepted; begins with its own punctuation, or is empty.
        hint: String,
    },
    /// A setting is missing or makes no sense.
    #[error("{file}: {field}: {why}")]
    Config {
        /// Where the setting belongs.
        file: String,
        /// Its name.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file's bytes do not follow its format.
    #[error("{file}: {field}: {why}")]
    Malformed {
        /// The file.
        file: String,
        /// The header field, key or tensor.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// A weight that the configuration asks for is not in the files.
    #[error("weight {name} is missing: no tensor {wanted} in {file}")]
    MissingWeight {
        /// The weight's canonical name.
        name: String,
        /// The tensor's name in the files.
        wanted: String,
        /// Where it was looked for.
        file: String,
    },
    /// A weight's type is not what the configuration asks for.
    #[error("weight {name} is {found} where the configuration asks for {expected}")]
    WeightType {
        /// The weight's canonical name.
        name: String,
        /// What the configuration asks for.
        expected: String,
        /// What is in the file.
        found: String,
    },
    /// A model cannot be laid out over a device in this way.
    #[error("the model cannot be laid out so: {what}")]
    Device {
        /// What was asked for, and what can be had.
        what: String,
    },
    /// The graph builder refused the decoder: a defect of this program, or a step shape that makes no sense.
    #[error(transparent)]
    Graph(#[from] GraphError),
}
