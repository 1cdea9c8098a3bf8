//! The graphs and weights of a device, run by the evaluator, against the decoder of the CPU backend.

mod ranks;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use millrace_graph::hlo::{HloOptions, read, write};
use millrace_graph::{DType, ParamKind, Type};
use millrace_kernels::eval::Value;
use millrace_models::device::{
    Bucket, DeviceModel, DeviceWeights, PADDING_LOGIT, TopKForm, device_decoder, device_weight,
    device_weights, dummy_blocks,
};
use millrace_models::{Checkpoint, ModelError};
use ranks::{Answer, Device, Row};
use safetensors::tensor::TensorView;
use safetensors::{SafeTensors, serialize};
use support::{Sequence, distance};

const TOLERANCE: f32 = 1e-4;
const FAMILIES: [&str; 8] =
    ["llama", "llama_tied", "llama3_rope", "mistral_window", "qwen2", "qwen3", "qwen3_moe", "gemma3"];

fn model(ranks: usize) -> DeviceModel {
    DeviceModel {
        ranks,
        dtype: DType::F32,
        weights: DeviceWeights::Float,
        candidates: usize::MAX >> 40,
        top_k: TopKForm::Hlo,
        block_size: 4,
        kv_blocks: 24,
    }
}

/// The checkpoints that are checked in, and those beside the repository.
fn checkpoints() -> Vec<PathBuf> {
    let mut found = support::own_checkpoints();
    for name in FAMILIES {
        match support::shared(&format!("golden/{name}")) {
            Some(folder) => found.push(folder),
            None => support::skipped(&format!("golden/{name} is not there")),
        }
    }
    found
}

const CHUNK: Bucket = Bucket { rows: 1, width: 6, blocks: 5, adjust: false };
const DECODE: Bucket = Bucket { rows: 4, width: 1, blocks: 5, adjust: false };

/// A prompt of nine tokens in two chunks, the second of which is half padding; then two decodes in a bucket for four.
fn talk(device: &mut Device, ids: &[u32], bias: Option<&[f32]>) -> Vec<Answer> {
    let blocks = [7, 2, 11, 5];
    let bucket = |bucket: Bucket| Bucket { adjust: bias.is_some(), ..bucket };
    let mut row = |bucket: Bucket, start: usize, end: usize| {
        let row = Row { tokens: &ids[start..end], start, blocks: &blocks, bias };
        device.step(&bucket, &[row]).remove(0)
    };
    vec![
        row(bucket(CHUNK), 0, 6),
        row(bucket(CHUNK), 6, 9),
        row(bucket(DECODE), 9, 10),
        row(bucket(DECODE), 10, 11),
    ]
}

fn ids(vocab: usize) -> Vec<u32> {
    (0..11).map(|i| (i * 37 + 11) % vocab as u32).collect()
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    max + sum.ln() as f32
}

/// Every family on one, two and four ranks, where its heads divide.
#[test]
fn ranks_together_compute_what_the_decoder_does() {
    let mut divided = 0;
    for folder in checkpoints() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let config = checkpoint.config();
        let ids = ids(config.vocab);
        let want = Sequence::new(&checkpoint, config.clone()).extend(&ids, true);
        for ranks in [1, 2, 4] {
            let model = model(ranks);
            if !config.heads.is_multiple_of(ranks) {
                assert!(device_weights(config, &model).is_err());
                continue;
            }
            divided += usize::from(ranks > 1);
            let mut device = Device::new(&checkpoint, model);
            for (answer, token) in talk(&mut device, &ids, None).iter().zip([5, 8, 9, 10]) {
                let off = distance(&answer.logits, &want[token]);
                assert!(off <= TOLERANCE, "{name} on {ranks} ranks: token {token} is off by {off}");
                let off = (answer.log_sum_exp - log_sum_exp(&want[token])).abs();
                assert!(off <= TOLERANCE, "{name} on {ranks} ranks: the sum is off by {off}");
            }
        }
    }
    assert!(divided >= 10, "{divided}");
}

