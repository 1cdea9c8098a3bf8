//! The thread that drives a core.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::channel,
    },
    time::Duration,
};

use neuron_sys::{CoreThread, CoreThreadError, Poison};

use super::{NEFF, bound, log, runtime, table};

#[test]
fn it_works_in_order_and_drops_what_it_owns() {
    const W: usize = 20;
    let runtime = runtime(table::<W>());
    let thread = CoreThread::spawn(runtime.core(0).unwrap(), 4, |core| bound(&core)).unwrap();
    drop(runtime);
    let count = Arc::new(AtomicU32::new(0));
    let pending: Vec<_> = (0..20)
        .map(|_| {
            let count = Arc::clone(&count);
            thread.submit(move |(model, inputs, outputs, _)| {
                model.execute(inputs, outputs).unwrap();
                count.fetch_add(1, Ordering::Relaxed)
            })
        })
        .collect();
    for (i, pending) in pending.into_iter().enumerate() {
        assert_eq!(pending.wait(), Ok(i as u32));
    }
    drop(thread);
    assert_eq!(log::<W>().last().unwrap(), "close", "waited for, and it let everything go");
}

#[test]
fn its_stack_is_large() {
    #[inline(never)]
    fn deep(levels: u32) -> u64 {
        let page = std::hint::black_box([u64::from(levels); 512]);
        if levels == 0 { page[0] } else { deep(levels - 1) + page[511] }
    }
    let runtime = runtime(table::<21>());
    let thread = CoreThread::spawn(runtime.core(0).unwrap(), 1, |_| ()).unwrap();
    // Eight thousand frames of at least 4 KiB: 32 MiB, where a Rust thread has 2.
    assert_eq!(thread.run(|()| deep(8000)), Ok(8000 * 8001 / 2));
}

#[test]
fn a_panic_is_an_answer() {
    let runtime = runtime(table::<22>());
    let thread = CoreThread::spawn(runtime.core(0).unwrap(), 1, |_| 1).unwrap();
    let panicked = thread.run(|_: &mut i32| -> i32 { panic!("no {}", "good") });
    assert_eq!(panicked, Err(CoreThreadError::Panicked("no good".into())));
    assert_eq!(thread.run(|state| *state), Ok(1), "and the thread goes on");

    let dead: CoreThread<()> =
        CoreThread::spawn(runtime.core(1).unwrap(), 1, |_| panic!("at start")).unwrap();
    assert_eq!(dead.run(|()| 1), Err(CoreThreadError::Gone));
}

/// A call that hangs: waiting ends in time, and after giving the runtime up the thread is not waited for.
#[test]
fn a_hung_call_is_left_alone() {
    const W: usize = 23;
    let runtime = runtime(table::<W>());
    let thread = CoreThread::spawn(runtime.core(0).unwrap(), 1, |core| bound(&core)).unwrap();
    let (release, hang) = channel::<()>();
    let (ended, end) = channel::<()>();
    let pending = thread.submit(move |_| {
        let _ = hang.recv();
        drop(ended);
    });
    assert_eq!(pending.wait_timeout(Duration::from_millis(50)), Err(CoreThreadError::TimedOut));
    runtime.abandon();
    assert_eq!(runtime.poisoned(), Some(Poison::Abandoned));
    log::<W>();
    drop(thread);
    assert!(end.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty), "the drop did not wait for it");
    drop(release);
    let _ = end.recv();
    assert_eq!(pending.wait(), Ok(()), "a late answer still arrives");
    assert_eq!(log::<W>(), [""; 0], "and nothing was freed or closed");
}

/// Ranks load together while one of them first loads and unloads something else: if the waiting rank kept it out,
/// neither would ever finish.
#[test]
fn ranks_wait_for_each_other_and_not_for_the_lock() {
    const W: usize = 24;
    let runtime = runtime(table::<W>());
    let rank = |rank| CoreThread::spawn(runtime.core(rank).unwrap(), 1, |core| (core, None)).unwrap();
    let ranks = [rank(0), rank(1)];
    let early = ranks[0].submit(|(core, model)| *model = Some(core.load_collectives(NEFF, 0, 2).unwrap()));
    assert_eq!(early.wait_timeout(Duration::from_millis(50)), Err(CoreThreadError::TimedOut));
    let late = ranks[1].submit(|(core, model)| {
        drop(core.load(b"in x 4").unwrap());
        *model = Some(core.load_collectives(NEFF, 1, 2).unwrap());
    });
    let patience = Duration::from_secs(20);
    assert_eq!((late.wait_timeout(patience), early.wait_timeout(patience)), (Ok(()), Ok(())));
    drop((ranks, runtime));
    assert_eq!(log::<W>().iter().filter(|call| *call == "unload").count(), 3);
}

#[test]
fn cores_load_one_after_the_other() {
    const W: usize = 25;
    let runtime = runtime(table::<W>());
    let threads = [0, 1].map(|core| CoreThread::spawn(runtime.core(core).unwrap(), 1, |core| core).unwrap());
    let pending =
        threads.each_ref().map(|thread| thread.submit(|core| (0..20).for_each(|_| drop(core.load(NEFF)))));
    assert_eq!(pending.map(|pending| pending.wait()), [Ok(()), Ok(())]);
    let log = log::<W>();
    assert_eq!(log.iter().filter(|call| call.starts_with("BAD")).count(), 0);
    assert_eq!(log.iter().filter(|call| *call == "unload").count(), 40);
}
