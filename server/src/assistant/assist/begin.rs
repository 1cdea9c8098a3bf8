//! From a question to an answer about to be given: what is remembered, found, and handed to the engine.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::answer::Job;
use super::draft::{Draft, citation, closing, constraint, suggestions};
use super::intent::{asks_for_opinions, is_about_orders, is_personal, order_number, refers_back};
use super::kept::Kept;
use super::request::Ask;
use super::retrieve::{Finding, find};
use super::text::{Text, submit};
use crate::assistant::amounts::Notes;
use crate::assistant::compose::Desk;
use crate::assistant::directive::Directive;
use crate::assistant::event::{Plan, SourceState, Start};
use crate::assistant::hydrate::{Role, Shopper};
use crate::assistant::prompt;
use crate::assistant::session::{Answer, AnswerKey, Session, SessionKey, normalise};
use crate::auth::Tenant;
use crate::error::ApiError;
use crate::route::random_id;
use crate::service::{Loaded, Running, Service};

impl Job {
    /// Takes an earlier answer to the same question, else finds evidence and hands the prompt to the engine.
    ///
    /// # Errors
    /// 400 where the question is too long for the model; 429 and 503 where there is no room for it.
    pub(super) async fn begin(
        service: &Arc<Service>,
        model: Arc<Loaded>,
        ask: Ask,
        tenant: Tenant,
        shopper: Option<Shopper>,
        running: Running,
    ) -> Result<Job, ApiError> {
        let (assistant, arrival) = (service.assistant(), Instant::now());
        let session_id = ask.session.clone().unwrap_or_else(random_id);
        let session_key = SessionKey::new(&tenant, &session_id, shopper.as_ref());
        let session = recall(assistant.session(&session_key), &ask);
        let about = if ask.products.is_empty() && refers_back(&ask.question) {
            session.products.clone()
        } else {
            ask.products.clone()
        };
        let version = assistant.retrieve.as_ref().map(|retrieve| retrieve.version()).unwrap_or_default();
        let personal = ask.order.is_some() || is_personal(&ask.question);
        let cacheable = assistant.config.answer_cache && !personal && session.turns.is_empty() && !ask.again;
        let cache_key = cacheable.then(|| answer_key(service, &ask, &about, &tenant, &version));
        let start = Start {
            message_id: format!("msg_{}", random_id()),
            thread_id: session_id,
            run_id: ask.run.clone().unwrap_or_else(random_id),
            trace_id: random_id(),
            model: service.config.model_names[0].clone(),
        };
        let kept = Kept::begin(service, &ask, &start, &tenant, shopper.as_ref(), &version);
        let desk = Desk {
            sources: assistant.sources.clone(),
            shopper,
            allowed: assistant.allowed.clone(),
            // Only where a card can show them.
            notes: match assistant.has(Role::Live) {
                true => Notes::of_locale(&ask.locale),
                false => Notes::default(),
            },
            ..Desk::default()
        };
        let known = cache_key.as_ref().and_then(|key| assistant.answers().get(key).cloned());
        let mut job = Job {
            service: service.clone(),
            text: Text::Replay(None, None),
            desk,
            start,
            plan: Plan::default(),
            message: String::new(),
            session,
            session_key,
            about,
            cache_key,
            arrival,
            kept,
        };
        match known {
            Some(answer) => job.repeat(answer, &model, running),
            None => job.write(&ask, model, &tenant, &version, running).await?,
        }
        Ok(job)
    }

    /// Gives an earlier answer once more, with live data of now.
    fn repeat(&mut self, answer: Answer, model: &Loaded, running: Running) {
        let Answer { raw, citations, products, names, message } = answer;
        (self.desk.citations, self.desk.products) = (citations, products.into_iter().collect());
        self.desk.names = names;
        if let (Some(kept), Some(template)) = (&mut self.kept, &model.template) {
            kept.prompt(&[], &message, &self.desk.citations, template.source());
        }
        self.message = message;
        self.text = Text::Replay(Some(raw), Some(running));
    }

