//! The store: records in numbered segments, durable before anybody is told that they are.
//!
//! A batch of records is written and synced at once. Where that fails nothing of it counts: what was written is cut off
//! again, or the segment is left and another begun; a number is never used twice. A sync that failed is never tried
//! again on the same file, since its data may be gone although the second try succeeds.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use serde::Deserialize;

use super::FeedbackError;
use super::disk::Disk;
use super::frame::{self, HEADER, Scan};
use super::record::{Answer, Forget, Millis, Record, Selector, Vote};
use super::votes::{Forgotten, Messages, Votes, matches};

/// When a segment is full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) age: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        // A day, so that retention is exact to a day.
        Limits { bytes: 64 << 20, age: 24 * 3600 * 1000 }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    bytes: u64,
    /// Of its records; `None` where it has none.
    span: Option<(Millis, Millis)>,
}

/// A place in a segment that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// Bytes.
    pub range: Range<u64>,
    /// It was the end of the last segment, which a crash leaves so, and was cut off.
    pub torn: bool,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (file, Range { start, end }) = (super::disk::file_name(self.segment), &self.range);
        let what = if self.torn { "a write that was not finished, cut off" } else { "damaged, left out" };
        write!(f, "{file}, bytes {start} to {end}: {what}")
    }
}

/// As much of a record as it takes to keep order.
#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default)]
    at: Millis,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(borrow, default)]
    user: Cow<'a, str>,
    #[serde(borrow, default)]
    session: Cow<'a, str>,
}

/// What goes when something is forgotten.
pub(crate) struct Forgetting {
    pub(crate) forgets: Vec<Forget>,
    pub(crate) removed: Removed,
    /// Conversations of the answers that go.
    pub(crate) sessions: std::collections::HashSet<String>,
}

/// How many records went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Removed {
    /// Answers.
    pub answers: usize,
    /// Votes on them.
    pub votes: usize,
}

/// Segments, and where the next record goes.
pub(crate) struct Store<D> {
    disk: D,
    limits: Limits,
    segments: BTreeMap<u64, Segment>,
    open: Option<u64>,
    next_seq: u64,
    forgotten: Forgotten,
    /// Segments with records that are forgotten and still there.
    dirty: BTreeSet<u64>,
}

