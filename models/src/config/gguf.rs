//! The metadata of a GGUF file as a [`Config`].
//!
//! Keys are llama.cpp's (`{architecture}.attention.head_count` …). What its converter leaves out because its
//! code for the architecture has it as a constant, is a constant here too and named where it stands.

use std::sync::Arc;

use millrace_graph::DType;

use super::family::Family::{self, *};
use super::{Config, Layer, MAX_LAYERS, Mlp, Rope, RopeScaling};
use crate::ModelError;
use crate::gguf::{Gguf, Value};
use crate::tensors::Tensors;

/// Reads a configuration.
pub(crate) fn read(gguf: &Gguf, tensors: &Tensors) -> Result<(Config, Family), ModelError> {
    let architecture = gguf.string("general.architecture")?;
    let architecture = architecture.ok_or_else(|| wrong(gguf, "general.architecture", "it is missing"))?;
    let family = Family::of_gguf(gguf.file(), architecture)?;
    let k = Keys { gguf, architecture };

    let hidden = k.require("embedding_length")?;
    let count = k.require("block_count")?;
    if count > MAX_LAYERS {
        return Err(k.wrong("block_count", format!("{count} is more than {MAX_LAYERS}")));
    }
    let heads = k.require("attention.head_count")?;
    if heads == 0 {
        return Err(k.wrong("attention.head_count", "it is zero"));
    }
    let head_dim = k.unsigned("attention.key_length")?.unwrap_or(hidden / heads);
    if k.unsigned("attention.value_length")?.is_some_and(|width| width != head_dim) {
        return Err(k.unsupported("attention.value_length", "another width than that of keys", ""));
    }
    let Some(embed) = tensors.ty("token_embd.weight")? else {
        return Err(ModelError::MissingWeight {
            name: "embed".into(),
            wanted: "token_embd.weight".into(),
            file: gguf.file().into(),
        });
    };
    let context = k.require("context_length")?;
    let ropes = ropes(family, &k, tensors, head_dim, context)?;
    let default_scale = 1.0 / (head_dim as f32).sqrt();
    let attention_scale = k.float("attention.scale")?.filter(|scale| *scale != 0.0);
    // llama.cpp knows the two large Gemmas by their depth.
    let large_gemma = matches!((family, count), (Gemma2, 46) | (Gemma3, 62));
    let scale = |key: &str| Ok::<f32, ModelError>(k.float(key)?.filter(|scale| *scale != 0.0).unwrap_or(1.0));
    let traits = family.traits();
    let qkv_bias = tensors.contains("blk.0.attn_q.bias");
    if qkv_bias && family.gguf_interleaves_rope() {
        return Err(k.unsupported("blk.0.attn_q.bias", "present", " for this architecture"));
    }

    let mut layers = Vec::new();
    for l in 0..count {
        let window = window(family, &k, l)?;
        let rope = match family {
            Gemma3 => Some(usize::from(window.is_some())),
            SmolLm3 => (!(l + 1).is_multiple_of(4)).then_some(0),
            _ => Some(0),
        };
        layers.push(Layer { window, rope, mlp: mlp(&k, tensors, l)? });
    }
    let mut eos = Vec::new();
    for key in ["eos", "eot", "eom"] {
        eos.extend(token(gguf, &format!("tokenizer.ggml.{key}_token_id"))?);
    }
    eos.sort_unstable();
    eos.dedup();

    let config = Config {
        architecture: architecture.into(),
        vocab: embed.shape.first().copied().unwrap_or(0),
        hidden,
        heads,
        kv_heads: k.unsigned("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        layers,
        eps: k.float("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
        context: ropes[0].original_context().map_or(context, |original| original.min(context)),
        max_context: ropes[0].stretched_context(context),
        ropes,
        bos: token(gguf, "tokenizer.ggml.bos_token_id")?,
        eos,
        dtype: if embed.dtype.is_float() { embed.dtype } else { DType::F32 },
        tied: !tensors.contains("output.weight"),
        activation: traits.activation,
        // The converter adds Gemma's 1 to the weights.
        norm_offset: 0.0,
        pre_norm: traits.pre_norm,
        post_norm: traits.post_norm,
        qk_norm: traits.qk_norm,
        qkv_bias,
        o_bias: tensors.contains("blk.0.attn_output.bias"),
        attention_scale: match attention_scale {
            Some(scale) => scale,
            None if large_gemma => 1.0 / ((hidden / heads) as f32).sqrt(),
            None => default_scale,
        },
        attention_softcap: match family {
            Gemma2 => Some(k.float("attn_logit_softcapping")?.unwrap_or(50.0)).filter(|cap| *cap != 0.0),
            _ => None,
        },
        logit_softcap: match family {
            Gemma2 => Some(k.float("final_logit_softcapping")?.unwrap_or(30.0)).filter(|cap| *cap != 0.0),
            Gemma3 => k.float("final_logit_softcapping")?.filter(|cap| *cap != 0.0),
            _ => None,
        },
        embed_scale: match family {
            Gemma2 | Gemma3 => (hidden as f32).sqrt(),
            Granite => scale("embedding_scale")?,
            _ => 1.0,
        },
        residual_scale: if family == Granite { scale("residual_scale")? } else { 1.0 },
        logit_scale: if family == Granite { 1.0 / scale("logit_scale")? } else { 1.0 },
    };
    config.validate(gguf.file())?;
    Ok((config, family))
}

/// The architecture's own keys.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn wrong(&self, key: &str, why: impl Into<String>) -> ModelError {
        wrong(self.gguf, &self.key(key), why)
    }

    fn unsupported(&self, key: &str, value: impl ToString, hint: &str) -> ModelError {
        ModelError::Unsupported {
            file: self.gguf.file().into(),
            field: self.key(key),
            value: value.to_string(),
            hint: hint.into(),
        }
    }

    /// A number, or an array with one entry for each layer where all are equal.
    fn unsigned(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let name = self.key(key);
        match self.gguf.get(&name) {
            Some(Value::Ints(items)) => match items.first() {
                Some(first) if items.iter().all(|item| item == first) => usize::try_from(*first)
                    .map(Some)
                    .map_err(|_| self.wrong(key, format!("{first} is negative"))),
                Some(_) => Err(self.unsupported(key, "a value for each layer", "")),
                None => Err(self.wrong(key, "it is an empty array")),
            },
            _ => self.gguf.unsigned(&name),
        }
    }

    fn require(&self, key: &str) -> Result<usize, ModelError> {
        self.unsigned(key)?.ok_or_else(|| self.wrong(key, "it is missing"))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.gguf.float(&self.key(key))
    }
}

