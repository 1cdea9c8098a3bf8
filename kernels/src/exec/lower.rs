//! From a graph to a plan.
//!
//! Slices and reshapes become views. An op writes over an operand that nobody reads afterwards. Row-wise ops
//! that follow one another on the same number of rows make one phase, in which a worker takes some rows through
//! all of them; a product that is only added to something is added there as it is stored. What is left of the
//! graph is a list of phases, with a barrier after each.

use std::collections::HashMap;

use millrace_graph::{Activation, Attention, Binary, DType, Fused, Graph, Node, NodeId, Op, ParamKind};

use super::check::{Check, TableRows};
use super::error::PlanError;
use super::experts::Experts;
use super::flow::Flow;
use super::full::FullAttention;
use super::phases::Phases;
use super::place::{Place, place};
use super::plan::{AttentionPhase, Encode, Encoded, OwnNorm, Product, RowKind, RowOp, Slot, Work};
use super::states::States;
use super::view::View;
use super::weights::Weights;
use crate::kv::KvRole;
use crate::matrix::{Activations, Precision};
use crate::ops::elementwise::Arithmetic;

/// Weights of a linear layer that share a phase: the pool tells up to 16 loops apart.
const PRODUCTS: usize = 12;
/// Up to so many rows, every worker encodes activations for itself rather than wait for one to do it.
const PRIVATE: usize = 4;

/// What lowering yields; the executor makes a plan of it.
pub(crate) struct Lowered {
    pub(crate) works: Vec<Work>,
    pub(crate) places: Vec<Place>,
    /// Floats of the arena.
    pub(crate) arena: usize,
    pub(crate) inputs: Vec<Slot>,
    pub(crate) outputs: Vec<Slot>,
    pub(crate) checks: Vec<Check>,
    pub(crate) schedules: Vec<AttentionPhase>,
}

/// What the executor has that a graph refers to.
#[derive(Clone, Copy)]
pub(crate) struct Backing<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) states: &'a States,
    pub(crate) precision: Precision,
    pub(crate) workers: usize,
}

/// What a node has become.
#[derive(Clone, Copy)]
pub(super) enum Value {
    /// Nothing that an output depends on.
    Dead,
    View(View),
    Input(u32),
    /// A parameter, looked up where it is used.
    Weight,
    /// A cache. There is one version of it at a time, as verification checks.
    State(u32),
}

pub(super) struct Lowering<'a> {
    pub(super) graph: &'a Graph,
    pub(super) backing: Backing<'a>,
    flow: Flow,
    pub(super) values: Vec<Value>,
    pub(super) phases: Phases,
    pub(super) checks: Vec<Check>,
    schedules: Vec<AttentionPhase>,
    /// The activations encoded last: whose, and in which forms.
    encoded: (Option<View>, Vec<Encoded>),
    /// Where they are the norm of something that only their reader wants: of what, and how each worker makes it.
    norm: Option<(View, OwnNorm)>,
    /// Additions that a linear layer has taken over.
    absorbed: HashMap<u32, View>,
}

pub(super) type Lower<T> = Result<T, PlanError>;

/// Lowers a graph.
pub(crate) fn lower(graph: &Graph, backing: Backing<'_>) -> Lower<Lowered> {
    let mut lowering = Lowering {
        graph,
        backing,
        flow: Flow::of(graph),
        values: Vec::with_capacity(graph.nodes.len()),
        phases: Phases::default(),
        checks: Vec::new(),
        schedules: Vec::new(),
        encoded: (None, Vec::new()),
        norm: None,
        absorbed: HashMap::new(),
    };
    for id in 0..graph.nodes.len() as u32 {
        let value = if lowering.flow.live[id as usize] { lowering.node(NodeId(id))? } else { Value::Dead };
        lowering.values.push(value);
    }
    let outputs = lowering.outputs()?;
    let inputs = graph.params.iter().filter(|param| param.kind == ParamKind::Input);
    let inputs =
        inputs.map(|param| Slot { name: param.name.clone(), elements: graph.ty(param.node).elements() });
    let Phases { works, storages } = lowering.phases;
    let (places, arena) = place(&storages);
    Ok(Lowered {
        places,
        arena,
        inputs: inputs.collect(),
        outputs,
        works,
        checks: lowering.checks,
        schedules: lowering.schedules,
    })
}

