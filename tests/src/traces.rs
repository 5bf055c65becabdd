//! What there is of a node's instances, looked at from every side: whether the sides
//! agree, and whether any of it is left over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
};

use fabric_proto::node::v1::NodeGoal;
use prost::Message as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::vmms_in;

/// What a machine's control group controls, and by which file of it that is seen, of
/// either version.
const CONTROLLED: [(&str, &[&str]); 3] = [
    ("processors", &["cpu.weight", "cpu.shares"]),
    ("memory", &["memory.max", "memory.limit_in_bytes"]),
    ("threads", &["pids.max"]),
];

/// A process, which no other one ever is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its id, which another may have later.
    pub pid: i32,
    /// When it was started (proc_pid_stat(5), field 22).
    pub started: u64,
}

impl Identity {
    /// That of a process, if there is one.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        let started = rest.split(' ').nth(22 - 3)?.parse().ok()?;
        Some(Self { pid, started })
    }
}

/// What does not agree about a node that should have these instances, each with a
/// machine that runs, and no others; one line each.
#[must_use]
pub fn disagreements(node: &Path, instances: &[&str]) -> Vec<String> {
    let groups = groups(node);
    let mut found = disagreements_with(&groups, node, instances);
    // No story's host agent may do without: what is not found is not there.
    for instance in instances {
        for (what, files) in CONTROLLED {
            let controls = |place: &PathBuf| {
                let group = place.join(instance);
                files.iter().any(|file| group.join(file).exists())
            };
            if !groups.iter().any(controls) {
                found.push(format!("{instance}: no control group for {what}"));
            }
        }
    }
    found
}

/// The same, with control groups that are there.
fn disagreements_with(groups: &[PathBuf], node: &Path, instances: &[&str]) -> Vec<String> {
    let wanted: BTreeSet<String> = instances.iter().map(|&name| name.to_owned()).collect();
    let mut found = Vec::new();
    let mut compare = |what: &str, seen: BTreeSet<String>| {
        if seen != wanted {
            found.push(format!("{what}: {seen:?}"));
        }
    };
    compare("directories", names(&node.join("instances")));
    compare("goal", goal(node));
    for place in groups {
        compare(&format!("groups in {}", place.display()), folders(place));
    }
    let mut running: BTreeMap<String, Vec<Identity>> = BTreeMap::new();
    for pid in vmms_in(node) {
        let place = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let name = place.file_name().unwrap_or_default().display().to_string();
        running.entry(name).or_default().extend(Identity::of(pid));
    }
    compare("processes", running.keys().cloned().collect());
    for instance in instances {
        let runs = running.get(*instance).cloned().unwrap_or_default();
        let recorded = recorded(&node.join("instances").join(instance));
        differ(&mut found, instance, "on record", &runs, &recorded);
        for place in groups {
            let members = members(&place.join(instance));
            differ(&mut found, instance, "in its group", &runs, &members);
        }
        let directory = node.join("instances").join(instance);
        let (there, kept) = (names(&directory.join("snapshots")), snapshots(&directory));
        if there != kept {
            found.push(format!(
                "{instance}: snapshots {there:?}, on record {kept:?}"
            ));
        }
    }
    found.extend(mounts(node).into_iter().map(|line| format!("mount {line}")));
    let unfinished = files(node).into_iter().filter(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let in_jail = file.parent().is_some_and(|place| place.ends_with("jail"));
        let making = [".new-", ".taking-", "making-"].iter();
        making.into_iter().any(|new| name.starts_with(new))
            || in_jail && name.starts_with("snapshot")
    });
    found.extend(unfinished.map(|file| format!("unfinished file {}", file.display())));
    found
}

fn differ<T: PartialEq + Debug>(
    found: &mut Vec<String>,
    instance: &str,
    what: &str,
    runs: &[T],
    other: &[T],
) {
    if runs != other || runs.len() != 1 {
        found.push(format!("{instance}: running {runs:?}, {what} {other:?}"));
    }
}

/// All files and folders below a directory, by their paths in it.
#[must_use]
pub fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(path.clone());
            }
            found.extend(path.strip_prefix(directory).map(Path::to_owned));
        }
    }
    found
}

/// Where the control groups of a node are that are there: in whichever hierarchy of this
/// host, by the name that stands for the node's directory, whatever the node says of them.
#[must_use]
pub fn groups(node: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let hierarchies = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (point, kind) = (words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| Path::new(point))
    });
    let name = group_name(node);
    let mut found: Vec<_> = hierarchies
        .flat_map(|hierarchy| folders_called(&name, hierarchy))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// How the group is called that all of a node's groups are in.
