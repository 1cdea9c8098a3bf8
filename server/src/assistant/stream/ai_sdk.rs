//! Version 1 of the UI message stream that Vercel's AI SDK reads. Its older clients refuse keys and types they do not
//! know, so what is ours stands in `data-*` parts, `providerMetadata` and `messageMetadata` only.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Encoder, json};
use crate::assistant::event::{End, Event};

/// The header that names the protocol, and its value.
pub const AI_SDK_HEADER: (&str, &str) = ("x-vercel-ai-ui-message-stream", "v1");

/// The encoder.
#[derive(Debug, Default)]
pub struct AiSdk {
    texts: u32,
    in_text: bool,
    in_step: bool,
    cards: HashSet<String>,
}

impl AiSdk {
    fn step(&mut self, out: &mut Vec<Value>) {
        if !self.in_step {
            self.in_step = true;
            out.push(json!({ "type": "start-step" }));
        }
    }

    fn end_text(&mut self, out: &mut Vec<Value>) {
        if self.in_text {
            self.in_text = false;
            out.push(json!({ "type": "text-end", "id": format!("t{}", self.texts) }));
        }
    }

    fn end_step(&mut self, out: &mut Vec<Value>) {
        self.end_text(out);
        if self.in_step {
            self.in_step = false;
            out.push(json!({ "type": "finish-step" }));
        }
    }
}

impl Encoder for AiSdk {
    fn encode(&mut self, event: &Event) -> Vec<String> {
        let mut out = Vec::new();
        match event {
            Event::Start(start) => out.push(json!({
                "type": "start",
                "messageId": start.message_id,
                "messageMetadata": {
                    "traceId": start.trace_id, "model": start.model, "sessionId": start.thread_id,
                },
            })),
            Event::Plan(plan) => {
                out.push(json!({ "type": "data-plan", "id": "plan_1", "transient": true, "data": plan }));
            }
            Event::Text(text) => {
                self.step(&mut out);
                if !self.in_text {
                    self.in_text = true;
                    self.texts += 1;
                    out.push(json!({ "type": "text-start", "id": format!("t{}", self.texts) }));
                }
                out.push(json!({ "type": "text-delta", "id": format!("t{}", self.texts), "delta": text }));
            }
            Event::Source(citation) => {
                self.step(&mut out);
                let mut ours = json!({
                    "source": citation.source, "docId": citation.doc_id, "quote": citation.quote,
                });
                if let Some(product) = &citation.product {
                    ours["product"] = product.as_str().into();
                }
                out.push(json!({
                    "type": "source-document",
                    "sourceId": format!("s{}", citation.number),
                    "mediaType": "text/plain",
                    "title": citation.title,
                    "providerMetadata": { "millrace": ours },
                }));
            }
            Event::Card(card) => {
                self.step(&mut out);
                // A client appends text to its own part wherever that stands: prose behind a card is a part of its own.
                if self.cards.insert(card.id.clone()) {
                    self.end_text(&mut out);
                }
                out.push(json!({ "type": "data-card", "id": card.id, "data": card }));
            }
            Event::Metadata(metadata) => {
                self.end_step(&mut out);
                out.push(json!({ "type": "message-metadata", "messageMetadata": metadata }));
            }
            Event::End(end) => {
                match end {
                    End::Finished => {
                        self.end_step(&mut out);
                        out.push(json!({ "type": "finish" }));
                    }
                    End::Failed { message, .. } => {
                        self.end_text(&mut out);
                        out.push(json!({ "type": "error", "errorText": message }));
                    }
                    End::Aborted => {
                        self.end_text(&mut out);
                        out.push(json!({ "type": "abort" }));
                    }
                }
                let mut out: Vec<String> = out.iter().map(json).collect();
                out.push("[DONE]".into());
                return out;
            }
        }
        out.iter().map(json).collect()
    }
}
