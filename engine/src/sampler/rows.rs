//! The rows of a step, sampled by whoever is there: each draw depends on its own row, state and position alone, so
//! neither the number of threads nor the order of rows changes a token.

use std::sync::{Mutex, MutexGuard, PoisonError};

use millrace_kernels::Pool;

use super::{NoCandidate, Sampled, Sampler, SamplerState};
use crate::{Logits, Step};

/// Samples the rows of steps, on the backend's workers where it lends them.
#[derive(Debug)]
pub(crate) struct Rows {
    /// One for each worker.
    samplers: Vec<Mutex<Sampler>>,
    /// One for each row of logits.
    draws: Vec<Draw>,
}

/// What is wanted of a row of logits, and what came of it.
#[derive(Debug, Default)]
struct Draw {
    /// The step's row that a token is wanted for.
    row: Option<usize>,
    sampled: Option<Result<Sampled, NoCandidate>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rows {
    /// With room for `rows` rows of `vocab` logits on `threads` threads, so that sampling allocates nothing.
    pub(crate) fn new(vocab: usize, rows: usize, threads: usize) -> Self {
        Rows {
            samplers: (0..threads.max(1)).map(|_| Mutex::new(Sampler::new(vocab))).collect(),
            draws: Vec::with_capacity(rows),
        }
    }

    /// Begins a step of so many rows of logits, of which none is wanted.
    pub(crate) fn clear(&mut self, logit_rows: usize) {
        self.draws.clear();
        self.draws.resize_with(logit_rows, Draw::default);
    }

    /// A token is wanted from a row of logits, for this row of the step.
    pub(crate) fn want(&mut self, logit_row: usize, row: usize) {
        self.draws[logit_row].row = Some(row);
    }

    /// The sampler of what is not drawn.
    pub(crate) fn sampler(&mut self) -> &mut Sampler {
        self.samplers[0].get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws all tokens that are wanted. `state` yields the sampler state of a row of the step.
    ///
    /// # Panics
    /// As [`Sampler::sample`].
    pub(crate) fn sample<'a>(
        &mut self,
        pool: Option<&Pool>,
        logits: &mut Logits,
        step: &Step,
        state: impl Fn(usize) -> &'a SamplerState + Sync,
    ) {
        let wanted = self.draws.iter().filter(|draw| draw.row.is_some()).count();
        if logits.cut.is_some() {
            let sampler = self.samplers[0].get_mut().unwrap_or_else(PoisonError::into_inner);
            for (at, draw) in self.draws.iter_mut().enumerate() {
                let Some(row) = draw.row else { continue };
                let best = logits.candidates(at).unwrap_or_else(|| unreachable!("rows are cut"));
                draw.sampled = Some(sampler.sample_candidates(best, step.bias_of(row), state(row)));
            }
            return;
        }
        let rows = Mutex::new(logits.values.chunks_exact_mut(logits.columns).zip(&mut self.draws));
        let next = || lock(&rows).find(|(_, draw)| draw.row.is_some());
        let work = |sampler: &mut Sampler| {
            while let Some((logits, draw)) = next() {
                draw.sampled = draw.row.map(|row| sampler.sample(logits, state(row)));
            }
        };
        match pool.filter(|pool| wanted > 1 && pool.threads() <= self.samplers.len()) {
            Some(pool) => pool.run(&|worker| work(&mut lock(&self.samplers[worker.index()]))),
            None => work(&mut lock(&self.samplers[0])),
        }
    }

    /// What was drawn from a row of logits; `None` where nothing was wanted.
    pub(crate) fn take(&mut self, logit_row: usize) -> Option<Result<Sampled, NoCandidate>> {
        self.draws[logit_row].sampled.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{Row, SamplingParams, SeqId, Want};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// Any number of threads draws what one sampler draws row by row, adjusts what it adjusts, and leaves alone
        /// what is not wanted.
        #[test]
        fn threads_draw_what_one_does(
            rows in prop::collection::vec((any::<bool>(), 0.0f32..2.0, 0.1f32..1.0, any::<u64>(), 1.0f32..1.5), 1..24),
            threads in 1usize..5, seed: u64,
        ) {
            let vocab = 300;
            let values: Vec<f32> = (0..rows.len() * vocab)
                .map(|at| (super::super::philox::draw(seed, 1, at as u64) % 1000) as f32 / 100.0)
                .collect();
            let states: Vec<SamplerState> = rows.iter().enumerate().map(|(at, (_, temperature, top_p, seed, repetition))| {
                let params = SamplingParams {
                    temperature: *temperature, top_p: *top_p, repetition_penalty: *repetition, logprobs: Some(2),
                    ..SamplingParams::default()
                };
                SamplerState::new(Arc::new(params), *seed, at as u32, Arc::new([1, 5, 7]))
            }).collect();
            let step = Step { rows: rows.iter().map(|_| Row {
                seq: SeqId(0), first: 0, count: 1, position: 0, first_block: 0, blocks: 0, want: Want::Last,
            }).collect(), ..Step::default() };

            let mut expected = values.clone();
            let mut sampler = Sampler::new(vocab);
            let drawn: Vec<_> = rows.iter().zip(expected.chunks_mut(vocab)).zip(&states)
                .map(|((row, logits), state)| row.0.then(|| sampler.sample(logits, state)))
                .collect();

            let pool = Pool::new(threads);
            let mut all = Rows::new(vocab, rows.len(), threads);
            for pool in [Some(&pool), None] {
                let mut logits = Logits { columns: vocab, values: values.clone(), cut: None };
                all.clear(rows.len());
                rows.iter().enumerate().filter(|(_, row)| row.0).for_each(|(at, _)| all.want(at, at));
                all.sample(pool, &mut logits, &step, |row| &states[row]);
                for (at, drawn) in drawn.iter().enumerate() {
                    prop_assert_eq!(&all.take(at), drawn);
                    prop_assert_eq!(all.take(at), None);
                }
                prop_assert_eq!(&logits.values, &expected);
            }
        }
    }
}
