//! The tokenizer inside a GGUF file.
//!
//! `tokenizer.ggml.model` is `gpt2` for byte-level byte-pair encoding, whose pre-tokenizer is named by
//! `tokenizer.ggml.pre`, or `llama` for SentencePiece's. The keys are those of the GGUF specification.

use super::spm::{Kind, Spm, is_space};
use super::tokenizer::{Affixes, Tokenizer};
use super::{SpecialTokens, TextError};
use crate::Gguf;
use tokenizers::decoders::{
    DecoderWrapper, byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip,
};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::{
    PreTokenizerWrapper, byte_level::ByteLevel, digits::Digits, sequence::Sequence as PreTokenizers,
};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

const PREFIX: &str = "tokenizer.ggml";

fn key(name: &str) -> String {
    format!("{PREFIX}.{name}")
}

/// What both kinds of tokenizer need of the metadata.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<Kind>,
}

pub(super) fn tokenizer(metadata: &Gguf) -> Result<Tokenizer, TextError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let (mut stages, spm) = match metadata.string(&key("model"))? {
        Some("gpt2") => (byte_level(metadata, &vocabulary)?, None),
        Some("llama") => {
            let (stages, spm) = sentence_piece(metadata, &vocabulary)?;
            (stages, Some(spm))
        }
        Some(other) => {
            let known = "(gpt2 and llama are)";
            return Err(TextError::unsupported(key("model"), format!("the tokenizer {other:?} {known}")));
        }
        None => return Err(TextError::malformed(key("model"), "missing: the file has no tokenizer")),
    };
    stages
        .add_special_tokens(vocabulary.added())
        .map_err(|error| TextError::malformed(key("tokens"), error))?;
    let special = special_tokens(metadata)?;
    let id = |name| id(metadata, name);
    // llama.cpp's default where the file does not say: SentencePiece models begin with their token.
    let add_bos = metadata.bool(&key("add_bos_token"))?.unwrap_or(spm.is_some());
    let affixes = Affixes {
        bos: id("bos_token_id")?,
        add_bos: Some(add_bos),
        eos: id("eos_token_id")?,
        add_eos: Some(metadata.bool(&key("add_eos_token"))?.unwrap_or(false)),
    };
    Tokenizer::new(stages, spm, special, affixes, &key("tokens"))
}

/// A token id, by the end of its key.
pub(super) fn id(metadata: &Gguf, name: &str) -> Result<Option<u32>, TextError> {
    let Some(id) = metadata.unsigned(&key(name))? else { return Ok(None) };
    let id =
        u32::try_from(id).map_err(|_| TextError::malformed(key(name), format!("{id} is no token id")))?;
    Ok(Some(id))
}

/// The named tokens, by their ids.
pub(super) fn special_tokens(metadata: &Gguf) -> Result<SpecialTokens, TextError> {
    let tokens = metadata.strings(&key("tokens"))?.unwrap_or_default();
    let token = |name: &str| -> Result<Option<String>, TextError> {
        let Some(id) = id(metadata, name)? else { return Ok(None) };
        let missing =
            || TextError::malformed(key(name), format!("{id}, but there are {} tokens", tokens.len()));
        Ok(Some(tokens.get(id as usize).ok_or_else(missing)?.clone()))
    };
    Ok(SpecialTokens {
        bos_token: token("bos_token_id")?,
        eos_token: token("eos_token_id")?,
        unk_token: token("unknown_token_id")?,
        pad_token: token("padding_token_id")?,
    })
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Gguf) -> Result<Self, TextError> {
        let place = key("tokens");
        let missing = || TextError::malformed(&place, "missing");
        let tokens = metadata.strings(&place)?.ok_or_else(missing)?;
        let place = key("token_type");
        let kinds = match metadata.ints(&place)? {
            None => vec![Kind::Normal; tokens.len()],
            Some(codes) if codes.len() == tokens.len() => {
                let kind = |(id, code): (usize, &i64)| {
                    let unknown =
                        || TextError::malformed(&place, format!("token {id} has the unknown type {code}"));
                    Kind::new(*code).ok_or_else(unknown)
                };
                codes.iter().enumerate().map(kind).collect::<Result<_, _>>()?
            }
            Some(codes) => {
                let message = format!("{} types for {} tokens", codes.len(), tokens.len());
                return Err(TextError::malformed(place, message));
            }
        };
        Ok(Self { tokens, kinds })
    }

    /// Control tokens are special; user defined ones are found in any text before it is segmented.
    fn added(&self) -> Vec<AddedToken> {
        let added = |(token, kind): (&String, &Kind)| match kind {
            Kind::Control => Some(AddedToken::from(token.as_str(), true)),
            // White space is left to the segmentation, which sees it in context.
            Kind::UserDefined if !is_space(token) => {
                Some(AddedToken::from(token.as_str(), false).normalized(false))
            }
            _ => None,
        };
        self.tokens.iter().zip(&self.kinds).filter_map(added).collect()
    }

    /// Id by token; where two ids share a string, the first has it.
    fn ids(&self) -> Vocab {
        let mut ids = Vocab::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            ids.entry(token.clone()).or_insert(id as u32);
        }
        ids
    }
}

