//! Whether a model fits the cores, before hours of compilation: weights, KV cache, programs and scratch against the
//! memory of a core.
//!
//! | part | from |
//! | --- | --- |
//! | weights, KV cache | the graphs' own types: exact |
//! | scratch | the most that is alive at once when every primitive op is run by itself, over all graphs (they share it); a compiler that fuses needs less |
//! | programs | [`PROGRAM_BYTES`] for each graph: an assumption, since no program was ever measured |
//! | runtime | what the vendor says that it keeps: 96 MB for each physical core |

use std::fmt;

use millrace_graph::{Graph, Op, ParamKind, define};
use millrace_models::device::{DeviceModel, device_decoder, dummy_blocks};
use millrace_models::{Config, ModelError};

use super::buckets::Limits;
use super::{Bucket, Target, label};

/// Assumed for the code of one compiled graph.
pub const PROGRAM_BYTES: u64 = 32 << 20;
/// What the runtime keeps of each physical core.
const RUNTIME_BYTES: u64 = 96_000_000;
/// The share of what is left that the KV cache takes unless told: the rest covers what is not known.
pub(super) const KV_SHARE: f64 = 0.9;

/// What can be said about the KV cache.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct KvOptions {
    /// Bytes for it on each core, instead of a share of what is left.
    pub bytes: Option<u64>,
}

/// Where the memory of one core goes, in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryPlan {
    /// The device.
    pub target: Target,
    /// Cores that share the model.
    pub ranks: usize,
    /// What a core has.
    pub total: u64,
    /// What the runtime keeps.
    pub runtime: u64,
    /// One rank's weights.
    pub weights: u64,
    /// The programs of all graphs.
    pub programs: u64,
    /// Intermediate values.
    pub scratch: u64,
    /// The graph that needs the most of them.
    pub scratch_of: Bucket,
    /// The KV cache.
    pub kv: u64,
    /// One block of it, over all layers.
    pub block: u64,
    /// Blocks of the cache, those among them that padding is parked on.
    pub kv_blocks: usize,
    /// Blocks that padding is parked on.
    pub dummy_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
}

/// Why a model cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The graphs cannot be built.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A graph is ill-formed.
    #[error(transparent)]
    Graph(#[from] millrace_graph::GraphError),
    /// It needs more than a core has.
    #[error(
        "the model does not fit: a core of {target} has {total} and needs {needed} ({weights} of weights, {scratch} of \
         scratch for {bucket}, {programs} of programs, {kv} of KV cache for one sequence of {tokens} tokens, {runtime} \
         for the runtime). {advice}",
        total = gib(*.total), needed = gib(*.needed), weights = gib(*.weights), scratch = gib(*.scratch),
        bucket = label(.bucket), programs = gib(*.programs), kv = gib(*.kv), runtime = gib(*.runtime)
    )]
    DoesNotFit {
        /// The device.
        target: Target,
        /// A core's memory.
        total: u64,
        /// What is needed of it.
        needed: u64,
        /// One rank's weights.
        weights: u64,
        /// Intermediate values.
        scratch: u64,
        /// The graph that needs the most of them.
        bucket: Bucket,
        /// The programs.
        programs: u64,
        /// The smallest useful KV cache.
        kv: u64,
        /// What it holds.
        tokens: usize,
        /// What the runtime keeps.
        runtime: u64,
        /// What to change.
        advice: &'static str,
    },
    /// The KV cache that was asked for holds no sequence.
    #[error(
        "{offered} of KV cache hold {blocks} blocks, but a sequence of {tokens} tokens and the padding of the graphs \
         need {needed}: give --kv-memory at least {least} bytes, or lower --max-model-len",
        offered = gib(*.offered)
    )]
    KvTooSmall {
        /// Bytes offered.
        offered: u64,
        /// Blocks they hold.
        blocks: usize,
        /// Blocks needed.
        needed: usize,
        /// The longest sequence.
        tokens: usize,
        /// Bytes that would do.
        least: u64,
    },
}

impl Target {
    /// Memory of a logical core in bytes: half of a chip's 32 GiB, or one of trn2's banks of 24 GB.
    pub fn core_memory(self) -> u64 {
        match self {
            Target::Inf2 | Target::Trn1 => 16 << 30,
            Target::Trn2 => 24_000_000_000,
        }
    }
}