/// The last rank's share of the head is filled up.
#[test]
fn ranks_need_not_divide_the_vocabulary() {
    const VOCAB: usize = 46;
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama_yarn");
    let folder = std::env::temp_dir().join(format!("millrace-device-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = VOCAB.into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let cut = file.tensors().into_iter().map(|(name, view)| {
        let mut shape = view.shape().to_vec();
        let row = view.data().len() / shape[0];
        if name.ends_with("embed_tokens.weight") || name == "lm_head.weight" {
            shape[0] = VOCAB;
        }
        let bytes = &view.data()[..shape[0] * row];
        (name, TensorView::new(view.dtype(), shape, bytes).unwrap())
    });
    std::fs::write(folder.join("model.safetensors"), serialize(cut, None).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let config = checkpoint.config();
    let ids = ids(config.vocab);
    let want = Sequence::new(&checkpoint, config.clone()).extend(&ids, true);
    let device = Device::new(&checkpoint, model(4));
    assert_eq!(device.weights[3]["head_padding"].floats().unwrap()[9..], [0.0, PADDING_LOGIT, PADDING_LOGIT]);
    for mut device in [device, Device::new(&checkpoint, DeviceModel { candidates: 11, ..model(4) })] {
        for (answer, token) in talk(&mut device, &ids, None).iter().zip([5, 8, 9, 10]) {
            for (got, want) in answer.logits.iter().zip(&want[token]).filter(|(got, _)| !got.is_nan()) {
                assert!((got - want).abs() <= TOLERANCE, "{got} and {want}");
            }
            assert!(answer.logits.iter().filter(|x| !x.is_nan()).count() > 40);
            assert!((answer.log_sum_exp - log_sum_exp(&want[token])).abs() <= TOLERANCE);
        }
    }
}

/// Rows of a decode do not see one another, nor the padding beside them.
#[test]
fn rows_are_alone() {
    let folder = support::own_checkpoints().remove(0);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let ids = ids(checkpoint.config().vocab);
    let reversed: Vec<u32> = ids.iter().rev().copied().collect();
    let mut device = Device::new(&checkpoint, model(2));
    let alone = talk(&mut device, &ids, None);
    let (ids, reversed) = (&ids[..], &reversed[..]);
    let (mine, others) = ([1, 2, 3], [9, 10, 12]);
    let row = |tokens, start, blocks| Row { tokens, start, blocks, bias: None };
    for start in [0, 6] {
        let end = (start + 6).min(9);
        device.step(&CHUNK, &[row(&ids[start..end], start, &mine)]);
        device.step(&CHUNK, &[row(&reversed[start..end], start, &others)]);
    }
    for (token, want) in [9, 10].into_iter().zip(&alone[2..]) {
        let rows = [row(&reversed[token..=token], token, &others), row(&ids[token..=token], token, &mine)];
        let got = device.step(&DECODE, &rows);
        assert_eq!(got[1].logits, want.logits);
    }
}

#[test]
fn a_bias_is_added_before_the_cut() {
    let folder = support::own_checkpoints().remove(0);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let vocab = checkpoint.config().vocab;
    let ids = ids(vocab);
    let bias: Vec<f32> = (0..vocab).map(|i| if i % 3 == 0 { -1e30 } else { i as f32 / 7.0 }).collect();
    for ranks in [1, 2] {
        let few = DeviceModel { candidates: 5, ..model(ranks) };
        let plain = talk(&mut Device::new(&checkpoint, model(ranks)), &ids, None);
        for (got, plain) in talk(&mut Device::new(&checkpoint, few), &ids, Some(&bias)).iter().zip(plain) {
            let mut want: Vec<(usize, f32)> =
                plain.logits.iter().zip(&bias).map(|(x, y)| x + y).enumerate().collect();
            // Of the model, without the bias: log-probabilities are.
            let sum = log_sum_exp(&plain.logits);
            assert!((got.log_sum_exp - sum).abs() <= TOLERANCE, "{} and {sum}", got.log_sum_exp);
            want.sort_by(|a, b| b.1.total_cmp(&a.1));
            assert!(got.logits.iter().filter(|x| !x.is_nan()).count() == 5 * ranks);
            // The five best of all are among the five best of each rank.
            for (token, logit) in &want[..5] {
                assert!((got.logits[*token] - logit).abs() <= TOLERANCE, "{token}");
            }
        }
    }
}

/// Integers with scales compute what the floats that they stand for do, whatever the ranks.
#[test]
fn eight_bit_weights_compute_what_they_stand_for() {
    for folder in checkpoints() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let ids = ids(checkpoint.config().vocab);
        let mut answers = Vec::new();
        for ranks in [1, 2] {
            let int8 = DeviceModel { weights: DeviceWeights::Int8, ..model(ranks) };
            if device_weights(checkpoint.config(), &int8).is_err() {
                continue;
            }
            let mut device = Device::new(&checkpoint, int8);
            answers.push(talk(&mut device, &ids, None));
            let mut floats = Device::new(&checkpoint, model(ranks));
            let mut integers = 0;
            for (stands_for, stored) in floats.weights.iter_mut().zip(&device.weights) {
                for (name, value) in stands_for {
                    let Some(scales) = stored.get(&format!("{name}_scale")) else { continue };
                    let columns = value.ty().cols();
                    let wholes = stored[name].ints().unwrap().chunks(columns);
                    let rows =
                        wholes.zip(scales.floats().unwrap()).zip(value.floats().unwrap().chunks(columns));
                    let mut read = Vec::new();
                    for ((wholes, scale), before) in rows {
                        let numbers = wholes.iter().map(|x| *x as f32 * scale);
                        numbers
                            .clone()
                            .zip(before)
                            .for_each(|(x, y)| assert!((x - y).abs() <= scale * 0.5001));
                        read.extend(numbers);
                    }
                    *value = Value::from_floats(value.ty().clone(), read).unwrap();
                    integers += 1;
                }
            }
            assert!(integers >= ranks * 7);
            for (got, want) in answers.last().unwrap().iter().zip(talk(&mut floats, &ids, None)) {
                let off = distance(&got.logits, &want.logits);
                assert!(off <= TOLERANCE, "{name} on {ranks} ranks is off by {off}");
            }
        }
        if let [one, two] = &answers[..] {
            for (one, two) in one.iter().zip(two) {
                assert!(distance(&one.logits, &two.logits) <= TOLERANCE, "{name}");
            }
        }
    }
}

