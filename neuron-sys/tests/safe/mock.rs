//! A runtime of functions in this program, which writes down every call and complains about wrong ones.
//!
//! C functions have no context, so that each test takes a world of its own: `table::<N>()` gives functions that work on
//! world `N` and no others.
//!
//! A "NEFF" is text, one tensor on a line: `in NAME BYTES` or `out NAME BYTES`. Executing it adds one to the first byte of
//! every output.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{CStr, c_char, c_int, c_void},
    ptr::{null_mut, without_provenance_mut},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use neuron_sys::sys::*;

const WORLDS: usize = 32;
static WORLD: [Mutex<World>; WORLDS] = [const { Mutex::new(World::new()) }; WORLDS];
/// Whether a load or unload is in progress; not part of the world, whose lock would keep a second one out.
static LOADING: [AtomicBool; WORLDS] = [const { AtomicBool::new(false) }; WORLDS];
static RANKS: [(Mutex<u32>, Condvar); WORLDS] = [const { (Mutex::new(0), Condvar::new()) }; WORLDS];

#[derive(Clone)]
struct Memory {
    core: i32,
    root: usize,
    at: usize,
    bytes: usize,
}

pub(crate) struct World {
    /// Every call that changes something, such as `free cache`.
    pub(crate) log: Vec<String>,
    /// What the next call of that name returns.
    pub(crate) fail: Vec<(&'static str, u32)>,
    /// What the description of a model's tensors says instead of the truth: a count, or a usage.
    pub(crate) lie: Option<(u64, u32)>,
    next: usize,
    open: bool,
    memory: BTreeMap<usize, Vec<u8>>,
    tensors: BTreeMap<usize, (String, Memory)>,
    models: BTreeMap<usize, String>,
    sets: BTreeMap<usize, HashMap<String, usize>>,
}

impl World {
    pub(crate) const fn new() -> Self {
        Self {
            log: Vec::new(),
            fail: Vec::new(),
            lie: None,
            next: 0,
            open: false,
            memory: BTreeMap::new(),
            tensors: BTreeMap::new(),
            models: BTreeMap::new(),
            sets: BTreeMap::new(),
        }
    }

    fn handle<T>(&mut self) -> *mut T {
        self.next += 1;
        without_provenance_mut(self.next << 4)
    }

    fn log(&mut self, call: impl Into<String>) {
        self.log.push(call.into());
    }

    /// The status that a call is to fail with, if it is.
    fn status(&mut self, call: &str) -> NRT_STATUS {
        match self.fail.iter().position(|(name, _)| *name == call) {
            Some(at) => NRT_STATUS(self.fail.remove(at).1),
            None if !self.open => NRT_STATUS::NRT_UNINITIALIZED,
            None => NRT_STATUS::NRT_SUCCESS,
        }
    }