fn group_name(node: &Path) -> String {
    // What its host agent knows it by.
    let node = fs::canonicalize(node).unwrap_or(node.to_owned());
    let sum = Sha256::digest(node.as_os_str().as_encoded_bytes());
    let digits = sum.iter().take(8).map(|byte| format!("{byte:02x}"));
    format!("fabric-{}", digits.collect::<String>())
}

/// The folders of a name below a folder, but for those in one another.
fn folders_called(name: &str, below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![below.to_owned()];
    while let Some(folder) = todo.pop() {
        // One that goes meanwhile is not there.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name() == name {
                found.push(entry.path());
            } else {
                todo.push(entry.path());
            }
        }
    }
    found
}

/// The mounts that everybody sees which have to do with a directory.
#[must_use]
pub fn mounts(directory: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let directory = directory.to_string_lossy();
    let lines = mounts.lines().filter(|line| line.contains(&*directory));
    lines.map(str::to_owned).collect()
}

/// The instances of the goal that a node keeps.
fn goal(node: &Path) -> BTreeSet<String> {
    let kept = fs::read(node.join("journal/goal.pb")).unwrap_or_default();
    let goal = NodeGoal::decode(kept.as_slice()).unwrap_or_default();
    let instances = goal.instances.into_iter();
    instances.map(|instance| instance.instance_id).collect()
}

fn record(directory: &Path) -> Value {
    let text = fs::read(directory.join("manifest.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// The snapshots that an instance's record has.
fn snapshots(directory: &Path) -> BTreeSet<String> {
    let record = record(directory);
    let all = record["machine"]["snapshots"]
        .as_array()
        .into_iter()
        .flatten();
    let taken = all.filter(|one| one["taken"]["Ok"].is_object());
    let names = taken.filter_map(|one| one["wanted"]["name"].as_str());
    names.map(str::to_owned).collect()
}

/// The process that an instance's record names.
fn recorded(directory: &Path) -> Vec<Identity> {
    let record = record(directory);
    let process = &record["process"];
    let identity = || {
        Some(Identity {
            pid: process["pid"].as_i64()?.try_into().ok()?,
            started: process["started"].as_u64()?,
        })
    };
    identity().into_iter().collect()
}

/// The processes in a control group.
#[must_use]
pub fn members(group: &Path) -> Vec<Identity> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let pids = text.lines().filter_map(|line| line.parse().ok());
    pids.filter_map(Identity::of).collect()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// A group's groups: it has files beside them.
fn folders(directory: &Path) -> BTreeSet<String> {
    let mut names = names(directory);
    names.retain(|name| directory.join(name).is_dir());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_instances_agrees_and_whatever_is_left_does_not() {
        let node = tempfile::tempdir().unwrap();
        assert_eq!(disagreements(node.path(), &[]), Vec::<String>::new());
        assert!(!disagreements(node.path(), &["shop-web-0"]).is_empty());

        fs::create_dir_all(node.path().join("instances/shop-web-0")).unwrap();
        fs::write(node.path().join(".new-goal"), "").unwrap();
        let host = tempfile::tempdir().unwrap();
        let groups = [host.path().to_owned()];
        fs::create_dir(host.path().join("shop-web-1")).unwrap();
        let left = disagreements_with(&groups, node.path(), &[]);
        assert_eq!(left.len(), 3, "{left:#?}");
    }

    #[test]
    fn control_groups_are_missed_where_something_should_run() {
        let node = tempfile::tempdir().unwrap();
        assert_eq!(groups(node.path()), Vec::<PathBuf>::new());
        let found = disagreements(node.path(), &["shop-web-0"]).join("\n");
        for (what, _) in CONTROLLED {
            let missing = format!("shop-web-0: no control group for {what}");
            assert!(found.contains(&missing), "{found}");
        }
    }

    #[test]
    fn control_groups_are_found_by_their_name_wherever_they_are() {
        // What the host agent makes of it: sha256sum.
        let name = group_name(Path::new("/nowhere/node-1"));
        assert_eq!(name, "fabric-969ac9bbd397ad6e");
        let host = tempfile::tempdir().unwrap();
        for folder in ["cpu/a/b", "memory", "pids"] {
            let folder = host.path().join(folder);
            fs::create_dir_all(folder.join(&name).join("shop-web-0")).unwrap();
            fs::create_dir_all(folder.join("fabric-0123456789abcdef/other-web-0")).unwrap();
        }
        let mut found = folders_called(&name, host.path());
        found.sort();
        let expected = ["cpu/a/b", "memory", "pids"];
        let expected = expected.map(|folder| host.path().join(folder).join(&name));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_process_is_the_same_as_itself_alone() {
        let own = i32::try_from(std::process::id()).unwrap();
        let identity = Identity::of(own).unwrap();
        assert_eq!(Identity::of(own), Some(identity));
        assert!(identity.started > 0);
        assert_ne!(Identity::of(1), Some(identity));
    }
}
