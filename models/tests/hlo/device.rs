//! What a device's compiler gets, run by XLA: decodes and prompt chunks, one rank and several, floats and integers.

use std::collections::HashMap;
use std::path::PathBuf;

use millrace_graph::define::inline;
use millrace_graph::{DType, Graph, ParamKind, Type};
use millrace_kernels::eval::{Value, evaluate};
use millrace_models::Checkpoint;
use millrace_models::device::{Bucket, DeviceModel, DeviceWeights, TopKForm, device_decoder};

use crate::judge::{self, Job, Judge};
use crate::ranks::{Answer, Row, inputs, merge, weights_of};
use crate::{Noise, job, off, support};

const BUCKETS: [Bucket; 2] = [
    Bucket { rows: 3, width: 1, blocks: 4, adjust: true },
    Bucket { rows: 1, width: 8, blocks: 4, adjust: false },
];

/// XLA takes its time for each more.
const CANDIDATES: usize = 16;

fn model(ranks: usize, dtype: DType, weights: DeviceWeights) -> DeviceModel {
    DeviceModel {
        ranks,
        dtype,
        weights,
        candidates: CANDIDATES,
        top_k: TopKForm::Hlo,
        block_size: 4,
        kv_blocks: 14,
    }
}

/// One rank's graph and what it is given: two rows of a decode of three, or a chunk with two tokens of padding. The
/// whole model's caches hold the same noise however many ranks divide it.
fn step(
    checkpoint: &Checkpoint,
    model: &DeviceModel,
    bucket: &Bucket,
    rank: usize,
) -> (Graph, HashMap<String, Value>) {
    let config = checkpoint.config();
    let graph = inline(&device_decoder(config, model, bucket).unwrap()).unwrap();
    let bias: Vec<f32> =
        (0..config.vocab).map(|i| if i % 5 == 0 { -1e30 } else { (i % 7) as f32 / 7.0 }).collect();
    let row = |tokens, start, blocks| Row { tokens, start, blocks, bias: Some(&bias) };
    let rows = match bucket.width {
        1 => vec![row(&[5][..], 9, &[3, 1, 7][..]), row(&[8], 4, &[2, 0])],
        _ => vec![row(&[9, 1, 4, 4, 0, 7], 5, &[5, 2, 8])],
    };
    let mut given = inputs(config, model, bucket, &rows, rank);
    given.extend(weights_of(checkpoint, model, rank));
    let mut noise = Noise(1);
    for param in graph.params.iter().filter(|param| param.kind == ParamKind::State) {
        let ty = graph.ty(param.node);
        let [blocks, size, heads, dim] = ty.shape[..] else { panic!("{ty}") };
        let all = config.kv_heads;
        let whole = noise.floats(&Type::new(ty.dtype, [blocks, size, all, dim]));
        let first = rank * all.min(model.ranks) / model.ranks * heads;
        let mine =
            whole.floats().unwrap().chunks(all * dim).flat_map(|slot| &slot[first * dim..][..heads * dim]);
        let mine = Value::from_floats(ty.clone(), mine.copied().collect()).unwrap();
        given.insert(param.name.clone(), mine);
    }
    (graph, given)
}

fn open(name: &str) -> Option<Checkpoint> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let folder = if own.exists() { Some(own) } else { support::shared(&format!("golden/{name}")) };
    if folder.is_none() {
        support::skipped(&format!("golden/{name} is not there"));
    }
    Some(Checkpoint::open(&folder?).unwrap())
}

/// The largest difference of the logits that both have as candidates, relative to large ones. Nearly equal logits may
/// come in another order, and at the cut one for the other.
fn far(got: &Answer, want: &Answer) -> f32 {
    let pairs = got.logits.iter().zip(&want.logits).filter(|(got, want)| !got.is_nan() && !want.is_nan());
    let offs: Vec<f32> = pairs.map(|(got, want)| (got - want).abs() / want.abs().max(1.0)).collect();
    assert!(offs.len() >= CANDIDATES - 4, "only {} candidates are the same", offs.len());
    offs.into_iter().fold(0.0, f32::max)
}

