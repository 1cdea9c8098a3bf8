//! The backend for NeuronCores: a step becomes executions of compiled programs, on all ranks at once, and what the
//! ranks return of their shares of the vocabulary is merged here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use millrace_models::device::DeviceModel;
use millrace_models::{Checkpoint, Config};

use super::collect::{OnRanks, collect};
use super::device::{Device, NeuronLoadError, kv_block_bytes};
use super::dispatch::{Execution, Part, Shape, dispatch};
use super::failure::thread;
use super::figures::{NeuronFigures, ProgramFigures};
use super::inputs::{Inputs, Parking};
use super::provide::{Provide, covers, dummies};
use super::rank::Outputs;
use super::start::{Followers, parking, start};
use super::{Bucket, label};
use crate::runner::Cut;
use crate::{KvSpec, Logits, RunError, Runner, Step, StepLimits, TokenId};

/// Refused steps in a row, none between them well computed: no longer the fault of single requests.
const MAX_REFUSED: u32 = 16;

/// How the Neuron backend is set up.
#[derive(Clone, Debug)]
pub struct NeuronOptions {
    /// How the model is laid out. Its `kv_blocks` are those wished for; fewer are taken where memory is short.
    pub model: DeviceModel,
    /// Its programs.
    pub buckets: Vec<Bucket>,
    /// Whether `kv_blocks` is to be what free memory allows.
    pub kv: KvSource,
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

/// What says how many KV blocks there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvSource {
    /// The model's layout.
    Given,
    /// The device's free memory once the weights are on it; the layout where the runtime does not tell.
    Device {
        /// Bytes of it that programs and their intermediate values are going to need.
        reserve: u64,
    },
}

/// The Neuron backend.
pub struct NeuronRunner {
    /// Dropped before the device, which it uses.
    followers: Option<Followers>,
    device: Arc<Device>,
    /// Of the programs that are loaded, in the order in which they were.
    shapes: Vec<Shape>,
    /// Their numbers.
    numbers: Vec<usize>,
    /// Slots of each cache.
    slots: usize,
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

struct Submitted {
    since: Instant,
    /// Of each row of the step, its row of logits, where it wants one.
    places: Vec<Option<usize>>,
    logit_rows: usize,
    executions: Vec<(Vec<Part>, Arc<Inputs>, OnRanks)>,
}

impl NeuronRunner {
    /// Sizes the KV cache, and loads the fewest programs that serve of a model whose weights are on the device; the others
    /// follow while it serves. Each is warmed and timed. Where the device's memory does not suffice, programs with fewer
    /// KV blocks are asked for.
    ///
    /// A program that does not load later on is left out, unless its status is one that ends the process.
    ///
    /// # Errors
    /// See [`NeuronLoadError`].
    pub fn load(
        device: Device,
        config: &Config,
        options: &NeuronOptions,
        uploaded: (u64, Duration),
        mut provide: Box<dyn Provide>,
    ) -> Result<NeuronRunner, NeuronLoadError> {
        covers(&options.buckets, options.max_model_len.div_ceil(options.model.block_size))?;
        let dummies = dummies(&options.buckets, options.model.block_size);
        let started = start(&device, config, options, dummies, &mut *provide)?;
        let model = &started.model;
        let (bytes, load) = uploaded;
        let figures = Arc::new(NeuronFigures {
            library: device.library().describe(),
            ranks: model.ranks,
            startup_seconds: device.opened.elapsed().as_secs_f64(),
            model_load_seconds: load.as_secs_f64(),
            model_load_bytes: bytes,
            programs: options.buckets.iter().map(|bucket| ProgramFigures::of(label(bucket))).collect(),
            ..NeuronFigures::default()
        });
        for ((number, shape), seconds) in started.programs.iter().zip(&started.compilation) {
            figures.programs[*number].set_loaded(*seconds, shape.cost);
        }
        let blocks = model.kv_blocks - dummies;
        tracing::info!(
            programs = started.programs.len(),
            following = started.rest.len(),
            ranks = model.ranks,
            kv_blocks = blocks,
            weight_mib = bytes >> 20,
            seconds = figures.startup_seconds,
            "the Neuron backend is ready"
        );
        let device = Arc::new(device);
        let followers = match started.rest.is_empty() {
            true => None,
            false => {
                let buckets = options.buckets.clone();
                Some(Followers::spawn(device.clone(), &started, buckets, dummies, provide, figures.clone())?)
            }
        };
        let (numbers, shapes) = started.programs.iter().copied().unzip();
        Ok(NeuronRunner {
            kv: KvSpec {
                block_size: model.block_size,
                blocks,
                bytes: (kv_block_bytes(config, model) * (model.kv_blocks * model.ranks) as u64) as usize,
            },
            limits: StepLimits {
                tokens: options.max_num_batched_tokens.max(options.max_num_seqs),
                rows: options.max_num_seqs,
                logits: options.max_num_seqs,
            },
            vocab: config.vocab,
            share: model.vocab_share(config),
            candidates: model.candidates_per_rank(config),
            parking: parking(model, dummies),
            slots: model.kv_blocks * model.block_size,
            hang: options.hang,
            figures,
            pending: None,
            refused: 0,
            best: Vec::new(),
            merged: Vec::new(),
            followers,
            device,
            shapes,
            numbers,
        })
    }

