//! Device memory: tensors, copies, and sets of tensors for executions.

use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

use neuron_sys::sys::*;

use super::{Outcome, act, answer, key, name, put};
use crate::memory::{Storage, Tensor};
use crate::world::{Refusal, unknown, world};

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_tensor_allocate(
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
pub(super) unsafe extern "C" fn nrt_tensor_allocate_slice(
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
pub(super) unsafe extern "C" fn nrt_tensor_free(tensor: *mut *mut nrt_tensor_t) {
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
pub(super) unsafe extern "C" fn nrt_tensor_read(
    tensor: *const nrt_tensor_t,
    buf: *mut c_void,
    offset: usize,
    size: usize,
) -> NRT_STATUS {
    // SAFETY: the caller gives memory of that size.
    answer("tensor_read", || unsafe { read(tensor, buf, offset as u64, size as u64) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_tensor_write(
    tensor: *mut nrt_tensor_t,
    buf: *const c_void,
    offset: usize,
    size: usize,
) -> NRT_STATUS {
    // SAFETY: the caller gives memory of that size.
    answer("tensor_write", || unsafe { write(tensor, buf, offset as u64, size as u64) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_tensor_memset(
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
pub(super) unsafe extern "C" fn nrt_tensor_read_batch(
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
pub(super) unsafe extern "C" fn nrt_tensor_write_batch(
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
pub(super) unsafe extern "C" fn nrt_allocate_tensor_set(result: *mut *mut nrt_tensor_set_t) -> NRT_STATUS {
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
pub(super) unsafe extern "C" fn nrt_destroy_tensor_set(tensor_set: *mut *mut nrt_tensor_set_t) {
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
pub(super) unsafe extern "C" fn nrt_add_tensor_to_tensor_set(
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