impl<D: Disk> Store<D> {
    /// Opens what is there, repairs its end, and tells what cannot be read. `votes` gets the votes.
    ///
    /// # Errors
    /// Where the disk fails, or a segment is of another version.
    pub(crate) fn open(
        disk: D,
        limits: Limits,
        votes: &mut Votes,
    ) -> Result<(Self, Vec<Damage>), FeedbackError> {
        let numbers = disk.segments()?;
        let mut store = Store {
            disk,
            limits,
            segments: BTreeMap::new(),
            open: None,
            next_seq: 1,
            forgotten: Forgotten::default(),
            dirty: BTreeSet::new(),
        };
        let (mut damage, mut forgets) = (Vec::new(), Vec::new());
        let last = numbers.last().copied();
        for number in numbers {
            let (bytes, scan) = store.scan(number)?;
            let mut segment = Segment { bytes: bytes.len() as u64, span: None };
            store.next_seq = store.next_seq.max(scan.first_seq.unwrap_or(0));
            for frame in &scan.frames {
                store.next_seq = store.next_seq.max(frame.seq + 1);
                let payload = &bytes[frame.payload.clone()];
                let Ok(peek) = serde_json::from_slice::<Peek<'_>>(payload) else {
                    damage.push(place(number, &frame.all, false));
                    continue;
                };
                let (first, end) = segment.span.unwrap_or((peek.at, peek.at));
                segment.span = Some((first.min(peek.at), end.max(peek.at)));
                match &*peek.kind {
                    "vote" => {
                        if let Ok(Record::Vote(vote)) = serde_json::from_slice(payload) {
                            votes.add(&vote);
                        }
                    }
                    "forget" => {
                        if let Ok(Record::Forget(forget)) = serde_json::from_slice(payload) {
                            forgets.push((frame.seq, forget));
                        }
                    }
                    _ => {}
                }
            }
            let whole = scan.whole();
            // Records after damage are good, but a segment that has any is not written to again.
            let sound = scan.first_seq.is_some() && scan.damage.iter().all(|range| range.start >= whole);
            // A crash leaves no more than the beginning of a segment, or a sound one with a bad end.
            let torn = Some(number) == last && (sound || scan.first_seq.is_none() && scan.frames.is_empty());
            damage.extend(scan.damage.iter().map(|range| place(number, range, torn)));
            if Some(number) == last && scan.first_seq.is_none() && scan.frames.is_empty() {
                // It was being begun.
                store.disk.remove(number)?;
                continue;
            }
            if Some(number) == last && sound {
                store.disk.resume(number, whole as u64)?;
                segment.bytes = whole as u64;
                store.open = Some(number);
            }
            store.segments.insert(number, segment);
        }
        for (seq, forget) in &forgets {
            store.forgotten.add(*seq, forget);
            votes.forget(forget);
        }
        if !store.forgotten.is_empty() {
            // What a crash has kept from being rewritten.
            for number in store.segments.keys().copied().collect::<Vec<_>>() {
                let (bytes, scan) = store.scan(number)?;
                let gone =
                    |frame: &frame::Frame| store.is_forgotten(frame.seq, &bytes[frame.payload.clone()]);
                if !scan.damage.is_empty() || scan.frames.iter().any(gone) {
                    store.dirty.insert(number);
                }
            }
        }
        Ok((store, damage))
    }

    fn scan(&self, number: u64) -> Result<(Vec<u8>, Scan), FeedbackError> {
        let bytes = self.disk.read(number)?;
        let scan = frame::scan(&bytes)
            .map_err(|version| FeedbackError::Version { file: super::disk::file_name(number), version })?;
        Ok((bytes, scan))
    }

    fn is_forgotten(&self, seq: u64, payload: &[u8]) -> bool {
        serde_json::from_slice::<Peek<'_>>(payload).is_ok_and(|peek| {
            peek.kind != "forget" && self.forgotten.covers(seq, &peek.message, &peek.user, &peek.session)
        })
    }

    /// Writes records; when it returns they are there for good, all of them or, after an error, none that counts.
    pub(crate) fn append(&mut self, records: &[(Millis, Vec<u8>)]) -> io::Result<()> {
        let Some((first, _)) = records.first() else { return Ok(()) };
        let first_seq = self.next_seq;
        self.next_seq += records.len() as u64;
        let number = self.room(*first, first_seq)?;
        let mut bytes = Vec::with_capacity(records.iter().map(|(_, payload)| payload.len() + 64).sum());
        for (seq, (_, payload)) in (first_seq..).zip(records) {
            frame::write(&mut bytes, seq, payload);
        }
        let segment = self.segments.entry(number).or_default();
        if let Err(error) = self.disk.append(&bytes) {
            if self.disk.cut(segment.bytes).is_err() {
                self.open = None;
            }
            return Err(error);
        }
        if let Err(error) = self.disk.sync() {
            let _ = self.disk.cut(segment.bytes);
            self.open = None;
            return Err(error);
        }
        segment.bytes += bytes.len() as u64;
        for (at, _) in records {
            let (first, last) = segment.span.unwrap_or((*at, *at));
            segment.span = Some((first.min(*at), last.max(*at)));
        }
        Ok(())
    }

    /// The segment that takes the next records.
    fn room(&mut self, now: Millis, first_seq: u64) -> io::Result<u64> {
        if let Some(number) = self.open {
            let segment = self.segments.get(&number).copied().unwrap_or_default();
            let old = segment.span.is_some_and(|(first, _)| now > first.saturating_add(self.limits.age));
            if segment.bytes < self.limits.bytes && !old {
                return Ok(number);
            }
            self.open = None;
        }
        // Also beyond one that could not be begun and may have left a file.
        let number = self.segments.last_key_value().map_or(0, |(number, _)| *number) + 1;
        let number = number.max(self.disk.segments()?.last().map_or(0, |last| last + 1));
        self.disk.create(number, &frame::header(first_seq))?;
        self.segments.insert(number, Segment { bytes: HEADER as u64, span: None });
        self.open = Some(number);
        Ok(number)
    }

    /// Marks what is to be forgotten, for good, and yields the answers that go. [`compact`](Self::compact) then removes
    /// them from the disk.
    pub(crate) fn forget(&mut self, whose: &Selector, now: Millis) -> Result<Forgetting, FeedbackError> {
        const MOST: usize = 10_000;
        let (mut messages, mut dirty, mut removed) = (Messages::new(), BTreeSet::new(), Removed::default());
        let (mut voted, mut sessions) = (Vec::new(), std::collections::HashSet::new());
        if let Selector::Session(session) = whose {
            sessions.insert(session.clone());
        }
        for number in self.segments.keys().copied() {
            let (bytes, scan) = self.scan(number)?;
            if !scan.damage.is_empty() {
                // Nobody can tell whose it was.
                dirty.insert(number);
            }
            for frame in &scan.frames {
                let Ok(peek) = serde_json::from_slice::<Peek<'_>>(&bytes[frame.payload.clone()]) else {
                    continue;
                };
                if self.forgotten.covers(frame.seq, &peek.message, &peek.user, &peek.session) {
                    continue;
                }
                let hit = matches(whose, &peek.message, &peek.user, &peek.session);
                match &*peek.kind {
                    "answer" if hit => {
                        removed.answers += 1;
                        sessions.insert(peek.session.into_owned());
                        messages.insert(peek.message.into_owned());
                        dirty.insert(number);
                    }
                    "vote" if hit => {
                        removed.votes += 1;
                        dirty.insert(number);
                    }
                    // Its answer may come later in the file, where it was slow.
                    "vote" => voted.push((number, peek.message.into_owned())),
                    _ => {}
                }
            }
        }
        for (number, message) in voted {
            if messages.contains(&message) {
                removed.votes += 1;
                dirty.insert(number);
            }
        }
        if let Selector::Message(message) = whose {
            // Also where only votes on it are left, or none yet.
            messages.insert(message.clone());
        }
        let messages: Vec<String> = messages.into_iter().collect();
        let mut chunks: Vec<&[String]> = messages.chunks(MOST).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        let forget = |chunk: &&[String]| Forget { at: now, whose: whose.clone(), messages: chunk.to_vec() };
        let forgets: Vec<Forget> = chunks.iter().map(forget).collect();
        let encode = |forget: &Forget| Some((now, encode(&Record::Forget(forget.clone()))?));
        let records: Vec<_> = forgets.iter().filter_map(encode).collect();
        let seq = self.next_seq;
        self.append(&records)?;
        for (seq, forget) in (seq..).zip(&forgets) {
            self.forgotten.add(seq, forget);
        }
        self.dirty.extend(dirty);
        Ok(Forgetting { forgets, removed, sessions })
    }

    /// Rewrites one segment without what is forgotten; whether there is more to do.
    pub(crate) fn compact(&mut self) -> Result<bool, FeedbackError> {
        let Some(number) = self.dirty.first().copied() else { return Ok(false) };
        if self.open == Some(number) {
            self.open = None;
        }
        let (bytes, scan) = self.scan(number)?;
        let first_seq = scan.first_seq.or(scan.frames.first().map(|frame| frame.seq)).unwrap_or(1);
        let (mut kept, mut span) = (frame::header(first_seq).to_vec(), None);
        for frame in &scan.frames {
            let payload = &bytes[frame.payload.clone()];
            if self.is_forgotten(frame.seq, payload) {
                continue;
            }
            kept.extend_from_slice(&bytes[frame.all.clone()]);
            if let Ok(peek) = serde_json::from_slice::<Peek<'_>>(payload) {
                let (first, last) = span.unwrap_or((peek.at, peek.at));
                span = Some((first.min(peek.at), last.max(peek.at)));
            }
        }
        // Also where nothing is left: its header keeps the count of records going.
        self.disk.replace(number, &kept)?;
        self.segments.insert(number, Segment { bytes: kept.len() as u64, span });
        self.dirty.remove(&number);
        Ok(!self.dirty.is_empty())
    }

    /// Removes segments all of whose records are older; how many.
    pub(crate) fn expire(&mut self, before: Millis) -> io::Result<usize> {
        let last = self.segments.last_key_value().map(|(number, _)| *number);
        let old = |(number, segment): (&u64, &Segment)| {
            // The last one keeps the count of records going.
            let old = Some(*number) != last && segment.span.is_none_or(|(_, end)| end < before);
            old.then_some(*number)
        };
        let old: Vec<u64> = self.segments.iter().filter_map(old).collect();
        for number in &old {
            self.disk.remove(*number)?;
            self.segments.remove(number);
            self.dirty.remove(number);
        }
        Ok(old.len())
    }

    /// Ends the open segment where its records are so old that it holds up their end.
    pub(crate) fn seal(&mut self, before: Millis, now: Millis) -> io::Result<()> {
        let Some(number) = self.open else { return Ok(()) };
        let old = self.segments.get(&number).and_then(|s| s.span).is_some_and(|(first, _)| first < before);
        if old {
            self.open = None;
            self.room(now, self.next_seq)?;
        }
        Ok(())
    }
}

