//! What the host adds to `nrt_execute` in a step of 32 decodes of a model of 32 layers: the whole engine over the Neuron
//! runner and the software double of the runtime, which after a check computes nothing any more (`SOFTNRT_NOOP`).
//!
//! First the double computes, and its greedy answers must be the CPU backend's. Then, for each iteration of 32 decodes:
//! what the runner takes (dispatch, inputs, the way to the core's thread and back, `nrt_tensor_write`, `nrt_execute`,
//! `nrt_tensor_read`, merging) without the time inside of `nrt_execute`, what the engine takes (planning, sampling,
//! committing), and both. There must be one execution an iteration on each core. The double's copies stand for the
//! device's, which are slower; nothing here is a device's speed.
#![allow(clippy::print_stdout, reason = "it prints what it measures")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use millrace_engine::cpu::{CpuOptions, CpuRunner};
use millrace_engine::neuron::store::{Artefact, Store};
use millrace_engine::neuron::{
    Bucket, Device, KvSource, NeuronOptions, Provide, ProvideError, Spec, Target, load,
};
use millrace_engine::*;
use millrace_graph::DType;
use millrace_kernels::Precision;
use millrace_models::device::{DeviceModel, DeviceWeights, TopKForm};
use millrace_models::{Checkpoint, Config};
use neuron_sys::{CoreThread, Runtime};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use softnrt::testing::Double;

const ROWS: usize = 32;
const LAYERS: usize = 32;
const VOCAB: usize = 32_000;
const BLOCK: usize = 16;
const CONTEXT: usize = 512;
const PROMPT: usize = 16;
const CANDIDATES: usize = 64;
const BUCKETS: [Bucket; 2] = [
    Bucket { rows: ROWS, width: 1, blocks: CONTEXT / BLOCK, adjust: true },
    Bucket { rows: 1, width: PROMPT, blocks: CONTEXT / BLOCK, adjust: false },
];

