//! `config.json` in the spellings that published checkpoints use, and what is refused.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_graph::{Activation, DType};
use millrace_models::{Checkpoint, Config, Mlp, ModelError, Rope, RopeScaling};
use serde_json::{Map, Value, json};

/// The configuration of a checked-in checkpoint with some fields changed ("absent" removes one).
fn open(name: &str, changes: Value) -> Result<Config, ModelError> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let mut config: Map<String, Value> = read(&data.join("config.json"));
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::String(text) if text == "absent" => drop(config.remove(key)),
            value => drop(config.insert(key.clone(), value.clone())),
        }
    }
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let unique = format!("millrace-config-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let dir = TempDir(std::env::temp_dir().join(unique));
    fs::create_dir(&dir.0).unwrap();
    fs::write(dir.0.join("config.json"), Value::from(config).to_string()).unwrap();
    fs::copy(data.join("model.safetensors"), dir.0.join("model.safetensors")).unwrap();
    Checkpoint::open(&dir.0).map(|checkpoint| checkpoint.config().clone())
}

struct TempDir(PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn read(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Transformers 4's spelling of a configuration in transformers 5's.
fn old_spelling(config: &Map<String, Value>) -> Map<String, Value> {
    let mut old = config.clone();
    old.remove("layer_types");
    if let Some(dtype) = old.remove("dtype") {
        old.insert("torch_dtype".into(), dtype);
    }
    let Some(Value::Object(mut rope)) = old.remove("rope_parameters") else { return old };
    if let (Some(full), Some(sliding)) = (rope.get("full_attention"), rope.get("sliding_attention")) {
        let (theta, local) = (full["rope_theta"].clone(), sliding["rope_theta"].clone());
        if full["rope_type"] == "default" {
            old.insert("rope_scaling".into(), Value::Null);
        }
        old.insert("rope_theta".into(), theta);
        old.insert("rope_local_base_freq".into(), local);
        return old;
    }
    for key in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) = rope.remove(key) {
            old.insert(key.into(), value);
        }
    }
    old.insert("rope_scaling".into(), if rope["rope_type"] == "default" { Value::Null } else { rope.into() });
    old
}

#[test]
fn both_spellings_read_the_same() {
    let mut folders = support::own_checkpoints();
    for name in ["llama", "llama3_rope", "mistral_window", "qwen2", "qwen3", "qwen3_moe", "gemma3"] {
        match support::shared(&format!("golden/{name}")) {
            Some(folder) => folders.push(folder),
            None => support::skipped(&format!("golden/{name} is not there")),
        }
    }
    let dir = TempDir(std::env::temp_dir().join(format!("millrace-spelling-{}", std::process::id())));
    fs::create_dir_all(&dir.0).unwrap();
    for folder in folders {
        let new = Checkpoint::open(&folder).unwrap();
        let old = old_spelling(&read(&folder.join("config.json")));
        assert!(!old.contains_key("rope_parameters") && !old.contains_key("dtype"));
        fs::write(dir.0.join("config.json"), Value::from(old).to_string()).unwrap();
        fs::copy(folder.join("model.safetensors"), dir.0.join("model.safetensors")).unwrap();
        let old = Checkpoint::open(&dir.0).unwrap();
        assert_eq!(old.config(), new.config(), "{}", folder.display());
    }
}

