//! One step: every worker walks through the phases of a plan.
//!
//! Why the pointers below are sound. Plans are made by lowering alone, and only the executor that made one runs
//! it. Lowering gives each value rows within its storage, lets two storages share memory only where no phase
//! touches both, lets an op write over a value only after its last reader, and puts ops into one phase only
//! where none writes what another touches at a different row. Within a phase, workers take disjoint rows or
//! columns. So what one worker writes in a phase, no other worker touches before the barrier. Indices come from
//! inputs, which were checked before the first phase.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::attend::{Attend, call};
use super::executor::{Base, PerWorker, Timing};
use super::place::Place;
use super::plan::{AttentionPhase, Encode, Encoded, Phase, Product, RowKind, RowOp, Work};
use super::states::States;
use super::view::View;
use super::weights::Weights;
use crate::matrix::{self, Matrix, Operand, Output, Precision};
use crate::ops::{elementwise, encode, norm, rope, route};
use crate::pool::Worker;

/// All that one step works with.
pub(crate) struct Frame<'a> {
    /// The arena's memory, then that of each output.
    pub(crate) bases: &'a [Base],
    pub(crate) places: &'a [Place],
    pub(crate) inputs: &'a [&'a [i32]],
    pub(crate) weights: &'a Weights,
    pub(crate) states: &'a States,
    pub(crate) attends: &'a [Attend],
    pub(crate) scratch: &'a PerWorker<matrix::Scratch>,
    pub(crate) precision: Precision,
    /// Where to account for time, if that is wanted.
    pub(crate) timings: Option<&'a [Timing]>,
}

/// Groups of rows that suit every matrix kernel.
const GROUPS: usize = 6;
/// Chunks for each worker of a loop, so that none waits long for the last one.
const CHUNKS: usize = 4;

/// Shares rows out: all to one worker where they are few, since waking a second one would cost more than it
/// saves; else in runs of whole tiles.
pub(crate) fn share(worker: &Worker<'_>, rows: usize, f: impl FnMut(Range<usize>)) {
    let chunk = (rows / (worker.count() * CHUNKS)).clamp(4, 16).next_multiple_of(4);
    worker.chunks(rows, chunk, f);
}

impl<'a> Frame<'a> {
    /// One worker's walk through a plan.
    ///
    /// # Safety
    /// The frame is of this plan, every worker walks, and nobody else uses its memory meanwhile.
    pub(crate) unsafe fn walk(&self, phases: &[Phase], worker: &Worker<'_>) {
        for (i, phase) in phases.iter().enumerate() {
            let begin = self.timings.filter(|_| worker.index() == 0).map(|timings| (timings, Instant::now()));
            // SAFETY: all workers are past the phases before.
            unsafe { self.work(&phase.work, worker) };
            if i + 1 < phases.len() || self.timings.is_some() {
                worker.barrier();
            }
            if let Some((timings, begin)) = begin {
                let timing = &timings[phase.label as usize];
                timing.calls.fetch_add(1, Relaxed);
                timing.nanos.fetch_add(begin.elapsed().as_nanos() as u64, Relaxed);
            }
        }
    }

    /// One worker's share of a phase.
    ///
    /// # Safety
    /// As [`Frame::walk`], and the phases before are complete.
    unsafe fn work(&self, work: &Work, worker: &Worker<'_>) {
        match work {
            Work::Rows { rows, ops } => share(worker, *rows, |range| {
                for op in ops {
                    // SAFETY: the range is this worker's.
                    unsafe { self.rows(op, range.clone()) };
                }
            }),
            Work::Linear { encode, parts, add } => {
                // SAFETY: passed on.
                unsafe {
                    self.encode(encode, worker);
                    parts.iter().for_each(|part| self.product(part, *add, worker));
                }
            }
            Work::Gated { encode, gate, up, act, out } => {
                // SAFETY: passed on.
                unsafe { self.encode(encode, worker) };
                let [gate, up] = [gate, up].map(|(weight, acts)| self.whole(*weight, *acts, worker));
                let output = self.output(out, 0, out.rows, false);
                self.groups(gate.matrix.groups(), worker, |groups| {
                    // SAFETY: the activations are encoded for all rows; these columns are this worker's.
                    unsafe {
                        let scratch = self.scratch(worker);
                        matrix::multiply_gated(&gate, &up, *act, &output, groups, scratch);
                    }
                });
            }
            // SAFETY: passed on.
            Work::Attention(phase) => unsafe { self.attend(phase, worker) },
            // SAFETY: passed on.
            Work::FullAttention(attention) => unsafe { attention.run(self, worker) },
            // SAFETY: passed on.
            Work::Experts(stage, experts) => unsafe { experts.run(*stage, self, worker) },
        }
    }