/// Byte-pair encoding over bytes, as in GPT-2.
fn byte_level(metadata: &Gguf, vocabulary: &Vocabulary) -> Result<tokenizers::Tokenizer, TextError> {
    let place = key("merges");
    let missing = || TextError::malformed(&place, "missing");
    let merges = metadata.strings(&place)?.ok_or_else(missing)?;
    let merges = merges.iter().enumerate().map(|(rank, merge)| {
        // Byte-level tokens contain no spaces, so the one space separates the halves.
        let halves = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let (left, right) =
            halves.ok_or_else(|| TextError::malformed(&place, format!("merge {rank}: {merge:?}")))?;
        Ok((left.to_owned(), right.to_owned()))
    });
    let merges = merges.collect::<Result<Vec<_>, TextError>>()?;
    let pre = metadata.string(&key("pre"))?.unwrap_or("default");
    let pre_tokenizer = PreTokenizer::named(pre)
        .ok_or_else(|| TextError::unsupported(key("pre"), format!("the pre-tokenizer {pre:?}")))?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.ids(), merges)
        .ignore_merges(pre_tokenizer.whole_words)
        .build()
        .map_err(|error| TextError::malformed(&place, error))?;
    let mut stages = tokenizers::Tokenizer::new(model);
    let failed = |error: tokenizers::Error| TextError::malformed(key("pre"), error);
    if pre_tokenizer.composed {
        stages.with_normalizer(Some(NFC)).map_err(failed)?;
    }
    stages.with_pre_tokenizer(Some(pre_tokenizer.stages().map_err(failed)?));
    stages.with_decoder(Some(ByteLevel::default()));
    Ok(stages)
}

/// How a text is cut into words before byte-pair encoding.
struct PreTokenizer {
    /// Each decimal digit is a word.
    digits: bool,
    /// `None` is GPT-2's own pattern.
    pattern: Option<&'static str>,
    /// A word that is a token is taken as it is, whatever the merges say.
    whole_words: bool,
    /// Text is composed (Unicode NFC) first.
    composed: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    /// By the value of `tokenizer.ggml.pre`: a name for the pattern in the `tokenizer.json` a file was converted from.
    fn named(name: &str) -> Option<Self> {
        let gpt2 = Self { digits: false, pattern: None, whole_words: false, composed: false };
        let with = |pattern| Self { pattern: Some(pattern), ..gpt2 };
        Some(match name {
            "default" | "gpt-2" | "olmo" | "mpt" | "phi-2" | "roberta-bpe" => gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => Self { digits: true, ..gpt2 },
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => Self { whole_words: true, ..with(LLAMA3) },
            "dbrx" | "smaug-bpe" => with(LLAMA3),
            "qwen2" | "deepseek-r1-qwen" => Self { composed: true, ..with(QWEN2) },
            "tekken" => Self { whole_words: true, ..with(TEKKEN) },
            "gpt-4o" | "llama4" => with(GPT4O),
            _ => return None,
        })
    }

    fn stages(&self) -> Result<PreTokenizerWrapper, tokenizers::Error> {
        let mut stages = Vec::new();
        if self.digits {
            stages.push(PreTokenizerWrapper::Digits(Digits::new(true)));
        }
        if let Some(pattern) = self.pattern {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            stages.push(PreTokenizerWrapper::Split(split));
        }
        let bytes = ByteLevel::new(false, false, self.pattern.is_none());
        stages.push(PreTokenizerWrapper::ByteLevel(bytes));
        Ok(PreTokenizerWrapper::Sequence(PreTokenizers::new(stages)))
    }
}

/// SentencePiece's byte-pair encoding by scores.
fn sentence_piece(
    metadata: &Gguf,
    vocabulary: &Vocabulary,
) -> Result<(tokenizers::Tokenizer, Spm), TextError> {
    let place = key("scores");
    let missing = || TextError::malformed(&place, "missing");
    let scores = metadata.floats(&place)?.ok_or_else(missing)?;
    if scores.len() != vocabulary.tokens.len() {
        let message = format!("{} scores for {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(TextError::malformed(place, message));
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(TextError::malformed(place, format!("the score of token {id} is no number")));
    }
    let tokens = vocabulary.tokens.iter().zip(scores).zip(&vocabulary.kinds);
    let spm = Spm::new(tokens.map(|((token, score), kind)| (token.as_str(), *score, *kind)));
    // The crate's model only looks tokens up; segmentation is `spm`'s.
    let model = BPE::builder().vocab_and_merges(vocabulary.ids(), Vec::new()).cache_capacity(0).build();
    let failed = |error: tokenizers::Error| TextError::malformed(key("tokens"), error);
    let mut stages = tokenizers::Tokenizer::new(model.map_err(failed)?);
    let prefix = metadata.bool(&key("add_space_prefix"))?.unwrap_or(true);
    let mut normalizers = Vec::new();
    if prefix {
        normalizers.push(NormalizerWrapper::Prepend(Prepend::new("▁".to_owned())));
    }
    normalizers.push(NormalizerWrapper::Replace(Replace::new(" ", "▁").map_err(failed)?));
    stages.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
    let mut decoders = vec![
        DecoderWrapper::Replace(Replace::new("▁", " ").map_err(failed)?),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    if prefix {
        decoders.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
    }
    stages.with_decoder(Some(Decoders::new(decoders)));
    Ok((stages, spm))
}
