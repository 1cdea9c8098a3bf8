//! Against a reference that sorts everything, in `f64`.

use proptest::prelude::*;

use super::*;
use crate::Candidates;

/// Tokens that may be drawn with their probabilities, best first, and how far from being cut differently.
fn reference(logits: &[f32], params: &SamplingParams) -> (Vec<(TokenId, f64)>, f64) {
    let mut ranked: Vec<_> = logits
        .iter()
        .zip(0..)
        .filter(|(x, _)| x.is_finite())
        .map(|(x, id)| (f64::from(*x) + 0.0, id))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let max = ranked[0].0;
    let mut margin = f64::INFINITY;
    let mut tokens: Vec<(TokenId, f64)> =
        ranked.iter().map(|(x, id)| (*id, ((x - max) / f64::from(params.temperature)).exp())).collect();
    tokens.retain(|(_, p)| {
        if params.min_p > 0.0 {
            margin = margin.min((p - f64::from(params.min_p)).abs());
        }
        *p >= f64::from(params.min_p)
    });
    tokens.truncate(params.top_k.map_or(usize::MAX, |k| k as usize));
    let total: f64 = tokens.iter().map(|(_, p)| p).sum();
    if params.top_p < 1.0 {
        let mut sum = 0.0;
        let mut keep = 0;
        for (_, p) in &tokens {
            if sum / total >= f64::from(params.top_p) {
                break;
            }
            sum += p;
            keep += 1;
            margin = margin.min((sum / total - f64::from(params.top_p)).abs());
        }
        tokens.truncate(keep);
    }
    let total: f64 = tokens.iter().map(|(_, p)| p).sum();
    tokens.iter_mut().for_each(|(_, p)| *p /= total);
    (tokens, margin)
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    let special = prop_oneof![
        20 => -8.0f32..8.0,
        // Ties.
        4 => (-3i8..3).prop_map(f32::from),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::NAN),
        1 => prop_oneof![Just(0.0f32), Just(-0.0f32)],
    ];
    prop_oneof![prop::collection::vec(special.clone(), 1..40), prop::collection::vec(special, 100..700)]
        .prop_filter("a token can be chosen", |logits| logits.iter().any(|x| x.is_finite()))
}

fn truncation() -> impl Strategy<Value = SamplingParams> {
    (
        0.05f32..3.0,
        prop::option::of(prop_oneof![1u32..5, 1u32..800]),
        prop_oneof![Just(1.0f32), 0.01f32..1.0],
        prop_oneof![2 => Just(0.0f32), 1 => 0.0f32..1.0],
    )
        .prop_map(|(temperature, top_k, top_p, min_p)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            ..SamplingParams::default()
        })
}

