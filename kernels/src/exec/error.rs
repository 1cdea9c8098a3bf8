//! Why a weight, a graph or a step is refused.

use std::panic::Location;

use millrace_graph::{GraphError, Type};

use crate::dequant::FormatError;
use crate::kv::KvError;
use crate::matrix::PackError;

/// Why a weight is not taken in.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// Two weights of one name.
    #[error("there is a weight named {0:?} already")]
    Duplicate(String),
    /// An alias of something that was not inserted.
    #[error("there is no weight named {name:?} for {alias:?} to share")]
    Unknown {
        /// The name to be added.
        alias: String,
        /// The name that is not there.
        name: String,
    },
    /// The stored bytes are not what the type says.
    #[error("weight {name:?}: {bytes} bytes in {parts} parts cannot be a {ty}")]
    Size {
        /// The weight.
        name: String,
        /// What it should be.
        ty: Type,
        /// Parts that were given.
        parts: usize,
        /// Bytes of all parts together.
        bytes: usize,
    },
    /// A matrix that cannot be packed.
    #[error("weight {name:?}: {source}")]
    Pack {
        /// The weight.
        name: String,
        /// Why.
        source: PackError,
    },
    /// A vector of a format that cannot be read as floats.
    #[error("weight {name:?}: {source}")]
    Format {
        /// The weight.
        name: String,
        /// Why.
        source: FormatError,
    },
}

/// Why a graph cannot be run.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The graph is ill-formed.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// There is no kernel for a node: its op, its element type, or a layout that would take a copy.
    #[error("{op} at {location}: {why}")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// Where the node was built.
        location: &'static Location<'static>,
        /// What is not supported.
        why: String,
    },
    /// A weight is missing, or is stored as another type than the graph's.
    #[error("weight {name:?} of {op} at {location}: {why}")]
    Weight {
        /// The parameter.
        name: String,
        /// The operation that reads it.
        op: &'static str,
        /// Where the node was built.
        location: &'static Location<'static>,
        /// What is wrong.
        why: String,
    },
    /// A state parameter was not allocated, or as another type, or cannot be.
    #[error("state {name:?}: {why}")]
    State {
        /// The parameter.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A KV cache cannot be made.
    #[error("state {name:?}: {source}")]
    Cache {
        /// The parameter.
        name: String,
        /// Why.
        source: KvError,
    },
    /// The arena cannot grow to what the graph's values take.
    #[error("cannot allocate {bytes} bytes for the values of graph {graph:?}: run fewer tokens in a step")]
    Memory {
        /// The graph.
        graph: String,
        /// What was asked for.
        bytes: usize,
    },
}

/// Why a step is refused. Nothing has been written then: neither outputs nor caches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The plan was made by another executor, whose weights and caches it means.
    #[error("the plan belongs to another executor")]
    Foreign,
    /// Not as many slices as the graph has inputs or outputs.
    #[error("{given} {what} given, the graph has {expected}")]
    Count {
        /// `"inputs"` or `"outputs"`.
        what: &'static str,
        /// How many there are to be.
        expected: usize,
        /// How many came.
        given: usize,
    },
    /// A slice of another length than the graph's parameter or result has elements.
    #[error("{name:?} has {given} elements, the graph says {expected}")]
    Length {
        /// The input or output.
        name: String,
        /// How many elements there are to be.
        expected: usize,
        /// How many came.
        given: usize,
    },
    /// An index that points outside of what it indexes.
    #[error("element {at} of input {input:?} is {value}, which is not in 0..{bound}")]
    Index {
        /// The input.
        input: String,
        /// Which of its elements.
        at: usize,
        /// The element.
        value: i32,
        /// One past the largest value allowed.
        bound: usize,
    },
    /// Two tokens would be written to one place.
    #[error(
        "element {at} of input {input:?} is {value}, as is an earlier one: two tokens cannot share a slot"
    )]
    Duplicate {
        /// The input.
        input: String,
        /// Which of its elements.
        at: usize,
        /// The slot.
        value: i32,
    },
}
