//! Paged attention's schedules and scratch memory, which plans share.

use millrace_graph::Type;

use super::executor::PerWorker;
use super::plan::AttentionPhase;
use super::states::States;
use crate::attention::{AttentionCall, Rows, Schedule, Scratch};
use crate::pool::Worker;

/// What attentions that have tables, positions and window in common need during a step. A plan's n-th distinct
/// attention uses the n-th of these with its heads and cache type, so their number is that of one graph's.
#[derive(Debug)]
pub(crate) struct Attend {
    heads: usize,
    cache: Type,
    /// Tokens that the schedule has room for.
    tokens: usize,
    pub(crate) schedule: Schedule,
    scratch: PerWorker<Scratch>,
}

impl Attend {
    pub(crate) fn new(heads: usize, cache: &Type, tokens: usize, workers: usize) -> Self {
        Attend {
            heads,
            cache: cache.clone(),
            tokens,
            schedule: Schedule::new(heads, cache, tokens, workers),
            scratch: PerWorker::new(workers, || Scratch::new(heads, cache)),
        }
    }

    pub(crate) fn suits(&self, heads: usize, cache: &Type) -> bool {
        self.heads == heads && self.cache == *cache
    }

    /// Makes room for so many tokens.
    pub(crate) fn grow(&mut self, tokens: usize, workers: usize) {
        if self.tokens < tokens {
            self.schedule = Schedule::new(self.heads, &self.cache, tokens, workers);
            self.tokens = tokens;
        }
    }

    /// Divides this step's attentions of that kind into items.
    pub(crate) fn plan(&mut self, phase: &AttentionPhase, states: &States, inputs: &[&[i32]]) {
        // Planning looks at indices alone.
        let (q, out) = (std::ptr::null(), std::ptr::null_mut());
        self.schedule.plan(&call(phase, states, inputs, q, out));
    }

    /// # Safety
    /// The worker has no other reference to its scratch.
    #[allow(clippy::mut_from_ref, reason = "each worker has its own")]
    pub(crate) unsafe fn scratch(&self, worker: &Worker<'_>) -> &mut Scratch {
        // SAFETY: passed on.
        unsafe { self.scratch.get(worker) }
    }
}

/// The attention of a phase, as its kernel takes it.
pub(crate) fn call<'a>(
    phase: &AttentionPhase,
    states: &'a States,
    inputs: &[&'a [i32]],
    queries: *const f32,
    results: *mut f32,
) -> AttentionCall<'a> {
    AttentionCall {
        q: queries,
        q_stride: phase.q.stride,
        heads: phase.heads,
        k: states.get(phase.k),
        v: states.get(phase.v),
        tables: inputs[phase.tables as usize],
        table_stride: phase.table_blocks,
        positions: inputs[phase.positions as usize],
        rows: match phase.rows {
            Some(rows) => Rows::PerToken(inputs[rows as usize]),
            None => Rows::Width(phase.attention.width.unwrap_or(1)),
        },
        params: phase.attention,
        out: results,
        out_stride: phase.out.stride,
    }
}
