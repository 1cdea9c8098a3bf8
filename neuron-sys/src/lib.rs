//! The AWS Neuron runtime (`libnrt.so`) from Rust, opened at run time: a program that uses this crate also starts
//! where the library is absent.
//!
//! | floor | what it is | who uses it |
//! | --- | --- | --- |
//! | [`sys`] | types and the table of functions, generated from `include/nrt.h` and checked in | the other floors; a software runtime, to be held to the same signatures |
//! | [`result`] | the same calls, still `unsafe`, each returning `Result<_, NrtError>`; what every [`Status`] means and calls for | `safe` |
//! | [`safe`] | owners with `Drop`, held together by `Arc`s: nothing can be used after what it lives in is closed | an inference engine |
//!
//! | a device idea | in Rust |
//! | --- | --- |
//! | the vendor's library, its version and what it lacks | [`Library`] |
//! | the cores claimed for this process | [`Runtime`], one at a time |
//! | one core | [`Core`]; [`CoreThread`] is the thread that drives it |
//! | a compiled program (NEFF) on a core | [`Model`] |
//! | device memory, or a part of it | [`Tensor`] |
//! | tensors bound to a program's names | [`TensorSet`]; a tensor in the input set *and* the output set is updated in place |
//!
//! Beside the floors, [`neff`] reads the header of a compiled program and [`sysfs`] lists devices; neither needs the
//! library.
//!
//! The rules that shape `safe`:
//! - *One core, one caller.* The vendor does not say which calls may overlap, so the calls of a core exclude each
//!   other by a lock, and starting, closing, loading and unloading exclude each other in the process.
//! - *After a fatal status nothing is closed.* Past releases crashed or hung when they were closed after a failed
//!   execution, and the driver cleans up after the process anyway. So drops then leak, and calls return
//!   [`Error::Poisoned`].
//! - *Errors of a drop are not lost*: they are logged, and the next call returns the first one.
//! - *An unknown code is data.* No value that the library returns becomes a Rust `enum` without a check.

pub mod neff;
pub mod result;
pub mod safe;
pub mod sys;
pub mod sysfs;

pub use result::{NrtError, Phase, Reaction, Status};
pub use safe::{
    Core, CoreThread, CoreThreadError, Error, Library, MemoryStats, Model, OpenError, Pending, Poison,
    Runtime, Tensor, TensorInfo, TensorSet, Usage,
};
