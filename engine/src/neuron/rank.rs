//! What is on one core, driven by its thread: weights and caches, shared by all programs, and the programs.

use std::collections::BTreeMap;
use std::sync::Arc;

use neuron_sys::{Core, Error, Model, Tensor, TensorSet, Usage};

use super::failure::patiently;
use super::inputs::Inputs;
use super::label;
use super::manifest::{self, Manifest, TensorEntry};

/// Why a program cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The runtime refused or failed.
    #[error(transparent)]
    Runtime(#[from] Error),
    /// The program is not what its manifest says.
    #[error("program {bucket} is not what its manifest says: {}; compile it anew", .problems.join("; "))]
    Manifest {
        /// The program.
        bucket: String,
        /// Each names its tensor.
        problems: Vec<String>,
    },
}

/// What one execution yields on one rank.
#[derive(Clone, Debug, Default)]
pub(super) struct Outputs {
    /// `[rows, K]`: the largest logits of the rank's share of the vocabulary.
    pub(super) values: Vec<f32>,
    /// `[rows, K]`: where in the share.
    pub(super) indices: Vec<i32>,
    /// `[rows]`.
    pub(super) log_sum_exp: Vec<f32>,
}

/// One core. Fields are dropped in their order: programs let go of the tensors before those are freed.
pub(super) struct Rank {
    programs: BTreeMap<usize, Program>,
    states: BTreeMap<String, Arc<Tensor>>,
    weights: BTreeMap<String, Arc<Tensor>>,
    core: Core,
    rank: u32,
    ranks: u32,
}

struct Program {
    inputs: TensorSet,
    outputs: TensorSet,
    model: Model,
    step: StepTensors,
    rows: usize,
    candidates: usize,
    /// Rows whose bias on the device is not zero.
    biased: Vec<bool>,
}

/// The tensors that change with each execution.
struct StepTensors {
    tokens: Arc<Tensor>,
    positions: Arc<Tensor>,
    slots: Arc<Tensor>,
    block_tables: Arc<Tensor>,
    logit_rows: Arc<Tensor>,
    bias: Option<Arc<Tensor>>,
    values: Arc<Tensor>,
    indices: Arc<Tensor>,
    log_sum_exp: Arc<Tensor>,
}

impl Rank {
    pub(super) fn new(core: Core, ranks: usize) -> Self {
        let rank = core.index();
        Rank {
            programs: BTreeMap::new(),
            states: BTreeMap::new(),
            weights: BTreeMap::new(),
            core,
            rank,
            ranks: ranks as u32,
        }
    }

    /// Puts a weight on the device, for all programs.
    pub(super) fn upload(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let tensor = Arc::new(self.core.allocate(name, bytes.len())?);
        patiently(|| tensor.write(0, bytes))?;
        self.weights.insert(name.to_owned(), tensor);
        Ok(())
    }

