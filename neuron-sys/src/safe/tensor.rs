//! Device memory, and tensors by name.

use std::{collections::BTreeMap, ffi::CString, ptr::NonNull, sync::Arc};

use super::{error::Error, runtime::Core};
use crate::{
    result,
    sys::{nrt_tensor_set_t, nrt_tensor_t},
};

/// Device memory of one core, or a part of such a tensor. Freed when dropped.
///
/// Reading and writing takes `&self` since tensors are shared: weights by the input sets of all programs, a cache by an
/// input and an output set. The calls exclude each other by the core's lock.
#[derive(Debug)]
pub struct Tensor {
    raw: NonNull<nrt_tensor_t>,
    core: Core,
    name: String,
    bytes: usize,
    /// A slice keeps its source: where the library counts references it is not needed, where it does not it is.
    _source: Option<Arc<Tensor>>,
}

// SAFETY: a tensor is a handle without affinity to a thread; every call on it takes its core's lock.
unsafe impl Send for Tensor {}
// SAFETY: as above: calls from several threads exclude each other by the core's lock.
unsafe impl Sync for Tensor {}

impl Core {
    /// Allocates device memory; what is in it is undefined. `name` appears in the library's logs.
    ///
    /// # Errors
    /// If `bytes` is 0 or the name has a NUL, or the library refuses; [`Error::reaction`] is
    /// [`Shrink`](result::Reaction::Shrink) when memory is short.
    pub fn allocate(&self, name: &str, bytes: usize) -> Result<Tensor, Error> {
        let c_name = checked(name, bytes)?;
        let _lock = self.enter()?;
        // SAFETY: the runtime is initialised as long as it is alive.
        let raw = unsafe { result::tensor_allocate(self.nrt(), self.number(), bytes, &c_name) };
        let raw = self.runtime.done(raw)?;
        Ok(Tensor { raw, core: self.clone(), name: name.into(), bytes, _source: None })
    }
}

impl Tensor {
    /// A part of this tensor: the same memory.
    ///
    /// # Errors
    /// If the range does not fit or is empty, or the library cannot or refuses.
    pub fn slice(self: &Arc<Self>, name: &str, at: usize, bytes: usize) -> Result<Self, Error> {
        let c_name = checked(name, bytes)?;
        self.bounds(at, bytes)?;
        let _lock = self.core.enter()?;
        // SAFETY: the source is alive and the range fits it.
        let raw = unsafe { result::tensor_allocate_slice(self.core.nrt(), self.raw, at, bytes, &c_name) };
        let raw = self.core.optional("nrt_tensor_allocate_slice", raw)?;
        Ok(Self { raw, core: self.core.clone(), name: name.into(), bytes, _source: Some(Arc::clone(self)) })
    }

    /// The core in whose memory it is.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The name it was allocated under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether both are one handle. A slice is never its source.
    pub fn same_as(&self, other: &Self) -> bool {
        self.raw == other.raw
    }

    /// Copies `data` into it, from byte `at`.
    ///
    /// # Errors
    /// If the data does not fit, or the library refuses or fails.
    pub fn write(&self, at: usize, data: &[u8]) -> Result<(), Error> {
        self.bounds(at, data.len())?;
        let _lock = self.core.enter()?;
        // SAFETY: the tensor is alive, the range fits it, and the core's lock keeps its other users out.
        let written = unsafe { result::tensor_write(self.core.nrt(), self.raw, at, data) };
        self.core.runtime.done(written)
    }

    /// Fills `data` from it, from byte `at`.
    ///
    /// # Errors
    /// If the range does not fit, or the library refuses or fails; then what is in `data` is undefined.
    pub fn read(&self, at: usize, data: &mut [u8]) -> Result<(), Error> {
        self.bounds(at, data.len())?;
        let _lock = self.core.enter()?;
        // SAFETY: the tensor is alive, the range fits it, and the core's lock keeps its other users out.
        let read = unsafe { result::tensor_read(self.core.nrt(), self.raw, at, data) };
        self.core.runtime.done(read)
    }

