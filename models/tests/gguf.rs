//! GGUF files: the same model as a Hugging Face directory reads the same, and nothing malformed gets through.

mod support;

use std::path::{Path, PathBuf};

use millrace_graph::DType;
use millrace_models::{Checkpoint, Config, Mlp, ModelError, Rope, RopeScaling};
use proptest::prelude::*;
use support::gguf_writer::{self as gguf, GgufWriter};
use support::{Sequence, distance};

/// A file that is removed when the test ends.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, bytes: &[u8]) -> TempFile {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let unique =
            format!("millrace-{}-{}-{name}.gguf", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        std::fs::write(&path, bytes).unwrap();
        TempFile(path)
    }

    fn open(&self) -> Result<Checkpoint, ModelError> {
        Checkpoint::open(&self.0)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

fn open(bytes: &[u8]) -> Result<Checkpoint, ModelError> {
    TempFile::new("case", bytes).open()
}

/// The architecture and what of a configuration llama.cpp's converter would write, for the checkpoints whose
/// architecture exists there in the same form.
fn architecture(checkpoint: &str) -> Option<&'static str> {
    Some(match checkpoint {
        "gemma2" => "gemma2",
        "gemma3_multimodal" => "gemma3",
        "granite" => "granite",
        "mixtral" => "llama",
        "olmo2" => "olmo2",
        "phi3_longrope" => "phi3",
        "qwen3_moe_mixed" => "qwen3moe",
        _ => return None,
    })
}

/// Writes a checkpoint as llama.cpp's converter would: llama's query and key rows interleaved, Gemma's norms
/// with 1 added, projections fused where Phi-3 fuses them.
fn convert(name: &str, checkpoint: &Checkpoint) -> GgufWriter {
    let config = checkpoint.config();
    let arch = architecture(name).unwrap();
    let key = |key: &str| format!("{arch}.{key}");
    let number = |value: usize| gguf::u32(value as u32);
    let mut w = GgufWriter::new(arch)
        .with(&key("context_length"), number(config.max_context))
        .with(&key("embedding_length"), number(config.hidden))
        .with(&key("block_count"), number(config.layers.len()))
        .with(&key("feed_forward_length"), number(dense_ffn(config)))
        .with(&key("attention.head_count"), number(config.heads))
        .with(&key("attention.head_count_kv"), number(config.kv_heads))
        .with(&key("attention.key_length"), number(config.head_dim))
        .with(&key("attention.value_length"), number(config.head_dim))
        .with(&key("attention.layer_norm_rms_epsilon"), gguf::f32(config.eps))
        .with(&key("rope.dimension_count"), number(config.ropes[0].dim))
        .with(&key("rope.freq_base"), gguf::f32(config.ropes[0].theta))
        .with("tokenizer.ggml.eos_token_id", number(2))
        .with("tokenizer.ggml.bos_token_id", number(1));
    if let Some(window) = config.layers[0].window {
        w = w.with(&key("attention.sliding_window"), number(window));
    }
    if let Some(cap) = config.attention_softcap {
        w = w.with(&key("attn_logit_softcapping"), gguf::f32(cap));
    }
    if let Some(cap) = config.logit_softcap {
        w = w.with(&key("final_logit_softcapping"), gguf::f32(cap));
    }
    if arch.starts_with("gemma") || arch == "granite" {
        w = w.with(&key("attention.scale"), gguf::f32(config.attention_scale));
    }
    if arch == "granite" {
        w = w.with(&key("embedding_scale"), gguf::f32(config.embed_scale));
        w = w.with(&key("residual_scale"), gguf::f32(config.residual_scale));
        w = w.with(&key("logit_scale"), gguf::f32(1.0 / config.logit_scale));
    }
    for layer in &config.layers {
        if let Mlp::Experts { count, top_k, ffn, normalise } = layer.mlp {
            w = w.with(&key("expert_count"), number(count)).with(&key("expert_used_count"), number(top_k));
            w = w.with(&key("expert_feed_forward_length"), number(ffn));
            w = w.with(
                &key("expert_weights_norm"),
                [&7u32.to_le_bytes()[..], &[u8::from(normalise)]].concat(),
            );
            break;
        }
    }
    match &config.ropes[0].scaling {
        RopeScaling::Linear { factor } => {
            w = w.with(&key("rope.scaling.type"), gguf::string("linear"));
            w = w.with(&key("rope.scaling.factor"), gguf::f32(*factor));
        }
        RopeScaling::Long { short, long, original, attention_factor } => {
            w = w.with(&key("rope.scaling.original_context_length"), number(*original));
            w = w.with(&key("rope.scaling.attn_factor"), gguf::f32(*attention_factor));
            for (name, list) in [("rope_factors_short.weight", short), ("rope_factors_long.weight", long)] {
                let bytes = list.iter().flat_map(|value| value.to_le_bytes()).collect();
                w.tensor(name, &[list.len()], 0, bytes);
            }
        }
        RopeScaling::None => {}
        other => panic!("no GGUF form for {other:?}"),
    }
    for (from, to) in names(config, arch) {
        let views: Vec<_> = from.iter().map(|name| checkpoint.weight(name).unwrap()).collect();
        let mut bytes: Vec<u8> = views.iter().flat_map(support::dense).collect();
        let (mut shape, dtype) = (views[0].ty.shape.clone(), views[0].ty.dtype);
        shape[0] = views.iter().map(|view| view.ty.shape[0]).sum();
        assert_eq!(dtype, DType::BF16);
        if arch == "llama" || arch == "granite" {
            for (suffix, heads) in [("attn.q", config.heads), ("attn.k", config.kv_heads)] {
                if from[0].ends_with(suffix) {
                    bytes = interleaved(&bytes, shape[0], heads);
                }
            }
        }
        if from[0].ends_with("norm") {
            let norm = |b: &[u8]| half::bf16::from_le_bytes([b[0], b[1]]).to_f32() + config.norm_offset;
            bytes = bytes.chunks(2).flat_map(|b| norm(b).to_le_bytes()).collect();
            w.tensor(&to, &shape, 0, bytes);
        } else {
            w.tensor(&to, &shape, 30, bytes);
        }
    }
    w
}

