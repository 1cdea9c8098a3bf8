//! From `--model` to a runner: resolve, map, pack, with progress on a terminal.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use millrace_engine::cpu::{CpuOptions, CpuRunner};
use millrace_engine::neuron::NeuronFigures;
use millrace_engine::{Batching, EngineConfig, Handle, Observer, Runner};
use millrace_graph::DType;
use millrace_kernels::Precision;
use millrace_models::Checkpoint;
use millrace_models::text::{ChatTemplate, GenerationDefaults, TemplateError, Tokenizer};

use crate::args::{KvDtype, ModelArgs, PrecisionArg, WeightDtype};
use crate::neuron;

/// How long a device gets to be closed when nothing is left to compute: a program may just be loading.
const LETTING_GO: Duration = Duration::from_secs(20);

/// A model that is packed and ready to be run.
pub(crate) struct Loaded {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) runner: Box<dyn Runner>,
    /// What the model is called unless the user says otherwise.
    pub(crate) name: String,
    pub(crate) max_model_len: usize,
    pub(crate) threads: usize,
    /// What the Neuron backend counts, where it is the one.
    pub(crate) figures: Option<Arc<NeuronFigures>>,
}

/// How a model reads and writes text.
pub(crate) struct Text {
    pub(crate) tokenizer: Tokenizer,
    /// `None` where the model has no chat template.
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) defaults: GenerationDefaults,
}

/// A running engine.
pub(crate) struct Engine {
    pub(crate) handle: Handle,
    pub(crate) thread: JoinHandle<Result<(), millrace_engine::RunError>>,
    pub(crate) vocab: usize,
    pub(crate) backend: String,
    pub(crate) threads: usize,
    pub(crate) kv_bytes: usize,
}

/// Opens and packs the model that the arguments name. Once `interrupted` is set, compilers that were started for it
/// are ended; what cannot be interrupted goes on.
pub(crate) fn open(args: &ModelArgs, interrupted: &Arc<AtomicBool>) -> anyhow::Result<Loaded> {
    for (flag, value) in [
        ("--max-num-seqs", args.graph.max_num_seqs),
        ("--max-num-batched-tokens", args.graph.max_num_batched_tokens),
        ("--threads", args.threads.unwrap_or(1)),
    ] {
        if value == 0 || value > 1 << 20 {
            bail!("{flag} is {value}; it must lie between 1 and {}", 1 << 20);
        }
    }
    let path = find(&args.model)?;
    let checkpoint = Checkpoint::open(&path).with_context(|| format!("cannot load {}", path.display()))?;
    let context = checkpoint.config().context;
    let max_model_len = match args.graph.max_model_len {
        None => context,
        Some(0) => bail!("--max-model-len must be at least 1"),
        Some(tokens) if tokens > context => {
            bail!("--max-model-len {tokens} exceeds the {context} tokens that the model was made for")
        }
        Some(tokens) => tokens,
    };
    if neuron::chosen(args)? {
        let runner = neuron::open(args, &checkpoint, max_model_len, interrupted)
            .with_context(|| format!("cannot run {} on NeuronCores", path.display()))?;
        let figures = Some(runner.figures());
        let name = model_name(&args.model);
        return Ok(Loaded { checkpoint, runner: Box::new(runner), name, max_model_len, threads: 1, figures });
    }
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let kv_dtype = match args.kv_dtype {
        KvDtype::F32 => DType::F32,
        KvDtype::F16 => DType::F16,
        KvDtype::Bf16 => DType::BF16,
        KvDtype::Int8 => DType::I8,
    };
    let options = CpuOptions {
        threads,
        precision: match args.precision {
            PrecisionArg::Reference => Precision::Reference,
            PrecisionArg::Fast => Precision::Fast,
        },
        kv_dtype,
        block_size: args.graph.block_size,
        kv_bytes: args.graph.kv_memory.map_or_else(half_of_free_memory, |size| size.0),
        weight_dtype: match args.dtype {
            WeightDtype::Auto => None,
            WeightDtype::F32 => Some(DType::F32),
            WeightDtype::F16 => Some(DType::F16),
            WeightDtype::Bf16 => Some(DType::BF16),
        },
        max_model_len,
        max_num_seqs: args.graph.max_num_seqs,
        max_num_batched_tokens: args.graph.max_num_batched_tokens,
        packed_cache: args.packed_cache.clone(),
    };
    let bar = bytes_bar("packing weights");
    let runner = CpuRunner::load(&checkpoint, &options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })
    .with_context(|| format!("cannot load {}", path.display()))?;
    bar.finish_and_clear();
    let name = model_name(&args.model);
    Ok(Loaded { checkpoint, runner: Box::new(runner), name, max_model_len, threads, figures: None })
}

