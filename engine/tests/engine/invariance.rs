//! A request's tokens depend on the request alone: not on its batch, the order of arrival, chunk sizes, blocks
//! that run out, prefixes that were cached, choices beside it, or neighbours that go away.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use crate::fake::*;
use millrace_engine::*;

#[derive(Clone, Debug)]
struct World {
    block_size: usize,
    // Beyond what the longest sequence needs.
    spare_blocks: usize,
    limits: StepLimits,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    max_prefill_beside_decode: usize,
    prefix_caching: bool,
    batching: Batching,
}

#[derive(Clone, Debug)]
struct Arrival {
    request: Request,
    step: u64,
    /// Choice and step of a client that hangs up.
    cancel: Option<(usize, u64)>,
}

const MAX_LEN: usize = 48;

fn world() -> impl Strategy<Value = World> {
    (
        (1usize..8, 0usize..24, any::<bool>(), prop::bool::weighted(0.8)),
        (1usize..40, 1usize..8, 1usize..40),
        (1usize..6, 1usize..40, 1usize..20),
    )
        .prop_map(
            |((block_size, spare_blocks, prefix_caching, continuous), (tokens, rows, logits), own)| World {
                block_size,
                spare_blocks,
                limits: StepLimits { tokens, rows, logits },
                max_num_seqs: own.0,
                max_num_batched_tokens: own.1,
                max_prefill_beside_decode: own.2,
                prefix_caching,
                batching: if continuous { Batching::Continuous } else { Batching::Static },
            },
        )
}

fn params() -> impl Strategy<Value = SamplingParams> {
    (
        (
            prop_oneof![Just(0.0f32), 0.5f32..1.5],
            prop::option::of(1u32..20),
            prop_oneof![Just(1.0f32), 0.3f32..1.0],
        ),
        (prop_oneof![Just(0.0f32), 0.0f32..0.5], prop_oneof![Just(1.0f32), 1.0f32..1.5], -1.0f32..1.0),
        (any::<u64>(), 0u32..4, 1u32..24, any::<bool>()),
        (
            prop::option::of(0u32..4),
            prop::option::weighted(0.2, 0u32..3),
            prop::option::of(0u32..VOCAB as u32),
        ),
    )
        .prop_map(|(a, b, c, d)| SamplingParams {
            temperature: a.0,
            top_k: a.1,
            top_p: a.2,
            min_p: b.0,
            repetition_penalty: b.1,
            presence_penalty: b.2,
            frequency_penalty: b.2 / 3.0,
            logit_bias: d.2.map(|token| (token, 2.0)).into_iter().collect(),
            seed: Some(c.0),
            stop_token_ids: d.2.into_iter().collect(),
            eos_token_ids: vec![EOS],
            min_tokens: c.1.min(c.2),
            max_tokens: c.2,
            ignore_eos: c.3,
            logprobs: d.0,
            prompt_logprobs: d.1,
        })
}

/// Few tokens and few stems, so that prompts share prefixes of all lengths.
fn prompt() -> impl Strategy<Value = Vec<TokenId>> {
    (0u32..3, 0usize..24, prop::collection::vec(1u32..3, 0..8)).prop_map(|(stem, length, tail)| {
        let mut prompt: Vec<_> = (0..length as u32).map(|at| (at * (stem + 1)) % 7 + 1).collect();
        prompt.extend(tail);
        prompt.push(1);
        prompt
    })
}

fn arrival() -> impl Strategy<Value = Arrival> {
    (prompt(), params(), 1u32..4, -1i32..2, 0u64..30, prop::option::weighted(0.2, (0usize..3, 0u64..40)))
        .prop_map(|(prompt, params, n, priority, step, cancel)| Arrival {
            request: Request { prompt, params, n, priority, cache_salt: None, constraint: None },
            step,
            cancel,
        })
}

/// Where the hook and the test find what was submitted.
#[derive(Default)]
struct Script {
    handle: Option<Handle>,
    arrivals: Vec<Arrival>,
    receivers: Vec<Vec<Option<Receiver>>>,
    cancelled: Vec<(usize, usize, Outcome)>,
    submitted: usize,
}

impl Script {
    /// Submits and cancels what is due.
    fn act(&mut self, step: u64) {
        // The test has heard everybody out; a sequence whose client left may still have a step to end.
        let Some(handle) = self.handle.clone() else {
            assert_eq!(self.submitted, self.arrivals.len(), "the handle goes after the last request");
            return;
        };
        while self.submitted < self.arrivals.len() && self.arrivals[self.submitted].step <= step {
            let receivers =
                handle.submit(self.arrivals[self.submitted].request.clone()).expect("a valid request");
            self.receivers.push(receivers.into_iter().map(Some).collect());
            self.submitted += 1;
        }
        for (at, arrival) in self.arrivals[..self.submitted].iter().enumerate() {
            if let Some((choice, when)) = arrival.cancel
                && when <= step
                && let Some(mut receiver) = self.receivers[at].get_mut(choice).and_then(Option::take)
            {
                self.cancelled.push((at, choice, Outcome::so_far(&mut receiver)));
            }
        }
    }
}