fn dense_ffn(config: &Config) -> usize {
    config
        .layers
        .iter()
        .map(|layer| match layer.mlp {
            Mlp::Dense { ffn } | Mlp::Experts { ffn, .. } => ffn,
        })
        .max()
        .unwrap()
}

/// The converter's permutation: within each head, the row of half `j` and index `i` goes to `2i + j`.
fn interleaved(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (row, dim) = (bytes.len() / rows, rows / heads);
    let mut out = vec![0; bytes.len()];
    for r in 0..rows {
        let (head, within) = (r / dim, r % dim);
        let (j, i) = (within / (dim / 2), within % (dim / 2));
        let to = head * dim + 2 * i + j;
        out[to * row..][..row].copy_from_slice(&bytes[r * row..][..row]);
    }
    out
}

/// Canonical names (several where the file fuses them) and llama.cpp's.
fn names(config: &Config, arch: &str) -> Vec<(Vec<String>, String)> {
    let mut names = vec![
        (vec!["embed".into()], "token_embd.weight".into()),
        (vec!["final_norm".into()], "output_norm.weight".into()),
    ];
    if !config.tied {
        names.push((vec!["head".into()], "output.weight".into()));
    }
    for (l, layer) in config.layers.iter().enumerate() {
        let mut add = |from: &[&str], to: &str| {
            let from = from.iter().map(|part| format!("layers.{l}.{part}")).collect();
            names.push((from, format!("blk.{l}.{to}.weight")));
        };
        if config.pre_norm {
            add(&["attn_norm"], "attn_norm");
            add(&["mlp_norm"], "ffn_norm");
        }
        if config.post_norm {
            add(&["attn_post_norm"], "post_attention_norm");
            add(&["mlp_post_norm"], "post_ffw_norm");
        }
        if config.qk_norm != millrace_models::QkNorm::None {
            add(&["attn.q_norm"], "attn_q_norm");
            add(&["attn.k_norm"], "attn_k_norm");
        }
        if arch == "phi3" {
            add(&["attn.q", "attn.k", "attn.v"], "attn_qkv");
        } else {
            add(&["attn.q"], "attn_q");
            add(&["attn.k"], "attn_k");
            add(&["attn.v"], "attn_v");
        }
        add(&["attn.o"], "attn_output");
        match layer.mlp {
            Mlp::Dense { .. } if arch == "phi3" => {
                add(&["mlp.gate", "mlp.up"], "ffn_up");
                add(&["mlp.down"], "ffn_down");
            }
            Mlp::Dense { .. } => {
                add(&["mlp.gate"], "ffn_gate");
                add(&["mlp.up"], "ffn_up");
                add(&["mlp.down"], "ffn_down");
            }
            Mlp::Experts { .. } => {
                add(&["moe.router"], "ffn_gate_inp");
                add(&["moe.gate"], "ffn_gate_exps");
                add(&["moe.up"], "ffn_up_exps");
                add(&["moe.down"], "ffn_down_exps");
            }
        }
    }
    names
}

