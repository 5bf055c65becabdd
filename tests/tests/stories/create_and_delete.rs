//! Instances that come and go: when they are gone, host agent, controller and node
//! have not one thing more than before the first of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use fabric_proto::{node::v1::VmState, v1::Instance};
use fabric_tests::{
    BOOT, Cluster, Program, SOON, ServiceFile, Story, eventually, files, groups, mounts, skipped,
    story, vmms_in,
};
use nix::{
    mount::{MsFlags, mount, umount},
    unistd::geteuid,
};

/// The first instance.
const SHOP: &str = "shop-web-0";
/// How many instances come and go: `FABRIC_CYCLES`, and not many where nobody asks
/// for more.
const CYCLES: u32 = 16;
/// How many do so at once.
const AT_ONCE: u32 = 4;
/// How many have done so before anything is counted: buffers and caches are filled.
const WARM_UP: u32 = 16;
/// How much more memory of its own a process may have at the end, however many came and
/// went, in KiB: its allocator's ways, but not a megabyte. The controller remembers
/// changes, up to so many bytes of them (`store/sqlite/history.rs`).
///
/// That is much for few of them: see [`LEAK`].
const MOST_MORE: [(&str, u64); 2] = [(HOST_AGENT, 1 << 10), (CONTROLLER, 17 << 10)];
/// How much more the host agent may have for each that comes and goes, in KiB, both in the
/// first half of them and in the second. What an allocator and threads take once is in one
/// half, and little of it in the other; what is forgotten each time is in both. With
/// [`ENOUGH`] cycles this is 320 KiB twice: two thirds of a leak of 25 KiB, and more than
/// what is taken once.
const LEAK: u64 = 16;
/// How many come and go at least where that is asked: with fewer, what is taken once is as
/// much.
const ENOUGH: u32 = 40;
const HOST_AGENT: &str = "host agent";
const CONTROLLER: &str = "controller";

pub(crate) const STORIES: &[Story] = &[
    story!(instances_that_come_and_go_leave_nothing_behind),
    story!(an_instance_whose_files_do_not_go_is_not_said_to_be_gone),
];

async fn instances_that_come_and_go_leave_nothing_behind() -> anyhow::Result<()> {
    let cycles = env::var("FABRIC_CYCLES").map_or(Ok(CYCLES), |text| text.parse());
    let cycles: u32 = cycles.context("FABRIC_CYCLES is no number")?;
    let cluster = Cluster::start().await?;
    cluster.upload_guest_os()?;
    come_and_go(&cluster, WARM_UP).await?;
    let before = Had::look(&cluster)?;

    let start = Instant::now();
    come_and_go(&cluster, cycles / 2).await?;
    let halfway = Had::look(&cluster)?;
    come_and_go(&cluster, cycles - cycles / 2).await?;
    let took = start.elapsed();
    let after = eventually(SOON, "nothing to be left", || async {
        let after = Had::look(&cluster).map_err(|error| format!("{error:#}"))?;
        let more = after.beyond(&before) + &after.leaked(&before, &halfway, cycles);
        if more.is_empty() {
            Ok(after)
        } else {
            Err(more)
        }
    })
    .await?;
    println!(
        "{cycles} instances came and went in {:.1} s, {:.0} ms each; memory of their own in KiB: \
         {}; since half of them {}",
        took.as_secs_f64(),
        took.as_secs_f64() * 1000.0 / f64::from(cycles),
        after.memory_beside(&before),
        after.memory_beside(&halfway),
    );
    Ok(())
}

