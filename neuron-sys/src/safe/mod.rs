//! Owners over the runtime: what is used cannot have been closed, and what went wrong is not forgotten.
//!
//! ```text
//! TensorSet ─→ Tensor ─→ Core ─→ Runtime ─→ Library          arrows are Arcs; drops run from left to right
//!                Model ─→ Core
//! ```

mod error;
mod gate;
mod library;
mod model;
mod runtime;
mod tensor;
mod thread;

pub use error::{Error, OpenError, Poison};
pub use library::Library;
pub use model::{Model, TensorInfo, Usage};
pub use runtime::{Core, MemoryStats, Runtime};
pub use tensor::{Tensor, TensorSet};
pub use thread::{CoreThread, CoreThreadError, Pending};
