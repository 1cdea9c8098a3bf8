//! One layer's paged cache of keys or values. To the graph it is a tensor `[B, S, G, D]` (blocks, tokens of a
//! block, KV heads, head dimension); how it lies in memory is private to the attention kernels.
//!
//! Each KV head of a block is contiguous, since a unit of work is one head. Within it **values** are
//! `[S][D']`: weights multiply whole rows, so lanes run along the dimension, which is padded to whole
//! vectors of eight. **Keys** are `[S / W][D][W]`: the scores of `W` tokens come out side by side, so lanes
//! run along tokens and no score needs a horizontal sum.
//!
//! An 8-bit cache (`s8`) has one scale for each token and head, the largest magnitude over 127, as f32 behind the
//! page's elements. The scales are no part of the graph's tensor: keys' are multiplied into scores and values' into
//! weights, so a row costs one multiplication more and not one for each element.

use std::{
    alloc::{self, Layout},
    ops::Range,
    ptr::NonNull,
};

use half::{bf16, f16, slice::HalfFloatSliceExt};
use millrace_graph::{DType, Type};

/// Lanes of the vectors that the layout is made for.
pub(crate) const LANES: usize = 8;
/// Tokens whose scores are computed together, at most.
pub(crate) const MAX_TILE: usize = 32;
/// Start of the storage: a cache line.
const ALIGN: usize = 64;
/// Elements converted at a time.
const STRIP: usize = 64;

/// Whether a cache holds keys or values: they lie differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvRole {
    /// Keys.
    Key,
    /// Values.
    Value,
}

/// Why a cache could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The type is none of a KV cache.
    #[error(
        "{0} is not a KV cache: want [blocks, block size, KV heads, head dim] of f32, f16, bf16 or s8, none of them 0"
    )]
    Type(Type),
    /// The kernels do not take this block size.
    #[error("a block size of {0} tokens: the CPU kernels want a multiple of 8 (such as 16 or 32)")]
    BlockSize(usize),
    /// The memory is not there.
    #[error("cannot allocate {bytes} bytes of KV cache for {ty}: give it fewer blocks")]
    Memory {
        /// What was to be allocated.
        ty: Type,
        /// Its size; saturated where it overflows.
        bytes: usize,
    },
}

/// Bytes that one token takes in a cache of keys or values of this type, the padding of odd dimensions apart.
pub fn bytes_per_token(dtype: DType, heads: usize, dim: usize) -> usize {
    heads * (dim * dtype.block_bytes() + scale_bytes(dtype))
}

/// Bytes of a row's scale.
fn scale_bytes(dtype: DType) -> usize {
    if dtype == DType::I8 { size_of::<f32>() } else { 0 }
}

/// One layer's cache of keys or values. Written and read through shared references by many threads, so both
/// are `unsafe` or say what they rely on.
#[derive(Debug)]
pub struct KvTensor {
    ty: Type,
    geometry: Geometry,
    /// As allocated.
    base: NonNull<u8>,
    layout: Layout,
    /// `base`, aligned.
    data: NonNull<u8>,
}

// SAFETY: the tensor owns its memory; writes through `&self` are unsafe and leave ordering to the caller.
unsafe impl Send for KvTensor {}
// SAFETY: as above.
unsafe impl Sync for KvTensor {}

/// Where elements lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    pub(crate) role: KvRole,
    pub(crate) dtype: DType,
    pub(crate) blocks: usize,
    /// Tokens of a block.
    pub(crate) block: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    /// Tokens of a tile of keys.
    pub(crate) tile: usize,
}

impl Geometry {
    pub(crate) fn new(ty: &Type, role: KvRole) -> Result<Self, KvError> {
        let stored = ty.dtype.is_float() || ty.dtype == DType::I8;
        let (&[blocks, block, heads, dim], true) = (&ty.shape[..], stored) else {
            return Err(KvError::Type(ty.clone()));
        };
        if [blocks, block, heads, dim].contains(&0) {
            return Err(KvError::Type(ty.clone()));
        }
        if !block.is_multiple_of(LANES) {
            return Err(KvError::BlockSize(block));
        }
        let tile = [MAX_TILE, MAX_TILE / 2].into_iter().find(|tile| block.is_multiple_of(*tile));
        Ok(Geometry { role, dtype: ty.dtype, blocks, block, heads, dim, tile: tile.unwrap_or(LANES) })
    }

