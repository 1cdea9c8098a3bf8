//! The store on a disk that fails and forgets: what was acknowledged must survive, whatever happens between.

// A skipped test says so where its reader looks.
#![allow(clippy::print_stderr)]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::disk::{Directory, Disk};
use super::export::{Format, entries, export};
use super::store::{Limits, Store};
use super::votes::Votes;
use super::writer::{Command, Writer};
use super::*;

/// A disk in memory, worse than a real one: what was not synced may be lost, in part or with bits turned; a write that
/// fails leaves anything behind; a sync that fails loses what it was to save, and must not be tried again.
#[derive(Clone, Default)]
struct Sim(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<u64, File>,
    open: Option<u64>,
    /// Operations until one fails; `None` for never.
    fails_in: Option<u32>,
    /// Bytes that fit.
    capacity: Option<usize>,
    random: u64,
}

#[derive(Clone, Default)]
struct File {
    bytes: Vec<u8>,
    synced: usize,
    unsyncable: bool,
}

impl State {
    /// SplitMix64 (Steele, Lea and Flood).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.random() % (limit as u64 + 1)) as usize
    }

    fn fails(&mut self) -> bool {
        match &mut self.fails_in {
            Some(0) => {
                self.fails_in = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn used(&self) -> usize {
        self.files.values().map(|file| file.bytes.len()).sum()
    }

    fn open_file(&mut self) -> &mut File {
        let number = self.open.expect("a segment is open");
        self.files.get_mut(&number).expect("it is there")
    }
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl Sim {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The power fails.
    fn crash(&self) {
        let mut state = self.state();
        (state.open, state.fails_in) = (None, None);
        for number in state.files.keys().copied().collect::<Vec<_>>() {
            let file = state.files[&number].clone();
            let rest = file.bytes.len() - file.synced.min(file.bytes.len());
            let keep = file.synced.min(file.bytes.len()) + state.below(rest);
            let mut bytes = file.bytes[..keep].to_vec();
            if keep > file.synced && state.random().is_multiple_of(2) {
                let at = file.synced + state.below(keep - file.synced - 1);
                bytes[at] ^= 1 << (state.random() % 8);
            }
            let synced = bytes.len();
            state.files.insert(number, File { bytes, synced, unsyncable: false });
        }
    }
}

impl Disk for Sim {
    fn segments(&self) -> io::Result<Vec<u64>> {
        Ok(self.state().files.keys().copied().collect())
    }
    fn read(&self, number: u64) -> io::Result<Vec<u8>> {
        Ok(self.state().files.get(&number).ok_or(io::ErrorKind::NotFound)?.bytes.clone())
    }
    fn create(&mut self, number: u64, header: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        assert!(!state.files.contains_key(&number), "segment {number} is there already");
        if state.fails() || state.capacity.is_some_and(|capacity| state.used() + header.len() > capacity) {
            // Perhaps it cannot even be removed again.
            if state.random().is_multiple_of(2) {
                let keep = state.below(header.len());
                state
                    .files
                    .insert(number, File { bytes: header[..keep].to_vec(), synced: 0, unsyncable: false });
            }
            return Err(full());
        }
        state.files.insert(number, File { bytes: header.to_vec(), synced: header.len(), unsyncable: false });
        state.open = Some(number);
        Ok(())
    }
    fn resume(&mut self, number: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        state.open = Some(number);
        let file = state.open_file();
        assert!(length as usize <= file.bytes.len());
        file.bytes.truncate(length as usize);
        file.synced = file.bytes.len();
        Ok(())
    }
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let fails =
            state.fails() || state.capacity.is_some_and(|capacity| state.used() + bytes.len() > capacity);
        let keep = if fails { state.below(bytes.len()) } else { bytes.len() };
        state.open_file().bytes.extend_from_slice(&bytes[..keep]);
        if fails { Err(full()) } else { Ok(()) }
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state();
        let fails = state.fails();
        let file = state.open_file();
        assert!(!file.unsyncable, "synced again after an error");
        if fails {
            file.unsyncable = true;
            return Err(io::Error::other("I/O error"));
        }
        file.synced = file.bytes.len();
        Ok(())
    }
    fn cut(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.state();
        // Not durable: after a crash the old end may be there again. Here it is not cut at all half of the time.
        if state.random().is_multiple_of(2) {
            return Err(full());
        }
        let file = state.open_file();
        assert!(length as usize >= file.synced, "cuts off what was synced");
        file.bytes.truncate(length as usize);
        Ok(())
    }
    fn replace(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        assert!(state.files.contains_key(&number));
        if state.fails() {
            return Err(full());
        }
        state.files.insert(number, File { bytes: bytes.to_vec(), synced: bytes.len(), unsyncable: false });
        Ok(())
    }
    fn remove(&mut self, number: u64) -> io::Result<()> {
        self.state().files.remove(&number).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
}

const SMALL: Limits = Limits { bytes: 700, age: 1000 };

fn reopen(disk: Sim) -> Writer<Sim> {
    let mut votes = Votes::default();
    let (store, _) = Store::open(disk, SMALL, &mut votes).unwrap();
    let (_, commands) = sync_channel(1);
    let metrics = Arc::new(FeedbackMetrics::new());
    Writer::new(store, votes, commands, metrics, PathBuf::new(), None, Millis::MAX)
}

fn a_vote(number: u32, value: Opinion) -> Vote {
    Vote {
        at: number.into(),
        message: format!("m{}", number % 7),
        part: format!("card:{number}"),
        key: Some(format!("k{number}")),
        value: Some(value),
        comment: Some("x".repeat(number as usize % 50)),
        ..Vote::default()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Votes in one batch.
    Votes(u32),
    Fail(u32),
    Crash,
    Forget(u32),
    Compact,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u32..6).prop_map(Step::Votes),
        3 => (0u32..6).prop_map(Step::Fail),
        2 => Just(Step::Crash),
        1 => (0u32..7).prop_map(Step::Forget),
        1 => Just(Step::Compact),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Over failing writes, failing syncs and crashes: what was acknowledged is there, once, and what was forgotten is
    /// not.
    #[test]
    fn nothing_acknowledged_is_lost(steps in steps(), random: u64) {
        let disk = Sim::default();
        disk.state().random = random;
        let mut writer = reopen(disk.clone());
        let (mut number, mut acknowledged, mut gone) = (0, HashMap::<u32, Opinion>::new(), Vec::<String>::new());
        // A deletion that failed may come to be all the same.
        let mut perhaps = Vec::<String>::new();
        let check = |writer: &Writer<Sim>, acknowledged: &HashMap<u32, Opinion>, gone: &[String], perhaps: &[String]| {
            for (&number, &value) in acknowledged {
                let vote = a_vote(number, value);
                if gone.contains(&vote.message) {
                    assert_eq!(writer.votes.read(&vote.message), None);
                    continue;
                }
                if perhaps.contains(&vote.message) {
                    continue;
                }
                let parts = writer.votes.read(&vote.message).unwrap();
                let state = parts.get(&vote.part).unwrap_or_else(|| panic!("vote {number} is lost"));
                assert_eq!((state.value, &state.comment), (value, &vote.comment));
            }
        };
        for step in steps {
            match step {
                Step::Votes(count) => {
                    let mut replies = Vec::new();
                    let mut batch = Vec::new();
                    for _ in 0..count {
                        number += 1;
                        let value = Opinion::ALL[number as usize % 3];
                        let (reply, answer) = oneshot::channel();
                        batch.push(Command::Vote(a_vote(number, value), reply));
                        replies.push((number, value, answer));
                    }
                    writer.batch(batch);
                    for (number, value, mut answer) in replies {
                        match answer.try_recv().expect("answered") {
                            Ok(state) => {
                                assert_eq!(state.value, value);
                                acknowledged.insert(number, value);
                            }
                            Err(VoteError::Forgotten) => {
                                let message = a_vote(number, value).message;
                                assert!(gone.contains(&message) || perhaps.contains(&message));
                            }
                            Err(error) => assert_eq!(error, VoteError::NotStored),
                        }
                    }
                }
                Step::Fail(operations) => disk.state().fails_in = Some(operations),
                Step::Crash => {
                    disk.crash();
                    writer = reopen(disk.clone());
                }
                Step::Forget(message) => {
                    let message = format!("m{message}");
                    if writer.forget(&Selector::Message(message.clone())).is_ok() {
                        gone.push(message);
                    } else {
                        perhaps.push(message);
                    }
                }
                Step::Compact => drop(writer.store.compact()),
            }
            check(&writer, &acknowledged, &gone, &perhaps);
        }
        // Once the disk works, all of it is as it should be, in the files too.
        disk.crash();
        let mut writer = reopen(disk.clone());
        while writer.store.compact().unwrap() {}
        check(&writer, &acknowledged, &gone, &perhaps);
        for file in disk.state().files.values() {
            let text = String::from_utf8_lossy(&file.bytes);
            for message in &gone {
                let votes = text.matches(&format!("\"message\":\"{message}\",\"part\"")).count();
                prop_assert_eq!(votes, 0, "{} is still there", message);
            }
        }
    }
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let disk = Sim::default();
    let mut writer = reopen(disk.clone());
    let mut send = |number| {
        let (reply, mut answer) = oneshot::channel();
        writer.batch(vec![Command::Vote(a_vote(number, Opinion::Like), reply)]);
        answer.try_recv().unwrap()
    };
    assert!(send(1).is_ok());
    let used = disk.state().used();
    disk.state().capacity = Some(used);
    for number in 2..20 {
        assert_eq!(send(number), Err(VoteError::NotStored));
    }
    disk.state().capacity = None;
    assert!(send(2).is_ok());
    disk.crash();
    let writer = reopen(disk);
    assert!(writer.votes.read("m1").unwrap().contains_key("card:1"));
    assert!(writer.votes.read("m2").unwrap().contains_key("card:2"));
    assert!(writer.votes.read("m3").unwrap().is_empty());
}

fn answer(message: &str, completion: &str) -> Answer {
    let text = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    Answer {
        at: 1,
        message: message.into(),
        trace: format!("trace-{message}"),
        session: "s".into(),
        user: "u".into(),
        question: "Is it safe?".into(),
        prompt: vec![text("system", "Rules."), text("user", "Evidence … Question: mail me at a@example.com")],
        completion: completion.into(),
        token_ids: vec![1, 2, 3],
        evidence: vec![EvidenceDoc {
            number: 1,
            id: "r1".into(),
            source: "review".into(),
            ..Default::default()
        }],
        plan: serde_json::json!({ "sources": [] }),
        ..Answer::default()
    }
}

fn on(message: &str, value: Opinion) -> Vote {
    let (message, part) = (message.into(), "answer".into());
    Vote {
        at: 2,
        message,
        part,
        value: Some(value),
        comment: Some("call 555-123-4567".into()),
        ..Vote::default()
    }
}

/// A store with two liked answers, a disliked and a replaced one to one question, and one nobody cared for.
async fn filled(folder: &Path) {
    let feedback = Feedback::open(&FeedbackConfig::new(folder)).unwrap();
    for (message, text) in [
        ("a", "Yes [1]. <card product=\"B1\"/>"),
        ("b", "No."),
        ("c", "Maybe."),
        ("d", "Write to b@example.com."),
    ] {
        feedback.record(Answer { again: message == "d", ..answer(message, text) });
    }
    let other = vec![Message { role: "user".into(), content: "Another".into() }];
    feedback.record(Answer { prompt: other, question: "Other?".into(), ..answer("e", "Unrated.") });
    for (message, value) in [("a", Opinion::Like), ("b", Opinion::Dislike), ("d", Opinion::Like)] {
        feedback.vote(on(message, value)).await.unwrap();
    }
    feedback.vote(on("nowhere", Opinion::Like)).await.unwrap();
}

#[tokio::test]
async fn exports_have_the_columns_that_trainers_expect() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    let rows = |format, details| {
        let mut out = Vec::new();
        let report = export(folder.path(), format, details, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains("example.com") && !text.contains("555-123"), "{text}");
        let rows: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((report.rows, report.orphans, report.damage), (rows.len(), 1, vec![]));
        rows
    };
    for (format, count, columns) in [
        (Format::Kto, 3, &["prompt", "completion", "label"][..]),
        (Format::Sft, 2, &["prompt", "completion"]),
        // Liked a and d, each against disliked b and replaced c.
        (Format::Dpo, 4, &["prompt", "chosen", "rejected"]),
        (Format::Bedrock, 2, &["messages", "reference_answer", "message_id", "evidence_ids"]),
    ] {
        let rows = rows(format, false);
        assert_eq!(rows.len(), count, "{format:?}: {rows:#?}");
        for row in &rows {
            let names: Vec<&String> = row.as_object().unwrap().keys().collect();
            assert_eq!(names, columns, "{format:?}");
        }
    }
    let kto = rows(Format::Kto, true);
    assert_eq!(kto[0]["completion"][0]["content"], "Yes [1]. <card product=\"B1\"/>");
    assert_eq!((&kto[0]["label"], &kto[1]["label"]), (&true.into(), &false.into()));
    assert_eq!(kto[0]["millrace"]["token_ids"], serde_json::json!([1, 2, 3]));
    assert_eq!(kto[0]["millrace"]["evidence"][0]["id"], "r1");
    // What was taken out of the text is not left in the ids.
    assert_eq!(kto[2]["completion"][0]["content"], "Write to [e-mail].");
    assert_eq!(kto[2]["millrace"]["token_ids"], serde_json::json!([]));
    let grpo = rows(Format::Grpo, false);
    assert_eq!((grpo.len(), &grpo[0]["likes"], &grpo[0]["dislikes"]), (1, &2.into(), &1.into()));
    let scores = rows(Format::Langfuse, false);
    assert_eq!((scores.len(), &scores[1]["traceId"], &scores[1]["value"]), (3, &"trace-b".into(), &0.into()));
    assert_eq!(scores[1]["comment"], "call [phone]");
}

#[tokio::test]
async fn what_is_forgotten_is_gone_from_the_files() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    let holds = |text: &str| {
        let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "seg"));
        files.into_iter().any(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).contains(text))
    };
    assert!(holds("Maybe.") && holds("trace-a"));
    let patience = Duration::from_secs(20);
    let path = folder.path().to_owned();
    // While a server has it open, by way of a request; the votes of the deleted answers go with them.
    let feedback = Feedback::open(&FeedbackConfig::new(&path)).unwrap();
    let told = Arc::new(Mutex::new(HashSet::new()));
    let seen = told.clone();
    feedback.on_forget(move |sessions| seen.lock().unwrap().extend(sessions.iter().cloned()));
    let removed = tokio::task::spawn_blocking(move || forget(&path, Selector::User("u".into()), patience));
    let removed = removed.await.unwrap().unwrap();
    assert_eq!(removed, Removed { answers: 5, votes: 3 });
    assert_eq!(*told.lock().unwrap(), ["s".to_owned()].into());
    assert!(!holds("Maybe.") && !holds("trace-a") && !holds("\"message\":\"b\",\"part\""), "still there");
    assert_eq!(feedback.vote(on("a", Opinion::Like)).await, Err(VoteError::Forgotten));
    assert_eq!(feedback.votes("a").await, Err(VoteError::Forgotten));
    // Who comes again begins anew.
    feedback.record(answer("f", "New."));
    feedback.vote(on("f", Opinion::Like)).await.unwrap();
    drop(feedback);
    let mut left = Vec::new();
    entries(folder.path(), |entry| {
        left.push(entry.answer.message);
        Ok(())
    })
    .unwrap();
    assert_eq!(left, ["f"]);
    assert!(Feedback::open(&FeedbackConfig::new(folder.path())).unwrap().damage().is_empty());
    let nowhere = forget(&folder.path().join("none"), Selector::User("u".into()), patience);
    assert!(matches!(nowhere, Err(FeedbackError::Io(_))));
}

