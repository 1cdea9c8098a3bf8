//! Ranks that load one program together.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use millrace_kernels::eval::Meeting;
use neuron_sys::sys::NRT_STATUS;

use crate::world::{CHANGED, Refusal, World};

/// What ranks are coming together for, and who has come.
pub(crate) struct Gathering {
    what: What,
    /// The core of each rank that has come.
    cores: Vec<Option<u32>>,
    meeting: Arc<Meeting>,
    /// Told to all who wait, once it is settled.
    outcome: Arc<std::sync::OnceLock<Result<(), String>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// A program with this hash.
    Program([u8; 32]),
    /// A communicator, without a program.
    Communicator,
}

/// Joins the other ranks, and returns when all `count` of them have come.
pub(crate) fn join(
    mut world: MutexGuard<'_, World>,
    what: What,
    core: u32,
    rank: u32,
    count: u32,
) -> Result<Arc<Meeting>, Refusal> {
    let settings = world.open()?.clone();
    if count > settings.visible {
        let why = format!("{count} ranks on {} visible cores", settings.visible);
        return Err(Refusal::new(NRT_STATUS::NRT_LOAD_NOT_ENOUGH_NC, why));
    }
    if rank >= count {
        return Err(Refusal::invalid(format!("rank {rank} of {count}")));
    }
    let gathering = world.gathering.get_or_insert_with(|| Gathering {
        what,
        cores: vec![None; count as usize],
        meeting: Meeting::new(count as usize, settings.patience),
        outcome: Arc::default(),
    });
    let wrong = if gathering.cores.len() != count as usize {
        Some(format!("rank {rank} is one of {count}, and others wait to be {}", gathering.cores.len()))
    } else if gathering.what != what {
        Some(format!("rank {rank} loads another program than the ranks that wait"))
    } else if gathering.cores[rank as usize].is_some() {
        Some(format!("rank {rank} is there twice"))
    } else if gathering.cores.contains(&Some(core)) {
        Some(format!("core {core} is to be two ranks"))
    } else {
        None
    };
    let outcome = Arc::clone(&gathering.outcome);
    let meeting = Arc::clone(&gathering.meeting);
    match wrong {
        Some(why) => {
            let _ = outcome.set(Err(why.clone()));
            world.gathering = None;
            CHANGED.notify_all();
            return Err(Refusal::invalid(why));
        }
        None => gathering.cores[rank as usize] = Some(core),
    }
    if gathering.cores.iter().all(Option::is_some) {
        let _ = outcome.set(Ok(()));
        world.gathering = None;
        CHANGED.notify_all();
        return Ok(meeting);
    }
    let until = Instant::now() + settings.patience;
    loop {
        match outcome.get() {
            Some(Ok(())) => return Ok(meeting),
            Some(Err(why)) => return Err(Refusal::invalid(why.clone())),
            None => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let why = format!("rank {rank} waited {:?} for the other ranks to load", settings.patience);
            let _ = outcome.set(Err(why.clone()));
            world.gathering = None;
            CHANGED.notify_all();
            return Err(Refusal::new(NRT_STATUS::NRT_TIMEOUT, why));
        }
        (world, _) = CHANGED.wait_timeout(world, left).unwrap_or_else(PoisonError::into_inner);
    }
}
