//! From the arguments to a runner on NeuronCores: plan, claim cores, upload, take programs from the store or compile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use millrace_engine::neuron::buckets::{self, Limits};
use millrace_engine::neuron::compiler::{CompileOptions, Compiler, compile_missing, ensure};
use millrace_engine::neuron::memory::KvOptions;
use millrace_engine::neuron::store::Store;
use millrace_engine::neuron::{
    Device, NeuronOptions, NeuronRunner, PlanOptions, Planned, Spec, Target, label, load, plan,
};
use millrace_graph::DType;
use millrace_models::Checkpoint;
use millrace_models::device::{DeviceModel, DeviceWeights, TopKForm};
use neuron_sys::{Library, sysfs};

use crate::args::{Backend, KvDtype, ModelArgs, WeightDtype};
use crate::load::{bytes_bar, model_name};

/// Best tokens that each core returns of a row of logits; `millrace compile` has the same unless told otherwise.
const CANDIDATES: usize = 64;

/// Above what the runtime waits for an execution (`NEURON_RT_EXEC_TIMEOUT`), so that it may say so itself.
const HANG: Duration = Duration::from_secs(900);

/// Whether NeuronCores are to be used: asked for, or there with their library where nothing was asked for.
pub(crate) fn chosen(args: &ModelArgs) -> bool {
    match args.backend {
        Backend::Cpu => false,
        Backend::Neuron => true,
        Backend::Auto => {
            sysfs::scan(Path::new("/")).usable().next().is_some()
                && Library::open(args.neuron_library.as_deref()).is_ok()
        }
    }
}

/// Loads the checkpoint onto NeuronCores.
pub(crate) fn open(
    args: &ModelArgs,
    checkpoint: &Checkpoint,
    max_model_len: usize,
) -> anyhow::Result<NeuronRunner> {
    if args.kv_dtype == KvDtype::Int8 {
        bail!("--kv-dtype int8 is for the CPU backend: on NeuronCores the cache has the type of --dtype");
    }
    let Some(store) = &args.neuron_store else {
        bail!(
            "--backend neuron needs --neuron-store DIR, where `millrace compile` has put the compiled graphs"
        );
    };
    let planned = planned(args, checkpoint, max_model_len)?;
    let store = Store::new(store);
    let compiler = match &args.compiler {
        Some(program) => Some(Compiler::new(program)?),
        // Absent on most hosts that serve: then the store must have every graph.
        None => Compiler::new(Path::new("neuronx-cc")).ok(),
    };
    let options = NeuronOptions {
        model: planned.spec.model.clone(),
        max_model_len,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        hang: HANG,
    };
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let timeout = Duration::from_secs(4 * 3600);
    let compiling = CompileOptions { jobs, timeout, interrupted: &|| false };
    let device = Device::open(args.neuron_library.as_deref(), args.tensor_parallel_size)?;
    let bar = bytes_bar("uploading weights");
    let progress = |bytes: u64| bar.inc(bytes);
    let runner = load(device, checkpoint, &planned.spec.config, &options, &progress, &mut |model| {
        let spec = Spec { model: model.clone(), ..planned.spec.clone() };
        compile_missing(
            &spec,
            &planned.buckets,
            &store,
            compiler.as_ref(),
            &compiling,
            &|bucket, outcome| {
                tracing::info!(bucket = label(bucket), ?outcome, "program");
            },
        )?;
        let program = |bucket| Ok(ensure(&spec, bucket, &store, compiler.as_ref(), &compiling)?.0);
        planned.buckets.iter().map(program).collect()
    });
    bar.finish_and_clear();
    Ok(runner?)
}

fn planned(args: &ModelArgs, checkpoint: &Checkpoint, max_model_len: usize) -> anyhow::Result<Planned> {
    let Some(target) = &args.target else {
        bail!("--backend neuron needs --target inf2, trn1 or trn2");
    };
    let target: Target = target.parse().map_err(anyhow::Error::msg).context("--target")?;
    let dtype = match args.dtype {
        WeightDtype::Auto | WeightDtype::Bf16 => DType::BF16,
        WeightDtype::F32 => DType::F32,
        WeightDtype::F16 => bail!("--dtype f16: NeuronCores compute in bf16 or f32 here"),
    };
    let buckets = args.buckets.as_deref().map(buckets::parse).transpose().context("--buckets")?;
    Ok(plan(
        checkpoint.config(),
        &PlanOptions {
            name: model_name(&args.model),
            target,
            model: DeviceModel {
                ranks: args.tensor_parallel_size,
                dtype,
                weights: DeviceWeights::Float,
                candidates: CANDIDATES,
                top_k: TopKForm::Hlo,
                block_size: args.block_size,
                kv_blocks: 1,
            },
            limits: Limits {
                max_num_seqs: args.max_num_seqs,
                max_model_len,
                max_num_batched_tokens: args.max_num_batched_tokens,
                block_size: args.block_size,
            },
            kv: KvOptions { bytes: args.kv_memory.map(|size| size.0) },
            buckets,
            histogram: None,
        },
    )?)
}
