//! Control groups (cgroups(7)): what of the node's processors and memory each
//! virtual machine may have.
//!
//! ```text
//!  v2   OWN/fabric-0123456789abcdef/shop-web-0
//!  v1   cpu/OWN/fabric-0123456789abcdef/shop-web-0, the same below memory and pids
//! ```
//!
//! `OWN` is the group that the host agent is in, or what `--cgroup` names; the
//! number stands for the data directory. A group is made when its machine is started
//! and removed when that has ended. The kernel ends what goes beyond its memory; a
//! machine's own process is in the group before it is a VMM.

mod hierarchy;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use fabric_vmm::jail::launch::Door;
use sha2::{Digest as _, Sha256};

use hierarchy::{Controller, Hierarchy, Version};

use crate::files;

/// Where earlier groups are noted, in the data directory.
const NOTE: &str = "cgroups";
/// How long the kernel distributes a quota over, in microseconds
/// (admin-guide/cgroup-v2.rst, "CPU Interface Files").
const PERIOD: u64 = 100_000;
/// The weight of a group that has none.
const USUAL_WEIGHT: u64 = 100;
/// The `cpu.shares` of a group that has none, of version 1.
const USUAL_SHARES: u64 = 1024;

/// What a virtual machine may have of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its part of the processors where others want them too, 1 to 10,000; 100 is usual.
    pub cpu_weight: u32,
    /// What it has of them at most, in hundredths of one.
    pub cpu_percent: u32,
    /// Memory, of the VMM's own, in bytes.
    pub memory_bytes: u64,
    /// Threads.
    pub threads: u32,
}

/// Memory that a VMM needs beyond its guest's: its own, the kernel's for its page
/// tables, and some of its disks' pages.
const OWN_MEMORY_MIB: u64 = 64;
/// What the kernel needs to map a guest's memory, as its part of that; where KVM
/// shadows page tables, it is much.
const MAPPING_PART: u64 = 16;
/// What devices may use of a processor beside the guest's, in hundredths.
const DEVICES_PERCENT: u32 = 50;
/// Threads of a VMM beside its virtual processors.
const OWN_THREADS: u32 = 16;

impl Share {
    /// What a machine of this size needs, and has.
    #[must_use]
    pub fn of(vcpus: u8, memory_mib: u32, cpu_weight: u32) -> Self {
        let memory_mib = u64::from(memory_mib);
        Self {
            cpu_weight,
            cpu_percent: u32::from(vcpus) * 100 + DEVICES_PERCENT,
            memory_bytes: (memory_mib + memory_mib / MAPPING_PART + OWN_MEMORY_MIB) << 20,
            threads: u32::from(vcpus) + OWN_THREADS,
        }
    }

