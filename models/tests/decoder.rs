//! The decoder's graph: its interface, for every family, and what it refuses.

mod support;

use std::collections::HashSet;

use millrace_graph::{DType, ParamKind, Type};
use millrace_models::{Checkpoint, ModelError, StepShape, decoder};

fn shape(width: Option<usize>, compute: DType, kv_dtype: DType) -> StepShape {
    StepShape {
        tokens: 6,
        rows: 3,
        table_blocks: 5,
        logits: 2,
        width,
        kv_blocks: 11,
        block_size: 4,
        kv_dtype,
        compute,
    }
}

#[test]
fn the_interface_is_the_same_for_every_family() {
    let all = [DType::F32, DType::BF16, DType::F16];
    for folder in support::own_checkpoints() {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let config = checkpoint.config();
        for (compute, kv_dtype) in all.into_iter().flat_map(|compute| all.map(|kv| (compute, kv))) {
            for width in [None, Some(2)] {
                let shape = shape(width, compute, kv_dtype);
                let graph = decoder(config, &shape, &|name| checkpoint.weight_type(name)).unwrap();
                graph.verify().unwrap();

                let inputs: Vec<(&str, String)> = graph
                    .params
                    .iter()
                    .filter(|param| param.kind == ParamKind::Input)
                    .map(|param| (param.name.as_str(), graph.ty(param.node).to_string()))
                    .collect();
                let mut expected = vec![
                    ("tokens", "s32[6]"),
                    ("positions", "s32[6]"),
                    ("rows", "s32[6]"),
                    ("slots", "s32[6]"),
                    ("block_tables", "s32[3,5]"),
                    ("logit_rows", "s32[2]"),
                ];
                expected.retain(|(name, _)| *name != "rows" || width.is_none());
                let expected: Vec<(&str, String)> =
                    expected.into_iter().map(|(name, ty)| (name, ty.to_owned())).collect();
                assert_eq!(inputs, expected);

                let logits = &graph.outputs[0];
                assert_eq!(logits.name, "logits");
                assert_eq!(*graph.ty(logits.node), Type::new(DType::F32, [2, config.vocab]));
                assert_eq!(graph.outputs.len(), 1 + 2 * config.layers.len());
                for output in &graph.outputs[1..] {
                    let state = graph.param(output.alias.unwrap());
                    assert_eq!((&output.name, state.kind), (&state.name, ParamKind::State));
                    let cache = Type::new(kv_dtype, [11, 4, config.kv_heads, config.head_dim]);
                    assert_eq!(*graph.ty(output.node), cache);
                }
            }
        }
    }
}

/// A tensor of the file that no weight reads would be a bias or a norm that the decoder forgot.
#[test]
fn every_tensor_of_a_checkpoint_is_used() {
    for folder in support::own_checkpoints() {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let shape = shape(None, DType::F32, DType::F32);
        let graph = decoder(checkpoint.config(), &shape, &|name| checkpoint.weight_type(name)).unwrap();
        let mut seen = HashSet::new();
        let mut used = 0;
        for param in graph.params.iter().filter(|param| param.kind == ParamKind::Weight) {
            let view = checkpoint.weight(&param.name).unwrap();
            assert_eq!(view.ty, *graph.ty(param.node));
            let fresh = view.parts.iter().filter(|part| seen.insert(part.as_ptr()));
            used += fresh.map(|part| part.len()).sum::<usize>();
        }
        let file = std::fs::read(folder.join("model.safetensors")).unwrap();
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(used, file.len() - 8 - header, "{}", folder.display());
    }
}

#[test]
fn a_weight_of_another_shape_is_refused_by_name() {
    let folder = support::own_checkpoints().remove(0);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let shape = shape(None, DType::F32, DType::F32);
    let names: Vec<String> = decoder(checkpoint.config(), &shape, &|name| checkpoint.weight_type(name))
        .unwrap()
        .params
        .into_iter()
        .filter(|param| param.kind == ParamKind::Weight)
        .map(|param| param.name)
        .collect();
    for wrong in names {
        let weight_type = |name: &str| {
            let mut ty = checkpoint.weight_type(name)?;
            if name == wrong {
                ty.shape[0] += 1;
            }
            Ok(ty)
        };
        match decoder(checkpoint.config(), &shape, &weight_type) {
            Err(ModelError::WeightType { name, .. }) => assert_eq!(name, wrong),
            other => panic!("{wrong}: {other:?}"),
        }
    }
    assert!(matches!(checkpoint.weight("layers.9.attn.q"), Err(ModelError::MissingWeight { .. })));
    assert!(matches!(checkpoint.weight("nonsense"), Err(ModelError::MissingWeight { .. })));
}

/// A step shape that makes no sense is an error, not a panic.
#[test]
fn a_width_that_does_not_divide_the_tokens_is_refused() {
    let folder = support::own_checkpoints().remove(0);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let shape = shape(Some(4), DType::F32, DType::F32);
    let error = decoder(checkpoint.config(), &shape, &|name| checkpoint.weight_type(name));
    assert!(matches!(error, Err(ModelError::Graph(_))));
}
