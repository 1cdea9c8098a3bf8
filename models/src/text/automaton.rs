//! Many strings sought at once in text that arrives piece by piece (Aho & Corasick, 1975).
//!
//! Stop strings and the markers a user must not forge are both found with it: time is linear in the text, whatever
//! the number of strings, and the state between two bytes is one node.

/// Where a search stands: how much of which patterns the text so far ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position(u32);

/// A set of byte strings prepared for searching.
#[derive(Clone, Debug)]
pub(super) struct Automaton {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Children by byte, sorted.
    next: Vec<(u8, u32)>,
    /// The longest proper suffix of this node's string that is also a node.
    suffix: u32,
    /// Length of this node's string.
    depth: u32,
    /// The longest pattern this node's string ends with: its index and length.
    pattern: Option<(u32, u32)>,
}

/// A pattern that ends where the search stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Index of the pattern in the order given. Of equal patterns, the first.
    pub(super) pattern: usize,
    /// Its length in bytes.
    pub(super) length: usize,
}

impl Automaton {
    /// Empty patterns are never found.
    pub(super) fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut nodes = vec![Node::default()];
        for (index, pattern) in patterns.into_iter().enumerate().filter(|(_, p)| !p.is_empty()) {
            let mut at = 0;
            for (depth, &byte) in pattern.as_bytes().iter().enumerate() {
                at = match nodes[at].next.binary_search_by_key(&byte, |edge| edge.0) {
                    Ok(found) => nodes[at].next[found].1 as usize,
                    Err(place) => {
                        let new = nodes.len();
                        nodes[at].next.insert(place, (byte, new as u32));
                        nodes.push(Node { depth: depth as u32 + 1, ..Node::default() });
                        new
                    }
                };
            }
            nodes[at].pattern.get_or_insert((index as u32, pattern.len() as u32));
        }
        let mut automaton = Self { nodes };
        automaton.link();
        automaton
    }

    /// Breadth first, so that a node's suffix is linked before the node needs it.
    fn link(&mut self) {
        let mut queue: std::collections::VecDeque<u32> = [0].into();
        while let Some(at) = queue.pop_front() {
            for (byte, child) in self.nodes[at as usize].next.clone() {
                if at != 0 {
                    let suffix = self.step(Position(self.nodes[at as usize].suffix), byte).0;
                    let inherited = self.nodes[suffix as usize].pattern;
                    let node = &mut self.nodes[child as usize];
                    node.suffix = suffix;
                    node.pattern = node.pattern.or(inherited);
                }
                queue.push_back(child);
            }
        }
    }

    /// Where the search stands after one more byte.
    pub(super) fn step(&self, from: Position, byte: u8) -> Position {
        let mut at = from.0;
        loop {
            let node = &self.nodes[at as usize];
            match node.next.binary_search_by_key(&byte, |edge| edge.0) {
                Ok(found) => return Position(node.next[found].1),
                Err(_) if at == 0 => return Position(0),
                Err(_) => at = node.suffix,
            }
        }
    }

    /// How many of the last bytes may still become a pattern.
    pub(super) fn held(&self, at: Position) -> usize {
        self.nodes[at.0 as usize].depth as usize
    }

    /// The longest pattern that ends here.
    pub(super) fn found(&self, at: Position) -> Option<Match> {
        let (pattern, length) = self.nodes[at.0 as usize].pattern?;
        Some(Match { pattern: pattern as usize, length: length as usize })
    }
}
