//! Ids to text, one id at a time.
//!
//! A token is a run of bytes, not of characters: a character may be spread over several tokens. So each id is looked
//! up as bytes, and bytes leave as text once they are whole characters. What `tokenizer.json` calls a decoder is
//! reduced to that lookup when the tokenizer is loaded ([`Pieces`]).

use super::{TextError, tokenizer::Tokenizer};
use tokenizers::DecoderWrapper;
use tokenizers::decoders::wordpiece;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

/// What every id contributes to the text.
#[derive(Debug)]
pub(super) struct Pieces {
    /// All contributions in the middle of a text, one after the other.
    bytes: Vec<u8>,
    /// Where the contribution of id `i` ends; it begins where that of `i - 1` ends.
    ends: Vec<usize>,
    special: Vec<bool>,
    spelling: Spelling,
    /// How many spaces a text loses at its start.
    leading: usize,
}

/// A token, as the decoder takes it.
pub(super) struct Entry {
    pub(super) string: String,
    /// It was added to the vocabulary as it is written in texts.
    pub(super) written: bool,
    pub(super) special: bool,
}

/// How tokens spell their bytes.
#[derive(Clone, Debug)]
enum Spelling {
    /// Every byte is a character of its own, as in GPT-2.
    ByteLevel,
    /// Text in which some strings stand for others; `<0xNN>` may be a byte.
    Text { replace: Vec<(String, String)>, bytes: bool },
    /// Text in which this character stands for a space, except in the first token, where it stands for nothing.
    Meta(char),
    /// Words; a token that begins with this prefix continues the word before it.
    WordPiece { prefix: String, cleanup: bool },
    /// Words.
    Words,
}

impl Pieces {
    /// `tokens` gives for each id its token, if there is one.
    ///
    /// # Errors
    /// If the decoder contains a step that this module does not know, by its name.
    pub(super) fn new(
        decoder: Option<&DecoderWrapper>,
        tokens: impl Iterator<Item = Option<Entry>>,
        place: &str,
    ) -> Result<Self, TextError> {
        let (spelling, leading) = reduce(decoder, place)?;
        let (mut bytes, mut ends, mut special) = (Vec::new(), Vec::new(), Vec::new());
        for token in tokens {
            match &token {
                // The library reads such a token in the alphabet of bytes if it can, and so breaks `§` or `é`.
                Some(token) if token.written && matches!(spelling, Spelling::ByteLevel) => {
                    bytes.extend_from_slice(token.string.as_bytes());
                }
                Some(token) => spelling.append(&token.string, false, &mut bytes),
                None => {}
            }
            ends.push(bytes.len());
            special.push(token.is_some_and(|token| token.special));
        }
        Ok(Self { bytes, ends, special, spelling, leading })
    }

    /// The number of ids, whether or not each has a token.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Empty for an id without a token.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// The decoder as a spelling and the number of spaces lost at the start.
fn reduce(decoder: Option<&DecoderWrapper>, place: &str) -> Result<(Spelling, usize), TextError> {
    fn flatten<'a>(decoder: &'a DecoderWrapper, into: &mut Vec<&'a DecoderWrapper>) {
        match decoder {
            DecoderWrapper::Sequence(sequence) => {
                sequence.get_decoders().iter().for_each(|step| flatten(step, into));
            }
            step => into.push(step),
        }
    }
    let Some(decoder) = decoder else { return Ok((Spelling::Words, 0)) };
    let mut steps = Vec::new();
    flatten(decoder, &mut steps);
    match steps[..] {
        [DecoderWrapper::ByteLevel(_)] => return Ok((Spelling::ByteLevel, 0)),
        [DecoderWrapper::Metaspace(step)] => {
            let (meta, never) = (step.get_replacement(), step.get_prepend_scheme() == PrependScheme::Never);
            let replace = vec![(meta.to_string(), " ".to_owned())];
            let text = Spelling::Text { replace, bytes: false };
            return Ok((if never { text } else { Spelling::Meta(meta) }, 0));
        }
        [DecoderWrapper::WordPiece(step)] => {
            return Ok((Spelling::WordPiece { prefix: step.prefix.clone(), cleanup: step.cleanup }, 0));
        }
        _ => {}
    }
    // The family SentencePiece models use: replacements and bytes per token, then perhaps a space lost at the start.
    let (mut replace, mut bytes, mut fused, mut leading) = (Vec::new(), false, false, 0);
    for step in steps {
        let known = match step {
            DecoderWrapper::Replace(step) if !fused && !bytes => match pattern(step) {
                Some(from) => {
                    replace.push((from, step.content.clone()));
                    true
                }
                None => false,
            },
            DecoderWrapper::ByteFallback(_) if !fused => {
                bytes = true;
                true
            }
            DecoderWrapper::Fuse(_) => {
                fused = true;
                true
            }
            DecoderWrapper::Strip(step) if fused && step.content == ' ' && step.stop == 0 => {
                leading = step.start;
                true
            }
            _ => false,
        };
        if !known {
            let json = serde_json::to_string(step).unwrap_or_default();
            return Err(TextError::unsupported(place, format!("decoder step {json}")));
        }
    }
    Ok((Spelling::Text { replace, bytes }, leading))
}

