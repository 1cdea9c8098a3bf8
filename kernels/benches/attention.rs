//! Paged attention of a whole step: 30 layers with 9 query heads, 3 KV heads and head dimension 64
//! (SmolLM2-135M), an f16 cache in blocks of 16 tokens scattered over it, on one processor and on all. Planning is
//! part of the step.
//!
//! Decode: one new token of 1 or 16 sequences at some depth, unrelated or with all but 64 tokens in common.
//! Prefill: a chunk of one prompt. Data are random and fixed by a seed; each case is compared with the formula
//! before it is timed. Printed beside: cache bytes per second, counting a shared block once, and multiply-adds
//! per second, each with its share of what the machine was measured to do; what stays in a processor's own caches
//! may exceed the memory's share.

#[path = "../examples/machine/peaks.rs"]
mod peaks;

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput};
use millrace_graph::{Attention, DType, Type};
use millrace_kernels::{
    attention::{AttentionCall, Rows, Schedule, Scratch},
    kv::{KvRole, KvTensor},
    pool::Pool,
};

const LAYERS: usize = 30;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const BLOCK: usize = 16;
/// Tokens that sequences with a common prefix do not share.
const OWN: usize = 64;

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    sequences: usize,
    /// New tokens of each.
    width: usize,
    /// Tokens before them.
    depth: usize,
    shared: bool,
}

const fn decode(name: &'static str, sequences: usize, depth: usize, shared: bool) -> Case {
    Case { name, sequences, width: 1, depth, shared }
}

const CASES: [Case; 11] = [
    decode("decode 1 at 128", 1, 128, false),
    decode("decode 1 at 512", 1, 512, false),
    decode("decode 1 at 2048", 1, 2048, false),
    decode("decode 16 at 128", 16, 128, false),
    decode("decode 16 at 512", 16, 512, false),
    decode("decode 16 at 2048", 16, 2048, false),
    decode("decode 16 at 128, shared prefix", 16, 128, true),
    decode("decode 16 at 512, shared prefix", 16, 512, true),
    decode("decode 16 at 2048, shared prefix", 16, 2048, true),
    Case { name: "prefill 512 at 0", sequences: 1, width: 512, depth: 0, shared: false },
    Case { name: "prefill 128 at 2048", sequences: 1, width: 128, depth: 2048, shared: false },
];

