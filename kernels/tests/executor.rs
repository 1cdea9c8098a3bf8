//! The executor against the definitions, on random graphs of all the ops it has kernels for. The graphs have
//! values that several ops read, views of views, and outputs in the middle: whatever liveness, writing in place and
//! sharing phases can get wrong shows as a wrong number.

mod common;

use std::sync::Arc;

use common::{Random, Stored, bits, difference, run};
use millrace_graph::{Activation, Binary, Builder, DType, Graph, NodeId, ParamKind, Type};
use millrace_kernels::Precision;
use proptest::prelude::*;

const VOCAB: usize = 20;

/// Builds a random graph. With the same seed, graphs of any number of `tokens` have the same nodes.
struct Soup<'a> {
    b: Builder,
    stored: &'a mut Stored,
    random: Random,
    inputs: Vec<Vec<i32>>,
    tokens: usize,
    /// Whether each row depends on the same row of the inputs alone.
    by_row: bool,
    values: Vec<NodeId>,
    names: usize,
}

impl Soup<'_> {
    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}.{}", self.names)
    }

    fn input(&mut self, count: usize, below: usize) -> NodeId {
        let name = self.name("input");
        // Indices come from the name, since their number must not move the rest of the graph.
        let mut random = Random(self.names as u64 ^ self.random.0.rotate_left(17));
        self.inputs.push(random.indices(count, below));
        self.b.param(name, ParamKind::Input, Type::new(DType::I32, [count])).expect("a new name")
    }

    fn weight(&mut self, shape: &[usize]) -> NodeId {
        let name = self.name("weight");
        let blocks = shape.len() > 1 && shape[shape.len() - 1].is_multiple_of(32);
        let plain = [DType::F32, DType::BF16, DType::F16];
        let dtype = match shape.len() {
            1 => DType::F32,
            _ if blocks && self.random.chance(50) => {
                self.random.pick(&[DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_1])
            }
            _ => self.random.pick(&plain),
        };
        self.stored.weight(&mut self.b, &name, dtype, shape)
    }

    fn shape(&self, x: NodeId) -> Vec<usize> {
        self.b.ty(x).shape.clone()
    }

    fn value(&mut self) -> NodeId {
        let at = self.random.below(self.values.len());
        // Later values more often, so that graphs grow deep.
        let at = at.max(self.random.below(self.values.len()));
        self.values[at]
    }

    /// A value of two dimensions.
    fn matrix(&mut self) -> NodeId {
        let x = self.value();
        let shape = self.shape(x);
        match shape[..] {
            [_, _] => x,
            _ => self.b.reshape(x, &[shape[0], shape[1..].iter().product()]).expect("a reshape"),
        }
    }

    fn embed(&mut self) -> NodeId {
        let cols = self.random.pick(&[32, 64, 24]);
        let table = self.weight(&[VOCAB, cols]);
        let ids = self.input(self.tokens, VOCAB);
        let scale = self.random.pick(&[1.0, 3.0]);
        self.b.embed(table, ids, scale, DType::F32).expect("an embedding")
    }

    fn step(&mut self) -> NodeId {
        match self.random.below(18) {
            0 => self.embed(),
            15 => {
                let x = self.value();
                let cols = self.b.ty(x).cols();
                let (weight, bias) = (self.weight(&[cols]), self.weight(&[cols]));
                self.b.layer_norm(x, weight, bias, 1e-1).expect("a norm")
            }
            16 => {
                let x = self.value();
                self.b.gelu(x).expect("an activation")
            }
            17 => {
                // One text of all rows, or where rows must not see each other, texts of one token.
                let x = self.matrix();
                let (rows, cols) = (self.shape(x)[0], self.shape(x)[1]);
                let texts = if self.by_row { rows } else { 1 };
                let last = self.input(texts, rows / texts);
                let x = self.b.reshape(x, &[rows, 1, cols]).expect("one head");
                self.b.full_attention([x, x, x, last], 0.1).expect("an attention")
            }
            1 | 2 => {
                let x = self.value();
                let cols = self.b.ty(x).cols();
                let weight = self.weight(&[cols]);
                let offset = self.random.pick(&[0.0, 1.0]);
                self.b.rms_norm(x, weight, 1e-2, offset).expect("a norm")
            }
            3 => {
                let (x, factor) = (self.value(), self.random.pick(&[0.5, -1.25]));
                self.b.scale(x, factor).expect("a scale")
            }
            4 => {
                let x = self.value();
                self.b.softcap(x, 2.0).expect("a softcap")
            }
            5 | 6 => {
                let x = self.value();
                let shape = self.shape(x);
                let same: Vec<NodeId> =
                    self.values.iter().copied().filter(|y| self.b.ty(*y).shape == shape).collect();
                let y = self.random.pick(&same);
                let op = self.random.pick(&[Binary::Add, Binary::Add, Binary::Subtract, Binary::Multiply]);
                self.b.binary(op, x, y).expect("two of one shape")
            }
            7 => self.linear(),
            8 => {
                // A residual connection.
                let x = self.matrix();
                let shape = self.shape(x);
                let weight = self.weight(&[shape[1], shape[1]]);
                let source = self.matrix();
                let y = if self.shape(source) == shape { source } else { x };
                let y = self.b.linear(y, &[weight], &[]).expect("a linear layer");
                let (a, c) = if self.random.chance(50) { (x, y) } else { (y, x) };
                self.b.add(a, c).expect("an addition")
            }
            9 => {
                let x = self.matrix();
                let cols = self.shape(x)[1];
                let hidden = self.random.pick(&[32, 40]);
                let (gate, up) = (self.weight(&[hidden, cols]), self.weight(&[hidden, cols]));
                let act = self.random.pick(&[Activation::Silu, Activation::GeluTanh]);
                self.b.gated_linear(x, gate, up, act).expect("a gated layer")
            }
            10 => self.cut(),
            11 => {
                let x = self.matrix();
                let shape = self.shape(x);
                let heads = self.random.pick(&[1, 2, 4]);
                let x = match shape[1].is_multiple_of(heads) {
                    true => self.b.reshape(x, &[shape[0], heads, shape[1] / heads]).expect("heads"),
                    false => self.b.reshape(x, &[shape[0], 1, shape[1]]).expect("one head"),
                };
                let pairs = self.b.ty(x).cols() / 2;
                if pairs == 0 || self.random.chance(30) {
                    return x;
                }
                let pairs = 1 + self.random.below(pairs);
                let positions = self.input(shape[0], 500);
                let inv_freq: Arc<[f32]> = (0..pairs).map(|i| 0.5f32.powi(i as i32)).collect();
                let angles = self.b.rope_angles(positions, inv_freq, 1.0).expect("angles");
                self.b.rope(x, angles).expect("a rotation")
            }
            12 | 13 => self.overlap(),
            _ if self.by_row => self.cut(),
            _ => {
                let x = self.matrix();
                let (rows, count) = (self.shape(x)[0], self.random.pick(&[1, 3, 6]));
                let indices = self.input(count, rows);
                self.b.select_rows(x, indices).expect("rows")
            }
        }
    }

    fn linear(&mut self) -> NodeId {
        let x = self.matrix();
        let cols = self.shape(x)[1];
        let sizes: Vec<usize> =
            (0..1 + self.random.below(3)).map(|_| self.random.pick(&[32, 20, 8])).collect();
        let weights: Vec<NodeId> = sizes.iter().map(|rows| self.weight(&[*rows, cols])).collect();
        let biases = match self.random.chance(30) {
            true => sizes.iter().map(|rows| self.weight(&[*rows])).collect(),
            false => Vec::new(),
        };
        self.b.linear(x, &weights, &biases).expect("a linear layer")
    }

    /// Two runs of columns, or of rows, that may have some in common; the result may be written over one of them.
    fn overlap(&mut self) -> NodeId {
        let x = self.matrix();
        let x = if self.random.chance(50) { self.b.scale(x, 1.5).expect("a scale") } else { x };
        let dim = if self.by_row { 1 } else { self.random.below(2) };
        let size = self.shape(x)[dim];
        let count = 1 + self.random.below(size);
        let mut cut = || {
            let start = self.random.below(size - count + 1);
            self.b.slice(x, dim, start, start + count).expect("a slice")
        };
        let (mut a, mut c) = (cut(), cut());
        if self.random.chance(50) {
            a = self.b.softcap(a, 3.0).expect("a softcap");
        }
        if self.random.chance(50) {
            c = self.b.scale(c, -0.5).expect("a scale");
        }
        self.b.binary(self.random.pick(&[Binary::Add, Binary::Subtract]), a, c).expect("two of one shape")
    }

    /// A run of columns, or of rows.
    fn cut(&mut self) -> NodeId {
        let x = self.value();
        let shape = self.shape(x);
        let dim = if self.by_row { 1 } else { self.random.below(2) };
        let start = self.random.below(shape[dim]);
        let limit = start + 1 + self.random.below(shape[dim] - start);
        self.b.slice(x, dim, start, limit).expect("a slice")
    }
}

