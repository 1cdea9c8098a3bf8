//! The reference: evaluates graphs of primitives, one node after the other, plainly and strictly.
//!
//! Every kernel is tested against it, by way of [`millrace_graph::define::inline`]. Floats are held as f32 and
//! rounded to the node's element type after every operation; sums and dot products accumulate in f64, so that
//! a difference to a kernel is the kernel's. It is stricter than the devices it stands for: an index out of
//! bounds, an element scattered twice, or a division by integer zero is an error, never clamped or dropped.

mod arith;
mod contract;
mod index;
mod value;
mod walk;

use std::collections::HashMap;
use std::panic::Location;
use std::sync::Arc;

use millrace_graph::{Graph, GraphError, Node, Op, Type};

use value::Data;
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
    /// A collective, which one rank cannot compute alone.
    #[error("needs the other ranks")]
    NeedsRanks,
}

/// The outputs of a graph of primitives, in order, from the values of its parameters by name. Names that the
/// graph does not know are ignored.
///
/// # Errors
/// Where the graph is ill-formed or contains a fused op or a collective, an input is missing or of another
/// type, or a node has no result for these inputs.
pub fn evaluate(graph: &Graph, inputs: &HashMap<String, Value>) -> Result<Vec<Value>, EvalError> {
    graph.verify()?;
    let mut users = vec![0usize; graph.nodes.len()];
    let operands = graph.nodes.iter().flat_map(|node| &node.inputs);
    for id in operands.chain(graph.outputs.iter().map(|output| &output.node)) {
        users[id.index()] += 1;
    }
    let mut values: Vec<Option<Value>> = Vec::with_capacity(graph.nodes.len());
    for (index, node) in graph.nodes.iter().enumerate() {
        let value = match &node.op {
            Op::Parameter(id) => parameter(&graph.param(*id).name, &node.ty, inputs)?,
            _ => {
                let operands: Vec<&Value> =
                    node.inputs.iter().filter_map(|id| values[id.index()].as_ref()).collect();
                let data = compute(node, &operands).map_err(|fault| EvalError::Node {
                    node: index,
                    op: node.op.name(),
                    location: node.location,
                    fault,
                })?;
                Value::new(node.ty.clone(), data)
            }
        };
        values.push((users[index] > 0).then_some(value));
        for id in &node.inputs {
            users[id.index()] -= 1;
            if users[id.index()] == 0 {
                values[id.index()] = None;
            }
        }
    }
    Ok(graph.outputs.iter().filter_map(|output| values[output.node.index()].clone()).collect())
}

fn parameter(name: &str, ty: &Type, inputs: &HashMap<String, Value>) -> Result<Value, EvalError> {
    let value =
        inputs.get(name).ok_or_else(|| EvalError::MissingInput { name: name.to_owned(), ty: ty.clone() })?;
    if value.ty() != ty {
        let (want, got) = (ty.clone(), value.ty().clone());
        return Err(EvalError::InputType { name: name.to_owned(), want, got });
    }
    Ok(value.clone())
}

/// One node. The graph has been verified: operands have the number, kinds and shapes that the operation takes.
fn compute(node: &Node, operands: &[&Value]) -> Result<Arc<Data>, Fault> {
    let ty = &node.ty;
    let data = match (&node.op, operands) {
        (Op::Reshape, [x]) => return Ok(x.shared()),
        (Op::Constant(literal), _) => arith::constant(literal, ty),
        (Op::Iota { dim }, _) => arith::iota(*dim, ty),
        (Op::Broadcast { dims }, [x]) => index::broadcast(dims, x, ty),
        (Op::Transpose { perm }, [x]) => index::transpose(perm, x, ty),
        (Op::Slice { starts, strides, .. }, [x]) => index::slice(starts, strides, x, ty),
        (Op::Concatenate { dim }, xs) => index::concatenate(*dim, xs, ty),
        (Op::Convert, [x]) => arith::convert(x, ty)?,
        (Op::Unary(op), [x]) => arith::unary(*op, x, ty),
        (Op::Binary(op), [x, y]) => arith::binary(*op, x, y, ty)?,
        (Op::Compare(direction), [x, y]) => arith::compare(*direction, x, y),
        (Op::Select, [pred, x, y]) => arith::select(pred, x, y),
        (Op::Reduce { op, dims }, [x]) => contract::reduce(*op, dims, x, ty),
        (Op::Dot(dims), [x, y]) => contract::dot(dims, x, y, ty),
        (Op::Gather(dims), [x, indices]) => index::gather(dims, x, indices, ty)?,
        (Op::Scatter(dims), [x, indices, updates]) => index::scatter(dims, x, indices, updates)?,
        (Op::AllReduce { .. }, _) => return Err(Fault::NeedsRanks),
        (Op::Fused(_), _) => return Err(Fault::Fused),
        (op, _) => unreachable!("verification checks the operands of {}", op.name()),
    };
    Ok(Arc::new(data))
}