#[test]
fn a_converted_checkpoint_reads_as_the_one_it_was_made_from() {
    let mut tried = 0;
    for folder in support::own_checkpoints() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if architecture(&name).is_none() {
            continue;
        }
        tried += 1;
        let original = Checkpoint::open(&folder).unwrap();
        let mut writer = convert(&name, &original);
        if name == "gemma3_multimodal" {
            // This pattern is every second layer, where the constant says every sixth.
            writer = writer.with("gemma3.attention.sliding_window_pattern", gguf::u32(2));
        }
        let file = TempFile::new(&name, &writer.finish());
        let converted = file.open().unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = Config {
            architecture: architecture(&name).unwrap().into(),
            norm_offset: 0.0,
            dtype: DType::BF16,
            eos: vec![2],
            ..original.config().clone()
        };
        assert_eq!(close(converted.config()), close(&expected), "{name}");

        let ids: Vec<u32> = (0..12).map(|i| 3 + i * 7 % 45).collect();
        let expected = Sequence::new(&original, original.config().clone()).extend(&ids, true).concat();
        let found = Sequence::new(&converted, converted.config().clone()).extend(&ids, true).concat();
        let off = distance(&found, &expected);
        assert!(off <= 1e-5, "{name} is off by {off}");
    }
    assert_eq!(tried, 7);
}

/// Floats that went through a reciprocal are compared to six digits.
fn close(config: &Config) -> String {
    let round = |x: f32| (x * 1e6).round() / 1e6;
    let config = Config {
        attention_scale: round(config.attention_scale),
        logit_scale: round(config.logit_scale),
        embed_scale: round(config.embed_scale),
        ..config.clone()
    };
    format!("{config:#?}")
}

/// Mixtral's older files keep each expert's matrices in tensors of their own.
#[test]
fn experts_may_lie_in_tensors_of_their_own() {
    let folder = support::own_checkpoints().into_iter().find(|path| path.ends_with("mixtral")).unwrap();
    let original = Checkpoint::open(&folder).unwrap();
    let mut writer = convert("mixtral", &original);
    let (stacked, mut tensors): (Vec<_>, Vec<_>) =
        writer.tensors.into_iter().partition(|tensor| tensor.name.ends_with(b"_exps.weight"));
    for tensor in stacked {
        let name = String::from_utf8(tensor.name.clone()).unwrap();
        let experts = tensor.dims[2] as usize;
        for (e, bytes) in tensor.bytes.chunks(tensor.bytes.len() / experts).enumerate() {
            let name = name.replace("_exps.weight", &format!(".{e}.weight")).into_bytes();
            tensors.push(gguf::TensorEntry {
                name,
                dims: tensor.dims[..2].to_vec(),
                bytes: bytes.to_vec(),
                ..tensor.clone()
            });
        }
    }
    writer.tensors = tensors;
    let split = open(&writer.finish()).unwrap();
    for part in ["gate", "up", "down"] {
        let name = format!("layers.1.moe.{part}");
        let (a, b) = (original.weight(&name).unwrap(), split.weight(&name).unwrap());
        assert_eq!(a.ty, b.ty);
        assert_eq!(support::dense(&a), support::dense(&b), "{name}");
        assert_eq!(b.parts.len(), 4);
    }
}

#[test]
fn llama_frequencies_may_be_stored_as_divisors() {
    let mut writer = small();
    let divisors = [1.0f32, 2.0, 4.0, 8.0];
    writer.tensor("rope_freqs.weight", &[4], 0, divisors.iter().flat_map(|d| d.to_le_bytes()).collect());
    let checkpoint = open(&writer.finish()).unwrap();
    let rope: &Rope = &checkpoint.config().ropes[0];
    assert_eq!(rope.scaling, RopeScaling::Divisors(divisors.into()));
    let (scaled, _) = rope.frequencies(1);
    let (plain, _) = Rope { scaling: RopeScaling::None, ..rope.clone() }.frequencies(1);
    let ratios: Vec<f32> = plain.iter().zip(&*scaled).map(|(p, s)| p / s).collect();
    assert!(distance(&ratios, &divisors) < 1e-5, "{ratios:?}");
}

