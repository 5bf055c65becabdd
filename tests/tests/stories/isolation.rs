//! What a running instance's VMM holds, looked at from outside, and what a node says that
//! cannot jail its VMMs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use fabric_tests::{Cluster, Place, ServiceFile, Story, control, files, story};
use serde_json::json;

/// The namespaces of its own that a VMM is in.
const NAMESPACES: [&str; 6] = ["user", "mnt", "pid", "net", "ipc", "uts"];
/// What a VMM may hold that is no file: KVM's, events, timers, memory, sockets, pipes.
const ANONYMOUS: [&str; 5] = ["anon_inode:", "socket:", "pipe:", "/memfd:", "/dev/kvm"];

pub(crate) const STORIES: &[Story] = &[
    story!(the_vmm_of_an_instance_has_nothing_but_what_it_was_handed),
    story!(
        a_node_that_cannot_jail_says_what_is_missing_and_refuses,
        needs_kvm: false
    ),
];

async fn the_vmm_of_an_instance_has_nothing_but_what_it_was_handed() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let service = ServiceFile::web("shop").instances(2);
    cluster.run(&service, "shop-web-0").await?;
    cluster.until_ready("shop-web-1").await?;

    let mut users = BTreeSet::new();
    for instance in ["shop-web-0", "shop-web-1"] {
        let process = PathBuf::from(format!("/proc/{}", cluster.vmm(instance)?.pid));
        for thread in fs::read_dir(process.join("task"))? {
            let thread = thread?.path();
            let facts = facts(&thread)?;
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                ensure!(facts[set] == "0000000000000000", "{set}: {facts:#?}");
            }
            ensure!(facts["NoNewPrivs"] == "1", "{facts:#?}");
            // A list of system calls is in force.
            ensure!(facts["Seccomp"] == "2", "{facts:#?}");
            users.insert(facts["Uid"].clone());
        }
        for name in NAMESPACES {
            let its = fs::read_link(process.join("ns").join(name))?;
            let ours = fs::read_link(Path::new("/proc/self/ns").join(name))?;
            ensure!(
                its != ours,
                "{instance} is in the {name} namespace of others"
            );
        }
        // Its root has one directory, under the path that it has outside.
        let jail = cluster.instance_dir(instance).join("jail");
        let jail = jail.strip_prefix("/")?;
        let seen = files(&process.join("root"));
        ensure!(seen.contains(jail), "{seen:?}");
        for path in seen {
            let on_the_way = jail.starts_with(&path) || path.starts_with(jail);
            ensure!(on_the_way, "{instance} sees /{}", path.display());
        }
        holds_only_its_own(&cluster, instance, &process)?;

        let socket = cluster.instance_dir(instance).join("control.sock");
        let status = control(&socket, &json!({ "op": "status" }))?["status"].take();
        let isolation = status["isolation"].as_array().context("no isolation")?;
        for name in ["uid", "user", "pid", "mount", "network", "seccomp"] {
            ensure!(isolation.iter().any(|one| one == name), "{status}");
        }
    }
    ensure!(users.len() == 2, "two instances are {users:?}");
    ensure!(
        users.iter().all(|user| !user.starts_with("0\t")),
        "{users:?}"
    );
    Ok(())
}

/// What proc_pid_status(5) says of a thread.
fn facts(thread: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(thread.join("status"))?;
    let facts = text.lines().filter_map(|line| line.split_once(':'));
    Ok(facts
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

/// Every descriptor is of its instance, of its image, template or kernel, or of nothing that
/// has a name.
fn holds_only_its_own(cluster: &Cluster, instance: &str, process: &Path) -> anyhow::Result<()> {
    let its = cluster.instance_dir(instance);
    let shared = [
        cluster.node_dir().join("blobs"),
        fs::canonicalize(&cluster.place.templates)?,
        fs::canonicalize(&cluster.place.kernel)?,
    ];
    let known = |target: &Path| {
        let text = target.to_string_lossy();
        target == Path::new("/dev/null")
            || ANONYMOUS.iter().any(|kind| text.starts_with(kind))
            || target.starts_with(&its)
            || shared.iter().any(|place| target.starts_with(place))
    };
    for entry in fs::read_dir(process.join("fd"))? {
        let target = fs::read_link(entry?.path())?;
        ensure!(known(&target), "{instance} holds {}", target.display());
    }
    Ok(())
}

async fn a_node_that_cannot_jail_says_what_is_missing_and_refuses() -> anyhow::Result<()> {
    let place = Place::find()?;
    let dir = tempfile::tempdir()?;
    let check = |more: &[&str]| {
        Command::new(place.program("host-agent"))
            .args(["check", "--data-dir"])
            .arg(dir.path())
            .arg("--kernel")
            .arg(&place.kernel)
            .args(["--cgroup", "/nowhere/at/all"])
            .args(more)
            .output()
    };
    let refused = check(&[])?;
    let said = String::from_utf8_lossy(&refused.stdout) + String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success(), "{said}");
    ensure!(
        said.contains("no cgroup") && said.contains("--allow-missing-isolation cgroup"),
        "{said}"
    );
    let allowed = check(&["--allow-missing-isolation", "cgroup"])?;
    let said = String::from_utf8_lossy(&allowed.stdout) + String::from_utf8_lossy(&allowed.stderr);
    ensure!(said.contains("no cgroup (allowed)"), "{said}");
    Ok(())
}
