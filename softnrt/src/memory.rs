//! Device memory: bytes for whoever reads and writes, values for who computes.
//!
//! A value that was decoded from the bytes is kept beside them, and one that was computed is written back only when
//! somebody reads the bytes: weights are decoded once, and a cache stays a value from step to step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millrace_graph::Type;
use millrace_kernels::eval::Value;

/// A tensor: a range of some storage.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) storage: Arc<Storage>,
    pub(crate) at: usize,
    pub(crate) bytes: usize,
    pub(crate) name: String,
}

/// One allocation.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) core: u32,
    size: usize,
    /// What undefined memory reads as.
    fill: u8,
    content: Mutex<Content>,
    /// Whether an execution is using it.
    in_use: AtomicBool,
    /// Bytes in use on its core.
    used: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Content {
    /// Empty until something is written.
    bytes: Vec<u8>,
    values: Vec<Held>,
}

/// The value of the bytes from `at` on.
#[derive(Debug)]
struct Held {
    at: usize,
    end: usize,
    value: Value,
    /// Whether the bytes have yet to be brought up to date.
    newer: bool,
}

impl Held {
    fn overlaps(&self, at: usize, end: usize) -> bool {
        self.at < end && at < self.end
    }
}

impl Content {
    /// The bytes, brought up to date within a range.
    fn bytes(&mut self, size: usize, fill: u8, at: usize, end: usize) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![fill; size];
        }
        for held in self.values.iter_mut().filter(|held| held.newer && held.overlaps(at, end)) {
            self.bytes[held.at..held.end].copy_from_slice(&held.value.to_bytes());
            held.newer = false;
        }
        &mut self.bytes
    }
}

impl Storage {
    /// `used` counts the bytes; that they fit is the caller's to check.
    pub(crate) fn new(core: u32, size: usize, fill: u8, used: Arc<AtomicUsize>) -> Arc<Storage> {
        used.fetch_add(size, Ordering::Relaxed);
        let (content, in_use) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Storage { core, size, fill, content, in_use, used })
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    pub(crate) fn set_in_use(&self, in_use: bool) {
        self.in_use.store(in_use, Ordering::Relaxed);
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.used.fetch_sub(self.size, Ordering::Relaxed);
    }
}

impl Tensor {
    /// A range of it, in the storage; `None` where it does not fit.
    pub(crate) fn range(&self, at: u64, bytes: u64) -> Option<(usize, usize)> {
        let end = at.checked_add(bytes).filter(|end| *end <= self.bytes as u64)?;
        Some((self.at + at as usize, self.at + end as usize))
    }

    pub(crate) fn same_memory(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage) && (self.at, self.bytes) == (other.at, other.bytes)
    }

    pub(crate) fn overlaps(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
            && self.at < other.at + other.bytes
            && other.at < self.at + self.bytes
    }

    /// Calls `with` on the bytes of a range in the storage.
    pub(crate) fn read<T>(&self, (at, end): (usize, usize), with: impl FnOnce(&[u8]) -> T) -> T {
        let storage = &self.storage;
        with(&storage.content().bytes(storage.size, storage.fill, at, end)[at..end])
    }

    /// Calls `with` on the bytes of a range in the storage, which it writes.
    pub(crate) fn write(&self, (at, end): (usize, usize), with: impl FnOnce(&mut [u8])) {
        let storage = &self.storage;
        let mut content = storage.content();
        with(&mut content.bytes(storage.size, storage.fill, at, end)[at..end]);
        content.values.retain(|held| !held.overlaps(at, end));
    }

    /// Whether anything has been written to its storage.
    pub(crate) fn defined(&self) -> bool {
        let content = self.storage.content();
        !content.bytes.is_empty() || !content.values.is_empty()
    }

    /// Its value. One that is taken is gone from here until it is given back, so that whoever has it can change it in
    /// place.
    pub(crate) fn value(&self, ty: &Type, take: bool) -> Result<Value, String> {
        let (at, end) = (self.at, self.at + self.bytes);
        let storage = &self.storage;
        let mut content = storage.content();
        let place = content.values.iter().position(|held| held.at == at && held.value.ty() == ty);
        match place {
            Some(place) if take => return Ok(content.values.swap_remove(place).value),
            Some(place) => return Ok(content.values[place].value.clone()),
            None => {}
        }
        let bytes = &content.bytes(storage.size, storage.fill, at, end)[at..end];
        let value = Value::from_bytes(ty.clone(), bytes).map_err(|error| error.to_string())?;
        if !take {
            content.values.push(Held { at, end, value: value.clone(), newer: false });
        }
        Ok(value)
    }

    /// Sets its value.
    pub(crate) fn set(&self, value: Value) {
        let (at, end) = (self.at, self.at + self.bytes);
        let storage = &self.storage;
        let mut content = storage.content();
        let inside = |held: &Held| at <= held.at && held.end <= end;
        if content.values.iter().any(|held| held.newer && held.overlaps(at, end) && !inside(held)) {
            content.bytes(storage.size, storage.fill, at, end);
        }
        content.values.retain(|held| !held.overlaps(at, end));
        content.values.push(Held { at, end, value, newer: true });
    }

    /// What a device leaves behind that gave up in the middle of writing.
    pub(crate) fn lose(&self) {
        self.write((self.at, self.at + self.bytes), |bytes| bytes.fill(self.storage.fill));
    }
}

