//! From a grammar's text to a constraint, within limits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use llguidance::api::ParserLimits;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use millrace_engine::{Constraint, TokenId};
use millrace_models::text::Tokenizer;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::cache::Cache;
use super::constraint::Guided;
use super::{Grammar, GrammarError, vocabulary};

/// From the question to the answer, reading and waiting included.
const DEADLINE: Duration = Duration::from_millis(400);

/// What is left of it however long the reading took: that may be another's fault.
const LEAST: Duration = Duration::from_millis(200);

/// Grammars that are compiled at a time: few enough to bound the memory that they take meanwhile.
const THREADS: usize = 8;

/// Grammars that have missed their deadline and give up their place to others. They cannot be stopped: each runs until
/// its fuel is out, some seconds later, with what nobody else wants of the processors. Where there are more, the rest
/// keep their places.
const ABANDONED: usize = 8;

/// How many of them may have more than [`SMALL`] bytes of text: few ordinary grammars do, and most hostile ones.
const LARGE_THREADS: usize = 4;

/// Grammars that are held against the bounds at a time: each ends within milliseconds.
const CHECKS: usize = 4;

/// Bytes of a grammar that finds a thread even where large ones take all they may.
const SMALL: usize = 8 << 10;

/// Bytes of stack of a compiling thread: the compiler recurses along the grammar, whose text is bounded. What is not
/// used costs nothing.
const STACK: usize = 512 << 20;

/// Work and memory of one grammar. By llguidance's own figures a millisecond buys 14 thousand units of a step's lexer
/// fuel or 20 thousand Earley items, and a lexer state takes one to two kilobytes. A hostile pattern's token was seen
/// to take 72 ms all the same, unoptimised on a busy machine.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 100_000,
    step_max_items: 50_000,
    max_lexer_states: 20_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

/// Compiles grammars for one model.
pub(crate) struct Compiler {
    tokenizer: Tokenizer,
    eos: Vec<TokenId>,
    /// The vocabulary as grammars are asked against it. Made for the first grammar: it takes tens of megabytes, and most
    /// servers are never asked for one.
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    cache: Mutex<Cache>,
    checks: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    /// Taken beside a thread.
    large: Arc<Semaphore>,
    /// Taken instead of both.
    abandoned: Arc<Semaphore>,
}

impl Compiler {
    /// For the tokens of a model, of which `eos` end a sequence.
    ///
    /// # Errors
    /// [`GrammarError::NoEnd`] where none does.
    pub(crate) fn new(tokenizer: &Tokenizer, eos: &[TokenId]) -> Result<Arc<Self>, GrammarError> {
        let known = eos.iter().copied().filter(|id| (*id as usize) < tokenizer.vocab_size());
        let eos: Vec<TokenId> = known.collect();
        if eos.is_empty() {
            return Err(GrammarError::NoEnd);
        }
        Ok(Arc::new(Compiler {
            tokenizer: tokenizer.clone(),
            eos,
            factory: OnceLock::new(),
            cache: Mutex::default(),
            checks: Arc::new(Semaphore::new(CHECKS)),
            threads: Arc::new(Semaphore::new(THREADS)),
            large: Arc::new(Semaphore::new(LARGE_THREADS)),
            abandoned: Arc::new(Semaphore::new(ABANDONED)),
        }))
    }

    /// A constraint at the grammar's start, at once if it was compiled before. Who asks has waited since `asked`.
    ///
    /// # Errors
    /// See [`GrammarError`]; after half a second at the latest, but that the first ones wait for the vocabulary.
    pub(crate) async fn compile(
        self: &Arc<Self>,
        grammar: Grammar,
        asked: Instant,
    ) -> Result<Box<dyn Constraint>, GrammarError> {
        grammar.check_length()?;
        if let Some(matcher) = self.cache().get(&grammar) {
            return Ok(Box::new(Guided(matcher)));
        }
        let before = Instant::now();
        self.prepare().await;
        let end = (asked + before.elapsed() + DEADLINE).max(Instant::now() + LEAST);
        let place =
            async |places: &Arc<Semaphore>| match timeout_at(end, places.clone().acquire_owned()).await {
                Ok(Ok(permit)) => Ok(permit),
                _ => Err(GrammarError::Busy),
            };
        // What is refused unseen waits for no compiler.
        let checking = Running::start(place(&self.checks).await?, move || (grammar.check(), grammar))?;
        let (checked, grammar) = checking.until(end, &self.abandoned).await?;
        checked?;
        let large = if grammar.len() > SMALL { Some(place(&self.large).await?) } else { None };
        let permits = (place(&self.threads).await?, large);
        let compiler = self.clone();
        let compiling = Running::start(permits, move || compiler.build_and_keep(grammar))?;
        Ok(Box::new(Guided(compiling.until(end, &self.abandoned).await??)))
    }