    /// # Safety
    /// As [`Frame::work`]; nobody else works on these rows.
    unsafe fn rows(&self, op: &RowOp, rows: Range<usize>) {
        // SAFETY: the row is this worker's, or nobody writes it in this phase.
        let row = |view: &View, row: usize| unsafe { self.row(view, row) };
        // SAFETY: the row is this worker's, and the op reads no part of it by another view.
        let row_mut = |row: usize| unsafe { self.row_mut(&op.at, row) };
        if let Some(from) = &op.from {
            rows.clone().for_each(|i| row_mut(i).copy_from_slice(row(from, i)));
        }
        match &op.kind {
            RowKind::Copy => {}
            RowKind::Embed { table, ids, scale } => {
                let (table, ids) = (self.weights.matrix(*table), self.inputs[*ids as usize]);
                for i in rows {
                    table.row(0, ids[i] as usize, row_mut(i));
                    if *scale != 1.0 {
                        elementwise::scale(row_mut(i), *scale);
                    }
                }
            }
            RowKind::Select { x, indices } => {
                let indices = self.inputs[*indices as usize];
                rows.for_each(|i| row_mut(i).copy_from_slice(row(x, indices[i] as usize)));
            }
            RowKind::Arithmetic { op, y } => rows.for_each(|i| op.apply(row_mut(i), row(y, i))),
            RowKind::Norm { weight, eps, offset } => {
                let weight = self.weights.vector(*weight);
                rows.for_each(|i| norm::rms_norm(row_mut(i), weight, *eps, *offset));
            }
            RowKind::Angles { positions, inv_freq, scale } => {
                let positions = self.inputs[*positions as usize];
                rows.for_each(|i| rope::angles(row_mut(i), positions[i], inv_freq, *scale));
            }
            RowKind::Rotate { angles, dim } => {
                rows.for_each(|i| rope::rotate(row_mut(i), *dim, row(angles, i)));
            }
            RowKind::LayerNorm { weight, bias, eps } => {
                let (weight, bias) = (self.weights.vector(*weight), self.weights.vector(*bias));
                rows.for_each(|i| encode::layer_norm(row_mut(i), weight, bias, *eps));
            }
            RowKind::Gelu => rows.for_each(|i| encode::gelu(row_mut(i))),
            RowKind::Pool { x, last, width } => {
                let last = self.inputs[*last as usize];
                for i in rows {
                    let out = row_mut(i);
                    out.fill(0.0);
                    (0..=last[i] as usize).for_each(|j| elementwise::add(out, row(x, i * width + j)));
                    encode::normalise(out);
                }
            }
            RowKind::Scale { factor } => rows.for_each(|i| elementwise::scale(row_mut(i), *factor)),
            RowKind::Softcap { cap } => rows.for_each(|i| elementwise::softcap(row_mut(i), *cap)),
            RowKind::Bias { weight } => {
                let bias = self.weights.vector(*weight);
                rows.for_each(|i| elementwise::add(row_mut(i), bias));
            }
            RowKind::WriteKv { state, slots } => {
                let (cache, slots) = (self.states.get(*state), self.inputs[*slots as usize]);
                // SAFETY: the values are `G · D` columns of as many rows as there are slots; slots were checked
                // to be in range and distinct.
                unsafe { cache.write(self.first(&op.at), op.at.stride, slots, rows) };
            }
            RowKind::Encode { to } => {
                let View { stride, cols, .. } = op.at;
                // SAFETY: the rows are complete, and their places in the storage are this worker's.
                unsafe {
                    to.form.prepare(self.first(&op.at), stride, cols, rows, self.start(to.storage).cast())
                };
            }
            RowKind::Route { logits, top_k, normalise } => {
                for i in rows {
                    let (experts, rest) = row_mut(i).split_at_mut(*top_k);
                    let experts = bytemuck::cast_slice_mut(experts);
                    route::choose(row(logits, i), *normalise, experts, &mut rest[..*top_k]);
                }
            }
            RowKind::Combine { routes, results, top_k } => {
                for i in rows {
                    let (weights, places) = row(routes, i)[*top_k..].split_at(*top_k);
                    let out = row_mut(i);
                    out.fill(0.0);
                    for (weight, place) in weights.iter().zip(places) {
                        elementwise::add_scaled(out, row(results, place.to_bits() as usize), *weight);
                    }
                }
            }
        }
    }

    /// Encodes activations into this worker's own copies.
    ///
    /// # Safety
    /// As [`Frame::work`].
    unsafe fn encode(&self, encode: &[Encode], worker: &Worker<'_>) {
        for Encode { x, norm, to } in encode {
            let into = self.encoded(*to, worker);
            let (rows, stride) = match norm {
                None => (self.first(x), x.stride),
                Some(norm) => {
                    let own = self.start(norm.storage).wrapping_add(norm.step * worker.index());
                    let weight = self.weights.vector(norm.weight);
                    for i in 0..x.rows {
                        // SAFETY: `x` is complete, and these rows are this worker's.
                        unsafe {
                            let row = std::slice::from_raw_parts_mut(own.add(i * x.cols), x.cols);
                            row.copy_from_slice(self.row(x, i));
                            norm::rms_norm(row, weight, norm.eps, norm.offset);
                        }
                    }
                    (own, x.cols)
                }
            };
            // SAFETY: the rows are complete, and the copy is this worker's.
            unsafe { to.form.prepare(rows, stride, x.cols, 0..x.rows, into.cast()) };
        }
    }

