//! From a stored tensor to groups of rows.

use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use millrace_graph::{DType, RowOrder, TensorView, Type};

use super::format::{BLOCK, Format, LANES, Nibbles, Q6K, Q8_0, SUPER, Scales, with_format};
use super::{Matrix, Memory};
use crate::dequant::scale_and_min;
use crate::pool::Pool;

/// The version of the packed layout. Whoever changes where packing puts a byte counts it up, so that files of packed
/// weights that were written before are not taken for new ones; `tests/packed.rs` notices if that is forgotten.
pub(crate) const LAYOUT: u32 = 1;

/// Why a tensor cannot be packed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PackError {
    /// The element type is no weight format.
    #[error("a matrix of {0} cannot be multiplied: weights are f32, f16, bf16 or a block format")]
    DType(DType),
    /// The shape is not that of a matrix or a stack of matrices, or has an empty dimension.
    #[error("{0} is not [N, K] or [E, N, K] with whole blocks in each row")]
    Shape(Type),
    /// The stored bytes or their row order do not fit the type.
    #[error("{ty} does not fit its {parts} stored parts of {bytes} bytes altogether, or their row order")]
    Length {
        /// The type.
        ty: Type,
        /// Parts given.
        parts: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// Something is to be added to each element, which packed codes cannot hold.
    #[error("an offset on reading applies to norms, not to a matrix of {0}")]
    Offset(Type),
    /// The packed matrix exceeds the address space.
    #[error("{0} is too large to pack")]
    TooLarge(Type),
}

impl Matrix {
    /// Packs `[N, K]`, or `[E, N, K]` as E parts, on all workers of `pool`.
    ///
    /// # Errors
    /// [`PackError`] where the view is not of that form; nothing is allocated then.
    pub fn pack(view: &TensorView<'_>, pool: &Pool) -> Result<Matrix, PackError> {
        let ty = &view.ty;
        dimensions(ty)?;
        if view.offset != 0.0 {
            return Err(PackError::Offset(ty.clone()));
        }
        check_stored(view)?;
        let form = Form::of(ty)?;
        let memory = Memory::new(form.bytes).ok_or_else(|| PackError::TooLarge(ty.clone()))?;
        let matrix = form.matrix(ty.dtype, memory);
        let groups = matrix.groups();
        pool.run(&|worker| {
            worker.for_chunks(matrix.parts * groups, 4, |range| matrix.fill(view, range));
        });
        Ok(matrix)
    }

    /// The matrix of a type that was packed before, in these bytes of a mapped file. Any bytes are a matrix: which one,
    /// the caller has to know.
    ///
    /// # Errors
    /// [`PackError`] where there are not just the bytes that the type takes, or it is no matrix.
    pub(crate) fn mapped(ty: &Type, map: &Arc<Mmap>, range: Range<usize>) -> Result<Matrix, PackError> {
        let form = Form::of(ty)?;
        let memory = Memory::mapped(map, range.clone()).filter(|memory| memory.len() == form.bytes);
        let length = || PackError::Length { ty: ty.clone(), parts: 1, bytes: range.len() };
        Ok(form.matrix(ty.dtype, memory.ok_or_else(length)?))
    }

    /// Bytes that a type takes when it is packed.
    ///
    /// # Errors
    /// [`PackError`] where it is no matrix.
    pub(crate) fn packed_bytes(ty: &Type) -> Result<usize, PackError> {
        Form::of(ty).map(|form| form.bytes)
    }

    /// The packed bytes.
    pub(crate) fn packed(&self) -> &[u8] {
        // SAFETY: the memory is that long, was written when the matrix was packed, and is not written again.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.memory.len()) }
    }

    /// Packs the groups of a range, counted over all parts.
    fn fill(&self, view: &TensorView<'_>, range: Range<usize>) {
        for index in range {
            let (part, group) = (index / self.groups(), index % self.groups());
            let first = group * LANES;
            // SAFETY: the group lies within the memory, and each index is given to one worker once.
            let out = unsafe {
                let at = self.memory.as_mut_ptr().add(index * self.group_bytes);
                at.write_bytes(0, self.group_bytes);
                std::slice::from_raw_parts_mut(at, self.group_bytes)
            };
            for lane in 0..LANES.min(self.rows - first) {
                pack_row(self.dtype, view.row(part * self.rows + first + lane), lane, out);
            }
        }
    }
}

/// Parts, rows and columns, where the type is a matrix's.
fn dimensions(ty: &Type) -> Result<(usize, usize, usize), PackError> {
    let (parts, rows, cols) = match ty.shape[..] {
        [rows, cols] => (1, rows, cols),
        [parts, rows, cols] => (parts, rows, cols),
        _ => return Err(PackError::Shape(ty.clone())),
    };
    if !(ty.dtype.is_float() || ty.dtype.is_quantised()) {
        return Err(PackError::DType(ty.dtype));
    }
    if ty.elements() == 0 || ty.dtype.bytes(cols).is_none() {
        return Err(PackError::Shape(ty.clone()));
    }
    Ok((parts, rows, cols))
}