    /// The head dimension in whole vectors.
    pub(crate) fn padded_dim(&self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    /// Elements of one head of one block.
    pub(crate) fn page(&self) -> usize {
        match self.role {
            KvRole::Key => self.block * self.dim,
            KvRole::Value => self.block * self.padded_dim(),
        }
    }

    /// Bytes of one head of one block, its scales included; a multiple of 4 and of an element's.
    fn page_bytes(&self) -> usize {
        self.page() * self.dtype.block_bytes() + self.block * scale_bytes(self.dtype)
    }

    fn bytes(&self) -> Option<usize> {
        // Overflow is looked for in the padded shape, before `page` multiplies unchecked.
        let padded = self.dim.checked_add(LANES - 1)? / LANES * LANES;
        let dim = if self.role == KvRole::Key { self.dim } else { padded };
        let row = dim.checked_mul(self.dtype.block_bytes())?.checked_add(scale_bytes(self.dtype))?;
        [self.blocks, self.block, self.heads].into_iter().try_fold(row, usize::checked_mul)
    }

    /// The element of dimension 0, and the distance from one dimension to the next.
    fn row(&self, slot: usize, head: usize) -> (usize, usize) {
        let (block, token) = (slot / self.block, slot % self.block);
        let page = (block * self.heads + head) * self.page_bytes() / self.dtype.block_bytes();
        match self.role {
            KvRole::Key => (page + token / self.tile * self.tile * self.dim + token % self.tile, self.tile),
            KvRole::Value => (page + token * self.padded_dim(), 1),
        }
    }
}

impl KvTensor {
    /// A cache of zeros for a tensor of this type. Memory is taken from the system as blocks are written, so
    /// a cache that is larger than its use costs address space alone. (Which is why it asks for no huge
    /// pages: one of those would make hundreds of untouched blocks resident.)
    ///
    /// # Errors
    /// Where the type is not `[B, S, G, D]` of f32, f16, bf16 or s8, where S is no multiple of 8, or where the
    /// memory is not there.
    pub fn new(ty: &Type, role: KvRole) -> Result<Self, KvError> {
        let geometry = Geometry::new(ty, role)?;
        let failed = |bytes| KvError::Memory { ty: ty.clone(), bytes };
        let bytes = geometry.bytes().ok_or_else(|| failed(usize::MAX))?;
        // Asking the allocator for more than word alignment would make it write the zeros itself.
        let layout = bytes
            .checked_add(ALIGN)
            .and_then(|bytes| Layout::from_size_align(bytes, align_of::<usize>()).ok())
            .ok_or_else(|| failed(bytes))?;
        // SAFETY: the size is at least `ALIGN`.
        let base = NonNull::new(unsafe { alloc::alloc_zeroed(layout) }).ok_or_else(|| failed(bytes))?;
        let shift = base.as_ptr().align_offset(ALIGN);
        // SAFETY: `shift` is below `ALIGN`, and so many bytes were added.
        let data = unsafe { base.add(shift) };
        Ok(KvTensor { ty: ty.clone(), geometry, base, layout, data })
    }

    /// The logical type, `[B, S, G, D]`.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Keys or values.
    pub fn role(&self) -> KvRole {
        self.geometry.role
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        self.geometry.blocks * self.geometry.heads * self.geometry.page_bytes()
    }

    /// Stores the values `[G, D]` of each token `t` of `tokens` at slot `slots[t]` (block `slot / S`, offset
    /// `slot % S`), rounded to the cache's type, to nearest with ties to even. In an 8-bit cache a head's row that
    /// has a NaN or an infinity becomes NaN, and one of which no magnitude reaches 2⁻¹¹⁹ becomes 0.
    ///
    /// # Safety
    /// - For each token of the range, `values + t · stride` is readable for `G · D` floats.
    /// - The range lies within `slots`, and each slot in it is at least 0 and below `B · S`.
    /// - No other thread reads or writes these slots meanwhile; other slots may be written.
    pub unsafe fn write(&self, values: *const f32, stride: usize, slots: &[i32], tokens: Range<usize>) {
        let Geometry { heads, dim, .. } = self.geometry;
        for token in tokens {
            let slot = slots[token] as usize;
            debug_assert!(slot < self.geometry.blocks * self.geometry.block, "slot {slot} of {}", self.ty);
            for head in 0..heads {
                // SAFETY: so many floats can be read at the token's row.
                let row = unsafe { std::slice::from_raw_parts(values.add(token * stride + head * dim), dim) };
                // SAFETY: the slot is in range and nobody else's.
                unsafe { self.write_row(slot, head, row) };
            }
        }
    }

    /// # Safety
    /// The slot and head are in range, and no other thread uses the slot.
    unsafe fn write_row(&self, slot: usize, head: usize, row: &[f32]) {
        let (start, step) = self.geometry.row(slot, head);
        match self.geometry.dtype {
            // SAFETY: passed on.
            DType::F32 => unsafe { self.scatter(start, step, row) },
            // SAFETY: passed on.
            DType::F16 => unsafe {
                self.convert(start, step, row, |strip, to: &mut [f16]| to.convert_from_f32_slice(strip));
            },
            // SAFETY: passed on.
            DType::BF16 => unsafe {
                self.convert(start, step, row, |strip, to: &mut [bf16]| to.convert_from_f32_slice(strip));
            },
            _ => {
                let (scale, inverse) = scale_of(row);
                // SAFETY: passed on; the scale is the row's own.
                unsafe {
                    self.convert(start, step, row, |strip, to: &mut [i8]| {
                        for (to, x) in to.iter_mut().zip(strip) {
                            *to = (x * inverse).round_ties_even() as i8;
                        }
                    });
                    self.scale(slot, head).write(scale);
                }
            }
        }
    }

