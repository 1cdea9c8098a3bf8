//! Text on its way to token ids and back.
//!
//! [`Tokenizer`] turns text into ids and ids into text, [`Detokenizer`] does the latter while ids arrive one by one,
//! [`ChatTemplate`] writes a conversation the way its model was taught to read one, [`StopStrings`] end a text, and
//! [`GenerationDefaults`] are the sampling parameters a model's authors recommend. Each is read from a Hugging Face
//! directory or from the metadata of a GGUF file ([`Gguf`](crate::Gguf)).

mod automaton;
mod defaults;
mod detokenizer;
mod encode;
mod files;
mod gguf;
mod guard;
mod python;
mod spm;
mod stop;
mod template;
#[cfg(test)]
mod tests;
mod tokenizer;

pub use defaults::GenerationDefaults;
pub use detokenizer::Detokenizer;
pub use encode::EncoderTokenizer;
pub use stop::{StopMatcher, StopStrings};
pub use template::{ChatTemplate, RenderOptions, SpecialTokens, TemplateError};
pub use tokenizer::Tokenizer;

use std::path::PathBuf;

/// Why a tokenizer, a chat template or generation defaults cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file is not there or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{place}: {message}")]
    Malformed {
        /// The file, or the key of the GGUF metadata.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// The file is well-formed and asks for something that is not implemented.
    #[error("{place}: {what} is not supported")]
    Unsupported {
        /// The file, or the key of the GGUF metadata.
        place: String,
        /// What it asks for.
        what: String,
    },
    /// A value in a GGUF file is of another kind than its key calls for.
    #[error(transparent)]
    Gguf(#[from] crate::ModelError),
    /// The text cannot be encoded with this tokenizer.
    #[error("cannot tokenize this text: {0}")]
    Encode(String),
}

impl TextError {
    pub(super) fn malformed(place: impl std::fmt::Display, message: impl std::fmt::Display) -> Self {
        Self::Malformed { place: place.to_string(), message: message.to_string() }
    }

    pub(super) fn unsupported(place: impl std::fmt::Display, what: impl std::fmt::Display) -> Self {
        Self::Unsupported { place: place.to_string(), what: what.to_string() }
    }
}
