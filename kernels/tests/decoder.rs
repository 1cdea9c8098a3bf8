//! A whole small decoder of any family: against the definitions, and against itself in any company.

mod common;

use std::collections::HashMap;

use common::decoder::{BLOCK, BLOCKS, Family, ROWS, Rows, Sequence, TABLE, VOCAB, inputs, sequences};
use common::{Random, Stored, difference, run};
use millrace_graph::{DType, Graph};
use millrace_kernels::{Executor, Plan, Precision, RunError};
use proptest::prelude::*;

/// An executor that makes plans as steps need them.
struct Decoder<'a> {
    family: &'a Family,
    stored: &'a mut Stored,
    executor: Executor,
    plans: HashMap<(usize, usize), (Graph, Plan)>,
}

impl<'a> Decoder<'a> {
    fn new(family: &'a Family, stored: &'a mut Stored, threads: usize, precision: Precision) -> Self {
        let graph = family.graph(stored, 1, 1);
        let mut executor = stored.executor(threads, precision);
        executor.allocate(&graph).expect("caches");
        Decoder { family, stored, executor, plans: HashMap::new() }
    }

    /// Runs a step, and files the logits of each token by sequence and position.
    fn step(&mut self, sequences: &[Sequence], rows: &Rows, logits: &mut HashMap<(usize, usize), Vec<u32>>) {
        self.step_for(sequences, rows, |_| true, logits);
    }

