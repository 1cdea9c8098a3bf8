//! Files mapped into memory: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::ModelError;

/// A file's bytes, read only and paged in on use.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps a regular file that is not empty.
    pub(crate) fn open(path: &Path) -> Result<MappedFile, ModelError> {
        let io = |source| ModelError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let malformed = |why: &str| ModelError::Malformed {
            file: path.display().to_string(),
            field: "file".into(),
            why: why.into(),
        };
        if !metadata.is_file() {
            return Err(malformed("not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(malformed("it is empty"));
        }
        // SAFETY: the map is read only and private to this process. It is undefined behaviour only if the file
        // shrinks or changes while it is mapped; model files are written once and then only read, and whoever
        // may write them could as well replace the program's answers.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(MappedFile { path: path.into(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the system take the pages back; they are read from the file again when they are touched.
    pub(crate) fn advise_dont_need(&self) {
        #[cfg(unix)]
        {
            // SAFETY: the map is a read-only, file-backed mapping, so dropped pages come back with the same
            // bytes: no write is lost, and no reference into the map changes its meaning.
            let advised = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            if let Err(error) = advised {
                tracing::debug!(path = %self.path.display(), %error, "cannot drop mapped pages");
            }
        }
    }
}
