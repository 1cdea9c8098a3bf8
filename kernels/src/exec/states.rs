//! KV caches by name.

use std::collections::HashMap;

use millrace_graph::{Fused, Graph, NodeId, Op, ParamKind};

use super::error::PlanError;
use crate::kv::{KvRole, KvTensor};

/// The caches that live between steps.
#[derive(Debug, Default)]
pub(crate) struct States {
    names: HashMap<String, u32>,
    caches: Vec<KvTensor>,
}

impl States {
    /// Makes the caches that a graph's state parameters name and that are not there yet.
    pub(crate) fn allocate(&mut self, graph: &Graph) -> Result<(), PlanError> {
        let roles = roles(graph);
        for param in graph.params.iter().filter(|param| param.kind == ParamKind::State) {
            let refuse = |why: String| Err(PlanError::State { name: param.name.clone(), why });
            let ty = graph.ty(param.node);
            let role = match roles.get(&param.node)[..] {
                [role] => role,
                [] => return refuse("no attention reads it".into()),
                _ => return refuse("it is read both as keys and as values".into()),
            };
            if let Some(index) = self.find(&param.name) {
                let cache = self.get(index);
                if cache.ty() != ty || cache.role() != role {
                    let (has, is) = (cache.ty(), cache.role());
                    return refuse(format!(
                        "it is allocated as {has} ({is:?}); the graph has {ty} ({role:?})"
                    ));
                }
                continue;
            }
            let cache = KvTensor::new(ty, role)
                .map_err(|source| PlanError::Cache { name: param.name.clone(), source })?;
            self.names.insert(param.name.clone(), self.caches.len() as u32);
            self.caches.push(cache);
        }
        Ok(())
    }

    pub(crate) fn find(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(crate) fn get(&self, index: u32) -> &KvTensor {
        &self.caches[index as usize]
    }

    /// Slots of the largest cache.
    pub(crate) fn slots(&self) -> usize {
        self.caches.iter().map(|cache| cache.ty().shape[0] * cache.ty().shape[1]).max().unwrap_or(0)
    }
}

struct Roles(HashMap<NodeId, Vec<KvRole>>);

impl Roles {
    fn get(&self, param: &NodeId) -> &[KvRole] {
        self.0.get(param).map_or(&[], |roles| roles)
    }
}

/// How attention uses each state, looking through the writes in between.
fn roles(graph: &Graph) -> Roles {
    let mut roles: HashMap<NodeId, Vec<KvRole>> = HashMap::new();
    for node in &graph.nodes {
        if !matches!(node.op, Op::Fused(Fused::PagedAttention(_))) {
            continue;
        }
        for (operand, role) in [(1, KvRole::Key), (2, KvRole::Value)] {
            let mut cache = node.inputs[operand];
            while matches!(graph.node(cache).op, Op::Fused(Fused::WriteKv)) {
                cache = graph.node(cache).inputs[0];
            }
            let known = roles.entry(cache).or_default();
            if !known.contains(&role) {
                known.push(role);
            }
        }
    }
    Roles(roles)
}
