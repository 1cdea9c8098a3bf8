//! HLO in, program out: runs `neuronx-cc`, or a program with its command line, and fills the store with what it makes.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::request::{Graphs, SpecError};
use super::store::{Artefact, Staging, Store, StoreError};
use super::{Bucket, Target, label};

/// How long a compiler may take to say its version: the vendor's is a Python program.
const VERSION_PATIENCE: Duration = Duration::from_secs(120);
/// How long a compiler that is told to end gets to clean up.
const GRACE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Why a graph was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The compiler cannot be run.
    #[error("cannot run the compiler {}: install neuronx-cc, or name one with --compiler", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say which version it is.
    #[error("the compiler {} does not answer --version: {why}", program.display())]
    Version {
        /// The program.
        program: PathBuf,
        /// What it does instead.
        why: String,
    },
    /// It ended without success.
    #[error("the compiler failed ({status}); it said, in {}:\n{tail}", log.display())]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// Where all that it said is kept.
        log: PathBuf,
        /// The end of that.
        tail: String,
    },
    /// It took too long.
    #[error(
        "the compiler was ended after {} s; what it said is in {}. Give it longer with --compile-timeout",
        after.as_secs(), log.display()
    )]
    Timeout {
        /// How long it had.
        after: Duration,
        /// Where all that it said is kept.
        log: PathBuf,
    },
    /// It ended with success and without a program.
    #[error("the compiler ended without an error, but made no whole program; what it said is in {}", log.display())]
    NoProgram {
        /// Where all that it said is kept.
        log: PathBuf,
        /// What is wrong with its output.
        source: StoreError,
    },
    /// It is not in the store, and there is no compiler.
    #[error(
        "it is not in the store {}, and no compiler was given: run `millrace compile` with the same arguments on a host \
         that has neuronx-cc", store.display()
    )]
    Missing {
        /// The store.
        store: PathBuf,
    },
    /// The graph cannot be built.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller gave up.
    #[error("interrupted")]
    Interrupted,
}

/// The compiler's flags for a graph, the names of files apart. Prompt graphs are compiled at `-O1`, as the vendor's
/// own library does, for they take the longest; decode graphs at `-O2`.
pub fn flags(bucket: &Bucket, target: Target, lnc: u32) -> Vec<String> {
    let level = if bucket.width == 1 { "-O2" } else { "-O1" };
    let lnc = format!("--lnc={lnc}");
    let all = [
        "--framework=XLA",
        &format!("--target={target}"),
        "--model-type=transformer",
        "--auto-cast=none",
        &lnc,
        level,
    ];
    all.map(str::to_owned).to_vec()
}

/// A compiler that could be run.
#[derive(Clone, Debug)]
pub struct Compiler {
    program: PathBuf,
    version: String,
}

impl Compiler {
    /// Asks a program for its version.
    ///
    /// # Errors
    /// Where it is not there or does not answer.
    pub fn new(program: &Path) -> Result<Compiler, CompileError> {
        // A path is meant from here, though compilers are started elsewhere; a bare name is looked for in PATH.
        let absolute = match program.components().count() {
            0 | 1 => program.to_owned(),
            _ => std::path::absolute(program).unwrap_or_else(|_| program.to_owned()),
        };
        let program = absolute.as_path();
        let start = |source| CompileError::Start { program: program.to_owned(), source };
        let odd = |why: String| CompileError::Version { program: program.to_owned(), why };
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Group::spawn(&mut command).map_err(start)?;
        let never = || false;
        // A version fits the pipe's buffer, so it is read when the program has ended.
        let status = match child.wait(VERSION_PATIENCE, &never).map_err(start)? {
            Ended::By(status) => status,
            Ended::Timeout | Ended::Interrupted => {
                return Err(odd(format!("it took more than {} s", VERSION_PATIENCE.as_secs())));
            }
        };
        let mut said = String::new();
        if let Some(stdout) = child.child.stdout.take() {
            // What is no text cannot be a version: then the line is empty.
            let _ = stdout.take(1 << 14).read_to_string(&mut said);
        }
        match said.lines().map(str::trim).find(|line| !line.is_empty()) {
            Some(version) if status.success() => {
                Ok(Compiler { program: program.to_owned(), version: version.chars().take(200).collect() })
            }
            _ => Err(odd(format!("{status}"))),
        }
    }

    /// What it calls itself; part of every key.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Compiles what is staged.
    fn run(
        &self,
        staging: &Staging,
        flags: &[String],
        timeout: Duration,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), CompileError> {
        let log = staging.log();
        let start = |source| CompileError::Start { program: self.program.clone(), source };
        let out = File::create(&log).map_err(start)?;
        let mut command = Command::new(&self.program);
        command.arg("compile").arg(staging.hlo()).args(flags).arg("--output").arg(staging.neff());
        // The vendor's compiler drops files where it is started.
        command.current_dir(staging.scratch()?).stdin(Stdio::null());
        command.stderr(out.try_clone().map_err(start)?).stdout(out);
        match Group::spawn(&mut command).map_err(start)?.wait(timeout, interrupted).map_err(start)? {
            Ended::By(status) if status.success() => Ok(()),
            Ended::By(status) => Err(CompileError::Failed { status, tail: tail(&log), log }),
            Ended::Timeout => Err(CompileError::Timeout { after: timeout, log }),
            Ended::Interrupted => Err(CompileError::Interrupted),
        }
    }
}

