//! The C interface. Each function checks its pointers and does the rest by way of [`crate::world`]; the types are
//! those of `neuron_sys::sys`, and [`assign`] does not compile where a signature differs.
//!
//! Here is what all functions have in common: faults on request, and no refusal without an explanation.

mod machine;
mod model;
mod tensor;

use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Once, OnceLock};

use neuron_sys::sys::*;

use crate::options::Effect;
use crate::world::{Refusal, named, say, world};
use machine::*;
use model::*;
use tensor::*;

type Outcome = Result<(), Refusal>;

fn announce() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        say(
            "this is a software double of the Neuron runtime, for tests; no time that it takes is a device's",
        );
    });
}

/// Takes faults from the file that a test may put there while another process runs this library.
fn faults_from_file() {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os("SOFTNRT_FAULT_FILE").map(PathBuf::from)) else {
        return;
    };
    let Ok(faults) = std::fs::read_to_string(file) else { return };
    // Whoever removes it has it; that it is gone also tells the test that it was read.
    if std::fs::remove_file(file).is_ok()
        && let Err(why) = world().set("SOFTNRT_FAULT".into(), faults.trim().into())
    {
        say(&why);
    }
}

/// Counts a call; returns what it is to fail with, or never.
fn injected(call: &'static str) -> Option<NRT_STATUS> {
    announce();
    faults_from_file();
    // Apart, so that the lock is not held.
    let effect = world().count(call);
    match effect {
        None => None,
        Some(Effect::Status(status)) => {
            say(&format!("nrt_{call} is told to return {}", named(status)));
            Some(status)
        }
        Some(Effect::Hang) => {
            say(&format!("nrt_{call} is told to hang"));
            loop {
                std::thread::park();
            }
        }
    }
}

/// Runs a function's body: faults first, and neither a refusal nor a panic goes unexplained.
fn answer(call: &'static str, body: impl FnOnce() -> Outcome) -> NRT_STATUS {
    if let Some(status) = injected(call) {
        return status;
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => NRT_STATUS::NRT_SUCCESS,
        Ok(Err(Refusal { status, why })) => {
            say(&format!("nrt_{call}: {why}: {}", named(status)));
            status
        }
        // The panic hook has said what happened.
        Err(_) => NRT_STATUS::NRT_FAILURE,
    }
}

/// The same for functions without a status.
fn act(call: &'static str, body: impl FnOnce()) {
    if injected(call).is_none() {
        // The panic hook has said what happened.
        let _ = catch_unwind(AssertUnwindSafe(body));
    }
}

/// A place to write to, which must not be null.
///
/// # Safety
/// - A pointer that is not null is valid for a write.
unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(Refusal::invalid("a place for the result is null"));
    }
    // SAFETY: as the contract says.
    unsafe { to.write(value) };
    Ok(())
}

/// A name.
///
/// # Safety
/// - A pointer that is not null is to a string that ends with a NUL.
unsafe fn name(text: *const c_char) -> Result<String, Refusal> {
    if text.is_null() {
        return Err(Refusal::invalid("a name is null"));
    }
    // SAFETY: as the contract says.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(str::to_owned).map_err(|_| Refusal::invalid("a name is not UTF-8"))
}

fn key<T>(handle: *const T) -> usize {
    handle.addr()
}
fn chars<const N: usize>(text: &[u8]) -> [c_char; N] {
    let mut field = [0; N];
    for (to, from) in field[..N - 1].iter_mut().zip(text) {
        *to = from.cast_signed();
    }
    field
}

/// For tests: overrides a setting. Returns whether it is one.
///
/// # Safety
/// - Both are strings that end with a NUL.
#[unsafe(no_mangle)]
unsafe extern "C" fn softnrt_set(variable: *const c_char, value: *const c_char) -> bool {
    // SAFETY: as the contract says.
    let (Ok(variable), Ok(value)) = (unsafe { name(variable) }, unsafe { name(value) }) else { return false };
    match world().set(variable, value) {
        Ok(()) => true,
        Err(why) => {
            say(&why);
            false
        }
    }
}

/// For tests: calls `with` on each complaint so far, with `context`.
///
/// # Safety
/// - `with` may be called with `context`, and does not keep the strings.
#[unsafe(no_mangle)]
unsafe extern "C" fn softnrt_complaints(
    with: unsafe extern "C" fn(context: *mut c_void, complaint: *const c_char),
    context: *mut c_void,
) {
    let complaints: Vec<CString> =
        world().complaints().iter().filter_map(|text| CString::new(text.as_str()).ok()).collect();
    for complaint in complaints {
        // SAFETY: as the contract says.
        unsafe { with(context, complaint.as_ptr()) };
    }
}

/// Never called: that it compiles means that the exports have the signatures of the bindings.
const _: fn(&mut Nrt) = assign;

fn assign(table: &mut Nrt) {
    macro_rules! assign {
        ($($name:ident)*) => {$( table.$name = Ok($name); )*};
    }
    assign! {
        nrt_get_status_as_str nrt_get_version nrt_get_instance_info
        nrt_get_total_nc_count nrt_get_total_vnc_count nrt_get_visible_nc_count nrt_get_visible_vnc_count
        nrt_get_vnc_memory_stats
        nrt_init nrt_close nrt_load nrt_load_collectives nrt_build_global_comm nrt_unload
        nrt_get_model_tensor_info nrt_free_model_tensor_info nrt_get_model_instance_count nrt_execute
        nrt_tensor_allocate nrt_tensor_allocate_slice nrt_tensor_free
        nrt_tensor_read nrt_tensor_write nrt_tensor_memset nrt_tensor_read_batch nrt_tensor_write_batch
        nrt_allocate_tensor_set nrt_destroy_tensor_set nrt_add_tensor_to_tensor_set
    }
}
