//! Memory for packed weights: zero or more matrices to a slab, slabs aligned to huge pages; or to a mapped file.
//!
//! A decode step streams every weight once, and with 4 KiB pages the hardware prefetcher stops at each page's
//! end. Most matrices of a small model are less than a huge page, so they share slabs.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::Mmap;

/// The size and alignment of a huge page on x86-64 and AArch64.
const HUGE_PAGE: usize = 2 << 20;
/// Matrices of less than a quarter of this share a slab.
const SLAB: usize = 16 << 20;
/// Every allocation starts on a cache line.
pub(crate) const LINE: usize = 64;

/// A run of bytes at a fixed address.
#[derive(Debug)]
pub(super) struct Memory {
    data: NonNull<u8>,
    len: usize,
    owner: Owner,
}

/// What the bytes lie in, and lives as long as they do.
#[derive(Debug)]
enum Owner {
    /// Uninitialised at first.
    Slab { _slab: Arc<Slab> },
    /// Read only.
    File { _map: Arc<Mmap> },
}

// SAFETY: the address is that of bytes which `owner` keeps alive and which any thread may reach.
unsafe impl Send for Memory {}
// SAFETY: memory hands out addresses only; who reads and writes through them answers for it.
unsafe impl Sync for Memory {}

#[derive(Debug)]
struct Slab {
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a slab owns its bytes, as a box would.
unsafe impl Send for Slab {}
// SAFETY: a slab hands out addresses only; who reads and writes through them answers for it.
unsafe impl Sync for Slab {}

/// The slab that takes small matrices, and how much of it is taken. It lives as long as a matrix in it does.
static OPEN: Mutex<(Weak<Slab>, usize)> = Mutex::new((Weak::new(), 0));

impl Memory {
    /// `len` bytes, or `None` where that exceeds the address space.
    pub(super) fn new(len: usize) -> Option<Memory> {
        let size = len.max(1).checked_next_multiple_of(LINE)?;
        if size >= SLAB / 4 {
            return Some(Memory::within(Arc::new(Slab::new(size)?), 0, len));
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, taken) = match open.0.upgrade() {
            Some(slab) if open.1 + size <= SLAB => (slab, open.1),
            _ => (Arc::new(Slab::new(SLAB)?), 0),
        };
        *open = (Arc::downgrade(&slab), taken + size);
        Some(Memory::within(slab, taken, len))
    }

    fn within(slab: Arc<Slab>, offset: usize, len: usize) -> Memory {
        // SAFETY: `offset` lies within the slab.
        let data = unsafe { slab.data.add(offset) };
        Memory { data, len, owner: Owner::Slab { _slab: slab } }
    }

    /// These bytes of a mapped file; `None` where it has no such bytes.
    pub(super) fn mapped(map: &Arc<Mmap>, range: Range<usize>) -> Option<Memory> {
        let bytes = map.get(range)?;
        Some(Memory {
            data: NonNull::from(bytes).cast(),
            len: bytes.len(),
            owner: Owner::File { _map: map.clone() },
        })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The first byte, to be read.
    pub(super) fn as_ptr(&self) -> *const u8 {
        self.data.as_ptr()
    }

    /// The first byte, to be written. Nobody else is given these bytes while this value lives.
    ///
    /// # Panics
    /// Where the bytes are a file's.
    pub(super) fn as_mut_ptr(&self) -> *mut u8 {
        assert!(matches!(self.owner, Owner::Slab { .. }), "a mapped file is read only");
        self.data.as_ptr()
    }
}

impl Slab {
    fn new(size: usize) -> Option<Slab> {
        let size = size.checked_next_multiple_of(HUGE_PAGE)?;
        let layout = Layout::from_size_align(size, HUGE_PAGE).ok()?;
        // SAFETY: the size is not zero.
        let data = NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        #[cfg(target_os = "linux")]
        // SAFETY: the range was just allocated, whole pages of it. This is advice: failing, it changes nothing.
        unsafe {
            libc::madvise(data.as_ptr().cast(), size, libc::MADV_HUGEPAGE);
        }
        Some(Slab { data, layout })
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and the last matrix that lay here is gone.
        unsafe { dealloc(self.data.as_ptr(), self.layout) }
    }
}
