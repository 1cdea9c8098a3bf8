//! Where programs come from, and which of them a runner can start with.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use millrace_models::device::{DeviceModel, dummy_blocks};

use super::compiler::{CompileError, CompileOptions, Compiler, compile_missing, ensure};
use super::device::NeuronLoadError;
use super::request::Spec;
use super::store::{Artefact, Store, StoreError};
use super::{Bucket, label};

/// Why a provider fails: it goes into a message.
pub type ProvideError = Box<dyn std::error::Error + Send + Sync>;

/// What makes or finds the programs of a model. A runner asks for a few of them, and, while it serves, from a thread of
/// its own for the rest.
pub trait Provide: Send {
    /// For caches of which numbers of KV blocks all of these programs are at hand, whatever `model.kv_blocks` is.
    fn sizes(&mut self, model: &DeviceModel, buckets: &[Bucket]) -> Vec<usize>;

    /// Hands the programs of a model to `each`, in any order and each as soon as it is there. One that cannot be had does
    /// not keep the others back. Ends early once `stop` is set.
    ///
    /// # Errors
    /// Where one cannot be had, or it was stopped.
    fn provide(
        &mut self,
        model: &DeviceModel,
        buckets: &[Bucket],
        stop: &AtomicBool,
        each: &mut dyn FnMut(Artefact),
    ) -> Result<(), ProvideError>;
}

/// Programs from a store; what it lacks comes from a compiler, where there is one.
#[derive(Debug)]
pub struct FromStore {
    /// The model; its layout is replaced by the one that is asked for.
    pub spec: Spec,
    /// Where the programs are.
    pub store: Store,
    /// What compiles those that are not.
    pub compiler: Option<Compiler>,
    /// Compilers at the same time.
    pub jobs: usize,
    /// How long one may take.
    pub timeout: Duration,
    /// Set when compilers are to be ended.
    pub interrupted: Arc<AtomicBool>,
}

impl FromStore {
    /// A program that is in the store. Damage counts as absence here: it is repaired, or reported, with what is missing.
    fn find(&self, spec: &Spec, bucket: &Bucket) -> Result<Option<Artefact>, ProvideError> {
        let request = spec.request(bucket)?;
        match self.store.find(&request, self.compiler.as_ref().map(Compiler::version)) {
            Err(StoreError::Damaged { .. }) => Ok(None),
            found => Ok(found?),
        }
    }

    /// As [`Provide::sizes`], by the manifests in the store.
    fn compiled(&self, model: &DeviceModel, buckets: &[Bucket]) -> Result<Vec<usize>, ProvideError> {
        let spec = Spec { model: model.clone(), ..self.spec.clone() };
        let Some(first) = buckets.first() else { return Ok(Vec::new()) };
        // What is the same in all manifests of the model, but for the number of blocks.
        let wanted = spec.request(first)?;
        let manifests = self.store.list()?.into_iter().filter_map(|(_, manifest)| manifest.ok());
        let manifests: Vec<_> = manifests
            .filter(|manifest| {
                let mut model = manifest.model.clone();
                model.name.clone_from(&wanted.model.name);
                model.kv_blocks = wanted.model.kv_blocks;
                let version = self.compiler.as_ref().map(Compiler::version);
                model == wanted.model
                    && manifest.build.target == spec.target
                    && manifest.build.flags == spec.flags(&manifest.bucket)
                    && version.is_none_or(|version| version == manifest.build.compiler)
            })
            .collect();
        let sizes: BTreeSet<usize> = manifests.iter().map(|manifest| manifest.model.kv_blocks).collect();
        let has = |size: &usize, bucket: &Bucket| {
            manifests.iter().any(|it| it.model.kv_blocks == *size && it.bucket == *bucket)
        };
        Ok(sizes.into_iter().filter(|size| buckets.iter().all(|bucket| has(size, bucket))).collect())
    }
}

impl Provide for FromStore {
    fn sizes(&mut self, model: &DeviceModel, buckets: &[Bucket]) -> Vec<usize> {
        self.compiled(model, buckets).unwrap_or_else(|error| {
            // Whatever it is, asking for the programs themselves will say so.
            tracing::warn!(error, "the store cannot be listed");
            Vec::new()
        })
    }

