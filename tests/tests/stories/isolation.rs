//! What a running instance's VMM holds, and its host agent, looked at from outside, and what
//! a node says that cannot jail its VMMs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use fabric_tests::{
    Cluster, Neighbour, Place, ServiceFile, Story, control, files, skipped, story, vmms_in,
};
use nix::unistd::geteuid;
use serde_json::json;

/// The namespaces of its own that a VMM is in.
const NAMESPACES: [&str; 6] = ["user", "mnt", "pid", "net", "ipc", "uts"];
/// All that a VMM is isolated by, as it says: a story's host agent may lack nothing of it.
const ISOLATION: [&str; 10] = [
    "uid", "user", "pid", "mount", "network", "ipc", "uts", "landlock", "seccomp", "cgroup",
];
/// What a VMM may have of the host (proc_pid_limits(5)), with one virtual processor, a guest
/// of 128 MiB and a disk that is smaller: what its connections, its threads and its files
/// need, and no core. These leave some room.
const LIMITS: [(&str, RangeInclusive<u64>); 6] = [
    ("Max core file size", 0..=0),
    ("Max locked memory", 0..=0),
    ("Max msgqueue size", 0..=0),
    ("Max open files", 1..=4096),
    ("Max processes", 1..=16),
    ("Max file size", 128 << 20..=1 << 30),
];
/// What root may do, by number (linux/capability.h).
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID \
    SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK \
    IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE \
    SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP \
    MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
    CHECKPOINT_RESTORE";
/// Where it is said which of these a host agent keeps, and what for.
const SECURITY: &str = include_str!("../../../SECURITY.md");
/// What a VMM may hold that is no file: KVM's, events, timers, memory, sockets, pipes.
const ANONYMOUS: [&str; 5] = ["anon_inode:", "socket:", "pipe:", "/memfd:", "/dev/kvm"];

pub(crate) const STORIES: &[Story] = &[
    story!(the_vmm_of_an_instance_has_nothing_but_what_it_was_handed),
    story!(no_two_machines_of_a_host_are_the_same_user),
    story!(a_host_agent_has_the_rights_that_it_names_and_no_others),
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
        is_limited(instance, &process)?;

        let socket = cluster.instance_dir(instance).join("control.sock");
        let status = control(&socket, &json!({ "op": "status" }))?["status"].take();
        let isolation = status["isolation"].as_array().context("no isolation")?;
        for name in ISOLATION {
            ensure!(
                isolation.iter().any(|one| one == name),
                "{instance} is not isolated by {name}: {status}"
            );
        }
    }
    // Each is in its control groups as well, whoever says so.
    cluster
        .until_all_agree_on(&["shop-web-0", "shop-web-1"])
        .await?;
    ensure!(users.len() == 2, "two instances are {users:?}");
    ensure!(
        users.iter().all(|user| !user.starts_with("0\t")),
        "{users:?}"
    );
    Ok(())
}

async fn no_two_machines_of_a_host_are_the_same_user() -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return skipped("without root all are the same user");
    }
    let cluster = Cluster::start().await?;
    let neighbour = Neighbour::join(&cluster, 2).await?;
    let service = ServiceFile::web("shop").instances(2);
    cluster.run(&service, "shop-web-0").await?;
    cluster.until_ready("shop-web-1").await?;

    // One on either node.
    let mut users = BTreeSet::new();
    for node in [cluster.node_dir(), neighbour.dir()] {
        let [vmm] = vmms_in(&node.join("instances"))[..] else {
            anyhow::bail!("not one machine in {}", node.display());
        };
        let facts = facts(&PathBuf::from(format!("/proc/{vmm}")))?;
        let user = facts["Uid"].split_whitespace().next();
        users.insert(user.context("no user")?.parse::<u32>()?);
    }
    ensure!(users.len() == 2, "two machines are {users:?}");

    // Whoever asks for users that are taken gets none.
    let taken = users.pop_first().context("no user")?;
    let other = tempfile::tempdir()?;
    let refused = Command::new(cluster.place.program("host-agent"))
        .args(["serve", "--controller", "unix:///nowhere", "--node-id", "x"])
        .args(["--uid-range", &format!("{taken}-{}", taken + 999)])
        .arg("--data-dir")
        .arg(other.path())
        .arg("--kernel")
        .arg(&cluster.place.kernel)
        .output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        refused.status.code() == Some(1) && said.contains("another host agent's"),
        "{said}"
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

/// Nothing of the host is without end for it, and it cannot raise what it has.
fn is_limited(instance: &str, process: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(process.join("limits"))?;
    for (name, may_be) in LIMITS {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name} in {text}"))?;
        for most in line.split_whitespace().take(2) {
            ensure!(
                most.parse().is_ok_and(|most: u64| may_be.contains(&most)),
                "{instance}: {name} is {most}, not {may_be:?}"
            );
        }
    }
    Ok(())
}

async fn a_host_agent_has_the_rights_that_it_names_and_no_others() -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return skipped("without root there are no rights to give up");
    }
    let rows = SECURITY.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `CAP_")?.split_once('`')?;
        Some(name)
    });
    let mut named = 0;
    for row in rows {
        let mut known = CAPABILITIES.split_whitespace();
        let number = known.position(|name| name == row);
        named |= 1_u64 << number.with_context(|| format!("no capability {row}"))?;
    }
    ensure!(named != 0, "SECURITY.md names no capability");
    // What we do not have ourselves, a program that we start cannot have.
    let ours = set(&facts(Path::new("/proc/self"))?, "CapBnd")?;

    let cluster = Cluster::start().await?;
    cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    let agent = cluster.host_agent.pid().context("no host agent")?;
    let keeper = keeper_of(agent)?;
    for (name, process) in [("host agent", agent), ("lease's keeper", keeper)] {
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let facts = facts(&thread?.path())?;
            for (which, expected) in [
                ("CapPrm", ours & named),
                ("CapEff", ours & named),
                ("CapBnd", ours & named),
                ("CapInh", 0),
                ("CapAmb", 0),
            ] {
                let has = set(&facts, which)?;
                ensure!(
                    has == expected,
                    "the {name} has {which} {has:016x}, and SECURITY.md names {expected:016x}"
                );
            }
        }
    }
    Ok(())
}

/// A set of capabilities, of what is said of a thread.
fn set(facts: &BTreeMap<String, String>, which: &str) -> anyhow::Result<u64> {
    let digits = facts.get(which).context("a thread without capabilities")?;
    Ok(u64::from_str_radix(digits, 16)?)
}

/// The process that a host agent has started to keep its lease.
fn keeper_of(agent: u32) -> anyhow::Result<u32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(process) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        // One that ends meanwhile says nothing.
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0);
        let parent = facts(&entry.path()).unwrap_or_default();
        let parent = parent.get("PPid");
        if arguments.any(|one| one == b"keep-lease")
            && parent.is_some_and(|parent| *parent == agent.to_string())
        {
            return Ok(process);
        }
    }
    anyhow::bail!("nobody keeps the lease of {agent}")
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
