//! A tensor's type, and a borrowed tensor.

use std::fmt;

use crate::DType;

/// An element type and static dimensions, row-major. A scalar has no dimensions.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Type {
    /// The element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl Type {
    /// A type of these dimensions.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Self {
        Type { dtype, shape: shape.into() }
    }

    /// A scalar.
    pub fn scalar(dtype: DType) -> Self {
        Type { dtype, shape: Vec::new() }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements; saturates rather than overflow.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product, dim| product.saturating_mul(*dim))
    }

    /// The innermost dimension; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The product of all dimensions but the innermost.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Bytes of the dense tensor, or `None` where a row does not fill whole blocks or the size overflows.
    pub fn bytes(&self) -> Option<usize> {
        self.dtype.bytes(self.cols())?;
        let elements = self.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))?;
        self.dtype.bytes(elements)
    }
}

/// XLA's notation: `f32[4,64]`.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, dim) in self.shape.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{dim}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How the rows of a stored matrix map to the rows the graph means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RowOrder {
    /// As they are.
    #[default]
    Natural,
    /// llama.cpp stores the query and key projections of its `llama` architecture so that the two halves
    /// which RoPE rotates together lie in neighbouring rows: within each of `heads` heads of `d` rows, stored
    /// row `2i + j` is logical row `j · d/2 + i`.
    RopeInterleaved {
        /// Heads in the matrix.
        heads: usize,
    },
}

impl RowOrder {
    /// The stored row that holds logical row `row` of a matrix with `rows` rows.
    pub fn stored(self, row: usize, rows: usize) -> usize {
        match self {
            RowOrder::Natural => row,
            RowOrder::RopeInterleaved { heads } => {
                let dim = rows / heads;
                let (head, within) = (row / dim, row % dim);
                let half = dim / 2;
                head * dim + 2 * (within % half) + within / half
            }
        }
    }
}

/// A borrowed tensor in its stored format: what a weight is before a backend has taken it in.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// The logical type: of all parts together, in logical row order.
    pub ty: Type,
    /// Stored bytes. More than one part means the parts stack along the outermost dimension, each an equal
    /// share of the rows (the experts of a layer that the file keeps apart).
    pub parts: Vec<&'a [u8]>,
    /// How stored rows map to logical ones (within each part).
    pub order: RowOrder,
    /// Added to every element on reading: Gemma's norms mean `1 + w`, and some files store them so already.
    pub offset: f32,
}

impl<'a> TensorView<'a> {
    /// A dense view over one run of bytes in natural order.
    pub fn new(ty: Type, bytes: &'a [u8]) -> Self {
        TensorView { ty, parts: vec![bytes], order: RowOrder::Natural, offset: 0.0 }
    }

    /// The stored bytes of logical row `row` (of [`Type::rows`]); its length is that of [`Type::cols`] elements.
    ///
    /// # Panics
    /// Where `row` is out of range, or the parts are shorter than the type says (loaders check that).
    pub fn row(&self, row: usize) -> &'a [u8] {
        let rows_per_part = self.ty.rows() / self.parts.len();
        let bytes = self.ty.dtype.bytes(self.ty.cols()).expect("a loader checks that rows fill whole blocks");
        let (part, within) = (row / rows_per_part, row % rows_per_part);
        let stored = self.order.stored(within, rows_per_part);
        &self.parts[part][stored * bytes..][..bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_interleaved_order_is_a_permutation_within_heads() {
        let order = RowOrder::RopeInterleaved { heads: 3 };
        let stored: Vec<usize> = (0..24).map(|row| order.stored(row, 24)).collect();
        assert_eq!(stored[..8], [0, 2, 4, 6, 1, 3, 5, 7]);
        let mut sorted = stored.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..24).collect::<Vec<_>>());
    }

    #[test]
    fn bytes_refuses_partial_blocks_and_overflow() {
        assert_eq!(Type::new(DType::Q4_1, [2, 64]).bytes(), Some(80));
        assert_eq!(Type::new(DType::Q4_1, [64, 2]).bytes(), None);
        assert_eq!(Type::new(DType::F32, [usize::MAX, 2]).bytes(), None);
    }
}
