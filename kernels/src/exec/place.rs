//! Gives every storage its place in the arena: two may share memory unless some phase needs both.

/// Storages start at a cache line.
const ALIGN: usize = 16;

/// Memory for values, before it has a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage {
    /// Floats.
    pub(crate) elements: usize,
    /// The phase that writes it first.
    pub(crate) first: usize,
    /// The last phase that touches it. It is free only after that, since workers run through a phase each at
    /// their own pace.
    pub(crate) last: usize,
    /// The output whose memory it is, if any.
    pub(crate) output: Option<u32>,
}

/// Where a storage lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// At this float of the arena.
    Arena(usize),
    /// It is an output's own memory.
    Output(u32),
}

/// Places storages first-fit in the order in which they come to life; returns the places and the floats that the
/// arena needs.
pub(crate) fn place(storages: &[Storage]) -> (Vec<Place>, usize) {
    let mut places = vec![Place::Arena(0); storages.len()];
    let mut order: Vec<usize> = (0..storages.len()).collect();
    order.sort_by_key(|index| storages[*index].first);
    // What lives now, by offset: (offset, end, last phase).
    let mut living: Vec<(usize, usize, usize)> = Vec::new();
    let mut size = 0;
    for id in order {
        let storage = &storages[id];
        if let Some(output) = storage.output {
            places[id] = Place::Output(output);
            continue;
        }
        living.retain(|(_, _, last)| *last >= storage.first);
        let need = storage.elements.next_multiple_of(ALIGN);
        let mut offset = 0;
        let mut index = living.len();
        for (i, (start, end, _)) in living.iter().enumerate() {
            if offset + need <= *start {
                index = i;
                break;
            }
            offset = *end;
        }
        living.insert(index, (offset, offset + need, storage.last));
        size = size.max(offset + need);
        places[id] = Place::Arena(offset);
    }
    (places, size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn storages_that_live_together_lie_apart(
            spans in proptest::collection::vec((0usize..20, 0usize..8, 0usize..100), 1..60),
        ) {
            let storages: Vec<Storage> = spans
                .iter()
                .map(|&(first, life, elements)| Storage { elements, first, last: first + life, output: None })
                .collect();
            let (places, size) = place(&storages);
            let at = |i: usize| match places[i] {
                Place::Arena(offset) => offset,
                Place::Output(_) => unreachable!("no output among them"),
            };
            for (i, a) in storages.iter().enumerate() {
                prop_assert!(at(i) % ALIGN == 0 && at(i) + a.elements <= size);
                for (j, b) in storages.iter().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let apart = at(i) + a.elements <= at(j) || at(j) + b.elements <= at(i);
                    prop_assert!(!together || apart, "{a:?} at {} and {b:?} at {}", at(i), at(j));
                }
            }
            // Reuse: with one storage alive at a time, the arena is as large as the largest of them.
            let alone: Vec<Storage> =
                storages.iter().enumerate().map(|(i, s)| Storage { first: i, last: i, ..*s }).collect();
            let largest = alone.iter().map(|s| s.elements.next_multiple_of(ALIGN)).max().unwrap_or(0);
            prop_assert_eq!(place(&alone).1, largest);
        }
    }
}
