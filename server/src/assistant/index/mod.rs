//! The embedded index: catalog, reviews, questions and policies in a folder, searched by words and by meaning.
//!
//! [`update`] reads JSON Lines ([`lines`]), cleans what it keeps (`clean`), and writes a new version beside the old one
//! (`store`). [`EmbeddedIndex`](super::retrieve::EmbeddedIndex) loads a version and answers from memory: words by BM25F
//! (`lexical`), meaning by an exact scan over embeddings. Good up to some hundred thousand passages on one machine;
//! beyond that, a server behind the same trait.

pub(crate) mod clean;
pub(crate) mod fields;
pub(crate) mod lexical;
pub mod lines;
pub(crate) mod passages;
pub(crate) mod store;

use std::path::{Path, PathBuf};

use crate::embed::{Embed, EmbedError};
use lines::{BadLine, Kind, Record};
use store::{Contents, EncoderId, Vectors, key};

/// Texts embedded between two reports of progress.
const EMBED_BATCH: usize = 256;

/// Distinct attributes that are embedded; where there are more, attributes are found by their words alone.
pub(crate) const MAX_ATTRIBUTE_VECTORS: usize = 20_000;

/// Why an index cannot be built or read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A file cannot be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is no index.
    #[error("{} holds no index; build one: millrace index --catalog FILE --output {}", path.display(), path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// The index is of another version of this program.
    #[error(
        "{} is an index of format {found}, and this version reads format {wanted}: rebuild it in a new folder with \
         millrace index --catalog FILE --reviews FILE --qa FILE --output DIR", path.display()
    )]
    Format {
        /// The folder.
        path: PathBuf,
        /// The format found.
        found: String,
        /// The format that is read.
        wanted: u32,
    },
    /// A file is not what was written.
    #[error("{}: {why}; rebuild the index in a new folder", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Another process builds there.
    #[error("another process is building an index in {}", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The server that holds the index does not do what it should.
    #[error("{server}: {reason}")]
    Server {
        /// Its address, without credentials.
        server: String,
        /// What it said.
        reason: String,
    },
    /// The index was built with another encoder, or without one.
    #[error(
        "the index holds vectors of encoder {found}, not of {wanted}: rebuild it with this --embedding-model"
    )]
    Encoder {
        /// In the index.
        found: String,
        /// At hand.
        wanted: String,
    },
    /// A text has no embedding.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

/// What an update did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The version now in force.
    pub version: String,
    /// Products in the index.
    pub products: usize,
    /// Reviews, answers and policies in the index.
    pub passages: usize,
    /// Lines taken in.
    pub read: u64,
    /// Lines left out.
    pub bad: u64,
    /// Reviews and answers that name no product of the catalog; they are kept out.
    pub orphans: usize,
    /// Texts whose embedding was computed.
    pub embedded: usize,
}

/// Where an update stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bytes read, of all.
    Reading(u64, u64),
    /// Texts embedded, of all.
    Embedding(u64, u64),
    /// Documents sent to a server, of all.
    Writing(u64, u64),
}

/// Takes files into the index in `directory`, which is made where there is none: records replace those of the same
/// id. With an encoder, what is new is embedded; without one, meaning is not searched. Bad lines go to `bad`.
///
/// # Errors
/// Where a file cannot be read or the index not be written; the index is then what it was.
pub fn update(
    directory: &Path,
    files: &[(Kind, PathBuf)],
    encoder: Option<&dyn Embed>,
    progress: &mut dyn FnMut(Progress),
    bad: &mut dyn FnMut(&BadLine),
) -> Result<Report, IndexError> {
    let lock = store::lock(directory)?;
    let mut contents = store::load(directory)?.unwrap_or_default();
    let mut report = take(&mut contents, files, encoder, progress, bad)?;
    report.version = store::save(directory, &contents, &lock)?;
    Ok(report)
}

/// Takes files into what an index holds. The report lacks the version.
///
/// # Errors
/// Where a file cannot be read or a text not be embedded.
pub(crate) fn take(
    contents: &mut Contents,
    files: &[(Kind, PathBuf)],
    encoder: Option<&dyn Embed>,
    progress: &mut dyn FnMut(Progress),
    bad: &mut dyn FnMut(&BadLine),
) -> Result<Report, IndexError> {
    let mut report = read(files, progress, bad, &mut |record| {
        apply(contents, record);
        Ok(())
    })?;
    let Contents { products, passages, .. } = contents;
    let held = passages.len();
    passages.retain(|_, passage| passage.product.as_ref().is_none_or(|id| products.contains_key(id)));
    report.orphans = held - passages.len();
    report.embedded = embed(contents, encoder, progress)?;
    (report.products, report.passages) = (contents.products.len(), contents.passages.len());
    Ok(report)
}

