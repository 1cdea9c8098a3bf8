//! Compilers that crash, hang, write half, and processes that race.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use millrace_engine::neuron::compiler::{
    CompileError, CompileOptions, Compiler, Outcome, compile_missing, ensure,
};
use millrace_engine::neuron::store::Store;

use crate::bench::{Bench, CHUNK, DECODE, patient, spec};

#[test]
fn what_was_compiled_is_found_again() {
    let bench = Bench::new();
    let compiler = bench.good();
    let (first, outcome) = bench.ensure(Some(&compiler)).expect("compiled");
    assert!(matches!(outcome, Outcome::Compiled(_)));
    assert_eq!(first.neff, fs::read(bench.path("good.neff")).expect("read"));
    for compiler in [Some(&compiler), None] {
        let (again, outcome) = bench.ensure(compiler).expect("found");
        assert_eq!((again.manifest, outcome), (first.manifest.clone(), Outcome::Found));
    }
    assert_eq!((bench.runs(), bench.entries()), (1, (1, 0)));
    let words = fs::read_to_string(bench.path("runs")).expect("noted");
    for flag in
        ["compile ", "--framework=XLA", "--target=trn1", "--auto-cast=none", "--lnc=1", "-O2", "--output "]
    {
        assert!(words.contains(flag), "{flag} in {words}");
    }
    // `sha256sum -c` agrees.
    let mut check = Command::new("sha256sum");
    check.args(["-c", "--strict", "SHA256SUMS"]).current_dir(&first.directory).stdout(Stdio::null());
    assert!(check.status().expect("coreutils").success());
}

#[test]
fn another_compiler_flag_model_or_target_is_another_entry() {
    let bench = Bench::new();
    bench.ensure(Some(&bench.good())).expect("compiled");
    let newer = bench.compiler("cc 2.0", "cp \"$neff\" \"$out\"");
    assert!(matches!(bench.ensure(Some(&newer)), Ok((_, Outcome::Compiled(_)))));
    let entries: Vec<String> = [0, 1, 2]
        .map(|change| {
            let mut spec = spec();
            match change {
                1 => spec.target = millrace_engine::neuron::Target::Inf2,
                2 => spec.model.kv_blocks += 1,
                _ => {}
            }
            spec.request(&DECODE).expect("a request").entry("cc 1.0")
        })
        .to_vec();
    assert!(entries[0] != entries[1] && entries[0] != entries[2] && entries[1] != entries[2]);
    let request = spec().request(&DECODE).expect("a request");
    let mut flagged = request.clone();
    flagged.flags.push("--verbose=info".into());
    assert_ne!(request.entry("cc 1.0"), flagged.entry("cc 1.0"));
    assert_eq!(bench.entries(), (2, 0));
}

#[test]
fn a_failed_compile_is_never_a_success() {
    let failures = [
        ("echo '[NCC_X001] no' >&2; exit 70", "[NCC_X001] no"),
        ("head -c 1500 \"$neff\" > \"$out\"; kill -9 $$", "signal: 9"),
        ("cp \"$neff\" \"$out\"; echo 'No space left on device'; exit 1", "No space left on device"),
        ("head -c 1500 \"$neff\" > \"$out\"", "no whole program"),
        (": > \"$out\"", "no whole program"),
        ("exit 0", "no whole program"),
    ];
    let bench = Bench::new();
    for (body, expected) in failures {
        let error = bench.ensure(Some(&bench.compiler("cc 1.0", body))).expect_err(body);
        assert!(error.to_string().contains(expected), "{body}: {error}");
        assert!(error.to_string().contains("logs"), "{body} names the log: {error}");
        assert_eq!(bench.entries(), (0, 0), "{body}");
        assert!(matches!(bench.ensure(None), Err(CompileError::Missing { .. })), "{body}");
    }
    bench.ensure(Some(&bench.good())).expect("and then it works");
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let bench = Bench::new();
    let compiler = bench.good();
    // A limit on the size of files stands in for the disk: beyond it the kernel refuses to write.
    let full = bench.compiler("cc 1.0", "trap '' XFSZ; ulimit -f 1; cat \"$neff\" > \"$out\" || exit 1");
    let error = bench.ensure(Some(&full)).expect_err("no room");
    assert!(matches!(error, CompileError::Failed { .. }), "{error}");
    assert_eq!(bench.entries(), (0, 0));
    // A store that cannot be written at all.
    fs::write(bench.path("file"), "x").expect("written");
    let store = Store::new(bench.path("file"));
    let error =
        ensure(&bench.spec, &DECODE, &store, Some(&compiler), &patient(&|| false)).expect_err("no store");
    assert!(error.to_string().contains("file"), "{error}");
}

