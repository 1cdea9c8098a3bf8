//! The loops of a product: blocks of tokens, groups of rows, panels of columns, tiles.
//!
//! For a few tokens the innermost kernel reads packed codes where they are, since each is used a few times only. For more,
//! codes of a few groups and some hundred columns are first unpacked into a panel that stays in the first-level
//! cache while all tokens of a block pass by; the activations of a block stay in the second level.

use std::ops::Range;

use millrace_graph::Activation;

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::format::LANES;
use super::{Matrix, Precision, TILE, gate, scalar};
use crate::cpu::{self, Isa};

/// Tokens whose partial sums are held at once.
const TOKENS: usize = 128;
/// From this many tokens on, unpacking a panel pays.
const PANEL_FROM: usize = 12;
/// Up to this many, what is unpacked next is asked for meanwhile. With more, unpacking is a trifle.
const AHEAD_TO: usize = 32;
/// Bytes of a panel: most of a first-level cache, beside a tile of activations.
const PANEL: usize = 20 << 10;
/// The most groups that a kernel takes at a time.
const GROUPS: usize = 3;
/// Elements of a tile's partial sums.
const SUMS: usize = GROUPS * TILE * LANES;
/// Groups whose sums there is room for where there is one tile of tokens: then weights pass by once, and the more of
/// them in one go the less it costs to begin.
const STREAM: usize = GROUPS * TOKENS / TILE;

/// What an innermost kernel works on: some groups by the tokens of one tile, over a run of blocks.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// The first group's first block, as packed or in a panel.
    pub(super) weights: *const u8,
    /// Bytes from a group to the next.
    pub(super) stride: usize,
    pub(super) groups: usize,
    pub(super) blocks: usize,
    /// The tile's first block.
    pub(super) acts: *const u8,
    pub(super) tokens: usize,
    /// Sums to add to: `[group][TILE][LANES]`, on a cache line.
    pub(super) sums: *mut f32,
}

impl Tile {
    /// The tile without its first groups.
    ///
    /// # Safety
    /// It has as many.
    pub(super) unsafe fn skip(&mut self, groups: usize) {
        self.groups -= groups;
        self.weights = self.weights.wrapping_add(groups * self.stride);
        self.sums = self.sums.wrapping_add(groups * TILE * LANES);
    }
}

/// Adds a tile's products to its sums.
///
/// # Safety
/// All pointers are valid for what the numbers say, and the processor has the kernel's instruction set.
pub(super) type TileFn = unsafe fn(&Tile);

/// The kernels of one format, precision and instruction set. At least one of the two ways exists.
pub(super) struct Kernel {
    pub(super) direct: Option<Direct>,
    pub(super) panel: Option<Panel>,
}

/// Works on packed codes.
pub(super) struct Direct {
    pub(super) tile: TileFn,
    /// Groups at a time, for more than one tile of tokens.
    pub(super) groups: usize,
    /// Bytes of a block, where a tile may start at any block: then many tokens pass by a run of columns that stays
    /// in the first-level cache.
    pub(super) block_bytes: Option<usize>,
}

/// Unpacks, and works on the panel.
pub(super) struct Panel {
    /// Unpacks a run of blocks of a group.
    ///
    /// # Safety
    /// The group holds those blocks, the panel has `block_bytes` for each, and the processor has the kernel's
    /// instruction set.
    pub(super) unpack: unsafe fn(group: *const u8, blocks: Range<usize>, panel: *mut u8),
    pub(super) tile: TileFn,
    pub(super) block_bytes: usize,
    pub(super) groups: usize,
}

impl Kernel {
    fn of(isa: Isa, w: &Operand<'_>) -> Kernel {
        match isa {
            Isa::Scalar => scalar::kernel(w.matrix.dtype, w.precision),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::kernel(w.matrix.dtype, w.precision),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 => unreachable!("never detected here"),
        }
    }