    /// Runs a step that wants the logits of some of its tokens.
    fn step_for(
        &mut self,
        sequences: &[Sequence],
        rows: &Rows,
        want: impl FnMut(&i32) -> bool,
        logits: &mut HashMap<(usize, usize), Vec<u32>>,
    ) {
        let mut inputs = inputs(sequences, rows);
        inputs[5].retain(want);
        let shape @ (tokens, wanted) = (inputs[0].len(), inputs[5].len());
        let (family, stored, executor) = (self.family, &mut self.stored, &mut self.executor);
        let (graph, plan) = self.plans.entry(shape).or_insert_with(|| {
            let graph = family.graph(stored, tokens, wanted);
            let plan = executor.plan(&graph).expect("a plan");
            (graph, plan)
        });
        let results = run(executor, plan, graph, &inputs);
        let tokens =
            rows.iter().flat_map(|(sequence, first, count)| (0..*count).map(move |i| (*sequence, first + i)));
        let tokens: Vec<(usize, usize)> = tokens.collect();
        for (row, token) in results[0].chunks(VOCAB).zip(&inputs[5]) {
            logits.insert(tokens[*token as usize], row.iter().map(|logit| logit.to_bits()).collect());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn decoders_compute_what_their_definitions_say(seed: u64) {
        let mut family = Family::random(seed);
        family.kv = DType::F32;
        let mut stored = Stored::new(seed);
        let sequences = sequences(&mut Random(seed), 2);
        let rows: Rows = sequences.iter().enumerate().map(|(i, s)| (i, 0, s.tokens.len())).collect();
        let inputs = inputs(&sequences, &rows);
        let graph = family.graph(&mut stored, inputs[0].len(), inputs[0].len());
        let mut named = inputs.clone();
        // The definition gathers what tables name before it masks it.
        named[4].iter_mut().for_each(|block| *block = (*block).max(0));
        let expected = stored.evaluate(&graph, &named);
        let mut executor = stored.executor(2, Precision::Reference);
        executor.allocate(&graph).expect("caches");
        let plan = executor.plan(&graph).expect("a plan");
        let got = run(&mut executor, &plan, &graph, &inputs);
        let difference = difference(&got[0], &expected[0]);
        prop_assert!(difference < 1e-3, "off by {difference}: {family:?}");
    }

    #[test]
    fn a_tokens_logits_do_not_depend_on_company_chunks_or_threads(seed: u64, fast: bool) {
        let precision = if fast { Precision::Fast } else { Precision::Reference };
        let family = Family::random(seed);
        let mut random = Random(seed);
        let sequences = sequences(&mut random, ROWS);
        let mut stored = Stored::new(seed);

        // Each sequence by itself in one step, by one worker.
        let mut alone = HashMap::new();
        let mut decoder = Decoder::new(&family, &mut stored, 1, precision);
        for (i, sequence) in sequences.iter().enumerate() {
            decoder.step(&sequences, &vec![(i, 0, sequence.tokens.len())], &mut alone);
        }
        // Token by token.
        let mut single = HashMap::new();
        let mut decoder = Decoder::new(&family, &mut stored, 2, precision);
        for position in 0..sequences[0].tokens.len() {
            decoder.step(&sequences, &vec![(0, position, 1)], &mut single);
        }
        for (key, logits) in &single {
            prop_assert_eq!(logits, &alone[key], "{:?} alone, {:?}", key, &family);
        }
        // All together, in chunks of any size and any order.
        let mut mixed = HashMap::new();
        let mut decoder = Decoder::new(&family, &mut stored, 3, precision);
        let mut done = vec![0; sequences.len()];
        while sequences.iter().zip(&done).any(|(sequence, done)| sequence.tokens.len() > *done) {
            let mut rows = Rows::new();
            for (i, sequence) in sequences.iter().enumerate() {
                let left = sequence.tokens.len() - done[i];
                if left > 0 && (random.chance(70) || rows.is_empty()) {
                    let count = 1 + random.below(left.min(9));
                    rows.insert(random.below(rows.len() + 1), (i, done[i], count));
                    done[i] += count;
                }
            }
            let share = random.pick(&[0, 50, 100]);
            decoder.step_for(&sequences, &rows, |_| random.chance(share), &mut mixed);
        }
        for (key, logits) in &mixed {
            prop_assert_eq!(logits, &alone[key], "{:?} in company, {:?}", key, &family);
        }
    }
}

/// A step of the decoder with a wrong input is refused by name, and leaves outputs and caches as they were.
#[test]
fn wrong_indices_are_refused_before_anything_is_written() {
    let family = Family::random(7);
    let mut stored = Stored::new(7);
    let sequences = vec![
        Sequence { tokens: vec![3; 12], blocks: vec![4, 9] },
        Sequence { tokens: vec![5; 9], blocks: vec![1, 0] },
    ];
    let good = inputs(&sequences, &vec![(0, 0, 12), (1, 0, 9)]);
    let graph = family.graph(&mut stored, 21, 21);
    let mut executor = stored.executor(2, Precision::Reference);
    executor.allocate(&graph).expect("caches");
    let plan = executor.plan(&graph).expect("a plan");
    let expected = run(&mut executor, &plan, &graph, &good);

    let mut refuse = |input: usize, at: usize, value: i32| {
        let mut inputs = good.clone();
        inputs[input][at] = value;
        let inputs: Vec<&[i32]> = inputs.iter().map(Vec::as_slice).collect();
        let mut output = vec![0.5; 21 * VOCAB];
        let error = executor.run(&plan, &inputs, &mut [&mut output]).expect_err("a wrong index");
        assert!(output.iter().all(|x| *x == 0.5), "nothing is written");
        error
    };
    let slots = BLOCKS * BLOCK;
    let names = ["tokens", "positions", "rows", "slots", "block_tables", "logit_rows"];
    for (input, at, bound) in
        [(0, 20, VOCAB), (1, 3, TABLE * BLOCK), (2, 0, ROWS), (3, 11, slots), (4, 6, BLOCKS), (5, 9, 21)]
    {
        for value in [-1, i32::MIN, bound as i32, i32::MAX] {
            let error = refuse(input, at, value);
            assert_eq!(error, RunError::Index { input: names[input].into(), at, value, bound });
        }
    }
    let taken = good[3][2];
    assert_eq!(refuse(3, 15, taken), RunError::Duplicate { input: "slots".into(), at: 15, value: taken });
    // Rows that reach further read further entries of the tables, which are nonsense here.
    assert!(matches!(refuse(1, 11, 16), RunError::Index { input, at: 2, .. } if input == "block_tables"));

    let short: Vec<&[i32]> = good.iter().map(|input| &input[..input.len() - 1]).collect();
    let mut output = vec![0.0; 21 * VOCAB];
    let error = executor.run(&plan, &short, &mut [&mut output]).expect_err("short inputs");
    assert_eq!(error, RunError::Length { name: "tokens".into(), expected: 21, given: 20 });
    let whole: Vec<&[i32]> = good.iter().map(Vec::as_slice).collect();
    let error = executor.run(&plan, &whole, &mut [&mut output[1..]]).expect_err("a short output");
    assert_eq!(
        error,
        RunError::Length { name: "logits".into(), expected: 21 * VOCAB, given: 21 * VOCAB - 1 }
    );
    let error = executor.run(&plan, &whole[..5], &mut [&mut output]).expect_err("five inputs");
    assert_eq!(error, RunError::Count { what: "inputs", expected: 6, given: 5 });
    let error = stored.executor(1, Precision::Reference).run(&plan, &whole, &mut [&mut output]);
    assert_eq!(error, Err(RunError::Foreign));

    assert_eq!(expected, run(&mut executor, &plan, &graph, &good));
}
