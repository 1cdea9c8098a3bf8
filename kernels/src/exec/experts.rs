//! A mixture of experts. Each token's rows of the layer are computed by its own experts alone, so tokens are
//! sorted by expert first and every expert multiplies its tokens in one product.
//!
//! ```text
//! route     each token: its experts and their weights
//! sort      tokens by expert; every expert's begin at a whole tile
//! gather    encode the tokens in that order
//! gated     each expert: act(x · gateᵀ) ⊙ (x · upᵀ)
//! encode    those
//! down      each expert: · downᵀ
//! combine   each token: the weighted sum over its experts, best first
//! ```
//! A product does not depend on how many tokens it has, and the last sum is in the token's own order: so its
//! bits do not depend on the other tokens.

use std::ops::Range;

use millrace_graph::Activation;

use super::lower::floats;
use super::phases::Phases;
use super::plan::{RowKind, RowOp, Work};
use super::run::{Frame, share};
use super::view::View;
use crate::matrix::{self, Activations};
use crate::pool::Worker;

/// The stages that are not row-wise on tokens, in the order in which they run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Sort,
    Gather,
    Gated,
    Encode,
    Down,
}

const STAGES: [Stage; 5] = [Stage::Sort, Stage::Gather, Stage::Gated, Stage::Encode, Stage::Down];

/// One layer's experts in one graph.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Experts {
    /// Tokens `[T, D]`.
    x: View,
    /// Router logits `[T, E]`.
    logits: View,
    top_k: usize,
    normalise: bool,
    act: Activation,
    /// Experts.
    count: usize,
    gate: u32,
    up: u32,
    down: u32,
    /// Places for tokens in the sorted order, the unused ones before each expert's first among them.
    sorted: usize,
    /// `[T, 3k]`: numbers of experts, their weights, and the token's places in the sorted order.
    routes: View,
    /// See [`Order`].
    order: u32,
    gate_acts: Sorted,
    up_acts: Sorted,
    /// `[sorted, F]`.
    hidden: View,
    down_acts: Sorted,
    /// `[sorted, D]`.
    results: View,
}

/// Encoded activations of sorted tokens.
#[derive(Clone, Copy, Debug)]
struct Sorted {
    form: Activations,
    storage: u32,
    cols: usize,
}

/// The sorted order, which lies in a storage as u32.
struct Order<'a> {
    /// Where each expert's tokens begin.
    begins: &'a [u32],
    /// How many they are.
    counts: &'a [u32],
    /// The experts that have any.
    active: &'a [u32],
    /// How many those are, and the end of the order.
    totals: &'a [u32],
    /// The token at each place.
    tokens: &'a [u32],
}

/// Marks a place without a token.
const NOBODY: u32 = u32::MAX;

impl Experts {
    /// Allocates what the layer needs. `matrices` are gate, up and down with the forms they want.
    pub(crate) fn new(
        phases: &mut Phases,
        x: View,
        logits: View,
        [gate, up, down]: [(u32, Activations); 3],
        hidden: usize,
        (top_k, normalise, act): (usize, bool, Activation),
    ) -> Experts {
        let (count, chosen, tile) = (logits.cols, x.rows * top_k, gate.1.tile());
        let sorted = (chosen + count.min(chosen) * (tile - 1)).next_multiple_of(tile);
        let mut view = |rows: usize, cols: usize| {
            let storage = phases.storage(rows * cols);
            View { storage, offset: 0, rows, cols, stride: cols }
        };
        let (routes, hidden) = (view(x.rows, 3 * top_k), view(sorted, hidden));
        let results = view(sorted, x.cols);
        let mut acts = |form: Activations, cols: usize| Sorted {
            form,
            cols,
            storage: phases.storage(floats(form, sorted, cols)),
        };
        let gate_acts = acts(gate.1, x.cols);
        let up_acts = if up.1 == gate.1 { gate_acts } else { acts(up.1, x.cols) };
        let down_acts = acts(down.1, hidden.cols);
        let order = phases.storage(3 * count + 2 + sorted);
        let (gate, up, down) = (gate.0, up.0, down.0);
        Experts {
            x,
            logits,
            top_k,
            normalise,
            act,
            count,
            gate,
            up,
            down,
            sorted,
            routes,
            order,
            gate_acts,
            up_acts,
            hidden,
            down_acts,
            results,
        }
    }