/// The string a `Replace` step looks for; it keeps its pattern private and shows it only when serialised.
fn pattern(step: &tokenizers::normalizers::Replace) -> Option<String> {
    let json = serde_json::to_value(step).ok()?;
    Some(json.get("pattern")?.get("String")?.as_str()?.to_owned())
}

impl Spelling {
    /// Appends what `token` contributes as the first of a text or later in it.
    fn append(&self, token: &str, first: bool, bytes: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let before = bytes.len();
                for char in token.chars() {
                    match byte_of(char) {
                        Some(byte) => bytes.push(byte),
                        None => {
                            // An added token written in plain text.
                            bytes.truncate(before);
                            bytes.extend_from_slice(token.as_bytes());
                            return;
                        }
                    }
                }
            }
            Self::Text { replace, bytes: fallback } => match byte_token(token) {
                Some(byte) if *fallback => bytes.push(byte),
                _ => {
                    let mut text = token.to_owned();
                    for (from, to) in replace {
                        text = text.replace(from, to);
                    }
                    bytes.extend_from_slice(text.as_bytes());
                }
            },
            Self::Meta(meta) => {
                let text = token.replace(*meta, if first { "" } else { " " });
                bytes.extend_from_slice(text.as_bytes());
            }
            Self::WordPiece { prefix, cleanup } => {
                let text = match token.strip_prefix(prefix.as_str()) {
                    _ if first => token.to_owned(),
                    Some(rest) => rest.to_owned(),
                    None => format!(" {token}"),
                };
                let text = if *cleanup { wordpiece::cleanup(&text) } else { text };
                bytes.extend_from_slice(text.as_bytes());
            }
            Self::Words => {
                bytes.extend_from_slice(if first { b"" } else { b" " });
                bytes.extend_from_slice(token.as_bytes());
            }
        }
    }
}

/// GPT-2's alphabet: printable Latin-1 characters are their own bytes; the other 68 bytes follow from U+0100 on.
pub(super) fn byte_of(char: char) -> Option<u8> {
    let code = u32::from(char);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Turns ids into text as they are generated: each [`push`](Self::push) gives the text that became complete.
///
/// What all calls return, [`finish`](Self::finish) included, is together [`Tokenizer::decode`] of all ids. The cost of
/// an id is its own length, whatever came before it.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Nothing has been contributed so far.
    first: bool,
    /// How many spaces the text still loses at its start.
    leading: usize,
    /// The beginning of a character: at most three bytes.
    partial: Vec<u8>,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        let leading = tokenizer.pieces().leading;
        Self { tokenizer, skip_special_tokens, first: true, leading, partial: Vec::new() }
    }

    /// The text that is complete with this id: whole characters, and U+FFFD only for bytes that no later id could make
    /// part of one. Ids without a token contribute nothing.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_into(id, &mut text);
        text
    }

    pub(super) fn push_into(&mut self, id: u32, text: &mut String) {
        let tokenizer = self.tokenizer.clone();
        let pieces = tokenizer.pieces();
        if self.skip_special_tokens && pieces.is_special(id) {
            return;
        }
        let mut bytes = pieces.bytes(id);
        let mut opening = Vec::new();
        if self.first {
            let Some(token) = tokenizer.spelled(id) else { return };
            self.first = false;
            if !matches!(pieces.spelling, Spelling::ByteLevel | Spelling::Text { .. }) {
                pieces.spelling.append(&token, true, &mut opening);
                bytes = &opening;
            }
        }
        while self.leading > 0 && !bytes.is_empty() {
            let Some(rest) = bytes.strip_prefix(b" ") else {
                self.leading = 0;
                break;
            };
            self.leading -= 1;
            bytes = rest;
        }
        if self.partial.is_empty() {
            self.partial.extend_from_slice(complete(bytes, text));
        } else {
            self.partial.extend_from_slice(bytes);
            let joined = std::mem::take(&mut self.partial);
            self.partial.extend_from_slice(complete(&joined, text));
        }
    }

    /// What is left when no id follows: U+FFFD for a character that was never completed.
    pub fn finish(&mut self) -> String {
        if self.partial.is_empty() {
            String::new()
        } else {
            String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned()
        }
    }
}

/// Appends the characters of `bytes` to `text`, with U+FFFD for what is none (as `String::from_utf8_lossy` does), and
/// gives back the incomplete one at the end.
fn complete<'a>(mut bytes: &'a [u8], text: &mut String) -> &'a [u8] {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        bytes = &bytes[chunk.valid().len()..];
        let incomplete = std::str::from_utf8(bytes)
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none());
        if incomplete {
            return bytes;
        }
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            bytes = &bytes[chunk.invalid().len()..];
        }
    }
    bytes
}
