//! A model as an accelerator runs it: graphs of one fixed shape each, the same for every rank (SPMD), and each
//! rank's share of the weights.
//!
//! **Shares.** Query heads and the feed-forward width are divided over the ranks, and with them the rows of the
//! projections into them and the columns of the projections out of them; behind the latter stands an all-reduce over
//! one group of all ranks, two a layer. Key-value heads are divided likewise, or, where there are fewer of them than
//! ranks, each is held by several ranks. Experts are divided within, each along its width. Embedding, norms, router and
//! the biases that are added to a sum are the same everywhere. The head is divided over the vocabulary.
//!
//! **Logits stay on the device.** A rank returns the [`DeviceModel::candidates`] largest logits of its share, their
//! indices within the share, and the logarithm of the sum of the exponentials of the whole share. The host adds
//! `rank · share` to indices, merges by value, and adds up the sums: no rank number in the graph, no all-gather. Where
//! ranks do not divide the vocabulary, the last share is filled up with columns of [`PADDING_LOGIT`], which a host
//! drops by their index.
//!
//! **Padding.** A graph always writes `rows · width` tokens into the cache, each to another slot: XLA's scatter is told
//! that its indices are unique. Tokens that stand for nothing go to blocks that no sequence has ([`dummy_blocks`]), as
//! do the block tables of rows that stand for nothing. A key that is masked has no weight, yet its value is multiplied
//! by it: caches must be finite everywhere, so they begin as zeros.
//!
//! Inputs: `tokens`, `positions`, `slots` `s32[rows · width]`, `block_tables` `s32[rows, blocks]`, `logit_rows` `s32[rows]`
//! (tokens whose logits are wanted), and `logit_bias` `f32[rows, share]` where the bucket adjusts. States: `k_cache.{l}`,
//! `v_cache.{l}` `[kv_blocks, block_size, KV heads of a rank, head_dim]`. Outputs: `values` `f32[rows, K]`, `indices`
//! `s32[rows, K]`, `log_sum_exp` `f32[rows]`, then the caches under their own names, in their own memory.

mod share;
mod weight;

use millrace_graph::{DType, Graph, ParamKind, Type, topk};

use crate::decoder::Decoder;
use crate::{Config, ModelError, StepShape};
pub(crate) use share::Share;
pub use weight::device_weight;

/// What a logit is in a column that fills up the last rank's share: no probability beside any other, and no infinity.
pub const PADDING_LOGIT: f32 = -1e30;

/// How a model is laid out over the ranks of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceModel {
    /// Ranks that share the model; they divide the query heads.
    pub ranks: usize,
    /// The type of activations, matrices and KV caches: BF16 or F32. Vectors (norms, biases, scales) are f32.
    pub dtype: DType,
    /// How the layers' matrices and the head are stored.
    pub weights: DeviceWeights,
    /// K: the most candidates that a rank returns for each row; see [`DeviceModel::candidates_per_rank`].
    pub candidates: usize,
    /// How they are found.
    pub top_k: TopKForm,
    /// Tokens in a block of a KV cache.
    pub block_size: usize,
    /// All blocks of a KV cache, dummy blocks included.
    pub kv_blocks: usize,
}

/// How the layers' matrices and the head are stored on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceWeights {
    /// In the type of activations.
    Float,
    /// As 8-bit integers with one f32 scale for each output channel, under the weight's name and `_scale`: symmetric,
    /// the largest magnitude of a channel becomes 127. Embedding and router stay floats.
    Int8,
}

/// How the largest logits are found on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TopKForm {
    /// In plain HLO ([`millrace_graph::topk`]).
    Hlo,
    /// By the vendor's custom call ([`millrace_graph::topk::top_k_call`]).
    Neuron,
}

/// The fixed shape of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket {
    /// Sequences.
    pub rows: usize,
    /// New tokens of each row: 1 for decodes.
    pub width: usize,
    /// Blocks of each block table.
    pub blocks: usize,
    /// Whether it takes `logit_bias` f32[rows, share], added to the logits before the cut: penalties, biases, and masks
    /// (a large negative finite number).
    pub adjust: bool,
}

impl DeviceModel {
    /// Logits of each rank's share of the vocabulary; the last share may be filled up.
    pub fn vocab_share(&self, config: &Config) -> usize {
        config.vocab.div_ceil(self.ranks.max(1))
    }

    /// K as the graphs have it: [`DeviceModel::candidates`], or the whole share where it has fewer logits.
    pub fn candidates_per_rank(&self, config: &Config) -> usize {
        self.candidates.min(self.vocab_share(config))
    }