fn place(segment: u64, range: &Range<usize>, torn: bool) -> Damage {
    Damage { segment, range: range.start as u64..range.end as u64, torn }
}

/// A record as JSON; `None` where it is too long to be kept.
pub(crate) fn encode(record: &Record) -> Option<Vec<u8>> {
    let json = serde_json::to_vec(record).unwrap_or_else(|_| unreachable!("keys are strings"));
    (json.len() <= frame::LONGEST).then_some(json)
}

/// The answers of a store and their votes, for whoever only reads. What is forgotten is left out.
pub(crate) struct Records {
    folder: std::path::PathBuf,
    numbers: Vec<u64>,
    forgotten: Forgotten,
    /// In the order in which they came.
    pub(crate) votes: Vec<Vote>,
    /// What could not be read.
    pub(crate) damage: Vec<Damage>,
}

impl Records {
    /// Reads all but the answers. The store may be in use: what is being written is not seen yet.
    ///
    /// # Errors
    /// Where a file cannot be read or is of another version.
    pub(crate) fn open(folder: &std::path::Path) -> Result<Records, FeedbackError> {
        let numbers = super::disk::segments(folder)?;
        let last = numbers.last().copied();
        let mut records = Records {
            folder: folder.to_owned(),
            numbers,
            forgotten: Forgotten::default(),
            votes: Vec::new(),
            damage: Vec::new(),
        };
        let (mut votes, mut damage) = (Vec::new(), Vec::new());
        for number in records.numbers.clone() {
            let Some((bytes, scan)) = records.scan(number)? else { continue };
            let whole = scan.whole();
            let unfinished = |range: &&Range<usize>| Some(number) == last && range.start >= whole;
            damage.extend(scan.damage.iter().filter(|r| !unfinished(r)).map(|r| place(number, r, false)));
            for frame in &scan.frames {
                let payload = &bytes[frame.payload.clone()];
                match serde_json::from_slice::<Peek<'_>>(payload)
                    .map(|peek| peek.kind.into_owned())
                    .as_deref()
                {
                    Ok("vote") => {
                        if let Ok(Record::Vote(vote)) = serde_json::from_slice(payload) {
                            votes.push((frame.seq, vote));
                        }
                    }
                    Ok("forget") => {
                        if let Ok(Record::Forget(forget)) = serde_json::from_slice(payload) {
                            records.forgotten.add(frame.seq, &forget);
                        }
                    }
                    Ok(_) => {}
                    Err(_) => damage.push(place(number, &frame.all, false)),
                }
            }
        }
        votes.retain(|(seq, vote)| !records.forgotten.covers(*seq, &vote.message, &vote.user, ""));
        votes.sort_by_key(|(seq, _)| *seq);
        records.votes = votes.into_iter().map(|(_, vote)| vote).collect();
        records.damage = damage;
        Ok(records)
    }

