//! Attention of all tokens of a sequence to all of them, as encoders do it: one item for each head of each sequence.

use super::run::Frame;
use super::view::View;
use crate::ops::encode;
use crate::pool::Worker;

/// One full attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FullAttention {
    pub(crate) q: View,
    pub(crate) k: View,
    pub(crate) v: View,
    /// Heads in a row.
    pub(crate) heads: usize,
    /// The input that holds the last token of each sequence.
    pub(crate) last: u32,
    /// Sequences.
    pub(crate) sequences: usize,
    pub(crate) scale: f32,
    /// [`FullAttention::scratch_floats`] for each worker.
    pub(crate) scratch: u32,
    pub(crate) out: View,
}

impl FullAttention {
    fn width(&self) -> usize {
        self.q.rows / self.sequences
    }

    fn dim(&self) -> usize {
        self.q.cols / self.heads
    }

    /// Floats that a worker needs: keys with their columns side by side, values, scores; in whole cache lines.
    pub(crate) fn scratch_floats(width: usize, dim: usize) -> usize {
        (2 * width * dim + width).next_multiple_of(16)
    }

    pub(crate) fn storages(&self) -> [u32; 5] {
        [self.q.storage, self.k.storage, self.v.storage, self.out.storage, self.scratch]
    }

    /// One worker's share.
    ///
    /// # Safety
    /// The frame is of the plan that this is a phase of, and the phases before are complete.
    pub(crate) unsafe fn run(&self, frame: &Frame<'_>, worker: &Worker<'_>) {
        let (width, dim) = (self.width(), self.dim());
        let floats = Self::scratch_floats(width, dim);
        let start = frame.start(self.scratch).wrapping_add(floats * worker.index());
        // SAFETY: the storage holds so many floats for each worker, and this part of it is this worker's alone.
        let scratch = unsafe { std::slice::from_raw_parts_mut(start, floats) };
        let (keys, rest) = scratch.split_at_mut(width * dim);
        let (values, scores) = rest.split_at_mut(width * dim);
        let last = frame.inputs[self.last as usize];
        worker.chunks(self.sequences * self.heads, 1, |items| {
            for item in items {
                let (sequence, head) = (item / self.heads, item % self.heads);
                let (first, columns) = (sequence * width, head * dim..(head + 1) * dim);
                let count = last[sequence] as usize + 1;
                for j in 0..count {
                    // SAFETY: keys and values are complete, and no op of this phase writes them.
                    let (k, v) = unsafe { (frame.row(&self.k, first + j), frame.row(&self.v, first + j)) };
                    let k = &k[columns.clone()];
                    k.iter().enumerate().for_each(|(i, k)| keys[i * width + j] = *k);
                    values[j * dim..][..dim].copy_from_slice(&v[columns.clone()]);
                }
                for i in first..first + width {
                    // SAFETY: as above.
                    let q = unsafe { &frame.row(&self.q, i)[columns.clone()] };
                    let at = frame.first(&self.out).wrapping_add(i * self.out.stride + columns.start);
                    // SAFETY: within the row of the result; these columns of it are this item's alone.
                    let out = unsafe { std::slice::from_raw_parts_mut(at, dim) };
                    let values = &values[..count * dim];
                    encode::attend(q, keys, width, values, self.scale, &mut scores[..count], out);
                }
            }
        });
    }
}
