//! Products of packed matrices, in the shapes of SmolLM2-135M's layers and head: multiply-adds per second, by
//! format and number of tokens, on all processors. Printed beside, of the best sample: multiply-adds and bytes of
//! weights a second, each with its share of what the machine was measured to do at the start. For one token the
//! bytes matter, since reading weights is all the time there is; for many the multiply-adds.
//!
//! Data are random and fixed by a seed; matrices of one layer are repeated until they exceed the caches, as a
//! model's do. Each product is compared with its definition before it is timed.

#[path = "../examples/machine/peaks.rs"]
mod peaks;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use millrace_graph::{DType, TensorView, Type};
use millrace_kernels::dequant::dequantise;
use millrace_kernels::matrix::{Activations, Matrix, Operand, Output, Precision, Scratch, multiply};
use millrace_kernels::pool::Pool;
use millrace_kernels::quantise::quantise;
use peaks::Peaks;

/// Rows and columns: attention's output, gate and up, down, head.
const SHAPES: [(usize, usize); 4] = [(576, 576), (3072, 576), (576, 1536), (49152, 576)];
const FORMATS: [DType; 3] = [DType::Q4_1, DType::Q8_0, DType::BF16];
const TOKENS: [usize; 3] = [1, 16, 512];
/// More than the last-level cache holds.
const WORKING_SET: usize = 96 << 20;
/// Groups handed out at a time.
const CHUNK: usize = 6;

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

struct Case {
    matrices: Vec<Matrix>,
    x: Vec<f32>,
    acts: Vec<f32>,
    out: Vec<f32>,
    tokens: usize,
}

/// Pointers that the workers of one run write through, each to places of its own.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: see above: `multiply` and `prepare` say which places a call writes, and calls get different ones.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

impl Case {
    fn new(pool: &Pool, dtype: DType, (rows, cols): (usize, usize), tokens: usize, seed: u64) -> Case {
        let values = random(rows * cols, seed);
        let mut stored = vec![0; dtype.bytes(rows * cols).expect("whole blocks")];
        quantise(dtype, &values, &mut stored).expect("finite values");
        let view = TensorView::new(Type::new(dtype, [rows, cols]), &stored);
        let copies = WORKING_SET.div_ceil(stored.len());
        let matrices: Vec<_> = (0..copies).map(|_| Matrix::pack(&view, pool).expect("a matrix")).collect();
        let acts = matrices[0].activations(Precision::Fast).bytes(tokens, cols);
        let mut case = Case {
            matrices,
            x: random(tokens * cols, seed + 1),
            acts: vec![0.0; acts.div_ceil(4)],
            out: vec![0.0; tokens * rows],
            tokens,
        };
        case.step(pool, 0, &scratches(pool));
        case.check(dtype, &stored, rows, cols);
        case
    }

    /// Prepares the activations and multiplies them with one matrix: what a layer does.
    fn step(&mut self, pool: &Pool, index: usize, scratches: &[std::sync::Mutex<Scratch>]) {
        let (tokens, x) = (self.tokens, &self.x);
        let matrix = &self.matrices[index % self.matrices.len()];
        let form = matrix.activations(Precision::Fast);
        let acts: Shared<u8> = Shared(self.acts.as_mut_ptr().cast());
        let out = Shared(self.out.as_mut_ptr());
        pool.run(&|worker| {
            let mut scratch = scratches[worker.index()].try_lock().expect("one worker each");
            worker.for_chunks(tokens, 4 * form.tile(), |range| {
                // SAFETY: `acts` has the bytes asked for, `x` these rows, and ranges are disjoint.
                unsafe { form.prepare(x.as_ptr(), matrix.cols(), matrix.cols(), range, acts.get()) }
            });
            let operand = Operand { matrix, part: 0, precision: Precision::Fast, acts: acts.get() };
            let output = Output { data: out.get(), stride: matrix.rows(), tokens, add: false };
            worker.for_chunks(matrix.groups(), CHUNK, |groups| {
                // SAFETY: `out` has these rows of all tokens, and ranges are disjoint.
                unsafe { multiply(&operand, &output, groups, &mut scratch) }
            });
        });
    }

    fn check(&self, dtype: DType, stored: &[u8], rows: usize, cols: usize) {
        let mut row = vec![0.0; cols];
        let bytes = stored.len() / rows;
        let (mut error, mut total) = (0.0, 0.0);
        for r in (0..rows).step_by(37) {
            dequantise(dtype, &stored[r * bytes..][..bytes], &mut row).expect("a row");
            for t in (0..self.tokens).step_by(5) {
                let x = &self.x[t * cols..][..cols];
                let exact: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                error += (exact - f64::from(self.out[t * rows + r])).powi(2);
                total += exact * exact;
            }
        }
        let relative = (error / total).sqrt();
        let bound = if dtype == DType::Q4_1 { 2e-2 } else { 1e-4 };
        assert!(relative < bound, "{dtype} {rows}x{cols}: relative error {relative:e}");
    }
}

fn scratches(pool: &Pool) -> Vec<std::sync::Mutex<Scratch>> {
    (0..pool.threads()).map(|_| Default::default()).collect()
}

fn main() {
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from));
    pool.pin_caller();
    let scratches = scratches(&pool);
    let peaks = Peaks::measure(&pool);
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots()
        .configure_from_args();
    for dtype in FORMATS {
        for tokens in TOKENS {
            let mut group = criterion.benchmark_group(format!("matmul/{dtype}/{tokens}"));
            for (i, (rows, cols)) in SHAPES.into_iter().enumerate() {
                // The head is computed only for tokens that sample.
                if tokens == 512 && rows == 49152 {
                    continue;
                }
                group.throughput(Throughput::Elements((rows * cols * tokens) as u64));
                let (mut case, mut best) = (None, Duration::MAX);
                group.bench_function(BenchmarkId::from_parameter(format!("{rows}x{cols}")), |b| {
                    let case = case
                        .get_or_insert_with(|| Case::new(&pool, dtype, (rows, cols), tokens, 7 + i as u64));
                    let mut index = 0;
                    b.iter_custom(|iterations| {
                        let start = Instant::now();
                        for _ in 0..iterations {
                            case.step(&pool, index, &scratches);
                            index += 1;
                        }
                        black_box(&case.out);
                        best = best.min(start.elapsed() / iterations as u32);
                        start.elapsed()
                    });
                });
                let Some(case) = case else { continue };
                let arithmetic = match case.matrices[0].activations(Precision::Fast) {
                    Activations::F32 => peaks.f32,
                    Activations::I16 => peaks.i16,
                    Activations::I8 => peaks.i8,
                };
                let rate = |count: usize| count as f64 / best.as_secs_f64() / 1e9;
                let (macs, bytes) = (rate(rows * cols * tokens), rate(case.matrices[0].bytes()));
                println!(
                    "{:24} {macs:.1} GMAC/s ({:.0} % of {arithmetic:.0}), {bytes:.1} GB/s of weights ({:.0} % of {:.1})",
                    "",
                    100.0 * macs / arithmetic,
                    100.0 * bytes / peaks.read_model,
                    peaks.read_model
                );
            }
            group.finish();
        }
    }
    criterion.final_summary();
}
