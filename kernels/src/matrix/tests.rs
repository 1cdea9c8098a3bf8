//! One table for every format, precision and instruction set: products against the definition Σ w · x in f64,
//! all splits of the work and all instruction sets against one another bit by bit.

use half::{bf16, f16};
use millrace_graph::{Activation, RowOrder, TensorView, Type};
use proptest::prelude::*;

use super::drive::{multiply_gated_with, multiply_with};
use super::*;
use crate::dequant::dequantise;
use crate::pool::Pool;

const FORMATS: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];

/// What a case is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fill {
    /// Any codes, ordinary scales.
    Ordinary,
    /// The largest codes against activations of the largest magnitude and one sign: sums reach their bounds.
    Largest,
    /// Zeros among scales, codes and activations.
    Zeros,
    /// Scales and activations below the normal numbers.
    Subnormal,
    /// Any bits at all, infinities and NaN among them, in weights and activations.
    Bits,
}

const FILLS: [Fill; 5] = [Fill::Ordinary, Fill::Largest, Fill::Zeros, Fill::Subnormal, Fill::Bits];

struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Within ±1.
    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn one_in(&mut self, n: u64) -> bool {
        (self.bits() >> 32).is_multiple_of(n)
    }

    fn scale(&mut self, fill: Fill) -> u16 {
        match fill {
            Fill::Zeros if self.one_in(2) => 0,
            Fill::Subnormal => (self.bits() >> 40) as u16 & 0x83ff,
            Fill::Bits => (self.bits() >> 40) as u16,
            _ => f16::from_f32(self.float() * 0.1).to_bits(),
        }
    }
}

/// Stored bytes of `rows` rows.
fn weights(dtype: DType, rows: usize, cols: usize, fill: Fill, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    let plain = |random: &mut Random| match fill {
        Fill::Bits => f32::from_bits((random.bits() >> 32) as u32),
        Fill::Subnormal => random.float() * 1e-39,
        Fill::Zeros if random.one_in(2) => 0.0,
        _ => random.float(),
    };
    let halves: &[usize] = match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q6K => &[208],
        _ => &[],
    };
    for _ in 0..rows * cols / dtype.block_len() {
        match dtype {
            DType::F32 => bytes.extend(plain(random).to_le_bytes()),
            DType::F16 => bytes.extend(f16::from_f32(plain(random)).to_le_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f32(plain(random)).to_le_bytes()),
            _ => {
                let start = bytes.len();
                bytes.extend((0..dtype.block_bytes()).map(|_| match fill {
                    Fill::Largest => 0xff,
                    Fill::Zeros if random.one_in(2) => 0,
                    _ => (random.bits() >> 32) as u8,
                }));
                if fill == Fill::Largest && dtype == DType::Q8_0 {
                    bytes[start + 2..].fill(0x80);
                }
                for at in halves {
                    bytes[start + at..][..2].copy_from_slice(&random.scale(fill).to_le_bytes());
                }
            }
        }
    }
    bytes
}

fn inputs(count: usize, fill: Fill, random: &mut Random) -> Vec<f32> {
    let sign = if random.one_in(2) { 1.0 } else { -1.0 };
    (0..count)
        .map(|_| match fill {
            Fill::Ordinary => random.float() * if random.one_in(50) { 100.0 } else { 1.0 },
            Fill::Largest => sign * 3.7,
            Fill::Zeros => random.float() * f32::from(u8::from(random.one_in(4))),
            Fill::Subnormal => random.float() * [1e-39, 1e-31, 3e-30, 1e-25][random.bits() as usize % 4],
            Fill::Bits if random.one_in(9) => f32::from_bits((random.bits() >> 32) as u32),
            Fill::Bits => random.float(),
        })
        .collect()
}

/// Memory whose start is `offset` floats behind a cache line.
struct Buffer {
    data: Vec<f32>,
    start: usize,
}

impl Buffer {
    fn new(floats: usize, offset: usize, value: f32) -> Buffer {
        let data = vec![value; floats + offset + 16];
        let start = data.as_ptr().align_offset(64) + offset;
        Buffer { data, start }
    }

    fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data[self.start..].as_mut_ptr()
    }

    fn floats(&self) -> &[f32] {
        &self.data[self.start..]
    }
}

/// Prepares the tokens from `cut` on, then those before.
fn prepare(isa: Isa, acts: Activations, x: &[f32], cols: usize, cut: usize, offset: usize) -> Buffer {
    let tokens = x.len() / cols;
    let mut into = Buffer::new(acts.bytes(tokens, cols) / 4, offset, f32::NAN);
    for piece in [cut..tokens, 0..cut] {
        // SAFETY: the buffer has the bytes asked for, and `x` these rows.
        unsafe { acts.prepare_with(isa, x.as_ptr(), cols, cols, piece, into.as_mut_ptr().cast()) };
    }
    into
}

/// What prepared activations stand for, row-major; and the scale of each.
fn prepared(acts: Activations, buffer: &Buffer, tokens: usize, cols: usize) -> Vec<(f64, f64)> {
    let bytes: &[u8] = bytemuck::cast_slice(buffer.floats());
    let float = |at: usize| f64::from(f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
    let blocks = cols.div_ceil(BLOCK);
    let mut values = Vec::new();
    for token in 0..tokens {
        for column in 0..cols {
            let record = (token / TILE * blocks + column / BLOCK) * acts.record();
            let (t, c) = (token % TILE, column % BLOCK);
            values.push(match acts {
                Activations::F32 => (float(record + 4 * (c * TILE + t)), 0.0),
                Activations::I8 => {
                    let at = record + TILE * (BLOCK + 8) + 4 * t + c % 4 / 2 * 2;
                    let factor = i16::from_le_bytes([bytes[at], bytes[at + 1]]);
                    let a = float(record + TILE * BLOCK + 4 * t) * f64::from(factor);
                    (a * f64::from(bytes[record + t * BLOCK + c] as i8), a)
                }
                Activations::I16 => {
                    let a = float(record + 2 * TILE * BLOCK + 4 * t);
                    let at = record + 2 * (t * BLOCK + c);
                    (a * f64::from(i16::from_le_bytes([bytes[at], bytes[at + 1]])), a)
                }
            });
        }
    }
    values
}

fn same_bits(a: &[f32], b: &[f32]) -> Result<(), String> {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        if a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()) {
            return Err(format!("element {i}: {a:e} and {b:e}"));
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct Case {
    rows: usize,
    tokens: usize,
    /// In units of the format's block; plain formats also add `ragged` columns.
    blocks: usize,
    ragged: usize,
    parts: usize,
    fill: Fill,
    offset: usize,
    seed: u64,
}

impl Case {
    fn cols(&self, dtype: DType) -> usize {
        match dtype.block_len() {
            1 => 32 * (self.blocks - 1) + self.ragged,
            256 => 256 * (self.blocks / 4 + 1),
            n => n * self.blocks,
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    (1..70usize, 1..40usize, 1..12usize, 1..=32usize, 1..3usize, 0..5usize, 0..8usize, 1..u64::MAX).prop_map(
        |(rows, tokens, blocks, ragged, parts, fill, offset, seed)| {
            let fill = FILLS[fill];
            Case { rows, tokens, blocks, ragged, parts, fill, offset, seed }
        },
    )
}

/// Where the results of one way to do a product lie, with a gap behind each row that has to stay untouched.
struct Results {
    buffer: Buffer,
    stride: usize,
}

const GAP: f32 = -77.0;

impl Results {
    fn new(case: &Case) -> Results {
        let stride = case.rows + 3;
        Results { buffer: Buffer::new(case.tokens * stride, case.offset, GAP), stride }
    }

    fn output(&mut self, tokens: usize, add: bool) -> Output {
        Output { data: self.buffer.as_mut_ptr(), stride: self.stride, tokens, add }
    }
}

fn check(case: &Case, dtype: DType, precision: Precision) -> Result<(), String> {
    let random = &mut Random(case.seed);
    let Case { rows, tokens, parts, .. } = *case;
    let cols = case.cols(dtype);
    let stored = weights(dtype, parts * rows, cols, case.fill, random);
    let view = TensorView::new(Type::new(dtype, [parts, rows, cols]), &stored);
    let matrix = Matrix::pack(&view, &Pool::new(1)).map_err(|e| e.to_string())?;
    let x = inputs(tokens * cols, case.fill, random);
    let part = random.bits() as usize % parts;
    let mut dense = vec![0.0; rows * cols];
    let bytes = stored.len() / parts;
    dequantise(dtype, &stored[part * bytes..][..bytes], &mut dense).unwrap();
    for row in 0..rows {
        let mut read = vec![0.0; cols];
        matrix.row(part, row, &mut read);
        same_bits(&read, &dense[row * cols..][..cols]).map_err(|e| format!("row {row} as packed: {e}"))?;
    }

    let mut all: Option<Results> = None;
    for &isa in Isa::available() {
        let acts = matrix.activations(precision);
        // In one go, and in pieces.
        let cut = random.bits() as usize % tokens;
        let whole = prepare(isa, acts, &x, cols, 0, case.offset);
        let pieces = prepare(isa, acts, &x, cols, cut, 0);
        if case.fill != Fill::Bits {
            check_prepared(acts, &whole, &x, cols)?;
        }
        let mut scratch = Scratch::new();
        for (name, prepared, count, chunk, add) in [
            ("all at once", &whole, tokens, matrix.groups(), false),
            ("prepared in pieces, by group, added", &pieces, tokens, 1, true),
            ("fewer tokens", &whole, 1 + random.bits() as usize % tokens, 2, false),
            ("one token", &whole, 1, 5, false),
        ] {
            let mut results = Results::new(case);
            if add {
                // Adding to it changes no bits.
                results.buffer.data.fill(-0.0);
            }
            let operand =
                Operand { matrix: &matrix, part, precision, acts: prepared.floats().as_ptr().cast() };
            for start in (0..matrix.groups()).step_by(chunk) {
                let groups = start..(start + chunk).min(matrix.groups());
                let output = results.output(count, add);
                // SAFETY: activations and results have the sizes asked for.
                unsafe { multiply_with(isa, &operand, &output, groups, &mut scratch) };
            }
            for (i, row) in results.buffer.floats().chunks(results.stride).enumerate() {
                let from = if i < count { rows } else { 0 };
                let untouched = if add { 0.0 } else { GAP };
                if row.iter().skip(from).any(|x| *x != untouched) {
                    return Err(format!("{isa:?} {name}: wrote outside of its rows"));
                }
            }
            if let Some(all) = &all {
                for (a, b) in results
                    .buffer
                    .floats()
                    .chunks(results.stride)
                    .take(count)
                    .zip(all.buffer.floats().chunks(all.stride))
                {
                    same_bits(&a[..rows.min(a.len())], b)
                        .map_err(|e| format!("{isa:?} {name} differs: {e}"))?;
                }
            } else {
                check_products(case, &dense, &whole, acts, &results, cols)?;
                all = Some(results);
            }
        }
    }
    Ok(())
}

/// Codes are the nearest, and small enough for the kernels' sums.
fn check_prepared(acts: Activations, buffer: &Buffer, x: &[f32], cols: usize) -> Result<(), String> {
    for (i, ((value, a), x)) in prepared(acts, buffer, x.len() / cols, cols).into_iter().zip(x).enumerate() {
        let x = f64::from(*x);
        let limit = if acts == Activations::I8 { 127.0 } else { 32767.0 };
        let near = match acts {
            Activations::F32 => value == x,
            _ if a == 0.0 => x.abs() < 1e-30,
            _ => (value - x).abs() <= a * (0.5 + 1e-3 + limit * 1e-7) && value.abs() <= a * limit,
        };
        if !near {
            return Err(format!("activation {i}: {x:e} prepared as {value:e}, scale {a:e}"));
        }
    }
    Ok(())
}

/// Against Σ w · x in f64. The bound: every product and partial sum has an error of 2⁻²⁴ of its magnitude; codes and their
/// centre may cancel, so that magnitude is up to a few times that of the weights' block.
fn check_products(
    case: &Case,
    dense: &[f32],
    acts: &Buffer,
    form: Activations,
    results: &Results,
    cols: usize,
) -> Result<(), String> {
    if case.fill == Fill::Bits {
        return Ok(());
    }
    let x = prepared(form, acts, case.tokens, cols);
    for token in 0..case.tokens {
        for row in 0..case.rows {
            let x = &x[token * cols..][..cols];
            let w = &dense[row * cols..][..cols];
            let (mut exact, mut magnitude) = (0.0, 0.0);
            for (w, x) in w.chunks(BLOCK).zip(x.chunks(BLOCK)) {
                let largest = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                for (w, (x, _)) in w.iter().zip(x) {
                    exact += f64::from(*w) * x;
                    let scale = if form == Activations::F32 { w.abs() } else { 40.0 * largest };
                    magnitude += f64::from(scale) * x.abs();
                }
            }
            let got = f64::from(results.buffer.floats()[token * results.stride + row]);
            let bound = magnitude * (cols as f64 + 8.0) * 2f64.powi(-24) + 1e-44 * cols as f64;
            if (got - exact).abs() > bound || got.is_nan() {
                return Err(format!("token {token} row {row}: {got:e}, not {exact:e} within {bound:e}"));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn products_are_their_definition_in_every_way_to_do_them(case in cases()) {
        for dtype in FORMATS {
            for precision in [Precision::Reference, Precision::Fast] {
                if let Err(message) = check(&case, dtype, precision) {
                    panic!("{dtype} {precision:?}: {message}");
                }
            }
        }
    }

    #[test]
    fn gated_products_are_those_of_two(case in cases(), gelu in any::<bool>(), formats in (0..11usize, 0..11usize)) {
        let case = Case { fill: Fill::Ordinary, ..case };
        let act = if gelu { Activation::GeluTanh } else { Activation::Silu };
        for precision in [Precision::Reference, Precision::Fast] {
            if let Err(message) = check_gated(&case, act, [FORMATS[formats.0], FORMATS[formats.1]], precision) {
                panic!("{precision:?}: {message}");
            }
        }
    }
}

fn check_gated(
    case: &Case,
    act: Activation,
    formats: [DType; 2],
    precision: Precision,
) -> Result<(), String> {
    let random = &mut Random(case.seed);
    let Case { rows, tokens, .. } = *case;
    let cols = 256;
    let pool = Pool::new(1);
    let [gate, up] = formats.map(|dtype| {
        let stored = weights(dtype, rows, cols, case.fill, random);
        Matrix::pack(&TensorView::new(Type::new(dtype, [rows, cols]), &stored), &pool).unwrap()
    });
    let x = inputs(tokens * cols, case.fill, random);
    let mut all: Option<Results> = None;
    for &isa in Isa::available() {
        let mut scratch = Scratch::new();
        let acts = [&gate, &up].map(|m| prepare(isa, m.activations(precision), &x, cols, 0, 0));
        let operands = [(&gate, &acts[0]), (&up, &acts[1])].map(|(matrix, acts)| Operand {
            matrix,
            part: 0,
            precision,
            acts: acts.floats().as_ptr().cast(),
        });
        let groups = 0..gate.groups();
        let mut sides = [Results::new(case), Results::new(case)];
        for (operand, side) in operands.iter().zip(&mut sides) {
            let output = side.output(tokens, false);
            // SAFETY: activations and results have the sizes asked for.
            unsafe { multiply_with(isa, operand, &output, groups.clone(), &mut scratch) };
        }
        let mut fused = Results::new(case);
        let output = fused.output(tokens, false);
        // SAFETY: as above.
        unsafe {
            multiply_gated_with(isa, &operands[0], &operands[1], act, &output, groups, &mut scratch);
        }
        for token in 0..tokens {
            for row in 0..rows {
                let at = token * fused.stride + row;
                let [g, u] = [0, 1].map(|i| f64::from(sides[i].buffer.floats()[at]));
                // GELU's ½ (1 + tanh y) is σ(2y), which in f64 too keeps its digits where tanh is near -1.
                let y = match act {
                    Activation::Silu => g,
                    Activation::GeluTanh => (8.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g * g * g),
                };
                let (exact, got) = (g / (1.0 + (-y).exp()) * u, f64::from(fused.buffer.floats()[at]));
                // The exponent's argument has rounding errors of its own, which grow with it.
                let bound = exact.abs() * (3.0 + y.abs()) * 3e-7 + 1e-30;
                if (got - exact).abs() > bound {
                    return Err(format!("{isa:?} token {token} row {row}: {got:e}, not {exact:e}"));
                }
            }
        }
        if let Some(all) = &all {
            same_bits(fused.buffer.floats(), all.buffer.floats())?;
        } else {
            all = Some(fused);
        }
    }
    Ok(())
}

#[test]
fn many_tokens_and_long_rows_cross_blocks_of_both() {
    let case = Case {
        rows: 13,
        tokens: 140,
        blocks: 40,
        ragged: 5,
        parts: 1,
        fill: Fill::Ordinary,
        offset: 0,
        seed: 0x5eed,
    };
    for dtype in FORMATS {
        for precision in [Precision::Reference, Precision::Fast] {
            check(&case, dtype, precision).unwrap_or_else(|e| panic!("{dtype} {precision:?}: {e}"));
        }
    }
}

#[test]
fn rows_come_in_logical_order_from_several_stored_parts() {
    let (rows, cols) = (24, 64);
    let random = &mut Random(7);
    let stored: Vec<Vec<u8>> =
        (0..3).map(|_| weights(DType::Q8_0, rows, cols, Fill::Ordinary, random)).collect();
    let view = TensorView {
        ty: Type::new(DType::Q8_0, [3, rows, cols]),
        parts: stored.iter().map(Vec::as_slice).collect(),
        order: RowOrder::RopeInterleaved { heads: 3 },
        offset: 0.0,
    };
    let matrix = Matrix::pack(&view, &Pool::new(2)).unwrap();
    assert_eq!((matrix.parts(), matrix.rows(), matrix.cols(), matrix.groups()), (3, rows, cols, 3));
    for part in 0..3 {
        for row in 0..rows {
            let (mut want, mut got) = (vec![0.0; cols], vec![0.0; cols]);
            dequantise(DType::Q8_0, view.row(part * rows + row), &mut want).unwrap();
            matrix.row(part, row, &mut got);
            assert_eq!(want, got, "part {part} row {row}");
        }
    }
}

#[test]
fn what_is_no_matrix_is_refused() {
    let pool = Pool::new(1);
    let pack = |ty: Type, bytes: &[u8]| Matrix::pack(&TensorView::new(ty, bytes), &pool).unwrap_err();
    assert!(matches!(pack(Type::new(DType::I32, [1, 1]), &[0; 4]), PackError::DType(DType::I32)));
    for shape in [vec![4], vec![1, 1, 1, 4], vec![0, 4], vec![4, 0], vec![]] {
        let error = pack(Type::new(DType::F32, shape), &[0; 16]);
        assert!(matches!(error, PackError::Shape(_)), "{error}");
    }
    assert!(matches!(pack(Type::new(DType::Q4_1, [2, 16]), &[0; 20]), PackError::Shape(_)));
    assert!(matches!(pack(Type::new(DType::F32, [2, 2]), &[0; 12]), PackError::Length { .. }));
    // Numbers that no memory holds are compared with the bytes there are before anything is allocated.
    assert!(matches!(pack(Type::new(DType::F32, [usize::MAX, 2]), &[0; 8]), PackError::Length { .. }));
    assert!(matches!(
        pack(Type::new(DType::F32, [usize::MAX, usize::MAX, 2]), &[0; 8]),
        PackError::Length { .. }
    ));
    let mut view = TensorView::new(Type::new(DType::F32, [1, 1]), &[0; 4]);
    view.offset = 1.0;
    assert!(matches!(Matrix::pack(&view, &pool), Err(PackError::Offset(_))));
    view.offset = 0.0;
    view.parts.clear();
    assert!(matches!(Matrix::pack(&view, &pool), Err(PackError::Length { .. })));
    let ragged = TensorView {
        order: RowOrder::RopeInterleaved { heads: 0 },
        ..TensorView::new(Type::new(DType::F32, [1, 1]), &[0; 4])
    };
    assert!(matches!(Matrix::pack(&ragged, &pool), Err(PackError::Length { .. })));
}
