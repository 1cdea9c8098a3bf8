//! What an iteration costs the host, with 256 sequences that decode and a queue of up to 10⁴ behind them: the
//! scheduler alone, and the whole engine around a backend that takes no time. Neither may grow with the queue.

use std::hint::black_box;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use millrace_engine::*;

const RUNNING: usize = 256;
const BLOCK: usize = 16;
const VOCAB: usize = 64;

fn scheduler(queued: usize) -> (Scheduler, Plan) {
    let limits = Limits {
        tokens: 2048,
        rows: RUNNING,
        logits: 2048,
        prefill_beside_decode: 256,
        batching: Batching::Continuous,
    };
    let mut scheduler = Scheduler::new(Pool::new(100_000, BLOCK), limits);
    for at in 0..(RUNNING + queued) as u64 {
        let tokens = (0..200).map(|i| (i * (at as u32 + 1)) % 1000).collect();
        let prompt = Arc::new(Prompt::new(tokens, Key::shared(None), BLOCK));
        scheduler.add(Sequence::new(Place { priority: 0, seq: SeqId(at) }, prompt, 100_000, false));
    }
    let mut plan = Plan::default();
    while plan.step.tokens.len() != RUNNING {
        step(&mut scheduler, &mut plan);
    }
    assert_eq!(scheduler.waiting(), queued);
    (scheduler, plan)
}

fn step(scheduler: &mut Scheduler, plan: &mut Plan) {
    scheduler.plan(plan);
    for row in 0..plan.step.rows.len() {
        let completes = scheduler.planned(row).missing() == plan.step.rows[row].count as usize;
        scheduler.commit(plan, row, completes.then_some(1));
    }
}

fn bench_scheduler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan and commit, 256 decodes");
    for queued in [0, 100, 10_000] {
        // Sequences grow while they are measured; a fresh start keeps their lengths alike.
        group.bench_function(BenchmarkId::new("queued", queued), |bencher| {
            bencher.iter_batched_ref(
                || scheduler(queued),
                |(scheduler, plan)| (0..100).for_each(|_| step(scheduler, black_box(plan))),
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Takes no time.
struct Free(usize);

impl Runner for Free {
    fn kv(&self) -> KvSpec {
        KvSpec { block_size: BLOCK, blocks: 100_000, bytes: 0 }
    }

    fn limits(&self) -> StepLimits {
        StepLimits { tokens: 2048, rows: RUNNING, logits: 2048 }
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn submit(&mut self, step: &Step) -> Result<(), RunError> {
        self.0 = step.logit_rows();
        Ok(())
    }

    fn wait(&mut self, logits: &mut Logits) -> Result<(), RunError> {
        (logits.cut, logits.columns) = (None, VOCAB);
        logits.values.resize(self.0 * VOCAB, 0.0);
        Ok(())
    }
}

/// Sends on what each iteration cost, once the batch is full and the queue is as long as it is to be.
struct Costs {
    sender: mpsc::Sender<f64>,
    queued: usize,
}

impl Observer for Costs {
    fn step(&mut self, stats: &StepStats<'_>) {
        if stats.generation_tokens == RUNNING && stats.waiting == self.queued {
            // Nobody listens when the measurement is over.
            let _ = self.sender.send(stats.host_seconds);
        }
    }

    fn request(&mut self, _: &RequestStats) {}
}

/// Iterations of one engine. More would be a test of how fast the channels grow that nobody reads.
const ROUND: usize = 1000;

/// What `iterations` cost, at most a round of them.
fn run_engine(queued: usize, iterations: usize) -> f64 {
    let config = EngineConfig {
        max_num_seqs: RUNNING,
        max_model_len: 10 * ROUND,
        max_queued_requests: 20_000,
        ..EngineConfig::default()
    };
    let (sender, costs) = mpsc::channel();
    let (handle, thread) =
        start(Box::new(Free(0)), config, Box::new(Costs { sender, queued })).expect("it starts");
    let params = SamplingParams { temperature: 0.0, max_tokens: u32::MAX, ..SamplingParams::default() };
    let submit = |at| {
        let prompt = vec![at as u32 % VOCAB as u32; 20];
        handle
            .submit(Request { prompt, params: params.clone(), n: 1, ..Request::default() })
            .expect("accepted")
    };
    let receivers: Vec<_> = (0..queued + RUNNING).flat_map(submit).collect();
    let seconds = costs.iter().skip(10).take(iterations).sum();
    handle.shutdown();
    thread.join().expect("no panic").expect("no error");
    drop(receivers);
    seconds
}

fn bench_engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("iteration of the engine, 256 decodes");
    for queued in [0, 100, 10_000] {
        group.bench_function(BenchmarkId::new("queued", queued), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut left = iterations as usize;
                let mut seconds = 0.0;
                while left > 0 {
                    let round = left.min(ROUND);
                    seconds += run_engine(queued, round);
                    left -= round;
                }
                Duration::from_secs_f64(seconds)
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = bench_scheduler, bench_engine
}
criterion_main!(benches);
