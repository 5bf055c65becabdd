//! Which hierarchies of control groups this host has, and where in them ours begin.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use procfs::process::{MountInfo, Process};

use super::CgroupError;

/// Where the host agent itself goes, of version 2, where a group with groups in it
/// may hold no process (admin-guide/cgroup-v2.rst, "No Internal Process Constraint").
const LEAF: &str = "host-agent";

/// The two interfaces of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller.
    One,
    /// One hierarchy.
    Two,
}

/// What is controlled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Time on processors.
    Cpu,
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

/// A hierarchy with controllers that we use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// The group in which ours are made.
    pub base: PathBuf,
    /// Its interface.
    pub version: Version,
    /// What it controls for us.
    pub controllers: Vec<Controller>,
}

/// A mounted hierarchy, and which group in it a process is in.
#[derive(Debug)]
struct Mounted {
    point: PathBuf,
    /// The group that is at the mount point.
    root: PathBuf,
    version: Version,
    /// Those of version 1.
    controllers: Vec<String>,
    own: PathBuf,
}

impl Mounted {
    fn base(&self, below: Option<&Path>) -> PathBuf {
        let own = self.own.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let group = below.unwrap_or(own);
        let plain = group
            .components()
            .filter(|part| matches!(part, Component::Normal(_)));
        self.point.join(plain.collect::<PathBuf>())
    }
}

/// The hierarchies that control processors, memory and threads.
pub fn find(below: Option<&Path>) -> Result<Vec<Hierarchy>, CgroupError> {
    let mounted = mounted().map_err(|error| {
        let path = Path::new("/proc/self");
        CgroupError::at("read", path)(io::Error::other(error))
    })?;
    choose(&mounted, below)
}

fn mounted() -> procfs::ProcResult<Vec<Mounted>> {
    let process = Process::myself()?;
    let own = process.cgroups()?.0;
    let mounts = process.mountinfo()?.0.into_iter();
    Ok(mounts
        .filter_map(|mount| {
            let version = match mount.fs_type.as_str() {
                "cgroup" => Version::One,
                "cgroup2" => Version::Two,
                _ => return None,
            };
            let controllers = options(&mount);
            let own = own.iter().find(|group| match version {
                Version::Two => group.hierarchy == 0,
                Version::One => {
                    let known = |name| controllers.contains(name);
                    !group.controllers.is_empty() && group.controllers.iter().all(known)
                }
            })?;
            Some(Mounted {
                point: mount.mount_point,
                root: mount.root.into(),
                version,
                own: (&own.pathname).into(),
                controllers,
            })
        })
        .collect())
}

fn options(mount: &MountInfo) -> Vec<String> {
    mount.super_options.keys().cloned().collect()
}

/// Version 2, where that has all that is needed; else version 1.
fn choose(mounted: &[Mounted], below: Option<&Path>) -> Result<Vec<Hierarchy>, CgroupError> {
    for mount in mounted.iter().filter(|mount| mount.version == Version::Two) {
        let base = parent_of_leaf(mount.base(below));
        let path = base.join("cgroup.controllers");
        let there = fs::read_to_string(&path).unwrap_or_default();
        let has = |one: &Controller| there.split_whitespace().any(|name| name == one.name());
        if Controller::ALL.iter().all(has) {
            return Ok(vec![Hierarchy {
                base,
                version: Version::Two,
                controllers: Controller::ALL.to_vec(),
            }]);
        }
    }
    let mut found = Vec::<Hierarchy>::new();
    for controller in Controller::ALL {
        let mut split = mounted.iter().filter(|mount| mount.version == Version::One);
        let mount = split
            .find(|mount| {
                mount
                    .controllers
                    .iter()
                    .any(|name| name == controller.name())
            })
            .ok_or_else(|| CgroupError::Missing(controller.name().to_owned()))?;
        let base = mount.base(below);
        match found.iter_mut().find(|hierarchy| hierarchy.base == base) {
            Some(hierarchy) => hierarchy.controllers.push(controller),
            None => found.push(Hierarchy {
                base,
                version: Version::One,
                controllers: vec![controller],
            }),
        }
    }
    Ok(found)
}

/// An earlier process of ours may have moved us there already.
fn parent_of_leaf(base: PathBuf) -> PathBuf {
    match base.parent() {
        Some(parent) if base.ends_with(LEAF) => parent.to_owned(),
        _ => base,
    }
}

/// Makes a group, if it is not there.
pub fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(CgroupError::at("make", path)),
    }
}

impl Hierarchy {
    /// Makes the group that all of ours are in, with the controllers that they need.
    pub fn prepare(&self, ours: &Path) -> Result<(), CgroupError> {
        if self.version == Version::One {
            return make_directory(ours);
        }
        if self.enable(&self.base).is_err() {
            // As long as we are in that group ourselves.
            let leaf = self.base.join(LEAF);
            make_directory(&leaf)?;
            let door = leaf.join("cgroup.procs");
            fs::write(&door, "0").map_err(CgroupError::at("write", &door))?;
            self.enable(&self.base)?;
        }
        make_directory(ours)?;
        self.enable(ours)
    }

    /// Lets the groups in a group be controlled.
    fn enable(&self, group: &Path) -> Result<(), CgroupError> {
        let path = group.join("cgroup.subtree_control");
        let names = self.controllers.iter();
        let all: Vec<String> = names.map(|one| format!("+{}", one.name())).collect();
        fs::write(&path, all.join(" ")).map_err(CgroupError::at("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(point: &str, controllers: &[&str], own: &str) -> Mounted {
        Mounted {
            point: point.into(),
            root: "/".into(),
            version: Version::One,
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            own: own.into(),
        }
    }

    #[test]
    fn controllers_of_version_one_are_found_wherever_they_are_mounted() {
        let mounted = [
            split("/cg/cpu,cpuacct", &["rw", "cpu", "cpuacct"], "/agents"),
            split("/cg/memory", &["memory"], "/agents/one"),
            split("/cg/cpu,cpuacct", &["pids", "freezer"], "/agents"),
        ];
        let found = choose(&mounted, None).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].base, Path::new("/cg/cpu,cpuacct/agents"));
        assert_eq!(found[0].controllers, [Controller::Cpu, Controller::Pids]);
        assert_eq!(found[1].base, Path::new("/cg/memory/agents/one"));

        let named = choose(&mounted, Some(Path::new("/lab/../x"))).unwrap();
        assert_eq!(named[1].base, Path::new("/cg/memory/lab/x"));

        let error = choose(&mounted[..1], None).unwrap_err();
        assert_eq!(error.to_string(), "no control groups for memory");
    }

    #[test]
    fn version_two_is_taken_where_it_has_every_controller() {
        let folder = tempfile::tempdir().unwrap();
        let point = folder.path().to_owned();
        let group = point.join("system.slice/fabric.service");
        fs::create_dir_all(&group).unwrap();
        let mounted = [Mounted {
            point,
            root: "/docker".into(),
            version: Version::Two,
            controllers: Vec::new(),
            own: "/docker/system.slice/fabric.service".into(),
        }];
        assert!(choose(&mounted, None).is_err());
        fs::write(
            group.join("cgroup.controllers"),
            "cpuset cpu io memory pids\n",
        )
        .unwrap();
        let found = choose(&mounted, None).unwrap();
        assert_eq!((found.len(), found[0].version), (1, Version::Two));
        assert_eq!(found[0].base, group);
        let leaf = group.join(LEAF);
        assert_eq!(parent_of_leaf(leaf), group);
    }
}
