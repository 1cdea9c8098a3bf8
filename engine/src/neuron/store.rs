//! Compiled graphs by content: what was compiled, with which flags, by which compiler, for what.
//!
//! ```text
//! DIR/<graph>-<key>/   model.neff  hlo.pb  manifest.json  SHA256SUMS
//! DIR/.staging/        artefacts in the making, one directory each
//! DIR/.locks/          one file for each key
//! DIR/logs/            what the compiler said
//! ```
//! `graph` is the beginning of a SHA-256 over HLO, flags, target and logical core size; `key` adds the compiler's
//! version. So a host without a compiler finds a graph by the first, and a host with one by both.
//!
//! An artefact is made in a staging directory under its key's lock, flushed, and renamed into place: it is there as
//! a whole or not at all, whoever is killed and whenever. `SHA256SUMS` has the form that `sha256sum -c` reads. It is
//! compared on every read, and what the manifest says is compared with what the reader asks for, so neither a
//! damaged byte nor a manifest of another graph goes unnoticed.
//!
//! Locks are advisory and the kernel's, so they end with their process; NFS carries them between hosts. Where a file
//! system has none, two processes may compile the same graph, and the first rename wins.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use neuron_sys::neff::Header;
use sha2::{Digest, Sha256};

use super::manifest::{FORMAT, FileEntry, Manifest, hex};
use super::request::Request;

const NEFF: &str = "model.neff";
const HLO: &str = "hlo.pb";
const MANIFEST: &str = "manifest.json";
const SUMS: &str = "SHA256SUMS";

/// Far above any manifest, far below what hurts.
const MAX_MANIFEST: u64 = 64 << 20;
/// How often a lock that another process holds is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// Where there are no locks, a staging directory that nobody wrote to for this long is given up.
const STALE: Duration = Duration::from_secs(48 * 3600);

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system did.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An artefact is not what it was, or not what it says.
    #[error(
        "{} is damaged: {why}. Run `millrace compile` with the same arguments, which replaces it, or delete {}",
        file.display(), directory.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
        /// The artefact.
        directory: PathBuf,
    },
    /// A compiler's output is no program.
    #[error("{} is not a compiled program", path.display())]
    Neff {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: neuron_sys::neff::NeffError,
    },
    /// The caller gave up.
    #[error("interrupted")]
    Interrupted,
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

/// A directory of compiled graphs.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A compiled graph that was verified.
#[derive(Clone, Debug)]
pub struct Artefact {
    /// What is known of it.
    pub manifest: Manifest,
    /// The program, the very bytes whose digest was compared.
    pub neff: Vec<u8>,
    /// Where it lies.
    pub directory: PathBuf,
}

/// An artefact's directory, and its manifest or why that cannot be read.
pub type Listed = (PathBuf, Result<Manifest, StoreError>);

impl Store {
    /// A store in this directory, which need not exist. Nothing is written before something is compiled, so a store
    /// may be read-only.
    pub fn new(root: impl Into<PathBuf>) -> Store {
        let root = root.into();
        // Compilers are started elsewhere. Where there is no current directory, the path fails when it is used.
        Store { root: std::path::absolute(&root).unwrap_or(root) }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The artefact of a request; `None` where there is none. Without a compiler's version, the newest of any
    /// version.
    ///
    /// # Errors
    /// Where it is damaged or cannot be read.
    pub fn find(&self, request: &Request, compiler: Option<&str>) -> Result<Option<Artefact>, StoreError> {
        let directory = match compiler {
            Some(version) => Some(self.root.join(request.entry(version))),
            None => self.newest(&request.prefix())?,
        };
        match directory {
            Some(directory) if exists(&directory)? => self.read(&directory, request).map(Some),
            _ => Ok(None),
        }
    }

    /// The manifests of all artefacts, sorted by directory, without a look at their programs. What cannot be read
    /// is an error in its place.
    ///
    /// # Errors
    /// Where the store cannot be listed.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let mut found: Vec<_> = self.entries()?;
        found.sort();
        let read = |directory: PathBuf| {
            let manifest = read_manifest(&directory).map(|(manifest, _)| manifest);
            (directory, manifest)
        };
        Ok(found.into_iter().map(read).collect())
    }

