//! Constraints for whoever runs an engine without a server, such as a bench.

use std::sync::Arc;

use millrace_engine::{Constraint, TokenId};
use millrace_models::text::Tokenizer;
use serde_json::Value;

use super::{Allowed, Compiler, Grammar, GrammarError, for_assistant};

/// Makes the constraints that requests to a server get, for one model.
pub struct Forms(Arc<Compiler>);

/// Why there is no constraint.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FormError(#[from] GrammarError);

impl Forms {
    /// For the tokens of a model, of which `eos` end a sequence.
    ///
    /// # Errors
    /// Where none does.
    pub fn new(tokenizer: &Tokenizer, eos: &[TokenId]) -> Result<Self, FormError> {
        Ok(Forms(Compiler::new(tokenizer, eos)?))
    }

    /// The documents of a JSON schema, as of a request's `response_format`.
    ///
    /// # Errors
    /// Where the schema is none, or beyond the bounds.
    pub fn schema(&self, schema: &Value) -> Result<Box<dyn Constraint>, FormError> {
        Ok(self.0.compile_own(&Grammar::schema(schema.clone(), false)?)?)
    }

    /// An answer of the shopping assistant that may name these products, attributes and passages.
    ///
    /// # Errors
    /// Where they are too many.
    pub fn answer(
        &self,
        products: &[String],
        attributes: &[String],
        citations: &[u32],
    ) -> Result<Box<dyn Constraint>, FormError> {
        Ok(self.0.compile_own(&for_assistant(&Allowed { products, attributes, citations }))?)
    }
}
