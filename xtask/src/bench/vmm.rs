//! `cargo xtask bench vmm`: what starting, keeping and copying guests costs.
//!
//! | figures | of instances that are |
//! |---|---|
//! | `first_run_ms`, `cold_*` | booted |
//! | `template_made_ready_ms` | copied from the template of their image, which is made for them |
//! | `template_hello_ms` | copied from the template of an image, and have no package |
//! | `template_first_run_ms`, `template_ready_ms`, `template_parts_ms`, `vmm_pss_kib`, clones | copied from the template of their package |
//! | `warm_*` | copied from the template of their role |
//!
//! A package's template is made once an instance of it is ready, so that an instance with a
//! package is copied from its image's once, and one without always.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::{PATIENCE, bus, median, median_of, millis, telling, until_ready};
use crate::{
    build::{Images, Prepare},
    demo::service::{self, INSTANCE, SERVICE, Size},
    fabric::{Fabric, Instance, Seen},
    machine::Machine,
    preflight,
    progress::Work,
    project::Project,
    table::table,
};

/// How long an idle guest is watched.
const IDLE: Duration = Duration::from_secs(10);

/// The name of a snapshot.
const SNAPSHOT: &str = "bench";

/// The last line on standard output: medians, but for what is measured once, or named max.
#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    machine: Machine,
    runs: u32,
    vcpus: u32,
    memory: String,
    /// Start of the process to the first KVM_RUN, booted cold.
    first_run_ms: f64,
    /// The same, from the template of its package.
    template_first_run_ms: f64,
    /// Memory of the VMM beyond the guest's.
    vmm_pss_kib: f64,
    /// Start of the process to the guest agent's hello, booted cold.
    cold_hello_ms: f64,
    /// Create call to role Ready, booted cold.
    cold_ready_ms: f64,
    /// Create call to role Ready, when the image's template has to be made first.
    template_made_ready_ms: f64,
    /// Start of the process to the guest agent's hello, from the template of its image, of
    /// an instance without a package.
    template_hello_ms: f64,
    /// Create call to role Ready, from the template of its package.
    template_ready_ms: f64,
    /// What that is made of.
    template_parts_ms: Parts,
    /// Create call to role Ready, from a template in which the role was ready.
    warm_ready_ms: f64,
    /// What that is made of.
    warm_parts_ms: Parts,
    clones: u32,
    /// Create call of all clones to the last hello.
    clones_hello_ms: f64,
    /// Clones that have said hello, by that time.
    clones_per_s: f64,
    /// Guest memory that a clone has for itself alone, when its guest agent has just
    /// said hello, and its process is known.
    clone_private_kib: f64,
    /// The most that one of them has.
    clone_private_max_kib: f64,
    pause_ms: f64,
    resume_ms: f64,
    snapshot_ms: f64,
    snapshot_kib: f64,
    /// Resume call to Ready again, of an instance that an operator has paused.
    resumed_ready_ms: f64,
    /// Restore call to Ready again, from a snapshot of an instance that was Ready.
    restored_ready_ms: f64,
    /// Call to reset it in place to its guest agent's hello.
    reset_hello_ms: f64,
    /// The same to Ready again.
    reset_ready_ms: f64,
    /// Of one core, by a guest whose role is Ready and does nothing but answer its
    /// probes.
    idle_core_percent: f64,
    /// Exits of such a guest to the VMM.
    idle_exits_per_s: f64,
    /// System calls of such a guest that are repaired, where KVM needs that.
    idle_syscalls_per_s: f64,
    /// The same from the first KVM_RUN of a cold boot until the role is Ready.
    boot_syscalls_per_s: f64,
    /// A stream from the host to a guest.
    vsock_h2g_mib_per_s: f64,
    /// A stream from a guest to the host.
    vsock_g2h_mib_per_s: f64,
    /// One byte to a guest and back.
    vsock_rtt_us: f64,
    /// A stream between two threads of the host over a unix socket.
    unix_mib_per_s: f64,
    /// One byte between them and back.
    unix_rtt_us: f64,
}

/// One start of one instance.
#[derive(Debug, Default)]
struct Sample {
    first_run_ms: f64,
    hello_ms: f64,
    ready_ms: f64,
    pss_kib: f64,
    syscalls: f64,
    parts: Parts,
}