/// Lays a model out. `model.kv_blocks` is not read: the plan chooses it.
///
/// # Errors
/// Where the graphs cannot be built, or do not fit with a KV cache for one sequence of the greatest length.
pub fn plan(
    config: &Config,
    model: &DeviceModel,
    buckets: &[Bucket],
    limits: &Limits,
    target: Target,
    kv: KvOptions,
) -> Result<MemoryPlan, MemoryError> {
    let per_sequence = limits.max_model_len.div_ceil(limits.block_size);
    let dummy = buckets.iter().map(|bucket| dummy_blocks(bucket, limits.block_size)).max().unwrap_or(0);
    let least = per_sequence + dummy;
    let model = DeviceModel { kv_blocks: least, ..model.clone() };
    let (mut weights, mut block) = (0, 0);
    let mut most: Option<(u64, Bucket)> = None;
    for bucket in buckets {
        let graph = device_decoder(config, &model, bucket)?;
        let total = |kind: ParamKind| -> u64 {
            let params = graph.params.iter().filter(|param| param.kind == kind);
            params
                .map(|param| graph.ty(param.node).bytes().unwrap_or(usize::MAX) as u64)
                .fold(0, u64::saturating_add)
        };
        (weights, block) = (total(ParamKind::Weight), total(ParamKind::State) / least as u64);
        most = most.max(Some((scratch(&define::inline(&graph)?), *bucket)));
    }
    let nothing = Bucket { rows: 0, width: 0, blocks: 0, adjust: false };
    let (scratch, scratch_of) = most.unwrap_or((0, nothing));
    let total = target.core_memory();
    let runtime = RUNTIME_BYTES * u64::from(target.cores_per_logical_core());
    let programs = PROGRAM_BYTES * buckets.len() as u64;
    let fixed = [runtime, weights, programs, scratch].into_iter().fold(0, u64::saturating_add);
    let kv_least = block.saturating_mul(least as u64);
    let does_not_fit = |kv: u64| MemoryError::DoesNotFit {
        target,
        total,
        needed: fixed.saturating_add(kv),
        weights,
        scratch,
        bucket: scratch_of,
        programs,
        kv,
        tokens: limits.max_model_len,
        runtime,
        advice: advice(total, runtime, weights, scratch, programs),
    };
    let left = total.saturating_sub(fixed);
    if left < kv_least {
        return Err(does_not_fit(kv_least));
    }
    let offered = kv.bytes.unwrap_or((left as f64 * KV_SHARE) as u64).max(if kv.bytes.is_none() {
        kv_least
    } else {
        0
    });
    if offered > left {
        return Err(does_not_fit(offered));
    }
    let blocks = usize::try_from(offered / block.max(1)).unwrap_or(usize::MAX);
    if blocks < least {
        return Err(MemoryError::KvTooSmall {
            offered,
            blocks,
            needed: least,
            tokens: limits.max_model_len,
            least: kv_least,
        });
    }
    // No more than all sequences could ever hold, nor than a slot index can name.
    let useful = per_sequence.saturating_mul(limits.max_num_seqs).saturating_add(dummy);
    let kv_blocks = blocks.min(useful).min(i32::MAX as usize / limits.block_size);
    Ok(MemoryPlan {
        target,
        ranks: model.ranks,
        total,
        runtime,
        weights,
        programs,
        scratch,
        scratch_of,
        kv: block * kv_blocks as u64,
        block,
        kv_blocks,
        dummy_blocks: dummy,
        block_size: limits.block_size,
    })
}

fn advice(total: u64, runtime: u64, weights: u64, scratch: u64, programs: u64) -> &'static str {
    if weights.saturating_add(runtime) > total / 10 * 9 {
        "Share the weights between more cores (--tensor-parallel-size), or store them in 8 bits (--weights int8)"
    } else if scratch > total / 4 {
        "Lower --max-num-batched-tokens or --max-num-seqs, whose product with the context is the scratch, or --max-model-len"
    } else if programs > total / 4 {
        "Compile fewer graphs (--buckets), or lower --max-num-seqs"
    } else {
        "Lower --max-model-len, or raise --tensor-parallel-size"
    }
}

/// The most bytes of results alive at once when the graph's nodes run one by one. Reshapes are free, and a scatter
/// takes over its operand, as the caches are updated in place.
fn scratch(graph: &Graph) -> u64 {
    let count = graph.nodes.len();
    // The node whose memory each node is in.
    let mut home: Vec<usize> = (0..count).collect();
    let mut last = vec![0; count];
    for (i, node) in graph.nodes.iter().enumerate() {
        if let (Op::Reshape | Op::Scatter(_), Some(operand)) = (&node.op, node.inputs.first()) {
            home[i] = home[operand.index()];
        }
        for input in &node.inputs {
            last[home[input.index()]] = i;
        }
    }
    for output in &graph.outputs {
        last[home[output.node.index()]] = count;
    }
    let bytes = |i: usize| match graph.nodes[i].op {
        Op::Parameter(_) | Op::Constant(_) => 0,
        _ => graph.nodes[i].ty.bytes().unwrap_or(usize::MAX) as u64,
    };
    let mut ends: Vec<Vec<usize>> = vec![Vec::new(); count + 1];
    for i in (0..count).filter(|i| home[*i] == *i) {
        ends[last[i].max(i)].push(i);
    }
    let (mut alive, mut most) = (0u64, 0);
    for i in 0..count {
        if home[i] == i {
            alive = alive.saturating_add(bytes(i));
        }
        most = most.max(alive);
        for end in &ends[i] {
            alive = alive.saturating_sub(bytes(*end));
        }
    }
    most
}

/// The table that is printed before anything is compiled.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.runtime + self.weights + self.programs + self.scratch + self.kv;
        writeln!(f, "memory of each of {} cores of {}:", self.ranks, self.target)?;
        let kv = format!(
            "{} blocks of {} tokens, {} of them for padding",
            self.kv_blocks, self.block_size, self.dummy_blocks
        );
        for (part, bytes, note) in [
            ("weights", self.weights, String::new()),
            ("KV cache", self.kv, kv),
            ("scratch", self.scratch, format!("at most, by {}", label(&self.scratch_of))),
            ("programs", self.programs, "assumed".into()),
            ("runtime", self.runtime, String::new()),
            ("free", self.total.saturating_sub(used), String::new()),
            ("total", self.total, String::new()),
        ] {
            let line = format!("  {part:<9} {:>12}   {note}", gib(bytes));
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `1.25 GiB`, or `3.1 MiB` where that reads better.
pub fn gib(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
        _ => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}
