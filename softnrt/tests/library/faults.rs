//! Every status of the header, from every call that can give it, when it is asked for.

use std::sync::mpsc::channel;
use std::time::Duration;

use neuron_sys::result::{self, NrtError, Status};
use neuron_sys::sys::NRT_STATUS;
use softnrt::testing::Double;

use crate::{Rig, code, open, programs};

#[test]
fn every_status_comes_from_every_call_that_was_told_to() {
    let double = Double::new(&[]);
    let table = double.table();
    let neff = programs::ratio();
    let wanted: Vec<Status> = Status::known().chain([Status(NRT_STATUS(4242))]).collect();
    // SAFETY: handles are alive and buffers are those of slices.
    unsafe {
        // Initialising comes first, since all others need it.
        for status in &wanted {
            double.set("SOFTNRT_FAULT", &format!("init@1:{}", status.code()));
            let error = result::init(&table).expect_err("it was told to fail");
            assert_eq!((error.call, error.status), ("nrt_init", *status));
        }
        result::init(&table).unwrap();
        let model = result::load(&table, &neff, 0).unwrap();
        let tensor = result::tensor_allocate(&table, 0, 8, c"tensor").unwrap();
        let (inputs, outputs) =
            (result::allocate_tensor_set(&table).unwrap(), result::allocate_tensor_set(&table).unwrap());
        let mut held = Vec::new();
        for (set, name) in [(inputs, c"x"), (inputs, c"y"), (outputs, c"ratio")] {
            let tensor = result::tensor_allocate(&table, 0, 8, name).unwrap();
            result::tensor_memset(&table, tensor, 0, 0, 8).unwrap().unwrap();
            result::add_tensor_to_tensor_set(&table, set, name, tensor).unwrap();
            held.push(tensor);
        }
        let optional = |called: Option<Result<(), NrtError>>| called.expect("the double has it");
        type Call<'a> = (&'static str, Box<dyn Fn() -> Result<(), NrtError> + 'a>);
        let calls: Vec<Call> = vec![
            ("get_version", Box::new(|| optional(result::version(&table).map(|done| done.map(drop))))),
            (
                "get_instance_info",
                Box::new(|| optional(result::instance_info(&table).map(|done| done.map(drop)))),
            ),
            (
                "get_total_vnc_count",
                Box::new(|| optional(result::total_cores(&table).map(|done| done.map(drop)))),
            ),
            (
                "get_visible_vnc_count",
                Box::new(|| optional(result::visible_cores(&table).map(|done| done.map(drop)))),
            ),
            (
                "get_vnc_memory_stats",
                Box::new(|| optional(result::memory_stats(&table, 0).map(|done| done.map(drop)))),
            ),
            ("load", Box::new(|| result::unload(&table, result::load(&table, &neff, 0)?))),
            (
                "unload",
                Box::new(|| {
                    let model = result::load(&table, &neff, 0)?;
                    result::unload(&table, model).inspect_err(|_| result::unload(&table, model).unwrap())
                }),
            ),
            (
                "load_collectives",
                Box::new(|| {
                    let model = result::load_collectives(&table, &neff, 0, 0, 1).expect("it has it")?;
                    result::unload(&table, model)
                }),
            ),
            ("build_global_comm", Box::new(|| optional(result::build_global_comm(&table, 0, 0, 1)))),
            (
                "get_model_tensor_info",
                Box::new(|| {
                    let info = result::model_tensor_info(&table, model).expect("it has it")?;
                    optional(result::free_model_tensor_info(&table, info))
                }),
            ),
            (
                "free_model_tensor_info",
                Box::new(|| {
                    let info = result::model_tensor_info(&table, model).expect("it has it")?;
                    let freed = result::free_model_tensor_info(&table, info).expect("it has it");
                    freed.inspect_err(|_| optional(result::free_model_tensor_info(&table, info)).unwrap())
                }),
            ),
            (
                "get_model_instance_count",
                Box::new(|| optional(result::model_instance_count(&table, model).map(|done| done.map(drop)))),
            ),
            ("execute", Box::new(|| result::execute(&table, model, inputs, outputs))),
            (
                "tensor_allocate",
                Box::new(|| {
                    result::tensor_allocate(&table, 0, 8, c"more")
                        .map(|more| result::tensor_free(&table, more))
                }),
            ),
            (
                "tensor_allocate_slice",
                Box::new(|| {
                    let slice =
                        result::tensor_allocate_slice(&table, tensor, 0, 4, c"slice").expect("it has it")?;
                    result::tensor_free(&table, slice);
                    Ok(())
                }),
            ),
            ("tensor_read", Box::new(|| result::tensor_read(&table, tensor, 0, &mut [0; 8]))),
            ("tensor_write", Box::new(|| result::tensor_write(&table, tensor, 0, &[0; 8]))),
            ("tensor_memset", Box::new(|| optional(result::tensor_memset(&table, tensor, 0, 0, 8)))),
            (
                "allocate_tensor_set",
                Box::new(|| {
                    result::allocate_tensor_set(&table).map(|set| result::destroy_tensor_set(&table, set))
                }),
            ),
            (
                "add_tensor_to_tensor_set",
                Box::new(|| result::add_tensor_to_tensor_set(&table, inputs, c"x", held[0])),
            ),
        ];
        for (name, call) in &calls {
            for status in &wanted {
                double.set("SOFTNRT_FAULT", &format!("{name}@2:{}", status.code()));
                assert_eq!(call(), Ok(()), "the first {name}");
                let error = call().expect_err("it was told to fail");
                assert_eq!(error, NrtError { call: error.call, status: *status });
                assert_eq!(error.call.strip_prefix("nrt_"), Some(*name));
                assert_eq!(call(), Ok(()), "the third {name}");
            }
        }
        drop(calls);
        double.set("SOFTNRT_FAULT", "");
        result::unload(&table, model).unwrap();
        result::destroy_tensor_set(&table, inputs);
        result::destroy_tensor_set(&table, outputs);
        held.into_iter().chain([tensor]).for_each(|tensor| result::tensor_free(&table, tensor));
        result::close(&table);
    }
    assert!(double.complaints().is_empty(), "{:?}", double.complaints());
}

