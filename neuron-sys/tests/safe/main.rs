//! The safe floor over a runtime of functions in this program, which logs every call and what is wrong with it.

mod mock;
mod thread;

use std::sync::Arc;

use mock::{bare_table, log, table, world};
use neuron_sys::{
    Core, Error, Library, Model, NrtError, Poison, Reaction, Runtime, Status, Tensor, TensorSet, Usage,
    sys::{NRT_STATUS, Nrt},
};

const NEFF: &[u8] = b"in weight 64\nin cache.must_alias_input 16\nout cache 16\nout logits 4";

fn runtime(table: Nrt) -> Arc<Runtime> {
    // SAFETY: the functions of `mock` keep the contracts of the header.
    let library = unsafe { Library::from_table(table) }.unwrap();
    Runtime::init(library).unwrap()
}

/// A model on core 0 with its two sets; the cache is one tensor in both.
fn bound(core: &Core) -> (Model, TensorSet, TensorSet, Arc<Tensor>) {
    let model = core.load(NEFF).unwrap();
    let tensor = |name, bytes| Arc::new(core.allocate(name, bytes).unwrap());
    let (weight, cache, logits) = (tensor("weight", 64), tensor("cache", 16), tensor("logits", 4));
    let (mut inputs, mut outputs) = (TensorSet::new(core).unwrap(), TensorSet::new(core).unwrap());
    inputs.insert("weight", weight).unwrap();
    inputs.insert("cache.must_alias_input", Arc::clone(&cache)).unwrap();
    outputs.insert("cache", Arc::clone(&cache)).unwrap();
    outputs.insert("logits", logits).unwrap();
    (model, inputs, outputs, cache)
}

fn status(code: u32) -> Status {
    Status(NRT_STATUS(code))
}

fn nrt(call: &'static str, code: u32) -> NrtError {
    NrtError { call, status: status(code) }
}

#[test]
fn a_whole_life_ends_in_order() {
    const W: usize = 0;
    let runtime = runtime(table::<W>());
    let core = runtime.core(0).unwrap();
    let (model, inputs, outputs, cache) = bound(&core);
    model.check(&inputs, &outputs).unwrap();
    cache.zero(0, 16).unwrap();
    for _ in 0..3 {
        model.execute(&inputs, &outputs).unwrap();
    }
    let mut read = [9; 3];
    cache.read(0, &mut read).unwrap();
    assert_eq!(read, [3, 0, 0], "updated in place three times");
    // In the worst order: what things live in goes first.
    assert_eq!(Arc::strong_count(&runtime), 8, "here, core, model, two sets, three tensors");
    drop((core, runtime));
    drop(cache);
    drop((outputs, inputs));
    drop(model);
    let log = log::<W>();
    let expected = [
        "init",
        "load on 0",
        "free info",
        "allocate weight on 0",
        "allocate cache on 0",
        "allocate logits on 0",
        "memset 16 at 0",
        "execute",
        "execute",
        "execute",
        // The outputs: the set before its tensors, and the cache stays for the inputs.
        "destroy set",
        "free logits",
        "destroy set",
        "free cache",
        "free weight",
        "unload",
        "close",
    ];
    assert_eq!(log, expected);
}

