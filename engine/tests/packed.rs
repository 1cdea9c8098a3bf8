//! The cache of packed weights: a model that is mapped computes what one that is packed does, bit by bit, and whatever
//! is wrong with the cache, the model is loaded.

use std::fs;
use std::path::{Path, PathBuf};

use millrace_engine::cpu::{CpuOptions, CpuRunner};
use millrace_engine::{BlockId, Logits, Row, Runner, SeqId, Step, Want};
use millrace_graph::DType;
use millrace_kernels::Precision;
use millrace_models::Checkpoint;

/// One with experts, one with tied embeddings.
const MODELS: [&str; 2] = ["mixtral", "gemma2"];

fn checkpoint(name: &str) -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data").join(name);
    Checkpoint::open(&path).expect("the checkpoint opens")
}

/// The bits of the logits after some tokens.
fn logits(checkpoint: &Checkpoint, cache: Option<&Path>, weight_dtype: Option<DType>) -> Vec<u32> {
    let options = CpuOptions {
        threads: 2,
        precision: Precision::Fast,
        kv_dtype: DType::F32,
        block_size: 16,
        kv_bytes: 1 << 24,
        weight_dtype,
        max_model_len: 32,
        max_num_seqs: 1,
        max_num_batched_tokens: 16,
        packed_cache: cache.map(Path::to_owned),
    };
    let mut heard = (0, 0);
    let mut runner = CpuRunner::load(checkpoint, &options, &mut |done, total| heard = (done, total))
        .expect("the checkpoint loads");
    assert_eq!(heard.0, heard.1, "progress ends with the last byte");
    let tokens = vec![1, 5, 9, 2, 7];
    let row =
        Row { seq: SeqId(1), first: 0, count: 5, position: 0, first_block: 0, blocks: 1, want: Want::All };
    let step = Step { tokens, blocks: vec![BlockId(0)], rows: vec![row], ..Step::default() };
    let mut logits = Logits::default();
    runner.submit(&step).expect("the step is well-formed");
    runner.wait(&mut logits).expect("the step runs");
    logits.values.iter().map(|logit| logit.to_bits()).collect()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let listing = fs::read_dir(directory).expect("a directory");
    listing.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn mapped_weights_compute_what_packed_ones_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().join("cache");
    for (at, name) in MODELS.into_iter().enumerate() {
        let checkpoint = checkpoint(name);
        for dtype in [None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)] {
            let packed = logits(&checkpoint, None, dtype);
            assert_eq!(logits(&checkpoint, Some(&cache), dtype), packed, "{name}: packed and kept");
            let before = files(&cache);
            let bytes: Vec<_> = before.iter().map(|file| fs::read(file).expect("a file")).collect();
            assert_eq!(logits(&checkpoint, Some(&cache), dtype), packed, "{name}: mapped");
            let after: Vec<_> = before.iter().map(|file| fs::read(file).expect("a file")).collect();
            assert_eq!(files(&cache).len(), before.len(), "nothing was written anew");
            assert!(bytes == after, "nor changed");
        }
        // The checkpoint's own type is one of the three.
        assert_eq!(files(&cache).len(), 3 * (at + 1), "{name}: a file for each type");
    }
}

#[test]
fn a_damaged_file_is_packed_anew_and_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path();
    let checkpoint = checkpoint(MODELS[0]);
    let packed = logits(&checkpoint, Some(cache), None);
    let [file] = &files(cache)[..] else { panic!("one file was expected") };
    let whole = fs::read(file).expect("it is there");
    let mut damages: Vec<Vec<u8>> = [9, 20, 40, 100, whole.len() / 2, whole.len() - 1]
        .map(|at| {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            damaged
        })
        .to_vec();
    damages.extend([vec![], whole[..whole.len() - 64].to_vec(), [&whole[..], &[0]].concat()]);
    for damaged in damages {
        fs::remove_file(file).expect("removed: it is not to be written to");
        fs::write(file, damaged).expect("written");
        assert_eq!(logits(&checkpoint, Some(cache), None), packed);
        assert!(fs::read(file).expect("it is there") == whole, "it was replaced by what it should be");
    }
}

#[test]
fn a_directory_that_cannot_be_used_is_done_without() {
    let directory = tempfile::tempdir().expect("a directory");
    let checkpoint = checkpoint(MODELS[0]);
    let packed = logits(&checkpoint, None, None);
    // A file where the directory should be; a directory where the file should be.
    let file = directory.path().join("file");
    fs::write(&file, "").expect("written");
    assert_eq!(logits(&checkpoint, Some(&file), None), packed);
    let cache = directory.path().join("cache");
    logits(&checkpoint, Some(&cache), None);
    let [file] = &files(&cache)[..] else { panic!("one file was expected") };
    fs::remove_file(file).expect("removed");
    fs::create_dir(file).expect("made");
    assert_eq!(logits(&checkpoint, Some(&cache), None), packed);
    assert_eq!(files(&cache).len(), 1, "what could not be put in place is removed");
}

#[test]
fn writers_at_the_same_time_agree() {
    let directory = tempfile::tempdir().expect("a directory");
    let checkpoint = checkpoint(MODELS[0]);
    let packed = logits(&checkpoint, None, None);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(logits(&checkpoint, Some(directory.path()), None), packed));
        }
    });
    assert_eq!(files(directory.path()).len(), 1, "one file and nothing unfinished");
    assert_eq!(logits(&checkpoint, Some(directory.path()), None), packed);
}
