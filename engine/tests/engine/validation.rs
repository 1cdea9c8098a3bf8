//! What is refused, by which name, and with which words.

use crate::fake::*;
use millrace_engine::*;

#[test]
fn each_field_has_its_bounds() {
    type Change = fn(&mut Request);
    let cases: [(&str, &str, Change); 24] = [
        ("n", "not 0", |r| r.n = 0),
        ("n", "not 1000000", |r| r.n = 1_000_000),
        ("prompt", "empty", |r| r.prompt.clear()),
        ("prompt", "128 tokens", |r| r.prompt = vec![1; 128]),
        ("prompt", "97", |r| r.prompt[1] = 97),
        ("temperature", "NaN", |r| r.params.temperature = f32::NAN),
        ("temperature", "inf", |r| r.params.temperature = f32::INFINITY),
        ("temperature", "-1", |r| r.params.temperature = -1.0),
        ("top_k", "at least 1", |r| r.params.top_k = Some(0)),
        ("top_p", "not 0", |r| r.params.top_p = 0.0),
        ("top_p", "1.5", |r| r.params.top_p = 1.5),
        ("top_p", "NaN", |r| r.params.top_p = f32::NAN),
        ("min_p", "2", |r| r.params.min_p = 2.0),
        ("repetition_penalty", "not 0", |r| r.params.repetition_penalty = 0.0),
        ("presence_penalty", "3", |r| r.params.presence_penalty = 3.0),
        ("frequency_penalty", "NaN", |r| r.params.frequency_penalty = f32::NAN),
        ("logit_bias", "101", |r| r.params.logit_bias = vec![(1, 101.0)]),
        ("logit_bias", "token id 4000000000", |r| r.params.logit_bias = vec![(4_000_000_000, 1.0)]),
        ("stop_token_ids", "ends at 96", |r| r.params.stop_token_ids = vec![97]),
        ("max_tokens", "at least 1", |r| r.params.max_tokens = 0),
        ("min_tokens", "above max_tokens", |r| r.params.min_tokens = 11),
        ("logprobs", "at most 20", |r| r.params.logprobs = Some(21)),
        ("prompt_logprobs", "at most 20", |r| r.params.prompt_logprobs = Some(u32::MAX)),
        ("logit_bias", "inf", |r| r.params.logit_bias = vec![(1, f32::NEG_INFINITY)]),
    ];
    let engine = Engine::roomy(no_hook());
    for (field, words, change) in cases {
        let mut request = greedy(vec![1, 2, 3], 10);
        change(&mut request);
        let Err(SubmitError::Invalid { param, message }) = engine.handle.submit(request) else {
            panic!("{field}: {words} was accepted");
        };
        assert_eq!(param, field, "{message}");
        assert!(message.contains(words), "{field}: {message}");
    }
    assert_eq!(engine.handle.load(), Load { queued: 0, running: 0 });
    assert_eq!(engine.finish().steps, 0, "what is refused leaves no trace");
}

#[test]
fn the_extremes_are_accepted_and_the_context_ends_the_sequence() {
    let engine = Engine::roomy(no_hook());
    let mut request = greedy(vec![1; 127], u32::MAX);
    request.params.eos_token_ids = vec![u32::MAX];
    let mut receiver = engine.handle.submit(request).expect("accepted").remove(0);
    let outcome = Outcome::of(&mut receiver);
    assert_eq!((outcome.tokens.len(), outcome.end), (1, Ending::Finished(FinishReason::Length)));

    let mut request = greedy(vec![1], 100);
    request.params = SamplingParams {
        temperature: f32::MAX,
        top_k: Some(u32::MAX),
        top_p: f32::MIN_POSITIVE,
        min_p: 1.0,
        repetition_penalty: f32::MIN_POSITIVE,
        logit_bias: (0..VOCAB as u32).map(|id| (id, -100.0)).collect(),
        min_tokens: 100,
        logprobs: Some(20),
        prompt_logprobs: Some(20),
        ..request.params
    };
    let mut receivers = engine.handle.submit(Request { n: MAX_CHOICES, ..request }).expect("accepted");
    for receiver in &mut receivers {
        assert_eq!(Outcome::of(receiver).tokens.len(), 100);
    }
    engine.finish();
}

#[test]
fn a_row_without_a_number_fails_its_request() {
    let engine = Engine::roomy(no_hook());
    let mut request = greedy(vec![1], 4);
    request.params.stop_token_ids = (0..VOCAB as u32).collect();
    request.params.min_tokens = 2;
    let mut receiver = engine.handle.submit(request).expect("accepted").remove(0);
    assert!(
        matches!(Outcome::of(&mut receiver).end, Ending::Failed(RequestError::Refused(_))),
        "all is masked"
    );
    engine.finish();
}

#[test]
fn a_contradictory_configuration_does_not_start() {
    let config = EngineConfig { max_model_len: 128, ..EngineConfig::default() };
    let start = |config, blocks| {
        let runner = FakeRunner::new(blocks, 4, ROOMY, no_hook());
        let Err(StartError::Config { param, message }) = start(Box::new(runner), config, Box::new(())) else {
            panic!("it started");
        };
        format!("{param}: {message}")
    };
    let message = start(config.clone(), 31);
    assert!(
        message.contains("max_model_len") && message.contains("128") && message.contains("124"),
        "{message}"
    );
    assert!(start(config.clone(), 0).contains("max_model_len"));
    for (name, broken) in [
        ("max_num_seqs", EngineConfig { max_num_seqs: 0, ..config.clone() }),
        ("max_num_batched_tokens", EngineConfig { max_num_batched_tokens: 0, ..config.clone() }),
        ("max_queued_requests", EngineConfig { max_queued_requests: 0, ..config.clone() }),
        ("max_model_len", EngineConfig { max_model_len: 1, ..config.clone() }),
    ] {
        assert!(start(broken, 64).starts_with(name));
    }
}
