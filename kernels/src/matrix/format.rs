//! How packed matrices store their weights, and what the stored codes mean.
//!
//! Eight rows form a *group*; a row is a lane of a 256-bit register, so that a dot product over columns needs no
//! sum across lanes. A group is a run of *blocks* of 32 columns (zero-padded), one behind the other in the
//! order in which a kernel reads them. Codes and scales keep the stored format's exact bits.
//!
//! | formats | block of 8 rows × 32 columns |
//! | --- | --- |
//! | F32, F16 | `[column][row]` |
//! | BF16 | `[column pair][row][2]`: as 32-bit lanes, one shift or mask makes each an f32 |
//! | Q4, Q5 | 128 bytes of nibbles: byte `32v + 4r + j` holds columns `4v + j` (low) and `16 + 4v + j` (high) of row `r`, so that a multiply-add of bytes adds within a row; for Q5, 32 bytes of fifth bits: bit `v` of byte `4r + j` belongs to column `4v + j`; then the scales |
//! | Q8 | `[column pair][row][2]` signed bytes, then 8 f16 scales |
//! | Q6_K | 128 bytes of nibbles: byte `16s + 2r + j` holds columns `2s + j` and `16 + 2s + j`; 64 bytes of upper bits: bits `2f..` of byte `16p + 2r + j` belong to column `2(4p + f) + j`; then the scales |
//!
//! Scales are 8 f16 `d`; or 8 `d` and 8 `m` (value = `d·q + m`); or, for the K formats, 8-bit factors with each
//! block and their f16 multipliers once after every 8 blocks.

use half::{bf16, f16};
use millrace_graph::DType;

/// Rows of a group.
pub(super) const LANES: usize = 8;
/// Columns of a block.
pub(super) const BLOCK: usize = 32;
/// Blocks that share the f16 multipliers of a K format.
pub(super) const SUPER: usize = 8;

/// A stored format, group by group. `group` points to the first byte of a group; `block`, `lane` and `column`
/// (within the block) select a weight.
pub(super) trait Format {
    /// The format.
    const DTYPE: DType;

    /// Bytes of a group of `blocks` blocks.
    fn group_bytes(blocks: usize) -> usize;

    /// The number that a stored weight stands for.
    ///
    /// # Safety
    /// `group` is valid for `group_bytes` of more than `block` blocks.
    unsafe fn value(group: *const u8, block: usize, lane: usize, column: usize) -> f32;
}

/// Where a format of unsigned codes of 4 or 5 bits has its scales.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    /// `d`, and the codes are centred: value = `d · (q - 2^(bits - 1))`.
    Centred,
    /// `d` and `m`.
    Affine,
    /// 8 bytes of factors for `d` and 8 for `m`; after every 8 blocks, 8 f16 `d` and 8 f16 `-m`.
    Super,
}

/// Formats of unsigned codes of 4 or 5 bits, with one scale and one offset for each row of a block.
pub(super) trait Nibbles: Format {
    /// Bits of a code.
    const BITS: usize;
    /// The scales.
    const SCALES: Scales;
    /// Bytes of a block's codes.
    const CODES: usize = LANES * BLOCK * Self::BITS / 8;
    /// Bytes from a block to the next.
    const STRIDE: usize = Self::CODES + if matches!(Self::SCALES, Scales::Affine) { 32 } else { 16 };
    /// The code that means zero, for centred codes.
    const CENTRE: f32 = if Self::BITS == 4 { 8.0 } else { 16.0 };

    /// Where a block starts.
    fn block_at(block: usize) -> usize {
        match Self::SCALES {
            Scales::Super => block * Self::STRIDE + block / SUPER * 32,
            _ => block * Self::STRIDE,
        }
    }

    /// Where the f16 multipliers of a block are (K formats).
    fn super_at(block: usize) -> usize {
        Self::block_at(block - block % SUPER + SUPER - 1) + Self::STRIDE
    }

    /// The code of a weight.
    ///
    /// # Safety
    /// As [`Format::value`].
    unsafe fn code(group: *const u8, block: usize, lane: usize, column: usize) -> u8 {
        let (v, j) = (column / 4, column % 4);
        // SAFETY: offsets within the block's codes.
        unsafe {
            let codes = group.add(Self::block_at(block));
            let nibble = *codes.add(32 * (v % 4) + 4 * lane + j) >> (4 * (v / 4)) & 15;
            match Self::BITS {
                4 => nibble,
                _ => nibble | (*codes.add(128 + 4 * lane + j) >> v & 1) << 4,
            }
        }
    }