#[test]
fn retention_ends_old_segments_and_only_those() {
    let disk = Sim::default();
    let mut writer = reopen(disk.clone());
    writer.retention = Some(5000);
    for number in 1..=4u32 {
        let (reply, _answer) = oneshot::channel();
        let vote = Vote { at: Millis::from(number) * 2000, ..a_vote(number, Opinion::Like) };
        writer.batch(vec![Command::Vote(vote, reply)]);
    }
    writer.clean(10_000);
    let text = |disk: &Sim| -> String {
        disk.state().files.values().map(|file| String::from_utf8_lossy(&file.bytes).into_owned()).collect()
    };
    let left = text(&disk);
    assert!(!left.contains("card:1\"") && !left.contains("card:2\""), "{left}");
    assert!(left.contains("card:3\"") && left.contains("card:4\""), "{left}");
    // Also what is in the segment that is open.
    writer.clean(100_000);
    assert!(!text(&disk).contains("card:"), "{}", text(&disk));
    let (reply, mut answer) = oneshot::channel();
    writer.batch(vec![Command::Vote(a_vote(9, Opinion::Like), reply)]);
    assert!(answer.try_recv().unwrap().is_ok());
}

#[test]
fn a_store_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let config = FeedbackConfig::new(folder.path());
    let first = Feedback::open(&config).unwrap();
    assert!(matches!(Feedback::open(&config), Err(FeedbackError::InUse(_))));
    drop(first);
    Feedback::open(&config).unwrap();
}