    /// Bytes that can still be allocated; `None` where the library cannot tell.
    pub(super) fn free_memory(&self) -> Result<Option<u64>, Error> {
        match self.core.memory() {
            Ok(stats) => Ok(Some(stats.limit.saturating_sub(stats.used) as u64)),
            Err(Error::Unsupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets programs and caches, and keeps the weights.
    pub(super) fn unload(&mut self) {
        self.programs.clear();
        self.states.clear();
    }

    /// Forgets one program, if it is there.
    pub(super) fn forget(&mut self, program: usize) {
        self.programs.remove(&program);
    }

    /// Sets what was written to these slots of all caches, of `of` slots each, to zero. A key that is masked has no
    /// weight, but a value that is no number stays none when it is multiplied by that.
    pub(super) fn scrub(&self, slots: &[i32], of: usize) -> Result<(), Error> {
        let mut slots: Vec<usize> = slots.iter().filter_map(|slot| usize::try_from(*slot).ok()).collect();
        slots.sort_unstable();
        for state in self.states.values() {
            let bytes = state.bytes() / of.max(1);
            for run in slots.chunk_by(|a, b| a + 1 == *b) {
                patiently(|| state.zero(run[0] * bytes, run.len() * bytes))?;
            }
        }
        Ok(())
    }

    /// Loads a program and binds its tensors; caches are made, as zeros, by the first one.
    pub(super) fn load(&mut self, program: usize, neff: &[u8], manifest: &Manifest) -> Result<(), BindError> {
        let model = match self.ranks {
            1 => patiently(|| self.core.load(neff))?,
            ranks => patiently(|| self.core.load_collectives(neff, self.rank, ranks))?,
        };
        let mut binding = Binding {
            problems: described(&model, manifest),
            inputs: TensorSet::new(&self.core)?,
            outputs: TensorSet::new(&self.core)?,
            model: &model,
            rank: self,
        };
        if !binding.problems.is_empty() {
            return Err(refused(manifest, binding.problems));
        }
        for entry in &manifest.tensors {
            binding.bind(entry)?;
        }
        let step = binding.step();
        let Binding { inputs, outputs, problems, .. } = binding;
        let Some(step) = step.filter(|_| problems.is_empty()) else {
            let problems =
                if problems.is_empty() { vec!["an input or output is missing".into()] } else { problems };
            return Err(refused(manifest, problems));
        };
        model.check(&inputs, &outputs)?;
        let (rows, candidates) =
            (manifest.bucket.rows, step.values.bytes() / 4 / manifest.bucket.rows.max(1));
        let biased = vec![false; rows];
        let loaded = Program { inputs, outputs, model, step, rows, candidates, biased };
        self.programs.insert(program, loaded);
        Ok(())
    }

    /// Runs a program that was loaded.
    pub(super) fn execute(&mut self, program: usize, inputs: &Inputs) -> Result<Outputs, Error> {
        let rank = self.rank as usize;
        let Some(program) = self.programs.get_mut(&program) else {
            return Err(Error::Unbound(vec![format!("program {program} is not loaded")]));
        };
        let step = &program.step;
        let numbers = [
            (&step.tokens, &inputs.tokens),
            (&step.positions, &inputs.positions),
            (&step.slots, &inputs.slots),
            (&step.block_tables, &inputs.block_tables),
            (&step.logit_rows, &inputs.logit_rows),
        ];
        for (tensor, numbers) in numbers {
            patiently(|| tensor.write(0, bytemuck::cast_slice(numbers)))?;
        }
        if let Some(tensor) = &step.bias {
            let bytes = tensor.bytes() / program.rows;
            let share = bytes / size_of::<f32>();
            for (row, bias) in inputs.bias.iter().enumerate() {
                if let Some(bias) = bias {
                    let end = bias.len().min((rank + 1) * share);
                    let part = &bias[(rank * share).min(end)..end];
                    program.biased[row] = true;
                    patiently(|| tensor.write(row * bytes, bytemuck::cast_slice(part)))?;
                } else if program.biased[row] {
                    patiently(|| tensor.zero(row * bytes, bytes))?;
                    program.biased[row] = false;
                }
            }
        }
        patiently(|| program.model.execute(&program.inputs, &program.outputs))?;
        let mut outputs = Outputs {
            values: vec![0.0; program.rows * program.candidates],
            indices: vec![0; program.rows * program.candidates],
            log_sum_exp: vec![0.0; program.rows],
        };
        patiently(|| step.values.read(0, bytemuck::cast_slice_mut(&mut outputs.values)))?;
        patiently(|| step.indices.read(0, bytemuck::cast_slice_mut(&mut outputs.indices)))?;
        patiently(|| step.log_sum_exp.read(0, bytemuck::cast_slice_mut(&mut outputs.log_sum_exp)))?;
        Ok(outputs)
    }
}

pub(super) fn refused(manifest: &Manifest, problems: Vec<String>) -> BindError {
    BindError::Manifest { bucket: label(&manifest.bucket), problems }
}

pub(super) fn side(usage: manifest::Usage) -> Usage {
    match usage {
        manifest::Usage::Output => Usage::Output,
        manifest::Usage::Input | manifest::Usage::Weight | manifest::Usage::State => Usage::Input,
    }
}

/// Where the program that was loaded differs from its manifest, by names and sizes.
pub(super) fn described(model: &Model, manifest: &Manifest) -> Vec<String> {
    let Some(tensors) = model.tensors() else { return Vec::new() };
    let mut problems = Vec::new();
    for entry in &manifest.tensors {
        match model.tensor(side(entry.usage), &entry.name) {
            None => problems.push(format!("it has no {:?} {:?}", side(entry.usage), entry.name)),
            Some(info) if info.bytes as u64 != entry.bytes => {
                problems.push(format!("{:?} has {} bytes, not {}", entry.name, info.bytes, entry.bytes));
            }
            Some(_) => {}
        }
    }
    for info in tensors {
        let named = |entry: &TensorEntry| {
            side(entry.usage) == info.usage && (entry.name == info.name || entry.name == info.base_name())
        };
        if !manifest.tensors.iter().any(named) {
            problems.push(format!("the manifest has no {:?} {:?}", info.usage, info.name));
        }
    }
    problems
}

struct Binding<'a> {
    rank: &'a mut Rank,
    model: &'a Model,
    inputs: TensorSet,
    outputs: TensorSet,
    problems: Vec<String>,
}

impl Binding<'_> {
    fn bind(&mut self, entry: &TensorEntry) -> Result<(), BindError> {
        let side = side(entry.usage);
        // Aliased inputs have an ending in some releases of the compiler, and none in others.
        let name =
            self.model.tensor(side, &entry.name).map_or_else(|| entry.name.clone(), |info| info.name.clone());
        let bytes = usize::try_from(entry.bytes).unwrap_or(usize::MAX);
        let tensor = match (entry.usage, &entry.alias) {
            (manifest::Usage::Weight, _) => match self.rank.weights.get(&entry.name) {
                Some(weight) if weight.bytes() == bytes => weight.clone(),
                Some(weight) => {
                    let found = weight.bytes();
                    self.problems.push(format!("weight {:?} has {found} bytes, not {bytes}", entry.name));
                    return Ok(());
                }
                None => {
                    self.problems.push(format!("the model has no weight {:?}", entry.name));
                    return Ok(());
                }
            },
            (manifest::Usage::State, _) => self.state(&entry.name, bytes)?,
            (manifest::Usage::Output, Some(state)) => self.state(state, bytes)?,
            (manifest::Usage::Input, _) | (manifest::Usage::Output, None) => {
                self.fresh(&entry.name, bytes)?
            }
        };
        let set = if side == Usage::Input { &mut self.inputs } else { &mut self.outputs };
        Ok(set.insert(&name, tensor)?)
    }

    fn fresh(&self, name: &str, bytes: usize) -> Result<Arc<Tensor>, Error> {
        let tensor = Arc::new(self.rank.core.allocate(name, bytes)?);
        patiently(|| tensor.zero(0, bytes))?;
        Ok(tensor)
    }

    fn state(&mut self, name: &str, bytes: usize) -> Result<Arc<Tensor>, Error> {
        if let Some(state) = self.rank.states.get(name) {
            if state.bytes() != bytes {
                self.problems.push(format!("cache {name:?} has {} bytes, not {bytes}", state.bytes()));
            }
            return Ok(state.clone());
        }
        let state = self.fresh(name, bytes)?;
        self.rank.states.insert(name.to_owned(), state.clone());
        Ok(state)
    }

    /// The tensors of a step by their names; `None` where one is missing.
    fn step(&self) -> Option<StepTensors> {
        let input = |name: &str| self.inputs.get(name).cloned();
        let output = |name: &str| self.outputs.get(name).cloned();
        Some(StepTensors {
            tokens: input("tokens")?,
            positions: input("positions")?,
            slots: input("slots")?,
            block_tables: input("block_tables")?,
            logit_rows: input("logit_rows")?,
            bias: input("logit_bias"),
            values: output("values")?,
            indices: output("indices")?,
            log_sum_exp: output("log_sum_exp")?,
        })
    }
}
