//! Why a graph is refused.

use std::panic::Location;

/// An ill-typed operation, and where in the source it was built.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{op} at {location}: {why}")]
pub struct GraphError {
    /// The operation's name.
    pub op: &'static str,
    /// The builder call.
    pub location: &'static Location<'static>,
    /// What does not fit.
    pub why: String,
}
