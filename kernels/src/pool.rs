//! A fork-join thread pool for steps of a few microseconds.
//!
//! [`Pool::run`] calls one closure on every worker at once; the caller is worker 0. Inside, workers share loops
//! by drawing chunks from a counter ([`Worker::for_chunks`]), so a worker whose processor was taken away costs
//! its current chunk and no more, and meet at [`Worker::barrier`].
//!
//! A worker that has to wait spins for some microseconds (a decode step has hundreds of barriers, each far
//! shorter than a wake-up), then parks. Where there are more workers than processors it hardly spins at all:
//! whoever it waits for needs the processor that it would spin on.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::cpu;

/// How long a waiting worker spins before it parks: longer than a chunk, shorter than a scheduler's slice.
const SPIN: Duration = Duration::from_micros(40);

/// Bytes of stack of a worker: callers may lend workers to what recurses (grammars). What is not used costs nothing.
const STACK: usize = 64 << 20;

/// Loops without a barrier between them that the pool can tell apart.
const LOOPS: usize = 16;

/// A set of worker threads, pinned to processors of their own.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held by [`Pool::run`]: one body at a time.
    running: Mutex<()>,
}

/// One worker's hand on the pool during [`Pool::run`].
#[derive(Debug)]
pub struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    /// The loop that comes next, counted from the last barrier.
    next_loop: Cell<usize>,
}

type Body = dyn Fn(&Worker<'_>) + Sync;
type Payload = Box<dyn Any + Send>;

/// What the workers share. Fields that one side writes while the other spins lie on cache lines of their own.
struct Shared {
    count: usize,
    spin: Duration,
    /// The body of the current run. Written by the caller while every other worker waits for `epoch`.
    body: UnsafeCell<Option<*const Body>>,
    /// Bumped to start a run, and once more to end the threads.
    epoch: Line<AtomicU64>,
    /// Workers that have left the current run.
    left: Line<AtomicUsize>,
    /// Workers at the barrier, and how often it has opened.
    arrived: Line<AtomicUsize>,
    opened: Line<AtomicU64>,
    /// The next index of each loop since the last barrier.
    loops: [Line<AtomicUsize>; LOOPS],
    /// Set when a body panics, so that nobody waits for its worker.
    poisoned: AtomicBool,
    panic: Mutex<Option<Payload>>,
    stop: AtomicBool,
    /// Who is parked, and how to wake them; worker 0's thread may be another in each run.
    parked: Box<[Line<AtomicBool>]>,
    handles: Mutex<Vec<Option<Thread>>>,
}

// SAFETY: `body` is the only field that is not Sync. Worker 0 alone writes it, before the release increment of
// `epoch` that starts a run and after every other worker has left the run before (`left`); others read it only
// between those two.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `body` is to a Sync closure, and is used only within the run that lent it.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("count", &self.count).field("spin", &self.spin).finish_non_exhaustive()
    }
}

/// A pair of cache lines, since processors fetch lines in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

