//! The command line. Flags are named as vLLM names them where it has them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use millrace_server::assistant::Place;

/// LLM inference for AWS Inferentia and Trainium, with a CPU backend that runs the same graphs.
#[derive(Parser, Debug)]
#[command(name = "millrace", version = crate::VERSION, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Serve a model over HTTP with the OpenAI API.
    Serve(Box<ServeArgs>),
    /// Answer one prompt on the terminal.
    Generate(Box<GenerateArgs>),
    /// Build or update an index of products, reviews and answers.
    Index(Box<crate::index::IndexArgs>),
    /// Ask an index.
    Search(Box<crate::index::SearchArgs>),
    /// List, export or delete what shoppers thought of answers.
    Feedback(crate::feedback::FeedbackArgs),
    /// Run a workload in process and print throughput and latencies.
    Bench(Box<BenchArgs>),
    /// Compile a model's graphs for a device, ahead of serving; needs no device.
    Compile(Box<CompileArgs>),
    /// Print what this machine has for Millrace, and what is wrong in words.
    Doctor(DoctorArgs),
}

/// Sizes and layout. They shape the compiled graphs, so `compile` and what runs the graphs are to be given the same, and
/// have the same defaults.
#[derive(Args, Clone, Debug)]
pub(crate) struct GraphArgs {
    /// Longest sequence in tokens, prompt and answer together; the model's own context length unless given.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_model_len: Option<usize>,
    /// Sequences that run at the same time.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) max_num_seqs: usize,
    /// New tokens computed in one iteration: the prompt chunk beside the running answers.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub(crate) max_num_batched_tokens: usize,
    /// Tokens in a KV block.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub(crate) block_size: usize,
    /// Memory for the KV cache (`4GiB`, `800MB`), on each core of a device; a share of what is free unless given.
    #[arg(long, value_name = "SIZE")]
    pub(crate) kv_memory: Option<Bytes>,
    /// Neuron: the device.
    #[arg(long, value_parser = ["inf2", "trn1", "trn2"])]
    pub(crate) target: Option<String>,
    /// Neuron: cores that share the model.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) tensor_parallel_size: usize,
    /// Neuron: graphs to use instead of planned ones: `ROWSxWIDTH@BLOCKS[+adjust]`, with commas between.
    #[arg(long, value_name = "LIST")]
    pub(crate) buckets: Option<String>,
    /// Neuron: lengths to expect, by which graphs are planned: JSON lines with `prompt_tokens`, `completion_tokens` and
    /// `count`, or lines of a prompt length and a count.
    #[arg(long, value_name = "FILE")]
    pub(crate) histogram: Option<PathBuf>,
    /// Neuron: store matrices in 8 bits, with a scale for each output channel.
    #[arg(long, value_enum)]
    pub(crate) weights: Option<DeviceWeightsArg>,
    /// Neuron: candidates that each core returns for a token.
    #[arg(long, value_name = "K", default_value_t = 64)]
    pub(crate) candidates: usize,
    /// Neuron: how each core finds its best candidates: in plain HLO, or by the vendor's custom call AwsNeuronTopK.
    #[arg(long, value_enum, default_value_t = TopKArg::Hlo)]
    pub(crate) top_k_form: TopKArg,
    /// Neuron: the graph compiler; `neuronx-cc` where it is installed unless given.
    #[arg(long, value_name = "PATH")]
    pub(crate) compiler: Option<PathBuf>,
    /// Neuron: a flag for the graph compiler besides those that it gets; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    pub(crate) compiler_flag: Vec<String>,
}

