//! Where a value lies: rows of one length at one distance. Slices and reshapes only change the view, so they
//! cost nothing when the graph runs.

use millrace_graph::{Op, Type};

/// The rows of a value inside a storage, in elements. A value of shape `[n, …]` has `n` rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct View {
    /// Index of the storage.
    pub(crate) storage: u32,
    /// First element.
    pub(crate) offset: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Elements in a row.
    pub(crate) cols: usize,
    /// From the start of one row to that of the next.
    pub(crate) stride: usize,
}

/// Rows and columns of a type as views count them.
pub(crate) fn rows_cols(ty: &Type) -> (usize, usize) {
    let [rows, inner @ ..] = &ty.shape[..] else { return (1, 1) };
    (*rows, inner.iter().product())
}

impl View {
    /// All of a storage that holds one value of this type.
    pub(crate) fn dense(storage: u32, ty: &Type) -> Self {
        let (rows, cols) = rows_cols(ty);
        View { storage, offset: 0, rows, cols, stride: cols }
    }

    fn is_dense(&self) -> bool {
        self.stride == self.cols || self.rows == 1
    }

    /// The same elements as rows of type `ty`; `None` where that would take a copy.
    pub(crate) fn reshape(self, ty: &Type) -> Option<View> {
        let (rows, cols) = rows_cols(ty);
        if rows == self.rows {
            Some(self)
        } else if self.is_dense() {
            Some(View { rows, cols, stride: cols, ..self })
        } else {
            None
        }
    }

    /// A box out of this view, which is of type `from`; `None` where its rows would not be contiguous.
    pub(crate) fn slice(self, from: &Type, starts: &[usize], limits: &[usize]) -> Option<View> {
        let mut view = self;
        let Some(outer) = from.shape.first() else { return Some(view) };
        if (starts[0], limits[0]) != (0, *outer) {
            view.offset += starts[0] * self.stride;
            view.rows = limits[0] - starts[0];
        }
        // Dimensions of one element each may stand before the one that is cut, and whole ones behind it.
        let mut inner = self.cols;
        for dim in 1..from.rank() {
            let size = from.shape[dim];
            let (start, limit) = (starts[dim], limits[dim]);
            inner = inner.checked_div(size)?;
            if (start, limit) == (0, size) {
                continue;
            }
            if view.cols != inner * size {
                return None;
            }
            view.offset += start * inner;
            view.cols = (limit - start) * inner;
        }
        Some(view)
    }

    /// The view that a view op yields from its operand, or `None` where `op` is none or needs a copy.
    pub(crate) fn through(self, op: &Op, from: &Type, to: &Type) -> Option<View> {
        match op {
            Op::Reshape => self.reshape(to),
            Op::Convert if from.dtype == to.dtype => Some(self),
            Op::Slice { starts, limits, strides } if strides.iter().all(|stride| *stride == 1) => {
                self.slice(from, starts, limits)
            }
            _ => None,
        }
    }

    /// One past the last element.
    pub(crate) fn end(&self) -> usize {
        if self.rows == 0 { self.offset } else { self.offset + (self.rows - 1) * self.stride + self.cols }
    }

    /// The columns it takes of rows of `stride` elements, where no row of it crosses into the next one.
    fn columns(&self) -> Option<(usize, usize)> {
        let first = self.offset.checked_rem(self.stride)?;
        (first + self.cols <= self.stride).then_some((first, first + self.cols))
    }

    /// Whether the two may share an element.
    pub(crate) fn overlaps(&self, other: &View) -> bool {
        if self.storage != other.storage || self.end() <= other.offset || other.end() <= self.offset {
            return false;
        }
        match (self.stride == other.stride, self.columns(), other.columns()) {
            (true, Some(a), Some(b)) => a.0 < b.1 && b.0 < a.1,
            _ => true,
        }
    }

    /// Whether row `i` of one can share elements with row `i` of the other only.
    pub(crate) fn aligned(&self, other: &View) -> bool {
        let pitch = |view: &View| view.columns().map(|_| view.offset / view.stride);
        self.stride == other.stride && pitch(self).is_some() && pitch(self) == pitch(other)
    }