    /// `d` and `m` of a row of a block.
    ///
    /// # Safety
    /// As [`Format::value`].
    unsafe fn scales(group: *const u8, block: usize, lane: usize) -> (f32, f32) {
        // SAFETY: offsets within the block's scales, and the multipliers behind them.
        unsafe {
            let scales = group.add(Self::block_at(block) + Self::CODES);
            match Self::SCALES {
                Scales::Centred => {
                    let d = read_f16(scales, lane);
                    (d, d * -Self::CENTRE)
                }
                Scales::Affine => (read_f16(scales, lane), read_f16(scales, LANES + lane)),
                Scales::Super => {
                    let factors = group.add(Self::super_at(block));
                    (
                        read_f16(factors, lane) * f32::from(*scales.add(lane)),
                        read_f16(factors, LANES + lane) * f32::from(*scales.add(LANES + lane)),
                    )
                }
            }
        }
    }
}

/// Formats of signed codes of up to 8 bits, with scales for the two halves of a block.
pub(super) trait Bytes: Format {
    /// Whether the halves of a block have scales of their own.
    const HALVES: bool;

    /// The code of a weight.
    ///
    /// # Safety
    /// As [`Format::value`].
    unsafe fn code(group: *const u8, block: usize, lane: usize, column: usize) -> i8;

    /// The scale of a row of half a block.
    ///
    /// # Safety
    /// As [`Format::value`].
    unsafe fn scale(group: *const u8, block: usize, lane: usize, half: usize) -> f32;
}

macro_rules! dense {
    ($name:ident, $bytes:literal, |$group:ident, $block:ident, $lane:ident, $column:ident| $value:expr) => {
        #[allow(missing_docs, reason = "GGUF's name")]
        pub(super) struct $name;

        impl Format for $name {
            const DTYPE: DType = DType::$name;

            fn group_bytes(blocks: usize) -> usize {
                blocks * LANES * BLOCK * $bytes
            }

            unsafe fn value($group: *const u8, $block: usize, $lane: usize, $column: usize) -> f32 {
                // SAFETY: the element lies in the group.
                unsafe { $value }
            }
        }
    };
}

dense!(F32, 4, |group, block, lane, column| {
    f32::from_bits(group.cast::<u32>().add((block * BLOCK + column) * LANES + lane).read_unaligned())
});
dense!(F16, 2, |group, block, lane, column| read_f16(group, (block * BLOCK + column) * LANES + lane));
dense!(BF16, 2, |group, block, lane, column| {
    let at = (block * BLOCK + column - column % 2) * LANES + 2 * lane + column % 2;
    bf16::from_bits(group.cast::<u16>().add(at).read_unaligned()).to_f32()
});

macro_rules! nibbles {
    ($name:ident, $bits:literal, $scales:ident) => {
        #[allow(missing_docs, reason = "GGUF's name")]
        pub(super) struct $name;

        impl Format for $name {
            const DTYPE: DType = DType::$name;

            fn group_bytes(blocks: usize) -> usize {
                Self::block_at(blocks)
            }

            unsafe fn value(group: *const u8, block: usize, lane: usize, column: usize) -> f32 {
                // SAFETY: the caller's promise is the one asked for.
                unsafe {
                    let q = f32::from(Self::code(group, block, lane, column));
                    let (d, m) = Self::scales(group, block, lane);
                    // Products of a code and a scale are exact, so there is one rounding at most.
                    if matches!(Self::SCALES, Scales::Centred) { d * (q - Self::CENTRE) } else { d * q + m }
                }
            }
        }

        impl Nibbles for $name {
            const BITS: usize = $bits;
            const SCALES: Scales = Scales::$scales;
        }
    };
}

nibbles!(Q4_0, 4, Centred);
nibbles!(Q4_1, 4, Affine);
nibbles!(Q4K, 4, Super);
nibbles!(Q5_0, 5, Centred);
nibbles!(Q5_1, 5, Affine);
nibbles!(Q5K, 5, Super);

macro_rules! bytes_value {
    () => {
        unsafe fn value(group: *const u8, block: usize, lane: usize, column: usize) -> f32 {
            // SAFETY: the caller's promise is the one asked for.
            unsafe {
                let d = Self::scale(group, block, lane, column / 16);
                d * f32::from(Self::code(group, block, lane, column))
            }
        }
    };
}

#[allow(missing_docs, reason = "GGUF's name")]
pub(super) struct Q8_0;

impl Q8_0 {
    /// Bytes of a block.
    pub(super) const STRIDE: usize = 256 + 16;
}