fn run(world: &World, mut arrivals: Vec<Arrival>) -> Result<Totals, TestCaseError> {
    arrivals.sort_by_key(|arrival| arrival.step);
    let script = Arc::new(Mutex::new(Script { arrivals: arrivals.clone(), ..Script::default() }));
    let hook = {
        let script = script.clone();
        Box::new(move |step, _: &Step| {
            script.lock().expect("the test does not panic with it").act(step);
            Ok(())
        })
    };
    let blocks = MAX_LEN.div_ceil(world.block_size) + world.spare_blocks;
    let config = EngineConfig {
        max_num_seqs: world.max_num_seqs,
        max_num_batched_tokens: world.max_num_batched_tokens,
        max_prefill_beside_decode: world.max_prefill_beside_decode,
        max_model_len: MAX_LEN,
        prefix_caching: world.prefix_caching,
        batching: world.batching,
        ..EngineConfig::default()
    };
    let engine = Engine::start(FakeRunner::new(blocks, world.block_size, world.limits, hook), config);
    script.lock().expect("no panic").handle = Some(engine.handle.clone());

    // The steps' own numbers bring the rest; where they end too soon, the next arrivals start them again.
    let mut outcomes = Vec::new();
    for (at, arrival) in arrivals.iter().enumerate() {
        let receivers = {
            let mut script = script.lock().expect("no panic");
            if script.submitted <= at {
                script.act(arrival.step);
            }
            std::mem::take(&mut script.receivers[at])
        };
        outcomes.push(
            receivers
                .into_iter()
                .map(|receiver| receiver.map(|mut r| Outcome::of(&mut r)))
                .collect::<Vec<_>>(),
        );
    }
    script.lock().expect("no panic").handle = None;
    let totals = engine.finish();

    for (arrival, outcomes) in arrivals.iter().zip(&outcomes) {
        for (choice, outcome) in outcomes.iter().enumerate() {
            let Some(outcome) = outcome else { continue };
            prop_assert!(outcome.cached < arrival.request.prompt.len() as u32);
            if !world.prefix_caching && arrival.request.n == 1
                || arrival.request.params.prompt_logprobs.is_some()
            {
                prop_assert_eq!(outcome.cached, 0);
            }
            let expected = expected(&arrival.request, choice as u32, MAX_LEN);
            prop_assert_eq!(&Outcome { cached: 0, ..outcome.clone() }, &expected);
        }
    }
    for (at, choice, outcome) in &script.lock().expect("no panic").cancelled {
        let expected = expected(&arrivals[*at].request, *choice as u32, MAX_LEN);
        prop_assert!(
            expected.tokens.starts_with(&outcome.tokens),
            "a cancelled choice had been right so far"
        );
    }
    Ok(totals)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn tokens_depend_on_the_request_alone(world in world(), arrivals in prop::collection::vec(arrival(), 1..10)) {
        run(&world, arrivals)?;
    }

    /// A pool that barely holds one sequence, and others that want the same.
    #[test]
    fn preemption_changes_nothing(
        block_size in 1usize..5,
        spare_blocks in 0usize..4,
        prefix_caching: bool,
        mut arrivals in prop::collection::vec(arrival(), 3..8),
    ) {
        for arrival in &mut arrivals {
            arrival.request.params.max_tokens = 40;
            arrival.request.params.ignore_eos = true;
            arrival.request.params.stop_token_ids.clear();
            arrival.step %= 4;
        }
        let world = World {
            block_size,
            spare_blocks,
            limits: ROOMY,
            max_num_seqs: 8,
            max_num_batched_tokens: 64,
            max_prefill_beside_decode: 16,
            prefix_caching,
            batching: Batching::Continuous,
        };
        run(&world, arrivals)?;
    }
}

/// The properties above are worth something only if what they speak of happens.
#[test]
fn the_machinery_is_in_use() {
    let request = |stem: u32, priority| Arrival {
        request: Request { priority, n: 2, ..greedy((0..12).map(|at| at % (stem + 2) + 1).collect(), 36) },
        step: 0,
        cancel: None,
    };
    let world = World {
        block_size: 4,
        spare_blocks: 6,
        limits: ROOMY,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_prefill_beside_decode: 64,
        prefix_caching: true,
        batching: Batching::Continuous,
    };
    let totals = run(&world, vec![request(1, 0), request(1, 0), request(2, 0)]).expect("right tokens");
    assert!(totals.preemptions > 0, "{totals:?}");
    assert!(totals.prefix_hits > 0, "{totals:?}");
    assert!(totals.most_running > 2, "{totals:?}");
}
