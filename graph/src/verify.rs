//! Checks what the builder cannot see at a single node.

use crate::{Graph, GraphError};

impl Graph {
    /// Checks the graph as a whole.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn verify(&self) -> Result<(), GraphError> {
        Ok(())
    }
}
