//! The determinism that everything else rests on, with real models: the tokens and log-probabilities of a
//! request are the same, bit for bit, alone and in any batch, in any order of arrival, with any chunking,
//! preempted or not, with and without prefix hits, for any n, and while neighbours are cancelled.
#![allow(clippy::print_stderr, reason = "the figures show that the cases reach what they are about")]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use millrace_engine::cpu::{CpuOptions, CpuRunner};
use millrace_engine::{
    EngineConfig, Event, Handle, Observer, Request, RequestStats, SamplingParams, StepStats, start,
};
use millrace_graph::DType;
use millrace_kernels::Precision;
use millrace_models::Checkpoint;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const MAX_LEN: usize = 64;
const BLOCK: usize = 8;

/// Tokens with the bits of their log-probabilities.
type Answer = Vec<(u32, u32)>;

#[derive(Clone, Debug)]
struct Asked {
    prompt: Vec<u32>,
    max_tokens: u32,
    temperature: f32,
    seed: u64,
    n: u32,
    priority: i32,
    prompt_logprobs: bool,
    penalty: f32,
    /// Tokens after which the client goes away.
    leaves_after: Option<u32>,
}

#[derive(Clone, Debug)]
struct Case {
    asked: Vec<Asked>,
    blocks: usize,
    rows: usize,
    tokens: usize,
    beside_decode: usize,
    caching: bool,
    threads: usize,
    kv: DType,
}

fn asked(vocab: u32) -> impl Strategy<Value = Asked> {
    // Few different prefixes, so that requests share blocks.
    let prompt = (0..3u32, 0..40usize, prop::collection::vec(0..vocab, 1..12)).prop_map(
        move |(family, shared, own)| {
            let prefix = (0..shared as u32).map(|i| (i * 7 + family * 13) % vocab);
            prefix.chain(own).collect::<Vec<u32>>()
        },
    );
    let sampling = (prop::sample::select(vec![0.0f32, 0.0, 0.8, 1.5]), 0..1000u64, 1..4u32, -1..2i32);
    let extras =
        (any::<bool>(), prop::sample::select(vec![1.0f32, 1.2]), prop::option::weighted(0.2, 0..4u32));
    (prompt, 1..40u32, sampling, extras).prop_map(
        |(prompt, max_tokens, (temperature, seed, n, priority), (logprobs, penalty, leaves_after))| Asked {
            prompt,
            max_tokens,
            temperature,
            seed,
            n,
            priority,
            prompt_logprobs: logprobs && seed % 4 == 0,
            penalty,
            leaves_after,
        },
    )
}

fn case(vocab: u32, kv: DType) -> impl Strategy<Value = Case> {
    let batch = (prop::collection::vec(asked(vocab), 1..7), MAX_LEN / BLOCK..14, 2..9usize);
    (batch, 1..40usize, 1..40usize, any::<bool>(), 1..3usize).prop_map(
        move |((asked, blocks, rows), tokens, beside_decode, caching, threads)| Case {
            asked,
            blocks,
            rows,
            tokens: tokens.max(rows),
            beside_decode,
            caching,
            threads,
            kv,
        },
    )
}

#[derive(Default)]
struct Seen {
    preemptions: AtomicUsize,
    hits: AtomicUsize,
    rows: AtomicUsize,
    steps: AtomicUsize,
}

struct Watch(Arc<Seen>);

impl Observer for Watch {
    fn step(&mut self, stats: &StepStats<'_>) {
        self.0.preemptions.fetch_add(stats.preemptions, Ordering::Relaxed);
        self.0.hits.fetch_add(stats.prefix_hits, Ordering::Relaxed);
        self.0.rows.fetch_add(stats.rows, Ordering::Relaxed);
        self.0.steps.fetch_add(1, Ordering::Relaxed);
    }
    fn request(&mut self, _: &RequestStats) {}
}

fn engine(checkpoint: &Checkpoint, case: &Case, seen: &Arc<Seen>) -> Handle {
    let kv_dtype = case.kv;
    let per_token = CpuRunner::kv_bytes_per_token(checkpoint.config(), kv_dtype);
    let options = CpuOptions {
        threads: case.threads,
        precision: Precision::Fast,
        kv_dtype,
        block_size: BLOCK,
        kv_bytes: per_token * (BLOCK * case.blocks) as u64,
        weight_dtype: None,
        max_model_len: MAX_LEN,
        max_num_seqs: case.rows,
        max_num_batched_tokens: case.tokens,
        packed_cache: None,
    };
    let runner = CpuRunner::load(checkpoint, &options, &mut |_, _| {}).expect("the checkpoint loads");
    let config = EngineConfig {
        max_num_seqs: case.rows,
        max_num_batched_tokens: case.tokens,
        max_prefill_beside_decode: case.beside_decode,
        max_model_len: MAX_LEN,
        prefix_caching: case.caching,
        ..EngineConfig::default()
    };
    let (handle, _thread) =
        start(Box::new(runner), config, Box::new(Watch(seen.clone()))).expect("it starts");
    handle
}

