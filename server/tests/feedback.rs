//! `kill -9` at any moment: no vote that was acknowledged is lost, and none counts twice.
//!
//! The test starts itself again as a child that votes on a store and prints the number of each vote once it is
//! acknowledged; the parent kills it and looks. `MILLRACE_KILLS` says how often (`scripts/kill-feedback`).

// What was measured goes where its reader looks.
#![allow(clippy::print_stderr)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_server::feedback::export::entries;
use millrace_server::feedback::{Answer, Feedback, FeedbackConfig, Opinion, Selector, Vote, VoteError};

const FOLDER: &str = "MILLRACE_FEEDBACK_CHILD";

fn config(folder: &Path) -> FeedbackConfig {
    // Small, so that segments are begun often.
    FeedbackConfig { segment_bytes: 16 << 10, ..FeedbackConfig::new(folder) }
}

fn message(number: u64) -> String {
    format!("m{number}")
}

fn value(number: u64) -> Opinion {
    Opinion::ALL[number as usize % 2]
}

/// The child: an answer and a vote for each number from the one it is given, eight at a time, each vote sent twice as a
/// client does that has lost the first reply; every 40th answer is deleted again.
#[test]
#[ignore = "what the other tests start and kill"]
fn child() {
    let (Ok(folder), Ok(first)) = (std::env::var(FOLDER), std::env::var("MILLRACE_FEEDBACK_FIRST")) else {
        return;
    };
    let feedback = Arc::new(Feedback::open(&config(Path::new(&folder))).unwrap());
    let next = Arc::new(AtomicU64::new(first.parse().unwrap()));
    // One write for each line, so that what was printed is in the pipe.
    let say = |line: String| std::io::stderr().write_all(line.as_bytes()).unwrap();
    say("open\n".into());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let worker = |feedback: Arc<Feedback>, next: Arc<AtomicU64>| async move {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let completion = format!("answer {number} {}", "x".repeat(number as usize % 300));
            feedback.record(Answer { at: 1, message: message(number), completion, ..Answer::default() });
            let (part, key) = ("answer".to_owned(), Some(number.to_string()));
            let value = Some(value(number));
            let vote = Vote { at: 1, message: message(number), part, value, key, ..Vote::default() };
            let (one, two) = tokio::join!(feedback.vote(vote.clone()), feedback.vote(vote));
            match one.and(two) {
                Ok(_) => say(format!("ack {number}\n")),
                Err(VoteError::NotStored) => {
                    say(format!("full {number}\n"));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
            if number.is_multiple_of(40) {
                let feedback = feedback.clone();
                let forgotten = move || feedback.forget(Selector::Message(message(number)));
                if tokio::task::spawn_blocking(forgotten).await.unwrap().is_ok() {
                    say(format!("gone {number}\n"));
                }
            }
        }
    };
    let tasks: Vec<_> = (0..8).map(|_| runtime.spawn(worker(feedback.clone(), next.clone()))).collect();
    // They end by a panic alone.
    let Err(error) = runtime.block_on(tasks.into_iter().next().unwrap());
    panic!("{error}");
}

fn start(folder: &Path, first: u64, wrapper: Option<&str>) -> Child {
    let this = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        None => Command::new(this),
        Some(script) => {
            let mut command = Command::new("sh");
            command.args(["-c", script]).arg(this);
            command
        }
    };
    command.args(["child", "--exact", "--ignored", "--nocapture"]);
    command.env(FOLDER, folder).env("MILLRACE_FEEDBACK_FIRST", first.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    command.spawn().unwrap()
}

#[derive(Default)]
struct Seen {
    acknowledged: Vec<u64>,
    gone: Vec<u64>,
    refused: u64,
}

/// Reads what a child says until it is killed, after `life` from its first word on.
fn watch(mut child: Child, life: Duration, seen: &mut Seen) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.next().expect("a line").unwrap();
    assert_eq!(first, "open");
    let killer = std::thread::spawn(move || {
        std::thread::sleep(life);
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap()
    });
    for line in lines.map_while(Result::ok) {
        match line.split_once(' ').map(|(word, number)| (word, number.parse::<u64>())) {
            Some(("ack", Ok(number))) => seen.acknowledged.push(number),
            Some(("gone", Ok(number))) => seen.gone.push(number),
            Some(("full", Ok(_))) => seen.refused += 1,
            // The last line may have been cut.
            _ => assert!(!line.contains("panicked"), "{line}"),
        }
    }
    killer.join().unwrap();
}

