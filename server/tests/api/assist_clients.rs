//! Real front-end clients read recorded answers: all kinds and states of cards, in both protocols.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use millrace_server::assistant::event::{
    Card, CardBody, CardError, Citation, ComparisonRow, End, Event, Item, Layout, Plan, PlannedSource, Ref,
    SourceState, Start, State,
};
use millrace_server::assistant::stream::{AgUi, AiSdk, Encoder};
use serde_json::{Map, Value, json};

/// The judges, installed; `None` where that is not possible, which is said.
pub(crate) fn judge() -> Option<PathBuf> {
    // Tests run side by side, and npm does not stand two installations into one directory.
    static JUDGE: OnceLock<Option<PathBuf>> = OnceLock::new();
    JUDGE.get_or_init(install).clone()
}

fn install() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let found =
        root.map(|dir| dir.join("shared/tools/stream-clients")).find(|dir| dir.join("judge.mjs").is_file());
    let Some(source) = found else {
        eprintln!("skipped: no ../shared/tools/stream-clients");
        return None;
    };
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stream-clients");
    std::fs::create_dir_all(&home).unwrap();
    let copied = ["judge.mjs", "package.json"].map(|name| {
        std::fs::copy(source.join(name), home.join(name)).unwrap();
        std::fs::read(home.join(name)).unwrap()
    });
    // Written last, and npm's own lock file is not: what an interrupted installation left is installed again.
    let complete = home.join("installed");
    if std::fs::read(&complete).ok().as_ref() != Some(&copied[1]) {
        let _ = std::fs::remove_dir_all(home.join("node_modules"));
        let install = ["install", "--no-audit", "--no-fund", "--silent"];
        let done = Command::new("npm").args(install).current_dir(&home).output();
        if !done.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no npm, or the clients cannot be installed");
            return None;
        }
        std::fs::write(&complete, &copied[1]).unwrap();
    }
    Some(home)
}

/// What the clients say of a body.
pub(crate) fn ask(judge: &Path, protocol: &str, name: &str, body: &str) -> Output {
    let file = judge.join(format!("{name}-{}.sse", std::process::id()));
    std::fs::write(&file, body).unwrap();
    let arguments = ["judge.mjs", protocol, file.to_str().unwrap()];
    let output = Command::new("node").args(arguments).current_dir(judge).output().unwrap();
    std::fs::remove_file(file).unwrap();
    output
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn bodies(state: State) -> Vec<CardBody> {
    let r#ref = || Ref { source: "catalog", id: "B01".into() };
    let product = || {
        if state == State::Pending {
            return Map::new();
        }
        map(json!({ "id": "B01", "title": "Pan", "price": { "amount": 3999, "currency": "EUR" } }))
    };
    let item = || Item { r#ref: r#ref(), state, product: product() };
    let row = ComparisonRow { attr: "weight".into(), values: vec![json!("1 kg"), Value::Null] };
    let aspects = json!([{ "name": "quality", "positive": 3, "negative": 1, "quotes": ["r1"] }]);
    vec![
        CardBody::Product { r#ref: r#ref(), product: product() },
        CardBody::ProductList { items: vec![item(), item()] },
        CardBody::Comparison { columns: vec![item(), item()], rows: vec![row] },
        CardBody::ReviewSummary { r#ref: r#ref(), summary: map(json!({ "count": 4, "aspects": aspects })) },
        CardBody::Navigation { r#ref: r#ref(), label: Some("Pan".into()), href: Some("/p/B01".into()) },
        CardBody::OrderStatus { r#ref: None, order: map(json!({ "status": "shipped" })) },
        CardBody::SuggestedQuestions { questions: vec!["Is it dishwasher-safe?".into()] },
    ]
}

/// An answer in which every kind of card ends in this state by way of these.
fn answer(states: &[State], end: End) -> Vec<Event> {
    let start = Start {
        message_id: "msg_1".into(),
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        trace_id: "0".repeat(32),
        model: "m".into(),
    };
    let source = |state| PlannedSource { id: "review".into(), state, passages: Some(2) };
    let mut events = vec![
        Event::Start(start),
        Event::Plan(Plan { sources: vec![source(SourceState::Running)] }),
        Event::Plan(Plan { sources: vec![source(SourceState::Late)] }),
        Event::Text("Yes ".into()),
        Event::Source(Citation {
            number: 1,
            source: "qa".into(),
            doc_id: "qa_7".into(),
            product: Some("B01".into()),
            title: "Community answer".into(),
            quote: "It is.\nReally \u{2028} so.".into(),
        }),
        Event::Text("[1].".into()),
    ];
    for (rev, &state) in states.iter().enumerate() {
        for (index, body) in bodies(state).into_iter().enumerate() {
            let error =
                (state > State::Ready).then(|| CardError { code: "timeout", source: "prices".into() });
            events.push(Event::Card(Card {
                id: format!("c{}", index + 1),
                v: 1,
                slot: index as u32 + 1,
                rev: rev as u32,
                body,
                layout: Some(Layout::Compact),
                state,
                deadline_ms: Some(800),
                as_of: (state >= State::Ready).then(|| "2026-11-22T19:00:00Z".into()),
                error,
            }));
            if rev == 0 {
                events.push(Event::Text(" And ".into()));
            }
        }
    }
    if end == End::Finished {
        events.push(Event::Metadata(map(
            json!({ "usage": { "inputTokens": 1 }, "grounding": { "total": 1 } }),
        )));
    }
    events.push(Event::End(end));
    events
}

fn body(mut encoder: impl Encoder, events: &[Event]) -> String {
    let data = events.iter().flat_map(|event| encoder.encode(event)).enumerate();
    let frames: String = data.map(|(i, data)| format!("id: msg_1:{i}\ndata: {data}\n\n")).collect();
    format!(": waiting\n\n{frames}")
}

#[test]
fn real_clients_read_every_kind_and_state() {
    use State::{Partial, Pending, Ready, Stale, Unavailable};
    let Some(judge) = judge() else { return };
    for (number, states) in
        [&[Pending, Partial, Ready][..], &[Pending, Stale], &[Pending, Unavailable], &[Ready]]
            .iter()
            .enumerate()
    {
        let events = answer(states, End::Finished);
        for (protocol, body) in
            [("ai", body(AiSdk::default(), &events)), ("ag-ui", body(AgUi::default(), &events))]
        {
            let output = ask(&judge, protocol, &format!("{protocol}-{number}"), &body);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}\n{}\n{body}", String::from_utf8_lossy(&output.stderr));
            let last = match states.last() {
                Some(Ready) => "=ready",
                Some(Stale) => "=stale",
                _ => "=unavailable",
            };
            assert_eq!(said.matches(last).count(), 7 * if protocol == "ai" { 4 } else { 1 }, "{said}");
        }
    }
}

/// A stream that fails must fail in the clients for its own reason, not for its form; one that is stopped does not fail.
#[test]
fn real_clients_understand_the_end() {
    let Some(judge) = judge() else { return };
    let events = answer(&[State::Ready], End::Aborted);
    let output = ask(&judge, "ai", "aborted", &body(AiSdk::default(), &events));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let why = "the engine has failed";
    let failed = End::Failed { code: "engine_dead".into(), message: why.into() };
    let events = answer(&[State::Ready], failed);
    let output = ask(&judge, "ai", "failed", &body(AiSdk::default(), &events));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.matches(why).count(), 4, "{said}");
    let output = ask(&judge, "ag-ui", "failed", &body(AgUi::default(), &events));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() || said.contains(why), "{said}");
}