/// Gives every record of some files to `take`. The report counts the lines.
///
/// # Errors
/// Where a file cannot be read, and those of `take`, at once.
pub(crate) fn read(
    files: &[(Kind, PathBuf)],
    progress: &mut dyn FnMut(Progress),
    bad: &mut dyn FnMut(&BadLine),
    take: &mut dyn FnMut(Record) -> Result<(), IndexError>,
) -> Result<Report, IndexError> {
    let mut report = Report::default();
    let mut sizes = Vec::new();
    for (_, path) in files {
        let size = path.metadata().map_err(|source| IndexError::Io { path: path.clone(), source })?;
        sizes.push(size.len());
    }
    let (total, mut before) = (sizes.iter().sum(), 0);
    let mut failed = None;
    for ((kind, path), size) in files.iter().zip(sizes) {
        let mut each = |record: Result<Record, BadLine>, bytes: u64| {
            progress(Progress::Reading(before + bytes, total));
            match record {
                Err(line) => {
                    report.bad += 1;
                    bad(&line);
                }
                Ok(record) if failed.is_none() => {
                    report.read += 1;
                    failed = take(record).err();
                }
                Ok(_) => {}
            }
        };
        lines::read(path, *kind, &mut each)
            .map_err(|source| IndexError::Io { path: path.clone(), source })?;
        if let Some(error) = failed {
            return Err(error);
        }
        before += size;
    }
    Ok(report)
}

fn apply(contents: &mut Contents, record: Record) {
    match record {
        Record::Product(product) => drop(contents.products.insert(product.id.clone(), *product)),
        Record::Passage(passage) => drop(contents.passages.insert(passage.id.clone(), passage)),
        Record::DeleteProduct(id) => drop(contents.products.remove(&id)),
        Record::DeletePassage(id) => drop(contents.passages.remove(&id)),
    }
}

/// Embeds what has no embedding yet, and forgets those of texts that are gone.
fn embed(
    contents: &mut Contents,
    encoder: Option<&dyn Embed>,
    progress: &mut dyn FnMut(Progress),
) -> Result<usize, IndexError> {
    let Some(encoder) = encoder else {
        (contents.encoder, contents.vectors) = (None, Vectors::default());
        return Ok(0);
    };
    let id = EncoderId { id: encoder.id().to_owned(), dim: encoder.dim() };
    let mut old = std::mem::take(&mut contents.vectors);
    if contents.encoder.as_ref() != Some(&id) {
        old = Vectors::default();
    }
    let mut vectors = Vectors { dim: id.dim, ..Vectors::default() };
    let mut missing = Vec::new();
    let mut take = |text: String| {
        let key = key(&text);
        if vectors.by_text.contains_key(&key) {
            return;
        }
        let known = old.by_text.remove(&key);
        if known.is_none() {
            missing.push((key, text));
        }
        vectors.by_text.insert(key, known.unwrap_or_default());
    };
    let mut attributes = rustc_hash::FxHashSet::default();
    for product in contents.products.values() {
        take(passages::product_text(product));
        for passage in passages::of_product(product) {
            let text = passages::embedded_text(&passage);
            if passage.source == crate::assistant::Source::Attribute {
                attributes.insert(text);
            } else {
                take(text);
            }
        }
    }
    for passage in contents.passages.values() {
        take(passages::embedded_text(passage));
        passages::answer_text(passage).map(str::to_owned).into_iter().for_each(&mut take);
    }
    if attributes.len() <= MAX_ATTRIBUTE_VECTORS {
        attributes.into_iter().for_each(&mut take);
    } else {
        tracing::warn!(
            attributes = attributes.len(),
            most = MAX_ATTRIBUTE_VECTORS,
            "attributes are too many to embed; they are found by their words alone"
        );
    }
    // Texts of like length make good batches.
    missing.sort_unstable_by(|(a, x), (b, y)| (x.len(), a).cmp(&(y.len(), b)));
    let total = missing.len() as u64;
    for (done, batch) in missing.chunks(EMBED_BATCH).enumerate() {
        progress(Progress::Embedding((done * EMBED_BATCH) as u64, total));
        let texts: Vec<&str> = batch.iter().map(|(_, text)| text.as_str()).collect();
        for ((key, _), vector) in batch.iter().zip(encoder.embed(&texts)?) {
            vectors.by_text.insert(*key, vector);
        }
    }
    progress(Progress::Embedding(total, total));
    (contents.encoder, contents.vectors) = (Some(id), vectors);
    Ok(missing.len())
}