impl<'a> Lowering<'a> {
    fn node(&mut self, id: NodeId) -> Lower<Value> {
        let graph = self.graph;
        let node = graph.node(id);
        if let Op::Parameter(param) = node.op {
            return self.parameter(id, &graph.params[param.index()]);
        }
        if self.flow.is_region(id) {
            return self.look(id, node);
        }
        if !matches!(node.op, Op::Fused(Fused::WriteKv)) && node.ty.dtype != DType::F32 {
            return Err(unsupported(node, format!("{}: values are f32 on the CPU", node.ty)));
        }
        let view = match &node.op {
            Op::Fused(Fused::WriteKv) => return self.write_kv(node),
            Op::Fused(fused) => self.fused(id, node, fused)?,
            Op::Binary(op) => self.binary(id, node, *op)?,
            Op::Reshape | Op::Slice { .. } | Op::Convert => {
                return Err(unsupported(node, format!("{} would take a copy", node.ty)));
            }
            _ => return Err(unsupported(node, "there is no kernel for this op".into())),
        };
        Ok(Value::View(view))
    }

    fn parameter(&mut self, id: NodeId, param: &millrace_graph::Param) -> Lower<Value> {
        let ty = self.graph.ty(id);
        match param.kind {
            ParamKind::Weight => Ok(Value::Weight),
            ParamKind::Input if ty.dtype == DType::I32 => {
                let before = self.graph.params.iter().take_while(|other| other.node != id);
                Ok(Value::Input(before.filter(|param| param.kind == ParamKind::Input).count() as u32))
            }
            ParamKind::Input => Err(unsupported(
                self.graph.node(id),
                format!("input {:?} is {ty}; inputs are s32", param.name),
            )),
            ParamKind::State => {
                let error = |why: &str| PlanError::State { name: param.name.clone(), why: why.into() };
                let state = self.backing.states.find(&param.name).ok_or_else(|| error("not allocated"))?;
                if self.backing.states.get(state).ty() != ty {
                    let why =
                        format!("the graph has {ty}, allocated is {}", self.backing.states.get(state).ty());
                    return Err(error(&why));
                }
                Ok(Value::State(state))
            }
        }
    }

    /// A node that is part of another one's value.
    fn look(&self, id: NodeId, node: &Node) -> Lower<Value> {
        let region = self.flow.region(id);
        match self.values[region.storage as usize] {
            Value::View(place) => match region.within(&place) {
                Some(view) => Ok(Value::View(view)),
                None => Err(unsupported(node, format!("{} would take a copy", node.ty))),
            },
            _ => Err(unsupported(node, "only computed values can be sliced and reshaped".into())),
        }
    }

    fn binary(&mut self, id: NodeId, node: &Node, op: Binary) -> Lower<View> {
        let Some(op) = Arithmetic::of(op) else {
            return Err(unsupported(node, "there is no kernel for this op".into()));
        };
        if let Some(view) = self.absorbed.remove(&id.0) {
            return Ok(view);
        }
        let [x, y] = node.inputs[..] else { unreachable!("the builder checks arity") };
        let swap = op.commutes() && !self.flow.may_overwrite(x, id.0, id.0);
        let (x, y) = if swap { (y, x) } else { (x, y) };
        let y = self.view(node, y)?;
        self.row_op(id, node, x, RowKind::Arithmetic { op, y })
    }

