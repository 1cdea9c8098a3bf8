//! The library's life, and programs: load, describe, execute, unload.

use std::ffi::{c_char, c_void};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use neuron_sys::sys::*;

use super::{Outcome, act, answer, chars, injected, key, name, put};
use crate::execute;
use crate::neff::{self, MAX_NAME};
use crate::ranks::{self, What};
use crate::world::{Description, Model, Refusal, named, say, unknown, world};

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_init(
    _: nrt_framework_type_t,
    fw: *const c_char,
    fal: *const c_char,
) -> NRT_STATUS {
    answer("init", || {
        // SAFETY: the caller gives strings.
        unsafe { (name(fw)?, name(fal)?) };
        world().init()
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_close() {
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
pub(super) unsafe extern "C" fn nrt_load(
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
pub(super) unsafe extern "C" fn nrt_load_collectives(
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
pub(super) unsafe extern "C" fn nrt_build_global_comm(
    vnc: i32,
    g_device_id: u32,
    g_device_count: u32,
) -> NRT_STATUS {
    answer("build_global_comm", || {
        let world = world();
        let core = world.core(vnc)?;
        ranks::join(world, What::Communicator, core, g_device_id, g_device_count).map(drop)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_unload(model: *mut nrt_model_t) -> NRT_STATUS {
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
pub(super) unsafe extern "C" fn nrt_get_model_tensor_info(
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
pub(super) unsafe extern "C" fn nrt_free_model_tensor_info(
    tensor_info: *mut nrt_tensor_info_array_t,
) -> NRT_STATUS {
    answer("free_model_tensor_info", || {
        let mut world = world();
        world.open()?;
        world.infos.remove(&key(tensor_info)).map(drop).ok_or_else(|| unknown("description"))
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_get_model_instance_count(
    model: *mut nrt_model_t,
    count: *mut u32,
) -> NRT_STATUS {
    answer("get_model_instance_count", || {
        let world = world();
        world.open()?;
        world.model(key(model))?;
        // SAFETY: the caller gives the place of a number.
        unsafe { put(count, 1) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nrt_execute(
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
