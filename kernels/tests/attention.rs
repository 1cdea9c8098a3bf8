//! Paged attention against a plain one in f64, and its bits against themselves: the same token alone, in any
//! company, in other blocks, by other instructions and by other threads.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use half::{bf16, f16};
use millrace_graph::{Attention, DType, Type};
use millrace_kernels::{
    attention::{AttentionCall, Rows, Schedule, Scratch},
    cpu::{self, Isa},
    kv::{KvRole, KvTensor},
};
use proptest::{prelude::*, sample::select};

/// SplitMix64: a test's data from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In [-1, 1).
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    dtype: DType,
    block: usize,
    kv_heads: usize,
    queries: usize,
    dim: usize,
    params: Attention,
}

impl Sizes {
    fn heads(&self) -> usize {
        self.kv_heads * self.queries
    }

    fn cache(&self, blocks: usize) -> Type {
        Type::new(self.dtype, [blocks, self.block, self.kv_heads, self.dim])
    }

    /// Keys or values as the cache keeps them.
    fn stored(&self, list: &[f32]) -> Vec<f64> {
        let row = |row: &[f32]| -> Vec<f64> {
            let largest = row.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let (scale, inverse) = (f64::from(largest / 127.0), 127.0 / largest);
            let rounded = |x: &f32| match self.dtype {
                DType::F16 => f16::from_f32(*x).to_f64(),
                DType::BF16 => bf16::from_f32(*x).to_f64(),
                DType::I8 => f64::from((x * inverse).round_ties_even()) * scale,
                _ => f64::from(*x),
            };
            row.iter().map(rounded).collect()
        };
        list.chunks(self.dim).flat_map(row).collect()
    }
}

/// A sequence's queries, keys and values, token by token, up to some length.
#[derive(Clone)]
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    len: usize,
}

impl Sequence {
    fn new(sizes: &Sizes, len: usize, random: &mut Random) -> Self {
        let row = sizes.kv_heads * sizes.dim;
        let mut q = random.floats(len * row * sizes.queries);
        // Some heads look at few tokens, some at all.
        for (i, q) in q.chunks_mut(sizes.dim).enumerate() {
            let sharpness = [0.1, 1.0, 6.0][i % 3];
            q.iter_mut().for_each(|q| *q *= sharpness);
        }
        Sequence { q, k: random.floats(len * row), v: random.floats(len * row), len }
    }

    fn take_prefix(&mut self, other: &Sequence, len: usize) {
        let len = len.min(self.len).min(other.len);
        let row = self.k.len() / self.len;
        self.k[..len * row].copy_from_slice(&other.k[..len * row]);
        self.v[..len * row].copy_from_slice(&other.v[..len * row]);
    }
}