/// Put side by side, the ranks' shares are the weights, in every form that a device has them in.
#[test]
fn shares_are_the_checkpoints_weights_rounded_once() {
    let folder = support::own_checkpoints().remove(0);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    for (dtype, ranks) in [(DType::F32, 2), (DType::BF16, 1), (DType::BF16, 2)] {
        let model = DeviceModel { dtype, ..model(ranks) };
        for (name, ty) in device_weights(checkpoint.config(), &model).unwrap() {
            let shares: Vec<Value> = (0..ranks)
                .map(|rank| {
                    Value::from_bytes(ty.clone(), &device_weight(&checkpoint, &model, rank, &name).unwrap())
                        .unwrap()
                })
                .collect();
            if name == "head_padding" {
                continue;
            }
            let view = checkpoint.weight(&name).unwrap();
            let stored = Value::from_bytes(view.ty.clone(), &support::dense(&view)).unwrap();
            let whole = Value::from_floats(
                Type::new(ty.dtype, view.ty.shape.clone()),
                stored.floats().unwrap().to_vec(),
            )
            .unwrap();
            let (whole, shape) = (whole.floats().unwrap(), &view.ty.shape);
            let columns = *shape.last().unwrap();
            let same = ty.shape == *shape;
            let by_column = ty.rank() > 1 && ty.cols() < columns;
            for (rank, share) in shares.iter().enumerate() {
                let wide = ty.cols();
                for (i, x) in share.floats().unwrap().iter().enumerate() {
                    let at = match (same, by_column) {
                        (true, _) => i,
                        (_, true) => i / wide * columns + rank * wide + i % wide,
                        _ => rank * ty.elements() + i,
                    };
                    assert_eq!(*x, whole.get(at).copied().unwrap_or(0.0), "{name} of rank {rank}");
                }
            }
        }
    }
}

