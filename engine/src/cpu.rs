//! The CPU backend: takes any step as it is, without padding. A graph is built and planned once for each
//! (new tokens, rows of logits), kept, and reused whatever the contexts are, for lengths are data.

mod cache;
mod weights;

use std::path::PathBuf;
use std::time::Instant;

use millrace_graph::{DType, Type};
use millrace_kernels::{Executor, Plan, Pool, Precision, kv};
use millrace_models::{Checkpoint, Config, ModelError, StepShape, decoder};
use rustc_hash::FxHashMap;

use crate::{KvSpec, Logits, RunError, Runner, Step, StepLimits, Want};

/// Rows of logits in one step: bounds the logits buffer where prompt log-probabilities are asked for.
const PROMPT_LOGIT_ROWS: usize = 64;

/// Plans kept; beyond that all are dropped, since building one again costs a millisecond or two.
const MAX_PLANS: usize = 4096;

/// How the CPU backend is set up.
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// Threads that compute, the engine's own among them.
    pub threads: usize,
    /// How layers over quantised weights compute.
    pub precision: Precision,
    /// Element type of the KV cache: f32, f16, bf16, or s8 with a scale for each token and head.
    pub kv_dtype: DType,
    /// Tokens in a KV block.
    pub block_size: usize,
    /// Bytes for the KV cache. Memory that no token was ever written to is not taken from the system.
    pub kv_bytes: u64,
    /// Element type that unquantised matrices are converted to; `None` keeps the file's.
    pub weight_dtype: Option<DType>,
    /// Longest sequence in tokens.
    pub max_model_len: usize,
    /// Rows of one step.
    pub max_num_seqs: usize,
    /// New tokens of one step.
    pub max_num_batched_tokens: usize,
    /// Where packed weights are kept, to be mapped by the next process that loads the same ones. `None` packs anew.
    pub packed_cache: Option<PathBuf>,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum CpuLoadError {
    /// The checkpoint cannot give what the graph needs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A weight cannot be taken in.
    #[error("weight {name}")]
    Weight {
        /// Its canonical name.
        name: String,
        /// Why.
        source: millrace_kernels::WeightError,
    },
    /// The graph cannot be run.
    #[error("the decoder graph cannot be run on the CPU")]
    Plan(#[from] millrace_kernels::PlanError),
    /// The KV cache is too small for a single sequence.
    #[error(
        "{bytes} bytes of KV cache hold {tokens} tokens, but one sequence may grow to {max_model_len}: give \
         --kv-memory at least {needed} bytes, or lower --max-model-len"
    )]
    KvTooSmall {
        /// Bytes offered.
        bytes: u64,
        /// Tokens they hold.
        tokens: usize,
        /// The longest sequence.
        max_model_len: usize,
        /// Bytes that one such sequence needs.
        needed: u64,
    },
}

/// The CPU backend.
pub struct CpuRunner {
    executor: Executor,
    config: Config,
    weight_types: FxHashMap<String, Type>,
    shape: StepShape,
    limits: StepLimits,
    kv: KvSpec,
    plans: FxHashMap<(usize, usize), Plan>,
    inputs: Inputs,
    /// Rows of logits in the step that was submitted.
    pending: Option<usize>,
}

/// The step's inputs as the graph takes them; reused from step to step.
struct Inputs {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    rows: Vec<i32>,
    slots: Vec<i32>,
    /// `max_num_seqs` rows of block tables; entries beyond a row's own are whatever was there before.
    tables: Vec<i32>,
    logit_rows: Vec<i32>,
}

impl CpuRunner {
    /// Bytes of KV cache that one token takes.
    pub fn kv_bytes_per_token(config: &Config, kv_dtype: DType) -> u64 {
        let width = 2 * kv::bytes_per_token(kv_dtype, config.kv_heads, config.head_dim);
        (config.layers.len() * width) as u64
    }

