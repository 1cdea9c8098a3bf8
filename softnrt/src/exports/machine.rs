//! What there is: versions, names of statuses, cores and their memory. Legal before `nrt_init`, but for the memory.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use neuron_sys::Status;
use neuron_sys::sys::*;

use super::{answer, chars, put};
use crate::world::{Refusal, world};

/// What this claims to be: the release whose header the bindings follow.
const VERSION: [u64; 4] = [2, 30, 50, 0];

/// `NRT` codes of `nrt_get_instance_info`: an inf2.48xlarge.
const FAMILY_INF2: u32 = 4;
const SIZE_48XL: u32 = 7;

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_get_status_as_str(status: NRT_STATUS) -> *const c_char {
    static NAMES: OnceLock<Vec<(u32, CString)>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let all = Status::known().chain([Status::SUCCESS]);
        all.filter_map(|status| Some((status.code(), CString::new(status.name()?).ok()?))).collect()
    });
    let found = names.iter().find(|(code, _)| *code == status.0);
    found.map_or(c"Unknown".as_ptr(), |(_, name)| name.as_ptr())
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_get_version(ver: *mut nrt_version_t, size: usize) -> NRT_STATUS {
    answer("get_version", || {
        if size < size_of::<nrt_version_t>() {
            return Err(Refusal::invalid(format!("a version does not fit {size} bytes")));
        }
        let [rt_major, rt_minor, rt_patch, rt_maintenance] = VERSION;
        let (rt_detail, git_hash) = (chars(b"softnrt"), chars(b""));
        let version = nrt_version_t { rt_major, rt_minor, rt_patch, rt_maintenance, rt_detail, git_hash };
        // SAFETY: the caller gives the place of a version.
        unsafe { put(ver, version) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_get_instance_info(
    info: *mut nrt_instance_info_t,
    len: usize,
) -> NRT_STATUS {
    answer("get_instance_info", || {
        if len < size_of::<nrt_instance_info_t>() {
            return Err(Refusal::invalid(format!("a description of the machine does not fit {len} bytes")));
        }
        let (arch_name, device_revision) = (chars(b"NCv2"), chars(b""));
        let machine =
            nrt_instance_info_t { family: FAMILY_INF2, size: SIZE_48XL, arch_name, device_revision };
        // SAFETY: the caller gives the place of a description of that size.
        unsafe { put(info, machine) }
    })
}

macro_rules! counts {
    ($($name:ident $call:literal $field:ident;)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name(vnc_count: *mut u32) -> NRT_STATUS {
            answer($call, || {
                let count = world().settings()?.$field;
                // SAFETY: the caller gives the place of a number.
                unsafe { put(vnc_count, count) }
            })
        }
    )*};
}

counts! {
    nrt_get_total_nc_count "get_total_nc_count" total;
    nrt_get_total_vnc_count "get_total_vnc_count" total;
    nrt_get_visible_nc_count "get_visible_nc_count" visible;
    nrt_get_visible_vnc_count "get_visible_vnc_count" visible;
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_get_vnc_memory_stats(
    vnc: u32,
    stats: *mut nrt_vnc_memory_stats_t,
    size_in: usize,
    size_out: *mut usize,
) -> NRT_STATUS {
    answer("get_vnc_memory_stats", || {
        if size_in < size_of::<nrt_vnc_memory_stats_t>() {
            return Err(Refusal::invalid(format!("memory statistics do not fit {size_in} bytes")));
        }
        let world = world();
        let core = world.core(vnc.cast_signed())?;
        let bytes_used = world.cores[core as usize].used.load(Ordering::Relaxed);
        let found = nrt_vnc_memory_stats_t { bytes_used, bytes_limit: world.open()?.memory };
        // SAFETY: the caller gives the places of the statistics and of their size.
        unsafe {
            put(stats, found)?;
            put(size_out, size_of::<nrt_vnc_memory_stats_t>())
        }
    })
}
