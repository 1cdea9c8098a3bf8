//! How far `fast` next-token distributions, over the KV cache that the caller chose, stray from those of `reference`
//! over one of f32: the price of speed and of memory, on positions of the caller's choice.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use millrace_engine::{BlockId, Logits, Row, Runner, SeqId, Step, Want};
use serde::{Deserialize, Serialize};

use crate::args::{KvDtype, ModelArgs, PrecisionArg};
use crate::load;

/// A sequence of the file: distributions are compared after `tokens[from]` and after every later token.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sequence {
    tokens: Vec<u32>,
    from: usize,
}

/// What was found, over all positions.
#[derive(Debug, Serialize)]
struct Divergence {
    positions: usize,
    /// Mean of Σ p · (ln p − ln q), p being the reference's probabilities, in nats.
    mean_kl: f64,
    /// The largest of them.
    max_kl: f64,
    /// Share of the positions at which both would choose the same token.
    same_top: f64,
}

/// Reads the sequences, runs them through both precisions, prints the divergence.
pub(super) fn run(args: &ModelArgs, file: &Path, json: bool) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let sequences: Vec<Sequence> = serde_json::from_str(&text).with_context(|| {
        format!("{}: a list of {{\"tokens\": [...], \"from\": N}} is wanted", file.display())
    })?;
    let exact = ModelArgs { precision: PrecisionArg::Reference, kv_dtype: KvDtype::F32, ..args.clone() };
    let reference = distributions(&exact, &sequences)?;
    let fast = distributions(&ModelArgs { precision: PrecisionArg::Fast, ..args.clone() }, &sequences)?;
    let mut found = Divergence { positions: reference.len(), mean_kl: 0.0, max_kl: 0.0, same_top: 0.0 };
    ensure!(found.positions > 0, "{} names no position", file.display());
    for (p, q) in reference.iter().zip(&fast) {
        let kl: f64 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
        found.mean_kl += kl / found.positions as f64;
        found.max_kl = found.max_kl.max(kl);
        found.same_top += f64::from(u8::from(top(p) == top(q))) / found.positions as f64;
    }
    if json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        println!("positions                    {}", found.positions);
        println!("mean KL from reference       {:.2e}", found.mean_kl);
        println!("largest                      {:.2e}", found.max_kl);
        println!("same best token              {:.1} %", found.same_top * 100.0);
    }
    Ok(())
}

fn top(row: &[f64]) -> Option<usize> {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))
}

/// Log-probabilities of the whole vocabulary at every position that is asked for.
fn distributions(args: &ModelArgs, sequences: &[Sequence]) -> anyhow::Result<Vec<Vec<f64>>> {
    let loaded = load::open(args, &Default::default())?;
    let mut runner = loaded.runner;
    let mut rows = Vec::new();
    for (i, sequence) in sequences.iter().enumerate() {
        let longest = loaded.max_model_len;
        if sequence.tokens.len() > longest || sequence.from >= sequence.tokens.len() {
            let (tokens, from) = (sequence.tokens.len(), sequence.from);
            bail!("sequence {i} has {tokens} tokens and starts at {from}; the model takes {longest}");
        }
        if let Some(token) = sequence.tokens.iter().find(|token| **token as usize >= runner.vocab()) {
            bail!("sequence {i} has token {token}; the vocabulary ends before {}", runner.vocab());
        }
        follow(runner.as_mut(), sequence, &mut rows)?;
    }
    Ok(rows)
}

/// Runs one sequence by itself, in steps within the runner's limits.
fn follow(runner: &mut dyn Runner, sequence: &Sequence, rows: &mut Vec<Vec<f64>>) -> anyhow::Result<()> {
    let (limits, block) = (runner.limits(), runner.kv().block_size);
    let mut out = Logits::default();
    let (mut position, tokens) = (0, &sequence.tokens);
    while position < tokens.len() {
        let wanted = position >= sequence.from;
        let end = match wanted {
            true => tokens.len().min(position + limits.logits.min(limits.tokens)),
            false => sequence.from.min(position + limits.tokens),
        };
        let blocks: Vec<BlockId> = (0..end.div_ceil(block)).map(|id| BlockId(id as u32)).collect();
        let row = Row {
            seq: SeqId(0),
            first: 0,
            count: (end - position) as u32,
            position: position as u32,
            first_block: 0,
            blocks: blocks.len() as u32,
            want: if wanted { Want::All } else { Want::Nothing },
        };
        let step =
            Step { tokens: tokens[position..end].to_vec(), blocks, rows: vec![row], ..Step::default() };
        runner.submit(&step)?;
        runner.wait(&mut out)?;
        if wanted {
            rows.extend((0..end - position).map(|i| out.log_probabilities(i)));
        }
        position = end;
    }
    Ok(())
}