    /// Takes in the programs that were loaded meanwhile.
    fn take_news(&mut self) -> Result<(), RunError> {
        for news in self.followers.iter().flat_map(Followers::news) {
            let (number, shape) = news?;
            self.numbers.push(number);
            self.shapes.push(shape);
        }
        Ok(())
    }

    /// What it counts.
    pub fn figures(&self) -> Arc<NeuronFigures> {
        self.figures.clone()
    }

    fn count(&self, execution: &Execution) {
        let shape = &self.shapes[execution.program];
        let tokens: usize = execution.parts.iter().map(|part| part.count).sum();
        let figures = &self.figures;
        figures.programs[self.numbers[execution.program]].executions.fetch_add(1, Ordering::Relaxed);
        figures.sequences_padding.fetch_add((shape.rows - execution.parts.len()) as u64, Ordering::Relaxed);
        figures.tokens_padding.fetch_add((shape.rows * shape.width - tokens) as u64, Ordering::Relaxed);
    }

    /// Clears what failed executions wrote, as blocks that hold what is no number would spoil whoever has them next.
    fn scrub(&self, slots: Vec<i32>) -> Result<(), RunError> {
        if slots.is_empty() {
            return Ok(());
        }
        let (slots, of): (Arc<[i32]>, usize) = (slots.into(), self.slots);
        let clearing = self.device.send(move |rank| rank.scrub(&slots, of));
        for (rank, pending) in clearing.into_iter().enumerate() {
            match pending.wait_timeout(self.hang) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    return Err(RunError::Fatal(format!("core {rank}: clearing a failed step: {error}")));
                }
                Err(error) => {
                    self.device.runtime.abandon();
                    return Err(thread(rank, &error));
                }
            }
        }
        Ok(())
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

/// The outputs, if those of the first `rows` rows are numbers. A device need not report what is none, and a cache that
/// holds it shows in the sum over all logits.
fn numbers(outputs: Vec<Outputs>, rows: usize) -> Result<Vec<Outputs>, RunError> {
    let nan = |output: &Outputs| output.log_sum_exp.iter().take(rows).any(|sum| sum.is_nan());
    match outputs.iter().position(nan) {
        None => Ok(outputs),
        Some(rank) => Err(RunError::Step(format!("core {rank}: a not-a-number was computed"))),
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
    provide: Box<dyn Provide>,
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
        self.take_news()?;
        let planned = dispatch(step, self.kv.block_size, &self.shapes)?;
        let since = Instant::now();
        let executions = planned.into_iter().map(|execution| {
            self.count(&execution);
            let shape = &self.shapes[execution.program];
            let inputs = Arc::new(Inputs::of(step, &execution, shape, self.parking));
            let (program, given) = (self.numbers[execution.program], inputs.clone());
            let ranks = self.device.send(move |rank| rank.execute(program, &given));
            (execution.parts, inputs, ranks)
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
        let mut spoilt: Vec<i32> = Vec::new();
        for (parts, inputs, ranks) in submitted.executions {
            match collect(&self.device.runtime, self.hang, submitted.since, ranks)
                .and_then(|outputs| numbers(outputs, parts.len()))
            {
                Ok(outputs) => {
                    for (from, part) in parts.iter().enumerate().filter(|(_, part)| part.wanted) {
                        if let Some(to) = submitted.places[part.row] {
                            self.merge(&outputs, from, to, logits);
                        }
                    }
                }
                Err(error @ RunError::Fatal(_)) => return Err(error),
                Err(error) => {
                    spoilt.extend_from_slice(&inputs.slots);
                    failed = Some(error);
                }
            }
        }
        self.scrub(spoilt)?;
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