    fn entries(&self) -> Result<Vec<PathBuf>, StoreError> {
        let listing = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing.map_err(io_error("list", &self.root))?,
        };
        let mut found = Vec::new();
        for entry in listing {
            let entry = entry.map_err(io_error("list", &self.root))?;
            let name = entry.file_name();
            let halves = name.to_str().and_then(|name| name.split_once('-'));
            if halves.is_some_and(|(graph, key)| is_hex(graph, 16) && is_hex(key, 64)) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    fn newest(&self, prefix: &str) -> Result<Option<PathBuf>, StoreError> {
        let mut newest: Option<(SystemTime, PathBuf)> = None;
        for path in self.entries()? {
            if !path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix)) {
                continue;
            }
            let time =
                fs::metadata(&path).and_then(|data| data.modified()).map_err(io_error("read", &path))?;
            newest = newest.max(Some((time, path)));
        }
        Ok(newest.map(|(_, path)| path))
    }

    /// Reads an artefact and compares every byte with its digest, and every word with the request.
    fn read(&self, directory: &Path, request: &Request) -> Result<Artefact, StoreError> {
        let (manifest, sums) = read_manifest(directory)?;
        let damaged = |name: &str, why: String| StoreError::Damaged {
            file: directory.join(name),
            why,
            directory: directory.to_owned(),
        };
        for (name, entry) in [(HLO, &manifest.hlo), (NEFF, &manifest.neff)] {
            if sums.iter().all(|(sum, digest)| *sum != name || *digest != entry.sha256) {
                return Err(damaged(SUMS, format!("it does not agree with the manifest on {name}")));
            }
        }
        request.compare(&manifest).map_err(|why| damaged(MANIFEST, why))?;
        let entry = request.entry(&manifest.build.compiler);
        if directory.file_name() != Some(entry.as_ref()) {
            let why = format!("its contents belong into {entry}");
            return Err(damaged(MANIFEST, why));
        }
        let load = |name: &str, entry: &FileEntry| {
            let path = directory.join(name);
            let length = match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(damaged(name, "it is missing".into()));
                }
                found => found.map_err(io_error("read", &path))?.len(),
            };
            if length != entry.bytes {
                return Err(damaged(name, format!("it has {length} bytes instead of {}", entry.bytes)));
            }
            let bytes = fs::read(&path).map_err(io_error("read", &path))?;
            match FileEntry::of(&bytes) == *entry {
                true => Ok(bytes),
                false => Err(damaged(name, "its SHA-256 is not the one that was written beside it".into())),
            }
        };
        load(HLO, &manifest.hlo)?;
        let neff = load(NEFF, &manifest.neff)?;
        Ok(Artefact { manifest, neff, directory: directory.to_owned() })
    }

    /// Waits until no other process compiles the request.
    ///
    /// # Errors
    /// Where the lock's file cannot be made, or `interrupted` says so.
    pub fn lock(
        &self,
        request: &Request,
        compiler: &str,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<KeyLock, StoreError> {
        let locks = self.root.join(".locks");
        fs::create_dir_all(&locks).map_err(io_error("create", &locks))?;
        let entry = request.entry(compiler);
        let path = locks.join(format!("{entry}.lock"));
        let file = open_lock(&path)?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if interrupted() => return Err(StoreError::Interrupted),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::Error(error)) if no_locks(&error) => {
                    tracing::warn!(path = %path.display(), %error, "this file system has no locks");
                    break;
                }
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
            }
        }
        Ok(KeyLock { entry, _file: file })
    }

    /// A directory to make an artefact in, which holds the request's HLO. Dropped, it is removed.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn stage(&self, lock: KeyLock, request: &Request) -> Result<Staging, StoreError> {
        let staging = self.root.join(".staging");
        fs::create_dir_all(&staging).map_err(io_error("create", &staging))?;
        let logs = self.root.join("logs");
        fs::create_dir_all(&logs).map_err(io_error("create", &logs))?;
        let nanos =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let directory = staging.join(format!("{}.{}.{nanos:x}", lock.entry, std::process::id()));
        fs::create_dir(&directory).map_err(io_error("create", &directory))?;
        let staged = Staging { root: self.root.clone(), directory, lock };
        write_synced(&staged.hlo(), &request.hlo)?;
        Ok(staged)
    }

    /// Removes what interrupted processes left behind. Returns how many directories that were.
    ///
    /// # Errors
    /// Where the store cannot be listed or written.
    pub fn clean(&self) -> Result<usize, StoreError> {
        let staging = self.root.join(".staging");
        let listing = match fs::read_dir(&staging) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            listing => listing.map_err(io_error("list", &staging))?,
        };
        let mut removed = 0;
        for entry in listing {
            let path = entry.map_err(io_error("list", &staging))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some((key, _)) = name.split_once('.') else { continue };
            let lock = self.root.join(".locks").join(format!("{key}.lock"));
            // Whoever makes an artefact holds its lock: a staging directory whose lock is free is nobody's.
            let file = open_lock(&lock)?;
            let abandoned = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(_)) => untouched_for(&path, STALE),
            };
            if abandoned {
                remove_tree(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// The right to compile one key. Ends with its drop, or with the process.
#[derive(Debug)]
pub struct KeyLock {
    entry: String,
    _file: File,
}

/// An artefact in the making.
#[derive(Debug)]
pub struct Staging {
    root: PathBuf,
    directory: PathBuf,
    lock: KeyLock,
}

impl Staging {
    /// Where the compiler finds the graph.
    pub fn hlo(&self) -> PathBuf {
        self.directory.join(HLO)
    }

    /// Where the compiler writes the program.
    pub fn neff(&self) -> PathBuf {
        self.directory.join(NEFF)
    }

    /// Where the compiler's own files may lie; removed with the staging directory.
    pub fn scratch(&self) -> Result<PathBuf, StoreError> {
        let path = self.directory.join("scratch");
        fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        Ok(path)
    }

    /// Where what the compiler says is kept, also when it fails.
    pub fn log(&self) -> PathBuf {
        self.root.join("logs").join(format!("{}.log", self.lock.entry))
    }

    /// Describes what the compiler has written, flushes it, and moves it into place; replaces a damaged artefact.
    ///
    /// # Errors
    /// Where the program is missing, is no whole NEFF, or something cannot be written.
    pub fn commit(self, request: &Request, compiler: &str, seconds: f64) -> Result<Artefact, StoreError> {
        let path = self.neff();
        let neff = fs::read(&path).map_err(io_error("read", &path))?;
        Header::parse(&neff).map_err(|source| StoreError::Neff { path: path.clone(), source })?;
        File::open(&path).and_then(|file| file.sync_all()).map_err(io_error("flush", &path))?;
        let manifest = request.manifest(compiler, seconds, FileEntry::of(&neff));
        let text = serde_json::to_string_pretty(&manifest).expect("a manifest has only text for keys") + "\n";
        write_synced(&self.directory.join(MANIFEST), text.as_bytes())?;
        let digests = [
            (HLO, manifest.hlo.sha256.clone()),
            (MANIFEST, FileEntry::of(text.as_bytes()).sha256),
            (NEFF, manifest.neff.sha256.clone()),
        ];
        write_synced(&self.directory.join(SUMS), sums_text(&digests).as_bytes())?;
        let scratch = self.directory.join("scratch");
        if exists(&scratch)? {
            remove_tree(&scratch)?;
        }
        sync_directory(&self.directory)?;

        let store = Store { root: self.root.clone() };
        let place = self.root.join(&self.lock.entry);
        loop {
            match fs::rename(&self.directory, &place) {
                Ok(()) => break,
                Err(error) if exists(&place)? => match store.read(&place, request) {
                    // Without locks another process may have been first: equal inputs, so its work is as good.
                    Ok(artefact) => return Ok(artefact),
                    Err(StoreError::Damaged { .. }) => {
                        tracing::warn!(directory = %place.display(), %error, "replaces a damaged artefact");
                        let aside = self.directory.with_extension("damaged");
                        fs::rename(&place, &aside).map_err(io_error("move aside", &place))?;
                        remove_tree(&aside)?;
                    }
                    Err(other) => return Err(other),
                },
                Err(error) => return Err(io_error("move into place", &place)(error)),
            }
        }
        sync_directory(&self.root)?;
        Ok(Artefact { manifest, neff, directory: place })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.directory.display(), %error, "a staging directory is left behind");
        }
    }
}

