//! Sentence embeddings on a NeuronCore: graphs of some texts of some width each, all weights on one core, f32 throughout.
//!
//! Encoders are small and their texts short, so nothing is divided over cores, and all programs are loaded before the
//! first text. Texts of like length share an execution, of the smallest program that is wide enough.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_graph::hlo::{self, HloOptions};
use millrace_graph::{DType, ParamKind};
use millrace_models::{EncoderCheckpoint, EncoderConfig, EncoderShape, device_encoder};
use neuron_sys::{Core, CoreThread, Error, Library, Model, Runtime, Tensor, TensorSet};

use super::compiler::flags;
use super::device::{NeuronLoadError, claim};
use super::failure::patiently;
use super::manifest::{Manifest, ModelEntry, TensorEntry, Usage};
use super::rank::{BindError, described, refused, side};
use super::request::{Graphs, Request, SpecError};
use super::store::{Artefact, digest_of};
use super::{Bucket, Target, label};
use crate::encoder::{EncodeError, Encoder, by_length, check, inputs};

/// The narrowest graph, in tokens.
const NARROWEST: usize = 16;

/// Tokens of an execution that holds several texts, padding included.
const BATCH_TOKENS: usize = 1024;

/// The inputs of an encoder's graph, in order.
const INPUTS: [&str; 4] = ["tokens", "positions", "token_types", "last"];

/// An encoder as it is compiled.
#[derive(Clone, Debug)]
pub struct EncoderSpec {
    /// The model.
    pub config: EncoderConfig,
    /// What it is called; for people.
    pub name: String,
    /// The device.
    pub target: Target,
    /// Flags for the compiler besides those that it always gets.
    pub compiler_flags: Vec<String>,
}

/// The buckets of an encoder: widths are powers of two up to its longest text, each for one text and for as many as make
/// a batch. `rows` are texts, and there are no KV blocks.
pub fn encoder_buckets(config: &EncoderConfig) -> Vec<Bucket> {
    let longest = config.max_tokens;
    let widths = std::iter::successors(Some(NARROWEST), |width| width.checked_mul(2));
    let widths: Vec<usize> = widths.take_while(|width| *width < longest).chain([longest]).collect();
    let of = |rows: usize, width: usize| Bucket { rows, width, blocks: 0, adjust: false };
    let both = widths.into_iter().map(|width| [of(1, width), of((BATCH_TOKENS / width).max(1), width)]);
    let mut buckets: Vec<Bucket> = both.flatten().collect();
    buckets.dedup();
    buckets
}

fn shape(bucket: &Bucket) -> EncoderShape {
    EncoderShape { texts: bucket.rows, width: bucket.width }
}

impl Graphs for EncoderSpec {
    fn request(&self, bucket: &Bucket) -> Result<Request, SpecError> {
        let graph = device_encoder(&self.config, &shape(bucket))?;
        let hlo = hlo::write(&graph, &HloOptions::default())?;
        let tensors = TensorEntry::of_graph(&graph).map_err(|name| SpecError::Tensor { name })?;
        let weights = tensors.iter().filter(|tensor| tensor.usage == Usage::Weight);
        let weights: Vec<String> = weights.map(|t| format!("{} {}{:?}", t.name, t.dtype, t.shape)).collect();
        let fields: Vec<&[u8]> = weights.iter().map(String::as_bytes).collect();
        let model = ModelEntry {
            name: self.name.clone(),
            architecture: "BertModel".into(),
            weights_digest: digest_of(&fields),
            ranks: 1,
            dtype: DType::F32.to_string(),
            weights: "float".into(),
            top_k: "none".into(),
            block_size: 0,
            kv_blocks: 0,
            candidates: 0,
        };
        let lnc = self.target.cores_per_logical_core();
        let mut flags = flags(bucket, self.target, lnc);
        flags.extend(self.compiler_flags.iter().cloned());
        Ok(Request { bucket: *bucket, model, tensors, hlo, flags, target: self.target, lnc })
    }
}

/// A sentence encoder on a NeuronCore.
pub struct NeuronEncoder {
    thread: CoreThread<Loaded>,
    runtime: Arc<Runtime>,
    config: EncoderConfig,
    /// Those that are loaded, narrow ones first, and of a width those of few texts.
    buckets: Vec<Bucket>,
    hang: Duration,
}

