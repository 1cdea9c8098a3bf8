//! Walks two strided arrays in step.

/// A box of elements of two arrays that are walked together, row-major. Dimensions over which both arrays run
/// on evenly are merged beforehand, so a copy of whole rows is one run.
pub(super) struct Walk {
    /// Size, and the step of each array, of every dimension but the innermost.
    outer: Vec<(usize, usize, usize)>,
    inner: (usize, usize, usize),
}

/// Row-major strides of a dense array.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim];
    }
    strides
}

impl Walk {
    /// A box of this shape with these strides in the two arrays.
    pub(super) fn new(shape: &[usize], a: &[usize], b: &[usize]) -> Walk {
        let mut dims: Vec<(usize, usize, usize)> = Vec::with_capacity(shape.len());
        for ((&size, &a), &b) in shape.iter().zip(a).zip(b) {
            match dims.last_mut() {
                _ if size == 1 => {}
                Some(outer) if outer.1 == size * a && outer.2 == size * b => *outer = (outer.0 * size, a, b),
                _ => dims.push((size, a, b)),
            }
        }
        let inner = dims.pop().unwrap_or((1, 0, 0));
        Walk { outer: dims, inner }
    }

    /// Calls `run(at a, at b, length, step in a, step in b)` for each innermost run, starting at `(a, b)`.
    pub(super) fn runs(
        &self,
        mut a: usize,
        mut b: usize,
        mut run: impl FnMut(usize, usize, usize, usize, usize),
    ) {
        let (length, step_a, step_b) = self.inner;
        if length == 0 || self.outer.iter().any(|(size, ..)| *size == 0) {
            return;
        }
        let mut at = vec![0; self.outer.len()];
        loop {
            run(a, b, length, step_a, step_b);
            let mut dim = self.outer.len();
            loop {
                let Some(next) = dim.checked_sub(1) else { return };
                dim = next;
                let (size, step_a, step_b) = self.outer[dim];
                at[dim] += 1;
                if at[dim] < size {
                    (a, b) = (a + step_a, b + step_b);
                    break;
                }
                (a, b) = (a - (size - 1) * step_a, b - (size - 1) * step_b);
                at[dim] = 0;
            }
        }
    }

    /// Calls `point(at a, at b)` for each element.
    pub(super) fn points(&self, a: usize, b: usize, mut point: impl FnMut(usize, usize)) {
        self.runs(a, b, |a, b, length, step_a, step_b| {
            for i in 0..length {
                point(a + i * step_a, b + i * step_b);
            }
        });
    }

    /// Copies from array `b` to array `a`.
    pub(super) fn copy<T: Copy>(&self, to: &mut [T], a: usize, from: &[T], b: usize) {
        self.runs(a, b, |a, b, length, step_a, step_b| match (step_a, step_b) {
            (1, 1) => to[a..a + length].copy_from_slice(&from[b..b + length]),
            (1, 0) => to[a..a + length].fill(from[b]),
            (1, _) => {
                for (to, from) in to[a..a + length].iter_mut().zip(from[b..].iter().step_by(step_b)) {
                    *to = *from;
                }
            }
            _ => (0..length).for_each(|i| to[a + i * step_a] = from[b + i * step_b]),
        });
    }
}