    /// This view, given in the coordinates of a dense value, where that value really lies.
    pub(crate) fn within(&self, place: &View) -> Option<View> {
        let (storage, offset) = (place.storage, place.offset);
        if place.is_dense() {
            return Some(View { storage, offset: offset + self.offset, ..*self });
        }
        self.columns().filter(|_| self.stride == place.cols)?;
        let (row, column) = (self.offset / place.cols, self.offset % place.cols);
        Some(View { storage, offset: offset + row * place.stride + column, stride: place.stride, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use millrace_graph::DType;
    use proptest::prelude::*;

    use super::*;

    /// The elements of a view, row by row.
    fn elements(view: &View) -> Vec<usize> {
        (0..view.rows)
            .flat_map(|row| (0..view.cols).map(move |col| view.offset + row * view.stride + col))
            .collect()
    }

    /// A box of a dense row-major tensor, element by element.
    fn boxed(of: &[usize], shape: &[usize], starts: &[usize], limits: &[usize]) -> Vec<usize> {
        let [size, inner @ ..] = shape else { return of.to_vec() };
        let step = of.len() / size;
        (starts[0]..limits[0])
            .flat_map(|i| boxed(&of[i * step..][..step], inner, &starts[1..], &limits[1..]))
            .collect()
    }

    fn ty(shape: &[usize]) -> Type {
        Type::new(DType::F32, shape)
    }

    fn shape_and_box() -> impl Strategy<Value = (Vec<usize>, Vec<usize>, Vec<usize>)> {
        let dim = (1usize..5).prop_flat_map(|size| (Just(size), 0..size)).prop_flat_map(|(size, start)| {
            (Just(size), prop_oneof![Just((0, size)), (Just(start), start + 1..=size)])
        });
        proptest::collection::vec(dim, 1..5).prop_map(|dims| {
            let (shape, range): (Vec<usize>, Vec<(usize, usize)>) = dims.into_iter().unzip();
            let (starts, limits) = range.into_iter().unzip();
            (shape, starts, limits)
        })
    }

    proptest! {
        #[test]
        fn a_slice_is_the_box_wherever_the_value_lies((shape, starts, limits) in shape_and_box(), pad in 0usize..3) {
            let whole = View::dense(0, &ty(&shape));
            let place = View { storage: 7, offset: 5, stride: whole.cols + pad, ..whole };
            let sliced = whole.slice(&ty(&shape), &starts, &limits);
            if let Some(view) = sliced {
                prop_assert_eq!(elements(&view), boxed(&elements(&whole), &shape, &starts, &limits));
                let moved = view.within(&place).expect("the stride of a slice is that of the whole");
                prop_assert_eq!(elements(&moved), boxed(&elements(&place), &shape, &starts, &limits));
                prop_assert!(moved.end() <= place.end());
            } else {
                let cut = |dim: &usize| (starts[*dim], limits[*dim]) != (0, shape[*dim]);
                let last = (1..shape.len()).rev().find(cut).expect("only an inner cut can fail");
                prop_assert!((1..last).any(|dim| limits[dim] - starts[dim] > 1), "this box has contiguous rows");
            }
        }

        #[test]
        fn overlap_and_alignment_never_miss_a_shared_element(
            a in (0usize..12, 0usize..4, 1usize..5, 1usize..7),
            b in (0usize..12, 0usize..4, 1usize..5, 1usize..7),
        ) {
            let view = |(offset, rows, cols, pad): (usize, usize, usize, usize)| View {
                storage: 0, offset, rows, cols, stride: cols + pad - 1,
            };
            let (a, b) = (view(a), view(b));
            let shared = elements(&a).iter().any(|element| elements(&b).contains(element));
            prop_assert!(!shared || a.overlaps(&b));
            if a.aligned(&b) {
                for (i, j) in (0..a.rows).flat_map(|i| (0..b.rows).map(move |j| (i, j))).filter(|(i, j)| i != j) {
                    let (i, j) = (a.offset + i * a.stride, b.offset + j * b.stride);
                    prop_assert!(i + a.cols <= j || j + b.cols <= i);
                }
            }
        }
    }
}
