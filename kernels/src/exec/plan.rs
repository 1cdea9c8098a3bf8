//! A lowered graph: phases that every worker walks through, with a barrier after each.

use std::sync::Arc;

use millrace_graph::{Activation, Attention};

use super::check::Check;
use super::experts::{Experts, Stage};
use super::full::FullAttention;
use super::place::Place;
use super::view::View;
use crate::matrix::Activations;
use crate::ops::elementwise::Arithmetic;

/// A graph made ready to run by the executor that planned it: which kernel runs when, where every value lies,
/// and which input elements to check. Small; holds no memory for values, since all plans of an executor share
/// one arena.
#[derive(Debug)]
pub struct Plan {
    /// The executor it belongs to.
    pub(crate) owner: u64,
    pub(crate) phases: Vec<Phase>,
    /// Indexed by [`View::storage`].
    pub(crate) places: Vec<Place>,
    pub(crate) inputs: Vec<Slot>,
    pub(crate) outputs: Vec<Slot>,
    pub(crate) checks: Vec<Check>,
    /// Distinct attention schedules, to be planned anew for every step.
    pub(crate) schedules: Vec<AttentionPhase>,
}

/// An input or output as the caller sees it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) elements: usize,
}

/// Work that is shared out among the workers, and waited for.
#[derive(Debug)]
pub(crate) struct Phase {
    /// Index into the executor's table of timings.
    pub(crate) label: u32,
    pub(crate) work: Work,
}

/// What a phase does.
#[derive(Debug)]
pub(crate) enum Work {
    /// Ops that touch one row at a time, one after another on each run of rows.
    Rows {
        rows: usize,
        ops: Vec<RowOp>,
    },
    /// Products with matrices, each into columns of its own.
    Linear {
        encode: Vec<Encode>,
        parts: Vec<Product>,
        /// Whether they are added to what is there.
        add: bool,
    },
    /// `act(x · gateᵀ) ⊙ (x · upᵀ)`.
    Gated {
        encode: Vec<Encode>,
        gate: (u32, Encoded),
        up: (u32, Encoded),
        act: Activation,
        out: View,
    },
    Attention(AttentionPhase),
    FullAttention(FullAttention),
    /// A stage of a mixture of experts.
    Experts(Stage, Experts),
}

/// Activations in the form that some matrices want.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoded {
    pub(crate) form: Activations,
    pub(crate) storage: u32,
    /// Floats from one worker's copy to the next one's; 0 where all share one.
    pub(crate) step: usize,
}

/// What each worker of a phase encodes for itself before it begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encode {
    pub(crate) x: View,
    /// A norm of `x` that is encoded in its place.
    pub(crate) norm: Option<OwnNorm>,
    pub(crate) to: Encoded,
}

/// A norm that each worker computes for itself, into memory of its own: for few rows that is cheaper than to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnNorm {
    pub(crate) weight: u32,
    pub(crate) eps: f32,
    pub(crate) offset: f32,
    pub(crate) storage: u32,
    /// Floats from one worker's rows to the next one's.
    pub(crate) step: usize,
}

impl Encode {
    fn storages(&self) -> impl Iterator<Item = u32> {
        [self.x.storage].into_iter().chain(self.norm.map(|norm| norm.storage))
    }
}

/// One product of a linear layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) weight: u32,
    pub(crate) acts: Encoded,
    pub(crate) out: View,
}

/// A row-wise op. It works in place on the rows of `at`, into which those of `from` are copied first where the
/// operand has to outlive the op.
#[derive(Debug)]
pub(crate) struct RowOp {
    pub(crate) kind: RowKind,
    pub(crate) from: Option<View>,
    pub(crate) at: View,
}

/// What a row-wise op does to a row.
#[derive(Debug)]
pub(crate) enum RowKind {
    /// Nothing beyond the copy.
    Copy,
    /// A row of an embedding table.
    Embed {
        table: u32,
        ids: u32,
        scale: f32,
    },
    /// A row of `x`.
    Select {
        x: View,
        indices: u32,
    },
    Arithmetic {
        op: Arithmetic,
        y: View,
    },
    Norm {
        weight: u32,
        eps: f32,
        offset: f32,
    },
    Angles {
        positions: u32,
        inv_freq: Arc<[f32]>,
        scale: f32,
    },
    Rotate {
        angles: View,
        dim: usize,
    },
    Scale {
        factor: f32,
    },
    Softcap {
        cap: f32,
    },
    LayerNorm {
        weight: u32,
        bias: u32,
        eps: f32,
    },
    Gelu,
    /// The mean direction of rows `width · i ..= width · i + last[i]` of `x`.
    Pool {
        x: View,
        last: u32,
        width: usize,
    },
    /// Adds a vector.
    Bias {
        weight: u32,
    },
    /// Reads the row and writes it to a cache.
    WriteKv {
        state: u32,
        slots: u32,
    },
    /// Reads the row and encodes it for the products that follow.
    Encode {
        to: Encoded,
    },
    /// Chooses the experts of a row of router logits.
    Route {
        logits: View,
        top_k: usize,
        normalise: bool,
    },
    /// Adds up what a row's experts made of it.
    Combine {
        routes: View,
        results: View,
        top_k: usize,
    },
}

