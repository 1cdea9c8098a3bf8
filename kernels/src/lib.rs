//! Runs graphs on the CPU.
//!
//! [`Executor`] holds what lives between steps: packed weights ([`Weights`]), KV caches, one arena. It turns a
//! graph into a [`Plan`] (every value gets its place in the arena by liveness, row-wise ops are fused into
//! phases, indices to check are noted) and runs plans without allocating. The arithmetic lies in the kernels:
//! matrices in their packed formats, paged attention, and the row-wise ops.
//!
//! The rule every kernel keeps: an output element is reduced in one order that depends on the sizes of the
//! model alone. So a token's bits do not depend on what else is in the batch, how a prompt was chunked, or how
//! many threads ran.

pub mod attention;
pub mod cpu;
pub mod eval;
mod exec;
pub mod kv;
pub mod matrix;
mod ops;
pub mod pool;
pub mod quantise;
pub mod similarity;

pub use millrace_graph::dequant;

pub use exec::{
    Executor, PACKED_VERSION, PackedError, Plan, PlanError, Profile, RunError, WeightError, Weights,
};
pub use matrix::Precision;
pub use pool::Pool;
