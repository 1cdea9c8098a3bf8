//! Packed weights in a file, to be mapped by the next process instead of packed again.
//!
//! ```text
//! prologue  64 bytes: magic, version, bytes of the header, bytes of the file, key, CRC-32 of the header
//! table     one entry for each name: a matrix, a vector of f32, or another name's alias
//! sums      CRC-32 of each MiB of the payload
//! zeros     up to a page's end; so far it is the header
//! payload   the weights' bytes as they lie in memory, each from a cache line on
//! ```
//! Numbers are little endian. Every byte of the file lies under a checksum, the header's own (with its field as zero)
//! or the payload's, and the file has just the length that the header says: so any one damaged byte, and any piece
//! that is missing or too many, is noticed before a weight is used. Checksums find accidents, not forgers: whoever
//! may write the file may as well write the model's.
//!
//! The key is the caller's: 32 bytes that differ wherever the weights do.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use memmap2::Mmap;
use millrace_graph::{DType, Type};

use super::{Weight, WeightData, Weights};
use crate::matrix::{LAYOUT, LINE, Matrix, PackError};
use crate::pool::Pool;

/// What the file begins with.
const MAGIC: [u8; 8] = *b"MRPACKED";
/// The version of files of packed weights: of their form in the upper half, of the matrices' layout in the lower.
pub const PACKED_VERSION: u32 = 1 << 16 | LAYOUT;
/// Bytes before the table.
const PROLOGUE: usize = 64;
/// The payload starts at a multiple of this.
const PAGE: usize = 4096;
/// The size of a huge page on x86-64 and AArch64. Writing in pieces of it lets file systems that keep large folios
/// (ext4 since Linux 6.16, XFS, Btrfs) hold the file in such pages, and map it so.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of the payload under one checksum.
const SEGMENT: usize = 1 << 20;

const MATRIX: u8 = 0;
const VECTOR: u8 = 1;
const ALIAS: u8 = 2;

/// Why a file of packed weights is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackedError {
    /// The system cannot read or map it.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// It is no such file, or another program's.
    #[error("it is of version {found:#x}; this program reads {PACKED_VERSION:#x}")]
    Version {
        /// What the file says.
        found: u32,
    },
    /// It holds other weights.
    #[error("it holds other weights than those looked for")]
    Key,
    /// It is not as it was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

fn damaged<T>(what: impl Into<String>) -> Result<T, PackedError> {
    Err(PackedError::Damaged(what.into()))
}

impl Weights {
    /// Writes all weights in the form that [`Weights::map`] reads. Equal weights give equal bytes.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, key: &[u8; 32], out: &mut impl Write) -> io::Result<()> {
        let mut sums = Sums::default();
        self.payload(&mut |bytes| {
            sums.add(bytes);
            Ok(())
        })?;
        let (payload, sums) = sums.end();

