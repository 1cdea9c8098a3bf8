//! SmolLM2-135M-Instruct (Q4_1): greedy ids and log-probabilities against answers computed elsewhere, and how
//! far the fast precision strays from the reference.
//!
//! The model is `MILLRACE_TEST_MODEL`, or what `scripts/fetch-model` has cached.
#![allow(clippy::print_stderr, reason = "a test that skips says so, and prints what it measured")]

#[path = "../../tests/support/cached.rs"]
mod cached;

use std::path::Path;

use millrace_engine::cpu::{CpuOptions, CpuRunner};
use millrace_engine::{BlockId, Logits, Row, Runner, SeqId, Step, Want};
use millrace_graph::DType;
use millrace_kernels::Precision;
use millrace_models::Checkpoint;
use safetensors::SafeTensors;

fn load(path: &Path, precision: Precision) -> CpuRunner {
    let options = CpuOptions {
        threads: 2,
        precision,
        kv_dtype: DType::F32,
        block_size: 16,
        kv_bytes: 1 << 26,
        weight_dtype: None,
        max_model_len: 256,
        max_num_seqs: 2,
        max_num_batched_tokens: 128,
        packed_cache: None,
    };
    let checkpoint = Checkpoint::open(path).expect("the model opens");
    CpuRunner::load(&checkpoint, &options, &mut |_, _| {}).expect("the model loads")
}

/// Log-probabilities after each of the last `tokens.len() - from` tokens.
fn log_probabilities(runner: &mut CpuRunner, tokens: &[u32], from: usize) -> Vec<Vec<f64>> {
    let mut rows = Vec::new();
    let mut out = Logits::default();
    let mut position = 0;
    while position < tokens.len() {
        let all = position >= from;
        let end = if all { (position + 16).min(tokens.len()) } else { from.min(position + 128) };
        let blocks: Vec<BlockId> = (0..end.div_ceil(16)).map(|i| BlockId(i as u32)).collect();
        let row = Row {
            seq: SeqId(1),
            first: 0,
            count: (end - position) as u32,
            position: position as u32,
            first_block: 0,
            blocks: blocks.len() as u32,
            want: if all { Want::All } else { Want::Nothing },
        };
        let step =
            Step { tokens: tokens[position..end].to_vec(), blocks, rows: vec![row], ..Step::default() };
        runner.submit(&step).expect("the step is well-formed");
        runner.wait(&mut out).expect("the step runs");
        if all {
            rows.extend((0..end - position).map(|i| out.log_probabilities(i)));
        }
        position = end;
    }
    rows
}

/// Mean over positions of Σ p · (ln p - ln q).
fn kl(reference: &[Vec<f64>], other: &[Vec<f64>]) -> f64 {
    let of = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    reference.iter().zip(other).map(|(p, q)| of(p, q)).sum::<f64>() / reference.len() as f64
}

struct Golden {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    top_ids: Vec<i32>,
    top_logprobs: Vec<f32>,
}

fn golden() -> Option<Vec<Golden>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/smollm2");
    let text = std::fs::read_to_string(root.join("greedy.json")).ok()?;
    let entries: Vec<serde_json::Value> = serde_json::from_str(&text).expect("golden answers parse");
    let bytes = std::fs::read(root.join("logprobs.safetensors")).expect("golden log-probabilities are there");
    let tensors = SafeTensors::deserialize(&bytes).expect("golden log-probabilities parse");
    let words = |name: String| -> Vec<[u8; 4]> {
        let view = tensors.tensor(&name).expect("the golden file has it");
        view.data().chunks_exact(4).map(|b| b.try_into().expect("four bytes")).collect()
    };
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        let list = value.as_array().expect("a list of ids");
        list.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
    };
    let read = |(i, entry): (usize, &serde_json::Value)| Golden {
        prompt: ids(&entry["prompt_ids"]),
        greedy: ids(&entry["greedy_ids"]),
        top_ids: words(format!("{i}.top_ids")).into_iter().map(i32::from_le_bytes).collect(),
        top_logprobs: words(format!("{i}.top_logprobs")).into_iter().map(f32::from_le_bytes).collect(),
    };
    Some(entries.iter().enumerate().map(read).collect())
}

#[test]
fn greedy_ids_log_probabilities_and_divergence() {
    let Some(path) = cached::smollm2() else {
        eprintln!("skipped: no SmolLM2 (scripts/fetch-model fetches it)");
        return;
    };
    let Some(golden) = golden() else {
        eprintln!("skipped: no golden answers beside the project");
        return;
    };
    let mut reference = load(&path, Precision::Reference);
    let mut fast = load(&path, Precision::Fast);
    let (mut worst, mut divergence, mut positions) = (0f64, 0.0, 0);
    for entry in &golden {
        let mut tokens = entry.prompt.clone();
        tokens.extend(&entry.greedy[..entry.greedy.len() - 1]);
        let exact = log_probabilities(&mut reference, &tokens, entry.prompt.len() - 1);
        assert_eq!(exact.len(), entry.greedy.len());
        for (i, row) in exact.iter().enumerate() {
            // Greedy ids exactly: the path is teacher-forced along them, so each must be the best one.
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a vocabulary");
            assert_eq!(best as u32, entry.greedy[i], "greedy id {i}");
            let top = i * 64..(i + 1) * 64;
            for (id, theirs) in entry.top_ids[top.clone()].iter().zip(&entry.top_logprobs[top]) {
                worst = worst.max((row[*id as usize] - f64::from(*theirs)).abs());
            }
        }
        let quick = log_probabilities(&mut fast, &tokens, entry.prompt.len() - 1);
        divergence += kl(&exact, &quick) * exact.len() as f64;
        positions += exact.len();
    }
    let divergence = divergence / positions as f64;
    eprintln!("reference: largest difference of a log-probability {worst:.1e}");
    eprintln!("fast: mean KL divergence from the reference over {positions} positions {divergence:.2e}");
    assert!(worst < 1e-3, "log-probabilities differ by {worst}");
    assert!(divergence < 0.01, "the fast precision strays by {divergence}");
}
