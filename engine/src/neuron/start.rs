//! From weights on the device to a runner: how large the KV cache is, which programs it starts with, and the thread by
//! which the others follow while it serves.
//!
//! A load takes the core for itself, so each step that comes meanwhile waits for one program's load, and no longer: work
//! is done in the order it was sent, and the next program is sent when the one before is loaded and timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use millrace_models::Config;
use millrace_models::device::DeviceModel;

use super::device::{Device, NeuronLoadError, kv_block_bytes};
use super::dispatch::Shape;
use super::figures::NeuronFigures;
use super::inputs::{Inputs, Parking};
use super::provide::{Provide, essential};
use super::runner::{KvSource, NeuronOptions};
use super::store::Artefact;
use super::{Bucket, label, memory};
use crate::RunError;

/// Runs of a program when it is loaded: the first one is slower than those that follow, and the fastest is taken.
const WARMING: usize = 3;

/// What a runner starts with.
pub(super) struct Started {
    /// The layout, with the number of KV blocks that it came to.
    pub(super) model: DeviceModel,
    /// Programs by number, and their shapes.
    pub(super) programs: Vec<(usize, Shape)>,
    /// Numbers of those that are to follow.
    pub(super) rest: Vec<usize>,
    /// Seconds that compilation took, of each of `programs`.
    pub(super) compilation: Vec<f64>,
}