/// What is on the core. Fields are dropped in their order: programs let go of the tensors before those are freed.
struct Loaded {
    programs: BTreeMap<(usize, usize), Program>,
    weights: BTreeMap<String, Arc<Tensor>>,
    core: Core,
}

struct Program {
    inputs: TensorSet,
    outputs: TensorSet,
    model: Model,
    given: [Arc<Tensor>; 4],
    embeddings: Arc<Tensor>,
}

impl NeuronEncoder {
    /// Claims the cores of a library and puts an encoder's weights and programs on the first of them. An execution that
    /// takes longer than `hang` is given up, and the runtime with it.
    ///
    /// # Errors
    /// See [`NeuronLoadError`].
    pub fn load(
        library: Arc<Library>,
        checkpoint: &EncoderCheckpoint,
        programs: &[Artefact],
        hang: Duration,
    ) -> Result<NeuronEncoder, NeuronLoadError> {
        let config = checkpoint.config().clone();
        let mut buckets: Vec<Bucket> = programs.iter().map(|program| program.manifest.bucket).collect();
        buckets.sort_by_key(|bucket| (bucket.width, bucket.rows));
        if buckets.last().is_none_or(|widest| widest.width < config.max_tokens) {
            return Err(NeuronLoadError::Uncovered(format!(
                "no program of the encoder has room for a text of {} tokens",
                config.max_tokens
            )));
        }
        let runtime = claim(library)?;
        let failed = |what: String| move |error| NeuronLoadError::core(0, what, error);
        let core = runtime.core(0).map_err(failed("claim".into()))?;
        let loaded = |core| Loaded { programs: BTreeMap::new(), weights: BTreeMap::new(), core };
        let thread = CoreThread::spawn(core, 4, loaded).map_err(NeuronLoadError::Spawn)?;
        let gone = |source| NeuronLoadError::Thread { rank: 0, source };
        let smallest = device_encoder(&config, &EncoderShape { texts: 1, width: 1 })?;
        for param in smallest.params.iter().filter(|param| param.kind == ParamKind::Weight) {
            let (name, bytes) = (param.name.clone(), checkpoint.floats(&param.name)?);
            let uploaded = thread.run(move |loaded| loaded.upload(&name, &bytes)).map_err(gone)?;
            uploaded.map_err(failed(format!("weight {}", param.name)))?;
        }
        for program in programs {
            let (neff, manifest) = (program.neff.clone(), program.manifest.clone());
            thread.run(move |loaded| loaded.load(&neff, &manifest)).map_err(gone)?.map_err(|error| {
                match error {
                    BindError::Runtime(error) => {
                        failed(format!("program {}", label(&program.manifest.bucket)))(error)
                    }
                    source => NeuronLoadError::Program { rank: 0, source },
                }
            })?;
        }
        tracing::info!(programs = buckets.len(), "the encoder is on a NeuronCore");
        Ok(NeuronEncoder { thread, runtime, config, buckets, hang })
    }

    /// The narrowest programs with room for so many tokens, and of those the one of most texts that `texts` fill, or the
    /// one of fewest.
    fn program(&self, tokens: usize, texts: usize) -> Option<EncoderShape> {
        let width = self.buckets.iter().map(|bucket| bucket.width).find(|width| *width >= tokens)?;
        let of_width = || self.buckets.iter().filter(|bucket| bucket.width == width);
        let found = of_width().rfind(|bucket| bucket.rows <= texts).or_else(|| of_width().next());
        found.map(shape)
    }

    fn batch(
        &self,
        texts: &[Vec<u32>],
        batch: &[usize],
        shape: EncoderShape,
    ) -> Result<Vec<f32>, EncodeError> {
        let (given, hidden) = (inputs(texts, batch, shape), self.config.hidden);
        let running = self.thread.submit(move |loaded| loaded.run(shape, &given, hidden));
        match running.wait_timeout(self.hang) {
            Ok(Ok(found)) if found.iter().all(|x| x.is_finite()) => Ok(found),
            Ok(Ok(_)) => Err(EncodeError::Failed("a not-a-number was computed".into())),
            Ok(Err(error)) => Err(EncodeError::Failed(error.to_string())),
            Err(error) => {
                // Whatever it was, the thread or the device does not answer.
                self.runtime.abandon();
                Err(EncodeError::Failed(error.to_string()))
            }
        }
    }
}

