//! min_p, top_k and top_p without sorting the vocabulary.
//!
//! Tokens rank by logit, then by id, and each of the three keeps a prefix of that order; so truncation is
//! finding a last token to keep. A cheap lower bound on its logit leaves a few candidates, taken from those
//! blocks of the row only whose maximum reaches the bound; selection among them is by quickselect.

use std::cmp::Ordering;

use super::vector::{self, BLOCK};
use crate::{SamplingParams, TokenId};

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Candidate {
    pub(crate) logit: f32,
    pub(crate) weight: f32,
    pub(crate) token: TokenId,
}

impl Candidate {
    pub(crate) fn rank(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// Collects tokens whose logits reach `bound`, in the order of their ids.
pub(crate) fn gather(row: &[f32], maxima: &[f32], bound: f32, out: &mut Vec<Candidate>) {
    out.clear();
    // Excludes what is masked with -∞.
    let bound = bound.max(f32::MIN);
    for (block, logits) in row.chunks(BLOCK).enumerate().filter(|(block, _)| maxima[*block] >= bound) {
        let candidates = logits.iter().enumerate().filter(|(_, logit)| **logit >= bound);
        out.extend(candidates.map(|(at, logit)| Candidate {
            // One zero, so that the order by bits is the order by value.
            logit: *logit + 0.0,
            weight: 0.0,
            token: (block * BLOCK + at) as TokenId,
        }));
    }
}

/// A lower bound on the k-th largest logit: the k-th largest maximum.
pub(crate) fn kth_bound(maxima: &[f32], k: usize, scratch: &mut Vec<f32>) -> f32 {
    if k > maxima.len() {
        return f32::MIN;
    }
    scratch.clear();
    scratch.extend_from_slice(maxima);
    let (_, kth, _) = scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    *kth
}

/// The lowest logit that min_p passes.
pub(crate) fn min_p_bound(max: f32, params: &SamplingParams) -> f32 {
    if params.min_p > 0.0 { max + params.temperature * params.min_p.ln() } else { f32::MIN }
}

/// Leaves the tokens that may be drawn in `kept`, in the order of their ids, weighted; yields their weight.
pub(crate) fn truncate(
    row: &[f32],
    maxima: &[f32],
    max: f32,
    params: &SamplingParams,
    kept: &mut Vec<Candidate>,
    scratch: (&mut Vec<Candidate>, &mut Vec<f32>),
) -> f64 {
    let (order, floats) = scratch;
    let top_k = params.top_k.map_or(row.len(), |k| (k as usize).min(row.len()));

    // The weight of all tokens, where top_p is a share of just that.
    let mut all = None;
    let mut bound = f32::MIN;
    if params.min_p > 0.0 {
        bound = bound.max(min_p_bound(max, params));
    }
    if top_k < row.len() {
        bound = bound.max(kth_bound(maxima, top_k, floats));
    } else if params.min_p == 0.0 {
        let total = *all.insert(vector::sum_exp(row, max, 1.0 / params.temperature));
        // Tokens that each weigh less than an equal share of what top_p leaves out leave out less than that together,
        // so the rest is enough. The margin keeps rounding on the safe side.
        let share = (1.0 - f64::from(params.top_p)) * total / row.len() as f64;
        let margin = 1e-4 * params.temperature + 1e-6 * max.abs();
        bound = bound.max(max + params.temperature * share.ln() as f32 - margin);
    }
    gather(row, maxima, bound, kept);
    narrow(max, params, top_k, all, kept, order)
}

/// Of tokens that min_p has passed, in the order of their ids, keeps those that top_k and top_p leave, weighted;
/// yields their weight. `all` is what top_p is a share of, where it is not what top_k leaves.
pub(crate) fn narrow(
    max: f32,
    params: &SamplingParams,
    top_k: usize,
    all: Option<f64>,
    kept: &mut Vec<Candidate>,
    order: &mut Vec<Candidate>,
) -> f64 {
    let scale = 1.0 / params.temperature;
    if kept.len() > top_k {
        order.clone_from(kept);
        let last = *order.select_nth_unstable_by(top_k - 1, Candidate::rank).1;
        kept.retain(|candidate| candidate.rank(&last).is_le());
    }
    for candidate in kept.iter_mut() {
        candidate.weight = vector::exp((candidate.logit - max) * scale);
    }
    if params.top_p == 1.0 {
        return weight(kept);
    }
    let total = all.unwrap_or_else(|| weight(kept));
    order.clone_from(kept);
    let last = last_of_nucleus(order, f64::from(params.top_p) * total);
    kept.retain(|candidate| candidate.rank(&last).is_le());
    weight(kept)
}

fn weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// The token with which the best ones first weigh `target` together; the last one if they never do.
fn last_of_nucleus(mut among: &mut [Candidate], mut target: f64) -> Candidate {
    while among.len() > 32 {
        // Weight sits in front, so a small head is likely to be enough.
        let (head, _, _) = among.select_nth_unstable_by(among.len() / 4, Candidate::rank);
        let (size, mass) = (head.len(), weight(head));
        if size > 0 && mass >= target {
            among = &mut among[..size];
        } else {
            target -= mass;
            among = &mut among[size..];
        }
    }
    among.sort_unstable_by(Candidate::rank);
    let enough = among.iter().find(|candidate| {
        target -= f64::from(candidate.weight);
        target <= 0.0
    });
    *enough.or(among.last()).expect("somebody is left to choose from")
}