/// What a start is made of, each from the end of the one before.
#[derive(Debug, Default, Serialize)]
struct Parts {
    /// Create call to the start of the VMM: decided, told, files and jail made.
    vmm_started: f64,
    /// To the first KVM_RUN.
    first_run: f64,
    /// To the guest agent's hello.
    hello: f64,
    /// To the start of the role's process, or what a role template has instead: the goal
    /// is told, the package is mounted.
    role_starting: f64,
    /// To Ready as an operator sees it: the role has begun, and answered its probe.
    ready: f64,
}

impl Parts {
    /// One after the other.
    const ORDER: [&str; 5] = [
        "vmm_started",
        "first_run",
        "hello",
        "role_starting",
        "ready",
    ];

    fn medians(samples: &[Sample]) -> Parts {
        Parts {
            vmm_started: median_of(samples, |sample| sample.parts.vmm_started),
            first_run: median_of(samples, |sample| sample.parts.first_run),
            hello: median_of(samples, |sample| sample.parts.hello),
            role_starting: median_of(samples, |sample| sample.parts.role_starting),
            ready: median_of(samples, |sample| sample.parts.ready),
        }
    }
}

/// Runs the benchmark.
pub fn run(
    project: &Project,
    runs: u32,
    clones: u32,
    size: &Size,
    prepare: &Prepare,
) -> Result<()> {
    preflight::before_building(project)?;
    let images = prepare.run(project)?;
    let machine = Machine::look(preflight::with_programs(project)?);

    let mut fabric = start(project, &images, None)?;
    let cold = starts(&mut fabric, size, service::apply, runs, "cold boots")?;
    fabric.end()?;

    let templates = tempfile::tempdir().context("making a folder for templates")?;
    let mut fabric = start(project, &images, Some(templates.path()))?;
    let plain = "start that makes the template of the image, without a package";
    starts(&mut fabric, size, service::apply_without_package, 1, plain)?;
    let plain = "starts from the template of the image, without a package";
    let plain = starts(
        &mut fabric,
        size,
        service::apply_without_package,
        runs,
        plain,
    )?;
    let first = "start that makes the template";
    let first = starts(&mut fabric, size, service::apply, 1, first)?;
    until_package_is_copied(&mut fabric)?;
    let warm = "starts from the template of the package";
    let warm = starts(&mut fabric, size, service::apply, runs, warm)?;
    let ready = "start that makes the role's template";
    starts(&mut fabric, size, service::apply_warm, 1, ready)?;
    let ready = "starts from the role's template";
    let ready = starts(&mut fabric, size, service::apply_warm, runs, ready)?;
    let kept = keep(&mut fabric, size, runs)?;
    let many = many(&mut fabric, size, clones)?;
    fabric.end()?;

    let bus = bus::measure(project, &images, size)?;

    let figures = Figures {
        bench: "vmm",
        machine,
        runs,
        vcpus: size.vcpus,
        memory: size.memory.clone(),
        first_run_ms: median_of(&cold, |sample| sample.first_run_ms),
        template_first_run_ms: median_of(&warm, |sample| sample.first_run_ms),
        vmm_pss_kib: median_of(&warm, |sample| sample.pss_kib),
        cold_hello_ms: median_of(&cold, |sample| sample.hello_ms),
        cold_ready_ms: median_of(&cold, |sample| sample.ready_ms),
        template_made_ready_ms: median_of(&first, |sample| sample.ready_ms),
        template_hello_ms: median_of(&plain, |sample| sample.hello_ms),
        template_ready_ms: median_of(&warm, |sample| sample.ready_ms),
        template_parts_ms: Parts::medians(&warm),
        warm_ready_ms: median_of(&ready, |sample| sample.ready_ms),
        warm_parts_ms: Parts::medians(&ready),
        clones,
        clones_hello_ms: many.hello_ms,
        clones_per_s: per_second(clones, many.hello_ms),
        clone_private_kib: many.private_kib,
        clone_private_max_kib: many.private_max_kib,
        pause_ms: kept.pause_ms,
        resume_ms: kept.resume_ms,
        snapshot_ms: kept.snapshot_ms,
        snapshot_kib: kept.snapshot_kib,
        resumed_ready_ms: kept.resumed_ready_ms,
        restored_ready_ms: kept.restored_ready_ms,
        reset_hello_ms: kept.reset_hello_ms,
        reset_ready_ms: kept.reset_ready_ms,
        idle_core_percent: kept.idle_core_percent,
        idle_exits_per_s: kept.idle_exits_per_s,
        idle_syscalls_per_s: kept.idle_syscalls_per_s,
        boot_syscalls_per_s: median_of(&cold, |sample| {
            sample.syscalls * 1000.0 / (sample.ready_ms - sample.parts.vmm_started)
        }),
        vsock_h2g_mib_per_s: bus.h2g_mib_per_s,
        vsock_g2h_mib_per_s: bus.g2h_mib_per_s,
        vsock_rtt_us: bus.rtt_us,
        unix_mib_per_s: bus.unix_mib_per_s,
        unix_rtt_us: bus.unix_rtt_us,
    };
    show(&figures)?;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

fn start(project: &Project, images: &Images, templates: Option<&Path>) -> Result<Fabric> {
    let fabric = Fabric::start(project, "bench", &images.kernel, templates)?;
    service::upload(project, &fabric, &images.guest_os)?;
    Ok(fabric)
}

/// Waits for the template that is made once the first instance of its package is ready.
fn until_package_is_copied(fabric: &mut Fabric) -> Result<()> {
    let work = Work::begin("Waiting for the template of the package");
    let message = fabric.wait("the template of the package", PATIENCE, |seen| match seen {
        Seen::Event(event) if event.reason == "TemplateMade" => Some(event.message.clone()),
        _ => None,
    })?;
    work.done(&message);
    Ok(())
}

/// Starts one instance so many times, each on a fresh disk.
fn starts(
    fabric: &mut Fabric,
    size: &Size,
    apply: fn(&Fabric, &Size) -> Result<()>,
    runs: u32,
    what: &str,
) -> Result<Vec<Sample>> {
    let mut work = Work::begin(format!("Measuring {runs} {what}"));
    let mut samples = Vec::new();
    for run in 1..=runs {
        let begun = Instant::now();
        apply(fabric, size)?;
        // When each was first told of, in milliseconds from the call.
        let mut told = BTreeMap::new();
        let instance = until_ready(fabric, |seen| {
            if let Seen::Event(event) = seen
                && event.subject == INSTANCE
            {
                told.entry(event.reason.clone()).or_insert(millis(begun));
            }
        });
        let instance = instance.with_context(|| format!("{what}: {run}"))?;
        let ready_ms = millis(begun);
        let told = |reason: &str| {
            let at = told.get(reason).copied();
            at.with_context(|| format!("{what}: {run}: nothing was told of {reason}"))
        };
        let control = fabric.instance_dir(INSTANCE).join("control.sock");
        let stats = telling::stats(&control)?;
        let first_run_ms = stats
            .timings
            .first_run_ms
            .context("no time of the first KVM_RUN")?;
        let hello_ms = instance
            .boot_to_hello_ms
            .context("the time of the guest agent's hello is not known")?;
        samples.push(Sample {
            first_run_ms,
            hello_ms,
            ready_ms,
            pss_kib: telling::pss_beyond_guest(instance.vmm_pid)?,
            syscalls: stats.repair.syscalls,
            parts: Parts {
                vmm_started: told("GuestHello")? - hello_ms,
                first_run: first_run_ms,
                hello: hello_ms - first_run_ms,
                role_starting: told("RoleStarting")? - told("GuestHello")?,
                ready: ready_ms - told("RoleStarting")?,
            },
        });
        work.now(format!("{run}: Ready after {ready_ms:.0} ms"));
        fabric.fabctl(&["service", "delete", SERVICE, "--wait"])?;
    }
    work.done("done");
    Ok(samples)
}

#[derive(Debug, Default)]
struct Kept {
    pause_ms: f64,
    resume_ms: f64,
    snapshot_ms: f64,
    snapshot_kib: f64,
    resumed_ready_ms: f64,
    restored_ready_ms: f64,
    reset_hello_ms: f64,
    reset_ready_ms: f64,
    idle_core_percent: f64,
    idle_exits_per_s: f64,
    idle_syscalls_per_s: f64,
}

/// What is done to a guest that runs.
fn keep(fabric: &mut Fabric, size: &Size, runs: u32) -> Result<Kept> {
    let mut work = Work::begin("Measuring a running guest");
    service::apply(fabric, size)?;
    let instance = until_ready(fabric, |_| {})?;
    let dir = fabric.instance_dir(INSTANCE);
    let (control, jail) = (dir.join("control.sock"), dir.join("jail"));
    work.now("idle");
    let (before, used) = (
        telling::stats(&control)?,
        telling::cpu_seconds(instance.vmm_pid)?,
    );
    thread::sleep(IDLE);
    let used = telling::cpu_seconds(instance.vmm_pid)? - used;
    let after = telling::stats(&control)?;
    let per_second = |more: f64| (more / IDLE.as_secs_f64() * 10.0).round() / 10.0;
    let exits = |stats: &telling::Stats| stats.exits.values().sum::<f64>();
    let (mut pauses, mut resumes, mut snapshots) = (Vec::new(), Vec::new(), Vec::new());
    let mut snapshot_kib = 0.0;
    for run in 1..=runs {
        work.now(format!("snapshot {run}"));
        pauses.push(telling::tell(&control, &json!({"op": "pause"}))?);
        resumes.push(telling::tell(&control, &json!({"op": "resume"}))?);
        // What the VMM can write to from its jail.
        let path = jail.join(format!("snapshot-{run}"));
        let request = json!({"op": "snapshot", "path": path});
        snapshots.push(telling::tell(&control, &request)?);
        snapshot_kib = disk_kib(&path)?;
        fs::remove_dir_all(&path).context("removing a snapshot")?;
    }
    let (mut resumed, mut restored) = (Vec::new(), Vec::new());
    let mut vmm_pid = instance.vmm_pid;
    fabric.fabctl(&["instance", "snapshot", INSTANCE, SNAPSHOT, "--wait"])?;
    for run in 1..=runs {
        work.now(format!("pause and restore {run}"));
        fabric.fabctl(&["instance", "pause", INSTANCE, "--wait"])?;
        let mut was_paused = false;
        resumed.push(back(fabric, &["resume", INSTANCE], |now| {
            was_paused |= now.state == "Paused";
            was_paused
        })?);
        let before = vmm_pid;
        restored.push(back(fabric, &["restore", INSTANCE, SNAPSHOT], |now| {
            vmm_pid = now.vmm_pid;
            vmm_pid != before
        })?);
    }
    let (mut reset_hellos, mut resets) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        work.now(format!("reset {run}"));
        let (hello, ready) = reset(fabric)?;
        reset_hellos.push(hello);
        resets.push(ready);
    }
    fabric.fabctl(&["service", "delete", SERVICE, "--wait"])?;
    work.done("done");
    Ok(Kept {
        pause_ms: median(pauses),
        resume_ms: median(resumes),
        snapshot_ms: median(snapshots),
        snapshot_kib,
        resumed_ready_ms: median(resumed),
        restored_ready_ms: median(restored),
        reset_hello_ms: median(reset_hellos),
        reset_ready_ms: median(resets),
        idle_core_percent: (used / IDLE.as_secs_f64() * 1000.0).round() / 10.0,
        idle_exits_per_s: per_second(exits(&after) - exits(&before)),
        idle_syscalls_per_s: per_second(after.repair.syscalls - before.repair.syscalls),
    })
}

