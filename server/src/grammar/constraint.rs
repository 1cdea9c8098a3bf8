//! The compiled grammar as the engine sees it.

use std::fmt;

use llguidance::Matcher;
use millrace_engine::{Constraint, ConstraintError, TokenId};

use super::compile::shorten;

/// A place in a grammar.
pub(super) struct Guided(pub(super) Matcher);

impl fmt::Debug for Guided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guided({:?})", self.0.stop_reason())
    }
}

impl Constraint for Guided {
    /// The choices of a request share what the lexer has learned, and its bound.
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Guided(self.0.clone()))
    }

    fn allowed(&mut self, allowed: &mut Vec<u32>) -> Result<(), ConstraintError> {
        let mask = self.0.compute_mask_or_eos().map_err(|error| failed(&error.to_string()))?;
        allowed.clear();
        allowed.extend_from_slice(mask.as_slice());
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        self.0.consume_token(token).map_err(|error| failed(&error.to_string()))?;
        Ok(self.0.is_stopped())
    }
}

fn failed(message: &str) -> ConstraintError {
    ConstraintError(shorten(message))
}
