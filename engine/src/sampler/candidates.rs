//! Sampling from rows that the device has cut to their best tokens: what sampling from the whole row would give
//! with a `top_k` of no more than there are candidates.
//!
//! What is added to a row (bias, presence and frequency penalties, masks) must be known before the cut, and is sent
//! with the step. The repetition penalty multiplies instead, so it is applied here. It only ever lowers logits (the
//! engine refuses others for such a backend), and no token that was cut off exceeds the lowest candidate: so
//! candidates that stay at or above that one are the best tokens, and those that fall below it are let go.

use super::truncate::{Candidate, min_p_bound, narrow};
use super::{GREEDY, NoCandidate, Sampled, Sampler, SamplerState, philox};
use crate::{Candidates, Logprob, MASKED, TokenId, TokenLogprobs};

impl SamplerState {
    /// Whether anything is to be added to logits before they are cut.
    pub(crate) fn biases(&self) -> bool {
        let params = &self.params;
        let counts = params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        self.masks()
            || self.allowed.is_some()
            || !params.logit_bias.is_empty()
            || counts && !self.output.is_empty()
    }

    /// Adds what is to be added to logits before they are cut to `row`, one number for each token.
    ///
    /// # Panics
    /// If a token id of the parameters or the output is beyond the row.
    pub(crate) fn bias(&self, row: &mut [f32]) {
        for (token, bias) in &self.params.logit_bias {
            row[*token as usize] += bias;
        }
        for (token, count) in &self.output {
            row[*token as usize] -= self.count_penalty(*count);
        }
        self.mask(row, MASKED);
    }

    /// A logit of the model as `adjust` would have left it.
    fn adjusted(&self, token: TokenId, logit: f32) -> f32 {
        let params = &*self.params;
        let biases = params.logit_bias.iter().filter(|(of, _)| *of == token);
        let mut logit = biases.fold(logit, |logit, (_, bias)| logit + bias);
        let count = self.output.get(&token);
        if count.is_some() || self.prompt.binary_search(&token).is_ok() {
            logit *= if logit > 0.0 { 1.0 / params.repetition_penalty } else { params.repetition_penalty };
        }
        logit - count.map_or(0.0, |count| self.count_penalty(*count))
    }
}

/// Whether a bias forbids a token: what was added besides the mask does not make up for it.
fn forbids(bias: f32) -> bool {
    bias < MASKED / 2.0
}

impl Sampler {
    /// Chooses the next token from a row that was cut after `bias` was added to it.
    ///
    /// Log-probabilities are those of the whole row without the bias. The best ones that are listed, and ranks, are
    /// among the candidates: the row's own, unless there was a bias.
    ///
    /// # Errors
    /// Where no token can be chosen.
    ///
    /// # Panics
    /// If a candidate is beyond the bias.
    pub fn sample_candidates(
        &mut self,
        row: Candidates<'_>,
        bias: Option<&[f32]>,
        state: &SamplerState,
    ) -> Result<Sampled, NoCandidate> {
        let params = &*state.params;
        let added = |token: TokenId| bias.map_or(0.0, |bias| bias[token as usize]);
        let allowed = |&(token, logit): &(TokenId, f32)| logit > f32::NEG_INFINITY && !forbids(added(token));
        let all = || row.tokens.iter().copied().zip(row.logits.iter().copied()).filter(allowed);

        let repetition = params.repetition_penalty != 1.0;
        self.kept.clear();
        self.kept.extend(all().map(|(token, logit)| {
            let logit = if repetition { state.adjusted(token, logit - added(token)) } else { logit };
            // One zero, so that the order by bits is the order by value.
            Candidate { logit: logit + 0.0, weight: 0.0, token }
        }));
        if repetition {
            let lowest = all().fold(f32::INFINITY, |lowest, (_, logit)| lowest.min(logit));
            if self.kept.iter().any(|candidate| candidate.logit >= lowest) {
                self.kept.retain(|candidate| candidate.logit >= lowest);
            }
        }
        let best = *self.kept.iter().min_by(|a, b| a.rank(b)).ok_or(NoCandidate)?;
        let token = if params.temperature < GREEDY || best.logit == f32::INFINITY {
            best.token
        } else {
            self.kept.sort_unstable_by_key(|candidate| candidate.token);
            let bound = min_p_bound(best.logit, params);
            self.kept.retain(|candidate| candidate.logit >= bound);
            let top_k = params.top_k.map_or(usize::MAX, |k| k as usize);
            let weight = narrow(best.logit, params, top_k, None, &mut self.kept, &mut self.order);
            let uniform = philox::uniform(state.seed, state.choice, u64::from(state.position));
            self.draw_from_kept(uniform * weight).unwrap_or(best.token)
        };
        let logprobs = params.logprobs.map(|top| {
            self.kept.clear();
            self.kept.extend(all().map(|(token, logit)| Candidate {
                logit: logit - added(token) + 0.0,
                weight: 0.0,
                token,
            }));
            self.kept.sort_unstable_by(Candidate::rank);
            let score = |(at, of): (usize, &Candidate)| Logprob {
                token: of.token,
                logprob: (f64::from(of.logit) - f64::from(row.log_sum_exp)) as f32,
                rank: at as u32 + 1,
            };
            let scores = || self.kept.iter().enumerate().map(score);
            let chosen = scores().find(|score| score.token == token);
            let chosen = chosen.unwrap_or_else(|| unreachable!("the token is one of the candidates"));
            Box::new(TokenLogprobs { chosen, top: scores().take(top as usize).collect() })
        });
        Ok((token, logprobs))
    }
}
