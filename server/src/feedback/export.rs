//! Answers and votes as data to train on, one JSON object a line, in the columns that trainers expect:
//!
//! * `kto`: `prompt`, `completion`, `label`; `dpo`: `prompt`, `chosen`, `rejected`; `sft`: `prompt`, `completion`;
//!   `grpo`: `prompt` and columns for reward functions (TRL's dataset formats, conversational).
//! * `bedrock`: `messages`, `reference_answer` and more (reinforcement fine-tuning of Amazon Bedrock).
//! * `langfuse`: scores for `POST /api/public/scores`.
//!
//! What identifies people is taken out of all text. Where that changes what the model wrote, its token ids are left
//! out, since they spell the same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::FeedbackError;
use super::record::{Answer, Message, Millis, Opinion};
use super::store::{Damage, Records};
use super::votes::PartState;
use crate::assistant::index::clean::redact;
use crate::assistant::session::normalise;

/// What an export is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// TRL's `KTOTrainer`: one row for each answer that was liked or disliked.
    Kto,
    /// TRL's `DPOTrainer`: a liked answer and one that was disliked or replaced, to the same prompt.
    Dpo,
    /// TRL's `GRPOTrainer`: each prompt once.
    Grpo,
    /// TRL's `SFTTrainer`: the answers that were liked.
    Sft,
    /// Amazon Bedrock's reinforcement fine-tuning: the answers that were liked as references.
    Bedrock,
    /// Langfuse's scores: one for each vote.
    Langfuse,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 6] =
        [Format::Kto, Format::Dpo, Format::Grpo, Format::Sft, Format::Bedrock, Format::Langfuse];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Kto => "kto",
            Format::Dpo => "dpo",
            Format::Grpo => "grpo",
            Format::Sft => "sft",
            Format::Bedrock => "bedrock",
            Format::Langfuse => "langfuse",
        }
    }

    /// By its name.
    pub fn from_name(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.name() == name)
    }
}

/// An answer and what was made of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The answer.
    pub answer: Answer,
    /// By part.
    pub parts: BTreeMap<String, PartState>,
    /// Whether another answer was asked for.
    pub replaced: bool,
}

impl Entry {
    /// What was thought of the answer as a whole.
    pub fn opinion(&self) -> Opinion {
        self.parts.get("answer").map_or(Opinion::None, |part| part.value)
    }
}

/// What came of reading a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that were written, or entries that were read.
    pub rows: usize,
    /// Answers with votes whose own record is not there.
    pub orphans: usize,
    /// What could not be read.
    pub damage: Vec<Damage>,
}

/// Reads the answers that somebody voted on or had replaced, in the order in which they were given. The store may be in
/// use.
///
/// # Errors
/// [`FeedbackError`] where files cannot be read, or what `each` says.
pub fn entries(
    folder: &Path,
    mut each: impl FnMut(Entry) -> Result<(), FeedbackError>,
) -> Result<Report, FeedbackError> {
    let records = Records::open(folder)?;
    let mut voted: HashMap<String, BTreeMap<String, PartState>> = HashMap::new();
    for vote in &records.votes {
        voted.entry(vote.message.clone()).or_default().entry(vote.part.clone()).or_default().add(vote);
    }
    let mut replaced: HashSet<String> = HashSet::new();
    let mut last: HashMap<(String, String), String> = HashMap::new();
    let any = |_: &str| true;
    records.answers::<FeedbackError>(any, |answer| {
        let conversation = (answer.session, normalise(&answer.question));
        if let Some(before) = last.insert(conversation, answer.message)
            && answer.again
        {
            replaced.insert(before);
        }
        Ok(())
    })?;
    let regenerated =
        |(_, parts): &(&String, &BTreeMap<String, PartState>)| parts.values().any(|p| p.implicit.regenerated);
    replaced.extend(voted.iter().filter(regenerated).map(|(message, _)| message.clone()));

    let (mut seen, mut rows) = (HashSet::new(), 0);
    let wanted = |message: &str| voted.contains_key(message) || replaced.contains(message);
    records.answers::<FeedbackError>(wanted, |answer| {
        // One that was written twice, since the first time was thought to have failed, counts once.
        if !seen.insert(answer.message.clone()) {
            return Ok(());
        }
        rows += 1;
        let parts = voted.get(&answer.message).cloned().unwrap_or_default();
        let replaced = replaced.contains(&answer.message);
        each(Entry { answer, parts, replaced })
    })?;
    let orphans = voted.keys().filter(|message| !seen.contains(*message)).count();
    Ok(Report { rows, orphans, damage: records.damage })
}

