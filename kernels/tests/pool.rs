//! The thread pool under stress: many short runs, loops and barriers, more workers than processors, panics.
//! Workers write plain memory that others read after a barrier, so a missing one shows as a wrong number.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_kernels::pool::Pool;

/// One, as many as most machines have, and more than any.
const THREADS: [usize; 5] = [1, 2, 3, 8, 33];

/// Numbers that workers share without atomics: only barriers order the accesses.
struct Shared(Vec<UnsafeCell<u64>>);

// SAFETY: the tests below let one worker at a time write an element, and read it only behind a barrier.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(len: usize) -> Shared {
        Shared((0..len).map(|_| UnsafeCell::new(0)).collect())
    }

    fn get(&self, index: usize) -> u64 {
        // SAFETY: nobody writes the element now, says the caller.
        unsafe { *self.0[index].get() }
    }

    fn set(&self, index: usize, value: u64) {
        // SAFETY: nobody else accesses the element now, says the caller.
        unsafe { *self.0[index].get() = value }
    }
}

#[test]
fn every_worker_runs_the_body_once_and_the_caller_sees_what_it_wrote() {
    for threads in THREADS {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        let seen = Shared::new(threads);
        for round in 1..=200 {
            pool.run(&|worker| {
                assert_eq!(worker.count(), threads);
                seen.set(worker.index(), seen.get(worker.index()) + 1);
            });
            assert!((0..threads).all(|index| seen.get(index) == round), "{threads} threads, round {round}");
        }
    }
}

#[test]
fn no_threads_means_one() {
    assert_eq!(Pool::new(0).threads(), 1);
}

#[test]
fn loops_cover_every_index_once_in_chunks() {
    for threads in THREADS {
        let pool = Pool::new(threads);
        for (total, chunk) in [(0, 1), (1, 1), (7, 3), (64, 64), (100, 7), (5, 100)] {
            let visits = Shared::new(total);
            pool.run(&|worker| {
                worker.for_chunks(total, chunk, |range| {
                    assert!(!range.is_empty() && range.len() <= chunk && range.start % chunk == 0);
                    range.for_each(|index| visits.set(index, visits.get(index) + 1));
                });
                // Behind the loop everybody sees all of it.
                assert!((0..total).all(|index| visits.get(index) == 1), "{threads}: {total} by {chunk}");
            });
        }
    }
}

/// Each stage reads what arbitrary workers wrote in the stage before.
#[test]
fn stages_see_the_stage_before() {
    const CELLS: usize = 61;
    for threads in THREADS {
        let rounds = if threads > 8 { 20 } else { 300 };
        let pool = Pool::new(threads);
        let cells = [Shared::new(CELLS), Shared::new(CELLS)];
        for round in 0..rounds {
            pool.run(&|worker| {
                for stage in 0..4 {
                    let (from, to) = (&cells[stage % 2], &cells[(stage + 1) % 2]);
                    worker.for_chunks(CELLS, 1 + stage, |range| {
                        for i in range {
                            // Rotates by one and adds one.
                            to.set(i, from.get((i + CELLS - 1) % CELLS) + 1);
                        }
                    });
                }
            });
            assert!(
                (0..CELLS).all(|i| cells[0].get(i) == 4 * (round + 1)),
                "{threads} threads, round {round}"
            );
        }
    }
}

#[test]
fn loops_without_barriers_between_them_do_not_mix() {
    for threads in THREADS {
        let pool = Pool::new(threads);
        let sums: Vec<AtomicUsize> = (0..5).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..50 {
            pool.run(&|worker| {
                for _ in 0..3 {
                    for (i, sum) in sums.iter().enumerate() {
                        worker.chunks(10 * i, 3, |range| {
                            sum.fetch_add(range.sum::<usize>(), Ordering::Relaxed);
                        });
                    }
                    worker.barrier();
                }
            });
        }
        for (i, sum) in sums.iter().enumerate() {
            let n = 10 * i;
            assert_eq!(sum.load(Ordering::Relaxed), 150 * (n * n.saturating_sub(1) / 2), "loop {i}");
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_whoever_waits_and_the_pool_lives_on() {
    for threads in THREADS {
        let pool = Pool::new(threads);
        for culprit in 0..threads.min(3) {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|worker| {
                    worker.barrier();
                    if worker.index() == culprit {
                        panic!("worker {culprit} gives up");
                    }
                    worker.barrier();
                    worker.for_chunks(100, 1, |_| {});
                });
            }));
            let payload = result.expect_err("the panic is not lost");
            let message = payload.downcast_ref::<String>().expect("the body's own payload");
            assert_eq!(*message, format!("worker {culprit} gives up"));
            let count = AtomicUsize::new(0);
            pool.run(&|worker| {
                worker.for_chunks(50, 1, |_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert_eq!(count.load(Ordering::Relaxed), 50);
        }
    }
}

#[test]
fn a_run_within_a_run_is_refused() {
    for threads in [1, 2] {
        let (pool, other) = (Pool::new(threads), Pool::new(1));
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(&|_| other.run(&|_| {}))));
        assert!(result.is_err());
        pool.run(&|_| {});
    }
}

#[test]
fn callers_on_several_threads_take_turns() {
    let pool = Pool::new(2);
    let total = Shared::new(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.run(&|worker| {
                        if worker.index() == 1 {
                            total.set(0, total.get(0) + 1);
                        }
                    });
                }
            });
        }
    });
    assert_eq!(total.get(0), 800);
}

/// Longer than any spinning: workers park and have to be woken, at the start of a run and at a barrier.
#[test]
fn parked_workers_wake() {
    let pool = Pool::new(3);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(3));
        let late = AtomicUsize::new(0);
        pool.run(&|worker| {
            if worker.index() == 2 {
                std::thread::sleep(Duration::from_millis(3));
                late.store(1, Ordering::Relaxed);
            }
            worker.barrier();
            assert_eq!(late.load(Ordering::Relaxed), 1);
        });
    }
}

/// With spinning to the end of a scheduler's slice, 33 workers at 400 barriers would take minutes.
#[test]
fn more_workers_than_processors_do_not_collapse() {
    let pool = Pool::new(33);
    let start = Instant::now();
    pool.run(&|worker| (0..400).for_each(|_| worker.barrier()));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
