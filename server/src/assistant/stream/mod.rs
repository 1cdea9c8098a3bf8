//! How an answer travels: one [`Event`] enum, and an encoder for each protocol that clients speak.

mod ag_ui;
mod ai_sdk;
mod whole;

use serde_json::Value;

use super::event::Event;

pub use ag_ui::AgUi;
pub use ai_sdk::{AI_SDK_HEADER, AiSdk};
pub use whole::Whole;

/// Writes events as the data of server-sent events.
pub trait Encoder: Send {
    /// The data of the events that this one becomes.
    fn encode(&mut self, event: &Event) -> Vec<String>;
}

fn json(value: &Value) -> String {
    value.to_string()
}
