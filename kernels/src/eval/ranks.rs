//! Collectives: what the ranks of one program tell each other.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_graph::Reduction;

use super::{Fault, Value, contract};

/// The ranks that one evaluation runs together with, seen from one of them.
pub trait Ranks {
    /// This rank's number.
    fn rank(&self) -> u32;

    /// Gives this rank's `value` to all others, and returns everyone's, in the order of the ranks. Every rank calls
    /// it for the same nodes in the same order; `node` is for finding out whether it does.
    ///
    /// # Errors
    /// Why the ranks did not come together.
    fn exchange(&self, node: usize, value: &Value) -> Result<Vec<Value>, String>;
}

/// Folds the values of this rank's group in the group's order, in f64 for floats, and rounds once.
pub(super) fn all_reduce(
    node: usize,
    op: Reduction,
    groups: &[Vec<u32>],
    x: &Value,
    ranks: Option<&dyn Ranks>,
) -> Result<Value, Fault> {
    let ranks = ranks.ok_or(Fault::NeedsRanks)?;
    let mine = ranks.rank();
    let values = ranks.exchange(node, x).map_err(Fault::Ranks)?;
    let listed = groups.iter().flatten().count();
    let complete = (0..values.len()).all(|rank| groups.iter().flatten().any(|id| *id as usize == rank));
    let Some(group) = groups.iter().find(|group| group.contains(&mine)) else {
        return Err(Fault::Ranks(format!("rank {mine} is in none of the groups {groups:?}")));
    };
    if listed != values.len() || !complete {
        let why = format!("the groups {groups:?} do not have each of {} ranks once", values.len());
        return Err(Fault::Ranks(why));
    }
    let group: Vec<&Value> = group.iter().map(|rank| &values[*rank as usize]).collect();
    if let Some(other) = group.iter().find(|value| value.ty() != x.ty()) {
        return Err(Fault::Ranks(format!("one rank has {} and another {}", x.ty(), other.ty())));
    }
    Ok(contract::fold(op, &group))
}

/// Ranks in one process, each on a thread of its own, that wait for each other at every collective.
#[derive(Debug)]
pub struct Meeting {
    round: Mutex<Round>,
    changed: Condvar,
    patience: Duration,
}

#[derive(Debug)]
struct Round {
    /// Which collective the ranks come together for, once the first has come: its run and its node.
    key: Option<(u64, usize)>,
    given: Vec<Option<Value>>,
    /// Once all have given: how many have yet to take.
    to_take: usize,
    /// The latest runs in which a rank failed, and why, so that the others need not wait for it.
    failed: BTreeMap<u64, String>,
}

/// One rank's way to a [`Meeting`] during one run.
#[derive(Clone, Debug)]
pub struct Together {
    meeting: Arc<Meeting>,
    rank: u32,
    run: u64,
}

impl Meeting {
    /// Of that many ranks, each of which waits at most `patience` for the others.
    pub fn new(ranks: usize, patience: Duration) -> Arc<Meeting> {
        let given = vec![None; ranks];
        let round = Round { key: None, given, to_take: 0, failed: BTreeMap::new() };
        Arc::new(Meeting { round: Mutex::new(round), changed: Condvar::new(), patience })
    }

    /// What rank `rank` evaluates its `run`-th run with: ranks count their runs alike.
    pub fn together(self: &Arc<Self>, rank: u32, run: u64) -> Together {
        Together { meeting: Arc::clone(self), rank, run }
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Together {
    /// Says that this rank will not come to this run's other collectives, so that nobody waits for it.
    pub fn fail(&self, why: &str) {
        self.meeting.round().fail(self.run, format!("rank {} failed: {why}", self.rank));
        self.meeting.changed.notify_all();
    }
}

impl Round {
    fn fail(&mut self, run: u64, why: String) {
        // The first failure is the cause of the others.
        self.failed.entry(run).or_insert(why);
        while self.failed.len() > 16 {
            self.failed.pop_first();
        }
        if self.key.is_some_and(|key| key.0 == run) {
            self.key = None;
            self.to_take = 0;
            self.given.fill(None);
        }
    }
}

impl Ranks for Together {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn exchange(&self, node: usize, value: &Value) -> Result<Vec<Value>, String> {
        let mine = self.rank as usize;
        let until = Instant::now() + self.meeting.patience;
        let key = (self.run, node);
        let mut round = self.meeting.round();
        let mut gave = false;
        loop {
            if let Some(why) = round.failed.get(&self.run) {
                return Err(why.clone());
            }
            let all = round.to_take > 0;
            match round.key {
                Some(at) if at == key && all && gave => {
                    let values = round.given.iter().flatten().cloned().collect();
                    round.to_take -= 1;
                    if round.to_take == 0 {
                        round.key = None;
                        round.given.fill(None);
                        self.meeting.changed.notify_all();
                    }
                    return Ok(values);
                }
                // The others are still taking what they came for before.
                Some(_) if all => {}
                Some(at) if at != key => {
                    let why = format!(
                        "rank {mine} is at node {} of run {} and others at node {} of run {}",
                        node, self.run, at.1, at.0
                    );
                    round.fail(self.run, why.clone());
                    round.fail(at.0, why.clone());
                    self.meeting.changed.notify_all();
                    return Err(why);
                }
                _ if !gave => {
                    let ranks = round.given.len();
                    let Some(place) = round.given.get_mut(mine) else {
                        return Err(format!("rank {mine} of {ranks}"));
                    };
                    *place = Some(value.clone());
                    round.key = Some(key);
                    gave = true;
                    if round.given.iter().all(Option::is_some) {
                        round.to_take = ranks;
                        self.meeting.changed.notify_all();
                    }
                    continue;
                }
                _ => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = self.meeting.patience;
                let why = format!("rank {mine} waited {waited:?} for the others at node {node}");
                round.fail(self.run, why.clone());
                self.meeting.changed.notify_all();
                return Err(why);
            }
            (round, _) =
                self.meeting.changed.wait_timeout(round, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
