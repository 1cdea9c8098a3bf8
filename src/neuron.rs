//! From the arguments to a runner on NeuronCores: plan, claim cores, upload, take programs from the store or compile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};
use millrace_engine::neuron::buckets::{self, Histogram, Limits};
use millrace_engine::neuron::compiler::Compiler;
use millrace_engine::neuron::memory::KvOptions;
use millrace_engine::neuron::store::Store;
use millrace_engine::neuron::{
    Device, FromStore, KvSource, NeuronOptions, NeuronRunner, PlanOptions, Target, load, plan,
};
use millrace_graph::DType;
use millrace_models::Checkpoint;
use millrace_models::device::{DeviceModel, DeviceWeights, TopKForm};
use neuron_sys::{Library, sysfs};

use crate::args::{Backend, DeviceWeightsArg, GraphArgs, KvDtype, ModelArgs, TopKArg, WeightDtype};
use crate::load::{bytes_bar, model_name};

/// The graph compiler where none is named.
pub(crate) const COMPILER: &str = "neuronx-cc";

/// How long one graph may take to compile while serving.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// By which the runtime is told how many seconds an execution may take.
const EXEC_TIMEOUT: &str = "NEURON_RT_EXEC_TIMEOUT";

/// What the vendor's guide gives as the runtime's own default for trn1 and inf2.
const EXEC_TIMEOUT_SECONDS: u64 = 600;

/// Whether NeuronCores are to be used: asked for, or there with their library where nothing was asked for.
///
/// # Errors
/// Where there are NeuronCores, and the library that was named for them is none.
pub(crate) fn chosen(args: &ModelArgs) -> anyhow::Result<bool> {
    let present = || sysfs::scan(Path::new("/")).usable().next().is_some();
    choose(args.backend, args.neuron_library.as_deref(), present)
}

fn choose(backend: Backend, library: Option<&Path>, present: impl Fn() -> bool) -> anyhow::Result<bool> {
    match backend {
        Backend::Cpu => Ok(false),
        Backend::Neuron => Ok(true),
        Backend::Auto if !present() => {
            if library.is_some() {
                tracing::warn!("there is no NeuronCore here: --neuron-library is not used, the CPU computes");
            }
            Ok(false)
        }
        Backend::Auto => match Library::open(library) {
            Ok(_) => Ok(true),
            Err(error) if library.is_some() => Err(error).context("--neuron-library"),
            Err(error) => {
                tracing::warn!("there are NeuronCores here, but {error}; the CPU computes");
                Ok(false)
            }
        },
    }
}

/// How many seconds a step may take before it is taken to hang, by `--execute-timeout` and by what the runtime was told.
/// More than the runtime itself waits for an execution, so that it may say so first.
fn hang(ours: Option<u64>, runtimes: Option<u64>) -> u64 {
    let its = runtimes.unwrap_or(EXEC_TIMEOUT_SECONDS).clamp(1, 1 << 32);
    ours.unwrap_or(its + its.div_ceil(2))
}

/// [`hang`], with the environment that the runtime reads.
fn patience(args: &ModelArgs) -> Duration {
    let runtimes = std::env::var(EXEC_TIMEOUT).ok().and_then(|seconds| seconds.trim().parse::<u64>().ok());
    let seconds = hang(args.execute_timeout, runtimes);
    if runtimes.is_some_and(|its| seconds <= its) {
        tracing::warn!(
            "--execute-timeout {seconds} is not above {EXEC_TIMEOUT}: the runtime cannot say what hangs"
        );
    }
    Duration::from_secs(seconds)
}

impl GraphArgs {
    /// What the graphs must cover, for a model of so many tokens of context.
    pub(crate) fn limits(&self, context: usize) -> Limits {
        Limits {
            max_num_seqs: self.max_num_seqs,
            max_model_len: self.max_model_len.unwrap_or(context),
            max_num_batched_tokens: self.max_num_batched_tokens,
            block_size: self.block_size,
        }
    }

    /// The device.
    ///
    /// # Errors
    /// Where `--target` is missing.
    pub(crate) fn target(&self) -> anyhow::Result<Target> {
        let Some(target) = &self.target else {
            bail!("graphs are compiled for a device: give --target inf2, trn1 or trn2");
        };
        target.parse().map_err(anyhow::Error::msg).context("--target")
    }

