//! The definitions of the fused ops, evaluated, against their formulas computed directly in f64.

use std::sync::Arc;

use millrace_graph::define::definition;
use millrace_graph::{Activation, Attention, DType, Fused, Type};
use millrace_kernels::eval::{EvalError, Value, evaluate};
use millrace_kernels::quantise::quantise;
use proptest::prelude::*;
use proptest::sample::select;

/// Random tensors from a seed that proptest draws and shrinks.
struct Noise(u64);

impl Noise {
    /// Uniform in -1 .. 1 (SplitMix64).
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn below(&mut self, bound: usize) -> usize {
        ((f64::from(self.next()) + 1.0) / 2.0 * bound as f64) as usize % bound
    }

    fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Value {
        let ty = Type::new(dtype, shape);
        let floats: Vec<f32> = (0..ty.elements()).map(|_| self.next()).collect();
        if !dtype.is_quantised() {
            return Value::from_floats(ty, floats).expect("a float type");
        }
        let mut bytes = vec![0; ty.bytes().expect("whole blocks")];
        quantise(dtype, &floats, &mut bytes).expect("a quantised type");
        Value::from_bytes(ty, &bytes).expect("as long as the type says")
    }
}

fn indices(elements: &[usize]) -> Value {
    let elements: Vec<i64> = elements.iter().map(|x| *x as i64).collect();
    Value::from_ints(Type::new(DType::I32, [elements.len()]), elements).expect("in range")
}

/// The numbers that a tensor holds, whatever its format.
fn numbers(x: &Value) -> Vec<f64> {
    let floats = match x.floats() {
        Some(floats) => floats.to_vec(),
        None => {
            let mut floats = vec![0.0; x.ty().elements()];
            millrace_kernels::dequant::dequantise(x.ty().dtype, &x.to_bytes(), &mut floats)
                .expect("a block format");
            floats
        }
    };
    floats.into_iter().map(f64::from).collect()
}

fn run(op: Fused, operands: &[&Value], result: Type) -> Result<Value, EvalError> {
    let types: Vec<Type> = operands.iter().map(|x| x.ty().clone()).collect();
    let graph = definition(&op, &types, &result)?;
    let inputs = operands.iter().enumerate().map(|(i, x)| (i.to_string(), (*x).clone())).collect();
    Ok(evaluate(&graph, &inputs)?.remove(0))
}

/// Whether every element is within `steps` roundings to the result's type of what it should be, or (for sums
/// that cancel) of `scale`.
fn close(got: &Value, want: &[f64], steps: f64, scale: f64) -> Result<(), TestCaseError> {
    let got_numbers = numbers(got);
    prop_assert_eq!(got_numbers.len(), want.len());
    // The type's relative precision, and the step of its subnormal numbers where values here reach them.
    let (unit, step) = match got.ty().dtype {
        DType::BF16 => (1.0 / 256.0, 0.0),
        DType::F16 => (1.0 / 2048.0, 1.0 / f64::from(1 << 24)),
        _ => (1.0 / f64::from(1 << 23), 0.0),
    };
    for (i, (got, want)) in got_numbers.iter().zip(want).enumerate() {
        let allowed = steps * (unit * want.abs().max(scale)).max(step);
        prop_assert!((got - want).abs() <= allowed, "element {i} is {got}, not {want} (allowed {allowed})");
    }
    Ok(())
}