/// Writes an export. With `details` each row has one more column, `millrace`, of an object with the token ids, the
/// evidence and where it comes from; trainers ignore it or can be told to.
///
/// # Errors
/// Where the store cannot be read or `out` cannot be written.
pub fn export(
    folder: &Path,
    format: Format,
    details: bool,
    out: &mut dyn Write,
) -> Result<Report, FeedbackError> {
    let (mut writer, mut collected) = (Rows { out, details, rows: 0 }, Vec::new());
    let mut report = entries(folder, |entry| match format {
        Format::Kto => match entry.opinion() {
            Opinion::None => Ok(()),
            opinion => {
                let text = Clean::of(&entry.answer);
                let label = opinion == Opinion::Like;
                let row = json!({ "prompt": text.prompt, "completion": text.completion(), "label": label });
                writer.row(row, &[(&entry, &text)])
            }
        },
        Format::Sft if entry.opinion() == Opinion::Like => {
            let text = Clean::of(&entry.answer);
            let row = json!({ "prompt": text.prompt, "completion": text.completion() });
            writer.row(row, &[(&entry, &text)])
        }
        Format::Bedrock if entry.opinion() == Opinion::Like => {
            let text = Clean::of(&entry.answer);
            let evidence: Vec<&str> = entry.answer.evidence.iter().map(|doc| doc.id.as_str()).collect();
            let row = json!({
                "messages": text.prompt, "reference_answer": text.answer, "message_id": entry.answer.message,
                "evidence_ids": evidence,
            });
            writer.row(row, &[(&entry, &text)])
        }
        Format::Langfuse => writer.scores(&entry),
        Format::Dpo | Format::Grpo => {
            collected.push(entry);
            Ok(())
        }
        Format::Sft | Format::Bedrock => Ok(()),
    })?;
    match format {
        Format::Dpo => pairs(&mut writer, &collected)?,
        Format::Grpo => prompts(&mut writer, &collected)?,
        _ => {}
    }
    writer.out.flush()?;
    report.rows = writer.rows;
    Ok(report)
}

/// What can be read of an answer without knowing whom it was for.
struct Clean {
    prompt: Vec<Value>,
    answer: String,
    token_ids: Vec<u32>,
}

impl Clean {
    fn of(answer: &Answer) -> Clean {
        let text = redact(&answer.completion);
        let token_ids = if text == answer.completion { answer.token_ids.clone() } else { Vec::new() };
        let message = |m: &Message| json!({ "role": m.role, "content": redact(&m.content) });
        Clean { prompt: answer.prompt.iter().map(message).collect(), answer: text, token_ids }
    }

    fn completion(&self) -> Value {
        json!([{ "role": "assistant", "content": self.answer }])
    }
}

struct Rows<'a> {
    out: &'a mut dyn Write,
    details: bool,
    rows: usize,
}

impl Rows<'_> {
    fn row(&mut self, mut row: Value, of: &[(&Entry, &Clean)]) -> Result<(), FeedbackError> {
        if self.details {
            let mut all: Vec<Value> = of.iter().map(|(entry, text)| details(entry, text)).collect();
            row["millrace"] = match all.len() {
                1 => all.remove(0),
                _ => json!({ "chosen": all.first(), "rejected": all.last() }),
            };
        }
        serde_json::to_writer(&mut *self.out, &row).map_err(io::Error::from)?;
        self.out.write_all(b"\n")?;
        self.rows += 1;
        Ok(())
    }

    fn scores(&mut self, entry: &Entry) -> Result<(), FeedbackError> {
        let text = Clean { prompt: Vec::new(), answer: String::new(), token_ids: Vec::new() };
        for (part, state) in &entry.parts {
            if state.value == Opinion::None {
                continue;
            }
            let mut row = json!({
                // The same vote has the same id, so that it can be sent twice.
                "id": format!("{}:{part}", entry.answer.message),
                "traceId": entry.answer.trace,
                "name": "user_feedback",
                "value": u8::from(state.value == Opinion::Like),
                "dataType": "BOOLEAN",
                "metadata": {
                    "message_id": entry.answer.message, "part": part, "reasons": state.reasons,
                    "model": entry.answer.model, "at": state.at,
                },
            });
            if let Some(comment) = &state.comment {
                row["comment"] = redact(comment).into();
            }
            let details = std::mem::take(&mut self.details);
            let written = self.row(row, &[(entry, &text)]);
            self.details = details;
            written?;
        }
        Ok(())
    }
}

