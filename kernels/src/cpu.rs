//! Which instructions this processor has, asked once; and which processors this process may use.

use std::sync::OnceLock;

/// An instruction set that kernels exist for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// Portable Rust: the plain meaning of every kernel.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
    Avx2,
}

impl Isa {
    /// The sets this processor can run, slowest first.
    pub fn available() -> &'static [Isa] {
        match isa() {
            Isa::Scalar => &[Isa::Scalar],
            Isa::Avx2 => &[Isa::Scalar, Isa::Avx2],
        }
    }
}

/// The best instruction set of this processor.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let has_all = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    if has_all { Isa::Avx2 } else { Isa::Scalar }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Scalar
}

/// The processors this process was allowed to use when first asked; empty where that cannot be known. Asked once,
/// because a thread that has pinned itself would later see its own processor alone.
pub(crate) fn allowed() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(affinity::allowed)
}

/// Pins the calling thread to one processor; `false` where that is refused or not possible here. A thread that
/// is not pinned is only slower.
pub(crate) fn pin(cpu: usize) -> bool {
    affinity::pin(cpu)
}

#[cfg(target_os = "linux")]
mod affinity {
    use std::mem::{size_of, zeroed};

    pub(super) fn allowed() -> Vec<usize> {
        // SAFETY: a cpu_set_t is a bit mask, for which all zeroes is a value; the call writes at most the size
        // it is given.
        unsafe {
            let mut set: libc::cpu_set_t = zeroed();
            if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
                return Vec::new();
            }
            (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
        }
    }

    pub(super) fn pin(cpu: usize) -> bool {
        if cpu >= libc::CPU_SETSIZE as usize {
            return false;
        }
        // SAFETY: as above; `cpu` is within the mask, and 0 means the calling thread.
        unsafe {
            let mut set: libc::cpu_set_t = zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod affinity {
    pub(super) fn allowed() -> Vec<usize> {
        Vec::new()
    }

    pub(super) fn pin(_cpu: usize) -> bool {
        false
    }
}
