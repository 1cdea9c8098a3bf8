//! The prompt of an answer: as much of conversation and evidence as leaves room for one, and the grammar that holds the
//! answer to it.

use std::sync::Arc;

use millrace_engine::Constraint;
use millrace_models::text::RenderOptions;

use super::Assistant;
use crate::assistant::directive::Directive;
use crate::assistant::event::Citation;
use crate::assistant::prompt::{self, Dossier};
use crate::assistant::session::{Session, normalise};
use crate::assistant::source::{Evidence, Passage, Product, Source};
use crate::error::ApiError;
use crate::grammar::{self, Allowed};
use crate::openai::template_error;
use crate::service::Loaded;

/// What a prompt is made of.
pub(super) struct Draft {
    pub(super) session: Session,
    pub(super) evidence: Vec<Evidence>,
    pub(super) names: Vec<(String, String)>,
    pub(super) question: String,
}

/// A prompt.
pub(super) struct Prepared {
    /// The conversation, perhaps without its older half.
    pub(super) session: Session,
    pub(super) dossier: Dossier,
    /// The shopper's message with its evidence.
    pub(super) message: String,
    pub(super) ids: Vec<u32>,
}

impl Draft {
    /// The prompt, with as much of conversation and evidence as leaves room for an answer.
    ///
    /// # Errors
    /// 400 where not even the question does.
    pub(super) fn prepare(mut self, assistant: &Assistant, model: &Loaded) -> Result<Prepared, ApiError> {
        let Some(template) = &model.template else {
            let message = "question: this model has no chat template, which the assistant needs";
            return Err(ApiError::field("question", message));
        };
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let max = model.handle.max_model_len();
        let reserve = (assistant.config.max_tokens as usize).min(max / 4).max(1);
        let mut most = assistant.config.passages.min(self.evidence.len());
        loop {
            let first = self.session.evidence + 1;
            let dossier = Dossier::new(first, self.evidence.clone(), most, self.names.clone());
            let message = prompt::question(&assistant.mark_key, &dossier, &self.question);
            let messages = prompt::messages(&self.session.turns, &message);
            let ids =
                template.encode(&model.tokenizer, &messages, &options).map_err(|e| template_error(&e))?;
            if ids.len() + reserve <= max {
                return Ok(Prepared { session: self.session, dossier, message, ids });
            }
            if !self.session.forget() {
                if most == 0 && self.names.is_empty() {
                    let length = ids.len();
                    let message = format!(
                        "question: the model's context is {max} tokens long, of which {reserve} are for the answer, and \
                         the question with the assistant's rules has {length}"
                    );
                    return Err(ApiError::too_long("question", message));
                }
                if most == 0 {
                    self.names.clear();
                }
                most /= 2;
            }
        }
    }
}

/// Holds an answer to what was found for it. A model whose output cannot be constrained goes without: what it may not
/// name is dropped from its text.
pub(super) fn constraint(
    model: &Loaded,
    dossier: &Dossier,
    attributes: &[String],
) -> Option<Box<dyn Constraint>> {
    let products: Vec<String> = dossier.products.iter().map(|(id, _)| id.clone()).collect();
    let citations: Vec<u32> = dossier.numbered().map(|(number, _)| number).collect();
    let allowed = Allowed { products: &products, attributes, citations: &citations };
    let compiled =
        model.grammars().and_then(|compiler| compiler.compile_own(&grammar::for_assistant(&allowed)));
    compiled.inspect_err(|error| tracing::debug!(%error, "an answer goes without a grammar")).ok()
}

/// A passage as the answer cites it.
pub(super) fn citation(number: u32, passage: &Passage) -> Citation {
    Citation {
        number,
        source: passage.source.name().to_owned(),
        doc_id: passage.id.clone(),
        product: passage.product.clone(),
        title: passage.title.clone().unwrap_or_else(|| prompt::label(passage.source).to_owned()),
        quote: passage.text.clone(),
    }
}

/// Questions that other customers had asked about the same.
pub(super) fn suggestions(evidence: &[Evidence], question: &str) -> Vec<String> {
    let asked = normalise(question);
    let mut questions: Vec<String> = Vec::new();
    for passage in evidence.iter().map(|e| &e.passage).filter(|p| p.source == Source::Qa) {
        let Some(title) = passage.title.as_ref().filter(|t| (8..=120).contains(&t.len())) else { continue };
        if normalise(title) != asked && !questions.contains(title) {
            questions.push(title.clone());
        }
    }
    questions.truncate(3);
    questions
}

/// The products that fit a question best, for an answer that shows none.
pub(super) fn closing(products: &[Arc<Product>]) -> Option<Directive> {
    const MOST: usize = 3;
    match products {
        [] => None,
        [one] => Some(Directive::Product { id: one.id.clone(), layout: None }),
        _ => {
            let ids = products.iter().take(MOST).map(|product| product.id.clone()).collect();
            Some(Directive::List { ids, layout: None })
        }
    }
}