/// The form that a type takes when it is packed.
struct Form {
    parts: usize,
    rows: usize,
    cols: usize,
    group_bytes: usize,
    bytes: usize,
}

impl Form {
    fn of(ty: &Type) -> Result<Form, PackError> {
        let too_large = || PackError::TooLarge(ty.clone());
        let (parts, rows, cols) = dimensions(ty)?;
        // Stored bytes are a third of the packed ones at least, but for small padding; only types of absurd shape
        // get near the limits below.
        let groups = rows.div_ceil(LANES);
        let blocks = cols.div_ceil(BLOCK);
        blocks.checked_mul(LANES * BLOCK * 4).ok_or_else(too_large)?;
        let group_bytes = with_format!(ty.dtype, F => F::group_bytes(blocks)).expect("checked above");
        let bytes =
            parts.checked_mul(groups).and_then(|n| n.checked_mul(group_bytes)).ok_or_else(too_large)?;
        Ok(Form { parts, rows, cols, group_bytes, bytes })
    }

    fn matrix(self, dtype: DType, memory: Memory) -> Matrix {
        let Form { parts, rows, cols, group_bytes, .. } = self;
        Matrix { dtype, parts, rows, cols, group_bytes, memory }
    }
}

/// Whether each stored part has the bytes of its equal share of the rows, and the row order fits that share.
fn check_stored(view: &TensorView<'_>) -> Result<(), PackError> {
    let parts = view.parts.len();
    let stored: usize = view.parts.iter().map(|part| part.len()).sum();
    let fits = view.ty.bytes() == Some(stored)
        && view.parts.iter().all(|part| part.len() * parts == stored)
        && view.ty.rows().is_multiple_of(parts);
    let ordered = match view.order {
        RowOrder::Natural => true,
        // Each head is two halves.
        RowOrder::RopeInterleaved { heads } => {
            fits && (view.ty.rows() / parts).checked_rem(2 * heads).is_some_and(|rest| rest == 0)
        }
    };
    if fits && ordered {
        return Ok(());
    }
    Err(PackError::Length { ty: view.ty.clone(), parts, bytes: stored })
}

/// Writes a stored row into its lane of a group.
fn pack_row(dtype: DType, row: &[u8], lane: usize, out: &mut [u8]) {
    match dtype {
        DType::F32 => scatter::<4>(row, out, |column| column * LANES + lane),
        DType::F16 => scatter::<2>(row, out, |column| column * LANES + lane),
        DType::BF16 => scatter::<2>(row, out, |column| (column & !1) * LANES + 2 * lane + column % 2),
        DType::Q4_0 => simple::<super::format::Q4_0>(row, lane, out),
        DType::Q4_1 => simple::<super::format::Q4_1>(row, lane, out),
        DType::Q5_0 => simple::<super::format::Q5_0>(row, lane, out),
        DType::Q5_1 => simple::<super::format::Q5_1>(row, lane, out),
        DType::Q4K => k_nibbles::<super::format::Q4K>(row, lane, out),
        DType::Q5K => k_nibbles::<super::format::Q5K>(row, lane, out),
        DType::Q6K => q6_k(row, lane, out),
        DType::Q8_0 => q8_0(row, lane, out),
        _ => unreachable!("refused by Matrix::pack"),
    }
}

/// Copies elements of `N` bytes to their places.
fn scatter<const N: usize>(row: &[u8], out: &mut [u8], place: impl Fn(usize) -> usize) {
    let (out, _) = out.as_chunks_mut::<N>();
    for (column, element) in row.as_chunks::<N>().0.iter().enumerate() {
        out[place(column)] = *element;
    }
}

/// Q4_0, Q4_1, Q5_0, Q5_1: `d`, (`m`,) (32 fifth bits,) nibbles, of which byte `j` holds elements `j` and `j + 16`.
fn simple<F: Nibbles>(row: &[u8], lane: usize, out: &mut [u8]) {
    let scale_bytes = if F::SCALES == Scales::Affine { 4 } else { 2 };
    for (b, block) in row.chunks_exact(F::DTYPE.block_bytes()).enumerate() {
        let out = &mut out[F::block_at(b)..][..F::STRIDE];
        let (scales, codes) = block.split_at(scale_bytes);
        let (fifth, nibbles) = codes.split_at(codes.len() - 16);
        let mut q = [0u8; BLOCK];
        for (j, byte) in nibbles.iter().enumerate() {
            q[j] = byte & 15;
            q[j + 16] = byte >> 4;
        }
        if let Ok(bits) = <[u8; 4]>::try_from(fifth) {
            let bits = u32::from_le_bytes(bits);
            for (j, q) in q.iter_mut().enumerate() {
                *q |= (bits >> j & 1) as u8 * 16;
            }
        }
        put_nibbles::<F>(&q, lane, out);
        for (i, scale) in scales.as_chunks::<2>().0.iter().enumerate() {
            out[F::CODES + 16 * i + 2 * lane..][..2].copy_from_slice(scale);
        }
    }
}