#[test]
fn what_would_change_the_answers_is_refused_by_name() {
    let linear = |kind: &str| json!({"rope_type": kind, "factor": 2.0, "rope_theta": 1e4});
    let cases = [
        ("olmo2", json!({"architectures": ["MambaForCausalLM"]}), "LlamaForCausalLM, MistralForCausalLM"),
        ("olmo2", json!({"architectures": []}), "architectures"),
        ("olmo2", json!({"architectures": [3]}), "architectures"),
        ("olmo2", json!({"architectures": "absent"}), "architectures"),
        ("olmo2", json!({"hidden_act": "relu2"}), "hidden_act = relu2"),
        ("olmo2", json!({"hidden_size": "32"}), "hidden_size"),
        ("olmo2", json!({"hidden_size": -1}), "hidden_size"),
        ("olmo2", json!({"hidden_size": 1e30}), "hidden_size"),
        ("olmo2", json!({"hidden_size": "absent"}), "hidden_size: it is missing"),
        ("olmo2", json!({"hidden_size": 0}), "hidden size"),
        ("olmo2", json!({"hidden_size": u64::MAX}), "hidden size"),
        ("olmo2", json!({"num_hidden_layers": 1u64 << 60}), "num_hidden_layers"),
        ("olmo2", json!({"num_hidden_layers": 3}), "model.layers.2."),
        ("olmo2", json!({"num_attention_heads": 0}), "num_attention_heads"),
        ("olmo2", json!({"num_key_value_heads": 3}), "key-value heads"),
        ("olmo2", json!({"num_key_value_heads": 0}), "key-value heads"),
        ("olmo2", json!({"head_dim": 7}), "rotat"),
        ("olmo2", json!({"vocab_size": 49}), "embed"),
        ("olmo2", json!({"intermediate_size": 64}), "layers.0.mlp.gate"),
        ("olmo2", json!({"rms_norm_eps": -1e-6}), "epsilon"),
        ("olmo2", json!({"max_position_embeddings": 0}), "context"),
        ("olmo2", json!({"max_position_embeddings": 1u64 << 40}), "context"),
        ("olmo2", json!({"attention_bias": true}), "self_attn.q_proj.bias"),
        ("olmo2", json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config = \"gptq\""),
        ("olmo2", json!({"dtype": "float8_e4m3fn"}), "dtype = float8_e4m3fn"),
        ("olmo2", json!({"rope_parameters": linear("dynamic")}), "rope_type = dynamic"),
        ("olmo2", json!({"rope_parameters": linear("mrope")}), "rope_type = mrope"),
        ("olmo2", json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}), "factor"),
        ("olmo2", json!({"rope_parameters": {"rope_type": "linear", "factor": 0}}), "rotary"),
        ("olmo2", json!({"rope_parameters": {"rope_type": "llama3", "factor": 2}}), "low_freq_factor"),
        ("olmo2", json!({"rope_parameters": {"rope_theta": 0}}), "rotary"),
        ("olmo2", json!({"rope_parameters": {"rope_theta": "a"}}), "rope_theta"),
        ("olmo2", json!({"rope_parameters": []}), "rope_parameters"),
        ("olmo2", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("olmo2", json!({"eos_token_id": "2"}), "eos_token_id"),
        ("granite", json!({"mlp_bias": true}), "mlp_bias"),
        ("granite", json!({"logits_scaling": 0}), "logit scale"),
        (
            "granite",
            json!({"residual_multiplier": null, "embedding_multiplier": "x"}),
            "embedding_multiplier",
        ),
        ("llama_yarn", json!({"mlp_bias": true}), "mlp_bias"),
        ("mixtral", json!({"attention_bias": true}), "attention_bias"),
        ("mixtral", json!({"num_local_experts": 5}), "layers.0.moe.router"),
        ("mixtral", json!({"num_local_experts": 1u64 << 50}), "number of experts"),
        ("mixtral", json!({"num_experts_per_tok": 9}), "experts per token"),
        ("gemma2", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("gemma2", json!({"layer_types": ["full_attention"]}), "layer_types"),
        ("gemma2", json!({"layer_types": ["full_attention", "chunked_attention"]}), "chunked_attention"),
        ("gemma2", json!({"sliding_window": 0}), "sliding window"),
        ("gemma2", json!({"sliding_window": null}), "sliding_window: it is missing"),
        ("gemma2", json!({"query_pre_attn_scalar": 0}), "attention scale"),
        ("smollm3", json!({"no_rope_layers": [1]}), "no_rope_layers"),
        ("qwen3_moe_mixed", json!({"mlp_only_layers": 3}), "mlp_only_layers"),
    ];
    for (name, changes, names) in cases {
        let error = match open(name, changes.clone()) {
            Ok(_) => panic!("{name} with {changes} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(names), "{name} with {changes}: {error}");
    }
}

#[test]
fn longrope_takes_its_divisors_by_the_context() {
    let config = open("phi3_longrope", json!({})).unwrap();
    assert_eq!((config.context, config.max_context), (16, 64));
    let RopeScaling::Long { short, long, .. } = &config.ropes[0].scaling else { panic!("not LongRoPE") };
    assert_eq!((&short[..], &long[..]), (&[1.0, 1.2][..], &[1.5, 6.0][..]));
    let at = |context: usize| config.ropes[0].frequencies(context).0;
    assert_eq!(at(16), at(1));
    assert_ne!(at(17), at(16));
    assert_eq!(at(17), at(64));
    assert!(config.with_context(0).is_err() && config.with_context(65).is_err());
    assert_eq!(config.with_context(64).unwrap().context, 64);

    let long = json!({"long_factor": [1.0], "short_factor": [1.0, 1.2], "type": "longrope"});
    let changes = json!({"rope_scaling": long, "partial_rotary_factor": 0.5});
    let error = open("phi3_longrope", changes).unwrap_err().to_string();
    assert!(error.contains("long_factor"), "{error}");
    let su = json!({"long_factor": [1.5, 6.0], "short_factor": [1.0, 1.2], "type": "su"});
    let old = json!({"rope_scaling": su, "rope_parameters": "absent", "partial_rotary_factor": 0.5});
    assert_eq!(open("phi3_longrope", old).unwrap(), config);
}

#[test]
fn eos_ids_are_gathered() {
    let eos = |value: Value| open("olmo2", json!({"eos_token_id": value})).unwrap().eos;
    assert_eq!(eos(json!(2)), [2]);
    assert_eq!(eos(json!([9, 2, 9])), [2, 9]);
    assert!(eos(json!(null)).is_empty());
    assert!(eos(json!(-1)).is_empty());
}

/// Gemma keeps √D in the embedding's own type: 55.4 becomes 55.5 in bfloat16.
#[test]
fn gemma_rounds_its_embedding_scale() {
    let scale = |dtype: &str| open("gemma2", json!({"dtype": dtype})).unwrap().embed_scale;
    assert_eq!(scale("float32"), 32f32.sqrt());
    assert_eq!(scale("bfloat16"), 5.65625);
    let config = open("gemma2", json!({"dtype": "absent"})).unwrap();
    assert_eq!((config.dtype, config.embed_scale), (DType::BF16, 5.65625));
}

/// Fields that published files leave out have the family's defaults.
#[test]
fn defaults_are_the_family_s() {
    let config =
        open("gemma2", json!({"final_logit_softcapping": "absent", "attn_logit_softcapping": null})).unwrap();
    assert_eq!((config.logit_softcap, config.attention_softcap), (Some(30.0), None));
    assert!(open("gemma2", json!({"tie_word_embeddings": "absent"})).unwrap().tied);
    let config = open("gemma2", json!({"layer_types": "absent", "sliding_window": "absent"})).unwrap();
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [Some(4096), None]);
    assert_eq!(config.activation, Activation::GeluTanh);
    let config = open("mixtral", json!({"rope_parameters": "absent"})).unwrap();
    assert_eq!(config.ropes, [Rope { dim: 8, theta: 1e6, scaling: RopeScaling::None }]);
    let config =
        open("qwen2_window", json!({"use_sliding_window": "absent", "layer_types": "absent"})).unwrap();
    assert!(config.layers.iter().all(|layer| layer.window.is_none()));
    let config = open("qwen3_moe_mixed", json!({"norm_topk_prob": true, "num_experts": 4})).unwrap();
    assert_eq!(config.layers[0].mlp, Mlp::Dense { ffn: 48 });
    assert_eq!(config.layers[1].mlp, Mlp::Experts { count: 4, top_k: 2, ffn: 16, normalise: true });
    let config = open("smollm3", json!({"no_rope_layers": "absent", "no_rope_layer_interval": 1})).unwrap();
    assert!(config.layers.iter().all(|layer| layer.rope.is_none()));
}
