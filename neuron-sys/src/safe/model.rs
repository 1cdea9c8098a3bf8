//! Compiled programs on a core.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{error::Error, library::text, runtime::Core, tensor::TensorSet};
use crate::{
    result::{self, NrtError, Phase, Reaction},
    sys::{nrt_model_t, nrt_tensor_info_array_t, nrt_tensor_usage_t},
};

/// What the compiler adds to the name of an input that shares its memory with the output of the plain name.
const ALIAS_SUFFIX: &str = ".must_alias_input";

/// More inputs and outputs than any model has; a larger count means that the structure was misread.
const MAX_TENSORS: u64 = 1 << 20;

/// Whether the model reads or writes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Usage {
    /// It is in the input set.
    Input,
    /// It is in the output set.
    Output,
}

/// An input or output of a loaded model, as the library describes it. Its element type is left out on purpose: the
/// library's codes for it changed between releases and do not cover all types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the NEFF, which a tensor set must use.
    pub name: String,
    /// Which side it is on.
    pub usage: Usage,
    /// Its size in bytes.
    pub bytes: usize,
}

impl TensorInfo {
    /// The name that the program's source gave it: without the ending that marks an aliased input.
    pub fn base_name(&self) -> &str {
        self.name.strip_suffix(ALIAS_SUFFIX).unwrap_or(&self.name)
    }

    /// Whether the compiler marked it as an input that shares its memory with the output of its base name.
    pub fn must_alias(&self) -> bool {
        self.usage == Usage::Input && self.name.ends_with(ALIAS_SUFFIX)
    }
}

/// A NEFF loaded on a core. Unloaded when dropped.
#[derive(Debug)]
pub struct Model {
    raw: NonNull<nrt_model_t>,
    core: Core,
    tensors: Option<Vec<TensorInfo>>,
    /// Whether it has run.
    has_run: AtomicBool,
}

// SAFETY: a model is a handle without affinity to a thread; every call on it takes its core's lock.
unsafe impl Send for Model {}
// SAFETY: as above: calls from several threads exclude each other by the core's lock, and `tensors` is never changed.
unsafe impl Sync for Model {}

impl Core {
    /// Loads a program without collectives. The bytes are not used after the call.
    ///
    /// # Errors
    /// If the library refuses or fails; see [`Error::reaction`].
    pub fn load(&self, neff: &[u8]) -> Result<Model, Error> {
        let lock = self.enter()?;
        let pass = self.pass();
        // SAFETY: the runtime is initialised as long as it is alive; the pass keeps other loads out.
        let raw = unsafe { result::load(self.nrt(), neff, self.number()) };
        drop((pass, lock));
        Model::new(self, self.runtime.done(raw)?)
    }

    /// Loads one rank of a program with collectives. Returns when all `ranks` of them have been loaded, so each needs
    /// a thread of its own.
    ///
    /// # Errors
    /// If the library cannot, refuses or fails; see [`Error::reaction`].
    pub fn load_collectives(&self, neff: &[u8], rank: u32, ranks: u32) -> Result<Model, Error> {
        let lock = self.enter()?;
        // SAFETY: the runtime is initialised as long as it is alive. Other loads are not kept out; see `gate`.
        let raw = unsafe { result::load_collectives(self.nrt(), neff, self.number(), rank, ranks) };
        drop(lock);
        Model::new(self, self.optional("nrt_load_collectives", raw)?)
    }
}

impl Model {
    fn new(core: &Core, raw: NonNull<nrt_model_t>) -> Result<Self, Error> {
        // Owned from here on, so that an error below unloads it.
        let mut model = Self { raw, core: core.clone(), tensors: None, has_run: AtomicBool::new(false) };
        let lock = core.enter()?;
        // SAFETY: the model is loaded, and the lock keeps its other users out.
        if let Some(info) = unsafe { result::model_tensor_info(core.nrt(), raw) } {
            let info = core.runtime.done(info)?;
            // SAFETY: the library has just filled it in, and it is freed below.
            let copied = unsafe { copy(info) };
            // SAFETY: it came from the library and is not used again.
            if let Some(freed) = unsafe { result::free_model_tensor_info(core.nrt(), info) } {
                core.runtime.done(freed)?;
            }
            model.tensors = Some(copied?);
        }
        drop(lock);
        Ok(model)
    }

    /// The core it is loaded on.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Its inputs and outputs; `None` if the library cannot tell.
    pub fn tensors(&self) -> Option<&[TensorInfo]> {
        self.tensors.as_deref()
    }

    /// The input or output of that name, given as in the NEFF or without the ending of an aliased input.
    pub fn tensor(&self, usage: Usage, name: &str) -> Option<&TensorInfo> {
        let of_usage = || self.tensors.iter().flatten().filter(move |info| info.usage == usage);
        of_usage().find(|info| info.name == name).or_else(|| of_usage().find(|info| info.base_name() == name))
    }