/// How long it takes from such a call until the instance is seen to have been away, and to be
/// Ready again, in milliseconds.
fn back(
    fabric: &mut Fabric,
    call: &[&str],
    mut was_away: impl FnMut(&Instance) -> bool,
) -> Result<f64> {
    let begun = Instant::now();
    fabric.fabctl(&[&["instance"], call].concat())?;
    fabric.wait("the instance to be back", PATIENCE, |seen| match seen {
        Seen::Instance(now) if was_away(now) && now.is_ready() => Some(millis(begun)),
        _ => None,
    })
}

/// How long it takes from the call to reset the instance in place until its guest agent is
/// back, and until it is Ready, in milliseconds.
fn reset(fabric: &mut Fabric) -> Result<(f64, f64)> {
    let begun = Instant::now();
    fabric.fabctl(&["instance", "restart", INSTANCE, "--scope", "reset"])?;
    let (mut was_reset, mut hello) = (false, None);
    fabric.wait("the instance to be back", PATIENCE, |seen| match seen {
        Seen::Event(event) if event.subject == INSTANCE => {
            was_reset |= event.reason == "VmReset";
            if was_reset && event.reason == "GuestHello" {
                hello.get_or_insert_with(|| millis(begun));
            }
            None
        }
        Seen::Instance(now) if now.is_ready() => Some((hello?, millis(begun))),
        _ => None,
    })
}

