//! The sentence encoder on the double: against the CPU's, and against embeddings that were computed elsewhere.

use std::collections::BTreeMap;

use millrace_engine::encoder::{CpuEncoder, EncodeError, Encoder};
use millrace_engine::neuron::{EncoderSpec, Graphs, NeuronEncoder, encoder_buckets};
use millrace_graph::ParamKind;
use millrace_models::text::EncoderTokenizer;
use millrace_models::{EncoderCheckpoint, EncoderConfig, EncoderShape, device_encoder};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use super::*;

/// A folder with a tiny encoder of random weights, in half precision where `half` says so.
fn tiny(half: bool) -> Scratch {
    let scratch = Scratch::new();
    let config = serde_json::json!({
        "model_type": "bert", "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 40, "type_vocab_size": 2,
    });
    std::fs::write(scratch.0.join("config.json"), config.to_string()).expect("writable");
    let config = EncoderConfig::read(&scratch.0).expect("an encoder");
    let graph = device_encoder(&config, &EncoderShape { texts: 1, width: 1 }).expect("a graph");
    let mut seed = 11u32;
    let mut bytes: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for param in graph.params.iter().filter(|param| param.kind == ParamKind::Weight) {
        let ty = graph.ty(param.node);
        let numbers = (0..ty.elements()).flat_map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = (seed >> 8) as f32 / (1 << 24) as f32 - 0.5;
            if half { half::f16::from_f32(x).to_le_bytes().to_vec() } else { x.to_le_bytes().to_vec() }
        });
        bytes.insert(param.name.clone(), (ty.shape.clone(), numbers.collect()));
    }
    let dtype = if half { Dtype::F16 } else { Dtype::F32 };
    let views = bytes.iter().map(|(name, (shape, bytes))| {
        (name.clone(), TensorView::new(dtype, shape.clone(), bytes).expect("as many bytes as the shape says"))
    });
    let views: Vec<_> = views.collect();
    serialize_to_file(views, None, &scratch.0.join("model.safetensors")).expect("writable");
    scratch
}

fn on_device(folder: &Path, widest: Option<usize>, double: &Double) -> Result<NeuronEncoder, String> {
    let checkpoint = EncoderCheckpoint::open(folder).expect("an encoder");
    let scratch = Scratch::new();
    let store = Store::new(scratch.0.join("store"));
    let spec = EncoderSpec {
        config: checkpoint.config().clone(),
        name: "tiny".into(),
        target: Target::Trn1,
        compiler_flags: Vec::new(),
    };
    let mut buckets = encoder_buckets(checkpoint.config());
    buckets.retain(|bucket| widest.is_none_or(|widest| bucket.width <= widest));
    let compile = |bucket: &Bucket| compile_request(&store, &spec.request(bucket).expect("a graph"));
    let programs: Vec<Artefact> = buckets.iter().map(compile).collect();
    NeuronEncoder::load(double.library().clone(), &checkpoint, &programs, Duration::from_secs(60))
        .map_err(|error| error.to_string())
}

fn off(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn embeddings_are_the_cpus() {
    for half in [false, true] {
        let folder = tiny(half);
        let double = Double::new(&[]);
        let mut device = on_device(&folder.0, None, &double).expect("it loads");
        let mut cpu =
            CpuEncoder::load(&EncoderCheckpoint::open(&folder.0).expect("an encoder"), 1).expect("it loads");
        // More texts than the batches of some widths hold, of all lengths there are.
        let texts: Vec<Vec<u32>> =
            (0..90u32).map(|at| (0..1 + (at * 7) % 40).map(|i| (at * 31 + i * 17) % 60).collect()).collect();
        let (found, expected) =
            (device.embed(&texts).expect("embeddings"), cpu.embed(&texts).expect("embeddings"));
        assert!(off(&found, &expected) < 1e-5, "{}", off(&found, &expected));
        for at in [0, 41, 89] {
            let alone = device.embed(&texts[at..=at]).expect("an embedding");
            assert!(off(&alone, &found[at..=at]) < 1e-6, "company changes an embedding");
        }
        assert!(matches!(device.embed(&[vec![]]), Err(EncodeError::Empty { index: 0 })));
        assert!(matches!(device.embed(&[vec![5; 41]]), Err(EncodeError::TooLong { tokens: 41, .. })));
        assert!(matches!(device.embed(&[vec![5], vec![60]]), Err(EncodeError::Token { index: 1, .. })));
        double.set("SOFTNRT_FAULT", "execute@1:1006");
        let refused = device.embed(&texts[..1]).expect_err("it was told to fail").to_string();
        assert!(refused.contains("NRT_EXEC_OOB"), "{refused}");
        assert_eq!(device.embed(&texts).expect("it goes on"), found);
        drop(device);
        assert!(double.complaints().is_empty(), "{:?}", double.complaints());
        let narrow = on_device(&folder.0, Some(16), &double).err().expect("it does not start");
        assert!(narrow.contains("40 tokens"), "{narrow}");
    }
}

/// all-MiniLM-L6-v2, by all of its layers in f32: as near to the reference implementation as the CPU backend is.
#[test]
fn minilm_is_that_of_the_reference() {
    let (Some(folder), Some(golden)) = (std::env::var_os("MILLRACE_TEST_ENCODER"), golden("minilm")) else {
        eprintln!("skipped: no encoder (MILLRACE_TEST_ENCODER), or no golden embeddings beside the project");
        return;
    };
    let folder = PathBuf::from(folder);
    let texts: Vec<String> =
        serde_json::from_slice(&std::fs::read(golden.join("texts.json")).expect("readable")).expect("a list");
    let bytes = std::fs::read(golden.join("embeddings.safetensors")).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("tensors");
    let view = file.tensor("embeddings").expect("embeddings");
    let all = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
    let all: Vec<f32> = all.collect();
    let expected: Vec<Vec<f32>> = all.chunks_exact(view.shape()[1]).map(<[f32]>::to_vec).collect();
    let tokenizer = EncoderTokenizer::from_directory(&folder, 256).expect("a tokenizer");
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text).expect("ids")).collect();
    // The evaluator takes a while for long ones.
    let short: Vec<usize> = (0..ids.len()).filter(|at| ids[*at].len() <= 32).take(8).collect();
    assert!(short.len() >= 2, "short texts");
    let pick = |all: &[Vec<f32>]| short.iter().map(|at| all[*at].clone()).collect::<Vec<_>>();
    let double = Double::new(&[]);
    let mut device = on_device(&folder, None, &double).expect("it loads");
    let asked: Vec<Vec<u32>> = short.iter().map(|at| ids[*at].clone()).collect();
    let found = device.embed(&asked).expect("embeddings");
    let off = off(&found, &pick(&expected));
    eprintln!("{} texts, the largest difference is {off:e}", found.len());
    assert!(off < 1e-4, "off by {off}");
}
