//! What the Neuron backend knows before there is a device: which graphs it compiles, whether they fit, and where
//! the compiled ones are kept.
//!
//! | module | question |
//! | --- | --- |
//! | [`buckets`] | which static shapes to compile, and which of them serves a step |
//! | [`memory`] | do weights, KV cache and scratch fit a core |
//! | [`compiler`] | HLO in, program out, by the vendor's compiler; what the store lacks |
//! | [`store`] | compiled graphs by content, verified whenever they are read |
//! | [`manifest`] | what is known of one compiled graph |
//!
//! And what runs it: [`Device`] claims cores and puts weights on them, [`NeuronRunner`] turns steps into executions.
//!
//! | file | question |
//! | --- | --- |
//! | `dispatch.rs` | which executions a step becomes |
//! | `inputs.rs` | what an execution is given, padding among it |
//! | `rank.rs` | what is on one core |
//! | `device.rs` | how it gets there |
//! | `provide.rs` | where programs come from, and which a runner can start with |
//! | `start.rs` | how large the KV cache is, and how programs follow while it serves |
//! | `collect.rs` | how an execution ended on all of them |
//! | `runner.rs` | all ranks together, as a [`Runner`](crate::Runner) |
//! | `encoder.rs` | sentence embeddings: their buckets, their programs, a core of their own |
//! | `failure.rs` | what is made of a status of the runtime |

pub mod buckets;
mod collect;
pub mod compiler;
mod device;
mod dispatch;
mod encoder;
mod failure;
mod figures;
mod inputs;
pub mod manifest;
pub mod memory;
mod plan;
mod provide;
mod rank;
mod request;
mod runner;
mod start;
pub mod store;

pub use device::{Device, NeuronLoadError, kv_block_bytes};
pub use encoder::{EncoderSpec, NeuronEncoder, encoder_buckets};
pub use figures::{NeuronFigures, ProgramFigures};
pub use millrace_models::device::Bucket;
pub use plan::{PlanError, PlanOptions, Planned, plan};
pub use provide::{FromStore, Provide, ProvideError};
pub use rank::BindError;
pub use request::{Graphs, Request, Spec, SpecError};
pub use runner::{KvSource, NeuronOptions, NeuronRunner, load};

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the compiler compiles for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Inferentia2: NeuronCore-v2.
    Inf2,
    /// Trainium1: NeuronCore-v2.
    Trn1,
    /// Trainium2: NeuronCore-v3, of which two make one logical core.
    Trn2,
}

impl Target {
    /// Every target.
    pub const ALL: [Target; 3] = [Target::Inf2, Target::Trn1, Target::Trn2];

    /// As the compiler's `--target` has it.
    pub fn name(self) -> &'static str {
        match self {
            Target::Inf2 => "inf2",
            Target::Trn1 => "trn1",
            Target::Trn2 => "trn2",
        }
    }

    /// Physical cores that the runtime presents as one, the vendor's default (`--lnc`).
    pub fn cores_per_logical_core(self) -> u32 {
        match self {
            Target::Inf2 | Target::Trn1 => 1,
            Target::Trn2 => 2,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Target::ALL.into_iter().find(|target| target.name() == text);
        found.ok_or_else(|| format!("{text:?} is no target: it is inf2, trn1 or trn2"))
    }
}

/// `8x1@64`: 8 rows of 1 new token over 64 blocks each; `+adjust` where it takes an adjustment. An encoder's graphs have no
/// blocks: `8x64`.
pub fn label(bucket: &Bucket) -> String {
    if bucket.blocks == 0 {
        return format!("{}x{}", bucket.rows, bucket.width);
    }
    let adjust = if bucket.adjust { "+adjust" } else { "" };
    format!("{}x{}@{}{adjust}", bucket.rows, bucket.width, bucket.blocks)
}