    /// Whether the sets have every tensor of the model under its NEFF name, in its size, and aliased inputs are the
    /// same tensors as their outputs. The library checks names and sizes when it executes, without saying which is
    /// wrong, and aliases not at all. Nothing is checked where it cannot describe the model.
    ///
    /// # Errors
    /// [`Error::Unbound`] with all problems.
    pub fn check(&self, inputs: &TensorSet, outputs: &TensorSet) -> Result<(), Error> {
        let mut problems = Vec::new();
        for info in self.tensors.iter().flatten() {
            let (set, side) = match info.usage {
                Usage::Input => (inputs, "input"),
                Usage::Output => (outputs, "output"),
            };
            let Some(tensor) = set.get(&info.name) else {
                problems.push(format!("{side} {:?} is missing", info.name));
                continue;
            };
            if tensor.bytes() != info.bytes {
                let (found, expected) = (tensor.bytes(), info.bytes);
                problems.push(format!("{side} {:?} has {found} bytes and needs {expected}", info.name));
            }
            if info.must_alias() && outputs.get(info.base_name()).is_none_or(|output| !output.same_as(tensor))
            {
                problems.push(format!(
                    "input {:?} is not the tensor of output {:?}",
                    info.name,
                    info.base_name()
                ));
            }
        }
        let known =
            |usage, name: &str| self.tensors.iter().flatten().any(|i| i.usage == usage && i.name == name);
        for (set, usage, side) in [(inputs, Usage::Input, "input"), (outputs, Usage::Output, "output")] {
            let unknown = set.names().filter(|name| self.tensors.is_some() && !known(usage, name));
            problems.extend(unknown.map(|name| format!("the model has no {side} {name:?}")));
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Unbound(problems)),
        }
    }

    /// Runs it and waits for the end. A tensor that is in both sets is updated in place.
    ///
    /// Until it has run once memory that is short is as at load, where less may be asked for: the runtime stays usable.
    ///
    /// # Errors
    /// If a set is of another core, or the library refuses or fails; see [`Error::reaction`].
    pub fn execute(&self, inputs: &TensorSet, outputs: &TensorSet) -> Result<(), Error> {
        self.core.same(inputs.core(), || "the input set".into())?;
        self.core.same(outputs.core(), || "the output set".into())?;
        let _lock = self.core.enter()?;
        // SAFETY: model and sets are alive, the sets keep their tensors alive, and the core's lock keeps every other
        // user of any of them out, since all are of this core.
        let executed = unsafe { result::execute(self.core.nrt(), self.raw, inputs.raw(), outputs.raw()) };
        match executed {
            Err(error)
                if !self.has_run.load(Ordering::Relaxed)
                    && error.status.reaction(Phase::Load) == Reaction::Shrink =>
            {
                Err(error.into())
            }
            executed => {
                self.has_run.fetch_or(executed.is_ok(), Ordering::Relaxed);
                self.core.runtime.done(executed)
            }
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let Some(_lock) = self.core.enter_drop() else { return };
        let _pass = self.core.pass();
        // SAFETY: the model is loaded and this is its last use; lock and pass keep other calls out.
        let unloaded: Result<(), NrtError> = unsafe { result::unload(self.core.nrt(), self.raw) };
        self.core.runtime.done_in_drop(unloaded);
    }
}

/// Copies the library's description.
///
/// # Safety
/// - `info` is as `nrt_get_model_tensor_info` filled it in: `tensor_count` entries follow it.
unsafe fn copy(info: NonNull<nrt_tensor_info_array_t>) -> Result<Vec<TensorInfo>, Error> {
    // SAFETY: as the contract says.
    let count = unsafe { (*info.as_ptr()).tensor_count };
    if count > MAX_TENSORS {
        return Err(Error::BadTensorInfo(format!("{count} tensors")));
    }
    // SAFETY: as above; the place of the entries is derived from the whole structure's pointer, not from a reference to
    // the flexible array, which has no length.
    let first = unsafe { (&raw const (*info.as_ptr()).tensor_array).cast::<crate::sys::nrt_tensor_info_t>() };
    let entries = (0..count as usize).map(|index| {
        // SAFETY: `index` is below the count; every field that is read is a number or characters.
        let (name, usage, bytes) = unsafe {
            let entry = first.add(index);
            ((*entry).name, (*entry).usage, (*entry).size)
        };
        let name = text(&name);
        let usage = match usage {
            nrt_tensor_usage_t::NRT_TENSOR_USAGE_INPUT => Usage::Input,
            nrt_tensor_usage_t::NRT_TENSOR_USAGE_OUTPUT => Usage::Output,
            other => return Err(Error::BadTensorInfo(format!("tensor {name:?} has usage {}", other.0))),
        };
        Ok(TensorInfo { name, usage, bytes })
    });
    entries.collect()
}
