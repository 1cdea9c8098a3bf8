//! all-MiniLM-L6-v2: embeddings against those of the reference implementation, and that a batch changes no bit.
//!
//! The model is `MILLRACE_TEST_ENCODER`, or what `scripts/fetch-encoder` has cached.
#![allow(clippy::print_stderr, reason = "a test that skips says so, and prints what it measured")]

#[path = "../../tests/support/cached.rs"]
mod cached;

use std::path::{Path, PathBuf};

use millrace_engine::encoder::{CpuEncoder, EncodeError};
use millrace_models::EncoderCheckpoint;
use millrace_models::text::EncoderTokenizer;
use safetensors::SafeTensors;

fn shared(what: &str) -> Option<PathBuf> {
    let repository =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|dir| dir.join("Cargo.lock").exists())?;
    let path = repository.parent()?.join("shared").join(what);
    path.exists().then_some(path)
}

#[test]
fn embeddings_are_those_of_the_reference() {
    let Some(path) = cached::cached("MILLRACE_TEST_ENCODER", "all-MiniLM-L6-v2") else {
        eprintln!("skipped: no encoder; scripts/fetch-encoder fetches it");
        return;
    };
    let checkpoint = EncoderCheckpoint::open(&path).expect("the model opens");
    let max = checkpoint.config().max_tokens;
    let tokenizer = EncoderTokenizer::from_directory(&path, max).expect("its tokenizer");
    let mut encoder = CpuEncoder::load(&checkpoint, 2).expect("the model loads");

    let plain = ["is it waterproof?", "", "naïve café — 冬のゴルフ 🏌️", &"a ".repeat(1000)];
    let ids: Vec<Vec<u32>> = plain.iter().map(|text| tokenizer.encode(text).expect("ids")).collect();
    assert_eq!(ids.last().map(Vec::len), Some(max), "a long text is cut");
    let whole = tokenizer.encode_whole(plain[3]).expect("ids");
    assert_eq!((whole.len(), &whole[..max - 1]), (1002, &ids[3][..max - 1]));
    let together = encoder.embed(&ids).expect("embeddings");
    for (ids, embedding) in ids.iter().zip(&together) {
        let alone = encoder.embed(std::slice::from_ref(ids)).expect("an embedding");
        assert_eq!(&alone[0], embedding, "company changes an embedding");
        let length: f32 = embedding.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "length {length}");
    }
    assert!(matches!(encoder.embed(&[vec![]]), Err(EncodeError::Empty { index: 0 })));
    assert!(matches!(encoder.embed(&[vec![5], vec![1 << 20]]), Err(EncodeError::Token { index: 1, .. })));
    assert!(matches!(encoder.embed(&[vec![5; 513]]), Err(EncodeError::TooLong { tokens: 513, .. })));

    let Some(golden) = shared("golden/minilm") else {
        eprintln!("skipped: the golden embeddings are not there");
        return;
    };
    let texts: Vec<String> =
        serde_json::from_slice(&std::fs::read(golden.join("texts.json")).unwrap()).unwrap();
    let bytes = std::fs::read(golden.join("embeddings.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let expected: Vec<f32> = file
        .tensor("embeddings")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text).expect("ids")).collect();
    let got = encoder.embed(&ids).expect("embeddings").concat();
    assert_eq!(got.len(), expected.len());
    let off = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    eprintln!("{} texts, the largest difference is {off:e}", texts.len());
    assert!(off <= 1e-4, "off by {off}");
}
