//! What planning has to know about a graph before it gives values their places: which nodes matter, which part
//! of which value each node is, and who reads what.

use millrace_graph::{Graph, NodeId, Op};

use super::view::View;

/// Stands for the caller as a reader: outputs are read after every node.
const CALLER: u32 = u32::MAX;

/// A graph's data flow. A node that only looks at another one differently (a slice, a reshape) is a *region* of
/// that one's value, given in the coordinates of the value lying dense; the region's storage is its node.
pub(crate) struct Flow {
    /// Whether an output depends on the node.
    pub(crate) live: Vec<bool>,
    regions: Vec<View>,
    /// Heads of the lists of readers, by the node that computes the value.
    first: Vec<u32>,
    readers: Vec<Reader>,
}

struct Reader {
    user: u32,
    region: View,
    next: u32,
}

const END: u32 = u32::MAX;

impl Flow {
    pub(crate) fn of(graph: &Graph) -> Flow {
        let count = graph.nodes.len();
        let mut live = vec![false; count];
        for output in &graph.outputs {
            live[output.node.index()] = true;
        }
        for (id, node) in graph.nodes.iter().enumerate().rev() {
            if live[id] {
                node.inputs.iter().for_each(|input| live[input.index()] = true);
            }
        }
        let mut flow =
            Flow { live, regions: Vec::with_capacity(count), first: vec![END; count], readers: Vec::new() };
        for (id, node) in graph.nodes.iter().enumerate() {
            let through = match (&node.op, &node.inputs[..]) {
                (Op::Reshape | Op::Slice { .. } | Op::Convert, [x]) => {
                    flow.region(*x).through(&node.op, graph.ty(*x), &node.ty)
                }
                _ => None,
            };
            flow.regions.push(through.unwrap_or_else(|| View::dense(id as u32, &node.ty)));
            if flow.live[id] && !flow.is_region(NodeId(id as u32)) {
                node.inputs.iter().for_each(|input| flow.read(*input, id as u32));
            }
        }
        for output in &graph.outputs {
            flow.read(output.node, CALLER);
        }
        flow
    }

    fn read(&mut self, node: NodeId, user: u32) {
        let region = self.region(node);
        let head = &mut self.first[region.storage as usize];
        self.readers.push(Reader { user, region, next: *head });
        *head = self.readers.len() as u32 - 1;
    }

    /// The part of a value that a node is.
    pub(crate) fn region(&self, node: NodeId) -> View {
        self.regions[node.index()]
    }

    /// Whether a node is a part of another one's value.
    pub(crate) fn is_region(&self, node: NodeId) -> bool {
        self.region(node).storage != node.0
    }

    /// Who reads elements of `node`; a user that does so by two operands comes twice.
    fn readers(&self, node: NodeId) -> impl Iterator<Item = u32> {
        let region = self.region(node);
        let mut next = self.first[region.storage as usize];
        std::iter::from_fn(move || {
            let reader = self.readers.get(next as usize)?;
            next = reader.next;
            Some(reader)
        })
        .filter(move |reader| reader.region.overlaps(&region))
        .map(|reader| reader.user)
    }

    /// Whether `user` may write its result over its operand `x` from the moment node `from` runs: every other
    /// reader of those elements has had its turn before `from`, and `user` reads them by this operand alone.
    pub(crate) fn may_overwrite(&self, x: NodeId, user: u32, from: u32) -> bool {
        let mut mine = 0;
        self.readers(x).all(|reader| {
            mine += u32::from(reader == user);
            reader < from || (reader == user && mine == 1)
        })
    }

    /// The only reader of a node's value, if it has one reader that takes it whole.
    pub(crate) fn only_reader(&self, node: NodeId) -> Option<u32> {
        let mut next = self.readers(node);
        let reader = next.next().filter(|reader| *reader != CALLER)?;
        next.next().is_none().then_some(reader)
    }
}