    fn scan(&self, number: u64) -> Result<Option<(Vec<u8>, Scan)>, FeedbackError> {
        let file = super::disk::file_name(number);
        let bytes = match std::fs::read(self.folder.join(&file)) {
            Ok(bytes) => bytes,
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let scan = frame::scan(&bytes).map_err(|version| FeedbackError::Version { file, version })?;
        Ok(Some((bytes, scan)))
    }

    /// Reads the answers one by one, in the order in which they came. `wanted` is asked before an answer is parsed.
    ///
    /// # Errors
    /// Where a file cannot be read, or what `each` says.
    pub(crate) fn answers<E: From<FeedbackError>>(
        &self,
        wanted: impl Fn(&str) -> bool,
        mut each: impl FnMut(Answer) -> Result<(), E>,
    ) -> Result<(), E> {
        for number in &self.numbers {
            let Some((bytes, scan)) = self.scan(*number)? else { continue };
            for frame in &scan.frames {
                let payload = &bytes[frame.payload.clone()];
                let Ok(peek) = serde_json::from_slice::<Peek<'_>>(payload) else { continue };
                let gone = self.forgotten.covers(frame.seq, &peek.message, &peek.user, &peek.session);
                if peek.kind != "answer" || gone || !wanted(&peek.message) {
                    continue;
                }
                if let Ok(Record::Answer(answer)) = serde_json::from_slice(payload) {
                    each(*answer)?;
                }
            }
        }
        Ok(())
    }
}