    fn fused(&mut self, id: NodeId, node: &Node, fused: &Fused) -> Lower<View> {
        let inputs = &node.inputs;
        match fused {
            Fused::Embed { scale } => {
                let table = self.weight(node, inputs[0], true)?;
                let ids = self.input(node, inputs[1])?;
                self.check(Check::Below { input: ids, bound: self.graph.ty(inputs[0]).shape[0] });
                Ok(self.source(node, RowKind::Embed { table, ids, scale: *scale }))
            }
            Fused::RopeAngles { inv_freq, scale } => {
                let positions = self.input(node, inputs[0])?;
                self.check(Check::Below { input: positions, bound: i32::MAX as usize });
                let kind = RowKind::Angles { positions, inv_freq: inv_freq.clone(), scale: *scale };
                Ok(self.source(node, kind))
            }
            Fused::SelectRows => {
                let x = self.view(node, inputs[0])?;
                let indices = self.input(node, inputs[1])?;
                self.check(Check::Below { input: indices, bound: x.rows });
                let at = self.fresh(node);
                self.phases.push_row_op(RowOp { kind: RowKind::Select { x, indices }, from: None, at });
                Ok(at)
            }
            Fused::RmsNorm { eps, offset } => {
                let weight = self.weight(node, inputs[1], false)?;
                self.row_op(id, node, inputs[0], RowKind::Norm { weight, eps: *eps, offset: *offset })
            }
            Fused::Rope => {
                let angles = self.view(node, inputs[1])?;
                let kind = RowKind::Rotate { angles, dim: node.ty.cols() };
                self.row_op(id, node, inputs[0], kind)
            }
            Fused::Softcap { cap } => self.row_op(id, node, inputs[0], RowKind::Softcap { cap: *cap }),
            Fused::Scale { factor } => self.row_op(id, node, inputs[0], RowKind::Scale { factor: *factor }),
            Fused::LayerNorm { eps } => {
                let [weight, bias] =
                    [self.weight(node, inputs[1], false)?, self.weight(node, inputs[2], false)?];
                self.row_op(id, node, inputs[0], RowKind::LayerNorm { weight, bias, eps: *eps })
            }
            Fused::Gelu => self.row_op(id, node, inputs[0], RowKind::Gelu),
            Fused::FullAttention { scale } => self.full_attention(node, *scale),
            Fused::MeanPool => {
                let x = self.view(node, inputs[0])?;
                let last = self.input(node, inputs[1])?;
                let at = self.fresh(node);
                let width = x.rows / at.rows;
                self.check(Check::Below { input: last, bound: width });
                self.phases.push_row_op(RowOp { kind: RowKind::Pool { x, last, width }, from: None, at });
                Ok(at)
            }
            Fused::Linear { weights, bias } => self.linear(id, node, *weights, *bias),
            Fused::GatedLinear { act } => {
                let matrices = [self.weight(node, inputs[1], true)?, self.weight(node, inputs[2], true)?];
                let (acts, encode) = self.encode(node, inputs[0], &matrices)?;
                let out = self.fresh(node);
                let [gate, up] = [0, 1].map(|i| (matrices[i], acts[i]));
                self.phases.push(Work::Gated { encode, gate, up, act: *act, out });
                Ok(out)
            }
            Fused::PagedAttention(attention) => self.attention(node, *attention),
            Fused::Experts { top_k, normalise, act } => {
                let [x, router] = [self.view(node, inputs[0])?, self.view(node, inputs[1])?];
                let mut matrices = [0; 3];
                for (matrix, input) in matrices.iter_mut().zip(&inputs[2..]) {
                    *matrix = self.weight(node, *input, true)?;
                }
                let out = self.fresh(node);
                let experts = self.experts(x, router, matrices, (*top_k, *normalise, *act));
                experts.lower(&mut self.phases, out);
                Ok(out)
            }
            Fused::WriteKv => unreachable!("handled where its value is a state"),
        }
    }

    fn linear(&mut self, id: NodeId, node: &Node, weights: usize, bias: bool) -> Lower<View> {
        let inputs = &node.inputs;
        let mut matrices = Vec::with_capacity(weights);
        for input in &inputs[1..=weights] {
            matrices.push(self.weight(node, *input, true)?);
        }
        let (acts, mut encode) = self.encode(node, inputs[0], &matrices)?;
        // Workers that have to make the norm of a value for themselves read it until the last one has.
        let onto =
            if encode.iter().any(|encode| encode.norm.is_some()) { None } else { self.addend(id, node) };
        let out = onto.unwrap_or_else(|| self.fresh(node));
        let mut first = 0;
        let mut parts = Vec::with_capacity(weights);
        for (input, (weight, acts)) in inputs[1..].iter().zip(matrices.into_iter().zip(acts)) {
            let cols = self.graph.ty(*input).shape[0];
            parts.push(Product { weight, acts, out: View { offset: out.offset + first, cols, ..out } });
            first += cols;
        }
        for parts in parts.chunks(PRODUCTS) {
            let (encode, parts) = (std::mem::take(&mut encode), parts.to_vec());
            self.phases.push(Work::Linear { encode, parts, add: onto.is_some() });
        }
        if bias {
            let mut first = 0;
            for input in &inputs[1 + weights..] {
                let cols = self.graph.ty(*input).shape[0];
                let weight = self.weight(node, *input, false)?;
                let at = View { offset: out.offset + first, cols, ..out };
                self.phases.push_row_op(RowOp { kind: RowKind::Bias { weight }, from: None, at });
                first += cols;
            }
        }
        Ok(out)
    }

