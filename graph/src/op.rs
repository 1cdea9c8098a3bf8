//! The operations: XLA's primitives, and fused ops that are defined in terms of them.

use std::sync::Arc;

use crate::{DType, ParamId};

/// What a node computes. Primitives follow XLA's semantics and names; a [`Fused`] op carries its own
/// definition in primitives ([`crate::define`]), which is what the HLO writer emits and what kernels are
/// tested against.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// An entry parameter.
    Parameter(ParamId),
    /// A literal.
    Constant(Literal),
    /// Counts up along one dimension.
    Iota {
        /// The dimension.
        dim: usize,
    },
    /// Operand dimension `i` becomes result dimension `dims[i]`; the others repeat.
    Broadcast {
        /// One entry for each operand dimension, ascending.
        dims: Vec<usize>,
    },
    /// Same elements in row-major order, other dimensions.
    Reshape,
    /// Result dimension `i` is operand dimension `perm[i]`.
    Transpose {
        /// A permutation of the dimensions.
        perm: Vec<usize>,
    },
    /// A box, one entry for each dimension.
    Slice {
        /// First index.
        starts: Vec<usize>,
        /// One past the last index.
        limits: Vec<usize>,
        /// Step.
        strides: Vec<usize>,
    },
    /// Operands one behind the other along a dimension.
    Concatenate {
        /// The dimension.
        dim: usize,
    },
    /// Conversion to the node's element type. A block format converts to floats by dequantisation; that form
    /// exists on the CPU alone, and the HLO writer refuses it.
    Convert,
    /// One operand, element by element.
    Unary(Unary),
    /// Two operands of equal type, element by element.
    Binary(Binary),
    /// Two operands of equal type to `pred`.
    Compare(Direction),
    /// `select(pred, on_true, on_false)`, all of one shape.
    Select,
    /// Folds the named dimensions.
    Reduce {
        /// The operation, which also fixes the initial value.
        op: Reduction,
        /// The dimensions to fold, ascending.
        dims: Vec<usize>,
    },
    /// A dot product with batch and contracting dimensions: result is batch, then lhs free, then rhs free
    /// dimensions. Accumulates in f32 and rounds once to the node's element type.
    Dot(DotDims),
    /// `gather(operand, indices)`, XLA's.
    Gather(GatherDims),
    /// `scatter(operand, indices, updates)` that assigns; indices are unique.
    Scatter(ScatterDims),
    /// `x [.., V] → [.., K]`: the largest elements of each row, descending, the lower index first on a tie, or where they
    /// are in the row. It has no form among XLA's primitives that a device is known to take; in HLO it is the vendor's
    /// custom call `AwsNeuronTopK`, one for both results of the same operand.
    TopK {
        /// K.
        k: usize,
        /// Whether the result is the indices, as u32.
        indices: bool,
    },
    /// Element-wise reduction over the ranks of each group.
    AllReduce {
        /// The operation.
        op: Reduction,
        /// Ranks of each group.
        groups: Vec<Vec<u32>>,
    },
    /// An op with a definition of its own.
    Fused(Fused),
}

/// Element-wise functions of one operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "XLA's opcodes")]
pub enum Unary {
    Negate,
    Abs,
    Exp,
    Log,
    Sqrt,
    Rsqrt,
    Logistic,
    Tanh,
    Sin,
    Cos,
    Floor,
}

/// Element-wise functions of two operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "XLA's opcodes")]
pub enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Maximum,
    Minimum,
    Power,
    And,
    Or,
}

