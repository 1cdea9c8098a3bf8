//! The Neuron backend on the software double of its runtime: compiler, store, library, programs, executions. Greedy
//! ids are compared with answers that were computed elsewhere, those of golden checkpoints.
#![allow(clippy::print_stderr, reason = "a test that skips says so")]

mod encoder;
mod late;
mod nan;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use millrace_engine::neuron::store::{Artefact, Store};
use millrace_engine::neuron::{
    Bucket, Device, KvSource, NeuronFigures, NeuronOptions, Provide, ProvideError, Spec, Target, load,
};
use millrace_engine::*;
use millrace_graph::DType;
use millrace_models::device::{DeviceModel, DeviceWeights, TopKForm};
use millrace_models::{Checkpoint, Config};
use neuron_sys::{Phase, Reaction, Status};
use safetensors::SafeTensors;
use softnrt::testing::Double;

const BLOCK: usize = 16;
const CONTEXT: usize = 128;

fn golden(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden").join(name);
    folder.is_dir().then_some(folder)
}

fn families() -> Vec<PathBuf> {
    let Some(root) = golden("") else {
        eprintln!("skipped: no golden answers beside the project");
        return Vec::new();
    };
    let entries = std::fs::read_dir(root).expect("a readable folder");
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable entry").path()).collect();
    folders.retain(|folder| folder.join("golden.safetensors").is_file());
    folders.sort();
    assert_eq!(folders.len(), 8, "golden checkpoints");
    folders
}

/// A directory of its own, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millrace-neuron-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a writable temporary directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left in the temporary directory is not worth a panic.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const fn bucket(rows: usize, width: usize, adjust: bool) -> Bucket {
    Bucket { rows, width, blocks: CONTEXT / BLOCK, adjust }
}

const BUCKETS: [Bucket; 5] =
    [bucket(1, 1, true), bucket(4, 1, false), bucket(2, 1, true), bucket(1, 16, false), bucket(1, 4, false)];

/// Writes the graph, compiles it by the compiler's double, and reads it back from the store.
fn compile(store: &Store, config: Config, model: &DeviceModel, bucket: Bucket) -> Artefact {
    let spec = Spec {
        config,
        model: model.clone(),
        name: "golden".into(),
        target: Target::Trn1,
        compiler_flags: Vec::new(),
    };
    compile_request(store, &spec.request(&bucket).expect("the model can be divided"))
}

fn compile_request(store: &Store, request: &neuron::Request) -> Artefact {
    if let Some(found) = store.find(request, Some("softcc")).expect("the store is sound") {
        return found;
    }
    let lock = store.lock(request, "softcc", &|| false).expect("the lock is free");
    let staging = store.stage(lock, request).expect("the store is writable");
    let (hlo, neff) = (staging.hlo(), staging.neff());
    let words =
        ["softcc", "compile"].into_iter().chain(request.flags.iter().map(String::as_str)).chain(["--output"]);
    let words = words.map(Into::into).chain([neff.into_os_string(), hlo.into_os_string()]);
    softnrt::compiler::main(words);
    staging.commit(request, "softcc", 0.25).expect("it compiled");
    store.find(request, Some("softcc")).expect("the store is sound").expect("it was just compiled")
}

/// Lets programs through that are not among the first ones.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().expect("no panic") = true;
        self.changed.notify_all();
    }

    /// Whether it is open, unless one is to stop before that.
    fn pass(&self, stop: &AtomicBool) -> bool {
        let mut open = self.open.lock().expect("no panic");
        while !*open && !stop.load(Ordering::Relaxed) {
            open = self.changed.wait_timeout(open, Duration::from_millis(5)).expect("no panic").0;
        }
        *open
    }
}

struct Programs {
    store: Store,
    config: Config,
    sizes: Vec<usize>,
    gate: Option<Arc<Gate>>,
    asked: usize,
}

impl Provide for Programs {
    fn sizes(&mut self, _: &DeviceModel, _: &[Bucket]) -> Vec<usize> {
        self.sizes.clone()
    }

    fn provide(
        &mut self,
        model: &DeviceModel,
        buckets: &[Bucket],
        stop: &AtomicBool,
        each: &mut dyn FnMut(Artefact),
    ) -> Result<(), ProvideError> {
        self.asked += 1;
        for bucket in buckets {
            let shut = self.asked > 1 && self.gate.as_ref().is_some_and(|gate| !gate.pass(stop));
            if shut || stop.load(Ordering::Relaxed) {
                return Err("stopped".into());
            }
            each(compile(&self.store, self.config.clone(), model, *bucket));
        }
        Ok(())
    }
}

