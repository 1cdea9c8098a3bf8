//! What a decoder is made of, whatever file it was read from. Families differ only in this data:
//! `hf` reads it from a `config.json`, `gguf` from a GGUF file's metadata, and
//! [`decoder`](crate::decoder) turns it into a graph.

mod rope;

use millrace_graph::{Activation, DType};

use crate::ModelError;
pub use rope::{Rope, RopeScaling};

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
}