    /// Has the model write one.
    async fn write(
        &mut self,
        ask: &Ask,
        model: Arc<Loaded>,
        tenant: &Tenant,
        version: &str,
        running: Running,
    ) -> Result<(), ApiError> {
        let service = self.service.clone();
        let assistant = service.assistant();
        let Finding { plan, evidence, products } = find(assistant, &ask.question, &self.about).await;
        let complete = plan.sources.iter().all(|source| source.state == SourceState::Ready);
        let same = assistant.retrieve.as_ref().is_none_or(|retrieve| retrieve.version() == version);
        if !complete || !same {
            // Of what is missing a part, or is of two indexes, nobody else shall have the answer.
            self.cache_key = None;
        }
        self.plan = plan;
        if let Some(kept) = &mut self.kept {
            kept.found(&evidence);
        }
        let desk = &mut self.desk;
        desk.products = products.iter().map(|product| product.id.clone()).collect();
        desk.names = products.iter().map(|product| product.title.clone()).collect();
        desk.suggestions = suggestions(&evidence, &ask.question);
        let orders = ask.order.is_some() || is_about_orders(&ask.question);
        if orders && assistant.has(Role::Orders) {
            desk.order = ask.order.clone().or_else(|| order_number(&ask.question));
            desk.opening.push(Directive::Order);
        }
        if let [id] = &self.about[..]
            && asks_for_opinions(&ask.question)
            && assistant.has(Role::Reviews)
            && desk.products.contains(id)
        {
            desk.opening.push(Directive::Reviews { id: id.clone() });
        }
        if !orders && !evidence.is_empty() {
            desk.closing = closing(&products);
        }
        let names = products.iter().map(|product| (product.id.clone(), product.title.clone())).collect();
        let session = std::mem::take(&mut self.session);
        let draft = Draft { session, evidence, names, question: ask.question.clone() };
        let (shared, reader) = (service.clone(), model.clone());
        let bytes =
            ask.question.len() + draft.session.turns.iter().map(|(u, a)| u.len() + a.len()).sum::<usize>();
        let attributes: BTreeSet<String> =
            products.iter().flat_map(|product| product.attributes.keys().cloned()).collect();
        let attributes: Vec<String> = attributes.into_iter().collect();
        let work = move || {
            let prepared = draft.prepare(shared.assistant(), &reader)?;
            let constraint = constraint(&reader, &prepared.dossier, &attributes);
            Ok((prepared, constraint))
        };
        // Evidence and rules make it more than it looks.
        let (prepared, constraint) = service.compute(bytes + (2 << 10), work).await?;
        self.desk.citations =
            prepared.dossier.numbered().map(|(number, passage)| citation(number, passage)).collect();
        if let (Some(kept), Some(template)) = (&mut self.kept, &model.template) {
            kept.prompt(&prepared.session.turns, &prepared.message, &self.desk.citations, template.source());
        }
        self.text = submit(&service, &model, prepared.ids, constraint, tenant, running, self.kept.as_mut())?;
        (self.session, self.message) = (prepared.session, prepared.message);
        Ok(())
    }
}

/// What the same answer answers: the question in the same words, by the same tenant, in the same language, of the same
/// products, from the same index by the same model under the same rules.
fn answer_key(service: &Service, ask: &Ask, about: &[String], tenant: &Tenant, version: &str) -> AnswerKey {
    let mut products = about.to_vec();
    products.sort();
    let salt = tenant.salt(None).unwrap_or_default();
    let asked = normalise(&ask.question);
    let head: [&str; 6] =
        [&salt, &asked, &ask.locale, version, &service.config.model_names[0], prompt::RULES];
    AnswerKey::new(head.into_iter().chain(products.iter().map(String::as_str)))
}

/// What the server remembers of a conversation, else what the client says it was.
fn recall(known: Option<Session>, ask: &Ask) -> Session {
    match known {
        Some(mut session) => {
            if ask.again {
                session.undo();
            }
            session
        }
        None => {
            let mut session = Session::default();
            for (question, answer) in &ask.history {
                session.add(question.clone(), answer.clone(), 0);
            }
            session
        }
    }
}
