//! Canonical weight names, and where each layout keeps them.
//!
//! | name | shape | |
//! | --- | --- | --- |
//! | `embed` | `[vocab, hidden]` | embedding table |
//! | `head` | `[vocab, hidden]` | output projection; the same tensor as `embed` where they are tied |
//! | `final_norm` | `[hidden]` | |
//! | `layers.{l}.attn_norm`, `.attn_post_norm` | `[hidden]` | ahead of attention, behind it |
//! | `layers.{l}.attn.q`, `.attn.q_bias` | `[heads · head_dim, hidden]`, `[heads · head_dim]` | |
//! | `layers.{l}.attn.k`, `.attn.v`, `_bias` | `[kv_heads · head_dim, hidden]`, … | |
//! | `layers.{l}.attn.o`, `.attn.o_bias` | `[hidden, heads · head_dim]`, `[hidden]` | |
//! | `layers.{l}.attn.q_norm`, `.attn.k_norm` | `[head_dim]`, or as wide as the projection | ahead of RoPE |
//! | `layers.{l}.mlp_norm`, `.mlp_post_norm` | `[hidden]` | ahead of the feed-forward part, behind it |
//! | `layers.{l}.mlp.gate`, `.mlp.up` | `[ffn, hidden]` | |
//! | `layers.{l}.mlp.down` | `[hidden, ffn]` | |
//! | `layers.{l}.moe.router` | `[experts, hidden]` | |
//! | `layers.{l}.moe.gate`, `.moe.up` | `[experts, ffn, hidden]` | |
//! | `layers.{l}.moe.down` | `[experts, hidden, ffn]` | |
//!
//! A norm's weight is as the file has it; [`Config::norm_offset`] is added on use.

use crate::{Config, Mlp};

/// How a checkpoint names its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Hugging Face's; the prefix comes before `layers.0` (`model.`, or a multimodal model's).
    Hf { prefix: String, head: String },
    /// llama.cpp's. Phi-3's files have gate and up in one tensor under the name of up.
    Gguf { fused_gate_up: bool },
}

/// One way in which the files may hold a weight.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A tensor of its own.
    Whole(String),
    /// Rows `first .. first + rows` of a matrix with `of` rows.
    Rows { tensor: String, first: usize, rows: usize, of: usize },
    /// One matrix for each expert.
    Each(Vec<String>),
    /// Rows of each expert's matrix in a tensor `[experts, of, ..]`.
    RowsOfEach { tensor: String, experts: usize, first: usize, rows: usize, of: usize },
}

impl Source {
    /// The tensor that decides whether the files have this one.
    pub(crate) fn tensor(&self) -> &str {
        match self {
            Source::Whole(tensor) | Source::Rows { tensor, .. } | Source::RowsOfEach { tensor, .. } => tensor,
            Source::Each(tensors) => tensors.first().map_or("", String::as_str),
        }
    }
}

/// The ways in which files of this layout may hold a weight, the usual one first; empty where there is no such
/// weight.
pub(crate) fn sources(layout: &Layout, config: &Config, name: &str) -> Vec<Source> {
    let plain = |hf: String, gguf: &str| match layout {
        Layout::Hf { .. } => vec![Source::Whole(hf)],
        Layout::Gguf { .. } => vec![Source::Whole(gguf.into())],
    };
    let prefix = match layout {
        Layout::Hf { prefix, .. } => prefix.as_str(),
        Layout::Gguf { .. } => "",
    };
    let embed = || plain(format!("{prefix}embed_tokens.weight"), "token_embd.weight");
    match name {
        "embed" => embed(),
        "head" if config.tied => embed(),
        "head" => match layout {
            Layout::Hf { head, .. } => vec![Source::Whole(head.clone())],
            Layout::Gguf { .. } => vec![Source::Whole("output.weight".into())],
        },
        "final_norm" => plain(format!("{prefix}norm.weight"), "output_norm.weight"),
        _ => {
            let layer = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
            let Some((layer, part)) = layer else { return Vec::new() };
            let Some(l) = layer.parse().ok().filter(|l: &usize| *l < config.layers.len()) else {
                return Vec::new();
            };
            match layout {
                Layout::Hf { .. } => in_hf_layer(&format!("{prefix}layers.{l}."), config, l, part),
                Layout::Gguf { fused_gate_up } => {
                    in_gguf_layer(&format!("blk.{l}."), config, l, part, *fused_gate_up)
                }
            }
        }
    }
}