struct Setup {
    ranks: usize,
    kv_blocks: usize,
    candidates: usize,
    weights: DeviceWeights,
    top_k: TopKForm,
    buckets: Vec<Bucket>,
    kv: KvSource,
    /// Sizes of the KV cache for which there are programs already.
    sizes: Vec<usize>,
    gate: Option<Arc<Gate>>,
    settings: Vec<(&'static str, String)>,
    config: EngineConfig,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            ranks: 1,
            kv_blocks: 40,
            candidates: 16,
            weights: DeviceWeights::Float,
            top_k: TopKForm::Hlo,
            buckets: BUCKETS.to_vec(),
            kv: KvSource::Given,
            sizes: Vec::new(),
            gate: None,
            settings: vec![("SOFTNRT_CORES", "4".into())],
            config: EngineConfig {
                max_num_seqs: 8,
                max_num_batched_tokens: 48,
                max_prefill_beside_decode: 24,
                max_model_len: CONTEXT,
                ..EngineConfig::default()
            },
        }
    }
}

struct Rig {
    handle: Handle,
    thread: JoinHandle<Result<(), RunError>>,
    figures: Arc<NeuronFigures>,
    kv_blocks: usize,
    double: Double,
    _scratch: Scratch,
}

impl Setup {
    fn start(&self, folder: &Path) -> Result<Rig, Box<dyn std::error::Error>> {
        let scratch = Scratch::new();
        let store = Store::new(scratch.0.join("store"));
        let checkpoint = Checkpoint::open(folder)?;
        let config = checkpoint.config().with_context(CONTEXT)?;
        let settings: Vec<(&str, &str)> =
            self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let double = Double::new(&settings);
        let options = NeuronOptions {
            model: DeviceModel {
                ranks: self.ranks,
                dtype: DType::F32,
                weights: self.weights,
                candidates: self.candidates,
                top_k: self.top_k,
                block_size: BLOCK,
                kv_blocks: self.kv_blocks,
            },
            buckets: self.buckets.clone(),
            kv: self.kv,
            max_model_len: CONTEXT,
            max_num_seqs: 8,
            max_num_batched_tokens: 48,
            hang: Duration::from_secs(60),
        };
        let device = Device::claim(double.library().clone(), self.ranks)?;
        let programs = Programs {
            store,
            config: config.clone(),
            sizes: self.sizes.clone(),
            gate: self.gate.clone(),
            asked: 0,
        };
        let runner = load(device, &checkpoint, &config, &options, &|_| {}, Box::new(programs))?;
        let (figures, kv_blocks) = (runner.figures(), runner.kv().blocks);
        let (handle, thread) = start(Box::new(runner), self.config.clone(), Box::new(()))?;
        Ok(Rig { handle, thread, figures, kv_blocks, double, _scratch: scratch })
    }
}

impl Rig {
    /// Ends it, and checks that the library has nothing to complain about.
    fn finish(self) {
        self.handle.drain();
        drop(self.handle);
        self.thread.join().expect("no panic").expect("no failure");
        assert!(self.double.complaints().is_empty(), "{:?}", self.double.complaints());
    }
}

fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: max_tokens as u32,
        ignore_eos: true,
        seed: Some(1),
        ..SamplingParams::default()
    };
    Request { prompt: prompt.to_vec(), params, n: 1, ..Request::default() }
}

type Receiver = tokio::sync::mpsc::UnboundedReceiver<Event>;

fn read(receiver: &mut Receiver) -> (Vec<u32>, Vec<TokenLogprobs>, Option<RequestError>) {
    let (mut tokens, mut scores) = (Vec::new(), Vec::new());
    while let Some(event) = receiver.blocking_recv() {
        match event {
            Event::Started { .. } => {}
            Event::Token { token, logprobs } => {
                tokens.push(token);
                scores.extend(logprobs.map(|boxed| *boxed));
            }
            Event::Finished(_) => return (tokens, scores, None),
            Event::Failed(error) => return (tokens, scores, Some(error)),
        }
    }
    panic!("the engine is gone");
}

/// The golden continuations: 20 tokens of a prompt, and all with what follows greedily.
fn continuations(folder: &Path) -> Vec<Vec<u32>> {
    let bytes = std::fs::read(folder.join("golden.safetensors")).expect("golden answers are there");
    let tensors = SafeTensors::deserialize(&bytes).expect("golden answers parse");
    let view = tensors.tensor("greedy").expect("the golden file has it");
    let ids =
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")) as u32);
    ids.collect::<Vec<u32>>().chunks_exact(view.shape()[1]).map(<[u32]>::to_vec).collect()
}

