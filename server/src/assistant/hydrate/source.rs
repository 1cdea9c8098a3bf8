//! One store system as all requests of the process share it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use super::cache::{Breaker, Cache, Entry, Leave};
use super::{Connector, FetchError, Fetched, Found, Lookup, Policy, Role, Shopper};

/// What a flight brings to those who wait for a key: nothing yet, or the end of it.
type Landing = watch::Sender<Option<Landed>>;
type Landed = Result<(Arc<Value>, SystemTime), FetchError>;

/// A store system behind its limits. Clones share it.
#[derive(Clone)]
pub struct Source(Arc<Inner>);

struct Inner {
    name: String,
    role: Role,
    connector: Arc<dyn Connector>,
    policy: Policy,
    permits: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cache: Cache,
    breaker: Breaker,
    /// Keys that are asked for or about to be.
    flights: HashMap<String, Landing>,
    /// Those of them that wait for the next batch.
    queue: Vec<String>,
}

/// The keys of a batch. However its task ends, those who wait for them hear of it.
struct Batch {
    source: Source,
    keys: Vec<String>,
    leave: Leave,
    found: Found,
}

impl Source {
    /// A source in front of a connector.
    pub fn new(name: &str, role: Role, connector: Arc<dyn Connector>, policy: Policy) -> Self {
        Source(Arc::new(Inner {
            name: name.to_owned(),
            role,
            connector,
            permits: Semaphore::new(policy.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            policy,
            state: Mutex::default(),
        }))
    }

    /// Its name in errors and metrics.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it tells about.
    pub fn role(&self) -> Role {
        self.0.role
    }

    /// Its limits.
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// Keys that are being asked for.
    pub fn in_flight(&self) -> usize {
        self.state().flights.len()
    }

    /// Begins to ask for keys that are likely to be wanted.
    pub fn prefetch<'a>(&self, keys: impl IntoIterator<Item = &'a str>) {
        if self.0.role != Role::Orders {
            keys.into_iter().for_each(|key| drop(self.ask(key)));
        }
    }

    /// The value of a key, within the deadline.
    pub async fn get(&self, key: &str, shopper: Option<Shopper>) -> Fetched {
        let deadline = self.0.policy.deadline;
        if self.0.role == Role::Orders {
            return match timeout(deadline, self.personal(key, shopper)).await {
                Ok(fetched) => fetched,
                Err(_) => {
                    self.state().breaker.report(true, Instant::now(), &self.0.policy);
                    Fetched::Failed(FetchError::Timeout)
                }
            };
        }
        let mut landing = match self.ask(key) {
            Ok(fetched) => return fetched,
            Err(landing) => landing,
        };
        let landed = timeout(deadline, landing.wait_for(Option::is_some)).await;
        let result = match landed {
            Ok(Ok(result)) => result.clone().unwrap_or(Err(FetchError::Aborted)),
            Ok(Err(_)) => Err(FetchError::Aborted),
            Err(_) => Err(FetchError::Timeout),
        };
        match result {
            Ok((value, as_of)) => Fetched::Fresh { value, as_of },
            Err(error) => self.fallback(key, error),
        }
    }

    /// One that nobody else may see, and that is true only now.
    async fn personal(&self, key: &str, shopper: Option<Shopper>) -> Fetched {
        let leave = self.state().breaker.ask(Instant::now());
        if leave == Leave::No {
            return Fetched::Failed(FetchError::Open);
        }
        let _trial = Trial { source: self, leave };
        let found = self.attempt(Lookup { keys: vec![key.to_owned()], shopper }, leave).await;
        let failed = found.as_ref().is_err_and(|error| error.is_fault());
        self.state().breaker.report(failed, Instant::now(), &self.0.policy);
        match found.map(|mut found| found.remove(key)) {
            Ok(Some(value)) => Fetched::Fresh { value: Arc::new(value), as_of: SystemTime::now() },
            Ok(None) => Fetched::Failed(FetchError::NotFound),
            Err(error) => Fetched::Failed(error),
        }
    }

