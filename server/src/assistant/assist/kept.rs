//! What feedback needs of an answer, gathered while it is made.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::SamplingParams;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::request::Ask;
use crate::assistant::Evidence;
use crate::assistant::event::{Citation, Plan, Start};
use crate::assistant::hydrate::Shopper;
use crate::assistant::prompt;
use crate::auth::Tenant;
use crate::feedback::{Answer, EvidenceDoc, Feedback, Message, now};
use crate::service::Service;

/// An answer that will be kept if it comes to its end.
pub(super) struct Kept {
    feedback: Arc<Feedback>,
    tenant: String,
    answer: Answer,
    /// Place and score of passages.
    ranks: HashMap<String, (u32, f32)>,
}

impl Kept {
    /// `None` where no feedback is kept.
    pub(super) fn begin(
        service: &Service,
        ask: &Ask,
        start: &Start,
        tenant: &Tenant,
        shopper: Option<&Shopper>,
        index: &str,
    ) -> Option<Kept> {
        let feedback = service.feedback()?.clone();
        let (key, tenant) = (feedback.key(), tenant.salt(None).unwrap_or_default());
        let answer = Answer {
            message: start.message_id.clone(),
            trace: start.trace_id.clone(),
            session: key.hash("session", &start.thread_id),
            user: shopper.map(|shopper| key.hash("user", &shopper.0)).unwrap_or_default(),
            tenant: key.hash("tenant", &tenant),
            locale: ask.locale.clone(),
            question: ask.question.clone(),
            again: ask.again,
            model: start.model.clone(),
            index: index.to_owned(),
            ..Answer::default()
        };
        Some(Kept { feedback, tenant, answer, ranks: HashMap::new() })
    }

    /// What was retrieved, the best first.
    pub(super) fn found(&mut self, evidence: &[Evidence]) {
        let rank = |(rank, evidence): (u32, &Evidence)| (evidence.passage.id.clone(), (rank, evidence.score));
        self.ranks = (1..).zip(evidence).map(rank).collect();
    }

    /// What the model reads.
    pub(super) fn prompt(
        &mut self,
        turns: &[(String, String)],
        message: &str,
        evidence: &[Citation],
        template: &str,
    ) {
        let text = |message: &Value, field: &str| message[field].as_str().unwrap_or_default().to_owned();
        let messages = prompt::messages(turns, message);
        let message =
            |message: &Value| Message { role: text(message, "role"), content: text(message, "content") };
        self.answer.prompt = messages.iter().map(message).collect();
        let doc = |citation: &Citation| {
            // From the cache of answers comes no rank.
            let (rank, score) = self.ranks.get(&citation.doc_id).copied().unwrap_or_default();
            let mut hash = hash(&citation.quote);
            hash.truncate(32);
            let (id, source) = (citation.doc_id.clone(), citation.source.clone());
            EvidenceDoc { number: citation.number, id, source, hash, rank, score }
        };
        self.answer.evidence = evidence.iter().map(doc).collect();
        self.answer.template = hash(template);
    }

    /// How it chooses words.
    pub(super) fn sampler(&mut self, params: &SamplingParams) {
        let sampler = json!({
            "temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k, "min_p": params.min_p,
            "max_tokens": params.max_tokens, "seed": params.seed,
        });
        if let Value::Object(map) = sampler {
            self.answer.sampler = map;
        }
    }

    /// What lets the shopper vote on it.
    pub(super) fn token(&self) -> String {
        self.feedback.token(&self.answer.message, &self.tenant)
    }

    /// Hands it over.
    pub(super) fn finish(
        mut self,
        completion: &str,
        token_ids: Option<Vec<u32>>,
        plan: &Plan,
        metadata: &Map<String, Value>,
    ) {
        self.answer.at = now();
        self.answer.completion = completion.to_owned();
        self.answer.cached = token_ids.is_none();
        self.answer.token_ids = token_ids.unwrap_or_default();
        self.answer.plan = json!(plan);
        let finish = metadata.get("finishReason").and_then(Value::as_str);
        self.answer.finish = finish.unwrap_or_default().to_owned();
        self.answer.timings = metadata.get("timings").cloned().unwrap_or_default();
        self.feedback.record(self.answer);
    }
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
