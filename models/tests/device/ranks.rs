//! A device of several ranks, played by the evaluator: each rank has its own memory and runs the same program.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_graph::define::inline;
use millrace_graph::{DType, Graph, ParamKind, Type};
use millrace_kernels::eval::{Meeting, Program, Ranks, Value};
use millrace_models::device::{
    Bucket, DeviceModel, PADDING_LOGIT, device_decoder, device_weight, device_weights, dummy_blocks,
};
use millrace_models::{Checkpoint, Config};

/// New tokens of a sequence, those before which are in the cache.
pub(crate) struct Row<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) start: usize,
    /// Blocks that the sequence has.
    pub(crate) blocks: &'a [usize],
    /// Added to the logits, `[V]`.
    pub(crate) bias: Option<&'a [f32]>,
}

/// What a row's ranks say, put together.
pub(crate) struct Answer {
    /// Logits by token; NaN for those that are no candidates.
    pub(crate) logits: Vec<f32>,
    pub(crate) log_sum_exp: f32,
}

pub(crate) struct Device {
    config: Config,
    pub(crate) model: DeviceModel,
    pub(crate) weights: Vec<HashMap<String, Value>>,
    caches: Vec<HashMap<String, Value>>,
    programs: HashMap<Bucket, Program>,
    meeting: Arc<Meeting>,
    runs: u64,
}

pub(crate) fn weights_of(
    checkpoint: &Checkpoint,
    model: &DeviceModel,
    rank: usize,
) -> HashMap<String, Value> {
    let declared = device_weights(checkpoint.config(), model).unwrap();
    let value = |(name, ty): (String, Type)| {
        let bytes = device_weight(checkpoint, model, rank, &name).unwrap();
        let value = Value::from_bytes(ty, &bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, value)
    };
    declared.into_iter().map(value).collect()
}