    /// How this many tokens are multiplied.
    fn way(&self, tokens: usize) -> Way<'_> {
        match self {
            Kernel { panel: Some(panel), direct } if tokens >= PANEL_FROM || direct.is_none() => {
                Way::Panel(panel)
            }
            Kernel { direct: Some(direct), .. } => Way::Direct(direct),
            Kernel { .. } => unreachable!("a kernel works in one way at least"),
        }
    }

    /// Groups at a time.
    fn groups(&self, tokens: usize) -> usize {
        match self.way(tokens) {
            Way::Direct(_) if tokens <= TILE => STREAM,
            Way::Direct(direct) => direct.groups,
            Way::Panel(panel) => panel.groups,
        }
    }
}

enum Way<'a> {
    Direct(&'a Direct),
    Panel(&'a Panel),
}

/// One side of a product: a part of a matrix, and the prepared activations it is multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// The weights.
    pub matrix: &'a Matrix,
    /// Which part of them.
    pub part: usize,
    /// How to multiply.
    pub precision: Precision,
    /// Activations of the matrix's columns, prepared in the form that [`Matrix::activations`] names for the
    /// precision.
    pub acts: *const u8,
}

/// Where results go: row `n` of token `t` to `data[t * stride + n]`.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// The first token's first element.
    pub data: *mut f32,
    /// Elements from a token to the next.
    pub stride: usize,
    /// How many of the prepared tokens to multiply.
    pub tokens: usize,
    /// Whether results are added to what is there (a bias, a residual) instead of stored.
    pub add: bool,
}

/// A worker's working memory, of one size for all products: make one for each worker, once.
#[derive(Debug)]
pub struct Scratch(Box<Space>);

#[derive(Debug)]
#[repr(align(64))]
struct Space {
    panel: [u8; PANEL],
    sums: [[f32; SUMS * TOKENS / TILE]; 2],
}

