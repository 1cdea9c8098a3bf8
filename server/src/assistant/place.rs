//! Where an index is: a folder, or the address of a server.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;

use super::index::lines::{BadLine, Kind};
use super::index::{self, IndexError, Progress, Report};
use super::opensearch;
use super::retrieve::EmbeddedIndex;
use super::source::Retrieve;
use crate::embed::Embed;

/// A folder, or an address: `postgres://…`, `opensearch://…`. Shown without credentials.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Place(Kinds);

#[derive(Clone, PartialEq, Eq)]
enum Kinds {
    Folder(PathBuf),
    #[cfg(feature = "postgres")]
    Postgres(String),
    OpenSearch(String),
}

/// Why a text is no place for an index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlaceError(String);

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        #[cfg(feature = "postgres")]
        if super::postgres::is_postgres(text) {
            super::postgres::check(text).map_err(|error| PlaceError(error.to_string()))?;
            return Ok(Place(Kinds::Postgres(text.to_owned())));
        }
        if opensearch::is_opensearch(text) {
            opensearch::check(text).map_err(PlaceError)?;
            return Ok(Place(Kinds::OpenSearch(text.to_owned())));
        }
        match text.split_once("://") {
            Some((scheme, _)) => Err(PlaceError(format!(
                "{scheme}:// is no place for an index here: a folder is, or opensearch://…{}",
                if cfg!(feature = "postgres") { ", or postgres://…" } else { "" }
            ))),
            None => Ok(Place(Kinds::Folder(text.into()))),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = PlaceError;

    fn try_from(text: String) -> Result<Self, PlaceError> {
        text.parse()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kinds::Folder(path) => write!(f, "{}", path.display()),
            #[cfg(feature = "postgres")]
            Kinds::Postgres(address) => f.write_str(&super::postgres::shown(address)),
            Kinds::OpenSearch(address) => f.write_str(&opensearch::shown(address)),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Place {
    /// A relative folder as seen from this one.
    #[must_use]
    pub fn within(self, folder: &Path) -> Place {
        match self.0 {
            Kinds::Folder(path) => Place(Kinds::Folder(folder.join(path))),
            kind => Place(kind),
        }
    }

    /// The index that is there. Reads all of it where it is a folder.
    ///
    /// # Errors
    /// Where there is none, or it cannot be used: of another format, damaged, of another encoder, out of reach.
    pub async fn open(&self, encoder: Option<Arc<dyn Embed>>) -> Result<Arc<dyn Retrieve>, IndexError> {
        Ok(match &self.0 {
            Kinds::Folder(path) => Arc::new(EmbeddedIndex::open(path, encoder)?),
            #[cfg(feature = "postgres")]
            Kinds::Postgres(address) => {
                Arc::new(super::postgres::PostgresIndex::open(address, encoder).await?)
            }
            Kinds::OpenSearch(address) => {
                Arc::new(opensearch::OpenSearchIndex::open(address, encoder).await?)
            }
        })
    }

    /// Takes files into the index that is there, or makes one: see [`index::update`]. Blocks, and is not to be called
    /// where futures run.
    ///
    /// # Errors
    /// Where a file cannot be read or the index not be written; the index is then what it was.
    pub fn update(
        &self,
        files: &[(Kind, PathBuf)],
        encoder: Option<&dyn Embed>,
        progress: &mut dyn FnMut(Progress),
        bad: &mut dyn FnMut(&BadLine),
    ) -> Result<Report, IndexError> {
        match &self.0 {
            Kinds::Folder(path) => index::update(path, files, encoder, progress, bad),
            #[cfg(feature = "postgres")]
            Kinds::Postgres(address) => super::postgres::update(address, files, encoder, progress, bad),
            Kinds::OpenSearch(address) => opensearch::update(address, files, encoder, progress, bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_and_show_no_secret() {
        let place: Place = "shop.index".parse().unwrap();
        assert_eq!(place.within(Path::new("/etc")).to_string(), "/etc/shop.index");
        assert!("ftp://host/x".parse::<Place>().is_err());
        let place: Place = "opensearch://me:geheim@search/shop".parse().unwrap();
        assert_eq!(place.within(Path::new("/etc")).to_string(), "opensearch://search:9200/shop");
        assert!("opensearch://search/".parse::<Place>().is_err());
        #[cfg(feature = "postgres")]
        {
            let place: Place = "postgres://me:geheim@db/shop".parse().unwrap();
            let place = place.within(Path::new("/etc"));
            assert_eq!(format!("{place} {place:?}"), "postgres://db/shop postgres://db/shop");
            let error = "postgres://me:geheim@db:port/shop".parse::<Place>().unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
