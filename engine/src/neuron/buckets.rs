//! Static shapes: which to compile, and which of the compiled ones serves a step.
//!
//! A compiled graph has fixed sizes, so a step is padded to one of them. Decode graphs are a grid of rows (powers of
//! two) and contexts; prompt graphs have one row and are a grid of widths and contexts. Context edges are chosen over
//! a histogram of lengths by dynamic programming ([`edges`]). A prompt is not padded to the next width but cut into a
//! descending run of them ([`decompose`]), which costs a few percent of padding instead of some forty.
//!
//! An adjusted step (penalties, biases, masks) needs a graph with an input for it. Only decode graphs have that
//! variant, at the longest context: a prompt whose first answer is adjusted leaves its last token to one of those.

use serde::Deserialize;

use super::{Bucket, label};

/// Smallest width of a prompt graph, unless all are smaller.
const SMALLEST_WIDTH: usize = 64;
/// Context edges are multiples of this many tokens, and of a block.
const CONTEXT_STEP: usize = 128;
/// Context edges at most.
const CONTEXTS: usize = 4;

/// What the buckets must cover.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Sequences that decode together.
    pub max_num_seqs: usize,
    /// Tokens of a sequence.
    pub max_model_len: usize,
    /// Tokens of a prompt chunk.
    pub max_num_batched_tokens: usize,
    /// Tokens in a KV block.
    pub block_size: usize,
}

/// Why a set of buckets is not usable, or a histogram not readable.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BucketError {
    /// A bucket that is not written as one.
    #[error("{text:?} is no bucket: write ROWSxWIDTH@BLOCKS, such as 8x1@64, with +adjust behind it or not")]
    Syntax {
        /// What was written.
        text: String,
    },
    /// Steps that no bucket serves.
    #[error("no bucket serves {what}: add {bucket}")]
    Uncovered {
        /// The steps.
        what: &'static str,
        /// A bucket that would.
        bucket: String,
    },
    /// A line of a histogram.
    #[error(
        "line {line} of the histogram is neither {{\"prompt_tokens\": N, \"completion_tokens\": N, \"count\": N}} nor \
         a length and a count"
    )]
    Histogram {
        /// Counted from 1.
        line: usize,
    },
    /// A histogram without requests.
    #[error("the histogram holds no request")]
    Empty,
}

/// Lengths of requests and how often they come.
#[derive(Clone, PartialEq, Debug)]
pub struct Histogram {
    requests: Vec<Lengths>,
}

#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
struct Lengths {
    #[serde(alias = "prompt")]
    prompt_tokens: usize,
    #[serde(alias = "output", default)]
    completion_tokens: usize,
    #[serde(default = "one")]
    count: f64,
}

fn one() -> f64 {
    1.0
}

/// Tokens of an answer where a histogram tells prompts alone.
const TYPICAL_ANSWER: usize = 256;