impl Format for Q8_0 {
    const DTYPE: DType = DType::Q8_0;

    fn group_bytes(blocks: usize) -> usize {
        blocks * Self::STRIDE
    }

    bytes_value!();
}

impl Bytes for Q8_0 {
    const HALVES: bool = false;

    unsafe fn code(group: *const u8, block: usize, lane: usize, column: usize) -> i8 {
        // SAFETY: offset within the block's codes.
        unsafe { *group.add(block * Self::STRIDE + column / 2 * 16 + 2 * lane + column % 2) as i8 }
    }

    unsafe fn scale(group: *const u8, block: usize, lane: usize, _half: usize) -> f32 {
        // SAFETY: offset within the block's scales.
        unsafe { read_f16(group.add(block * Self::STRIDE + 256), lane) }
    }
}

#[allow(missing_docs, reason = "GGUF's name")]
pub(super) struct Q6K;

impl Q6K {
    /// Bytes of a block: nibbles, upper bits, two factors for each row.
    pub(super) const STRIDE: usize = 128 + 64 + 16;

    /// Where a block starts.
    pub(super) fn block_at(block: usize) -> usize {
        block * Self::STRIDE + block / SUPER * 16
    }

    /// Where the f16 multipliers of a block are.
    pub(super) fn super_at(block: usize) -> usize {
        Self::block_at(block - block % SUPER + SUPER - 1) + Self::STRIDE
    }
}

impl Format for Q6K {
    const DTYPE: DType = DType::Q6K;

    fn group_bytes(blocks: usize) -> usize {
        Self::block_at(blocks)
    }

    bytes_value!();
}

impl Bytes for Q6K {
    const HALVES: bool = true;

    unsafe fn code(group: *const u8, block: usize, lane: usize, column: usize) -> i8 {
        let (s, j) = (column / 2, column % 2);
        // SAFETY: offsets within the block's codes.
        unsafe {
            let codes = group.add(Self::block_at(block));
            let nibble = *codes.add(16 * (s % 8) + 2 * lane + j) >> (4 * (s / 8)) & 15;
            let upper = *codes.add(128 + 16 * (s / 4) + 2 * lane + j) >> (2 * (s % 4)) & 3;
            (nibble | upper << 4) as i8 - 32
        }
    }

    unsafe fn scale(group: *const u8, block: usize, lane: usize, half: usize) -> f32 {
        // SAFETY: offsets within the block's scales, and the multipliers behind them.
        unsafe {
            let factor = *group.add(Self::block_at(block) + 192 + LANES * half + lane) as i8;
            read_f16(group.add(Self::super_at(block)), lane) * f32::from(factor)
        }
    }
}

/// The f16 at `index`, as f32.
///
/// # Safety
/// `at` is valid for reads of `index + 1` f16 numbers; any alignment.
unsafe fn read_f16(at: *const u8, index: usize) -> f32 {
    // SAFETY: the caller's promise.
    f16::from_bits(unsafe { at.cast::<u16>().add(index).read_unaligned() }).to_f32()
}

/// [`read_row`] of a format.
pub(super) type ReadRow = unsafe fn(group: *const u8, lane: usize, out: &mut [f32]);

/// Reads the first columns of a row.
///
/// # Safety
/// As [`Format::value`], for all blocks that `out` reaches.
pub(super) unsafe fn read_row<F: Format>(group: *const u8, lane: usize, out: &mut [f32]) {
    for (column, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *out = unsafe { F::value(group, column / BLOCK, lane, column % BLOCK) };
    }
}

/// Runs `$body` with `$format` standing for the [`Format`] of a dtype; `None` for types that are no weights.
macro_rules! with_format {
    ($dtype:expr, $format:ident => $body:expr) => {{
        use crate::matrix::format as formats;
        macro_rules! run {
            ($name:ident) => {{
                type $format = formats::$name;
                Some($body)
            }};
        }
        match $dtype {
            DType::F32 => run!(F32),
            DType::F16 => run!(F16),
            DType::BF16 => run!(BF16),
            DType::Q4_0 => run!(Q4_0),
            DType::Q4_1 => run!(Q4_1),
            DType::Q4K => run!(Q4K),
            DType::Q5_0 => run!(Q5_0),
            DType::Q5_1 => run!(Q5_1),
            DType::Q5K => run!(Q5K),
            DType::Q6K => run!(Q6K),
            DType::Q8_0 => run!(Q8_0),
            DType::Pred | DType::I8 | DType::U8 | DType::I32 | DType::U32 => None,
        }
    }};
}
pub(super) use with_format;