/// Thrown through the bodies of workers that wait for one that has panicked.
struct Poisoned;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts `threads - 1` threads (at least none), each pinned to a processor of its own where there are
    /// enough of them; worker 0 is whoever calls [`Pool::run`].
    ///
    /// # Panics
    /// Where the system refuses to start a thread.
    pub fn new(threads: usize) -> Pool {
        let count = threads.max(1);
        let cpus = cpu::allowed();
        // An empty list means "unknown", not "none".
        let crowded = !cpus.is_empty() && cpus.len() < count;
        let shared = Arc::new(Shared {
            count,
            spin: if crowded { Duration::ZERO } else { SPIN },
            body: UnsafeCell::new(None),
            epoch: Line::default(),
            left: Line::default(),
            arrived: Line::default(),
            opened: Line::default(),
            loops: Default::default(),
            poisoned: AtomicBool::new(false),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            parked: (0..count).map(|_| Line::default()).collect(),
            handles: Mutex::new(vec![None; count]),
        });
        let threads = (1..count)
            .map(|index| {
                let worker = Arc::clone(&shared);
                let cpu = if crowded { None } else { cpus.get(index).copied() };
                let thread = thread::Builder::new()
                    .name(format!("kernels-{index}"))
                    .stack_size(STACK)
                    .spawn(move || {
                        if let Some(cpu) = cpu {
                            cpu::pin(cpu);
                        }
                        worker.serve(index);
                    })
                    .expect("the system refused to start a worker thread");
                lock(&shared.handles)[index] = Some(thread.thread().clone());
                thread
            })
            .collect();
        Pool { shared, threads, running: Mutex::new(()) }
    }

    /// The number of workers, the caller of [`Pool::run`] among them.
    pub fn threads(&self) -> usize {
        self.shared.count
    }

    /// Pins the calling thread to the processor that the other workers leave free. For a thread that does
    /// nothing but run this pool: a pin stays, and threads started later inherit it. `false` where the thread
    /// is not pinned, which only costs speed.
    pub fn pin_caller(&self) -> bool {
        let cpus = cpu::allowed();
        cpus.len() >= self.shared.count && cpu::pin(cpus[0])
    }

    /// Calls `body` once on every worker, all at the same time, and returns when all have returned. What was
    /// written before the call is visible to every worker, and what they wrote to the caller afterwards.
    /// Allocates nothing. Calls from several threads take turns.
    ///
    /// # Panics
    /// With the body's own panic, if it panics on any worker; the others are released from their barriers and
    /// the pool stays usable. Also where a body calls `run` of any pool.
    pub fn run(&self, body: &(dyn Fn(&Worker<'_>) + Sync)) {
        assert!(!INSIDE.get(), "Pool::run called from the body of a run: it would wait for itself");
        let shared = &*self.shared;
        let worker = Worker { shared, index: 0, next_loop: Cell::new(0) };
        if shared.count == 1 {
            INSIDE.set(true);
            let result = catch_unwind(AssertUnwindSafe(|| body(&worker)));
            INSIDE.set(false);
            return result.unwrap_or_else(|payload| resume_unwind(payload));
        }
        let _turn = lock(&self.running);
        lock(&shared.handles)[0] = Some(thread::current());
        // SAFETY: no other worker is in a run (the last one ended with all of them gone), so nobody reads
        // `body`. Its lifetime is erased; it is used only until all workers have left, below.
        unsafe {
            let erased: *const (dyn Fn(&Worker<'_>) + Sync + '_) = body;
            *shared.body.get() =
                Some(std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), *const Body>(erased));
        }
        shared.left.0.store(0, Relaxed);
        shared.reset_loops();
        shared.epoch.0.fetch_add(1, Release);
        shared.wake();
        shared.enter(&worker, body);
        shared.wait(0, || shared.left.0.load(Acquire) == shared.count);
        shared.arrived.0.store(0, Relaxed);
        if shared.poisoned.swap(false, Relaxed) {
            let payload = lock(&shared.panic).take();
            resume_unwind(payload.unwrap_or_else(|| Box::new("a worker panicked")));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.epoch.0.fetch_add(1, Release);
        self.shared.wake();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of bodies, so there is nothing left to report.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A worker thread's life.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait(index, || self.epoch.0.load(Acquire) != seen);
            seen += 1;
            if self.stop.load(Relaxed) {
                return;
            }
            // SAFETY: the caller has written `body` before it bumped the epoch, and keeps it alive and
            // unchanged until this worker has counted itself in `left`.
            let body = unsafe { &*(*self.body.get()).expect("a run has a body") };
            self.enter(&Worker { shared: self, index, next_loop: Cell::new(0) }, body);
        }
    }

    /// Runs the body on one worker and counts it out, whatever happens.
    fn enter(&self, worker: &Worker<'_>, body: &(dyn Fn(&Worker<'_>) + Sync)) {
        INSIDE.set(true);
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| body(worker))) {
            if !payload.is::<Poisoned>() {
                lock(&self.panic).get_or_insert(payload);
            }
            self.poisoned.store(true, Release);
            self.wake();
        }
        INSIDE.set(false);
        if self.left.0.fetch_add(1, SeqCst) + 1 == self.count {
            self.wake();
        }
    }

    /// Waits until `ready`: spins a little, then parks. Whoever makes it ready calls [`Shared::wake`].
    fn wait(&self, index: usize, ready: impl Fn() -> bool) {
        if ready() {
            return;
        }
        if !self.spin.is_zero() {
            let start = Instant::now();
            loop {
                for _ in 0..32 {
                    if ready() {
                        return;
                    }
                    std::hint::spin_loop();
                }
                if start.elapsed() >= self.spin {
                    break;
                }
            }
        } else {
            thread::yield_now();
        }
        loop {
            self.parked[index].0.store(true, Relaxed);
            // Pairs with the fence in `wake`: either the condition is seen here, or the flag there.
            fence(SeqCst);
            if ready() {
                break;
            }
            thread::park();
        }
        self.parked[index].0.store(false, Relaxed);
    }

    /// Wakes whoever is parked, after a condition that `wait` may be waiting for has been made true.
    fn wake(&self) {
        fence(SeqCst);
        if !self.parked.iter().any(|parked| parked.0.load(Relaxed)) {
            return;
        }
        let handles = lock(&self.handles);
        for (parked, handle) in self.parked.iter().zip(handles.iter()) {
            if parked.0.swap(false, Relaxed)
                && let Some(handle) = handle
            {
                handle.unpark();
            }
        }
    }

    fn reset_loops(&self) {
        for counter in &self.loops {
            counter.0.store(0, Relaxed);
        }
    }
}