fn in_hf_layer(layer: &str, config: &Config, l: usize, part: &str) -> Vec<Source> {
    let whole = |suffix: &str| Source::Whole(format!("{layer}{suffix}"));
    match part {
        "attn_norm" => vec![whole("input_layernorm.weight")],
        "attn_post_norm" => vec![whole("post_attention_layernorm.weight")],
        // The name tells where the norm stands only if there is one behind attention too.
        "mlp_norm" if config.post_norm => vec![whole("pre_feedforward_layernorm.weight")],
        "mlp_norm" => vec![whole("post_attention_layernorm.weight")],
        "mlp_post_norm" => vec![whole("post_feedforward_layernorm.weight")],
        "attn.q" | "attn.k" | "attn.v" => {
            let own = whole(&format!("self_attn.{}_proj.weight", &part[5..]));
            vec![own, fused_qkv(format!("{layer}self_attn.qkv_proj.weight"), config, part)]
        }
        "attn.q_bias" | "attn.k_bias" | "attn.v_bias" | "attn.o_bias" => {
            vec![whole(&format!("self_attn.{}_proj.bias", &part[5..6]))]
        }
        "attn.o" => vec![whole("self_attn.o_proj.weight")],
        "attn.q_norm" | "attn.k_norm" => vec![whole(&format!("self_attn.{}.weight", &part[5..]))],
        "mlp.gate" | "mlp.up" => {
            let own = whole(&format!("mlp.{}_proj.weight", &part[4..]));
            vec![own, fused_gate_up(format!("{layer}mlp.gate_up_proj.weight"), config, l, part)]
        }
        "mlp.down" => vec![whole("mlp.down_proj.weight")],
        "moe.router" => vec![whole("mlp.gate.weight"), whole("block_sparse_moe.gate.weight")],
        "moe.gate" | "moe.up" | "moe.down" => {
            let Some(Mlp::Experts { count, ffn, .. }) = config.layers.get(l).map(|layer| layer.mlp) else {
                return Vec::new();
            };
            let each = |path: &str, matrix: &str| {
                Source::Each((0..count).map(|e| format!("{layer}{path}.{e}.{matrix}.weight")).collect())
            };
            let (qwen, mixtral) = match part {
                "moe.gate" => ("gate_proj", "w1"),
                "moe.up" => ("up_proj", "w3"),
                _ => ("down_proj", "w2"),
            };
            // Transformers 5 keeps all experts in one tensor while it runs; some files are written so.
            let fused = match part {
                "moe.down" => whole("mlp.experts.down_proj"),
                _ => Source::RowsOfEach {
                    tensor: format!("{layer}mlp.experts.gate_up_proj"),
                    experts: count,
                    first: if part == "moe.up" { ffn } else { 0 },
                    rows: ffn,
                    of: 2 * ffn,
                },
            };
            vec![each("mlp.experts", qwen), each("block_sparse_moe.experts", mixtral), fused]
        }
        _ => Vec::new(),
    }
}

fn in_gguf_layer(layer: &str, config: &Config, l: usize, part: &str, fused: bool) -> Vec<Source> {
    let whole = |suffix: &str| Source::Whole(format!("{layer}{suffix}"));
    match part {
        "attn_norm" => vec![whole("attn_norm.weight")],
        "attn_post_norm" => vec![whole("post_attention_norm.weight")],
        "mlp_norm" => vec![whole("ffn_norm.weight")],
        "mlp_post_norm" => vec![whole("post_ffw_norm.weight")],
        "attn.q" | "attn.k" | "attn.v" => {
            let own = whole(&format!("attn_{}.weight", &part[5..]));
            vec![own, fused_qkv(format!("{layer}attn_qkv.weight"), config, part)]
        }
        "attn.q_bias" | "attn.k_bias" | "attn.v_bias" => vec![whole(&format!("attn_{}.bias", &part[5..6]))],
        "attn.o" => vec![whole("attn_output.weight")],
        "attn.o_bias" => vec![whole("attn_output.bias")],
        "attn.q_norm" | "attn.k_norm" => vec![whole(&format!("attn_{}.weight", &part[5..]))],
        "mlp.gate" | "mlp.up" if fused => {
            vec![fused_gate_up(format!("{layer}ffn_up.weight"), config, l, part)]
        }
        "mlp.gate" | "mlp.up" => vec![whole(&format!("ffn_{}.weight", &part[4..]))],
        "mlp.down" => vec![whole("ffn_down.weight")],
        "moe.router" => vec![whole("ffn_gate_inp.weight")],
        "moe.gate" | "moe.up" | "moe.down" => {
            let Some(Mlp::Experts { count, .. }) = config.layers.get(l).map(|layer| layer.mlp) else {
                return Vec::new();
            };
            let matrix = &part[4..];
            let each = (0..count).map(|e| format!("{layer}ffn_{matrix}.{e}.weight")).collect();
            vec![whole(&format!("ffn_{matrix}_exps.weight")), Source::Each(each)]
        }
        _ => Vec::new(),
    }
}

/// Queries, keys and values in one matrix, in this order.
fn fused_qkv(tensor: String, config: &Config, part: &str) -> Source {
    let (q, kv) = (config.q_width(), config.kv_width());
    let (first, rows) = match part {
        "attn.q" => (0, q),
        "attn.k" => (q, kv),
        _ => (q + kv, kv),
    };
    Source::Rows { tensor, first, rows, of: q + 2 * kv }
}

/// Gate and up in one matrix, in this order.
fn fused_gate_up(tensor: String, config: &Config, l: usize, part: &str) -> Source {
    let ffn = match config.layers[l].mlp {
        Mlp::Dense { ffn } | Mlp::Experts { ffn, .. } => ffn,
    };
    let first = if part == "mlp.up" { ffn } else { 0 };
    Source::Rows { tensor, first, rows: ffn, of: 2 * ffn }
}
