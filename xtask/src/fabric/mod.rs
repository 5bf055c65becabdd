//! A whole fabric on this machine: a controller, host agents and the guests they
//! run, in a temporary folder. Dropped, all of it is ended and gone.
//!
//! With one node, it and the controller talk over a unix socket. With several, each has
//! a [`network`] of its own, and has joined with a token, over mTLS.
//!
//! It is talked to as any user would: through `fabctl`, and through the fault port
//! of the guests.

pub mod fault;
mod network;
mod watch;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    mem,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use self::network::{HUB, Network, node_name};
use self::watch::Watch;
pub use self::watch::{Event, Instance, Seen};
use crate::{interrupt, leftovers, process, process::Process, project::Project};

/// Guests that mostly wait share processors.
const VCPUS_PER_CPU: &str = "64";
/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(20);
/// How long a host agent may take to stop its guests.
const STOP: Duration = Duration::from_secs(75);
/// Between two looks at whether a server answers.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of each log that an error repeats.
const LOG_TAIL: usize = 4000;
/// Longest path of a unix socket (unix(7)), less what an instance adds to a folder.
const LONGEST_DIR: usize = 107 - "/node-1/instances//jail/vsock.sock".len() - 20;
/// Where the controller listens to nodes that have networks of their own.
const PORT: u16 = 7070;

/// A running fabric. The order of the fields is the order in which they end.
pub struct Fabric {
    watch: Watch,
    host_agents: BTreeMap<u8, Process>,
    controller: Process,
    network: Option<Network>,
    programs: Programs,
    server: String,
    run: Run,
}

/// What everything is started with.
struct Programs {
    bin_dir: PathBuf,
    kernel: PathBuf,
    templates: Option<PathBuf>,
}

