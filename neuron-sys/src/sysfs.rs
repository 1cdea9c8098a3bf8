//! Neuron devices as the kernel shows them: what can be known without the runtime library, and without claiming a core.
//!
//! Everything is read below a root folder, `/` on a real machine. Files that are missing or hold something else are
//! `None`: which there are depends on the driver's release.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Where the driver lists devices, below the root.
const DEVICES: &str = "sys/devices/virtual/neuron_device";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The machine's type according to its firmware, such as `trn1.32xlarge`.
    pub instance_type: Option<String>,
    /// The kernel driver's version, if it is loaded and says.
    pub driver_version: Option<String>,
    /// The devices by number.
    pub devices: Vec<Device>,
}

/// One device, which is a chip with several cores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its number, as in `/dev/neuron0`.
    pub index: u32,
    /// Whether `/dev/neuron<index>` is there. A container sees all devices in sysfs, and of these files only those that
    /// it was given.
    pub node: bool,
    /// Whether the driver lists it.
    pub listed: bool,
    /// Physical cores.
    pub cores: Option<u32>,
    /// The architecture of its cores, such as `NCv2`.
    pub core_arch: Option<String>,
    /// The chip's name.
    pub name: Option<String>,
    /// The instance type according to the driver.
    pub instance_type: Option<String>,
    /// The chip's serial number.
    pub serial_number: Option<String>,
    /// The devices it has links to.
    pub connected: Vec<u32>,
    /// Errors that it counted.
    pub ecc: Ecc,
}

/// Memory errors that could not be corrected, since the driver was loaded or the counter reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ecc {
    /// In device memory.
    pub mem_uncorrected: Option<u64>,
    /// In device memory, and repaired when the driver is loaded anew.
    pub mem_repairable_uncorrected: Option<u64>,
    /// In on-chip memory.
    pub sram_uncorrected: Option<u64>,
}

impl Ecc {
    /// Whether any counter is above zero: the device should not be given work.
    pub fn any(&self) -> bool {
        [self.mem_uncorrected, self.mem_repairable_uncorrected, self.sram_uncorrected]
            .iter()
            .flatten()
            .any(|&n| n > 0)
    }
}

impl Inventory {
    /// The devices that this process can open.
    pub fn usable(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|device| device.node)
    }
}

/// Looks for devices below `root`. Never fails: on a machine without any, nothing is found.
pub fn scan(root: &Path) -> Inventory {
    let listed = numbered(&root.join(DEVICES), "neuron").into_iter();
    let mut devices: BTreeMap<u32, Device> =
        listed.map(|(index, path)| (index, read_device(index, &path))).collect();
    for (index, _) in numbered(&root.join("dev"), "neuron") {
        let device = devices.entry(index).or_insert_with(|| Device { index, ..Device::default() });
        device.node = true;
    }
    Inventory {
        instance_type: line(&root.join("sys/devices/virtual/dmi/id/product_name")),
        driver_version: line(&root.join("sys/module/neuron/version")),
        devices: devices.into_values().collect(),
    }
}

fn read_device(index: u32, path: &Path) -> Device {
    let cores = numbered(path, "neuron_core");
    let info = path.join("info/architecture");
    let ecc = |name: &str| number(&path.join("stats/hardware").join(name));
    Device {
        index,
        node: false,
        listed: true,
        cores: number(&path.join("core_count"))
            .or_else(|| u32::try_from(cores.len()).ok().filter(|&count| count > 0)),
        core_arch: cores.first().and_then(|(_, core)| line(&core.join("info/architecture/arch_type"))),
        name: line(&info.join("device_name")),
        instance_type: line(&info.join("instance_type")),
        serial_number: line(&path.join("info/serial_number")),
        connected: line(&path.join("connected_devices")).map_or(Vec::new(), |list| {
            list.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
        }),
        ecc: Ecc {
            mem_uncorrected: ecc("mem_ecc_uncorrected"),
            mem_repairable_uncorrected: ecc("mem_ecc_repairable_uncorrected"),
            sram_uncorrected: ecc("sram_ecc_uncorrected"),
        },
    }
}

/// The entries of a folder that are `prefix` and a number, by that number.
fn numbered(folder: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let index = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((index, entry.path()))
        })
        .collect();
    found.sort_unstable();
    found
}

/// A file's text without the white space around it; `None` if there is none.
fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    line(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder under the system's temporary one, removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("neuron-sysfs-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_machine_with_devices() {
        const D: &str = DEVICES;
        let file = |path: &str| format!("{D}/{path}");
        let files = [
            ("sys/devices/virtual/dmi/id/product_name".into(), "inf2.24xlarge\n"),
            ("sys/module/neuron/version".into(), "2.25.4.0\n"),
            (file("neuron10/core_count"), "2\n"),
            (file("neuron2/core_count"), "2\n"),
            (file("neuron2/connected_devices"), "1, 10\n"),
            (file("neuron2/info/serial_number"), "00ab\n"),
            (file("neuron2/info/architecture/device_name"), "Inferentia2\n"),
            (file("neuron2/info/architecture/instance_type"), "Inf2\n"),
            (file("neuron2/neuron_core0/info/architecture/arch_type"), "NCv2\n"),
            (file("neuron2/neuron_core1/info/architecture/arch_type"), "NCv2\n"),
            (file("neuron2/stats/hardware/mem_ecc_uncorrected"), "0\n"),
            (file("neuron2/stats/hardware/mem_ecc_repairable_uncorrected"), "3\n"),
            (file("neuron2/stats/hardware/sram_ecc_uncorrected"), "what\n"),
            (file("power/control"), "auto\n"),
            ("dev/neuron2".into(), ""),
            ("dev/neuron11".into(), ""),
            ("dev/neuronx".into(), ""),
            ("dev/null".into(), ""),
        ];
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let tree = Tree::new("devices", &files);
        let found = scan(&tree.0);
        assert_eq!(found.instance_type.as_deref(), Some("inf2.24xlarge"));
        assert_eq!(found.driver_version.as_deref(), Some("2.25.4.0"));
        let expected = [
            Device {
                index: 2,
                node: true,
                listed: true,
                cores: Some(2),
                core_arch: Some("NCv2".into()),
                name: Some("Inferentia2".into()),
                instance_type: Some("Inf2".into()),
                serial_number: Some("00ab".into()),
                connected: vec![1, 10],
                ecc: Ecc {
                    mem_uncorrected: Some(0),
                    mem_repairable_uncorrected: Some(3),
                    sram_uncorrected: None,
                },
            },
            Device { index: 10, listed: true, cores: Some(2), ..Device::default() },
            Device { index: 11, node: true, ..Device::default() },
        ];
        assert_eq!(found.devices, expected);
        assert_eq!(found.usable().map(|device| device.index).collect::<Vec<_>>(), [2, 11]);
        assert!(found.devices[0].ecc.any() && !found.devices[1].ecc.any());
    }

    #[test]
    fn cores_are_counted_where_the_driver_gives_no_number() {
        let core = format!("{DEVICES}/neuron0/neuron_core0/info/architecture/arch_type");
        let tree = Tree::new("count", &[(&core, "NCv3\n"), (&core.replace("core0", "core1"), "NCv3\n")]);
        assert_eq!(scan(&tree.0).devices[0].cores, Some(2));
    }

    #[test]
    fn a_machine_without() {
        let tree = Tree::new("none", &[("dev/null", "")]);
        assert_eq!(scan(&tree.0), Inventory::default());
        assert_eq!(scan(&tree.0.join("absent")), Inventory::default());
    }
}
