//! Settings, from the environment or as a test overrides them.

use std::collections::BTreeMap;
use std::time::Duration;

use neuron_sys::sys::NRT_STATUS;

/// What `nrt_init` reads.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Cores of the machine.
    pub(crate) total: u32,
    /// Cores of this process.
    pub(crate) visible: u32,
    /// Bytes of a core.
    pub(crate) memory: usize,
    pub(crate) slow: Duration,
    pub(crate) noop: bool,
    pub(crate) strict: bool,
    pub(crate) refuse_nan: bool,
    /// How long a rank waits for the others.
    pub(crate) patience: Duration,
    pub(crate) faults: Vec<Fault>,
}

/// Something that goes wrong on request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    call: String,
    /// Which of its calls, counted from 1.
    first: u64,
    last: u64,
    what: Effect,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    Status(NRT_STATUS),
    Hang,
}

/// Calls that have no status to return.
const VOID: [&str; 3] = ["close", "tensor_free", "destroy_tensor_set"];

/// Calls that have one, and can fail.
const FALLIBLE: [&str; 25] = [
    "get_version",
    "get_instance_info",
    "get_total_nc_count",
    "get_total_vnc_count",
    "get_visible_nc_count",
    "get_visible_vnc_count",
    "get_vnc_memory_stats",
    "init",
    "load",
    "load_collectives",
    "build_global_comm",
    "unload",
    "get_model_tensor_info",
    "free_model_tensor_info",
    "get_model_instance_count",
    "execute",
    "tensor_allocate",
    "tensor_allocate_slice",
    "tensor_read",
    "tensor_write",
    "tensor_memset",
    "tensor_read_batch",
    "tensor_write_batch",
    "allocate_tensor_set",
    "add_tensor_to_tensor_set",
];

impl Fault {
    fn parse(text: &str) -> Result<Fault, String> {
        let wrong = |why: &str| format!("the fault {text:?} {why}; it is written as call@which:what");
        let (call, rest) = text.split_once('@').ok_or_else(|| wrong("names no call"))?;
        let (which, what) = rest.split_once(':').ok_or_else(|| wrong("does not say what"))?;
        let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number > 0);
        let (first, last) = match which.split_once('-') {
            None => (number(which), number(which)),
            Some((first, "")) => (number(first), Some(u64::MAX)),
            Some((first, last)) => (number(first), number(last)),
        };
        let (Some(first), Some(last)) = (first, last) else { return Err(wrong("counts from 1")) };
        let what = match what {
            "hang" => Effect::Hang,
            status => match status.parse::<u32>() {
                Ok(status) if status > 0 => Effect::Status(NRT_STATUS(status)),
                _ => return Err(wrong("has neither a failing status nor hang")),
            },
        };
        let can = FALLIBLE.contains(&call) || (VOID.contains(&call) && what == Effect::Hang);
        if !can {
            return Err(wrong("is of no call that can do so"));
        }
        Ok(Fault { call: call.to_owned(), first, last, what })
    }

    fn parse_all(text: &str) -> Result<Vec<Fault>, String> {
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(Fault::parse).collect()
    }

    /// What happens to the `count`-th call of that name.
    pub(crate) fn effect(faults: &[Fault], call: &str, count: u64) -> Option<Effect> {
        let hit = |fault: &&Fault| fault.call == call && (fault.first..=fault.last).contains(&count);
        faults.iter().find(hit).map(|fault| fault.what)
    }
}

impl Settings {
    /// From `overrides`, and from the environment what they leave out.
    pub(crate) fn read(overrides: &BTreeMap<String, String>) -> Result<Settings, String> {
        Settings::from(|name| overrides.get(name).cloned().or_else(|| std::env::var(name).ok()))
    }