/// A program and all that it starts; ended when this is dropped.
struct Group {
    child: Child,
    ended: bool,
}

enum Ended {
    By(ExitStatus),
    Timeout,
    Interrupted,
}

impl Group {
    fn spawn(command: &mut Command) -> io::Result<Group> {
        // A group of its own, since a compiler is many processes, and they have to end with it.
        command.process_group(0).spawn().map(|child| Group { child, ended: false })
    }

    fn wait(&mut self, timeout: Duration, interrupted: &dyn Fn() -> bool) -> io::Result<Ended> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.ended = true;
                return Ok(Ended::By(status));
            }
            if interrupted() {
                return Ok(Ended::Interrupted);
            }
            if started.elapsed() > timeout {
                return Ok(Ended::Timeout);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        // The only error is that nobody is left.
        let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&self.child), signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.signal(rustix::process::Signal::TERM);
        let started = Instant::now();
        while started.elapsed() < GRACE && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(PAUSE);
        }
        self.signal(rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    const BYTES: u64 = 2000;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).rev().take(8).collect();
    lines.reverse();
    if lines.is_empty() { "(nothing)".into() } else { lines.join("\n") }
}

/// How [`compile_missing`] goes about it.
pub struct CompileOptions<'a> {
    /// Compilers at the same time.
    pub jobs: usize,
    /// How long one may take.
    pub timeout: Duration,
    /// Asked now and then; once it says so, compilers are ended.
    pub interrupted: &'a (dyn Fn() -> bool + Sync),
}

/// What became of a graph.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Outcome {
    /// It was in the store.
    Found,
    /// It was compiled, which took this many seconds.
    Compiled(f64),
}

/// Graphs that were not compiled; the others are in the store.
#[derive(Debug, thiserror::Error)]
#[error("{} of {of} graphs were not compiled:{}", failures.len(), list(failures))]
pub struct CompileFailures {
    /// Which, and why.
    pub failures: Vec<(Bucket, CompileError)>,
    /// How many there were to be.
    pub of: usize,
}

fn list(failures: &[(Bucket, CompileError)]) -> String {
    failures.iter().map(|(bucket, error)| format!("\n{}: {}", label(bucket), chain(error))).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}

/// Sees to it that the store has every bucket's graph, and compiles those that it lacks; what is damaged counts as
/// lacking where there is a compiler. `on` hears of each graph when it is there, from several threads. One failure
/// does not keep the others from being compiled, since each is worth minutes.
///
/// # Errors
/// With the buckets that are not in the store afterwards.
pub fn compile_missing(
    graphs: &dyn Graphs,
    buckets: &[Bucket],
    store: &Store,
    compiler: Option<&Compiler>,
    options: &CompileOptions<'_>,
    on: &(dyn Fn(&Bucket, Outcome) + Sync),
) -> Result<(), CompileFailures> {
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(bucket) = buckets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let done = match (options.interrupted)() {
                true => Err(CompileError::Interrupted),
                false => ensure(graphs, bucket, store, compiler, options),
            };
            match done {
                Ok((_, outcome)) => on(bucket, outcome),
                Err(error) => failures.lock().unwrap_or_else(|e| e.into_inner()).push((*bucket, error)),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, buckets.len().max(1)) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap_or_else(|e| e.into_inner());
    if failures.is_empty() { Ok(()) } else { Err(CompileFailures { failures, of: buckets.len() }) }
}

/// One graph's artefact, from the store or from the compiler.
///
/// # Errors
/// Where it is neither.
pub fn ensure(
    graphs: &dyn Graphs,
    bucket: &Bucket,
    store: &Store,
    compiler: Option<&Compiler>,
    options: &CompileOptions<'_>,
) -> Result<(Artefact, Outcome), CompileError> {
    let request = graphs.request(bucket)?;
    let Some(compiler) = compiler else {
        let found = store.find(&request, None)?;
        let found = found.ok_or_else(|| CompileError::Missing { store: store.root().to_owned() })?;
        return Ok((found, Outcome::Found));
    };
    let version = compiler.version();
    let look = || match store.find(&request, Some(version)) {
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::warn!("{error}; it is compiled anew");
            Ok(None)
        }
        found => found,
    };
    if let Some(found) = look()? {
        return Ok((found, Outcome::Found));
    }
    let interrupted = || (options.interrupted)();
    let lock = store.lock(&request, version, &interrupted).map_err(|error| match error {
        StoreError::Interrupted => CompileError::Interrupted,
        error => error.into(),
    })?;
    // Whoever had the lock may have made it.
    if let Some(found) = look()? {
        return Ok((found, Outcome::Found));
    }
    let staging = store.stage(lock, &request)?;
    let started = Instant::now();
    compiler.run(&staging, &request.flags, options.timeout, &interrupted)?;
    let seconds = started.elapsed().as_secs_f64();
    let log = staging.log();
    let whole = fs::metadata(staging.neff()).is_ok();
    match staging.commit(&request, version, seconds) {
        Ok(artefact) => Ok((artefact, Outcome::Compiled(seconds))),
        Err(source @ StoreError::Neff { .. }) => Err(CompileError::NoProgram { log, source }),
        Err(source @ StoreError::Io { .. }) if !whole => Err(CompileError::NoProgram { log, source }),
        Err(error) => Err(error.into()),
    }
}
