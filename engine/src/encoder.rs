//! Sentence embeddings: what any backend's [`Encoder`] promises, and the one on the CPU, where texts of like length share
//! a batch, since padding is computed too.

use millrace_graph::{ParamKind, Type};
use millrace_kernels::{Executor, Plan, Pool, Precision, Weights};
use millrace_models::{EncoderCheckpoint, EncoderConfig, EncoderShape, encoder};
use rustc_hash::FxHashMap;

use crate::cpu::CpuLoadError;

/// Tokens of a batch, padding included: enough to keep the weights' traffic small beside the arithmetic.
const BATCH_TOKENS: usize = 512;

/// Widths are rounded up to this, so that few plans serve all texts.
const WIDTH_STEP: usize = 8;

/// Plans kept; beyond that all are dropped.
const MAX_PLANS: usize = 1024;

/// Why texts have no embeddings.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A text without a token.
    #[error("text {index} has no token")]
    Empty {
        /// Which text.
        index: usize,
    },
    /// A text longer than the encoder's positions.
    #[error("text {index} has {tokens} tokens; the encoder takes {max}")]
    TooLong {
        /// Which text.
        index: usize,
        /// Its tokens.
        tokens: usize,
        /// The most there may be.
        max: usize,
    },
    /// A token that the encoder does not know.
    #[error("text {index}: there is no token {token}")]
    Token {
        /// Which text.
        index: usize,
        /// The id.
        token: u32,
    },
    /// The graph could not be planned or run: a defect of this program, or no memory.
    #[error("the encoder failed: {0}")]
    Failed(String),
}

/// A sentence encoder on some backend. A text's embedding does not depend on the texts beside it.
pub trait Encoder: Send {
    /// The encoder's configuration.
    fn config(&self) -> &EncoderConfig;

    /// One embedding of `hidden` floats and length one for each list of token ids.
    ///
    /// # Errors
    /// Where a text is empty, too long or has an unknown token, and nothing is computed then; or where the backend fails.
    fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError>;
}

impl Encoder for CpuEncoder {
    fn config(&self) -> &EncoderConfig {
        &self.config
    }

    fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        CpuEncoder::embed(self, texts)
    }
}

/// Whether texts can be encoded that may have up to `max` tokens.
pub(crate) fn check(texts: &[Vec<u32>], config: &EncoderConfig, max: usize) -> Result<(), EncodeError> {
    for (index, text) in texts.iter().enumerate() {
        if text.is_empty() {
            return Err(EncodeError::Empty { index });
        }
        if text.len() > max {
            return Err(EncodeError::TooLong { index, tokens: text.len(), max });
        }
        if let Some(token) = text.iter().find(|token| **token as usize >= config.vocab) {
            return Err(EncodeError::Token { index, token: *token });
        }
    }
    Ok(())
}

/// Indices of texts, those of most tokens first, so that texts of like length are neighbours.
pub(crate) fn by_length(texts: &[Vec<u32>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(texts[*index].len()));
    order
}

/// What the graph of an encoder is given: [`encoder`]'s inputs in order. Rows of no text are one token of padding.
pub(crate) fn inputs(texts: &[Vec<u32>], batch: &[usize], shape: EncoderShape) -> [Vec<i32>; 4] {
    let EncoderShape { texts: rows, width } = shape;
    let (mut ids, mut last) = (vec![0; rows * width], vec![0; rows]);
    for (row, index) in batch.iter().enumerate() {
        let text = &texts[*index];
        ids[row * width..].iter_mut().zip(text).for_each(|(id, token)| *id = *token as i32);
        last[row] = text.len() as i32 - 1;
    }
    let positions = (0..rows).flat_map(|_| 0..width as i32).collect();
    [ids, positions, vec![0; rows * width], last]
}

/// A sentence encoder on the CPU. A text's embedding is the same to the bit alone and in any batch.
pub struct CpuEncoder {
    executor: Executor,
    config: EncoderConfig,
    types: FxHashMap<String, Type>,
    plans: FxHashMap<EncoderShape, Plan>,
}

impl CpuEncoder {
    /// Packs a checkpoint's weights for `threads` threads.
    ///
    /// # Errors
    /// Where a weight cannot be taken in.
    pub fn load(checkpoint: &EncoderCheckpoint, threads: usize) -> Result<Self, CpuLoadError> {
        let config = checkpoint.config().clone();
        let smallest = EncoderShape { texts: 1, width: 1 };
        let graph = encoder(&config, &smallest, &|name| checkpoint.weight_type(name))?;
        let pool = Pool::new(threads);
        let (mut weights, mut types) = (Weights::new(), FxHashMap::default());
        for param in graph.params.iter().filter(|param| param.kind == ParamKind::Weight) {
            let view = checkpoint.weight(&param.name)?;
            let refused = |source| CpuLoadError::Weight { name: param.name.clone(), source };
            weights.insert(&param.name, &view, &pool).map_err(refused)?;
            types.insert(param.name.clone(), view.ty);
        }
        let executor = Executor::new(pool, Precision::Fast, weights);
        Ok(CpuEncoder { executor, config, types, plans: FxHashMap::default() })
    }

    /// The encoder's configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// One embedding of `hidden` floats and length one for each text.
    ///
    /// # Errors
    /// Where a text is empty, too long or has an unknown token; nothing is computed then.
    pub fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let max = self.config.positions;
        check(texts, &self.config, max)?;
        let order = by_length(texts);
        let mut embeddings = vec![Vec::new(); texts.len()];
        let mut rest = &order[..];
        while let Some(longest) = rest.first() {
            let width = texts[*longest].len().next_multiple_of(WIDTH_STEP).min(max);
            let (batch, others) = rest.split_at((BATCH_TOKENS / width).clamp(1, rest.len()));
            rest = others;
            let all = self.batch(texts, batch, width)?;
            for (index, embedding) in batch.iter().zip(all.chunks_exact(self.config.hidden)) {
                embeddings[*index] = embedding.to_vec();
            }
        }
        Ok(embeddings)
    }

    fn batch(&mut self, texts: &[Vec<u32>], batch: &[usize], width: usize) -> Result<Vec<f32>, EncodeError> {
        let shape = EncoderShape { texts: batch.len(), width };
        self.plan(shape)?;
        let [ids, positions, types, last] = inputs(texts, batch, shape);
        let mut out = vec![0.0; batch.len() * self.config.hidden];
        self.executor
            .run(&self.plans[&shape], &[&ids, &positions, &types, &last], &mut [&mut out])
            .map_err(|error| EncodeError::Failed(error.to_string()))?;
        Ok(out)
    }

    fn plan(&mut self, shape: EncoderShape) -> Result<(), EncodeError> {
        if self.plans.contains_key(&shape) {
            return Ok(());
        }
        if self.plans.len() >= MAX_PLANS {
            self.plans.clear();
        }
        let stored = |name: &str| Ok(self.types.get(name).expect("every weight was loaded").clone());
        let graph =
            encoder(&self.config, &shape, &stored).map_err(|error| EncodeError::Failed(error.to_string()))?;
        let plan = self.executor.plan(&graph).map_err(|error| EncodeError::Failed(error.to_string()))?;
        self.plans.insert(shape, plan);
        Ok(())
    }
}
