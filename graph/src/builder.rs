//! Builds graphs. Every call infers the type of its result and refuses operands that do not fit, with the
//! caller's location.

use std::panic::Location;
use std::sync::Arc;

use crate::infer::infer;
use crate::{
    Activation, Attention, Binary, DType, Direction, DotDims, Fused, GatherDims, Graph, GraphError, Literal,
    Node, NodeId, Op, Output, Param, ParamId, ParamKind, Reduction, ScatterDims, Type, Unary,
};

/// A graph under construction.
pub struct Builder {
    graph: Graph,
}

type Built = Result<NodeId, GraphError>;

impl Builder {
    /// An empty graph of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Builder {
            graph: Graph { name: name.into(), nodes: Vec::new(), params: Vec::new(), outputs: Vec::new() },
        }
    }

    /// Appends a node whose type follows from its operands.
    ///
    /// # Errors
    /// Where the operands do not fit the operation.
    #[track_caller]
    pub fn push(&mut self, op: Op, inputs: &[NodeId]) -> Built {
        self.push_typed(op, inputs, None)
    }

    #[track_caller]
    fn push_typed(&mut self, op: Op, inputs: &[NodeId], wanted: Option<Type>) -> Built {
        let location = Location::caller();
        let types: Vec<&Type> = inputs.iter().map(|id| self.graph.ty(*id)).collect();
        let ty =
            infer(&op, &types, wanted.as_ref()).map_err(|why| GraphError { op: op.name(), location, why })?;
        let id = NodeId(self.graph.nodes.len() as u32);
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), ty, location });
        Ok(id)
    }

    /// The type of a node built so far.
    pub fn ty(&self, id: NodeId) -> &Type {
        self.graph.ty(id)
    }

    /// Declares an entry parameter.
    ///
    /// # Errors
    /// Where the name is taken.
    #[track_caller]
    pub fn param(&mut self, name: impl Into<String>, kind: ParamKind, ty: Type) -> Built {
        let (name, location) = (name.into(), Location::caller());
        if self.graph.find_param(&name).is_some() {
            let why = format!("a parameter named {name:?} exists already");
            return Err(GraphError { op: "parameter", location, why });
        }
        let param = ParamId(self.graph.params.len() as u32);
        let node = self.push_typed(Op::Parameter(param), &[], Some(ty))?;
        self.graph.params.push(Param { name, kind, node });
        Ok(node)
    }

    /// Declares a result; `alias` names the state parameter that it replaces.
    ///
    /// # Errors
    /// Where the name is taken, or `alias` is not a state parameter of the same type that is not yet replaced.
    #[track_caller]
    pub fn output(
        &mut self,
        name: impl Into<String>,
        node: NodeId,
        alias: Option<&str>,
    ) -> Result<(), GraphError> {
        let (name, location) = (name.into(), Location::caller());
        let refuse = |why: String| GraphError { op: "output", location, why };
        if self.graph.outputs.iter().any(|output| output.name == name) {
            return Err(refuse(format!("an output named {name:?} exists already")));
        }
        let alias = match alias {
            None => None,
            Some(state) => {
                let at = self.graph.params.iter().position(|param| param.name == state);
                let at = at.ok_or_else(|| refuse(format!("no parameter named {state:?} to alias")))?;
                let param = &self.graph.params[at];
                if param.kind != ParamKind::State {
                    return Err(refuse(format!("{state:?} is not a state parameter")));
                }
                if self.graph.ty(param.node) != self.graph.ty(node) {
                    let (ours, theirs) = (self.graph.ty(node), self.graph.ty(param.node));
                    return Err(refuse(format!("{ours} cannot take the place of {state:?}, a {theirs}")));
                }
                let id = ParamId(at as u32);
                if self.graph.outputs.iter().any(|output| output.alias == Some(id)) {
                    return Err(refuse(format!("{state:?} is replaced by another output already")));
                }
                Some(id)
            }
        };
        self.graph.outputs.push(Output { name, node, alias });
        Ok(())
    }

    /// The finished graph, verified.
    ///
    /// # Errors
    /// Where [`Graph::verify`] refuses it.
    pub fn finish(self) -> Result<Graph, GraphError> {
        self.graph.verify()?;
        Ok(self.graph)
    }

    // Primitives.

    /// A literal; one element stands for all.
    #[track_caller]
    pub fn constant(&mut self, ty: Type, literal: Literal) -> Built {
        self.push_typed(Op::Constant(literal), &[], Some(ty))
    }

    /// Counts up along `dim` of `ty`.
    #[track_caller]
    pub fn iota(&mut self, ty: Type, dim: usize) -> Built {
        self.push_typed(Op::Iota { dim }, &[], Some(ty))
    }

    /// Operand dimension `i` becomes dimension `dims[i]` of `shape`.
    #[track_caller]
    pub fn broadcast(&mut self, x: NodeId, shape: &[usize], dims: &[usize]) -> Built {
        let ty = Type::new(self.ty(x).dtype, shape);
        self.push_typed(Op::Broadcast { dims: dims.to_vec() }, &[x], Some(ty))
    }

    /// Other dimensions, same elements.
    #[track_caller]
    pub fn reshape(&mut self, x: NodeId, shape: &[usize]) -> Built {
        let ty = Type::new(self.ty(x).dtype, shape);
        self.push_typed(Op::Reshape, &[x], Some(ty))
    }

    /// Result dimension `i` is operand dimension `perm[i]`.
    #[track_caller]
    pub fn transpose(&mut self, x: NodeId, perm: &[usize]) -> Built {
        self.push(Op::Transpose { perm: perm.to_vec() }, &[x])
    }

    /// `start..limit` along one dimension, all of the others.
    #[track_caller]
    pub fn slice(&mut self, x: NodeId, dim: usize, start: usize, limit: usize) -> Built {
        let shape = self.ty(x).shape.clone();
        let (mut starts, mut limits) = (vec![0; shape.len()], shape.clone());
        if let (Some(s), Some(l)) = (starts.get_mut(dim), limits.get_mut(dim)) {
            (*s, *l) = (start, limit);
        }
        self.push(Op::Slice { starts, limits, strides: vec![1; shape.len()] }, &[x])
    }

    /// Operands one behind the other along `dim`.
    #[track_caller]
    pub fn concatenate(&mut self, xs: &[NodeId], dim: usize) -> Built {
        self.push(Op::Concatenate { dim }, xs)
    }

    /// Converts to another element type; no node where it has that type already.
    #[track_caller]
    pub fn convert(&mut self, x: NodeId, dtype: DType) -> Built {
        if self.ty(x).dtype == dtype {
            return Ok(x);
        }
        let ty = Type::new(dtype, self.ty(x).shape.clone());
        self.push_typed(Op::Convert, &[x], Some(ty))
    }

    /// A function of one operand.
    #[track_caller]
    pub fn unary(&mut self, op: Unary, x: NodeId) -> Built {
        self.push(Op::Unary(op), &[x])
    }

    /// A function of two operands of equal type.
    #[track_caller]
    pub fn binary(&mut self, op: Binary, x: NodeId, y: NodeId) -> Built {
        self.push(Op::Binary(op), &[x, y])
    }

    /// `x + y`.
    #[track_caller]
    pub fn add(&mut self, x: NodeId, y: NodeId) -> Built {
        self.binary(Binary::Add, x, y)
    }

    /// `x · y`.
    #[track_caller]
    pub fn multiply(&mut self, x: NodeId, y: NodeId) -> Built {
        self.binary(Binary::Multiply, x, y)
    }

    /// Compares to `pred`.
    #[track_caller]
    pub fn compare(&mut self, direction: Direction, x: NodeId, y: NodeId) -> Built {
        self.push(Op::Compare(direction), &[x, y])
    }

    /// Chooses element by element.
    #[track_caller]
    pub fn select(&mut self, pred: NodeId, on_true: NodeId, on_false: NodeId) -> Built {
        self.push(Op::Select, &[pred, on_true, on_false])
    }

    /// Folds `dims`.
    #[track_caller]
    pub fn reduce(&mut self, op: Reduction, x: NodeId, dims: &[usize]) -> Built {
        self.push(Op::Reduce { op, dims: dims.to_vec() }, &[x])
    }

    /// A dot product whose result has the element type `dtype`.
    #[track_caller]
    pub fn dot(&mut self, x: NodeId, y: NodeId, dims: DotDims, dtype: DType) -> Built {
        self.push_typed(Op::Dot(dims), &[x, y], Some(Type::scalar(dtype)))
    }

    /// XLA's gather.
    #[track_caller]
    pub fn gather(&mut self, operand: NodeId, indices: NodeId, dims: GatherDims) -> Built {
        self.push(Op::Gather(dims), &[operand, indices])
    }

    /// XLA's scatter with assignment.
    #[track_caller]
    pub fn scatter(&mut self, operand: NodeId, indices: NodeId, updates: NodeId, dims: ScatterDims) -> Built {
        self.push(Op::Scatter(dims), &[operand, indices, updates])
    }

    // Fused ops; `Fused` says what each computes.

    /// [`Fused::Embed`], with a result of type `dtype`.
    #[track_caller]
    pub fn embed(&mut self, table: NodeId, ids: NodeId, scale: f32, dtype: DType) -> Built {
        self.push_typed(Op::Fused(Fused::Embed { scale }), &[table, ids], Some(Type::scalar(dtype)))
    }

    /// [`Fused::RmsNorm`].
    #[track_caller]
    pub fn rms_norm(&mut self, x: NodeId, weight: NodeId, eps: f32, offset: f32) -> Built {
        self.push(Op::Fused(Fused::RmsNorm { eps, offset }), &[x, weight])
    }

    /// [`Fused::RopeAngles`].
    #[track_caller]
    pub fn rope_angles(&mut self, positions: NodeId, inv_freq: Arc<[f32]>, scale: f32) -> Built {
        self.push(Op::Fused(Fused::RopeAngles { inv_freq, scale }), &[positions])
    }

    /// [`Fused::Rope`].
    #[track_caller]
    pub fn rope(&mut self, x: NodeId, angles: NodeId) -> Built {
        self.push(Op::Fused(Fused::Rope), &[x, angles])
    }

    /// [`Fused::Linear`]; `biases` is empty or as long as `weights`.
    #[track_caller]
    pub fn linear(&mut self, x: NodeId, weights: &[NodeId], biases: &[NodeId]) -> Built {
        let inputs: Vec<NodeId> = [&[x], weights, biases].concat();
        self.push(Op::Fused(Fused::Linear { weights: weights.len(), bias: !biases.is_empty() }), &inputs)
    }

    /// [`Fused::GatedLinear`].
    #[track_caller]
    pub fn gated_linear(&mut self, x: NodeId, gate: NodeId, up: NodeId, act: Activation) -> Built {
        self.push(Op::Fused(Fused::GatedLinear { act }), &[x, gate, up])
    }

    /// [`Fused::WriteKv`].
    #[track_caller]
    pub fn write_kv(&mut self, cache: NodeId, values: NodeId, slots: NodeId) -> Built {
        self.push(Op::Fused(Fused::WriteKv), &[cache, values, slots])
    }

    /// [`Fused::PagedAttention`]; operands as documented there.
    #[track_caller]
    pub fn paged_attention(&mut self, operands: &[NodeId], attention: Attention) -> Built {
        self.push(Op::Fused(Fused::PagedAttention(attention)), operands)
    }

    /// [`Fused::Experts`]; operands as documented there.
    #[track_caller]
    pub fn experts(
        &mut self,
        operands: [NodeId; 5],
        top_k: usize,
        normalise: bool,
        act: Activation,
    ) -> Built {
        self.push(Op::Fused(Fused::Experts { top_k, normalise, act }), &operands)
    }

    /// [`Fused::Softcap`].
    #[track_caller]
    pub fn softcap(&mut self, x: NodeId, cap: f32) -> Built {
        self.push(Op::Fused(Fused::Softcap { cap }), &[x])
    }

    /// [`Fused::Scale`]; no node where the factor is 1.
    #[track_caller]
    pub fn scale(&mut self, x: NodeId, factor: f32) -> Built {
        if factor == 1.0 {
            return Ok(x);
        }
        self.push(Op::Fused(Fused::Scale { factor }), &[x])
    }

    /// [`Fused::SelectRows`].
    #[track_caller]
    pub fn select_rows(&mut self, x: NodeId, indices: NodeId) -> Built {
        self.push(Op::Fused(Fused::SelectRows), &[x, indices])
    }

    /// [`Fused::LayerNorm`].
    #[track_caller]
    pub fn layer_norm(&mut self, x: NodeId, weight: NodeId, bias: NodeId, eps: f32) -> Built {
        self.push(Op::Fused(Fused::LayerNorm { eps }), &[x, weight, bias])
    }

    /// [`Fused::Gelu`].
    #[track_caller]
    pub fn gelu(&mut self, x: NodeId) -> Built {
        self.push(Op::Fused(Fused::Gelu), &[x])
    }

    /// [`Fused::FullAttention`]; operands as documented there.
    #[track_caller]
    pub fn full_attention(&mut self, operands: [NodeId; 4], scale: f32) -> Built {
        self.push(Op::Fused(Fused::FullAttention { scale }), &operands)
    }

    /// [`Fused::MeanPool`].
    #[track_caller]
    pub fn mean_pool(&mut self, x: NodeId, last: NodeId) -> Built {
        self.push(Op::Fused(Fused::MeanPool), &[x, last])
    }
}
