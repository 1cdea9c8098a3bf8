//! `millrace bench`: a workload in process, through the same engine and runner that serve requests.

mod divergence;
mod report;
mod structured;
mod workload;

use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use millrace_engine::{Event, Handle, Observer, Request, RequestStats, SamplingParams, StepStats};
use tokio::sync::Semaphore;

use crate::args::{Batching, BenchArgs};
use crate::load;
use report::{Percentiles, Report};
use workload::{Item, Shape};

/// Runs the bench and prints its report.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.shared_prefix_len > args.input_len.low {
        let (prefix, input) = (args.shared_prefix_len, args.input_len.low);
        bail!("--shared-prefix-len {prefix} is longer than the shortest prompt of --input-len, {input}");
    }
    if args.request_rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        bail!("--request-rate must be a positive number of requests a second");
    }
    if let Some(file) = &args.divergence {
        return divergence::run(&args.model, file, args.json);
    }
    if args.structured {
        return structured::run(args);
    }
    let started = Instant::now();
    let loaded = load::open(&args.model, &Default::default())?;
    let model_name = loaded.name.clone();
    let longest = args.input_len.high + args.output_len.high;
    if longest > loaded.max_model_len {
        let limit = loaded.max_model_len;
        bail!(
            "--input-len and --output-len reach {longest} tokens, the model takes {limit} (--max-model-len)"
        );
    }
    let static_batching = args.batching == Batching::Static;
    let collected = Arc::new(Mutex::new(Collected::default()));
    let observer = Box::new(Collector(collected.clone()));
    let engine = loaded.start(&args.model, args.num_requests.max(1), static_batching, observer)?;
    let load_seconds = started.elapsed().as_secs_f64();

    let items = workload::draw(&Shape {
        requests: args.num_requests,
        input: args.input_len,
        output: args.output_len,
        shared_prefix: args.shared_prefix_len,
        rate: args.request_rate,
        vocab: engine.vocab as u32,
        seed: args.model.seed,
    });
    let concurrency = args.concurrency.unwrap_or(args.num_requests).max(1);
    let progress = progress_bar(&items, args.json);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let begun = Instant::now();
    let sampling = SamplingParams {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        repetition_penalty: args.repetition_penalty,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let timings = runtime.block_on(drive(&engine.handle, &items, &sampling, concurrency, &progress))?;
    let wall = begun.elapsed().as_secs_f64();
    progress.finish_and_clear();
    let (backend, threads, kv_bytes) = (engine.backend.clone(), engine.threads, engine.kv_bytes);
    engine.stop()?;

    let sums = std::mem::take(&mut *collected.lock().expect("the collector does not panic"));
    let output_tokens: usize = timings.iter().map(|timing| timing.tokens.len()).sum();
    let per_second = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    let mean_rows = sums.rows as f64 / sums.steps.max(1) as f64;
    let gaps = timings.iter().flat_map(|timing| timing.tokens.windows(2).map(|pair| pair[1] - pair[0]));
    let report = Report {
        model: model_name,
        backend,
        precision: format!("{:?}", args.model.precision).to_lowercase(),
        threads,
        batching: format!("{:?}", args.batching).to_lowercase(),
        num_requests: items.len(),
        concurrency,
        seed: args.model.seed,
        load_seconds,
        wall_seconds: wall,
        input_tokens: items.iter().map(|item| item.prompt.len()).sum(),
        output_tokens,
        requests_per_second: items.len() as f64 / wall,
        output_tokens_per_second: per_second(output_tokens, wall),
        prefill_tokens_per_second: per_second(sums.prefill_tokens, sums.prefill_seconds),
        decode_tokens_per_second: per_second(sums.decode_tokens, sums.decode_seconds),
        ttft_ms: Percentiles::of(timings.iter().map(|t| t.tokens[0] - t.submitted).collect()),
        inter_token_ms: Percentiles::of(gaps.collect()),
        e2e_ms: Percentiles::of(timings.iter().map(Timing::total).collect()),
        steps: sums.steps,
        mean_batch_rows: mean_rows,
        batch_occupancy: mean_rows / args.model.graph.max_num_seqs.min(concurrency) as f64,
        padding: 0.0,
        prefix_hit_rate: sums.prefix_hits as f64 / sums.prefix_queries.max(1) as f64,
        preemptions: sums.preemptions,
        host_share: sums.host_seconds / (sums.host_seconds + sums.device_seconds).max(f64::MIN_POSITIVE),
        kv_cache_bytes: kv_bytes,
        peak_rss_bytes: peak_rss_bytes()?,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Seconds since the start of the run.
struct Timing {
    submitted: f64,
    tokens: Vec<f64>,
}

impl Timing {
    fn total(&self) -> f64 {
        self.tokens.last().map_or(0.0, |last| last - self.submitted)
    }
}

/// Sends every item when its time has come and a place is free, and times its tokens.
async fn drive(
    handle: &Handle,
    items: &[Item],
    sampling: &SamplingParams,
    concurrency: usize,
    progress: &ProgressBar,
) -> anyhow::Result<Vec<Timing>> {
    let start = Instant::now();
    let places = Arc::new(Semaphore::new(concurrency));
    let mut tasks = Vec::with_capacity(items.len());
    for item in items {
        let due = Duration::from_secs_f64(item.arrival);
        if let Some(early) = due.checked_sub(start.elapsed()) {
            tokio::time::sleep(early).await;
        }
        let place = places.clone().acquire_owned().await?;
        let params = SamplingParams { max_tokens: item.output, ..sampling.clone() };
        let request = Request { prompt: item.prompt.clone(), params, n: 1, ..Request::default() };
        let submitted = start.elapsed().as_secs_f64();
        let mut events = handle.submit(request)?.pop().context("a request has one sequence")?;
        let (wanted, progress) = (item.output as usize, progress.clone());
        tasks.push(tokio::spawn(async move {
            let mut tokens = Vec::with_capacity(wanted);
            while let Some(event) = events.recv().await {
                match event {
                    Event::Started { .. } => {}
                    Event::Token { .. } => {
                        tokens.push(start.elapsed().as_secs_f64());
                        progress.inc(1);
                    }
                    Event::Finished(_) => break,
                    Event::Failed(error) => return Err(error.into()),
                }
            }
            drop(place);
            if tokens.len() != wanted {
                bail!("a request got {} of {wanted} tokens", tokens.len());
            }
            Ok(Timing { submitted, tokens })
        }));
    }
    let mut timings = Vec::with_capacity(tasks.len());
    for task in tasks {
        timings.push(task.await??);
    }
    Ok(timings)
}

fn progress_bar(items: &[Item], quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let tokens = items.iter().map(|item| u64::from(item.output)).sum();
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} tokens, {per_sec}, {eta} left");
    ProgressBar::new(tokens).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Sums over iterations.
#[derive(Default)]
struct Collected {
    steps: usize,
    rows: usize,
    prefill_tokens: usize,
    prefill_seconds: f64,
    decode_tokens: usize,
    decode_seconds: f64,
    prefix_queries: usize,
    prefix_hits: usize,
    preemptions: usize,
    host_seconds: f64,
    device_seconds: f64,
}

struct Collector(Arc<Mutex<Collected>>);

impl Observer for Collector {
    fn step(&mut self, stats: &StepStats<'_>) {
        let mut sums = self.0.lock().expect("the collector does not panic");
        sums.prefix_queries += stats.prefix_queries;
        sums.prefix_hits += stats.prefix_hits;
        sums.preemptions += stats.preemptions;
        if stats.rows == 0 {
            return;
        }
        let seconds = stats.host_seconds + stats.device_seconds;
        let decodes = stats.inter_token_latency.len();
        sums.steps += 1;
        sums.rows += stats.rows;
        sums.host_seconds += stats.host_seconds;
        sums.device_seconds += stats.device_seconds;
        if stats.computed_tokens > decodes {
            sums.prefill_tokens += stats.computed_tokens - decodes;
            sums.prefill_seconds += seconds;
        } else {
            sums.decode_tokens += decodes;
            sums.decode_seconds += seconds;
        }
    }

    fn request(&mut self, _: &RequestStats) {}
}

/// The most memory this process ever had resident, from the kernel's account of it.
fn peak_rss_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib =
        line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    Ok(kib.context("/proc/self/status has no VmHWM line")? * 1024)
}
