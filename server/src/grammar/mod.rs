//! Output under a grammar: a JSON schema, a regular expression, a list of choices or a context-free grammar becomes a
//! [`Constraint`](millrace_engine::Constraint) of the engine.
//!
//! Grammars come from clients, so they are programs from strangers. Each has a text of bounded size, is refused unseen
//! where it would grow beyond what the compiler's fuel counts ([`bounds`]), and is compiled on a thread of its own with
//! a deadline, by a compiler with bounded fuel; what it compiles to has a bound on the work of each token and on the
//! memory it may take. What was compiled is kept, up to a number of bytes.
//!
//! The work is `llguidance`'s: an Earley parser over lexemes that are derivatives of regular expressions, asked against
//! a trie of the whole vocabulary.

mod assistant;
mod bounds;
mod cache;
mod compile;
mod constraint;
mod forms;
#[cfg(test)]
mod tests;
mod vocabulary;

pub(crate) use assistant::{Allowed, grammar as for_assistant};
pub(crate) use compile::Compiler;
pub use forms::{FormError, Forms};

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

/// What an output must look like, in one of the compiler's two languages. Equal texts are equal grammars.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Grammar {
    /// A JSON schema, as text.
    Schema(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
}

/// Bytes of a grammar's text.
const MAX_BYTES: usize = 256 << 10;

/// Why there is no constraint.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum GrammarError {
    /// It is not a grammar, or is beyond what the compiler takes.
    #[error("{0}")]
    Invalid(String),
    /// The compiler did not end in time.
    #[error("too complex: it could not be compiled within {0} ms")]
    Deadline(u128),
    /// Other grammars are being compiled.
    #[error("the grammar compiler is busy")]
    Busy,
    /// The model cannot say where an output ends.
    #[error("this model names no end-of-sequence token, so its output cannot be constrained")]
    NoEnd,
}

impl Grammar {
    /// The JSON documents that satisfy a schema, without line breaks or indentation. What the compiler does not know is
    /// refused, unless `lenient`: then it is ignored.
    ///
    /// # Errors
    /// [`GrammarError::Invalid`] where the schema is neither an object nor `true`.
    pub(crate) fn schema(schema: Value, lenient: bool) -> Result<Grammar, GrammarError> {
        let mut schema = match schema {
            Value::Object(_) => schema,
            Value::Bool(true) => json!({}),
            Value::Bool(false) => return Err(GrammarError::Invalid("nothing satisfies false".to_owned())),
            _ => return Err(GrammarError::Invalid("a schema must be an object or true".to_owned())),
        };
        // Small models that may indent go on indenting for ever. Replaces what a client put there.
        schema["x-guidance"] = json!({
            "whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?", "lenient": lenient,
        });
        Ok(Grammar::Schema(schema.to_string()))
    }

    /// Texts that match a regular expression as a whole.
    pub(crate) fn regex(pattern: &str) -> Grammar {
        Grammar::Lark(format!("start: /{}/", llguidance::regex_to_lark(pattern, "")))
    }

    /// One of these texts.
    pub(crate) fn choice(texts: &[String]) -> Grammar {
        let quoted: Vec<String> = texts.iter().map(|text| quote(text)).collect();
        Grammar::Lark(format!("start: CHOICE\nCHOICE: {}", quoted.join(" | ")))
    }

    /// Bytes of its text.
    fn len(&self) -> usize {
        match self {
            Grammar::Schema(text) | Grammar::Lark(text) => text.len(),
        }
    }

    /// Refuses a text that is too long.
    ///
    /// # Errors
    /// [`GrammarError::Invalid`].
    pub(crate) fn check_length(&self) -> Result<(), GrammarError> {
        let (length, most) = (self.len(), MAX_BYTES);
        if length > most {
            return Err(GrammarError::Invalid(format!("at most {most} bytes, got {length}")));
        }
        Ok(())
    }

    /// Refuses what is beyond the bounds. Recurses as deep as the text does.
    fn check(&self) -> Result<(), GrammarError> {
        self.check_length()?;
        match self {
            Grammar::Schema(text) => bounds::schema(&json(text)?),
            Grammar::Lark(text) => bounds::lark(text),
        }
    }

    fn parse(&self) -> Result<TopLevelGrammar, GrammarError> {
        Ok(match self {
            Grammar::Schema(text) => TopLevelGrammar::from_json_schema(json(text)?),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        })
    }
}

fn json(text: &str) -> Result<Value, GrammarError> {
    serde_json::from_str(text).map_err(|error| GrammarError::Invalid(error.to_string()))
}

/// A text as a literal of a Lark grammar.
pub(crate) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}