fn check(rig: &Rig, folder: &Path) {
    let golden = continuations(folder);
    let submit =
        |ids: &Vec<u32>| rig.handle.submit(greedy(&ids[..20], ids.len() - 20)).expect("valid").remove(0);
    let mut receivers: Vec<_> = golden.iter().map(submit).collect();
    for (ids, receiver) in golden.iter().zip(&mut receivers) {
        let (tokens, _, error) = read(receiver);
        assert_eq!(error, None, "{}", folder.display());
        assert_eq!(tokens, ids[20..], "greedy ids of {}", folder.display());
    }
}

#[test]
fn greedy_ids_of_every_family() {
    for folder in families() {
        let rig =
            Setup::default().start(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        check(&rig, &folder);
        let executions: u64 = rig.figures.programs.iter().map(|program| program.executions()).sum();
        assert!(executions > 0, "{:?}", rig.figures);
        rig.finish();
    }
}

#[test]
fn ranks_agree() {
    let mut divided = 0;
    for folder in families() {
        for ranks in [2, 4] {
            let setup = Setup { ranks, buckets: vec![BUCKETS[0], BUCKETS[3]], ..Setup::default() };
            match setup.start(&folder) {
                Ok(rig) => {
                    check(&rig, &folder);
                    rig.finish();
                    divided += 1;
                }
                Err(error) => {
                    let words = error.to_string();
                    assert!(words.contains("ranks"), "{} over {ranks}: {words}", folder.display());
                    eprintln!("{} over {ranks} ranks: {words}", folder.display());
                }
            }
        }
    }
    assert!(divided >= 8 || golden("").is_none(), "{divided} divisions ran");
}

/// Chunks, batches, shared prefixes and lost blocks change nothing: each request gets what it gets alone.
#[test]
fn requests_are_served_together_as_alone() {
    let Some(folder) = families().into_iter().next() else { return };
    let ids: Vec<u32> = continuations(&folder).concat();
    let mut requests: Vec<Request> = (0..10)
        .map(|at| {
            let prompt: Vec<u32> = ids
                .iter()
                .cycle()
                .skip(if at % 2 == 0 { 0 } else { at })
                .take(18 + 3 * at)
                .copied()
                .collect();
            let mut request = greedy(&prompt, 10 + 2 * at);
            request.params.logprobs = Some(2);
            match at % 5 {
                1 => (request.params.temperature, request.params.top_p) = (0.9, 0.8),
                2 => request.params.logit_bias = vec![(7, 30.0)],
                3 => (request.params.temperature, request.params.presence_penalty) = (1.0, 0.7),
                _ => {}
            }
            request
        })
        .collect();
    requests[9].params.repetition_penalty = 1.3;
    let alone: Vec<_> = {
        let rig = Setup::default().start(&folder).expect("it starts");
        let results = requests
            .iter()
            .map(|request| read(&mut rig.handle.submit(request.clone()).expect("valid").remove(0)))
            .collect();
        rig.finish();
        results
    };
    // The token that a bias of 30 makes certain has the log-probability of the model, not of the bias.
    assert!(alone[2].0.iter().all(|token| *token == 7));
    assert!(alone[2].1.iter().any(|score| score.chosen.logprob < -0.5), "{:?}", alone[2].1);
    let setup = Setup { kv_blocks: 14, ..Setup::default() };
    let rig = setup.start(&folder).expect("it starts");
    let submit = |request: &Request| rig.handle.submit(request.clone()).expect("valid").remove(0);
    let mut receivers: Vec<_> = requests.iter().map(submit).collect();
    for ((receiver, alone), at) in receivers.iter_mut().zip(&alone).zip(0..) {
        let (tokens, scores, error) = read(receiver);
        assert_eq!((&tokens, &error), (&alone.0, &None), "request {at}");
        for (found, expected) in scores.iter().zip(&alone.1) {
            assert!((found.chosen.logprob - expected.chosen.logprob).abs() < 1e-3, "{found:?} {expected:?}");
        }
    }
    rig.finish();
}

#[test]
fn the_vendors_custom_call_chooses_the_same() {
    let Some(folder) = families().into_iter().next() else { return };
    for ranks in [1, 2] {
        let rig = Setup { ranks, top_k: TopKForm::Neuron, ..Setup::default() }.start(&folder);
        let rig = rig.expect("it starts");
        check(&rig, &folder);
        rig.finish();
    }
}

/// Matrices of 8 bits move the log-probabilities a little, on one core and on two alike.
#[test]
fn weights_of_8_bits_serve() {
    let Some(folder) = families().into_iter().next() else { return };
    let prompt = &continuations(&folder)[0][..20];
    let scores = |weights, ranks| {
        let rig = Setup { weights, ranks, ..Setup::default() }.start(&folder).expect("it starts");
        let mut request = greedy(prompt, 1);
        request.params.logprobs = Some(8);
        let (_, scores, error) = read(&mut rig.handle.submit(request).expect("valid").remove(0));
        assert_eq!(error, None);
        rig.finish();
        let mut best: Vec<(u32, f32)> = scores[0].top.iter().map(|top| (top.token, top.logprob)).collect();
        best.sort_by_key(|(token, _)| *token);
        best
    };
    let float = scores(DeviceWeights::Float, 1);
    let int8 = scores(DeviceWeights::Int8, 1);
    let off = |a: &[(u32, f32)], b: &[(u32, f32)]| {
        let pairs = a.iter().filter_map(|(token, x)| Some(x - b.iter().find(|(other, _)| other == token)?.1));
        let all: Vec<f32> = pairs.map(f32::abs).collect();
        assert!(all.len() >= 6, "the best tokens are other ones: {a:?} {b:?}");
        all.into_iter().fold(0.0, f32::max)
    };
    assert!((1e-5..0.1).contains(&off(&float, &int8)), "{float:?} {int8:?}");
    assert!(off(&int8, &scores(DeviceWeights::Int8, 2)) < 1e-4, "channels have the same scale on all ranks");
}

/// Every status of the runtime, when an execution for a request returns it once.
#[test]
fn what_each_status_does_while_serving() {
    let Some(folder) = families().into_iter().next() else { return };
    for status in Status::known() {
        let setup = Setup { buckets: vec![BUCKETS[0]], ..Setup::default() };
        let rig = setup.start(&folder).expect("it starts");
        rig.double.set("SOFTNRT_FAULT", &format!("execute@2:{}", status.code()));
        let submit =
            || rig.handle.submit(greedy(&[1, 2], 3)).map(|mut receivers| read(&mut receivers.remove(0)));
        let first = submit().expect("it serves");
        match status.reaction(Phase::Run) {
            Reaction::Wait => assert_eq!((first.0.len(), &first.2), (3, &None), "{status}"),
            Reaction::FailRequest | Reaction::FailNumeric => {
                let Some(RequestError::Refused(why)) = &first.2 else { panic!("{status}: {first:?}") };
                assert!(why.contains(status.name().expect("a known one")), "{why}");
                let second = submit().expect("it goes on");
                assert_eq!((second.0.len(), second.2), (3, None), "{status}");
            }
            _ => {
                let Some(RequestError::EngineDead(why)) = &first.2 else { panic!("{status}: {first:?}") };
                assert!(why.contains(status.name().expect("a known one")), "{why}");
                let ended = rig.thread.join().expect("no panic").expect_err("the process must end");
                assert!(
                    matches!(&ended, RunError::Fatal(why) if why.contains("core 0")),
                    "{status}: {ended}"
                );
                assert!(matches!(rig.handle.submit(greedy(&[1], 1)), Err(SubmitError::Closed)));
                continue;
            }
        }
        rig.finish();
    }
}

/// Every status, when claiming the cores or loading the first program returns it once.
#[test]
fn what_each_status_does_at_start() {
    let Some(folder) = families().into_iter().next() else { return };
    for (call, phase) in [("init", Phase::Init), ("load", Phase::Load)] {
        for status in Status::known() {
            let fault = ("SOFTNRT_FAULT", format!("{call}@1:{}", status.code()));
            let setup = Setup { buckets: vec![BUCKETS[0]], settings: vec![fault], ..Setup::default() };
            let started = setup.start(&folder);
            let reaction = status.reaction(phase);
            let tolerated = match phase {
                Phase::Init => matches!(reaction, Reaction::RetryInit | Reaction::Wait),
                _ => matches!(reaction, Reaction::Shrink | Reaction::Wait),
            };
            match started {
                Ok(rig) => {
                    assert!(tolerated, "{call}: {status} was tolerated");
                    let fewer = rig.kv_blocks < setup.kv_blocks - 1;
                    assert_eq!(fewer, reaction == Reaction::Shrink, "{status}: {} blocks", rig.kv_blocks);
                    rig.finish();
                }
                Err(error) => {
                    assert!(!tolerated, "{call}: {status}: {error}");
                    assert!(error.to_string().contains(status.name().expect("a known one")), "{error}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let Some(folder) = families().into_iter().next() else { return };
    let words = |setup: Setup| setup.start(&folder).err().expect("it does not start").to_string();
    let few = words(Setup { settings: vec![("SOFTNRT_CORES", "1".into())], ranks: 2, ..Setup::default() });
    assert!(few.contains("--tensor-parallel-size 2") && few.contains("1 are visible"), "{few}");
    let plain = words(Setup { buckets: vec![BUCKETS[1], BUCKETS[3]], ..Setup::default() });
    assert!(plain.contains("adjustment"), "{plain}");
    let tight = words(Setup { kv_blocks: 5, ..Setup::default() });
    assert!(tight.contains("KV blocks"), "{tight}");
}
