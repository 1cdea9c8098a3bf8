//! `POST /v1/assist`: a question comes in, evidence is retrieved, the model writes, and the answer leaves as a stream of
//! events or as one JSON object. `GET /v1/assist/{session}/stream` takes up a stream that broke off.

mod answer;
mod begin;
mod draft;
mod intent;
mod kept;
mod log;
mod metrics;
mod request;
mod retrieve;
mod text;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use sha2::Digest;

use super::connector::{CatalogConnector, ReviewConnector, StoreConfig, StoreError, StoreRole};
use super::directive::AllowedHosts;
use super::hydrate::{Connector, Policy, Role, Source};
use super::place::Place;
use super::prompt::MarkKey;
use super::session::{Answer, AnswerKey, Recent, Session, SessionKey};
use super::source::Retrieve;
use log::Log;

pub(crate) use answer::{assist, resume};

/// What an operator decides about the assistant.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AssistantConfig {
    /// The index of catalog, reviews and answers, for whoever opens it.
    pub index: Option<Place>,
    /// Folder of the encoder that the index was built with, for whoever loads it.
    pub embedding_model: Option<PathBuf>,
    /// Hosts that links of answers and cards may lead to; links within the shop's own site always may.
    pub allowed_hosts: Vec<String>,
    /// Tokens of an answer at most.
    pub max_tokens: u32,
    /// How freely the model writes.
    pub temperature: f32,
    /// Passages that the model reads for a question.
    pub passages: usize,
    /// Sources of evidence that have not answered by then are left out.
    pub retrieval_deadline_ms: u64,
    /// How long an answer goes on after its client has gone, for one that comes back; 0 ends it at once.
    pub resume_grace_ms: u64,
    /// Whether answers to the first question of a conversation are kept for whoever asks the same.
    pub answer_cache: bool,
    /// Store systems by name.
    #[serde(rename = "store")]
    pub stores: Vec<StoreConfig>,
}

impl Default for AssistantConfig {
    fn default() -> Self {
        AssistantConfig {
            index: None,
            embedding_model: None,
            allowed_hosts: Vec::new(),
            max_tokens: 512,
            temperature: 0.2,
            passages: 8,
            retrieval_deadline_ms: 150,
            resume_grace_ms: 5000,
            answer_cache: true,
            stores: Vec::new(),
        }
    }
}

/// The assistant: what it knows, whom it asks, and what it remembers.
pub struct Assistant {
    config: AssistantConfig,
    retrieve: Option<Arc<dyn Retrieve>>,
    sources: Vec<Source>,
    allowed: AllowedHosts,
    mark_key: MarkKey,
    sessions: Mutex<Recent<SessionKey, Session>>,
    answers: Mutex<Recent<AnswerKey, Answer>>,
    logs: Mutex<Recent<SessionKey, Arc<Log>>>,
    metrics: metrics::Metrics,
}

impl Assistant {
    /// An assistant over an index, where there is one, and the store systems of its configuration. `key` makes the
    /// marks around evidence unpredictable: the same key keeps cached prefixes across restarts.
    ///
    /// # Errors
    /// [`StoreError`] for a store system that cannot be used.
    pub fn new(
        config: AssistantConfig,
        retrieve: Option<Arc<dyn Retrieve>>,
        key: [u8; 32],
    ) -> Result<Self, StoreError> {
        let mut sources = Vec::new();
        if let Some(retrieve) = &retrieve {
            // The index is at hand: what it says once holds as long as it is open.
            let policy = Policy { hedge_after: None, window: Duration::ZERO, ..Policy::default() };
            let catalog: Arc<dyn Connector> = Arc::new(CatalogConnector(retrieve.clone()));
            sources.push(Source::new("catalog", Role::Catalog, catalog, policy));
            let reviews: Arc<dyn Connector> = Arc::new(ReviewConnector(retrieve.clone()));
            sources.push(Source::new("reviews", Role::Reviews, reviews, policy));
        }
        for store in &config.stores {
            let mut policy = store.policy()?;
            if store.role == StoreRole::Orders {
                policy.batch = 1;
            }
            let connector = store.connector(&policy)?;
            sources.push(Source::new(&store.name, store.role(), connector, policy));
        }
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        Ok(Assistant {
            allowed: AllowedHosts::new(config.allowed_hosts.clone()),
            retrieve,
            sources,
            mark_key: MarkKey::new(key),
            sessions: Mutex::new(Recent::new(4096, 64 << 20, hour)),
            answers: Mutex::new(Recent::new(4096, 64 << 20, hour)),
            logs: Mutex::new(Recent::new(1024, 256 << 20, minute)),
            metrics: metrics::Metrics::new(),
            config,
        })
    }

    /// One that knows nothing and asks nobody.
    pub(crate) fn bare() -> Self {
        let key = sha2::Sha256::digest(crate::route::random_id()).into();
        let bare = Assistant::new(AssistantConfig::default(), None, key);
        bare.unwrap_or_else(|_| unreachable!("no store that could be wrong"))
    }

    /// Forgets conversations, by their ids. Answers that were kept for others to use all go: whose they were is not
    /// known.
    pub(crate) fn forget(&self, gone: impl Fn(&str) -> bool) {
        self.sessions().retain(|key| !gone(key.session()));
        self.logs().retain(|key| !gone(key.session()));
        self.answers().retain(|_| false);
    }

    /// A conversation. Who signs in goes on with the one they began before, which then is theirs alone.
    fn session(&self, key: &SessionKey) -> Option<Session> {
        let mut sessions = self.sessions();
        sessions.get(key).cloned().or_else(|| sessions.take(&key.guest()?))
    }

    /// The events of a conversation's last answer.
    fn log(&self, key: &SessionKey) -> Option<Arc<Log>> {
        let mut logs = self.logs();
        logs.get(key).cloned().or_else(|| logs.get(&key.guest()?).cloned())
    }

    /// Whether there is a source of this role.
    fn has(&self, role: Role) -> bool {
        self.sources.iter().any(|source| source.role() == role)
    }

    /// Writes what was counted up to now in the OpenMetrics text format.
    pub(crate) fn encode_metrics(&self, text: &mut String) {
        self.metrics.encode(text);
    }

    fn sessions(&self) -> MutexGuard<'_, Recent<SessionKey, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answers(&self) -> MutexGuard<'_, Recent<AnswerKey, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logs(&self) -> MutexGuard<'_, Recent<SessionKey, Arc<Log>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