    /// What is known already, or a place to wait at.
    fn ask(&self, key: &str) -> Result<Fetched, watch::Receiver<Option<Landed>>> {
        let policy = &self.0.policy;
        let now = Instant::now();
        let mut state = self.state();
        if let Some(entry) = state.cache.get(key) {
            let age = now.saturating_duration_since(entry.at);
            match &entry.value {
                Some(value) if age <= policy.fresh_for => {
                    return Ok(Fetched::Fresh { value: value.clone(), as_of: entry.as_of });
                }
                None if age <= policy.missing_for => return Ok(Fetched::Failed(FetchError::NotFound)),
                _ => {}
            }
        }
        if let Some(landing) = state.flights.get(key) {
            return Err(landing.subscribe());
        }
        if state.breaker.is_open(now) {
            drop(state);
            return Ok(self.fallback(key, FetchError::Open));
        }
        let (landing, receiver) = watch::channel(None);
        state.flights.insert(key.to_owned(), landing);
        state.queue.push(key.to_owned());
        let first = state.queue.len() == 1;
        drop(state);
        if first {
            let source = self.clone();
            tokio::spawn(async move { source.depart().await });
        }
        Err(receiver)
    }

    /// Waits for company, then asks.
    async fn depart(self) {
        sleep(self.0.policy.window).await;
        let keys = std::mem::take(&mut self.state().queue);
        for keys in keys.chunks(self.0.policy.batch.max(1)) {
            let leave = self.state().breaker.ask(Instant::now());
            let source = self.clone();
            let batch = Batch { source, keys: keys.to_vec(), leave, found: Err(FetchError::Aborted) };
            tokio::spawn(batch.fly());
        }
    }

    /// Asks once, or twice where the first ask fails or is slow. A trial asks once.
    async fn attempt(&self, lookup: Lookup, leave: Leave) -> Found {
        let Ok(_permit) = self.0.permits.acquire().await else { return Err(FetchError::Aborted) };
        let again = lookup.clone();
        let mut first = self.0.connector.lookup(lookup);
        let Some(patience) = self.0.policy.hedge_after.filter(|_| leave == Leave::Yes) else {
            return first.await;
        };
        match timeout(patience, &mut first).await {
            Ok(Err(error)) if error.is_passing() => self.0.connector.lookup(again).await,
            Ok(found) => found,
            Err(_) => {
                // The second ask is a batch under way like any other.
                let Ok(_permit) = self.0.permits.try_acquire() else { return first.await };
                let mut second = self.0.connector.lookup(again);
                tokio::select! {
                    found = &mut first => if found.is_ok() { found } else { second.await },
                    found = &mut second => if found.is_ok() { found } else { first.await },
                }
            }
        }
    }

    /// What can be shown of a key that could not be had.
    fn fallback(&self, key: &str, error: FetchError) -> Fetched {
        let state = self.state();
        let entry = state.cache.get(key).filter(|e| e.at.elapsed() <= self.0.policy.stale_for);
        match entry.and_then(|entry| Some((entry.value.clone()?, entry.as_of))) {
            Some((value, as_of)) if error != FetchError::NotFound => Fetched::Stale { value, as_of, error },
            _ => Fetched::Failed(error),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The shopper may go while their ask is the one that finds out whether the source is back: then another may.
struct Trial<'a> {
    source: &'a Source,
    leave: Leave,
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.leave == Leave::Trial {
            self.source.state().breaker.release();
        }
    }
}

impl Batch {
    async fn fly(mut self) {
        if self.leave == Leave::No {
            self.found = Err(FetchError::Open);
            return;
        }
        let lookup = Lookup { keys: self.keys.clone(), shopper: None };
        let source = self.source.clone();
        let answer = timeout(source.0.policy.deadline, source.attempt(lookup, self.leave)).await;
        self.found = answer.unwrap_or(Err(FetchError::Timeout));
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let (now, as_of) = (Instant::now(), SystemTime::now());
        let policy = self.source.0.policy;
        let mut state = self.source.state();
        if self.leave != Leave::No {
            let aborted = matches!(self.found, Err(FetchError::Aborted));
            let failed = aborted || self.found.as_ref().is_err_and(|error| error.is_fault());
            state.breaker.report(failed, now, &policy);
        }
        for key in std::mem::take(&mut self.keys) {
            let result = match &mut self.found {
                Err(error) => Err(*error),
                Ok(found) => {
                    let value = found.remove(&key).map(Arc::new);
                    state.cache.put(key.clone(), Entry { value: value.clone(), at: now, as_of }, &policy);
                    value.map(|value| (value, as_of)).ok_or(FetchError::NotFound)
                }
            };
            if let Some(landing) = state.flights.remove(&key) {
                landing.send_replace(Some(result));
            }
        }
    }
}