    fn provide(
        &mut self,
        model: &DeviceModel,
        buckets: &[Bucket],
        stop: &AtomicBool,
        each: &mut dyn FnMut(Artefact),
    ) -> Result<(), ProvideError> {
        let spec = Spec { model: model.clone(), ..self.spec.clone() };
        let interrupted = || stop.load(Ordering::Relaxed) || self.interrupted.load(Ordering::Relaxed);
        let mut missing = Vec::new();
        for bucket in buckets {
            if interrupted() {
                return Err(CompileError::Interrupted.into());
            }
            match self.find(&spec, bucket)? {
                Some(artefact) => each(artefact),
                None => missing.push(*bucket),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let options = CompileOptions { jobs: self.jobs, timeout: self.timeout, interrupted: &interrupted };
        let (store, compiler) = (&self.store, self.compiler.as_ref());
        let (done, compiled) = channel();
        std::thread::scope(|scope| {
            let (spec, missing, options) = (&spec, &missing, &options);
            let compiling = scope.spawn(move || {
                compile_missing(spec, missing, store, compiler, options, &|bucket, outcome| {
                    tracing::info!(bucket = label(bucket), ?outcome, "program");
                    // It is taken in below for as long as this runs.
                    let _ = done.send(*bucket);
                })
            });
            for bucket in compiled {
                each(ensure(spec, &bucket, store, compiler, options)?.0);
            }
            match compiling.join() {
                Ok(result) => Ok(result?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Blocks of each cache that padding is parked on.
pub(super) fn dummies(buckets: &[Bucket], block_size: usize) -> usize {
    buckets.iter().map(|bucket| dummy_blocks(bucket, block_size)).max().unwrap_or(0).max(1)
}

/// Whether every step can be run, if need be token by token.
pub(super) fn covers(buckets: &[Bucket], per_sequence: usize) -> Result<(), NeuronLoadError> {
    let decodes = |adjust: bool| {
        let able = buckets.iter().filter(|bucket| bucket.width == 1 && (bucket.adjust || !adjust));
        able.map(|bucket| bucket.blocks).max().unwrap_or(0)
    };
    for (adjust, what) in [(false, "decode"), (true, "decode that takes an adjustment of the logits")] {
        if decodes(adjust) < per_sequence {
            let (found, needed) = (decodes(adjust), per_sequence);
            return Err(NeuronLoadError::Uncovered(format!(
                "sequences of --max-model-len have {needed} KV blocks, and the widest {what} has room for {found}"
            )));
        }
    }
    Ok(())
}

/// The fewest programs that run every step, if not fast: one decode that does all that decodes do, and a prompt chunk.
/// The others, in their order, are second.
pub(super) fn essential(buckets: &[Bucket], per_sequence: usize) -> (Vec<usize>, Vec<usize>) {
    let long = |bucket: &Bucket| bucket.blocks >= per_sequence;
    let decodes = (0..buckets.len())
        .filter(|at| buckets[*at].width == 1 && buckets[*at].adjust && long(&buckets[*at]))
        .max_by_key(|at| (buckets[*at].rows, std::cmp::Reverse(buckets[*at].blocks)));
    let chunks = (0..buckets.len())
        .filter(|at| buckets[*at].rows == 1 && buckets[*at].width > 1 && long(&buckets[*at]))
        .max_by_key(|at| (buckets[*at].width, std::cmp::Reverse(buckets[*at].blocks)));
    let first: Vec<usize> = decodes.into_iter().chain(chunks).collect();
    let rest = (0..buckets.len()).filter(|at| !first.contains(at)).collect();
    (first, rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::buckets::{self, Histogram, Limits};
    use super::*;

    proptest! {
        /// Of whatever is planned, what is essential covers every step, in at most two programs.
        #[test]
        fn a_few_programs_serve_every_step(
            seqs in 1usize..40, length in 2usize..3000, tokens in 2usize..600, block in 1usize..40
        ) {
            let limits =
                Limits { max_num_seqs: seqs, max_model_len: length, max_num_batched_tokens: tokens, block_size: block };
            let planned = buckets::plan(&limits, &Histogram::typical(length));
            let per_sequence = length.div_ceil(block);
            prop_assert!(covers(&planned, per_sequence).is_ok());
            let (first, rest) = essential(&planned, per_sequence);
            let few: Vec<Bucket> = first.iter().map(|at| planned[*at]).collect();
            prop_assert!(few.len() <= 2 && covers(&few, per_sequence).is_ok(), "{few:?}");
            prop_assert_eq!(first.len() + rest.len(), planned.len());
            prop_assert!(few.iter().any(|bucket| bucket.rows == seqs));
        }
    }
}
