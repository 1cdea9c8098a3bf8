//! Every status of the runtime, in each phase: what a client sees, what the log says, how the process goes on or ends.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use neuron_sys::sys::NRT_STATUS;
use neuron_sys::{Phase, Reaction, Status};
use softnrt::testing::compiler_path;

use crate::rig::{Client, PATIENCE, Rig, Server, all, chat, text};

/// What is to be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// Clients are served as if nothing had been.
    Served,
    /// The same, with fewer KV blocks.
    Shrunk,
    /// The requests of the step fail with a 500 that is not to be retried; others are served.
    Refused,
    /// Requests get a 503 that is to be retried; the process ends with an error.
    Ended,
}
use Seen::*;

/// At init, at load, while serving. Written by number, apart from the table that the engine goes by.
const EXPECTED: [(u32, [Seen; 3]); 28] = [
    (1, [Served, Ended, Ended]),
    (2, [Ended, Ended, Refused]),
    (3, [Ended, Ended, Ended]),
    (4, [Served, Shrunk, Ended]),
    (5, [Ended, Ended, Ended]),
    (6, [Ended, Ended, Ended]),
    (7, [Served, Served, Served]),
    (9, [Served, Ended, Ended]),
    (10, [Ended, Ended, Ended]),
    (11, [Ended, Shrunk, Ended]),
    (13, [Ended, Ended, Ended]),
    (14, [Ended, Ended, Ended]),
    (15, [Served, Served, Served]),
    (101, [Ended, Ended, Ended]),
    (1002, [Ended, Ended, Refused]),
    (1003, [Ended, Ended, Refused]),
    (1004, [Ended, Ended, Ended]),
    (1005, [Served, Ended, Ended]),
    (1006, [Ended, Ended, Refused]),
    (1100, [Served, Served, Served]),
    (1200, [Ended, Ended, Ended]),
    (1201, [Ended, Ended, Ended]),
    (1202, [Ended, Ended, Ended]),
    (1203, [Ended, Ended, Ended]),
    (1204, [Ended, Ended, Ended]),
    (1205, [Ended, Ended, Ended]),
    (1206, [Ended, Ended, Ended]),
    // One that no release has.
    (4711, [Ended, Ended, Ended]),
];

/// What whoever reads the log is told to do.
fn remedy(reaction: Reaction) -> &'static str {
    match reaction {
        Reaction::Wait => "made no progress",
        Reaction::RetryInit => "another process may have the cores",
        Reaction::FailRequest => "report it",
        Reaction::FailNumeric => "not-a-number",
        Reaction::Shrink => "--kv-memory",
        Reaction::Restart => "started anew",
        Reaction::ReplaceNode => "out of service",
        Reaction::ReloadDriver => "the driver anew",
        Reaction::Config => "compile them anew",
    }
}

struct Case {
    phase: Phase,
    /// The call that returns it.
    call: &'static str,
    code: u32,
    seen: Seen,
    /// Whether it is returned again and again, not once.
    lasts: bool,
}

impl Case {
    fn run(&self, rig: &Rig, expected: &str) {
        match self.phase {
            Phase::Init | Phase::Load => self.at_start(rig, expected),
            Phase::Run => self.while_serving(rig, expected),
        }
    }

    /// That the log names the status and says what to do.
    fn check_log(&self, log: &str) {
        let status = Status(NRT_STATUS(self.code));
        let named = match status.name() {
            Some(name) => format!("{name} ({})", self.code),
            None => format!("unknown status {}", self.code),
        };
        let remedy = remedy(status.reaction(self.phase));
        let found =
            log.lines().any(|line| line.contains("ERROR") && line.contains(&named) && line.contains(remedy));
        assert!(found, "{}: no error with {named:?} and {remedy:?} in\n{log}", self.label());
    }

    fn label(&self) -> String {
        format!(
            "{:?}, {} {}{}",
            self.phase,
            self.call,
            self.code,
            if self.lasts { ", again and again" } else { "" }
        )
    }