        let mut header = vec![0; PROLOGUE];
        self.table(&mut header);
        sums.iter().for_each(|sum| header.extend(sum.to_le_bytes()));
        header.resize(header.len().next_multiple_of(PAGE), 0);
        let bytes = header.len();
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&PACKED_VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&(bytes as u64).to_le_bytes());
        header[24..32].copy_from_slice(&((bytes + payload) as u64).to_le_bytes());
        header[32..64].copy_from_slice(key);
        let sum = crc32fast::hash(&header);
        header[12..16].copy_from_slice(&sum.to_le_bytes());

        let mut pieces = Pieces { buffer: Vec::with_capacity(HUGE_PAGE), out };
        pieces.write(&header)?;
        self.payload(&mut |bytes| pieces.write(bytes))?;
        pieces.out.write_all(&pieces.buffer)
    }

    /// Passes the payload on, piece by piece.
    fn payload(&self, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut floats = Vec::new();
        for weight in &self.entries {
            let bytes = match &weight.data {
                WeightData::Matrix(matrix) => matrix.packed(),
                WeightData::Vector(vector) => {
                    floats.clear();
                    floats.extend(vector.iter().flat_map(|value| value.to_le_bytes()));
                    &floats
                }
            };
            to(bytes)?;
            to(&[0; LINE][..padding(bytes.len())])?;
        }
        Ok(())
    }

    fn table(&self, out: &mut Vec<u8>) {
        let mut names: Vec<(u32, &str)> = self.names.iter().map(|(name, at)| (*at, name.as_str())).collect();
        names.sort_unstable();
        out.extend((names.len() as u32).to_le_bytes());
        // Entries first and in their order, each by the first of its names; aliases point back at them.
        let (mut firsts, mut aliases) = (Vec::new(), Vec::new());
        for (at, name) in names {
            match firsts.len() == at as usize {
                true => firsts.push(name),
                false => aliases.push((at, name)),
            }
        }
        let text = |text: &str, out: &mut Vec<u8>| {
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.as_bytes());
        };
        for (weight, name) in self.entries.iter().zip(firsts) {
            out.push(match weight.data {
                WeightData::Matrix(_) => MATRIX,
                WeightData::Vector(_) => VECTOR,
            });
            text(name, out);
            text(weight.ty.dtype.name(), out);
            out.extend((weight.ty.rank() as u32).to_le_bytes());
            weight.ty.shape.iter().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
        }
        for (at, name) in aliases {
            out.push(ALIAS);
            text(name, out);
            out.extend(at.to_le_bytes());
        }
    }

    /// Maps a file that [`Weights::write`] wrote with this key, after comparing all of its checksums on the workers of
    /// `pool`. Matrices stay in the file's pages, which processes share; vectors are copied.
    ///
    /// The file must not be written to or cut short while the weights live: replace it by renaming.
    ///
    /// # Errors
    /// [`PackedError`] where there is anything that `write` would not have written.
    pub fn map(file: &File, key: &[u8; 32], pool: &Pool) -> Result<Weights, PackedError> {
        if file.metadata()?.len() < PROLOGUE as u64 {
            return damaged("it is too short");
        }
        // SAFETY: the map is read only. What changes under it is only undefined where somebody writes to a file that
        // its writers replace by renaming, against this function's word; and any bytes are weights, if wrong ones.
        let map = Arc::new(unsafe { Mmap::map(file) }?);
        // Read in huge pages where the file is not in memory yet. Advice: failing, it changes nothing.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let (header, payload) = Header::check(&map, key)?;
        let mut table = Reader(&header.bytes[PROLOGUE..]);
        let (weights, end) = read_table(&mut table, &map, header.bytes.len())?;
        if end != map.len() {
            return damaged("its weights do not fill it");
        }
        let sums = table.take(payload.len().div_ceil(SEGMENT).saturating_mul(4))?;
        if table.0.len() >= PAGE || table.0.iter().any(|byte| *byte != 0) {
            return damaged("something follows its header");
        }
        compare(payload, sums, pool)?;
        weights.load(&map)
    }
}

/// The bytes from a weight's end to the next cache line.
fn padding(len: usize) -> usize {
    len.next_multiple_of(LINE) - len
}

/// Writes whole huge pages.
struct Pieces<'a, W> {
    buffer: Vec<u8>,
    out: &'a mut W,
}

impl<W: Write> Pieces<'_, W> {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(HUGE_PAGE - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            if self.buffer.len() == HUGE_PAGE {
                self.out.write_all(&self.buffer)?;
                self.buffer.clear();
            }
            bytes = rest;
        }
        Ok(())
    }
}

/// The checksums of a payload, as it passes by.
#[derive(Default)]
struct Sums {
    current: crc32fast::Hasher,
    total: usize,
    sums: Vec<u32>,
}

impl Sums {
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(SEGMENT - self.total % SEGMENT));
            self.current.update(now);
            self.total += now.len();
            if self.total.is_multiple_of(SEGMENT) {
                self.sums.push(std::mem::take(&mut self.current).finalize());
            }
            bytes = rest;
        }
    }

    fn end(mut self) -> (usize, Vec<u32>) {
        if !self.total.is_multiple_of(SEGMENT) {
            self.sums.push(self.current.finalize());
        }
        (self.total, self.sums)
    }
}

/// Compares the payload with its checksums.
fn compare(payload: &[u8], sums: &[u8], pool: &Pool) -> Result<(), PackedError> {
    let (sums, _) = sums.as_chunks::<4>();
    let first_bad = AtomicUsize::new(usize::MAX);
    pool.run(&|worker| {
        worker.for_chunks(sums.len(), 1, |range| {
            for at in range {
                let segment = &payload[at * SEGMENT..payload.len().min((at + 1) * SEGMENT)];
                if crc32fast::hash(segment) != u32::from_le_bytes(sums[at]) {
                    first_bad.fetch_min(at, Relaxed);
                }
            }
        });
    });
    match first_bad.into_inner() {
        usize::MAX => Ok(()),
        at => damaged(format!("the checksum of its MiB {at} is another")),
    }
}

/// A header whose checksum is right.
struct Header<'a> {
    bytes: &'a [u8],
}

