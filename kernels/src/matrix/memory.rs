//! Memory for packed weights: zero or more matrices to a slab, slabs aligned to huge pages.
//!
//! A decode step streams every weight once, and with 4 KiB pages the hardware prefetcher stops at each page's
//! end. Most matrices of a small model are less than a huge page, so they share slabs.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The size and alignment of a huge page on x86-64 and AArch64.
const HUGE_PAGE: usize = 2 << 20;
/// Matrices of less than a quarter of this share a slab.
const SLAB: usize = 16 << 20;
/// Every allocation starts on a cache line.
const LINE: usize = 64;

/// A run of bytes, uninitialised at first, at a fixed address.
#[derive(Debug)]
pub(super) struct Memory {
    slab: Arc<Slab>,
    offset: usize,
    len: usize,
}

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
            return Some(Memory { slab: Arc::new(Slab::new(size)?), offset: 0, len });
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, taken) = match open.0.upgrade() {
            Some(slab) if open.1 + size <= SLAB => (slab, open.1),
            _ => (Arc::new(Slab::new(SLAB)?), 0),
        };
        *open = (Arc::downgrade(&slab), taken + size);
        Some(Memory { slab, offset: taken, len })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The first byte. Nobody else is given these bytes while this value lives.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `offset` lies within the slab.
        unsafe { self.slab.data.as_ptr().add(self.offset) }
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
