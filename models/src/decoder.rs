//! The decoder as a graph: one function for every family, since families differ only in [`Config`].
//!
//! Inputs, in order: `tokens s32[T]`, `positions s32[T]`, `rows s32[T]` (only where a step's rows are not all
//! of one width), `slots s32[T]`, `block_tables s32[R, M]`, `logit_rows s32[L]`. States: `k_cache.{l}` and
//! `v_cache.{l}` of `[kv_blocks, block_size, kv_heads, head_dim]`. Outputs: `logits` f32 `[L, V]`, then the
//! caches under their own names. Weights have the canonical names that [`crate::names`] lists.
//!
//! [`crate::device`] builds on the same [`Decoder`]: one rank's share of the heads and of the feed-forward width,
//! sums over the ranks behind each, and other forms of weights.

use millrace_graph::define::{self, Weight};
use millrace_graph::{Attention, Builder, DType, Graph, NodeId, Op, ParamKind, Reduction, Type};

use crate::device::Share;
use crate::{Config, Mlp, ModelError, QkNorm};

/// The static shape of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// T: new tokens over all rows.
    pub tokens: usize,
    /// R: rows of the block tables.
    pub rows: usize,
    /// M: blocks in a block table.
    pub table_blocks: usize,
    /// L: rows of logits.
    pub logits: usize,
    /// `Some(w)`: each row has `w` new tokens, so `T = R · w`. `None`: the input `rows` says which row a token
    /// belongs to.
    pub width: Option<usize>,
    /// Blocks in each KV cache.
    pub kv_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
    /// Element type of the KV caches.
    pub kv_dtype: DType,
    /// Element type of activations.
    pub compute: DType,
}

/// Builds the graph of one step. `weight_type` says how each weight is stored.
///
/// # Errors
/// Where `weight_type` fails, a weight's shape is not what `config` asks for, or `shape` makes no sense.
pub fn decoder(
    config: &Config,
    shape: &StepShape,
    weight_type: &dyn Fn(&str) -> Result<Type, ModelError>,
) -> Result<Graph, ModelError> {
    let checked = |name: &str, shape: &[usize]| {
        let ty = weight_type(name)?;
        match ty.shape == shape {
            true => Ok(ty),
            false => Err(ModelError::WeightType {
                name: name.into(),
                expected: format!("{shape:?}"),
                found: ty.to_string(),
            }),
        }
    };
    let mut decoder = Decoder::new(config, Share::whole(config), shape, &checked)?;
    let logits = decoder.logits()?;
    decoder.b.output("logits", logits, None)?;
    decoder.finish()
}

/// A decoder under construction: inputs and caches are declared.
pub(crate) struct Decoder<'a> {
    pub(crate) b: Builder,
    config: &'a Config,
    share: Share,
    shape: &'a StepShape,
    /// The type of a weight of that shape.
    weight_type: &'a WeightType<'a>,
    inputs: Inputs,
    /// Keys and values of each layer, as the latest write to them has left them.
    caches: Vec<[NodeId; 2]>,
    angles: Vec<NodeId>,
}

pub(crate) type WeightType<'a> = dyn Fn(&str, &[usize]) -> Result<Type, ModelError> + 'a;

struct Inputs {
    tokens: NodeId,
    positions: NodeId,
    rows: Option<NodeId>,
    slots: NodeId,
    tables: NodeId,
    logit_rows: NodeId,
}

