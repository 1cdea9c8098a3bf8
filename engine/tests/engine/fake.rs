//! A backend whose logits are a hash of all tokens that a row sees *through its block table*, so any mistake in
//! tables, positions, sharing or order changes tokens, and most of them panic before: every cell remembers
//! token, position, and a hash of the tokens before it, which is what keys and values depend on.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex};

use millrace_engine::*;

pub(crate) const VOCAB: usize = 97;
pub(crate) const EOS: TokenId = 0;

fn hash(value: impl std::hash::Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
}

/// What the keys and values of the last of these tokens stand for.
fn chain(before: u64, token: TokenId, position: usize) -> u64 {
    hash((before, token, position))
}

fn logits_of(chain: u64, out: &mut Vec<f32>) {
    out.extend((0..VOCAB).map(|token| {
        let x = hash((chain, token)) as f32 / u64::MAX as f32 * 8.0 - 4.0;
        // Ends come, but not at once.
        if token == EOS as usize { x - 1.0 } else { x }
    }));
}

/// The logits after these tokens.
pub(crate) fn logits_after(tokens: &[TokenId]) -> Vec<f32> {
    let mut out = Vec::new();
    logits_of(tokens.iter().enumerate().fold(0, |before, (at, token)| chain(before, *token, at)), &mut out);
    out
}

#[derive(Clone, Copy)]
enum Cell {
    Empty,
    Written {
        token: TokenId,
        position: usize,
        chain: u64,
    },
    /// By a step that failed.
    Poisoned,
}

/// Called with each step and its number before it is run; an error fails it after it has written.
pub(crate) type Hook = Box<dyn FnMut(u64, &Step) -> Result<(), RunError> + Send>;

pub(crate) struct FakeRunner {
    kv: KvSpec,
    limits: StepLimits,
    cells: Vec<Cell>,
    steps: u64,
    hook: Hook,
    // Best tokens that it yields of each row; `None` for whole rows.
    candidates: Option<usize>,
    result: Option<Result<Vec<f32>, RunError>>,
    // Of the step under way, what is added to each row of logits before it is cut.
    bias: Vec<Option<Vec<f32>>>,
}

impl FakeRunner {
    pub(crate) fn new(blocks: usize, block_size: usize, limits: StepLimits, hook: Hook) -> Self {
        let kv = KvSpec { block_size, blocks, bytes: 0 };
        let cells = vec![Cell::Empty; blocks * block_size];
        FakeRunner { kv, limits, cells, steps: 0, hook, candidates: None, result: None, bias: Vec::new() }
    }

    /// One that cuts rows of logits to their best tokens, as a device does.
    pub(crate) fn cutting(self, candidates: usize) -> Self {
        FakeRunner { candidates: Some(candidates), ..self }
    }

    fn check(&self, step: &Step) {
        let (limits, size) = (self.limits, self.kv.block_size);
        assert!(!step.rows.is_empty(), "an empty step");
        assert!(step.rows.len() <= limits.rows, "{} rows", step.rows.len());
        assert!(step.tokens.len() <= limits.tokens, "{} tokens", step.tokens.len());
        assert!(step.logit_rows() <= limits.logits, "{} rows of logits", step.logit_rows());
        assert_eq!(step.tokens.len(), step.rows.iter().map(|row| row.count as usize).sum::<usize>());
        assert_eq!(step.rows.iter().map(|row| row.seq).collect::<HashSet<_>>().len(), step.rows.len());
        assert!(step.tokens.iter().all(|token| (*token as usize) < VOCAB));

        let mut readers: HashMap<BlockId, usize> = HashMap::new();
        for row in &step.rows {
            let table = step.blocks_of(row);
            assert!(row.count > 0, "an empty row");
            assert_eq!(table.len(), (row.position as usize + row.count as usize).div_ceil(size));
            assert_eq!(table.iter().collect::<HashSet<_>>().len(), table.len(), "a block twice in {table:?}");
            for block in table {
                assert!((block.0 as usize) < self.kv.blocks, "{block:?}");
                *readers.entry(*block).or_default() += 1;
            }
        }
        for row in &step.rows {
            for written in &step.blocks_of(row)[row.position as usize / size..] {
                assert_eq!(readers[written], 1, "{written:?} is written by one row and in another's table");
            }
        }
    }

    fn compute(&mut self, step: &Step, fails: bool) -> Vec<f32> {
        let size = self.kv.block_size;
        let mut logits = Vec::new();
        for row in &step.rows {
            let cell =
                |position: usize| step.blocks_of(row)[position / size].0 as usize * size + position % size;
            let mut sum = 0;
            for at in 0..row.position as usize {
                let Cell::Written { token, position, chain: found } = self.cells[cell(at)] else {
                    panic!("{:?} reads what was never computed at {at}", row.seq);
                };
                sum = chain(sum, token, position);
                assert_eq!(
                    (position, found),
                    (at, sum),
                    "{:?} reads another prefix's block at {at}",
                    row.seq
                );
            }
            for (index, token) in step.tokens_of(row).iter().enumerate() {
                let position = row.position as usize + index;
                sum = chain(sum, *token, position);
                self.cells[cell(position)] = if fails {
                    Cell::Poisoned
                } else {
                    Cell::Written { token: *token, position, chain: sum }
                };
                if row.want == Want::All || row.want == Want::Last && index + 1 == row.count as usize {
                    logits_of(sum, &mut logits);
                }
            }
        }
        logits
    }
}

