//! What an answer consists of, before any protocol. An answer is one [`Start`], then plans, text, sources and cards in
//! the order in which a reader meets them, then one [`Event::Metadata`] and one [`End`].

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};

/// One thing that happens in an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The first of all.
    Start(Start),
    /// What is asked for evidence; each replaces the one before.
    Plan(Plan),
    /// Prose, to be appended.
    Text(String),
    /// Evidence that the text begins to cite as `[n]`; comes once for each `n`, before the text that cites it.
    Source(Citation),
    /// A card: new where its id is, else it replaces the one of that id.
    Card(Card),
    /// Usage, grounding, timings; once, after the last card.
    Metadata(Map<String, Value>),
    /// Nothing follows.
    End(End),
}

/// Whose answer it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The answer's id.
    pub message_id: String,
    /// The conversation's id.
    pub thread_id: String,
    /// The run's id, where the client has given one.
    pub run_id: String,
    /// 32 hexadecimal digits, as in W3C's trace context.
    pub trace_id: String,
    /// The model's name.
    pub model: String,
}

/// What is asked for evidence.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// The sources, in the order of [`Source::ALL`](super::Source::ALL).
    pub sources: Vec<PlannedSource>,
}

/// A source of evidence and what became of asking it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedSource {
    /// Its name.
    pub id: String,
    /// What became of it.
    pub state: SourceState,
    /// Passages that it gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passages: Option<usize>,
}

/// What became of asking a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// It was asked.
    Running,
    /// It answered in time.
    Ready,
    /// It did not answer in time, and the answer goes without it.
    Late,
    /// It answered with an error.
    Failed,
}

/// A piece of evidence that the answer cites.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Citation {
    /// As in the text: `[1]`.
    pub number: u32,
    /// `review`, `qa`, `attribute`, …
    pub source: String,
    /// The passage's id in the index.
    pub doc_id: String,
    /// The product it speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// What to call it.
    pub title: String,
    /// What it says, word for word.
    pub quote: String,
}

/// Something to be shown other than prose.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Card {
    /// Unique in the answer.
    #[serde(skip)]
    pub id: String,
    /// The version of this shape.
    pub v: u8,
    /// Cards are numbered from 1 in the order of the text.
    pub slot: u32,
    /// Counts up with every change.
    pub rev: u32,
    /// What it shows.
    #[serde(flatten)]
    pub body: CardBody,
    /// How the model wants it shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// How far its data is.
    pub state: State,
    /// Milliseconds after which it is certain to be final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// When its live data was true, in ISO 8601.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<String>,
    /// Why it is unavailable or stale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<CardError>,
}

/// What a card shows. Products are in UCP's shape, money in minor units with its currency.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CardBody {
    /// One product.
    Product {
        /// Which one.
        r#ref: Ref,
        /// What is known of it up to now.
        #[serde(skip_serializing_if = "Map::is_empty")]
        product: Map<String, Value>,
    },
    /// Several products.
    ProductList {
        /// In the order of the text.
        items: Vec<Item>,
    },
    /// Products side by side.
    Comparison {
        /// The products.
        columns: Vec<Item>,
        /// What they are compared by.
        rows: Vec<ComparisonRow>,
    },
    /// What customers say, counted in code.
    ReviewSummary {
        /// Of which product.
        r#ref: Ref,
        /// `rating`, `count`, `histogram`, `aspects`, `quotes`.
        #[serde(flatten)]
        summary: Map<String, Value>,
    },
    /// A way to a page of the shop.
    Navigation {
        /// To which product.
        r#ref: Ref,
        /// What to call it.
        #[serde(skip_serializing_if = "Option::is_none")]
        label: Option<String>,
        /// A relative or allowed address.
        #[serde(skip_serializing_if = "Option::is_none")]
        href: Option<String>,
    },
    /// Where an order is.
    OrderStatus {
        /// Which one, where known.
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<Ref>,
        /// What the shop says of it.
        #[serde(skip_serializing_if = "Map::is_empty")]
        order: Map<String, Value>,
    },
    /// What the shopper may want to ask next.
    SuggestedQuestions {
        /// The questions.
        questions: Vec<String>,
    },
}

/// What a card stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ref {
    /// `catalog` or `orders`.
    pub source: &'static str,
    /// Its id there.
    pub id: String,
}

/// A product among several.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// Which one.
    pub r#ref: Ref,
    /// How far its data is.
    pub state: State,
    /// What is known of it up to now.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub product: Map<String, Value>,
}

/// A line of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparisonRow {
    /// What is compared.
    pub attr: String,
    /// One for each column; null where it is not known.
    pub values: Vec<Value>,
}

/// How a card's directive wants it shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One line.
    Compact,
    /// With picture and details.
    Full,
    /// One below the other.
    List,
    /// Side by side, to be scrolled.
    Carousel,
    /// Lines and columns.
    Table,
}

impl Layout {
    /// The layout of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "compact" => Some(Layout::Compact),
            "full" => Some(Layout::Full),
            "list" => Some(Layout::List),
            "carousel" => Some(Layout::Carousel),
            "table" => Some(Layout::Table),
            _ => None,
        }
    }
}

/// How far a card's data is. A card only ever moves to the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing is known.
    Pending,
    /// Something is missing that may still come.
    Partial,
    /// All is there, and current.
    Ready,
    /// All is there, but live data is older than it should be: see `asOf`.
    Stale,
    /// Live data could not be had: see `error`.
    Unavailable,
}

impl State {
    /// Whether the card does not change any more.
    pub fn is_final(self) -> bool {
        self >= State::Ready
    }
}

/// Why live data is missing or old.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CardError {
    /// `timeout`, `unreachable`, `refused`, `not_found`, `overloaded`, `aborted`, `not_allowed`, `invalid`.
    pub code: &'static str,
    /// Which source.
    pub source: String,
}

/// How an answer ends.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// It is complete.
    Finished,
    /// It could not be completed.
    Failed {
        /// For machines.
        code: String,
        /// For people; nothing of the inside.
        message: String,
    },
    /// It was stopped.
    Aborted,
}

/// A moment in ISO 8601, in UTC, to the second. By the algorithm of Howard Hinnant's `civil_from_days`.
pub fn timestamp(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months are counted from March, so that the leap day is the last of the year.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timestamps() {
        // As `date -u -d @SECONDS` prints them.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
