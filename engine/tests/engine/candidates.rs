//! A backend that yields the best tokens of each row instead of whole rows.

use millrace_engine::*;
use proptest::prelude::*;

use crate::fake::*;

const CANDIDATES: usize = 24;

fn engine(blocks: usize) -> Engine {
    let runner = FakeRunner::new(blocks, 4, ROOMY, no_hook()).cutting(CANDIDATES);
    let config = EngineConfig {
        max_model_len: 64,
        max_num_seqs: 8,
        max_num_batched_tokens: 48,
        ..EngineConfig::default()
    };
    Engine::start(runner, config)
}

/// One kind of adjustment at a time: then adding it at once and in two steps rounds alike.
fn params() -> impl Strategy<Value = SamplingParams> {
    let adjusted = prop_oneof![
        Just(SamplingParams::default()),
        (-2.0f32..2.0)
            .prop_map(|presence_penalty| SamplingParams { presence_penalty, ..SamplingParams::default() }),
        (-2.0f32..2.0)
            .prop_map(|frequency_penalty| SamplingParams { frequency_penalty, ..SamplingParams::default() }),
        (0..VOCAB as u32, -9.0f32..9.0)
            .prop_map(|bias| SamplingParams { logit_bias: vec![bias], ..SamplingParams::default() }),
        (1u32..12).prop_map(|min_tokens| SamplingParams { min_tokens, ..SamplingParams::default() }),
    ];
    let drawn = (
        prop_oneof![Just(0.0f32), 0.2f32..2.0],
        prop::option::of(1u32..2 * CANDIDATES as u32),
        prop_oneof![Just(1.0f32), 0.3f32..1.0],
        any::<u64>(),
    );
    (adjusted, drawn, 12u32..30).prop_map(|(params, (temperature, top_k, top_p, seed), max_tokens)| {
        let seed = Some(seed);
        let eos_token_ids = vec![EOS];
        SamplingParams { temperature, top_k, top_p, seed, max_tokens, eos_token_ids, ..params }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Together, short of blocks, in chunks: each request gets what it would get alone of whole rows with a `top_k`
    /// of no more than the candidates.
    #[test]
    fn requests_get_what_whole_rows_cut_by_top_k_give(
        requests in prop::collection::vec((prop::collection::vec(0..VOCAB as u32, 1..30), params(), 1u32..3), 1..7),
        blocks in 16usize..64,
    ) {
        let engine = engine(blocks);
        let submitted: Vec<_> = requests
            .into_iter()
            .map(|(prompt, params, n)| Request { prompt, params, n, ..Request::default() })
            .map(|request| (engine.handle.submit(request.clone()).expect("a valid request"), request))
            .collect();
        for (receivers, mut request) in submitted {
            request.params.top_k = Some(request.params.top_k.map_or(CANDIDATES as u32, |k| k.min(CANDIDATES as u32)));
            for (mut receiver, choice) in receivers.into_iter().zip(0..) {
                let (found, expected) = (Outcome::of(&mut receiver), expected(&request, choice, 64));
                prop_assert_eq!((found.tokens, found.end), (expected.tokens, expected.end));
            }
        }
        engine.finish();
    }
}

/// A step that the backend refuses is halved; the halves' biases are those of their rows.
#[test]
fn halves_of_a_step_keep_their_biases() {
    let mut failed = 0;
    let hook: Hook = Box::new(move |_, step| {
        if step.rows.len() > 1 && step.rows.iter().all(|row| row.count == 1) && failed < 9 {
            failed += 1;
            return Err(RunError::Step("not together".into()));
        }
        Ok(())
    });
    let runner = FakeRunner::new(64, 4, ROOMY, hook).cutting(CANDIDATES);
    let config = EngineConfig { max_model_len: 64, ..EngineConfig::default() };
    let engine = Engine::start(runner, config);
    let requests: Vec<Request> = (0..5u32)
        .map(|at| {
            let mut request = greedy(vec![at + 1; 3], 12);
            if at % 2 == 0 {
                request.params.logit_bias = vec![(40 + at, 100.0)];
            }
            request
        })
        .collect();
    let receivers: Vec<_> = requests
        .iter()
        .map(|request| engine.handle.submit(request.clone()).expect("a valid request"))
        .collect();
    for (request, mut receivers) in requests.iter().zip(receivers) {
        assert_eq!(Outcome::of(&mut receivers[0]), expected(request, 0, 64));
    }
    engine.finish();
}

#[test]
fn what_candidates_cannot_give_is_refused() {
    let engine = engine(32);
    let default = || greedy(vec![1, 2], 4).params;
    let cases = [
        ("prompt_logprobs", SamplingParams { prompt_logprobs: Some(0), ..default() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.9, ..default() }),
    ];
    for (field, params) in cases {
        let request = Request { params, ..greedy(vec![1, 2], 4) };
        match engine.handle.submit(request) {
            Err(SubmitError::Invalid { param, message }) => {
                assert_eq!(param, field);
                assert!(message.contains("this backend"), "{message}");
            }
            other => panic!("{field}: {other:?}"),
        }
    }
    let params = SamplingParams { logprobs: Some(20), repetition_penalty: 1.5, ..default() };
    let request = Request { params, ..greedy(vec![1, 2], 4) };
    let mut receivers = engine.handle.submit(request).expect("20 are among 24");
    assert_eq!(Outcome::of(&mut receivers[0]).logprobs[0].top.len(), 20);
    engine.finish();

    let runner = FakeRunner::new(32, 4, ROOMY, no_hook()).cutting(8);
    let engine = Engine::start(runner, EngineConfig { max_model_len: 64, ..EngineConfig::default() });
    let params = SamplingParams { logprobs: Some(9), ..default() };
    let refused = engine.handle.submit(Request { params, ..greedy(vec![1, 2], 4) });
    assert!(matches!(refused, Err(SubmitError::Invalid { param: "logprobs", .. })), "{refused:?}");
    engine.finish();
}
