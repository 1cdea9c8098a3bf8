//! The backend for NeuronCores: a step becomes executions of compiled programs, on all ranks at once, and what the
//! ranks return of their shares of the vocabulary is merged here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use millrace_models::device::{DeviceModel, dummy_blocks};
use millrace_models::{Checkpoint, Config};
use neuron_sys::Pending;

use super::device::{Device, NeuronLoadError, kv_block_bytes};
use super::dispatch::{Execution, Part, Shape, dispatch};
use super::failure::{graver, serving, thread};
use super::figures::{NeuronFigures, ProgramFigures};
use super::inputs::{Inputs, Parking};
use super::rank::Outputs;
use super::store::Artefact;
use super::{Bucket, label};
use crate::runner::Cut;
use crate::{KvSpec, Logits, RunError, Runner, Step, StepLimits, TokenId};

/// Runs of a program when it is loaded: the first one is slower than those that follow, and the fastest is taken.
const WARMING: usize = 3;

/// Refused steps in a row, none between them well computed: no longer the fault of single requests.
const MAX_REFUSED: u32 = 16;

/// How the Neuron backend is set up.
#[derive(Clone, Debug)]
pub struct NeuronOptions {
    /// How the model is laid out. Its `kv_blocks` are those wished for; fewer are taken where memory is short.
    pub model: DeviceModel,
    /// Longest sequence in tokens.
    pub max_model_len: usize,
    /// Rows of one step.
    pub max_num_seqs: usize,
    /// New tokens of one step.
    pub max_num_batched_tokens: usize,
    /// A step that takes longer hangs: the backend is given up. To be above `NEURON_RT_EXEC_TIMEOUT`, by which the
    /// runtime itself notices.
    pub hang: Duration,
}

/// What makes or finds the programs of a model with so many KV blocks.
pub type Provide<'a> =
    dyn FnMut(&DeviceModel) -> Result<Vec<Artefact>, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// The Neuron backend.
pub struct NeuronRunner {
    device: Device,
    shapes: Vec<Shape>,
    kv: KvSpec,
    limits: StepLimits,
    vocab: usize,
    share: usize,
    candidates: usize,
    parking: Parking,
    hang: Duration,
    figures: Arc<NeuronFigures>,
    pending: Option<Submitted>,
    /// Steps in a row that were refused.
    refused: u32,
    // Buffers of merging.
    best: Vec<Candidate>,
    merged: Vec<Candidate>,
}

/// A logit and its token.
type Candidate = (f32, TokenId);

/// One execution, under way on each rank.
type OnRanks = Vec<Pending<Result<Outputs, neuron_sys::Error>>>;

struct Submitted {
    since: Instant,
    /// Of each row of the step, its row of logits, where it wants one.
    places: Vec<Option<usize>>,
    logit_rows: usize,
    executions: Vec<(Vec<Part>, OnRanks)>,
}