impl<'a> Header<'a> {
    /// The header of a file of at least a prologue, and its payload.
    fn check(map: &'a [u8], key: &[u8; 32]) -> Result<(Header<'a>, &'a [u8]), PackedError> {
        let mut prologue = Reader(map);
        let magic = prologue.take(8)?;
        let found = prologue.u32()?;
        if magic != MAGIC || found != PACKED_VERSION {
            return Err(PackedError::Version { found });
        }
        let sum = prologue.u32()?;
        let (header, all) = (prologue.u64()?, prologue.u64()?);
        if all != map.len() as u64 {
            return damaged(format!("it has {} bytes instead of {all}", map.len()));
        }
        let fits = |header: &usize| (PROLOGUE..=map.len()).contains(header) && header.is_multiple_of(PAGE);
        let Some(header) = usize::try_from(header).ok().filter(fits) else {
            return damaged("its header has no end");
        };
        let (header, payload) = map.split_at(header);
        let mut hasher = crc32fast::Hasher::new();
        [&header[..12], &[0; 4], &header[16..]].into_iter().for_each(|bytes| hasher.update(bytes));
        if hasher.finalize() != sum {
            return damaged("its header's checksum is another");
        }
        if prologue.take(32)? != key {
            return Err(PackedError::Key);
        }
        Ok((Header { bytes: header }, payload))
    }
}

/// Where the weights of a table lie in the file.
struct Placed {
    names: HashMap<String, u32>,
    weights: Vec<(Type, u8, Range<usize>)>,
}

/// The table, and where the last weight ends. The checksum was right, so all of this holds unless the writer had a
/// defect; it is checked all the same.
fn read_table(table: &mut Reader<'_>, map: &[u8], payload: usize) -> Result<(Placed, usize), PackedError> {
    let count = table.u32()? as usize;
    // An alias is the shortest entry.
    if count > table.0.len() / 9 {
        return damaged("its table has no end");
    }
    let mut placed = Placed { names: HashMap::with_capacity(count), weights: Vec::new() };
    let mut end = payload;
    for _ in 0..count {
        let kind = table.take(1)?[0];
        let name = table.text()?;
        let at = match kind {
            ALIAS => table.u32()?,
            MATRIX | VECTOR => {
                let dtype = table.text()?;
                let Some(dtype) = DType::ALL.into_iter().find(|known| known.name() == dtype) else {
                    return damaged(format!("{name:?} is of the unknown type {dtype:?}"));
                };
                let rank = table.u32()? as usize;
                if rank > 3 || (rank > 1) != (kind == MATRIX) {
                    return damaged(format!("{name:?} has {rank} dimensions"));
                }
                let dims: Result<Vec<usize>, PackedError> = (0..rank).map(|_| table.size()).collect();
                let ty = Type::new(dtype, dims?);
                let bytes = match kind {
                    MATRIX => Matrix::packed_bytes(&ty).map_err(|error| not_packed(name, &error))?,
                    _ => ty.elements().saturating_mul(4),
                };
                let range = end..end.saturating_add(bytes);
                if range.end > map.len() || range.end + padding(bytes) > map.len() {
                    return damaged(format!("{name:?} reaches past its end"));
                }
                end = range.end + padding(bytes);
                placed.weights.push((ty, kind, range));
                placed.weights.len() as u32 - 1
            }
            other => return damaged(format!("{name:?} is of the unknown kind {other}")),
        };
        if at as usize >= placed.weights.len() || placed.names.insert(name.to_owned(), at).is_some() {
            return damaged(format!("{name:?} is there twice, or an alias of nothing"));
        }
    }
    Ok((placed, end))
}

fn not_packed(name: &str, error: &PackError) -> PackedError {
    PackedError::Damaged(format!("{name:?}: {error}"))
}

impl Placed {
    fn load(self, map: &Arc<Mmap>) -> Result<Weights, PackedError> {
        let mut entries = Vec::with_capacity(self.weights.len());
        for (ty, kind, range) in self.weights {
            let data = match kind {
                MATRIX => {
                    let mapped = Matrix::mapped(&ty, map, range);
                    WeightData::Matrix(mapped.map_err(|error| not_packed("a matrix", &error))?)
                }
                _ => {
                    let (floats, _) = map[range].as_chunks::<4>();
                    WeightData::Vector(floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
                }
            };
            entries.push(Weight { ty, data });
        }
        Ok(Weights { names: self.names, entries })
    }
}

/// What is left of the header.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], PackedError> {
        let Some((taken, rest)) = self.0.split_at_checked(bytes) else {
            return damaged("its header is too short");
        };
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, PackedError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, PackedError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn size(&mut self) -> Result<usize, PackedError> {
        let size = self.u64()?;
        usize::try_from(size).or_else(|_| damaged(format!("{size} is no dimension")))
    }

    fn text(&mut self) -> Result<&'a str, PackedError> {
        let bytes = self.u32()? as usize;
        std::str::from_utf8(self.take(bytes)?).or_else(|_| damaged("a name is not UTF-8"))
    }
}