/// `[H, D]` of one token, in f64 and in the order of the formula.
fn naive(sizes: &Sizes, seq: &Sequence, position: usize) -> Vec<f64> {
    let Sizes { dim, kv_heads, queries, params, .. } = *sizes;
    let mut out = Vec::new();
    let first = params.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let (k, v) = (sizes.stored(&seq.k), sizes.stored(&seq.v));
    for head in 0..sizes.heads() {
        let group = head / queries;
        let q = &seq.q[(position * sizes.heads() + head) * dim..][..dim];
        let at = |t: usize, list: &[f64], d: usize| list[(t * kv_heads + group) * dim + d];
        let scores: Vec<f64> = (first..=position)
            .map(|t| {
                let dot = (0..dim).map(|d| f64::from(q[d]) * at(t, &k, d)).sum::<f64>();
                let score = dot * f64::from(params.scale);
                params.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        out.extend((0..dim).map(|d| {
            weights.iter().zip(first..).map(|(weight, t)| weight * at(t, &v, d)).sum::<f64>() / sum
        }));
    }
    out
}

/// How a call is made; none of it may change a bit.
#[derive(Clone, Copy, Debug)]
struct Manner {
    isa: Isa,
    workers: usize,
    /// Whether equal prefixes lie in the same blocks.
    share: bool,
    /// Whether cached tokens that no new token sees are there.
    rest: bool,
    seed: u64,
}

/// Attends to `seqs` for the new tokens `(sequence, position)`, each sequence a row of the tables, and yields
/// `[H, D]` for each token. Everything that has no business in the call is NaN or an impossible block.
fn attend(
    sizes: &Sizes,
    seqs: &[Sequence],
    prefix: usize,
    new: &[(usize, usize)],
    how: Manner,
) -> Vec<Vec<f32>> {
    let mut random = Random(how.seed);
    let needed = |s: usize| new.iter().filter(|n| n.0 == s).map(|n| n.1 + 1).max().unwrap_or(0);
    let stride = seqs.iter().map(|seq| seq.len.div_ceil(sizes.block)).max().unwrap_or(0) + 1;
    let blocks = seqs.len() * stride + 3;
    let mut free: Vec<i32> = (0..blocks as i32).collect();
    random.shuffle(&mut free);
    let (mut k, mut v) = (
        KvTensor::new(&sizes.cache(blocks), KvRole::Key).unwrap(),
        KvTensor::new(&sizes.cache(blocks), KvRole::Value).unwrap(),
    );
    for block in 0..blocks {
        k.poison(block);
        v.poison(block);
    }
    let mut tables = vec![i32::MIN; seqs.len() * stride];
    for (s, seq) in seqs.iter().enumerate() {
        let end = if how.rest { seq.len } else { needed(s) };
        let first = if how.rest { 0 } else { first_seen(sizes, new, s) };
        for block in first / sizes.block..end.div_ceil(sizes.block) {
            let shared = how.share && s > 0 && (block + 1) * sizes.block <= prefix && tables[block] >= 0;
            tables[s * stride + block] = if shared { tables[block] } else { free.pop().unwrap() };
        }
        let slots: Vec<i32> = (first..end)
            .map(|t| tables[s * stride + t / sizes.block] * sizes.block as i32 + (t % sizes.block) as i32)
            .collect();
        let row = sizes.kv_heads * sizes.dim;
        for (cache, values) in [(&k, &seq.k), (&v, &seq.v)] {
            // SAFETY: the sequence has so many rows, and the slots are in blocks of the cache.
            unsafe { cache.write(values[first * row..].as_ptr(), row, &slots, 0..slots.len()) };
        }
    }

    let row = sizes.heads() * sizes.dim;
    let (q_stride, out_stride) = (row + random.below(3) * 5, row + random.below(3) * 3);
    let mut q = vec![f32::NAN; new.len() * q_stride];
    for (q, (s, t)) in q.chunks_mut(q_stride).zip(new) {
        q[..row].copy_from_slice(&seqs[*s].q[t * row..][..row]);
    }
    let mut out = vec![f32::NAN; new.len() * out_stride];
    let positions: Vec<i32> = new.iter().map(|n| n.1 as i32).collect();
    let rows: Vec<i32> = new.iter().map(|n| n.0 as i32).collect();
    let width = new.len() / seqs.len().max(1);
    let even = width > 0 && rows.iter().enumerate().all(|(i, row)| *row as usize == i / width);
    let call = AttentionCall {
        q: q.as_ptr(),
        q_stride,
        heads: sizes.heads(),
        k: &k,
        v: &v,
        tables: &tables,
        table_stride: stride,
        positions: &positions,
        rows: if even && how.seed.is_multiple_of(2) { Rows::Width(width) } else { Rows::PerToken(&rows) },
        params: sizes.params,
        out: out.as_mut_ptr(),
        out_stride,
    };
    let mut schedule =
        Schedule::new(sizes.heads(), &sizes.cache(blocks), new.len(), how.workers).with_isa(how.isa);
    schedule.plan(&call);
    // Twice, as two layers would: what the first run leaves behind must not show.
    for _ in 0..2 {
        let mut order: Vec<usize> = (0..schedule.items()).collect();
        random.shuffle(&mut order);
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..how.workers {
                scope.spawn(|| {
                    let mut scratch = Scratch::new(sizes.heads(), &sizes.cache(blocks));
                    while let Some(item) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // SAFETY: planned for this call, whose tables and buffers are as they must be.
                        unsafe { call.run(&schedule, *item, &mut scratch) };
                    }
                });
            }
        });
    }
    out.chunks(out_stride)
        .map(|out| {
            assert!(out[row..].iter().all(|x| x.is_nan()), "written beyond the row");
            out[..row].to_vec()
        })
        .collect()
}

/// The first position that any new token of a sequence sees.
fn first_seen(sizes: &Sizes, new: &[(usize, usize)], s: usize) -> usize {
    let of = |n: &&(usize, usize)| n.0 == s;
    let first = |n: &(usize, usize)| sizes.params.window.map_or(0, |window| (n.1 + 1).saturating_sub(window));
    new.iter().filter(of).map(first).min().unwrap_or(0)
}