/// One paged attention.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct AttentionPhase {
    pub(crate) q: View,
    pub(crate) heads: usize,
    pub(crate) k: u32,
    pub(crate) v: u32,
    pub(crate) tables: u32,
    /// Blocks in a row of the tables.
    pub(crate) table_blocks: usize,
    pub(crate) positions: u32,
    pub(crate) rows: Option<u32>,
    pub(crate) attention: Attention,
    pub(crate) out: View,
    /// Index into [`Plan::schedules`].
    pub(crate) schedule: u32,
}

impl RowOp {
    /// The op's name in tables of timings.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            RowKind::Copy => "copy",
            RowKind::Embed { .. } => "embed",
            RowKind::Select { .. } => "select-rows",
            RowKind::Arithmetic { op, .. } => op.name(),
            RowKind::Norm { .. } => "rms-norm",
            RowKind::Angles { .. } => "rope-angles",
            RowKind::Rotate { .. } => "rope",
            RowKind::Scale { .. } => "scale",
            RowKind::Softcap { .. } => "softcap",
            RowKind::Bias { .. } => "bias",
            RowKind::WriteKv { .. } => "write-kv",
            RowKind::Encode { .. } => "encode",
            RowKind::Route { .. } => "route",
            RowKind::Combine { .. } => "combine",
            RowKind::LayerNorm { .. } => "layer-norm",
            RowKind::Gelu => "gelu",
            RowKind::Pool { .. } => "mean-pool",
        }
    }

    /// Whether it writes the rows at `at`.
    pub(crate) fn writes(&self) -> bool {
        !matches!(self.kind, RowKind::WriteKv { .. } | RowKind::Encode { .. })
    }

    /// The views it reads besides `at`, row by row.
    fn reads(&self) -> impl Iterator<Item = View> {
        let operand = match self.kind {
            RowKind::Arithmetic { y, .. } => Some(y),
            RowKind::Rotate { angles, .. } => Some(angles),
            RowKind::Route { logits, .. } => Some(logits),
            RowKind::Combine { routes, .. } => Some(routes),
            _ => None,
        };
        self.from.into_iter().chain(operand)
    }

    /// What it reads at other rows than its own.
    fn reads_anywhere(&self) -> Option<View> {
        match self.kind {
            RowKind::Select { x, .. } => Some(x),
            RowKind::Combine { results, .. } => Some(results),
            RowKind::Pool { x, .. } => Some(x),
            _ => None,
        }
    }

    /// Every storage it touches.
    pub(crate) fn storages(&self) -> impl Iterator<Item = u32> {
        let encoded = match self.kind {
            RowKind::Encode { to } => Some(to.storage),
            _ => None,
        };
        let views = self.reads().chain(self.reads_anywhere()).chain([self.at]);
        views.map(|view| view.storage).chain(encoded)
    }

    /// Whether both can be in one phase, where a worker may be through with its rows of the one before
    /// another has begun with the other: what either writes, the other touches at the same row only.
    pub(crate) fn can_share_phase(&self, other: &RowOp) -> bool {
        let harmless = |writer: &RowOp, other: &RowOp| {
            let at = writer.at;
            let scattered = other.reads_anywhere().is_some_and(|view| view.overlaps(&at));
            let mut touched = other.reads().chain([other.at]);
            !writer.writes() || (!scattered && touched.all(|view| !view.overlaps(&at) || view.aligned(&at)))
        };
        let caches = match (&self.kind, &other.kind) {
            (RowKind::WriteKv { state: a, slots: x }, RowKind::WriteKv { state: b, slots: y }) => {
                a != b || x == y
            }
            _ => true,
        };
        caches && harmless(self, other) && harmless(other, self)
    }
}

impl Work {
    /// Every storage it touches.
    pub(crate) fn storages(&self, mut f: impl FnMut(u32)) {
        match self {
            Work::Rows { ops, .. } => ops.iter().flat_map(RowOp::storages).for_each(f),
            Work::Linear { encode, parts, .. } => {
                encode.iter().flat_map(Encode::storages).for_each(&mut f);
                for part in parts {
                    f(part.acts.storage);
                    f(part.out.storage);
                }
            }
            Work::Gated { encode, gate, up, out, .. } => {
                encode.iter().flat_map(Encode::storages).for_each(&mut f);
                [gate.1.storage, up.1.storage, out.storage].into_iter().for_each(f);
            }
            Work::Attention(attention) => {
                [attention.q.storage, attention.out.storage].into_iter().for_each(f)
            }
            Work::FullAttention(attention) => attention.storages().into_iter().for_each(f),
            Work::Experts(_, experts) => experts.storages().into_iter().for_each(f),
        }
    }

    /// What it is called in tables of timings.
    pub(crate) fn name(&self) -> String {
        match self {
            Work::Rows { ops, .. } => ops.iter().map(RowOp::name).collect::<Vec<_>>().join(" + "),
            Work::Linear { add, parts, .. } => {
                let cols: usize = parts.iter().map(|part| part.out.cols).sum();
                format!("linear{} → {cols}", if *add { " + add" } else { "" })
            }
            Work::Gated { out, .. } => format!("gated-linear → {}", out.cols),
            Work::Attention(_) => "paged-attention".into(),
            Work::FullAttention(_) => "full-attention".into(),
            Work::Experts(stage, _) => format!("experts: {stage:?}").to_lowercase(),
        }
    }
}
