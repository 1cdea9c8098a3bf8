//! What every status means and what is to be done about it: one table.

use std::fmt;

use crate::sys::NRT_STATUS;

/// What a call of the runtime returned. Every number is a status; those of [`Status::known`] have a name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub NRT_STATUS);

/// When something went wrong. The same status calls for different things then: memory that is short while a model
/// loads means fewer cache blocks, and later means that something is wrong with this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Claiming the cores.
    Init,
    /// Loading models and allocating their tensors, and their first run.
    Load,
    /// Serving.
    Run,
}

/// What to do about a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reaction {
    /// Back-pressure: wait for something to complete and call again, within a bound.
    Wait,
    /// Another process has the core, or the driver has not yet cleaned up after one: wait and start again, within a
    /// bound. Never end other processes.
    RetryInit,
    /// The inputs are at fault: fail those requests whose rows are, and count it as a bug of ours.
    FailRequest,
    /// A not-a-number came out: run the rows one by one, fail the guilty; if all are, the process.
    FailNumeric,
    /// Device memory is short: load with fewer cache blocks.
    Shrink,
    /// The process can no longer use its cores: end it without closing anything, and let its supervisor start anew.
    Restart,
    /// The hardware is at fault: end the process, take the machine out of service, stop or terminate it.
    ReplaceNode,
    /// The process must end, and the driver be loaded anew or the machine rebooted.
    ReloadDriver,
    /// The artefact, the configuration or the machine is the wrong one: end the process; starting again is no cure.
    Config,
}

impl Reaction {
    /// Whether the runtime is unusable from here on. Then nothing is closed, unloaded or freed: the driver takes
    /// everything back when the process ends, while closing after such a status has hung and crashed in past releases.
    pub fn is_fatal(self) -> bool {
        matches!(self, Self::Restart | Self::ReplaceNode | Self::ReloadDriver)
    }
}

struct Row {
    status: NRT_STATUS,
    name: &'static str,
    meaning: &'static str,
    /// At init, at load, at run.
    reactions: [Reaction; 3],
}

/// One row for each failure that the header lists. Meanings and reactions are from the vendor's troubleshooting
/// guide, except where one code serves several causes (`NRT_FAILURE`, `NRT_HW_ERROR` at load is also a NEFF built for
/// another architecture); there the phase decides. `NRT_TIMEOUT` and `NRT_EXEC_COMPLETED_WITH_ERR` are to be taken as
/// [`Reaction::ReplaceNode`] by a supervisor that sees them twice in ten minutes.
static ROWS: &[Row] = {
    use Reaction::*;
    macro_rules! rows {
        ($($name:ident $meaning:literal $reactions:expr;)*) => {
            &[$(Row {
                status: NRT_STATUS::$name,
                name: stringify!($name),
                meaning: $meaning,
                reactions: $reactions,
            }),*]
        };
    }
    rows! {
        NRT_FAILURE "unspecific failure; at init often cores that another process holds" [RetryInit, Config, Restart];
        NRT_INVALID "invalid NEFF, or a tensor of the wrong name or size" [Config, Config, FailRequest];
        NRT_INVALID_HANDLE "a handle is not valid" [Restart, Restart, Restart];
        NRT_RESOURCE "device memory, or another resource, is exhausted" [RetryInit, Shrink, Restart];
        NRT_TIMEOUT "no answer in time: the execution hangs" [Restart, Restart, Restart];
        NRT_HW_ERROR "hardware error; at load often a NEFF for another architecture" [ReplaceNode, Config, ReplaceNode];
        NRT_QUEUE_FULL "the execution queue is full" [Wait, Wait, Wait];
        NRT_LOAD_NOT_ENOUGH_NC "fewer NeuronCores than the NEFF needs" [RetryInit, Config, Config];
        NRT_UNSUPPORTED_NEFF_VERSION "the NEFF needs another runtime: compile it anew or upgrade the runtime"
            [Config, Config, Config];
        NRT_FAIL_HOST_MEM_ALLOC "host memory is exhausted" [Restart, Shrink, Restart];
        NRT_UNINITIALIZED "the runtime is not initialised" [Restart, Restart, Restart];
        NRT_CLOSED "the runtime is closed" [Restart, Restart, Restart];
        NRT_QUEUE_EMPTY "the execution queue is empty" [Wait, Wait, Wait];
        NRT_EXEC_UNIT_UNRECOVERABLE "the execution unit needs a reset" [Restart, Restart, Restart];
        NRT_EXEC_BAD_INPUT "an input was refused" [Config, Config, FailRequest];
        NRT_EXEC_COMPLETED_WITH_NUM_ERR "a not-a-number was produced" [Config, Config, FailNumeric];
        NRT_EXEC_COMPLETED_WITH_ERR "logical or parity error during execution" [Restart, Restart, Restart];
        NRT_EXEC_NC_BUSY "another model or process has the NeuronCore" [RetryInit, RetryInit, Restart];
        NRT_EXEC_OOB "an index was out of bounds" [Config, Config, FailRequest];
        NRT_COLL_PENDING "a collective operation has not completed" [Wait, Wait, Wait];
        NRT_EXEC_HW_ERR_COLLECTIVES "a collective operation is stuck; look at the other ranks first"
            [Restart, Restart, Restart];
        NRT_EXEC_HW_ERR_HBM_UE "uncorrectable error in device memory" [ReplaceNode, ReplaceNode, ReplaceNode];
        NRT_EXEC_HW_ERR_NC_UE "uncorrectable error in on-chip memory" [ReplaceNode, ReplaceNode, ReplaceNode];
        NRT_EXEC_HW_ERR_DMA_ABORT "a DMA engine aborted" [ReplaceNode, ReplaceNode, ReplaceNode];
        NRT_EXEC_SW_NQ_OVERFLOW "notification queue overflow; set NEURON_RT_ENABLE_DGE_NOTIFICATIONS=0"
            [Restart, Restart, Restart];
        NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE "device memory error that loading the driver anew repairs"
            [ReloadDriver, ReloadDriver, ReloadDriver];
        NRT_NETWORK_PROXY_FAILURE "a network operation of the runtime failed" [Restart, Restart, Restart];
    }
};