type Sums = Vec<(String, String)>;

/// The manifest, compared with its digest, and all digests.
fn read_manifest(directory: &Path) -> Result<(Manifest, Sums), StoreError> {
    let damaged = |name: &str, why: String| StoreError::Damaged {
        file: directory.join(name),
        why,
        directory: directory.to_owned(),
    };
    let small = |name: &str| {
        let path = directory.join(name);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(damaged(name, "it is missing".into()))
            }
            Err(error) => Err(io_error("read", &path)(error)),
            Ok(data) if data.len() > MAX_MANIFEST => {
                Err(damaged(name, format!("it has {} bytes", data.len())))
            }
            Ok(_) => fs::read(&path).map_err(io_error("read", &path)),
        }
    };
    let text = small(SUMS)?;
    let sums = parse_sums(&text).ok_or_else(|| damaged(SUMS, "it is not as it was written".into()))?;
    let bytes = small(MANIFEST)?;
    let digest = FileEntry::of(&bytes).sha256;
    if sums.iter().all(|(name, sum)| name != MANIFEST || *sum != digest) {
        return Err(damaged(MANIFEST, format!("its SHA-256 is not the one in {SUMS}")));
    }
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| damaged(MANIFEST, error.to_string()))?;
    if manifest.format != FORMAT {
        let why = format!("it is of format {}, and this program reads {FORMAT}", manifest.format);
        return Err(damaged(MANIFEST, why));
    }
    Ok((manifest, sums))
}

