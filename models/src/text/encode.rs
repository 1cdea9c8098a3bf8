//! Text to the ids that a sentence encoder reads: framed by its special tokens, cut to its length.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use tokenizers::{TruncationDirection, TruncationParams, TruncationStrategy};

use super::{TextError, files};

/// The tokenizer of a sentence encoder; clones share it.
#[derive(Clone)]
pub struct EncoderTokenizer {
    cut: Arc<tokenizers::Tokenizer>,
    whole: Arc<tokenizers::Tokenizer>,
}

impl std::fmt::Debug for EncoderTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncoderTokenizer of {} ids", self.cut.get_vocab_size(true))
    }
}

impl EncoderTokenizer {
    /// Reads `tokenizer.json`; texts are cut to `max_tokens`, special tokens included.
    ///
    /// # Errors
    /// If the file cannot be read or is malformed.
    pub fn from_directory(dir: &Path, max_tokens: usize) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let Some(json) = files::text(dir, "tokenizer.json")? else {
            let source =
                std::io::Error::new(std::io::ErrorKind::NotFound, "the directory has no tokenizer.json");
            return Err(TextError::Read { path, source });
        };
        let place = path.display();
        let mut stages = catch_unwind(|| tokenizers::Tokenizer::from_bytes(json.as_bytes()))
            .map_err(|_| TextError::malformed(&place, "the tokenizers library cannot make sense of it"))?
            .map_err(|error| TextError::malformed(&place, error))?;
        stages.with_padding(None);
        stages.with_truncation(None).map_err(|error| TextError::malformed(&place, error))?;
        let whole = Arc::new(stages.clone());
        let cut = TruncationParams {
            direction: TruncationDirection::Right,
            max_length: max_tokens,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        stages.with_truncation(Some(cut)).map_err(|error| TextError::malformed(&place, error))?;
        Ok(Self { cut: Arc::new(stages), whole })
    }

    /// The ids of a text, cut to the most there may be.
    ///
    /// # Errors
    /// If the tokenizer gives up on it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        encode(&self.cut, text)
    }

    /// All ids of a text, for those who would rather refuse it than cut it.
    ///
    /// # Errors
    /// If the tokenizer gives up on it.
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>, TextError> {
        encode(&self.whole, text)
    }
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, TextError> {
    let failed = |why: String| TextError::Encode(why);
    let encoding = catch_unwind(AssertUnwindSafe(|| tokenizer.encode_fast(text, true)))
        .map_err(|_| failed("the tokenizers library failed on it".to_owned()))?;
    Ok(encoding.map_err(|error| failed(error.to_string()))?.get_ids().to_vec())
}