impl Histogram {
    /// JSON objects, one a line, as a server logs `usage`; or lines of a prompt's length and a count.
    ///
    /// # Errors
    /// Names the first line that is neither; says where there is none.
    pub fn parse(text: &str) -> Result<Histogram, BucketError> {
        let mut requests = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = || BucketError::Histogram { line: i + 1 };
            let lengths: Lengths = if line.trim_start().starts_with('{') {
                serde_json::from_str(line).map_err(|_| bad())?
            } else {
                let mut words = line.split_whitespace();
                let (length, count) = (words.next().ok_or_else(bad)?, words.next().ok_or_else(bad)?);
                Lengths {
                    prompt_tokens: length.parse().map_err(|_| bad())?,
                    completion_tokens: TYPICAL_ANSWER,
                    count: count.parse().map_err(|_| bad())?,
                }
            };
            if lengths.prompt_tokens == 0 || !lengths.count.is_finite() || lengths.count < 0.0 {
                return Err(bad());
            }
            requests.push(lengths);
        }
        match requests.iter().any(|lengths| lengths.count > 0.0) {
            true => Ok(Histogram { requests }),
            false => Err(BucketError::Empty),
        }
    }

    /// A mixture of retrieval prompts (log-normal, median 1200, σ ½) and chat (median 400, σ 1), up to a length.
    pub fn typical(max_model_len: usize) -> Histogram {
        let density = |n: f64, median: f64, sigma: f64| {
            let z = (n / median).ln() / sigma;
            (-z * z / 2.0).exp() / (n * sigma)
        };
        let step = 16.min(max_model_len.max(1));
        // Beyond this there is no mass to speak of.
        let longest = max_model_len.clamp(1, 1 << 15);
        let requests = (step..=longest).step_by(step).map(|prompt_tokens| {
            let n = prompt_tokens as f64;
            let count = density(n, 1200.0, 0.5) + density(n, 400.0, 1.0);
            Lengths { prompt_tokens, completion_tokens: TYPICAL_ANSWER, count }
        });
        Histogram { requests: requests.collect() }
    }

    /// Prompts within a limit, with their counts.
    fn prompts(&self, limits: &Limits) -> impl Iterator<Item = (usize, f64)> {
        let longest = limits.max_model_len;
        self.requests.iter().map(move |lengths| (lengths.prompt_tokens.min(longest), lengths.count))
    }

    /// Decode steps by context: entry `n` counts those that attend to `n` tokens.
    fn contexts(&self, limits: &Limits) -> Vec<f64> {
        let longest = limits.max_model_len;
        let mut change = vec![0.0; longest + 2];
        for lengths in &self.requests {
            let first = (lengths.prompt_tokens.saturating_add(1)).min(longest);
            let last = lengths.prompt_tokens.saturating_add(lengths.completion_tokens.max(1)).min(longest);
            change[first] += lengths.count;
            change[last + 1] -= lengths.count;
        }
        let mut running = 0.0;
        change.truncate(longest + 1);
        change.iter_mut().for_each(|value| {
            running += *value;
            *value = running.max(0.0);
        });
        change
    }
}

/// At most `k` of the ascending `candidates`, the last among them, such that the cost of rounding every demand up to
/// the next chosen one is least. `demand[i]` counts what needs `candidates[i]` and not less. Exact, by dynamic
/// programming over the last edge: O(k n²).
pub fn edges(candidates: &[usize], demand: &[f64], k: usize, cost: &dyn Fn(usize) -> f64) -> Vec<usize> {
    let n = candidates.len();
    assert_eq!(n, demand.len(), "a demand for each candidate");
    if n == 0 || k == 0 {
        return Vec::new();
    }
    let mut sums = vec![0.0; n + 1];
    for (i, count) in demand.iter().enumerate() {
        sums[i + 1] = sums[i] + count;
    }
    let costs: Vec<f64> = candidates.iter().map(|candidate| cost(*candidate)).collect();
    // best[j]: least cost of everything up to candidate j with j chosen, for the number of edges of this round.
    let mut best: Vec<f64> = (0..n).map(|j| sums[j + 1] * costs[j]).collect();
    let mut previous: Vec<Vec<usize>> = vec![vec![usize::MAX; n]];
    for _ in 1..k.min(n) {
        let (mut next, mut from) = (best.clone(), vec![usize::MAX; n]);
        // With fewer edges than allowed, the choice of the round before stands.
        for j in 0..n {
            for (i, before) in best[..j].iter().enumerate() {
                let total = before + (sums[j + 1] - sums[i + 1]) * costs[j];
                if total < next[j] {
                    (next[j], from[j]) = (total, i);
                }
            }
        }
        best = next;
        previous.push(from);
    }
    let mut chosen = vec![candidates[n - 1]];
    let mut at = n - 1;
    for from in previous.iter().rev() {
        if from[at] != usize::MAX {
            at = from[at];
            chosen.push(candidates[at]);
        }
    }
    chosen.reverse();
    chosen
}

/// What a graph costs before it could be timed, in the time of a token: the launch, the tokens, and attention. Only
/// choices of what to compile rest on it; a runner measures.
pub fn estimate(bucket: &Bucket, block_size: usize) -> f64 {
    let (tokens, context) = (bucket.rows * bucket.width, bucket.blocks * block_size);
    64.0 + tokens as f64 + tokens as f64 * context as f64 / 16384.0
}