    fn from(get: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        fn number<T: std::str::FromStr>(text: Option<String>, name: &str, default: T) -> Result<T, String> {
            match text.filter(|text| !text.is_empty()) {
                None => Ok(default),
                Some(text) => {
                    text.parse().map_err(|_| format!("{name} is {text:?}, which is no such number"))
                }
            }
        }
        let flag = |name: &str| get(name).is_some_and(|text| text == "1");
        let total = number(get("SOFTNRT_CORES"), "SOFTNRT_CORES", 2)?;
        let seconds: f64 = number(get("SOFTNRT_TIMEOUT"), "SOFTNRT_TIMEOUT", 120.0)?;
        let patience = Duration::try_from_secs_f64(seconds)
            .map_err(|_| format!("SOFTNRT_TIMEOUT is {seconds}, which is no time to wait"))?;
        Ok(Settings {
            total,
            visible: visible(&get, total)?,
            memory: number(get("SOFTNRT_MEMORY"), "SOFTNRT_MEMORY", 16 << 30)?,
            slow: Duration::from_millis(number(get("SOFTNRT_SLOW"), "SOFTNRT_SLOW", 0)?),
            noop: flag("SOFTNRT_NOOP"),
            strict: flag("SOFTNRT_STRICT"),
            refuse_nan: flag("NEURON_FAIL_ON_NAN"),
            patience,
            faults: Fault::parse_all(&get("SOFTNRT_FAULT").unwrap_or_default())?,
        })
    }
}

/// How many cores this process sees: a contiguous rising list such as `4-7,8`, or a number, or all.
fn visible(get: impl Fn(&str) -> Option<String>, total: u32) -> Result<u32, String> {
    let list = get("NEURON_RT_VISIBLE_CORES").filter(|list| !list.is_empty());
    if let Some(list) = list {
        let wrong = || format!("NEURON_RT_VISIBLE_CORES={list} is no rising list of the {total} cores");
        let mut next = None;
        let mut count = 0;
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let parse = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
            let (first, last) = (parse(first)?, parse(last)?);
            if next.is_some_and(|next| first != next) || last < first || last >= total {
                return Err(wrong());
            }
            next = Some(last + 1);
            count += last - first + 1;
        }
        return Ok(count);
    }
    match get("NEURON_RT_NUM_CORES").filter(|count| !count.is_empty()).map(|count| count.parse::<u32>()) {
        None | Some(Ok(0)) => Ok(total),
        Some(Ok(count)) if count <= total => Ok(count),
        _ => Err(format!("NEURON_RT_NUM_CORES is no number of the {total} cores")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(given: &[(&str, &str)]) -> Result<Settings, String> {
        let given: BTreeMap<&str, &str> = given.iter().copied().collect();
        Settings::from(|name| given.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn faults_hit_the_calls_they_count() {
        let faults = Fault::parse_all("execute@2-3:1202, load@4-:hang,init@1:1").expect("three faults");
        let hit = |call, count| Fault::effect(&faults, call, count);
        let failed = |code| Some(Effect::Status(NRT_STATUS(code)));
        assert_eq!(
            (1..5).map(|n| hit("execute", n)).collect::<Vec<_>>(),
            [None, failed(1202), failed(1202), None]
        );
        assert_eq!(
            [hit("load", 3), hit("load", 4), hit("load", 1 << 40)],
            [None, Some(Effect::Hang), Some(Effect::Hang)]
        );
        assert_eq!([hit("init", 1), hit("init", 2), hit("unload", 1)], [failed(1), None, None]);
        for wrong in
            ["execute", "execute@1", "execute@0:1", "execute@x:1", "execute@1:0", "run@1:1", "close@1:3"]
        {
            assert!(Fault::parse_all(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Fault::parse_all("close@1:hang").map(|faults| faults.len()), Ok(1));
    }

    #[test]
    fn cores_are_chosen_as_the_vendor_documents() {
        let count = |given: &[(&str, &str)]| {
            settings(&[&[("SOFTNRT_CORES", "8")], given].concat()).map(|settings| settings.visible)
        };
        assert_eq!(count(&[]), Ok(8));
        assert_eq!(count(&[("NEURON_RT_NUM_CORES", "4")]), Ok(4));
        assert_eq!(count(&[("NEURON_RT_NUM_CORES", "0")]), Ok(8));
        for (list, cores) in [("3", 1), ("4-7", 4), ("0,1,2-3", 4)] {
            let given = [("NEURON_RT_VISIBLE_CORES", list), ("NEURON_RT_NUM_CORES", "2")];
            assert_eq!(count(&given), Ok(cores), "{list}");
        }
        for list in ["8", "2-1", "0,2", "1,0", "x", "0-7,8"] {
            assert!(count(&[("NEURON_RT_VISIBLE_CORES", list)]).is_err(), "{list}");
        }
        assert!(count(&[("NEURON_RT_NUM_CORES", "9")]).is_err());
        assert!(settings(&[("SOFTNRT_MEMORY", "a lot")]).is_err());
    }
}