/// What the compiler gets passes the lint, and every bucket has the same weights and caches.
#[test]
fn every_bucket_is_written_with_one_set_of_weights() {
    for folder in checkpoints() {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let config = checkpoint.config();
        for (ranks, weights) in
            [(1, DeviceWeights::Float), (2, DeviceWeights::Float), (2, DeviceWeights::Int8)]
        {
            let model = DeviceModel { dtype: DType::BF16, weights, candidates: 8, ..model(ranks) };
            let Ok(declared) = device_weights(config, &model) else { continue };
            for bucket in [CHUNK, DECODE, Bucket { adjust: true, ..DECODE }] {
                let graph = device_decoder(config, &model, &bucket).unwrap();
                let back = read(&write(&graph, &HloOptions::default()).unwrap()).unwrap();
                let weights = graph.params.iter().filter(|param| param.kind == ParamKind::Weight);
                let weights: Vec<_> =
                    weights.map(|param| (param.name.clone(), graph.ty(param.node).clone())).collect();
                assert_eq!(weights, declared);
                assert_eq!(back.outputs.len(), 3 + 2 * config.layers.len());
                let k = model.candidates_per_rank(config);
                let types: Vec<String> =
                    back.outputs[..3].iter().map(|out| back.ty(out.node).to_string()).collect();
                let rows = bucket.rows;
                assert_eq!(
                    types,
                    [format!("f32[{rows},{k}]"), format!("s32[{rows},{k}]"), format!("f32[{rows}]")]
                );
            }
        }
    }
}

/// Equal bytes in every process and on every machine, and what they say for a reader. After a change on purpose,
/// `MILLRACE_UPDATE_SNAPSHOTS` writes the new text.
#[test]
fn the_printed_graph_is_the_one_kept() {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let checkpoint = Checkpoint::open(&data.join("olmo2")).unwrap();
    let model = DeviceModel { dtype: DType::BF16, weights: DeviceWeights::Int8, candidates: 3, ..model(2) };
    let graph = device_decoder(checkpoint.config(), &model, &Bucket { adjust: true, ..DECODE }).unwrap();
    let bytes = write(&graph, &HloOptions::default()).unwrap();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let found = format!("{graph}\n{} bytes of HLO with the FNV-1a hash {hash:016x}\n", bytes.len());
    let kept = data.join("device.txt");
    if std::env::var_os("MILLRACE_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&kept, &found).unwrap();
    }
    assert!(
        found == std::fs::read_to_string(&kept).unwrap(),
        "the graph is not that of {}:\n{found}",
        kept.display()
    );
}

#[test]
fn what_cannot_be_divided_is_refused_in_words() {
    let folder = support::own_checkpoints().remove(0);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let config = checkpoint.config();
    let refused = |model: DeviceModel, bucket: Bucket| match device_decoder(config, &model, &bucket) {
        Err(error @ (ModelError::Device { .. } | ModelError::Graph(_))) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let message = refused(model(config.heads + 1), DECODE);
    assert!(message.contains("choose a tensor-parallel size of 1"), "{message}");
    refused(model(0), DECODE);
    refused(DeviceModel { dtype: DType::F16, ..model(1) }, DECODE);
    refused(DeviceModel { kv_blocks: 1 << 30, ..model(1) }, DECODE);
    refused(DeviceModel { candidates: 0, ..model(1) }, DECODE);
    for (rows, width, blocks) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (usize::MAX, 2, 1), (1, 1, usize::MAX)] {
        refused(model(1), Bucket { rows, width, blocks, adjust: false });
    }
    for (rank, name) in [(0, "nonsense"), (0, "embed_scale"), (1, "embed"), (0, "layers.99.attn.q")] {
        assert!(device_weight(&checkpoint, &model(1), rank, name).is_err(), "{name}");
    }
    assert_eq!(dummy_blocks(&Bucket { rows: 3, width: 5, blocks: 1, adjust: false }, 4), 4);
    assert_eq!(dummy_blocks(&Bucket { rows: usize::MAX, width: 5, blocks: 1, adjust: false }, 0), usize::MAX);
}