/// A random graph of `steps` ops and its inputs.
fn soup(seed: u64, stored: &mut Stored, tokens: usize, steps: usize, by_row: bool) -> (Graph, Vec<Vec<i32>>) {
    let random = Random(seed);
    let b = Builder::new("soup");
    let mut soup =
        Soup { b, stored, random, inputs: Vec::new(), tokens, by_row, values: Vec::new(), names: 0 };
    let first = soup.embed();
    soup.values.push(first);
    for _ in 0..steps {
        let value = soup.step();
        soup.values.push(value);
    }
    let last = *soup.values.last().expect("a value");
    let outputs = [last, soup.value(), soup.value()];
    for (i, node) in outputs.into_iter().enumerate() {
        soup.b.output(format!("output.{i}"), node, None).expect("a new output");
    }
    (soup.b.finish().expect("a graph"), soup.inputs)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn random_graphs_compute_what_their_definitions_say(seed: u64, tokens in 1usize..10, steps in 1usize..24) {
        let mut stored = Stored::new(seed);
        let (graph, inputs) = soup(seed, &mut stored, tokens, steps, false);
        let expected = stored.evaluate(&graph, &inputs);
        let mut executor = stored.executor(2, Precision::Reference);
        let plan = executor.plan(&graph).expect("a plan");
        let got = run(&mut executor, &plan, &graph, &inputs);
        for (got, expected) in got.iter().zip(&expected) {
            let difference = difference(got, expected);
            prop_assert!(difference < 1e-3, "off by {difference} in {graph}");
        }
        // What a run leaves in the arena is nothing to the next one.
        prop_assert_eq!(bits(&got), bits(&run(&mut executor, &plan, &graph, &inputs)));
    }

    #[test]
    fn threads_and_company_do_not_change_a_bit(
        seed: u64, tokens in 1usize..40, steps in 1usize..24, fast: bool,
    ) {
        let precision = if fast { Precision::Fast } else { Precision::Reference };
        let mut stored = Stored::new(seed);
        let (graph, inputs) = soup(seed, &mut stored, tokens, steps, true);
        let mut results = Vec::new();
        for threads in 1..4 {
            let mut executor = stored.executor(threads, precision);
            let plan = executor.plan(&graph).expect("a plan");
            results.push(bits(&run(&mut executor, &plan, &graph, &inputs)));
        }
        prop_assert_eq!(&results[0], &results[1]);
        prop_assert_eq!(&results[0], &results[2]);

        let (alone, _) = soup(seed, &mut stored, 1, steps, true);
        let mut executor = stored.executor(2, precision);
        let plan = executor.plan(&alone).expect("a plan");
        for token in [0, tokens / 2, tokens - 1] {
            let inputs: Vec<Vec<i32>> = inputs.iter().map(|input| vec![input[token]]).collect();
            let row = bits(&run(&mut executor, &plan, &alone, &inputs));
            for (row, all) in row.iter().zip(&results[0]) {
                prop_assert_eq!(row, &all[token * row.len()..][..row.len()], "token {} of {}", token, &alone);
            }
        }
    }
}