/// The buckets to compile: decodes, their adjusted variants, then prompt chunks.
pub fn plan(limits: &Limits, histogram: &Histogram) -> Vec<Bucket> {
    let contexts = context_edges(limits, histogram);
    let longest = contexts.last().copied().unwrap_or(1);
    let mut buckets = Vec::new();
    let rows = powers_up_to(1, limits.max_num_seqs);
    for blocks in &contexts {
        buckets.extend(rows.iter().map(|rows| Bucket {
            rows: *rows,
            width: 1,
            blocks: *blocks,
            adjust: false,
        }));
    }
    buckets.extend(rows.iter().map(|rows| Bucket { rows: *rows, width: 1, blocks: longest, adjust: true }));
    let widest = limits.max_num_batched_tokens.min(limits.max_model_len);
    for width in powers_up_to(SMALLEST_WIDTH.min(widest), widest).into_iter().filter(|width| *width > 1) {
        for blocks in contexts.iter().filter(|blocks| **blocks * limits.block_size >= width) {
            buckets.push(Bucket { rows: 1, width, blocks: *blocks, adjust: false });
        }
    }
    buckets
}

/// Context edges in blocks, ascending; the last holds the longest sequence.
fn context_edges(limits: &Limits, histogram: &Histogram) -> Vec<usize> {
    let tables = |tokens: usize| tokens.div_ceil(limits.block_size);
    let longest = tables(limits.max_model_len);
    let mut candidates: Vec<usize> =
        (1..=limits.max_model_len / CONTEXT_STEP).map(|i| tables(i * CONTEXT_STEP)).collect();
    candidates.push(longest);
    candidates.dedup();
    // Beyond a thousand candidates the choice gets no better, only slower.
    let keep = candidates.len().div_ceil(1024);
    let last = candidates.len() - 1;
    candidates = candidates
        .into_iter()
        .enumerate()
        .filter(|(i, _)| (last - i).is_multiple_of(keep))
        .map(|(_, c)| c)
        .collect();
    let mut demand = vec![0.0; candidates.len()];
    for (tokens, count) in histogram.contexts(limits).into_iter().enumerate() {
        let at = candidates.partition_point(|blocks| *blocks < tables(tokens));
        demand[at.min(candidates.len() - 1)] += count;
    }
    // Reading the weights costs a decode step about as much as reading this much context does.
    let cost = |blocks: usize| 1024.0 + (blocks * limits.block_size) as f64;
    edges(&candidates, &demand, CONTEXTS, &cost)
}

/// `first`, twice that and so on below `last`, then `last`.
fn powers_up_to(first: usize, last: usize) -> Vec<usize> {
    let mut powers: Vec<usize> =
        std::iter::successors(Some(first), |n| n.checked_mul(2)).take_while(|n| *n < last).collect();
    powers.push(last);
    powers
}

/// Reads buckets as [`label`] writes them, with commas between.
///
/// # Errors
/// Names the first that is none.
pub fn parse(text: &str) -> Result<Vec<Bucket>, BucketError> {
    text.split(',')
        .map(|text| one_bucket(text.trim()).ok_or(BucketError::Syntax { text: text.into() }))
        .collect()
}

fn one_bucket(text: &str) -> Option<Bucket> {
    let (shape, adjust) = text.strip_suffix("+adjust").map_or((text, false), |shape| (shape, true));
    let (rows, rest) = shape.split_once('x')?;
    let (width, blocks) = rest.split_once('@')?;
    let size = |text: &str| text.parse().ok().filter(|size| (1..=1 << 20).contains(size));
    Some(Bucket { rows: size(rows)?, width: size(width)?, blocks: size(blocks)?, adjust })
}

/// Whether every step within the limits is served by some bucket.
///
/// # Errors
/// Names the steps that are not, and a bucket that would serve them.
pub fn check(buckets: &[Bucket], limits: &Limits) -> Result<(), BucketError> {
    let blocks = limits.max_model_len.div_ceil(limits.block_size);
    let cost = vec![1.0; buckets.len()];
    for (what, adjust) in [("the largest decode step", false), ("an adjusted decode step", true)] {
        let bucket = Bucket { rows: limits.max_num_seqs, width: 1, blocks, adjust };
        if smallest(buckets, &cost, bucket.rows, blocks, adjust).is_none() {
            return Err(BucketError::Uncovered { what, bucket: label(&bucket) });
        }
    }
    let prompts = |bucket: &&Bucket| bucket.rows == 1 && bucket.width > 1 && bucket.blocks >= blocks;
    if limits.max_model_len > 1 && limits.max_num_batched_tokens > 1 && !buckets.iter().any(|b| prompts(&b)) {
        let width = limits.max_num_batched_tokens.min(limits.max_model_len);
        let bucket = Bucket { rows: 1, width, blocks, adjust: false };
        return Err(BucketError::Uncovered { what: "chunks of the longest prompt", bucket: label(&bucket) });
    }
    Ok(())
}