    /// Sees to it that the vocabulary is there. Its time is no grammar's fault, so it counts towards no deadline; who
    /// gives up waiting leaves the work to be finished for the others.
    async fn prepare(self: &Arc<Self>) {
        if self.factory.get().is_none() {
            let permit = self.threads.clone().acquire_owned().await;
            let compiler = self.clone();
            let work = move || {
                // Whoever compiles is told of what was wrong.
                let _ = compiler.factory();
                drop(permit);
            };
            let _ = tokio::task::spawn_blocking(work).await;
        }
    }

    /// The vocabulary, made by the first who asks.
    fn factory(&self) -> Result<&ParserFactory, GrammarError> {
        let make = || {
            let invalid =
                |_| GrammarError::Invalid("the model's vocabulary cannot be put into a trie".to_owned());
            // The trie asserts what it expects of a vocabulary.
            let build = || {
                let vocabulary = vocabulary::environment(&self.tokenizer, &self.eos);
                ParserFactory::new(&vocabulary, InferenceCapabilities::default(), &vocabulary::slices())
            };
            let factory = catch_unwind(AssertUnwindSafe(build)).map_err(invalid)?;
            let mut factory = factory.map_err(|error| GrammarError::Invalid(shorten(&error.to_string())))?;
            factory.quiet();
            *factory.limits_mut() = LIMITS;
            Ok(factory)
        };
        self.factory.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// A constraint of a grammar that this program has made: at once, on the caller's thread, and for one request.
    ///
    /// # Errors
    /// [`GrammarError::Invalid`] where what it was made of is too much.
    pub(crate) fn compile_own(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, GrammarError> {
        let built = catch_unwind(AssertUnwindSafe(|| grammar.check().and_then(|()| self.build(grammar))));
        let failed = |_| Err(GrammarError::Invalid("the compiler failed on it".to_owned()));
        Ok(Box::new(Guided(built.unwrap_or_else(failed)?)))
    }

    fn build(&self, grammar: &Grammar) -> Result<Matcher, GrammarError> {
        let invalid = |message: &str| GrammarError::Invalid(shorten(message));
        let parser = self.factory()?.create_parser(grammar.parse()?);
        let mut matcher = Matcher::new(parser);
        // What cannot even begin is a wrong grammar; and the first set is the same for every request.
        matcher.compute_mask_or_eos().map_err(|error| invalid(&error.to_string()))?;
        Ok(matcher)
    }

    fn build_and_keep(&self, grammar: Grammar) -> Result<Matcher, GrammarError> {
        let matcher = self.build(&grammar)?;
        let own = matcher.deep_clone();
        self.cache().insert(grammar, matcher);
        Ok(own)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn cached(&self) -> (usize, usize) {
        self.cache().size()
    }
}

/// Work on a thread of its own, with the stack that a compiler needs.
struct Running<T> {
    answered: oneshot::Receiver<thread::Result<T>>,
    named: oneshot::Receiver<rustix::thread::Pid>,
    place: Place,
}

/// What the work holds; nothing where it has ended.
#[derive(Clone)]
struct Place(Arc<Mutex<Option<Box<dyn Send>>>>);

impl Place {
    fn leave(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Takes another place, so that the one it has is free.
    fn exchange(&self, other: impl Send + 'static) {
        if let Some(place) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            *place = Box::new(other);
        }
    }
}

impl<T: Send + 'static> Running<T> {
    /// `permits` are given back when the work has ended, whoever still waits for it.
    fn start(
        permits: impl Send + 'static,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, GrammarError> {
        let (answer, answered) = oneshot::channel();
        let (name, named) = oneshot::channel();
        let place = Place(Arc::new(Mutex::new(Some(Box::new(permits)))));
        let own = place.clone();
        let work = move || {
            let _ = name.send(rustix::thread::gettid());
            let result = catch_unwind(AssertUnwindSafe(work));
            own.leave();
            // Whoever asked may have given up.
            let _ = answer.send(result);
        };
        let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(STACK).spawn(work);
        thread.map_err(|_| GrammarError::Busy)?;
        Ok(Running { answered, named, place })
    }

    async fn until(self, end: Instant, abandoned: &Arc<Semaphore>) -> Result<T, GrammarError> {
        match timeout_at(end, self.answered).await {
            Ok(Ok(Ok(result))) => Ok(result),
            Ok(_) => Err(GrammarError::Invalid("the compiler failed on it".to_owned())),
            Err(_) => {
                // It goes on with what nobody else wants of the processors. On Linux a thread's id does for a process's.
                if let Ok(thread) = self.named.await {
                    let _ = rustix::process::setpriority_process(Some(thread), 19);
                }
                if let Ok(permit) = abandoned.clone().try_acquire_owned() {
                    self.place.exchange(permit);
                }
                Err(GrammarError::Deadline(DEADLINE.as_millis()))
            }
        }
    }
}

/// The part of a library's message that a client can use.
pub(super) fn shorten(message: &str) -> String {
    const MAX: usize = 300;
    let line = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("refused");
    match line.char_indices().nth(MAX) {
        None => line.to_owned(),
        Some((end, _)) => format!("{}…", &line[..end]),
    }
}