fn float() -> impl Strategy<Value = DType> {
    select(vec![DType::F32, DType::BF16, DType::F16])
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn act(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

/// The normal distribution's Φ, by the trapezoid rule on its density from 0.
fn normal(x: f64) -> f64 {
    let steps = 2000;
    let h = x / f64::from(steps);
    let density = |t: f64| (-t * t / 2.0).exp();
    let inner: f64 = (1..steps).map(|i| density(h * f64::from(i))).sum();
    0.5 + h * (inner + (density(0.0) + density(x)) / 2.0) / (2.0 * std::f64::consts::PI).sqrt()
}

/// Which formats a row of 32 elements may have.
fn stored() -> impl Strategy<Value = DType> {
    select(vec![DType::F32, DType::BF16, DType::F16, DType::Q8_0, DType::Q4_0, DType::Q5_1])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn row_wise_ops(seed: u64, dtype in float(), weight in float(), rows in 1usize..5, cols in 1usize..40) {
        let mut noise = Noise(seed);
        let x = noise.tensor(dtype, &[rows, cols]);
        let xs = numbers(&x);
        let ty = x.ty().clone();

        let weights = noise.tensor(weight, &[cols]);
        let y = run(Fused::RmsNorm { eps: 1e-5, offset: 1.0 }, &[&x, &weights], ty.clone()).unwrap();
        let want: Vec<f64> = xs.chunks(cols).flat_map(|x| {
            let norm = (dot(x, x) / cols as f64 + 1e-5).sqrt();
            x.iter().zip(numbers(&weights)).map(|(x, w)| x / norm * (w + 1.0)).collect::<Vec<_>>()
        }).collect();
        close(&y, &want, 4.0, 1e-6)?;

        let y = run(Fused::Softcap { cap: 0.5 }, &[&x], ty.clone()).unwrap();
        close(&y, &xs.iter().map(|x| 0.5 * (x / 0.5).tanh()).collect::<Vec<_>>(), 4.0, 1e-6)?;
        let y = run(Fused::Scale { factor: 3.25 }, &[&x], ty).unwrap();
        close(&y, &xs.iter().map(|x| x * 3.25).collect::<Vec<_>>(), 1.0, 1e-6)?;

        let bias = noise.tensor(weight, &[cols]);
        let y = run(Fused::LayerNorm { eps: 1e-3 }, &[&x, &weights, &bias], x.ty().clone()).unwrap();
        let want: Vec<f64> = xs.chunks(cols).flat_map(|x| {
            let mean = x.iter().sum::<f64>() / cols as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / cols as f64;
            let norm = (variance + 1e-3).sqrt();
            let affine = numbers(&weights).into_iter().zip(numbers(&bias));
            x.iter().zip(affine).map(|(x, (w, b))| (x - mean) / norm * w + b).collect::<Vec<_>>()
        }).collect();
        close(&y, &want, 64.0, 1.0)?;
        let y = run(Fused::Gelu, &[&x], x.ty().clone()).unwrap();
        close(&y, &xs.iter().map(|x| x * normal(*x)).collect::<Vec<_>>(), 8.0, 1.0)?;

        let picks: Vec<usize> = (0..rows + 2).map(|_| noise.below(rows)).collect();
        let y = run(Fused::SelectRows, &[&x, &indices(&picks)], Type::new(dtype, [rows + 2, cols])).unwrap();
        let want: Vec<f64> = picks.iter().flat_map(|row| xs[row * cols..][..cols].to_vec()).collect();
        close(&y, &want, 0.0, 0.0)?;
    }

    #[test]
    fn embedding(seed: u64, table in stored(), dtype in float(), scale in select(vec![1.0f32, 7.5])) {
        let mut noise = Noise(seed);
        let table = noise.tensor(table, &[9, 32]);
        let ids: Vec<usize> = (0..4).map(|_| noise.below(9)).collect();
        let y = run(Fused::Embed { scale }, &[&table, &indices(&ids)], Type::new(dtype, [4, 32])).unwrap();
        let rows = numbers(&table);
        let want: Vec<f64> =
            ids.iter().flat_map(|id| rows[id * 32..][..32].iter().map(|x| x * f64::from(scale))).collect();
        close(&y, &want, 1.0, 0.0)?;
        let outside = run(Fused::Embed { scale }, &[&table, &indices(&[9])], Type::new(dtype, [1, 32]));
        let refused = matches!(outside, Err(EvalError::Node { .. }));
        prop_assert!(refused);
    }

    /// The rotation as a multiplication of complex numbers.
    #[test]
    fn rope(seed: u64, dtype in float(), (heads, half, rest) in (1usize..4, 1usize..9, 0usize..5), scale in 0.5f32..2.0) {
        let mut noise = Noise(seed);
        let positions: Vec<usize> = (0..5).map(|_| noise.below(3000)).collect();
        let inv_freq: Arc<[f32]> = (0..half).map(|i| 10000f32.powf(-(i as f32) / half as f32)).collect();
        let angles = Fused::RopeAngles { inv_freq: inv_freq.clone(), scale };
        let angles = run(angles, &[&indices(&positions)], Type::new(DType::F32, [5, 2, half])).unwrap();
        let turn = |t: usize, i: usize| {
            // The angle is rounded to f32 before its cosine is taken, as checkpoints expect.
            let angle = f64::from(positions[t] as f32 * inv_freq[i]);
            (angle.cos() * f64::from(scale), angle.sin() * f64::from(scale))
        };
        let want: Vec<f64> = (0..5)
            .flat_map(|t| {
                let turns: Vec<(f64, f64)> = (0..half).map(|i| turn(t, i)).collect();
                [turns.iter().map(|turn| turn.0).collect::<Vec<_>>(), turns.iter().map(|turn| turn.1).collect()].concat()
            })
            .collect();
        close(&angles, &want, 4.0, 1.0)?;

        let dim = 2 * half + rest;
        let x = noise.tensor(dtype, &[5, heads, dim]);
        let y = run(Fused::Rope, &[&x, &angles], x.ty().clone()).unwrap();
        let mut want = numbers(&x);
        for (row, x) in want.chunks_mut(dim).enumerate() {
            for i in 0..half {
                let ((cos, sin), (re, im)) = (turn(row / heads, i), (x[i], x[i + half]));
                (x[i], x[i + half]) = (re * cos - im * sin, re * sin + im * cos);
            }
        }
        close(&y, &want, 4.0, 1.0)?;
    }

    #[test]
    fn linear_layers(
        seed: u64,
        dtype in float(),
        weights in prop::collection::vec((stored(), 1usize..6), 1..4),
        bias in prop::option::of(float()),
        gate in select(vec![Activation::Silu, Activation::GeluTanh]),
    ) {
        let mut noise = Noise(seed);
        let x = noise.tensor(dtype, &[3, 32]);
        let matrices: Vec<Value> = weights.iter().map(|(stored, n)| noise.tensor(*stored, &[*n, 32])).collect();
        let biases: Vec<Value> =
            bias.iter().flat_map(|bias| weights.iter().map(|(_, n)| (*bias, *n))).map(|(bias, n)| noise.tensor(bias, &[n])).collect();
        let operands: Vec<&Value> = std::iter::once(&x).chain(&matrices).chain(&biases).collect();
        let columns = weights.iter().map(|(_, n)| n).sum();
        let op = Fused::Linear { weights: weights.len(), bias: bias.is_some() };
        let y = run(op, &operands, Type::new(dtype, [3, columns])).unwrap();
        let row = |w: &Value, n: usize| numbers(w)[n * 32..][..32].to_vec();
        let xs = numbers(&x);
        let mut want = Vec::new();
        for x in xs.chunks(32) {
            for (i, w) in matrices.iter().enumerate() {
                for n in 0..w.ty().shape[0] {
                    let bias = biases.get(i).map_or(0.0, |bias| numbers(bias)[n]);
                    want.push(dot(x, &row(w, n)) + bias);
                }
            }
        }
        close(&y, &want, 2.0, 1.0)?;

        let (gate_weight, up) = (noise.tensor(weights[0].0, &[4, 32]), noise.tensor(weights[0].0, &[4, 32]));
        let y = run(Fused::GatedLinear { act: gate }, &[&x, &gate_weight, &up], Type::new(dtype, [3, 4])).unwrap();
        let want: Vec<f64> = xs
            .chunks(32)
            .flat_map(|x| (0..4).map(|n| act(gate, dot(x, &row(&gate_weight, n))) * dot(x, &row(&up, n))).collect::<Vec<_>>())
            .collect();
        close(&y, &want, 4.0, 4.0)?;
    }

    #[test]
    fn full_attention_and_pooling(
        seed: u64, dtype in float(), (texts, width, heads, dim) in (1usize..4, 1usize..6, 1usize..4, 1usize..6),
    ) {
        let mut noise = Noise(seed);
        let shape = [texts * width, heads, dim];
        let [q, k, v] = [0; 3].map(|_| noise.tensor(dtype, &shape));
        let last: Vec<usize> = (0..texts).map(|_| noise.below(width)).collect();
        let y = run(Fused::FullAttention { scale: 0.7 }, &[&q, &k, &v, &indices(&last)], q.ty().clone()).unwrap();
        let (qs, ks, vs) = (numbers(&q), numbers(&k), numbers(&v));
        let mut want = Vec::new();
        for t in 0..texts * width {
            let first = t / width * width;
            for h in 0..heads {
                let at = |x: &[f64], t: usize| x[(t * heads + h) * dim..][..dim].to_vec();
                let keys = first..=first + last[t / width];
                let weights: Vec<f64> = keys.clone().map(|j| (0.7 * dot(&at(&qs, t), &at(&ks, j))).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..dim {
                    want.push(keys.clone().zip(&weights).map(|(j, w)| w / sum * at(&vs, j)[d]).sum());
                }
            }
        }
        close(&y, &want, 16.0, 1.0)?;

        let x = noise.tensor(dtype, &[texts * width, dim]);
        let y = run(Fused::MeanPool, &[&x, &indices(&last)], Type::new(dtype, [texts, dim])).unwrap();
        let xs = numbers(&x);
        let want: Vec<f64> = (0..texts).flat_map(|b| {
            let rows = (0..=last[b]).map(|j| &xs[(b * width + j) * dim..][..dim]);
            let sum = rows.fold(vec![0.0; dim], |sum, row| sum.iter().zip(row).map(|(a, b)| a + b).collect());
            let length = dot(&sum, &sum).sqrt();
            sum.into_iter().map(|x| x / length.max(1e-12)).collect::<Vec<f64>>()
        }).collect();
        // Sums that nearly cancel keep few digits.
        close(&y, &want, 4096.0, 1.0)?;
    }

    /// Routing by sorting, and only the chosen experts computed. Logits are small integers, so ties abound.
    #[test]
    fn mixture_of_experts(
        seed: u64,
        dtype in float(),
        stored in stored(),
        (experts, top_k) in (1usize..6).prop_flat_map(|e| (Just(e), 1..=e)),
        normalise: bool,
        gate in select(vec![Activation::Silu, Activation::GeluTanh]),
    ) {
        let mut noise = Noise(seed);
        let (tokens, dim, inner) = (3, 32, 32);
        let x = noise.tensor(dtype, &[tokens, dim]);
        let logits: Vec<f32> = (0..tokens * experts).map(|_| noise.below(3) as f32).collect();
        let router = Value::from_floats(Type::new(dtype, [tokens, experts]), logits.clone()).unwrap();
        let [gates, ups] = [0, 1].map(|_| noise.tensor(stored, &[experts, inner, dim]));
        let down = noise.tensor(stored, &[experts, dim, inner]);
        let op = Fused::Experts { top_k, normalise, act: gate };
        let y = run(op, &[&x, &router, &gates, &ups, &down], x.ty().clone()).unwrap();

        let (xs, gates, ups, down) = (numbers(&x), numbers(&gates), numbers(&ups), numbers(&down));
        let mut want = Vec::new();
        for (x, logits) in xs.chunks(dim).zip(logits.chunks(experts)) {
            let all: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            let mut order: Vec<(f64, usize)> =
                logits.iter().enumerate().map(|(e, l)| (f64::from(*l).exp() / all, e)).collect();
            order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            order.truncate(top_k);
            let chosen: f64 = if normalise { order.iter().map(|(p, _)| p).sum() } else { 1.0 };
            let mut sum = vec![0.0; dim];
            for (p, e) in order {
                let row = |of: &[f64], n: usize| dot(x, &of[(e * inner + n) * dim..][..dim]);
                let hidden: Vec<f64> = (0..inner).map(|n| act(gate, row(&gates, n)) * row(&ups, n)).collect();
                for (d, sum) in sum.iter_mut().enumerate() {
                    *sum += p / chosen * dot(&hidden, &down[(e * dim + d) * inner..][..inner]);
                }
            }
            want.extend(sum);
        }
        // Hidden values reach tens, and are rounded before the last product sums 32 of them.
        close(&y, &want, 4.0, 40.0)?;
    }
}

/// Sequences whose keys and values are known unpaged, and a step over them.
struct Paged {
    groups: usize,
    dim: usize,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    k_cache: Value,
    v_cache: Value,
    tables: Vec<Vec<usize>>,
}

/// Writes `lengths` tokens of each sequence through shuffled block tables into caches full of other numbers.
fn paged(
    noise: &mut Noise,
    dtype: DType,
    act: DType,
    lengths: &[usize],
    block: usize,
    groups: usize,
    dim: usize,
) -> Paged {
    let widest = lengths.iter().map(|length| length.div_ceil(block)).max().unwrap_or(0);
    let blocks = lengths.len() * widest + 1;
    let mut order: Vec<usize> = (0..blocks).collect();
    for i in (1..blocks).rev() {
        order.swap(i, noise.below(i + 1));
    }
    let tables: Vec<Vec<usize>> =
        (0..lengths.len()).map(|row| order[row * widest..][..widest].to_vec()).collect();
    let shape = [blocks, block, groups, dim];
    let mut paged = Paged {
        groups,
        dim,
        keys: Vec::new(),
        values: Vec::new(),
        k_cache: noise.tensor(dtype, &shape),
        v_cache: noise.tensor(dtype, &shape),
        tables,
    };
    for (row, length) in lengths.iter().enumerate() {
        let slots: Vec<usize> =
            (0..*length).map(|at| paged.tables[row][at / block] * block + at % block).collect();
        let mut write = |cache: &mut Value| {
            let tokens = noise.tensor(act, &[*length, groups, dim]);
            let ty = cache.ty().clone();
            *cache = run(Fused::WriteKv, &[cache, &tokens, &indices(&slots)], ty).unwrap();
            // The cache holds what its own type can.
            let kept = Value::from_floats(
                Type::new(dtype, tokens.ty().shape.clone()),
                tokens.floats().unwrap().to_vec(),
            );
            numbers(&kept.unwrap())
        };
        let (k, v) = (write(&mut paged.k_cache), write(&mut paged.v_cache));
        paged.keys.push(k);
        paged.values.push(v);
    }
    paged
}

impl Paged {
    /// Attention of one query head at `position` of sequence `row`.
    fn attend(&self, q: &[f64], row: usize, group: usize, position: usize, how: &Attention) -> Vec<f64> {
        let stride = self.groups * self.dim;
        let at = |of: &[f64], p: usize| of[p * stride + group * self.dim..][..self.dim].to_vec();
        let first = how.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let scores: Vec<f64> = (first..=position)
            .map(|p| {
                let score = dot(q, &at(&self.keys[row], p)) * f64::from(how.scale);
                how.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut out = vec![0.0; self.dim];
        for (weight, p) in weights.iter().zip(first..) {
            for (out, v) in out.iter_mut().zip(at(&self.values[row], p)) {
                *out += weight / sum * v;
            }
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Paged attention, in both forms, against attention over the unpaged sequences.
    #[test]
    fn attention(
        seed: u64,
        (act, cache) in (float(), float()),
        (groups, group, dim) in (1usize..4, 1usize..4, 1usize..9),
        block in 1usize..6,
        lengths in prop::collection::vec(1usize..14, 1..4),
        window in prop::option::of(1usize..8),
        softcap in prop::option::of(0.5f32..3.0),
        width in prop::option::of(1usize..4),
    ) {
        let mut noise = Noise(seed);
        // The rectangular form needs as many tokens of every row.
        let width = width.map(|width| width.min(*lengths.iter().min().unwrap()));
        let paged = paged(&mut noise, cache, act, &lengths, block, groups, dim);
        // (row, position) of each new token: the last ones of each row, or (ragged) any in any order.
        let new: Vec<(usize, usize)> = match width {
            Some(width) => {
                let rows = lengths.iter().enumerate();
                rows.flat_map(|(row, length)| (length - width..*length).map(move |p| (row, p))).collect()
            }
            None => (0..5).map(|_| {
                let row = noise.below(lengths.len());
                (row, noise.below(lengths[row]))
            }).collect(),
        };
        let how = Attention { scale: 1.0 / (dim as f32).sqrt(), window, softcap, width };
        let heads = groups * group;
        let q = noise.tensor(act, &[new.len(), heads, dim]);
        let flat: Vec<i64> = paged.tables.iter().flatten().map(|block| *block as i64).collect();
        let tables = Type::new(DType::I32, [lengths.len(), paged.tables[0].len()]);
        let tables = Value::from_ints(tables, flat).unwrap();
        let positions = indices(&new.iter().map(|(_, position)| *position).collect::<Vec<_>>());
        let rows = indices(&new.iter().map(|(row, _)| *row).collect::<Vec<_>>());
        let mut operands = vec![&q, &paged.k_cache, &paged.v_cache, &tables, &positions];
        if width.is_none() {
            operands.push(&rows);
        }
        let y = run(Fused::PagedAttention(how), &operands, q.ty().clone()).unwrap();

        let qs = numbers(&q);
        let mut want = Vec::new();
        for (t, (row, position)) in new.iter().enumerate() {
            for head in 0..heads {
                let q = &qs[(t * heads + head) * dim..][..dim];
                want.extend(paged.attend(q, *row, head / group, *position, &how));
            }
        }
        close(&y, &want, 4.0, 1.0)?;
    }
}

#[test]
fn writing_one_slot_twice_or_none_is_refused() {
    let mut noise = Noise(1);
    let cache = noise.tensor(DType::F32, &[2, 4, 1, 2]);
    let tokens = noise.tensor(DType::F32, &[2, 1, 2]);
    let write =
        |slots: &[usize]| run(Fused::WriteKv, &[&cache, &tokens, &indices(slots)], cache.ty().clone());
    let written = write(&[7, 0]).unwrap();
    assert_eq!(written.floats().unwrap()[14..], tokens.floats().unwrap()[..2]);
    assert_eq!(written.floats().unwrap()[..2], tokens.floats().unwrap()[2..]);
    assert_eq!(written.floats().unwrap()[2..14], cache.floats().unwrap()[2..14]);
    assert!(write(&[3, 3]).is_err());
    assert!(write(&[3, 8]).is_err());
}
