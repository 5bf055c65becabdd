//! A whole fabric on this machine: a controller, a host agent and the guests they
//! run, in a temporary folder. Dropped, all of it is ended and gone.
//!
//! It is talked to as any user would: through `fabctl`, and through the fault port
//! of the guests.

pub mod fault;
mod watch;

use std::{
    fs::{self, File},
    mem,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use self::watch::Watch;
pub use self::watch::{Instance, Seen};
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
const LONGEST_DIR: usize = 107 - "/node/instances//jail/vsock.sock".len() - 20;

/// A running fabric. The order of the fields is the order in which they end.
pub struct Fabric {
    watch: Watch,
    host_agent: Process,
    controller: Process,
    bin_dir: PathBuf,
    server: String,
    run: Run,
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
        let bin = |name| project.bin(name);
        let socket = path.join("api.sock");
        let server = format!("unix:{}", socket.display());

        let mut command = process::command(bin("fabric-controller"), ["serve"]);
        command
            .arg("--data-dir")
            .arg(path.join("controller"))
            .args(["--listen", &server])
            .args(["--vcpus-per-cpu", VCPUS_PER_CPU]);
        let mut controller = start_server(&mut command, &path.join("controller.log"))?;
        wait_for_socket(&mut controller, &socket, &path)?;

        let fabctl = Fabctl {
            program: bin("fabctl"),
            server: server.clone(),
        };
        let watch = Watch::start(fabctl.command(&["watch"]))?;

        let mut command = process::command(bin("host-agent"), ["serve", "--fault-injection"]);
        command.args([
            "--stop-vms-on-exit",
            "--node-id",
            "node-1",
            "--controller",
            &server,
        ]);
        command
            .arg("--data-dir")
            .arg(path.join("node"))
            .arg("--kernel")
            .arg(kernel);
        match templates {
            Some(folder) => command.arg("--template-dir").arg(folder),
            None => command.args(["--templates", "off"]),
        };
        let host_agent = start_server(&mut command, &path.join("host-agent.log"))?;
        let bin_dir = project.bin_dir();
        let mut fabric = Self {
            watch,
            host_agent: host_agent.with_grace(STOP),
            controller,
            bin_dir,
            server,
            run,
        };
        fabric.wait("the node to connect", START, |seen| match seen {
            Seen::Event(event) if event.reason == "NodeConnected" => Some(()),
            _ => None,
        })?;
        Ok(fabric)
    }

    /// The folder with everything in it.
    pub fn dir(&self) -> &Path {
        &self.run.1
    }

    /// Where the controller listens, as `fabctl --server` takes it.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Folder of an instance on the node.
    pub fn instance_dir(&self, instance: &str) -> PathBuf {
        self.dir().join("node/instances").join(instance)
    }

    /// Runs `fabctl` and returns what it says, in JSON.
    pub fn fabctl(&self, args: &[&str]) -> Result<Value> {
        let fabctl = Fabctl {
            program: self.bin_dir.join("fabctl"),
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
            interrupt::check()?;
            if let Some(seen) = self.watch.next(deadline)? {
                if let Some(found) = wanted(&seen) {
                    return Ok(found);
                }
            } else if Instant::now() >= deadline {
                bail!(
                    "waited {} s for {what}\n{}",
                    time.as_secs(),
                    logs(self.dir())
                );
            }
            for server in [&mut self.controller, &mut self.host_agent] {
                if let Some(status) = server.wait_within(Duration::ZERO)? {
                    let name = server.name().to_owned();
                    bail!("{name} has ended: {status}\n{}", logs(&self.run.1));
                }
            }
        }
    }

    /// Ends it, and fails if anything of it is left.
    pub fn end(self) -> Result<()> {
        let dir = self.dir().to_owned();
        let Self {
            watch,
            mut host_agent,
            mut controller,
            run,
            ..
        } = self;
        drop(watch);
        // Asked for by name, so that one that fails at its end is noticed.
        for server in [&mut host_agent, &mut controller] {
            let status = server.stop()?;
            if !status.success() {
                eprintln!("{} ended badly: {status}\n{}", server.name(), logs(&dir));
            }
        }
        let strays = leftovers::of(&dir);
        drop(run);
        ensure!(
            strays.is_empty(),
            "left behind when all was stopped: {}",
            strays.join(", ")
        );
        leftovers::none_of(&dir)
    }

    /// Leaves it running for good; returns the process ids of host agent and
    /// controller.
    pub fn keep(mut self) -> (u32, u32) {
        let pids = (self.host_agent.pid(), self.controller.pid());
        if let Some(dir) = self.run.0.take() {
            let _ = dir.keep();
        }
        mem::forget(self.host_agent);
        mem::forget(self.controller);
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

fn start_server(command: &mut Command, log: &Path) -> Result<Process> {
    let file = File::create(log).with_context(|| format!("making {}", log.display()))?;
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
    let mut files = vec![dir.join("controller.log"), dir.join("host-agent.log")];
    for instance in fs::read_dir(dir.join("node/instances"))
        .into_iter()
        .flatten()
        .flatten()
    {
        files.push(instance.path().join("vmm.err"));
        files.push(instance.path().join("vmm.out"));
    }
    for file in files {
        let Ok(bytes) = fs::read(&file) else { continue };
        let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL)..];
        text.push_str(&format!("--- end of {}\n", file.display()));
        text.push_str(&String::from_utf8_lossy(tail));
    }
    text
}
