//! The decoder as a graph: one function for every family, since families differ only in [`Config`].
//!
//! Inputs, in order: `tokens s32[T]`, `positions s32[T]`, `rows s32[T]` (only where a step's rows are not all
//! of one width), `slots s32[T]`, `block_tables s32[R, M]`, `logit_rows s32[L]`. States: `k_cache.{l}` and
//! `v_cache.{l}` of `[kv_blocks, block_size, kv_heads, head_dim]`. Outputs: `logits` f32 `[L, V]`, then the
//! caches under their own names. Weights have the canonical names that [`crate::names`] lists.

use millrace_graph::{Attention, Builder, DType, Graph, NodeId, ParamKind, Type};

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
    let mut b = Builder::new("decoder");
    let index = |shape: &[usize]| Type::new(DType::I32, shape);
    let tokens = b.param("tokens", ParamKind::Input, index(&[shape.tokens]))?;
    let positions = b.param("positions", ParamKind::Input, index(&[shape.tokens]))?;
    let rows = match shape.width {
        Some(_) => None,
        None => Some(b.param("rows", ParamKind::Input, index(&[shape.tokens]))?),
    };
    let slots = b.param("slots", ParamKind::Input, index(&[shape.tokens]))?;
    let tables = b.param("block_tables", ParamKind::Input, index(&[shape.rows, shape.table_blocks]))?;
    let logit_rows = b.param("logit_rows", ParamKind::Input, index(&[shape.logits]))?;

    let cache_shape = [shape.kv_blocks, shape.block_size, config.kv_heads, config.head_dim];
    let mut caches = Vec::with_capacity(config.layers.len());
    for l in 0..config.layers.len() {
        let ty = Type::new(shape.kv_dtype, cache_shape);
        let k = b.param(format!("k_cache.{l}"), ParamKind::State, ty.clone())?;
        let v = b.param(format!("v_cache.{l}"), ParamKind::State, ty)?;
        caches.push((k, v));
    }
    let mut angles = Vec::with_capacity(config.ropes.len());
    for rope in &config.ropes {
        let (inv_freq, scale) = rope.frequencies(config.context);
        angles.push(b.rope_angles(positions, inv_freq, scale)?);
    }

    let mut model = Model { b, config, shape, weight_type };
    let table = model.weight("embed", &[config.vocab, config.hidden])?;
    let mut x = model.b.embed(table, tokens, config.embed_scale, shape.compute)?;
    for (l, (k_cache, v_cache)) in caches.iter_mut().enumerate() {
        let paged = Paged { k_cache, v_cache, slots, tables, positions, rows, angles: &angles };
        x = model.block(x, l, "attn", |model, y| model.attention(y, l, paged))?;
        x = model.block(x, l, "mlp", |model, y| model.mlp(y, l))?;
    }
    let x = model.b.select_rows(x, logit_rows)?;
    let x = model.norm(x, "final_norm")?;
    let head = model.weight("head", &[config.vocab, config.hidden])?;
    let logits = model.b.linear(x, &[head], &[])?;
    let mut logits = model.b.convert(logits, DType::F32)?;
    logits = model.b.scale(logits, config.logit_scale)?;
    if let Some(cap) = config.logit_softcap {
        logits = model.b.softcap(logits, cap)?;
    }
    model.b.output("logits", logits, None)?;
    for (l, (k, v)) in caches.into_iter().enumerate() {
        for (name, node) in [(format!("k_cache.{l}"), k), (format!("v_cache.{l}"), v)] {
            model.b.output(name.clone(), node, Some(&name))?;
        }
    }
    Ok(model.b.finish()?)
}

struct Model<'a> {
    b: Builder,
    config: &'a Config,
    shape: &'a StepShape,
    weight_type: &'a dyn Fn(&str) -> Result<Type, ModelError>,
}

/// What attention reads besides its input; the caches are replaced by their successors.
struct Paged<'a> {
    k_cache: &'a mut NodeId,
    v_cache: &'a mut NodeId,
    slots: NodeId,
    tables: NodeId,
    positions: NodeId,
    rows: Option<NodeId>,
    angles: &'a [NodeId],
}