fn bits(out: &[f32]) -> Vec<u32> {
    out.iter().map(|x| x.to_bits()).collect()
}

/// A case: sequences, of which the first `prefix` tokens are equal, and their new tokens.
#[derive(Clone, Debug)]
struct Case {
    sizes: Sizes,
    /// Length, and new tokens at its end.
    rows: Vec<(usize, usize)>,
    prefix: usize,
    ragged: bool,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (
        select(vec![DType::F32, DType::F16, DType::BF16, DType::I8]),
        select(vec![8usize, 16, 16, 24, 32, 32, 64, 128, 160]),
        1..=3usize,
        select(vec![1usize, 2, 3, 4, 5, 7, 9]),
        select(vec![8usize, 16, 64, 64, 72, 7, 20, 128, 256]),
        select(vec![None, None, None, Some(1usize), Some(5), Some(33), Some(150)]),
        select(vec![None, None, Some(2.0f32), Some(30.0)]),
    )
        .prop_map(|(dtype, block, kv_heads, queries, dim, window, softcap)| Sizes {
            dtype,
            block,
            kv_heads,
            queries,
            dim,
            params: Attention { scale: 1.0 / (dim as f32).sqrt(), window, softcap, width: None },
        });
    let row = (prop_oneof![1..40usize, 100..420usize], prop_oneof![Just(1usize), 1..6usize, 20..90usize]);
    (
        sizes,
        prop::collection::vec(row, 1..5),
        prop_oneof![Just(0usize), 1..300usize],
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(sizes, rows, prefix, ragged, seed)| {
            let width = rows[0].1;
            let rows = rows
                .into_iter()
                .map(|(len, new)| (len.max(width), if ragged { new.min(len) } else { width }));
            Case { sizes, rows: rows.collect(), prefix, ragged, seed }
        })
}

impl Case {
    fn sequences(&self) -> Vec<Sequence> {
        let mut random = Random(self.seed);
        let mut seqs: Vec<Sequence> =
            self.rows.iter().map(|(len, _)| Sequence::new(&self.sizes, *len, &mut random)).collect();
        let first = seqs[0].clone();
        seqs.iter_mut().for_each(|seq| seq.take_prefix(&first, self.prefix));
        seqs
    }