    /// Where a linear layer's result is only ever added: then it can be added there as it is stored.
    fn addend(&mut self, id: NodeId, node: &Node) -> Option<View> {
        let user = self.flow.only_reader(id)?;
        let sum = self.graph.node(NodeId(user));
        let (Op::Binary(Binary::Add), [x, y]) = (&sum.op, &sum.inputs[..]) else { return None };
        let (whole, x) = if self.flow.region(*y).storage == id.0 { (*y, *x) } else { (*x, *y) };
        if self.flow.region(whole) != View::dense(id.0, &node.ty) || x >= id {
            return None;
        }
        // The layer's own operand counts as a reader at `id`, so it is never what is overwritten.
        let Value::View(view) = self.values[x.index()] else { return None };
        if !self.flow.may_overwrite(x, user, id.0) {
            return None;
        }
        self.absorbed.insert(user, view);
        Some(view)
    }

    fn experts(
        &mut self,
        x: View,
        router: View,
        matrices: [u32; 3],
        how: (usize, bool, Activation),
    ) -> Experts {
        let [gate, up, down] = matrices.map(|weight| {
            let matrix = self.backing.weights.matrix(weight);
            (weight, matrix.activations(self.backing.precision))
        });
        let hidden = self.backing.weights.matrix(gate.0).rows();
        Experts::new(&mut self.phases, x, router, [gate, up, down], hidden, how)
    }

    fn write_kv(&mut self, node: &Node) -> Lower<Value> {
        let state = self.state(node, node.inputs[0])?;
        let at = self.view(node, node.inputs[1])?;
        let slots = self.input(node, node.inputs[2])?;
        let ty = self.backing.states.get(state).ty();
        self.check(Check::Distinct { input: slots, bound: ty.shape[0] * ty.shape[1] });
        self.phases.push_row_op(RowOp { kind: RowKind::WriteKv { state, slots }, from: None, at });
        Ok(Value::State(state))
    }

    fn attention(&mut self, node: &Node, attention: Attention) -> Lower<View> {
        let inputs = &node.inputs;
        let q = self.view(node, inputs[0])?;
        let [k, v] = [self.state(node, inputs[1])?, self.state(node, inputs[2])?];
        for (state, role) in [(k, KvRole::Key), (v, KvRole::Value)] {
            if self.backing.states.get(state).role() != role {
                return Err(unsupported(
                    node,
                    format!("a cache of {role:?} values was allocated for another role"),
                ));
            }
        }
        let tables = self.input(node, inputs[3])?;
        let positions = self.input(node, inputs[4])?;
        let rows = inputs.get(5).map(|rows| self.input(node, *rows)).transpose()?;
        let &[blocks, block, _, _] = &self.backing.states.get(k).ty().shape[..] else {
            unreachable!("caches have four dimensions")
        };
        let &[table_rows, table_blocks] = &self.graph.ty(inputs[3]).shape[..] else {
            unreachable!("the builder checks that tables have two dimensions")
        };
        let table_row = match (rows, attention.width) {
            (Some(rows), _) => {
                self.check(Check::Below { input: rows, bound: table_rows });
                TableRows::Input(rows)
            }
            (None, width) => TableRows::Width(width.unwrap_or(1)),
        };
        self.check(Check::Below { input: positions, bound: table_blocks.saturating_mul(block) });
        self.check(Check::Blocks { tables, table_blocks, positions, rows: table_row, block, blocks });
        let heads = node.ty.shape[1];
        let out = self.fresh(node);
        let mut phase = AttentionPhase {
            q,
            heads,
            k,
            v,
            tables,
            table_blocks,
            positions,
            rows,
            attention,
            out,
            schedule: 0,
        };
        let same = |other: &AttentionPhase| {
            let ty = |state| self.backing.states.get(state).ty();
            (
                other.tables,
                other.positions,
                other.rows,
                other.attention.window,
                other.attention.width,
                other.heads,
            ) == (tables, positions, rows, attention.window, attention.width, heads)
                && ty(other.k) == ty(k)
        };
        phase.schedule = match self.schedules.iter().position(same) {
            Some(index) => index as u32,
            None => {
                self.schedules.push(phase);
                self.schedules.len() as u32 - 1
            }
        };
        self.phases.push(Work::Attention(phase));
        Ok(out)
    }