#[cfg(test)]
mod tests {
    use millrace_graph::DType;
    use proptest::prelude::*;

    use super::*;

    /// What is done to 64 bytes of memory, 4 bytes at a time, and in a plain model of it.
    #[derive(Clone, Debug)]
    enum Act {
        Write { at: usize, words: Vec<u32> },
        Set { at: usize, words: Vec<u32> },
        Take { at: usize, count: usize },
        Look { at: usize, count: usize },
        Read { at: usize, count: usize },
    }

    fn act() -> impl Strategy<Value = Act> {
        let place = || (0usize..16).prop_flat_map(|at| (Just(at), 1..=16 - at));
        let words =
            || (0usize..16).prop_flat_map(|at| (Just(at), prop::collection::vec(0u32..1 << 20, 1..=16 - at)));
        prop_oneof![
            words().prop_map(|(at, words)| Act::Write { at, words }),
            words().prop_map(|(at, words)| Act::Set { at, words }),
            place().prop_map(|(at, count)| Act::Take { at, count }),
            place().prop_map(|(at, count)| Act::Look { at, count }),
            place().prop_map(|(at, count)| Act::Read { at, count }),
        ]
    }

    fn value(words: &[u32]) -> Value {
        let elements = words.iter().map(|word| i64::from(*word)).collect();
        Value::from_ints(Type::new(DType::U32, [words.len()]), elements).expect("in range")
    }

    fn words(value: &Value) -> Vec<u32> {
        value.ints().expect("integers").iter().map(|word| *word as u32).collect()
    }

    proptest! {
        #[test]
        fn bytes_and_values_tell_the_same(acts in prop::collection::vec(act(), 1..60)) {
            let storage = Storage::new(0, 64, 0xff, Arc::default());
            let part = |at: usize, count: usize| Tensor {
                storage: storage.clone(), at: 4 * at, bytes: 4 * count, name: String::new(),
            };
            let whole = part(0, 16);
            let mut model = [u32::MAX; 16];
            for act in acts {
                match act {
                    Act::Write { at, words } => {
                        let range = whole.range(4 * at as u64, 4 * words.len() as u64).expect("it fits");
                        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                        whole.write(range, |to| to.copy_from_slice(&bytes));
                        model[at..at + words.len()].copy_from_slice(&words);
                    }
                    Act::Set { at, words } => {
                        part(at, words.len()).set(value(&words));
                        model[at..at + words.len()].copy_from_slice(&words);
                    }
                    Act::Take { at, count } | Act::Look { at, count } => {
                        let take = matches!(act, Act::Take { .. });
                        let tensor = part(at, count);
                        let got = tensor.value(&Type::new(DType::U32, [count]), take).expect("a value");
                        prop_assert_eq!(&words(&got)[..], &model[at..at + count]);
                        if take {
                            tensor.set(got);
                        }
                    }
                    Act::Read { at, count } => {
                        let range = whole.range(4 * at as u64, 4 * count as u64).expect("it fits");
                        let expected: Vec<u8> =
                            model[at..at + count].iter().flat_map(|word| word.to_le_bytes()).collect();
                        prop_assert!(whole.read(range, |bytes| bytes == expected));
                    }
                }
            }
        }
    }
}