/// The cheapest bucket for a decode step of `rows` rows, the longest of which has `blocks` blocks, as an index. A
/// bucket that adjusts serves steps that do not, with zeros. `cost[i]` is what `buckets[i]` takes, in any unit.
pub fn smallest(buckets: &[Bucket], cost: &[f64], rows: usize, blocks: usize, adjust: bool) -> Option<usize> {
    cheapest(buckets, cost, |bucket| {
        bucket.width == 1 && bucket.rows >= rows && bucket.blocks >= blocks && bucket.adjust >= adjust
    })
}

fn cheapest(buckets: &[Bucket], cost: &[f64], fits: impl Fn(&Bucket) -> bool) -> Option<usize> {
    let fitting = buckets.iter().zip(cost).enumerate().filter(|(_, (bucket, _))| fits(bucket));
    // Equal costs are told apart by the shape, so that the choice does not depend on the order.
    fitting.min_by(|(_, (a, x)), (_, (b, y))| x.total_cmp(y).then(a.cmp(b))).map(|(i, _)| i)
}

/// A part of a prompt and the bucket that computes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Index of the bucket.
    pub bucket: usize,
    /// Position of its first token.
    pub first: usize,
    /// Tokens; the rest of the bucket's width is padding.
    pub tokens: usize,
}

/// Cuts `tokens` tokens that begin at position `first` into a descending run of buckets. At each point the largest
/// width below the rest is taken, unless one bucket for all of the rest costs no more than that and what follows.
/// The last chunk yields logits: with `adjust` its bucket adjusts. `None` where the buckets do not reach.
pub fn decompose(
    buckets: &[Bucket],
    cost: &[f64],
    block_size: usize,
    first: usize,
    tokens: usize,
    adjust: bool,
) -> Option<Vec<Chunk>> {
    let price = |run: &[Chunk]| run.iter().map(|chunk| cost[chunk.bucket]).sum::<f64>();
    let direct = descend(buckets, cost, block_size, first, tokens, adjust);
    if !adjust || tokens < 2 {
        return direct;
    }
    // The last token alone goes to a decode bucket that adjusts.
    let split = descend(buckets, cost, block_size, first, tokens - 1, false).and_then(|mut run| {
        run.extend(descend(buckets, cost, block_size, first + tokens - 1, 1, true)?);
        Some(run)
    });
    [direct, split].into_iter().flatten().min_by(|a, b| price(a).total_cmp(&price(b)))
}

fn descend(
    buckets: &[Bucket],
    cost: &[f64],
    block_size: usize,
    first: usize,
    tokens: usize,
    adjust: bool,
) -> Option<Vec<Chunk>> {
    let fit = |end: usize, bucket: &Bucket| bucket.rows == 1 && bucket.blocks * block_size >= end;
    // The greedy run, and at each of its points the one bucket that would end it there.
    let mut steps: Vec<(Chunk, Option<Chunk>)> = Vec::new();
    let (mut at, mut left) = (first, tokens);
    let mut tail: Option<Vec<Chunk>> = None;
    while left > 0 {
        let end = at + left;
        let whole = cheapest(buckets, cost, |bucket| {
            fit(end, bucket) && bucket.width >= left && bucket.adjust >= adjust
        });
        let whole = whole.map(|bucket| Chunk { bucket, first: at, tokens: left });
        let width = buckets
            .iter()
            .filter(|b| b.width < left && !b.adjust && fit(at + b.width, b))
            .filter(|b| b.width > 1)
            .map(|b| b.width)
            .max();
        let part = width.and_then(|width| {
            cheapest(buckets, cost, |b| b.width == width && !b.adjust && fit(at + width, b))
        });
        match (part, width) {
            (Some(bucket), Some(width)) => {
                steps.push((Chunk { bucket, first: at, tokens: width }, whole));
                at += width;
                left -= width;
            }
            _ => {
                tail = whole.map(|chunk| vec![chunk]);
                break;
            }
        }
    }
    // Backwards, so that what follows is known where ending at once is weighed against it.
    let mut run: Option<(f64, Vec<Chunk>)> = tail.map(|run| (run.iter().map(|c| cost[c.bucket]).sum(), run));
    for (part, whole) in steps.into_iter().rev() {
        let longer = run.map(|(price, mut run)| {
            run.push(part);
            (price + cost[part.bucket], run)
        });
        run = match (longer, whole) {
            (Some((price, _)), Some(whole)) if cost[whole.bucket] <= price => {
                Some((cost[whole.bucket], vec![whole]))
            }
            (None, Some(whole)) => Some((cost[whole.bucket], vec![whole])),
            (longer, _) => longer,
        };
    }
    run.map(|(_, mut run)| {
        run.reverse();
        run
    })
}

