//! The rest of lowering: what a node's operands have become, what inputs have to satisfy, where results go.

use millrace_graph::{Node, NodeId, Op, ParamKind};

use super::check::Check;
use super::error::PlanError;
use super::lower::{Lower, Lowering, Value, unsupported};
use super::plan::Slot;
use super::view::View;
use super::weights::WeightData;

impl Lowering<'_> {
    /// Notes a check, once.
    pub(super) fn check(&mut self, check: Check) {
        for known in &mut self.checks {
            if let (Check::Below { input, bound }, Check::Below { input: other, bound: least }) =
                (&check, known)
                && input == other
            {
                *least = *bound.min(least);
                return;
            }
        }
        if !self.checks.contains(&check) {
            self.checks.push(check);
        }
    }

    /// An operand that was computed.
    pub(super) fn view(&self, node: &Node, input: NodeId) -> Lower<View> {
        match self.values[input.index()] {
            Value::View(view) => Ok(view),
            _ => Err(unsupported(node, format!("operand {} is not a computed value", self.graph.ty(input)))),
        }
    }

    /// An operand that is an input.
    pub(super) fn input(&self, node: &Node, input: NodeId) -> Lower<u32> {
        match self.values[input.index()] {
            Value::Input(index) => Ok(index),
            _ => Err(unsupported(node, format!("the indices {} are not an input", self.graph.ty(input)))),
        }
    }

    /// An operand that is a cache.
    pub(super) fn state(&self, node: &Node, input: NodeId) -> Lower<u32> {
        match self.values[input.index()] {
            Value::State(state) => Ok(state),
            _ => Err(unsupported(node, format!("operand {} is not a state", self.graph.ty(input)))),
        }
    }

    /// An operand that is a weight, a matrix or else a vector.
    pub(super) fn weight(&self, node: &Node, input: NodeId, matrix: bool) -> Lower<u32> {
        let Op::Parameter(param) = self.graph.node(input).op else {
            return Err(unsupported(node, format!("operand {} is not a weight", self.graph.ty(input))));
        };
        let param = self.graph.param(param);
        let refuse = |why: String| {
            let (op, location) = (node.op.name(), node.location);
            Err(PlanError::Weight { name: param.name.clone(), op, location, why })
        };
        let Some(index) = self.backing.weights.find(&param.name).filter(|_| param.kind == ParamKind::Weight)
        else {
            return refuse("there is none of this name".into());
        };
        let (stored, wanted) = (self.backing.weights.get(index), self.graph.ty(input));
        if stored.ty != *wanted {
            return refuse(format!("the graph has {wanted}, stored is {}", stored.ty));
        }
        if matches!(stored.data, WeightData::Matrix(_)) != matrix {
            return refuse(format!("{wanted} is of another rank than this op wants"));
        }
        Ok(index)
    }

    /// Gives each result its memory: the caller's own where the value fills a storage, else a copy at the end.
    pub(super) fn outputs(&mut self) -> Lower<Vec<Slot>> {
        let graph = self.graph;
        let mut slots = Vec::new();
        for output in &graph.outputs {
            let node = graph.node(output.node);
            match (output.alias, self.values[output.node.index()]) {
                // Written in place; verification has checked which cache it is.
                (Some(_), Value::State(_)) => {}
                (None, Value::View(view)) => {
                    let index = slots.len() as u32;
                    slots.push(Slot { name: output.name.clone(), elements: node.ty.elements() });
                    self.phases.give_out(view, index);
                }
                _ => {
                    let why =
                        format!("output {:?} is neither a computed value nor a written cache", output.name);
                    return Err(unsupported(node, why));
                }
            }
        }
        Ok(slots)
    }
}
