//! The scheduler and the pool as one machine, against a model that keeps everything in plain lists: what each
//! sequence must put out, and which tokens each block was computed from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::sequence::Prompt;
use crate::{BlockId, Key};

#[derive(Clone, Debug)]
enum Operation {
    Add {
        stem: u32,
        prompt: usize,
        output: usize,
        priority: i32,
        salt: Option<u8>,
        scored: bool,
    },
    Cancel(prop::sample::Index),
    /// A step, of which one row fails, maybe.
    Step {
        fails: Option<prop::sample::Index>,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let add = (
        0u32..3,
        1usize..40,
        1usize..30,
        -1i32..2,
        prop::option::weighted(0.2, 0u8..2),
        prop::bool::weighted(0.1),
    );
    prop_oneof![
        2 => add.prop_map(|(stem, prompt, output, priority, salt, scored)| {
            Operation::Add { stem, prompt, output, priority, salt, scored }
        }),
        1 => any::<prop::sample::Index>().prop_map(Operation::Cancel),
        6 => prop::option::weighted(0.05, any::<prop::sample::Index>()).prop_map(|fails| Operation::Step { fails }),
    ]
}

const MAX_LEN: usize = 70;

#[derive(Debug)]
struct Expected {
    salt: Option<u8>,
    tokens: Vec<TokenId>,
    prompt: usize,
    max_len: usize,
    scored: bool,
    /// Prompt positions whose logits came.
    scores: usize,
}

/// The token that must follow these.
fn next_token(tokens: &[TokenId]) -> TokenId {
    tokens.iter().fold(7u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token)) % 5
}

struct Machine {
    scheduler: Scheduler,
    plan: Plan,
    limits: Limits,
    sequences: BTreeMap<Place, Expected>,
    // All tokens up to each block's last computed one, and the salt.
    blocks: HashMap<BlockId, (Option<u8>, Vec<TokenId>)>,
    added: u64,
    finished: usize,
    preemptions: usize,
    computed: usize,
}

impl Machine {
    fn new(blocks: usize, block_size: usize, limits: Limits) -> Self {
        Machine {
            scheduler: Scheduler::new(Pool::new(blocks, block_size), limits.clone()),
            plan: Plan::default(),
            limits,
            sequences: BTreeMap::new(),
            blocks: HashMap::new(),
            added: 0,
            finished: 0,
            preemptions: 0,
            computed: 0,
        }
    }