/// Always the same fields with the same types, as columns want.
fn details(entry: &Entry, text: &Clean) -> Value {
    let answer = &entry.answer;
    let part = entry.parts.get("answer").cloned().unwrap_or_default();
    json!({
        "message_id": answer.message, "trace_id": answer.trace, "session": answer.session, "user": answer.user,
        "at": answer.at, "locale": answer.locale, "model": answer.model, "template": answer.template,
        "index": answer.index, "sampler": answer.sampler, "token_ids": text.token_ids, "cached": answer.cached,
        "evidence": answer.evidence, "plan": answer.plan, "value": part.value, "reasons": part.reasons,
        "comment": part.comment.as_deref().map(redact).unwrap_or_default(), "replaced": entry.replaced,
        "copied": part.implicit.copied, "clicked_refs": part.implicit.clicked_refs,
        "dwell_ms": part.implicit.dwell_ms,
    })
}

/// What makes two prompts the same.
fn fingerprint(prompt: &[Message]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for text in prompt.iter().flat_map(|message| [&message.role, &message.content]) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().into()
}

/// By prompt, in the order in which prompts came first.
fn by_prompt(entries: &[Entry]) -> Vec<Vec<&Entry>> {
    let mut places: HashMap<[u8; 32], usize> = HashMap::new();
    let mut groups: Vec<Vec<&Entry>> = Vec::new();
    for entry in entries.iter().filter(|entry| !entry.answer.prompt.is_empty()) {
        let place = *places.entry(fingerprint(&entry.answer.prompt)).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(entry),
            None => groups.push(vec![entry]),
        }
    }
    groups
}

/// Each answer that was disliked, or had replaced without being liked, beside each that was liked.
fn pairs(writer: &mut Rows<'_>, entries: &[Entry]) -> Result<(), FeedbackError> {
    for group in by_prompt(entries) {
        let liked = group.iter().filter(|entry| entry.opinion() == Opinion::Like);
        let poor = |entry: &&&Entry| match entry.opinion() {
            Opinion::Like => false,
            Opinion::Dislike => true,
            Opinion::None => entry.replaced,
        };
        let rejected: Vec<_> = group.iter().filter(poor).collect();
        let mut written = HashSet::new();
        for chosen in liked {
            for rejected in &rejected {
                let (good, bad) = (Clean::of(&chosen.answer), Clean::of(&rejected.answer));
                // The same words, liked here and disliked there, tell nothing; nor does the same pair twice.
                if good.answer == bad.answer || !written.insert((good.answer.clone(), bad.answer.clone())) {
                    continue;
                }
                let row = json!({
                    "prompt": good.prompt, "chosen": good.completion(), "rejected": bad.completion(),
                });
                writer.row(row, &[(chosen, &good), (rejected, &bad)])?;
            }
        }
    }
    Ok(())
}

/// Each prompt once, with the answer that was thought best of.
fn prompts(writer: &mut Rows<'_>, entries: &[Entry]) -> Result<(), FeedbackError> {
    for group in by_prompt(entries) {
        let rank = |entry: &&&Entry| match entry.opinion() {
            Opinion::Like => 2,
            Opinion::None => 1,
            Opinion::Dislike => 0,
        };
        let Some(best) = group.iter().max_by_key(rank) else { continue };
        let text = Clean::of(&best.answer);
        let reasons: std::collections::BTreeSet<_> = group
            .iter()
            .filter_map(|entry| entry.parts.get("answer"))
            .flat_map(|part| &part.reasons)
            .collect();
        let count = |opinion| group.iter().filter(|entry| entry.opinion() == opinion).count();
        // None of these may be called `prompts`, `completions` or `completion_ids`: those are the trainer's own.
        let row = json!({
            "prompt": text.prompt, "reference": text.answer, "reference_ids": text.token_ids,
            "reference_value": best.opinion(), "likes": count(Opinion::Like), "dislikes": count(Opinion::Dislike),
            "reasons": reasons, "evidence": best.answer.evidence, "question": redact(&best.answer.question),
            "locale": best.answer.locale,
        });
        writer.row(row, &[(best, &text)])?;
    }
    Ok(())
}

/// A text without what identifies people.
pub fn redacted(text: &str) -> String {
    redact(text)
}

/// When something was, as UTC in ISO 8601.
pub fn iso(at: Millis) -> String {
    crate::assistant::event::timestamp(std::time::UNIX_EPOCH + std::time::Duration::from_millis(at))
}