/// Everything acknowledged is there, once, with its answer (of which a full disk may have kept some out); what is gone is
/// not.
fn verify(folder: &Path, seen: &Seen, answers_too: bool) {
    let mut found: HashMap<String, (Opinion, u32)> = HashMap::new();
    let report = entries(folder, |entry| {
        let opinion = entry.opinion();
        found.entry(entry.answer.message).or_insert((opinion, 0)).1 += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(report.damage, []);
    let mut missing = 0;
    for &number in &seen.acknowledged {
        if number.is_multiple_of(40) {
            // It may have been deleted just before the end.
            continue;
        }
        match found.get(&message(number)) {
            Some(entry) => assert_eq!(*entry, (value(number), 1), "vote {number}"),
            None => missing += 1,
        }
    }
    let without_answer = if answers_too { 0 } else { report.orphans };
    assert!(missing <= without_answer, "{missing} votes are lost; {without_answer} have no answer");
    for &number in &seen.gone {
        assert_eq!(found.get(&message(number)), None, "{number} was deleted");
    }
}

#[test]
fn kill_9_loses_nothing_acknowledged() {
    let kills = std::env::var("MILLRACE_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (mut seen, mut torn) = (Seen::default(), 0);
    let begun = Instant::now();
    for kill in 0..kills {
        // From before the first vote to some hundred of them; drawn from the golden ratio, so evenly.
        let life =
            Duration::from_micros((f64::from(kill) * 0.618_034).fract().mul_add(60_000.0, 200.0) as u64);
        let first = seen.acknowledged.iter().max().copied().unwrap_or(0) + 100;
        watch(start(folder.path(), first, None), life, &mut seen);
        let feedback = Feedback::open(&config(folder.path())).unwrap();
        assert!(feedback.damage().iter().all(|damage| damage.torn), "{:?}", feedback.damage());
        torn += feedback.damage().len();
        drop(feedback);
        // All of it each time would take longer and longer.
        if kill % 10 == 9 || kill + 1 == kills {
            verify(folder.path(), &seen, true);
        }
    }
    let (count, gone, took) = (seen.acknowledged.len(), seen.gone.len(), begun.elapsed());
    eprintln!(
        "{kills} kills in {took:.0?}: {count} votes acknowledged, {gone} deletions, {torn} torn ends, none lost"
    );
    assert!(count > kills as usize, "only {count} votes: nothing was tested");
}

/// A limit on the size of files stands for a disk that is full: writes fail in the middle.
#[test]
fn a_full_disk_refuses_votes_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Seen::default();
    // In blocks of 512 bytes; a signal would end the process.
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    watch(start(folder.path(), 1, Some(script)), Duration::from_millis(500), &mut seen);
    assert!(seen.refused > 0, "the limit was not reached");
    drop(Feedback::open(&config(folder.path())).unwrap());
    verify(folder.path(), &seen, false);
    let mut again = Seen { acknowledged: Vec::new(), ..Seen::default() };
    watch(start(folder.path(), 100_000, None), Duration::from_millis(100), &mut again);
    assert!(!again.acknowledged.is_empty() && again.refused == 0);
    seen.acknowledged.extend(again.acknowledged);
    drop(Feedback::open(&config(folder.path())).unwrap());
    verify(folder.path(), &seen, false);
}
