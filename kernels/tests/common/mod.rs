//! What the executor's tests share: random data from a seed, weights from their names, and a graph run both by
//! the executor and by the evaluator.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses its part")]

pub mod decoder;

use std::collections::HashMap;

use millrace_graph::{Builder, DType, Graph, NodeId, ParamKind, TensorView, Type, define};
use millrace_kernels::eval::{Value, evaluate};
use millrace_kernels::quantise::quantise;
use millrace_kernels::{Executor, Plan, Pool, Precision, Weights};

/// SplitMix64: a test's data from its seed.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// In [-1, 1).
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn indices(&mut self, count: usize, below: usize) -> Vec<i32> {
        (0..count).map(|_| self.below(below) as i32).collect()
    }
}

/// Stored weights by name. Their elements follow from seed, name and shape, so graphs of several sizes share them.
#[derive(Default)]
pub struct Stored {
    pub seed: u64,
    pub weights: HashMap<String, (Type, Vec<u8>)>,
}

impl Stored {
    pub fn new(seed: u64) -> Self {
        Stored { seed, weights: HashMap::new() }
    }

    /// Declares a weight whose rows have a norm of about one.
    pub fn weight(&mut self, b: &mut Builder, name: &str, dtype: DType, shape: &[usize]) -> NodeId {
        let ty = Type::new(dtype, shape);
        if !self.weights.contains_key(name) {
            let mut random =
                Random(name.bytes().fold(self.seed, |hash, byte| Random(hash ^ u64::from(byte)).next()));
            let scale = if shape.len() > 1 { (3.0 / ty.cols() as f32).sqrt() } else { 1.0 };
            let values: Vec<f32> = (0..ty.elements()).map(|_| random.float() * scale).collect();
            let mut bytes = vec![0; ty.bytes().expect("whole blocks")];
            quantise(dtype, &values, &mut bytes).expect("finite weights of a float format");
            self.weights.insert(name.into(), (ty.clone(), bytes));
        }
        b.param(name, ParamKind::Weight, ty).expect("a new name")
    }

    /// An executor that has them.
    pub fn executor(&self, threads: usize, precision: Precision) -> Executor {
        let pool = Pool::new(threads);
        let mut weights = Weights::new();
        for (name, (ty, bytes)) in &self.weights {
            weights.insert(name, &TensorView::new(ty.clone(), bytes), &pool).expect("a weight");
        }
        Executor::new(pool, precision, weights)
    }

    /// The outputs of a graph by its definitions, states being zero.
    pub fn evaluate(&self, graph: &Graph, inputs: &[Vec<i32>]) -> Vec<Vec<f32>> {
        let mut values = HashMap::new();
        for (name, (ty, bytes)) in &self.weights {
            values.insert(name.clone(), Value::from_bytes(ty.clone(), bytes).expect("a weight"));
        }
        let mut inputs = inputs.iter();
        for param in &graph.params {
            let ty = graph.ty(param.node).clone();
            let value = match param.kind {
                ParamKind::Weight => continue,
                ParamKind::Input => {
                    let input = inputs.next().expect("an input for each parameter");
                    Value::from_ints(ty, input.iter().map(|index| i64::from(*index)).collect())
                }
                ParamKind::State => {
                    let zeros = vec![0.0; ty.elements()];
                    Value::from_floats(ty, zeros)
                }
            };
            values.insert(param.name.clone(), value.expect("a value of the parameter's type"));
        }
        let primitives = define::inline(graph).expect("definitions for all ops");
        let results = evaluate(&primitives, &values).expect("values for all nodes");
        let results = results.into_iter().zip(&graph.outputs).filter(|(_, output)| output.alias.is_none());
        results.map(|(value, _)| value.floats().expect("float results").to_vec()).collect()
    }
}

/// Runs a plan of `graph`.
pub fn run(executor: &mut Executor, plan: &Plan, graph: &Graph, inputs: &[Vec<i32>]) -> Vec<Vec<f32>> {
    let results = graph.outputs.iter().filter(|output| output.alias.is_none());
    // Whoever does not write all of an output leaves something that is not a number.
    let mut outputs: Vec<Vec<f32>> =
        results.map(|output| vec![f32::NAN; graph.ty(output.node).elements()]).collect();
    let inputs: Vec<&[i32]> = inputs.iter().map(Vec::as_slice).collect();
    let mut slices: Vec<&mut [f32]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    executor.run(plan, &inputs, &mut slices).expect("a step");
    outputs
}

pub fn bits(values: &[Vec<f32>]) -> Vec<Vec<u32>> {
    values.iter().map(|values| values.iter().map(|value| value.to_bits()).collect()).collect()
}

/// The largest difference, relative to the largest element expected.
pub fn difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // NaN anywhere has to fail the comparison that follows.
    worst.fold(0.0, |max, d| if d <= max { max } else { d }) / largest
}