fn wrong(gguf: &Gguf, field: &str, why: impl Into<String>) -> ModelError {
    ModelError::Config { file: gguf.file().into(), field: field.into(), why: why.into() }
}

fn token(gguf: &Gguf, key: &str) -> Result<Option<u32>, ModelError> {
    Ok(gguf.unsigned(key)?.and_then(|id| u32::try_from(id).ok()))
}

/// A layer's sliding window. Gemma 2 slides in every other layer, Gemma 3 in all but every sixth.
fn window(family: Family, k: &Keys<'_>, l: usize) -> Result<Option<usize>, ModelError> {
    let window = k.unsigned("attention.sliding_window")?.filter(|window| *window > 0);
    let pattern_key = "attention.sliding_window_pattern";
    let slides = match (family, k.gguf.get(&k.key(pattern_key))) {
        (Gemma2 | Gemma3, Some(Value::Bools(flags))) => {
            *flags.get(l).ok_or_else(|| k.wrong(pattern_key, format!("no entry for layer {l}")))?
        }
        (Gemma2 | Gemma3, _) => {
            let default = if family == Gemma2 { 2 } else { 6 };
            let pattern = k.unsigned(pattern_key)?.unwrap_or(default);
            (l + 1).checked_rem(pattern).is_none_or(|rest| rest != 0)
        }
        // These have no window in their files, or a stale one that their reference ignores.
        (Qwen2 | Qwen3 | Qwen3Moe | Olmo2 | SmolLm3 | Granite, _) => false,
        (Llama | Mistral | Mixtral | Phi3, _) => true,
    };
    match (slides, window, family) {
        (true, None, Gemma2 | Gemma3) => Err(k.wrong("attention.sliding_window", "it is missing")),
        (true, window, _) => Ok(window),
        (false, ..) => Ok(None),
    }
}

