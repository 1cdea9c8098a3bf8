//! A small decoder as model families build them, with the parts that a seed chooses, over a paged cache.

use std::sync::Arc;

use millrace_graph::{Activation, Attention, Builder, DType, Graph, NodeId, ParamKind, Type};

use super::{Random, Stored};

pub const VOCAB: usize = 40;
pub const BLOCK: usize = 8;
pub const BLOCKS: usize = 24;
/// Sequences of a step, and blocks of each.
pub const ROWS: usize = 4;
pub const TABLE: usize = 5;

const WIDTH: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 16;

/// What families differ in.
#[derive(Clone, Debug)]
pub struct Family {
    pub layers: usize,
    pub kv: DType,
    /// Formats of the projections, in turn.
    formats: Vec<DType>,
    bias: bool,
    head_norm: bool,
    post_norm: bool,
    residual_scale: f32,
    softcap: Option<f32>,
    window: Option<usize>,
    rotated: usize,
    experts: Option<(usize, usize, bool)>,
    act: Activation,
}

impl Family {
    pub fn random(seed: u64) -> Family {
        let mut random = Random(seed);
        let all = [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0];
        Family {
            layers: 2,
            kv: random.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16]),
            formats: (0..3).map(|_| random.pick(&all)).collect(),
            bias: random.chance(40),
            head_norm: random.chance(40),
            post_norm: random.chance(30),
            residual_scale: random.pick(&[1.0, 1.0, 0.5]),
            softcap: random.chance(30).then_some(4.0),
            window: random.chance(40).then_some(1 + random.below(12)),
            rotated: random.pick(&[DIM, DIM, DIM / 2]),
            experts: random.chance(40).then(|| (5, 1 + random.below(3), random.chance(50))),
            act: random.pick(&[Activation::Silu, Activation::GeluTanh]),
        }
    }

    /// The graph for `tokens` new tokens, `logits` of which yield logits. Inputs: tokens, positions, rows, slots,
    /// tables, logit rows.
    pub fn graph(&self, stored: &mut Stored, tokens: usize, logits: usize) -> Graph {
        let mut b = Builder::new("decoder");
        let mut input = |name: &str, shape: &[usize]| {
            b.param(name, ParamKind::Input, Type::new(DType::I32, shape)).expect("an input")
        };
        let ids = input("tokens", &[tokens]);
        let positions = input("positions", &[tokens]);
        let rows = input("rows", &[tokens]);
        let slots = input("slots", &[tokens]);
        let tables = input("block_tables", &[ROWS, TABLE]);
        let logit_rows = input("logit_rows", &[logits]);
        let inv_freq: Arc<[f32]> = (0..self.rotated / 2).map(|i| 0.4f32.powi(i as i32)).collect();
        let angles = b.rope_angles(positions, inv_freq, 1.0).expect("angles");
        let table = stored.weight(&mut b, "embed", DType::Q8_0, &[VOCAB, WIDTH]);
        let mut x = b.embed(table, ids, 1.5, DType::F32).expect("an embedding");
        let mut layer = Layer { family: self, b, stored, tokens, index: 0 };
        let mut caches = Vec::new();
        for index in 0..self.layers {
            layer.index = index;
            let mut cache = |what: &str| {
                let ty = Type::new(self.kv, [BLOCKS, BLOCK, KV_HEADS, DIM]);
                layer.b.param(format!("{what}.{index}"), ParamKind::State, ty).expect("a cache")
            };
            let (k, v) = (cache("k"), cache("v"));
            let y = layer.norm(x, "norm");
            let (y, k, v) = layer.attention(y, [k, v], slots, tables, positions, rows, angles);
            x = layer.residual(x, y, "post");
            let y = layer.norm(x, "mlp_norm");
            let y = layer.mlp(y);
            x = layer.residual(x, y, "mlp_post");
            caches.push((index, k, v));
        }
        let x = layer.b.select_rows(x, logit_rows).expect("rows");
        let x = layer.norm(x, "final");
        let Layer { mut b, stored, .. } = layer;
        let head = stored.weight(&mut b, "head", DType::Q8_0, &[VOCAB, WIDTH]);
        let mut y = b.linear(x, &[head], &[]).expect("logits");
        if self.softcap.is_some() {
            y = b.softcap(y, 20.0).expect("a softcap");
        }
        b.output("logits", y, None).expect("an output");
        for (index, k, v) in caches {
            for (name, node) in [(format!("k.{index}"), k), (format!("v.{index}"), v)] {
                b.output(name.clone(), node, Some(&name)).expect("a cache");
            }
        }
        b.finish().expect("a graph")
    }
}

struct Layer<'a> {
    family: &'a Family,
    b: Builder,
    stored: &'a mut Stored,
    tokens: usize,
    index: usize,
}

