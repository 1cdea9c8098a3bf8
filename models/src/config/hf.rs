//! `config.json` as transformers 4 and 5 write it.
//!
//! The two differ in RoPE's settings (`rope_theta` and `rope_scaling` beside the rest, or `rope_parameters`,
//! which may be keyed by layer type) and in `torch_dtype` against `dtype`. What a file leaves out has the
//! default that the family's configuration class has there; what would change the answers and is not
//! supported is refused by name.

use millrace_graph::{Activation, DType};
use serde_json::{Map, Value};

use super::family::Family::{self, *};
use super::fields::Fields;
use super::{Config, Layer, MAX_LAYERS, Mlp, hf_rope};
use crate::ModelError;

/// Reads a configuration. `stored` is the element type of the embedding table, for files that name none;
/// `has_head` says whether the files have a head of their own.
pub(crate) fn read(
    file: &str,
    json: &Map<String, Value>,
    generation: &Map<String, Value>,
    stored: DType,
    has_head: bool,
) -> Result<Config, ModelError> {
    let top = Fields::new(file, "", json);
    let (architecture, family) = family(file, json)?;
    // A multimodal checkpoint keeps its language model's settings apart.
    let f = top.object("text_config", "text_config.")?.unwrap_or(top);
    refuse(family, &top)?;
    refuse(family, &f)?;

    let d = Defaults::of(family);
    let need = |key: &str, default: Option<usize>| f.require(key, f.unsigned(key)?.or(default));
    let hidden = need("hidden_size", d.hidden)?;
    let count = need("num_hidden_layers", d.layers)?;
    if count > MAX_LAYERS {
        return Err(f.wrong("num_hidden_layers", format!("{count} is more than {MAX_LAYERS}")));
    }
    let heads = need("num_attention_heads", d.heads)?;
    if heads == 0 {
        return Err(f.wrong("num_attention_heads", "it is zero"));
    }
    let head_dim = f.unsigned("head_dim")?.or(d.head_dim).unwrap_or(hidden / heads);
    let max_position = need("max_position_embeddings", Some(d.max_position))?;
    let ropes = hf_rope::read(family, &f, head_dim, max_position)?;

    let gemma = matches!(family, Gemma2 | Gemma3);
    let bias = match family {
        Qwen2 => (true, false),
        _ => {
            let all = f.bool("attention_bias")?.unwrap_or(false);
            (all, all)
        }
    };
    let dtype = dtype(&f)?.or(dtype(&top)?).unwrap_or(stored);
    let windows = windows(family, &f, count)?;
    let traits = family.traits();
    let scale = |key: &str| Ok::<f32, ModelError>(f.float(key)?.unwrap_or(1.0));
    let softcap = |key: &str, default: Option<f32>| match f.has(key) {
        true => f.float(key),
        false => Ok(default),
    };
    let granite = family == Granite;

    let mut layers = Vec::new();
    for (l, window) in windows.into_iter().enumerate() {
        let rope = match family {
            Gemma3 => Some(usize::from(window.is_some())),
            SmolLm3 => uses_rope(&f, l)?.then_some(0),
            _ => Some(0),
        };
        layers.push(Layer { window, rope, mlp: mlp(family, &f, l)? });
    }
    let mut eos = f.ids("eos_token_id")?;
    eos.extend(top.ids("eos_token_id")?);
    eos.extend(Fields::new("generation_config.json", "", generation).ids("eos_token_id")?);
    eos.sort_unstable();
    eos.dedup();
    let original = ropes[0].original_context();

    let config = Config {
        architecture: architecture.into(),
        vocab: need("vocab_size", d.vocab)?,
        hidden,
        heads,
        kv_heads: f.unsigned("num_key_value_heads")?.or(d.kv_heads).unwrap_or(heads),
        head_dim,
        layers,
        eps: f.float("rms_norm_eps")?.unwrap_or(d.eps),
        context: original.map_or(max_position, |original| original.min(max_position)),
        max_context: ropes[0].stretched_context(max_position),
        ropes,
        bos: f.ids("bos_token_id")?.first().or(top.ids("bos_token_id")?.first()).copied(),
        eos,
        dtype,
        tied: f.bool("tie_word_embeddings")?.or(top.bool("tie_word_embeddings")?).unwrap_or(d.tied)
            || !has_head,
        activation: activation(&f)?.unwrap_or(traits.activation),
        norm_offset: if gemma { 1.0 } else { 0.0 },
        pre_norm: traits.pre_norm,
        post_norm: traits.post_norm,
        qk_norm: traits.qk_norm,
        qkv_bias: bias.0,
        o_bias: bias.1,
        attention_scale: match family {
            Granite => scale("attention_multiplier")?,
            Gemma2 | Gemma3 => 1.0 / f.float("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt(),
            _ => 1.0 / (head_dim as f32).sqrt(),
        },
        attention_softcap: match family {
            Gemma2 => softcap("attn_logit_softcapping", Some(50.0))?,
            _ => None,
        },
        logit_softcap: match family {
            Gemma2 => softcap("final_logit_softcapping", Some(30.0))?,
            Gemma3 => softcap("final_logit_softcapping", None)?,
            _ => None,
        },
        embed_scale: match family {
            // The reference keeps √D in the embedding's element type.
            Gemma2 | Gemma3 => rounded((hidden as f64).sqrt() as f32, dtype),
            Granite => scale("embedding_multiplier")?,
            _ => 1.0,
        },
        residual_scale: if granite { scale("residual_multiplier")? } else { 1.0 },
        logit_scale: if granite { 1.0 / scale("logits_scaling")? } else { 1.0 },
    };
    config.validate(file)?;
    Ok(config)
}

/// What a family's configuration class assumes of a field that is left out. Sizes are given only for the
/// families whose published files leave them out.
struct Defaults {
    vocab: Option<usize>,
    hidden: Option<usize>,
    layers: Option<usize>,
    heads: Option<usize>,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position: usize,
    eps: f32,
    tied: bool,
}

impl Defaults {
    fn of(family: Family) -> Defaults {
        let none = Defaults {
            vocab: None,
            hidden: None,
            layers: None,
            heads: None,
            kv_heads: None,
            head_dim: None,
            max_position: 2048,
            eps: 1e-6,
            tied: false,
        };
        match family {
            Llama | Granite => none,
            Mistral => Defaults { kv_heads: Some(8), max_position: 131_072, ..none },
            Mixtral => Defaults { kv_heads: Some(8), max_position: 131_072, eps: 1e-5, ..none },
            Qwen2 => Defaults { max_position: 32_768, ..none },
            Qwen3 => Defaults { head_dim: Some(128), max_position: 32_768, ..none },
            Qwen3Moe => Defaults { kv_heads: Some(4), max_position: 32_768, ..none },
            Gemma2 | Gemma3 => Defaults {
                vocab: Some(if family == Gemma2 { 256_000 } else { 262_208 }),
                hidden: Some(2304),
                layers: Some(26),
                heads: Some(8),
                kv_heads: Some(4),
                head_dim: Some(256),
                max_position: if family == Gemma2 { 8192 } else { 131_072 },
                tied: true,
                ..none
            },
            Phi3 => Defaults { max_position: 4096, eps: 1e-5, ..none },
            Olmo2 => Defaults { eps: 1e-5, ..none },
            SmolLm3 => Defaults { max_position: 32_768, tied: true, ..none },
        }
    }
}

/// The architecture's name, and its family.
///
/// # Errors
/// Where it is not supported.
pub(crate) fn family<'a>(
    file: &'a str,
    json: &'a Map<String, Value>,
) -> Result<(&'a str, Family), ModelError> {
    let top = Fields::new(file, "", json);
    let first = match top.list("architectures")? {
        Some([first, ..]) => first,
        _ => return Err(top.wrong("architectures", "it is missing or empty")),
    };
    let name = first.as_str().ok_or_else(|| top.wrong("architectures", "its first item is not a string"))?;
    Ok((name, Family::of_hf(file, name)?))
}

