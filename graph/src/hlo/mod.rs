//! The graph as HLO: what the device compiler gets, and what is read back to be checked or evaluated.
//!
//! [`write()`] inlines every fused op and emits an `HloModuleProto` in the one form that the compiler for Neuron is
//! known to take: dense 32-bit ids, called computations before the entry computation `main`, row-major layouts
//! stated, names of parameters and results as frontend attributes, in-place states as aliases. Equal graphs give
//! equal bytes: nothing of the machine or the source tree goes in. [`lint()`] refuses every other form, opcode,
//! element type or attribute, and [`read()`] turns bytes that pass it into a graph of primitives again.
//!
//! What is known of the compiler comes from the open code that ships through it, and not from runs of it: that it
//! accepts these modules is unproven until it has.

mod form;
mod lint;
pub mod proto;
mod read;
mod write;

pub use form::AliasKind;
pub use lint::lint;
pub use read::read;
pub use write::{HloOptions, module, write};

use crate::{DType, GraphError};

/// Why a graph has no HLO, or a module is not one of ours.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HloError {
    /// The graph is ill-formed, or what was read makes no well-typed graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A weight in a block format, which only the CPU reads.
    #[error(
        "weight {name:?} is stored as {dtype}, a block format that the device cannot read: convert it to bf16 or \
         f32, or to int8 with scales"
    )]
    Quantised {
        /// The parameter.
        name: String,
        /// How it is stored.
        dtype: DType,
    },
    /// The graph asks for something that the device's HLO has no form for.
    #[error("{node} cannot be written as HLO for the device: {why}")]
    Unsupported {
        /// The node, parameter or output.
        node: String,
        /// What it asks for.
        why: String,
    },
    /// The module is not in the form that is written here.
    #[error("{place} of the HLO module: {why}")]
    Form {
        /// The instruction, computation or field.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// The bytes are no module, or hold fields that are never written here.
    #[error("the bytes are not an HLO module of ours: {why}")]
    Decode {
        /// What is wrong with them.
        why: String,
    },
}
