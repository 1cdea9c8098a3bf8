//! What lives between steps, and the two things done with it: planning a graph, running a plan.

use std::cell::UnsafeCell;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use millrace_graph::Graph;

use super::attend::Attend;
use super::check;
use super::error::{PlanError, RunError};
use super::lower::{Backing, lower};
use super::plan::{AttentionPhase, Phase, Plan, Slot, Work};
use super::run::Frame;
use super::states::States;
use super::weights::Weights;
use crate::matrix::{self, Precision};
use crate::pool::{Pool, Worker};

/// Runs graphs on the CPU: holds the weights, the KV caches, and the memory for values that all plans share.
pub struct Executor {
    id: u64,
    pool: Pool,
    precision: Precision,
    weights: Weights,
    states: States,
    arena: Vec<Line>,
    /// One bit for each slot of the largest cache, all zero between steps.
    seen: Vec<u64>,
    /// The arena's and the outputs' memory during a step; here so that a step allocates nothing.
    bases: Vec<Base>,
    attends: Vec<Attend>,
    scratch: PerWorker<matrix::Scratch>,
    profiling: AtomicBool,
    timings: Vec<Timing>,
}

/// How often phases of one kind ran and how long they took, barriers included.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The ops of the phase.
    pub name: String,
    /// How often it ran.
    pub calls: u64,
    /// How long altogether.
    pub time: Duration,
}

#[derive(Debug)]
pub(crate) struct Timing {
    name: String,
    pub(crate) calls: AtomicU64,
    pub(crate) nanos: AtomicU64,
}

/// A cache line of floats.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "memory, which only pointers reach")] [f32; Line::FLOATS]);

impl Line {
    const FLOATS: usize = 16;
}

/// Where a step's values lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base(pub(crate) *mut f32);

// SAFETY: a pointer is data; what it is used for is `Frame`'s business, which says who may touch what.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

/// Something that each worker has one of.
#[derive(Debug)]
pub(crate) struct PerWorker<T>(Vec<UnsafeCell<T>>);

// SAFETY: `get` is the only access, and gives each worker its own.
unsafe impl<T: Send> Sync for PerWorker<T> {}

impl<T> PerWorker<T> {
    pub(crate) fn new(workers: usize, make: impl Fn() -> T) -> Self {
        PerWorker((0..workers).map(|_| UnsafeCell::new(make())).collect())
    }

    /// # Safety
    /// The worker has no other reference to its own.
    #[allow(clippy::mut_from_ref, reason = "each worker has its own")]
    pub(crate) unsafe fn get(&self, worker: &Worker<'_>) -> &mut T {
        // SAFETY: workers of a run have different indices, and this one has no other reference.
        unsafe { &mut *self.0[worker.index()].get() }
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("precision", &self.precision)
            .field("weights", &self.weights)
            .finish_non_exhaustive()
    }
}

