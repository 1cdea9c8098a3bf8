//! The encoder's graph: the executor computes what its definition in primitives says, the HLO writer takes it, and
//! configurations that would change the embeddings are refused.

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use millrace_graph::hlo::{HloOptions, read, write};
use millrace_graph::{DType, ParamKind, TensorView, Type, define};
use millrace_kernels::eval::{Value, evaluate};
use millrace_kernels::{Executor, Pool, Precision, Weights};
use millrace_models::{EncoderCheckpoint, EncoderConfig, EncoderShape, encoder};
use serde_json::json;

fn noise(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

fn config() -> EncoderConfig {
    EncoderConfig {
        vocab: 50,
        hidden: 32,
        layers: 2,
        heads: 4,
        ffn: 40,
        positions: 20,
        token_types: 2,
        eps: 1e-5,
        max_tokens: 20,
    }
}

/// The type of each weight, by the names of a tiny model's parameters.
fn types(config: &EncoderConfig) -> HashMap<String, Type> {
    let mut types = HashMap::new();
    let mut add = |name: String, shape: &[usize]| types.insert(name, Type::new(DType::F32, shape));
    let (h, f) = (config.hidden, config.ffn);
    for (part, rows) in
        [("word", config.vocab), ("position", config.positions), ("token_type", config.token_types)]
    {
        add(format!("embeddings.{part}_embeddings.weight"), &[rows, h]);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for l in 0..config.layers {
        let layer = format!("encoder.layer.{l}");
        for (part, out, width) in [
            ("attention.self.query", h, h),
            ("attention.self.key", h, h),
            ("attention.self.value", h, h),
            ("attention.output.dense", h, h),
            ("intermediate.dense", f, h),
            ("output.dense", h, f),
        ] {
            add(format!("{layer}.{part}.weight"), &[out, width]);
            add(format!("{layer}.{part}.bias"), &[out]);
        }
        norms.extend([format!("{layer}.attention.output.LayerNorm"), format!("{layer}.output.LayerNorm")]);
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[h]);
        add(format!("{norm}.bias"), &[h]);
    }
    types
}

#[test]
fn the_executor_computes_what_the_definition_says() {
    let config = config();
    let types = types(&config);
    for seed in 0..12u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9) + 1;
        let texts = 1 + seed as usize % 4;
        let width = [1, 3, 8, 20][seed as usize % 4];
        let shape = EncoderShape { texts, width };
        let graph = encoder(&config, &shape, &|name| Ok(types[name].clone())).unwrap();
        let module = write(&graph, &HloOptions::default()).expect("the HLO writer takes it");
        read(&module).expect("in the form that compiles");

        let pool = Pool::new(2);
        let (mut weights, mut values) = (Weights::new(), HashMap::new());
        let mut inputs: Vec<Vec<i32>> = Vec::new();
        for param in &graph.params {
            let ty = graph.ty(param.node).clone();
            let value = if param.kind == ParamKind::Weight {
                let floats: Vec<f32> = (0..ty.elements()).map(|_| noise(&mut state) * 0.5).collect();
                let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
                weights.insert(&param.name, &TensorView::new(ty.clone(), &bytes), &pool).unwrap();
                Value::from_floats(ty, floats).unwrap()
            } else {
                let bound = match param.name.as_str() {
                    "tokens" => config.vocab,
                    "positions" => config.positions,
                    "token_types" => config.token_types,
                    _ => width,
                };
                let ints: Vec<i32> = (0..ty.elements())
                    .map(|_| ((noise(&mut state) + 1.0) / 2.0 * bound as f32) as i32)
                    .collect();
                let value = Value::from_ints(ty, ints.iter().map(|x| i64::from(*x)).collect()).unwrap();
                inputs.push(ints);
                value
            };
            values.insert(param.name.clone(), value);
        }
        let expected = evaluate(&define::inline(&graph).unwrap(), &values).unwrap().remove(0);
        let mut executor = Executor::new(pool, Precision::Reference, weights);
        let plan = executor.plan(&graph).unwrap();
        let mut got = vec![f32::NAN; texts * config.hidden];
        let slices: Vec<&[i32]> = inputs.iter().map(Vec::as_slice).collect();
        executor.run(&plan, &slices, &mut [&mut got]).unwrap();
        for (got, want) in got.iter().zip(expected.floats().unwrap()) {
            assert!((got - want).abs() < 2e-6, "seed {seed}: {got} and not {want}");
        }
        // A text that ends beyond its width is refused before anything is computed.
        let beyond = vec![width as i32; texts];
        let mut bad = slices.clone();
        bad[3] = &beyond;
        assert!(executor.run(&plan, &bad, &mut [&mut got]).is_err());
    }
}

/// A checkpoint of zeros in a folder that is gone with its test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn checkpoint(name: &str) -> Folder {
    let folder = std::env::temp_dir().join(format!("millrace-encoder-{}-{name}", std::process::id()));
    std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    let config = config();
    let types = types(&config);
    let zeros: HashMap<String, Vec<u8>> =
        types.iter().map(|(name, ty)| (name.clone(), vec![0; ty.bytes().unwrap()])).collect();
    let views: HashMap<&str, safetensors::tensor::TensorView<'_>> = types
        .iter()
        .map(|(name, ty)| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, ty.shape.clone(), &zeros[name]);
            (name.as_str(), view.unwrap())
        })
        .collect();
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    write_json(&folder, "config.json", &good());
    write_json(&folder, "1_Pooling/config.json", &json!({ "pooling_mode_mean_tokens": true }));
    Folder(folder)
}

fn good() -> serde_json::Value {
    json!({
        "model_type": "bert", "hidden_act": "gelu", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 20, "type_vocab_size": 2,
        "layer_norm_eps": 1e-5,
    })
}

fn write_json(folder: &Path, name: &str, value: &serde_json::Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

#[test]
fn what_would_change_the_embeddings_is_refused() {
    let folder = checkpoint("config");
    assert_eq!(*EncoderCheckpoint::open(&folder.0).unwrap().config(), config());
    for (key, value) in [
        ("model_type", json!("roberta")),
        ("hidden_act", json!("gelu_new")),
        ("position_embedding_type", json!("relative_key")),
        ("num_attention_heads", json!(5)),
        ("num_attention_heads", json!(0)),
        ("vocab_size", json!(51)),
        ("vocab_size", json!(u64::MAX)),
        ("hidden_size", json!(null)),
    ] {
        let mut config = good();
        config[key] = value.clone();
        write_json(&folder.0, "config.json", &config);
        let error = EncoderCheckpoint::open(&folder.0).unwrap_err().to_string();
        let named = if value == json!(51) { "word_embeddings" } else { key };
        assert!(error.contains(named), "{key} = {value}: {error}");
    }
    write_json(&folder.0, "config.json", &good());
    write_json(&folder.0, "1_Pooling/config.json", &json!({ "pooling_mode_cls_token": true }));
    let error = EncoderCheckpoint::open(&folder.0).unwrap_err().to_string();
    assert!(error.contains("pooling_mode_cls_token"), "{error}");
}