impl Encoder for NeuronEncoder {
    fn config(&self) -> &EncoderConfig {
        &self.config
    }

    fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        check(texts, &self.config, self.config.max_tokens)?;
        let order = by_length(texts);
        let mut embeddings = vec![Vec::new(); texts.len()];
        let mut rest = &order[..];
        while let Some(longest) = rest.first() {
            let shape = self.program(texts[*longest].len(), rest.len());
            let shape = shape.ok_or_else(|| EncodeError::Failed("no program is wide enough".into()))?;
            let (batch, others) = rest.split_at(shape.texts.min(rest.len()));
            rest = others;
            let found = self.batch(texts, batch, shape)?;
            for (index, embedding) in batch.iter().zip(found.chunks_exact(self.config.hidden)) {
                embeddings[*index] = embedding.to_vec();
            }
        }
        Ok(embeddings)
    }
}

impl Loaded {
    fn upload(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let tensor = Arc::new(self.core.allocate(name, bytes.len())?);
        patiently(|| tensor.write(0, bytes))?;
        self.weights.insert(name.to_owned(), tensor);
        Ok(())
    }

    fn load(&mut self, neff: &[u8], manifest: &Manifest) -> Result<(), BindError> {
        let model = patiently(|| self.core.load(neff))?;
        let problems = described(&model, manifest);
        if !problems.is_empty() {
            return Err(refused(manifest, problems));
        }
        let (mut inputs, mut outputs) = (TensorSet::new(&self.core)?, TensorSet::new(&self.core)?);
        for entry in &manifest.tensors {
            let bytes = usize::try_from(entry.bytes).unwrap_or(usize::MAX);
            let tensor = match (entry.usage, self.weights.get(&entry.name)) {
                (Usage::Weight, Some(weight)) if weight.bytes() == bytes => weight.clone(),
                (Usage::Weight | Usage::State, _) => {
                    let problem =
                        format!("the model has no {:?} {:?} of {bytes} bytes", entry.usage, entry.name);
                    return Err(refused(manifest, vec![problem]));
                }
                (Usage::Input | Usage::Output, _) => Arc::new(self.core.allocate(&entry.name, bytes)?),
            };
            let usage = side(entry.usage);
            let set = if usage == neuron_sys::Usage::Input { &mut inputs } else { &mut outputs };
            let name = model.tensor(usage, &entry.name).map_or(&entry.name, |info| &info.name).clone();
            set.insert(&name, tensor)?;
        }
        model.check(&inputs, &outputs)?;
        let [tokens, positions, types, last] = INPUTS.map(|name| inputs.get(name).cloned());
        let (Some(tokens), Some(positions), Some(types), Some(last), Some(embeddings)) =
            (tokens, positions, types, last, outputs.get("embeddings").cloned())
        else {
            return Err(refused(manifest, vec!["an input or output is missing".into()]));
        };
        let given = [tokens, positions, types, last];
        let bucket = manifest.bucket;
        let program = Program { inputs, outputs, model, given, embeddings };
        self.programs.insert((bucket.rows, bucket.width), program);
        Ok(())
    }

    fn run(&self, shape: EncoderShape, given: &[Vec<i32>; 4], hidden: usize) -> Result<Vec<f32>, Error> {
        let Some(program) = self.programs.get(&(shape.texts, shape.width)) else {
            return Err(Error::Unbound(vec![format!("{shape:?} is not loaded")]));
        };
        for (tensor, numbers) in program.given.iter().zip(given) {
            patiently(|| tensor.write(0, bytemuck::cast_slice(numbers)))?;
        }
        patiently(|| program.model.execute(&program.inputs, &program.outputs))?;
        let mut found = vec![0.0f32; shape.texts * hidden];
        patiently(|| program.embeddings.read(0, bytemuck::cast_slice_mut(&mut found)))?;
        Ok(found)
    }
}
