//! A software double of `neuronx-cc`, for tests; see [`softnrt::compiler`].

use std::process::ExitCode;

fn main() -> ExitCode {
    softnrt::compiler::main(std::env::args_os())
}