impl Programs {
    fn bin(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// The folder of a run. Dropped, whatever still works in it is killed, and it goes.
struct Run(Option<tempfile::TempDir>, PathBuf);

impl Drop for Run {
    fn drop(&mut self) {
        let Some(dir) = self.0.take() else { return };
        leftovers::kill_processes_of(&self.1);
        if let Err(error) = dir.close() {
            eprintln!("could not remove {}: {error}", self.1.display());
        }
    }
}

impl Fabric {
    /// Starts one whose guests run a kernel, and waits until its node is there.
    /// Guests boot, unless there is a folder for templates.
    pub fn start(
        project: &Project,
        purpose: &str,
        kernel: &Path,
        templates: Option<&Path>,
    ) -> Result<Self> {
        let mut fabric = Self::begin(project, purpose, kernel, templates, None)?;
        let server = fabric.server.clone();
        let program = fabric.programs.bin("host-agent");
        let mut command = process::command(program, ["serve", "--node-id", &node_name(1)]);
        command.args(["--controller", &server]);
        fabric.start_host_agent(1, command)?;
        Ok(fabric)
    }

    /// The same with several nodes, each a machine as far as the network goes, in a
    /// fault domain of its own.
    pub fn start_apart(
        project: &Project,
        purpose: &str,
        kernel: &Path,
        templates: &Path,
        nodes: u8,
    ) -> Result<Self> {
        let network = Network::make(nodes)?;
        let mut fabric = Self::begin(project, purpose, kernel, Some(templates), Some(network))?;
        for node in 1..=nodes {
            fabric.join(node)?;
            fabric.serve_node(node)?;
        }
        Ok(fabric)
    }

    fn begin(
        project: &Project,
        purpose: &str,
        kernel: &Path,
        templates: Option<&Path>,
        network: Option<Network>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("fabric-{purpose}-"))
            .tempdir()
            .context("making a temporary folder")?;
        let path = dir
            .path()
            .canonicalize()
            .context("finding the temporary folder")?;
        let run = Run(Some(dir), path.clone());
        ensure!(
            path.as_os_str().len() <= LONGEST_DIR,
            "{} is too long for sockets in it: set TMPDIR to a shorter one",
            path.display()
        );
        let programs = Programs {
            bin_dir: project.bin_dir(),
            kernel: kernel.to_owned(),
            templates: templates.map(Path::to_owned),
        };
        let server = format!("unix:{}", path.join("api.sock").display());
        let controller = start_controller(&programs, network.as_ref(), &path)?;
        let fabctl = Fabctl {
            program: programs.bin("fabctl"),
            server: server.clone(),
        };
        let watch = Watch::start(fabctl.command(&["watch"]))?;
        Ok(Self {
            watch,
            host_agents: BTreeMap::new(),
            controller,
            network,
            programs,
            server,
            run,
        })
    }

    /// Gives a node its identity.
    fn join(&self, node: u8) -> Result<()> {
        let name = node_name(node);
        let data_dir = self.dir().join("controller");
        let mut command = process::command(
            self.programs.bin("fabric-controller"),
            ["token", "create", "--node", &name, "--data-dir"],
        );
        // What it says to people is not for the demo's.
        command.arg(data_dir).stderr(Stdio::null());
        let token =
            process::output(&mut command).with_context(|| format!("making a token for {name}"))?;
        let mut command = self.on_node(node, "host-agent")?;
        command
            .args(["join", &format!("{HUB}:{PORT}"), "--data-dir"])
            .arg(self.dir().join(&name))
            .env("FABRIC_JOIN_TOKEN", token.trim());
        process::run_quietly(&mut command, |_| ()).with_context(|| format!("{name} joins"))
    }

    /// Starts the host agent of a node that has joined, and waits until it is there.
    pub fn serve_node(&mut self, node: u8) -> Result<()> {
        let mut command = self.on_node(node, "host-agent")?;
        command.args(["serve", "--label", &format!("fault-domain=rack-{node}")]);
        self.start_host_agent(node, command)
    }

    fn on_node(&self, node: u8, program: &str) -> Result<Command> {
        let network = self.network()?;
        Ok(network.on_node(node, self.programs.bin(program)))
    }

    fn network(&self) -> Result<&Network> {
        self.network
            .as_ref()
            .context("the nodes have no network of their own")
    }

    fn start_host_agent(&mut self, node: u8, mut command: Command) -> Result<()> {
        let name = node_name(node);
        command
            .args(["--fault-injection", "--stop-vms-on-exit", "--data-dir"])
            .arg(self.dir().join(&name))
            .arg("--kernel")
            .arg(&self.programs.kernel);
        match &self.programs.templates {
            Some(folder) => command.arg("--template-dir").arg(folder),
            None => command.args(["--templates", "off"]),
        };
        let log = self.dir().join(format!("{name}.log"));
        let host_agent = start_server(&mut command, &log)?.with_grace(STOP);
        self.host_agents.insert(node, host_agent);
        self.wait("the node to connect", START, |seen| match seen {
            Seen::Event(event) if event.reason == "NodeConnected" && event.subject == name => {
                Some(())
            }
            _ => None,
        })
    }

    /// Cuts a node off from the network, or mends its link.
    pub fn cut_off(&self, node: u8, cut: bool) -> Result<()> {
        self.network()?.cut(node, cut)
    }

    /// Kills all that a node runs, as if its machine had died.
    pub fn kill_node(&mut self, node: u8) -> Result<()> {
        let mut host_agent = self
            .host_agents
            .remove(&node)
            .with_context(|| format!("node {node} does not run"))?;
        host_agent.kill()?;
        leftovers::kill_processes_of(&self.dir().join(node_name(node)));
        Ok(())
    }

    /// Kills the controller and starts it again.
    pub fn restart_controller(&mut self) -> Result<()> {
        self.controller.kill()?;
        self.controller = start_controller(&self.programs, self.network.as_ref(), &self.run.1)?;
        Ok(())
    }

    /// The folder with everything in it.
    pub fn dir(&self) -> &Path {
        &self.run.1
    }

    /// Where the controller listens, as `fabctl --server` takes it.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Folder of an instance on the first node.
    pub fn instance_dir(&self, instance: &str) -> PathBuf {
        self.instance_dir_on(&node_name(1), instance)
    }

    /// Folder of an instance on a node.
    pub fn instance_dir_on(&self, node: &str, instance: &str) -> PathBuf {
        self.dir().join(node).join("instances").join(instance)
    }

    /// Runs `fabctl` and returns what it says, in JSON.
    pub fn fabctl(&self, args: &[&str]) -> Result<Value> {
        let fabctl = Fabctl {
            program: self.programs.bin("fabctl"),
            server: self.server.clone(),
        };
        let text = process::output(&mut fabctl.command(args))
            .with_context(|| format!("fabctl {}", args.join(" ")))?;
        match text.trim() {
            "" => Ok(Value::Null),
            text => serde_json::from_str(text)
                .with_context(|| format!("fabctl {} has printed no JSON: {text}", args.join(" "))),
        }
    }

    /// Waits until something seen is what is wanted; fails with the logs if it does
    /// not come in time.
    pub fn wait<T>(
        &mut self,
        what: &str,
        time: Duration,
        mut wanted: impl FnMut(&Seen) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(seen) = self.next(deadline)? {
                if let Some(found) = wanted(&seen) {
                    return Ok(found);
                }
            } else if Instant::now() >= deadline {
                bail!("waited {} s for {what}\n{}", time.as_secs(), self.logs());
            }
        }
    }

