//! What a decoder is made of, whatever file it was read from. Families differ only in this data:
//! `hf` reads it from a `config.json`, `gguf` from a GGUF file's metadata, and
//! [`decoder()`](crate::decoder()) turns it into a graph.

mod bert;
mod family;
mod fields;
pub(crate) mod gguf;
pub(crate) mod hf;
mod hf_rope;
mod rope;

use millrace_graph::{Activation, DType};

use crate::ModelError;
pub use bert::EncoderConfig;
pub(crate) use family::Family;
pub use rope::{Rope, RopeScaling};

/// Layers that a checkpoint may have; nothing published has a fifth of it.
const MAX_LAYERS: usize = 1024;

/// A decoder-only transformer. `Checkpoint::open` makes and validates it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The architecture as the checkpoint names it: `LlamaForCausalLM`, or GGUF's `llama`.
    pub architecture: String,
    /// Rows of the embedding table, and columns of the logits.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// RoPE tables that layers refer to.
    pub ropes: Vec<Rope>,
    /// Added to the mean square in every norm.
    pub eps: f32,
    /// Tokens that a sequence may have. At first the checkpoint's own default; [`Config::with_context`]
    /// changes it.
    pub context: usize,
    /// The most that `context` may be set to.
    pub max_context: usize,
    /// The id that begins a sequence, where the checkpoint names one.
    pub bos: Option<u32>,
    /// Ids that end a sequence: the configuration's and the generation defaults', ascending.
    pub eos: Vec<u32>,
    /// The element type the checkpoint was made for (F32, F16 or BF16): a backend's default for activations.
    pub dtype: DType,
    /// Whether the head shares the embedding's tensor.
    pub tied: bool,
    /// The gate's function in feed-forward layers.
    pub activation: Activation,
    /// Added to the weight of every norm: 1 where the file stores `w - 1`.
    pub norm_offset: f32,
    /// Whether attention and feed-forward read a normalised residual stream.
    pub pre_norm: bool,
    /// Whether their results are normalised before they are added to it.
    pub post_norm: bool,
    /// Norms of queries and keys ahead of RoPE.
    pub qk_norm: QkNorm,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub o_bias: bool,
    /// Multiplies attention scores.
    pub attention_scale: f32,
    /// Attention scores become `cap · tanh(score / cap)`.
    pub attention_softcap: Option<f32>,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
    /// Multiplies embeddings.
    pub embed_scale: f32,
    /// Multiplies what a layer adds to the residual stream.
    pub residual_scale: f32,
    /// Multiplies logits, ahead of the soft cap.
    pub logit_scale: f32,
}

/// What may differ from layer to layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// A sliding window: a token sees positions `p` with `position - p < window`.
    pub window: Option<usize>,
    /// Index into [`Config::ropes`]; `None` where queries and keys are not rotated.
    pub rope: Option<usize>,
    /// The feed-forward part.
    pub mlp: Mlp,
}

/// A layer's feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// One gated layer.
    Dense {
        /// Its width.
        ffn: usize,
    },
    /// A mixture of gated layers.
    Experts {
        /// Experts in the layer.
        count: usize,
        /// Experts that each token uses.
        top_k: usize,
        /// Width of each.
        ffn: usize,
        /// Whether the chosen probabilities are scaled to sum to one.
        normalise: bool,
    },
}

/// Norms of queries and keys ahead of RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Over each head, with one weight of `head_dim` for all heads.
    Head,
    /// Over the whole projection.
    Projection,
}

impl Config {
    /// The same model for sequences of at most `tokens` tokens. LongRoPE has one set of frequencies up to the
    /// length the model was first trained for and another beyond it; since cached keys are rotated already, the
    /// choice is made once, by this length.
    ///
    /// # Errors
    /// Where `tokens` is 0 or above [`Config::max_context`].
    pub fn with_context(&self, tokens: usize) -> Result<Config, ModelError> {
        if tokens == 0 || tokens > self.max_context {
            return Err(ModelError::Config {
                file: self.architecture.clone(),
                field: "maximum model length".into(),
                why: format!("{tokens} is not within 1 to {}, the model's own limit", self.max_context),
            });
        }
        Ok(Config { context: tokens, ..self.clone() })
    }

    /// Width of the query projection.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the key projection, and of the value projection.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Checks what no reader checks field by field: that sizes fit one another and stay within bounds which no
    /// real model comes near, so that arithmetic on them cannot overflow and nothing absurd is allocated.
    fn validate(&self, file: &str) -> Result<(), ModelError> {
        let wrong = |field: &str, why: String| {
            Err(ModelError::Config { file: file.into(), field: field.into(), why })
        };
        let mut sizes = vec![
            ("vocabulary size", self.vocab, 1 << 24),
            ("hidden size", self.hidden, 1 << 20),
            ("number of layers", self.layers.len(), MAX_LAYERS),
            ("number of attention heads", self.heads, 1 << 12),
            ("number of key-value heads", self.kv_heads, 1 << 12),
            ("head dimension", self.head_dim, 1 << 12),
            ("maximum context", self.max_context, i32::MAX as usize),
            ("context", self.context, self.max_context),
        ];
        for layer in &self.layers {
            if let Some(window) = layer.window {
                sizes.push(("sliding window", window, i32::MAX as usize));
            }
            match layer.mlp {
                Mlp::Dense { ffn } => sizes.push(("feed-forward size", ffn, 1 << 22)),
                Mlp::Experts { count, top_k, ffn, .. } => sizes.extend([
                    ("feed-forward size of an expert", ffn, 1 << 22),
                    ("number of experts", count, 1 << 12),
                    ("number of experts per token", top_k, count),
                ]),
            }
        }
        for (field, size, most) in sizes {
            if size == 0 || size > most {
                return wrong(field, format!("{size} is not within 1 to {most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let why = format!("{} does not divide the {} attention heads", self.kv_heads, self.heads);
            return wrong("number of key-value heads", why);
        }
        for rope in &self.ropes {
            rope.validate(self.head_dim).or_else(|why| wrong("rotary embedding", why))?;
        }
        let positive = [
            ("norm epsilon", self.eps),
            ("attention scale", self.attention_scale),
            ("embedding scale", self.embed_scale),
            ("residual scale", self.residual_scale),
            ("logit scale", self.logit_scale),
            ("attention soft cap", self.attention_softcap.unwrap_or(1.0)),
            ("logit soft cap", self.logit_softcap.unwrap_or(1.0)),
        ];
        for (field, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return wrong(field, format!("{value} is not a positive number"));
            }
        }
        Ok(())
    }
}