/// Submits all requests, then hears them to their ends. A choice whose client left has no answer.
fn ask(handle: &Handle, asked: &[Asked], leave: bool) -> Vec<Vec<Option<Answer>>> {
    let submit = |asked: &Asked| {
        let params = SamplingParams {
            temperature: asked.temperature,
            seed: Some(asked.seed),
            repetition_penalty: asked.penalty,
            max_tokens: asked.max_tokens,
            logprobs: Some(0),
            prompt_logprobs: asked.prompt_logprobs.then_some(0),
            ..SamplingParams::default()
        };
        let request = Request {
            prompt: asked.prompt.clone(),
            params,
            n: asked.n,
            priority: asked.priority,
            cache_salt: None,
            constraint: None,
        };
        handle.submit(request).expect("the request is valid")
    };
    let receivers: Vec<_> = asked.iter().map(submit).collect();
    let mut answers = Vec::new();
    for (asked, receivers) in asked.iter().zip(receivers) {
        let mut choices = Vec::new();
        for mut events in receivers {
            let mut answer = Answer::new();
            let mut left = false;
            while let Some(event) = events.blocking_recv() {
                match event {
                    Event::Started { prompt_logprobs, .. } => answer.extend(
                        prompt_logprobs
                            .iter()
                            .flatten()
                            .map(|l| (l.chosen.token, l.chosen.logprob.to_bits())),
                    ),
                    Event::Token { token, logprobs } => {
                        let bits = logprobs.expect("asked for").chosen.logprob.to_bits();
                        answer.push((token, bits));
                    }
                    Event::Finished(_) => break,
                    Event::Failed(error) => panic!("{error}"),
                }
                if leave && asked.leaves_after.is_some_and(|tokens| answer.len() as u32 > tokens) {
                    left = true;
                    break;
                }
            }
            choices.push((!left).then_some(answer));
        }
        answers.push(choices);
    }
    answers
}

fn check(folder: &str, kv: DType, cases: u32) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data").join(folder);
    let checkpoint = Checkpoint::open(&path).expect("the checkpoint opens");
    let vocab = checkpoint.config().vocab as u32;
    let roomy = Case {
        asked: Vec::new(),
        blocks: 64,
        rows: 8,
        tokens: MAX_LEN,
        beside_decode: MAX_LEN,
        caching: false,
        threads: 1,
        kv,
    };
    let alone = Mutex::new(engine(&checkpoint, &roomy, &Arc::default()));
    let (seen, compared) = (Arc::<Seen>::default(), AtomicUsize::new(0));
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&case(vocab, kv), |case| {
        let handle = engine(&checkpoint, &case, &seen);
        let together = ask(&handle, &case.asked, true);
        drop(handle);
        let alone = alone.lock().expect("no case panicked before");
        for (asked, choices) in case.asked.iter().zip(together) {
            let expected = ask(&alone, std::slice::from_ref(asked), false).remove(0);
            for (choice, (ours, expected)) in choices.into_iter().zip(expected).enumerate() {
                if let Some(ours) = ours {
                    prop_assert_eq!(Some(ours), expected, "choice {} of {:?}", choice, asked);
                    compared.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    });
    let at = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    eprintln!(
        "{folder}: {} answers compared, {} preemptions, {} prompt tokens from the cache, {:.1} rows a step",
        at(&compared),
        at(&seen.preemptions),
        at(&seen.hits),
        at(&seen.rows) as f64 / at(&seen.steps) as f64
    );
    if let Err(error) = outcome {
        panic!("{folder}: {error}");
    }
    assert!(at(&seen.preemptions) > 0 && at(&seen.hits) > 0, "the cases reach preemption and prefix hits");
}

#[test]
fn windows_and_softcaps() {
    check("gemma2", DType::F16, 350);
}

#[test]
fn experts() {
    check("mixtral", DType::F16, 350);
}

#[test]
fn biases_and_alternating_windows() {
    check("qwen2_window", DType::F16, 250);
    check("qwen2_window", DType::I8, 100);
}
