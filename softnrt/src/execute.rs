//! One execution: the checks of what is bound, then the evaluation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use millrace_kernels::eval::{EvalError, Fault, Ranks, Together, Value};
use neuron_sys::sys::NRT_STATUS;

use crate::memory::Tensor;
use crate::neff;
use crate::options::Settings;
use crate::world::{Model, Refusal, some, unknown, world};

type Set = BTreeMap<String, (usize, Arc<Tensor>)>;

/// What an execution works on, checked: the tensors of each parameter and each output.
pub(crate) struct Bound {
    inputs: Vec<Arc<Tensor>>,
    outputs: Vec<Arc<Tensor>>,
}

/// Executions that did not fail, and the nanoseconds that they took, those of all cores together.
static EXECUTIONS: AtomicU64 = AtomicU64::new(0);
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// For benches, which tell a caller's own time from the double's: executions so far that did not fail, of all cores, and
/// how long they took together.
///
/// # Safety
/// - `nanoseconds` is the place of a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn softnrt_executions(nanoseconds: *mut u64) -> u64 {
    // SAFETY: as the contract says.
    unsafe { nanoseconds.write(NANOSECONDS.load(Ordering::Relaxed)) };
    EXECUTIONS.load(Ordering::Relaxed)
}

pub(crate) fn execute(model: usize, inputs: usize, outputs: usize) -> Result<(), Refusal> {
    let started = Instant::now();
    let done = executed(model, inputs, outputs);
    if done.is_ok() {
        NANOSECONDS.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        EXECUTIONS.fetch_add(1, Ordering::Relaxed);
    }
    done
}

fn executed(model: usize, inputs: usize, outputs: usize) -> Result<(), Refusal> {
    let (model, bound, settings) = {
        let mut world = world();
        let settings = world.open()?.clone();
        let model = Arc::clone(world.model(model)?);
        let set = |handle| world.sets.get(&handle).ok_or_else(|| unknown("tensor set"));
        let (input_set, output_set) = (set(inputs)?, set(outputs)?);
        let bound = match model.bound(inputs, outputs) {
            Some(bound) => bound,
            None => model.set_bound(inputs, outputs, bind(&model, input_set, output_set)?),
        };
        let core = &mut world.cores[model.core as usize];
        if core.busy {
            let why = format!("core {} is executing already", model.core);
            return Err(Refusal::new(NRT_STATUS::NRT_EXEC_NC_BUSY, why));
        }
        core.busy = true;
        bound.set_in_use(true);
        (model, bound, settings)
    };
    let run = model.runs.fetch_add(1, Ordering::Relaxed);
    let together = model.ranks.as_ref().map(|(meeting, rank)| meeting.together(*rank, run));
    let done = bound.run(&model, &settings, together.as_ref());
    if let (Err(refusal), Some(together)) = (&done, &together) {
        together.fail(&refusal.why);
    }
    bound.set_in_use(false);
    if let Some(core) = world().cores.get_mut(model.core as usize) {
        core.busy = false;
    }
    done
}

/// A rank that was told to fail before it could begin: the others are not to wait for it.
pub(crate) fn stay_away(model: usize, why: &str) {
    let model = world().model(model).ok().cloned();
    if let Some(model) = model
        && let Some((meeting, rank)) = &model.ranks
    {
        meeting.together(*rank, model.runs.fetch_add(1, Ordering::Relaxed)).fail(why);
    }
}

/// The tensors for each of the model's, from the sets, if nothing is missing, unknown, or of another size or core.
fn bind(model: &Model, inputs: &Set, outputs: &Set) -> Result<Bound, Refusal> {
    let find = |set: &Set, wanted: &[neff::Tensor], side: &str| {
        if set.len() > wanted.len() || wanted.iter().any(|tensor| !set.contains_key(&tensor.name)) {
            let missing: Vec<String> = wanted
                .iter()
                .filter(|tensor| !set.contains_key(&tensor.name))
                .map(|tensor| tensor.name.clone())
                .collect();
            let unknown: Vec<String> = set
                .keys()
                .filter(|name| !wanted.iter().any(|tensor| tensor.name == **name))
                .cloned()
                .collect();
            return Err(Refusal::invalid(format!(
                "the {side} set lacks [{}], and the model does not know [{}]",
                some(&missing),
                some(&unknown)
            )));
        }
        let check = |wanted: &neff::Tensor| {
            let (_, tensor) = &set[&wanted.name];
            let name = &wanted.name;
            if tensor.bytes != wanted.bytes {
                let why = format!("{side} {name:?} has {} bytes and needs {}", tensor.bytes, wanted.bytes);
                return Err(Refusal::invalid(why));
            }
            if tensor.storage.core != model.core {
                let why = format!(
                    "{side} {name:?} is on core {}, and the model on core {}",
                    tensor.storage.core, model.core
                );
                return Err(Refusal::invalid(why));
            }
            Ok(Arc::clone(tensor))
        };
        wanted.iter().map(check).collect::<Result<Vec<_>, _>>()
    };
    let bound = Bound {
        inputs: find(inputs, &model.neff.inputs, "input")?,
        outputs: find(outputs, &model.neff.outputs, "output")?,
    };
    bound.check_memory(model)?;
    Ok(bound)
}