    /// # Safety
    /// As [`Frame::work`].
    unsafe fn product(&self, part: &Product, add: bool, worker: &Worker<'_>) {
        let operand = self.whole(part.weight, part.acts, worker);
        let output = self.output(&part.out, 0, part.out.rows, add);
        self.groups(operand.matrix.groups(), worker, |groups| {
            // SAFETY: the activations are encoded for all rows; these columns are this worker's, as is its scratch.
            unsafe {
                let scratch = self.scratch(worker);
                matrix::multiply(&operand, &output, groups, scratch);
            }
        });
    }

    /// # Safety
    /// As [`Frame::work`].
    unsafe fn attend(&self, phase: &AttentionPhase, worker: &Worker<'_>) {
        let attend = &self.attends[phase.schedule as usize];
        let call = call(phase, self.states, self.inputs, self.first(&phase.q), self.first(&phase.out));
        // SAFETY: the scratch is this worker's.
        let scratch = unsafe { attend.scratch(worker) };
        worker.chunks(attend.schedule.items(), 1, |items| {
            for item in items {
                // SAFETY: the schedule was planned at the start of this step for a call that differs in pointers
                // and caches alone; positions, rows and table entries were checked; queries and caches are complete.
                unsafe { call.run(&attend.schedule, item, scratch) };
            }
        });
    }

    /// Shares groups of a matrix's rows out.
    fn groups(&self, groups: usize, worker: &Worker<'_>, f: impl FnMut(Range<usize>)) {
        let chunk = (groups / (worker.count() * CHUNKS)).next_multiple_of(GROUPS).max(GROUPS);
        worker.chunks(groups, chunk, f);
    }

    fn whole(&self, weight: u32, acts: Encoded, worker: &Worker<'_>) -> Operand<'a> {
        self.operand(self.weights.matrix(weight), 0, self.encoded(acts, worker).cast())
    }

    pub(crate) fn operand(&self, matrix: &'a Matrix, part: usize, acts: *const u8) -> Operand<'a> {
        Operand { matrix, part, precision: self.precision, acts }
    }

    /// The activations as this worker finds them.
    fn encoded(&self, acts: Encoded, worker: &Worker<'_>) -> *mut f32 {
        self.start(acts.storage).wrapping_add(acts.step * worker.index())
    }

    /// A product's results for so many tokens, as rows of a view from row `first` on.
    pub(crate) fn output(&self, view: &View, first: usize, tokens: usize, add: bool) -> Output {
        let data = self.first(view).wrapping_add(first * view.stride);
        Output { data, stride: view.stride, tokens, add }
    }

    /// The first float of a storage.
    pub(crate) fn start(&self, storage: u32) -> *mut f32 {
        match self.places[storage as usize] {
            Place::Arena(offset) => self.bases[0].0.wrapping_add(offset),
            Place::Output(index) => self.bases[1 + index as usize].0,
        }
    }

    /// The first float of a view.
    pub(crate) fn first(&self, view: &View) -> *mut f32 {
        self.start(view.storage).wrapping_add(view.offset)
    }

    /// # Safety
    /// The row is one of the view's, and nobody writes it meanwhile.
    pub(crate) unsafe fn row(&self, view: &View, row: usize) -> &[f32] {
        debug_assert!(row < view.rows, "row {row} of {view:?}");
        // SAFETY: within the storage, as the module says; the rest is the caller's.
        unsafe { std::slice::from_raw_parts(self.first(view).add(row * view.stride), view.cols) }
    }

    /// # Safety
    /// The row is one of the view's, and nobody else accesses it meanwhile.
    #[allow(
        clippy::mut_from_ref,
        reason = "the frame lends memory that it does not own; the caller says to whom"
    )]
    pub(crate) unsafe fn row_mut(&self, view: &View, row: usize) -> &mut [f32] {
        debug_assert!(row < view.rows, "row {row} of {view:?}");
        // SAFETY: within the storage, as the module says; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.first(view).add(row * view.stride), view.cols) }
    }

    /// # Safety
    /// The worker has no other reference to its scratch.
    #[allow(clippy::mut_from_ref, reason = "each worker has its own")]
    pub(crate) unsafe fn scratch(&self, worker: &Worker<'_>) -> &mut matrix::Scratch {
        // SAFETY: passed on.
        unsafe { self.scratch.get(worker) }
    }
}