/// Sizes the KV cache and loads the first programs; with fewer KV blocks where memory is short.
pub(super) fn start(
    device: &Device,
    config: &Config,
    options: &NeuronOptions,
    dummies: usize,
    provide: &mut dyn Provide,
) -> Result<Started, NeuronLoadError> {
    let mut model = options.model.clone();
    let per_sequence = options.max_model_len.div_ceil(model.block_size);
    let least = per_sequence + dummies;
    let (first, rest) = essential(&options.buckets, per_sequence);
    let useful = per_sequence.saturating_mul(options.max_num_seqs).saturating_add(dummies);
    let useful = useful.min(i32::MAX as usize / model.block_size);
    let room = Room { block: kv_block_bytes(config, &model), least, useful };
    let mut sizes = None;
    model.kv_blocks = match options.kv {
        KvSource::Given => {
            tracing::info!(kv_blocks = model.kv_blocks, "KV blocks as given");
            model.kv_blocks
        }
        KvSource::Device { reserve } => match device.free_memory()? {
            None => {
                tracing::info!(
                    kv_blocks = model.kv_blocks,
                    "the runtime does not tell how much device memory is free: KV blocks are as planned"
                );
                model.kv_blocks
            }
            Some(free) => {
                let at_hand = sizes.insert(provide.sizes(&model, &options.buckets));
                let blocks = room.blocks(free.saturating_sub(reserve), at_hand);
                tracing::info!(
                    kv_blocks = blocks,
                    planned = model.kv_blocks,
                    free_mib = free >> 20,
                    reserve_mib = reserve >> 20,
                    compiled = at_hand.contains(&blocks),
                    "KV blocks by free device memory"
                );
                blocks
            }
        },
    };
    if model.kv_blocks < least {
        return Err(NeuronLoadError::Memory { blocks: least, block_size: model.block_size });
    }
    loop {
        match first_programs(device, options, &model, dummies, &first, provide) {
            Ok((programs, compilation)) => return Ok(Started { model, programs, rest, compilation }),
            Err(error) if error.is_memory() && model.kv_blocks > least => {
                let at_hand = sizes.get_or_insert_with(|| provide.sizes(&model, &options.buckets));
                let fewer = room.fewer(model.kv_blocks, at_hand);
                tracing::warn!(%error, from = model.kv_blocks, to = fewer, "device memory is short: fewer KV blocks");
                model.kv_blocks = fewer;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What bounds the number of KV blocks.
struct Room {
    /// Bytes of one on a core.
    block: u64,
    /// For one sequence and for padding.
    least: usize,
    /// More have no use.
    useful: usize,
}

impl Room {
    /// How many, with so many bytes for them and for what is not known. Compiled programs are worth more than a cache
    /// that is somewhat larger: of the sizes at hand that fit the largest is taken.
    fn blocks(&self, bytes: u64, at_hand: &[usize]) -> usize {
        let fits =
            |blocks: &usize| *blocks >= self.least && (*blocks as u64).saturating_mul(self.block) <= bytes;
        let compiled = at_hand.iter().copied().filter(fits).max();
        compiled.unwrap_or_else(|| {
            let blocks = (bytes as f64 * memory::KV_SHARE) as u64 / self.block.max(1);
            usize::try_from(blocks).unwrap_or(usize::MAX).min(self.useful)
        })
    }

    /// How many after so many did not fit.
    fn fewer(&self, blocks: usize, at_hand: &[usize]) -> usize {
        let three_quarters = (blocks * 3 / 4).max(self.least);
        let compiled = at_hand.iter().copied().filter(|at_hand| (self.least..blocks).contains(at_hand)).max();
        compiled.unwrap_or(three_quarters)
    }
}

type Programs = (Vec<(usize, Shape)>, Vec<f64>);

/// Loads, warms and times the programs that it takes to serve.
fn first_programs(
    device: &Device,
    options: &NeuronOptions,
    model: &DeviceModel,
    dummies: usize,
    first: &[usize],
    provide: &mut dyn Provide,
) -> Result<Programs, NeuronLoadError> {
    let buckets: Vec<Bucket> = first.iter().map(|at| options.buckets[*at]).collect();
    let mut found: Vec<Artefact> = Vec::new();
    let never = AtomicBool::new(false);
    provide
        .provide(model, &buckets, &never, &mut |artefact| found.push(artefact))
        .map_err(NeuronLoadError::Provide)?;
    device.unload()?;
    let parking = parking(model, dummies);
    let (mut programs, mut compilation) = (Vec::new(), Vec::new());
    for (number, bucket) in first.iter().zip(&buckets) {
        let artefact =
            found.iter().find(|artefact| artefact.manifest.bucket == *bucket).ok_or_else(|| {
                NeuronLoadError::Uncovered(format!("the program {} was not provided", label(bucket)))
            })?;
        device.load(*number, artefact)?;
        programs.push((*number, warm(device, *number, bucket, parking)?));
        compilation.push(artefact.manifest.build.seconds);
    }
    Ok((programs, compilation))
}

pub(super) fn parking(model: &DeviceModel, dummies: usize) -> Parking {
    Parking { block_size: model.block_size, first_block: model.kv_blocks - dummies }
}

/// Runs a program on padding alone, which also shows that the device takes it, and times it.
fn warm(
    device: &Device,
    program: usize,
    bucket: &Bucket,
    parking: Parking,
) -> Result<Shape, NeuronLoadError> {
    let Bucket { rows, width, blocks, adjust } = *bucket;
    let mut shape = Shape { rows, width, blocks, adjust, cost: f64::INFINITY };
    let inputs = Arc::new(Inputs::padding(&shape, parking));
    for _ in 0..WARMING {
        let inputs = inputs.clone();
        let started = Instant::now();
        device
            .on_all(&format!("first run of {}", label(bucket)), move |rank| rank.execute(program, &inputs))?;
        shape.cost = shape.cost.min(started.elapsed().as_secs_f64());
    }
    tracing::debug!(bucket = label(bucket), milliseconds = shape.cost * 1e3, "warm");
    Ok(shape)
}

/// What the thread that loads tells the runner.
type News = Result<(usize, Shape), RunError>;

/// The thread by which programs follow. Dropped, it stops after the program that it is loading, which is waited for,
/// except when the runtime is poisoned: then it may never come back.
pub(super) struct Followers {
    news: Receiver<News>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    device: Arc<Device>,
}

impl Followers {
    /// Starts it.
    pub(super) fn spawn(
        device: Arc<Device>,
        started: &Started,
        buckets: Vec<Bucket>,
        dummies: usize,
        provide: Box<dyn Provide>,
        figures: Arc<NeuronFigures>,
    ) -> Result<Followers, NeuronLoadError> {
        let (sender, news) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut loader = Loader {
            device: device.clone(),
            model: started.model.clone(),
            parking: parking(&started.model, dummies),
            rest: started.rest.clone(),
            buckets,
            provide,
            figures,
            stop: stop.clone(),
            sender,
        };
        let thread = std::thread::Builder::new().name("programs".into()).spawn(move || loader.run());
        Ok(Followers { news, stop, thread: Some(thread.map_err(NeuronLoadError::Spawn)?), device })
    }

    /// What has come to pass since the last call.
    pub(super) fn news(&self) -> impl Iterator<Item = News> {
        self.news.try_iter()
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.device.runtime.poisoned().is_none()
            && let Some(thread) = self.thread.take()
        {
            // The panic hook has said what happened, if anything.
            let _ = thread.join();
        }
    }
}

struct Loader {
    device: Arc<Device>,
    model: DeviceModel,
    parking: Parking,
    rest: Vec<usize>,
    buckets: Vec<Bucket>,
    provide: Box<dyn Provide>,
    figures: Arc<NeuronFigures>,
    stop: Arc<AtomicBool>,
    sender: Sender<News>,
}

impl Loader {
    fn run(&mut self) {
        let started = Instant::now();
        let rest: Vec<Bucket> = self.rest.iter().map(|at| self.buckets[*at]).collect();
        let Loader { device, model, parking, buckets, provide, figures, stop, sender, .. } = self;
        let mut loaded = 0;
        let provided = provide.provide(model, &rest, stop, &mut |artefact| {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let bucket = artefact.manifest.bucket;
            let Some(number) = buckets.iter().position(|known| *known == bucket) else { return };
            let done = device.load(number, &artefact).and_then(|()| warm(device, number, &bucket, *parking));
            match done {
                Ok(shape) => {
                    loaded += 1;
                    figures.programs[number].set_loaded(artefact.manifest.build.seconds, shape.cost);
                    // Where the runner is gone, so is the need.
                    let _ = sender.send(Ok((number, shape)));
                }
                Err(error) => left_out(device, number, &bucket, error, stop, sender),
            }
        });
        let (of, seconds) = (rest.len(), started.elapsed().as_secs_f64());
        match provided {
            _ if stop.load(Ordering::Relaxed) => {}
            Ok(()) => tracing::info!(loaded, of, seconds, "the other programs are loaded"),
            Err(error) => {
                tracing::error!(
                    error,
                    loaded,
                    of,
                    "not all programs could be had: it serves with those that it has"
                );
            }
        }
    }
}

/// A program that came late and does not load: the others serve on, unless its status is one that no process survives.
fn left_out(
    device: &Device,
    number: usize,
    bucket: &Bucket,
    error: NeuronLoadError,
    stop: &AtomicBool,
    sender: &Sender<News>,
) {
    let gone = device.runtime.poisoned().is_some() || matches!(error, NeuronLoadError::Thread { .. });
    let forgotten = match gone {
        true => Ok(()),
        // On some cores it may be there.
        false => device
            .on_all("unload", move |rank| {
                rank.forget(number);
                Ok(())
            })
            .map(drop),
    };
    match (gone, forgotten) {
        (false, Ok(())) => {
            tracing::error!(bucket = label(bucket), %error, "a program is left out: it serves with the others");
        }
        _ => {
            stop.store(true, Ordering::Relaxed);
            // Where the runner is gone, nobody needs to know.
            let _ = sender.send(Err(RunError::Fatal(format!("program {}: {error}", label(bucket)))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_sizes_that_fit_come_before_larger_ones() {
        let room = Room { block: 100, least: 10, useful: 1000 };
        assert_eq!(room.blocks(50_000, &[]), 450, "nine tenths");
        assert_eq!(room.blocks(50_000, &[400, 480, 501, 9]), 480);
        assert_eq!(room.blocks(50_000, &[501, 9]), 450, "neither fits");
        assert_eq!(room.blocks(u64::MAX, &[]), 1000, "no more than useful");
        assert_eq!(room.blocks(50, &[5]), 0);
        assert_eq!(room.fewer(480, &[480, 400, 200, 5]), 400);
        assert_eq!(room.fewer(480, &[480, 5]), 360);
        assert_eq!(room.fewer(12, &[]), 10);
    }
}
