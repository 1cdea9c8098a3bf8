use proptest::prelude::*;

use super::*;

/// Every choice of at most `k` candidates with the last among them.
fn brute_force(candidates: &[usize], demand: &[f64], k: usize, cost: &dyn Fn(usize) -> f64) -> f64 {
    let n = candidates.len();
    let choices = (0u32..1 << n).filter(|set| set >> (n - 1) == 1 && set.count_ones() as usize <= k);
    choices.map(|set| price(candidates, demand, cost, |i| set >> i & 1 == 1)).fold(f64::INFINITY, f64::min)
}

fn price(
    candidates: &[usize],
    demand: &[f64],
    cost: &dyn Fn(usize) -> f64,
    chosen: impl Fn(usize) -> bool,
) -> f64 {
    let up = |i: usize| (i..candidates.len()).find(|j| chosen(*j)).expect("the last is chosen");
    demand.iter().enumerate().map(|(i, count)| count * cost(candidates[up(i)])).sum()
}

fn limits() -> impl Strategy<Value = Limits> {
    (
        1usize..70,
        1usize..5000,
        1usize..700,
        prop_oneof![Just(1usize), Just(16), Just(24), Just(32), Just(128)],
    )
        .prop_map(|(max_num_seqs, max_model_len, max_num_batched_tokens, block_size)| Limits {
            max_num_seqs,
            max_model_len,
            max_num_batched_tokens,
            block_size,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn edges_are_the_best_there_are(
        steps in prop::collection::vec((1usize..200, 0u32..50), 1..11), k in 1usize..6, launch in 0u32..500,
    ) {
        let candidates: Vec<usize> = steps.iter().scan(0, |sum, (step, _)| { *sum += step; Some(*sum) }).collect();
        let demand: Vec<f64> = steps.iter().map(|(_, count)| f64::from(*count)).collect();
        let cost = |n: usize| f64::from(launch) + n as f64 + (n * n) as f64 / 512.0;
        let chosen = edges(&candidates, &demand, k, &cost);
        prop_assert!(chosen.len() <= k && chosen.is_sorted() && chosen.last() == candidates.last());
        let found = price(&candidates, &demand, &cost, |i| chosen.contains(&candidates[i]));
        let best = brute_force(&candidates, &demand, k, &cost);
        prop_assert!((found - best).abs() <= 1e-9 * best.max(1.0), "{found} beside {best}");
    }

    #[test]
    fn a_plan_serves_every_step(limits in limits(), rows in 0usize..70, context in 0usize..5000, adjust: bool) {
        let buckets = plan(&limits, &Histogram::typical(limits.max_model_len));
        prop_assert_eq!(check(&buckets, &limits), Ok(()));
        let mut unique = buckets.clone();
        unique.sort();
        unique.dedup();
        prop_assert_eq!(unique.len(), buckets.len(), "a bucket is there twice");
        let cost: Vec<f64> = buckets.iter().map(|b| estimate(b, limits.block_size)).collect();
        let (rows, context) = (1 + rows % limits.max_num_seqs, 1 + context % limits.max_model_len);
        let blocks = context.div_ceil(limits.block_size);
        let chosen = buckets[smallest(&buckets, &cost, rows, blocks, adjust).expect("some bucket")];
        prop_assert!(chosen.width == 1 && chosen.rows >= rows && chosen.blocks >= blocks && chosen.adjust >= adjust);
        prop_assert!(chosen.rows < 2 * rows, "{} rows in {}", rows, label(&chosen));
    }

    #[test]
    fn a_run_computes_each_token_once(
        limits in limits(), first in 0usize..5000, tokens in 0usize..5000, adjust: bool, seed in prop::collection::vec(1u32..1000, 64),
    ) {
        let buckets = plan(&limits, &Histogram::typical(limits.max_model_len));
        // Measured times need not be in proportion to anything.
        let cost: Vec<f64> = (0..buckets.len()).map(|i| f64::from(seed[i % 64])).collect();
        let first = first % limits.max_model_len;
        let tokens = 1 + tokens % (limits.max_model_len - first);
        if limits.max_num_batched_tokens == 1 && tokens > 1 {
            return Ok(());
        }
        let run = decompose(&buckets, &cost, limits.block_size, first, tokens, adjust).expect("the plan reaches");
        let mut at = first;
        for chunk in &run {
            let bucket = buckets[chunk.bucket];
            prop_assert_eq!(chunk.first, at);
            prop_assert!(bucket.rows == 1 && (1..=bucket.width).contains(&chunk.tokens));
            prop_assert!(bucket.blocks * limits.block_size >= chunk.first + chunk.tokens);
            at += chunk.tokens;
        }
        prop_assert_eq!(at, first + tokens);
        let last = run.last().expect("a chunk");
        prop_assert!(buckets[last.bucket].adjust >= adjust);
        prop_assert!(run[..run.len() - 1].iter().all(|c| !buckets[c.bucket].adjust || c.tokens == 1));
    }

    #[test]
    fn labels_are_read_back(rows in 1usize..1 << 20, width in 1usize..1 << 20, blocks in 1usize..1 << 20, adjust: bool) {
        let bucket = Bucket { rows, width, blocks, adjust };
        prop_assert_eq!(parse(&label(&bucket)), Ok(vec![bucket]));
    }

    #[test]
    fn no_text_makes_a_panic(text in ".{0,40}") {
        let _ = (parse(&text), Histogram::parse(&text));
    }
}

#[test]
fn explicit_buckets_must_reach() {
    let limits = Limits { max_num_seqs: 8, max_model_len: 1000, max_num_batched_tokens: 512, block_size: 16 };
    for (text, missing) in [
        ("8x1@63,8x1@63+adjust,1x128@63", None),
        ("8x1@62,8x1@63+adjust,1x128@63", None),
        ("8x1@63,1x128@63", Some("8x1@63+adjust")),
        ("4x1@63,8x1@62+adjust,1x128@63", Some("8x1@63")),
        ("8x1@63,8x1@63+adjust", Some("1x512@63")),
        ("8x1@63,8x1@63+adjust,1x512@62", Some("1x512@63")),
    ] {
        let found = check(&parse(text).expect("buckets"), &limits);
        match missing {
            None => assert_eq!(found, Ok(()), "{text}"),
            Some(missing) => {
                let error = found.expect_err(text);
                assert!(error.to_string().ends_with(&format!("add {missing}")), "{text}: {error}");
            }
        }
    }
    for bad in ["", "8x1", "x1@3", "8x1@0", "8x1@9999999999", "8x1@4+adjusted", "1x1@1,"] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn histograms_are_read() {
    let json = "{\"prompt_tokens\": 100, \"completion_tokens\": 20}\n\n{\"prompt\": 5, \"count\": 3}\n";
    let limits = Limits { max_num_seqs: 1, max_model_len: 110, max_num_batched_tokens: 64, block_size: 16 };
    let contexts = Histogram::parse(json).expect("a histogram").contexts(&limits);
    assert_eq!((contexts[6], contexts[101], contexts[110], contexts[100]), (3.0, 1.0, 1.0, 0.0));
    assert_eq!(Histogram::parse("17 4\n").expect("counts").prompts(&limits).collect::<Vec<_>>(), [(17, 4.0)]);
    assert_eq!(Histogram::parse("1 1\n2\n"), Err(BucketError::Histogram { line: 2 }));
    assert_eq!(Histogram::parse("5 -1"), Err(BucketError::Histogram { line: 1 }));
    assert_eq!(Histogram::parse("5 0"), Err(BucketError::Empty));
}

/// The order that the design rests on: a descending run pads far less than edges chosen for whole prompts, and those
/// less than powers of two.
#[test]
fn a_descending_run_pads_least() {
    let limits =
        Limits { max_num_seqs: 32, max_model_len: 4096, max_num_batched_tokens: 2048, block_size: 16 };
    let histogram = Histogram::typical(limits.max_model_len);
    let plan = plan(&limits, &histogram);
    let powers = padding(&whole_prompts(&limits, &histogram, None), &limits, &histogram, false);
    let chosen = padding(&whole_prompts(&limits, &histogram, Some(6)), &limits, &histogram, false);
    let run = padding(&plan, &limits, &histogram, true);
    assert!(run.prompts < 0.06, "{run:?}");
    assert!(
        chosen.prompts > 2.0 * run.prompts && powers.prompts > chosen.prompts,
        "{run:?} {chosen:?} {powers:?}"
    );
    assert!(run.prompt_cost < chosen.prompt_cost && chosen.prompt_cost < powers.prompt_cost);
}