/// A real file, cut and damaged at every byte: it opens, tells where, and can be written to.
#[test]
fn every_cut_of_a_file_is_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let open =
        |votes: &mut Votes| Store::open(Directory::open(folder.path()).unwrap(), Limits::default(), votes);
    let records: Vec<_> =
        (0..4).map(|i| (i, store::encode(&Record::Vote(a_vote(i as u32, Opinion::Like))).unwrap())).collect();
    {
        let (mut store, _) = open(&mut Votes::default()).unwrap();
        store.append(&records).unwrap();
    }
    let path = folder.path().join("00000001.seg");
    let bytes = std::fs::read(&path).unwrap();
    for at in (0..bytes.len()).chain([bytes.len()]) {
        for damaged in [bytes[..at].to_vec(), {
            let mut b = bytes.clone();
            if let Some(b) = b.get_mut(at) {
                *b ^= 0x10
            }
            b
        }] {
            for file in std::fs::read_dir(folder.path()).unwrap() {
                let file = file.unwrap().path();
                if file.extension().is_some_and(|extension| extension == "seg") {
                    std::fs::remove_file(file).unwrap();
                }
            }
            std::fs::write(&path, &damaged).unwrap();
            let mut votes = Votes::default();
            let (mut store, damage) = open(&mut votes).unwrap();
            let sound = frame::scan(&damaged).unwrap();
            let places: Vec<_> =
                damage.iter().map(|d| d.range.start as usize..d.range.end as usize).collect();
            assert_eq!(places, sound.damage, "byte {at}");
            store.append(&records[..1]).unwrap();
            drop(store);
            let mut again = Votes::default();
            let (_, rest) = open(&mut again).unwrap();
            // What was cut off is reported once; what is left out, each time.
            assert!(rest.iter().all(|place| !place.torn && damage.contains(place)), "byte {at}: {rest:?}");
            assert!(again.read("m0").unwrap().contains_key("card:0"), "byte {at}");
        }
    }
}

/// Hugging Face's `datasets` loads every export, with the columns that TRL documents.
#[tokio::test]
async fn trainers_load_the_exports() {
    let Some(python) = std::env::var_os("MILLRACE_TEST_DATASETS_PYTHON") else {
        eprintln!("skipped: MILLRACE_TEST_DATASETS_PYTHON names no Python with the package datasets");
        return;
    };
    let (store, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(store.path()).await;
    for (format, details) in Format::ALL.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let suffix = if details { "-details" } else { "" };
        let path = out.path().join(format!("{}{suffix}.jsonl", format.name()));
        export(store.path(), format, details, &mut std::fs::File::create(path).unwrap()).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/check-feedback-exports.py");
    let output =
        std::process::Command::new(python).arg(script).arg(out.path()).env("HF_HUB_OFFLINE", "1").output();
    let output = output.unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{complained}");
    eprintln!("{said}");
}