/// What padding costs over a histogram.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Padding {
    /// Share of the computed prompt tokens that stand for nothing.
    pub prompts: f64,
    /// Estimated cost of the prompts beside that of computing exactly their tokens, each at once: 1 is none.
    pub prompt_cost: f64,
    /// Share of the context read by decodes of one row that stands for nothing.
    pub contexts: f64,
    /// Graphs to compile.
    pub graphs: usize,
}

/// Measures what a set of buckets that covers the limits pads. `decomposed` says whether prompts are cut into runs
/// or, where one bucket holds them, rounded up to it.
pub fn padding(buckets: &[Bucket], limits: &Limits, histogram: &Histogram, decomposed: bool) -> Padding {
    let cost: Vec<f64> = buckets.iter().map(|bucket| estimate(bucket, limits.block_size)).collect();
    let (mut real, mut computed, mut paid, mut ideal) = (0.0, 0.0, 0.0, 0.0);
    for (prompt, count) in histogram.prompts(limits) {
        let whole = cheapest(buckets, &cost, |b| {
            b.rows == 1 && b.width >= prompt && b.blocks * limits.block_size >= prompt
        });
        let run = match whole {
            Some(bucket) if !decomposed => Some(vec![Chunk { bucket, first: 0, tokens: prompt }]),
            _ => decompose(buckets, &cost, limits.block_size, 0, prompt, false),
        };
        for chunk in run.unwrap_or_default() {
            computed += count * buckets[chunk.bucket].width as f64;
            paid += count * cost[chunk.bucket];
        }
        let blocks = prompt.div_ceil(limits.block_size);
        real += count * prompt as f64;
        ideal +=
            count * estimate(&Bucket { rows: 1, width: prompt, blocks, adjust: false }, limits.block_size);
    }
    let (mut needed, mut read) = (0.0, 0.0);
    for (tokens, count) in histogram.contexts(limits).into_iter().enumerate() {
        let blocks = tokens.div_ceil(limits.block_size);
        if let Some(i) = smallest(buckets, &cost, 1, blocks, false) {
            needed += count * tokens as f64;
            read += count * (buckets[i].blocks * limits.block_size) as f64;
        }
    }
    let share = |part: f64, whole: f64| if whole > 0.0 { 1.0 - part / whole } else { 0.0 };
    Padding {
        prompts: share(real, computed),
        prompt_cost: if ideal > 0.0 { paid / ideal } else { 1.0 },
        contexts: share(needed, read),
        graphs: buckets.len(),
    }
}

/// For comparison: prompt buckets that hold a whole prompt each, with `k` widths that [`edges`] chose, or with
/// powers of two from 128.
pub fn whole_prompts(limits: &Limits, histogram: &Histogram, k: Option<usize>) -> Vec<Bucket> {
    let longest = limits.max_model_len;
    let widths = match k {
        None => powers_up_to(CONTEXT_STEP.min(longest), longest),
        Some(k) => {
            let step = longest.div_ceil(128);
            let mut candidates: Vec<usize> = (1..=longest / step).map(|i| i * step).collect();
            candidates.push(longest);
            candidates.dedup();
            let mut demand = vec![0.0; candidates.len()];
            for (prompt, count) in histogram.prompts(limits) {
                demand[candidates.partition_point(|width| *width < prompt)] += count;
            }
            let cost = |width: usize| estimate(&whole_prompt(width, limits), limits.block_size);
            edges(&candidates, &demand, k, &cost)
        }
    };
    widths.into_iter().map(|width| whole_prompt(width, limits)).collect()
}

fn whole_prompt(width: usize, limits: &Limits) -> Bucket {
    Bucket { rows: 1, width, blocks: width.div_ceil(limits.block_size), adjust: false }
}

#[cfg(test)]
#[path = "buckets_tests.rs"]
mod tests;