/// What the files in a folder take on the disk, in KiB.
fn disk_kib(folder: &Path) -> Result<f64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut blocks = 0;
    for entry in fs::read_dir(folder).context("looking into a snapshot")? {
        blocks += entry?.metadata()?.blocks();
    }
    Ok(blocks as f64 / 2.0)
}

#[derive(Debug, Default)]
struct Many {
    hello_ms: f64,
    private_kib: f64,
    private_max_kib: f64,
}

/// Creates so many instances at once, and waits until all guests are there, and each has been
/// measured: which process it is may be told after its hello.
fn many(fabric: &mut Fabric, size: &Size, clones: u32) -> Result<Many> {
    let work = Work::begin(format!("Creating {clones} instances at once"));
    let begun = Instant::now();
    service::apply_many(fabric, size, clones)?;
    let mut silent: BTreeSet<String> = (0..clones)
        .map(|number| format!("{SERVICE}-web-{number}"))
        .collect();
    // Why not, of each that has not been measured.
    let mut unmeasured: BTreeMap<String, String> = silent
        .iter()
        .map(|id| (id.clone(), "its process is not known".to_owned()))
        .collect();
    let (mut private, mut pids) = (Vec::new(), BTreeMap::new());
    let mut hello_ms = 0.0;
    let waited = fabric.wait("all guests to be there and measured", PATIENCE, |seen| {
        let id = match seen {
            // At first it may be told of one of that name that was there before.
            Seen::Instance(now) => {
                pids.insert(now.instance_id.clone(), now.vmm_pid);
                &now.instance_id
            }
            Seen::Event(event) if event.reason == "GuestHello" => {
                if silent.remove(&event.subject) && silent.is_empty() {
                    hello_ms = millis(begun);
                }
                &event.subject
            }
            _ => return None,
        };
        let pid = pids.get(id).copied().filter(|pid| *pid != 0);
        if let Some(pid) = pid.filter(|_| !silent.contains(id))
            && let Some(why_not) = unmeasured.get_mut(id)
        {
            match telling::private_guest_memory(pid) {
                // One that has just ended has none.
                Ok(kib) if kib <= 0.0 => *why_not = format!("no guest's memory in {pid}"),
                Ok(kib) => {
                    private.push(kib);
                    unmeasured.remove(id);
                }
                Err(error) => *why_not = format!("{error:#}"),
            }
        }
        (silent.is_empty() && unmeasured.is_empty()).then_some(())
    });
    waited.with_context(|| {
        format!("of {clones} clones, silent: {silent:?}; not measured: {unmeasured:#?}")
    })?;
    fabric.fabctl(&["service", "delete", SERVICE, "--wait"])?;
    work.done("done");
    Ok(Many {
        hello_ms,
        private_max_kib: private.iter().copied().fold(0.0, f64::max),
        private_kib: median(private),
    })
}