/// Q4_K and Q5_K: `d`, `m`, 12 bytes of 6-bit factors, (32 bytes of fifth bits,) 128 bytes of nibbles. A run of 32
/// nibble bytes holds one sub-block in its low and the next in its high halves.
fn k_nibbles<F: Nibbles>(row: &[u8], lane: usize, out: &mut [u8]) {
    for (s, block) in row.chunks_exact(F::DTYPE.block_bytes()).enumerate() {
        let (scales, codes) = block.split_at(16);
        let (fifth, nibbles) = codes.split_at(codes.len() - 128);
        for sub in 0..SUPER {
            let b = s * SUPER + sub;
            let mut q = [0u8; BLOCK];
            for (q, byte) in q.iter_mut().zip(&nibbles[sub / 2 * 32..]) {
                *q = byte >> (4 * (sub % 2)) & 15;
            }
            for (q, byte) in q.iter_mut().zip(fifth) {
                *q |= (byte >> sub & 1) << 4;
            }
            let out = &mut out[F::block_at(b)..][..F::STRIDE];
            put_nibbles::<F>(&q, lane, out);
            let (d, m) = scale_and_min(&scales[4..], sub);
            out[F::CODES + lane] = d;
            out[F::CODES + LANES + lane] = m;
        }
        let multipliers = &mut out[F::super_at(s * SUPER)..];
        multipliers[2 * lane..][..2].copy_from_slice(&scales[..2]);
        // Stored as what is subtracted; kept as what is added.
        multipliers[2 * (LANES + lane)..][..2].copy_from_slice(&[scales[2], scales[3] ^ 0x80]);
    }
}

fn put_nibbles<F: Nibbles>(q: &[u8; BLOCK], lane: usize, out: &mut [u8]) {
    for v in 0..4 {
        for j in 0..4 {
            out[32 * v + 4 * lane + j] = q[4 * v + j] & 15 | q[16 + 4 * v + j] << 4;
        }
    }
    if F::BITS == 5 {
        for j in 0..4 {
            out[128 + 4 * lane + j] = (0..8).fold(0, |bits, v| bits | (q[4 * v + j] >> 4) << v);
        }
    }
}

/// Q8_0: `d`, 32 signed bytes.
fn q8_0(row: &[u8], lane: usize, out: &mut [u8]) {
    for (block, out) in row.chunks_exact(34).zip(out.chunks_exact_mut(Q8_0::STRIDE)) {
        out[256 + 2 * lane..][..2].copy_from_slice(&block[..2]);
        for (pair, codes) in block[2..].as_chunks::<2>().0.iter().enumerate() {
            out[16 * pair + 2 * lane..][..2].copy_from_slice(codes);
        }
    }
}

/// Q6_K: 128 bytes of nibbles, 64 of upper bits, 16 signed factors, `d`. Each half of the nibbles and upper bits
/// holds four sub-blocks: element `l` of sub-block `i` has its nibble in byte `32 (i % 2) + l`, low for the first
/// two, and its upper bits at `2i` of byte `l`.
fn q6_k(row: &[u8], lane: usize, out: &mut [u8]) {
    for (s, block) in row.chunks_exact(210).enumerate() {
        let (nibbles, rest) = block.split_at(128);
        let (upper, rest) = rest.split_at(64);
        let (factors, d) = rest.split_at(16);
        for sub in 0..SUPER {
            let (half, i) = (sub / 4, sub % 4);
            let out = &mut out[Q6K::block_at(s * SUPER + sub)..][..Q6K::STRIDE];
            for l in 0..BLOCK {
                let nibble = nibbles[64 * half + 32 * (i % 2) + l] >> (4 * (i / 2)) & 15;
                let bits = upper[32 * half + l] >> (2 * i) & 3;
                let (pair, j) = (l / 2, l % 2);
                out[16 * (pair % 8) + 2 * lane + j] |= nibble << (4 * (pair / 8));
                out[128 + 16 * (pair / 4) + 2 * lane + j] |= bits << (2 * (pair % 4));
            }
            out[192 + lane] = factors[2 * sub];
            out[192 + LANES + lane] = factors[2 * sub + 1];
        }
        out[Q6K::super_at(s * SUPER) + 2 * lane..][..2].copy_from_slice(d);
    }
}
