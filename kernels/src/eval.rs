//! The reference: evaluates graphs of primitives, one node after the other, plainly and strictly.
//!
//! Every kernel is tested against it, by way of [`millrace_graph::define::inline`]. Floats are held as f32 and
//! rounded to the node's element type after every operation; sums and dot products accumulate in f64, so that
//! a difference to a kernel is the kernel's. It is stricter than the devices it stands for: an index out of
//! bounds, an element scattered twice, or a division by integer zero is an error, never clamped or dropped.

mod arith;
mod contract;
mod index;
mod program;
mod ranks;
mod value;
mod walk;

use std::collections::HashMap;
use std::panic::Location;

use millrace_graph::{Graph, GraphError, Type};

use value::Data;

pub use program::Program;
pub use ranks::{Meeting, Ranks, Together};
pub use value::Value;

/// Why a graph has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EvalError {
    /// The graph does not pass [`Graph::verify`].
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// No value was given for a parameter.
    #[error("no input for parameter {name:?}, {ty}")]
    MissingInput {
        /// The parameter.
        name: String,
        /// Its type.
        ty: Type,
    },
    /// A value of another type was given for a parameter.
    #[error("parameter {name:?} is {want}, and {got} was given")]
    InputType {
        /// The parameter.
        name: String,
        /// Its type.
        want: Type,
        /// The value's type.
        got: Type,
    },
    /// Elements or bytes in a number that does not make a value of this type, or of another kind.
    #[error("{given} elements or bytes do not make {ty}")]
    Value {
        /// The value's type.
        ty: Type,
        /// What was given.
        given: usize,
    },
    /// A node cannot be computed.
    #[error("%{node} {op}, built at {location}: {fault}")]
    Node {
        /// Its index in the graph.
        node: usize,
        /// Its operation.
        op: &'static str,
        /// Where it was built.
        location: &'static Location<'static>,
        /// What is wrong.
        fault: Fault,
    },
}

/// What keeps a node from being computed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// A gather or scatter beyond its operand.
    #[error("index {index} with a window of {window} in dimension {dim} of size {size}")]
    OutOfBounds {
        /// The index.
        index: i64,
        /// The operand's dimension that it counts in.
        dim: usize,
        /// Elements read or written from there on.
        window: usize,
        /// The size of that dimension.
        size: usize,
    },
    /// A scatter to an element that it has written already.
    #[error("the element at {index:?} is written twice")]
    Duplicate {
        /// The index vector of the second write.
        index: Vec<i64>,
    },
    /// An integer divided by zero, or raised to a negative power.
    #[error("integer division by zero")]
    Division,
    /// A float that is not a number of the integer type it is converted to.
    #[error("{value} is no number of the integer type")]
    Conversion {
        /// The float, printed.
        value: String,
    },
    /// A fused op: [`millrace_graph::define::inline`] the graph first.
    #[error("a fused op; inline its definition first")]
    Fused,
    /// A collective, and no other ranks were given.
    #[error("needs the other ranks")]
    NeedsRanks,
    /// A collective that did not come about.
    #[error("{0}")]
    Ranks(String),
}

/// The outputs of a graph of primitives, in order, from the values of its parameters by name. Names that the
/// graph does not know are ignored. [`Program`] does the same many times, in place, and with other ranks.
///
/// # Errors
/// Where the graph is ill-formed or contains a fused op or a collective, an input is missing or of another
/// type, or a node has no result for these inputs.
pub fn evaluate(graph: &Graph, inputs: &HashMap<String, Value>) -> Result<Vec<Value>, EvalError> {
    let program = Program::new(graph.clone())?;
    let mut values: Vec<_> = graph.params.iter().map(|param| inputs.get(&param.name).cloned()).collect();
    program.run(&mut values, None)
}
