//! AG-UI 1.0. Cards are activities: a snapshot where one appears, a JSON Patch for each change.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Encoder, json};
use crate::assistant::event::{End, Event};

/// The encoder.
#[derive(Debug, Default)]
pub struct AgUi {
    message: String,
    thread: String,
    run: String,
    texts: u32,
    in_text: bool,
    in_step: bool,
    cards: HashMap<String, Map<String, Value>>,
}

impl AgUi {
    fn text_id(&self) -> String {
        format!("{}_t{}", self.message, self.texts)
    }

    fn step(&mut self, out: &mut Vec<Value>) {
        if !self.in_step {
            self.in_step = true;
            out.push(json!({ "type": "STEP_STARTED", "stepName": "generate" }));
        }
    }

    fn end_text(&mut self, out: &mut Vec<Value>) {
        if self.in_text {
            self.in_text = false;
            out.push(json!({ "type": "TEXT_MESSAGE_END", "messageId": self.text_id() }));
        }
    }

    fn end_step(&mut self, out: &mut Vec<Value>) {
        self.end_text(out);
        if self.in_step {
            self.in_step = false;
            out.push(json!({ "type": "STEP_FINISHED", "stepName": "generate" }));
        }
    }
}

/// What makes `new` out of `old`, key by key.
fn patch(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<Value> {
    let path = |key: &str| format!("/{}", key.replace('~', "~0").replace('/', "~1"));
    let mut operations = Vec::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        operations.push(json!({ "op": "remove", "path": path(key) }));
    }
    for (key, value) in new {
        match old.get(key) {
            None => operations.push(json!({ "op": "add", "path": path(key), "value": value })),
            Some(before) if before != value => {
                operations.push(json!({ "op": "replace", "path": path(key), "value": value }));
            }
            Some(_) => {}
        }
    }
    operations
}

impl Encoder for AgUi {
    fn encode(&mut self, event: &Event) -> Vec<String> {
        let mut out = Vec::new();
        match event {
            Event::Start(start) => {
                self.message.clone_from(&start.message_id);
                self.thread.clone_from(&start.thread_id);
                self.run.clone_from(&start.run_id);
                out.push(json!({ "type": "RUN_STARTED", "threadId": self.thread, "runId": self.run }));
                let value = json!({ "traceId": start.trace_id, "model": start.model });
                out.push(json!({ "type": "CUSTOM", "name": "metadata", "value": value }));
            }
            Event::Plan(plan) => {
                out.push(json!({ "type": "CUSTOM", "name": "plan", "value": plan }));
            }
            Event::Text(text) => {
                self.step(&mut out);
                if !self.in_text {
                    self.in_text = true;
                    self.texts += 1;
                    let (id, role) = (self.text_id(), "assistant");
                    out.push(json!({ "type": "TEXT_MESSAGE_START", "messageId": id, "role": role }));
                }
                let id = self.text_id();
                out.push(json!({ "type": "TEXT_MESSAGE_CONTENT", "messageId": id, "delta": text }));
            }
            Event::Source(citation) => {
                self.step(&mut out);
                out.push(json!({ "type": "CUSTOM", "name": "sources", "value": [citation] }));
            }
            Event::Card(card) => {
                self.step(&mut out);
                let Ok(Value::Object(content)) = serde_json::to_value(card) else {
                    unreachable!("a card is an object with string keys")
                };
                let id = format!("{}_{}", self.message, card.id);
                match self.cards.insert(card.id.clone(), content.clone()) {
                    None => {
                        // Activities are messages: prose behind one is a message of its own.
                        self.end_text(&mut out);
                        out.push(json!({
                            "type": "ACTIVITY_SNAPSHOT", "messageId": id, "activityType": "card", "content": content,
                        }));
                    }
                    Some(before) => out.push(json!({
                        "type": "ACTIVITY_DELTA", "messageId": id, "activityType": "card",
                        "patch": patch(&before, &content),
                    })),
                }
            }
            Event::Metadata(metadata) => {
                self.end_step(&mut out);
                out.push(json!({ "type": "CUSTOM", "name": "metadata", "value": metadata }));
            }
            Event::End(end) => {
                self.end_step(&mut out);
                out.push(match end {
                    End::Finished => {
                        json!({ "type": "RUN_FINISHED", "threadId": self.thread, "runId": self.run })
                    }
                    End::Failed { code, message } => {
                        json!({ "type": "RUN_ERROR", "message": message, "code": code })
                    }
                    End::Aborted => {
                        json!({ "type": "RUN_ERROR", "message": "the answer was stopped", "code": "aborted" })
                    }
                });
            }
        }
        out.iter().map(json).collect()
    }
}
