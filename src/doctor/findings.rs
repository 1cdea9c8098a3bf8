//! What is wrong, in words: a pure function of the facts, so that each rule has a test without the hardware.

use serde::Serialize;

use super::facts::Facts;

/// How much it matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Good to know.
    Note,
    /// Serving works, not as well as it could, or not for long.
    Warning,
    /// Serving from the devices will not work.
    Error,
}

/// One sentence on what is wrong, one on what to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) what: String,
    pub(super) remedy: String,
}

/// Reads the facts. `neuron` says that the devices are meant to be used, so that their absence is an error.
pub(super) fn findings(facts: &Facts, neuron: bool) -> Vec<Finding> {
    let mut list = Findings(Vec::new());
    devices(facts, neuron, &mut list);
    library(facts, &mut list);
    environment(facts, &mut list);
    compiler(facts, &mut list);
    host(facts, &mut list);
    store(facts, &mut list);
    list.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    list.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn push(&mut self, severity: Severity, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { severity, what: what.into(), remedy: remedy.into() });
    }
}

use Severity::{Error, Note, Warning};

fn devices(facts: &Facts, neuron: bool, list: &mut Findings) {
    let inventory = &facts.inventory;
    if inventory.devices.is_empty() {
        let (severity, kind) = (if neuron { Error } else { Note }, inventory.instance_type.as_deref());
        match kind.and_then(target) {
            Some(_) => list.push(
                Error,
                format!("this is {}, but no device is to be seen", kind.unwrap_or_default()),
                "install the driver (package aws-neuronx-dkms) and load it: modprobe neuron; then look at dmesg",
            ),
            None => list.push(
                severity,
                "there is no Neuron device here",
                "serve with --backend cpu, or run on an inf2, trn1 or trn2 instance",
            ),
        }
        return;
    }
    for device in &inventory.devices {
        let node = format!("/dev/neuron{}", device.index);
        if device.listed && !device.node {
            list.push(
                Warning,
                format!("the driver lists device {}, but {node} is not there", device.index),
                format!("in a container, give it: docker run --device={node}, or a request for aws.amazon.com/neuroncore"),
            );
        }
        if device.node && !device.listed {
            list.push(
                Error,
                format!("{node} is there, but the driver does not list the device"),
                "reload the driver (modprobe -r neuron; modprobe neuron) or reboot, and look at dmesg",
            );
        }
        let ecc = &device.ecc;
        if ecc.mem_uncorrected.unwrap_or(0) > 0 || ecc.sram_uncorrected.unwrap_or(0) > 0 {
            list.push(
                Error,
                format!("device {} counted memory errors that cannot be repaired", device.index),
                "stop and start the instance, so that it moves to other hardware, or terminate it",
            );
        } else if ecc.mem_repairable_uncorrected.unwrap_or(0) > 0 {
            list.push(
                Error,
                format!("device {} counted memory errors that a restart repairs", device.index),
                "reload the driver (modprobe -r neuron; modprobe neuron) or reboot",
            );
        }
    }
    if inventory.usable().next().is_none() {
        list.push(Error, "no device can be opened by this process", "see the lines on the /dev/neuron files");
    }
    if let Some(kind) = inventory.instance_type.as_deref()
        && target(kind).is_none()
    {
        list.push(
            Warning,
            format!("{kind} is no instance type that Millrace compiles for"),
            "inf2, trn1 and trn2 are; inf1 has another programming model, and trn3 is not known to work",
        );
    }
}

/// The compiler's target for an instance type.
pub(super) fn target(instance_type: &str) -> Option<&'static str> {
    match instance_type.split('.').next()? {
        "inf2" => Some("inf2"),
        "trn1" | "trn1n" => Some("trn1"),
        "trn2" | "trn2u" | "trn2n" => Some("trn2"),
        _ => None,
    }
}