    fn add(&mut self, tokens: Vec<TokenId>, output: usize, priority: i32, salt: Option<u8>, scored: bool) {
        let place = Place { priority, seq: SeqId(self.added) };
        self.added += 1;
        let (prompt, max_len) = (tokens.len(), tokens.len() + output);
        let root = Key::shared(salt.map(|salt| salt.to_string()).as_deref());
        let shared = Arc::new(Prompt::new(tokens.clone(), root, self.scheduler.pool().block_size()));
        self.scheduler.add(Sequence::new(place, shared, max_len, scored));
        self.sequences.insert(place, Expected { salt, tokens, prompt, max_len, scored, scores: 0 });
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Add { stem, prompt, output, priority, salt, scored } => {
                let tokens = (0..prompt as u32).map(|at| (at * (stem + 1)) % 5).collect();
                self.add(tokens, output, priority, salt, scored);
            }
            Operation::Cancel(which) => {
                if let Some(place) = (!self.sequences.is_empty()).then(|| *which.get(&self.places())) {
                    assert!(self.scheduler.cancel(place));
                    assert!(!self.scheduler.cancel(place), "only once");
                    self.sequences.remove(&place);
                }
            }
            Operation::Step { fails } => self.step(fails),
        }
        self.check();
    }

    fn places(&self) -> Vec<Place> {
        self.sequences.keys().copied().collect()
    }

    fn step(&mut self, fails: Option<prop::sample::Index>) {
        let before: Vec<_> = self.scheduler.running().map(|seq| (seq.place(), seq.missing())).collect();
        self.scheduler.plan(&mut self.plan);
        self.check_plan(&before);
        self.check();

        let rows = self.plan.step.rows.clone();
        let failed = fails.filter(|_| !rows.is_empty()).map(|which| which.index(rows.len()));
        let mut ended = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let place = self.scheduler.planned(at).place();
            let completes = self.scheduler.planned(at).missing() == row.count as usize;
            let expected =
                self.sequences.get_mut(&place).expect("only sequences that were added are planned");
            let (from, to) = (row.position as usize, (row.position + row.count) as usize);
            assert_eq!(
                self.plan.step.tokens_of(row),
                &expected.tokens[from..to],
                "no token is lost or changed"
            );
            let size = self.scheduler.pool().block_size();
            for (block, id) in self.plan.step.blocks_of(row).iter().enumerate() {
                if (block + 1) * size <= from {
                    continue;
                }
                // What a failed row wrote is there too, and must never be found.
                let end = to.min((block + 1) * size);
                self.blocks.insert(*id, (expected.salt, expected.tokens[..end].to_vec()));
            }
            if failed == Some(at) {
                ended.push(place);
                continue;
            }
            self.computed += row.count as usize;
            let wanted = if expected.scored { expected.prompt - 1 } else { 0 };
            match row.want {
                Want::All => {
                    assert!(from <= expected.scores && to > expected.scores, "positions are scored in order");
                    expected.scores = to;
                }
                Want::Last => assert!(completes),
                Want::Nothing => assert!(
                    !completes && (to <= expected.scores || !expected.scored || expected.scores >= wanted)
                ),
            }
            if !completes {
                self.scheduler.commit(&self.plan, at, None);
                continue;
            }
            assert!(expected.scores >= wanted, "a scored prompt is scored as a whole");
            let token = next_token(&expected.tokens);
            self.scheduler.commit(&self.plan, at, Some(token));
            expected.tokens.push(token);
            if expected.tokens.len() == expected.max_len {
                ended.push(place);
                self.finished += 1;
            }
        }
        for place in ended {
            assert!(self.scheduler.cancel(place));
            self.sequences.remove(&place);
        }
    }

    fn check_plan(&mut self, before: &[(Place, usize)]) {
        let Machine { scheduler, plan, limits, .. } = self;
        let (step, batch) = (&plan.step, scheduler.running().len());
        self.preemptions += plan.preemptions;
        assert!(step.tokens.len() <= limits.tokens);
        assert!(batch <= limits.rows && step.rows.len() <= batch);
        assert!(step.logit_rows() <= limits.logits);
        assert_eq!(
            step.rows.is_empty(),
            self.sequences.is_empty(),
            "where there is work, some of it is planned"
        );

        let running: Vec<_> = scheduler.running().map(Sequence::place).collect();
        let planned: Vec<_> = (0..step.rows.len()).map(|row| scheduler.planned(row).place()).collect();
        let decodes: Vec<_> =
            before.iter().filter(|(place, missing)| *missing == 1 && running.contains(place)).collect();
        for (place, _) in &decodes {
            assert!(planned.contains(place), "{place:?} decodes and was left out");
        }
        if before.iter().any(|(_, missing)| *missing == 1) {
            assert!(step.tokens.len() - decodes.len() <= limits.prefill_beside_decode);
        }

        let (kept, lost): (Vec<_>, Vec<_>) =
            before.iter().map(|(place, _)| *place).partition(|place| running.contains(place));
        assert_eq!(lost.len(), plan.preemptions);
        assert!(lost.is_empty() || plan.admitted.is_empty(), "nobody is admitted into a full pool");
        if let (Some(last), Some(first)) = (kept.iter().max(), lost.iter().min()) {
            assert!(last < first, "the last in line lose their blocks");
        }
        let admitted = running.iter().filter(|place| !kept.contains(place));
        if let (Some(last), Some(first)) = (admitted.max(), scheduler.waiting_behind(None).next()) {
            assert!(*last < first, "nobody overtakes");
        }
        if limits.batching == Batching::Static && !before.is_empty() {
            assert!(plan.admitted.is_empty(), "a batch is closed");
        }
    }

    fn check(&self) {
        let pool = self.scheduler.pool();
        pool.check();
        let mut holders: HashMap<BlockId, usize> = HashMap::new();
        for seq in self.scheduler.running() {
            let expected = &self.sequences[&seq.place()];
            assert_eq!(seq.len(), expected.tokens.len());
            assert!(seq.computed < seq.len());
            let rows = self
                .plan
                .step
                .rows
                .iter()
                .find(|row| row.seq == seq.place().seq && row.position as usize == seq.computed);
            let scheduled = rows.map_or(0, |row| row.count as usize);
            assert!(
                (pool.blocks_for(seq.computed)..=pool.blocks_for(seq.computed + scheduled))
                    .contains(&seq.table.len()),
                "blocks for what is computed, and no more"
            );
            for (block, id) in seq.table.iter().enumerate() {
                *holders.entry(*id).or_default() += 1;
                let computed = seq.computed.min((block + 1) * pool.block_size());
                if computed > block * pool.block_size() {
                    let (salt, content) = &self.blocks[id];
                    assert_eq!(
                        content[..computed.min(content.len())],
                        expected.tokens[..computed],
                        "{id:?} holds another prefix"
                    );
                    assert_eq!(*salt, expected.salt, "tenants share nothing");
                }
            }
        }
        for block in 0..pool.total() {
            let block = BlockId(block as u32);
            assert_eq!(pool.holders(block), holders.get(&block).copied().unwrap_or(0), "{block:?}");
        }
        assert_eq!(pool.free() + holders.len(), pool.total());
        assert_eq!(self.scheduler.running().len() + self.scheduler.waiting(), self.sequences.len());
    }

    fn finish(&mut self) {
        let work: usize = self.sequences.values().map(|seq| seq.max_len).sum();
        let mut steps = 0;
        while !self.sequences.is_empty() {
            self.step(None);
            steps += 1;
            // Each step adds a token to the first in line at least, whatever the others lose.
            assert!(steps <= 2 * work, "{} sequences do not finish", self.sequences.len());
        }
        self.check();
        assert_eq!(self.scheduler.pool().free(), self.scheduler.pool().total(), "nothing is held");
    }
}