impl Runner for FakeRunner {
    fn kv(&self) -> KvSpec {
        self.kv
    }

    fn limits(&self) -> StepLimits {
        self.limits
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn candidates(&self) -> Option<usize> {
        self.candidates
    }

    fn submit(&mut self, step: &Step) -> Result<(), RunError> {
        assert!(self.result.is_none(), "one step at a time");
        self.check(step);
        let result = (self.hook)(self.steps, step);
        self.steps += 1;
        assert!(self.candidates.is_some() || step.biased.is_empty(), "whole rows are adjusted after");
        let wanted = (0..step.rows.len()).filter(|at| step.rows[*at].logit_rows() > 0);
        self.bias = wanted.map(|at| step.bias_of(at).map(<[f32]>::to_vec)).collect();
        let logits = self.compute(step, result.is_err());
        self.result = Some(result.map(|()| logits));
        Ok(())
    }

    fn wait(&mut self, logits: &mut Logits) -> Result<(), RunError> {
        let result = self.result.take().expect("a step was submitted");
        (logits.cut, logits.columns) = (None, VOCAB);
        logits.values.clear();
        logits.values.extend(result?);
        if let Some(count) = self.candidates {
            cut(logits, count, &self.bias);
        }
        Ok(())
    }
}

/// Leaves the best tokens of each row after its bias, the worst of them first, as no order is promised.
fn cut(logits: &mut Logits, count: usize, bias: &[Option<Vec<f32>>]) {
    let rows = std::mem::take(&mut logits.values);
    let mut cut = Cut::default();
    logits.columns = count;
    for (row, bias) in rows.chunks(VOCAB).zip(bias) {
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        cut.log_sum_exp.push(sum.ln() as f32);
        let biased = |token: usize| row[token] + bias.as_ref().map_or(0.0, |bias| bias[token]);
        let mut tokens: Vec<usize> = (0..VOCAB).collect();
        tokens.sort_by(|a, b| biased(*b).total_cmp(&biased(*a)).then(a.cmp(b)));
        tokens.truncate(count);
        tokens.reverse();
        logits.values.extend(tokens.iter().map(|token| biased(*token)));
        cut.tokens.extend(tokens.iter().map(|token| *token as TokenId));
    }
    logits.cut = Some(cut);
}

/// What came out of a choice's channel.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Outcome {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub(crate) cached: u32,
    pub(crate) end: Ending,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Ending {
    Finished(FinishReason),
    Failed(RequestError),
    /// The channel closed, or the receiver was dropped.
    None,
}

pub(crate) type Receiver = tokio::sync::mpsc::UnboundedReceiver<Event>;

impl Outcome {
    /// Reads to the end and checks the order of events.
    pub(crate) fn of(receiver: &mut Receiver) -> Self {
        Self::read(|| receiver.blocking_recv())
    }

    /// Reads what is there.
    pub(crate) fn so_far(receiver: &mut Receiver) -> Self {
        Self::read(|| receiver.try_recv().ok())
    }

