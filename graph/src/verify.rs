//! Checks a graph as a whole: what the builder cannot see at a single node, and what a hand-made or rewritten
//! graph may have got wrong.

use std::collections::HashSet;
use std::panic::Location;

use crate::infer::infer;
use crate::{Fused, Graph, GraphError, Node, Op, ParamId, ParamKind, Type};

impl Graph {
    /// Checks that operands come before their users, that parameters, outputs and aliases are consistent, that
    /// every node has the type that inference gives it, and that states are replaced safely in place:
    ///
    /// - [`Fused::WriteKv`] writes to a state parameter or to what another write made of it, and the last
    ///   version is the output that replaces the state;
    /// - nothing reads a version, or yields it as an output, once it has been overwritten;
    /// - an output that replaces one state is not the memory of another.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn verify(&self) -> Result<(), GraphError> {
        self.check_params()?;
        for index in 0..self.nodes.len() {
            self.check_node(index)?;
        }
        self.check_outputs()?;
        self.check_states()
    }

    fn check_params(&self) -> Result<(), GraphError> {
        let mut names = HashSet::new();
        for (index, param) in self.params.iter().enumerate() {
            let own = Op::Parameter(ParamId(index as u32));
            if !self.nodes.get(param.node.index()).is_some_and(|node| node.op == own) {
                return Err(refuse_graph(
                    "parameter",
                    format!("{:?} is not node {}", param.name, param.node.0),
                ));
            }
            if !names.insert(&param.name) {
                return Err(refuse_graph("parameter", format!("two are named {:?}", param.name)));
            }
        }
        Ok(())
    }

    fn check_node(&self, index: usize) -> Result<(), GraphError> {
        let node = &self.nodes[index];
        if let Some(id) = node.inputs.iter().find(|id| id.index() >= index) {
            return Err(refuse(node, format!("%{index} uses %{}, which is not before it", id.0)));
        }
        match &node.op {
            Op::Parameter(id)
                if self.params.get(id.index()).is_none_or(|param| param.node.index() != index) =>
            {
                return Err(refuse(node, format!("%{index} is not the node of parameter {}", id.0)));
            }
            Op::AllReduce { groups, .. } => {
                let size = groups.first().map_or(0, Vec::len);
                let mut ranks = HashSet::new();
                let equal = size > 0 && groups.iter().all(|group| group.len() == size);
                if !equal || !groups.iter().flatten().all(|rank| ranks.insert(rank)) {
                    return Err(refuse(
                        node,
                        format!("%{index}: groups {groups:?} are not disjoint and of one size"),
                    ));
                }
            }
            _ => {}
        }
        let inputs: Vec<&Type> = node.inputs.iter().map(|id| self.ty(*id)).collect();
        let inferred = infer(&node.op, &inputs, Some(&node.ty))
            .map_err(|why| refuse(node, format!("%{index}: {why}")))?;
        if inferred != node.ty {
            return Err(refuse(node, format!("%{index} is {inferred} and says {}", node.ty)));
        }
        Ok(())
    }

    fn check_outputs(&self) -> Result<(), GraphError> {
        let (mut names, mut replaced) = (HashSet::new(), HashSet::new());
        for output in &self.outputs {
            let refuse = |why: &str| refuse_graph("output", format!("{:?} {why}", output.name));
            let Some(node) = self.nodes.get(output.node.index()) else {
                return Err(refuse("is no node"));
            };
            if !names.insert(&output.name) {
                return Err(refuse("is the name of two"));
            }
            let Some(id) = output.alias else { continue };
            match self.params.get(id.index()) {
                Some(state) if state.kind != ParamKind::State => return Err(refuse("replaces no state")),
                Some(state) if *self.ty(state.node) != node.ty => {
                    return Err(refuse("has another type than the state it replaces"));
                }
                Some(_) if !replaced.insert(id) => return Err(refuse("replaces a state that another does")),
                Some(_) => {}
                None => return Err(refuse("replaces no parameter")),
            }
        }
        Ok(())
    }

    fn check_states(&self) -> Result<(), GraphError> {
        // For each node: the state whose memory its result is, and the node that has overwritten it.
        let mut state: Vec<Option<ParamId>> = vec![None; self.nodes.len()];
        let mut overwritten: Vec<Option<usize>> = vec![None; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for id in &node.inputs {
                if let Some(by) = overwritten[id.index()] {
                    return Err(refuse(
                        node,
                        format!("%{index} reads %{}, which %{by} has overwritten", id.0),
                    ));
                }
            }
            match &node.op {
                Op::Parameter(id) if self.param(*id).kind == ParamKind::State => state[index] = Some(*id),
                Op::Fused(Fused::WriteKv) => {
                    let cache = node.inputs[0].index();
                    if state[cache].is_none() {
                        return Err(refuse(node, format!("%{index} writes to %{cache}, which is no state")));
                    }
                    (state[index], overwritten[cache]) = (state[cache], Some(index));
                }
                _ => {}
            }
        }
        for output in &self.outputs {
            let node = output.node.index();
            let refuse = |why: String| refuse_graph("output", format!("{:?} is %{node}, {why}", output.name));
            if let Some(by) = overwritten[node] {
                return Err(refuse(format!("which %{by} has overwritten")));
            }
            if let (Some(memory), Some(alias)) = (state[node], output.alias)
                && memory != alias
            {
                let (memory, alias) = (&self.param(memory).name, &self.param(alias).name);
                return Err(refuse(format!("the memory of {memory:?}, and cannot replace {alias:?}")));
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let last = node.op == Op::Fused(Fused::WriteKv) && overwritten[index].is_none();
            let is_output =
                |id| self.outputs.iter().any(|out| out.node.index() == index && out.alias == Some(id));
            if let (true, Some(id)) = (last, state[index])
                && !is_output(id)
            {
                let name = &self.param(id).name;
                return Err(refuse(
                    node,
                    format!("%{index} writes to {name:?}, but no output replaces it so"),
                ));
            }
        }
        Ok(())
    }
}

