//! One step of the CPU backend on SmolLM2-135M-Instruct (Q4_1), end to end: decodes of 1, 4 and 16 sequences at
//! a context of 128, and a prompt chunk of 512 tokens. Throughput is in tokens. The model is what
//! `scripts/fetch-model` fetches; before anything is timed, its greedy answer to a known prompt is checked.
#![allow(clippy::print_stderr, reason = "a bench that skips says so")]

#[path = "../tests/support/cached.rs"]
mod cached;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millrace_engine::cpu::{CpuOptions, CpuRunner};
use millrace_engine::{BlockId, Logits, Row, Runner, SeqId, Step, Want};
use millrace_graph::DType;
use millrace_kernels::Precision;
use millrace_models::Checkpoint;

const BLOCK: usize = 16;
const SEQUENCES: usize = 16;
const CONTEXT: usize = 512;

/// `count` tokens from `position` on for each of `rows` sequences.
fn step(rows: usize, position: usize, count: usize, tokens: impl Fn(usize) -> u32) -> Step {
    let mut step = Step::default();
    let held = (position + count).div_ceil(BLOCK);
    for row in 0..rows {
        step.rows.push(Row {
            seq: SeqId(row as u64),
            first: step.tokens.len() as u32,
            count: count as u32,
            position: position as u32,
            first_block: step.blocks.len() as u32,
            blocks: held as u32,
            want: Want::Last,
        });
        step.tokens.extend((position..position + count).map(&tokens));
        let first = row * CONTEXT / BLOCK;
        step.blocks.extend((first..first + held).map(|block| BlockId(block as u32)));
    }
    step
}

fn run(runner: &mut CpuRunner, step: &Step, logits: &mut Logits) {
    runner.submit(step).expect("the step is well-formed");
    runner.wait(logits).expect("the step runs");
}

/// "The capital of France is" goes on with " Paris".
fn check(runner: &mut CpuRunner) {
    let (prompt, paris) = ([504, 3575, 282, 4649, 314], 7042);
    let mut logits = Logits::default();
    run(runner, &step(1, 0, prompt.len(), |i| prompt[i]), &mut logits);
    let best = (0..logits.columns).max_by(|a, b| logits.row(0)[*a].total_cmp(&logits.row(0)[*b]));
    assert_eq!(best, Some(paris), "the model's answer is not what it should be");
}

fn bench(criterion: &mut Criterion) {
    let Some(path) = cached::smollm2() else {
        eprintln!("skipped: no SmolLM2 (scripts/fetch-model fetches it)");
        return;
    };
    let checkpoint = Checkpoint::open(&path).expect("the model opens");
    let options = CpuOptions {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        precision: Precision::Fast,
        kv_dtype: DType::F16,
        block_size: BLOCK,
        kv_bytes: 1 << 30,
        weight_dtype: None,
        max_model_len: CONTEXT,
        max_num_seqs: SEQUENCES,
        max_num_batched_tokens: CONTEXT,
        packed_cache: None,
    };
    let mut runner = CpuRunner::load(&checkpoint, &options, &mut |_, _| {}).expect("the model loads");
    check(&mut runner);
    let mut logits = Logits::default();
    let any_token = |i: usize| 1000 + (i as u32 * 7919) % 40_000;

    let mut group = criterion.benchmark_group("decode at context 128");
    for rows in [1, 4, SEQUENCES] {
        for row in 0..rows {
            let mut prompt = step(row + 1, 0, 128, any_token);
            // One sequence at a time: the last of the rows alone.
            prompt.rows.drain(..row);
            prompt.rows[0].first = 0;
            prompt.tokens.truncate(128);
            run(&mut runner, &prompt, &mut logits);
        }
        group.throughput(Throughput::Elements(rows as u64));
        let decode = step(rows, 128, 1, any_token);
        group.bench_function(BenchmarkId::from_parameter(rows), |bencher| {
            bencher.iter(|| run(&mut runner, &decode, &mut logits));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("prompt chunk");
    group.sample_size(10).throughput(Throughput::Elements(CONTEXT as u64));
    let chunk = step(1, 0, CONTEXT, any_token);
    group.bench_function(BenchmarkId::from_parameter(CONTEXT), |bencher| {
        bencher.iter(|| run(&mut runner, &chunk, &mut logits));
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
