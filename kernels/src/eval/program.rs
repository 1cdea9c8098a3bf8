//! A graph made ready to be evaluated many times.

use std::sync::Arc;

use millrace_graph::{Graph, Node, NodeId, Op};

use super::ranks::{self, Ranks};
use super::{Data, EvalError, Fault, Value, arith, contract, index};

/// A graph of primitives that has been checked. Values are dropped after their last use, and a scatter writes into
/// its operand where that is the last use of it, so that a state which is given away is updated in place.
#[derive(Clone, Debug)]
pub struct Program {
    graph: Graph,
    /// How often each node's value is used, by other nodes or as an output.
    uses: Vec<usize>,
}

impl Program {
    /// Checks a graph.
    ///
    /// # Errors
    /// Where it is ill-formed. A fused op is refused when it is reached.
    pub fn new(graph: Graph) -> Result<Program, EvalError> {
        graph.verify()?;
        let mut uses = vec![0; graph.nodes.len()];
        let operands = graph.nodes.iter().flat_map(|node| &node.inputs);
        for id in operands.chain(graph.outputs.iter().map(|output| &output.node)) {
            uses[id.index()] += 1;
        }
        Ok(Program { graph, uses })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The outputs, in order, from the values of the parameters, in order, which are taken; of collectives, `ranks`
    /// are the other side.
    ///
    /// Where a node has no result, the states among the inputs are put back as they stand: those that outputs would
    /// have replaced may have been written to, as a device's memory would. All other inputs are gone.
    ///
    /// # Errors
    /// Where the graph contains a fused op, or a collective without `ranks`, an input is missing or of another type
    /// (then nothing is taken), or a node has no result for these inputs.
    pub fn run(
        &self,
        inputs: &mut [Option<Value>],
        ranks: Option<&dyn Ranks>,
    ) -> Result<Vec<Value>, EvalError> {
        let graph = &self.graph;
        for (index, param) in graph.params.iter().enumerate() {
            let ty = graph.ty(param.node);
            let name = || param.name.clone();
            match inputs.get(index).and_then(Option::as_ref) {
                None => return Err(EvalError::MissingInput { name: name(), ty: ty.clone() }),
                Some(value) if value.ty() != ty => {
                    let (want, got) = (ty.clone(), value.ty().clone());
                    return Err(EvalError::InputType { name: name(), want, got });
                }
                Some(_) => {}
            }
        }
        let mut uses = self.uses.clone();
        let mut values: Vec<Option<Value>> = vec![None; graph.nodes.len()];
        for (index, node) in graph.nodes.iter().enumerate() {
            if let Op::Parameter(id) = node.op {
                values[index] = inputs[id.index()].take();
            }
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            if matches!(node.op, Op::Parameter(_)) {
                continue;
            }
            let mut operands = Vec::with_capacity(node.inputs.len());
            for id in &node.inputs {
                uses[id.index()] -= 1;
                let slot = &mut values[id.index()];
                operands.extend(if uses[id.index()] == 0 { slot.take() } else { slot.clone() });
            }
            match compute(index, node, &mut operands, ranks) {
                Ok(value) => values[index] = (uses[index] > 0).then_some(value),
                Err(fault) => {
                    for (id, operand) in node.inputs.iter().zip(operands) {
                        values[id.index()] = Some(operand);
                    }
                    self.put_back(&mut values, inputs);
                    return Err(EvalError::Node {
                        node: index,
                        op: node.op.name(),
                        location: node.location,
                        fault,
                    });
                }
            }
        }
        Ok(graph.outputs.iter().filter_map(|output| values[output.node.index()].clone()).collect())
    }

    /// Finds what has become of each state: the latest value on the way from it to its output that is still there.
    fn put_back(&self, values: &mut [Option<Value>], inputs: &mut [Option<Value>]) {
        for output in &self.graph.outputs {
            let Some(state) = output.alias else { continue };
            let mut at = output.node;
            loop {
                if let Some(value) = values[at.index()].take() {
                    let ty = self.graph.ty(self.graph.param(state).node);
                    inputs[state.index()] = Some(value.retyped(ty.clone()));
                    break;
                }
                match self.updated(at) {
                    Some(before) => at = before,
                    None => break,
                }
            }
        }
    }

    /// The operand that a node may update in place.
    fn updated(&self, id: NodeId) -> Option<NodeId> {
        let node = self.graph.node(id);
        match node.op {
            Op::Scatter(_) | Op::Reshape => node.inputs.first().copied(),
            _ => None,
        }
    }
}

/// One node. The graph has been verified: operands have the number, kinds and shapes that the operation takes.
fn compute(
    index: usize,
    node: &Node,
    operands: &mut [Value],
    ranks: Option<&dyn Ranks>,
) -> Result<Value, Fault> {
    let ty = &node.ty;
    let value = |data: Data| Value::new(ty.clone(), Arc::new(data));
    let data = match (&node.op, &mut *operands) {
        (Op::Reshape, [x]) => return Ok(Value::new(ty.clone(), x.shared())),
        (Op::Scatter(dims), [x, indices, updates]) => {
            index::scatter(dims, x, indices, updates)?;
            return Ok(x.clone());
        }
        (Op::AllReduce { op, groups }, [x]) => return ranks::all_reduce(index, *op, groups, x, ranks),
        (Op::Convert, [x]) if arith::widens(x.ty().dtype, ty.dtype) => {
            return Ok(Value::new(ty.clone(), x.shared()));
        }
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
        (Op::TopK { k, indices }, [x]) => contract::top_k(*k, *indices, x),
        (Op::Fused(_), _) => return Err(Fault::Fused),
        (op, _) => unreachable!("verification checks the operands of {}", op.name()),
    };
    Ok(value(data))
}
