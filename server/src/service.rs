//! What all connections share, and the life of the process: loading, serving, draining, aborting.

use std::sync::{Arc, OnceLock};

use millrace_engine::Handle;
use millrace_models::text::{ChatTemplate, GenerationDefaults, Tokenizer};
use tokio::sync::{Semaphore, watch};

use crate::assistant::Assistant;
use crate::config::ServerConfig;
use crate::embed::TextEncoder;
use crate::error::ApiError;
use crate::feedback::Feedback;
use crate::grammar::{Compiler, GrammarError};
use crate::metrics::{HttpMetrics, Metrics};

/// A model that is loaded, warm and running.
pub struct Model {
    /// The engine.
    pub handle: Handle,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// How a conversation is written; `None` where the model has no template, and then there is no chat.
    pub template: Option<ChatTemplate>,
    /// Sampling parameters where a request gives none, and the end-of-sequence tokens.
    pub defaults: GenerationDefaults,
    /// What the engine's observer counts.
    pub metrics: Metrics,
}

/// A model, and what is worked out about it once.
pub(crate) struct Loaded {
    model: Model,
    /// Bytes of the longest token.
    longest_token: usize,
    grammars: Result<Arc<Compiler>, GrammarError>,
}

impl std::ops::Deref for Loaded {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
    }
}

impl Loaded {
    fn new(model: Model) -> Self {
        let ids = 0..u32::try_from(model.tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let longest = ids.map(|id| model.tokenizer.token_bytes(id).len()).max().unwrap_or(0);
        let grammars = Compiler::new(&model.tokenizer, &model.defaults.eos_token_ids);
        if let Err(error) = &grammars {
            tracing::warn!(%error, "requests for output of a certain form will be refused");
        }
        Loaded { model, longest_token: longest.max(1), grammars }
    }

    /// What compiles grammars for this model.
    ///
    /// # Errors
    /// Where its output cannot be constrained.
    pub(crate) fn grammars(&self) -> Result<&Arc<Compiler>, GrammarError> {
        self.grammars.as_ref().map_err(Clone::clone)
    }

    /// Refuses a text that must be too long however well it tokenises: megabytes are not worth the time.
    ///
    /// # Errors
    /// 400 for the field.
    pub(crate) fn check_length(&self, bytes: usize, param: &str) -> Result<(), ApiError> {
        let (least, max) = (bytes / self.longest_token, self.handle.max_model_len());
        if least < max {
            return Ok(());
        }
        let message = format!(
            "{param}: the model's context is {max} tokens long, but a text of {bytes} bytes is at least {least} tokens"
        );
        Err(ApiError::too_long(param, message))
    }
}

/// Where the process stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// Requests are served, or will be once the model is there.
    Serving,
    /// New requests get 503, running ones go on.
    Draining,
    /// Running ones are told that it is over.
    Aborting,
}

/// What all connections share. The listener may be open before the model is loaded: until [`Service::install`],
/// everything but liveness answers 503.
pub struct Service {
    pub(crate) config: ServerConfig,
    pub(crate) http: HttpMetrics,
    pub(crate) started: u64,
    pub(crate) bodies: Semaphore,
    model: OnceLock<Arc<Loaded>>,
    phase: watch::Sender<Phase>,
    /// Its receivers are the running requests: each learns through it that it must end, and drain waits until there is
    /// none.
    running: watch::Sender<bool>,
    blocking: Semaphore,
    assistant: OnceLock<Assistant>,
    embeddings: OnceLock<Embeddings>,
    feedback: OnceLock<Arc<Feedback>>,
}

/// What `/v1/embeddings` serves.
pub(crate) struct Embeddings {
    pub(crate) name: String,
    pub(crate) encoder: Arc<TextEncoder>,
}

impl Service {
    /// A service without a model yet.
    ///
    /// # Panics
    /// Where the configuration names no model.
    pub fn new(config: ServerConfig) -> Arc<Self> {
        assert!(!config.model_names.is_empty(), "a model needs a name");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let bodies = config.limits.total_body_bytes.max(config.limits.body_bytes).div_ceil(1024);
        let threads = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        Arc::new(Service {
            http: HttpMetrics::new(),
            started: now.as_secs(),
            bodies: Semaphore::new(bodies),
            model: OnceLock::new(),
            phase: watch::Sender::new(Phase::Serving),
            running: watch::Sender::new(false),
            blocking: Semaphore::new(threads),
            assistant: OnceLock::new(),
            embeddings: OnceLock::new(),
            feedback: OnceLock::new(),
            config,
        })
    }

    /// Opens the service: the model is loaded and warm. A second model is ignored.
    pub fn install(&self, model: Model) {
        if self.model.set(Arc::new(Loaded::new(model))).is_err() {
            tracing::warn!("a model is installed already");
        }
    }