/// Refuses settings that would be wrong to ignore.
fn refuse(family: Family, f: &Fields<'_>) -> Result<(), ModelError> {
    if let Some(quantisation) = f.get("quantization_config") {
        let method = quantisation.get("quant_method").unwrap_or(quantisation);
        let hint = "; use the unquantised checkpoint or a GGUF file";
        return Err(f.unsupported("quantization_config", method, hint));
    }
    f.refuse_if_set("mlp_bias")?;
    f.refuse_if_set("use_bidirectional_attention")?;
    if matches!(family, Mistral | Mixtral | Qwen2 | Phi3) {
        f.refuse_if_set("attention_bias")?;
    }
    if family == Gemma3 && f.get("attn_logit_softcapping").is_some() {
        return Err(f.unsupported("attn_logit_softcapping", "set", " for Gemma 3"));
    }
    Ok(())
}

fn activation(f: &Fields<'_>) -> Result<Option<Activation>, ModelError> {
    let key = if f.has("hidden_activation") { "hidden_activation" } else { "hidden_act" };
    match f.string(key)? {
        None => Ok(None),
        Some("silu" | "swish") => Ok(Some(Activation::Silu)),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Some(Activation::GeluTanh)),
        Some(other) => Err(f.unsupported(key, other, "; supported are silu and gelu_pytorch_tanh")),
    }
}

fn dtype(f: &Fields<'_>) -> Result<Option<DType>, ModelError> {
    let key = if f.has("dtype") { "dtype" } else { "torch_dtype" };
    match f.string(key)?.map(|name| name.trim_start_matches("torch.")) {
        None => Ok(None),
        Some("float32") => Ok(Some(DType::F32)),
        Some("float16") => Ok(Some(DType::F16)),
        Some("bfloat16") => Ok(Some(DType::BF16)),
        Some(other) => Err(f.unsupported(key, other, "; supported are float32, float16 and bfloat16")),
    }
}

fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => half::bf16::from_f32(value).to_f32(),
        DType::F16 => half::f16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Each layer's sliding window.
fn windows(family: Family, f: &Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let default = matches!(family, Mistral | Gemma2 | Gemma3).then_some(4096);
    let window = match f.has("sliding_window") {
        true => f.unsigned("sliding_window")?,
        false => default,
    };
    if matches!(family, Gemma2 | Gemma3) && window.is_none() {
        return Err(f.wrong("sliding_window", "it is missing"));
    }
    let switched_on = f.bool("use_sliding_window")?.unwrap_or(false);
    let window = match family {
        Qwen2 | Qwen3 | Qwen3Moe | SmolLm3 => window.filter(|_| switched_on),
        Mistral | Mixtral | Phi3 | Gemma2 | Gemma3 => window,
        Llama | Olmo2 | Granite => None,
    };
    let typed = matches!(family, Qwen2 | Qwen3 | SmolLm3 | Gemma2 | Gemma3);
    if let Some(types) = f.list("layer_types")? {
        if types.len() != layers {
            return Err(f.wrong("layer_types", format!("{} items for {layers} layers", types.len())));
        }
        let slides = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(f.unsupported("layer_types", kind, "; full_attention and sliding_attention are")),
        };
        let slides: Vec<bool> = types.iter().map(slides).collect::<Result<_, _>>()?;
        if typed {
            return Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect());
        }
        // These families have one kind of attention in all layers; a list that says otherwise is another model.
        if slides.iter().any(|slides| *slides != window.is_some()) {
            let hint = " where all layers have the same kind of attention";
            return Err(f.unsupported("layer_types", "a mixture", hint));
        }
    }
    let pattern = f.unsigned("sliding_window_pattern")?.or(f.unsigned("_sliding_window_pattern")?);
    let first = f.unsigned("max_window_layers")?.unwrap_or(28);
    let slides = |l: usize| -> Result<bool, ModelError> {
        Ok(match family {
            Gemma2 => l.is_multiple_of(2),
            Gemma3 => (l + 1).checked_rem(pattern.unwrap_or(6)).is_none_or(|rest| rest != 0),
            Qwen2 | Qwen3 => l >= first,
            SmolLm3 => !uses_rope(f, l)?,
            _ => true,
        })
    };
    let mut windows = Vec::new();
    for l in 0..layers {
        windows.push(if slides(l)? { window } else { None });
    }
    Ok(windows)
}

/// Whether a layer of SmolLM3 rotates its queries and keys: `no_rope_layers` has 1 for those that do.
fn uses_rope(f: &Fields<'_>, l: usize) -> Result<bool, ModelError> {
    if let Some(list) = f.list("no_rope_layers")? {
        return match list.get(l).map(|item| (item.as_u64(), item.as_bool())) {
            Some((Some(number), _)) => Ok(number != 0),
            Some((_, Some(flag))) => Ok(flag),
            _ => Err(f.wrong("no_rope_layers", format!("no 0 or 1 for layer {l}"))),
        };
    }
    let interval = f.unsigned("no_rope_layer_interval")?.unwrap_or(4);
    Ok((l + 1).checked_rem(interval).is_none_or(|rest| rest != 0))
}

fn mlp(family: Family, f: &Fields<'_>, l: usize) -> Result<Mlp, ModelError> {
    let size = |key: &str| f.require(key, f.unsigned(key)?);
    let experts = |f: &Fields<'_>| -> Result<Option<usize>, ModelError> {
        Ok(f.unsigned("num_local_experts")?.or(f.unsigned("num_experts")?))
    };
    match family {
        Mixtral => Ok(Mlp::Experts {
            count: experts(f)?.unwrap_or(8),
            top_k: f.unsigned("num_experts_per_tok")?.unwrap_or(2),
            ffn: size("intermediate_size")?,
            normalise: true,
        }),
        Qwen3Moe => {
            let count = experts(f)?.unwrap_or(128);
            let step = f.unsigned("decoder_sparse_step")?.unwrap_or(1);
            let dense = f.list("mlp_only_layers")?.unwrap_or(&[]);
            let dense = dense.iter().any(|item| item.as_u64() == Some(l as u64));
            let sparse = (l + 1).checked_rem(step).is_some_and(|rest| rest == 0);
            if dense || count == 0 || !sparse {
                return Ok(Mlp::Dense { ffn: size("intermediate_size")? });
            }
            Ok(Mlp::Experts {
                count,
                top_k: f.unsigned("num_experts_per_tok")?.unwrap_or(8),
                ffn: f.unsigned("moe_intermediate_size")?.unwrap_or(768),
                normalise: f.bool("norm_topk_prob")?.unwrap_or(false),
            })
        }
        Gemma2 | Gemma3 => Ok(Mlp::Dense { ffn: f.unsigned("intermediate_size")?.unwrap_or(9216) }),
        _ => Ok(Mlp::Dense { ffn: size("intermediate_size")? }),
    }
}
