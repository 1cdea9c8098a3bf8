//! Tokens under a constraint: only allowed ones, the same whatever else happens, and an end where it says so.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use proptest::prelude::*;

use crate::fake::*;
use millrace_engine::*;

/// Allows a set that is a hash of the tokens so far, and ends after some of them. Stricter than a real one: it refuses
/// a token it did not allow, and a question that was not due.
#[derive(Clone, Debug)]
struct Hashed {
    seed: u64,
    tokens: Vec<TokenId>,
    asked: bool,
    length: usize,
    /// Fails at so many tokens, or panics.
    fails: Option<usize>,
    panics: bool,
}

impl Hashed {
    fn new(seed: u64, length: usize) -> Self {
        Hashed { seed, tokens: Vec::new(), asked: false, length, fails: None, panics: false }
    }

    fn allows(&self, token: TokenId) -> bool {
        let hash = BuildHasherDefault::<DefaultHasher>::default();
        let of = |token| hash.hash_one((self.seed, &self.tokens, token)) % 8;
        // Never nothing.
        of(token) == 0 || token == 1 + (self.tokens.len() % 5) as u32
    }
}

impl Constraint for Hashed {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }

    fn allowed(&mut self, allowed: &mut Vec<u32>) -> Result<(), ConstraintError> {
        assert!(!self.asked, "asked once for each token");
        self.asked = true;
        if self.fails == Some(self.tokens.len()) {
            assert!(!self.panics, "told to");
            return Err(ConstraintError("too much".to_owned()));
        }
        allowed.clear();
        allowed.resize(VOCAB.div_ceil(32), 0);
        for token in (0..VOCAB as u32).filter(|token| self.allows(*token)) {
            allowed[token as usize / 32] |= 1 << (token % 32);
        }
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        assert!(self.asked, "a token that no set was asked for");
        assert!(self.allows(token), "{token} is not allowed");
        self.asked = false;
        self.tokens.push(token);
        Ok(self.tokens.len() == self.length)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Several requests, constrained or not, in a pool too small for them, so that sequences lose their blocks.
    #[test]
    fn constrained_sequences_are_what_they_would_be_alone(
        requests in prop::collection::vec((prop::option::weighted(0.7, any::<u64>()), 1usize..20, 1u32..4, 0.0f32..1.5, prop::option::of(0u32..3), any::<u64>()), 1..6),
        blocks in 12usize..40, rows in 1usize..8, cuts: bool,
    ) {
        let limits = StepLimits { tokens: 16, rows, logits: 16 };
        let config = EngineConfig { max_model_len: 48, max_num_seqs: 8, ..EngineConfig::default() };
        let runner = FakeRunner::new(blocks, 4, limits, no_hook());
        // With as many candidates as tokens, a backend that cuts rows yields what one that does not would.
        let runner = if cuts { runner.cutting(VOCAB) } else { runner };
        let engine = Engine::start(runner, config);
        let requests: Vec<(Request, Option<Hashed>)> = requests
            .into_iter()
            .map(|(constrained, length, n, temperature, logprobs, seed)| {
                let mut request = greedy((1..=3 + length as u32).collect(), 20);
                request.n = n;
                request.params.temperature = temperature;
                request.params.logprobs = logprobs.filter(|_| !cuts);
                request.params.ignore_eos = false;
                request.params.seed = Some(seed);
                let constraint = constrained.map(|seed| Hashed::new(seed, length));
                request.constraint = constraint.clone().map(|it| Box::new(it) as Box<dyn Constraint>);
                (request, constraint)
            })
            .collect();
        let receivers: Vec<_> =
            requests.iter().map(|(request, _)| engine.handle.submit(request.clone()).expect("accepted")).collect();
        for ((request, constraint), receivers) in requests.iter().zip(receivers) {
            for (choice, mut receiver) in receivers.into_iter().enumerate() {
                let mut outcome = Outcome::of(&mut receiver);
                outcome.cached = 0;
                let expected = match constraint {
                    None => expected(request, choice as u32, 48),
                    Some(constraint) => alone(request, choice as u32, constraint.clone()),
                };
                prop_assert_eq!(outcome, expected);
            }
        }
        engine.finish();
    }
}

