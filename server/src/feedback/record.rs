//! What is kept: an answer as the model read and wrote it, what shoppers made of it, and orders to forget.
//!
//! Records are JSON, so that a file can be read without this program. Fields are only ever added, with a default.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One entry of the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Record {
    /// An answer that was given.
    Answer(Box<Answer>),
    /// What somebody thought of it, or did with it.
    Vote(Vote),
    /// What was to be forgotten, and is.
    Forget(Forget),
}

/// Milliseconds since 1970, UTC.
pub type Millis = u64;

/// An answer with all that it was made of: enough to train on, and to tell why it was given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// When it ended.
    pub at: Millis,
    /// Its id, which votes name.
    pub message: String,
    /// The id of its trace, 32 hexadecimal digits.
    pub trace: String,
    /// The conversation, as [`Key::hash`](super::Key::hash) names it.
    pub session: String,
    /// The shopper, likewise; empty where unknown.
    pub user: String,
    /// Who had asked the server, likewise; empty where there is only one.
    pub tenant: String,
    /// The shopper's language, as the client gave it.
    pub locale: String,
    /// The question in the shopper's own words.
    pub question: String,
    /// Whether it replaced an answer to the same question that did not please.
    pub again: bool,
    /// The model's name.
    pub model: String,
    /// `temperature`, `top_p` and so on.
    pub sampler: Map<String, Value>,
    /// The messages that the model read, evidence included.
    pub prompt: Vec<Message>,
    /// SHA-256 of the chat template that rendered them, in hexadecimal; empty where unknown.
    pub template: String,
    /// What the model wrote, directives included.
    pub completion: String,
    /// The tokens that it wrote; empty where the text came from the cache of answers.
    pub token_ids: Vec<u32>,
    /// `stop`, `length` …
    pub finish: String,
    /// Whether the text is that of an earlier answer.
    pub cached: bool,
    /// The passages in the prompt.
    pub evidence: Vec<EvidenceDoc>,
    /// The sources that were asked and what became of them.
    pub plan: Value,
    /// The index's version.
    pub index: String,
    /// Milliseconds by stage.
    pub timings: Value,
}

/// A message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A passage that the model had read. Its text is in the prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvidenceDoc {
    /// Its number in the prompt.
    pub number: u32,
    /// Its id in the index.
    pub id: String,
    /// `review`, `qa`, `attribute` …
    pub source: String,
    /// SHA-256 of its text, the first 16 bytes in hexadecimal: whether the index still says the same.
    pub hash: String,
    /// Its place among what was retrieved, from 1.
    pub rank: u32,
    /// What retrieval gave it.
    pub score: f32,
}

/// A vote on a part of an answer, or what was observed of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vote {
    /// When it came.
    pub at: Millis,
    /// The answer's id.
    pub message: String,
    /// `answer`, `card:ID` or `sentence:N`.
    pub part: String,
    /// The shopper, as in [`Answer::user`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// The client's name for this request, under which it may repeat it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The vote; `None` where this only tells what was observed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Opinion>,
    /// Why.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub reasons: BTreeSet<Reason>,
    /// In the shopper's own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// What was observed.
    #[serde(skip_serializing_if = "Implicit::is_empty")]
    pub implicit: Implicit,
}

/// A vote's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opinion {
    /// Thumbs up.
    Like,
    /// Thumbs down.
    Dislike,
    /// A vote taken back.
    None,
}

impl Opinion {
    /// All of them.
    pub const ALL: [Opinion; 3] = [Opinion::Like, Opinion::Dislike, Opinion::None];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Opinion::Like => "like",
            Opinion::Dislike => "dislike",
            Opinion::None => "none",
        }
    }
}

/// Why somebody voted as they did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is not true.
    Wrong,
    /// Nothing that was cited says so.
    Unsupported,
    /// It does not answer the question.
    Irrelevant,
    /// It says too much.
    TooLong,
    /// It may do harm.
    Unsafe,
    /// Something else.
    Other,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 6] = [
        Reason::Wrong,
        Reason::Unsupported,
        Reason::Irrelevant,
        Reason::TooLong,
        Reason::Unsafe,
        Reason::Other,
    ];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Wrong => "wrong",
            Reason::Unsupported => "unsupported",
            Reason::Irrelevant => "irrelevant",
            Reason::TooLong => "too_long",
            Reason::Unsafe => "unsafe",
            Reason::Other => "other",
        }
    }
}

/// What was observed of an answer without anybody being asked. It only adds up: what was copied stays copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Implicit {
    /// Ids of cards and sources that were followed.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub clicked_refs: BTreeSet<String>,
    /// Another answer to the same question was asked for.
    #[serde(skip_serializing_if = "is_false")]
    pub regenerated: bool,
    /// Its text was copied.
    #[serde(skip_serializing_if = "is_false")]
    pub copied: bool,
    /// The longest that it was seen to be on the screen.
    #[serde(skip_serializing_if = "is_zero")]
    pub dwell_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Implicit {
    /// Ids that are kept of one part.
    pub const MOST_REFS: usize = 64;

    /// Whether nothing was observed.
    pub fn is_empty(&self) -> bool {
        *self == Implicit::default()
    }

    /// Adds what was observed since.
    pub fn add(&mut self, later: &Implicit) {
        for id in &later.clicked_refs {
            if self.clicked_refs.len() < Self::MOST_REFS {
                self.clicked_refs.insert(id.clone());
            }
        }
        self.regenerated |= later.regenerated;
        self.copied |= later.copied;
        self.dwell_ms = self.dwell_ms.max(later.dwell_ms);
    }
}

/// Whose records go.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// All of a shopper, by [`Answer::user`].
    User(String),
    /// All of a conversation, by [`Answer::session`].
    Session(String),
    /// One answer, by [`Answer::message`].
    Message(String),
}

/// Records that were there before it are gone, and votes on these answers are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forget {
    /// When it came.
    pub at: Millis,
    /// Whose.
    pub whose: Selector,
    /// Answers that went.
    pub messages: Vec<String>,
}

impl Record {
    /// When it came.
    pub fn at(&self) -> Millis {
        match self {
            Record::Answer(answer) => answer.at,
            Record::Vote(vote) => vote.at,
            Record::Forget(forget) => forget.at,
        }
    }
}
