//! Running a plan allocates nothing.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use common::decoder::{Family, ROWS, Rows, VOCAB, inputs, sequences};
use common::{Random, Stored};
use millrace_kernels::Precision;

/// The system's allocator, which counts.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The only test of this program: others would be counted too.
#[test]
fn a_hundred_steps_allocate_nothing() {
    for (seed, profile) in [(0, false), (1, true), (2, false), (3, false), (4, false)] {
        let family = Family::random(seed);
        let mut stored = Stored::new(seed);
        let sequences = sequences(&mut Random(seed), ROWS);
        let whole: Rows = sequences.iter().enumerate().map(|(i, s)| (i, 0, s.tokens.len())).collect();
        let decode: Rows = sequences.iter().enumerate().map(|(i, s)| (i, s.tokens.len() - 1, 1)).collect();
        let steps = [whole, decode].map(|rows| inputs(&sequences, &rows));
        let graphs = [0, 1].map(|i: usize| family.graph(&mut stored, steps[i][0].len(), steps[i][0].len()));
        let mut executor = stored.executor(2, Precision::Fast);
        executor.allocate(&graphs[0]).expect("caches");
        executor.profile(profile);
        let plans = [0, 1].map(|i: usize| executor.plan(&graphs[i]).expect("a plan"));
        let steps = [0, 1].map(|i: usize| steps[i].iter().map(Vec::as_slice).collect::<Vec<&[i32]>>());
        let mut outputs = [0, 1].map(|i: usize| vec![0.0; steps[i][0].len() * VOCAB]);

        let before = COUNT.load(SeqCst);
        for i in 0..100 {
            let i = i % 2;
            executor.run(&plans[i], &steps[i], &mut [&mut outputs[i]]).expect("a step");
        }
        assert_eq!(COUNT.load(SeqCst) - before, 0, "allocations in 100 steps of {family:?}");
        assert_eq!(executor.profiles().is_empty(), !profile);
    }
}