/// What a constrained choice must be, from the logits and the constraint alone.
fn alone(request: &Request, choice: u32, mut constraint: Hashed) -> Outcome {
    let params = std::sync::Arc::new(request.params.clone());
    let seed = params.seed.expect("seeded");
    let mut state = SamplerState::new(params.clone(), seed, choice, penalised(&request.prompt, &params));
    let mut sampler = Sampler::new(VOCAB);
    let (mut tokens, mut logprobs) = (request.prompt.clone(), Vec::new());
    let reason = loop {
        constraint.allowed(state.allowed()).expect("it does not fail");
        let mut logits = logits_after(&tokens);
        let (token, scores) = sampler.sample(&mut logits, &state).expect("a token is allowed");
        if let Some(scores) = &scores {
            let raw = sampler.logprobs(&logits_after(&tokens), token, params.logprobs.unwrap_or(0));
            assert_eq!(**scores, raw, "log-probabilities are the model's, without the constraint");
        }
        logprobs.extend(scores.map(|boxed| *boxed));
        state.accept(token);
        tokens.push(token);
        if token == EOS || constraint.accept(token).expect("it does not fail") {
            break FinishReason::Stop;
        }
        if tokens.len() - request.prompt.len() == params.max_tokens as usize {
            break FinishReason::Length;
        }
    };
    let tokens = tokens.split_off(request.prompt.len());
    Outcome { tokens, logprobs, prompt_logprobs: Vec::new(), cached: 0, end: Ending::Finished(reason) }
}

#[test]
fn a_constraint_that_fails_or_panics_costs_its_own_request() {
    let engine = Engine::roomy(no_hook());
    for (at, panics) in [(0, false), (3, false), (0, true), (3, true)] {
        let other = greedy(vec![5; 6], 12);
        let mut beside = engine.handle.submit(other.clone()).expect("accepted");
        let constraint = Hashed { fails: Some(at), panics, ..Hashed::new(7, 20) };
        let request = Request { constraint: Some(Box::new(constraint)), n: 2, ..greedy(vec![3; 6], 12) };
        for mut receiver in engine.handle.submit(request).expect("accepted") {
            let outcome = Outcome::of(&mut receiver);
            let message = if panics { "the constraint panicked" } else { "too much" };
            assert_eq!(outcome.tokens.len(), at);
            assert_eq!(outcome.end, Ending::Failed(RequestError::Constraint(message.to_owned())));
        }
        let mut found = Outcome::of(&mut beside[0]);
        found.cached = 0;
        assert_eq!(found, expected(&other, 0, 128));
    }
    engine.finish();
}

#[test]
fn a_set_with_no_token_fails_its_request() {
    #[derive(Clone, Debug)]
    struct Nothing;
    impl Constraint for Nothing {
        fn fork(&self) -> Box<dyn Constraint> {
            Box::new(self.clone())
        }
        fn allowed(&mut self, allowed: &mut Vec<u32>) -> Result<(), ConstraintError> {
            allowed.clear();
            Ok(())
        }
        fn accept(&mut self, _: TokenId) -> Result<bool, ConstraintError> {
            unreachable!("nothing can be chosen")
        }
    }
    let engine = Engine::roomy(no_hook());
    let request = Request { constraint: Some(Box::new(Nothing)), ..greedy(vec![3; 6], 12) };
    let mut receivers = engine.handle.submit(request).expect("accepted");
    let end = Outcome::of(&mut receivers[0]).end;
    assert!(matches!(end, Ending::Failed(RequestError::Refused(_))), "{end:?}");
    engine.finish();
}
