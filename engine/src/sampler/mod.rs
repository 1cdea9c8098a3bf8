//! From a row of logits to a token. The order is vLLM's: log-probabilities of the raw logits; bias, penalties
//! and mask; temperature; min_p, top_k, top_p; a draw.
//!
//! A draw depends on the logits, the request's seed, the choice and the position in its output, and on nothing else.

mod candidates;
pub(crate) mod philox;
mod rows;
mod truncate;
mod vector;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::constraint::forbid_others;
use crate::{Logprob, SamplingParams, TokenId, TokenLogprobs};
pub(crate) use rows::Rows;
use truncate::{Candidate, gather, kth_bound, truncate};
use vector::BLOCK;

/// Room for this many distinct output tokens is made before the first; more cost an allocation now and then.
const PENALISED: usize = 1024;

/// What sampling depends on besides the logits. Survives preemption, as nothing in it is computed from blocks.
#[derive(Debug)]
pub struct SamplerState {
    params: Arc<SamplingParams>,
    seed: u64,
    choice: u32,
    position: u32,
    // Those of the prompt that the repetition penalty applies to: ascending, each once.
    prompt: Arc<[TokenId]>,
    // Only with penalties.
    output: FxHashMap<TokenId, Count>,
    // The set of tokens that may come next, where a constraint limits them.
    allowed: Option<Vec<u32>>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    times: u32,
    in_prompt: bool,
}

/// The tokens of a prompt that are penalised: each once, ascending; none without a repetition penalty. Worked
/// out once for all choices of a request.
pub fn penalised(prompt: &[TokenId], params: &SamplingParams) -> Arc<[TokenId]> {
    if params.repetition_penalty == 1.0 {
        return Arc::new([]);
    }
    let mut tokens = prompt.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    tokens.into()
}

impl SamplerState {
    /// For choice number `choice` of a request, with the [`penalised`] tokens of its prompt.
    pub fn new(params: Arc<SamplingParams>, seed: u64, choice: u32, prompt: Arc<[TokenId]>) -> Self {
        let mut state = SamplerState {
            params,
            seed,
            choice,
            position: 0,
            prompt,
            output: FxHashMap::default(),
            allowed: None,
        };
        if state.penalises() {
            state.output.reserve(PENALISED.min(state.params.max_tokens as usize));
        }
        state
    }

    /// The token was put out.
    pub fn accept(&mut self, token: TokenId) {
        self.position += 1;
        if self.penalises() {
            let first = || Count { times: 0, in_prompt: self.prompt.binary_search(&token).is_ok() };
            self.output.entry(token).or_insert_with(first).times += 1;
        }
    }

    /// Where the set of tokens that may come next is to be put, as a [`Constraint`](crate::Constraint) yields it. From
    /// the first call on no other tokens are chosen.
    pub fn allowed(&mut self) -> &mut Vec<u32> {
        self.allowed.get_or_insert_default()
    }

    fn penalises(&self) -> bool {
        let params = &self.params;
        params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0
    }

    fn masks(&self) -> bool {
        self.position < self.params.min_tokens
    }

    fn adjusts(&self) -> bool {
        self.masks() || self.allowed.is_some() || self.penalises() || !self.params.logit_bias.is_empty()
    }

    fn adjust(&self, logits: &mut [f32]) {
        let params = &*self.params;
        for (token, bias) in &params.logit_bias {
            logits[*token as usize] += bias;
        }
        let repeated = |logit: &mut f32| {
            *logit *= if *logit > 0.0 { 1.0 / params.repetition_penalty } else { params.repetition_penalty };
        };
        for token in &*self.prompt {
            repeated(&mut logits[*token as usize]);
        }
        for (token, count) in &self.output {
            let logit = &mut logits[*token as usize];
            if !count.in_prompt {
                repeated(logit);
            }
            *logit -= self.count_penalty(*count);
        }
        self.mask(logits, f32::NEG_INFINITY);
    }

    fn count_penalty(&self, count: Count) -> f32 {
        self.params.presence_penalty + self.params.frequency_penalty * count.times as f32
    }

    /// Puts `value` in the place of tokens that may not come yet.
    fn mask(&self, logits: &mut [f32], value: f32) {
        if self.masks() {
            let eos = if self.params.ignore_eos { &[][..] } else { &self.params.eos_token_ids };
            for token in self.params.stop_token_ids.iter().chain(eos) {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit = value;
                }
            }
        }
        if let Some(allowed) = &self.allowed {
            forbid_others(logits, allowed, value);
        }
    }
}

/// No token can be chosen: every logit is NaN or -∞.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the model yields no finite logit for any token that may be sampled")]
pub struct NoCandidate;

/// A token, with log-probabilities where they were asked for.
pub type Sampled = (TokenId, Option<Box<TokenLogprobs>>);

/// Greedy below, as in vLLM: dividing by less would overflow.
const GREEDY: f32 = 1e-5;

/// The buffers of sampling.
#[derive(Debug)]
pub struct Sampler {
    maxima: Vec<f32>,
    floats: Vec<f32>,
    raw: Vec<f32>,
    kept: Vec<Candidate>,
    order: Vec<Candidate>,
    sums: Vec<f64>,
}

