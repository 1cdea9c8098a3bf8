//! A model small enough to reason about: each byte is a token, and the text it writes is a script known in advance.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_engine::{KvSpec, Logits, RunError, Runner, Step, StepLimits, Want};
use millrace_models::text::{ChatTemplate, GenerationDefaults, SpecialTokens, Tokenizer};
use serde_json::json;

pub(crate) const BOS: u32 = 256;
pub(crate) const EOS: u32 = 257;
pub(crate) const VOCAB: usize = 260;

/// What the model writes, over and over: the token at position `p` is followed by the script's byte `p` modulo its
/// length. With two-, three- and four-byte characters, so that tokens end inside them.
pub(crate) const SCRIPT: &str =
    "The quick brown fox says 'grüß göt', then 日本 and 🦀🦀; and jumps over it. ";

/// The script's text from the token behind a prompt of `start` tokens.
pub(crate) fn script(start: usize, tokens: usize) -> String {
    let bytes: Vec<u8> = SCRIPT.bytes().cycle().skip((start - 1) % SCRIPT.len()).take(tokens).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Strings with a special meaning when they appear in a prompt.
pub(crate) const FAIL: &str = "\u{1}fail";
pub(crate) const DIE: &str = "\u{1}die";
/// The model ends its answer as soon as it can.
pub(crate) const QUIET: &str = "\u{1}quiet";
/// At the end of a shopper's question: the model does nothing but repeat its evidence, word for word.
pub(crate) const COPY: &str = "\u{1}copy";

/// What a test sees and changes while the engine runs.
#[derive(Default)]
pub(crate) struct Knobs {
    pub(crate) step_micros: AtomicU64,
    pub(crate) steps: AtomicUsize,
    /// Steps wait while this is set.
    pub(crate) paused: AtomicBool,
}

/// A backend that remembers its KV cache as plain tokens, so every step shows whether the engine gave it the right
/// blocks: a slot that was never written, or was written for another position, panics.
pub(crate) struct ByteRunner {
    spec: KvSpec,
    slots: Vec<Option<(u32, u32)>>,
    result: Mutex<Result<Vec<f32>, RunError>>,
    knobs: Arc<Knobs>,
}

impl ByteRunner {
    pub(crate) fn new(blocks: usize, knobs: Arc<Knobs>) -> Self {
        let spec = KvSpec { block_size: 16, blocks, bytes: blocks * 16 * 8 };
        ByteRunner { spec, slots: vec![None; blocks * 16], result: Mutex::new(Ok(Vec::new())), knobs }
    }

    fn run(&mut self, step: &Step) -> Result<Vec<f32>, RunError> {
        let mut values = Vec::new();
        for row in &step.rows {
            let blocks = step.blocks_of(row);
            let slot =
                |position: u32| blocks[position as usize / 16].0 as usize * 16 + position as usize % 16;
            for (i, &token) in step.tokens_of(row).iter().enumerate() {
                assert!((token as usize) < VOCAB, "token {token} reached the backend");
                let position = row.position + i as u32;
                self.slots[slot(position)] = Some((position, token));
            }
            let context: Vec<u8> = (0..row.position + row.count)
                .map(|p| {
                    let (at, token) = self.slots[slot(p)].expect("a slot that was never written");
                    assert_eq!(at, p, "a slot of another position");
                    token.min(255) as u8
                })
                .collect();
            let has = |text: &str| context.windows(text.len()).any(|w| w == text.as_bytes());
            if has(DIE) {
                return Err(RunError::Fatal("told to die".into()));
            }
            if has(FAIL) {
                return Err(RunError::Step("told to fail".into()));
            }
            let first = match row.want {
                Want::Nothing => continue,
                Want::Last => row.count - 1,
                Want::All => 0,
            };
            for i in first..row.count {
                let length = (row.position + i + 1) as usize;
                values.extend(logits(&context[..length], has(QUIET)));
            }
        }
        Ok(values)
    }
}

/// The scripted token stands out, by so little that sampling at temperature 1 often takes another one.
fn logits(context: &[u8], quiet: bool) -> Vec<f32> {
    let mut state = context
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut row: Vec<f32> = (0..VOCAB).map(|_| noise()).collect();
    let next = match copied(context) {
        Some(next) => next,
        None if quiet => EOS as usize,
        None => SCRIPT.as_bytes()[(context.len() - 1) % SCRIPT.len()].into(),
    };
    row[next] += 4.0;
    row
}

/// What comes next where the evidence is to be repeated.
fn copied(context: &[u8]) -> Option<usize> {
    let find = |text: &str| context.windows(text.len()).position(|w| w == text.as_bytes());
    let asked = find(COPY)?;
    let begin = find("[user]Evidence ")? + "[user]".len();
    let written = context.len().checked_sub(asked + COPY.len() + "\n[assistant]".len())?;
    Some(context[begin..asked].get(written).map_or(EOS as usize, |&byte| byte.into()))
}

impl Runner for ByteRunner {
    fn kv(&self) -> KvSpec {
        self.spec
    }
    fn limits(&self) -> StepLimits {
        StepLimits { tokens: 256, rows: 64, logits: 256 }
    }
    fn vocab(&self) -> usize {
        VOCAB
    }
    fn submit(&mut self, step: &Step) -> Result<(), RunError> {
        while self.knobs.paused.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(self.knobs.step_micros.load(Ordering::Relaxed)));
        let result = self.run(step);
        *self.result.get_mut().unwrap() = result;
        self.knobs.steps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn wait(&mut self, logits: &mut Logits) -> Result<(), RunError> {
        (logits.cut, logits.columns) = (None, VOCAB);
        logits.values.clear();
        logits.values.extend_from_slice(self.result.get_mut().unwrap().as_ref().map_err(Clone::clone)?);
        Ok(())
    }
}

/// How a byte-level vocabulary spells a byte (GPT-2's table: printable ones as themselves, the others from U+0100 on).
fn spelling(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte.into();
    }
    let index = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + index).unwrap()
}

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if shout is defined and shout %}!{% endif %}\
    {% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{{ '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}[assistant]{% endif %}";

/// The tokenizer and the template of the model.
pub(crate) fn text() -> (Tokenizer, ChatTemplate, GenerationDefaults) {
    let vocab: HashMap<String, u32> = (0..=255u8).map(|b| (spelling(b).to_string(), u32::from(b))).collect();
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true })
    };
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let file = json!({
        "version": "1.0",
        "added_tokens": [special(BOS, "<s>"), special(EOS, "</s>"), special(258, "<|x|>"), special(259, "<|y|>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [BOS], "tokens": ["<s>"] } },
        },
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": false, "fuse_unk": false },
    });
    let dir = TempDir::new("tokenizer");
    std::fs::write(dir.0.join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = Tokenizer::from_directory(&dir.0).unwrap();
    let special =
        SpecialTokens { bos_token: Some("<s>".into()), eos_token: Some("</s>".into()), ..Default::default() };
    let template = ChatTemplate::new(TEMPLATE, special).unwrap();
    let defaults = GenerationDefaults { eos_token_ids: vec![EOS], ..Default::default() };
    (tokenizer, template, defaults)
}

/// A directory that is gone afterwards.
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("millrace-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
