//! From a model and the user's wishes to the graphs to compile. Building and serving hosts plan with the same
//! function, and so ask the store for the same graphs.

use millrace_models::device::DeviceModel;
use millrace_models::{Config, ModelError};

use super::buckets::{self, BucketError, Histogram, Limits};
use super::memory::{self, KvOptions, MemoryError, MemoryPlan};
use super::{Bucket, Spec, Target};

/// The user's wishes.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// What the model is called.
    pub name: String,
    /// The device.
    pub target: Target,
    /// The layout on the cores; its `block_size` and `kv_blocks` are set by the plan.
    pub model: DeviceModel,
    /// What the buckets must cover.
    pub limits: Limits,
    /// The KV cache.
    pub kv: KvOptions,
    /// Buckets to use instead of planned ones.
    pub buckets: Option<Vec<Bucket>>,
    /// What lengths to expect; typical ones unless given.
    pub histogram: Option<Histogram>,
    /// Flags for the compiler besides those that it always gets.
    pub compiler_flags: Vec<String>,
}

/// What is to be compiled.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The model as it is compiled.
    pub spec: Spec,
    /// Its buckets.
    pub buckets: Vec<Bucket>,
    /// Where a core's memory goes.
    pub memory: MemoryPlan,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The model is not made for this length.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The buckets do not do.
    #[error(transparent)]
    Buckets(#[from] BucketError),
    /// It does not fit.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A flag of the compiler that is not the user's to set.
    #[error(
        "--compiler-flag {flag}: it is no flag (they begin with a dash), or one that follows from other arguments"
    )]
    CompilerFlag {
        /// The flag.
        flag: String,
    },
    /// A limit that makes no sense.
    #[error("{flag} is {value}: it must lie between 1 and {most}")]
    Limit {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: usize,
        /// The most.
        most: usize,
    },
}

/// Plans buckets and memory.
///
/// # Errors
/// Where the model does not fit, or the wishes contradict each other.
pub fn plan(config: &Config, options: &PlanOptions) -> Result<Planned, PlanError> {
    let limits = options.limits;
    for (flag, value, most) in [
        ("--max-num-seqs", limits.max_num_seqs, 1 << 12),
        ("--max-num-batched-tokens", limits.max_num_batched_tokens, 1 << 16),
        ("--block-size", limits.block_size, 1 << 12),
        ("--max-model-len", limits.max_model_len, config.max_context),
    ] {
        if value == 0 || value > most {
            return Err(PlanError::Limit { flag, value, most });
        }
    }
    if let Some(flag) = options.compiler_flags.iter().find(|flag| !is_free(flag)) {
        return Err(PlanError::CompilerFlag { flag: flag.clone() });
    }
    let config = config.with_context(limits.max_model_len)?;
    let mut model = DeviceModel { block_size: limits.block_size, ..options.model.clone() };
    let buckets = match &options.buckets {
        Some(buckets) => buckets.clone(),
        None => match &options.histogram {
            Some(histogram) => buckets::plan(&limits, histogram),
            None => buckets::plan(&limits, &Histogram::typical(limits.max_model_len)),
        },
    };
    buckets::check(&buckets, &limits)?;
    let memory = memory::plan(&config, &model, &buckets, &limits, options.target, options.kv)?;
    model.kv_blocks = memory.kv_blocks;
    let (name, target) = (options.name.clone(), options.target);
    let spec = Spec { config, model, name, target, compiler_flags: options.compiler_flags.clone() };
    Ok(Planned { spec, buckets, memory })
}

/// Whether a flag is one, and does not say what other arguments say: what is compiled, for what, and where it goes.
fn is_free(flag: &str) -> bool {
    const TAKEN: [&str; 7] =
        ["--framework", "--target", "--lnc", "--logical-nc-config", "-lnc", "--output", "-o"];
    flag.starts_with('-') && !TAKEN.contains(&flag.split('=').next().unwrap_or(flag))
}

#[cfg(test)]
mod tests {
    use super::is_free;

    #[test]
    fn flags_that_follow_from_others_are_refused() {
        for flag in ["-O3", "--model-type=generic", "--tensorizer-options=--vectorize-strided-dma"] {
            assert!(is_free(flag), "{flag}");
        }
        for flag in ["", "O3", "model.pb", "--target=trn2", "--output", "--lnc=2"] {
            assert!(!is_free(flag), "{flag}");
        }
    }
}
