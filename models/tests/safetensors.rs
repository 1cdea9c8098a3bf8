//! Hugging Face directories: shards, spellings of tensor names, and what is refused.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_models::{Checkpoint, ModelError};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A directory that is removed when the test ends.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> TempDir {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let unique = format!("millrace-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    fn open(&self) -> Result<Checkpoint, ModelError> {
        Checkpoint::open(&self.0)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A header and data in the format: eight bytes of length, JSON, tensors.
fn file(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A checkpoint's header and tensor bytes.
fn parts(name: &str) -> (Map<String, Value>, Vec<u8>) {
    let bytes = fs::read(data(name).join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    (header, bytes[8 + length..].to_vec())
}

/// A copy of a checkpoint with another header.
fn with_header(name: &str, change: impl FnOnce(&mut Map<String, Value>)) -> TempDir {
    let (mut header, bytes) = parts(name);
    change(&mut header);
    let dir = TempDir::new();
    dir.write("config.json", fs::read(data(name).join("config.json")).unwrap());
    dir.write("model.safetensors", file(&header.into(), &bytes));
    dir
}

/// Tensors by name with their bytes.
fn tensors(name: &str) -> Vec<(String, Value, Vec<u8>)> {
    let (header, bytes) = parts(name);
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors
        .map(|(name, info)| {
            let at = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
            let held = bytes[at(0)..at(1)].to_vec();
            (name, info, held)
        })
        .collect()
}

/// A file of these tensors.
fn pack(tensors: &[(String, Value, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut bytes) = (Map::new(), Vec::new());
    for (name, info, held) in tensors {
        let mut info = info.clone();
        info["data_offsets"] = json!([bytes.len(), bytes.len() + held.len()]);
        header.insert(name.clone(), info);
        bytes.extend(held);
    }
    file(&header.into(), &bytes)
}

fn same_weights(a: &Checkpoint, b: &Checkpoint, names: &[&str]) {
    for name in names {
        let (a, b) = (a.weight(name).unwrap(), b.weight(name).unwrap());
        assert_eq!(a.ty, b.ty, "{name}");
        assert_eq!(support::dense(&a), support::dense(&b), "{name}");
    }
}

#[test]
fn shards_read_as_one_file() {
    let dir = TempDir::new();
    dir.write("config.json", fs::read(data("olmo2").join("config.json")).unwrap());
    let mut map = Map::new();
    let (mut even, mut odd) = (Vec::new(), Vec::new());
    for (i, tensor) in tensors("olmo2").into_iter().enumerate() {
        map.insert(tensor.0.clone(), format!("model-{}.safetensors", i % 2).into());
        if i % 2 == 0 { even.push(tensor) } else { odd.push(tensor) }
    }
    dir.write("model-0.safetensors", pack(&even));
    dir.write("model-1.safetensors", pack(&odd));
    dir.write("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string());
    let whole = Checkpoint::open(&data("olmo2")).unwrap();
    same_weights(
        &dir.open().unwrap(),
        &whole,
        &["embed", "head", "layers.1.attn.q_norm", "layers.0.mlp.down"],
    );

    for (shard, why) in [
        ("../model-0.safetensors", "not the name of a file beside the index"),
        ("/etc/passwd", "not the name of a file beside the index"),
        ("..", "not the name of a file beside the index"),
        ("a/../model-0.safetensors", "not the name of a file beside the index"),
        ("", "not the name of a file beside the index"),
        ("absent.safetensors", "cannot read"),
        ("model-1.safetensors", "holds no such tensor"),
    ] {
        let mut map = map.clone();
        let moved = even[0].0.clone();
        map.insert(moved, shard.into());
        dir.write("model.safetensors.index.json", json!({"weight_map": map}).to_string());
        let error = dir.open().unwrap_err().to_string();
        assert!(error.contains(why), "{shard}: {error}");
    }
    for index in ["", "[]", "{}", "{\"weight_map\": 3}"] {
        dir.write("model.safetensors.index.json", index);
        let error = dir.open().unwrap_err().to_string();
        assert!(error.contains("index.json"), "{index}: {error}");
    }
}

/// Transformers 5 holds all experts of a layer in one tensor, and some files are written so.
#[test]
fn fused_experts_read_as_separate_ones() {
    let dir = TempDir::new();
    dir.write("config.json", fs::read(data("mixtral").join("config.json")).unwrap());
    let all = tensors("mixtral");
    let find = |name: &str| all.iter().find(|tensor| tensor.0 == name).unwrap();
    let mut fused: Vec<_> =
        all.iter().filter(|tensor| !tensor.0.contains("block_sparse_moe")).cloned().collect();
    for l in 0..2 {
        let expert = |e: usize, w: &str| format!("model.layers.{l}.block_sparse_moe.experts.{e}.{w}.weight");
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for e in 0..4 {
            gate_up.extend(&find(&expert(e, "w1")).2);
            gate_up.extend(&find(&expert(e, "w3")).2);
            down.extend(&find(&expert(e, "w2")).2);
        }
        let name = |what: &str| format!("model.layers.{l}.mlp.experts.{what}");
        fused.push((name("gate_up_proj"), json!({"dtype": "BF16", "shape": [4, 48, 32]}), gate_up));
        fused.push((name("down_proj"), json!({"dtype": "BF16", "shape": [4, 32, 24]}), down));
        let (_, info, router) = find(&format!("model.layers.{l}.block_sparse_moe.gate.weight"));
        fused.push((format!("model.layers.{l}.mlp.gate.weight"), info.clone(), router.clone()));
    }
    dir.write("model.safetensors", pack(&fused));
    let separate = Checkpoint::open(&data("mixtral")).unwrap();
    let names = ["layers.0.moe.gate", "layers.1.moe.up", "layers.1.moe.down", "layers.0.moe.router"];
    same_weights(&dir.open().unwrap(), &separate, &names);
}

#[test]
fn a_head_that_is_not_there_is_the_embedding() {
    let dir = TempDir::new();
    dir.write("config.json", fs::read(data("olmo2").join("config.json")).unwrap());
    let mut all = tensors("olmo2");
    all.retain(|tensor| tensor.0 != "lm_head.weight");
    dir.write("model.safetensors", pack(&all));
    let checkpoint = dir.open().unwrap();
    assert!(checkpoint.tied());
    let (head, embed) = (checkpoint.weight("head").unwrap(), checkpoint.weight("embed").unwrap());
    assert!(std::ptr::eq(head.parts[0], embed.parts[0]));
    assert!(!Checkpoint::open(&data("olmo2")).unwrap().tied());
}

#[test]
fn malformed_headers_are_refused_by_name() {
    const NORM: &str = "model.norm.weight";
    type Change = fn(&mut Map<String, Value>);
    let cases: [(&str, &str, Change); 10] = [
        ("gap", "tensor ", |h| {
            h.remove("model.embed_tokens.weight");
        }),
        ("overlap", "tensor ", |h| h[NORM]["data_offsets"] = json!([0, 64])),
        ("backwards", NORM, |h| h[NORM]["data_offsets"] = json!([64, 0])),
        ("past the end", NORM, |h| h[NORM]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 64])),
        ("shape too large", NORM, |h| h[NORM]["shape"] = json!([1u64 << 62, 8])),
        ("shape negative", "header", |h| h[NORM]["shape"] = json!([-1])),
        ("shape of another size", NORM, |h| h[NORM]["shape"] = json!([31])),
        ("unknown type", "header", |h| h[NORM]["dtype"] = json!("F128")),
        ("another rank", "final_norm", |h| h[NORM]["shape"] = json!([1, 32])),
        ("a type that weights do not have", "I16", |h| h[NORM]["dtype"] = json!("I16")),
    ];
    for (case, names, change) in cases {
        let dir = with_header("olmo2", change);
        let error = match dir.open() {
            Ok(_) => panic!("{case} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(names), "{case}: {error}");
    }
}

#[test]
fn malformed_files_are_refused_by_name() {
    let (header, bytes) = parts("olmo2");
    let good = file(&header.clone().into(), &bytes);
    let length = |n: u64, rest: &[u8]| [&n.to_le_bytes()[..], rest].concat();
    let cases = [
        ("empty", Vec::new()),
        ("seven bytes", vec![0; 7]),
        ("header of 2^64-1 bytes", length(u64::MAX, b"{}")),
        ("header over the limit", length(100_000_001, b"{}")),
        ("header past the end", length(1 << 20, b"{}")),
        ("not JSON", length(4, b"nope")),
        ("not UTF-8", length(2, &[0xff, 0xff])),
        ("nested 100 000 deep", length(100_000, &[b'['; 100_000])),
        ("cut short", good[..good.len() - 1].to_vec()),
        ("with bytes left over", [&good[..], &[0]].concat()),
    ];
    let dir = TempDir::new();
    dir.write("config.json", fs::read(data("olmo2").join("config.json")).unwrap());
    for (case, bytes) in cases {
        dir.write("model.safetensors", bytes);
        let error = match dir.open() {
            Ok(_) => panic!("{case} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("model.safetensors"), "{case}: {error}");
    }
}

#[test]
fn a_directory_without_a_checkpoint_says_so() {
    let dir = TempDir::new();
    let error = dir.open().unwrap_err().to_string();
    assert!(error.contains("neither a config.json nor a .gguf file"), "{error}");
    dir.write("a.gguf", "");
    dir.write("b.gguf", "");
    let error = dir.open().unwrap_err().to_string();
    assert!(error.contains("2 .gguf files"), "{error}");
    dir.write("config.json", fs::read(data("olmo2").join("config.json")).unwrap());
    let error = dir.open().unwrap_err().to_string();
    assert!(error.contains("neither model.safetensors nor"), "{error}");
    let absent = dir.0.join("absent");
    assert!(matches!(Checkpoint::open(&absent), Err(ModelError::Io { .. })));
    for config in ["", "[]", "nul", "{\"architectures\": [\"LlamaForCausalLM\"", "\u{0}"] {
        dir.write("config.json", config);
        let error = dir.open().unwrap_err().to_string();
        assert!(error.contains("config.json"), "{config:?}: {error}");
    }
    dir.write("config.json", "[".repeat(1 << 20));
    assert!(dir.open().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Damaged anywhere in its header, a file is refused or read; it never panics.
    #[test]
    fn damage_never_panics(damage in prop::collection::vec((0usize..2600, any::<u8>()), 1..4)) {
        let (header, bytes) = parts("olmo2");
        let mut bytes = file(&header.into(), &bytes);
        for (at, value) in damage {
            bytes[at] = value;
        }
        let dir = TempDir::new();
        dir.write("config.json", fs::read(data("olmo2").join("config.json")).unwrap());
        dir.write("model.safetensors", bytes);
        if let Ok(checkpoint) = dir.open() {
            let embed = checkpoint.weight("embed").unwrap();
            prop_assert_eq!(support::dense(&embed).len(), embed.ty.bytes().unwrap());
        }
    }
}