impl Executor {
    /// An executor of these weights on the workers of `pool`.
    pub fn new(pool: Pool, precision: Precision, weights: Weights) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let scratch = PerWorker::new(pool.threads(), matrix::Scratch::new);
        Executor {
            id: NEXT.fetch_add(1, Relaxed),
            pool,
            precision,
            weights,
            states: States::default(),
            arena: Vec::new(),
            seen: Vec::new(),
            bases: Vec::new(),
            attends: Vec::new(),
            scratch,
            profiling: AtomicBool::new(false),
            timings: Vec::new(),
        }
    }

    /// The workers that run plans, idle between runs.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Makes the KV caches that the graph's state parameters name: zeros, whose memory the system provides as
    /// they are written. One that is there already is kept, so every graph of a model may be passed.
    ///
    /// # Errors
    /// Where a state is no KV cache, is not read by attention as either keys or values, is there as another
    /// type, or does not fit the address space.
    pub fn allocate(&mut self, graph: &Graph) -> Result<(), PlanError> {
        self.states.allocate(graph)?;
        self.seen.resize(self.states.slots().div_ceil(64), 0);
        Ok(())
    }

    /// Makes a graph ready to run. Plans may be kept and used in any order; memory for values grows to the
    /// largest of them.
    ///
    /// # Errors
    /// Where the graph is ill-formed, there is no kernel for a node, a weight or state is not there or of another type, or memory for
    /// the values is not to be had. The message names the node and where it was built.
    pub fn plan(&mut self, graph: &Graph) -> Result<Plan, PlanError> {
        // Kernels rely on operands having the types that the builder infers, and a graph's fields are open.
        graph.verify()?;
        let workers = self.pool.threads();
        let (weights, states, precision) = (&self.weights, &self.states, self.precision);
        let lowered = lower(graph, Backing { weights, states, precision, workers })?;
        let memory = |bytes| PlanError::Memory { graph: graph.name.clone(), bytes };
        let lines = lowered.arena.div_ceil(Line::FLOATS);
        if let Some(more) = lines.checked_sub(self.arena.len()) {
            let bytes = lowered.arena.saturating_mul(size_of::<f32>());
            self.arena.try_reserve_exact(more).map_err(|_| memory(bytes))?;
            self.arena.resize(lines, Line([0.0; Line::FLOATS]));
        }
        self.bases.reserve(1 + lowered.outputs.len());
        let attends = self.attends(&lowered.schedules);
        let mut phases = Vec::with_capacity(lowered.works.len());
        for mut work in lowered.works {
            if let Work::Attention(phase) = &mut work {
                phase.schedule = attends[phase.schedule as usize];
            }
            phases.push(Phase { label: self.label(&work), work });
        }
        let schedules = lowered.schedules.into_iter().zip(&attends);
        Ok(Plan {
            owner: self.id,
            phases,
            places: lowered.places,
            inputs: lowered.inputs,
            outputs: lowered.outputs,
            checks: lowered.checks,
            schedules: schedules
                .map(|(phase, schedule)| AttentionPhase { schedule: *schedule, ..phase })
                .collect(),
        })
    }

    /// Runs a plan. `inputs` are the graph's input parameters in order, `outputs` its results that replace no
    /// state, in order; caches are updated in place. Allocates nothing.
    ///
    /// # Errors
    /// Where the plan is another executor's, a length is not the graph's, or an element that serves as an index
    /// is out of range (token ids, positions, slots, rows, logit rows; of the block tables only what the rows
    /// reach), or two tokens share a slot. Nothing has been written then.
    ///
    /// # Panics
    /// Where a kernel does; the caches are not to be used then.
    pub fn run(
        &mut self,
        plan: &Plan,
        inputs: &[&[i32]],
        outputs: &mut [&mut [f32]],
    ) -> Result<(), RunError> {
        if plan.owner != self.id {
            return Err(RunError::Foreign);
        }
        lengths("inputs", &plan.inputs, inputs.iter().map(|input| input.len()))?;
        lengths("outputs", &plan.outputs, outputs.iter().map(|output| output.len()))?;
        check::run(&plan.checks, &plan.inputs, inputs, &mut self.seen)?;
        for phase in &plan.schedules {
            self.attends[phase.schedule as usize].plan(phase, &self.states, inputs);
        }
        self.bases.clear();
        self.bases.push(Base(self.arena.as_mut_ptr().cast()));
        self.bases.extend(outputs.iter_mut().map(|output| Base(output.as_mut_ptr())));
        let frame = Frame {
            bases: &self.bases,
            places: &plan.places,
            inputs,
            weights: &self.weights,
            states: &self.states,
            attends: &self.attends,
            scratch: &self.scratch,
            precision: self.precision,
            timings: self.profiling.load(Relaxed).then_some(&self.timings[..]),
        };
        // SAFETY: the frame was made for this plan, which is this executor's; `&mut self` and the borrowed
        // outputs keep everybody else away, and the pool has every worker walk.
        self.pool.run(&|worker| unsafe { frame.walk(&plan.phases, worker) });
        Ok(())
    }

    /// Starts or stops accounting for time, phase by phase. Costs nothing while off.
    pub fn profile(&mut self, on: bool) {
        self.profiling.store(on, Relaxed);
    }

    /// What was accounted for so far, the longest first.
    pub fn profiles(&self) -> Vec<Profile> {
        let used = self.timings.iter().filter(|timing| timing.calls.load(Relaxed) > 0);
        let mut profiles: Vec<Profile> = used
            .map(|timing| Profile {
                name: timing.name.clone(),
                calls: timing.calls.load(Relaxed),
                time: Duration::from_nanos(timing.nanos.load(Relaxed)),
            })
            .collect();
        profiles.sort_by_key(|profile| std::cmp::Reverse(profile.time));
        profiles
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Finds or makes what each distinct attention of a graph needs; with room for its tokens.
    fn attends(&mut self, schedules: &[AttentionPhase]) -> Vec<u32> {
        let workers = self.pool.threads();
        let mut taken = Vec::with_capacity(schedules.len());
        for phase in schedules {
            let (heads, tokens) = (phase.heads, phase.q.rows);
            let cache = self.states.get(phase.k).ty();
            let mut free = (0..self.attends.len()).filter(|index| !taken.contains(&(*index as u32)));
            let found = free.find(|index| self.attends[*index].suits(heads, cache));
            let index = found.unwrap_or_else(|| {
                self.attends.push(Attend::new(heads, cache, tokens, workers));
                self.attends.len() - 1
            });
            self.attends[index].grow(tokens, workers);
            taken.push(index as u32);
        }
        taken
    }

    /// The row of the table of timings for phases like this one.
    fn label(&mut self, work: &Work) -> u32 {
        let name = work.name();
        let found = self.timings.iter().position(|timing| timing.name == name);
        found.unwrap_or_else(|| {
            self.timings.push(Timing { name, calls: AtomicU64::new(0), nanos: AtomicU64::new(0) });
            self.timings.len() - 1
        }) as u32
    }
}

fn lengths(
    what: &'static str,
    slots: &[Slot],
    given: impl ExactSizeIterator<Item = usize>,
) -> Result<(), RunError> {
    if slots.len() != given.len() {
        return Err(RunError::Count { what, expected: slots.len(), given: given.len() });
    }
    for (slot, given) in slots.iter().zip(given) {
        if slot.elements != given {
            return Err(RunError::Length { name: slot.name.clone(), expected: slot.elements, given });
        }
    }
    Ok(())
}