    /// Gives the service its assistant, before requests come. Without one, `/v1/assist` answers from no index and asks no
    /// store. A second one is ignored.
    pub fn install_assistant(&self, assistant: Assistant) {
        if self.assistant.set(assistant).is_err() {
            tracing::warn!("an assistant is installed already");
        }
    }

    /// Serves a sentence encoder under this name, before requests come. A second one is ignored.
    pub fn install_embeddings(&self, name: String, encoder: Arc<TextEncoder>) {
        if self.embeddings.set(Embeddings { name, encoder }).is_err() {
            tracing::warn!("an encoder is installed already");
        }
    }

    pub(crate) fn embeddings(&self) -> Option<&Embeddings> {
        self.embeddings.get()
    }

    /// Gives the service a place for feedback, before requests come. Without one, nothing is kept and votes get 404. A
    /// second one is ignored.
    pub fn install_feedback(self: &Arc<Self>, feedback: Arc<Feedback>) {
        if self.feedback.set(feedback.clone()).is_err() {
            tracing::warn!("feedback is kept somewhere already");
            return;
        }
        let (service, key) = (Arc::downgrade(self), feedback.key().clone());
        feedback.on_forget(move |sessions| {
            let Some(service) = service.upgrade() else { return };
            // It may not have come yet.
            let Some(assistant) = service.assistant.get() else { return };
            assistant.forget(|session| sessions.contains(&key.hash("session", session)));
        });
    }

    pub(crate) fn feedback(&self) -> Option<&Arc<Feedback>> {
        self.feedback.get()
    }

    pub(crate) fn assistant(&self) -> &Assistant {
        self.assistant.get_or_init(Assistant::bare)
    }

    /// Begins the end: new requests get 503, running ones may go on for
    /// [`shutdown_timeout`](ServerConfig::shutdown_timeout), then [`serve`](crate::serve) returns.
    pub fn drain(&self) {
        self.phase
            .send_if_modified(|phase| (*phase == Phase::Serving).then(|| *phase = Phase::Draining).is_some());
    }

    /// Ends it now: running requests are told so and cancelled.
    pub fn abort(&self) {
        self.phase.send_replace(Phase::Aborting);
    }

    /// Waits until the process stands at `phase` or beyond.
    pub(crate) async fn reached(&self, phase: Phase) {
        // The sender is in `self`, so the channel is open.
        let _ = self.phase.subscribe().wait_for(|&at| at >= phase).await;
    }

    /// Whether a new request would be taken.
    ///
    /// # Errors
    /// 503 with the reason.
    pub(crate) fn ready(&self) -> Result<&Arc<Loaded>, ApiError> {
        if *self.phase.borrow() != Phase::Serving {
            return Err(ApiError::draining());
        }
        let model = self.loaded()?;
        if !model.handle.is_alive() {
            return Err(ApiError::unavailable("engine_dead", "the engine has stopped"));
        }
        Ok(model)
    }

    /// The model, also while draining.
    ///
    /// # Errors
    /// 503 until it is there.
    pub(crate) fn loaded(&self) -> Result<&Arc<Loaded>, ApiError> {
        self.model.get().ok_or_else(|| ApiError::unavailable("model_loading", "the model is still loading"))
    }

    /// Lets a request run; it counts as running while the result lives.
    ///
    /// # Errors
    /// 503 with the reason.
    pub(crate) fn admit(&self) -> Result<Running, ApiError> {
        let abort = self.running.subscribe();
        // Asked after subscribing: drain first sets the phase, then waits for those who have subscribed.
        self.ready()?;
        Ok(Running { abort })
    }

    /// Waits until no request runs.
    pub(crate) async fn idle(&self) {
        self.running.closed().await;
    }

    /// What the assistant has counted, where there is one.
    pub(crate) fn encode_assistant(&self, text: &mut String) {
        if let Some(assistant) = self.assistant.get() {
            assistant.encode_metrics(text);
        }
    }

    /// Tells all running requests to end.
    pub(crate) fn end_running(&self) {
        self.running.send_replace(true);
    }

    /// Runs work on text whose size a client chose: here if it is small, else on a thread that may block, of which only
    /// as many work at a time as there are cores, so that other connections are served meanwhile.
    ///
    /// # Errors
    /// What the work yields; 500 where it panics.
    pub(crate) async fn compute<T, F>(&self, bytes: usize, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ApiError> + Send + 'static,
    {
        const SMALL: usize = 2 << 10;
        if bytes <= SMALL {
            return work();
        }
        let _permit = self.blocking.acquire().await.map_err(|_| ApiError::draining())?;
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            tracing::error!(%error, "while reading a request");
            Err(ApiError::internal())
        })
    }
}

/// A request that runs.
pub(crate) struct Running {
    abort: watch::Receiver<bool>,
}

impl Running {
    /// Waits until it must end.
    pub(crate) async fn aborted(&mut self) {
        if self.abort.wait_for(|&abort| abort).await.is_err() {
            // The service itself is gone, which only a test brings about while requests run.
            std::future::pending::<()>().await;
        }
    }
}