/// Uniform in ±1 (xorshift).
fn random(count: usize, seed: &mut u64) -> Vec<f32> {
    (0..count)
        .map(|_| {
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            (*seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

struct Setup {
    layers: Vec<(KvTensor, KvTensor)>,
    q: Vec<f32>,
    out: Vec<f32>,
    tables: Vec<i32>,
    positions: Vec<i32>,
    width: usize,
    blocks: usize,
    schedule: Schedule,
    scratches: Vec<Mutex<Scratch>>,
}

impl Setup {
    fn new(case: &Case, workers: usize) -> Self {
        let mut seed = 0x5eed;
        let stride = (case.depth + case.width).div_ceil(BLOCK);
        let common = if case.shared { case.depth.saturating_sub(OWN) / BLOCK } else { 0 };
        let blocks = common + case.sequences * (stride - common);
        // A permutation, so that neighbours in a sequence are none in memory; 7919 divides no case's count.
        let mut place = (0..blocks).map(|i| (i * 7919 % blocks) as i32);
        let mut tables: Vec<i32> = place.by_ref().take(common).collect();
        for _ in 0..case.sequences {
            let start = tables.len() / stride.max(1) * stride;
            if start > 0 {
                tables.extend_from_within(..common);
            }
            tables.extend(place.by_ref().take(stride - common));
        }
        let cache = Type::new(DType::F16, [blocks, BLOCK, KV_HEADS, DIM]);
        let slots: Vec<i32> = (0..(blocks * BLOCK) as i32).collect();
        let layer = |role| {
            let tensor = KvTensor::new(&cache, role).expect("memory");
            let row = KV_HEADS * DIM;
            let values = random(slots.len() * row, &mut seed);
            // SAFETY: a row for every slot of the cache.
            unsafe { tensor.write(values.as_ptr(), row, &slots, 0..slots.len()) };
            tensor
        };
        let layers: Vec<_> = [KvRole::Key, KvRole::Value].repeat(LAYERS).into_iter().map(layer).collect();
        let mut tensors = layers.into_iter();
        let layers = std::iter::from_fn(|| tensors.next().zip(tensors.next())).collect();
        let tokens = case.sequences * case.width;
        Setup {
            layers,
            q: random(tokens * HEADS * DIM, &mut seed),
            out: vec![0.0; tokens * HEADS * DIM],
            tables,
            positions: (0..tokens).map(|t| (case.depth + t % case.width) as i32).collect(),
            width: case.width,
            blocks,
            schedule: Schedule::new(HEADS, &cache, tokens, workers),
            scratches: (0..workers).map(|_| Mutex::new(Scratch::new(HEADS, &cache))).collect(),
        }
    }

    /// All layers, over the same queries.
    fn step(&mut self, pool: &Pool) {
        let out = self.out.as_mut_ptr();
        let calls: Vec<_> = self
            .layers
            .iter()
            .map(|(k, v)| AttentionCall {
                q: self.q.as_ptr(),
                q_stride: HEADS * DIM,
                heads: HEADS,
                k,
                v,
                tables: &self.tables,
                table_stride: self.tables.len() * self.width / self.positions.len(),
                positions: &self.positions,
                rows: Rows::Width(self.width),
                params: Attention { scale: 0.125, window: None, softcap: None, width: Some(self.width) },
                out,
                out_stride: HEADS * DIM,
            })
            .collect();
        self.schedule.plan(&calls[0]);
        let schedule = &self.schedule;
        pool.run(&|worker| {
            let mut scratch = self.scratches[worker.index()].try_lock().expect("one worker each");
            for call in &calls {
                worker.for_chunks(schedule.items(), 1, |items| {
                    for item in items {
                        // SAFETY: planned for these calls; tables and buffers are as they must be, and a barrier
                        // ends each layer.
                        unsafe { call.run(schedule, item, &mut scratch) };
                    }
                });
            }
        });
    }

    /// Compares some results of the last layer with the formula.
    fn check(&self) {
        let (k, v) = self.layers.last().expect("layers");
        let stride = self.tables.len() * self.width / self.positions.len();
        for t in (0..self.positions.len()).step_by(self.positions.len().div_ceil(5)) {
            let end = self.positions[t] as usize + 1;
            let head = t % HEADS;
            let at = head * KV_HEADS / HEADS * DIM;
            let (mut weights, mut sums) = (0.0, [0.0; DIM]);
            let (mut key, mut value) = (vec![0.0; KV_HEADS * DIM], vec![0.0; KV_HEADS * DIM]);
            for position in 0..end {
                let block = self.tables[t / self.width * stride + position / BLOCK] as usize;
                k.read(block * BLOCK + position % BLOCK, &mut key);
                v.read(block * BLOCK + position % BLOCK, &mut value);
                let q = &self.q[(t * HEADS + head) * DIM..][..DIM];
                let dot: f64 = q.iter().zip(&key[at..]).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                let weight = (dot * 0.125).exp();
                weights += weight;
                for (sum, value) in sums.iter_mut().zip(&value[at..]) {
                    *sum += weight * f64::from(*value);
                }
            }
            for (out, sum) in self.out[(t * HEADS + head) * DIM..].iter().zip(sums) {
                assert!(
                    (f64::from(*out) - sum / weights).abs() < 1e-5,
                    "token {t}: {out}, not {}",
                    sum / weights
                );
            }
        }
    }
}

fn main() {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .without_plots()
        .configure_from_args();
    for workers in [1, all] {
        let pool = Pool::new(workers);
        pool.pin_caller();
        let peaks = peaks::Peaks::measure(&pool);
        let mut group = criterion.benchmark_group(format!("attention, {workers} workers"));
        for case in CASES {
            group.throughput(Throughput::Elements((case.sequences * case.width) as u64));
            let (mut setup, mut best) = (None, Duration::MAX);
            group.bench_function(case.name, |b| {
                let setup = setup.get_or_insert_with(|| {
                    let mut setup = Setup::new(&case, workers);
                    setup.step(&pool);
                    setup.check();
                    setup
                });
                b.iter_custom(|iterations| {
                    let start = Instant::now();
                    (0..iterations).for_each(|_| setup.step(&pool));
                    best = best.min(start.elapsed() / iterations as u32);
                    start.elapsed()
                });
            });
            let Some(setup) = setup else { continue };
            let bytes = LAYERS * setup.blocks * BLOCK * KV_HEADS * DIM * 2 * 2;
            let pairs: usize = setup.positions.iter().map(|position| *position as usize + 1).sum();
            let rate = |count: usize| count as f64 / best.as_secs_f64() / 1e9;
            let (bytes, macs) = (rate(bytes), rate(LAYERS * pairs * HEADS * DIM * 2));
            println!(
                "{:24} {:.3} ms at best, {bytes:.1} GB/s of cache ({:.0} % of {:.1}), {macs:.1} GMAC/s ({:.0} % of {:.0})",
                "",
                best.as_secs_f64() * 1e3,
                100.0 * bytes / peaks.read,
                peaks.read,
                100.0 * macs / peaks.f32,
                peaks.f32
            );
        }
        group.finish();
    }
    criterion.final_summary();
}