impl Worker<'_> {
    /// This worker's number, below [`Worker::count`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// The number of workers.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Waits until every worker is here. What any of them wrote before is visible to all after. Every worker
    /// has to call it equally often.
    ///
    /// # Panics
    /// Where another worker has panicked: it will never come.
    pub fn barrier(&self) {
        let shared = self.shared;
        self.next_loop.set(0);
        if shared.count == 1 {
            return;
        }
        let opened = shared.opened.0.load(Relaxed);
        if shared.arrived.0.fetch_add(1, SeqCst) + 1 == shared.count {
            shared.reset_loops();
            shared.arrived.0.store(0, Relaxed);
            shared.opened.0.store(opened + 1, Release);
            shared.wake();
            return;
        }
        shared.wait(self.index, || shared.opened.0.load(Acquire) != opened || shared.poisoned.load(Acquire));
        if shared.opened.0.load(Acquire) == opened {
            resume_unwind(Box::new(Poisoned));
        }
    }

    /// Shares `0..total` out in ranges of at most `chunk` indices, each given to whichever worker comes first,
    /// then waits for all of them ([`Worker::barrier`]). Every worker has to call it with the same numbers.
    ///
    /// # Panics
    /// Where `chunk` is zero; and as [`Worker::barrier`].
    pub fn for_chunks(&self, total: usize, chunk: usize, f: impl FnMut(Range<usize>)) {
        self.chunks(total, chunk, f);
        self.barrier();
    }

    /// As [`Worker::for_chunks`] but does not wait at the end: several loops that do not depend on one another
    /// can share one barrier. At most 16 loops may lie between two barriers.
    ///
    /// # Panics
    /// Where `chunk` is zero, or there are too many loops.
    pub fn chunks(&self, total: usize, chunk: usize, mut f: impl FnMut(Range<usize>)) {
        assert!(chunk > 0, "a chunk has at least one index");
        if self.shared.count == 1 {
            for start in (0..total).step_by(chunk) {
                f(start..(start + chunk).min(total));
            }
            return;
        }
        let index = self.next_loop.get();
        assert!(index < LOOPS, "more than {LOOPS} loops without a barrier");
        self.next_loop.set(index + 1);
        let counter = &self.shared.loops[index].0;
        loop {
            let start = counter.fetch_add(chunk, Relaxed);
            if start >= total {
                return;
            }
            f(start..(start + chunk).min(total));
        }
    }
}
