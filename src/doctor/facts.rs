//! What `millrace doctor` looks at, gathered without claiming a core.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millrace_engine::neuron::label;
use millrace_engine::neuron::store::Store;
use neuron_sys::sysfs::{self, Inventory};
use neuron_sys::{Library, OpenError};
use serde::Serialize;

/// How long a compiler may take to say its version.
const COMPILER_PATIENCE: Duration = Duration::from_secs(20);

/// Variables of the runtime and of this program that decide what is seen, or have surprised people.
const VARIABLES: [&str; 11] = [
    "NEURON_RT_VISIBLE_CORES",
    "NEURON_RT_NUM_CORES",
    "NEURON_LOGICAL_NC_CONFIG",
    "NEURON_RT_VIRTUAL_CORE_SIZE",
    "NEURON_RT_ROOT_COMM_ID",
    "NEURON_RT_EXEC_TIMEOUT",
    "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS",
    "NEURON_RT_STOCHASTIC_ROUNDING_EN",
    "NEURON_RT_NUMERICAL_ERRORS_VERBOSITY",
    "NEURON_CC_FLAGS",
    "MILLRACE_LOG",
];

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) inventory: Inventory,
    pub(super) library: LibraryFacts,
    pub(super) compiler: Compiler,
    pub(super) variables: Vec<(String, String)>,
    pub(super) host: Host,
    pub(super) store: Option<StoreFacts>,
}

/// The store of compiled graphs.
#[derive(Debug, Default, Serialize)]
pub(super) struct StoreFacts {
    pub(super) path: PathBuf,
    /// Graphs that can be used, as their manifests describe them.
    pub(super) graphs: Vec<Graph>,
    /// Entries that cannot, and why.
    pub(super) damaged: Vec<String>,
    /// Why it cannot be looked at.
    pub(super) error: Option<String>,
}

/// A compiled graph.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct Graph {
    pub(super) model: String,
    pub(super) target: String,
    pub(super) ranks: usize,
    pub(super) compiler: String,
    pub(super) bucket: String,
    pub(super) bytes: u64,
}

/// The runtime library.
#[derive(Debug, Default, Serialize)]
pub(super) struct LibraryFacts {
    /// Where it was opened.
    pub(super) path: Option<PathBuf>,
    /// What it calls itself.
    pub(super) version: Option<String>,
    /// Cores that a process with this environment could use.
    pub(super) visible_cores: Option<u32>,
    /// Cores of this machine.
    pub(super) total_cores: Option<u32>,
    /// Optional functions that it has.
    pub(super) has: Vec<&'static str>,
    /// Optional functions that it lacks.
    pub(super) lacks: Vec<&'static str>,
    /// Why it was not opened.
    pub(super) error: Option<String>,
    /// A file was there, and is not a runtime library that can be used.
    pub(super) unusable: bool,
}

/// The graph compiler.
#[derive(Debug, Default, Serialize)]
pub(super) struct Compiler {
    /// What was asked.
    pub(super) program: PathBuf,
    /// What it calls itself.
    pub(super) version: Option<String>,
    /// Why it did not say.
    pub(super) error: Option<String>,
}

/// The machine around the devices.
#[derive(Debug, Default, Serialize)]
pub(super) struct Host {
    /// Cores that this process may run on.
    pub(super) cores: usize,
    /// Bytes of memory.
    pub(super) memory: Option<u64>,
    /// Bytes of memory that can be had now.
    pub(super) available: Option<u64>,
    /// Vector units that the CPU kernels use or could; `None` on a processor for which there are portable kernels alone.
    pub(super) vector: Option<Vec<&'static str>>,
}

impl Facts {
    /// Looks around. `root` is `/` but in tests.
    pub(super) fn gather(
        root: &Path,
        library: Option<&Path>,
        compiler: &Path,
        store: Option<&Path>,
    ) -> Facts {
        let variables =
            VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
        Facts {
            inventory: sysfs::scan(root),
            library: LibraryFacts::gather(library),
            compiler: Compiler::gather(compiler),
            variables: variables.collect(),
            host: Host::gather(root),
            store: store.map(StoreFacts::gather),
        }
    }
}

impl StoreFacts {
    fn gather(path: &Path) -> StoreFacts {
        let mut found = StoreFacts { path: path.to_path_buf(), ..StoreFacts::default() };
        match Store::new(path).list() {
            Err(error) => found.error = Some(error.to_string()),
            Ok(entries) => {
                for (_, manifest) in entries {
                    match manifest {
                        Err(error) => found.damaged.push(error.to_string()),
                        Ok(manifest) => found.graphs.push(Graph {
                            model: manifest.model.name,
                            target: manifest.build.target.to_string(),
                            ranks: manifest.model.ranks,
                            compiler: manifest.build.compiler,
                            bucket: label(&manifest.bucket),
                            bytes: manifest.neff.bytes,
                        }),
                    }
                }
                found.graphs.sort();
            }
        }
        found
    }
}

impl LibraryFacts {
    fn gather(path: Option<&Path>) -> LibraryFacts {
        match Library::open(path) {
            Ok(library) => LibraryFacts {
                path: library.path().map(Path::to_path_buf),
                version: library.version().map(str::to_owned),
                visible_cores: library.visible_cores(),
                total_cores: library.total_cores(),
                has: library.optional(),
                lacks: library.lacking(),
                error: None,
                unusable: false,
            },
            Err(error) => {
                let unusable = match &error {
                    OpenError::NotFound { tried } => tried.iter().any(|(path, _)| path.exists()),
                    _ => true,
                };
                LibraryFacts { error: Some(error.to_string()), unusable, ..LibraryFacts::default() }
            }
        }
    }
}

impl Compiler {
    fn gather(program: &Path) -> Compiler {
        let (version, error) = match version(program) {
            Ok(version) => (Some(version), None),
            Err(error) => (None, Some(error)),
        };
        Compiler { program: program.to_path_buf(), version, error }
    }
}

/// The first line that a program prints for `--version`.
fn version(program: &Path) -> Result<String, String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let started = Instant::now();
    // A version fits the pipe's buffer, so it is read when the program has ended.
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if started.elapsed() > COMPILER_PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("it did not answer --version within {} s", COMPILER_PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty());
    match (output.status.success(), line) {
        (true, Some(line)) => Ok(line.chars().take(200).collect()),
        (true, None) => Err("it says nothing for --version".into()),
        (false, line) => {
            Err(format!("--version failed ({}): {}", output.status, line.unwrap_or("no message")))
        }
    }
}

impl Host {
    fn gather(root: &Path) -> Host {
        let meminfo = std::fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let bytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Host {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: bytes("MemTotal"),
            available: bytes("MemAvailable"),
            vector: vector_units(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn vector_units() -> Option<Vec<&'static str>> {
    let units = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
    ];
    Some(units.into_iter().filter(|(_, here)| *here).map(|(name, _)| name).collect())
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_units() -> Option<Vec<&'static str>> {
    None
}