fn state(params: &SamplingParams, seed: u64, choice: u32) -> SamplerState {
    SamplerState::new(Arc::new(params.clone()), seed, choice, Arc::new([]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// The token drawn is the one whose share of the line from 0 to 1 holds the uniform number.
    #[test]
    fn a_draw_is_the_references(logits in logits(), params in truncation(), seed: u64, position in 0u32..4) {
        let (mut tokens, margin) = reference(&logits, &params);
        prop_assume!(margin > 1e-5);
        let mut state = state(&params, seed, 3);
        (0..position).for_each(|_| state.accept(0));
        let (token, _) = Sampler::new(logits.len()).sample(&mut logits.clone(), &state).expect("finite logits");

        let uniform = philox::uniform(seed, 3, u64::from(position));
        tokens.sort_by_key(|(id, _)| *id);
        let mut low = 0.0;
        for (id, p) in &tokens {
            if *id == token {
                prop_assert!(low - 1e-5 <= uniform && uniform <= low + p + 1e-5, "{uniform} is not from {low} to {}", low + p);
                return Ok(());
            }
            low += p;
        }
        prop_assert!(false, "{token} is none of {tokens:?}");
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest(logits in logits()) {
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let (token, _) = Sampler::new(logits.len()).sample(&mut logits.clone(), &state(&params, 0, 0)).expect("finite logits");
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assert_eq!(Some(token as usize), logits.iter().position(|x| *x == largest));
    }

    #[test]
    fn logprobs_are_the_references(logits in logits(), token: prop::sample::Index, top in 0u32..20) {
        let token = token.index(logits.len());
        let params = SamplingParams { ..SamplingParams::default() };
        let (tokens, _) = reference(&logits, &params);
        let found = Sampler::new(logits.len()).logprobs(&logits, token as TokenId, top);
        prop_assert_eq!(found.top.len(), tokens.len().min(top as usize));
        for ((found, (id, p)), rank) in found.top.iter().zip(&tokens).zip(1..) {
            prop_assert_eq!((found.token, found.rank), (*id, rank));
            prop_assert!((f64::from(found.logprob) - p.ln()).abs() < 1e-5, "{found:?}: {}", p.ln());
        }
        if let Some(at) = tokens.iter().position(|(id, _)| *id as usize == token) {
            prop_assert_eq!((found.chosen.token as usize, found.chosen.rank as usize), (token, at + 1));
            prop_assert!((f64::from(found.chosen.logprob) - tokens[at].1.ln()).abs() < 1e-5);
        }
    }

    /// Bias, penalties and mask, one token at a time.
    #[test]
    fn adjustments_are_the_references(
        logits in prop::collection::vec(-5.0f32..5.0, 12),
        prompt in prop::collection::vec(0u32..12, 0..6),
        output in prop::collection::vec(0u32..12, 0..12),
        bias in prop::collection::vec((0u32..12, -3.0f32..3.0), 0..3),
        (repetition, presence, frequency) in (prop_oneof![Just(1.0f32), 0.5f32..2.0], prop_oneof![Just(0.0f32), -2.0f32..2.0], prop_oneof![Just(0.0f32), -2.0f32..2.0]),
        min_tokens in 0u32..12,
        ignore_eos: bool,
    ) {
        let params = SamplingParams {
            temperature: 0.0, repetition_penalty: repetition, presence_penalty: presence, frequency_penalty: frequency,
            logit_bias: bias.clone(), min_tokens, ignore_eos, stop_token_ids: vec![3], eos_token_ids: vec![5, 400],
            logprobs: Some(3), max_tokens: 100, ..SamplingParams::default()
        };
        let penalised = penalised(&prompt, &params);
        let mut state = SamplerState::new(Arc::new(params), 0, 0, penalised);
        output.iter().for_each(|token| state.accept(*token));
        let mut sampler = Sampler::new(12);
        let mut adjusted = logits.clone();
        let (token, scores) = sampler.sample(&mut adjusted, &state).expect("finite logits");

        for id in 0..12u32 {
            let mut x = f64::from(logits[id as usize]);
            x += bias.iter().filter(|(of, _)| *of == id).map(|(_, bias)| f64::from(*bias)).sum::<f64>();
            let count = output.iter().filter(|of| **of == id).count();
            if count > 0 || prompt.contains(&id) {
                x = if x > 0.0 { x / f64::from(repetition) } else { x * f64::from(repetition) };
            }
            if count > 0 {
                x -= f64::from(presence) + count as f64 * f64::from(frequency);
            }
            if (output.len() as u32) < min_tokens && (id == 3 || id == 5 && !ignore_eos) {
                x = f64::NEG_INFINITY;
            }
            let found = f64::from(adjusted[id as usize]);
            prop_assert!(found == x || (found - x).abs() < 1e-4, "token {id}: {found}, not {x}");
        }
        prop_assert_eq!(scores.map(|boxed| *boxed), Some(sampler.logprobs(&logits, token, 3)), "scores are raw");
    }
}

#[test]
fn nothing_to_choose_from_is_an_error() {
    for temperature in [0.0, 1.0] {
        let params = SamplingParams { temperature, top_k: Some(2), ..SamplingParams::default() };
        for mut logits in [vec![f32::NAN; 100], vec![f32::NEG_INFINITY; 100]] {
            assert_eq!(Sampler::new(100).sample(&mut logits, &state(&params, 0, 0)), Err(NoCandidate));
        }
        let mut logits = vec![f32::NAN, 1.0, f32::INFINITY, f32::INFINITY];
        assert_eq!(Sampler::new(4).sample(&mut logits, &state(&params, 0, 0)).map(|it| it.0), Ok(2));
    }
}

#[test]
fn the_coldest_and_hottest_temperatures_are_sound() {
    for temperature in [1e-44, 1e-6, 1e-5, 1e-3, 1e30, f32::MAX] {
        for (top_p, top_k) in [(1.0, None), (0.5, None), (0.5, Some(3)), (1.0, Some(3))] {
            let params = SamplingParams { temperature, top_p, top_k, ..SamplingParams::default() };
            let mut logits = [-1e30, 3.0, 2.0, 1.0, f32::MAX / 2.0, f32::MIN];
            let (token, _) =
                Sampler::new(6).sample(&mut logits, &state(&params, 9, 0)).expect("finite logits");
            assert!(temperature > 1.0 || token == 4, "{temperature}: {token}");
        }
    }
}

/// Pearson's test at one in 10⁵ for each way to draw. The seeds are fixed, so it holds always or never.
#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = (0..150).map(|at| ((at * 37) % 150) as f32 / 25.0).collect();
    let ways = [
        SamplingParams { ..SamplingParams::default() },
        SamplingParams { temperature: 0.7, top_k: Some(30), ..SamplingParams::default() },
        SamplingParams { temperature: 1.5, top_p: 0.8, ..SamplingParams::default() },
        SamplingParams { min_p: 0.05, top_p: 0.9, top_k: Some(80), ..SamplingParams::default() },
    ];
    for (params, choice) in ways.iter().zip(0..) {
        let (tokens, _) = reference(&logits, params);
        let draws = 100_000u32;
        let mut sampler = Sampler::new(logits.len());
        let mut counts = vec![0u32; logits.len()];
        let mut one = state(params, 42, choice);
        for _ in 0..draws {
            let token = sampler.sample(&mut logits.clone(), &one).expect("finite logits").0;
            counts[token as usize] += 1;
            one.accept(token);
        }
        let expected = |p: f64| p * f64::from(draws);
        let square: f64 = tokens
            .iter()
            .map(|(id, p)| (f64::from(counts[*id as usize]) - expected(*p)).powi(2) / expected(*p))
            .sum();
        let freedom = (tokens.len() - 1) as f64;
        // Wilson and Hilferty's approximation of the quantile.
        let quantile =
            freedom * (1.0 - 2.0 / (9.0 * freedom) + 4.265 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
        assert!(square < quantile, "{params:?}: {square} of {quantile}");
        let kept: u32 = tokens.iter().map(|(id, _)| counts[*id as usize]).sum();
        assert_eq!(kept, draws, "nothing else is drawn");
    }
}

/// Cuts a row to its `count` best tokens after `bias`, as a device would; the worst first, as no order is promised.
fn cut(logits: &[f32], bias: &[f32], count: usize) -> (Vec<TokenId>, Vec<f32>, f32) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let finite = logits.iter().filter(|x| !x.is_nan());
    let sum: f64 = finite.map(|x| (f64::from(*x) - f64::from(max)).exp()).sum();
    let biased = |token: usize| logits[token] + bias.get(token).copied().unwrap_or(0.0) + 0.0;
    let mut tokens: Vec<usize> = (0..logits.len()).filter(|token| !logits[*token].is_nan()).collect();
    tokens.sort_by(|a, b| biased(*b).total_cmp(&biased(*a)).then(a.cmp(b)));
    tokens.truncate(count);
    tokens.reverse();
    let values = tokens.iter().map(|token| biased(*token)).collect();
    (tokens.into_iter().map(|token| token as TokenId).collect(), values, (f64::from(max) + sum.ln()) as f32)
}

/// Numbers whose sums are exact, so that the order of additions does not matter.
fn exact(range: std::ops::Range<i32>) -> impl Strategy<Value = f32> {
    range.prop_map(|x| x as f32 / 8.0)
}

fn limited(params: &SamplingParams, candidates: usize) -> SamplingParams {
    let top_k = Some(params.top_k.map_or(candidates, |k| candidates.min(k as usize)) as u32);
    SamplingParams { top_k, ..params.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// To the bit, as a whole row would be sampled with a `top_k` of no more than the candidates.
    #[test]
    fn candidates_are_a_whole_row_cut_by_top_k(
        logits in logits(), params in truncation(), greedy: bool, share in 0.0f32..1.0, seed: u64, top in 0u32..8,
    ) {
        let count = 1 + (share * (logits.len() - 1) as f32) as usize;
        prop_assume!(count < logits.len());
        let temperature = if greedy { 0.0 } else { params.temperature };
        let params = SamplingParams { temperature, logprobs: Some(top), ..params };
        let mut sampler = Sampler::new(logits.len());
        let whole = sampler.sample(&mut logits.clone(), &state(&limited(&params, count), seed, 1));
        let (tokens, values, log_sum_exp) = cut(&logits, &[], count);
        let row = Candidates { tokens: &tokens, logits: &values, log_sum_exp };
        let found = sampler.sample_candidates(row, None, &state(&params, seed, 1));
        let ((whole, theirs), (found, ours)) = (whole.expect("finite"), found.expect("finite"));
        prop_assert_eq!(whole, found);
        let (theirs, ours) = (theirs.expect("asked for"), ours.expect("asked for"));
        let finite = values.iter().filter(|x| x.is_finite()).count();
        prop_assert_eq!(ours.top.len(), finite.min(top as usize));
        for (ours, theirs) in ours.top.iter().chain([&ours.chosen]).zip(theirs.top.iter().take(ours.top.len()).chain([&theirs.chosen])) {
            prop_assert_eq!((ours.token, ours.rank), (theirs.token, theirs.rank));
            prop_assert!((ours.logprob - theirs.logprob).abs() < 1e-5, "{ours:?} {theirs:?}");
        }
    }

    /// What is added before the cut is what is added to a whole row, and the log-probabilities are without it.
    #[test]
    fn adjusted_candidates_are_an_adjusted_row(
        logits in prop::collection::vec(exact(-40..40), 12..60),
        drawn in truncation(),
        prompt in prop::collection::vec(0u32..12, 0..6),
        output in prop::collection::vec(0u32..12, 0..12),
        bias in prop::collection::vec((0u32..12, exact(-24..24)), 0..3),
        repetition in prop_oneof![Just(1.0f32), Just(2.0), Just(4.0)],
        (presence, frequency) in (exact(-16..17), exact(-16..17)),
        min_tokens in 0u32..12,
        (count, greedy, seed) in (1usize..11, any::<bool>(), any::<u64>()),
    ) {
        let params = SamplingParams {
            temperature: if greedy { 0.0 } else { drawn.temperature },
            repetition_penalty: repetition, presence_penalty: presence, frequency_penalty: frequency,
            logit_bias: bias, min_tokens, stop_token_ids: vec![3, 7], eos_token_ids: vec![5, 400],
            logprobs: Some(2), max_tokens: 100, ..drawn
        };
        let of = |params: &SamplingParams| {
            let mut state = SamplerState::new(Arc::new(params.clone()), seed, 0, penalised(&prompt, params));
            output.iter().for_each(|token| state.accept(*token));
            state
        };
        let state = of(&params);
        let mut added = vec![0.0; logits.len()];
        state.bias(&mut added);
        prop_assert!(state.biases() || added.iter().all(|x| *x == 0.0));
        let (tokens, values, log_sum_exp) = cut(&logits, &added, count);
        let row = Candidates { tokens: &tokens, logits: &values, log_sum_exp };
        let mut sampler = Sampler::new(logits.len());
        let found = sampler.sample_candidates(row, Some(&added), &state);

        let mut adjusted = logits.clone();
        state.adjust(&mut adjusted);
        // So many candidates are still the best after the repetition penalty; one that fell to the lowest may tie.
        let forbidden = |token: &TokenId| adjusted[*token as usize] == f32::NEG_INFINITY;
        let lowest = tokens.iter().position(|token| !forbidden(token)).map(|at| values[at]);
        let Some(lowest) = lowest else {
            prop_assert_eq!(found, Err(NoCandidate));
            return Ok(());
        };
        let of_candidates = |token: &&TokenId| !forbidden(token) && adjusted[**token as usize] >= lowest;
        let sure = if repetition == 1.0 { count } else { tokens.iter().filter(of_candidates).count() };
        let tied = tokens.iter().any(|token| adjusted[*token as usize] == lowest && repetition != 1.0);
        let (token, scores) = found.expect("a token is allowed");
        if sure > 0 && !tied {
            let mut whole = logits.clone();
            let (expected, _) = sampler.sample(&mut whole, &of(&limited(&params, sure))).expect("a token is allowed");
            prop_assert_eq!(token, expected);
        }
        let exact = sampler.logprobs(&logits, token, 0).chosen.logprob;
        let found = scores.expect("asked for").chosen.logprob;
        prop_assert!((exact - found).abs() < 1e-5, "{found}, not {exact}");
    }
}