/// Which model, and how it is run: common to all commands that run one.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// A Hugging Face directory, a GGUF file, or a hub id (`org/name`, or `org/name@revision`).
    #[arg(long, value_name = "PATH")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) graph: GraphArgs,
    /// Prompt tokens computed in an iteration that also decodes: fewer keep the pauses of running answers
    /// shorter, more bring first tokens sooner.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub(crate) max_prefill_beside_decode: usize,
    /// Element type of the KV cache; `int8`, with a scale for each token and head, holds nearly twice the tokens of
    /// `f16` and is on the CPU only.
    #[arg(long, value_enum, default_value_t = KvDtype::F16)]
    pub(crate) kv_dtype: KvDtype,
    /// Element type of unquantised weights; `auto` keeps the file's.
    #[arg(long, value_enum, default_value_t = WeightDtype::Auto)]
    pub(crate) dtype: WeightDtype,
    /// How layers over quantised weights compute: dequantised in f32, or with 8-bit activations.
    #[arg(long, value_enum, default_value_t = PrecisionArg::Fast)]
    pub(crate) precision: PrecisionArg,
    /// CPU: keep packed weights in this directory, by content, and map them where they are there already: processes
    /// share their memory. Files are not removed.
    #[arg(long, value_name = "DIR")]
    pub(crate) packed_cache: Option<PathBuf>,
    /// What computes.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,
    /// Neuron: the store of compiled graphs, filled by `millrace compile`. What it lacks is compiled where there is a
    /// compiler, so give the same sizes to both commands.
    #[arg(long, value_name = "DIR")]
    pub(crate) neuron_store: Option<PathBuf>,
    /// Neuron: the runtime library; looked for where it is installed unless given.
    #[arg(long, value_name = "PATH")]
    pub(crate) neuron_library: Option<PathBuf>,
    /// Neuron: seconds after which a step that has not ended is taken to hang, and the process ends with an error; half
    /// as long again as NEURON_RT_EXEC_TIMEOUT unless given, and 900 where that is not set either.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) execute_timeout: Option<u64>,
    /// CPU threads; one per available core unless given.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Compute every prompt anew.
    #[arg(long)]
    pub(crate) no_enable_prefix_caching: bool,
    /// Seeds the requests that bring no seed of their own.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,
    /// Names that requests may call the model by; the first is the one reported.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub(crate) served_model_name: Vec<String>,
    /// A file with one API key a line; requests then need one.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Listen beyond this machine without an API key.
    #[arg(long)]
    pub(crate) allow_unauthenticated: bool,
    /// The index that the shopping assistant answers from, as `millrace index` builds it: a folder, `postgres://…` or
    /// `opensearch://…`.
    #[arg(long, value_name = "PLACE", env = "MILLRACE_INDEX", hide_env_values = true)]
    pub(crate) index: Option<Place>,
    /// Folder of a sentence encoder (scripts/fetch-encoder gets one): serves /v1/embeddings, and finds evidence in the
    /// index by its meaning. The index must have been built with the same one.
    #[arg(long, value_name = "PATH")]
    pub(crate) embedding_model: Option<PathBuf>,
    /// CPU threads of the encoder; a quarter of the available cores unless given.
    #[arg(long, value_name = "N")]
    pub(crate) embedding_threads: Option<usize>,
    /// What the shopping assistant does, in TOML: stores that give live data, limits. See docs/assistant.md.
    #[arg(long, value_name = "FILE")]
    pub(crate) assistant_config: Option<PathBuf>,
    /// Keep answers and what shoppers think of them in this folder, to train on; see docs/feedback.md.
    #[arg(long, value_name = "DIR")]
    pub(crate) feedback: Option<PathBuf>,
    /// Days after which feedback is removed; kept for good unless given.
    #[arg(long, value_name = "DAYS", requires = "feedback", value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(crate) feedback_retention_days: Option<u32>,
    /// Requests that may wait; more are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) max_queued_requests: usize,
    /// Seconds that running requests get to finish after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) shutdown_timeout: u64,
}

#[derive(Args, Debug)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What to answer; read from standard input where it is `-`.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// Continue the text itself instead of answering it through the model's chat template.
    #[arg(long)]
    pub(crate) raw: bool,
    /// A system message.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Tokens at most.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: u32,
    /// 0 is greedy; the model's own default unless given.
    #[arg(long)]
    pub(crate) temperature: Option<f32>,
    /// Sample from the smallest set of tokens with this much probability.
    #[arg(long)]
    pub(crate) top_p: Option<f32>,
    /// Sample from this many best tokens.
    #[arg(long)]
    pub(crate) top_k: Option<u32>,
    /// Stop where this text would come.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Prompt tokens of each request, the shared prefix among them: `N`, or `A..B` log-normal.
    #[arg(long, value_name = "LENGTH", default_value = "128")]
    pub(crate) input_len: Length,
    /// Answer tokens of each request: `N`, or `A..B` log-normal.
    #[arg(long, value_name = "LENGTH", default_value = "16..256")]
    pub(crate) output_len: Length,
    /// Requests.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) num_requests: usize,
    /// Requests under way at the same time; all of them unless given.
    #[arg(long, value_name = "N", conflicts_with = "request_rate")]
    pub(crate) concurrency: Option<usize>,
    /// Requests a second, Poisson arrivals, however many are under way.
    #[arg(long, value_name = "RATE")]
    pub(crate) request_rate: Option<f64>,
    /// Prompt tokens that all requests have in common.
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub(crate) shared_prefix_len: usize,
    /// Whether a request joins a running batch, or waits until the whole batch has ended.
    #[arg(long, value_enum, default_value_t = Batching::Continuous)]
    pub(crate) batching: Batching,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Sample from the smallest set of tokens with this much probability.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Sample from this many best tokens.
    #[arg(long)]
    pub(crate) top_k: Option<u32>,
    /// Divide the logits of tokens that were there before, or multiply negative ones.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) repetition_penalty: f32,
    /// Instead of timing anything, compare the next-token distributions of `--precision fast` with those of `reference`
    /// on the sequences of a JSON file: `[{"tokens": [1, 2, 3], "from": 1}, ...]`.
    #[arg(long, value_name = "FILE")]
    pub(crate) divergence: Option<PathBuf>,
    /// Instead of a workload, time the steps of 16 answers: free, under a JSON schema, and under the grammar of the
    /// assistant's answers.
    #[arg(long, conflicts_with = "divergence")]
    pub(crate) structured: bool,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CompileArgs {
    /// A Hugging Face directory (of which `config.json` suffices), a GGUF file, or a hub id.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) graph: GraphArgs,
    /// Element type of weights, activations and KV cache.
    #[arg(long, value_enum, default_value_t = DeviceDtype::Bf16)]
    pub(crate) dtype: DeviceDtype,
    /// The store that is filled.
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Compilers at the same time; one per available CPU core unless given.
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// Seconds that one graph may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 4 * 3600)]
    pub(crate) compile_timeout: u64,
    /// Write the graphs to DIR/hlo and stop before the compiler.
    #[arg(long)]
    pub(crate) hlo_only: bool,
}