/// One rank: values, sums and caches are the evaluator's.
fn agree(names: &[&str], dtype: DType, weights: DeviceWeights, allowed: f32) {
    let Some(judge) = Judge::find() else { return };
    let model = model(1, dtype, weights);
    let (mut jobs, mut expected) = (Vec::new(), Vec::new());
    for name in names {
        let Some(checkpoint) = open(name) else { continue };
        for bucket in &BUCKETS {
            let (graph, given) = step(&checkpoint, &model, bucket, 0);
            expected.push((name, checkpoint.config().clone(), evaluate(&graph, &given).unwrap()));
            jobs.push(job(&graph, &given));
        }
    }
    let mut worst = 0f32;
    for (((name, config, want), got), job) in expected.iter().zip(judge.run(&jobs)).zip(&jobs) {
        let one = |results: &Vec<Value>, row| merge(config, &model, std::slice::from_ref(results), row);
        for row in 0..got[2].ty().shape[0] {
            let off = far(&one(&got, row), &one(want, row));
            assert!(off <= allowed, "{name}: row {row} is off by {off}");
            worst = worst.max(off);
        }
        for ((got, want), (output, _)) in got.iter().zip(want).zip(&job.outputs).skip(2) {
            let off = off(got, want, 1.0);
            assert!(off <= allowed, "{name}: {output} is off by {off}");
        }
    }
    judge::say(&format!("{} device modules of {dtype} and {weights:?} agree within {worst}", jobs.len()));
}

#[test]
fn device_graphs_agree_in_f32() {
    let names =
        ["llama", "llama_tied", "llama3_rope", "mistral_window", "qwen2", "qwen3", "qwen3_moe", "gemma3"];
    agree(&names, DType::F32, DeviceWeights::Float, 1e-4);
}

/// Within sixteen of bf16's steps beside 1, as the decoders whose logits are not cut.
#[test]
fn device_graphs_agree_in_bf16() {
    agree(&["llama", "gemma3"], DType::BF16, DeviceWeights::Float, 16.0 / 256.0);
}

#[test]
fn eight_bit_weights_agree() {
    agree(&["llama", "qwen3_moe", "qwen2"], DType::F32, DeviceWeights::Int8, 1e-4);
    agree(&["llama"], DType::BF16, DeviceWeights::Int8, 16.0 / 256.0);
}

/// XLA runs the all-reduces: what the ranks say together is what one rank alone says on the evaluator.
#[test]
fn ranks_agree_with_one() {
    let Some(judge) = Judge::find() else { return };
    for (name, ranks, weights) in [
        ("llama", 2, DeviceWeights::Float),
        ("llama", 4, DeviceWeights::Int8),
        ("qwen3_moe", 2, DeviceWeights::Float),
        ("gemma3", 2, DeviceWeights::Float),
        ("olmo2", 2, DeviceWeights::Float),
        ("qwen2", 4, DeviceWeights::Float),
    ] {
        let Some(checkpoint) = open(name) else { continue };
        let config = checkpoint.config();
        let (alone, divided) = (model(1, DType::F32, weights), model(ranks, DType::F32, weights));
        if !config.heads.is_multiple_of(ranks) {
            panic!("{name} has {} heads", config.heads);
        }
        for bucket in &BUCKETS {
            let (graph, given) = step(&checkpoint, &alone, bucket, 0);
            let want = vec![evaluate(&graph, &given).unwrap()];
            let jobs: Vec<Job> = (0..ranks)
                .map(|rank| {
                    let (graph, given) = step(&checkpoint, &divided, bucket, rank);
                    job(&graph, &given)
                })
                .collect();
            let got = judge.run_ranks(&jobs);
            let rows = bucket.rows.min(2);
            for row in 0..rows {
                let (got, want) = (merge(config, &divided, &got, row), merge(config, &alone, &want, row));
                let off = far(&got, &want);
                assert!(off <= 1e-4, "{name} on {ranks} ranks, row {row} is off by {off}");
                assert!((got.log_sum_exp - want.log_sum_exp).abs() <= 1e-4);
            }
        }
    }
}