    fn at_start(&self, rig: &Rig, expected: &str) {
        let fault = format!("{}@{}:{}", self.call, if self.lasts { "1-" } else { "1" }, self.code);
        // Fewer blocks are other graphs, which the store does not have.
        let compiler = format!("--compiler={}", compiler_path().display());
        let more = if self.seen == Shrunk { vec![compiler.as_str()] } else { Vec::new() };
        let mut server = rig.serve(&more, &[("SOFTNRT_FAULT", &fault)]);
        let ready = server.ready();
        match self.seen {
            Served | Shrunk => {
                assert!(ready.is_ok(), "{}: {ready:?}\n{}", self.label(), server.log());
                let client = server.client().expect("it listens");
                assert_eq!(text(&client.post("/v1/chat/completions", &chat(12, false))), expected);
                let log = server.drained();
                let fewer = log.contains("fewer KV blocks");
                assert_eq!(fewer, self.seen == Shrunk, "{}:\n{log}", self.label());
            }
            Refused | Ended => {
                assert!(ready.is_err(), "{} was tolerated:\n{}", self.label(), server.log());
                let (code, log, _) = server.ended();
                assert_eq!(code, Some(1), "{}:\n{log}", self.label());
                self.check_log(&log);
            }
        }
    }

    fn while_serving(&self, rig: &Rig, expected: &str) {
        let file = rig.path(&format!("fault-{}-{}", self.code, self.lasts));
        // Slow, so that requests do not end before the fault.
        let environment = [("SOFTNRT_FAULT_FILE", file.as_str()), ("SOFTNRT_SLOW", "20")];
        let mut server = rig.serve(&[], &environment);
        assert!(server.ready().is_ok(), "{}", server.log());
        let client = server.client().expect("it listens");
        let which = match (self.lasts, self.seen) {
            // A step is tried again in halves, so a request is refused only where its own execution fails, too.
            (_, Refused) | (true, _) => "1-",
            (false, Served) => "1-3",
            (false, _) => "1",
        };
        let two = Two::run(&client, &file, &format!("execute@{which}:{}", self.code));
        let label = self.label();
        let code = |error: &serde_json::Value| error["code"].as_str().map(str::to_owned);
        match self.seen {
            Served => {
                assert!(two.stream.is_whole(), "{label}: {:?}", two.stream);
                assert!(two.stream.text.starts_with(expected), "{label}: {}", two.stream.text);
                assert_eq!(two.stream.text, text(&two.other), "{label}");
                server.drained();
            }
            Refused => {
                two.check_broken(&label);
                let error = two.stream.error.as_ref().expect("broken");
                assert_eq!(
                    (code(error), &error["retryable"]),
                    (Some("request_failed".into()), &false.into())
                );
                assert_eq!(two.other.status, 500, "{label}: {:?}", two.other);
                assert_eq!(code(&two.other.body["error"]).as_deref(), Some("request_failed"), "{label}");
                assert_eq!(two.other.should_retry.as_deref(), Some("false"), "{label}");
                give(&file, "");
                assert_eq!(text(&client.post("/v1/chat/completions", &chat(12, false))), expected, "{label}");
                self.check_log(&server.drained());
            }
            Ended | Shrunk => {
                two.check_dead(&label);
                let (code, log, _) = server.ended();
                assert_eq!(code, Some(1), "{label}:\n{log}");
                self.check_log(&log);
            }
        }
    }
}

/// Puts a fault where the runtime's double looks for it.
pub(crate) fn give(file: &str, fault: &str) {
    let whole = format!("{file}.new");
    std::fs::write(&whole, fault).expect("written");
    std::fs::rename(&whole, file).expect("moved");
}

/// Two requests that are under way when the fault comes: a stream of which something has come, and one that waits for
/// its whole answer.
pub(crate) struct Two {
    pub(crate) stream: crate::rig::Streamed,
    pub(crate) other: crate::rig::Answer,
}

impl Two {
    pub(crate) fn run(client: &Client, file: &str, fault: &str) -> Two {
        const PATH: &str = "/v1/chat/completions";
        let (first, begun) = channel();
        std::thread::scope(|scope| {
            let stream = scope.spawn(move || {
                client.stream(PATH, &chat(40, true), move || first.send(()).expect("somebody waits"))
            });
            begun.recv_timeout(PATIENCE).expect("text comes");
            let other = scope.spawn(|| client.post(PATH, &chat(40, false)));
            let started = Instant::now();
            while client.metric("vllm:num_requests_running") != Some(2.0) {
                assert!(started.elapsed() < PATIENCE, "the second request does not run");
            }
            give(file, fault);
            Two { stream: stream.join().expect("a stream"), other: other.join().expect("an answer") }
        })
    }

