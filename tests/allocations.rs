//! Once a batch runs, an iteration allocates nothing: 100 decode steps of 16 sequences through the scheduler,
//! the CPU runner and the sampler, counted over all threads.

use std::alloc::System;
use std::path::Path;
use std::sync::Arc;

use millrace_engine::cpu::{CpuOptions, CpuRunner};
use millrace_engine::{
    Batching, Key, Limits, Logits, Place, Plan, Pool, Prompt, Runner, Sampler, SamplerState, SamplingParams,
    Scheduler, SeqId, Sequence,
};
use millrace_graph::DType;
use millrace_kernels::Precision;
use millrace_models::Checkpoint;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SEQUENCES: usize = 16;
const BLOCK: usize = 16;
/// Long enough for a prompt, a warm-up and the steps that are counted.
const MAX_LEN: usize = 1024;

#[test]
fn a_hundred_decode_steps_allocate_nothing() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/data/mixtral");
    let checkpoint = Checkpoint::open(&path).expect("the checkpoint opens");
    let max_model_len = checkpoint.config().context.min(MAX_LEN);
    let options = CpuOptions {
        threads: 2,
        precision: Precision::Fast,
        kv_dtype: DType::F16,
        block_size: BLOCK,
        kv_bytes: 1 << 26,
        weight_dtype: None,
        max_model_len,
        max_num_seqs: SEQUENCES,
        max_num_batched_tokens: 64,
        packed_cache: None,
    };
    // What the checkpoint's context has room for is less than the steps to be counted, so sequences are
    // replaced as they would be: several rounds, in each of which the steps between start and end count.
    let rounds = 100usize.div_ceil(max_model_len - 24);
    let mut runner = CpuRunner::load(&checkpoint, &options, &mut |_, _| {}).expect("the checkpoint loads");
    let params = Arc::new(SamplingParams {
        temperature: 0.8,
        top_k: Some(20),
        top_p: 0.9,
        presence_penalty: 0.1,
        max_tokens: MAX_LEN as u32,
        ..SamplingParams::default()
    });
    let mut logits = Logits::default();
    let mut counted = 0;
    for round in 0..=rounds {
        let mut scheduler = scheduler(runner.kv().blocks, max_model_len, round);
        let mut sampler = Sampler::new(runner.vocab());
        let mut states: Vec<SamplerState> =
            (0..SEQUENCES).map(|i| SamplerState::new(params.clone(), i as u64, 0, Arc::from([]))).collect();
        let mut plan = Plan::with_capacity(64, SEQUENCES, runner.kv().blocks);
        let mut steady = 0;
        loop {
            let region = Region::new(COUNTED);
            scheduler.plan(&mut plan);
            runner.submit(&plan.step).expect("the step is well-formed");
            runner.wait(&mut logits).expect("the step runs");
            let mut sampled = 0;
            for row in 0..plan.step.rows.len() {
                let done = scheduler.planned(row).missing() == plan.step.rows[row].count as usize;
                let token = done.then(|| {
                    let state = &mut states[plan.step.rows[row].seq.0 as usize];
                    let token = sampler.sample(logits.row_mut(sampled), state).expect("logits are finite").0;
                    state.accept(token);
                    sampled += 1;
                    token
                });
                scheduler.commit(&plan, row, token);
            }
            let change = region.change();
            let decodes = plan.step.tokens.len() == SEQUENCES && sampled == SEQUENCES;
            steady += usize::from(decodes);
            // The first round and the first steps of a batch size the buffers.
            if round > 0 && steady > 2 {
                assert_eq!(change.allocations + change.reallocations, 0, "in step {steady} of round {round}");
                counted += 1;
            }
            let longest = scheduler.running().map(Sequence::len).max().unwrap_or(0);
            if longest + 1 >= max_model_len {
                break;
            }
        }
    }
    assert!(counted >= 100, "{counted} steps were counted");
}

fn scheduler(blocks: usize, max_len: usize, round: usize) -> Scheduler {
    let limits = Limits {
        tokens: 64,
        rows: SEQUENCES,
        logits: 64,
        prefill_beside_decode: 64,
        batching: Batching::Continuous,
    };
    let mut scheduler = Scheduler::new(Pool::new(blocks, BLOCK), limits);
    for at in 0..SEQUENCES {
        let tokens = (0..8u32).map(|i| (i * 5 + at as u32 + round as u32) % 48).collect();
        let prompt = Arc::new(Prompt::new(tokens, Key::shared(None), BLOCK));
        let place = Place { priority: 0, seq: SeqId(at as u64) };
        scheduler.add(Sequence::new(place, prompt, max_len, false));
    }
    scheduler
}