async fn an_instance_whose_files_do_not_go_is_not_said_to_be_gone() -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return skipped("only root can mount something that keeps a directory");
    }
    let cluster = Cluster::start().await?;
    cluster.upload_guest_os()?;
    cluster.apply(&idle())?;
    cluster
        .until(SHOP, "to have said hello", has_said_hello)
        .await?;
    let held = Mounted::at(cluster.instance_dir(SHOP).join("held"))?;

    cluster.fabctl(&["service", "delete", "shop"])?;
    eventually(SOON, "the host agent to say that it cannot", || async {
        let log = cluster.host_agent.log();
        let said = log.contains("cannot remove its files");
        said.then_some(()).ok_or(log)
    })
    .await?;
    ensure!(cluster.removals(SHOP).await? == 0, "it is said to be gone");
    drop(held);
    cluster.until_all_agree_on(&[]).await?;
    eventually(SOON, "it to be said to be gone", || async {
        match cluster.removals(SHOP).await {
            Ok(1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// A file system, mounted until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&path)?;
        mount(
            None::<&str>,
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        Ok(Self(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.0) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

/// A service of one instance that costs its guest next to nothing.
fn idle() -> ServiceFile {
    ServiceFile::web("shop").script("exec sleep 1000000")
}

fn has_said_hello(instance: &Instance) -> bool {
    let status = instance.status.as_ref();
    status.is_some_and(|status| status.vm_state() == VmState::Running)
}

/// As many instances as `cycles` says are created from a template, have their guest
/// agents say hello, and are deleted.
async fn come_and_go(cluster: &Cluster, cycles: u32) -> anyhow::Result<()> {
    let mut left = cycles;
    while left > 0 {
        let now = left.min(AT_ONCE);
        cluster.apply(&idle().instances(now))?;
        for number in 0..now {
            let id = format!("shop-web-{number}");
            cluster
                .until(&id, "to have said hello", has_said_hello)
                .await?;
        }
        cluster.fabctl(&["service", "delete", "shop"])?;
        eventually(BOOT, "the instances to be gone", || async {
            let instances = cluster.instances().await.map_err(|e| e.to_string())?;
            let left: Vec<_> = instances.iter().map(|one| &one.instance_id).collect();
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        })
        .await?;
        cluster.until_all_agree_on(&[]).await?;
        left -= now;
    }
    Ok(())
}

/// What there is of a cluster at a moment.
#[derive(Debug)]
struct Had {
    /// Things that are either there or not, each in a line.
    things: BTreeSet<String>,
    /// Descriptors by process.
    descriptors: BTreeMap<&'static str, Vec<String>>,
    /// Memory of their own by process, in KiB.
    memory: BTreeMap<&'static str, u64>,
}

impl Had {
    fn look(cluster: &Cluster) -> anyhow::Result<Self> {
        let node = cluster.node_dir();
        let mut things = BTreeSet::new();
        let mut all = |what: &str, paths: BTreeSet<PathBuf>| {
            let lines = paths
                .iter()
                .map(|path| format!("{what} {}", path.display()));
            things.extend(lines);
        };
        all("file of the node", files(node));
        all("file of the controller", files(&cluster.path("controller")));
        for place in groups(node) {
            let folders = files(&place).into_iter();
            let folders = folders.filter(|path| place.join(path).is_dir());
            all("control group", folders.collect());
        }
        things.extend(mounts(node).into_iter().map(|line| format!("mount {line}")));
        things.extend(vmms_in(node).into_iter().map(|pid| format!("VMM {pid}")));
        let programs = [
            (HOST_AGENT, &cluster.host_agent),
            (CONTROLLER, &cluster.controller),
        ];
        let mut had = Self {
            things,
            descriptors: BTreeMap::new(),
            memory: BTreeMap::new(),
        };
        for (name, program) in programs {
            let proc = proc_of(program)?;
            had.descriptors.insert(name, descriptors(&proc)?);
            had.memory.insert(name, own_kib(&proc)?);
        }
        Ok(had)
    }

    /// What is there that was not there before; empty if nothing is.
    fn beyond(&self, before: &Self) -> String {
        let mut more = String::new();
        for thing in self.things.difference(&before.things) {
            let _ = writeln!(more, "{thing}");
        }
        for (name, now) in &self.descriptors {
            let then = &before.descriptors[name];
            if now.len() > then.len() {
                let _ = writeln!(more, "{name} has descriptors {now:#?}\nand had {then:#?}");
            }
        }
        for (name, most) in MOST_MORE {
            if self.memory[name] > before.memory[name] + most {
                let beside = self.memory_beside(before);
                let _ = writeln!(more, "{name} has grown, in KiB: {beside}");
            }
        }
        more
    }

    /// Whether the host agent has grown all along while so many came and went; empty if
    /// not.
    fn leaked(&self, before: &Self, halfway: &Self, cycles: u32) -> String {
        let [then, half, now] = [before, halfway, self].map(|had| had.memory[HOST_AGENT]);
        let most = LEAK * u64::from(cycles / 2);
        let grew = half.saturating_sub(then).min(now.saturating_sub(half));
        if cycles < ENOUGH || grew <= most {
            return String::new();
        }
        format!(
            "{HOST_AGENT} grows with each, in KiB: {then}, after half of them {half}, then {now}\n"
        )
    }

    fn memory_beside(&self, before: &Self) -> String {
        let all = self.memory.iter();
        let lines = all.map(|(name, now)| format!("{name} {} to {now}", before.memory[name]));
        lines.collect::<Vec<_>>().join(", ")
    }
}

fn proc_of(program: &Program) -> anyhow::Result<PathBuf> {
    let pid = program.pid().context("the program does not run")?;
    Ok(Path::new("/proc").join(pid.to_string()))
}

/// What a process has open.
fn descriptors(proc: &Path) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(proc.join("fd"))? {
        // One that was closed meanwhile is not there.
        let target = fs::read_link(entry?.path());
        all.extend(target.map(|target| target.display().to_string()));
    }
    all.sort();
    Ok(all)
}

/// Memory that is of no file (proc_pid_smaps_rollup).
fn own_kib(proc: &Path) -> anyhow::Result<u64> {
    let text = fs::read_to_string(proc.join("smaps_rollup"))?;
    let lines = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("Anonymous:")?;
        rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    Ok(lines.sum())
}
