//! What is made of a status of the device's runtime: by [`Reaction`], at load and while serving.

use std::time::{Duration, Instant};

use neuron_sys::{CoreThreadError, Error, Phase, Reaction};

use crate::RunError;

/// How long a call that meets back-pressure is repeated. Executions are synchronous and one at a time, so a queue that
/// stays full for longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Repeats a call while the runtime asks to wait.
pub(super) fn patiently<T>(mut call: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    let started = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        match call() {
            Err(error) if error.reaction() == Reaction::Wait && started.elapsed() < PATIENCE => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

/// What to do, in words for the log.
pub(super) fn advice(reaction: Reaction) -> &'static str {
    match reaction {
        Reaction::Wait => "the device made no progress: the process must end and be started anew",
        Reaction::RetryInit => {
            "another process may have the cores: see neuron-ls, and choose others by NEURON_RT_VISIBLE_CORES"
        }
        Reaction::FailRequest => {
            "the inputs are at fault, which is a defect of this program: please report it"
        }
        Reaction::FailNumeric => "a not-a-number was computed",
        Reaction::Shrink => "memory is short: give --kv-memory less, or raise --tensor-parallel-size",
        Reaction::Restart => "the process must end and be started anew",
        Reaction::ReplaceNode => {
            "the hardware is at fault: take the instance out of service, then stop or replace it"
        }
        Reaction::ReloadDriver => {
            "load the driver anew (rmmod neuron; modprobe neuron) or reboot the instance"
        }
        Reaction::Config => {
            "the compiled programs do not suit this device or runtime: compile them anew for this --target"
        }
    }
}

/// The error of a rank while it serves. Statuses of executions keep what they call for, whatever else was called.
pub(super) fn serving(rank: usize, error: &Error) -> RunError {
    let reaction = match error {
        Error::Nrt(nrt) => nrt.status.reaction(Phase::Run),
        other => other.reaction(),
    };
    let why = format!("core {rank}: {error}; {}", advice(reaction));
    match reaction {
        Reaction::FailRequest | Reaction::FailNumeric => RunError::Step(why),
        _ => RunError::Fatal(why),
    }
}

/// The error of a thread that drives a rank.
pub(super) fn thread(rank: usize, error: &CoreThreadError) -> RunError {
    RunError::Fatal(format!("core {rank}: {error}; {}", advice(Reaction::Restart)))
}

/// The graver one of two.
pub(super) fn graver(a: RunError, b: RunError) -> RunError {
    match (&a, &b) {
        (RunError::Step(_), RunError::Fatal(_)) => b,
        _ => a,
    }
}
