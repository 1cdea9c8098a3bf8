//! Bytes of a segment: a header, then frames, each with a checksum over its length, number and payload.
//!
//! ```text
//! header  "\xffMILLFB\n"  version u32  first seq u64  crc32 u32 of what precedes it
//! frame   "\xffR\xfe\xc5" length u32   seq u64        crc32 u32 of length, seq and payload    payload (JSON)
//! ```
//!
//! Numbers are little-endian. A frame begins with bytes that JSON, being UTF-8, cannot contain, so what follows a
//! damaged place is found again: damage costs the records it hits and no others.

use std::ops::Range;

/// Changes with the meaning of the bytes.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"\xffMILLFB\n";
const MARK: [u8; 4] = *b"\xffR\xfe\xc5";
pub(crate) const HEADER: usize = 24;
const FRAME: usize = 20;
/// Bytes of a payload at most.
pub(crate) const LONGEST: usize = 16 << 20;

/// The header of a segment whose records have numbers from `first_seq` on.
pub(crate) fn header(first_seq: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..20].copy_from_slice(&first_seq.to_le_bytes());
    let crc = crc32fast::hash(&header[..20]);
    header[20..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn checksum(length: u32, seq: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(&seq.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Appends a frame. The payload is at most [`LONGEST`] bytes.
pub(crate) fn write(bytes: &mut Vec<u8>, seq: u64, payload: &[u8]) {
    debug_assert!(payload.len() <= LONGEST);
    let length = payload.len() as u32;
    bytes.extend_from_slice(&MARK);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&seq.to_le_bytes());
    bytes.extend_from_slice(&checksum(length, seq, payload).to_le_bytes());
    bytes.extend_from_slice(payload);
}

/// A record in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) seq: u64,
    /// From the mark to the end of the payload.
    pub(crate) all: Range<usize>,
    pub(crate) payload: Range<usize>,
}

/// What a segment holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// As in the header, where that is whole.
    pub(crate) first_seq: Option<u64>,
    pub(crate) frames: Vec<Frame>,
    /// Places that hold neither header nor frame.
    pub(crate) damage: Vec<Range<usize>>,
}

impl Scan {
    /// Where the last whole frame ends, with only damage behind it.
    pub(crate) fn whole(&self) -> usize {
        let start = if self.first_seq.is_some() { HEADER } else { 0 };
        self.frames.last().map_or(start, |frame| frame.all.end)
    }
}

/// Finds all whole frames.
///
/// # Errors
/// The version of a segment that another version of this program has written.
pub(crate) fn scan(bytes: &[u8]) -> Result<Scan, u32> {
    let mut scan = Scan::default();
    let mut at = 0;
    if let Some(head) = bytes.get(..HEADER)
        && head[..8] == MAGIC
        && u32_at(head, 20) == Some(crc32fast::hash(&head[..20]))
    {
        match u32_at(head, 8) {
            Some(VERSION) => {}
            other => return Err(other.unwrap_or(0)),
        }
        scan.first_seq = u64_at(head, 12);
        at = HEADER;
    }
    while at < bytes.len() {
        if let Some(frame) = frame_at(bytes, at) {
            at = frame.all.end;
            scan.frames.push(frame);
            continue;
        }
        let next =
            (at + 1..bytes.len()).find(|&next| bytes[next] == MARK[0] && frame_at(bytes, next).is_some());
        let end = next.unwrap_or(bytes.len());
        scan.damage.push(at..end);
        at = end;
    }
    Ok(scan)
}

fn frame_at(bytes: &[u8], at: usize) -> Option<Frame> {
    let head = bytes.get(at..at + FRAME)?;
    if head[..4] != MARK {
        return None;
    }
    let (length, seq, crc) = (u32_at(head, 4)?, u64_at(head, 8)?, u32_at(head, 16)?);
    if length as usize > LONGEST {
        return None;
    }
    let payload = at + FRAME..at + FRAME + length as usize;
    let good = checksum(length, seq, bytes.get(payload.clone())?) == crc;
    good.then_some(Frame { seq, all: at..payload.end, payload })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> (Vec<u8>, Vec<Vec<u8>>) {
        let payloads: Vec<Vec<u8>> = (0..6).map(|i| vec![b'a' + i; 7 * i as usize]).collect();
        let mut bytes = header(5).to_vec();
        for (seq, payload) in (5..).zip(&payloads) {
            write(&mut bytes, seq, payload);
        }
        (bytes, payloads)
    }

    fn seqs(scan: &Scan) -> Vec<u64> {
        scan.frames.iter().map(|frame| frame.seq).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, payloads) = segment();
        let scan = scan(&bytes).unwrap();
        let read: Vec<&[u8]> = scan.frames.iter().map(|frame| &bytes[frame.payload.clone()]).collect();
        assert_eq!(read, payloads);
        assert_eq!((scan.first_seq, &scan.damage[..], scan.whole()), (Some(5), &[][..], bytes.len()));
    }

    /// At every byte: what is whole before the cut is read, and the rest is damage.
    #[test]
    fn a_cut_costs_the_tail() {
        let (bytes, _) = segment();
        let whole = scan(&bytes).unwrap();
        for cut in 0..bytes.len() {
            let found = scan(&bytes[..cut]).unwrap();
            let kept = whole.frames.iter().take_while(|frame| frame.all.end <= cut);
            assert_eq!(found.frames, kept.cloned().collect::<Vec<_>>(), "cut at {cut}");
            let end = found.whole();
            let damage: Vec<_> = Some(end..cut).filter(|range| !range.is_empty()).into_iter().collect();
            assert_eq!(found.damage, damage, "cut at {cut}");
        }
    }

    /// Every bit: only the record that it hits is lost, and the place is reported.
    #[test]
    fn a_flipped_bit_costs_one_record() {
        let (bytes, _) = segment();
        let whole = scan(&bytes).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = scan(&bytes).unwrap();
            let hit = |frame: &&Frame| frame.all.contains(&(bit / 8));
            let kept: Vec<_> =
                whole.frames.iter().filter(|frame| !hit(frame)).map(|frame| frame.seq).collect();
            assert_eq!(seqs(&found), kept, "bit {bit}");
            let place = whole.frames.iter().find(hit).map_or(0..HEADER, |frame| frame.all.clone());
            assert_eq!(found.damage, [place], "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = segment().0;
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..20]).to_le_bytes();
        bytes[20..24].copy_from_slice(&crc);
        assert_eq!(scan(&bytes), Err(2));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0usize..200) {
            let good = segment().0;
            let at = at.min(bytes.len());
            bytes.splice(at..at, good[HEADER..].iter().copied());
            let found = scan(&bytes).unwrap();
            // What was put in is found; noise does not have a checksum by chance.
            proptest::prop_assert_eq!(seqs(&found), [5, 6, 7, 8, 9, 10]);
        }
    }
}