/// Comparison directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "XLA's directions")]
pub enum Direction {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// What a reduction folds with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "XLA's opcodes")]
pub enum Reduction {
    Add,
    Maximum,
    Minimum,
}

/// Dimension numbers of a dot product, XLA's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "XLA's field names")]
pub struct DotDims {
    pub lhs_batch: Vec<usize>,
    pub rhs_batch: Vec<usize>,
    pub lhs_contracting: Vec<usize>,
    pub rhs_contracting: Vec<usize>,
}

/// Dimension numbers of a gather, XLA's.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "XLA's field names")]
pub struct GatherDims {
    pub offset_dims: Vec<usize>,
    pub collapsed_slice_dims: Vec<usize>,
    pub start_index_map: Vec<usize>,
    pub index_vector_dim: usize,
    pub slice_sizes: Vec<usize>,
}

/// Dimension numbers of a scatter, XLA's.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "XLA's field names")]
pub struct ScatterDims {
    pub update_window_dims: Vec<usize>,
    pub inserted_window_dims: Vec<usize>,
    pub scatter_dims_to_operand_dims: Vec<usize>,
    pub index_vector_dim: usize,
}

/// A constant: its elements row-major, or one for all of them. Weights are never constants.
#[derive(Clone, PartialEq, Debug)]
pub enum Literal {
    /// Floats of the node's element type, given as f32.
    Float(Arc<[f32]>),
    /// Integers (and `pred` as 0 or 1) of the node's element type.
    Int(Arc<[i64]>),
}

/// What gates a gated feed-forward layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// `x · σ(x)`
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// An op with a definition in primitives and, on the CPU, a kernel of its own. `T` counts new tokens over all
/// rows of a step; activations are `[T, …]`, all of one float type; weights keep their stored type.
#[derive(Clone, PartialEq, Debug)]
pub enum Fused {
    /// `(table [V, D], ids s32[T]) → [T, D]`: rows of the table, times `scale`. The result is of the node's
    /// element type.
    Embed {
        /// Gemma's √D and Granite's multiplier; 1 elsewhere.
        scale: f32,
    },
    /// `(x [.., D], weight [D]) → [.., D]`: `x / √(mean(x²) + eps) · (weight + offset)`, in f32 and rounded once.
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
        /// Added to the weight: Gemma stores `w - 1`.
        offset: f32,
    },
    /// `(positions s32[T]) → f32[T, 2, R/2]`: cosines, then sines, of `position · inv_freq`, times `scale`.
    RopeAngles {
        /// R/2 angular frequencies.
        inv_freq: Arc<[f32]>,
        /// The attention factor of scaled RoPE (LongRoPE, YaRN); 1 elsewhere.
        scale: f32,
    },
    /// `(x [T, H, D], angles f32[T, 2, R/2]) → [T, H, D]`: rotates the pairs `(i, i + R/2)` of the first R of
    /// the D dimensions and passes the rest through.
    Rope,
    /// `(x [T, K], w₁ [N₁, K], …, [b₁ [N₁], …]) → [T, ΣN]`: `x · wᵀ + b` for each weight, side by side.
    Linear {
        /// The number of weights.
        weights: usize,
        /// Whether as many biases follow the weights.
        bias: bool,
    },
    /// `(x [T, K], gate [F, K], up [F, K]) → [T, F]`: `act(x · gateᵀ) ⊙ (x · upᵀ)`.
    GatedLinear {
        /// The gate's function.
        act: Activation,
    },
    /// `(cache [B, S, G, D], values [T, G, D], slots s32[T]) → cache`: token `t` goes to slot `slots[t]`, that
    /// is block `slot / S`, offset `slot % S`. The result replaces the cache in place. A cache of s8
    /// has a scale for each token and head, which is no part of the tensor.
    WriteKv,
    /// `(q [T, H, D], k [B, S, G, D], v [B, S, G, D], tables s32[R, M], positions s32[T] (, rows s32[T])) →
    /// [T, H, D]`: causal attention of each new token to the tokens `0 ..= position` of its row, which lie
    /// in the row's blocks in order. Query head `h` reads KV head `h · G / H`.
    PagedAttention(Attention),
    /// `(x [T, D], router [T, E], gate [E, F, D], up [E, F, D], down [E, D, F]) → [T, D]`: the `top_k` experts
    /// with the largest softmax probability (the lower index on a tie), weighted by it.
    Experts {
        /// Experts used by each token.
        top_k: usize,
        /// Whether the chosen probabilities are scaled to sum to one.
        normalise: bool,
        /// The gate's function.
        act: Activation,
    },
    /// `x → cap · tanh(x / cap)`.
    Softcap {
        /// The bound.
        cap: f32,
    },
    /// `x → factor · x`.
    Scale {
        /// The factor.
        factor: f32,
    },
    /// `(x [T, D], indices s32[L]) → [L, D]`.
    SelectRows,
    /// `(x [.., D], weight [D], bias [D]) → [.., D]`: `(x - mean(x)) / √(var(x) + eps) · weight + bias`, in f32 and
    /// rounded once.
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `x → x · Φ(x)`, Φ being the normal distribution's: GELU as BERT has it, not its tanh approximation.
    Gelu,
    /// `(q [T, H, D], k [T, H, D], v [T, H, D], last s32[B]) → [T, H, D]`: `T = B · W` tokens of B sequences of width
    /// W; every token attends to the tokens `0 ..= last` of its sequence. Those behind `last` are padding, whose
    /// results mean nothing.
    FullAttention {
        /// Multiplies the scores.
        scale: f32,
    },
    /// `(x [T, D], last s32[B]) → [B, D]`: the mean of the tokens `0 ..= last` of each sequence, scaled to length one.
    MeanPool,
}