    fn check(&self) -> Result<(), ModelError> {
        let wrong = |what: String| Err(ModelError::Device { what });
        if !matches!(self.dtype, DType::BF16 | DType::F32) {
            return wrong(format!("activations of {}: choose bf16 or f32", self.dtype));
        }
        for (what, size) in [
            ("ranks", self.ranks),
            ("candidates", self.candidates),
            ("tokens in a block", self.block_size),
            ("KV blocks", self.kv_blocks),
        ] {
            if size == 0 || size > i32::MAX as usize {
                return wrong(format!("{size} {what}"));
            }
        }
        // Slots are 32-bit.
        match self.block_size.checked_mul(self.kv_blocks) {
            Some(slots) if slots <= i32::MAX as usize => Ok(()),
            _ => wrong(format!(
                "{} KV blocks of {} tokens: their slots exceed 32 bits",
                self.kv_blocks, self.block_size
            )),
        }
    }
}

/// Blocks of a cache that a bucket's padding tokens need to have a slot each.
pub fn dummy_blocks(bucket: &Bucket, block_size: usize) -> usize {
    bucket.rows.saturating_mul(bucket.width).div_ceil(block_size.max(1))
}

/// One rank's graph of a step of this shape; it is the same for every rank.
///
/// # Errors
/// Where the ranks do not divide the model, or the sizes make no sense.
pub fn device_decoder(config: &Config, model: &DeviceModel, bucket: &Bucket) -> Result<Graph, ModelError> {
    model.check()?;
    let share = Share::of_device(config, model.ranks)?;
    let shape = StepShape {
        tokens: bucket.rows.saturating_mul(bucket.width),
        rows: bucket.rows,
        table_blocks: bucket.blocks,
        logits: bucket.rows,
        width: Some(bucket.width),
        kv_blocks: model.kv_blocks,
        block_size: model.block_size,
        kv_dtype: model.dtype,
        compute: model.dtype,
    };
    let sizes = [bucket.rows, bucket.width, bucket.blocks, shape.tokens];
    if sizes.iter().any(|size| *size == 0 || *size > i32::MAX as usize) {
        return Err(ModelError::Device {
            what: format!(
                "a bucket of {} rows of {} tokens and {} blocks",
                bucket.rows, bucket.width, bucket.blocks
            ),
        });
    }
    let weight_type = |name: &str, shape: &[usize]| Ok(weight::stored(model, name, shape));
    let mut decoder = Decoder::new(config, share, &shape, &weight_type)?;
    let mut logits = decoder.logits()?;
    let ty = decoder.b.ty(logits).clone();
    if !config.vocab.is_multiple_of(model.ranks) {
        let padding = decoder.weight("head_padding", &[share.vocab])?;
        let padding = decoder.b.broadcast(padding, &ty.shape, &[1])?;
        logits = decoder.b.add(logits, padding)?;
    }
    // Log-probabilities are of the model, without what was added: so is the sum that makes them.
    let mut log_sum_exp = None;
    if bucket.adjust {
        log_sum_exp = Some(topk::top_k(&mut decoder.b, logits, 1)?.log_sum_exp);
        let bias = decoder.b.param("logit_bias", ParamKind::Input, ty)?;
        logits = decoder.b.add(logits, bias)?;
    }
    let k = model.candidates_per_rank(config);
    let best = match model.top_k {
        TopKForm::Hlo => topk::top_k(&mut decoder.b, logits, k)?,
        TopKForm::Neuron => topk::top_k_call(&mut decoder.b, logits, k)?,
    };
    let log_sum_exp = log_sum_exp.unwrap_or(best.log_sum_exp);
    decoder.b.output("values", best.values, None)?;
    decoder.b.output("indices", best.indices, None)?;
    decoder.b.output("log_sum_exp", log_sum_exp, None)?;
    decoder.finish()
}

/// The weights that each rank has, with their types: the parameters of any bucket's graph. The configuration says it
/// all; no checkpoint is needed.
///
/// # Errors
/// As [`device_decoder`].
pub fn device_weights(config: &Config, model: &DeviceModel) -> Result<Vec<(String, Type)>, ModelError> {
    let smallest = Bucket { rows: 1, width: 1, blocks: 1, adjust: false };
    let graph = device_decoder(config, model, &smallest)?;
    let weights = graph.params.iter().filter(|param| param.kind == ParamKind::Weight);
    Ok(weights.map(|param| (param.name.clone(), graph.ty(param.node).clone())).collect())
}