fn limits() -> impl Strategy<Value = Limits> {
    (1usize..9, 0usize..40, 0usize..10, 1usize..30, prop::bool::weighted(0.8)).prop_map(
        |(rows, tokens, logits, beside, continuous)| Limits {
            rows,
            tokens: rows + tokens,
            logits: rows + logits,
            prefill_beside_decode: beside,
            batching: if continuous { Batching::Continuous } else { Batching::Static },
        },
    )
}

proptest! {
    // 400 · 300 operations on average, each checked in full, and then all steps to the end.
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_agrees_with_the_model(
        limits in limits(),
        block_size in 1usize..9,
        spare in 0usize..20,
        operations in prop::collection::vec(operation(), 200..400),
    ) {
        let mut machine = Machine::new(MAX_LEN.div_ceil(block_size) + spare, block_size, limits);
        for operation in operations {
            machine.apply(operation);
        }
        machine.finish();
    }
}

/// A pool of 1.05 times the longest sequence, and 50 of those: what is computed twice stays in bounds.
#[test]
fn a_pool_that_is_too_small_does_not_thrash() {
    for block_size in [4, 16] {
        let (prompt, output) = (64, 448);
        let limits = Limits {
            tokens: 512,
            rows: 64,
            logits: 64,
            prefill_beside_decode: 256,
            batching: Batching::Continuous,
        };
        let blocks = (prompt + output) * 105 / 100 / block_size;
        let mut machine = Machine::new(blocks, block_size, limits);
        for at in 0..50 {
            machine.add((0..prompt as u32).map(|i| (i * at + at) % 5).collect(), output, 0, None, false);
        }
        machine.finish();
        assert_eq!(machine.finished, 50);
        let generated = 50 * output;
        let (preemptions, computed) = (
            machine.preemptions as f64 / generated as f64,
            machine.computed as f64 / (50 * (prompt + output)) as f64,
        );
        assert!(machine.preemptions > 0, "the pool is too large for this test");
        assert!(preemptions <= 0.05, "{preemptions} preemptions for each token");
        println!(
            "block size {block_size}: {preemptions:.4} preemptions for each token, each computed {computed:.2} times"
        );
        assert!(computed <= 2.0, "each token is computed {computed} times");
    }
}

/// While one sequence computes a prompt, those behind it wait and share.
#[test]
fn a_prompt_is_computed_once() {
    let limits =
        Limits { tokens: 24, rows: 8, logits: 8, prefill_beside_decode: 24, batching: Batching::Continuous };
    let mut machine = Machine::new(64, 4, limits);
    for _ in 0..4 {
        machine.add((0..50).map(|at| at % 5).collect(), 1, 0, None, false);
    }
    machine.finish();
    assert_eq!(machine.computed, 50 + 3 * 2, "all but the last, partial block is shared");
}