/// A model with the tensors of one of 32 layers, narrow enough to be computed by the double.
fn model(directory: &Path) -> Checkpoint {
    let (hidden, heads, kv_heads, dim, ffn) = (64, 4, 2, 16, 128);
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": LAYERS, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "hidden_act": "silu", "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).expect("a writable directory");
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for name in ["embed_tokens", "norm"] {
        let shape = if name == "norm" { vec![hidden] } else { vec![VOCAB, hidden] };
        shapes.insert(format!("model.{name}.weight"), shape);
    }
    shapes.insert("lm_head.weight".into(), vec![VOCAB, hidden]);
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![heads * dim, hidden]),
            ("self_attn.k_proj", vec![kv_heads * dim, hidden]),
            ("self_attn.v_proj", vec![kv_heads * dim, hidden]),
            ("self_attn.o_proj", vec![hidden, heads * dim]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let mut seed = 7u32;
    let mut random = move || {
        // Numerical Recipes' linear congruence: any numbers will do, if they are the same ones every time.
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut bytes: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (name, shape) in &shapes {
        let scale = if shape.len() == 1 { 0.0 } else { 4.0 / (shape[1] as f32).sqrt() };
        let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
        let numbers = (0..shape.iter().product()).flat_map(|_| (offset + scale * random()).to_le_bytes());
        bytes.insert(name.clone(), numbers.collect());
    }
    let views = shapes.into_iter().map(|(name, shape)| {
        let view =
            TensorView::new(Dtype::F32, shape, &bytes[&name]).expect("as many bytes as the shape says");
        (name, view)
    });
    let views: Vec<(String, TensorView<'_>)> = views.collect();
    serialize_to_file(views, None, &directory.join("model.safetensors")).expect("a writable directory");
    Checkpoint::open(directory).expect("a model")
}

fn compile(store: &Store, config: Config, model: &DeviceModel, bucket: Bucket) -> Artefact {
    let spec = Spec {
        config,
        model: model.clone(),
        name: "bench".into(),
        target: Target::Trn1,
        compiler_flags: Vec::new(),
    };
    let request = spec.request(&bucket).expect("the model can be divided");
    let lock = store.lock(&request, "softcc", &|| false).expect("the lock is free");
    let staging = store.stage(lock, &request).expect("the store is writable");
    let (hlo, neff) = (staging.hlo(), staging.neff());
    let words = ["softcc", "compile"].into_iter().chain(request.flags.iter().map(String::as_str));
    let words =
        words.chain(["--output"]).map(Into::into).chain([neff.into_os_string(), hlo.into_os_string()]);
    softnrt::compiler::main(words);
    staging.commit(&request, "softcc", 0.0).expect("it compiled");
    store.find(&request, Some("softcc")).expect("the store is sound").expect("it was just compiled")
}

struct Programs {
    store: Store,
    config: Config,
}

impl Provide for Programs {
    fn sizes(&mut self, _: &DeviceModel, _: &[Bucket]) -> Vec<usize> {
        Vec::new()
    }

    fn provide(
        &mut self,
        model: &DeviceModel,
        buckets: &[Bucket],
        _: &AtomicBool,
        each: &mut dyn FnMut(Artefact),
    ) -> Result<(), ProvideError> {
        buckets.iter().for_each(|bucket| each(compile(&self.store, self.config.clone(), model, *bucket)));
        Ok(())
    }
}

fn neuron(checkpoint: &Checkpoint, ranks: usize, double: &Double, store: PathBuf) -> Box<dyn Runner> {
    let options = NeuronOptions {
        model: DeviceModel {
            ranks,
            dtype: DType::F32,
            weights: DeviceWeights::Float,
            candidates: CANDIDATES,
            top_k: TopKForm::Hlo,
            block_size: BLOCK,
            kv_blocks: (ROWS + 1) * CONTEXT / BLOCK,
        },
        buckets: BUCKETS.to_vec(),
        kv: KvSource::Given,
        max_model_len: CONTEXT,
        max_num_seqs: ROWS,
        max_num_batched_tokens: CONTEXT,
        hang: Duration::from_secs(60),
    };
    let programs = Programs { store: Store::new(store), config: checkpoint.config().clone() };
    let device = Device::claim(double.library().clone(), ranks).expect("there are cores");
    let runner = load(device, checkpoint, checkpoint.config(), &options, &|_| {}, Box::new(programs));
    Box::new(runner.expect("it loads"))
}

fn cpu(checkpoint: &Checkpoint) -> Box<dyn Runner> {
    let options = CpuOptions {
        threads: 2,
        precision: Precision::Reference,
        kv_dtype: DType::F32,
        block_size: BLOCK,
        kv_bytes: 256 << 20,
        weight_dtype: None,
        max_model_len: CONTEXT,
        max_num_seqs: ROWS,
        max_num_batched_tokens: CONTEXT,
        packed_cache: None,
    };
    Box::new(CpuRunner::load(checkpoint, &options, &mut |_, _| {}).expect("it loads"))
}

/// Seconds of an iteration.
#[derive(Clone, Copy)]
struct Cost {
    host: f64,
    runner: f64,
    execute: f64,
    executions: u64,
}

/// Sends on what each iteration of a full batch cost.
struct Costs {
    sender: mpsc::Sender<Cost>,
    double: Option<Arc<Double>>,
    before: (u64, Duration),
}

impl Observer for Costs {
    fn step(&mut self, stats: &StepStats<'_>) {
        let Some(double) = &self.double else { return };
        let after = double.executions();
        let cost = Cost {
            host: stats.host_seconds,
            runner: stats.device_seconds,
            execute: (after.1 - self.before.1).as_secs_f64(),
            executions: after.0 - self.before.0,
        };
        self.before = after;
        if stats.rows == ROWS && stats.generation_tokens == ROWS && stats.computed_tokens == ROWS {
            // Nobody listens when the measurement is over.
            let _ = self.sender.send(cost);
        }
    }

    fn request(&mut self, _: &RequestStats) {}
}

struct Running {
    handle: Handle,
    thread: std::thread::JoinHandle<Result<(), RunError>>,
    costs: mpsc::Receiver<Cost>,
}

fn run(runner: Box<dyn Runner>, double: Option<Arc<Double>>) -> Running {
    let config = EngineConfig {
        max_num_seqs: ROWS,
        max_num_batched_tokens: CONTEXT,
        max_prefill_beside_decode: CONTEXT,
        max_model_len: CONTEXT,
        prefix_caching: false,
        ..EngineConfig::default()
    };
    let (sender, costs) = mpsc::channel();
    let before = double.as_ref().map(|double| double.executions()).unwrap_or_default();
    let (handle, thread) =
        start(runner, config, Box::new(Costs { sender, double, before })).expect("it starts");
    Running { handle, thread, costs }
}

impl Running {
    /// Greedy answers to 32 prompts at once.
    fn answers(&self, max_tokens: usize) -> Vec<Vec<TokenId>> {
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: max_tokens as u32,
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let submit = |row: usize| {
            let prompt = (0..PROMPT).map(|at| ((row * 977 + at * 131) % VOCAB) as TokenId).collect();
            let request = Request { prompt, params: params.clone(), n: 1, ..Request::default() };
            self.handle.submit(request).expect("accepted").remove(0)
        };
        let mut receivers: Vec<_> = (0..ROWS).map(submit).collect();
        let mut answers = Vec::new();
        for receiver in &mut receivers {
            let mut answer = Vec::new();
            loop {
                match receiver.blocking_recv().expect("the engine lives") {
                    Event::Started { .. } => {}
                    Event::Token { token, .. } => answer.push(token),
                    Event::Finished(_) => break,
                    Event::Failed(error) => panic!("{error}"),
                }
            }
            answers.push(answer);
        }
        answers
    }

    fn finish(self) {
        self.handle.drain();
        drop(self.handle);
        self.thread.join().expect("no panic").expect("no failure");
    }
}

/// Median and 95th percentile, in microseconds.
fn spread(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> String {
    let mut all: Vec<f64> = costs.iter().map(|cost| of(cost) * 1e6).collect();
    all.sort_by(f64::total_cmp);
    format!("{:>8.1} µs median {:>8.1} µs p95", all[all.len() / 2], all[all.len() * 95 / 100])
}

fn measure(checkpoint: &Checkpoint, ranks: usize, expected: &[Vec<TokenId>], store: PathBuf) {
    let double = Arc::new(Double::new(&[("SOFTNRT_CORES", "2")]));
    let running = run(neuron(checkpoint, ranks, &double, store), Some(double.clone()));
    assert_eq!(running.answers(expected[0].len()), expected, "the device's answers are the CPU's");
    double.set("SOFTNRT_NOOP", "1");
    running.costs.try_iter().for_each(drop);
    for _ in 0..3 {
        running.answers(CONTEXT - PROMPT - 1);
    }
    let costs: Vec<Cost> = running.costs.try_iter().collect();
    running.finish();
    assert!(costs.len() > 1000, "{} iterations of a full batch", costs.len());
    assert!(costs.iter().all(|cost| cost.executions == ranks as u64), "one execution on each core");
    let inside = |cost: &Cost| cost.execute / ranks as f64;
    println!("{ranks} core(s), {} iterations of {ROWS} decodes:", costs.len());
    println!("  runner without nrt_execute    {}", spread(&costs, |cost| cost.runner - inside(cost)));
    println!("  engine: plan, sample, commit  {}", spread(&costs, |cost| cost.host));
    println!(
        "  both                          {}",
        spread(&costs, |cost| cost.host + cost.runner - inside(cost))
    );
    println!("  (the double's nrt_execute     {})", spread(&costs, inside));
}

/// What the pieces cost that are not the runner's own: a way to a core's thread and back, and the copies of one step.
fn pieces() {
    let double = Double::new(&[("SOFTNRT_CORES", "1"), ("SOFTNRT_NOOP", "1")]);
    let runtime = Runtime::init(double.library().clone()).expect("a core");
    let core = runtime.core(0).expect("a core");
    let blocks = ROWS * CONTEXT / BLOCK;
    let inputs = [ROWS, ROWS, ROWS, blocks, ROWS].map(|count| 4 * count);
    let outputs = [ROWS * CANDIDATES, ROWS * CANDIDATES, ROWS].map(|count| 4 * count);
    let thread = CoreThread::spawn(core, 8, move |core| {
        inputs.iter().chain(&outputs).map(|bytes| core.allocate("piece", *bytes).expect("memory")).collect()
    });
    let thread: CoreThread<Vec<neuron_sys::Tensor>> = thread.expect("a thread");
    let cost = |seconds: f64| Cost { host: seconds, runner: 0.0, execute: 0.0, executions: 0 };
    let mut ways = Vec::new();
    for _ in 0..3000 {
        let started = std::time::Instant::now();
        thread.run(|_| ()).expect("the thread lives");
        ways.push(cost(started.elapsed().as_secs_f64()));
    }
    let copies = thread.run(move |tensors| {
        let mut buffer = vec![0; 4 * ROWS * CANDIDATES.max(CONTEXT / BLOCK)];
        let mut copies = Vec::new();
        for _ in 0..3000 {
            let started = std::time::Instant::now();
            for (tensor, bytes) in tensors.iter().zip(inputs) {
                tensor.write(0, &buffer[..bytes]).expect("it fits");
            }
            for (tensor, bytes) in tensors[inputs.len()..].iter().zip(outputs) {
                tensor.read(0, &mut buffer[..bytes]).expect("it fits");
            }
            copies.push(cost(started.elapsed().as_secs_f64()));
        }
        copies
    });
    let copies = copies.expect("the thread lives");
    println!("pieces of it:");
    println!("  to a core's thread and back   {}", spread(&ways, |cost| cost.host));
    println!("  5 writes and 3 reads          {}", spread(&copies, |cost| cost.host));
}

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let checkpoint = model(scratch.path());
    let reference = run(cpu(&checkpoint), None);
    let expected = reference.answers(4);
    reference.finish();
    for ranks in [1, 2] {
        measure(&checkpoint, ranks, &expected, scratch.path().join(format!("store-{ranks}")));
    }
    pieces();
}
