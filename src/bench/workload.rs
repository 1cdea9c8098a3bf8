//! The requests of a bench: drawn from a seed, so the same arguments give the same work.

use crate::args::Length;

/// One request of the workload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// Prompt token ids.
    pub(crate) prompt: Vec<u32>,
    /// Tokens to generate, end of sequence or not.
    pub(crate) output: u32,
    /// Seconds after the start at which it arrives; 0 where arrivals are not timed.
    pub(crate) arrival: f64,
}

/// What to draw.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) requests: usize,
    pub(crate) input: Length,
    pub(crate) output: Length,
    pub(crate) shared_prefix: usize,
    pub(crate) rate: Option<f64>,
    pub(crate) vocab: u32,
    pub(crate) seed: u64,
}

/// Draws the workload. Prompts are random tokens of the middle of the vocabulary, where control tokens are
/// not found; the first `shared_prefix` of them are the same in every prompt.
pub(crate) fn draw(shape: &Shape) -> Vec<Item> {
    let mut random = Random(shape.seed);
    let (first, span) = (shape.vocab / 4, (shape.vocab / 2).max(1));
    let token = move |random: &mut Random| first + (random.next() % u64::from(span)) as u32;
    let prefix: Vec<u32> = (0..shape.shared_prefix).map(|_| token(&mut random)).collect();
    let mut clock = 0.0;
    (0..shape.requests)
        .map(|_| {
            let length = shape.input.draw(&mut random);
            let mut prompt: Vec<u32> = prefix.iter().copied().take(length).collect();
            prompt.extend((prompt.len()..length).map(|_| token(&mut random)));
            let output = shape.output.draw(&mut random) as u32;
            let arrival = clock;
            if let Some(rate) = shape.rate {
                clock += -(1.0 - random.uniform()).ln() / rate;
            }
            Item { prompt, output, arrival }
        })
        .collect()
}

impl Length {
    fn draw(self, random: &mut Random) -> usize {
        if self.low == self.high {
            return self.low;
        }
        let (low, high) = ((self.low as f64).ln(), (self.high as f64).ln());
        let value = ((low + high) / 2.0 + (high - low) / 4.0 * random.normal()).exp();
        (value.round() as usize).clamp(self.low, self.high)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0.0 .. 1.0`.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            requests: 400,
            input: Length { low: 40, high: 40 },
            output: Length { low: 16, high: 256 },
            shared_prefix: 25,
            rate: Some(10.0),
            vocab: 1000,
            seed: 7,
        }
    }

    #[test]
    fn same_seed_same_work_other_seed_other_work() {
        assert_eq!(draw(&shape()), draw(&shape()));
        assert_ne!(draw(&shape()), draw(&Shape { seed: 8, ..shape() }));
    }

    #[test]
    fn lengths_are_skewed_and_within_bounds_and_the_prefix_is_shared() {
        let items = draw(&shape());
        let mut outputs: Vec<u32> = items.iter().map(|item| item.output).collect();
        outputs.sort_unstable();
        assert!(outputs[0] >= 16 && outputs[399] <= 256);
        let mean = f64::from(outputs.iter().sum::<u32>()) / 400.0;
        assert!(mean > f64::from(outputs[200]), "a log-normal's mean lies above its median");
        assert!(
            items.iter().all(|item| item.prompt.len() == 40 && item.prompt[..25] == items[0].prompt[..25])
        );
        assert!(items.iter().any(|item| item.prompt[25..] != items[0].prompt[25..]));
        assert!(items.iter().flat_map(|item| &item.prompt).all(|token| *token < 1000));
        let seconds = items[399].arrival;
        assert!((30.0..50.0).contains(&seconds), "400 arrivals at 10 a second took {seconds}");
    }
}