    fn new_tokens(&self) -> Vec<(usize, usize)> {
        let rows = self.rows.iter().enumerate();
        let mut new: Vec<_> =
            rows.flat_map(|(s, (len, new))| (len - new..*len).map(move |t| (s, t))).collect();
        if self.ragged {
            Random(self.seed ^ 1).shuffle(&mut new);
        }
        new
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn attention_is_the_naive_one_and_its_bits_depend_on_nothing_else(case in cases()) {
        let sizes = &case.sizes;
        let (seqs, new) = (case.sequences(), case.new_tokens());
        let prefix = case.prefix.min(case.rows[0].0);
        let manner = Manner { isa: cpu::isa(), workers: 1, share: true, rest: true, seed: case.seed };
        let out = attend(sizes, &seqs, prefix, &new, manner);

        let mut random = Random(case.seed ^ 2);
        for (out, (s, t)) in out.iter().zip(&new) {
            if random.below(new.len()) > 12 {
                continue;
            }
            for (out, want) in out.iter().zip(naive(sizes, &seqs[*s], *t)) {
                prop_assert!((f64::from(*out) - want).abs() < 4e-6, "{out}, not {want}, at {t} of sequence {s}");
            }
            // Alone, with nothing in the cache that it does not see.
            let alone = Manner { rest: false, seed: random.next(), ..manner };
            let alone = attend(sizes, &seqs, prefix, &[(*s, *t)], alone);
            prop_assert_eq!(bits(&alone[0]), bits(out), "alone, at {} of sequence {}", t, s);
        }

        let mut others = vec![
            Manner { workers: 3, seed: random.next(), ..manner },
            Manner { workers: 2, share: false, rest: false, seed: random.next(), ..manner },
        ];
        if new.len() * sizes.heads() * sizes.dim < 20_000 {
            others.push(Manner { isa: Isa::Scalar, workers: 2, seed: random.next(), ..manner });
        }
        for how in others {
            let other = attend(sizes, &seqs, prefix, &new, how);
            for (i, (a, b)) in out.iter().zip(&other).enumerate() {
                prop_assert_eq!(bits(a), bits(b), "token {} by {:?}", i, how);
            }
        }
    }

    #[test]
    fn chunks_of_any_size_give_the_same_bits(
        mut case in cases(),
        cuts in prop::collection::vec(1..40usize, 1..20),
    ) {
        case.rows.truncate(1);
        let sizes = &case.sizes;
        let seqs = case.sequences();
        let len = case.rows[0].0;
        let manner = Manner { isa: cpu::isa(), workers: 2, share: true, rest: true, seed: case.seed };
        let tokens = |range: Range<usize>| range.map(|t| (0, t)).collect::<Vec<_>>();
        let whole = attend(sizes, &seqs, 0, &tokens(0..len), manner);
        let mut at = 0;
        for cut in cuts {
            let end = len.min(at + cut);
            let chunk = attend(sizes, &seqs, 0, &tokens(at..end), Manner { rest: false, ..manner });
            for (a, b) in whole[at..end].iter().zip(&chunk) {
                prop_assert_eq!(bits(a), bits(b), "chunk {}..{}", at, end);
            }
            at = end;
        }
    }
}

#[test]
fn long_contexts_are_split_over_workers_without_a_trace() {
    let params = Attention { scale: 0.125, window: None, softcap: None, width: Some(1) };
    let sizes = Sizes { dtype: DType::F16, block: 16, kv_heads: 1, queries: 4, dim: 64, params };
    let seqs = [Sequence::new(&sizes, 3000, &mut Random(7))];
    let manner = Manner { isa: cpu::isa(), workers: 1, share: true, rest: true, seed: 3 };
    let new = [(0, 2999)];
    let alone = attend(&sizes, &seqs, 0, &new, manner);
    for workers in 2..6 {
        let split = attend(&sizes, &seqs, 0, &new, Manner { workers, ..manner });
        assert_eq!(bits(&alone[0]), bits(&split[0]), "{workers} workers");
    }
    // The split is real: one KV head, one token, and yet work for several.
    let cache = sizes.cache(200);
    let (k, v) = (KvTensor::new(&cache, KvRole::Key).unwrap(), KvTensor::new(&cache, KvRole::Value).unwrap());
    let tables: Vec<i32> = (0..188).collect();
    let call = AttentionCall {
        q: std::ptr::null(),
        q_stride: 0,
        heads: 4,
        k: &k,
        v: &v,
        tables: &tables,
        table_stride: 188,
        positions: &[2999],
        rows: Rows::Width(1),
        params,
        out: std::ptr::null_mut(),
        out_stride: 0,
    };
    let mut schedule = Schedule::new(4, &cache, 1, 4);
    schedule.plan(&call);
    assert!(schedule.items() >= 8, "{} items for 4 workers", schedule.items());
}

#[test]
fn infinite_scores_behave_as_in_the_formula() {
    let params = Attention { scale: 1.0, window: None, softcap: None, width: None };
    let sizes = Sizes { dtype: DType::F32, block: 8, kv_heads: 1, queries: 1, dim: 8, params };
    let mut seq = Sequence::new(&sizes, 20, &mut Random(1));
    seq.q.fill(1.0);
    // A whole tile of scores -inf, then finite ones: weight 0 for the former, and no NaN.
    seq.k[..8 * 8].fill(f32::MIN);
    for isa in Isa::available() {
        let manner = Manner { isa: *isa, workers: 1, share: true, rest: true, seed: 1 };
        let out = attend(&sizes, std::slice::from_ref(&seq), 0, &[(0, 19)], manner);
        let mut finite = seq.clone();
        finite.k[..8 * 8].fill(-1e4);
        for (out, want) in out[0].iter().zip(naive(&sizes, &finite, 19)) {
            assert!((f64::from(*out) - want).abs() < 1e-6, "{out}, not {want}");
        }
        // A NaN among the keys it sees shows.
        let mut broken = seq.clone();
        broken.k[12 * 8] = f32::from_bits(u32::MAX);
        let out = attend(&sizes, &[broken], 0, &[(0, 19), (0, 11)], manner);
        assert!(out[0].iter().all(|x| x.is_nan()), "{:?}", out[0]);
        assert!(out[1].iter().all(|x| x.is_finite()), "{:?}", out[1]);
    }
}
