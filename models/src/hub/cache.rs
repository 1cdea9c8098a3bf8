//! The cache's layout, shared with the hub's other clients.
//!
//! `refs/<revision>` holds a commit, `snapshots/<commit>/<file>` links to `blobs/<etag>`.

use super::{HubError, ModelId};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A model's folder in the cache.
#[derive(Debug)]
pub(super) struct Repository(PathBuf);

impl Repository {
    pub(super) fn new(cache: &Path, id: &ModelId) -> Self {
        Self(cache.join(format!("models--{}--{}", id.organisation, id.name)))
    }

    /// The files of a revision, if any were ever fetched. They may be incomplete.
    pub(super) fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        let commit = match std::fs::read_to_string(self.0.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        let snapshot = is_hash(&commit).then(|| self.snapshot_dir(&commit))?;
        snapshot.is_dir().then_some(snapshot)
    }

    pub(super) fn snapshot_dir(&self, commit: &str) -> PathBuf {
        self.0.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.0.join("blobs").join(etag)
    }

    /// Shows a blob under a name of the snapshot.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let dir = self.snapshot_dir(commit);
        create_dir(&dir)?;
        let path = dir.join(file);
        // Put in place by renaming, so that there is never a moment without it.
        let staging = dir.join(format!(".{file}.{}", std::process::id()));
        let _ = std::fs::remove_file(&staging);
        let target = Path::new("../../blobs").join(etag);
        std::os::unix::fs::symlink(target, &staging)
            .and_then(|()| std::fs::rename(&staging, &path))
            .map_err(|source| HubError::Io { path, source })
    }

    /// Notes which commit a revision is.
    pub(super) fn set_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.0.join("refs").join(revision);
        create_dir(path.parent().unwrap_or(&self.0))?;
        std::fs::write(&path, commit).map_err(|source| HubError::Io { path, source })
    }
}

pub(super) fn create_dir(path: &Path) -> Result<(), HubError> {
    std::fs::create_dir_all(path).map_err(|source| HubError::Io { path: path.to_owned(), source })
}

/// A commit, or the checksum of a file.
pub(super) fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a snapshot has all that serving may need.
pub(super) fn complete(snapshot: &Path) -> bool {
    has_weights(snapshot) && snapshot.join("tokenizer.json").exists()
}

/// Whether a snapshot has a configuration and all weights.
pub(super) fn has_weights(snapshot: &Path) -> bool {
    if !snapshot.join("config.json").exists() {
        return false;
    }
    match std::fs::read(snapshot.join(INDEX)) {
        Ok(index) => {
            shards(&index).is_ok_and(|shards| shards.iter().all(|shard| snapshot.join(shard).exists()))
        }
        Err(_) => std::fs::read_dir(snapshot).is_ok_and(|mut entries| {
            let name = |entry: std::io::Result<std::fs::DirEntry>| Some(entry.ok()?.path());
            // A link whose blob is gone does not exist.
            entries.any(|e| name(e).is_some_and(|path| is_safetensors(&path) && path.exists()))
        }),
    }
}

pub(super) const INDEX: &str = "model.safetensors.index.json";

pub(super) fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// The files an index names, each once.
pub(super) fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    let index: Value = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let map = index.get("weight_map").and_then(Value::as_object).ok_or("no weight_map")?;
    let mut shards = std::collections::BTreeSet::new();
    for shard in map.values() {
        let shard =
            shard.as_str().filter(|shard| is_file_name(shard)).ok_or("a shard that is no file name")?;
        shards.insert(shard.to_owned());
    }
    Ok(shards.into_iter().collect())
}

/// A name that stays in its folder.
pub(super) fn is_file_name(name: &str) -> bool {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(plain)
}
