//! The calls of the runtime, each as a `Result` that names the call and its status.
//!
//! Still `unsafe`: the functions take raw handles and trust them. Those that a library may lack return an `Option`
//! around the result, `None` if it does.

mod status;

use std::{
    ffi::{CStr, c_char, c_void},
    ptr::{NonNull, null_mut},
};

pub use status::{Phase, Reaction, Status};

use crate::sys::{
    self, NRT_STATUS, Nrt, nrt_framework_type_t, nrt_model_t, nrt_tensor_info_array_t,
    nrt_tensor_placement_t, nrt_tensor_set_t, nrt_tensor_t, nrt_vnc_memory_stats_t,
};

/// A call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{call} failed with {status}")]
pub struct NrtError {
    /// The function's name.
    pub call: &'static str,
    /// What it returned.
    pub status: Status,
}

impl NrtError {
    /// When such a call is made: executing and copying is [`Phase::Run`], whatever allocates is [`Phase::Load`].
    pub fn phase(&self) -> Phase {
        match self.call {
            "nrt_init" => Phase::Init,
            "nrt_execute" | "nrt_tensor_read" | "nrt_tensor_write" | "nrt_tensor_memset" => Phase::Run,
            _ => Phase::Load,
        }
    }

    /// What to do about it. A caller that knows better when it happened (a first run is part of loading) asks the
    /// status itself.
    pub fn reaction(&self) -> Reaction {
        self.status.reaction(self.phase())
    }
}

type Result<T> = std::result::Result<T, NrtError>;

fn check(call: &'static str, status: NRT_STATUS) -> Result<()> {
    match status {
        NRT_STATUS::NRT_SUCCESS => Ok(()),
        _ => Err(NrtError { call, status: Status(status) }),
    }
}

/// A handle that a successful call wrote. Null would be a defect of the library, reported as its general failure.
fn handle<T>(call: &'static str, raw: *mut T) -> Result<NonNull<T>> {
    NonNull::new(raw).ok_or(NrtError { call, status: Status(NRT_STATUS::NRT_FAILURE) })
}

/// Calls a function of the table, which must be there, and checks its status.
macro_rules! call {
    ($nrt:expr, $name:ident, $($argument:expr),*) => {
        // SAFETY: the arguments are as the enclosing function's contract says; its out-pointers are to locals.
        check(stringify!($name), unsafe { $nrt.$name($($argument),*) })
    };
}

/// The same for a function that the library may lack: returns `None` from the enclosing function then.
macro_rules! optional {
    ($nrt:expr, $name:ident, $($argument:expr),*) => {{
        let function = $nrt.$name.as_ref().ok()?;
        // SAFETY: as in `call`.
        check(stringify!($name), unsafe { function($($argument),*) })
    }};
}

/// `nrt_init` for a program that is none of the frameworks.
///
/// # Safety
/// - `nrt` is the table of a runtime library that is not initialised, and no other call of it is being made.
pub unsafe fn init(nrt: &Nrt) -> Result<()> {
    call!(nrt, nrt_init, nrt_framework_type_t::NRT_FRAMEWORK_TYPE_NO_FW, c"".as_ptr(), c"".as_ptr())
}

/// `nrt_close`.
///
/// # Safety
/// - The library is initialised, and no other call of it is being made.
/// - No handle is used afterwards.
pub unsafe fn close(nrt: &Nrt) {
    // SAFETY: as the contract says.
    unsafe { nrt.nrt_close() }
}

/// `nrt_get_version`; legal at any time.
///
/// # Safety
/// - `nrt` is the table of a runtime library.
pub unsafe fn version(nrt: &Nrt) -> Option<Result<sys::nrt_version_t>> {
    // SAFETY: the structure consists of numbers and characters, for which zero is a value.
    let mut version: sys::nrt_version_t = unsafe { std::mem::zeroed() };
    let status = optional!(nrt, nrt_get_version, &mut version, size_of::<sys::nrt_version_t>());
    Some(status.map(|()| version))
}

/// `nrt_get_status_as_str`: the library's own name of a status, also of one that this crate does not know.
///
/// # Safety
/// - `nrt` is the table of a runtime library.
pub unsafe fn status_as_str(nrt: &Nrt, status: Status) -> Option<&'static CStr> {
    let function = nrt.nrt_get_status_as_str.as_ref().ok()?;
    // SAFETY: any number may be passed; the library returns null or one of its string constants, and it is never
    // unloaded.
    unsafe {
        let name: *const c_char = function(status.0);
        (!name.is_null()).then(|| CStr::from_ptr(name))
    }
}

/// `nrt_get_instance_info`.
///
/// # Safety
/// - `nrt` is the table of a runtime library.
pub unsafe fn instance_info(nrt: &Nrt) -> Option<Result<sys::nrt_instance_info_t>> {
    // SAFETY: the structure consists of numbers and characters, for which zero is a value.
    let mut info: sys::nrt_instance_info_t = unsafe { std::mem::zeroed() };
    let status = optional!(nrt, nrt_get_instance_info, &mut info, size_of::<sys::nrt_instance_info_t>());
    Some(status.map(|()| info))
}