    fn bytes(&mut self, tensor: *const nrt_tensor_t) -> &mut [u8] {
        let memory = &self.tensors[&tensor.addr()].1;
        &mut self.memory.get_mut(&memory.root).unwrap()[memory.at..memory.at + memory.bytes]
    }
}

pub(crate) fn world<const N: usize>() -> MutexGuard<'static, World> {
    WORLD[N].lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what was logged since the last time.
pub(crate) fn log<const N: usize>() -> Vec<String> {
    std::mem::take(&mut world::<N>().log)
}

macro_rules! or_fail {
    ($world:expr, $call:literal) => {
        let status = $world.status($call);
        if status != NRT_STATUS::NRT_SUCCESS {
            $world.log(format!("{} fails", $call));
            return status;
        }
    };
}

unsafe extern "C" fn init<const N: usize>(
    _: nrt_framework_type_t,
    _: *const c_char,
    _: *const c_char,
) -> NRT_STATUS {
    let mut world = world::<N>();
    let open = std::mem::replace(&mut world.open, true);
    or_fail!(world, "nrt_init");
    world.log(if open { "BAD init" } else { "init" });
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn close<const N: usize>() {
    let mut world = world::<N>();
    world.open = false;
    let left = world.tensors.len() + world.models.len() + world.sets.len();
    world.log(if left == 0 { "close".into() } else { format!("BAD close, {left} left") });
}

unsafe extern "C" fn visible<const N: usize>(count: *mut u32) -> NRT_STATUS {
    // SAFETY: the caller passes a place for the count.
    unsafe { *count = 2 };
    NRT_STATUS::NRT_SUCCESS
}

/// Long enough for another load or unload to come in between, which is wrong.
fn alone<const N: usize>() {
    if LOADING[N].swap(true, Ordering::SeqCst) {
        world::<N>().log("BAD overlap");
    }
    std::thread::sleep(Duration::from_millis(2));
    LOADING[N].store(false, Ordering::SeqCst);
}

unsafe extern "C" fn load<const N: usize>(
    neff: *const c_void,
    size: usize,
    core: i32,
    count: i32,
    model: *mut *mut nrt_model_t,
) -> NRT_STATUS {
    alone::<N>();
    // SAFETY: the arguments are those of this call.
    unsafe { load_now::<N>(neff, size, core, count, model) }
}

unsafe extern "C" fn load_now<const N: usize>(
    neff: *const c_void,
    size: usize,
    core: i32,
    count: i32,
    model: *mut *mut nrt_model_t,
) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_load");
    assert_eq!(count, -1);
    // SAFETY: the caller passes that many bytes.
    let neff = unsafe { std::slice::from_raw_parts(neff.cast::<u8>(), size) };
    let handle: *mut nrt_model_t = world.handle();
    world.models.insert(handle.addr(), String::from_utf8(neff.to_vec()).unwrap());
    world.log(format!("load on {core}"));
    // SAFETY: the caller passes a place for the handle.
    unsafe { *model = handle };
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn load_collectives<const N: usize>(
    neff: *const c_void,
    size: usize,
    core: i32,
    count: i32,
    _rank: u32,
    ranks: u32,
    model: *mut *mut nrt_model_t,
) -> NRT_STATUS {
    let (arrived, changed) = &RANKS[N];
    let mut arrived = arrived.lock().unwrap();
    *arrived += 1;
    changed.notify_all();
    drop(changed.wait_while(arrived, |arrived| *arrived < ranks).unwrap());
    // SAFETY: the arguments are those of this call.
    unsafe { load_now::<N>(neff, size, core, count, model) }
}

unsafe extern "C" fn unload<const N: usize>(model: *mut nrt_model_t) -> NRT_STATUS {
    alone::<N>();
    let mut world = world::<N>();
    let known = world.models.remove(&model.addr()).is_some();
    or_fail!(world, "nrt_unload");
    world.log(if known { "unload" } else { "BAD unload" });
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn tensor_info<const N: usize>(
    model: *mut nrt_model_t,
    info: *mut *mut nrt_tensor_info_array_t,
) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_get_model_tensor_info");
    let neff = world.models[&model.addr()].clone();
    let lie = world.lie;
    let lines: Vec<&str> = neff.lines().collect();
    let words = size_of::<u64>() + lines.len() * size_of::<nrt_tensor_info_t>();
    let memory = Box::leak(vec![0_u64; words.div_ceil(8) + 1].into_boxed_slice()).as_mut_ptr();
    // SAFETY: the memory is large enough and aligned for the array and its entries; it begins with the count.
    unsafe {
        *memory = lie.map_or(lines.len() as u64, |(count, _)| count);
        let entries = memory.add(1).cast::<nrt_tensor_info_t>();
        for (i, line) in lines.iter().enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            let entry = entries.add(i);
            for (to, from) in (*entry).name.iter_mut().zip(words[1].bytes()) {
                *to = from.cast_signed();
            }
            (*entry).usage = nrt_tensor_usage_t(lie.map_or(u32::from(words[0] == "out"), |(_, usage)| usage));
            (*entry).size = words[2].parse().unwrap();
        }
        *info = memory.cast();
    }
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn free_tensor_info<const N: usize>(_: *mut nrt_tensor_info_array_t) -> NRT_STATUS {
    // The memory itself is left: it is a few hundred bytes, and its length is not known here.
    world::<N>().log("free info");
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn execute<const N: usize>(
    model: *mut nrt_model_t,
    inputs: *const nrt_tensor_set_t,
    outputs: *mut nrt_tensor_set_t,
) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_execute");
    let neff = world.models[&model.addr()].clone();
    for line in neff.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let set = if words[0] == "in" { inputs.addr() } else { outputs.addr() };
        let Some(&tensor) = world.sets[&set].get(words[1]) else { return NRT_STATUS::NRT_INVALID };
        if words[0] == "out" {
            world.bytes(without_provenance_mut(tensor))[0] += 1;
        }
    }
    world.log("execute");
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn allocate<const N: usize>(
    placement: nrt_tensor_placement_t,
    core: c_int,
    bytes: usize,
    name: *const c_char,
    tensor: *mut *mut nrt_tensor_t,
) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_tensor_allocate");
    assert_eq!(placement, nrt_tensor_placement_t::NRT_TENSOR_PLACEMENT_DEVICE);
    // SAFETY: the caller passes a string that ends with a NUL, and a place for the handle.
    let (name, place) = unsafe { (CStr::from_ptr(name).to_str().unwrap(), &mut *tensor) };
    *place = world.handle();
    let root = place.addr();
    world.log(format!("allocate {name} on {core}"));
    world.memory.insert(root, vec![0xaa; bytes]);
    world.tensors.insert(root, (name.to_owned(), Memory { core, root, at: 0, bytes }));
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn slice<const N: usize>(
    source: *const nrt_tensor_t,
    at: usize,
    bytes: usize,
    name: *const c_char,
    tensor: *mut *mut nrt_tensor_t,
) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_tensor_allocate_slice");
    // SAFETY: the caller passes a string that ends with a NUL, and a place for the handle.
    let (name, place) = unsafe { (CStr::from_ptr(name).to_str().unwrap(), &mut *tensor) };
    *place = world.handle();
    let source = world.tensors[&source.addr()].1.clone();
    assert!(at + bytes <= source.bytes);
    let part = Memory { core: source.core, root: source.root, at: source.at + at, bytes };
    world.tensors.insert(place.addr(), (name.to_owned(), part));
    world.log(format!("slice {name}"));
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn free<const N: usize>(tensor: *mut *mut nrt_tensor_t) {
    let mut world = world::<N>();
    // SAFETY: the caller passes the handle's place.
    let handle = unsafe { std::mem::replace(&mut *tensor, null_mut()) }.addr();
    let in_use = world.sets.values().any(|set| set.values().any(|tensor| *tensor == handle));
    match world.tensors.remove(&handle) {
        Some((name, _)) if !in_use => world.log(format!("free {name}")),
        Some((name, _)) => world.log(format!("BAD free {name}, which is in a set")),
        None => world.log("BAD free"),
    }
}

unsafe extern "C" fn read<const N: usize>(
    tensor: *const nrt_tensor_t,
    to: *mut c_void,
    at: usize,
    bytes: usize,
) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_tensor_read");
    let from = &world.bytes(tensor)[at..at + bytes];
    // SAFETY: the caller passes room for that many bytes.
    unsafe { to.cast::<u8>().copy_from_nonoverlapping(from.as_ptr(), bytes) };
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn write<const N: usize>(
    tensor: *mut nrt_tensor_t,
    from: *const c_void,
    at: usize,
    bytes: usize,
) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_tensor_write");
    // SAFETY: the caller passes that many bytes.
    let from = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
    world.bytes(tensor)[at..at + bytes].copy_from_slice(from);
    world.log(format!("write {bytes} at {at}"));
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn memset<const N: usize>(
    tensor: *mut nrt_tensor_t,
    at: u64,
    value: c_int,
    bytes: usize,
) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_tensor_memset");
    world.bytes(tensor)[at as usize..at as usize + bytes].fill(value as u8);
    world.log(format!("memset {bytes} at {at}"));
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn allocate_set<const N: usize>(set: *mut *mut nrt_tensor_set_t) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_allocate_tensor_set");
    let handle: *mut nrt_tensor_set_t = world.handle();
    world.sets.insert(handle.addr(), HashMap::new());
    // SAFETY: the caller passes a place for the handle.
    unsafe { *set = handle };
    NRT_STATUS::NRT_SUCCESS
}

unsafe extern "C" fn destroy_set<const N: usize>(set: *mut *mut nrt_tensor_set_t) {
    let mut world = world::<N>();
    // SAFETY: the caller passes the handle's place.
    let handle = unsafe { std::mem::replace(&mut *set, null_mut()) };
    let known = world.sets.remove(&handle.addr()).is_some();
    world.log(if known { "destroy set" } else { "BAD destroy set" });
}

unsafe extern "C" fn add_to_set<const N: usize>(
    set: *mut nrt_tensor_set_t,
    name: *const c_char,
    tensor: *mut nrt_tensor_t,
) -> NRT_STATUS {
    let mut world = world::<N>();
    or_fail!(world, "nrt_add_tensor_to_tensor_set");
    // SAFETY: the caller passes a string that ends with a NUL.
    let name = unsafe { CStr::from_ptr(name) }.to_str().unwrap().to_owned();
    world.sets.get_mut(&set.addr()).unwrap().insert(name, tensor.addr());
    NRT_STATUS::NRT_SUCCESS
}

/// Only what every library has.
pub(crate) fn bare_table<const N: usize>() -> Nrt {
    let mut nrt = Nrt::unresolved();
    nrt.nrt_init = Ok(init::<N>);
    nrt.nrt_close = Ok(close::<N>);
    nrt.nrt_load = Ok(load::<N>);
    nrt.nrt_unload = Ok(unload::<N>);
    nrt.nrt_execute = Ok(execute::<N>);
    nrt.nrt_tensor_allocate = Ok(allocate::<N>);
    nrt.nrt_tensor_free = Ok(free::<N>);
    nrt.nrt_tensor_read = Ok(read::<N>);
    nrt.nrt_tensor_write = Ok(write::<N>);
    nrt.nrt_allocate_tensor_set = Ok(allocate_set::<N>);
    nrt.nrt_destroy_tensor_set = Ok(destroy_set::<N>);
    nrt.nrt_add_tensor_to_tensor_set = Ok(add_to_set::<N>);
    nrt
}

/// With the later functions that the safe floor uses.
pub(crate) fn table<const N: usize>() -> Nrt {
    let mut nrt = bare_table::<N>();
    nrt.nrt_get_visible_nc_count = Ok(visible::<N>);
    nrt.nrt_load_collectives = Ok(load_collectives::<N>);
    nrt.nrt_get_model_tensor_info = Ok(tensor_info::<N>);
    nrt.nrt_free_model_tensor_info = Ok(free_tensor_info::<N>);
    nrt.nrt_tensor_allocate_slice = Ok(slice::<N>);
    nrt.nrt_tensor_memset = Ok(memset::<N>);
    nrt
}