fn library(facts: &Facts, list: &mut Findings) {
    let (library, here) = (&facts.library, !facts.inventory.devices.is_empty());
    if let Some(error) = &library.error {
        if here || library.unusable {
            list.push(
                Error,
                format!("the runtime library cannot be used: {error}"),
                "install aws-neuronx-runtime-lib, or name the file with --neuron-library",
            );
        }
        return;
    }
    if here && library.visible_cores.unwrap_or(0) == 0 {
        list.push(
            Error,
            "the runtime sees no core",
            "check NEURON_RT_VISIBLE_CORES, and that no other process has claimed the cores (neuron-ls)",
        );
    } else if library.visible_cores < library.total_cores {
        let count = |cores: Option<u32>| cores.map_or("?".into(), |cores| cores.to_string());
        list.push(
            Note,
            format!("{} of {} cores are visible", count(library.visible_cores), count(library.total_cores)),
            "NEURON_RT_VISIBLE_CORES or NEURON_RT_NUM_CORES says which; unset them to use all",
        );
    }
    let runtime = library.version.as_deref().and_then(release);
    let driver = facts.inventory.driver_version.as_deref().and_then(release);
    if let (Some(runtime), Some(driver)) = (runtime, driver) {
        if driver >= (2, 29) && runtime < (2, 33) {
            list.push(
                Error,
                format!(
                    "driver {}.{} needs a runtime of 2.33 or newer, and this is {}.{}",
                    driver.0, driver.1, runtime.0, runtime.1
                ),
                "upgrade aws-neuronx-runtime-lib and aws-neuronx-collectives",
            );
        }
        if runtime >= (2, 34) && driver <= (2, 26) {
            list.push(
                Error,
                format!(
                    "runtime {}.{} needs a driver newer than 2.26, and this is {}.{}",
                    runtime.0, runtime.1, driver.0, driver.1
                ),
                "upgrade aws-neuronx-dkms on the host",
            );
        }
    }
}

/// Major and minor number of a version such as `2.30.50.0 …`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn environment(facts: &Facts, list: &mut Findings) {
    let value =
        |name: &str| facts.variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if value("NEURON_RT_VISIBLE_CORES").is_some() && value("NEURON_RT_NUM_CORES").is_some() {
        list.push(
            Note,
            "NEURON_RT_VISIBLE_CORES and NEURON_RT_NUM_CORES are both set",
            "the first one wins; unset the other",
        );
    }
    if value("NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS").is_some_and(|value| value != "0") {
        list.push(
            Error,
            "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS makes executions return before they have ended",
            "unset it: results would be read too early (and runtimes from 2.34 on ignore it)",
        );
    }
    if value("NEURON_RT_STOCHASTIC_ROUNDING_EN").is_some_and(|value| value != "0") {
        list.push(
            Warning,
            "NEURON_RT_STOCHASTIC_ROUNDING_EN is set: the same request gives other answers each time",
            "unset it for inference",
        );
    }
    let logical = value("NEURON_LOGICAL_NC_CONFIG").or(value("NEURON_RT_VIRTUAL_CORE_SIZE"));
    if let Some(size) = logical
        && !matches!(size, "1" | "2")
    {
        list.push(
            Error,
            format!("a logical core cannot be {size:?} physical cores"),
            "set it to 1 or 2, or unset it",
        );
    }
}

fn compiler(facts: &Facts, list: &mut Findings) {
    if let Some(error) = &facts.compiler.error {
        let what = format!("{} cannot be asked for its version: {error}", facts.compiler.program.display());
        list.push(
            Note,
            what,
            "only compiling needs it: fill the store on another machine (`millrace compile`), or pip install neuronx-cc",
        );
    }
}

fn host(facts: &Facts, list: &mut Findings) {
    if facts.host.vector.as_ref().is_some_and(|units| !units.contains(&"avx2")) {
        list.push(
            Warning,
            "this CPU has no AVX2: the CPU backend runs its portable kernels, many times slower",
            "use a machine from the last ten years, or let the virtual machine see the host's instructions",
        );
    }
}