    /// Packs a checkpoint's weights, or maps them as packed before, and allocates the KV cache. `progress` hears of
    /// bytes packed and of bytes in all, after each weight.
    ///
    /// # Errors
    /// Where the checkpoint lacks a weight or has it in another shape, or memory does not suffice.
    pub fn load(
        checkpoint: &Checkpoint,
        options: &CpuOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, CpuLoadError> {
        let config = checkpoint.config().with_context(options.max_model_len)?;
        let kv = kv_spec(&config, options)?;
        let limits = StepLimits {
            tokens: options.max_num_batched_tokens.max(options.max_num_seqs),
            rows: options.max_num_seqs,
            logits: options.max_num_seqs.max(PROMPT_LOGIT_ROWS),
        };
        let shape = StepShape {
            tokens: 1,
            rows: limits.rows,
            table_blocks: options.max_model_len.div_ceil(options.block_size),
            logits: 1,
            width: None,
            kv_blocks: kv.blocks,
            block_size: kv.block_size,
            kv_dtype: options.kv_dtype,
            compute: DType::F32,
        };
        let stored = |name: &str| {
            let mut ty = checkpoint.weight_type(name)?;
            if let Some(dtype) = weights::converted(&ty, options.weight_dtype) {
                ty.dtype = dtype;
            }
            Ok(ty)
        };
        let graph = decoder(&config, &shape, &stored)?;
        let pool = Pool::new(options.threads);
        let (weights, weight_types) = weights::load(checkpoint, &graph, options, &pool, progress)?;
        checkpoint.advise_dont_need();

        let mut executor = Executor::new(pool, options.precision, weights);
        executor.allocate(&graph)?;
        let inputs = Inputs {
            tokens: Vec::with_capacity(limits.tokens),
            positions: Vec::with_capacity(limits.tokens),
            rows: Vec::with_capacity(limits.tokens),
            slots: Vec::with_capacity(limits.tokens),
            tables: vec![0; shape.rows * shape.table_blocks],
            logit_rows: Vec::with_capacity(limits.logits),
        };
        let plans = FxHashMap::default();
        let mut runner =
            CpuRunner { executor, config, weight_types, shape, limits, kv, plans, inputs, pending: None };
        // The largest step sizes the arena, and every decode batch gets its plan before the first request.
        runner.plan(limits.tokens, limits.logits)?;
        for rows in 1..=limits.rows {
            runner.plan(rows, rows)?;
        }
        Ok(runner)
    }

    /// Builds the plan for a step of `tokens` new tokens and `logits` rows of logits, unless it is there.
    fn plan(&mut self, tokens: usize, logits: usize) -> Result<(), CpuLoadError> {
        if self.plans.contains_key(&(tokens, logits)) {
            return Ok(());
        }
        if self.plans.len() >= MAX_PLANS {
            self.plans.clear();
        }
        let started = Instant::now();
        let shape = StepShape { tokens, logits, ..self.shape };
        let types = &self.weight_types;
        let stored = |name: &str| Ok(types.get(name).expect("every weight was loaded").clone());
        let graph = decoder(&self.config, &shape, &stored)?;
        let plan = self.executor.plan(&graph)?;
        self.plans.insert((tokens, logits), plan);
        tracing::trace!(tokens, logits, seconds = started.elapsed().as_secs_f64(), "planned a step");
        Ok(())
    }
}

impl Runner for CpuRunner {
    fn kv(&self) -> KvSpec {
        self.kv
    }

    fn limits(&self) -> StepLimits {
        self.limits
    }

    fn vocab(&self) -> usize {
        self.config.vocab
    }

    fn pool(&self) -> Option<&Pool> {
        Some(self.executor.pool())
    }