    /// Appends the layer's phases; the result goes to `out`.
    pub(crate) fn lower(self, phases: &mut Phases, out: View) {
        let Experts { logits, routes, results, top_k, normalise, .. } = self;
        let route = RowKind::Route { logits, top_k, normalise };
        phases.push_row_op(RowOp { kind: route, from: None, at: routes });
        for stage in STAGES {
            phases.push(Work::Experts(stage, self));
        }
        phases.push_row_op(RowOp { kind: RowKind::Combine { routes, results, top_k }, from: None, at: out });
    }

    pub(crate) fn storages(&self) -> [u32; 8] {
        [
            self.x.storage,
            self.routes.storage,
            self.order,
            self.gate_acts.storage,
            self.up_acts.storage,
            self.hidden.storage,
            self.down_acts.storage,
            self.results.storage,
        ]
    }

    /// Runs one worker's share of a stage.
    ///
    /// # Safety
    /// As for [`super::run::Frame::work`].
    pub(crate) unsafe fn run(&self, stage: Stage, frame: &Frame<'_>, worker: &Worker<'_>) {
        if stage == Stage::Sort {
            // SAFETY: one worker draws the only index; the routes were written before the last barrier.
            return worker.chunks(1, 1, |_| unsafe { self.sort(frame) });
        }
        // SAFETY: nobody writes the order in the stages that follow its making.
        let order = unsafe { std::slice::from_raw_parts(frame.start(self.order).cast(), self.order_len()) };
        let order = self.read_order(order);
        let end = order.totals[1] as usize;
        match stage {
            Stage::Sort => {}
            Stage::Gather => share(worker, end, |places| {
                for place in places.filter(|place| order.tokens[*place] != NOBODY) {
                    // SAFETY: the token is one of `x`; its place belongs to this worker.
                    unsafe {
                        let x = frame.row(&self.x, order.tokens[place] as usize);
                        self.gate_acts.encode(frame, x, place);
                        if self.up_acts.form != self.gate_acts.form {
                            self.up_acts.encode(frame, x, place);
                        }
                    }
                }
            }),
            Stage::Encode => share(worker, end, |places| {
                for place in places.filter(|place| order.tokens[*place] != NOBODY) {
                    // SAFETY: the place belongs to this worker, and its row was written in the stage before.
                    unsafe { self.down_acts.encode(frame, frame.row(&self.hidden, place), place) };
                }
            }),
            Stage::Gated => {
                let (gate, up) = (frame.weights.matrix(self.gate), frame.weights.matrix(self.up));
                self.products(&order, gate.groups(), worker, |expert, begin, tokens, groups| {
                    let operand =
                        |matrix, acts: &Sorted| frame.operand(matrix, expert, acts.at(frame, begin));
                    let out = frame.output(&self.hidden, begin, tokens, false);
                    let (gate, up) = (operand(gate, &self.gate_acts), operand(up, &self.up_acts));
                    // SAFETY: the tokens of this expert were encoded in the stage before, and these groups of
                    // their rows belong to this worker, as does its scratch.
                    unsafe {
                        let scratch = frame.scratch(worker);
                        matrix::multiply_gated(&gate, &up, self.act, &out, groups, scratch);
                    }
                });
            }
            Stage::Down => {
                let down = frame.weights.matrix(self.down);
                self.products(&order, down.groups(), worker, |expert, begin, tokens, groups| {
                    let operand = frame.operand(down, expert, self.down_acts.at(frame, begin));
                    let out = frame.output(&self.results, begin, tokens, false);
                    // SAFETY: as above.
                    unsafe {
                        let scratch = frame.scratch(worker);
                        matrix::multiply(&operand, &out, groups, scratch);
                    }
                });
            }
        }
    }

