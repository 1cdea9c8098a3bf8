//! One row of logits to a token, on one thread: 49,152 logits, drawn from a normal distribution of the spread that
//! language models' have. Each way is checked for its answer first.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use millrace_engine::{Sampler, SamplerState, SamplingParams};

const VOCAB: usize = 49_152;

/// About normal: sums of four uniform numbers, by an xorshift generator.
fn logits() -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..VOCAB).map(|_| ((0..4).map(|_| uniform()).sum::<f32>() - 2.0) * 6.0).collect()
}

fn bench(criterion: &mut Criterion) {
    let all = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    let nucleus = SamplingParams { top_p: 0.95, ..all.clone() };
    let ways = [
        ("greedy", SamplingParams { temperature: 0.0, ..all.clone() }),
        ("temperature", all.clone()),
        ("top_p", nucleus.clone()),
        ("top_k", SamplingParams { top_k: Some(40), ..all.clone() }),
        ("top_k, top_p", SamplingParams { top_k: Some(40), ..nucleus.clone() }),
        ("min_p", SamplingParams { min_p: 0.05, ..all }),
        (
            "top_p, penalties",
            SamplingParams { repetition_penalty: 1.1, presence_penalty: 0.2, ..nucleus.clone() },
        ),
        ("top_p, logprobs", SamplingParams { logprobs: Some(5), ..nucleus }),
    ];
    let logits = logits();
    let best = (0..VOCAB).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).map(|best| best as u32);
    let mut group = criterion.benchmark_group("sample");
    for (name, params) in ways {
        let greedy = params.temperature == 0.0;
        let prompt: Arc<[u32]> = (0..500).map(|at| at * 90).collect();
        let mut state = SamplerState::new(Arc::new(params), 1, 0, prompt);
        (0..100).for_each(|at| state.accept(at * 77));
        let mut sampler = Sampler::new(VOCAB);
        let mut row = logits.clone();
        let (token, _) = sampler.sample(&mut row, &state).expect("finite logits");
        assert!(!greedy || Some(token) == best, "{token} is not the best token");
        assert!((token as usize) < VOCAB, "{token} is no token");
        // Penalties are applied again each time; what they cost does not depend on the logits.
        group.bench_function(name, |bencher| {
            bencher.iter(|| sampler.sample(black_box(&mut row), &state).expect("finite logits").0);
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
