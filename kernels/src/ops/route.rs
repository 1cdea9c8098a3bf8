//! The router of a mixture of experts.

use super::math;

/// Chooses the `experts.len()` largest logits, in descending order and the lower index first on a tie, and
/// writes their softmax probabilities over all logits, scaled to sum to one if `normalise`.
pub(crate) fn choose(logits: &[f32], normalise: bool, experts: &mut [u32], weights: &mut [f32]) {
    let (mut last, mut last_at) = (f32::INFINITY, None);
    for expert in experts.iter_mut() {
        let (mut best, mut best_at) = (f32::NEG_INFINITY, 0);
        let mut found = false;
        for (at, logit) in logits.iter().enumerate() {
            let comes_later = *logit < last || (*logit == last && last_at.is_none_or(|last_at| at > last_at));
            if comes_later && (!found || *logit > best) {
                (best, best_at, found) = (*logit, at, true);
            }
        }
        // Without a logit left to choose (they are not numbers), the first expert it is, for want of a better.
        *expert = best_at as u32;
        (last, last_at) = (best, Some(best_at));
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (weight, expert) in weights.iter_mut().zip(experts) {
        *weight = math::exp(logits[*expert as usize] - max);
    }
    let total: f32 = if normalise {
        weights.iter().sum()
    } else {
        logits.iter().map(|logit| math::exp(logit - max)).sum()
    };
    weights.iter_mut().for_each(|weight| *weight /= total);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chooses_as_a_stable_sort_does(
            logits in proptest::collection::vec((-6i8..6).prop_map(|x| f32::from(x) / 2.0), 1..20),
            k in 1usize..20,
            normalise: bool,
        ) {
            let k = k.min(logits.len());
            let (mut experts, mut weights) = (vec![0; k], vec![0.0; k]);
            choose(&logits, normalise, &mut experts, &mut weights);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let exps: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
            let over: f64 = if normalise { order[..k].iter().map(|i| exps[*i]).sum() } else { exps.iter().sum() };
            for (rank, expert) in experts.iter().enumerate() {
                prop_assert_eq!(*expert as usize, order[rank]);
                prop_assert!((f64::from(weights[rank]) - exps[order[rank]] / over).abs() < 1e-6);
            }
        }

        #[test]
        fn names_existing_experts_whatever_the_logits(
            logits in proptest::collection::vec(prop_oneof![Just(f32::NAN), Just(f32::INFINITY), any::<f32>()], 1..9),
        ) {
            let mut experts = vec![0; logits.len()];
            choose(&logits, true, &mut experts, &mut vec![0.0; logits.len()]);
            prop_assert!(experts.iter().all(|expert| (*expert as usize) < logits.len()));
        }
    }
}