    /// What to write, into which file, and whether the kernel may lack that.
    fn settings(&self, controller: Controller, version: Version) -> Vec<Setting> {
        let weight = u64::from(self.cpu_weight);
        let quota = u64::from(self.cpu_percent) * PERIOD / 100;
        let must = |file, value: u64| Setting {
            file,
            value: value.to_string(),
            optional: false,
        };
        match (controller, version) {
            (Controller::Cpu, Version::Two) => vec![
                must("cpu.weight", weight),
                Setting {
                    file: "cpu.max",
                    value: format!("{quota} {PERIOD}"),
                    optional: false,
                },
            ],
            (Controller::Cpu, Version::One) => vec![
                must("cpu.shares", (weight * USUAL_SHARES / USUAL_WEIGHT).max(2)),
                must("cpu.cfs_period_us", PERIOD),
                must("cpu.cfs_quota_us", quota),
            ],
            (Controller::Memory, Version::Two) => vec![
                must("memory.max", self.memory_bytes),
                must("memory.swap.max", 0).if_there(),
            ],
            (Controller::Memory, Version::One) => vec![
                must("memory.limit_in_bytes", self.memory_bytes),
                must("memory.memsw.limit_in_bytes", self.memory_bytes).if_there(),
            ],
            (Controller::Pids, _) => vec![must("pids.max", self.threads.into())],
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Setting {
    file: &'static str,
    value: String,
    optional: bool,
}

impl Setting {
    fn if_there(self) -> Self {
        Self {
            optional: true,
            ..self
        }
    }

    fn write(&self, directory: &Path) -> Result<(), CgroupError> {
        let path = directory.join(self.file);
        match fs::write(&path, &self.value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.optional => Ok(()),
            result => result.map_err(CgroupError::at("write", &path)),
        }
    }
}

/// Why a machine cannot have a group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host does not give what is needed.
    #[error("no control groups for {0}")]
    Missing(String),
    /// One cannot be made.
    #[error("cannot {action} {path}")]
    Group {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Group {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Where the groups of this node's machines are.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// Each with the directory of all our groups.
    hierarchies: Vec<(Hierarchy, PathBuf)>,
}

impl Cgroups {
    /// Finds the place for groups of the machines of a data directory, and removes
    /// what earlier processes of the host agent left. `below` names the group that
    /// they are made in; ours without it.
    ///
    /// # Errors
    ///
    /// When the host has no control groups for processors, memory and threads, or
    /// does not let us make any.
    pub fn open(data: &Path, below: Option<&Path>) -> Result<Self, CgroupError> {
        let number = Sha256::digest(data.as_os_str().as_encoded_bytes());
        let number = u64::from_be_bytes(number[..8].try_into().unwrap_or_default());
        let name = format!("fabric-{number:016x}");
        let hierarchies = hierarchy::find(below)?;
        let cgroups = Self {
            hierarchies: hierarchies
                .into_iter()
                .map(|hierarchy| {
                    let ours = hierarchy.base.join(&name);
                    (hierarchy, ours)
                })
                .collect(),
        };
        cgroups.sweep(&data.join(NOTE))?;
        // Making one shows what is not allowed.
        let trial = cgroups.group("trial");
        trial.make(&Share::of(1, 32, 100))?;
        trial.remove();
        Ok(cgroups)
    }

    /// The group of that name.
    #[must_use]
    pub fn group(&self, name: &str) -> Group {
        let directories = self.hierarchies.iter();
        Group {
            directories: directories
                .map(|(hierarchy, ours)| (hierarchy.clone(), ours.join(name)))
                .collect(),
        }
    }

    /// Removes groups that nothing runs in, here and where an earlier process had
    /// them; notes where there are some.
    fn sweep(&self, note: &Path) -> Result<(), CgroupError> {
        let noted = match fs::read_to_string(note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CgroupError::at("read", note)(error));
            }
            other => other.unwrap_or_default(),
        };
        let mut places: Vec<PathBuf> = noted.lines().map(PathBuf::from).collect();
        places.extend(self.hierarchies.iter().map(|(_, ours)| ours.clone()));
        places.sort();
        places.dedup();
        for place in &places {
            for entry in fs::read_dir(place).into_iter().flatten().flatten() {
                // What is in use stays.
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(place);
        }
        places.retain(|place| {
            place.exists() || self.hierarchies.iter().any(|(_, ours)| ours == place)
        });
        let lines = places.iter().map(|place| format!("{}\n", place.display()));
        let text: String = lines.collect();
        files::write_atomically(note, text.as_bytes()).map_err(CgroupError::at("write", note))
    }
}

/// A machine's group.
#[derive(Debug, Clone)]
pub struct Group {
    directories: Vec<(Hierarchy, PathBuf)>,
}

impl Group {
    /// Makes it, or makes what is there have this share.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn make(&self, share: &Share) -> Result<(), CgroupError> {
        for (hierarchy, directory) in &self.directories {
            if let Some(ours) = directory.parent() {
                hierarchy.prepare(ours)?;
            }
            hierarchy::make_directory(directory)?;
            for controller in &hierarchy.controllers {
                for setting in share.settings(*controller, hierarchy.version) {
                    setting.write(directory)?;
                }
            }
        }
        Ok(())
    }

    /// How a process gets into it.
    #[must_use]
    pub fn doors(&self) -> Vec<Door> {
        let directories = self.directories.iter();
        directories
            .map(|(hierarchy, directory)| match hierarchy.version {
                Version::One => Door::Tasks(directory.join("tasks")),
                Version::Two => Door::Directory(directory.clone()),
            })
            .collect()
    }

    /// Its directories.
    #[cfg(test)]
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directories.iter().map(|(_, directory)| &**directory)
    }

    /// Whether the kernel ended a process of it for going beyond its memory.
    #[must_use]
    pub fn ran_out_of_memory(&self) -> bool {
        self.directories.iter().any(|(hierarchy, directory)| {
            let file = match hierarchy.version {
                Version::One => "memory.oom_control",
                Version::Two => "memory.events",
            };
            let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
            let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            killed.is_some_and(|killed| killed.trim() != "0")
        })
    }

    /// Removes it, and what all groups are in if it was the last one. One in which
    /// something runs stays.
    pub fn remove(&self) {
        for (_, directory) in &self.directories {
            if let Err(error) = fs::remove_dir(directory)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(group = %directory.display(), %error, "cannot remove a control group");
            }
            if let Some(ours) = directory.parent() {
                let _ = fs::remove_dir(ours);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_written_in_the_words_of_either_version() {
        let share = Share::of(2, 128, 50);
        let written = |controller, version| {
            let settings = share.settings(controller, version);
            let lines = settings
                .iter()
                .map(|one| format!("{}={}", one.file, one.value));
            lines.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            written(Controller::Cpu, Version::Two),
            "cpu.weight=50 cpu.max=250000 100000"
        );
        assert_eq!(
            written(Controller::Cpu, Version::One),
            "cpu.shares=512 cpu.cfs_period_us=100000 cpu.cfs_quota_us=250000"
        );
        let bytes = 200 << 20;
        assert_eq!(
            written(Controller::Memory, Version::Two),
            format!("memory.max={bytes} memory.swap.max=0")
        );
        assert_eq!(written(Controller::Pids, Version::One), "pids.max=18");
    }

    #[test]
    fn what_an_earlier_process_left_is_removed_and_what_runs_stays() {
        let data = tempfile::tempdir().unwrap();
        let old = data.path().join("old/fabric-0");
        fs::create_dir_all(old.join("shop-web-0")).unwrap();
        let busy = data.path().join("busy/fabric-0");
        fs::create_dir_all(busy.join("shop-web-1/cgroup.procs")).unwrap();
        let note = data.path().join(NOTE);
        fs::write(&note, format!("{}\n{}\n", old.display(), busy.display())).unwrap();

        let none = Cgroups {
            hierarchies: Vec::new(),
        };
        none.sweep(&note).unwrap();
        assert!(!old.exists() && busy.exists());
        let noted = fs::read_to_string(&note).unwrap();
        assert_eq!(noted, format!("{}\n", busy.display()));
    }
}