    /// Sets `bytes` bytes from byte `at` to zero: on the device if the library can, else by writing zeros.
    ///
    /// # Errors
    /// If the range does not fit, or the library refuses or fails.
    pub fn zero(&self, at: usize, bytes: usize) -> Result<(), Error> {
        const CHUNK: usize = 1 << 20;
        self.bounds(at, bytes)?;
        let lock = self.core.enter()?;
        // SAFETY: the tensor is alive, the range fits it, and the core's lock keeps its other users out.
        if let Some(set) = unsafe { result::tensor_memset(self.core.nrt(), self.raw, at, 0, bytes) } {
            return self.core.runtime.done(set);
        }
        drop(lock);
        let zeros = vec![0; bytes.min(CHUNK)];
        (at..at + bytes)
            .step_by(CHUNK)
            .try_for_each(|from| self.write(from, &zeros[..CHUNK.min(at + bytes - from)]))
    }

    fn bounds(&self, at: usize, bytes: usize) -> Result<(), Error> {
        match at.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Error::OutOfBounds { name: self.name.clone(), at, bytes, size: self.bytes }),
        }
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let Some(_lock) = self.core.enter_drop() else { return };
        // SAFETY: the tensor is alive and in no set, since a set keeps its tensors; this is its last use.
        unsafe { result::tensor_free(self.core.nrt(), self.raw) }
    }
}

/// The name as C wants it, if name and size are such as the library takes.
fn checked(name: &str, bytes: usize) -> Result<CString, Error> {
    if bytes == 0 {
        return Err(Error::BadTensor { name: name.into(), why: "it would have no bytes" });
    }
    c_string(name)
}

fn c_string(name: &str) -> Result<CString, Error> {
    CString::new(name).map_err(|_| Error::BadTensor { name: name.into(), why: "its name contains a NUL" })
}

/// Tensors of one core by the names that a model's NEFF gives them. Can be used for any number of executions.
#[derive(Debug)]
pub struct TensorSet {
    raw: NonNull<nrt_tensor_set_t>,
    core: Core,
    tensors: BTreeMap<String, Arc<Tensor>>,
}

// SAFETY: a set is a handle without affinity to a thread; every call on it takes its core's lock.
unsafe impl Send for TensorSet {}
// SAFETY: as above: calls from several threads exclude each other by the core's lock, and `tensors` is changed only
// through `&mut`.
unsafe impl Sync for TensorSet {}

impl TensorSet {
    /// An empty set.
    ///
    /// # Errors
    /// If the library refuses or fails.
    pub fn new(core: &Core) -> Result<Self, Error> {
        let _lock = core.enter()?;
        // SAFETY: the runtime is initialised as long as it is alive.
        let raw = core.runtime.done(unsafe { result::allocate_tensor_set(core.nrt()) })?;
        Ok(Self { raw, core: core.clone(), tensors: BTreeMap::new() })
    }

    /// Adds a tensor, or replaces the one of that name.
    ///
    /// # Errors
    /// If it is of another core or the name has a NUL, or the library refuses or fails; the set is as before then.
    pub fn insert(&mut self, name: &str, tensor: Arc<Tensor>) -> Result<(), Error> {
        self.core.same(&tensor.core, || format!("tensor {name:?}"))?;
        let c_name = c_string(name)?;
        let replaced = {
            let _lock = self.core.enter()?;
            // SAFETY: set and tensor are alive; the tensor is kept below until it is replaced or the set destroyed.
            let added =
                unsafe { result::add_tensor_to_tensor_set(self.core.nrt(), self.raw, &c_name, tensor.raw) };
            self.core.runtime.done(added)?;
            self.tensors.insert(name.into(), tensor)
        };
        // Outside of the lock, which freeing it takes.
        drop(replaced);
        Ok(())
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Tensor>> {
        self.tensors.get(name)
    }

    /// The names of its tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn raw(&self) -> NonNull<nrt_tensor_set_t> {
        self.raw
    }
}

impl Drop for TensorSet {
    /// Destroys the set; its tensors are let go after that.
    fn drop(&mut self) {
        let Some(_lock) = self.core.enter_drop() else { return };
        // SAFETY: the set is alive and this is its last use.
        unsafe { result::destroy_tensor_set(self.core.nrt(), self.raw) }
    }
}