/// Element types that a device computes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum DeviceDtype {
    Bf16,
    F32,
}

/// How a device may store matrices besides the type it computes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum DeviceWeightsArg {
    Int8,
}

/// How a device finds the largest logits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum TopKArg {
    Hlo,
    Neuron,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Which backend is meant to serve here: with `neuron`, a machine without devices is an error.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,
    /// The Neuron runtime library; looked for where it is installed unless given.
    #[arg(long, value_name = "PATH")]
    pub(crate) neuron_library: Option<PathBuf>,
    /// A store of compiled graphs: what it holds, and what of it is damaged.
    #[arg(long, value_name = "DIR")]
    pub(crate) neuron_store: Option<PathBuf>,
    /// The graph compiler.
    #[arg(long, value_name = "PATH", default_value = "neuronx-cc")]
    pub(crate) compiler: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum KvDtype {
    F32,
    F16,
    Bf16,
    Int8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum WeightDtype {
    Auto,
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum PrecisionArg {
    Reference,
    Fast,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Backend {
    /// The backend that this machine has.
    Auto,
    Cpu,
    Neuron,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Batching {
    Continuous,
    Static,
}

/// A memory size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
        let unit = text[digits.len()..].trim();
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(format!("{unit:?} is no unit of memory: write 512MB, 4GiB, ...")),
        };
        let bad = || format!("{text:?} is no amount of memory: write 512MB, 4GiB, ...");
        let number: f64 = digits.parse().map_err(|_| bad())?;
        let bytes = number * factor as f64;
        if !(1.0..=1e18).contains(&bytes) {
            return Err(bad());
        }
        Ok(Bytes(bytes as u64))
    }
}

/// A number of tokens, or a range of them that is drawn from log-normally: short ones are common, long ones
/// rare, as answers are. The bounds lie two standard deviations from the median, their geometric mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Length {
    pub(crate) low: usize,
    pub(crate) high: usize,
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no length: write 128 or 16..256");
        let number = |text: &str| text.parse::<usize>().map_err(|_| bad());
        let (low, high) = match text.split_once("..") {
            Some((low, high)) => (number(low)?, number(high)?),
            None => (number(text)?, number(text)?),
        };
        if low == 0 || low > high || high > 1 << 24 {
            return Err(bad());
        }
        Ok(Length { low, high })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// What the deployment files and guides tell people to run must be accepted.
    #[test]
    fn deployed_command_lines_are_understood() {
        for manifest in [
            include_str!("../deploy/kubernetes/serve.yaml"),
            include_str!("../deploy/kubernetes/compile-job.yaml"),
        ] {
            let lines = manifest.lines().map(str::trim);
            let words =
                lines.skip_while(|line| *line != "args:").skip(1).map_while(|line| line.strip_prefix("- "));
            let words: Vec<&str> = std::iter::once("millrace").chain(words).collect();
            assert!(words.len() > 5, "{words:?}");
            Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        }
    }

    #[test]
    fn memory_sizes() {
        assert_eq!("4GiB".parse(), Ok(Bytes(4 << 30)));
        assert_eq!("1.5 kb".parse(), Ok(Bytes(1500)));
        assert_eq!("77".parse(), Ok(Bytes(77)));
        for bad in ["", "GiB", "-1GB", "0", "nan", "4 GiBs", "1e40"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lengths() {
        assert_eq!("16..256".parse(), Ok(Length { low: 16, high: 256 }));
        assert_eq!("7".parse(), Ok(Length { low: 7, high: 7 }));
        for bad in ["", "0", "9..8", "a..b", "1..", "-3"] {
            assert!(bad.parse::<Length>().is_err(), "{bad:?}");
        }
    }
}