impl Scratch {
    /// Working memory for one worker.
    pub fn new() -> Scratch {
        Scratch(Box::new(Space { panel: [0; PANEL], sums: [[0.0; SUMS * TOKENS / TILE]; 2] }))
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

/// `x · wᵀ` for the rows of `groups` ([`Matrix::groups`]) and the first `out.tokens` prepared tokens. Workers
/// share a product out by groups.
///
/// # Safety
/// - `w.acts` holds that many prepared tokens of the matrix's columns, in the form [`Matrix::activations`] names.
/// - `out` is valid for writes (and reads, to add) of the rows of `groups` of each token, and nobody else
///   accesses them meanwhile.
///
/// # Panics
/// Where `w.part` or `groups` is out of range.
pub unsafe fn multiply(w: &Operand<'_>, out: &Output, groups: Range<usize>, scratch: &mut Scratch) {
    // SAFETY: the caller's promise, and the instruction set is this processor's.
    unsafe { multiply_with(cpu::isa(), w, out, groups, scratch) }
}

/// [`multiply`] on a given instruction set.
pub(super) unsafe fn multiply_with(
    isa: Isa,
    w: &Operand<'_>,
    out: &Output,
    groups: Range<usize>,
    scratch: &mut Scratch,
) {
    let kernel = Kernel::of(isa, w);
    let step = kernel.groups(out.tokens);
    let Space { panel, sums: [sums, _] } = &mut *scratch.0;
    for_blocks(out.tokens, groups, step, |tokens, groups| {
        // SAFETY: the caller's promise; the scratch holds a panel and the sums of a block of tokens.
        unsafe {
            accumulate(&kernel, w, tokens.clone(), groups.clone(), panel, sums);
            store(w.matrix, sums, tokens, groups, out);
        }
    });
}

/// `act(x · gateᵀ) ⊙ (x · upᵀ)` for the rows of `groups`, in one pass. The two matrices have the same numbers of rows and
/// columns but may differ in format; where they want the same form of activations, `acts` may be the same.
///
/// # Safety
/// As [`multiply`], for both operands.
///
/// # Panics
/// As [`multiply`]; and where the shapes differ.
pub unsafe fn multiply_gated(
    gate: &Operand<'_>,
    up: &Operand<'_>,
    act: Activation,
    out: &Output,
    groups: Range<usize>,
    scratch: &mut Scratch,
) {
    // SAFETY: the caller's promise, and the instruction set is this processor's.
    unsafe { multiply_gated_with(cpu::isa(), gate, up, act, out, groups, scratch) }
}

/// [`multiply_gated`] on a given instruction set.
pub(super) unsafe fn multiply_gated_with(
    isa: Isa,
    gate: &Operand<'_>,
    up: &Operand<'_>,
    act: Activation,
    out: &Output,
    groups: Range<usize>,
    scratch: &mut Scratch,
) {
    let (m, n) = (gate.matrix, up.matrix);
    assert_eq!((m.rows, m.cols), (n.rows, n.cols), "gate and up have one shape");
    let gate_kernel = Kernel::of(isa, gate);
    let up_kernel = Kernel::of(isa, up);
    let step = gate_kernel.groups(out.tokens).min(up_kernel.groups(out.tokens));
    let Space { panel, sums: [gates, ups] } = &mut *scratch.0;
    for_blocks(out.tokens, groups, step, |tokens, groups| {
        // SAFETY: the caller's promise; the scratch holds a panel and the sums of a block of tokens.
        unsafe {
            accumulate(&gate_kernel, gate, tokens.clone(), groups.clone(), panel, gates);
            accumulate(&up_kernel, up, tokens.clone(), groups.clone(), panel, ups);
            let per_tile = groups.len() * TILE * LANES;
            let (whole, rest) = (tokens.len() / TILE * per_tile, tokens.len() % TILE);
            gate::gate(act, &mut gates[..whole], &ups[..whole]);
            if rest > 0 {
                for at in (whole..whole + per_tile).step_by(TILE * LANES) {
                    let sums = at..at + rest * LANES;
                    gate::gate(act, &mut gates[sums.clone()], &ups[sums]);
                }
            }
            store(m, gates, tokens, groups, out);
        }
    });
}

/// Calls `f` for each block of tokens and, within, each run of up to `step` groups.
fn for_blocks(
    tokens: usize,
    groups: Range<usize>,
    step: usize,
    mut f: impl FnMut(Range<usize>, Range<usize>),
) {
    for first in (0..tokens).step_by(TOKENS) {
        for group in groups.clone().step_by(step) {
            f(first..(first + TOKENS).min(tokens), group..(group + step).min(groups.end));
        }
    }
}

/// The products of some groups with a block of tokens, as `[tile][group][TILE][LANES]` sums.
///
/// # Safety
/// As [`multiply`], but for the output.
unsafe fn accumulate(
    kernel: &Kernel,
    w: &Operand<'_>,
    tokens: Range<usize>,
    groups: Range<usize>,
    panel: &mut [u8; PANEL],
    sums: &mut [f32],
) {
    let matrix = w.matrix;
    let (blocks, count) = (matrix.blocks(), groups.len());
    let record = matrix.activations(w.precision).record();
    let tile_sums = count * TILE * LANES;
    sums[..tile_sums * tokens.len().div_ceil(TILE)].fill(0.0);
    let sums = sums.as_mut_ptr();
    let packed = matrix.group(w.part, groups.start);
    assert!(groups.end <= matrix.groups(), "groups {groups:?} of {}", matrix.groups());
    let tiles = |run: Range<usize>, weights: *const u8, stride: usize, f: TileFn, ahead: Ahead| {
        for (i, first) in tokens.clone().step_by(TILE).enumerate() {
            ahead.ask(i);
            // SAFETY: the tile and its sums lie within what the caller promises and the slice above.
            unsafe {
                f(&Tile {
                    weights,
                    stride,
                    groups: count,
                    blocks: run.len(),
                    acts: w.acts.add((first / TILE * blocks + run.start) * record),
                    tokens: TILE.min(tokens.end - first),
                    sums: sums.add(i * tile_sums),
                });
            }
        }
    };
    match kernel.way(tokens.end) {
        Way::Direct(direct) => {
            let (columns, block_bytes) = match direct.block_bytes {
                Some(bytes) if tokens.end >= PANEL_FROM => (PANEL / (bytes * count), bytes),
                _ => (blocks, 0),
            };
            for run in runs(blocks, columns) {
                // SAFETY: the run lies within the group.
                let weights = unsafe { packed.add(run.start * block_bytes) };
                tiles(run, weights, matrix.group_bytes, direct.tile, Ahead::NOTHING);
            }
        }
        Way::Panel(p) => {
            for run in runs(blocks, PANEL / (p.block_bytes * p.groups)) {
                let stride = run.len() * p.block_bytes;
                for i in 0..count {
                    // SAFETY: the group is one of the matrix's, and the panel has room for a run of `p.groups`
                    // groups.
                    unsafe {
                        let group = packed.add(i * matrix.group_bytes);
                        (p.unpack)(group, run.clone(), panel.as_mut_ptr().add(i * stride));
                    }
                }
                let ahead = match tokens.len() {
                    0..=AHEAD_TO => Ahead::of(matrix, packed, count, &run, tokens.len().div_ceil(TILE)),
                    _ => Ahead::NOTHING,
                };
                tiles(run, panel.as_ptr(), stride, p.tile, ahead);
            }
        }
    }
}

/// The packed weights to be unpacked after a panel. They are asked for while it is worked on, a part with each tile: the
/// processor's own prefetching begins when they are read, and unpacking would wait for memory most of its time.
#[derive(Clone, Copy)]
struct Ahead {
    first: *const u8,
    /// Bytes from a group to the next.
    stride: usize,
    groups: usize,
    /// Cache lines of each group, and how many of them a tile asks for.
    lines: usize,
    part: usize,
}

impl Ahead {
    const NOTHING: Ahead = Ahead { first: std::ptr::null(), stride: 0, groups: 0, lines: 0, part: 0 };

    /// What comes after a run of the first `groups` groups from `packed` on, asked for with so many tiles.
    fn of(matrix: &Matrix, packed: *const u8, groups: usize, run: &Range<usize>, tiles: usize) -> Ahead {
        let stride = matrix.group_bytes;
        // Near enough where a format has scales between its blocks.
        let share = |blocks: usize| stride * blocks / matrix.blocks();
        let (group, block) = if run.end < matrix.blocks() { (0, run.end) } else { (groups, 0) };
        let first = packed.wrapping_add(group * stride + share(block));
        let lines = share(run.len()).div_ceil(LINE);
        Ahead { first, stride, groups, lines, part: lines.div_ceil(tiles) }
    }

    /// Asks for the part that goes with tile `tile`.
    fn ask(&self, tile: usize) {
        let start = tile * self.part;
        for group in 0..self.groups {
            for line in start..self.lines.min(start + self.part) {
                prefetch(self.first.wrapping_add(group * self.stride + line * LINE));
            }
        }
    }
}

/// A cache line.
const LINE: usize = 64;

/// Asks for the cache line at an address, whatever is there.
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// `0..blocks` in runs of up to `most`, about equally long: a short last one would cost as much to begin as the others.
fn runs(blocks: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let columns = blocks.div_ceil(blocks.div_ceil(most));
    (0..blocks).step_by(columns).map(move |start| start..(start + columns).min(blocks))
}

/// Moves sums to their place, the padding rows of a last group excepted.
///
/// # Safety
/// `out` is valid for these rows of these tokens.
unsafe fn store(matrix: &Matrix, sums: &[f32], tokens: Range<usize>, groups: Range<usize>, out: &Output) {
    for (i, token) in tokens.enumerate() {
        let first = (i / TILE * groups.len() * TILE + i % TILE) * LANES;
        for (j, group) in groups.clone().enumerate() {
            let at = first + j * TILE * LANES;
            let sums: &[f32; LANES] = sums[at..at + LANES].as_array().expect("so many");
            let row = group * LANES;
            // SAFETY: the caller's promise.
            let place = unsafe { out.data.add(token * out.stride + row) };
            if matrix.rows - row >= LANES {
                // SAFETY: the whole group's rows are there; an array of floats is aligned as a float is.
                let place = unsafe { &mut *place.cast::<[f32; LANES]>() };
                *place = if out.add { std::array::from_fn(|lane| place[lane] + sums[lane]) } else { *sums };
                continue;
            }
            for (lane, sum) in sums.iter().enumerate().take(matrix.rows - row) {
                // SAFETY: as above; any alignment of floats.
                unsafe {
                    let place = place.add(lane);
                    *place = if out.add { *place + sum } else { *sum };
                }
            }
        }
    }
}
