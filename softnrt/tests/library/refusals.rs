//! What is careless is refused, with the status that the documentation of this crate gives.

use std::sync::Arc;

use neuron_sys::neff::{HEADER_SIZE, Header};
use neuron_sys::{Core, Error};

use crate::{Rig, bytes, code, open, programs};

/// A rig that would run.
fn ready(core: &Core) -> Rig {
    let rig = Rig::new(core, &programs::cache(false)).unwrap();
    rig.input("cache").zero(0, 128).unwrap();
    rig.write("x", &[1.; 4]).unwrap();
    rig.at(0).unwrap();
    rig
}

#[test]
fn what_is_bound_wrongly_does_not_run() {
    type Spoil = fn(&Core, &mut Rig) -> Result<(), Error>;
    let cases: [(&str, u32, Spoil); 8] = [
        ("an unknown name", 2, |core, rig| rig.inputs.insert("y", Arc::new(core.allocate("y", 4)?))),
        ("a wrong size", 2, |core, rig| rig.inputs.insert("x", Arc::new(core.allocate("x", 20)?))),
        ("a cache that is not aliased", 2, |core, rig| {
            rig.outputs.insert("cache", Arc::new(core.allocate("other", 128)?))
        }),
        ("outputs that share memory", 2, |core, rig| {
            let arena = Arc::new(core.allocate("arena", 140)?);
            let cache = Arc::new(arena.slice("cache", 0, 128)?);
            rig.inputs.insert("cache.must_alias_input", cache.clone())?;
            rig.outputs.insert("cache", cache)?;
            rig.outputs.insert("total", Arc::new(arena.slice("total", 124, 16)?))
        }),
        ("an output in an input", 2, |_, rig| rig.outputs.insert("total", rig.input("x").clone())),
        ("an input that was never written", 1002, |core, rig| {
            rig.inputs.insert("x", Arc::new(core.allocate("x", 16)?))
        }),
        ("an index beyond", 1006, |_, rig| rig.at(8)),
        ("an index before", 1006, |_, rig| rig.at(-1)),
    ];
    let (double, runtime) = open(&[]);
    let core = runtime.core(0).unwrap();
    for (what, status, spoil) in cases {
        let mut rig = ready(&core);
        assert_eq!(code(rig.run()), None);
        spoil(&core, &mut rig).unwrap();
        assert_eq!(code(rig.run()), Some(status), "{what}");
        // A good one runs after it.
        assert_eq!(code(ready(&core).run()), None, "after {what}");
    }
    assert!(double.complaints().is_empty());
}

#[test]
fn a_failed_run_leaves_the_cache() {
    let (_double, runtime) = open(&[]);
    let core = runtime.core(0).unwrap();
    let rig = ready(&core);
    rig.run().unwrap();
    rig.at(99).unwrap();
    assert_eq!(code(rig.run()), Some(1006));
    rig.at(1).unwrap();
    rig.run().unwrap();
    assert_eq!(rig.output("total").unwrap(), [2.; 4]);
}

#[test]
fn memory_is_counted() {
    let (_double, runtime) = open(&[("SOFTNRT_MEMORY", "1000000")]);
    let core = runtime.core(1).unwrap();
    let used = |core: &Core| core.memory().unwrap().used;
    assert_eq!((core.memory().unwrap().limit, used(&core)), (1_000_000, 0));
    let tensor = Arc::new(core.allocate("most", 999_000).unwrap());
    let part = tensor.slice("part", 10, 20).unwrap();
    assert_eq!(used(&core), 999_000);
    assert_eq!(used(&runtime.core(0).unwrap()), 0);
    // A status of 4 shrinks while loading, so that the runtime stays usable.
    assert_eq!(code(core.load(&programs::cache(false)).map(drop)), Some(4));
    drop(tensor);
    assert_eq!(used(&core), 999_000, "a slice keeps its memory");
    drop(part);
    let neff = programs::cache(false);
    let Rig { model, inputs, outputs } = Rig::new(&core, &neff).unwrap();
    model.execute(&inputs, &outputs).expect_err("nothing has been written");
    assert_eq!(used(&core), neff.len() + 16 + 4 + 128 + 16);
    drop((inputs, outputs));
    assert_eq!(used(&core), neff.len());
    drop(model);
    assert_eq!(used(&core), 0);
}

#[test]
fn a_nan_is_a_status_where_asked_for() {
    for (asked, status) in [("0", None), ("1", Some(1003))] {
        let (_double, runtime) = open(&[("NEURON_FAIL_ON_NAN", asked)]);
        let core = runtime.core(0).unwrap();
        let rig = Rig::new(&core, &programs::ratio()).unwrap();
        rig.write("x", &[0., 1.]).unwrap();
        rig.write("y", &[0., 2.]).unwrap();
        assert_eq!(code(rig.run()), status);
        let ratio = rig.output("ratio").unwrap();
        assert!(ratio[0].is_nan() && ratio[1] == 0.5);
    }
}

#[test]
fn damaged_and_foreign_files_are_not_loaded() {
    let (_double, runtime) = open(&[]);
    let core = runtime.core(0).unwrap();
    let good = programs::ratio();
    let load = |file: &[u8]| code(core.load(file).map(drop));
    assert_eq!(load(&good), None);
    for length in (0..good.len()).step_by(7).chain([HEADER_SIZE, good.len() - 1]) {
        assert_eq!(load(&good[..length]), Some(2), "{length} bytes");
    }
    for at in HEADER_SIZE..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 1 << (at % 8);
        assert_eq!(load(&damaged), Some(2), "byte {at}");
    }
    // The header has no hash of its own; whatever it says, the answer is a status.
    for at in 0..HEADER_SIZE {
        let mut damaged = good.clone();
        damaged[at] ^= 0x80;
        let status = load(&damaged);
        assert!(matches!(status, None | Some(2 | 10)), "byte {at}: {status:?}");
    }
    let mut newer = Header::parse(&good).unwrap();
    newer.neff_version_major = 2;
    assert_eq!(load(&[&newer.write().unwrap()[..], &good[HEADER_SIZE..]].concat()), Some(10));
    let foreign = b"not an archive at all".to_vec();
    let header = Header::for_data("foreign", &foreign);
    assert_eq!(load(&[&header.write().unwrap()[..], &foreign].concat()), Some(2));
}

#[test]
fn executions_that_do_nothing_still_check() {
    let (_double, runtime) = open(&[("SOFTNRT_NOOP", "1")]);
    let core = runtime.core(0).unwrap();
    let mut rig = Rig::new(&core, &programs::cache(false)).unwrap();
    rig.run().unwrap();
    assert_eq!(rig.output("total").unwrap(), [0.; 4]);
    rig.write("x", &[1.; 4]).unwrap();
    rig.at(99).unwrap();
    rig.run().unwrap();
    assert_eq!(rig.output("total").unwrap(), [0.; 4]);
    rig.outputs.insert("cache", Arc::new(core.allocate("other", 128).unwrap())).unwrap();
    assert_eq!(code(rig.run()), Some(2));
}

#[test]
fn slow_executions_take_their_time() {
    let (double, runtime) = open(&[]);
    let core = runtime.core(0).unwrap();
    let rig = ready(&core);
    double.set("SOFTNRT_SLOW", "80");
    let start = std::time::Instant::now();
    rig.run().unwrap();
    assert!(start.elapsed().as_millis() >= 80);
    assert_eq!(rig.input("x").write(12, &bytes(&[1., 2.])).map_err(|error| error.to_string()), {
        Err("8 bytes at 12 do not fit tensor \"x\" of 16 bytes".into())
    });
}