fn store(facts: &Facts, list: &mut Findings) {
    let Some(store) = &facts.store else { return };
    let path = store.path.display();
    if let Some(error) = &store.error {
        list.push(
            Error,
            format!("the store {path} cannot be read: {error}"),
            "name another with --neuron-store, or mount it",
        );
    } else if store.graphs.is_empty() && store.damaged.is_empty() {
        list.push(
            Warning,
            format!("the store {path} holds no compiled graph"),
            "fill it with `millrace compile --output`",
        );
    }
    for why in &store.damaged {
        list.push(Error, why.clone(), "remove that entry; `millrace compile` makes it anew");
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Compiler, Host, LibraryFacts, StoreFacts};
    use super::*;
    use neuron_sys::sysfs::{Device, Ecc, Inventory};

    /// An inf2.xlarge on which all is well.
    fn healthy() -> Facts {
        let device = Device { index: 0, node: true, listed: true, cores: Some(2), ..Device::default() };
        Facts {
            inventory: Inventory {
                instance_type: Some("inf2.xlarge".into()),
                driver_version: Some("2.27.4.0".into()),
                devices: vec![device],
            },
            library: LibraryFacts {
                path: Some("libnrt.so.1".into()),
                version: Some("2.31.24.0 release".into()),
                visible_cores: Some(2),
                total_cores: Some(2),
                ..LibraryFacts::default()
            },
            compiler: Compiler { program: "neuronx-cc".into(), version: Some("2.27".into()), error: None },
            variables: Vec::new(),
            host: Host { cores: 4, memory: None, available: None, vector: Some(vec!["avx2"]) },
            store: None,
        }
    }

    /// One thing spoiled, how bad that is, and what is said of it.
    type Case = (fn(&mut Facts), Severity, &'static str);

    #[test]
    fn each_thing_that_can_be_wrong_is_named_once_with_a_remedy() {
        assert_eq!(findings(&healthy(), true), []);
        let cases: &[Case] = &[
            (|f| f.inventory.devices.clear(), Error, "no device is to be seen"),
            (
                |f| {
                    f.inventory.devices.clear();
                    f.inventory.instance_type = Some("c7i.large".into());
                },
                Error,
                "no Neuron device here",
            ),
            (|f| f.inventory.instance_type = Some("inf1.xlarge".into()), Warning, "inf1.xlarge"),
            (|f| f.inventory.devices[0].listed = false, Error, "does not list"),
            (
                |f| f.inventory.devices[0].ecc = Ecc { sram_uncorrected: Some(1), ..Ecc::default() },
                Error,
                "cannot be repaired",
            ),
            (
                |f| {
                    f.inventory.devices[0].ecc = Ecc { mem_repairable_uncorrected: Some(1), ..Ecc::default() }
                },
                Error,
                "a restart repairs",
            ),
            (
                |f| f.library = LibraryFacts { error: Some("not found".into()), ..LibraryFacts::default() },
                Error,
                "not found",
            ),
            (|f| f.library.visible_cores = Some(0), Error, "sees no core"),
            (|f| f.library.visible_cores = Some(1), Note, "1 of 2 cores"),
            (|f| f.inventory.driver_version = Some("2.29.1".into()), Error, "needs a runtime of 2.33"),
            (
                |f| {
                    f.library.version = Some("2.34.10".into());
                    f.inventory.driver_version = Some("2.26.0".into());
                },
                Error,
                "needs a driver newer",
            ),
            (
                |f| f.variables = vec![("NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS".into(), "3".into())],
                Error,
                "before they have ended",
            ),
            (
                |f| f.variables = vec![("NEURON_RT_STOCHASTIC_ROUNDING_EN".into(), "1".into())],
                Warning,
                "other answers",
            ),
            (|f| f.variables = vec![("NEURON_LOGICAL_NC_CONFIG".into(), "4".into())], Error, "logical core"),
            (
                |f| {
                    f.variables = ["NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES"]
                        .map(|name| (name.into(), "1".into()))
                        .to_vec();
                },
                Note,
                "both set",
            ),
            (|f| f.compiler.error = Some("No such file".into()), Note, "No such file"),
            (|f| f.host.vector = Some(Vec::new()), Warning, "AVX2"),
            (|f| f.store = Some(StoreFacts::default()), Warning, "no compiled graph"),
            (
                |f| {
                    f.store =
                        Some(StoreFacts { damaged: vec!["a byte differs".into()], ..StoreFacts::default() })
                },
                Error,
                "a byte differs",
            ),
            (
                |f| {
                    f.store =
                        Some(StoreFacts { error: Some("permission denied".into()), ..StoreFacts::default() })
                },
                Error,
                "permission denied",
            ),
        ];
        for (spoil, severity, words) in cases {
            let mut facts = healthy();
            spoil(&mut facts);
            let found = findings(&facts, true);
            assert_eq!(found.len(), 1, "{words}: {found:#?}");
            assert_eq!(found[0].severity, *severity, "{found:#?}");
            assert!(found[0].what.contains(words) && !found[0].remedy.is_empty(), "{words}: {found:#?}");
        }
    }

    #[test]
    fn a_device_that_the_container_was_not_given() {
        let mut facts = healthy();
        facts.inventory.devices[0].node = false;
        let found = findings(&facts, true);
        let words: Vec<_> = found.iter().map(|finding| (finding.severity, finding.what.as_str())).collect();
        assert_eq!(
            words,
            [
                (Error, "no device can be opened by this process"),
                (Warning, "the driver lists device 0, but /dev/neuron0 is not there")
            ]
        );
    }

    #[test]
    fn a_laptop_is_well_without_devices() {
        let mut facts = healthy();
        facts.inventory = Inventory::default();
        facts.library = LibraryFacts { error: Some("not found".into()), ..LibraryFacts::default() };
        facts.compiler.error = Some("No such file".into());
        assert!(findings(&facts, false).iter().all(|finding| finding.severity == Note));
        assert!(findings(&facts, true).iter().any(|finding| finding.severity == Error));
    }

    #[test]
    fn targets() {
        for (instance, expected) in [
            ("inf2.48xlarge", Some("inf2")),
            ("trn1n.32xlarge", Some("trn1")),
            ("trn2u.48xlarge", Some("trn2")),
            ("inf1.xlarge", None),
            ("", None),
        ] {
            assert_eq!(target(instance), expected, "{instance:?}");
        }
    }
}
