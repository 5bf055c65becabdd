//! `cargo xtask demo`: the whole system at work. A role gets Ready; then it, its
//! guest's agent, its guest's kernel and its VMM fail, and it comes back each time. With
//! `--nodes`, a cluster of several nodes ([`cluster`]).

mod cluster;
pub mod service;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;

use self::service::{INSTANCE, SERVICE, Size};
use crate::{
    build::Prepare,
    fabric::{Fabric, Instance, Seen, fault},
    machine::Machine,
    preflight,
    progress::{Work, seconds},
    project::Project,
    table::table,
};

/// How long a guest may take until its role is Ready, whatever is done to it.
const PATIENCE: Duration = Duration::from_secs(180);

/// Show the whole system at work: a role gets Ready, four faults, four recoveries.
///
/// Installs what is missing, builds everything, and leaves nothing behind outside
/// the cache. The last line is JSON with the figures.
///
/// With --nodes, a cluster instead: host agents that have networks of their own and have
/// joined with tokens, over mTLS. A service is applied, scaled, updated and swapped, a bad
/// version rolls back, a node is drained, one is cut off and one killed, and in the middle
/// of each the controller is killed and started again.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave it running, and print how to talk to it and how to end it
    #[arg(long)]
    keep: bool,
    /// A cluster of so many nodes on this machine; needs root, for network namespaces
    #[arg(long, value_name = "N", conflicts_with = "keep",
          value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: Option<u8>,
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    prepare: Prepare,
}

/// What can fail, in the order of the demo.
#[derive(Debug, Clone, Copy)]
enum Fault {
    RoleKilled,
    AgentHung,
    KernelPanic,
    VmmKilled,
}

const FAULTS: [Fault; 4] = [
    Fault::RoleKilled,
    Fault::AgentHung,
    Fault::KernelPanic,
    Fault::VmmKilled,
];

/// Milliseconds from each fault until the role was Ready again.
#[derive(Debug, Default, Serialize)]
struct Recovered {
    role_killed: u64,
    agent_hung: u64,
    kernel_panic: u64,
    vmm_killed: u64,
}

/// The last line on standard output.
#[derive(Debug, Serialize)]
struct Figures {
    demo: &'static str,
    ready_ms: u64,
    recovered_ms: Recovered,
    vcpus: u32,
    memory: String,
    machine: Machine,
}

/// Runs the task.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    preflight::before_building(project)?;
    let images = options.prepare.run(project)?;
    let kvm = preflight::with_programs(project)?;
    if let Some(nodes) = options.nodes {
        let figures = cluster::run(project, &images, &options.size, nodes, kvm)?;
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }

    let work = Work::begin("Starting controller and host agent");
    let templates = project.cache_dir("templates")?;
    let mut fabric = Fabric::start(project, "demo", &images.kernel, Some(&templates))?;
    work.done(&fabric.dir().display().to_string());
    let work = Work::begin("Uploading guest OS image and package");
    service::upload(project, &fabric, &images.guest_os)?;
    work.done("done");

    println!("\nA service with one web role is applied:");
    let begun = Instant::now();
    service::apply(&fabric, &options.size)?;
    let mut instance = until_ready(&mut fabric, begun, |_| true)?;
    let ready_ms = millis(begun);
    println!("  {:>8}  Ready", seconds(begun.elapsed()));

    let mut recovered = Recovered::default();
    for fault in FAULTS {
        println!("\n{}:", fault.sentence());
        let begun = Instant::now();
        fault.inject(&fabric, &instance)?;
        let before = instance;
        instance = until_ready(&mut fabric, begun, |now| fault.is_over(&before, now))
            .with_context(|| format!("after: {}", fault.sentence()))?;
        *fault.figure(&mut recovered) = millis(begun);
        println!("  {:>8}  Ready again", seconds(begun.elapsed()));
    }

    let machine = Machine::look(kvm);
    let figures = Figures {
        demo: "ok",
        ready_ms,
        recovered_ms: recovered,
        vcpus: options.size.vcpus,
        memory: options.size.memory.clone(),
        machine,
    };
    if options.keep {
        show(&figures);
        keep(project, fabric);
    } else {
        let work = Work::begin("Removing the service and ending everything");
        fabric.fabctl(&["service", "delete", SERVICE, "--wait"])?;
        fabric.end()?;
        work.done("nothing is left behind");
        show(&figures);
    }
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// Prints what happens until the instance is Ready and as wanted.
fn until_ready(
    fabric: &mut Fabric,
    begun: Instant,
    wanted: impl Fn(&Instance) -> bool,
) -> Result<Instance> {
    fabric.wait("the role to be Ready", PATIENCE, |seen| match seen {
        Seen::Event(event) if event.subject == INSTANCE => {
            println!(
                "  {:>8}  {:<18} {}",
                seconds(begun.elapsed()),
                event.reason,
                event.message
            );
            None
        }
        Seen::Instance(now) if now.instance_id == INSTANCE && now.is_ready() && wanted(now) => {
            Some(Instance::clone(now))
        }
        _ => None,
    })
}