#[test]
fn everything_holds_the_runtime() {
    const W: usize = 1;
    let runtime = runtime(table::<W>());
    let core = runtime.core(1).unwrap();
    let tensor = Arc::new(core.allocate("t", 8).unwrap());
    let slice = tensor.slice("s", 4, 4).unwrap();
    assert_eq!(Arc::strong_count(&tensor), 2, "a slice holds its source");
    assert_eq!(Arc::strong_count(&runtime), 4);
    tensor.write(0, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let mut read = [0; 2];
    slice.read(1, &mut read).unwrap();
    assert_eq!(read, [6, 7], "a slice is the same memory");
    drop((runtime, core, tensor));
    assert_eq!(log::<W>(), ["init", "allocate t on 1", "slice s", "write 8 at 0"], "nothing freed yet");
    drop(slice);
    assert_eq!(log::<W>(), ["free s", "free t", "close"]);
}

#[test]
fn a_replaced_tensor_is_let_go() {
    const W: usize = 2;
    let runtime = runtime(table::<W>());
    let core = runtime.core(0).unwrap();
    let mut set = TensorSet::new(&core).unwrap();
    for name in ["first", "second"] {
        set.insert("x", Arc::new(core.allocate(name, 4).unwrap())).unwrap();
    }
    assert_eq!(log::<W>(), ["init", "allocate first on 0", "allocate second on 0", "free first"]);
    assert_eq!(set.get("x").unwrap().name(), "second");
    assert_eq!(set.names().collect::<Vec<_>>(), ["x"]);
    let why = set.insert("nul\0", Arc::new(core.allocate("third", 4).unwrap())).unwrap_err();
    assert!(matches!(why, Error::BadTensor { .. }), "{why}");
}

#[test]
fn one_runtime_at_a_time() {
    const W: usize = 3;
    // SAFETY: the functions of `mock` keep the contracts of the header.
    let library = unsafe { Library::from_table(table::<W>()) }.unwrap();
    let first = Runtime::init(Arc::clone(&library)).unwrap();
    assert!(matches!(Runtime::init(Arc::clone(&library)).unwrap_err(), Error::AlreadyInitialised));
    drop(first);
    world::<W>().fail.push(("nrt_init", 1005));
    let busy = Runtime::init(Arc::clone(&library)).unwrap_err();
    assert_eq!(busy.reaction(), Reaction::RetryInit, "{busy}");
    drop(Runtime::init(library).unwrap());
    assert_eq!(log::<W>(), ["init", "close", "nrt_init fails", "BAD init", "close"]);
}

/// What every status of an execution does, known or not: the error names it, and after a fatal one no call at all is
/// made any more.
#[test]
fn after_a_fatal_status_nothing_is_closed() {
    const W: usize = 4;
    for failure in Status::known().chain([status(8), status(4242)]) {
        *world::<W>() = mock::World::new();
        let runtime = runtime(table::<W>());
        let core = runtime.core(0).unwrap();
        let (model, inputs, outputs, cache) = bound(&core);
        // A first run is part of loading: memory may be short and less be asked for.
        if failure.reaction(neuron_sys::Phase::Load) == Reaction::Shrink {
            world::<W>().fail.push(("nrt_execute", failure.code()));
            let error = model.execute(&inputs, &outputs).unwrap_err();
            assert!(matches!(error, Error::Nrt(e) if e == nrt("nrt_execute", failure.code())), "{error}");
            assert_eq!(runtime.poisoned(), None, "{failure}");
        }
        model.execute(&inputs, &outputs).unwrap();
        world::<W>().fail.push(("nrt_execute", failure.code()));
        let error = model.execute(&inputs, &outputs).unwrap_err();
        assert!(matches!(error, Error::Nrt(e) if e == nrt("nrt_execute", failure.code())), "{error}");
        let fatal = error.reaction().is_fatal();
        assert_eq!(error.reaction(), failure.reaction(neuron_sys::Phase::Run));
        log::<W>();

        let library = Arc::clone(runtime.library());
        let expected = fatal.then_some(Poison::Status(nrt("nrt_execute", failure.code())));
        assert_eq!(runtime.poisoned(), expected, "{failure}");
        match model.execute(&inputs, &outputs) {
            Ok(()) => assert!(!fatal),
            Err(error) => {
                assert!(matches!(error, Error::Poisoned(_)), "{error}");
                assert_eq!(error.reaction(), failure.reaction(neuron_sys::Phase::Run), "the cause's");
                assert!(cache.write(0, &[1]).is_err() && cache.read(0, &mut [0]).is_err());
                assert!(
                    core.load(NEFF).is_err() && core.allocate("more", 1).is_err() && runtime.core(1).is_err()
                );
            }
        }
        drop((model, inputs, outputs, cache, core, runtime));
        let calls = log::<W>();
        if fatal {
            assert_eq!(calls, [""; 0], "{failure}");
            assert!(matches!(Runtime::init(library).unwrap_err(), Error::Poisoned(_)));
        } else {
            assert_eq!(calls[0], "execute", "{failure}: the next call was made");
            assert_eq!(calls.last().unwrap(), "close", "{failure}");
        }
    }
}

#[test]
fn short_memory_is_no_reason_to_stop() {
    const W: usize = 5;
    let runtime = runtime(table::<W>());
    let core = runtime.core(0).unwrap();
    world::<W>().fail.push(("nrt_tensor_allocate", 4));
    let error = core.allocate("big", 1 << 40).unwrap_err();
    assert_eq!(error.reaction(), Reaction::Shrink, "{error}");
    world::<W>().fail.push(("nrt_load", 4));
    assert_eq!(core.load(NEFF).unwrap_err().reaction(), Reaction::Shrink);
    world::<W>().fail.push(("nrt_load", 10));
    assert_eq!(core.load(NEFF).unwrap_err().reaction(), Reaction::Config);
    assert!(core.allocate("small", 1).is_ok());
    assert_eq!(runtime.poisoned(), None);
}

#[test]
fn an_error_in_a_drop_is_returned_by_the_next_call() {
    const W: usize = 6;
    let runtime = runtime(table::<W>());
    let core = runtime.core(0).unwrap();
    let model = core.load(NEFF).unwrap();
    world::<W>().fail.push(("nrt_unload", 2));
    drop(model);
    let error = core.allocate("t", 4).unwrap_err();
    assert!(matches!(error, Error::Dropped(e) if e == nrt("nrt_unload", 2)), "{error}");
    assert!(core.allocate("t", 4).is_ok(), "returned once");

    let model = core.load(NEFF).unwrap();
    world::<W>().fail.push(("nrt_unload", 101));
    drop(model);
    assert_eq!(runtime.poisoned(), Some(Poison::Status(nrt("nrt_unload", 101))));
}

#[test]
fn ranges_are_checked_before_the_call() {
    const W: usize = 7;
    let runtime = runtime(table::<W>());
    let core = runtime.core(0).unwrap();
    let tensor = Arc::new(core.allocate("t", 8).unwrap());
    log::<W>();
    for (at, bytes) in [(0, 9), (8, 1), (9, 0), (7, 2), (usize::MAX, 1), (1, usize::MAX)] {
        let error = tensor.zero(at, bytes).unwrap_err();
        assert!(matches!(error, Error::OutOfBounds { size: 8, .. }), "{error}");
        if bytes > 0 {
            assert!(matches!(tensor.slice("s", at, bytes), Err(Error::OutOfBounds { .. })));
        }
        if bytes < 16 {
            assert!(matches!(tensor.write(at, &vec![0; bytes]), Err(Error::OutOfBounds { .. })));
            assert!(matches!(tensor.read(at, &mut vec![0; bytes]), Err(Error::OutOfBounds { .. })));
        }
    }
    assert!(matches!(core.allocate("empty", 0), Err(Error::BadTensor { .. })));
    assert!(matches!(tensor.slice("empty", 0, 0), Err(Error::BadTensor { .. })));
    assert!(matches!(core.allocate("a\0b", 1), Err(Error::BadTensor { .. })));
    assert_eq!(log::<W>(), [""; 0], "no call was made");
    assert!(tensor.write(0, &[0; 8]).is_ok() && tensor.write(7, &[0]).is_ok());
}

#[test]
fn only_one_core_and_one_runtime_at_once() {
    const W: usize = 8;
    let (runtime, other) = (runtime(table::<W>()), runtime(table::<9>()));
    let cores = [runtime.core(0).unwrap(), runtime.core(1).unwrap(), other.core(0).unwrap()];
    let error = runtime.core(2).unwrap_err();
    assert!(matches!(error, Error::NoSuchCore { core: 2, visible: 2 }), "{error}");

    let (model, inputs, outputs, _) = bound(&cores[0]);
    log::<W>();
    for core in &cores[1..] {
        let mut set = TensorSet::new(core).unwrap();
        let foreign = Arc::new(cores[0].allocate("t", 4).unwrap());
        assert!(matches!(set.insert("t", foreign), Err(Error::OtherCore { .. })));
        assert!(matches!(model.execute(&set, &outputs), Err(Error::OtherCore { .. })));
        assert!(matches!(model.execute(&inputs, &set), Err(Error::OtherCore { .. })));
    }
    assert!(!log::<W>().iter().any(|call| call == "execute"));
    model.execute(&inputs, &outputs).unwrap();
}

#[test]
fn a_models_tensors_are_found_by_both_spellings() {
    const W: usize = 10;
    let runtime = runtime(table::<W>());
    let model = runtime.core(0).unwrap().load(NEFF).unwrap();
    let tensors = model.tensors().unwrap();
    let summary: Vec<_> = tensors.iter().map(|t| (t.base_name(), t.usage, t.bytes, t.must_alias())).collect();
    let expected = [
        ("weight", Usage::Input, 64, false),
        ("cache", Usage::Input, 16, true),
        ("cache", Usage::Output, 16, false),
        ("logits", Usage::Output, 4, false),
    ];
    assert_eq!(summary, expected);
    let name = |usage, name| model.tensor(usage, name).map(|info| info.name.as_str());
    assert_eq!(name(Usage::Input, "cache"), Some("cache.must_alias_input"));
    assert_eq!(name(Usage::Input, "cache.must_alias_input"), Some("cache.must_alias_input"));
    assert_eq!(name(Usage::Output, "cache"), Some("cache"));
    assert_eq!(name(Usage::Output, "cache.must_alias_input"), None);
    assert_eq!(name(Usage::Input, "logits"), None);
}

#[test]
fn sets_that_do_not_suit_a_model_are_described() {
    const W: usize = 11;
    let runtime = runtime(table::<W>());
    let core = runtime.core(0).unwrap();
    let (model, mut inputs, mut outputs, _cache) = bound(&core);
    model.check(&inputs, &outputs).unwrap();
    let tensor = |bytes| Arc::new(core.allocate("t", bytes).unwrap());
    inputs.insert("weight", tensor(63)).unwrap();
    inputs.insert("cache", tensor(16)).unwrap();
    outputs.insert("cache", tensor(16)).unwrap();
    let Err(Error::Unbound(problems)) = model.check(&inputs, &outputs) else { panic!("it suits") };
    let expected = [
        "input \"weight\" has 63 bytes and needs 64",
        "input \"cache.must_alias_input\" is not the tensor of output \"cache\"",
        "the model has no input \"cache\"",
    ];
    assert_eq!(problems, expected);
    let Err(Error::Unbound(problems)) = model.check(&inputs, &inputs) else { panic!("it suits") };
    assert!(problems.contains(&"output \"logits\" is missing".to_owned()), "{problems:?}");
}

#[test]
fn an_impossible_description_is_refused_and_the_model_unloaded() {
    const W: usize = 12;
    let runtime = runtime(table::<W>());
    let core = runtime.core(0).unwrap();
    for lie in [(u64::MAX, 0), (4, 7)] {
        world::<W>().lie = Some(lie);
        log::<W>();
        let error = core.load(NEFF).unwrap_err();
        assert!(matches!(error, Error::BadTensorInfo(_)), "{error}");
        assert_eq!(log::<W>(), ["load on 0", "free info", "unload"]);
    }
    world::<W>().lie = None;
    world::<W>().fail.push(("nrt_get_model_tensor_info", 2));
    assert!(core.load(NEFF).is_err());
    assert_eq!(log::<W>().last().unwrap(), "unload");
}

#[test]
fn a_library_with_only_the_mandatory_functions_serves() {
    const W: usize = 13;
    let runtime = runtime(bare_table::<W>());
    assert_eq!(runtime.library().optional(), [""; 0]);
    assert_eq!(runtime.library().version(), None);
    assert!(runtime.library().describe().contains("lacks nrt_get_status_as_str"));
    let core = runtime.core(7).unwrap();
    let (model, inputs, outputs, cache) = bound(&core);
    assert_eq!(model.tensors(), None);
    model.check(&inputs, &outputs).unwrap();
    model.execute(&inputs, &outputs).unwrap();

    let unsupported = [
        ("nrt_tensor_allocate_slice", cache.slice("s", 0, 4).unwrap_err()),
        ("nrt_get_vnc_memory_stats", core.memory().unwrap_err()),
        ("nrt_load_collectives", core.load_collectives(NEFF, 0, 2).unwrap_err()),
        ("nrt_build_global_comm", core.build_global_comm(0, 2).unwrap_err()),
    ];
    for (name, error) in unsupported {
        assert!(matches!(error, Error::Unsupported { symbol } if symbol == name), "{error}");
    }

    const MIB: usize = 1 << 20;
    let big = core.allocate("big", 3 * MIB).unwrap();
    log::<W>();
    big.zero(5, 2 * MIB + 1).unwrap();
    let writes = [
        format!("write {MIB} at 5"),
        format!("write {MIB} at {}", MIB + 5),
        format!("write 1 at {}", 2 * MIB + 5),
    ];
    assert_eq!(log::<W>(), writes, "zeros are written where the device cannot set them");
    let mut around = [0; 7];
    big.read(0, &mut around).unwrap();
    assert_eq!(around, [0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0]);
    big.read(2 * MIB + 4, &mut around).unwrap();
    assert_eq!(around, [0, 0, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa]);
}

#[test]
fn a_table_without_a_mandatory_function_is_refused() {
    let mut table = bare_table::<14>();
    let mut empty = Nrt::unresolved();
    std::mem::swap(&mut table.nrt_execute, &mut empty.nrt_execute);
    std::mem::swap(&mut table.nrt_close, &mut empty.nrt_close);
    // SAFETY: the functions of `mock` keep the contracts of the header.
    let error = unsafe { Library::from_table(table) }.unwrap_err();
    assert!(error.to_string().ends_with("lacks nrt_close, nrt_execute"), "{error}");
}
