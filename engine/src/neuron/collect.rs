//! Waiting for an execution on all ranks, however it ends on each.

use std::time::{Duration, Instant};

use neuron_sys::{CoreThreadError, Error, Pending, Runtime};

use super::failure::{graver, serving, thread};
use super::rank::Outputs;
use crate::RunError;

/// One execution, under way on each rank.
pub(super) type OnRanks = Vec<Pending<Result<Outputs, Error>>>;

/// How long the other ranks get once one has failed for good: they may be waiting for it inside of a collective, and
/// whoever waits for an answer need not wait with them.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long one rank is waited for before another is asked.
const SLICE: Duration = Duration::from_millis(20);

/// Waits for one execution on all ranks, at most until `hang` after `since`.
///
/// # Errors
/// The gravest of the ranks. Where one did not answer the runtime is given up: nothing of it can be closed.
pub(super) fn collect(
    runtime: &Runtime,
    hang: Duration,
    since: Instant,
    ranks: OnRanks,
) -> Result<Vec<Outputs>, RunError> {
    let mut outputs = vec![Outputs::default(); ranks.len()];
    let mut waiting: Vec<usize> = (0..ranks.len()).collect();
    let mut failed: Option<RunError> = None;
    let mut limit = hang;
    while let Some(&rank) = waiting.first() {
        let left = limit.saturating_sub(since.elapsed());
        let patience = if waiting.len() == 1 { left } else { left.min(SLICE) };
        let error = match ranks[rank].wait_timeout(patience) {
            Err(CoreThreadError::TimedOut) if !limit.saturating_sub(since.elapsed()).is_zero() => {
                waiting.rotate_left(1);
                continue;
            }
            Ok(Ok(output)) => {
                outputs[rank] = output;
                waiting.remove(0);
                continue;
            }
            Ok(Err(error)) => serving(rank, &error),
            Err(error) => {
                // Whatever it was, the thread or the device does not answer.
                runtime.abandon();
                thread(rank, &error)
            }
        };
        waiting.remove(0);
        if matches!(error, RunError::Fatal(_)) {
            limit = limit.min(since.elapsed() + LAST_WORDS);
        }
        failed = Some(match failed {
            Some(before) => graver(before, error),
            None => error,
        });
    }
    failed.map_or(Ok(outputs), Err)
}
