//! The whole answer as one JSON object, for clients that do not read streams.

use serde_json::{Map, Value, json};

use crate::assistant::event::{Card, Citation, End, Event, Plan, Start};

/// Collects an answer.
#[derive(Debug, Default)]
pub struct Whole {
    start: Option<Start>,
    plan: Plan,
    parts: Vec<Part>,
    sources: Vec<Citation>,
    metadata: Map<String, Value>,
    end: Option<End>,
}

#[derive(Debug)]
enum Part {
    Text(String),
    Card(Box<Card>),
}

impl Whole {
    /// Takes the next event.
    pub fn add(&mut self, event: Event) {
        match event {
            Event::Start(start) => self.start = Some(start),
            Event::Plan(plan) => self.plan = plan,
            Event::Text(text) => match self.parts.last_mut() {
                Some(Part::Text(before)) => before.push_str(&text),
                _ => self.parts.push(Part::Text(text)),
            },
            Event::Source(citation) => self.sources.push(citation),
            Event::Card(card) => {
                let known = self.parts.iter_mut().find_map(|part| match part {
                    Part::Card(known) if known.id == card.id => Some(known),
                    _ => None,
                });
                match known {
                    Some(known) => **known = card,
                    None => self.parts.push(Part::Card(Box::new(card))),
                }
            }
            Event::Metadata(metadata) => self.metadata = metadata,
            Event::End(end) => self.end = Some(end),
        }
    }

    /// How it ended, once it has.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The object: `id`, `sessionId`, `traceId`, `model`, `text`, `parts` in reading order, `sources`, `plan`, `metadata`.
    pub fn json(&self) -> Value {
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Card(_) => String::new(),
        };
        let part = |part: &Part| match part {
            Part::Text(text) => json!({ "type": "text", "text": text }),
            Part::Card(card) => json!({ "type": "card", "id": card.id, "card": card }),
        };
        let start = self.start.as_ref();
        json!({
            "id": start.map(|s| &s.message_id),
            "sessionId": start.map(|s| &s.thread_id),
            "traceId": start.map(|s| &s.trace_id),
            "model": start.map(|s| &s.model),
            "text": self.parts.iter().map(text).collect::<String>(),
            "parts": self.parts.iter().map(part).collect::<Vec<_>>(),
            "sources": self.sources,
            "plan": self.plan,
            "metadata": self.metadata,
        })
    }
}