/// Gone, or a zombie that only init has yet to bury.
fn ended(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.is_empty() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(30), "no {what} after 30 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const HANG: &str = "sleep 1000 & echo $! > sleeper.new; mv sleeper.new sleeper; wait";

#[test]
fn a_compiler_that_hangs_is_ended_with_all_it_started() {
    for interrupt in [true, false] {
        let bench = Bench::new();
        let compiler = bench.compiler("cc 1.0", HANG);
        let begun = || bench.path("sleeper").exists();
        let stop: &(dyn Fn() -> bool + Sync) = if interrupt { &begun } else { &|| false };
        let timeout = Duration::from_secs(if interrupt { 60 } else { 1 });
        let options = CompileOptions { jobs: 1, timeout, interrupted: stop };
        let error =
            ensure(&bench.spec, &DECODE, &bench.store, Some(&compiler), &options).expect_err("it hangs");
        match interrupt {
            true => assert!(matches!(error, CompileError::Interrupted), "{error}"),
            false => assert!(matches!(error, CompileError::Timeout { .. }), "{error}"),
        }
        let sleeper = fs::read_to_string(bench.path("sleeper")).expect("it began");
        wait_for("end of what the compiler started", || ended(&sleeper));
        assert_eq!(bench.entries(), (0, 0));
    }
}

#[test]
fn one_failure_does_not_keep_the_others() {
    let bench = Bench::new();
    let body = "case \"$*\" in *-O1*) echo broken; exit 1;; esac; cp \"$neff\" \"$out\"";
    let compiler = bench.compiler("cc 1.0", body);
    let done = Mutex::new(Vec::new());
    let on = |bucket: &_, _| done.lock().expect("unpoisoned").push(*bucket);
    let never = || false;
    let options = CompileOptions { jobs: 2, timeout: Duration::from_secs(60), interrupted: &never };
    let buckets = [CHUNK, DECODE];
    let failed = compile_missing(&bench.spec, &buckets, &bench.store, Some(&compiler), &options, &on);
    let failed = failed.expect_err("one fails");
    assert_eq!(failed.failures.iter().map(|(bucket, _)| *bucket).collect::<Vec<_>>(), [CHUNK]);
    assert!(failed.to_string().contains("1x8@4: the compiler failed"), "{failed}");
    assert_eq!(*done.lock().expect("unpoisoned"), [DECODE]);
}

/// Run in a process of its own by the tests below.
#[test]
#[ignore = "a part of other tests"]
fn in_another_process() {
    let directory = std::env::var("MILLRACE_TEST_DIRECTORY").expect("the test that runs this sets it");
    let directory = Path::new(&directory);
    let compiler = Compiler::new(&directory.join(std::env::var("MILLRACE_TEST_SCRIPT").expect("set")))
        .expect("a compiler");
    let store = Store::new(directory.join("store"));
    ensure(&spec(), &DECODE, &store, Some(&compiler), &patient(&|| false)).expect("made or found");
}

fn another_process(bench: &Bench, script: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "compilers::in_another_process", "--ignored"]);
    // Relative paths, which must mean the same to a compiler that is started elsewhere.
    command.current_dir(bench.directory.path()).env("MILLRACE_TEST_DIRECTORY", ".");
    command.env("MILLRACE_TEST_SCRIPT", script.file_name().expect("a file"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn newest_script(bench: &Bench) -> std::path::PathBuf {
    let scripts = fs::read_dir(bench.directory.path()).expect("listed").flatten().map(|entry| entry.path());
    scripts.filter(|path| path.to_string_lossy().contains("/cc-")).max().expect("a script")
}

#[test]
fn processes_that_want_the_same_graph_compile_it_once() {
    let bench = Bench::new();
    bench.compiler("cc 1.0", "sleep 0.4; cp \"$neff\" \"$out\"");
    let script = newest_script(&bench);
    let mut children: Vec<_> =
        (0..4).map(|_| another_process(&bench, &script).spawn().expect("started")).collect();
    assert!(children.iter_mut().all(|child| child.wait().expect("ended").success()));
    assert_eq!((bench.runs(), bench.entries()), (1, (1, 0)));
}

#[test]
fn what_a_killed_process_left_is_removed() {
    let bench = Bench::new();
    bench.compiler("cc 1.0", HANG);
    let mut child = another_process(&bench, &newest_script(&bench)).spawn().expect("started");
    wait_for("compiler", || bench.path("sleeper").exists());
    assert_eq!(bench.store.clean().expect("looked at"), 0, "it is at work");
    child.kill().expect("killed");
    child.wait().expect("ended");
    let sleeper = fs::read_to_string(bench.path("sleeper")).expect("it began");
    assert_eq!(bench.entries(), (0, 1), "a staging directory is left");
    assert_eq!(bench.store.clean().expect("cleaned"), 1);
    assert_eq!(bench.entries(), (0, 0));
    bench.ensure(Some(&bench.good())).expect("and its lock is free");
    // Its compiler outlives a process that could not end it.
    assert!(Command::new("kill").arg(sleeper.trim()).status().expect("kill").success());
}