/// The real file of the demonstration, where it has been fetched.
#[test]
fn smollm2_opens() {
    let Some(path) = std::env::var_os("MILLRACE_TEST_MODEL") else {
        support::skipped("MILLRACE_TEST_MODEL does not name the SmolLM2 file");
        return;
    };
    let checkpoint = Checkpoint::open(Path::new(&path)).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.vocab, config.hidden, config.heads, config.kv_heads), (49152, 576, 9, 3));
    assert_eq!((config.head_dim, config.layers.len(), config.context), (64, 30, 8192));
    assert_eq!(config.ropes[0].theta, 1e5);
    assert_eq!(config.eps, 1e-5);
    assert!(config.tied);
    assert_eq!(checkpoint.weight_type("head").unwrap().dtype, DType::Q8_0);
    assert_eq!(checkpoint.weight_type("layers.7.attn.k").unwrap().to_string(), "q4_1[192,576]");
    assert_eq!(checkpoint.gguf().unwrap().strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), 49152);
    checkpoint.advise_dont_need();
    assert_eq!(checkpoint.weight("embed").unwrap().row(49151).len(), 576 / 32 * 34);
}

/// The smallest llama: one layer, two heads of eight.
fn small() -> GgufWriter {
    let mut w = GgufWriter::new("llama")
        .with("llama.context_length", gguf::u32(64))
        .with("llama.embedding_length", gguf::u32(16))
        .with("llama.block_count", gguf::u32(1))
        .with("llama.feed_forward_length", gguf::u32(8))
        .with("llama.attention.head_count", gguf::u32(2))
        .with("llama.attention.layer_norm_rms_epsilon", gguf::f32(1e-5))
        .with("tokenizer.ggml.tokens", gguf::strings(&["a", "b", "c", "d"]));
    let tensors: [(&str, &[usize]); 11] = [
        ("token_embd.weight", &[4, 16]),
        ("output_norm.weight", &[16]),
        ("blk.0.attn_norm.weight", &[16]),
        ("blk.0.ffn_norm.weight", &[16]),
        ("blk.0.attn_q.weight", &[16, 16]),
        ("blk.0.attn_k.weight", &[16, 16]),
        ("blk.0.attn_v.weight", &[16, 16]),
        ("blk.0.attn_output.weight", &[16, 16]),
        ("blk.0.ffn_gate.weight", &[8, 16]),
        ("blk.0.ffn_up.weight", &[8, 16]),
        ("blk.0.ffn_down.weight", &[16, 8]),
    ];
    for (name, shape) in tensors {
        w.tensor(name, shape, 0, vec![0; shape.iter().product::<usize>() * 4]);
    }
    w
}

type Change = fn(&mut GgufWriter);

fn set(w: &mut GgufWriter, key: &str, value: Vec<u8>) {
    let found = w.values.iter_mut().find(|(name, _)| name == key.as_bytes());
    found.unwrap_or_else(|| panic!("no key {key}")).1 = value;
}