macro_rules! counts {
    ($($(#[$doc:meta])* $function:ident: $new:ident, $old:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// - `nrt` is the table of a runtime library.
        pub unsafe fn $function(nrt: &Nrt) -> Option<Result<u32>> {
            let mut count = 0;
            let status = match nrt.$new.is_ok() {
                true => optional!(nrt, $new, &mut count),
                false => optional!(nrt, $old, &mut count),
            };
            Some(status.map(|()| count))
        }
    )*};
}

counts! {
    /// Cores of this machine: `nrt_get_total_vnc_count`, or its older name.
    total_cores: nrt_get_total_vnc_count, nrt_get_total_nc_count;
    /// Cores that this process may use: `nrt_get_visible_vnc_count`, or its older name. Legal at any time.
    visible_cores: nrt_get_visible_vnc_count, nrt_get_visible_nc_count;
}

/// `nrt_get_vnc_memory_stats` of one core.
///
/// # Safety
/// - The library is initialised.
pub unsafe fn memory_stats(nrt: &Nrt, core: u32) -> Option<Result<nrt_vnc_memory_stats_t>> {
    let mut stats = nrt_vnc_memory_stats_t { bytes_used: 0, bytes_limit: 0 };
    let mut filled = 0;
    let size = size_of::<nrt_vnc_memory_stats_t>();
    let status = optional!(nrt, nrt_get_vnc_memory_stats, core, &mut stats, size, &mut filled);
    Some(status.map(|()| stats))
}

/// `nrt_load` on one core.
///
/// # Safety
/// - The library is initialised. No other model is being loaded by this function or unloaded.
pub unsafe fn load(nrt: &Nrt, neff: &[u8], core: i32) -> Result<NonNull<nrt_model_t>> {
    let mut model = null_mut();
    // The count of cores is deprecated: -1 leaves it to the NEFF.
    call!(nrt, nrt_load, neff.as_ptr().cast::<c_void>(), neff.len(), core, -1, &mut model)?;
    handle("nrt_load", model)
}

/// `nrt_load_collectives` of one rank on one core; returns when all `ranks` have called it.
///
/// # Safety
/// - The library is initialised.
pub unsafe fn load_collectives(
    nrt: &Nrt,
    neff: &[u8],
    core: i32,
    rank: u32,
    ranks: u32,
) -> Option<Result<NonNull<nrt_model_t>>> {
    let mut model = null_mut();
    let bytes = neff.as_ptr().cast::<c_void>();
    let status = optional!(nrt, nrt_load_collectives, bytes, neff.len(), core, -1, rank, ranks, &mut model);
    Some(status.and_then(|()| handle("nrt_load_collectives", model)))
}

/// `nrt_build_global_comm`; returns when all `ranks` have called it.
///
/// # Safety
/// - The library is initialised.
pub unsafe fn build_global_comm(nrt: &Nrt, core: i32, rank: u32, ranks: u32) -> Option<Result<()>> {
    Some(optional!(nrt, nrt_build_global_comm, core, rank, ranks))
}

/// `nrt_unload`.
///
/// # Safety
/// - `model` came from this library and is neither in use nor used afterwards.
/// - No other model is being loaded by [`load`] or unloaded.
pub unsafe fn unload(nrt: &Nrt, model: NonNull<nrt_model_t>) -> Result<()> {
    call!(nrt, nrt_unload, model.as_ptr())
}

/// `nrt_get_model_tensor_info`. The caller frees it with [`free_model_tensor_info`].
///
/// # Safety
/// - `model` came from this library and is loaded.
pub unsafe fn model_tensor_info(
    nrt: &Nrt,
    model: NonNull<nrt_model_t>,
) -> Option<Result<NonNull<nrt_tensor_info_array_t>>> {
    let mut info = null_mut();
    let status = optional!(nrt, nrt_get_model_tensor_info, model.as_ptr(), &mut info);
    Some(status.and_then(|()| handle("nrt_get_model_tensor_info", info)))
}

/// `nrt_free_model_tensor_info`.
///
/// # Safety
/// - `info` came from [`model_tensor_info`] and is not used afterwards.
pub unsafe fn free_model_tensor_info(
    nrt: &Nrt,
    info: NonNull<nrt_tensor_info_array_t>,
) -> Option<Result<()>> {
    Some(optional!(nrt, nrt_free_model_tensor_info, info.as_ptr()))
}

/// `nrt_get_model_instance_count`.
///
/// # Safety
/// - `model` came from this library and is loaded.
pub unsafe fn model_instance_count(nrt: &Nrt, model: NonNull<nrt_model_t>) -> Option<Result<u32>> {
    let mut count = 0;
    let status = optional!(nrt, nrt_get_model_instance_count, model.as_ptr(), &mut count);
    Some(status.map(|()| count))
}

/// `nrt_execute`.
///
/// # Safety
/// - All three came from this library; the model is loaded, the sets and the tensors in them are alive.
/// - Nothing else uses the model, or a tensor that it writes, during the call.
pub unsafe fn execute(
    nrt: &Nrt,
    model: NonNull<nrt_model_t>,
    inputs: NonNull<nrt_tensor_set_t>,
    outputs: NonNull<nrt_tensor_set_t>,
) -> Result<()> {
    call!(nrt, nrt_execute, model.as_ptr(), inputs.as_ptr(), outputs.as_ptr())
}

/// `nrt_tensor_allocate` in the memory of one core's device. `name` appears in the library's logs.
///
/// # Safety
/// - The library is initialised.
pub unsafe fn tensor_allocate(
    nrt: &Nrt,
    core: i32,
    bytes: usize,
    name: &CStr,
) -> Result<NonNull<nrt_tensor_t>> {
    let mut tensor = null_mut();
    let placement = nrt_tensor_placement_t::NRT_TENSOR_PLACEMENT_DEVICE;
    call!(nrt, nrt_tensor_allocate, placement, core, bytes, name.as_ptr(), &mut tensor)?;
    handle("nrt_tensor_allocate", tensor)
}

/// `nrt_tensor_allocate_slice`.
///
/// # Safety
/// - `source` came from this library, is alive, and is at least `at + bytes` long.
pub unsafe fn tensor_allocate_slice(
    nrt: &Nrt,
    source: NonNull<nrt_tensor_t>,
    at: usize,
    bytes: usize,
    name: &CStr,
) -> Option<Result<NonNull<nrt_tensor_t>>> {
    let mut tensor = null_mut();
    let status =
        optional!(nrt, nrt_tensor_allocate_slice, source.as_ptr(), at, bytes, name.as_ptr(), &mut tensor);
    Some(status.and_then(|()| handle("nrt_tensor_allocate_slice", tensor)))
}

/// `nrt_tensor_free`.
///
/// # Safety
/// - `tensor` came from this library, is in no set, and is not used afterwards.
pub unsafe fn tensor_free(nrt: &Nrt, tensor: NonNull<nrt_tensor_t>) {
    let mut tensor = tensor.as_ptr();
    // SAFETY: as the contract says; the library nulls the local.
    unsafe { nrt.nrt_tensor_free(&mut tensor) }
}

/// `nrt_tensor_read`.
///
/// # Safety
/// - `tensor` came from this library, is alive, and is at least `at + data.len()` long.
/// - Nothing writes to that part of it during the call.
pub unsafe fn tensor_read(
    nrt: &Nrt,
    tensor: NonNull<nrt_tensor_t>,
    at: usize,
    data: &mut [u8],
) -> Result<()> {
    call!(nrt, nrt_tensor_read, tensor.as_ptr(), data.as_mut_ptr().cast::<c_void>(), at, data.len())
}

/// `nrt_tensor_write`.
///
/// # Safety
/// - `tensor` came from this library, is alive, and is at least `at + data.len()` long.
/// - Nothing else uses that part of it during the call.
pub unsafe fn tensor_write(nrt: &Nrt, tensor: NonNull<nrt_tensor_t>, at: usize, data: &[u8]) -> Result<()> {
    call!(nrt, nrt_tensor_write, tensor.as_ptr(), data.as_ptr().cast::<c_void>(), at, data.len())
}

/// `nrt_tensor_memset`.
///
/// # Safety
/// - `tensor` came from this library, is alive, and is at least `at + bytes` long.
/// - Nothing else uses that part of it during the call.
pub unsafe fn tensor_memset(
    nrt: &Nrt,
    tensor: NonNull<nrt_tensor_t>,
    at: usize,
    value: u8,
    bytes: usize,
) -> Option<Result<()>> {
    Some(optional!(nrt, nrt_tensor_memset, tensor.as_ptr(), at as u64, i32::from(value), bytes))
}

/// `nrt_allocate_tensor_set`.
///
/// # Safety
/// - The library is initialised.
pub unsafe fn allocate_tensor_set(nrt: &Nrt) -> Result<NonNull<nrt_tensor_set_t>> {
    let mut set = null_mut();
    call!(nrt, nrt_allocate_tensor_set, &mut set)?;
    handle("nrt_allocate_tensor_set", set)
}

/// `nrt_destroy_tensor_set`.
///
/// # Safety
/// - `set` came from this library and is not used afterwards.
pub unsafe fn destroy_tensor_set(nrt: &Nrt, set: NonNull<nrt_tensor_set_t>) {
    let mut set = set.as_ptr();
    // SAFETY: as the contract says; the library nulls the local.
    unsafe { nrt.nrt_destroy_tensor_set(&mut set) }
}

/// `nrt_add_tensor_to_tensor_set`: adds, or replaces the tensor of that name.
///
/// # Safety
/// - Both came from this library; the tensor lives until it is replaced or the set destroyed.
/// - Nothing else uses the set during the call.
pub unsafe fn add_tensor_to_tensor_set(
    nrt: &Nrt,
    set: NonNull<nrt_tensor_set_t>,
    name: &CStr,
    tensor: NonNull<nrt_tensor_t>,
) -> Result<()> {
    call!(nrt, nrt_add_tensor_to_tensor_set, set.as_ptr(), name.as_ptr(), tensor.as_ptr())
}