impl Loaded {
    /// The checkpoint's tokenizer, chat template and recommended sampling parameters.
    pub(crate) fn text(&self) -> anyhow::Result<Text> {
        let directory = self.checkpoint.directory();
        let (tokenizer, template, defaults) = match self.checkpoint.gguf() {
            Some(file) => (
                Tokenizer::from_gguf(file),
                ChatTemplate::from_gguf(file),
                GenerationDefaults::from_gguf(file),
            ),
            None => (
                Tokenizer::from_directory(directory),
                ChatTemplate::from_directory(directory),
                GenerationDefaults::from_directory(directory),
            ),
        };
        let template = match template {
            Ok(template) => Some(template),
            Err(TemplateError::Missing { .. }) => None,
            Err(error) => return Err(error).context("the model's chat template"),
        };
        Ok(Text { tokenizer: tokenizer.context("the model's tokenizer")?, template, defaults: defaults? })
    }

    /// Starts the engine thread.
    pub(crate) fn start(
        self,
        args: &ModelArgs,
        max_queued_requests: usize,
        static_batching: bool,
        observer: Box<dyn Observer>,
    ) -> anyhow::Result<Engine> {
        let (vocab, kv) = (self.runner.vocab(), self.runner.kv());
        let config = EngineConfig {
            max_num_seqs: args.graph.max_num_seqs,
            max_num_batched_tokens: args.graph.max_num_batched_tokens,
            max_prefill_beside_decode: args.max_prefill_beside_decode,
            max_model_len: self.max_model_len,
            max_queued_requests,
            prefix_caching: !args.no_enable_prefix_caching,
            seed: args.seed,
            batching: if static_batching { Batching::Static } else { Batching::Continuous },
        };
        tracing::info!(
            kv_blocks = kv.blocks,
            block_size = kv.block_size,
            kv_mib = kv.bytes >> 20,
            max_model_len = self.max_model_len,
            threads = self.threads,
            "engine starts"
        );
        let (handle, thread) = millrace_engine::start(self.runner, config, observer)?;
        let backend = if self.figures.is_some() { "neuron" } else { "cpu" }.to_owned();
        let threads = self.threads;
        Ok(Engine { handle, thread, vocab, backend, threads, kv_bytes: kv.bytes })
    }
}

impl Engine {
    /// Lets running requests finish and ends the engine thread.
    ///
    /// # Errors
    /// Where the engine has failed, or a device does not let itself be closed.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        self.handle.drain();
        drop(self.handle);
        let started = Instant::now();
        // Steps of a CPU end by themselves; a call of a device may never.
        while self.backend == "neuron" && !self.thread.is_finished() {
            if started.elapsed() > LETTING_GO {
                let seconds = LETTING_GO.as_secs();
                bail!("the device has not let go in {seconds} s: the process ends without closing it");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        match self.thread.join() {
            Ok(result) => Ok(result?),
            Err(_) => bail!("the engine thread panicked"),
        }
    }
}

/// The local files of `--model`, downloaded where it is a hub id that is not cached.
pub(crate) fn find(model: &str) -> anyhow::Result<PathBuf> {
    let bar = bytes_bar("downloading");
    let found = millrace_models::hub::resolve(model, &mut |file, done, total| {
        bar.set_message(file.to_owned());
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    found.with_context(|| format!("cannot find --model {model}"))
}

/// `SmolLM2.Q4_1` of `/models/SmolLM2.Q4_1.gguf`; a hub id is its own name.
pub(crate) fn model_name(given: &str) -> String {
    let Ok(path) = Path::new(given).canonicalize() else {
        return given.split('@').next().unwrap_or(given).to_owned();
    };
    let stem = if path.is_file() { path.file_stem() } else { path.file_name() };
    stem.map_or_else(|| given.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// Half of what the kernel says new programs can have; 4 GiB where it does not say.
fn half_of_free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(4 << 30, |kib| kib * 1024 / 2)
}

pub(crate) fn bytes_bar(what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = format!("{what} {{msg}} {{bar:40}} {{bytes}}/{{total_bytes}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
