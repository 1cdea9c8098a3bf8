//! Queueing, cancellation, drain, and what the observer is told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::fake::*;
use millrace_engine::*;

/// A hook that runs a step for each permit.
fn stepwise() -> (mpsc::Sender<()>, Hook) {
    let (sender, permits) = mpsc::channel();
    // When the sender is gone, steps run freely.
    let hook = move |_: u64, _: &Step| {
        let _ = permits.recv();
        Ok(())
    };
    (sender, Box::new(hook))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "not in time: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn counts_are_exact() {
    let (requests, prompt, output) = (12, 10, 7);
    let engine = Engine::roomy(no_hook());
    let mut receivers: Vec<_> = (0..requests)
        .map(|at| engine.handle.submit(greedy(vec![at as u32 + 1; prompt], output as u32)).expect("accepted"))
        .collect();
    for receiver in receivers.iter_mut().flatten() {
        assert_eq!(Outcome::of(receiver).tokens.len(), output);
    }
    let totals = engine.finish();
    assert_eq!(totals.prompt_tokens + totals.generation_tokens, requests * (prompt + output));
    assert_eq!(totals.intervals, requests * (output - 1));
    assert_eq!(totals.first_tokens, requests);
    assert_eq!(totals.computed_tokens, requests * (prompt + output - 1));
    assert_eq!((totals.prefix_queries, totals.prefix_hits), (requests * prompt, 0));
    assert_eq!(totals.requests.len(), requests);
    for stats in totals.requests {
        assert_eq!(stats.finished, [Some(FinishReason::Length)]);
        assert_eq!((stats.prompt_tokens, stats.generation_tokens, stats.n), (prompt, output, 1));
        assert!(stats.queue >= 0.0 && stats.prefill >= 0.0 && stats.decode >= 0.0);
        assert!((stats.queue + stats.prefill + stats.decode - stats.e2e).abs() < 1e-6, "{stats:?}");
    }
}

#[test]
fn a_second_request_finds_the_first_ones_blocks() {
    let engine = Engine::roomy(no_hook());
    let ask = |request: &Request| {
        let mut receivers = engine.handle.submit(request.clone()).expect("accepted");
        receivers.iter_mut().map(|receiver| Outcome::of(receiver).cached).collect::<Vec<_>>()
    };
    let request = greedy((1..=21).collect(), 3);
    let salted = Request { cache_salt: Some("tenant".to_owned()), ..request.clone() };
    let mut scored = request.clone();
    scored.params.prompt_logprobs = Some(0);
    assert_eq!(ask(&request), [0]);
    assert_eq!(ask(&request), [20], "five blocks of four");
    assert_eq!(ask(&salted), [0], "another tenant's");
    assert_eq!(ask(&salted), [20]);
    assert_eq!(ask(&scored), [0], "scores are not cached");
    assert_eq!(
        ask(&Request { prompt: (1..=20).collect(), ..request.clone() }),
        [16],
        "one token is computed"
    );
    let two = Request { n: 3, ..greedy((50..=70).collect(), 3) };
    assert_eq!(ask(&two), [0, 20, 20], "choices share while the first one computes");
    engine.finish();
}

#[test]
fn choices_share_without_a_cache() {
    let config = EngineConfig { max_model_len: 64, prefix_caching: false, ..EngineConfig::default() };
    let engine = Engine::start(FakeRunner::new(64, 4, ROOMY, no_hook()), config);
    let request = Request { n: 4, ..greedy((1..=40).collect(), 2) };
    for _ in 0..2 {
        let mut receivers = engine.handle.submit(request.clone()).expect("accepted");
        let cached: Vec<_> = receivers.iter_mut().map(|receiver| Outcome::of(receiver).cached).collect();
        assert_eq!(cached, [0, 36, 36, 36]);
    }
    assert_eq!(engine.finish().computed_tokens, 2 * (40 + 3 * 4 + 4), "the prompt once, tails and outputs");
}

#[test]
fn a_full_queue_refuses_at_once_and_a_cancelled_request_makes_room() {
    let (permits, hook) = stepwise();
    let config = EngineConfig {
        max_num_seqs: 1,
        max_queued_requests: 2,
        max_model_len: 64,
        ..EngineConfig::default()
    };
    let engine = Engine::start(FakeRunner::new(64, 4, ROOMY, hook), config);
    let request = greedy(vec![1, 2, 3], 40);
    let submit = || engine.handle.submit(request.clone());
    let running = submit().expect("runs");
    eventually("the first runs", || engine.handle.load().queued == 0);
    let (second, third) = (submit().expect("queued"), submit().expect("queued"));
    let Err(SubmitError::QueueFull { queued: 2, retry_after }) = submit() else { panic!("a full queue") };
    assert!((Duration::from_secs(1)..=Duration::from_secs(60)).contains(&retry_after));
    drop(third);
    permits.send(()).expect("it runs");
    eventually("the third left the queue", || engine.handle.load().queued == 1);
    let fourth = submit().expect("there is room again");
    // All of them hang up while the engine is in the middle of a step: the next plan finds nobody.
    drop((running, second, fourth));
    drop(permits);
    eventually("everything is free", || engine.record.totals().gauges == [0; 3]);
    assert_eq!(engine.finish().requests.len(), 4);
}

