//! A directory of packed weights by content: `DIR/<key>.packed`, as [`Weights::write`] writes them.
//!
//! The key is a SHA-256 over the layout's version and all that packing reads: names, types, row orders, offsets,
//! conversions, and every stored byte. So a file is found for just the weights that packing would have yielded, in whatever file, container or
//! machine they lie, and a model that was replaced or changed in place has another key. Times, sizes and inodes with
//! a sample of the contents would be quicker, and wrong where one tensor of a file is replaced and its times are kept
//! (`rsync -t`, archives, image layers). Reading is the price: cold, both files come from the disk.
//!
//! A cache never keeps a model from being loaded. What cannot be read, or is not what was written, is packed again
//! with a warning that names the file, and replaced. A file is written under a name of its own, flushed and renamed,
//! so it is there as a whole or not at all, and processes that write it at the same time write the same bytes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use millrace_graph::RowOrder;
use millrace_kernels::{PACKED_VERSION, Pool, Weights};
use sha2::{Digest, Sha256};

use super::chain;
use super::weights::{DROP_BYTES, Source, Wanted};

/// Bytes under one digest; the key is a digest over those, so that all workers take part.
const CHUNK: usize = 1 << 20;

/// What an unfinished file ends with.
const STAGING: &str = "staging";

/// After this long nobody is writing an unfinished file any more.
const STALE: Duration = Duration::from_secs(3600);

/// The place of certain weights in a directory.
#[derive(Debug)]
pub(super) struct Entry {
    directory: PathBuf,
    key: [u8; 32],
    /// How long it took to make the key.
    identified: Duration,
}

impl Entry {
    /// Reads all that the weights are made of. `let_go` is called now and then, when what was read so far is not
    /// needed in memory.
    pub(super) fn of(directory: &Path, wanted: &[Wanted<'_>], pool: &Pool, let_go: &dyn Fn()) -> Entry {
        let started = Instant::now();
        let mut key = Sha256::new();
        key.update(PACKED_VERSION.to_le_bytes());
        let mut chunks = Vec::new();
        for Wanted { name, ty, source } in wanted {
            key.update(format!("{name}\0{ty}\0"));
            match source {
                Source::Alias(of) => key.update(format!("is {of}\0")),
                Source::Stored(view) => {
                    let heads = match view.order {
                        RowOrder::Natural => 0,
                        RowOrder::RopeInterleaved { heads } => heads,
                    };
                    let (from, offset, parts) = (&view.ty, view.offset.to_bits(), view.parts.len());
                    key.update(format!("{from} {heads} {offset:x} {parts}\0"));
                    for part in &view.parts {
                        key.update((part.len() as u64).to_le_bytes());
                        chunks.extend(part.chunks(CHUNK));
                    }
                }
            }
        }
        for some in chunks.chunks(DROP_BYTES / CHUNK) {
            digests(some, pool).iter().for_each(|digest| key.update(digest));
            let_go();
        }
        let identified = started.elapsed();
        Entry { directory: directory.to_owned(), key: key.finalize().into(), identified }
    }

    /// The file.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.packed", self.hex()))
    }

    fn hex(&self) -> String {
        self.key.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Maps the weights; `None`, with a warning unless there is just no such file, where they have to be packed.
    pub(super) fn read(&self, wanted: &[Wanted<'_>], pool: &Pool) -> Option<Weights> {
        let (started, path) = (Instant::now(), self.path());
        let refuse = |why: String| {
            tracing::warn!(file = %path.display(), why, "packed weights cannot be used: packing anew");
            None
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return refuse(error.to_string()),
        };
        let weights = match Weights::map(&file, &self.key, pool) {
            Ok(weights) => weights,
            Err(error) => return refuse(chain(&error)),
        };
        if let Some(weight) = wanted.iter().find(|weight| weights.ty(weight.name) != Some(&weight.ty)) {
            return refuse(format!("{:?} is not there as a {}", weight.name, weight.ty));
        }
        tracing::info!(
            file = %path.display(),
            bytes = weights.bytes(),
            identified_in = self.identified.as_secs_f64(),
            mapped_in = started.elapsed().as_secs_f64(),
            "packed weights are mapped"
        );
        Some(weights)
    }

    /// Keeps the weights for the next process, if that is possible.
    pub(super) fn write(&self, weights: &Weights) {
        let (started, path) = (Instant::now(), self.path());
        match self.replace(|file| weights.write(&self.key, file)) {
            Ok(()) => {
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(file = %path.display(), bytes = weights.bytes(), seconds, "packed weights are kept");
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "packed weights cannot be kept");
            }
        }
    }

    /// Puts a file in place, as a whole or not at all.
    fn replace(&self, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(&self.directory)?;
        self.sweep();
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Relaxed));
        let staging = self.directory.join(format!(".{}.{process}.{number}.{STAGING}", self.hex()));
        let written = OpenOptions::new().write(true).create_new(true).open(&staging).and_then(|mut file| {
            write(&mut file)?;
            file.sync_all()?;
            fs::rename(&staging, self.path())
        });
        if written.is_err() {
            let _ = fs::remove_file(&staging);
            return written;
        }
        // So that the name is there after a power failure too; without it there would only be nothing.
        let _ = File::open(&self.directory).and_then(|directory| directory.sync_all());
        Ok(())
    }

    /// Removes what processes that were killed have left.
    fn sweep(&self) {
        let Ok(listing) = fs::read_dir(&self.directory) else { return };
        for entry in listing.flatten() {
            let path = entry.path();
            let ours = path.extension().is_some_and(|end| end == STAGING)
                && entry.file_name().as_encoded_bytes().starts_with(b".");
            let age = || SystemTime::now().duration_since(entry.metadata().ok()?.modified().ok()?).ok();
            if ours && age().is_some_and(|age| age > STALE) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// The digest of each chunk.
fn digests(chunks: &[&[u8]], pool: &Pool) -> Vec<[u8; 32]> {
    let digests = Mutex::new(vec![[0; 32]; chunks.len()]);
    pool.run(&|worker| {
        worker.for_chunks(chunks.len(), 1, |range| {
            for at in range {
                let digest = Sha256::digest(chunks[at]).into();
                digests.lock().expect("nobody panics with it")[at] = digest;
            }
        });
    });
    digests.into_inner().expect("nobody panicked with it")
}

#[cfg(test)]
mod tests;
