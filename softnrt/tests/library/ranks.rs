//! Programs on several cores.

use neuron_sys::{Error, Runtime};

use crate::{Rig, code, open, programs};

/// Runs `each` on a thread for every rank.
fn ranks<R: Send>(count: u32, each: impl Fn(u32) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let each = &each;
        let threads: Vec<_> = (0..count).map(|rank| scope.spawn(move || each(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn load(runtime: &std::sync::Arc<Runtime>, rank: u32, count: u32, neff: &[u8]) -> Result<Rig, Error> {
    let core = runtime.core(rank)?;
    let model = core.load_collectives(neff, rank, count)?;
    Rig::of(&core, model)
}

#[test]
fn ranks_add_up() {
    for count in [1, 2, 4] {
        let (double, runtime) = open(&[("SOFTNRT_CORES", "4")]);
        let neff = programs::sum(count);
        let sums = ranks(count, |rank| {
            let rig = load(&runtime, rank, count, &neff).unwrap();
            let run = |step| {
                rig.write("x", &[rank as f32, step as f32, 1.]).unwrap();
                rig.run().unwrap();
                rig.output("sum").unwrap()
            };
            (0..20).map(run).collect::<Vec<_>>()
        });
        let total: f32 = (0..count).map(|rank| rank as f32).sum();
        for steps in sums {
            for (step, sum) in steps.into_iter().enumerate() {
                let n = count as f32;
                assert_eq!(sum, [2. * total, 2. * n * step as f32, 2. * n]);
            }
        }
        drop(runtime);
        assert!(double.complaints().is_empty());
    }
}

#[test]
fn a_rank_that_fails_fails_the_others() {
    let (double, runtime) = open(&[("SOFTNRT_CORES", "4"), ("SOFTNRT_TIMEOUT", "20")]);
    let neff = programs::sum(4);
    let rigs = ranks(4, |rank| {
        let rig = load(&runtime, rank, 4, &neff).unwrap();
        rig.write("x", &[1., 2., 3.]).unwrap();
        rig
    });
    // A status that fails requests and not the process, so that all can go on after it.
    double.set("SOFTNRT_FAULT", "execute@2:1002");
    let together = || {
        ranks(4, |rank| match rigs[rank as usize].run() {
            Ok(()) => 0,
            Err(Error::Nrt(error)) => error.status.code(),
            Err(_) => u32::MAX,
        })
    };
    let mut statuses = together();
    statuses.sort_unstable();
    // Stuck collectives are fatal, so that a rank that comes late may find the runtime given up.
    assert_eq!(statuses[0], 1002);
    assert!(statuses[1..].iter().all(|status| [1200, u32::MAX].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&1200));
    assert!(runtime.poisoned().is_some());
}

#[test]
fn ranks_that_do_not_suit_each_other_do_not_load() {
    let (_double, runtime) = open(&[("SOFTNRT_CORES", "4"), ("SOFTNRT_TIMEOUT", "20")]);
    let (two, other) = (programs::sum(2), programs::ratio());
    // Different programs, and different counts: the one that finds out tells the one that waits.
    let statuses =
        ranks(2, |rank| code(load(&runtime, rank, 2, if rank == 0 { &two } else { &other }).map(drop)));
    assert_eq!(statuses, [Some(2), Some(2)]);
    let statuses = ranks(2, |rank| code(load(&runtime, rank, 2 + rank, &two).map(drop)));
    assert_eq!(statuses, [Some(2), Some(2)]);
    let core = runtime.core(0).unwrap();
    assert_eq!(code(core.load(&two).map(drop)), Some(2), "without the other ranks");
    assert_eq!(code(core.load_collectives(&two, 2, 2).map(drop)), Some(2), "rank 2 of 2");
    assert_eq!(code(core.load_collectives(&two, 0, 5).map(drop)), Some(9), "5 ranks on 4 cores");
    // After all that it works.
    let loaded = ranks(2, |rank| load(&runtime, rank, 2, &two).map(drop).map_err(|error| error.to_string()));
    assert_eq!(loaded, [Ok(()), Ok(())]);
}

#[test]
fn ranks_do_not_wait_for_ever() {
    let (_double, runtime) = open(&[("SOFTNRT_TIMEOUT", "0.05")]);
    let two = programs::sum(2);
    assert_eq!(code(load(&runtime, 0, 2, &two).map(drop)), Some(5));
}

#[test]
fn a_rank_that_does_not_execute_is_noticed() {
    let (_double, runtime) = open(&[("SOFTNRT_TIMEOUT", "0.3")]);
    let two = programs::sum(2);
    let rigs = ranks(2, |rank| load(&runtime, rank, 2, &two).unwrap());
    rigs[1].write("x", &[1.; 3]).unwrap();
    assert_eq!(code(rigs[1].run()), Some(1200));
}

#[test]
fn a_communicator_comes_about() {
    let (_double, runtime) = open(&[("SOFTNRT_CORES", "3")]);
    let joined = ranks(3, |rank| code(runtime.core(rank).unwrap().build_global_comm(rank, 3)));
    assert_eq!(joined, [None; 3]);
}