impl Sampler {
    /// With room for rows of `vocab` logits, so that sampling allocates nothing.
    pub fn new(vocab: usize) -> Self {
        let blocks = vocab.div_ceil(BLOCK);
        Sampler {
            maxima: Vec::with_capacity(blocks),
            floats: Vec::with_capacity(blocks),
            raw: Vec::new(),
            kept: Vec::with_capacity(vocab),
            order: Vec::with_capacity(vocab),
            sums: Vec::with_capacity(blocks),
        }
    }

    /// Chooses the next token. Adjusts the logits in place.
    ///
    /// # Errors
    /// Where no token can be chosen.
    ///
    /// # Panics
    /// If a token id of the parameters is beyond the logits.
    pub fn sample(&mut self, logits: &mut [f32], state: &SamplerState) -> Result<Sampled, NoCandidate> {
        let wanted = state.params.logprobs;
        let mut raw = std::mem::take(&mut self.raw);
        if wanted.is_some() && state.adjusts() {
            raw.clear();
            raw.extend_from_slice(logits);
        }
        if state.adjusts() {
            state.adjust(logits);
        }
        let token = self.choose(logits, state);
        let before = if state.adjusts() { &raw[..] } else { logits };
        let sampled =
            token.map(|token| (token, wanted.map(|top| Box::new(self.logprobs(before, token, top)))));
        self.raw = raw;
        sampled
    }

    fn choose(&mut self, logits: &[f32], state: &SamplerState) -> Result<TokenId, NoCandidate> {
        vector::maxima(logits, &mut self.maxima);
        let max = vector::max(&self.maxima);
        let best = vector::first(logits, &self.maxima, max)
            .filter(|_| max > f32::NEG_INFINITY)
            .ok_or(NoCandidate)?;
        let params = &*state.params;
        if params.temperature < GREEDY || max == f32::INFINITY {
            return Ok(best as TokenId);
        }
        let uniform = philox::uniform(state.seed, state.choice, u64::from(state.position));
        if params.top_k.is_none() && params.top_p == 1.0 && params.min_p == 0.0 {
            return Ok(
                self.draw_from_all(logits, max, 1.0 / params.temperature, uniform).unwrap_or(best) as TokenId
            );
        }
        let scratch = (&mut self.order, &mut self.floats);
        let weight = truncate(logits, &self.maxima, max, params, &mut self.kept, scratch);
        Ok(self.draw_from_kept(uniform * weight).unwrap_or(best as TokenId))
    }

    /// The token at which the weights of those kept, in the order of their ids, first exceed `left`.
    fn draw_from_kept(&self, mut left: f64) -> Option<TokenId> {
        let drawn = self.kept.iter().find(|candidate| {
            left -= f64::from(candidate.weight);
            left < 0.0
        });
        // Rounding may leave a trifle after the last.
        let last = || self.kept.iter().rfind(|candidate| candidate.weight > 0.0);
        drawn.or_else(last).map(|candidate| candidate.token)
    }

    /// Weighs blocks first, then the tokens of the one that the draw falls into.
    fn draw_from_all(&mut self, logits: &[f32], max: f32, scale: f32, uniform: f64) -> Option<usize> {
        self.sums.clear();
        self.sums.extend(logits.chunks(BLOCK).map(|block| vector::sum_exp(block, max, scale)));
        let mut left = uniform * self.sums.iter().sum::<f64>();
        let block = self.sums.iter().position(|sum| {
            let here = left < *sum;
            left -= if here { 0.0 } else { *sum };
            here
        });
        let block = block.or_else(|| self.sums.iter().rposition(|sum| *sum > 0.0))?;
        let tokens = &logits[block * BLOCK..][..BLOCK.min(logits.len() - block * BLOCK)];
        let weight = |logit: &f32| f64::from(vector::exp((logit - max) * scale));
        let drawn = tokens.iter().position(|logit| {
            left -= weight(logit);
            left < 0.0
        });
        drawn.or_else(|| tokens.iter().rposition(|logit| weight(logit) > 0.0)).map(|at| block * BLOCK + at)
    }

    /// Log-probabilities of a token and of the `top` best ones.
    ///
    /// # Panics
    /// If the token is beyond the logits.
    pub fn logprobs(&mut self, logits: &[f32], token: TokenId, top: u32) -> TokenLogprobs {
        vector::maxima(logits, &mut self.maxima);
        let max = vector::max(&self.maxima);
        let log_sum = vector::sum_exp(logits, max, 1.0).ln();
        let logprob = |logit: f32| match logit == max {
            // Also where the maximum is infinite, and differs from itself by no number.
            true => -log_sum as f32,
            false => (f64::from(logit) - f64::from(max) - log_sum) as f32,
        };
        let top = (top as usize).min(logits.len());
        self.kept.clear();
        if top > 0 {
            gather(logits, &self.maxima, kth_bound(&self.maxima, top, &mut self.floats), &mut self.kept);
            if self.kept.len() > top {
                self.kept.select_nth_unstable_by(top - 1, Candidate::rank);
                self.kept.truncate(top);
            }
            self.kept.sort_unstable_by(Candidate::rank);
        }
        let chosen = Logprob {
            token,
            logprob: logprob(logits[token as usize]),
            rank: 1 + vector::before(logits, token as usize) as u32,
        };
        let best = self.kept.iter().zip(1..);
        let top = best.map(|(best, rank)| Logprob { token: best.token, logprob: logprob(best.logit), rank });
        TokenLogprobs { chosen, top: top.collect() }
    }
}
