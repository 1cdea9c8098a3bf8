//! The C interface. Each function checks its pointers and does the rest by way of [`crate::world`]; the types are
//! those of `neuron_sys::sys`, and [`assign`] does not compile where a signature differs.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock};

use neuron_sys::Status;
use neuron_sys::sys::*;

use crate::execute;
use crate::memory::{Storage, Tensor};
use crate::neff::{self, MAX_NAME};
use crate::options::Effect;
use crate::ranks::{self, What};
use crate::world::{Description, Model, Refusal, named, say, unknown, world};

/// What this claims to be: the release whose header the bindings follow.
const VERSION: [u64; 4] = [2, 30, 50, 0];

/// `NRT` codes of `nrt_get_instance_info`: an inf2.48xlarge.
const FAMILY_INF2: u32 = 4;
const SIZE_48XL: u32 = 7;

type Outcome = Result<(), Refusal>;

fn announce() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        say(
            "this is a software double of the Neuron runtime, for tests; no time that it takes is a device's",
        );
    });
}

/// Counts a call; returns what it is to fail with, or never.
fn injected(call: &'static str) -> Option<NRT_STATUS> {
    announce();
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

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_status_as_str(status: NRT_STATUS) -> *const c_char {
    static NAMES: OnceLock<Vec<(u32, CString)>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let all = Status::known().chain([Status::SUCCESS]);
        all.filter_map(|status| Some((status.code(), CString::new(status.name()?).ok()?))).collect()
    });
    let found = names.iter().find(|(code, _)| *code == status.0);
    found.map_or(c"Unknown".as_ptr(), |(_, name)| name.as_ptr())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_version(ver: *mut nrt_version_t, size: usize) -> NRT_STATUS {
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

fn chars<const N: usize>(text: &[u8]) -> [c_char; N] {
    let mut field = [0; N];
    for (to, from) in field[..N - 1].iter_mut().zip(text) {
        *to = from.cast_signed();
    }
    field
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_instance_info(info: *mut nrt_instance_info_t, len: usize) -> NRT_STATUS {
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
        unsafe extern "C" fn $name(vnc_count: *mut u32) -> NRT_STATUS {
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
unsafe extern "C" fn nrt_get_vnc_memory_stats(
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

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_init(_: nrt_framework_type_t, fw: *const c_char, fal: *const c_char) -> NRT_STATUS {
    answer("init", || {
        // SAFETY: the caller gives strings.
        unsafe { (name(fw)?, name(fal)?) };
        world().init()
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_close() {
    act("close", || world().close());
}

/// Loads a file on a core, after the ranks have come together if there are any.
///
/// # Safety
/// - A pointer to the file that is not null is to that many bytes.
unsafe fn load(
    neff: *const c_void,
    size: usize,
    vnc: i32,
    vnc_count: i32,
    ranks: Option<(u32, u32)>,
    model: *mut *mut nrt_model_t,
) -> Outcome {
    let core = world().core(if vnc == -1 { 0 } else { vnc })?;
    if !matches!(vnc_count, -1 | 1) {
        return Err(Refusal::invalid(format!("{vnc_count} cores for one program")));
    }
    if neff.is_null() || model.is_null() {
        return Err(Refusal::invalid("the NEFF or the place for the model is null"));
    }
    // SAFETY: as the contract says.
    let file = unsafe { std::slice::from_raw_parts(neff.cast::<u8>(), size) };
    let neff = neff::unpack(file)?;
    let ranks = match ranks {
        None if neff.collectives => {
            return Err(Refusal::invalid("a program with collectives is loaded by nrt_load_collectives"));
        }
        None => None,
        Some((rank, count)) => {
            let program = What::Program(neff.hash);
            Some((ranks::join(world(), program, core, rank, count)?, rank))
        }
    };
    let mut world = world();
    // The program itself takes memory, too; how much is anyone's guess.
    world.fits(core, size)?;
    world.cores[core as usize].used.fetch_add(size, Ordering::Relaxed);
    let handle = world.handle();
    let loaded = Model { core, neff, bytes: size, ranks, runs: AtomicU64::new(0), bound: Mutex::default() };
    world.models.insert(key::<nrt_model_t>(handle), Arc::new(loaded));
    // SAFETY: the caller gives the place of a handle.
    unsafe { put(model, handle) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_load(
    neff_bytes: *const c_void,
    size: usize,
    vnc: i32,
    vnc_count: i32,
    model: *mut *mut nrt_model_t,
) -> NRT_STATUS {
    // SAFETY: the caller gives the bytes of a file.
    answer("load", || unsafe { load(neff_bytes, size, vnc, vnc_count, None, model) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_load_collectives(
    neff_bytes: *const c_void,
    size: usize,
    vnc: i32,
    vnc_count: i32,
    ctx_device_id: u32,
    ctx_device_count: u32,
    model: *mut *mut nrt_model_t,
) -> NRT_STATUS {
    let ranks = Some((ctx_device_id, ctx_device_count));
    // SAFETY: the caller gives the bytes of a file.
    answer("load_collectives", || unsafe { load(neff_bytes, size, vnc, vnc_count, ranks, model) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_build_global_comm(vnc: i32, g_device_id: u32, g_device_count: u32) -> NRT_STATUS {
    answer("build_global_comm", || {
        let world = world();
        let core = world.core(vnc)?;
        ranks::join(world, What::Communicator, core, g_device_id, g_device_count).map(drop)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_unload(model: *mut nrt_model_t) -> NRT_STATUS {
    answer("unload", || {
        let mut world = world();
        world.open()?;
        let (core, bytes) = {
            let model = world.model(key(model))?;
            (model.core as usize, model.bytes)
        };
        if world.cores[core].busy {
            return Err(Refusal::invalid("its core is executing"));
        }
        world.models.remove(&key(model));
        world.cores[core].used.fetch_sub(bytes, Ordering::Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_model_tensor_info(
    model: *mut nrt_model_t,
    tensor_info: *mut *mut nrt_tensor_info_array_t,
) -> NRT_STATUS {
    answer("get_model_tensor_info", || {
        let mut world = world();
        world.open()?;
        let model = Arc::clone(world.model(key(model))?);
        let tensors: Vec<_> = model.neff.inputs.iter().chain(&model.neff.outputs).collect();
        let bytes = size_of::<u64>() + tensors.len() * size_of::<nrt_tensor_info_t>();
        let mut words = vec![0u64; bytes.div_ceil(size_of::<u64>())];
        let array = words.as_mut_ptr().cast::<nrt_tensor_info_array_t>();
        let mut shapes: Vec<Vec<u32>> = Vec::with_capacity(tensors.len());
        // SAFETY: the words have room for the count and for that many entries, and are aligned as the count, which is
        // aligned as strictly as any field of an entry.
        let entries = unsafe {
            (*array).tensor_count = tensors.len() as u64;
            (&raw mut (*array).tensor_array).cast::<nrt_tensor_info_t>()
        };
        for (index, tensor) in tensors.into_iter().enumerate() {
            let mut shape: Vec<u32> = tensor.shape.iter().map(|dim| *dim as u32).collect();
            let entry = nrt_tensor_info_t {
                name: chars::<{ MAX_NAME + 1 }>(tensor.name.as_bytes()),
                usage: match tensor.output {
                    false => nrt_tensor_usage_t::NRT_TENSOR_USAGE_INPUT,
                    true => nrt_tensor_usage_t::NRT_TENSOR_USAGE_OUTPUT,
                },
                size: tensor.bytes,
                // The codes changed between releases, and real libraries report some types as others or none.
                dtype: nrt_dtype_t(0),
                shape: shape.as_mut_ptr(),
                ndim: shape.len() as u32,
            };
            shapes.push(shape);
            // SAFETY: as above, and the index is below the count.
            unsafe { entries.add(index).write(entry) };
        }
        // SAFETY: the caller gives the place of a pointer.
        unsafe { put(tensor_info, array)? };
        world.infos.insert(key(array), Description((words, shapes)));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_free_model_tensor_info(tensor_info: *mut nrt_tensor_info_array_t) -> NRT_STATUS {
    answer("free_model_tensor_info", || {
        let mut world = world();
        world.open()?;
        world.infos.remove(&key(tensor_info)).map(drop).ok_or_else(|| unknown("description"))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_model_instance_count(model: *mut nrt_model_t, count: *mut u32) -> NRT_STATUS {
    answer("get_model_instance_count", || {
        let world = world();
        world.open()?;
        world.model(key(model))?;
        // SAFETY: the caller gives the place of a number.
        unsafe { put(count, 1) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_execute(
    model: *mut nrt_model_t,
    input_set: *const nrt_tensor_set_t,
    output_set: *mut nrt_tensor_set_t,
) -> NRT_STATUS {
    if let Some(status) = injected("execute") {
        execute::stay_away(key(model), "its execution was told to fail");
        return status;
    }
    match catch_unwind(|| execute::execute(key(model), key(input_set), key(output_set))) {
        Ok(Ok(())) => NRT_STATUS::NRT_SUCCESS,
        Ok(Err(Refusal { status, why })) => {
            say(&format!("nrt_execute: {why}: {}", named(status)));
            status
        }
        // The panic hook has said what happened.
        Err(_) => NRT_STATUS::NRT_FAILURE,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_allocate(
    placement: nrt_tensor_placement_t,
    vnc: c_int,
    size: usize,
    text: *const c_char,
    tensor: *mut *mut nrt_tensor_t,
) -> NRT_STATUS {
    answer("tensor_allocate", || {
        let mut world = world();
        let noop = world.open()?.noop;
        if placement != nrt_tensor_placement_t::NRT_TENSOR_PLACEMENT_DEVICE {
            return Err(Refusal::invalid(format!("placement {}: only device memory is left", placement.0)));
        }
        let core = world.core(vnc)?;
        // SAFETY: the caller gives a string.
        let name = unsafe { name(text)? };
        if size == 0 {
            return Err(Refusal::new(NRT_STATUS::NRT_RESOURCE, format!("tensor {name:?} of no bytes")));
        }
        world.fits(core, size)?;
        let used = Arc::clone(&world.cores[core as usize].used);
        let storage = Storage::new(core, size, if noop { 0 } else { 0xff }, used);
        let handle = world.handle();
        world.tensors.insert(key(handle), Arc::new(Tensor { storage, at: 0, bytes: size, name }));
        // SAFETY: the caller gives the place of a handle.
        unsafe { put(tensor, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_allocate_slice(
    source: *const nrt_tensor_t,
    offset: usize,
    size: usize,
    text: *const c_char,
    slice: *mut *mut nrt_tensor_t,
) -> NRT_STATUS {
    answer("tensor_allocate_slice", || {
        let mut world = world();
        world.open()?;
        // SAFETY: the caller gives a string.
        let name = unsafe { name(text)? };
        let source = Arc::clone(world.tensor(key(source))?);
        let (at, _) = range(&source, offset as u64, size as u64)?;
        if size == 0 {
            return Err(Refusal::new(NRT_STATUS::NRT_RESOURCE, format!("slice {name:?} of no bytes")));
        }
        let handle = world.handle();
        let tensor = Tensor { storage: Arc::clone(&source.storage), at, bytes: size, name };
        world.tensors.insert(key(handle), Arc::new(tensor));
        // SAFETY: the caller gives the place of a handle.
        unsafe { put(slice, handle) }
    })
}

fn range(tensor: &Tensor, at: u64, bytes: u64) -> Result<(usize, usize), Refusal> {
    tensor.range(at, bytes).ok_or_else(|| {
        Refusal::invalid(format!("{bytes} bytes at {at} of tensor {:?} of {}", tensor.name, tensor.bytes))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_free(tensor: *mut *mut nrt_tensor_t) {
    act("tensor_free", || {
        let mut world = world();
        // SAFETY: the caller gives null or the place of a handle.
        let handle = if tensor.is_null() { 0 } else { unsafe { key(tensor.read()) } };
        match world.open().err() {
            Some(refusal) => return world.complain(format!("nrt_tensor_free: {}", refusal.why)),
            None if !world.tensors.contains_key(&handle) => {
                return world.complain("nrt_tensor_free: this tensor does not exist, or no longer".into());
            }
            None => {}
        }
        let in_set = world.sets.values().any(|set| set.values().any(|(held, _)| *held == handle));
        if let Some(tensor) = world.tensors.remove(&handle) {
            let name = &tensor.name;
            if in_set {
                world.complain(format!("nrt_tensor_free: tensor {name:?} is in a tensor set"));
            }
            if tensor.storage.in_use() {
                world.complain(format!("nrt_tensor_free: tensor {name:?} is being executed on"));
            }
        }
        // SAFETY: as above, and it was not null.
        unsafe { tensor.write(std::ptr::null_mut()) };
    });
}

/// The tensor of a handle, and a range of it, for a copy from or to `buffer`.
fn copied(
    tensor: *const nrt_tensor_t,
    buffer: *const c_void,
    at: u64,
    bytes: u64,
) -> Result<(Arc<Tensor>, (usize, usize)), Refusal> {
    let tensor = {
        let world = world();
        world.open()?;
        Arc::clone(world.tensor(key(tensor))?)
    };
    let range = range(&tensor, at, bytes)?;
    if buffer.is_null() && bytes > 0 {
        return Err(Refusal::invalid("the host's memory is null"));
    }
    if tensor.storage.in_use() {
        return Err(Refusal::invalid(format!("tensor {:?} is being executed on", tensor.name)));
    }
    Ok((tensor, range))
}

/// # Safety
/// - `buffer` has room for that many bytes.
unsafe fn read(tensor: *const nrt_tensor_t, buffer: *mut c_void, at: u64, bytes: u64) -> Outcome {
    let (tensor, range) = copied(tensor, buffer, at, bytes)?;
    tensor.read(range, |from| {
        // SAFETY: as the contract says; the bytes are this library's own.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), buffer.cast::<u8>(), from.len()) };
    });
    Ok(())
}

/// # Safety
/// - `buffer` has that many bytes.
unsafe fn write(tensor: *const nrt_tensor_t, buffer: *const c_void, at: u64, bytes: u64) -> Outcome {
    let (tensor, range) = copied(tensor, buffer, at, bytes)?;
    tensor.write(range, |to| {
        // SAFETY: as the contract says; the bytes are this library's own.
        unsafe { std::ptr::copy_nonoverlapping(buffer.cast::<u8>(), to.as_mut_ptr(), to.len()) };
    });
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_read(
    tensor: *const nrt_tensor_t,
    buf: *mut c_void,
    offset: usize,
    size: usize,
) -> NRT_STATUS {
    // SAFETY: the caller gives memory of that size.
    answer("tensor_read", || unsafe { read(tensor, buf, offset as u64, size as u64) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_write(
    tensor: *mut nrt_tensor_t,
    buf: *const c_void,
    offset: usize,
    size: usize,
) -> NRT_STATUS {
    // SAFETY: the caller gives memory of that size.
    answer("tensor_write", || unsafe { write(tensor, buf, offset as u64, size as u64) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_memset(
    tensor: *mut nrt_tensor_t,
    offset: u64,
    value: c_int,
    size: usize,
) -> NRT_STATUS {
    answer("tensor_memset", || {
        let any = std::ptr::dangling::<c_void>();
        let (tensor, range) = copied(tensor, any, offset, size as u64)?;
        // C's memset takes the number's low byte.
        tensor.write(range, |bytes| bytes.fill(value as u8));
        Ok(())
    })
}

/// Calls `each(tensor, offset, size, buffer)` for every operation of every batch.
///
/// # Safety
/// - The pointers are to as many batches and operations as the counts say.
unsafe fn batched(
    batches: *const nrt_tensor_batch_t,
    count: u64,
    each: impl Fn(*const nrt_tensor_t, &nrt_tensor_batch_op_t) -> Outcome,
) -> Outcome {
    if batches.is_null() && count > 0 {
        return Err(Refusal::invalid("the batches are null"));
    }
    for index in 0..count as usize {
        // SAFETY: as the contract says.
        let batch = unsafe { &*batches.add(index) };
        if batch.ops.is_null() && batch.num_ops > 0 {
            return Err(Refusal::invalid("a batch's operations are null"));
        }
        for op in 0..batch.num_ops as usize {
            // SAFETY: as the contract says.
            each(batch.tensor, unsafe { &*batch.ops.add(op) })?;
        }
    }
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_read_batch(
    batches: *const nrt_tensor_batch_t,
    num_batches: u64,
    _unsafe: bool,
) -> NRT_STATUS {
    // SAFETY: the caller gives batches, and in them memory of the sizes that they state.
    answer("tensor_read_batch", || unsafe {
        batched(batches, num_batches, |tensor, op| read(tensor, op.buffer, op.offset, op.size))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_write_batch(
    batches: *const nrt_tensor_batch_t,
    num_batches: u64,
    _unsafe: bool,
) -> NRT_STATUS {
    // SAFETY: the caller gives batches, and in them memory of the sizes that they state.
    answer("tensor_write_batch", || unsafe {
        batched(batches, num_batches, |tensor, op| write(tensor, op.buffer, op.offset, op.size))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_allocate_tensor_set(result: *mut *mut nrt_tensor_set_t) -> NRT_STATUS {
    answer("allocate_tensor_set", || {
        let mut world = world();
        world.open()?;
        let handle = world.handle();
        world.sets.insert(key(handle), Default::default());
        // SAFETY: the caller gives the place of a handle.
        unsafe { put(result, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_destroy_tensor_set(tensor_set: *mut *mut nrt_tensor_set_t) {
    act("destroy_tensor_set", || {
        let mut world = world();
        // SAFETY: the caller gives null or the place of a handle.
        let handle = if tensor_set.is_null() { 0 } else { unsafe { key(tensor_set.read()) } };
        world.forget(handle);
        match world.open().err() {
            Some(refusal) => return world.complain(format!("nrt_destroy_tensor_set: {}", refusal.why)),
            None if world.sets.remove(&handle).is_none() => {
                let why = "nrt_destroy_tensor_set: this set does not exist, or no longer";
                return world.complain(why.into());
            }
            None => {}
        }
        // SAFETY: as above, and it was not null.
        unsafe { tensor_set.write(std::ptr::null_mut()) };
    });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_add_tensor_to_tensor_set(
    tensor_set: *mut nrt_tensor_set_t,
    tensor_name: *const c_char,
    tensor: *mut nrt_tensor_t,
) -> NRT_STATUS {
    answer("add_tensor_to_tensor_set", || {
        let mut world = world();
        world.open()?;
        // SAFETY: the caller gives a string.
        let name = unsafe { name(tensor_name)? };
        let handle = key(tensor);
        let tensor = Arc::clone(world.tensor(handle)?);
        world.forget(key(tensor_set));
        let set = world.sets.get_mut(&key(tensor_set)).ok_or_else(|| unknown("tensor set"))?;
        set.insert(name, (handle, tensor));
        Ok(())
    })
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
