//! The graph: nodes in dependency order, entry parameters, results.

use std::panic::Location;

use crate::{Op, Type};

/// Index of a node; operands always have smaller ids than their users.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u32);

/// Index of an entry parameter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ParamId(pub u32);

impl NodeId {
    /// As an index into [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl ParamId {
    /// As an index into [`Graph::params`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One operation and its result.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Its operands.
    pub inputs: Vec<NodeId>,
    /// The type of its result.
    pub ty: Type,
    /// Where it was built, for error messages.
    pub location: &'static Location<'static>,
}

/// What an entry parameter is to the runner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ParamKind {
    /// Written anew for every step.
    Input,
    /// Bound once and shared by all graphs of a model.
    Weight,
    /// Lives on the device between steps; an output aliases it.
    State,
}

/// An entry parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Unique in the graph; weights and states keep their name across buckets.
    pub name: String,
    /// What it is to the runner.
    pub kind: ParamKind,
    /// The node that yields it.
    pub node: NodeId,
}

/// A result.
#[derive(Clone, Debug)]
pub struct Output {
    /// Unique among the outputs.
    pub name: String,
    /// The node it is taken from.
    pub node: NodeId,
    /// The state parameter whose memory it takes over.
    pub alias: Option<ParamId>,
}

/// A graph of static shapes. Built with [`crate::Builder`], which infers types and refuses ill-typed operands.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Appears in printed graphs and in HLO.
    pub name: String,
    /// In dependency order.
    pub nodes: Vec<Node>,
    /// In order of declaration, which is the order of the entry computation's parameters.
    pub params: Vec<Param>,
    /// In order of declaration.
    pub outputs: Vec<Output>,
}

impl Graph {
    /// A node by id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The type of a node's result.
    pub fn ty(&self, id: NodeId) -> &Type {
        &self.node(id).ty
    }

    /// A parameter by id.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[id.index()]
    }

    /// A parameter by name.
    pub fn find_param(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|param| param.name == name)
    }
}
