//! A software double of the AWS Neuron runtime and compiler, so that the whole path of a model to a device and back can
//! be tested on any machine.
//!
//! `libsoftnrt.so` has the C interface of `libnrt.so.1`, as far as [`neuron_sys`] may call it, and computes on the CPU by
//! [`millrace_kernels::eval`]: primitives only, plainly and slowly. `softcc` has the command line of `neuronx-cc` and
//! packs what it is given, after a lint, into a file with a NEFF's header, which `libsoftnrt.so` alone can load.
//! **Neither measures or proves anything about devices**: what is tested is the caller, and the caller only against what
//! is publicly known of the vendor's library. The library says so on stderr when it is first called.
//!
//! It is stricter than the real one, so that what is careless here does not first show there. Each refusal is explained
//! on stderr:
//!
//! | what | status |
//! | --- | --- |
//! | a call before `nrt_init`, after `nrt_close` | 13, 14 |
//! | a handle that it never gave, or that is gone | 3 |
//! | a tensor name missing from a set or unknown to the model, a wrong size, a tensor of another core | 2 |
//! | an aliased input that is not the tensor of its output; other outputs that share memory with anything | 2 |
//! | an input of which nothing has ever been written; memory is filled with ones before the first write | 1002 |
//! | an index of a gather or scatter out of bounds | 1006 |
//! | an element scattered twice | 1002 |
//! | a float that its integer type cannot hold, an integer division by zero | 1003 |
//! | two executions at once on a core | 1005 |
//! | reading or writing a tensor during an execution that uses it | 2 |
//! | no bytes, or more than there are left on a core | 4 |
//! | more cores than there are | 9 |
//! | a NEFF of another major version; damaged or foreign | 10; 2 |
//! | ranks that run different programs, or do not come in time | 2, 5 at load; 1200 at execution |
//! | a NaN in an output, where `NEURON_FAIL_ON_NAN=1` | 1003 |
//!
//! What functions without a status are told wrongly is a *complaint*: leaks at `nrt_close`, a tensor freed while it is in
//! a set or in use, handles of nothing. Complaints go to stderr and are counted; `SOFTNRT_STRICT=1` makes them abort.
//!
//! # Settings
//!
//! Environment variables, read by `nrt_init` (fault, slow and no-op also by [`testing::Double::set`] while running):
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `SOFTNRT_CORES` | cores of the machine; `NEURON_RT_VISIBLE_CORES` and `NEURON_RT_NUM_CORES` choose of them | 2 |
//! | `SOFTNRT_MEMORY` | bytes of each core; host memory is taken only for what is written | 16 GiB |
//! | `SOFTNRT_FAULT` | faults, see below | none |
//! | `SOFTNRT_FAULT_FILE` | a file that is looked for at each call: its text takes the place of `SOFTNRT_FAULT`, calls are counted anew, and it is removed. So a test makes a process fail when it is where the test wants it | none |
//! | `SOFTNRT_SLOW` | milliseconds that each execution takes longer | 0 |
//! | `SOFTNRT_NOOP` | 1: executions check everything and compute nothing, memory starts as zeros: what is left is the caller's own time | 0 |
//! | `SOFTNRT_TIMEOUT` | seconds that a rank waits for the others | 120 |
//! | `SOFTNRT_STRICT` | 1: abort on a complaint | 0 |
//!
//! A fault is `call@which:what`; several are separated by commas. The call is a function's name without `nrt_`; `which`
//! counts its calls from 1, as `17`, `3-5`, or `3-` for all from the third; `what` is a status to return without doing
//! anything, or `hang`. So `SOFTNRT_FAULT=execute@17:1202,load@2:4,tensor_write@5:hang`.
//!
//! `softcc` reads two variables: `SOFTCC_PLAIN_ALIASES=1` leaves out the ending `.must_alias_input`, by which the
//! compiler is known to mark aliased inputs in some releases, and `SOFTCC_FAULT=what` or `what@part` for inputs whose
//! path contains a part:
//!
//! | fault | what happens |
//! | --- | --- |
//! | `error` | a diagnosis on stderr, no output, exit code 70 |
//! | `crash` | half of the output, then SIGABRT |
//! | `half` | half of the output, exit code 0 |
//! | `full` | half of the output, `No space left on device`, exit code 1 |
//! | `hang` | never returns, writes nothing |
//! | `slow:MS` | takes that many milliseconds longer |

pub mod compiler;
mod execute;
mod exports;
mod memory;
mod neff;
mod options;
mod ranks;
pub mod testing;
mod world;

pub use neff::{Build, PackError, pack};