impl Status {
    /// Not a failure, and the only status without a row.
    pub const SUCCESS: Self = Self(NRT_STATUS::NRT_SUCCESS);

    /// Every failure that has a name.
    pub fn known() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| Self(row.status))
    }

    /// The number.
    pub fn code(self) -> u32 {
        self.0.0
    }

    fn row(self) -> Option<&'static Row> {
        ROWS.iter().find(|row| row.status == self.0)
    }

    /// Its name in the C header; `None` for a number this crate does not know.
    pub fn name(self) -> Option<&'static str> {
        if self == Self::SUCCESS {
            return Some("NRT_SUCCESS");
        }
        self.row().map(|row| row.name)
    }

    /// A few words; `None` for a number this crate does not know.
    pub fn meaning(self) -> Option<&'static str> {
        self.row().map(|row| row.meaning)
    }

    /// What to do about this failure. An unknown one ends the process: nothing is known of what still works.
    pub fn reaction(self, phase: Phase) -> Reaction {
        self.row().map_or(Reaction::Restart, |row| row.reactions[phase as usize])
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.meaning()) {
            (Some(name), Some(meaning)) => write!(f, "{name} ({}): {meaning}", self.code()),
            (Some(name), None) => write!(f, "{name} ({})", self.code()),
            (None, _) => write!(f, "unknown status {}", self.code()),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name}({})", self.code()),
            None => write!(f, "Status({})", self.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Phase::*, Reaction::*, *};

    /// The constants of the generated bindings, read from their source.
    fn header() -> Vec<(&'static str, u32)> {
        include_str!("../sys/bindings.rs")
            .lines()
            .filter_map(|line| {
                let (name, rest) = line.trim().strip_prefix("pub const ")?.split_once(": NRT_STATUS")?;
                let value = rest.split_once("NRT_STATUS(")?.1.split_once(')')?.0;
                Some((name, value.parse().unwrap()))
            })
            .collect()
    }

    #[test]
    fn every_code_of_the_header_has_one_row() {
        let header = header();
        assert_eq!(header.len(), ROWS.len() + 1, "all but NRT_SUCCESS");
        for (name, code) in header {
            let rows = ROWS.iter().filter(|row| row.status.0 == code).count();
            assert_eq!(rows, usize::from(code != 0), "rows of {name}");
            assert_eq!(Status(NRT_STATUS(code)).name(), Some(name));
        }
    }

    /// The expected number and reactions of every code, written a second time and by number, so that a slip of the
    /// hand in the table above shows.
    #[test]
    fn every_code_calls_for_what_the_guides_say() {
        let expected = [
            (1, [RetryInit, Config, Restart]),
            (2, [Config, Config, FailRequest]),
            (3, [Restart; 3]),
            (4, [RetryInit, Shrink, Restart]),
            (5, [Restart; 3]),
            (6, [ReplaceNode, Config, ReplaceNode]),
            (7, [Wait; 3]),
            (9, [RetryInit, Config, Config]),
            (10, [Config; 3]),
            (11, [Restart, Shrink, Restart]),
            (13, [Restart; 3]),
            (14, [Restart; 3]),
            (15, [Wait; 3]),
            (101, [Restart; 3]),
            (1002, [Config, Config, FailRequest]),
            (1003, [Config, Config, FailNumeric]),
            (1004, [Restart; 3]),
            (1005, [RetryInit, RetryInit, Restart]),
            (1006, [Config, Config, FailRequest]),
            (1100, [Wait; 3]),
            (1200, [Restart; 3]),
            (1201, [ReplaceNode; 3]),
            (1202, [ReplaceNode; 3]),
            (1203, [ReplaceNode; 3]),
            (1204, [Restart; 3]),
            (1205, [ReloadDriver; 3]),
            (1206, [Restart; 3]),
        ];
        assert_eq!(expected.len(), Status::known().count());
        for (code, reactions) in expected {
            let status = Status(NRT_STATUS(code));
            assert_eq!([Init, Load, Run].map(|phase| status.reaction(phase)), reactions, "{status}");
            assert!(status.to_string().starts_with(status.name().unwrap()), "{status}");
            assert!(status.meaning().is_some_and(|meaning| !meaning.is_empty()));
        }
    }

    #[test]
    fn an_unknown_code_is_data_and_ends_the_process() {
        let status = Status(NRT_STATUS(u32::MAX));
        assert_eq!((status.name(), status.meaning()), (None, None));
        assert_eq!(status.to_string(), "unknown status 4294967295");
        assert_eq!([Init, Load, Run].map(|phase| status.reaction(phase)), [Restart; 3]);
        assert!(status.reaction(Run).is_fatal());
    }

    #[test]
    fn only_what_ends_the_process_is_fatal() {
        let fatal: Vec<u32> =
            Status::known().filter(|status| status.reaction(Run).is_fatal()).map(Status::code).collect();
        assert_eq!(
            fatal,
            [1, 3, 4, 5, 6, 11, 13, 14, 101, 1004, 1005, 1200, 1201, 1202, 1203, 1204, 1205, 1206]
        );
    }
}
