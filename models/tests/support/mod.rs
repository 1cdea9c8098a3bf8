//! What the integration tests share: where checkpoints are, and a checkpoint run by the graph evaluator.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]

pub mod gguf_writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use millrace_graph::{DType, Graph, ParamKind, TensorView, Type, define};
use millrace_kernels::eval::{Value, evaluate};
use millrace_models::{Checkpoint, Config, StepShape, decoder};
use safetensors::SafeTensors;

/// The folder beside the repository that holds answers computed elsewhere, if it is there.
pub fn shared(what: &str) -> Option<PathBuf> {
    let repository =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|dir| dir.join("Cargo.lock").exists())?;
    let path = repository.parent()?.join("shared").join(what);
    path.exists().then_some(path)
}

/// Says on the terminal that a test could not run.
#[allow(clippy::print_stderr, reason = "a skipped test must be seen")]
pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// The checkpoints that are checked in, by name.
pub fn own_checkpoints() -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut found: Vec<PathBuf> =
        data.read_dir().expect("the folder is checked in").map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("config.json").exists());
    found.sort();
    assert!(found.len() >= 10, "checkpoints are missing from {}", data.display());
    found
}

/// A tensor of a safetensors file as f32 or i64.
pub struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    pub fn open(path: &Path) -> Golden {
        Golden { bytes: std::fs::read(path).unwrap() }
    }

    pub fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (tensor.shape().to_vec(), values.collect())
    }

    pub fn ids(&self, name: &str) -> (Vec<usize>, Vec<u32>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        let values = tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
        (tensor.shape().to_vec(), values.collect())
    }
}

/// Stored bytes in logical row order.
pub fn dense(view: &TensorView<'_>) -> Vec<u8> {
    (0..view.ty.rows()).flat_map(|row| view.row(row).iter().copied()).collect()
}

/// One sequence on the evaluator, with blocks handed out in descending order.
pub struct Sequence<'a> {
    checkpoint: &'a Checkpoint,
    config: Config,
    weights: HashMap<String, Value>,
    graphs: HashMap<(usize, bool), Graph>,
    caches: HashMap<String, Value>,
    position: usize,
}

const BLOCK: usize = 8;
const BLOCKS: usize = 8;

impl<'a> Sequence<'a> {
    pub fn new(checkpoint: &'a Checkpoint, config: Config) -> Sequence<'a> {
        Sequence {
            checkpoint,
            config,
            weights: HashMap::new(),
            graphs: HashMap::new(),
            caches: HashMap::new(),
            position: 0,
        }
    }

    /// Forgets the tokens and keeps the graphs.
    pub fn restart(&mut self) {
        self.caches.clear();
        self.position = 0;
    }

    /// Appends tokens in one step and returns the logits behind each. `uniform` chooses the form of the graph
    /// in which all rows of a step are of one width.
    pub fn extend(&mut self, tokens: &[u32], uniform: bool) -> Vec<Vec<f32>> {
        let count = tokens.len();
        let shape = StepShape {
            tokens: count,
            rows: 1,
            table_blocks: BLOCKS,
            logits: count,
            width: uniform.then_some(count),
            kv_blocks: BLOCKS,
            block_size: BLOCK,
            kv_dtype: DType::F32,
            compute: DType::F32,
        };
        let graph = self.graphs.entry((count, uniform)).or_insert_with(|| {
            let checkpoint = self.checkpoint;
            let graph = decoder(&self.config, &shape, &|name| checkpoint.weight_type(name)).unwrap();
            define::inline(&graph).unwrap()
        });
        let ints = |shape: &[usize], values: Vec<i64>| {
            Value::from_ints(Type::new(DType::I32, shape), values).unwrap()
        };
        let positions: Vec<i64> = (self.position..self.position + count).map(|p| p as i64).collect();
        let table: Vec<i64> = (0..BLOCKS as i64).rev().collect();
        let slot = |p: &i64| table[*p as usize / BLOCK] * BLOCK as i64 + p % BLOCK as i64;
        let mut inputs = HashMap::from([
            ("tokens".to_owned(), ints(&[count], tokens.iter().map(|t| i64::from(*t)).collect())),
            ("slots".to_owned(), ints(&[count], positions.iter().map(slot).collect())),
            ("positions".to_owned(), ints(&[count], positions.clone())),
            ("rows".to_owned(), ints(&[count], vec![0; count])),
            ("block_tables".to_owned(), ints(&[1, BLOCKS], table.clone())),
            ("logit_rows".to_owned(), ints(&[count], (0..count as i64).collect())),
        ]);
        for param in &graph.params {
            let ty = graph.ty(param.node);
            match param.kind {
                ParamKind::Input => {}
                ParamKind::Weight => {
                    let value = self.weights.entry(param.name.clone()).or_insert_with(|| {
                        let view = self.checkpoint.weight(&param.name).unwrap();
                        Value::from_bytes(view.ty.clone(), &dense(&view)).unwrap()
                    });
                    inputs.insert(param.name.clone(), value.clone());
                }
                ParamKind::State => {
                    let zeros = || Value::from_floats(ty.clone(), vec![0.0; ty.elements()]).unwrap();
                    let value = self.caches.entry(param.name.clone()).or_insert_with(zeros);
                    inputs.insert(param.name.clone(), value.clone());
                }
            }
        }
        let results = evaluate(graph, &inputs).unwrap();
        self.position += count;
        for (output, value) in graph.outputs.iter().zip(&results).skip(1) {
            self.caches.insert(output.name.clone(), value.clone());
        }
        let logits = results[0].floats().unwrap();
        logits.chunks(self.config.vocab).map(<[f32]>::to_vec).collect()
    }
}

/// The index of the largest value; the first on a tie.
pub fn argmax(values: &[f32]) -> u32 {
    let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0 as u32
}

/// The largest absolute difference.
pub fn distance(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, |a, b| if b.is_nan() { f32::NAN } else { a.max(b) })
}
