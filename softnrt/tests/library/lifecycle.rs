//! From initialisation to closing: what is there, what is too early or too late, and what is left behind.

use std::ffi::CStr;
use std::sync::Arc;

use neuron_sys::result::{self, NrtError, Status};
use neuron_sys::sys::{NRT_STATUS, PROBED};
use neuron_sys::{Runtime, Usage};
use softnrt::testing::Double;

use crate::{Rig, open, programs};

fn failed<T: std::fmt::Debug>(result: Result<T, NrtError>) -> u32 {
    result.expect_err("it is refused").status.code()
}

#[test]
fn it_has_every_function_of_the_bindings() {
    let double = Double::new(&[("SOFTNRT_CORES", "5")]);
    let library = double.library();
    assert_eq!(library.lacking(), PROBED, "those are looked for and never called");
    assert_eq!(library.version(), Some("2.30.50.0 softnrt"));
    assert_eq!((library.total_cores(), library.visible_cores()), (Some(5), Some(5)));
    let table = double.table();
    for status in Status::known().chain([Status::SUCCESS]) {
        // SAFETY: it is the table of a runtime library.
        let name = unsafe { result::status_as_str(&table, status) };
        assert_eq!(name.map(CStr::to_str), Some(Ok(status.name().unwrap())));
    }
    // SAFETY: as above.
    let machine = unsafe { result::instance_info(&table) }.unwrap().unwrap();
    assert_eq!((machine.family, machine.size), (4, 7));
}

#[test]
fn calls_before_and_after_are_refused() {
    let double = Double::new(&[]);
    let table = double.table();
    let neff = programs::ratio();
    // SAFETY: the double checks handles and its own state; the buffers are those of slices.
    let refused = || unsafe {
        [
            failed(result::load(&table, &neff, 0)),
            failed(result::load_collectives(&table, &neff, 0, 0, 1).unwrap()),
            failed(result::build_global_comm(&table, 0, 0, 1).unwrap()),
            failed(result::tensor_allocate(&table, 0, 16, c"early")),
            failed(result::allocate_tensor_set(&table)),
            failed(result::memory_stats(&table, 0).unwrap()),
        ]
    };
    assert_eq!(refused(), [13; 6]);
    // SAFETY: it is not initialised.
    unsafe { result::init(&table) }.unwrap();
    // SAFETY: as above; a second initialisation is what is tested.
    assert_eq!(failed(unsafe { result::init(&table) }), 2);
    // SAFETY: it is initialised.
    let (tensor, set) = unsafe {
        let tensor = result::tensor_allocate(&table, 0, 16, c"left").unwrap();
        (tensor, result::allocate_tensor_set(&table).unwrap())
    };
    // SAFETY: as above; what is left behind is what is tested.
    unsafe { result::close(&table) };
    let left = double.complaints();
    assert!(left[0].contains("1 tensors (left) have not been freed"), "{left:?}");
    assert!(left[1].contains("1 tensor sets have not been freed"), "{left:?}");
    assert_eq!(left.len(), 2);
    assert_eq!(refused(), [14; 6]);
    let mut buffer = [0; 4];
    // SAFETY: the double knows these handles no more, and says so.
    unsafe {
        assert_eq!(failed(result::tensor_write(&table, tensor, 0, &buffer)), 14);
        assert_eq!(failed(result::tensor_read(&table, tensor, 0, &mut buffer)), 14);
        result::tensor_free(&table, tensor);
        result::destroy_tensor_set(&table, set);
        result::close(&table);
    }
    assert_eq!(double.complaints().len(), 5, "{:?}", double.complaints());
    // It can be opened again, and does not know the handles of before.
    // SAFETY: it is not initialised.
    unsafe { result::init(&table) }.unwrap();
    // SAFETY: as above, for a handle of before.
    assert_eq!(failed(unsafe { result::tensor_write(&table, tensor, 0, &buffer) }), 3);
    // SAFETY: it is initialised, and nothing of it is in use.
    unsafe { result::close(&table) };
    assert_eq!(double.complaints().len(), 5);
}