impl Fault {
    fn sentence(self) -> &'static str {
        match self {
            Self::RoleKilled => "The role's process is killed inside the guest",
            Self::AgentHung => "The guest agent hangs",
            Self::KernelPanic => "The guest's kernel panics",
            Self::VmmKilled => "The VMM is killed with SIGKILL",
        }
    }

    fn inject(self, fabric: &Fabric, instance: &Instance) -> Result<()> {
        let dir = fabric.instance_dir(INSTANCE);
        match self {
            Self::RoleKilled => fault::inject(&dir, "kill-role web"),
            Self::AgentHung => fault::inject(&dir, "hang-agent"),
            Self::KernelPanic => fault::inject(&dir, "panic"),
            Self::VmmKilled => kill_vmm(instance.vmm_pid, &dir),
        }
    }

    /// Whether an instance that is Ready has gone through the fault, and is not
    /// still shown as it was before.
    fn is_over(self, before: &Instance, now: &Instance) -> bool {
        match self {
            Self::RoleKilled => now.role_restarts > before.role_restarts,
            Self::AgentHung | Self::KernelPanic | Self::VmmKilled => now.boots > before.boots,
        }
    }

    fn figure(self, recovered: &mut Recovered) -> &mut u64 {
        match self {
            Self::RoleKilled => &mut recovered.role_killed,
            Self::AgentHung => &mut recovered.agent_hung,
            Self::KernelPanic => &mut recovered.kernel_panic,
            Self::VmmKilled => &mut recovered.vmm_killed,
        }
    }
}

/// Kills the VMM of an instance, once sure that the process is that.
fn kill_vmm(pid: u32, instance_dir: &Path) -> Result<()> {
    let raw = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("there is no VMM")?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).context("holding the VMM")?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).context("looking at the VMM")?;
    ensure!(
        works_in == instance_dir,
        "process {pid} works in {}",
        works_in.display()
    );
    pidfd_send_signal(&pidfd, Signal::KILL).context("killing the VMM")
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn show(figures: &Figures) {
    let recovered = &figures.recovered_ms;
    let rows = [
        ("service applied, role Ready", figures.ready_ms),
        ("role killed, Ready again", recovered.role_killed),
        ("guest agent hung, Ready again", recovered.agent_hung),
        ("guest kernel panicked, Ready again", recovered.kernel_panic),
        ("VMM killed, Ready again", recovered.vmm_killed),
    ];
    let rows = rows
        .map(|(what, time)| [what.to_owned(), seconds(Duration::from_millis(time))])
        .to_vec();
    println!("\n{}", table(["what", "time"], rows, true));
}

fn keep(project: &Project, fabric: Fabric) {
    let (server, dir) = (fabric.server().to_owned(), fabric.dir().to_owned());
    let (host_agents, controller) = fabric.keep();
    let host_agent = host_agents[0];
    let fabctl = project.bin("fabctl");
    let fabctl = fabctl.display();
    println!(
        "\nIt runs on. Talk to it:\n  export FABRIC_SERVER={server}\n  {fabctl} instance list\n  \
         {fabctl} instance console {INSTANCE}\n  {fabctl} watch\nEnd it:\n  kill {host_agent} && \
         tail --pid={host_agent} -f /dev/null && kill {controller} && \
         tail --pid={controller} -f /dev/null && rm -r {dir}\n",
        dir = dir.display()
    );
}