    /// What is seen next; `None` if nothing is for a while or until the deadline. Fails
    /// when a server has ended.
    pub fn next(&mut self, deadline: Instant) -> Result<Option<Seen>> {
        interrupt::check()?;
        for server in self.host_agents.values_mut().chain([&mut self.controller]) {
            if let Some(status) = server.wait_within(Duration::ZERO)? {
                let name = server.name().to_owned();
                bail!("{name} has ended: {status}\n{}", logs(&self.run.1));
            }
        }
        self.watch.next(deadline)
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        logs(self.dir())
    }

    /// Ends it, and fails if anything of it is left.
    pub fn end(self) -> Result<()> {
        let dir = self.dir().to_owned();
        let Self {
            watch,
            mut host_agents,
            mut controller,
            network,
            run,
            ..
        } = self;
        drop(watch);
        // Asked for by name, so that one that fails at its end is noticed.
        for server in host_agents.values_mut().chain([&mut controller]) {
            let status = server.stop()?;
            if !status.success() {
                eprintln!("{} ended badly: {status}\n{}", server.name(), logs(&dir));
            }
        }
        let strays = leftovers::of(&dir);
        drop(network);
        drop(run);
        ensure!(
            strays.is_empty(),
            "left behind when all was stopped: {}",
            strays.join(", ")
        );
        leftovers::none_of(&dir)
    }

    /// Leaves it running for good; returns the process ids of the host agents and of the
    /// controller.
    pub fn keep(mut self) -> (Vec<u32>, u32) {
        let host_agents = self.host_agents.values().map(Process::pid).collect();
        let pids = (host_agents, self.controller.pid());
        if let Some(dir) = self.run.0.take() {
            let _ = dir.keep();
        }
        mem::forget(self.host_agents);
        mem::forget(self.controller);
        mem::forget(self.network);
        pids
    }
}

/// How `fabctl` is called.
struct Fabctl {
    program: PathBuf,
    server: String,
}

impl Fabctl {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = process::command(&self.program, ["--server", &self.server]);
        command.args(["--output", "json"]).args(args);
        command
    }
}

fn start_controller(programs: &Programs, network: Option<&Network>, dir: &Path) -> Result<Process> {
    let program = programs.bin("fabric-controller");
    let socket = dir.join("api.sock");
    let mut command = match network {
        Some(network) => network.in_hub(program),
        None => Command::new(program),
    };
    command
        .args(["serve", "--vcpus-per-cpu", VCPUS_PER_CPU])
        .args(["--listen", &format!("unix:{}", socket.display())]);
    if network.is_some() {
        command.args(["--listen", &format!("{HUB}:{PORT}"), "--name", HUB]);
    }
    command.arg("--data-dir").arg(dir.join("controller"));
    let mut controller = start_server(&mut command, &dir.join("controller.log"))?;
    wait_for_socket(&mut controller, &socket, dir)?;
    Ok(controller)
}

fn start_server(command: &mut Command, log: &Path) -> Result<Process> {
    let mut options = File::options();
    let file = options.append(true).create(true).open(log);
    let file = file.with_context(|| format!("making {}", log.display()))?;
    let second = file
        .try_clone()
        .with_context(|| format!("opening {}", log.display()))?;
    Process::start(command.stdout(file).stderr(second))
}

fn wait_for_socket(server: &mut Process, socket: &Path, dir: &Path) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        interrupt::check()?;
        if UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        if let Some(status) = server.wait_within(Duration::ZERO)? {
            bail!("{} has ended: {status}\n{}", server.name(), logs(dir));
        }
        if Instant::now() >= deadline {
            bail!(
                "{} does not listen on {}\n{}",
                server.name(),
                socket.display(),
                logs(dir)
            );
        }
        thread::sleep(LOOK);
    }
}

/// The ends of all logs of a run.
fn logs(dir: &Path) -> String {
    let mut text = String::new();
    let inside = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files = vec![dir.join("controller.log")];
    for node in inside(dir).filter(|entry| entry.path().join("instances").is_dir()) {
        files.push(node.path().with_extension("log"));
        for instance in inside(&node.path().join("instances")) {
            files.push(instance.path().join("vmm.err"));
            files.push(instance.path().join("vmm.out"));
        }
    }
    for file in files {
        let Ok(bytes) = fs::read(&file) else { continue };
        let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL)..];
        text.push_str(&format!("--- end of {}\n", file.display()));
        text.push_str(&String::from_utf8_lossy(tail));
    }
    text
}
