//! The families that the decoder covers, and what all checkpoints of one have in common.

use millrace_graph::Activation;

use crate::{ModelError, QkNorm};

/// A family of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Phi3,
    Olmo2,
    SmolLm3,
    Granite,
}

/// What is fixed for a family, whatever layout its checkpoint has.
pub(crate) struct Traits {
    pub(crate) activation: Activation,
    pub(crate) pre_norm: bool,
    pub(crate) post_norm: bool,
    pub(crate) qk_norm: QkNorm,
}

use Family::*;

/// `architectures` of a `config.json`. Several may share a family.
const HF: [(&str, Family); 13] = [
    ("LlamaForCausalLM", Llama),
    ("MistralForCausalLM", Mistral),
    ("MixtralForCausalLM", Mixtral),
    ("Qwen2ForCausalLM", Qwen2),
    ("Qwen3ForCausalLM", Qwen3),
    ("Qwen3MoeForCausalLM", Qwen3Moe),
    ("Gemma2ForCausalLM", Gemma2),
    ("Gemma3ForCausalLM", Gemma3),
    ("Gemma3ForConditionalGeneration", Gemma3),
    ("Phi3ForCausalLM", Phi3),
    ("Olmo2ForCausalLM", Olmo2),
    ("SmolLM3ForCausalLM", SmolLm3),
    ("GraniteForCausalLM", Granite),
];

/// `general.architecture` of a GGUF file. `llama` stands for Mistral and Mixtral as well.
const GGUF: [(&str, Family); 10] = [
    ("llama", Llama),
    ("qwen2", Qwen2),
    ("qwen3", Qwen3),
    ("qwen3moe", Qwen3Moe),
    ("gemma2", Gemma2),
    ("gemma3", Gemma3),
    ("phi3", Phi3),
    ("olmo2", Olmo2),
    ("smollm3", SmolLm3),
    ("granite", Granite),
];

impl Family {
    /// The family of an architecture in a `config.json`.
    pub(crate) fn of_hf(file: &str, architecture: &str) -> Result<Family, ModelError> {
        lookup(&HF, file, architecture)
    }

    /// The family of a GGUF architecture.
    pub(crate) fn of_gguf(file: &str, architecture: &str) -> Result<Family, ModelError> {
        lookup(&GGUF, file, architecture)
    }

    pub(crate) fn traits(self) -> Traits {
        let gemma = matches!(self, Gemma2 | Gemma3);
        Traits {
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            pre_norm: self != Olmo2,
            post_norm: gemma || self == Olmo2,
            qk_norm: match self {
                Qwen3 | Qwen3Moe | Gemma3 => QkNorm::Head,
                Olmo2 => QkNorm::Projection,
                _ => QkNorm::None,
            },
        }
    }

    /// Whether llama.cpp stores this family's query and key projections for RoPE over neighbouring pairs
    /// ([`millrace_graph::RowOrder::RopeInterleaved`]).
    pub(crate) fn gguf_interleaves_rope(self) -> bool {
        matches!(self, Llama | Granite | SmolLm3)
    }
}

fn lookup(table: &[(&str, Family)], file: &str, name: &str) -> Result<Family, ModelError> {
    let found = table.iter().find(|(known, _)| *known == name);
    found.map(|(_, family)| *family).ok_or_else(|| {
        let supported: Vec<&str> = table.iter().map(|(known, _)| *known).collect();
        ModelError::UnsupportedArchitecture {
            file: file.into(),
            name: name.into(),
            supported: supported.join(", "),
        }
    })
}
