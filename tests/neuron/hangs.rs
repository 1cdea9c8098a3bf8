//! Calls that never return: clients get an error, and the process ends.

use std::time::Duration;

use softnrt::testing::compiler_path;

use crate::rig::{Rig, millrace};
use crate::statuses::{Two, undisturbed};

#[test]
fn an_execution_that_hangs_is_given_up() {
    let rig = Rig::new(1);
    let file = rig.path("fault");
    let environment = [("SOFTNRT_FAULT_FILE", file.as_str()), ("SOFTNRT_SLOW", "20")];
    let mut server = rig.serve(&["--execute-timeout=2"], &environment);
    assert!(server.ready().is_ok(), "{}", server.log());
    let two = Two::run(&server.client().expect("it listens"), &file, "execute@1:hang");
    two.check_dead("a hang");
    let (code, log, _) = server.ended();
    assert_eq!(code, Some(1), "{log}");
    for words in ["no result in time", "started anew", "nothing of it will be closed"] {
        assert!(log.contains(words), "{words:?} is not in\n{log}");
    }
}

/// The other rank reports that the collective is stuck; nobody waits for the one that hangs.
#[test]
fn one_of_two_ranks_that_hangs_holds_up_nobody() {
    let rig = Rig::new(2);
    undisturbed(&rig, 2);
    let file = rig.path("fault");
    let environment =
        [("SOFTNRT_FAULT_FILE", file.as_str()), ("SOFTNRT_SLOW", "20"), ("SOFTNRT_TIMEOUT", "1")];
    let mut server = rig.serve(&["--execute-timeout=3600"], &environment);
    assert!(server.ready().is_ok(), "{}", server.log());
    let two = Two::run(&server.client().expect("it listens"), &file, "execute@1:hang");
    two.check_dead("a hang of one of two ranks");
    let (code, log, _) = server.ended();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("NRT_EXEC_HW_ERR_COLLECTIVES (1200)"), "{log}");
}

/// Whether a process runs with this in its command line.
fn runs(part: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("a Linux machine").flatten();
    let of = |path: std::path::PathBuf| std::fs::read(path.join("cmdline")).unwrap_or_default();
    processes.map(|entry| of(entry.path())).any(|line| {
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(part) && line.contains(" compile ")
    })
}

#[test]
fn a_signal_ends_what_is_still_loading() {
    let rig = Rig::new(1);
    // A call of the runtime that does not return.
    let mut server = rig.serve(&[], &[("SOFTNRT_FAULT", "load@1:hang")]);
    server.wait_for_words("told to hang");
    let client = server.client().expect("it listens");
    let answer = client.post("/v1/chat/completions", &crate::rig::chat(1, false));
    assert_eq!((answer.status, answer.body["error"]["code"].as_str()), (503, Some("model_loading")));
    server.terminate();
    let (code, log, _) = server.ended();
    assert_eq!(code, Some(0), "{log}");

    // A compiler that does not end.
    let compiler = format!("--compiler={}", compiler_path().display());
    let store = rig.path("other-store");
    let mut server = rig.serve_from(&store, &[&compiler], &[("SOFTCC_FAULT", "hang")]);
    server.wait_for_words("Neuron runtime");
    let started = std::time::Instant::now();
    while !runs(&store) {
        assert!(started.elapsed() < crate::rig::PATIENCE, "{}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    server.terminate();
    let (code, log, _) = server.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(!runs(&store), "a compiler is left behind");
    let left = std::fs::read_dir(format!("{store}/.staging")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "a staging directory is left behind");
    let doctor = millrace(&["doctor", "--neuron-store", &store]).output().expect("it runs");
    assert!(!String::from_utf8_lossy(&doctor.stdout).contains("damaged"), "{doctor:?}");
}

/// It serves already, and a program that follows never gets loaded.
#[test]
fn a_late_program_that_hangs_does_not_keep_the_process() {
    let rig = Rig::with(1, "2x1@8+adjust,1x4@8,1x8@8");
    let mut server = rig.serve(&["--shutdown-timeout=1"], &[("SOFTNRT_FAULT", "load@3:hang")]);
    assert!(server.ready().is_ok(), "{}", server.log());
    server.wait_for_words("nrt_load is told to hang");
    server.terminate();
    let (code, log, lived) = server.ended();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("the device has not let go"), "{log}");
    assert!(lived < Duration::from_secs(90), "{lived:?}");

    // The core is inside of that call, so requests get no further; they are told.
    let environment = [("SOFTNRT_FAULT", "load@3:hang")];
    let mut server = rig.serve(&["--execute-timeout=2"], &environment);
    assert!(server.ready().is_ok(), "{}", server.log());
    server.wait_for_words("nrt_load is told to hang");
    let client = server.client().expect("it listens");
    let answer = client.post("/v1/chat/completions", &crate::rig::chat(3, false));
    assert_eq!(
        (answer.status, answer.body["error"]["code"].as_str()),
        (503, Some("engine_dead")),
        "{answer:?}"
    );
    let (code, log, _) = server.ended();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("no result in time"), "{log}");
}
