//! Texts to vectors: what the index, the query and `/v1/embeddings` have in common.

use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use millrace_engine::encoder::{CpuEncoder, EncodeError, Encoder};
use millrace_models::EncoderCheckpoint;
use millrace_models::text::{EncoderTokenizer, TextError};
use sha2::{Digest, Sha256};

/// Why a text has no vector.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The tokenizer refuses it.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The encoder refuses it.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Why an encoder cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedLoadError {
    /// Its checkpoint.
    #[error(transparent)]
    Model(#[from] millrace_models::ModelError),
    /// Its tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Its weights.
    #[error(transparent)]
    Load(#[from] millrace_engine::cpu::CpuLoadError),
    /// Its files, when they are hashed.
    #[error("cannot read the weights")]
    Io(#[from] std::io::Error),
}

/// Makes vectors of length one whose products tell how near in meaning texts are.
pub trait Embed: Send + Sync {
    /// The same for encoders that give the same vectors.
    fn id(&self) -> &str;

    /// Floats in a vector.
    fn dim(&self) -> usize;

    /// A vector for each text; takes milliseconds for each, on the caller's thread.
    ///
    /// # Errors
    /// Where a text cannot be encoded.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;
}

/// A sentence encoder with its tokenizer. Calls take turns.
pub struct TextEncoder {
    encoder: Mutex<Box<dyn Encoder>>,
    /// Held while waiting for the encoder, so that who asks again and again lets the one who waits go first: a shopper's
    /// question between the batches of a long list.
    next: Mutex<()>,
    tokenizer: EncoderTokenizer,
    id: String,
    dim: usize,
    vocab: usize,
    max_tokens: usize,
}

impl TextEncoder {
    /// Loads the encoder in a folder of sentence-transformers, for the CPU.
    ///
    /// # Errors
    /// Where its files are missing, malformed, or of another kind of model.
    pub fn open(path: &Path, threads: usize) -> Result<TextEncoder, EmbedLoadError> {
        let checkpoint = EncoderCheckpoint::open(path)?;
        TextEncoder::new(path, Box::new(CpuEncoder::load(&checkpoint, threads)?))
    }

    /// An encoder that was loaded from this folder, on whatever backend.
    ///
    /// # Errors
    /// Where the folder has no tokenizer, or its files cannot be read.
    pub fn new(path: &Path, encoder: Box<dyn Encoder>) -> Result<TextEncoder, EmbedLoadError> {
        let config = encoder.config();
        let (max_tokens, dim, vocab) = (config.max_tokens, config.hidden, config.vocab);
        let tokenizer = EncoderTokenizer::from_directory(path, max_tokens)?;
        let mut hash = Sha256::new();
        for file in ["tokenizer.json", "model.safetensors"] {
            let file = path.join(file);
            if file.exists() {
                let mut file = std::fs::File::open(file)?;
                let mut buffer = vec![0; 1 << 20];
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        count => hash.update(&buffer[..count]),
                    }
                }
            }
        }
        let id = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let (encoder, next) = (Mutex::new(encoder), Mutex::new(()));
        Ok(TextEncoder { encoder, next, tokenizer, id, dim, vocab, max_tokens })
    }

    /// Ids are below this.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Tokens of the longest text that is not cut.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The ids of a text, cut to [`max_tokens`](Self::max_tokens).
    ///
    /// # Errors
    /// Where the tokenizer refuses it.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.tokenizer.encode(text)
    }

    /// All ids of a text, also more than the encoder takes.
    ///
    /// # Errors
    /// Where the tokenizer refuses it.
    pub fn tokenize_whole(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.tokenizer.encode_whole(text)
    }

    /// A vector for each list of ids.
    ///
    /// # Errors
    /// Where a list is empty, too long, or has an unknown id.
    pub fn embed_ids(&self, ids: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let turn = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // A panic leaves nothing behind that the next call could stumble over: each batch fills its own inputs.
        let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        drop(turn);
        encoder.embed(ids)
    }
}

impl Embed for TextEncoder {
    fn id(&self) -> &str {
        &self.id
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let ids: Result<Vec<_>, _> = texts.iter().map(|text| self.tokenize(text)).collect();
        Ok(self.embed_ids(&ids?)?)
    }
}