    /// That the stream has begun and says itself that it is not whole.
    pub(crate) fn check_broken(&self, label: &str) {
        let Two { stream, .. } = self;
        assert!(stream.role && stream.pieces > 0, "{label}: {stream:?}");
        assert!(stream.error.is_some() && !stream.done && stream.finish.is_none(), "{label}: {stream:?}");
    }

    /// That both were told to ask another server.
    pub(crate) fn check_dead(&self, label: &str) {
        self.check_broken(label);
        let error = self.stream.error.as_ref().expect("broken");
        assert_eq!(
            (error["code"].as_str(), &error["retryable"]),
            (Some("engine_dead"), &true.into()),
            "{label}"
        );
        assert_eq!(self.other.status, 503, "{label}: {:?}", self.other);
        assert_eq!(self.other.body["error"]["code"], "engine_dead", "{label}: {:?}", self.other);
        assert_eq!(self.other.should_retry.as_deref(), Some("true"), "{label}");
    }
}

/// The answer of a server that nothing happens to, which also shows what `/version` and the metrics say.
pub(crate) fn undisturbed(rig: &Rig, ranks: usize) -> String {
    let mut server: Server = rig.serve(&[], &[]);
    assert!(server.ready().is_ok(), "{}", server.log());
    let client = server.client().expect("it listens");
    let (_, version) = client.get("/version").expect("an answer");
    let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
    let library = version["neuron"]["library"].as_str().expect("the library");
    for part in ["libsoftnrt.so", "version 2.30.50.0 softnrt", "has nrt_", "nrt_load_collectives", "lacks "] {
        assert!(library.contains(part), "{part:?} is not in {library:?}");
    }
    assert_eq!(version["neuron"]["ranks"], ranks, "{version}");
    let streamed = client.stream("/v1/chat/completions", &chat(12, true), || {});
    assert!(streamed.is_whole() && streamed.finish.as_deref() == Some("length"), "{streamed:?}");
    let executions = client.metric("vllm_neuron:neff_execution_count_total").expect("it is counted");
    // The prompt at once or token by token, whatever was faster, and eleven tokens of the answer.
    assert!((12.0..=14.0).contains(&executions), "{executions}");
    let answer = client.post("/v1/chat/completions", &chat(12, false));
    assert_eq!(text(&answer), streamed.text);
    server.drained();
    streamed.text
}

#[test]
fn what_each_status_means_to_clients() {
    let known: Vec<u32> = Status::known().map(Status::code).collect();
    let listed: Vec<u32> = EXPECTED.iter().map(|(code, _)| *code).filter(|code| *code != 4711).collect();
    assert_eq!(listed, known, "every status has its expectation here");
    let rig = Rig::new(1);
    let expected = undisturbed(&rig, 1);
    // First those that take their time.
    let mut cases = vec![
        Case { phase: Phase::Init, call: "init", code: 1005, seen: Ended, lasts: true },
        Case { phase: Phase::Load, call: "load", code: 15, seen: Ended, lasts: true },
        Case { phase: Phase::Run, call: "execute", code: 7, seen: Ended, lasts: true },
    ];
    for (code, [init, load, run]) in EXPECTED {
        let of = |phase, call, seen| Case { phase, call, code, seen, lasts: false };
        cases.push(of(Phase::Init, "init", init));
        cases.push(of(Phase::Load, "load", load));
        // A program's first run belongs to its loading.
        cases.push(of(Phase::Load, "execute", load));
        cases.push(of(Phase::Run, "execute", run));
    }
    let started = Instant::now();
    all(&cases, |case| case.run(&rig, &expected));
    eprintln!("{} processes in {:.1} s", cases.len(), started.elapsed().as_secs_f64());
    // No program of the many has left anything unfinished in the store that they share.
    let staging = rig.folder.path().join("store/.staging");
    let left = std::fs::read_dir(staging).map_or(0, Iterator::count);
    assert_eq!(left, 0);
    assert!(started.elapsed() < Duration::from_secs(600));
}
