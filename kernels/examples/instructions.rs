//! Work for `scripts/kernel-instructions` to count the instructions of: small products, and attention with the heads of
//! SmolLM2-135M, on one thread. A case is a function of its own, by whose name callgrind's profile gives its count.
//!
//! Counts say nothing of memory or of how instructions overlap; but they do not vary from run to run, so they show a
//! kernel that has begun to spill or to miss its fast path, on however busy a machine.

use std::hint::black_box;

use millrace_graph::{Attention, DType, TensorView, Type};
use millrace_kernels::Precision;
use millrace_kernels::attention::{AttentionCall, Rows, Schedule, Scratch as AttentionScratch};
use millrace_kernels::kv::{KvRole, KvTensor};
use millrace_kernels::matrix::{Matrix, Operand, Output, Scratch, multiply};
use millrace_kernels::pool::Pool;
use millrace_kernels::quantise::quantise;

/// Rows of the matrices.
const ROWS: usize = 96;
/// Columns: three super-blocks of the K formats.
const COLS: usize = 768;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const BLOCK: usize = 16;

/// Uniform in ±1 (xorshift).
fn random(count: usize, mut seed: u64) -> Vec<f32> {
    (0..count)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

struct Product {
    matrix: Matrix,
    acts: Vec<f32>,
    out: Vec<f32>,
    tokens: usize,
    scratch: Scratch,
}

impl Product {
    fn new(dtype: DType, tokens: usize) -> Product {
        let mut stored = vec![0; dtype.bytes(ROWS * COLS).expect("whole blocks")];
        quantise(dtype, &random(ROWS * COLS, 7), &mut stored).expect("finite values");
        let view = TensorView::new(Type::new(dtype, [ROWS, COLS]), &stored);
        let matrix = Matrix::pack(&view, &Pool::new(1)).expect("a matrix");
        let form = matrix.activations(Precision::Fast);
        let mut acts = vec![0.0; form.bytes(tokens, COLS).div_ceil(4)];
        let x = random(tokens * COLS, 8);
        // SAFETY: `x` has these rows, and `acts` the bytes asked for.
        unsafe { form.prepare(x.as_ptr(), COLS, COLS, 0..tokens, acts.as_mut_ptr().cast()) };
        Product { matrix, acts, out: vec![0.0; tokens * ROWS], tokens, scratch: Scratch::new() }
    }

    fn run(&mut self) {
        let acts = self.acts.as_ptr().cast();
        let operand = Operand { matrix: &self.matrix, part: 0, precision: Precision::Fast, acts };
        let output = Output { data: self.out.as_mut_ptr(), stride: ROWS, tokens: self.tokens, add: false };
        // SAFETY: the activations are prepared in the matrix's form; `out` has a row for each token.
        unsafe { multiply(&operand, &output, 0..self.matrix.groups(), &mut self.scratch) };
        black_box(&self.out);
    }
}

/// The last `width` tokens of one sequence of `length`, one layer.
fn attention(length: usize, width: usize) -> impl FnMut() {
    let blocks = length.div_ceil(BLOCK);
    let cache = Type::new(DType::F16, [blocks, BLOCK, KV_HEADS, DIM]);
    let slots: Vec<i32> = (0..(blocks * BLOCK) as i32).collect();
    let [keys, values] = [KvRole::Key, KvRole::Value].map(|role| {
        let tensor = KvTensor::new(&cache, role).expect("memory");
        let rows = random(slots.len() * KV_HEADS * DIM, 9);
        // SAFETY: a row for every slot of the cache.
        unsafe { tensor.write(rows.as_ptr(), KV_HEADS * DIM, &slots, 0..slots.len()) };
        tensor
    });
    let (q, mut out) = (random(width * HEADS * DIM, 10), vec![0.0; width * HEADS * DIM]);
    let tables: Vec<i32> = (0..blocks as i32).collect();
    let positions: Vec<i32> = (length - width..length).map(|position| position as i32).collect();
    let mut schedule = Schedule::new(HEADS, &cache, width, 1);
    let mut scratch = AttentionScratch::new(HEADS, &cache);
    move || {
        let call = AttentionCall {
            q: q.as_ptr(),
            q_stride: HEADS * DIM,
            heads: HEADS,
            k: &keys,
            v: &values,
            tables: &tables,
            table_stride: blocks,
            positions: &positions,
            rows: Rows::Width(width),
            params: Attention { scale: 0.125, window: None, softcap: None, width: Some(width) },
            out: out.as_mut_ptr(),
            out_stride: HEADS * DIM,
        };
        schedule.plan(&call);
        for item in 0..schedule.items() {
            // SAFETY: planned for this call; the table names blocks of the caches for all positions, and queries and
            // results are there for all tokens.
            unsafe { call.run(&schedule, item, &mut scratch) };
        }
        black_box(&out);
    }
}

macro_rules! cases {
    ($($name:ident: $work:expr;)*) => {
        $(
            mod $name {
                #[inline(never)]
                pub(super) fn counted(mut work: impl FnMut()) {
                    work();
                    // What differs from case to case keeps the compiler from making them one function.
                    std::hint::black_box(stringify!($name));
                }
            }
        )*

        fn main() {
            $($name::counted($work);)*
        }
    };
}

fn product(dtype: DType, tokens: usize) -> impl FnMut() {
    let mut product = Product::new(dtype, tokens);
    move || product.run()
}

cases! {
    q4_1_by_1: product(DType::Q4_1, 1);
    q4_1_by_4: product(DType::Q4_1, 4);
    q4_1_by_16: product(DType::Q4_1, 16);
    q4k_by_1: product(DType::Q4K, 1);
    q4k_by_16: product(DType::Q4K, 16);
    q6k_by_1: product(DType::Q6K, 1);
    q6k_by_16: product(DType::Q6K, 16);
    q8_0_by_1: product(DType::Q8_0, 1);
    q8_0_by_16: product(DType::Q8_0, 16);
    bf16_by_1: product(DType::BF16, 1);
    bf16_by_16: product(DType::BF16, 16);
    attention_of_1_to_512: attention(512, 1);
    attention_of_64_to_256: attention(256, 64);
}