    fn submit(&mut self, step: &Step) -> Result<(), RunError> {
        let (tokens, logits) = (step.tokens.len(), step.logit_rows());
        let limits = self.limits;
        if tokens == 0 || tokens > limits.tokens || step.rows.len() > limits.rows || logits > limits.logits {
            let rows = step.rows.len();
            let why = format!("{tokens} tokens, {rows} rows, {logits} rows of logits exceed {limits:?}");
            return Err(RunError::Step(why));
        }
        self.inputs.fill(step, self.kv.block_size, self.shape.table_blocks)?;
        // A step in which nobody samples still names a row: one row of logits that is not read.
        self.plan(tokens, logits.max(1)).map_err(|error| RunError::Fatal(chain(&error)))?;
        self.pending = Some(logits);
        Ok(())
    }

    fn wait(&mut self, logits: &mut Logits) -> Result<(), RunError> {
        let rows = self.pending.take().ok_or_else(|| RunError::Fatal("no step was submitted".into()))?;
        let inputs = &self.inputs;
        logits.cut = None;
        logits.columns = self.config.vocab;
        logits.values.resize(rows.max(1) * logits.columns, 0.0);
        let plan = &self.plans[&(inputs.tokens.len(), rows.max(1))];
        let operands: [&[i32]; 6] = [
            &inputs.tokens,
            &inputs.positions,
            &inputs.rows,
            &inputs.slots,
            &inputs.tables,
            &inputs.logit_rows,
        ];
        self.executor
            .run(plan, &operands, &mut [&mut logits.values])
            .map_err(|error| RunError::Step(chain(&error)))
    }
}

impl Inputs {
    fn fill(&mut self, step: &Step, block_size: usize, table_blocks: usize) -> Result<(), RunError> {
        for list in
            [&mut self.tokens, &mut self.positions, &mut self.rows, &mut self.slots, &mut self.logit_rows]
        {
            list.clear();
        }
        for (r, row) in step.rows.iter().enumerate() {
            let blocks = step.blocks_of(row);
            let (first, count) = (row.position as usize, row.count as usize);
            if first + count > blocks.len() * block_size || blocks.len() > table_blocks {
                let (held, end) = (blocks.len(), first + count);
                let why = format!("{:?} has {held} blocks of {block_size} for {end} tokens", row.seq);
                return Err(RunError::Step(why));
            }
            for (entry, block) in self.tables[r * table_blocks..].iter_mut().zip(blocks) {
                *entry = block.0 as i32;
            }
            let base = self.tokens.len();
            for (i, token) in step.tokens_of(row).iter().enumerate() {
                let position = first + i;
                let block = blocks[position / block_size].0 as usize;
                self.tokens.push(*token as i32);
                self.positions.push(position as i32);
                self.rows.push(r as i32);
                self.slots.push((block * block_size + position % block_size) as i32);
            }
            match row.want {
                Want::Nothing => {}
                Want::Last => self.logit_rows.push((base + count - 1) as i32),
                Want::All => self.logit_rows.extend((base..base + count).map(|t| t as i32)),
            }
        }
        if self.logit_rows.is_empty() {
            self.logit_rows.push(0);
        }
        Ok(())
    }
}

fn kv_spec(config: &Config, options: &CpuOptions) -> Result<KvSpec, CpuLoadError> {
    let block_bytes = CpuRunner::kv_bytes_per_token(config, options.kv_dtype) * options.block_size as u64;
    let per_sequence = options.max_model_len.div_ceil(options.block_size);
    // No more blocks than all sequences could ever hold, nor than a slot index can name.
    let useful =
        per_sequence.saturating_mul(options.max_num_seqs).min(i32::MAX as usize / options.block_size);
    let blocks = usize::try_from(options.kv_bytes / block_bytes).unwrap_or(usize::MAX).min(useful);
    if blocks < per_sequence {
        return Err(CpuLoadError::KvTooSmall {
            bytes: options.kv_bytes,
            tokens: blocks * options.block_size,
            max_model_len: options.max_model_len,
            needed: per_sequence as u64 * block_bytes,
        });
    }
    Ok(KvSpec { block_size: options.block_size, blocks, bytes: blocks * block_bytes as usize })
}

/// An error and its sources on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