#[test]
fn tensors_freed_too_early_and_wrong_calls_are_seen() {
    let double = Double::new(&[]);
    let table = double.table();
    // SAFETY: the double checks handles and its own state; the buffers are those of slices. Misuse is what is tested.
    unsafe {
        result::init(&table).unwrap();
        let set = result::allocate_tensor_set(&table).unwrap();
        let tensor = result::tensor_allocate(&table, 0, 16, c"held").unwrap();
        result::add_tensor_to_tensor_set(&table, set, c"x", tensor).unwrap();
        result::tensor_free(&table, tensor);
        assert!(double.complaints()[0].contains("\"held\" is in a tensor set"));
        result::tensor_free(&table, tensor);
        assert!(double.complaints()[1].contains("does not exist"));
        assert_eq!(failed(result::tensor_allocate(&table, 0, 0, c"empty")), 4);
        assert_eq!(failed(result::tensor_allocate(&table, 2, 16, c"beyond")), 2);
        assert_eq!(failed(result::load(&table, &programs::ratio(), 2)), 2);
        let tensor = result::tensor_allocate(&table, 0, 16, c"small").unwrap();
        assert_eq!(failed(result::tensor_write(&table, tensor, 8, &[0; 9])), 2);
        assert_eq!(failed(result::tensor_memset(&table, tensor, 17, 0, 0).unwrap()), 2);
        assert_eq!(failed(result::tensor_allocate_slice(&table, tensor, 8, 9, c"slice").unwrap()), 2);
        assert_eq!(failed(result::tensor_allocate_slice(&table, tensor, 8, 0, c"slice").unwrap()), 4);
        let model = result::load(&table, &programs::ratio(), 0).unwrap();
        assert_eq!(failed(result::execute(&table, model, set, set)), 2);
        assert_eq!(failed(result::execute(&table, model, set, tensor.cast())), 3);
        result::unload(&table, model).unwrap();
        assert_eq!(failed(result::unload(&table, model)), 3);
        assert_eq!(failed(result::execute(&table, model, set, set)), 3);
        result::destroy_tensor_set(&table, set);
        result::tensor_free(&table, tensor);
        result::close(&table);
    }
    assert_eq!(double.complaints().len(), 2, "{:?}", double.complaints());
}

#[test]
fn a_batch_reads_and_writes_many_ranges() {
    use neuron_sys::sys::{nrt_tensor_batch_op_t, nrt_tensor_batch_t};
    let double = Double::new(&[]);
    let table = double.table();
    let (mut first, mut second) = (*b"ab", *b"cde");
    // SAFETY: handles and buffers are alive, and the sizes are theirs.
    unsafe {
        result::init(&table).unwrap();
        let tensor = result::tensor_allocate(&table, 0, 8, c"batch").unwrap();
        result::tensor_memset(&table, tensor, 0, b'.', 8).unwrap().unwrap();
        let ops = |first: &mut [u8], second: &mut [u8]| {
            [
                nrt_tensor_batch_op_t { offset: 1, size: 2, buffer: first.as_mut_ptr().cast() },
                nrt_tensor_batch_op_t { offset: 5, size: 3, buffer: second.as_mut_ptr().cast() },
            ]
        };
        let batch = |ops: &[nrt_tensor_batch_op_t]| nrt_tensor_batch_t {
            tensor: tensor.as_ptr(),
            ops: ops.as_ptr(),
            num_ops: 2,
        };
        let written = ops(&mut first, &mut second);
        assert_eq!(table.nrt_tensor_write_batch(&batch(&written), 1, false), NRT_STATUS::NRT_SUCCESS);
        let mut whole = [0; 8];
        result::tensor_read(&table, tensor, 0, &mut whole).unwrap();
        assert_eq!(&whole, b".ab..cde");
        let (mut one, mut two) = ([0; 2], [0; 3]);
        let read = ops(&mut one, &mut two);
        assert_eq!(table.nrt_tensor_read_batch(&batch(&read), 1, false), NRT_STATUS::NRT_SUCCESS);
        assert_eq!((&one, &two), (b"ab", b"cde"));
        let beyond = [nrt_tensor_batch_op_t { offset: 7, ..read[0] }, read[1]];
        assert_eq!(table.nrt_tensor_read_batch(&batch(&beyond), 1, false), NRT_STATUS::NRT_INVALID);
        result::tensor_free(&table, tensor);
        result::close(&table);
    }
    assert!(double.complaints().is_empty());
}