impl NeuronRunner {
    /// Loads the programs of a model whose weights are on the device, warms and times each. Where the device's memory
    /// does not suffice, programs with fewer KV blocks are asked for.
    ///
    /// All programs are loaded before it returns; none follows later.
    ///
    /// # Errors
    /// See [`NeuronLoadError`].
    pub fn load(
        device: Device,
        config: &Config,
        options: &NeuronOptions,
        uploaded: (u64, Duration),
        provide: &mut Provide<'_>,
    ) -> Result<NeuronRunner, NeuronLoadError> {
        let mut model = options.model.clone();
        let per_sequence = options.max_model_len.div_ceil(model.block_size);
        loop {
            let programs = provide(&model).map_err(NeuronLoadError::Provide)?;
            let dummies = dummies(&programs, model.block_size);
            let least = per_sequence + dummies;
            if model.kv_blocks < least {
                return Err(NeuronLoadError::Memory { blocks: least, block_size: model.block_size });
            }
            covers(&programs, per_sequence)?;
            let loaded = device.load(&programs).and_then(|()| warm(&device, &programs, &model, dummies));
            match loaded {
                Ok(shapes) => {
                    let parts = Loaded { programs, shapes, dummies, model, uploaded };
                    return Ok(Self::of(device, config, options, parts));
                }
                Err(error) if error.is_memory() && model.kv_blocks > least => {
                    let fewer = (model.kv_blocks * 3 / 4).max(least);
                    tracing::warn!(%error, from = model.kv_blocks, to = fewer, "device memory is short: fewer KV blocks");
                    model.kv_blocks = fewer;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn of(device: Device, config: &Config, options: &NeuronOptions, loaded: Loaded) -> NeuronRunner {
        let Loaded { programs, shapes, dummies, model, uploaded } = loaded;
        let blocks = model.kv_blocks - dummies;
        let (bytes, load) = uploaded;
        let figures = NeuronFigures {
            library: device.library().describe(),
            ranks: model.ranks,
            startup_seconds: device.opened.elapsed().as_secs_f64(),
            model_load_seconds: load.as_secs_f64(),
            model_load_bytes: bytes,
            programs: (programs.iter().zip(&shapes))
                .map(|(artefact, shape)| ProgramFigures {
                    bucket: label(&artefact.manifest.bucket),
                    compilation_seconds: artefact.manifest.build.seconds,
                    execution_seconds: shape.cost,
                    ..ProgramFigures::default()
                })
                .collect(),
            ..NeuronFigures::default()
        };
        tracing::info!(
            programs = shapes.len(),
            ranks = model.ranks,
            kv_blocks = blocks,
            weight_mib = bytes >> 20,
            seconds = figures.startup_seconds,
            "the Neuron backend is ready"
        );
        NeuronRunner {
            kv: KvSpec {
                block_size: model.block_size,
                blocks,
                bytes: (kv_block_bytes(config, &model) * (model.kv_blocks * model.ranks) as u64) as usize,
            },
            limits: StepLimits {
                tokens: options.max_num_batched_tokens.max(options.max_num_seqs),
                rows: options.max_num_seqs,
                logits: options.max_num_seqs,
            },
            vocab: config.vocab,
            share: model.vocab_share(config),
            candidates: model.candidates_per_rank(config),
            parking: Parking { block_size: model.block_size, first_block: blocks },
            hang: options.hang,
            figures: Arc::new(figures),
            pending: None,
            refused: 0,
            best: Vec::new(),
            merged: Vec::new(),
            device,
            shapes,
        }
    }

    /// What it counts.
    pub fn figures(&self) -> Arc<NeuronFigures> {
        self.figures.clone()
    }

    fn count(&self, execution: &Execution) {
        let shape = &self.shapes[execution.program];
        let tokens: usize = execution.parts.iter().map(|part| part.count).sum();
        let figures = &self.figures;
        figures.programs[execution.program].executions.fetch_add(1, Ordering::Relaxed);
        figures.sequences_padding.fetch_add((shape.rows - execution.parts.len()) as u64, Ordering::Relaxed);
        figures.tokens_padding.fetch_add((shape.rows * shape.width - tokens) as u64, Ordering::Relaxed);
    }

    /// Waits for one execution on all ranks.
    fn collect(&self, since: Instant, ranks: OnRanks) -> Result<Vec<Outputs>, RunError> {
        let mut outputs = Vec::with_capacity(ranks.len());
        let mut failed: Option<RunError> = None;
        for (rank, pending) in ranks.into_iter().enumerate() {
            let left = self.hang.saturating_sub(since.elapsed());
            let error = match pending.wait_timeout(left) {
                Ok(Ok(output)) => {
                    outputs.push(output);
                    continue;
                }
                Ok(Err(error)) => serving(rank, &error),
                Err(error) => {
                    // Whatever it was, the thread or the device does not answer: nothing of it can be closed.
                    self.device.runtime.abandon();
                    thread(rank, &error)
                }
            };
            failed = Some(match failed {
                Some(before) => graver(before, error),
                None => error,
            });
        }
        failed.map_or(Ok(outputs), Err)
    }

    /// Puts the best tokens of the ranks' shares of a row together. Each rank's are in descending order.
    fn merge(&mut self, outputs: &[Outputs], from: usize, to: usize, logits: &mut Logits) {
        let k = self.candidates;
        let row = from * k..(from + 1) * k;
        self.best.clear();
        for (rank, output) in outputs.iter().enumerate() {
            let found = output.values[row.clone()].iter().zip(&output.indices[row.clone()]);
            // What fills up the last share is no token.
            let found = found.map(|(value, index)| (*value, rank * self.share + *index as usize));
            let found =
                found.filter(|(_, token)| *token < self.vocab).map(|(v, token)| (v, token as TokenId));
            self.merged.clear();
            self.merged.extend(merged(&self.best, found).take(k));
            std::mem::swap(&mut self.best, &mut self.merged);
        }
        // Each share but the last is of tokens alone, so there are enough; were there not, none is chosen twice.
        self.best.resize(k, (f32::NEG_INFINITY, 0));
        let cut = logits.cut.get_or_insert_default();
        let (tokens, values) = (&mut cut.tokens[to * k..][..k], &mut logits.values[to * k..][..k]);
        for ((value, token), best) in values.iter_mut().zip(tokens).zip(&self.best) {
            (*value, *token) = *best;
        }
        let sums = || outputs.iter().map(|output| f64::from(output.log_sum_exp[from]));
        let max = sums().fold(f64::NEG_INFINITY, f64::max);
        cut.log_sum_exp[to] = (max + sums().map(|sum| (sum - max).exp()).sum::<f64>().ln()) as f32;
    }
}

/// Two descending lists as one; of equal logits the lower token comes first.
fn merged(a: &[Candidate], b: impl Iterator<Item = Candidate>) -> impl Iterator<Item = Candidate> {
    let (mut a, mut b) = (a.iter().copied().peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(x), Some(y)) if (y.0 > x.0) || (y.0 == x.0 && y.1 < x.1) => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}

struct Loaded {
    programs: Vec<Artefact>,
    shapes: Vec<Shape>,
    dummies: usize,
    model: DeviceModel,
    uploaded: (u64, Duration),
}

/// Blocks of each cache that padding is parked on.
fn dummies(programs: &[Artefact], block_size: usize) -> usize {
    let of = |artefact: &Artefact| dummy_blocks(&artefact.manifest.bucket, block_size);
    programs.iter().map(of).max().unwrap_or(0).max(1)
}

/// Whether every step can be run, if need be token by token.
fn covers(programs: &[Artefact], per_sequence: usize) -> Result<(), NeuronLoadError> {
    let decodes = |adjust: bool| {
        let buckets = programs.iter().map(|artefact| artefact.manifest.bucket);
        let blocks =
            buckets.filter(|bucket| bucket.width == 1 && (bucket.adjust || !adjust)).map(|it| it.blocks);
        blocks.max().unwrap_or(0)
    };
    for (adjust, what) in [(false, "decode"), (true, "decode that takes an adjustment of the logits")] {
        if decodes(adjust) < per_sequence {
            let (found, needed) = (decodes(adjust), per_sequence);
            return Err(NeuronLoadError::Uncovered(format!(
                "sequences of --max-model-len have {needed} KV blocks, and the widest {what} has room for {found}"
            )));
        }
    }
    Ok(())
}

/// Runs each program on padding alone, which also shows that the device takes it, and times it.
fn warm(
    device: &Device,
    programs: &[Artefact],
    model: &DeviceModel,
    dummies: usize,
) -> Result<Vec<Shape>, NeuronLoadError> {
    let parking = Parking { block_size: model.block_size, first_block: model.kv_blocks - dummies };
    let mut shapes = Vec::with_capacity(programs.len());
    for (program, artefact) in programs.iter().enumerate() {
        let bucket = artefact.manifest.bucket;
        let Bucket { rows, width, blocks, adjust } = bucket;
        let mut shape = Shape { rows, width, blocks, adjust, cost: f64::INFINITY };
        let inputs = Arc::new(Inputs::padding(&shape, parking));
        for _ in 0..WARMING {
            let inputs = inputs.clone();
            let started = Instant::now();
            device.on_all(&format!("first run of {}", label(&bucket)), move |rank| {
                rank.execute(program, &inputs)
            })?;
            shape.cost = shape.cost.min(started.elapsed().as_secs_f64());
        }
        tracing::debug!(bucket = label(&bucket), milliseconds = shape.cost * 1e3, "warm");
        shapes.push(shape);
    }
    Ok(shapes)
}

/// Puts weights and programs of a checkpoint on cores that were claimed: [`Device::upload`] and
/// [`NeuronRunner::load`].
///
/// # Errors
/// See [`NeuronLoadError`].
pub fn load(
    device: Device,
    checkpoint: &Checkpoint,
    config: &Config,
    options: &NeuronOptions,
    progress: &(dyn Fn(u64) + Sync),
    provide: &mut Provide<'_>,
) -> Result<NeuronRunner, NeuronLoadError> {
    let started = Instant::now();
    let bytes = device.upload(checkpoint, &options.model, progress)?;
    NeuronRunner::load(device, config, options, (bytes, started.elapsed()), provide)
}

impl Runner for NeuronRunner {
    fn kv(&self) -> KvSpec {
        self.kv
    }

    fn limits(&self) -> StepLimits {
        self.limits
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn candidates(&self) -> Option<usize> {
        Some(self.candidates)
    }

    fn submit(&mut self, step: &Step) -> Result<(), RunError> {
        let mut logit_rows = 0;
        let places = step.rows.iter().map(|row| {
            let place = (row.logit_rows() > 0).then_some(logit_rows);
            logit_rows += row.logit_rows();
            place
        });
        let places = places.collect();
        let planned = dispatch(step, self.kv.block_size, &self.shapes)?;
        let since = Instant::now();
        let executions = planned.into_iter().map(|execution| {
            self.count(&execution);
            let shape = &self.shapes[execution.program];
            let inputs = Arc::new(Inputs::of(step, &execution, shape, self.parking));
            let program = execution.program;
            let ranks = self.device.threads.iter().map(|thread| {
                let inputs = inputs.clone();
                thread.submit(move |rank| rank.execute(program, &inputs))
            });
            (execution.parts, ranks.collect())
        });
        let executions = executions.collect();
        self.pending = Some(Submitted { since, places, logit_rows, executions });
        Ok(())
    }

    fn wait(&mut self, logits: &mut Logits) -> Result<(), RunError> {
        let submitted = self.pending.take().ok_or_else(|| RunError::Fatal("no step was submitted".into()))?;
        let (rows, k) = (submitted.logit_rows, self.candidates);
        logits.columns = k;
        logits.values.resize(rows * k, 0.0);
        let cut = logits.cut.get_or_insert_with(Cut::default);
        cut.tokens.resize(rows * k, 0);
        cut.log_sum_exp.resize(rows, 0.0);
        let mut failed: Option<RunError> = None;
        for (parts, ranks) in submitted.executions {
            match self.collect(submitted.since, ranks) {
                Ok(outputs) => {
                    for (from, part) in parts.iter().enumerate().filter(|(_, part)| part.wanted) {
                        if let Some(to) = submitted.places[part.row] {
                            self.merge(&outputs, from, to, logits);
                        }
                    }
                }
                Err(error @ RunError::Fatal(_)) => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            None => {
                self.refused = 0;
                Ok(())
            }
            Some(RunError::Step(why)) => {
                self.refused += 1;
                if self.refused < MAX_REFUSED {
                    return Err(RunError::Step(why));
                }
                Err(RunError::Fatal(format!("{why}; {MAX_REFUSED} steps in a row failed")))
            }
            Some(fatal) => Err(fatal),
        }
    }
}