    fn read(mut next: impl FnMut() -> Option<Event>) -> Self {
        let mut outcome = Outcome {
            tokens: vec![],
            logprobs: vec![],
            prompt_logprobs: vec![],
            cached: 0,
            end: Ending::None,
        };
        let mut started = false;
        while let Some(event) = next() {
            assert_eq!(outcome.end, Ending::None, "nothing follows the end");
            match event {
                Event::Started { cached_tokens, prompt_logprobs } => {
                    assert!(!started, "one start");
                    started = true;
                    (outcome.cached, outcome.prompt_logprobs) = (cached_tokens, prompt_logprobs);
                }
                Event::Token { token, logprobs } => {
                    assert!(started, "tokens follow the start");
                    outcome.tokens.push(token);
                    outcome.logprobs.extend(logprobs.map(|boxed| *boxed));
                }
                Event::Finished(reason) => outcome.end = Ending::Finished(reason),
                Event::Failed(error) => outcome.end = Ending::Failed(error),
            }
        }
        outcome
    }
}

/// What a choice of a request must be, from the logits alone: no blocks, no batch, no engine.
pub(crate) fn expected(request: &Request, choice: u32, max_model_len: usize) -> Outcome {
    let params = Arc::new(request.params.clone());
    let seed = params.seed.expect("only seeded requests are reproducible");
    let mut state = SamplerState::new(params.clone(), seed, choice, penalised(&request.prompt, &params));
    let mut sampler = Sampler::new(VOCAB);
    let mut tokens = request.prompt.clone();
    let prompt_logprobs = params.prompt_logprobs.map(|top| {
        let score = |at: usize| sampler.logprobs(&logits_after(&tokens[..at]), tokens[at], top);
        let mut scores = vec![None];
        scores.extend((1..tokens.len()).map(score).map(Some));
        scores
    });
    let mut logprobs = Vec::new();
    let end = loop {
        let (token, scores) = sampler.sample(&mut logits_after(&tokens), &state).expect("finite logits");
        state.accept(token);
        tokens.push(token);
        logprobs.extend(scores.map(|boxed| *boxed));
        let count = tokens.len() - request.prompt.len();
        let stops = params.stop_token_ids.contains(&token)
            || !params.ignore_eos && params.eos_token_ids.contains(&token);
        if stops && count >= params.min_tokens as usize {
            break FinishReason::Stop;
        }
        if count == params.max_tokens as usize || tokens.len() == max_model_len {
            break FinishReason::Length;
        }
    };
    Outcome {
        tokens: tokens.split_off(request.prompt.len()),
        logprobs,
        prompt_logprobs: prompt_logprobs.unwrap_or_default(),
        cached: 0,
        end: Ending::Finished(end),
    }
}

/// All that an observer was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) steps: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) generation_tokens: usize,
    pub(crate) computed_tokens: usize,
    pub(crate) preemptions: usize,
    pub(crate) prefix_queries: usize,
    pub(crate) prefix_hits: usize,
    pub(crate) first_tokens: usize,
    pub(crate) intervals: usize,
    pub(crate) most_running: usize,
    pub(crate) requests: Vec<RequestStats>,
    /// Running, waiting, blocks used, at last.
    pub(crate) gauges: [usize; 3],
}

#[derive(Clone, Default)]
pub(crate) struct Record(pub(crate) Arc<Mutex<Totals>>);

impl Record {
    pub(crate) fn totals(&self) -> Totals {
        self.0.lock().expect("no observer panicked").clone()
    }
}

impl Observer for Record {
    fn step(&mut self, stats: &StepStats<'_>) {
        let mut totals = self.0.lock().expect("no observer panicked");
        totals.steps += usize::from(stats.rows > 0);
        totals.prompt_tokens += stats.prompt_tokens;
        totals.generation_tokens += stats.generation_tokens;
        totals.computed_tokens += stats.computed_tokens;
        totals.preemptions += stats.preemptions;
        totals.prefix_queries += stats.prefix_queries;
        totals.prefix_hits += stats.prefix_hits;
        totals.first_tokens += stats.time_to_first_token.len();
        totals.intervals += stats.inter_token_latency.len();
        totals.most_running = totals.most_running.max(stats.running);
        totals.gauges = [stats.running, stats.waiting, stats.blocks_used];
        assert!(stats.blocks_used <= stats.blocks_total);
    }

    fn request(&mut self, stats: &RequestStats) {
        self.0.lock().expect("no observer panicked").requests.push(stats.clone());
    }
}

/// An engine on a fake backend.
pub(crate) struct Engine {
    pub(crate) handle: Handle,
    pub(crate) record: Record,
    pub(crate) thread: std::thread::JoinHandle<Result<(), RunError>>,
}

pub(crate) const ROOMY: StepLimits = StepLimits { tokens: 4096, rows: 256, logits: 4096 };

impl Engine {
    pub(crate) fn start(runner: FakeRunner, config: EngineConfig) -> Self {
        let record = Record::default();
        let (handle, thread) =
            start(Box::new(runner), config, Box::new(record.clone())).expect("the configuration is valid");
        Engine { handle, record, thread }
    }

    /// 64 blocks of 4 tokens, and sequences of up to 128.
    pub(crate) fn roomy(hook: Hook) -> Self {
        let config = EngineConfig { max_model_len: 128, ..EngineConfig::default() };
        Self::start(FakeRunner::new(64, 4, ROOMY, hook), config)
    }

    /// Ends it, and checks that nothing was left behind.
    pub(crate) fn finish(self) -> Totals {
        self.handle.drain();
        self.thread.join().expect("the engine's thread did not panic").expect("no fatal error");
        assert!(!self.handle.is_alive());
        assert_eq!(self.handle.load(), Load { queued: 0, running: 0 });
        let totals = self.record.totals();
        assert_eq!(totals.gauges, [0; 3], "running, waiting, blocks");
        totals
    }
}

pub(crate) fn no_hook() -> Hook {
    Box::new(|_, _| Ok(()))
}

pub(crate) fn greedy(prompt: Vec<TokenId>, max_tokens: u32) -> Request {
    let params = SamplingParams {
        temperature: 0.0,
        seed: Some(1),
        max_tokens,
        ignore_eos: true,
        eos_token_ids: vec![EOS],
        ..SamplingParams::default()
    };
    Request { prompt, params, n: 1, ..Request::default() }
}