    /// Shares the products of all experts out as one loop: `f(expert, first place, tokens, groups)`.
    fn products(
        &self,
        order: &Order<'_>,
        groups: usize,
        worker: &Worker<'_>,
        mut f: impl FnMut(usize, usize, usize, Range<usize>),
    ) {
        const GROUPS: usize = 6;
        let each = groups.div_ceil(GROUPS);
        worker.chunks(order.totals[0] as usize * each, 1, |items| {
            for item in items {
                let expert = order.active[item / each] as usize;
                let first = item % each * GROUPS;
                let (begin, tokens) = (order.begins[expert] as usize, order.counts[expert] as usize);
                f(expert, begin, tokens, first..(first + GROUPS).min(groups));
            }
        });
    }

    /// Makes the order from the routes, and tells the routes their places.
    ///
    /// # Safety
    /// Nobody else accesses the order or the routes meanwhile.
    unsafe fn sort(&self, frame: &Frame<'_>) {
        // SAFETY: the storage is this long, any bits are a u32, and nobody else accesses it.
        let order = unsafe {
            std::slice::from_raw_parts_mut(frame.start(self.order).cast::<u32>(), self.order_len())
        };
        let (begins, rest) = order.split_at_mut(self.count);
        let (counts, rest) = rest.split_at_mut(self.count);
        let (active, rest) = rest.split_at_mut(self.count);
        let (totals, tokens) = rest.split_at_mut(2);
        let choices = |f: &mut dyn FnMut(usize, usize, &mut u32)| {
            for token in 0..self.x.rows {
                // SAFETY: the token has a row, and nobody else accesses it.
                let route = bytemuck::cast_slice_mut(unsafe { frame.row_mut(&self.routes, token) });
                let (experts, rest) = route.split_at_mut(self.top_k);
                let places = &mut rest[self.top_k..];
                experts.iter().zip(places).for_each(|(expert, place)| f(token, *expert as usize, place));
            }
        };
        counts.fill(0);
        choices(&mut |_, expert, _| counts[expert] += 1);
        let tile = self.gate_acts.form.tile() as u32;
        let (mut end, mut used) = (0, 0);
        for expert in 0..self.count {
            begins[expert] = end;
            if counts[expert] > 0 {
                active[used] = expert as u32;
                used += 1;
            }
            end += counts[expert].next_multiple_of(tile);
        }
        totals.copy_from_slice(&[used as u32, end]);
        tokens.fill(NOBODY);
        counts.fill(0);
        choices(&mut |token, expert, place| {
            *place = begins[expert] + counts[expert];
            counts[expert] += 1;
            tokens[*place as usize] = token as u32;
        });
    }

    fn order_len(&self) -> usize {
        3 * self.count + 2 + self.sorted
    }

    fn read_order<'o>(&self, order: &'o [u32]) -> Order<'o> {
        let (begins, rest) = order.split_at(self.count);
        let (counts, rest) = rest.split_at(self.count);
        let (active, rest) = rest.split_at(self.count);
        let (totals, tokens) = rest.split_at(2);
        Order { begins, counts, active, totals, tokens }
    }
}

impl Sorted {
    /// The first of the activations from a place on, which starts a tile.
    fn at(&self, frame: &Frame<'_>, place: usize) -> *const u8 {
        // A part of the storage: so many bytes come before that tile.
        frame.start(self.storage).cast::<u8>().wrapping_add(self.form.bytes(place, self.cols))
    }

    /// # Safety
    /// Nobody else accesses this place meanwhile.
    unsafe fn encode(&self, frame: &Frame<'_>, x: &[f32], place: usize) {
        let into = frame.start(self.storage).cast();
        // SAFETY: the storage has room for all places; with a stride of 0, `x` is where any token's row is.
        unsafe { self.form.prepare(x.as_ptr(), 0, self.cols, place..place + 1, into) };
    }
}