    fn full_attention(&mut self, node: &Node, scale: f32) -> Lower<View> {
        let inputs = &node.inputs;
        let [q, k, v] =
            [self.view(node, inputs[0])?, self.view(node, inputs[1])?, self.view(node, inputs[2])?];
        let last = self.input(node, inputs[3])?;
        let &[_, heads, dim] = &node.ty.shape[..] else {
            unreachable!("the builder checks that queries have three dimensions")
        };
        let sequences = self.graph.ty(inputs[3]).shape[0];
        let width = q.rows / sequences;
        self.check(Check::Below { input: last, bound: width });
        let floats = FullAttention::scratch_floats(width, dim);
        let scratch = self.phases.storage(floats * self.backing.workers);
        let out = self.fresh(node);
        let attention = FullAttention { q, k, v, heads, last, sequences, scale, scratch, out };
        self.phases.push(Work::FullAttention(attention));
        Ok(out)
    }

    /// Makes sure that the forms in which `matrices` want `x` exist when the next phase multiplies them. Returns
    /// where each matrix finds its form, and the forms that the workers of that phase have to make for themselves.
    fn encode(&mut self, node: &Node, x: NodeId, matrices: &[u32]) -> Lower<(Vec<Encoded>, Vec<Encode>)> {
        let view = self.view(node, x)?;
        let region = Some(self.flow.region(x));
        if self.encoded.0 != region {
            self.encoded = (region, Vec::new());
            self.norm = self.own_norm(x, &view);
        }
        let mut encode = Vec::new();
        let mut all = Vec::with_capacity(matrices.len());
        for matrix in matrices {
            let form = self.backing.weights.matrix(*matrix).activations(self.backing.precision);
            let found = self.encoded.1.iter().find(|encoded| encoded.form == form).copied();
            all.push(found.unwrap_or_else(|| self.encode_as(view, form, &mut encode)));
        }
        Ok((all, encode))
    }

    /// For few rows: takes a norm whose result nobody else reads into the phase of its reader, where each worker computes
    /// it for itself. That saves a barrier.
    fn own_norm(&mut self, x: NodeId, view: &View) -> Option<(View, OwnNorm)> {
        if view.rows > PRIVATE || self.flow.only_reader(x).is_none() {
            return None;
        }
        let (from, (weight, eps, offset)) = self.phases.take_norm(view)?;
        let step = (view.rows * view.cols).next_multiple_of(16);
        let storage = self.phases.storage(step * self.backing.workers);
        Some((from, OwnNorm { weight, eps, offset, storage, step }))
    }

    fn encode_as(&mut self, x: View, form: Activations, encode: &mut Vec<Encode>) -> Encoded {
        let floats = floats(form, x.rows, x.cols);
        let private = self.norm.is_some() || x.rows <= PRIVATE && !self.phases.ends_in_rows(x.rows);
        let copies = if private { self.backing.workers } else { 1 };
        let storage = self.phases.storage(floats * copies);
        let to = Encoded { form, storage, step: if private { floats } else { 0 } };
        if private {
            encode.push(match self.norm {
                Some((from, norm)) => Encode { x: from, norm: Some(norm), to },
                None => Encode { x, norm: None, to },
            });
        } else {
            self.phases.push_row_op(RowOp { kind: RowKind::Encode { to }, from: None, at: x });
        }
        self.encoded.1.push(to);
        to
    }

    /// An op that makes rows from inputs alone.
    fn source(&mut self, node: &Node, kind: RowKind) -> View {
        let at = self.fresh(node);
        self.phases.push_row_op(RowOp { kind, from: None, at });
        at
    }

    /// An op that turns rows of `x` into rows of the result, over `x` itself where it may.
    fn row_op(&mut self, id: NodeId, node: &Node, x: NodeId, kind: RowKind) -> Lower<View> {
        let view = self.view(node, x)?;
        let op = if self.flow.may_overwrite(x, id.0, id.0) {
            RowOp { kind, from: None, at: view }
        } else {
            RowOp { kind, from: Some(view), at: self.fresh(node) }
        };
        let at = op.at;
        self.phases.push_row_op(op);
        Ok(at)
    }

    /// Memory for a node's value.
    fn fresh(&mut self, node: &Node) -> View {
        View::dense(self.phases.storage(node.ty.elements()), &node.ty)
    }
}

/// Floats that encoded rows take, in whole cache lines so that workers' copies do not share any.
pub(crate) fn floats(form: Activations, rows: usize, cols: usize) -> usize {
    form.bytes(rows, cols).div_ceil(size_of::<f32>()).next_multiple_of(16)
}

pub(super) fn unsupported(node: &Node, why: String) -> PlanError {
    PlanError::Unsupported { op: node.op.name(), location: node.location, why }
}
