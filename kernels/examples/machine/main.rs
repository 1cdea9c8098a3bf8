//! What this machine could do at best, as JSON: memory bandwidth and multiply-accumulates of the kinds that the kernels
//! use. The roofline that `scripts/bench-peers` compares with is measured by it in the same run.
//!
//! `cargo run --release -p millrace-kernels --example machine [-- THREADS]`

mod peaks;

use millrace_kernels::Pool;

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let pool = Pool::new(threads);
    pool.pin_caller();
    let peaks::Peaks { read, read_model, f32, i16, i8 } = peaks::Peaks::measure(&pool);
    println!(
        "{{\"threads\": {threads}, \"read_gb_per_second\": {read:.2}, \"read_96_mib_gb_per_second\": {read_model:.2}, \
         \"f32_gmac_per_second\": {f32:.1}, \"i16_gmac_per_second\": {i16:.1}, \"i8_gmac_per_second\": {i8:.1}}}"
    );
}