/// The names of layer `l`'s caches.
fn caches(l: usize) -> [String; 2] {
    [format!("k_cache.{l}"), format!("v_cache.{l}")]
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(
        config: &'a Config,
        share: Share,
        shape: &'a StepShape,
        weight_type: &'a WeightType<'a>,
    ) -> Result<Decoder<'a>, ModelError> {
        let mut b = Builder::new("decoder");
        let mut input =
            |name: &str, shape: &[usize]| b.param(name, ParamKind::Input, Type::new(DType::I32, shape));
        let tokens = input("tokens", &[shape.tokens])?;
        let positions = input("positions", &[shape.tokens])?;
        let rows = match shape.width {
            Some(_) => None,
            None => Some(input("rows", &[shape.tokens])?),
        };
        let slots = input("slots", &[shape.tokens])?;
        let tables = input("block_tables", &[shape.rows, shape.table_blocks])?;
        let logit_rows = input("logit_rows", &[shape.logits])?;
        let inputs = Inputs { tokens, positions, rows, slots, tables, logit_rows };

        let cache = [shape.kv_blocks, shape.block_size, share.kv_heads, config.head_dim];
        let mut states = Vec::with_capacity(config.layers.len());
        for l in 0..config.layers.len() {
            let [k, v] =
                caches(l).map(|name| b.param(name, ParamKind::State, Type::new(shape.kv_dtype, cache)));
            states.push([k?, v?]);
        }
        let mut angles = Vec::with_capacity(config.ropes.len());
        for rope in &config.ropes {
            let (inv_freq, scale) = rope.frequencies(config.context);
            angles.push(b.rope_angles(positions, inv_freq, scale)?);
        }
        Ok(Decoder { b, config, share, shape, weight_type, inputs, caches: states, angles })
    }

    /// The logits of this rank's share of the vocabulary, f32.
    pub(crate) fn logits(&mut self) -> Result<NodeId, ModelError> {
        let config = self.config;
        let table = self.weight("embed", &[config.vocab, config.hidden])?;
        let mut x = self.b.embed(table, self.inputs.tokens, config.embed_scale, self.shape.compute)?;
        for l in 0..config.layers.len() {
            x = self.block(x, l, "attn", |model, y| model.attention(y, l))?;
            x = self.block(x, l, "mlp", |model, y| model.mlp(y, l))?;
        }
        let x = self.b.select_rows(x, self.inputs.logit_rows)?;
        let x = self.norm(x, "final_norm")?;
        let head = self.matrix("head", &[self.share.vocab, config.hidden])?;
        let logits = self.linear(x, head, None)?;
        let mut logits = self.b.convert(logits, DType::F32)?;
        logits = self.b.scale(logits, config.logit_scale)?;
        if let Some(cap) = config.logit_softcap {
            logits = self.b.softcap(logits, cap)?;
        }
        Ok(logits)
    }

    /// The graph, with the caches as its last outputs.
    pub(crate) fn finish(mut self) -> Result<Graph, ModelError> {
        for (l, nodes) in self.caches.into_iter().enumerate() {
            for (name, node) in caches(l).into_iter().zip(nodes) {
                self.b.output(name.clone(), node, Some(&name))?;
            }
        }
        Ok(self.b.finish()?)
    }

    /// A weight parameter.
    pub(crate) fn weight(&mut self, name: &str, shape: &[usize]) -> Result<NodeId, ModelError> {
        let ty = (self.weight_type)(name, shape)?;
        Ok(self.b.param(name, ParamKind::Weight, ty)?)
    }

    /// A weight that dot products read, with the scales that integers have.
    fn matrix(&mut self, name: &str, shape: &[usize]) -> Result<Weight, ModelError> {
        let values = self.weight(name, shape)?;
        let scaled = self.b.ty(values).dtype == DType::I8;
        let scales = match scaled {
            true => Some(self.weight(&format!("{name}_scale"), &shape[..shape.len() - 1])?),
            false => None,
        };
        Ok(Weight { values, scales })
    }

    fn linear(&mut self, x: NodeId, weight: Weight, bias: Option<NodeId>) -> Result<NodeId, ModelError> {
        Ok(match weight.scales {
            Some(_) => define::linear(&mut self.b, x, weight, bias)?,
            None => self.b.linear(x, &[weight.values], bias.as_slice())?,
        })
    }

    /// The sum of what the ranks have.
    fn all_reduce(&mut self, x: NodeId) -> Result<NodeId, ModelError> {
        if self.share.ranks == 1 {
            return Ok(x);
        }
        let groups = vec![(0..self.share.ranks as u32).collect()];
        Ok(self.b.push(Op::AllReduce { op: Reduction::Add, groups }, &[x])?)
    }

    fn norm(&mut self, x: NodeId, name: &str) -> Result<NodeId, ModelError> {
        let width = self.b.ty(x).cols();
        let weight = self.weight(name, &[width])?;
        Ok(self.b.rms_norm(x, weight, self.config.eps, self.config.norm_offset)?)
    }

    /// `x + residual_scale · post_norm(f(pre_norm(x)))`, with the norms that the family has.
    fn block(
        &mut self,
        x: NodeId,
        l: usize,
        part: &str,
        f: impl FnOnce(&mut Self, NodeId) -> Result<NodeId, ModelError>,
    ) -> Result<NodeId, ModelError> {
        let mut y = x;
        if self.config.pre_norm {
            y = self.norm(y, &format!("layers.{l}.{part}_norm"))?;
        }
        y = f(self, y)?;
        if self.config.post_norm {
            y = self.norm(y, &format!("layers.{l}.{part}_post_norm"))?;
        }
        y = self.b.scale(y, self.config.residual_scale)?;
        Ok(self.b.add(x, y)?)
    }

    fn attention(&mut self, x: NodeId, l: usize) -> Result<NodeId, ModelError> {
        let (config, share, tokens) = (self.config, self.share, self.shape.tokens);
        let layer = &config.layers[l];
        let [q, k, v] = self.query_key_value(x, l)?;
        let angles = layer.rope.map(|rope| self.angles[rope]);
        let q = self.heads(q, l, "q", share.heads, angles)?;
        let k = self.heads(k, l, "k", share.kv_heads, angles)?;
        let v = self.b.reshape(v, &[tokens, share.kv_heads, config.head_dim])?;
        for (cache, new) in self.caches[l].iter_mut().zip([k, v]) {
            *cache = self.b.write_kv(*cache, new, self.inputs.slots)?;
        }
        let [k, v] = self.caches[l];
        let mut operands = vec![q, k, v, self.inputs.tables, self.inputs.positions];
        operands.extend(self.inputs.rows);
        let attention = Attention {
            scale: config.attention_scale,
            window: layer.window,
            softcap: config.attention_softcap,
            width: self.shape.width,
        };
        let y = self.b.paged_attention(&operands, attention)?;
        let width = share.heads * config.head_dim;
        let y = self.b.reshape(y, &[tokens, width])?;
        let o = self.matrix(&format!("layers.{l}.attn.o"), &[config.hidden, width])?;
        let bias = match config.o_bias {
            true => Some(self.weight(&format!("layers.{l}.attn.o_bias"), &[config.hidden])?),
            false => None,
        };
        // A bias is added to the sum, and not by every rank.
        let Some(bias) = bias.filter(|_| share.ranks > 1) else {
            let y = self.linear(y, o, bias)?;
            return self.all_reduce(y);
        };
        let y = self.linear(y, o, None)?;
        let y = self.all_reduce(y)?;
        let bias = self.b.convert(bias, self.shape.compute)?;
        let bias = self.b.broadcast(bias, &[tokens, config.hidden], &[1])?;
        Ok(self.b.add(y, bias)?)
    }

    /// The three projections: side by side from one product where weights need no scales and no other rank.
    fn query_key_value(&mut self, x: NodeId, l: usize) -> Result<[NodeId; 3], ModelError> {
        let config = self.config;
        let (q_width, kv_width) = (self.share.heads * config.head_dim, self.share.kv_heads * config.head_dim);
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for (part, width) in [("q", q_width), ("k", kv_width), ("v", kv_width)] {
            let name = format!("layers.{l}.attn.{part}");
            weights.push(self.matrix(&name, &[width, config.hidden])?);
            if config.qkv_bias {
                biases.push(self.weight(&format!("{name}_bias"), &[width])?);
            }
        }
        if self.share.device {
            let mut parts = [x; 3];
            for (i, part) in parts.iter_mut().enumerate() {
                *part = self.linear(x, weights[i], biases.get(i).copied())?;
            }
            return Ok(parts);
        }
        let weights: Vec<NodeId> = weights.iter().map(|weight| weight.values).collect();
        let qkv = self.b.linear(x, &weights, &biases)?;
        Ok([
            self.b.slice(qkv, 1, 0, q_width)?,
            self.b.slice(qkv, 1, q_width, q_width + kv_width)?,
            self.b.slice(qkv, 1, q_width + kv_width, q_width + 2 * kv_width)?,
        ])
    }

    /// A query or key projection as heads, normalised and rotated.
    fn heads(
        &mut self,
        x: NodeId,
        l: usize,
        part: &str,
        heads: usize,
        angles: Option<NodeId>,
    ) -> Result<NodeId, ModelError> {
        let norm = format!("layers.{l}.attn.{part}_norm");
        let mut x = x;
        if self.config.qk_norm == QkNorm::Projection {
            x = match self.share.ranks {
                1 => self.norm(x, &norm)?,
                _ => self.norm_over_ranks(x, &norm)?,
            };
        }
        x = self.b.reshape(x, &[self.shape.tokens, heads, self.config.head_dim])?;
        if self.config.qk_norm == QkNorm::Head {
            x = self.norm(x, &norm)?;
        }
        match angles {
            Some(angles) => Ok(self.b.rope(x, angles)?),
            None => Ok(x),
        }
    }

    /// A norm of rows of which each rank has as much. Heads that several ranks have count as often in the sum as in
    /// the width, so the mean is that of the whole row.
    fn norm_over_ranks(&mut self, x: NodeId, name: &str) -> Result<NodeId, ModelError> {
        let ty = self.b.ty(x).clone();
        let width = ty.cols();
        let weight = self.weight(name, &[width])?;
        let wide = self.b.convert(x, DType::F32)?;
        let square = self.b.multiply(wide, wide)?;
        let sum = self.b.reduce(Reduction::Add, square, &[1])?;
        let sum = self.all_reduce(sum)?;
        let columns = (width * self.share.ranks) as f32;
        let b = &mut self.b;
        let y = define::normalise(b, wide, sum, columns, weight, self.config.eps, self.config.norm_offset)?;
        Ok(b.convert(y, ty.dtype)?)
    }

    fn mlp(&mut self, x: NodeId, l: usize) -> Result<NodeId, ModelError> {
        let (hidden, act) = (self.config.hidden, self.config.activation);
        let y = match self.config.layers[l].mlp {
            Mlp::Dense { ffn } => {
                let ffn = self.share.of(ffn);
                let gate = self.matrix(&format!("layers.{l}.mlp.gate"), &[ffn, hidden])?;
                let up = self.matrix(&format!("layers.{l}.mlp.up"), &[ffn, hidden])?;
                let y = match gate.scales {
                    Some(_) => define::gated_linear(&mut self.b, x, gate, up, act)?,
                    None => self.b.gated_linear(x, gate.values, up.values, act)?,
                };
                let down = self.matrix(&format!("layers.{l}.mlp.down"), &[hidden, ffn])?;
                self.linear(y, down, None)?
            }
            Mlp::Experts { count, top_k, ffn, normalise } => {
                let ffn = self.share.of(ffn);
                let router = self.weight(&format!("layers.{l}.moe.router"), &[count, hidden])?;
                let scores = self.b.linear(x, &[router], &[])?;
                let gate = self.matrix(&format!("layers.{l}.moe.gate"), &[count, ffn, hidden])?;
                let up = self.matrix(&format!("layers.{l}.moe.up"), &[count, ffn, hidden])?;
                let down = self.matrix(&format!("layers.{l}.moe.down"), &[count, hidden, ffn])?;
                match gate.scales {
                    Some(_) => {
                        let weights = [gate, up, down];
                        define::experts(&mut self.b, [x, scores], weights, top_k, normalise, act)?
                    }
                    None => {
                        let operands = [x, scores, gate.values, up.values, down.values];
                        self.b.experts(operands, top_k, normalise, act)?
                    }
                }
            }
        };
        self.all_reduce(y)
    }
}