fn mlp(k: &Keys<'_>, tensors: &Tensors, l: usize) -> Result<Mlp, ModelError> {
    if !tensors.contains(&format!("blk.{l}.ffn_gate_inp.weight")) {
        return Ok(Mlp::Dense { ffn: k.require("feed_forward_length")? });
    }
    if k.unsigned("expert_shared_count")?.is_some_and(|count| count > 0) {
        return Err(k.unsupported("expert_shared_count", "above zero", ""));
    }
    let softmax = 1;
    if k.unsigned("expert_gating_func")?.is_some_and(|gate| gate != 0 && gate != softmax) {
        return Err(k.unsupported("expert_gating_func", "another than softmax", ""));
    }
    let ffn = match k.unsigned("expert_feed_forward_length")? {
        Some(ffn) => ffn,
        None => k.require("feed_forward_length")?,
    };
    Ok(Mlp::Experts {
        count: k.require("expert_count")?,
        top_k: k.require("expert_used_count")?,
        ffn,
        // llama.cpp does so for Mixtral and Qwen3-MoE alike.
        normalise: k.gguf.bool(&k.key("expert_weights_norm"))?.unwrap_or(true),
    })
}

/// The RoPE tables: one, or Gemma 3's two (of its full and of its sliding layers).
fn ropes(
    family: Family,
    k: &Keys<'_>,
    tensors: &Tensors,
    head_dim: usize,
    context: usize,
) -> Result<Vec<Rope>, ModelError> {
    let dim = k.unsigned("rope.dimension_count")?.unwrap_or(head_dim);
    if dim != head_dim && family != Phi3 {
        let hint = " where heads are wider";
        return Err(k.unsupported("rope.dimension_count", dim, hint));
    }
    let theta = k.float("rope.freq_base")?.unwrap_or(match family {
        Gemma3 => 1e6,
        _ => 1e4,
    });
    let kind_key = "rope.scaling.type";
    let original_key = "rope.scaling.original_context_length";
    let kind = k.gguf.string(&k.key(kind_key))?;
    let factor = match k.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => k.float("rope.scale_linear")?,
    };
    let original = k.unsigned(original_key)?.unwrap_or(context);
    let divisors = |name: &str| vector(k.gguf, tensors, name, dim / 2);
    let scaling = if let Some(list) = divisors("rope_freqs.weight")? {
        RopeScaling::Divisors(list)
    } else if let Some(long) = divisors("rope_factors_long.weight")? {
        let short = divisors("rope_factors_short.weight")?;
        let missing = || wrong(k.gguf, "rope_factors_short.weight", "it is missing");
        let factor = context as f64 / original as f64;
        let default = match factor > 1.0 {
            true => (1.0 + factor.ln() / (original as f64).ln()).sqrt() as f32,
            false => 1.0,
        };
        RopeScaling::Long {
            short: short.ok_or_else(missing)?,
            long,
            original,
            attention_factor: k.float("rope.scaling.attn_factor")?.unwrap_or(default),
        }
    } else {
        match (kind, factor.filter(|factor| *factor != 0.0 && *factor != 1.0)) {
            (None | Some("none"), None) | (Some("linear" | "yarn"), None) => RopeScaling::None,
            (None | Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
            (Some("none"), Some(_)) => RopeScaling::None,
            (Some("yarn"), Some(factor)) => RopeScaling::Yarn {
                factor,
                beta_fast: k.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: k.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                original: original as f32,
                truncate: true,
                attention_factor: (0.1 * factor.ln() + 1.0)
                    * k.float("rope.scaling.attn_factor")?.unwrap_or(1.0),
            },
            (Some(other), _) => {
                return Err(k.unsupported(kind_key, other, "; supported are linear and yarn"));
            }
        }
    };
    let full = Rope { dim, theta, scaling };
    if family != Gemma3 {
        return Ok(vec![full]);
    }
    let theta = k.float("rope.freq_base_swa")?.unwrap_or(1e4);
    Ok(vec![full, Rope { dim, theta, scaling: RopeScaling::None }])
}

/// A short f32 tensor by value.
fn vector(gguf: &Gguf, tensors: &Tensors, name: &str, len: usize) -> Result<Option<Arc<[f32]>>, ModelError> {
    let Some(ty) = tensors.ty(name)? else { return Ok(None) };
    if ty.dtype != DType::F32 || ty.shape != [len] {
        return Err(wrong(gguf, name, format!("it is {ty} where f32[{len}] belongs")));
    }
    let bytes = tensors.bytes(&tensors.by_name[name]);
    let values: Arc<[f32]> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if values.iter().any(|value| !(value.is_finite() && *value > 0.0)) {
        return Err(wrong(gguf, name, "not all its values are positive numbers"));
    }
    Ok(Some(values))
}
