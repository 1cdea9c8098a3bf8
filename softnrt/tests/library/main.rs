//! The double through `neuron-sys`, as an engine uses it: that it computes, and that it refuses.

mod faults;
mod lifecycle;
mod programs;
mod ranks;
mod refusals;

use std::sync::Arc;

use neuron_sys::{Core, Error, Model, Runtime, Tensor, TensorSet, Usage};
use softnrt::testing::Double;

/// A program loaded on a core, with a tensor for each input and output.
pub(crate) struct Rig {
    pub(crate) model: Model,
    pub(crate) inputs: TensorSet,
    pub(crate) outputs: TensorSet,
}

impl Rig {
    pub(crate) fn new(core: &Core, neff: &[u8]) -> Result<Rig, Error> {
        Rig::of(core, core.load(neff)?)
    }

    pub(crate) fn of(core: &Core, model: Model) -> Result<Rig, Error> {
        let (mut inputs, mut outputs) = (TensorSet::new(core)?, TensorSet::new(core)?);
        for info in model.tensors().expect("the library describes models").to_vec() {
            let both = info.usage == Usage::Output && inputs.get(&info.name).is_some();
            let marked = format!("{}.must_alias_input", info.name);
            let state = inputs.get(&marked).or(if both { inputs.get(&info.name) } else { None }).cloned();
            let set = if info.usage == Usage::Input { &mut inputs } else { &mut outputs };
            match state {
                Some(state) if info.usage == Usage::Output => set.insert(&info.name, state)?,
                _ => set.insert(&info.name, Arc::new(core.allocate(&info.name, info.bytes)?))?,
            }
        }
        Ok(Rig { model, inputs, outputs })
    }

    pub(crate) fn input(&self, name: &str) -> &Arc<Tensor> {
        let marked = format!("{name}.must_alias_input");
        self.inputs.get(name).or_else(|| self.inputs.get(&marked)).expect("the program has it")
    }

    pub(crate) fn write(&self, name: &str, numbers: &[f32]) -> Result<(), Error> {
        self.input(name).write(0, &bytes(numbers))
    }

    pub(crate) fn at(&self, index: i32) -> Result<(), Error> {
        self.input("at").write(0, &index.to_le_bytes())
    }

    pub(crate) fn run(&self) -> Result<(), Error> {
        self.model.execute(&self.inputs, &self.outputs)
    }

    pub(crate) fn output(&self, name: &str) -> Result<Vec<f32>, Error> {
        floats(self.outputs.get(name).expect("the program has it"))
    }
}

pub(crate) fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub(crate) fn floats(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let mut bytes = vec![0; tensor.bytes()];
    tensor.read(0, &mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
}

pub(crate) fn open(settings: &[(&str, &str)]) -> (Double, Arc<Runtime>) {
    let double = Double::new(settings);
    let runtime = Runtime::init(double.library().clone()).expect("it opens");
    (double, runtime)
}

/// The number that the library returned.
pub(crate) fn code<T>(result: Result<T, Error>) -> Option<u32> {
    match result {
        Ok(_) => None,
        Err(Error::Nrt(error)) => Some(error.status.code()),
        Err(other) => panic!("not from the library: {other}"),
    }
}

#[test]
fn it_computes_and_keeps_states() {
    for plain in [false, true] {
        let (double, runtime) = open(&[]);
        let core = runtime.core(0).unwrap();
        let rig = Rig::new(&core, &programs::cache(plain)).unwrap();
        let state = rig.model.tensor(Usage::Input, "cache").unwrap();
        assert_eq!(state.must_alias(), !plain, "{}", state.name);
        rig.model.check(&rig.inputs, &rig.outputs).unwrap();
        rig.input("cache").zero(0, 8 * 4 * 4).unwrap();
        for (step, at) in [0, 7, 3, 0].into_iter().enumerate() {
            rig.at(at).unwrap();
            rig.write("x", &[step as f32 + 1., 10., 0., -1.]).unwrap();
            rig.run().unwrap();
        }
        // The first row was written again: 4 + 2 + 3.
        assert_eq!(rig.output("total").unwrap(), [9., 30., 0., -3.]);
        let cache = floats(rig.input("cache")).unwrap();
        assert_eq!((cache[0], cache[4 * 7], cache[4 * 3], cache[4]), (4., 2., 3., 0.));
        // What is written to the middle of a state is in it.
        rig.input("cache").write(16, &bytes(&[100.])).unwrap();
        rig.run().unwrap();
        assert_eq!(rig.output("total").unwrap()[0], 109.);
        drop(rig);
        drop((core, runtime));
        assert!(double.complaints().is_empty(), "{:?}", double.complaints());
    }
}

#[test]
fn weights_and_states_are_shared_by_programs_and_can_be_slices() {
    let (_double, runtime) = open(&[]);
    let core = runtime.core(0).unwrap();
    let arena = Arc::new(core.allocate("arena", 256).unwrap());
    arena.zero(0, 256).unwrap();
    let cache = Arc::new(arena.slice("cache", 64, 128).unwrap());
    let rigs: Vec<Rig> = (0..2)
        .map(|_| {
            let mut rig = Rig::new(&core, &programs::cache(false)).unwrap();
            rig.inputs.insert("cache.must_alias_input", cache.clone()).unwrap();
            rig.outputs.insert("cache", cache.clone()).unwrap();
            rig
        })
        .collect();
    for (at, rig) in rigs.iter().enumerate() {
        rig.at(at as i32).unwrap();
        rig.write("x", &[1., 2., 3., 4.]).unwrap();
        rig.run().unwrap();
    }
    assert_eq!(rigs[1].output("total").unwrap(), [2., 4., 6., 8.]);
    let whole = floats(&arena).unwrap();
    assert_eq!(whole[16..24], [1., 2., 3., 4., 1., 2., 3., 4.]);
    assert_eq!(whole.iter().sum::<f32>(), 20.);
}
