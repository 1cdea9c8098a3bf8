//! Hydration under faults, on a clock that jumps: random delays, errors, panics and disconnects.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::assistant::compose::{Desk, TextFailure, TextSource, compose};
use crate::assistant::directive::{Parser, Piece};
use crate::assistant::event::{Card, Event, State};

/// Steele, Lea and Flood's SplitMix64.
struct Rng(AtomicU64);

impl Rng {
    fn next(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&self, n: u64) -> u64 {
        self.next() % n
    }
    fn pick<T: Copy>(&self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// A store with every fault there is, which checks how it is asked.
struct Store {
    rng: Arc<Rng>,
    policy: Policy,
    /// Milliseconds; one of them is drawn for each lookup.
    delays: Vec<u64>,
    /// In percent.
    faults: u64,
    running: Arc<AtomicUsize>,
    /// Asks against the contract.
    violations: Arc<AtomicUsize>,
    lookups: Mutex<Vec<Vec<String>>>,
}

impl Store {
    fn counted(
        rng: Arc<Rng>,
        policy: Policy,
        delays: &[u64],
        faults: u64,
        violations: &Arc<AtomicUsize>,
    ) -> Arc<Self> {
        let (delays, running, violations) = (delays.to_vec(), Arc::default(), violations.clone());
        Arc::new(Store { rng, policy, delays, faults, running, violations, lookups: Mutex::default() })
    }
    fn new(rng: Arc<Rng>, policy: Policy, delays: &[u64], faults: u64) -> Arc<Self> {
        Store::counted(rng, policy, delays, faults, &Arc::default())
    }
    fn lookups(&self) -> usize {
        self.lookups.lock().unwrap().len()
    }
}

/// Counts a lookup as running until its future is dropped.
struct Gauge(Arc<AtomicUsize>);

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connector for Store {
    fn lookup(&self, lookup: Lookup) -> Pin<Box<dyn Future<Output = Found> + Send + '_>> {
        let keys = lookup.keys;
        // A panic here would only be one more fault of the store.
        let check = |holds: bool| {
            let _ = self.violations.fetch_add(usize::from(!holds), Ordering::Relaxed);
        };
        check(!keys.is_empty() && keys.len() <= self.policy.batch);
        let unique: std::collections::HashSet<_> = keys.iter().collect();
        check(unique.len() == keys.len());
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        check(running <= self.policy.concurrency);
        let gauge = Gauge(self.running.clone());
        self.lookups.lock().unwrap().push(keys.clone());
        let delay = Duration::from_millis(self.rng.pick(&self.delays));
        let fault = self.rng.below(100) < self.faults;
        Box::pin(async move {
            let _gauge = gauge;
            sleep(delay).await;
            if fault {
                return match self.rng.below(6) {
                    0 => Err(FetchError::Unreachable),
                    1 => Err(FetchError::Failed),
                    2 => Err(FetchError::Refused),
                    3 => Err(FetchError::Invalid),
                    // Not `panic!`, which would fill the log.
                    4 => std::panic::resume_unwind(Box::new("a connector panics")),
                    _ => Ok(HashMap::new()),
                };
            }
            Ok(keys.into_iter().map(|key| (key.clone(), json!({ "id": key, "price": 1 }))).collect())
        })
    }
}

/// Text that arrives at set times.
struct Script {
    parts: std::collections::VecDeque<(Instant, String)>,
    fails: bool,
}

impl TextSource for Script {
    async fn next(&mut self) -> Option<Result<String, TextFailure>> {
        let Some((at, _)) = self.parts.front() else {
            let failure = TextFailure { code: "x".into(), message: "x".into() };
            return std::mem::take(&mut self.fails).then_some(Err(failure));
        };
        tokio::time::sleep_until(*at).await;
        self.parts.pop_front().map(|(_, part)| Ok(part))
    }
}

fn script(rng: &Rng) -> Vec<(u64, String)> {
    let mut at = 0;
    let part = |_| {
        at += rng.pick(&[0, 0, 1, 5, 20, 200]);
        let id = rng.below(6);
        let text = match rng.below(9) {
            0 => format!("<card product=\"P{id}\"/>"),
            1 => format!("<list ids=\"P{id},P{}\"/>", rng.below(6)),
            2 => format!("<compare ids=\"P{id},P{}\"/>", (id + 1) % 6),
            3 => format!("<reviews product=\"P{id}\"/>"),
            4 => "<order/>".into(),
            5 => "<card product=\"unknown\"/>".into(),
            _ => " some words.".into(),
        };
        (at, text)
    };
    (0..rng.below(12)).map(part).collect()
}

/// What must have been seen of each card by the end.
fn check_cards(seen: &[(Instant, Event)], deadline: Duration, complete: bool, seed: u64) {
    let mut cards: Vec<(Instant, Card)> = Vec::new();
    for (at, event) in seen {
        let Event::Card(card) = event else { continue };
        match cards.iter_mut().find(|(_, known)| known.id == card.id) {
            None => {
                assert_eq!(card.slot as usize, cards.len() + 1, "seed {seed}: cards out of order");
                assert_eq!(card.rev, 0, "seed {seed}");
                cards.push((*at, card.clone()));
            }
            Some((since, known)) => {
                assert!(!known.state.is_final(), "seed {seed}: changed after it was final: {card:?}");
                assert!(card.state >= known.state && card.rev > known.rev, "seed {seed}: {known:?} {card:?}");
                assert!(*at <= *since + deadline + Duration::from_millis(1), "seed {seed}: late: {card:?}");
                *known = card.clone();
            }
        }
    }
    for (_, card) in &cards {
        assert!(!complete || card.state.is_final(), "seed {seed}: left pending: {card:?}");
        let explained = card.error.is_some();
        assert!(!complete || explained || card.state < State::Stale, "seed {seed}: {card:?}");
    }
}

async fn one(seed: u64) {
    let rng = Arc::new(Rng(AtomicU64::new(seed)));
    let policy = Policy {
        deadline: Duration::from_millis(rng.pick(&[50, 800])),
        window: Duration::from_millis(rng.pick(&[0, 2])),
        batch: rng.pick(&[1, 3, 50]),
        concurrency: rng.pick(&[1, 2, 8]),
        hedge_after: rng.pick(&[None, Some(Duration::from_millis(20))]),
        fresh_for: Duration::from_millis(rng.pick(&[0, 100, 5000])),
        missing_for: Duration::from_millis(rng.pick(&[0, 1000])),
        remembered: rng.pick(&[1, 4, 100]),
        failures: rng.pick(&[1, 3]),
        cooldown: Duration::from_millis(rng.pick(&[10, 1000])),
        ..Policy::default()
    };
    let violations = Arc::default();
    let role = |role, faults| {
        let delays = [0, 1, 10, 45, 100, 700, 5000, 1_000_000];
        let store = Store::counted(rng.clone(), policy, &delays, faults, &violations);
        Source::new("store", role, store, policy)
    };
    let faults = rng.pick(&[0, 30, 100]);
    let sources = [
        role(Role::Catalog, 0),
        role(Role::Live, faults),
        role(Role::Reviews, faults),
        role(Role::Orders, faults),
    ];
    let desk = Desk {
        sources: sources.to_vec(),
        products: (0..6).map(|i| format!("P{i}")).collect(),
        order: rng.pick(&[None, Some("42")]).map(str::to_owned),
        ..Desk::default()
    };
    // The second answer meets what the first has left in the sources.
    for _ in 0..2 {
        let start = Instant::now();
        let plan = script(&rng);
        let parts =
            plan.iter().map(|(at, part)| (start + Duration::from_millis(*at), part.clone())).collect();
        let fails = rng.below(8) == 0;
        let mut text = Script { parts, fails };
        let mut seen: Vec<(Instant, Event)> = Vec::new();
        let answer = compose(&mut text, &desk, |event| seen.push((Instant::now(), event)));
        let patience = if rng.below(4) == 0 { rng.below(1000) } else { 1_000_000 };
        let ended = timeout(Duration::from_millis(patience), answer).await;

        let complete = ended.is_ok();
        check_cards(&seen, policy.deadline, complete, seed);
        if let Ok((summary, result)) = &ended {
            assert_eq!(result.is_err(), fails, "seed {seed}");
            // Each piece of prose left at the very moment at which it had come.
            let mut parser = Parser::new(Default::default());
            let mut expected = Vec::new();
            for (at, part) in &plan {
                for piece in parser.push(part) {
                    if let Piece::Text(text) = piece {
                        expected.push((start + Duration::from_millis(*at), Event::Text(text)));
                    }
                }
            }
            let texts: Vec<_> = seen.iter().filter(|(_, e)| matches!(e, Event::Text(_))).cloned().collect();
            assert_eq!(texts, expected, "seed {seed}: text has waited");
            let last = plan.last().map_or(0, |(at, _)| *at);
            let bound = Duration::from_millis(last) + policy.deadline + Duration::from_millis(2);
            assert!(start.elapsed() <= bound, "seed {seed}: {:?} after {bound:?}", start.elapsed());
            let raw: String = plan.iter().map(|(_, part)| part.as_str()).collect();
            assert_eq!(summary.raw, raw);
        }
    }
    sleep(policy.deadline * 2 + Duration::from_millis(100)).await;
    for source in &sources {
        assert_eq!(source.in_flight(), 0, "seed {seed}: a flight is left");
    }
    assert_eq!(violations.load(Ordering::Relaxed), 0, "seed {seed}: asked against the contract");
    let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(alive, 0, "seed {seed}: tasks are left");
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

#[test]
fn whatever_the_stores_do_answers_end_in_order_and_on_time() {
    // Each failure names its seed.
    let base = std::env::var("MILLRACE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_000u64);
    for seed in base..base + 10_000 {
        paused().block_on(one(seed));
    }
}

#[test]
fn the_first_text_does_not_know_how_slow_stores_are() {
    let first = |delay: u64| {
        paused().block_on(async move {
            let policy = Policy::default();
            let store = Store::new(Arc::new(Rng(AtomicU64::new(1))), policy, &[delay], 0);
            let desk = Desk {
                sources: vec![Source::new("prices", Role::Live, store, policy)],
                products: ["P1".to_owned()].into(),
                ..Desk::default()
            };
            let at = |ms| Instant::now() + Duration::from_millis(ms);
            let parts = [(at(5), "<card product=\"P1\"/>".to_owned()), (at(9), "Yes.".to_owned())].into();
            let mut states = Vec::new();
            let (summary, _) = compose(&mut Script { parts, fails: false }, &desk, |event| {
                if let Event::Card(card) = event {
                    states.push(card.state);
                }
            })
            .await;
            (summary.first_text, states)
        })
    };
    assert_eq!(first(0), (Some(Duration::from_millis(9)), vec![State::Pending, State::Ready]));
    assert_eq!(first(5000), (Some(Duration::from_millis(9)), vec![State::Pending, State::Unavailable]));
}

#[test]
fn asks_are_shared_batched_and_remembered() {
    paused().block_on(async {
        let policy = Policy { fresh_for: Duration::from_secs(1), hedge_after: None, ..Policy::default() };
        let store = Store::new(Arc::new(Rng(AtomicU64::new(1))), policy, &[50], 0);
        let source = Source::new("prices", Role::Live, store.clone(), policy);
        source.prefetch(["a", "b"]);
        let (a, b, c) = tokio::join!(source.get("a", None), source.get("a", None), source.get("c", None));
        assert_eq!(a, b);
        assert!(matches!(c, Fetched::Fresh { .. }), "{c:?}");
        assert_eq!(*store.lookups.lock().unwrap(), [["a", "b", "c"]]);
        sleep(Duration::from_millis(900)).await;
        source.get("b", None).await;
        assert_eq!(store.lookups(), 1);
        sleep(Duration::from_millis(200)).await;
        source.get("b", None).await;
        assert_eq!(store.lookups(), 2);
    });
}

/// A store that does what it is told next.
struct Told(Mutex<std::collections::VecDeque<(u64, Found)>>, AtomicUsize);

impl Connector for Told {
    fn lookup(&self, _: Lookup) -> Pin<Box<dyn Future<Output = Found> + Send + '_>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let (delay, found) = self.0.lock().unwrap().pop_front().expect("one ask too many");
        Box::pin(async move {
            sleep(Duration::from_millis(delay)).await;
            found
        })
    }
}

fn told(script: Vec<(u64, Found)>, policy: Policy) -> (Arc<Told>, Source) {
    let told = Arc::new(Told(Mutex::new(script.into()), AtomicUsize::new(0)));
    (told.clone(), Source::new("told", Role::Live, told, policy))
}

fn found(key: &str) -> Found {
    Ok([(key.to_owned(), json!({}))].into())
}

#[test]
fn a_slow_or_failed_ask_is_repeated_once() {
    let policy = Policy { hedge_after: Some(Duration::from_millis(100)), ..Policy::default() };
    for (script, asks, after, fresh) in [
        (vec![(10, found("a"))], 1, 12, true),
        (vec![(5000, found("a")), (50, found("a"))], 2, 152, true),
        (vec![(200, found("a")), (500, found("a"))], 2, 202, true),
        (vec![(10, Err(FetchError::Failed)), (10, found("a"))], 2, 22, true),
        (vec![(10, Err(FetchError::Failed)), (10, Err(FetchError::Failed))], 2, 22, false),
        (vec![(10, Err(FetchError::Refused))], 1, 12, false),
        (vec![(150, Err(FetchError::Failed)), (100, found("a"))], 2, 202, true),
        (vec![(5000, found("a")), (5000, found("a"))], 2, 800, false),
    ] {
        paused().block_on(async {
            let (told, source) = told(script.clone(), policy);
            let start = Instant::now();
            let fetched = source.get("a", None).await;
            assert_eq!(matches!(fetched, Fetched::Fresh { .. }), fresh, "{script:?}: {fetched:?}");
            let took = start.elapsed().as_millis() as i64;
            // Timers fire at whole milliseconds.
            assert!((took - after).abs() <= 3, "{script:?}: {took} ms, not {after}");
            assert_eq!(told.1.load(Ordering::Relaxed), asks, "{script:?}");
        });
    }
}

#[test]
fn a_source_that_fails_is_left_alone_then_tried() {
    let policy = Policy { failures: 2, hedge_after: None, fresh_for: Duration::ZERO, ..Policy::default() };
    paused().block_on(async {
        let fail = || (1, Err(FetchError::Unreachable));
        let script = vec![(1, found("a")), fail(), fail(), fail(), (1, found("a"))];
        let (told, source) = told(script, policy);
        let asks = || told.1.load(Ordering::Relaxed);
        assert!(matches!(source.get("a", None).await, Fetched::Fresh { .. }));
        for asked in [2, 3, 3, 3] {
            sleep(Duration::from_millis(10)).await;
            let fetched = source.get("a", None).await;
            assert!(matches!(fetched, Fetched::Stale { .. }), "{fetched:?}");
            assert_eq!(asks(), asked);
        }
        assert_eq!(source.get("b", None).await, Fetched::Failed(FetchError::Open));
        // One trial that fails closes the door again; one that succeeds opens it.
        for (asked, fresh) in [(4, false), (5, true)] {
            sleep(policy.cooldown).await;
            let fetched = source.get("a", None).await;
            assert_eq!(matches!(fetched, Fetched::Fresh { .. }), fresh, "{fetched:?}");
            assert_eq!(asks(), asked);
        }
    });
}

#[test]
fn what_does_not_exist_is_believed_for_a_while() {
    paused().block_on(async {
        let policy = Policy { missing_for: Duration::from_secs(30), ..Policy::default() };
        let (told, source) = told(vec![(1, Ok(HashMap::new())), (1, found("a"))], policy);
        for _ in 0..3 {
            assert_eq!(source.get("a", None).await, Fetched::Failed(FetchError::NotFound));
        }
        sleep(Duration::from_secs(31)).await;
        assert!(matches!(source.get("a", None).await, Fetched::Fresh { .. }));
        assert_eq!(told.1.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn orders_are_never_shared() {
    paused().block_on(async {
        let policy = Policy::default();
        let store = Store::new(Arc::new(Rng(AtomicU64::new(1))), policy, &[5], 0);
        let source = Source::new("orders", Role::Orders, store.clone(), policy);
        let shopper = |name: &str| Some(Shopper(name.into()));
        tokio::join!(source.get("7", shopper("a")), source.get("7", shopper("b")));
        source.prefetch(["7"]);
        assert_eq!(store.lookups(), 2);
        assert!(!format!("{:?}", shopper("secret")).contains("secret"));
    });
}