#[test]
fn a_call_that_hangs_leaves_the_other_cores_alone() {
    let (double, runtime) = open(&[]);
    let ready = |core: u32| {
        let core = runtime.core(core).unwrap();
        let rig = Rig::new(&core, &programs::ratio()).unwrap();
        rig.write("x", &[1., 2.]).unwrap();
        rig.write("y", &[4., 4.]).unwrap();
        rig
    };
    let (stuck, free) = (ready(0), ready(1));
    double.set("SOFTNRT_FAULT", "execute@1:hang");
    let (done, waiting) = channel();
    // Never joined: it does not come back.
    std::thread::spawn(move || {
        let _ = done.send(code(stuck.run()));
    });
    assert!(waiting.recv_timeout(Duration::from_millis(100)).is_err());
    free.run().unwrap();
    assert_eq!(free.output("ratio").unwrap(), [0.25, 0.5]);
    assert!(waiting.try_recv().is_err());
    runtime.abandon();
}

#[test]
fn executions_and_copies_exclude_each_other_on_a_core() {
    let double = Double::new(&[]);
    let table = double.table();
    let neff = programs::ratio();
    let status = |result: Result<(), NrtError>| result.map_err(|error| error.status.code());
    // SAFETY: handles are alive and buffers are those of slices; overlapping calls are what is tested.
    unsafe {
        result::init(&table).unwrap();
        let model = result::load(&table, &neff, 0).unwrap();
        let set = || result::allocate_tensor_set(&table).unwrap();
        let (inputs, outputs) = (set(), set());
        for (set, name) in [(inputs, c"x"), (inputs, c"y"), (outputs, c"ratio")] {
            let tensor = result::tensor_allocate(&table, 0, 8, name).unwrap();
            result::tensor_memset(&table, tensor, 0, 0, 8).unwrap().unwrap();
            result::add_tensor_to_tensor_set(&table, set, name, tensor).unwrap();
        }
        let aside = result::tensor_allocate(&table, 0, 8, c"aside").unwrap();
        let x = result::tensor_allocate(&table, 0, 8, c"x").unwrap();
        result::tensor_memset(&table, x, 0, 0, 8).unwrap().unwrap();
        result::add_tensor_to_tensor_set(&table, inputs, c"x", x).unwrap();
        double.set("SOFTNRT_SLOW", "400");
        let addresses = [model.addr(), inputs.addr(), outputs.addr()];
        std::thread::scope(|scope| {
            let execute = || {
                let [model, inputs, outputs] =
                    addresses.map(|at| std::ptr::without_provenance_mut::<u8>(at.get()));
                let whole = |at: *mut u8| std::ptr::NonNull::new(at).expect("a handle");
                result::execute(&table, whole(model).cast(), whole(inputs).cast(), whole(outputs).cast())
            };
            let running = scope.spawn(execute);
            std::thread::sleep(Duration::from_millis(150));
            assert_eq!(status(execute()), Err(1005));
            assert_eq!(status(result::tensor_write(&table, x, 0, &[0; 8])), Err(2));
            assert_eq!(status(result::tensor_write(&table, aside, 0, &[0; 8])), Ok(()));
            assert_eq!(status(result::unload(&table, model)), Err(2));
            assert_eq!(status(running.join().expect("no panic")), Ok(()));
            assert_eq!(status(execute()), Ok(()));
        });
    }
}
