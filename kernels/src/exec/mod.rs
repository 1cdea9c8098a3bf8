//! Plans graphs and runs plans.
//!
//! `flow` finds out who reads what; `lower` turns nodes into phases of work on views (`view`) of storages, which
//! `phases` collects and `place` packs into the arena; `check` knows what indices have to satisfy. That makes a
//! `plan`. `run` walks through it on every worker, `experts` and `attend` being its larger phases. `executor` owns
//! what all of that works on: `weights`, `states`, the arena.

mod attend;
mod check;
mod error;
mod executor;
mod experts;
mod flow;
mod full;
mod lower;
mod operands;
mod phases;
mod place;
mod plan;
mod run;
mod states;
mod view;
mod weights;

pub use error::{PlanError, RunError, WeightError};
pub use executor::{Executor, Profile};
pub use plan::Plan;
pub use weights::{PACKED_VERSION, PackedError, Weights};