/// Whatever is dropped first, nothing is left and nothing complained about.
#[test]
fn owners_may_be_dropped_in_any_order() {
    let double = Double::new(&[]);
    for order in 0..24 {
        let runtime = Runtime::init(double.library().clone()).unwrap();
        let core = runtime.core(0).unwrap();
        let Rig { model, inputs, outputs } = Rig::new(&core, &programs::cache(false)).unwrap();
        let state = inputs.get(&model.tensor(Usage::Input, "cache").unwrap().name).cloned();
        let mut left: Vec<Box<dyn std::any::Any>> =
            vec![Box::new(model), Box::new(inputs), Box::new(outputs), Box::new((state, core, runtime))];
        let mut number = order;
        for size in (1..=4).rev() {
            drop(left.remove(number % size));
            number /= size;
        }
    }
    assert!(double.complaints().is_empty(), "{:?}", double.complaints());
}

#[test]
fn cores_are_numbered_within_the_visible_ones() {
    let (_double, runtime) = open(&[("SOFTNRT_CORES", "8"), ("NEURON_RT_VISIBLE_CORES", "4-6")]);
    let library = runtime.library();
    assert_eq!((library.total_cores(), library.visible_cores()), (Some(8), Some(3)));
    let cores: Vec<_> = (0..3).map(|core| runtime.core(core).unwrap()).collect();
    assert!(runtime.core(3).is_err());
    // A tensor of another core is noticed before the library sees it.
    let rig = Rig::new(&cores[2], &programs::ratio()).unwrap();
    let other = Arc::new(cores[1].allocate("other", 8).unwrap());
    let Rig { mut inputs, .. } = rig;
    assert!(inputs.insert("x", other).is_err());
}

/// The same past the owners, which do not let it through.
#[test]
fn a_tensor_of_another_core_is_refused() {
    let double = Double::new(&[]);
    let table = double.table();
    // SAFETY: handles are alive and buffers are those of slices; misuse of cores is what is tested.
    unsafe {
        result::init(&table).unwrap();
        let (inputs, outputs) =
            (result::allocate_tensor_set(&table).unwrap(), result::allocate_tensor_set(&table).unwrap());
        let model = result::load(&table, &programs::ratio(), 0).unwrap();
        let mut tensors = Vec::new();
        for (set, name, core) in [(inputs, c"x", 0), (inputs, c"y", 1), (outputs, c"ratio", 0)] {
            let tensor = result::tensor_allocate(&table, core, 8, name).unwrap();
            result::tensor_memset(&table, tensor, 0, 0, 8).unwrap().unwrap();
            result::add_tensor_to_tensor_set(&table, set, name, tensor).unwrap();
            tensors.push(tensor);
        }
        assert_eq!(failed(result::execute(&table, model, inputs, outputs)), 2);
        let here = result::tensor_allocate(&table, 0, 8, c"y").unwrap();
        result::tensor_memset(&table, here, 0, 0, 8).unwrap().unwrap();
        result::add_tensor_to_tensor_set(&table, inputs, c"y", here).unwrap();
        result::execute(&table, model, inputs, outputs).unwrap();
        result::unload(&table, model).unwrap();
        result::destroy_tensor_set(&table, inputs);
        result::destroy_tensor_set(&table, outputs);
        tensors.into_iter().chain([here]).for_each(|tensor| result::tensor_free(&table, tensor));
        result::close(&table);
    }
    assert!(double.complaints().is_empty());
}