/// One line for each file, as `sha256sum` prints them.
fn sums_text(digests: &[(impl AsRef<str>, String)]) -> String {
    digests.iter().map(|(name, digest)| format!("{digest}  {}\n", name.as_ref())).collect()
}

/// The digests, if the text is byte for byte one that [`sums_text`] makes of the three files.
fn parse_sums(text: &[u8]) -> Option<Sums> {
    let text = std::str::from_utf8(text).ok()?;
    let lines = text.lines().map(|line| {
        let (digest, name) = line.split_once("  ")?;
        is_hex(digest, 64).then(|| (name.to_owned(), digest.to_owned()))
    });
    let sums: Sums = lines.collect::<Option<_>>()?;
    let whole = sums.iter().map(|(name, _)| name.as_str()).eq([HLO, MANIFEST, NEFF]);
    (whole && sums_text(&sums) == text).then_some(sums)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn open_lock(path: &Path) -> Result<File, StoreError> {
    File::options().create(true).truncate(false).write(true).open(path).map_err(io_error("open", path))
}

/// `ENOLCK`, or no support at all.
fn no_locks(error: &io::Error) -> bool {
    const ENOLCK: i32 = 37;
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(ENOLCK)
}

fn untouched_for(path: &Path, time: Duration) -> bool {
    let age = fs::metadata(path).and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age > time)
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(io_error("look for", path))
}

fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = File::create(path).map_err(io_error("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", path))
}

/// Makes names that were added to a directory last through a power cut.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("flush", path))
}

/// A digest of fields, each with its length ahead of it, so that no two lists of fields read the same.
pub(super) fn digest_of(fields: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for field in fields {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    hex(&hash.finalize())
}
