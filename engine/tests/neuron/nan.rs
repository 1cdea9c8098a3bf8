//! A request whose numbers overflow fails, and nobody after it finds what it left in the cache.

use std::path::Path;

use safetensors::tensor::{TensorView, serialize_to_file};

use super::*;

/// The token after which nothing is a number.
const SPOILS: u32 = 5;

/// A copy of a checkpoint in which one token's queries and keys are so large in the first layer that their product is
/// infinite, which makes a not-a-number of its softmax and so of all that the second layer caches of it. All other
/// tokens have a zero where it is large.
fn spoilt(folder: &Path, to: &Path) {
    std::fs::copy(folder.join("config.json"), to.join("config.json")).expect("readable");
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("readable");
    let tensors = SafeTensors::deserialize(&bytes).expect("a model");
    let mut copies: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, view) in tensors.tensors() {
        assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
        let mut data = view.data().to_vec();
        let hidden = view.shape().last().copied().unwrap_or(1);
        let mut set = |at: usize, x: f32| data[4 * at..4 * at + 4].copy_from_slice(&x.to_le_bytes());
        match name.as_str() {
            "model.embed_tokens.weight" => {
                for token in 0..view.shape()[0] {
                    set(token * hidden, if token == SPOILS as usize { 1.0 } else { 0.0 });
                }
            }
            "model.layers.0.input_layernorm.weight" => set(0, 1e25),
            _ => {}
        }
        copies.push((name, view.dtype(), view.shape().to_vec(), data));
    }
    let views = copies.iter().map(|(name, dtype, shape, data)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).expect("as many bytes as before"))
    });
    let views: Vec<_> = views.collect();
    serialize_to_file(views, None, &to.join("model.safetensors")).expect("writable");
}

#[test]
fn what_is_no_number_stays_with_its_request() {
    let Some(folder) = golden("llama") else {
        eprintln!("skipped: no golden answers beside the project");
        return;
    };
    let scratch = Scratch::new();
    spoilt(&folder, &scratch.0);
    // The runtime may report it, or not.
    for reported in ["0", "1"] {
        let mut setup = Setup {
            kv_blocks: 20,
            settings: vec![("NEURON_FAIL_ON_NAN", reported.into())],
            ..Setup::default()
        };
        setup.config.prefix_caching = false;
        let rig = setup.start(&scratch.0).expect("it starts");
        let probe = |at: u32| (0..20).map(|i| 10 + (at * 7 + i * 3) % 40).collect::<Vec<u32>>();
        // So many and so long that they use every block.
        let ask = || -> Vec<Vec<u32>> {
            let submit = |at| rig.handle.submit(greedy(&probe(at), 40)).expect("valid").remove(0);
            let mut receivers: Vec<_> = (0..8).map(submit).collect();
            receivers
                .iter_mut()
                .map(|receiver| {
                    let (tokens, _, error) = read(receiver);
                    assert_eq!(error, None);
                    tokens
                })
                .collect()
        };
        let before = ask();
        for length in [1, 17, 30] {
            let mut prompt = probe(3);
            prompt.resize(length, SPOILS);
            prompt[0] = SPOILS;
            let (_, _, error) = read(&mut rig.handle.submit(greedy(&prompt, 4)).expect("valid").remove(0));
            let Some(RequestError::Refused(why)) = &error else { panic!("{error:?}") };
            assert!(why.contains("not-a-number"), "{why}");
        }
        assert_eq!(ask(), before, "reported: {reported}");
        // Beside others, it fails alone.
        let mut well = rig.handle.submit(greedy(&probe(0), 40)).expect("valid").remove(0);
        let mut ill = rig.handle.submit(greedy(&[12, SPOILS], 4)).expect("valid").remove(0);
        assert!(matches!(read(&mut ill).2, Some(RequestError::Refused(_))));
        assert_eq!((read(&mut well).0, ask()), (before[0].clone(), before));
        rig.finish();
    }
}