    /// What is planned by: the same for the command that compiles and for those that run.
    ///
    /// # Errors
    /// Where `--target` is missing, `--buckets` are none, or `--histogram` cannot be read.
    pub(crate) fn plan_options(
        &self,
        model: &str,
        context: usize,
        dtype: DType,
    ) -> anyhow::Result<PlanOptions> {
        let target = self.target()?;
        let histogram = match &self.histogram {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                Some(Histogram::parse(&text).with_context(|| file.display().to_string())?)
            }
        };
        Ok(PlanOptions {
            name: model_name(model),
            target,
            model: DeviceModel {
                ranks: self.tensor_parallel_size,
                dtype,
                weights: match self.weights {
                    Some(DeviceWeightsArg::Int8) => DeviceWeights::Int8,
                    None => DeviceWeights::Float,
                },
                candidates: self.candidates,
                top_k: match self.top_k_form {
                    TopKArg::Hlo => TopKForm::Hlo,
                    TopKArg::Neuron => TopKForm::Neuron,
                },
                block_size: self.block_size,
                kv_blocks: 1,
            },
            limits: self.limits(context),
            kv: KvOptions { bytes: self.kv_memory.map(|size| size.0) },
            buckets: self.buckets.as_deref().map(buckets::parse).transpose().context("--buckets")?,
            histogram,
            compiler_flags: self.compiler_flag.clone(),
        })
    }
}

/// Loads the checkpoint onto NeuronCores. Once `interrupted` says so, compilers are ended.
pub(crate) fn open(
    args: &ModelArgs,
    checkpoint: &Checkpoint,
    max_model_len: usize,
    interrupted: &Arc<AtomicBool>,
) -> anyhow::Result<NeuronRunner> {
    if args.kv_dtype == KvDtype::Int8 {
        bail!("--kv-dtype int8 is for the CPU backend: on NeuronCores the cache has the type of --dtype");
    }
    let Some(store) = &args.neuron_store else {
        bail!(
            "--backend neuron needs --neuron-store DIR, where `millrace compile` has put the compiled graphs"
        );
    };
    let dtype = match args.dtype {
        WeightDtype::Auto | WeightDtype::Bf16 => DType::BF16,
        WeightDtype::F32 => DType::F32,
        WeightDtype::F16 => bail!("--dtype f16: NeuronCores compute in bf16 or f32 here"),
    };
    let planned = plan(checkpoint.config(), &args.graph.plan_options(&args.model, max_model_len, dtype)?)?;
    let compiler = match &args.graph.compiler {
        Some(program) => Some(Compiler::new(program)?),
        // Absent on most hosts that serve: then the store must have every graph.
        None => Compiler::new(Path::new(COMPILER)).ok(),
    };
    let options = NeuronOptions {
        model: planned.spec.model.clone(),
        buckets: planned.buckets,
        kv: match args.graph.kv_memory {
            Some(_) => KvSource::Given,
            None => KvSource::Device { reserve: planned.memory.programs + planned.memory.scratch },
        },
        max_model_len,
        max_num_seqs: args.graph.max_num_seqs,
        max_num_batched_tokens: args.graph.max_num_batched_tokens,
        hang: patience(args),
    };
    let config = planned.spec.config.clone();
    let programs = FromStore {
        spec: planned.spec,
        store: Store::new(store),
        compiler,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        timeout: COMPILE_TIMEOUT,
        interrupted: interrupted.clone(),
    };
    let device = Device::open(args.neuron_library.as_deref(), args.graph.tensor_parallel_size)?;
    let bar = bytes_bar("uploading weights");
    let progress = |bytes: u64| bar.inc(bytes);
    let runner = load(device, checkpoint, &config, &options, &progress, Box::new(programs));
    bar.finish_and_clear();
    Ok(runner?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_computes_where_nobody_says() {
        let (double, absent) = (softnrt::testing::library_path(), Path::new("/absent/libnrt.so.1"));
        let auto = |library, present| choose(Backend::Auto, library, || present);
        assert!(auto(Some(&double), true).expect("a library"));
        assert!(!auto(Some(&double), false).expect("the CPU"));
        assert!(!auto(Some(absent), false).expect("the CPU"));
        let error = auto(Some(absent), true).expect_err("it was named");
        assert!(
            format!("{error:#}").contains("--neuron-library: ") && format!("{error:#}").contains("/absent/")
        );
        // Without a name it depends on what is installed, and is no error.
        assert_eq!(auto(None, true).ok(), Some(Library::open(None).is_ok()));
        assert!(choose(Backend::Neuron, Some(absent), || false).expect("asked for"));
        assert!(!choose(Backend::Cpu, Some(&double), || true).expect("asked for"));
    }

    #[test]
    fn a_hang_is_longer_than_what_the_runtime_waits() {
        for (ours, its, seconds) in [
            (None, None, 900),
            (None, Some(30), 45),
            (None, Some(0), 2),
            (None, Some(u64::MAX), (1 << 32) + (1 << 31)),
            (Some(5), None, 5),
            (Some(5), Some(600), 5),
        ] {
            assert_eq!(hang(ours, its), seconds, "{ours:?} {its:?}");
        }
    }
}
