//! The index on disk: immutable versions in folders of their own, and a pointer to the one in force.
//!
//! ```text
//! CURRENT                 the name of the version in force: v000007
//! LOCK                    held while a version is built
//! v000007/manifest.json   format, counts, the encoder, a checksum of each file
//! v000007/products.jsonl  products, by id
//! v000007/passages.jsonl  what was said of them, by id
//! v000007/vectors.bin     for each text the hash of it (16 bytes), then its embedding (f32, little-endian), by hash
//! ```
//!
//! A version is written whole and synced before `CURRENT` is renamed over, so whoever reads sees the old version or
//! the new one, and a crash leaves at most a folder that the next build removes. An unchanged text keeps its
//! embedding from version to version.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::IndexError;
use crate::assistant::source::{Passage, Product};

/// Changes with the files' meaning.
const FORMAT: u32 = 2;
const CURRENT: &str = "CURRENT";

/// What identifies a text.
pub(crate) type Key = [u8; 16];

/// Embeddings by text.
#[derive(Default)]
pub(crate) struct Vectors {
    pub(crate) dim: usize,
    pub(crate) by_text: FxHashMap<Key, Vec<f32>>,
}

/// The first half of a text's SHA-256.
pub(crate) fn key(text: &str) -> Key {
    let mut key = [0; 16];
    key.copy_from_slice(&Sha256::digest(text.as_bytes())[..16]);
    key
}

/// Which encoder made the vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EncoderId {
    /// A hash of its weights.
    pub id: String,
    /// Floats in a vector.
    pub dim: usize,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    encoder: Option<EncoderId>,
    products: usize,
    passages: usize,
    /// SHA-256 of each file, in hexadecimal.
    files: BTreeMap<String, String>,
}

/// All that an index holds, as it lies on disk.
#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) version: String,
    pub(crate) encoder: Option<EncoderId>,
    pub(crate) products: BTreeMap<String, Product>,
    pub(crate) passages: BTreeMap<String, Passage>,
    pub(crate) vectors: Vectors,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> IndexError + '_ {
    move |source| IndexError::Io { path: path.into(), source }
}

/// Reads the version in force; `None` where the folder holds no index.
///
/// # Errors
/// Where a file cannot be read, is of another format, or is not what its checksum says.
pub(crate) fn load(directory: &Path) -> Result<Option<Contents>, IndexError> {
    let pointer = directory.join(CURRENT);
    let version = match fs::read_to_string(&pointer) {
        Ok(version) => version.trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(&pointer)(error)),
    };
    let corrupt = |path: &Path, why: String| IndexError::Corrupt { path: path.into(), why };
    if number(&version).is_none() {
        return Err(corrupt(&pointer, format!("{version:?} is no version")));
    }
    let folder = directory.join(&version);
    let path = folder.join("manifest.json");
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).map_err(io(&path))?)
        .map_err(|error| corrupt(&path, error.to_string()))?;
    // Before anything else is believed: another format may mean anything by the other fields.
    let found = manifest.get("format").and_then(serde_json::Value::as_u64);
    if found != Some(u64::from(FORMAT)) {
        let found = found.map_or("none".into(), |found| found.to_string());
        return Err(IndexError::Format { path: directory.into(), found, wanted: FORMAT });
    }
    let manifest: Manifest =
        serde_json::from_value(manifest).map_err(|error| corrupt(&path, error.to_string()))?;
    let mut contents = Contents { version, encoder: manifest.encoder, ..Contents::default() };
    for (name, checksum) in &manifest.files {
        let path = folder.join(name);
        let bytes = fs::read(&path).map_err(io(&path))?;
        if hex(&Sha256::digest(&bytes)) != *checksum {
            return Err(corrupt(&path, "its checksum is another one".into()));
        }
        match name.as_str() {
            "products.jsonl" => {
                let all: Vec<Product> = records(&bytes).map_err(|why| corrupt(&path, why))?;
                contents.products = all.into_iter().map(|product| (product.id.clone(), product)).collect();
            }
            "passages.jsonl" => {
                let all: Vec<Passage> = records(&bytes).map_err(|why| corrupt(&path, why))?;
                contents.passages = all.into_iter().map(|passage| (passage.id.clone(), passage)).collect();
            }
            "vectors.bin" => {
                let dim = contents.encoder.as_ref().map_or(0, |encoder| encoder.dim);
                contents.vectors = vectors(&bytes, dim).map_err(|why| corrupt(&path, why))?;
            }
            _ => return Err(corrupt(&path, "no file of this format".into())),
        }
    }
    Ok(Some(contents))
}

fn records<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<Vec<T>, String> {
    BufReader::new(bytes)
        .lines()
        .map(|line| {
            let line = line.map_err(|error| error.to_string())?;
            serde_json::from_str(&line).map_err(|error| error.to_string())
        })
        .collect()
}