/// What paged attention needs to know besides its operands.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Attention {
    /// Multiplies the scores.
    pub scale: f32,
    /// A sliding window: a token sees positions `p` with `position - p < window`.
    pub window: Option<usize>,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// `Some(w)`: token `t` belongs to table row `t / w`, so `T = R · w`. `None`: a sixth operand says which.
    pub width: Option<usize>,
}

impl Op {
    /// The opcode in printed graphs: XLA's, or the fused op's name.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Parameter(_) => "parameter",
            Op::Constant(_) => "constant",
            Op::Iota { .. } => "iota",
            Op::Broadcast { .. } => "broadcast",
            Op::Reshape => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::Slice { .. } => "slice",
            Op::Concatenate { .. } => "concatenate",
            Op::Convert => "convert",
            Op::Unary(op) => op.name(),
            Op::Binary(op) => op.name(),
            Op::Compare(_) => "compare",
            Op::Select => "select",
            Op::Reduce { .. } => "reduce",
            Op::Dot(_) => "dot",
            Op::Gather(_) => "gather",
            Op::Scatter(_) => "scatter",
            Op::TopK { .. } => "top-k",
            Op::AllReduce { .. } => "all-reduce",
            Op::Fused(fused) => fused.name(),
        }
    }
}

impl Unary {
    /// XLA's opcode.
    pub fn name(self) -> &'static str {
        match self {
            Unary::Negate => "negate",
            Unary::Abs => "abs",
            Unary::Exp => "exponential",
            Unary::Log => "log",
            Unary::Sqrt => "sqrt",
            Unary::Rsqrt => "rsqrt",
            Unary::Logistic => "logistic",
            Unary::Tanh => "tanh",
            Unary::Sin => "sine",
            Unary::Cos => "cosine",
            Unary::Floor => "floor",
        }
    }
}

impl Binary {
    /// XLA's opcode.
    pub fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Subtract => "subtract",
            Binary::Multiply => "multiply",
            Binary::Divide => "divide",
            Binary::Maximum => "maximum",
            Binary::Minimum => "minimum",
            Binary::Power => "power",
            Binary::And => "and",
            Binary::Or => "or",
        }
    }
}

impl Direction {
    /// XLA's name.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Eq => "EQ",
            Direction::Ne => "NE",
            Direction::Lt => "LT",
            Direction::Le => "LE",
            Direction::Gt => "GT",
            Direction::Ge => "GE",
        }
    }
}

impl Reduction {
    /// The opcode folded with.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Add => "add",
            Reduction::Maximum => "maximum",
            Reduction::Minimum => "minimum",
        }
    }
}

impl Fused {
    /// The op's name in printed graphs.
    pub fn name(&self) -> &'static str {
        match self {
            Fused::Embed { .. } => "embed",
            Fused::RmsNorm { .. } => "rms-norm",
            Fused::RopeAngles { .. } => "rope-angles",
            Fused::Rope => "rope",
            Fused::Linear { .. } => "linear",
            Fused::GatedLinear { .. } => "gated-linear",
            Fused::WriteKv => "write-kv",
            Fused::PagedAttention(_) => "paged-attention",
            Fused::Experts { .. } => "experts",
            Fused::Softcap { .. } => "softcap",
            Fused::Scale { .. } => "scale",
            Fused::SelectRows => "select-rows",
            Fused::LayerNorm { .. } => "layer-norm",
            Fused::Gelu => "gelu",
            Fused::FullAttention { .. } => "full-attention",
            Fused::MeanPool => "mean-pool",
        }
    }
}

impl Literal {
    /// One float for all elements.
    pub fn float(value: f32) -> Self {
        Literal::Float(Arc::new([value]))
    }

    /// One integer for all elements.
    pub fn int(value: i64) -> Self {
        Literal::Int(Arc::new([value]))
    }

    /// The number of elements given.
    pub fn len(&self) -> usize {
        match self {
            Literal::Float(values) => values.len(),
            Literal::Int(values) => values.len(),
        }
    }

    /// Whether no element is given.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this can be a literal of that element type.
    pub fn suits(&self, dtype: DType) -> bool {
        match self {
            Literal::Float(_) => dtype.is_float(),
            Literal::Int(_) => dtype.is_integer() || dtype == DType::Pred,
        }
    }
}
