//! Programs for a runner: from the store, else from the compiler, each as soon as it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_engine::neuron::compiler::{Compiler, compile_missing};
use millrace_engine::neuron::{Bucket, FromStore, Provide};

use crate::bench::{Bench, CHUNK, DECODE, patient};

const BOTH: [Bucket; 2] = [DECODE, CHUNK];

fn provider(bench: &Bench, compiler: Option<Compiler>) -> FromStore {
    FromStore {
        spec: bench.spec.clone(),
        store: bench.store.clone(),
        compiler,
        jobs: 2,
        timeout: Duration::from_secs(60),
        interrupted: Arc::new(AtomicBool::new(false)),
    }
}

/// The buckets that come, and the error.
fn provided(programs: &mut FromStore, stop: &AtomicBool) -> (Vec<Bucket>, Option<String>) {
    let (mut found, model) = (Vec::new(), programs.spec.model.clone());
    let done = programs.provide(&model, &BOTH, stop, &mut |artefact| found.push(artefact.manifest.bucket));
    found.sort_by_key(|bucket| bucket.width);
    (found, done.err().map(|error| error.to_string()))
}

#[test]
fn what_the_store_lacks_is_compiled_and_then_found() {
    let bench = Bench::new();
    let mut nothing = provider(&bench, None);
    let (found, error) = provided(&mut nothing, &AtomicBool::new(false));
    assert!(
        found.is_empty() && error.is_some_and(|error| error.contains("2x1@4") && error.contains("1x8@4"))
    );
    let mut with = provider(&bench, Some(bench.good()));
    for _ in 0..2 {
        assert_eq!(provided(&mut with, &AtomicBool::new(false)), (BOTH.to_vec(), None));
    }
    assert_eq!(bench.runs(), 2);
    assert_eq!(
        provided(&mut nothing, &AtomicBool::new(false)),
        (BOTH.to_vec(), None),
        "found by any version"
    );
    // Damage is repaired where there is a compiler, and named where there is none.
    let (directory, _) = bench.store.list().expect("listed").remove(0);
    std::fs::write(directory.join("model.neff"), "damage").expect("written");
    assert!(provided(&mut nothing, &AtomicBool::new(false)).1.is_some_and(|error| error.contains("damaged")));
    assert_eq!(provided(&mut with, &AtomicBool::new(false)), (BOTH.to_vec(), None));
    assert_eq!(bench.runs(), 3);
}

#[test]
fn one_that_cannot_be_compiled_does_not_keep_the_others_back() {
    let bench = Bench::new();
    // Prompt chunks are compiled with -O1.
    let mut picky = provider(
        &bench,
        Some(bench.compiler("cc 1.0", "case \"$*\" in *-O1*) exit 3;; esac; cp \"$neff\" \"$out\"")),
    );
    let (found, error) = provided(&mut picky, &AtomicBool::new(false));
    assert_eq!(found, [DECODE]);
    assert!(error.as_ref().is_some_and(|error| error.contains("1x8@4")), "{error:?}");
}

#[test]
fn compilers_end_when_nobody_needs_the_programs_any_more() {
    let bench = Bench::new();
    let mut slow = provider(&bench, Some(bench.compiler("cc 1.0", "exec sleep 100")));
    let (stop, started) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::Relaxed);
        });
        assert!(provided(&mut slow, &stop).1.is_some_and(|error| error.contains("interrupted")));
    });
    assert!(started.elapsed() < Duration::from_secs(30));
}

/// Sizes of the KV cache count where every program of that size is there, of this model, for these flags.
#[test]
fn sizes_that_are_whole_are_at_hand() {
    let bench = Bench::new();
    let compiler = bench.good();
    let compile = |kv_blocks: usize, buckets: &[Bucket], flags: &[&str]| {
        let mut spec = bench.spec.clone();
        spec.model.kv_blocks = kv_blocks;
        spec.compiler_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        compile_missing(&spec, buckets, &bench.store, Some(&compiler), &patient(&|| false), &|_, _| {})
            .expect("compiled");
    };
    compile(20, &BOTH, &[]);
    compile(30, &BOTH, &[]);
    compile(40, &[DECODE], &[]);
    compile(50, &BOTH, &["--verbose=info"]);
    let model = bench.spec.model.clone();
    for compiler in [None, Some(compiler.clone())] {
        assert_eq!(provider(&bench, compiler).sizes(&model, &BOTH), [20, 30]);
    }
    let newer = bench.compiler("cc 2.0", "cp \"$neff\" \"$out\"");
    assert!(provider(&bench, Some(newer)).sizes(&model, &BOTH).is_empty());
    let mut flagged = provider(&bench, None);
    flagged.spec.compiler_flags = vec!["--verbose=info".into()];
    assert_eq!(flagged.sizes(&model, &BOTH), [50]);
    let other = millrace_models::device::DeviceModel { candidates: 3, ..model };
    assert!(provider(&bench, None).sizes(&other, &BOTH).is_empty());
}