    /// Where the scale of a row lies.
    ///
    /// # Safety
    /// The slot and head are in range, and the cache is an 8-bit one.
    unsafe fn scale(&self, slot: usize, head: usize) -> *mut f32 {
        let Geometry { block, heads, .. } = self.geometry;
        let page = (slot / block * heads + head) * self.geometry.page_bytes();
        // SAFETY: behind the elements of a page, as the caller says; aligned, since a block is a multiple of 8 tokens.
        unsafe { self.data.as_ptr().add(page + self.geometry.page()).cast::<f32>().add(slot % block) }
    }

    /// Scatters a row that has to be converted.
    ///
    /// # Safety
    /// As for [`KvTensor::scatter`].
    unsafe fn convert<E: Copy + Default>(
        &self,
        start: usize,
        step: usize,
        row: &[f32],
        convert: impl Fn(&[f32], &mut [E]),
    ) {
        let mut buffer = [E::default(); STRIP];
        for (i, strip) in row.chunks(STRIP).enumerate() {
            let converted = &mut buffer[..strip.len()];
            convert(strip, converted);
            // SAFETY: a part of the caller's row.
            unsafe { self.scatter(start + i * STRIP * step, step, converted) };
        }
    }

    /// # Safety
    /// `start + i · step` is an element of type `E` for each `i` below the row's length, and nobody else's.
    unsafe fn scatter<E: Copy>(&self, start: usize, step: usize, row: &[E]) {
        let data = self.data.as_ptr().cast::<E>();
        for (i, value) in row.iter().enumerate() {
            // SAFETY: in range, as the caller says.
            unsafe { data.add(start + i * step).write(*value) };
        }
    }

    /// The values `[G, D]` of one slot, in logical order.
    ///
    /// # Panics
    /// Where the slot is out of range or `out` does not hold `G · D` floats.
    pub fn read(&self, slot: usize, out: &mut [f32]) {
        let Geometry { blocks, block, heads, dim, .. } = self.geometry;
        assert!(slot < blocks * block, "slot {slot} of {}", self.ty);
        assert_eq!(out.len(), heads * dim, "floats for a slot of {}", self.ty);
        for (head, out) in out.chunks_mut(dim).enumerate() {
            let (start, step) = self.geometry.row(slot, head);
            let scale = match self.geometry.dtype {
                // SAFETY: slot and head are in range.
                DType::I8 => unsafe { *self.scale(slot, head) },
                _ => 1.0,
            };
            for (i, out) in out.iter_mut().enumerate() {
                let (data, at) = (self.data.as_ptr(), start + i * step);
                // SAFETY: the element is in range, since slot, head and dimension are.
                *out = unsafe {
                    match self.geometry.dtype {
                        DType::F32 => *data.cast::<f32>().add(at),
                        DType::F16 => (*data.cast::<f16>().add(at)).to_f32(),
                        DType::BF16 => (*data.cast::<bf16>().add(at)).to_f32(),
                        _ => f32::from(*data.cast::<i8>().add(at)) * scale,
                    }
                };
            }
        }
    }

    /// Fills a block with NaN, padding included: whoever reads what nobody has written since will show it.
    ///
    /// # Panics
    /// Where the block is out of range.
    pub fn poison(&mut self, block: usize) {
        assert!(block < self.geometry.blocks, "block {block} of {}", self.ty);
        let bytes = self.geometry.heads * self.geometry.page_bytes();
        // SAFETY: the block is in range and, by `&mut self`, nobody else's. All ones is a NaN in each float type,
        // and so in the scales of an 8-bit cache.
        unsafe { self.data.as_ptr().add(block * bytes).write_bytes(0xff, bytes) };
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The first element of one head of one block; [`Geometry`] says what follows, and behind an 8-bit page's
    /// elements come its tokens' scales.
    ///
    /// # Panics
    /// Where either is out of range.
    pub(crate) fn page(&self, block: usize, head: usize) -> *const u8 {
        let Geometry { blocks, heads, .. } = self.geometry;
        assert!(block < blocks && head < heads, "head {head} of block {block} of {}", self.ty);
        // SAFETY: in range, as just checked.
        unsafe { self.data.as_ptr().add((block * heads + head) * self.geometry.page_bytes()) }
    }
}

impl Drop for KvTensor {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// A row's scale, and what its elements are multiplied with to be counts of it.
fn scale_of(row: &[f32]) -> (f32, f32) {
    let finite = row.iter().all(|x| x.is_finite());
    let largest = row.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    // Smaller ones would have an infinite inverse.
    const SMALLEST: f32 = 1.504_632_8e-36;
    match finite {
        false => (f32::NAN, 0.0),
        true if largest < SMALLEST => (0.0, 0.0),
        true => (largest / 127.0, 127.0 / largest),
    }
}