fn vectors(bytes: &[u8], dim: usize) -> Result<Vectors, String> {
    let size = 16 + 4 * dim;
    if dim == 0 || !bytes.len().is_multiple_of(size) {
        return Err(format!("{} bytes are no vectors of {dim} floats", bytes.len()));
    }
    let by_text = bytes.chunks_exact(size).map(|entry| {
        let (key, floats) = entry.split_at(16);
        let mut hash = [0; 16];
        hash.copy_from_slice(key);
        let floats = floats.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]));
        (hash, floats.collect())
    });
    Ok(Vectors { dim, by_text: by_text.collect() })
}

/// Keeps others from building in the same folder while it lives.
pub(crate) struct Lock(#[allow(dead_code, reason = "held, not read")] File);

/// Takes the folder's lock, making the folder where there is none.
///
/// # Errors
/// Where somebody else builds there, or the folder cannot be written.
pub(crate) fn lock(directory: &Path) -> Result<Lock, IndexError> {
    fs::create_dir_all(directory).map_err(io(directory))?;
    let path = directory.join("LOCK");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(fs::TryLockError::WouldBlock) => Err(IndexError::Busy { path: directory.into() }),
        Err(fs::TryLockError::Error(error)) => Err(io(&path)(error)),
    }
}

/// Writes a version and puts it in force; the one before goes. Returns its name.
///
/// # Errors
/// Where something cannot be written; then the version before stays in force.
pub(crate) fn save(directory: &Path, contents: &Contents, _lock: &Lock) -> Result<String, IndexError> {
    let versions = versions(directory)?;
    let in_force = number(&contents.version).unwrap_or(0);
    // Folders that are not in force are left from builds that did not end.
    for (number, path) in versions.iter().filter(|(number, _)| *number != in_force) {
        tracing::warn!(number, "removing a version that was never finished");
        fs::remove_dir_all(path).map_err(io(path))?;
    }
    let version = format!("v{:06}", in_force + 1);
    let folder = directory.join(&version);
    fs::create_dir(&folder).map_err(io(&folder))?;
    let mut files = BTreeMap::new();
    let mut write = |name: &str, each: &mut dyn FnMut(&mut dyn Write) -> std::io::Result<()>| {
        let path = folder.join(name);
        let mut out =
            Hashing { file: BufWriter::new(File::create(&path).map_err(io(&path))?), hash: Sha256::new() };
        each(&mut out)
            .and_then(|()| out.file.flush())
            .and_then(|()| out.file.get_ref().sync_all())
            .map_err(io(&path))?;
        files.insert(name.to_owned(), hex(&out.hash.finalize()));
        Ok::<(), IndexError>(())
    };
    write("products.jsonl", &mut |out| lines(out, contents.products.values()))?;
    write("passages.jsonl", &mut |out| lines(out, contents.passages.values()))?;
    if contents.encoder.is_some() {
        let mut order: Vec<_> = contents.vectors.by_text.iter().collect();
        order.sort_unstable_by_key(|(key, _)| **key);
        write("vectors.bin", &mut |out| {
            order.iter().try_for_each(|(key, vector)| {
                out.write_all(*key)?;
                vector.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
            })
        })?;
    }
    let manifest = Manifest {
        format: FORMAT,
        encoder: contents.encoder.clone(),
        products: contents.products.len(),
        passages: contents.passages.len(),
        files,
    };
    let path = folder.join("manifest.json");
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| io(&path)(error.into()))?;
    durable(&path, &text)?;
    sync(&folder)?;
    let staged = directory.join("CURRENT.new");
    durable(&staged, format!("{version}\n").as_bytes())?;
    let pointer = directory.join(CURRENT);
    fs::rename(&staged, &pointer).map_err(io(&pointer))?;
    sync(directory)?;
    for (_, path) in versions.iter().filter(|(number, _)| *number == in_force) {
        fs::remove_dir_all(path).map_err(io(path))?;
    }
    Ok(version)
}

struct Hashing {
    file: BufWriter<File>,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn lines<'a, T: Serialize + 'a>(
    out: &mut dyn Write,
    all: impl Iterator<Item = &'a T>,
) -> std::io::Result<()> {
    for record in all {
        serde_json::to_writer(&mut *out, record)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn durable(path: &Path, bytes: &[u8]) -> Result<(), IndexError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(io(path))
}

fn sync(directory: &Path) -> Result<(), IndexError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(io(directory))
}

fn number(version: &str) -> Option<u64> {
    let digits = version.strip_prefix('v')?;
    (digits.len() >= 6 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

fn versions(directory: &Path) -> Result<Vec<(u64, PathBuf)>, IndexError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(io(directory))? {
        let entry = entry.map_err(io(directory))?;
        if let Some(number) = entry.file_name().to_str().and_then(number) {
            found.push((number, entry.path()));
        }
    }
    Ok(found)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
