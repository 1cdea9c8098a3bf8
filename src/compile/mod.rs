//! `millrace compile`: plans a model's graphs for a device, says what they cost, and fills the store. It needs no
//! device, and with `--hlo-only` neither weights nor a compiler.

mod interrupt;

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use millrace_engine::neuron::buckets::{self, Histogram, Limits, Padding};
use millrace_engine::neuron::compiler::{CompileOptions, Compiler, Outcome, compile_missing};
use millrace_engine::neuron::store::Store;
use millrace_engine::neuron::{Bucket, EncoderSpec, Graphs, encoder_buckets, label, plan};
use millrace_graph::DType;
use millrace_models::{EncoderConfig, read_config};

use crate::args::{CompileArgs, DeviceDtype};
use crate::load;
use crate::neuron::COMPILER;

/// Plans, prints, compiles.
pub(crate) fn run(args: &CompileArgs) -> anyhow::Result<()> {
    let path = load::find(&args.model)?;
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    if is_encoder(&path) {
        return run_encoder(args, &path, jobs);
    }
    let config = read_config(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let dtype = match args.dtype {
        DeviceDtype::Bf16 => DType::BF16,
        DeviceDtype::F32 => DType::F32,
    };
    let options = args.graph.plan_options(&args.model, config.context, dtype)?;
    let planned = plan(&config, &options)?;
    print!("{}", planned.memory);
    let (limits, given) = (options.limits, options.histogram.is_some());
    let histogram = options.histogram.unwrap_or_else(|| Histogram::typical(limits.max_model_len));
    print!("{}", padding_table(&planned.buckets, &limits, &histogram, given));
    match args.hlo_only {
        true => write_hlo(&planned.spec, &planned.buckets, &args.output, jobs),
        false => fill_store(&planned.spec, &planned.buckets, args, jobs),
    }
}

/// Whether a folder holds a sentence encoder of the BERT family.
fn is_encoder(path: &Path) -> bool {
    let text = std::fs::read_to_string(path.join("config.json")).unwrap_or_default();
    // What cannot be read is for the decoder's reader to complain about.
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    config["model_type"] == "bert"
}

/// Sentence encoders have no KV cache, and run on one core in f32.
fn run_encoder(args: &CompileArgs, path: &Path, jobs: usize) -> anyhow::Result<()> {
    let config = EncoderConfig::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let graph = &args.graph;
    if graph.buckets.is_some() || graph.weights.is_some() || graph.tensor_parallel_size != 1 {
        bail!(
            "{} is a sentence encoder: its graphs are planned, of f32, for one core, without --buckets, --weights or \
             --tensor-parallel-size",
            path.display()
        );
    }
    let spec = EncoderSpec {
        target: graph.target()?,
        name: load::model_name(&args.model),
        compiler_flags: graph.compiler_flag.clone(),
        config,
    };
    let buckets = encoder_buckets(&spec.config);
    let labels: Vec<String> = buckets.iter().map(label).collect();
    println!("sentence encoder of {} layers, texts x tokens: {}", spec.config.layers, labels.join(", "));
    match args.hlo_only {
        true => write_hlo(&spec, &buckets, &args.output, jobs),
        false => fill_store(&spec, &buckets, args, jobs),
    }
}

/// What each set of buckets pads, the chosen one last.
fn padding_table(buckets: &[Bucket], limits: &Limits, histogram: &Histogram, given: bool) -> String {
    let prompts = buckets.iter().filter(|bucket| bucket.width > 1).count();
    let of = if given { "the given lengths" } else { "typical lengths" };
    let mut out = format!("padding on {of}:\n  {:<38} graphs  prompt padding  prompt cost\n", "");
    let mut line = |what: &str, padding: Padding, graphs: usize| {
        let (share, cost) = (100.0 * padding.prompts, padding.prompt_cost);
        out += &format!("  {what:<38} {graphs:>6}  {share:>13.1}%  {cost:>10.2}x\n");
    };
    for (what, k) in [("whole prompts, powers of two", None), ("whole prompts, edges by histogram", Some(6))]
    {
        let set = buckets::whole_prompts(limits, histogram, k);
        line(what, buckets::padding(&set, limits, histogram, false), set.len());
    }
    let chosen = buckets::padding(buckets, limits, histogram, true);
    line("these buckets, prompts cut into runs", chosen, prompts);
    let decodes = buckets.len() - prompts;
    out += &format!(
        "  {decodes} decode graphs; {:.1}% of the context they read is padding\n",
        100.0 * chosen.contexts
    );
    out
}

fn write_hlo(graphs: &dyn Graphs, buckets: &[Bucket], output: &Path, jobs: usize) -> anyhow::Result<()> {
    let directory = output.join("hlo");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let started = Instant::now();
    let (next, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || -> anyhow::Result<()> {
        while let Some(bucket) = buckets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let request = graphs.request(bucket).with_context(|| label(bucket))?;
            let path = directory.join(format!("{}.hlo.pb", label(bucket)));
            std::fs::write(&path, &request.hlo)
                .with_context(|| format!("cannot write {}", path.display()))?;
            bytes.fetch_add(request.hlo.len(), Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.clamp(1, buckets.len().max(1))).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    println!(
        "{} graphs, {:.1} MiB of HLO, in {:.1} s: {}",
        buckets.len(),
        bytes.into_inner() as f64 / f64::from(1 << 20),
        started.elapsed().as_secs_f64(),
        directory.display()
    );
    Ok(())
}

fn fill_store(
    graphs: &dyn Graphs,
    buckets: &[Bucket],
    args: &CompileArgs,
    jobs: usize,
) -> anyhow::Result<()> {
    let compiler = Compiler::new(args.graph.compiler.as_deref().unwrap_or(Path::new(COMPILER)))?;
    let store = Store::new(&args.output);
    let stale = store.clean()?;
    if stale > 0 {
        println!("removed {stale} directories that interrupted compilations had left");
    }
    println!("compiler: {}", compiler.version());
    let interrupted = interrupt::watch()?;
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(buckets.len() as u64),
        false => ProgressBar::hidden(),
    };
    let style =
        ProgressStyle::with_template("compiling {bar:40} {pos}/{len}, {elapsed} so far, about {eta} to go");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(500));
    let found = AtomicUsize::new(0);
    let on = |bucket: &Bucket, outcome: Outcome| {
        match outcome {
            Outcome::Found => drop(found.fetch_add(1, Ordering::Relaxed)),
            Outcome::Compiled(seconds) => {
                bar.suspend(|| println!("{:<24} {seconds:>8.1} s", label(bucket)));
            }
        }
        bar.inc(1);
    };
    let options = CompileOptions {
        jobs,
        timeout: Duration::from_secs(args.compile_timeout),
        interrupted: &|| interrupted.load(Ordering::Relaxed),
    };
    let done = compile_missing(graphs, buckets, &store, Some(&compiler), &options, &on);
    bar.finish_and_clear();
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted; what was compiled is kept, and the same command goes on from there");
    }
    done?;
    let (all, found) = (buckets.len(), found.into_inner());
    println!("{all} graphs in {}, {found} of them were there before", args.output.display());
    Ok(())
}
