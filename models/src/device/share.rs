//! One rank's part of the sizes of a model.

use crate::{Config, Mlp, ModelError};

/// The sizes that one rank computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) ranks: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads.
    pub(crate) kv_heads: usize,
    /// Logits.
    pub(crate) vocab: usize,
    /// Whether the graph is for a device's compiler, to which every product is its own.
    pub(crate) device: bool,
}

impl Share {
    /// All of a model, for the CPU.
    pub(crate) fn whole(config: &Config) -> Share {
        let &Config { heads, kv_heads, vocab, .. } = config;
        Share { ranks: 1, heads, kv_heads, vocab, device: false }
    }

    /// What each of so many ranks has.
    pub(crate) fn of_device(config: &Config, ranks: usize) -> Result<Share, ModelError> {
        let &Config { heads, kv_heads, vocab, .. } = config;
        let wrong = |what: String| Err(ModelError::Device { what });
        let divides = |ranks: usize| {
            heads.is_multiple_of(ranks) && (kv_heads.is_multiple_of(ranks) || ranks.is_multiple_of(kv_heads))
        };
        if ranks == 0 || !divides(ranks) {
            let able = (1..=heads).filter(|ranks| divides(*ranks)).map(|ranks| ranks.to_string());
            return wrong(format!(
                "{heads} attention heads and {kv_heads} key-value heads over {ranks} ranks: choose a tensor-parallel \
                 size of {}",
                able.collect::<Vec<_>>().join(", ")
            ));
        }
        let narrow = config.layers.iter().find_map(|layer| match layer.mlp {
            Mlp::Dense { ffn } | Mlp::Experts { ffn, .. } => (ffn < ranks).then_some(ffn),
        });
        if let Some(ffn) = narrow {
            return wrong(format!("a feed-forward width of {ffn} over {ranks} ranks"));
        }
        Ok(Share {
            ranks,
            heads: heads / ranks,
            kv_heads: (kv_heads / ranks).max(1),
            vocab: vocab.div_ceil(ranks),
            device: true,
        })
    }

    /// A rank's part of a width; the last part is filled up with zeros.
    pub(crate) fn of(self, width: usize) -> usize {
        width.div_ceil(self.ranks)
    }
}