impl Model<'_> {
    /// A weight parameter, checked against the shape that the configuration asks for.
    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<NodeId, ModelError> {
        let ty = (self.weight_type)(name)?;
        if ty.shape != shape {
            return Err(ModelError::WeightType {
                name: name.into(),
                expected: format!("{shape:?}"),
                found: ty.to_string(),
            });
        }
        Ok(self.b.param(name, ParamKind::Weight, ty)?)
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

    fn attention(&mut self, x: NodeId, l: usize, paged: Paged<'_>) -> Result<NodeId, ModelError> {
        let (config, tokens) = (self.config, self.shape.tokens);
        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        let layer = &config.layers[l];

        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for (part, width) in [("q", q_width), ("k", kv_width), ("v", kv_width)] {
            let name = format!("layers.{l}.attn.{part}");
            weights.push(self.weight(&name, &[width, config.hidden])?);
            if config.qkv_bias {
                biases.push(self.weight(&format!("{name}_bias"), &[width])?);
            }
        }
        let qkv = self.b.linear(x, &weights, &biases)?;
        let q = self.b.slice(qkv, 1, 0, q_width)?;
        let k = self.b.slice(qkv, 1, q_width, q_width + kv_width)?;
        let v = self.b.slice(qkv, 1, q_width + kv_width, q_width + 2 * kv_width)?;

        let q = self.heads(q, l, "q", config.heads, layer.rope.map(|rope| paged.angles[rope]))?;
        let k = self.heads(k, l, "k", config.kv_heads, layer.rope.map(|rope| paged.angles[rope]))?;
        let v = self.b.reshape(v, &[tokens, config.kv_heads, config.head_dim])?;
        *paged.k_cache = self.b.write_kv(*paged.k_cache, k, paged.slots)?;
        *paged.v_cache = self.b.write_kv(*paged.v_cache, v, paged.slots)?;

        let mut operands = vec![q, *paged.k_cache, *paged.v_cache, paged.tables, paged.positions];
        operands.extend(paged.rows);
        let attention = Attention {
            scale: config.attention_scale,
            window: layer.window,
            softcap: config.attention_softcap,
            width: self.shape.width,
        };
        let y = self.b.paged_attention(&operands, attention)?;
        let y = self.b.reshape(y, &[tokens, q_width])?;
        let o = self.weight(&format!("layers.{l}.attn.o"), &[config.hidden, q_width])?;
        let bias = match config.o_bias {
            true => vec![self.weight(&format!("layers.{l}.attn.o_bias"), &[config.hidden])?],
            false => Vec::new(),
        };
        Ok(self.b.linear(y, &[o], &bias)?)
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
            x = self.norm(x, &norm)?;
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

    fn mlp(&mut self, x: NodeId, l: usize) -> Result<NodeId, ModelError> {
        let (hidden, act) = (self.config.hidden, self.config.activation);
        match self.config.layers[l].mlp {
            Mlp::Dense { ffn } => {
                let gate = self.weight(&format!("layers.{l}.mlp.gate"), &[ffn, hidden])?;
                let up = self.weight(&format!("layers.{l}.mlp.up"), &[ffn, hidden])?;
                let y = self.b.gated_linear(x, gate, up, act)?;
                let down = self.weight(&format!("layers.{l}.mlp.down"), &[hidden, ffn])?;
                Ok(self.b.linear(y, &[down], &[])?)
            }
            Mlp::Experts { count, top_k, ffn, normalise } => {
                let router = self.weight(&format!("layers.{l}.moe.router"), &[count, hidden])?;
                let scores = self.b.linear(x, &[router], &[])?;
                let gate = self.weight(&format!("layers.{l}.moe.gate"), &[count, ffn, hidden])?;
                let up = self.weight(&format!("layers.{l}.moe.up"), &[count, ffn, hidden])?;
                let down = self.weight(&format!("layers.{l}.moe.down"), &[count, hidden, ffn])?;
                Ok(self.b.experts([x, scores, gate, up, down], top_k, normalise, act)?)
            }
        }
    }
}