/// Ways to be malformed or unsupported, and what the refusal must name.
const MALFORMED: [(&str, &str, Change); 42] = [
    ("bad magic", "magic", |w| w.magic = *b"GGML"),
    ("version 0", "version", |w| w.version = 0),
    ("version 1", "version", |w| w.version = 1),
    ("version 4", "version", |w| w.version = 4),
    ("big endian", "big endian", |w| w.version = 3u32.swap_bytes()),
    ("tensor count -1", "tensor count", |w| w.tensor_count = Some(u64::MAX)),
    ("tensor count 2^62", "tensor count", |w| w.tensor_count = Some(1 << 62)),
    ("one tensor too many", "tensor", |w| w.tensor_count = Some(12)),
    ("metadata count -1", "metadata count", |w| w.value_count = Some(u64::MAX)),
    ("metadata count 2^32", "metadata count", |w| w.value_count = Some(1 << 32)),
    ("one value too many", "tensor name", |w| w.value_count = Some(9)),
    ("key length 2^63", "metadata key", |w| w.values[0].0 = vec![b'x'; 1 << 16]),
    ("key not UTF-8", "metadata key", |w| w.values[0].0 = vec![0xff, 0xfe]),
    ("value type 99", "99 is not a type", |w| w.values[3].1 = 99u32.to_le_bytes().to_vec()),
    ("boolean of 2", "general.flag", |w| {
        w.values.push((b"general.flag".to_vec(), [&7u32.to_le_bytes()[..], &[2]].concat()));
    }),
    ("duplicate key", "appears twice", |w| w.values.push(w.values[1].clone())),
    ("array of arrays", "array of arrays", |w| {
        let nested = [9u32.to_le_bytes(), 9u32.to_le_bytes()].concat();
        set(w, "tokenizer.ggml.tokens", [nested, 1u64.to_le_bytes().to_vec()].concat());
    }),
    ("array of 2^61 strings", "tokenizer.ggml.tokens", |w| {
        let head = [9u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
        set(w, "tokenizer.ggml.tokens", [head, (1u64 << 61).to_le_bytes().to_vec()].concat());
    }),
    ("array of an unknown type", "tokenizer.ggml.tokens", |w| {
        let head = [9u32.to_le_bytes(), 77u32.to_le_bytes()].concat();
        set(w, "tokenizer.ggml.tokens", [head, 1u64.to_le_bytes().to_vec()].concat());
    }),
    ("token not UTF-8", "tokenizer.ggml.tokens", |w| {
        let mut value = gguf::strings(&["a", "b", "c", "dd"]);
        let end = value.len();
        value[end - 2..].copy_from_slice(&[0xc3, 0x28]);
        set(w, "tokenizer.ggml.tokens", value);
    }),
    ("string of 2^64-1 bytes", "general.architecture", |w| {
        set(w, "general.architecture", [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat());
    }),
    ("architecture a number", "general.architecture", |w| set(w, "general.architecture", gguf::u32(1))),
    ("architecture unknown", "supported are llama, qwen2", |w| {
        set(w, "general.architecture", gguf::string("rwkv"))
    }),
    ("alignment 0", "general.alignment", |w| w.values.push((b"general.alignment".to_vec(), gguf::u32(0)))),
    ("alignment 13", "general.alignment", |w| w.values.push((b"general.alignment".to_vec(), gguf::u32(13)))),
    ("alignment a string", "general.alignment", |w| {
        w.values.push((b"general.alignment".to_vec(), gguf::string("32")));
    }),
    ("alignment of another file", "not a multiple of 64", |w| {
        w.values.push((b"general.alignment".to_vec(), gguf::u32(64)));
        w.tensors[2].offset = Some(288);
    }),
    ("five dimensions", "token_embd.weight", |w| w.tensors[0].dims = vec![16, 4, 1, 1, 1]),
    ("dimension 0", "token_embd.weight", |w| w.tensors[0].dims = vec![16, 0]),
    ("dimension -1", "token_embd.weight", |w| w.tensors[0].dims = vec![16, u64::MAX]),
    ("elements overflow", "token_embd.weight", |w| w.tensors[0].dims = vec![1 << 32, 1 << 32]),
    ("bytes overflow", "token_embd.weight", |w| w.tensors[0].dims = vec![1 << 31, 1 << 31]),
    ("larger than the file", "past the end", |w| w.tensors[10].dims = vec![1 << 20, 16]),
    ("tensor type 4 (removed)", "ggml type 4", |w| w.tensors[4].kind = 4),
    ("tensor type Q2_K", "Q2_K", |w| w.tensors[4].kind = 10),
    ("row of half a block", "whole blocks", |w| w.tensors[4].kind = 8),
    ("duplicate tensor", "appears twice", |w| w.tensors.push(w.tensors[0].clone())),
    ("tensor name not UTF-8", "tensor name", |w| w.tensors[0].name = vec![0xff]),
    ("offset not aligned", "not a multiple of 32", |w| w.tensors[1].offset = Some(257)),
    ("offset in another tensor", "within another tensor", |w| w.tensors[1].offset = Some(224)),
    ("offset 2^64-32", "past the end", |w| w.tensors[1].offset = Some(u64::MAX - 31)),
    ("split file", "split.count", |w| w.values.push((b"split.count".to_vec(), gguf::u32(2)))),
];

/// Files that parse but describe no usable model.
const UNUSABLE: [(&str, &str, Change); 14] = [
    ("no architecture", "general.architecture", |w| drop(w.values.remove(0))),
    ("no heads", "attention.head_count", |w| set(w, "llama.attention.head_count", gguf::u32(0))),
    ("heads a float", "attention.head_count", |w| set(w, "llama.attention.head_count", gguf::f32(2.0))),
    ("2^31 layers", "block_count", |w| set(w, "llama.block_count", gguf::u32(1 << 31))),
    ("no layers", "number of layers", |w| set(w, "llama.block_count", gguf::u32(0))),
    ("two layers", "blk.1.attn_norm.weight", |w| set(w, "llama.block_count", gguf::u32(2))),
    ("no context", "context", |w| set(w, "llama.context_length", gguf::u32(0))),
    ("key-value heads do not divide", "key-value heads", |w| {
        w.values.push((b"llama.attention.head_count_kv".to_vec(), gguf::u32(3)));
    }),
    ("another hidden size", "embed", |w| set(w, "llama.embedding_length", gguf::u32(32))),
    ("another feed-forward size", "layers.0.mlp.gate", |w| {
        set(w, "llama.feed_forward_length", gguf::u32(16))
    }),
    ("epsilon of NaN", "epsilon", |w| set(w, "llama.attention.layer_norm_rms_epsilon", gguf::f32(f32::NAN))),
    ("no embedding", "token_embd.weight", |w| drop(w.tensors.remove(0))),
    ("no norm", "output_norm.weight", |w| drop(w.tensors.remove(1))),
    ("odd rotation", "rope.dimension_count", |w| {
        w.values.push((b"llama.rope.dimension_count".to_vec(), gguf::u32(7)));
    }),
];

#[test]
fn malformed_files_are_refused_by_name() {
    open(&small().finish()).unwrap();
    for (case, names, change) in MALFORMED.into_iter().chain(UNUSABLE) {
        let mut writer = small();
        change(&mut writer);
        let mut bytes = writer.finish();
        if case == "key length 2^63" {
            bytes[24..32].copy_from_slice(&(1u64 << 63).to_le_bytes());
        }
        let error = match open(&bytes) {
            Ok(_) => panic!("{case} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(names), "{case}: {error}");
    }
}

/// What is unusual and allowed.
#[test]
fn unusual_files_are_read() {
    let cases: [(&str, Change); 5] = [
        ("version 2", |w| w.version = 2),
        ("alignment 8", |w| {
            w.alignment = 8;
            w.values.push((b"general.alignment".to_vec(), gguf::u32(8)));
        }),
        ("an unknown key", |w| w.values.push((b"general.author".to_vec(), gguf::string("é")))),
        ("an empty array", |w| set(w, "tokenizer.ggml.tokens", gguf::strings(&[]))),
        ("heads for each layer", |w| {
            let head = [9u32.to_le_bytes(), 4u32.to_le_bytes()].concat();
            let value = [head, 1u64.to_le_bytes().to_vec(), 2u32.to_le_bytes().to_vec()].concat();
            set(w, "llama.attention.head_count", value);
        }),
    ];
    for (case, change) in cases {
        let mut writer = small();
        change(&mut writer);
        open(&writer.finish()).unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let bytes = small().finish();
    let file = TempFile::new("cut", &bytes);
    let writer = std::fs::OpenOptions::new().write(true).open(&file.0).unwrap();
    for length in (1..bytes.len()).rev() {
        writer.set_len(length as u64).unwrap();
        assert!(file.open().is_err(), "accepted with {length} of {} bytes", bytes.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Damaged anywhere, a file is refused or read; it never panics and never reads outside the file.
    #[test]
    fn damage_never_panics(
        damage in prop::collection::vec((0usize..1400, any::<u8>()), 1..6),
        cut in prop::option::of(0usize..6000),
    ) {
        let mut bytes = small().finish();
        for (at, value) in damage {
            bytes[at] = value;
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        if let Ok(checkpoint) = open(&bytes) {
            let embed = checkpoint.weight("embed").unwrap();
            prop_assert_eq!(support::dense(&embed).len(), embed.ty.bytes().unwrap());
        }
    }
}
