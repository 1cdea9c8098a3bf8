//! The best logits of a row: against a sort, on the evaluator and in XLA.

use std::collections::HashMap;

use millrace_graph::topk::{TopK, top_k, top_k_call};
use millrace_graph::{Builder, DType, Graph, GraphError, NodeId, ParamKind, Type, hlo};
use millrace_kernels::eval::{Value, evaluate};
use proptest::prelude::*;

use crate::judge::Judge;
use crate::{Noise, job, off};

type Form = fn(&mut Builder, NodeId, usize) -> Result<TopK, GraphError>;

fn graph(rows: usize, vocab: usize, k: usize) -> Graph {
    built(top_k, rows, vocab, k)
}

fn built(form: Form, rows: usize, vocab: usize, k: usize) -> Graph {
    let mut b = Builder::new("top-k");
    let logits = b.param("logits", ParamKind::Input, Type::new(DType::F32, [rows, vocab])).unwrap();
    let best = form(&mut b, logits, k).unwrap();
    for (name, node) in [("values", best.values), ("indices", best.indices), ("lse", best.log_sum_exp)] {
        b.output(name, node, None).unwrap();
    }
    b.finish().unwrap()
}

fn check(logits: &Value, k: usize, found: &[Value]) {
    let (rows, vocab) = (logits.ty().shape[0], logits.ty().shape[1]);
    let [values, indices, lse] = found else { panic!("{} outputs", found.len()) };
    let mut sums = Vec::new();
    for row in 0..rows {
        let logits = &logits.floats().unwrap()[row * vocab..][..vocab];
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let want: Vec<i64> = order[..k].iter().map(|i| *i as i64).collect();
        assert_eq!(indices.ints().unwrap()[row * k..][..k], want, "row {row}");
        let want: Vec<f32> = order[..k].iter().map(|i| logits[*i]).collect();
        assert_eq!(values.floats().unwrap()[row * k..][..k], want, "row {row}");
        let max = f64::from(logits[order[0]]);
        let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
        sums.push((max + sum.ln()) as f32);
    }
    let want = Value::from_floats(Type::new(DType::F32, [rows]), sums).unwrap();
    assert!(off(lse, &want, 1.0) < 1e-5);
}

/// Logits of a few distinct values where `levels` is small, so that most are ties.
fn logits(seed: u64, rows: usize, vocab: usize, levels: usize) -> Value {
    let mut noise = Noise(seed);
    let elements = (0..rows * vocab).map(|_| noise.below(levels) as f32 / 8.0 - 3.0).collect();
    Value::from_floats(Type::new(DType::F32, [rows, vocab]), elements).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_sort_agrees(seed: u64, rows in 1usize..4, vocab in 1usize..200, k in 1usize..20, spread in 0u32..4) {
        let k = k.min(vocab);
        let logits = logits(seed, rows, vocab, [1, 3, 20, 10_000][spread as usize]);
        let found = evaluate(&graph(rows, vocab, k), &HashMap::from([("logits".into(), logits.clone())])).unwrap();
        check(&logits, k, &found);
        // The custom call, which XLA on a CPU does not know, after its way through HLO.
        let call = hlo::write(&built(top_k_call, rows, vocab, k), &hlo::HloOptions::default()).unwrap();
        let call = hlo::read(&call).unwrap();
        let found = evaluate(&call, &HashMap::from([("logits".into(), logits.clone())])).unwrap();
        check(&logits, k, &found);
    }
}

/// Whatever a row holds, indices are within it.
#[test]
fn a_row_of_nans_gives_indices_within_it() {
    for rows in [vec![f32::NAN; 11], (0..11).map(|i| if i == 3 { f32::NAN } else { i as f32 }).collect()] {
        let logits = Value::from_floats(Type::new(DType::F32, [1, 11]), rows).unwrap();
        let found = evaluate(&graph(1, 11, 5), &HashMap::from([("logits".into(), logits)])).unwrap();
        assert!(found[1].ints().unwrap().iter().all(|index| (0..11).contains(index)));
    }
}

#[test]
fn xla_agrees() {
    let Some(judge) = Judge::find() else { return };
    let cases = [(1, 7, 7, 3), (3, 100, 16, 10_000), (2, 151, 20, 5), (4, 32_003, 64, 1_000_000)];
    let given: Vec<Value> =
        cases.iter().map(|(rows, vocab, k, levels)| logits(*k as u64, *rows, *vocab, *levels)).collect();
    let jobs: Vec<_> = cases
        .iter()
        .zip(&given)
        .map(|((rows, vocab, k, _), x)| {
            job(&graph(*rows, *vocab, *k), &HashMap::from([("logits".into(), x.clone())]))
        })
        .collect();
    for ((found, logits), (_, _, k, _)) in judge.run(&jobs).iter().zip(&given).zip(&cases) {
        check(logits, *k, found);
    }
}

#[test]
fn more_than_a_row_has_is_refused() {
    for (shape, dtype, k) in [
        (vec![2, 5], DType::F32, 6),
        (vec![2, 5], DType::F32, 0),
        (vec![2, 5], DType::BF16, 3),
        (vec![5], DType::F32, 3),
        (vec![1, (1 << 24) + 1], DType::F32, 3),
        (vec![1 << 16, 1 << 17], DType::F32, 3),
    ] {
        let mut b = Builder::new("refused");
        let x = b.param("x", ParamKind::Input, Type::new(dtype, shape)).unwrap();
        assert!(top_k(&mut b, x, k).is_err());
        let wide = b.ty(x).rank() == 2 && b.ty(x).dtype == DType::F32 && (1..=b.ty(x).cols()).contains(&k);
        assert_eq!(top_k_call(&mut b, x, k).is_err(), !wide, "the call does not count in floats");
    }
}