#[test]
fn dropping_a_receiver_frees_blocks_within_a_step() {
    let (permits, hook) = stepwise();
    let engine = Engine::roomy(hook);
    let receivers = engine.handle.submit(Request { n: 2, ..greedy(vec![5; 30], 60) }).expect("accepted");
    for _ in 0..5 {
        permits.send(()).expect("it runs");
    }
    eventually("two run", || engine.record.totals().gauges[0] == 2);
    drop(receivers);
    // Wherever the engine is, one more step at most.
    permits.send(()).expect("it runs");
    eventually("everything is free", || engine.record.totals().gauges == [0; 3]);
    let totals = engine.finish();
    assert!(totals.steps <= 7, "{totals:?}");
    assert_eq!(totals.requests[0].finished, [None, None]);
}

#[test]
fn ten_thousand_cancellations_leak_nothing() {
    let mut random = 7u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let config = EngineConfig { max_model_len: 64, max_queued_requests: 256, ..EngineConfig::default() };
    let engine = Engine::start(FakeRunner::new(48, 4, ROOMY, no_hook()), config);
    let mut open: Vec<Receiver> = Vec::new();
    let (mut submitted, mut cancelled) = (0, 0);
    while cancelled < 10_000 {
        let prompt = (0..1 + next(30)).map(|at| (at as u32 % 5) + 1 + next(2) as u32).collect();
        let request = Request { n: 1 + next(3) as u32, ..greedy(prompt, 1 + next(32) as u32) };
        match engine.handle.submit(request) {
            Ok(receivers) => {
                submitted += 1;
                open.extend(receivers);
            }
            Err(SubmitError::QueueFull { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
        while open.len() > 40 {
            drop(open.swap_remove(next(open.len() as u64) as usize));
            cancelled += 1;
        }
    }
    drop(open);
    eventually("everything is free", || engine.record.totals().gauges == [0; 3]);
    assert_eq!(engine.finish().requests.len(), submitted);
}

#[test]
fn a_drain_finishes_what_was_accepted() {
    let (permits, hook) = stepwise();
    let config = EngineConfig { max_num_seqs: 2, max_model_len: 64, ..EngineConfig::default() };
    let engine = Engine::start(FakeRunner::new(64, 4, ROOMY, hook), config);
    let requests: Vec<_> = (1..7).map(|at| greedy(vec![at; 5], 9)).collect();
    let mut receivers: Vec<_> = requests
        .iter()
        .map(|request| engine.handle.submit(request.clone()).expect("accepted").remove(0))
        .collect();
    engine.handle.drain();
    assert_eq!(engine.handle.submit(requests[0].clone()).expect_err("refused"), SubmitError::Closed);
    drop(permits);
    for (request, receiver) in requests.iter().zip(&mut receivers) {
        assert_eq!(Outcome::of(receiver), expected(request, 0, 64));
    }
    engine.finish();
}

#[test]
fn a_shutdown_ends_everything_and_says_so() {
    let (permits, hook) = stepwise();
    let config = EngineConfig { max_num_seqs: 2, max_model_len: 64, ..EngineConfig::default() };
    let engine = Engine::start(FakeRunner::new(64, 4, ROOMY, hook), config);
    let mut receivers: Vec<_> =
        (1..7).map(|at| engine.handle.submit(greedy(vec![at; 5], 50)).expect("accepted").remove(0)).collect();
    permits.send(()).expect("it runs");
    engine.handle.shutdown();
    drop(permits);
    for receiver in &mut receivers {
        assert_eq!(Outcome::of(receiver).end, Ending::Finished(FinishReason::Abort));
    }
    engine.finish();
}

#[test]
fn the_engine_ends_with_its_last_handle() {
    let Engine { handle, thread, record } = Engine::roomy(no_hook());
    let request = greedy(vec![1, 2], 20);
    let mut receiver = handle.submit(request.clone()).expect("accepted").remove(0);
    drop(handle);
    assert_eq!(Outcome::of(&mut receiver), expected(&request, 0, 128));
    thread.join().expect("no panic").expect("no error");
    assert_eq!(record.totals().gauges, [0; 3]);
}

/// Every stream gets its token in each step, whatever prompts arrive.
#[test]
fn a_long_prompt_does_not_stall_the_others() {
    type Rows = Vec<(u64, u32)>;
    let seen: Arc<Mutex<Vec<Rows>>> = Arc::default();
    let hook = {
        let seen = seen.clone();
        Box::new(move |_, step: &Step| {
            let rows = step.rows.iter().map(|row| (row.seq.0, row.count)).collect();
            seen.lock().expect("no panic").push(rows);
            Ok(())
        })
    };
    let config = EngineConfig {
        max_num_batched_tokens: 64,
        max_prefill_beside_decode: 16,
        max_model_len: 1024,
        ..EngineConfig::default()
    };
    let engine = Engine::start(FakeRunner::new(400, 4, ROOMY, hook), config);
    let mut short: Vec<_> = (1..5)
        .map(|at| engine.handle.submit(greedy(vec![at; 3], 200)).expect("accepted").remove(0))
        .collect();
    eventually("four run", || engine.handle.load().running == 4);
    let mut long = engine
        .handle
        .submit(greedy((0..900).map(|at| at % 90 + 1).collect(), 1))
        .expect("accepted")
        .remove(0);
    Outcome::of(&mut long);
    short.iter_mut().for_each(|receiver| drop(Outcome::of(receiver)));
    engine.finish();

    let seen = seen.lock().expect("no panic");
    let chunks: Vec<_> = seen.iter().filter(|rows| rows.iter().any(|row| row.1 > 3)).collect();
    assert!(chunks.len() > 20, "the long prompt comes in chunks");
    let beside: Vec<_> = chunks.iter().filter(|rows| rows.len() > 1).collect();
    assert!(!beside.is_empty());
    for rows in beside {
        assert!(rows.iter().map(|row| row.1).filter(|count| *count > 1).sum::<u32>() <= 16, "{rows:?}");
    }
    let mut last = [None; 4];
    for (number, rows) in seen.iter().enumerate() {
        for (seq, _) in rows.iter().filter(|(seq, _)| *seq < 4 * u64::from(MAX_CHOICES)) {
            let last = &mut last[(*seq / u64::from(MAX_CHOICES)) as usize];
            assert!(
                last.is_none_or(|last| last + 1 == number),
                "a stream was left out of step {}",
                number - 1
            );
            *last = Some(number);
        }
    }
}

#[test]
fn static_batching_admits_into_an_empty_batch_only() {
    let (starts, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let hook = {
        let (starts, most) = (starts.clone(), most.clone());
        let mut batch = Vec::new();
        Box::new(move |_, step: &Step| {
            let new: Vec<_> = step.rows.iter().filter(|row| row.position == 0).map(|row| row.seq).collect();
            if !new.is_empty()
                && step.rows.iter().all(|row| row.position == 0)
                && !batch.iter().any(|seq| new.contains(seq))
            {
                starts.fetch_add(1, Ordering::Relaxed);
                batch.clear();
            }
            batch.extend(new);
            most.fetch_max(batch.len(), Ordering::Relaxed);
            Ok(())
        })
    };
    let config = EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 8,
        max_model_len: 64,
        batching: Batching::Static,
        ..EngineConfig::default()
    };
    let engine = Engine::start(FakeRunner::new(128, 4, ROOMY, hook), config);
    let requests: Vec<_> = (0..9).map(|at| greedy(vec![at + 1; 6], 3 + at * 3)).collect();
    let mut receivers: Vec<_> = requests
        .iter()
        .map(|request| engine.handle.submit(request.clone()).expect("accepted").remove(0))
        .collect();
    for (request, receiver) in requests.iter().zip(&mut receivers) {
        assert_eq!(Outcome::of(receiver), expected(request, 0, 64));
    }
    engine.finish();
    assert!(most.load(Ordering::Relaxed) <= 4, "nobody joins a batch that runs");
    assert!(starts.load(Ordering::Relaxed) >= 3, "nine requests are three batches of four at least");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn lower_priority_values_run_first(priorities in prop::collection::vec(-3i32..3, 2..10)) {
        let (permits, hook) = stepwise();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut hook = hook;
        let recorded = order.clone();
        let hook = Box::new(move |number, step: &Step| {
            recorded.lock().expect("no panic").extend(step.rows.iter().filter(|row| row.position == 0).map(|row| row.seq));
            hook(number, step)
        });
        let config = EngineConfig { max_num_seqs: 1, max_model_len: 64, ..EngineConfig::default() };
        let engine = Engine::start(FakeRunner::new(64, 4, ROOMY, hook), config);
        let first = engine.handle.submit(greedy(vec![1], 2)).expect("accepted");
        eventually("the first runs", || engine.handle.load().queued == 0);
        let rest: Vec<_> = priorities
            .iter()
            .map(|priority| engine.handle.submit(Request { priority: *priority, ..greedy(vec![2], 2) }).expect("accepted"))
            .collect();
        drop(permits);
        for mut receiver in first.into_iter().chain(rest.into_iter().flatten()) {
            Outcome::of(&mut receiver);
        }
        engine.finish();
        let mut expected: Vec<_> = priorities.iter().zip(1u64..).collect();
        expected.sort();
        let order: Vec<_> = order.lock().expect("no panic")[1..].iter().map(|seq| seq.0 / u64::from(MAX_CHOICES)).collect();
        prop_assert_eq!(order, expected.iter().map(|(_, number)| *number).collect::<Vec<_>>());
    }
}
