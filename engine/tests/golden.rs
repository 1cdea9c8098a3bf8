//! The CPU backend against answers that were computed elsewhere: logits at every position and greedy
//! continuations of tiny checkpoints of each family.
#![allow(clippy::print_stderr, reason = "a test that skips says so")]

use std::path::{Path, PathBuf};

use millrace_engine::cpu::{CpuOptions, CpuRunner};
use millrace_engine::{BlockId, Logits, Row, Runner, SeqId, Step, Want};
use millrace_graph::DType;
use millrace_kernels::Precision;
use millrace_models::Checkpoint;
use safetensors::SafeTensors;

fn golden_root() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
    root.is_dir().then_some(root)
}

fn options() -> CpuOptions {
    CpuOptions {
        threads: 2,
        precision: Precision::Reference,
        kv_dtype: DType::F32,
        block_size: 16,
        kv_bytes: 1 << 24,
        weight_dtype: None,
        max_model_len: 128,
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        packed_cache: None,
    }
}

/// Runs `tokens` from `position` on, in blocks `7, 6, 5, ...` so that physical order is not logical order.
fn run(runner: &mut CpuRunner, tokens: &[u32], position: usize, want: Want) -> Logits {
    let blocks: Vec<BlockId> =
        (0..(position + tokens.len()).div_ceil(16)).map(|i| BlockId(7 - i as u32)).collect();
    let row = Row {
        seq: SeqId(1),
        first: 0,
        count: tokens.len() as u32,
        position: position as u32,
        first_block: 0,
        blocks: blocks.len() as u32,
        want,
    };
    let step = Step { tokens: tokens.to_vec(), blocks, rows: vec![row], ..Step::default() };
    let mut logits = Logits::default();
    runner.submit(&step).expect("the step is well-formed");
    runner.wait(&mut logits).expect("the step runs");
    logits
}

fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = i;
        }
    }
    best as u32
}

fn ints(tensors: &SafeTensors<'_>, name: &str) -> Vec<Vec<u32>> {
    let view = tensors.tensor(name).expect("the golden file has it");
    let width = view.shape()[1];
    let all: Vec<u32> = view
        .data()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")) as u32)
        .collect();
    all.chunks_exact(width).map(<[u32]>::to_vec).collect()
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).expect("the golden file has it");
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

/// Largest difference from the golden logits; panics where greedy ids differ.
fn check(folder: &Path) -> f32 {
    let checkpoint = Checkpoint::open(folder).expect("the checkpoint opens");
    let mut runner = CpuRunner::load(&checkpoint, &options(), &mut |_, _| {}).expect("the checkpoint loads");
    let bytes = std::fs::read(folder.join("golden.safetensors")).expect("golden answers are there");
    let tensors = SafeTensors::deserialize(&bytes).expect("golden answers parse");
    let (prompts, expected) = (ints(&tensors, "input_ids"), floats(&tensors, "logits"));
    let vocab = runner.vocab();
    let mut worst = 0f32;
    for (prompt, expected) in prompts.iter().zip(expected.chunks_exact(prompts[0].len() * vocab)) {
        let logits = run(&mut runner, prompt, 0, Want::All);
        for (ours, theirs) in logits.values.iter().zip(expected) {
            worst = worst.max((ours - theirs).abs());
        }
        // The same prompt in chunks: bit for bit the same last row.
        let (head, tail) = prompt.split_at(19);
        run(&mut runner, head, 0, Want::Nothing);
        let chunked = run(&mut runner, tail, 19, Want::Last);
        let last = (prompt.len() - 1) * vocab;
        assert_eq!(chunked.values, logits.values[last..], "chunking changed bits in {}", folder.display());
    }
    for (golden, prompt) in ints(&tensors, "greedy").iter().zip(&prompts) {
        let mut ids = prompt[..20].to_vec();
        let mut logits = run(&mut runner, &ids, 0, Want::Last);
        while ids.len() < golden.len() {
            let next = argmax(&logits.values);
            ids.push(next);
            logits = run(&mut runner, &[next], ids.len() - 1, Want::Last);
        }
        assert_eq!(&ids, golden, "greedy ids of {}", folder.display());
    }
    worst
}

#[test]
fn tiny_checkpoints_of_every_family() {
    let Some(root) = golden_root() else {
        eprintln!("skipped: no golden answers beside the project");
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(root).expect("a readable folder") {
        let folder = entry.expect("a readable entry").path();
        if !folder.join("golden.safetensors").is_file() {
            continue;
        }
        let worst = check(&folder);
        eprintln!("{:<16} largest difference {worst:.1e}", folder.file_name().unwrap_or_default().display());
        assert!(worst < 1e-4, "{}: logits differ by {worst}", folder.display());
        seen += 1;
    }
    assert_eq!(seen, 8, "golden checkpoints found");
}
