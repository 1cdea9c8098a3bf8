//! Text to ids: the `tokenizers` crate's stages, run one by one.
//!
//! The stages are the crate's (added tokens, normaliser, pre-tokenizer, model, post-processor); they are called from
//! here so that two things can be put between them: the restoration of disguised text ([`super::guard`]) and
//! SentencePiece's own segmentation ([`super::spm`]).

use super::detokenizer::{Detokenizer, Entry, Pieces};
use super::guard::{Disguise, Markers};
use super::spm::Spm;
use super::template::SpecialTokens;
use super::{TextError, files, gguf};
use crate::Gguf;
use serde_json::{Map, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use tokenizers::{AddedToken, Model, OffsetType, PreTokenizer, Token};

/// Ids above this are refused: tables are as long as the largest id.
const LARGEST_ID: u32 = 1 << 24;

/// A tokenizer; clones share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    stages: tokenizers::Tokenizer,
    /// Takes the place of the crate's model where the file is a SentencePiece one.
    spm: Option<Spm>,
    pieces: Pieces,
    markers: Markers,
    special: SpecialTokens,
    affixes: Affixes,
}

/// The tokens around a text that is encoded with special tokens, where the files say more than the post-processor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Affixes {
    /// The beginning-of-sequence id, and whether it is put first; `None` leaves that to the post-processor.
    pub(super) bos: Option<u32>,
    pub(super) add_bos: Option<bool>,
    /// The same for the end.
    pub(super) eos: Option<u32>,
    pub(super) add_eos: Option<bool>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer of {} ids", self.vocab_size())
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// If a file cannot be read or is malformed, or asks for something that is not supported.
    pub fn from_directory(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let place = path.display().to_string();
        let Some(json) = files::text(dir, "tokenizer.json")? else {
            let source = std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "the directory has no tokenizer.json; save the model's fast tokenizer there (transformers: \
                 AutoTokenizer.from_pretrained(…).save_pretrained(…))",
            );
            return Err(TextError::Read { path, source });
        };
        // The crate's constructors index and unwrap here and there; a malformed file is refused, not fatal.
        let mut stages = catch_unwind(|| tokenizers::Tokenizer::from_bytes(json.as_bytes()))
            .map_err(|_| TextError::malformed(&place, "the tokenizers library cannot make sense of it"))?
            .map_err(|error| TextError::malformed(&place, error))?;
        stages.with_padding(None);
        stages.with_truncation(None).map_err(|error| TextError::malformed(&place, error))?;

        let config = files::object(dir, "tokenizer_config.json")?.unwrap_or_default();
        let map = files::object(dir, "special_tokens_map.json")?.unwrap_or_default();
        let special = SpecialTokens::from_objects(&config, &map);
        let flag = |key| config.get(key).and_then(Value::as_bool);
        let id = |token: &Option<String>| token.as_ref().and_then(|token| stages.token_to_id(token));
        let affixes = Affixes {
            bos: id(&special.bos_token),
            add_bos: flag("add_bos_token"),
            eos: id(&special.eos_token),
            add_eos: flag("add_eos_token"),
        };
        Self::new(stages, None, special, affixes, &place)
    }

    /// Builds the tokenizer that a GGUF file describes under `tokenizer.ggml`.
    ///
    /// # Errors
    /// If a key is missing or malformed, or names a tokenizer or pre-tokenizer that is not supported.
    pub fn from_gguf(metadata: &Gguf) -> Result<Self, TextError> {
        gguf::tokenizer(metadata)
    }

    /// Registers the named special tokens and prepares the tables. `place` is where the tokenizer came from.
    pub(super) fn new(
        mut stages: tokenizers::Tokenizer,
        spm: Option<Spm>,
        special: SpecialTokens,
        affixes: Affixes,
        place: &str,
    ) -> Result<Self, TextError> {
        // `<s>` may be named as special in the configuration and be an ordinary entry of the vocabulary.
        let unmarked = special.all().filter(|token| {
            stages.token_to_id(token).is_some() && !stages.get_added_vocabulary().is_special_token(token)
        });
        let unmarked: Vec<_> = unmarked.map(|token| AddedToken::from(token, true)).collect();
        stages.add_special_tokens(unmarked).map_err(|error| TextError::malformed(place, error))?;

        let ids = stages.get_vocab(true);
        let largest = ids.values().copied().max().ok_or_else(|| TextError::malformed(place, "no tokens"))?;
        if largest > LARGEST_ID {
            return Err(TextError::malformed(
                place,
                format!("id {largest} exceeds the {LARGEST_ID} allowed"),
            ));
        }
        let added = stages.get_added_vocabulary();
        let decoders = added.get_added_tokens_decoder();
        let tokens = (0..=largest).map(|id| {
            let string = added.simple_id_to_token(id).or_else(|| stages.get_model().id_to_token(id))?;
            let added = decoders.get(&id);
            let written = added.is_some_and(|token| token.content == string);
            Some(Entry { string, written, special: added.is_some_and(|token| token.special) })
        });
        let pieces = Pieces::new(stages.get_decoder(), tokens, place)?;
        let mut added: Vec<_> = decoders.values().collect();
        added.sort_by(|a, b| a.content.cmp(&b.content));
        let markers = Markers::new(added.iter().map(|token| (token.content.as_str(), token.special)));
        Ok(Self(Arc::new(Inner { stages, spm, pieces, markers, special, affixes })))
    }

    /// The ids of a text. Special tokens written in it are recognised. With `add_special_tokens` the text is framed as
    /// the model was trained to see one, most often by a beginning-of-sequence token, which is never doubled.
    ///
    /// # Errors
    /// If the tokenizer's patterns give up on this text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.encode_disguised(text, None, add_special_tokens)
    }

    /// The ids of a text in which special tokens are nothing special: what spells one is encoded as ordinary text, so
    /// no id of the result is a special one.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut disguise = Disguise::new(&self.0.markers, [text])
            .ok_or_else(|| TextError::Encode("it uses every private-use character".to_owned()))?;
        match disguise.apply(&self.0.markers, text, false, None) {
            Some(disguised) => self.encode_disguised(&disguised, Some(&disguise), false),
            None => self.encode(text, false),
        }
    }

    /// As [`encode`](Self::encode), for a text in which parts are disguised so that they match no added token.
    pub(super) fn encode_disguised(
        &self,
        text: &str,
        disguise: Option<&Disguise>,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, TextError> {
        let failed = |error: tokenizers::Error| TextError::Encode(error.to_string());
        // A pattern that panics on some text must cost that request only.
        let ids = catch_unwind(AssertUnwindSafe(|| self.stages(text, disguise, add_special_tokens)));
        let ids = ids.map_err(|_| TextError::Encode("the tokenizers library failed on it".to_owned()))?;
        ids.map_err(failed)
    }

    fn stages(
        &self,
        text: &str,
        disguise: Option<&Disguise>,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, tokenizers::Error> {
        let Inner { stages, spm, .. } = &*self.0;
        let mut split = stages.get_added_vocabulary().extract_and_normalize(stages.get_normalizer(), text);
        if let Some(disguise) = disguise {
            split.normalize(|part| {
                part.map(|char| disguise.restore(char));
                Ok(())
            })?;
        }
        if let Some(pre_tokenizer) = stages.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut split)?;
        }
        let segment = |text: &str| match spm {
            Some(spm) => Ok(spm.tokenize(text)),
            None => stages.get_model().tokenize(text),
        };
        split.tokenize(|part| match disguise {
            Some(_) => self.without_special(part.get(), &segment),
            None => segment(part.get()),
        })?;
        let encoding = split.into_encoding(None, 0, OffsetType::None)?;
        if !add_special_tokens {
            return Ok(encoding.get_ids().to_vec());
        }
        let plain = encoding.get_ids().to_vec();
        let framed = stages.post_process(encoding, None, true)?.get_ids().to_vec();
        Ok(self.0.affixes.apply(&plain, framed))
    }

    /// Some vocabularies reach special tokens by segmentation too, without the added tokens: a word-level one has them
    /// as words, and merges may lead to one. Such a token is segmented again, character by character.
    fn without_special(
        &self,
        text: &str,
        segment: &impl Fn(&str) -> Result<Vec<Token>, tokenizers::Error>,
    ) -> Result<Vec<Token>, tokenizers::Error> {
        // What stands for unknown text may be special as well; it spells something else than that text.
        let forged = |token: &Token, text: &str| {
            self.is_special(token.id)
                && self.0.stages.get_model().id_to_token(token.id).as_deref() == Some(text)
        };
        let mut tokens = Vec::new();
        for token in segment(text)? {
            let own = text.get(token.offsets.0..token.offsets.1).unwrap_or_default();
            if !forged(&token, own) {
                tokens.push(token);
                continue;
            }
            for char in own.chars() {
                let mut bytes = [0; 4];
                let char = &*char.encode_utf8(&mut bytes);
                tokens.extend(segment(char)?.into_iter().filter(|token| !forged(token, char)));
            }
        }
        Ok(tokens)
    }

    /// The text of these ids. Ids without a token contribute nothing, bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special_tokens);
        let mut text = String::new();
        for &id in ids {
            detokenizer.push_into(id, &mut text);
        }
        text.push_str(&detokenizer.finish());
        text
    }

    /// Decodes ids that come one by one.
    pub fn detokenizer(&self, skip_special_tokens: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special_tokens)
    }

    /// What an id adds to a text, as one shows it beside a log-probability: U+FFFD stands for the bytes of a character
    /// that is not whole. `None` if there is no such token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.spelled(id)?;
        Some(String::from_utf8_lossy(self.0.pieces.bytes(id)).into_owned())
    }

    /// The bytes an id adds in the middle of a text; none if there is no such token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.0.pieces.bytes(id).to_vec()
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.stages.token_to_id(token)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.0.pieces.len()
    }

    /// Whether [`decode`](Self::decode) may skip this id.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.pieces.is_special(id)
    }

    /// The tokens with a role of their own, as chat templates name them.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.0.special
    }

    /// The beginning-of-sequence id, if the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.0.affixes.bos
    }

    /// The end-of-sequence id, if the model has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.0.affixes.eos
    }

    pub(super) fn pieces(&self) -> &Pieces {
        &self.0.pieces
    }

    pub(super) fn markers(&self) -> &Markers {
        &self.0.markers
    }

    /// The token as the decoder takes it.
    pub(super) fn spelled(&self, id: u32) -> Option<String> {
        let stages = &self.0.stages;
        stages.get_added_vocabulary().simple_id_to_token(id).or_else(|| stages.get_model().id_to_token(id))
    }
}

impl Affixes {
    /// `framed` is what the post-processor made of `plain`.
    fn apply(self, plain: &[u32], mut framed: Vec<u32>) -> Vec<u32> {
        if let (Some(bos), Some(add)) = (self.bos, self.add_bos) {
            match (framed.first() == Some(&bos), plain.first() == Some(&bos)) {
                (false, _) if add => framed.insert(0, bos),
                (true, false) if !add => drop(framed.remove(0)),
                _ => {}
            }
        }
        if let (Some(eos), Some(add)) = (self.eos, self.add_eos) {
            match (framed.last() == Some(&eos), plain.last() == Some(&eos)) {
                (false, _) if add => framed.push(eos),
                (true, false) if !add => drop(framed.pop()),
                _ => {}
            }
        }
        framed
    }
}

impl SpecialTokens {
    pub(super) fn from_objects(config: &Map<String, Value>, map: &Map<String, Value>) -> Self {
        let token = |key| files::token(config, key).or_else(|| files::token(map, key));
        Self {
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            unk_token: token("unk_token"),
            pad_token: token("pad_token"),
        }
    }
}