/// What the host writes for a step.
pub(crate) fn inputs(
    config: &Config,
    model: &DeviceModel,
    bucket: &Bucket,
    rows: &[Row<'_>],
    rank: usize,
) -> HashMap<String, Value> {
    let Bucket { rows: count, width, blocks, adjust } = *bucket;
    // The last blocks of the cache are nobody's; each token of padding has a slot of its own there.
    let dummies = model.kv_blocks - dummy_blocks(bucket, model.block_size);
    let (mut tokens, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    let (mut tables, mut last) = (vec![dummies as i64; count * blocks], vec![0; count]);
    let share = model.vocab_share(config);
    let mut bias = vec![0f32; count * share];
    for row in 0..count {
        let given = rows.get(row);
        for i in 0..width {
            let index = row * width + i;
            match given.filter(|row| i < row.tokens.len()) {
                Some(row) => {
                    let position = row.start + i;
                    tokens.push(i64::from(row.tokens[i]));
                    positions.push(position as i64);
                    let block = row.blocks[position / model.block_size];
                    slots.push((block * model.block_size + position % model.block_size) as i64);
                }
                None => {
                    tokens.push(0);
                    positions.push(0);
                    slots.push((dummies * model.block_size + index) as i64);
                }
            }
        }
        if let Some(given) = given {
            for (to, block) in tables[row * blocks..][..blocks].iter_mut().zip(given.blocks) {
                *to = *block as i64;
            }
            last[row] = (row * width + given.tokens.len() - 1) as i64;
            for (i, to) in bias[row * share..][..share].iter_mut().enumerate() {
                *to = given.bias.and_then(|bias| bias.get(rank * share + i)).copied().unwrap_or(0.0);
            }
        } else {
            last[row] = (row * width) as i64;
        }
    }
    let ints =
        |shape: &[usize], values: Vec<i64>| Value::from_ints(Type::new(DType::I32, shape), values).unwrap();
    let all = count * width;
    let mut inputs = HashMap::from([
        ("tokens".to_owned(), ints(&[all], tokens)),
        ("positions".to_owned(), ints(&[all], positions)),
        ("slots".to_owned(), ints(&[all], slots)),
        ("block_tables".to_owned(), ints(&[count, blocks], tables)),
        ("logit_rows".to_owned(), ints(&[count], last)),
    ]);
    if adjust {
        let bias = Value::from_floats(Type::new(DType::F32, [count, share]), bias).unwrap();
        inputs.insert("logit_bias".to_owned(), bias);
    }
    inputs
}

/// Puts together what the ranks returned: `values`, `indices` and `log_sum_exp` of each.
pub(crate) fn merge(config: &Config, model: &DeviceModel, results: &[Vec<Value>], row: usize) -> Answer {
    let mut logits = vec![f32::NAN; config.vocab];
    let mut sums = Vec::new();
    for (rank, result) in results.iter().enumerate() {
        let k = result[0].ty().cols();
        let values = &result[0].floats().unwrap()[row * k..][..k];
        let indices = &result[1].ints().unwrap()[row * k..][..k];
        assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
        for (value, index) in values.iter().zip(indices) {
            let token = rank * model.vocab_share(config) + *index as usize;
            match logits.get_mut(token) {
                Some(logit) => {
                    assert!(logit.is_nan(), "token {token} is there twice");
                    *logit = *value;
                }
                None => assert!(*value <= PADDING_LOGIT / 2.0, "padding at {token} has {value}"),
            }
        }
        sums.push(f64::from(result[2].floats().unwrap()[row]));
    }
    let max = sums.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let log_sum_exp = max + sums.iter().map(|sum| (sum - max).exp()).sum::<f64>().ln();
    Answer { logits, log_sum_exp: log_sum_exp as f32 }
}

impl Device {
    pub(crate) fn new(checkpoint: &Checkpoint, model: DeviceModel) -> Device {
        let weights: Vec<_> = (0..model.ranks).map(|rank| weights_of(checkpoint, &model, rank)).collect();
        let config = checkpoint.config().clone();
        let meeting = Meeting::new(model.ranks, Duration::from_secs(60));
        let caches = vec![HashMap::new(); model.ranks];
        Device { config, model, weights, caches, programs: HashMap::new(), meeting, runs: 0 }
    }

    pub(crate) fn graph(&self, bucket: &Bucket) -> Graph {
        inline(&device_decoder(&self.config, &self.model, bucket).unwrap()).unwrap()
    }

    pub(crate) fn step(&mut self, bucket: &Bucket, rows: &[Row<'_>]) -> Vec<Answer> {
        if !self.programs.contains_key(bucket) {
            self.programs.insert(*bucket, Program::new(self.graph(bucket)).unwrap());
        }
        let program = &self.programs[bucket];
        self.runs += 1;
        let (config, model, meeting, run) = (&self.config, &self.model, &self.meeting, self.runs);
        let results: Vec<Vec<Value>> = std::thread::scope(|scope| {
            let memories = self.weights.iter().zip(&mut self.caches).enumerate();
            let threads: Vec<_> = memories
                .map(|(rank, (weights, caches))| {
                    scope.spawn(move || {
                        let given = inputs(config, model, bucket, rows, rank);
                        let mut values: Vec<Option<Value>> = Vec::new();
                        for param in &program.graph().params {
                            let ty = program.graph().ty(param.node);
                            let zeros = || Value::from_floats(ty.clone(), vec![0.0; ty.elements()]).unwrap();
                            values.push(Some(match param.kind {
                                ParamKind::Input => given[&param.name].clone(),
                                ParamKind::Weight => weights[&param.name].clone(),
                                ParamKind::State => caches.remove(&param.name).unwrap_or_else(zeros),
                            }));
                        }
                        let ranks = meeting.together(rank as u32, run);
                        let results = program.run(&mut values, Some(&ranks as &dyn Ranks));
                        let results = results.unwrap_or_else(|error| {
                            ranks.fail("it panicked");
                            panic!("rank {rank}: {error}")
                        });
                        for (output, value) in program.graph().outputs.iter().zip(&results).skip(3) {
                            caches.insert(output.name.clone(), value.clone());
                        }
                        results
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        (0..rows.len()).map(|row| merge(config, model, &results, row)).collect()
    }
}