impl Layer<'_> {
    fn weight(&mut self, name: &str, dtype: DType, shape: &[usize]) -> NodeId {
        let name = format!("{}.{name}", self.index);
        self.stored.weight(&mut self.b, &name, dtype, shape)
    }

    fn projection(&mut self, turn: usize, name: &str, shape: &[usize]) -> NodeId {
        let dtype = self.family.formats[turn % self.family.formats.len()];
        self.weight(name, dtype, shape)
    }

    fn norm(&mut self, x: NodeId, name: &str) -> NodeId {
        let weight = self.weight(name, DType::F32, &[self.b.ty(x).cols()]);
        self.b.rms_norm(x, weight, 1e-3, 0.5).expect("a norm")
    }

    fn residual(&mut self, x: NodeId, y: NodeId, post: &str) -> NodeId {
        let y = if self.family.post_norm { self.norm(y, post) } else { y };
        let y = self.b.scale(y, self.family.residual_scale).expect("a scale");
        self.b.add(x, y).expect("a sum")
    }

    #[allow(clippy::too_many_arguments, reason = "the operands of attention")]
    fn attention(
        &mut self,
        x: NodeId,
        [k_cache, v_cache]: [NodeId; 2],
        slots: NodeId,
        tables: NodeId,
        positions: NodeId,
        rows: NodeId,
        angles: NodeId,
    ) -> (NodeId, NodeId, NodeId) {
        let (q_width, kv_width) = (HEADS * DIM, KV_HEADS * DIM);
        let parts = [("q", q_width), ("k", kv_width), ("v", kv_width)];
        let weights: Vec<NodeId> =
            (0..3).map(|i| self.projection(i, parts[i].0, &[parts[i].1, WIDTH])).collect();
        let biases: Vec<NodeId> = match self.family.bias {
            true => {
                parts.iter().map(|(n, width)| self.weight(&format!("{n}b"), DType::F32, &[*width])).collect()
            }
            false => Vec::new(),
        };
        let qkv = self.b.linear(x, &weights, &biases).expect("projections");
        let heads = |layer: &mut Self, start: usize, count: usize, name: Option<&str>| {
            let y = layer.b.slice(qkv, 1, start, start + count * DIM).expect("a part");
            let mut y = layer.b.reshape(y, &[layer.tokens, count, DIM]).expect("heads");
            if let Some(name) = name {
                if layer.family.head_norm {
                    y = layer.norm(y, name);
                }
                y = layer.b.rope(y, angles).expect("a rotation");
            }
            y
        };
        let q = heads(self, 0, HEADS, Some("q_norm"));
        let k = heads(self, q_width, KV_HEADS, Some("k_norm"));
        let v = heads(self, q_width + kv_width, KV_HEADS, None);
        let k = self.b.write_kv(k_cache, k, slots).expect("keys");
        let v = self.b.write_kv(v_cache, v, slots).expect("values");
        let window = if self.index == 0 { self.family.window } else { None };
        let params = Attention { scale: 0.3, window, softcap: self.family.softcap, width: None };
        let y = self.b.paged_attention(&[q, k, v, tables, positions, rows], params).expect("attention");
        let y = self.b.reshape(y, &[self.tokens, q_width]).expect("rows");
        let o = self.projection(1, "o", &[WIDTH, q_width]);
        (self.b.linear(y, &[o], &[]).expect("a projection"), k, v)
    }

    fn mlp(&mut self, x: NodeId) -> NodeId {
        let act = self.family.act;
        let Some((count, top_k, normalise)) = self.family.experts else {
            let (gate, up) =
                (self.projection(0, "gate", &[96, WIDTH]), self.projection(2, "up", &[96, WIDTH]));
            let y = self.b.gated_linear(x, gate, up, act).expect("a gated layer");
            let down = self.projection(1, "down", &[WIDTH, 96]);
            return self.b.linear(y, &[down], &[]).expect("a projection");
        };
        let router = self.weight("router", DType::F32, &[count, WIDTH]);
        let logits = self.b.linear(x, &[router], &[]).expect("router logits");
        let gate = self.projection(0, "gates", &[count, 32, WIDTH]);
        let up = self.projection(2, "ups", &[count, 32, WIDTH]);
        let down = self.projection(1, "downs", &[count, WIDTH, 32]);
        self.b.experts([x, logits, gate, up, down], top_k, normalise, act).expect("experts")
    }
}

/// Some sequences in a step: `(sequence, first position, count)`.
pub type Rows = Vec<(usize, usize, usize)>;

/// A sequence: its tokens, and the blocks that hold them.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub tokens: Vec<i32>,
    pub blocks: Vec<i32>,
}

/// Sequences with tokens and with blocks of their own.
pub fn sequences(random: &mut Random, count: usize) -> Vec<Sequence> {
    let mut blocks: Vec<i32> = (0..BLOCKS as i32).collect();
    for i in (1..blocks.len()).rev() {
        blocks.swap(i, random.below(i + 1));
    }
    (0..count)
        .map(|_| {
            let length = 1 + random.below(TABLE * BLOCK);
            let tokens = random.indices(length, VOCAB);
            Sequence { tokens, blocks: blocks.split_off(blocks.len() - length.div_ceil(BLOCK)) }
        })
        .collect()
}

/// The inputs of a step that wants all logits. Entries of the tables that no row reaches are nonsense.
pub fn inputs(sequences: &[Sequence], rows: &Rows) -> Vec<Vec<i32>> {
    let mut inputs = vec![Vec::new(); 4];
    let mut tables = vec![i32::MIN; ROWS * TABLE];
    for (row, (sequence, first, count)) in rows.iter().enumerate() {
        let Sequence { tokens, blocks } = &sequences[*sequence];
        for position in *first..first + count {
            inputs[0].push(tokens[position]);
            inputs[1].push(position as i32);
            inputs[2].push(row as i32);
            inputs[3].push(blocks[position / BLOCK] * BLOCK as i32 + (position % BLOCK) as i32);
        }
        let reached = (first + count).div_ceil(BLOCK);
        tables[row * TABLE..][..reached].copy_from_slice(&blocks[..reached]);
    }
    let count = inputs[0].len() as i32;
    inputs.push(tables);
    inputs.push((0..count).collect());
    inputs
}