impl Bound {
    /// Whether each aliased input is its output's memory, and no other memory is written that is also something else.
    fn check_memory(&self, model: &Model) -> Result<(), Refusal> {
        let mut states = vec![None; self.outputs.len()];
        for (at, wanted) in model.neff.inputs.iter().enumerate() {
            let Some(output) = wanted.alias else { continue };
            states[output] = Some(at);
            if !self.inputs[at].same_memory(&self.outputs[output]) {
                let (input, output) = (&wanted.name, &model.neff.outputs[output].name);
                let why = format!("input {input:?} is not the tensor of output {output:?}, which it must be");
                return Err(Refusal::invalid(why));
            }
        }
        // By address, so that only neighbours can overlap.
        let outputs = self.outputs.iter().enumerate().map(|(at, tensor)| (tensor, true, states[at], at));
        let inputs = self.inputs.iter().enumerate().map(|(at, tensor)| (tensor, false, Some(at), at));
        let mut all: Vec<_> = outputs.chain(inputs).collect();
        all.sort_by_key(|(tensor, ..)| (Arc::as_ptr(&tensor.storage) as usize, tensor.at));
        for (index, (tensor, output, state, at)) in all.iter().enumerate() {
            for (other, other_output, other_state, other_at) in &all[index + 1..] {
                if !tensor.overlaps(other) {
                    break;
                }
                let pair = output != other_output && state.is_some() && state == other_state;
                if (*output || *other_output) && !pair {
                    let name = |output: bool, at: usize| match output {
                        true => format!("output {:?}", model.neff.outputs[at].name),
                        false => format!("input {:?}", model.neff.inputs[at].name),
                    };
                    let why = format!(
                        "{} shares memory with {}",
                        name(*output, *at),
                        name(*other_output, *other_at)
                    );
                    return Err(Refusal::invalid(why));
                }
            }
        }
        Ok(())
    }

    fn set_in_use(&self, in_use: bool) {
        self.inputs.iter().chain(&self.outputs).for_each(|tensor| tensor.storage.set_in_use(in_use));
    }

    fn run(&self, model: &Model, settings: &Settings, ranks: Option<&Together>) -> Result<(), Refusal> {
        if !settings.slow.is_zero() {
            std::thread::sleep(settings.slow);
        }
        if settings.noop {
            return Ok(());
        }
        let bad_input = |why| Refusal::new(NRT_STATUS::NRT_EXEC_BAD_INPUT, why);
        let wanted = &model.neff.inputs;
        if let Some(at) = self.inputs.iter().position(|tensor| !tensor.defined()) {
            return Err(bad_input(format!("nothing has been written to input {:?}", wanted[at].name)));
        }
        let graph = model.neff.program.graph();
        let mut values: Vec<Option<Value>> = Vec::with_capacity(self.inputs.len());
        for ((tensor, param), wanted) in self.inputs.iter().zip(&graph.params).zip(wanted) {
            let value = tensor.value(graph.ty(param.node), wanted.alias.is_some());
            values.push(Some(value.map_err(|why| bad_input(format!("input {:?}: {why}", wanted.name)))?));
        }
        match model.neff.program.run(&mut values, ranks.map(|ranks| ranks as &dyn Ranks)) {
            Ok(results) => {
                let nan = |value: &Value| value.floats().is_some_and(|x| x.iter().any(|x| x.is_nan()));
                let wrong = results.iter().position(|value| settings.refuse_nan && nan(value));
                for (tensor, value) in self.outputs.iter().zip(results) {
                    tensor.set(value);
                }
                match wrong {
                    None => Ok(()),
                    Some(at) => {
                        let why = format!("output {:?} has a NaN", model.neff.outputs[at].name);
                        Err(Refusal::new(NRT_STATUS::NRT_EXEC_COMPLETED_WITH_NUM_ERR, why))
                    }
                }
            }
            Err(error) => {
                for ((tensor, wanted), value) in self.inputs.iter().zip(wanted).zip(values) {
                    match value {
                        Some(value) if wanted.alias.is_some() => tensor.set(value),
                        None if wanted.alias.is_some() => tensor.lose(),
                        _ => {}
                    }
                }
                Err(Refusal::new(status(&error), error.to_string()))
            }
        }
    }
}

/// The status that a device would give.
fn status(error: &EvalError) -> NRT_STATUS {
    match error {
        EvalError::Node { fault, .. } => match fault {
            Fault::OutOfBounds { .. } => NRT_STATUS::NRT_EXEC_OOB,
            Fault::Duplicate { .. } => NRT_STATUS::NRT_EXEC_BAD_INPUT,
            Fault::Division | Fault::Conversion { .. } => NRT_STATUS::NRT_EXEC_COMPLETED_WITH_NUM_ERR,
            Fault::Ranks(_) => NRT_STATUS::NRT_EXEC_HW_ERR_COLLECTIVES,
            Fault::Fused | Fault::NeedsRanks => NRT_STATUS::NRT_INVALID,
        },
        _ => NRT_STATUS::NRT_FAILURE,
    }
}