/// How many that is in a second, to a tenth.
fn per_second(many: u32, ms: f64) -> f64 {
    (f64::from(many) * 10_000.0 / ms).round() / 10.0
}

/// What the name of a figure says.
fn what_and_unit(name: &str) -> (&str, &str) {
    let units = [("_mib_per_s", "MiB/s"), ("_per_s", "/s"), ("_percent", "%")];
    units
        .into_iter()
        .find_map(|(end, unit)| Some((name.strip_suffix(end)?, unit)))
        .or_else(|| name.rsplit_once('_'))
        .unwrap_or((name, ""))
}

/// Prints every figure by its name, which says its unit.
fn show(figures: &Figures) -> Result<()> {
    let figures = serde_json::to_value(figures)?;
    let mut rows = Vec::new();
    for (name, value) in figures.as_object().into_iter().flatten() {
        if let Some(value) = value.as_f64().filter(|_| value.is_f64()) {
            let (what, unit) = what_and_unit(name);
            rows.push([what.replace('_', " "), format!("{value:.1} {unit}")]);
        }
        if name.ends_with("_parts_ms") {
            rows.push([
                name.trim_end_matches("_ms").replace('_', " "),
                String::new(),
            ]);
            rows.extend(Parts::ORDER.map(|part| {
                let value = value[part].as_f64().unwrap_or_default();
                let part = part.replace('_', " ");
                [format!("  to {part}"), format!("{value:.1} ms")]
            }));
        }
    }
    println!("\n{}", table(["figure", "median"], rows, true));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_all_in_the_time_of_the_last() {
        assert!((per_second(64, 3200.0) - 20.0).abs() < f64::EPSILON);
        assert_eq!(what_and_unit("clones_per_s"), ("clones", "/s"));
        assert_eq!(
            what_and_unit("clone_private_max_kib"),
            ("clone_private_max", "kib")
        );
    }
}