fn refuse(node: &Node, why: String) -> GraphError {
    GraphError { op: node.op.name(), location: node.location, why }
}

/// For what is wrong with the graph's tables and not with a node: the location is the check's.
#[track_caller]
fn refuse_graph(op: &'static str, why: String) -> GraphError {
    GraphError { op, location: Location::caller(), why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DType, NodeId, Output, Param, Reduction};

    /// `x` and `slots` written to the state `cache`, then read by a gather of block 0.
    fn writing() -> Result<(Builder, [NodeId; 4]), GraphError> {
        let mut b = Builder::new("writing");
        let x = b.param("x", ParamKind::Input, Type::new(DType::F32, [2, 1, 4]))?;
        let slots = b.param("slots", ParamKind::Input, Type::new(DType::I32, [2]))?;
        let cache = b.param("cache", ParamKind::State, Type::new(DType::F32, [3, 2, 1, 4]))?;
        let written = b.write_kv(cache, x, slots)?;
        Ok((b, [x, slots, cache, written]))
    }

    fn why(result: Result<Graph, GraphError>) -> String {
        result.expect_err("an ill-formed graph").to_string()
    }

    #[test]
    fn a_state_is_written_once_and_read_after() -> Result<(), GraphError> {
        let (mut b, [x, slots, _, written]) = writing()?;
        let again = b.write_kv(written, x, slots)?;
        let read = b.slice(again, 0, 0, 1)?;
        b.output("read", read, None)?;
        b.output("cache", again, Some("cache"))?;
        b.finish().map(|_| ())
    }

    #[test]
    fn reading_what_was_overwritten_is_refused() -> Result<(), GraphError> {
        let (mut b, [_, _, cache, written]) = writing()?;
        b.slice(cache, 0, 0, 1)?;
        b.output("cache", written, Some("cache"))?;
        assert!(why(b.finish()).contains("%4 reads %2, which %3 has overwritten"));

        let (mut b, [x, slots, cache, written]) = writing()?;
        b.write_kv(cache, x, slots)?;
        b.output("cache", written, Some("cache"))?;
        assert!(why(b.finish()).contains("%4 reads %2, which %3 has overwritten"));

        let (mut b, [_, _, cache, written]) = writing()?;
        b.output("old", cache, None)?;
        b.output("cache", written, Some("cache"))?;
        assert!(why(b.finish()).contains("\"old\" is %2, which %3 has overwritten"));
        Ok(())
    }

    #[test]
    fn reading_before_the_write_is_fine() -> Result<(), GraphError> {
        let mut b = Builder::new("before");
        let x = b.param("x", ParamKind::Input, Type::new(DType::F32, [2, 1, 4]))?;
        let slots = b.param("slots", ParamKind::Input, Type::new(DType::I32, [2]))?;
        let cache = b.param("cache", ParamKind::State, Type::new(DType::F32, [3, 2, 1, 4]))?;
        let old = b.slice(cache, 0, 0, 1)?;
        let written = b.write_kv(cache, x, slots)?;
        b.output("old", old, None)?;
        b.output("cache", written, Some("cache"))?;
        b.finish().map(|_| ())
    }

    #[test]
    fn a_written_state_must_be_an_output() -> Result<(), GraphError> {
        let (b, _) = writing()?;
        assert!(why(b.finish()).contains("%3 writes to \"cache\", but no output replaces it so"));
        let (mut b, [_, _, _, written]) = writing()?;
        b.output("cache", written, None)?;
        assert!(why(b.finish()).contains("no output replaces it so"));
        Ok(())
    }

    #[test]
    fn only_states_are_written() -> Result<(), GraphError> {
        let mut b = Builder::new("weight");
        let x = b.param("x", ParamKind::Input, Type::new(DType::F32, [2, 1, 4]))?;
        let slots = b.param("slots", ParamKind::Input, Type::new(DType::I32, [2]))?;
        let weight = b.param("weight", ParamKind::Weight, Type::new(DType::F32, [3, 2, 1, 4]))?;
        let written = b.write_kv(weight, x, slots)?;
        b.output("written", written, None)?;
        assert!(why(b.finish()).contains("%3 writes to %2, which is no state"));
        Ok(())
    }

    #[test]
    fn states_cannot_swap_places() -> Result<(), GraphError> {
        let mut b = Builder::new("swap");
        let ty = Type::new(DType::F32, [4]);
        let one = b.param("one", ParamKind::State, ty.clone())?;
        let two = b.param("two", ParamKind::State, ty)?;
        b.output("one", two, Some("one"))?;
        b.output("two", one, Some("two"))?;
        assert!(why(b.finish()).contains("the memory of \"two\", and cannot replace \"one\""));
        Ok(())
    }

    #[test]
    fn groups_of_ranks_are_disjoint_and_equal() -> Result<(), GraphError> {
        for (groups, valid) in [
            (vec![vec![0, 1], vec![2, 3]], true),
            (vec![vec![0, 1, 2]], true),
            (vec![vec![0, 1], vec![1, 2]], false),
            (vec![vec![0, 1], vec![2]], false),
            (vec![vec![0, 0]], false),
            (vec![vec![]], false),
            (vec![], false),
        ] {
            let mut b = Builder::new("ranks");
            let x = b.param("x", ParamKind::Input, Type::new(DType::F32, [4]))?;
            let sum = b.push(Op::AllReduce { op: Reduction::Add, groups: groups.clone() }, &[x])?;
            b.output("sum", sum, None)?;
            assert_eq!(b.finish().is_ok(), valid, "{groups:?}");
        }
        Ok(())
    }

    #[test]
    fn graphs_that_were_tampered_with_are_refused() -> Result<(), GraphError> {
        let (mut b, [x, _, _, written]) = writing()?;
        let sum = b.add(x, x)?;
        b.output("sum", sum, None)?;
        b.output("cache", written, Some("cache"))?;
        let good = b.finish()?;
        type Tamper = fn(&mut Graph);
        let cases: [(&str, Tamper); 11] = [
            ("which is not before it", |g| g.nodes[4].inputs[1] = NodeId(4)),
            ("which is not before it", |g| g.nodes[4].inputs[0] = NodeId(99)),
            ("%4 is f32[2,1,4] and says f32[2,4]", |g| g.nodes[4].ty.shape = vec![2, 4]),
            ("is not node 1", |g| g.params[0].node = NodeId(1)),
            ("%4 is not the node of parameter 0", |g| g.nodes[4].op = Op::Parameter(ParamId(0))),
            ("two are named \"x\"", |g| g.params[1].name = "x".into()),
            ("\"sum\" is no node", |g| g.outputs[0].node = NodeId(7)),
            ("\"cache\" is the name of two", |g| g.outputs[0].name = "cache".into()),
            ("replaces no state", |g| g.outputs[0].alias = Some(ParamId(0))),
            ("replaces no parameter", |g| g.outputs[0].alias = Some(ParamId(9))),
            ("has another type than the state", |g| g.outputs[0].alias = Some(ParamId(2))),
        ];
        for (message, tamper) in cases {
            let mut graph = good.clone();
            tamper(&mut graph);
            assert!(why(graph.verify().map(|()| graph)).contains(message), "{message}");
        }
        let mut graph = good.clone();
        graph.outputs.push(Output { name: "more".into(), node: written, alias: Some(ParamId(2)) });
        assert!(why(graph.verify().map(|()| graph)).contains("a state that another does"));
        let mut graph = good;
        graph.params.push(Param { name: "spare".into(), kind: ParamKind::Input, node: NodeId(4) });
        assert!(why(graph.verify().map(|()| graph)).contains("\"spare\" is not node 4"));
        Ok(())
    }
}
