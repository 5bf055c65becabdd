//! A controller and a host agent, as processes, with what a test does to them.

use std::{
    fs,
    io::ErrorKind,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fabric_proto::{
    node::v1::{InstanceStatus, VmEnd},
    v1::{
        Event, GetInstanceRequest, Instance, ListEventsRequest, ListInstancesRequest,
        ListNodesRequest, event_service_client::EventServiceClient,
        instance_service_client::InstanceServiceClient, node_service_client::NodeServiceClient,
    },
    vmbus::FAULT_PORT,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};
use tonic::transport::{Channel, Endpoint};

use crate::{
    BOOT, Identity, Place, Program, SOON, ServiceFile, disagreements, eventually,
    traces::{groups, members},
};

/// How a cluster is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Arguments for the host agent beside the usual ones.
    pub host_agent: Vec<String>,
    /// Arguments for the controller beside the usual ones.
    pub controller: Vec<String>,
    /// Another kernel for its guests.
    pub kernel: Option<PathBuf>,
    /// What goes before the controller's command, such as a mount namespace.
    pub before_controller: Vec<String>,
    /// What goes before the host agent's command.
    pub before_host_agent: Vec<String>,
    /// Another data directory for the controller.
    pub controller_dir: Option<PathBuf>,
    /// Another data directory for the host agent.
    pub node_dir: Option<PathBuf>,
    /// Whether it makes templates of its own, and shares no other cluster's.
    pub own_templates: bool,
    /// Another folder with the host agent and its VMM.
    pub node_programs: Option<PathBuf>,
    /// Whether steps of these can be armed ([`Cluster::arm`]).
    pub fail_points: bool,
    /// How long leases are; by default longer than a machine that is busy with tests
    /// can keep a host agent waiting.
    pub lease: Option<&'static str>,
    /// How long certificates of nodes last. The node joins with a token then, and comes
    /// by TLS instead of the controller's unix socket.
    pub certificates: Option<&'static str>,
}

/// The node's name.
const NODE: &str = "node-1";
/// The directory of armed steps.
const ARMED: &str = "armed";

/// One controller and one host agent, on unix sockets in a temporary directory.
#[derive(Debug)]
pub struct Cluster {
    /// The host agent; declared before the controller so that it ends first and
    /// takes its virtual machines along.
    pub host_agent: Program,
    /// The controller.
    pub controller: Program,
    /// Where everything under test is.
    pub place: Place,
    channel: Channel,
    node_dir: PathBuf,
    dir: TempDir,
}

impl Cluster {
    /// Starts one, and waits until the node is there.
    ///
    /// # Errors
    ///
    /// Something cannot be started or does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// The same, with templates of its own, which it shares with nobody.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with_own_templates() -> anyhow::Result<Self> {
        Self::start_with(Options {
            own_templates: true,
            ..Options::default()
        })
        .await
    }

    /// The same, with options.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(options: Options) -> anyhow::Result<Self> {
        let place = Place::find()?;
        let dir = tempfile::Builder::new().prefix("fabric-test-").tempdir()?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        let controller_dir = options
            .controller_dir
            .unwrap_or(dir.path().join("controller"));
        let node_dir = options.node_dir.unwrap_or(dir.path().join("node"));
        fs::create_dir_all(&controller_dir)?;
        fs::create_dir_all(&node_dir)?;

        let mut controller = options.before_controller;
        controller.push(place.program("fabric-controller").display().to_string());
        controller.extend(["serve".into(), "--data-dir".into()]);
        controller.push(controller_dir.display().to_string());
        controller.extend(["--listen".into(), format!("unix:{}", at("api.sock"))]);
        controller.extend(["--lease".into(), options.lease.unwrap_or("60s").into()]);
        let server = format!("127.0.0.1:{}", free_port()?);
        if let Some(life) = options.certificates {
            controller.extend(["--listen".into(), server.clone()]);
            controller.extend(["--node-certificates".into(), life.into()]);
        }
        controller.extend(options.controller);
        let controller = Program::start(controller, &dir.path().join("controller.log"))?;

        let kernel = options.kernel.as_ref().unwrap_or(&place.kernel);
        let mut host_agent = options.before_host_agent;
        let mut programs = options.node_programs.unwrap_or(place.programs.clone());
        if options.fail_points {
            fs::create_dir(dir.path().join(ARMED))?;
            programs = place.with_fail_points();
            host_agent.extend(["env".into(), format!("FABRIC_FAIL_POINTS={}", at(ARMED))]);
        }
        host_agent.push(programs.join("host-agent").display().to_string());
        host_agent.extend(["serve".into(), "--data-dir".into()]);
        host_agent.push(node_dir.display().to_string());
        if options.certificates.is_some() {
            let programs = (
                place.program("fabric-controller"),
                programs.join("host-agent"),
            );
            join(programs, &server, (&controller_dir, &node_dir)).await?;
        } else {
            host_agent.extend(["--controller".into(), format!("unix:{}", at("api.sock"))]);
            host_agent.extend(["--node-id".into(), NODE.into()]);
        }
        host_agent.extend(["--kernel".into(), kernel.display().to_string()]);
        host_agent.extend(["--boot-deadline".into(), "120s".into()]);
        host_agent.extend(["--fault-injection".into(), "--stop-vms-on-exit".into()]);
        host_agent.extend(["--templates".into(), "on".into()]);
        if !options.own_templates {
            host_agent.extend([
                "--template-dir".into(),
                place.templates.display().to_string(),
            ]);
        }
        host_agent.extend(options.host_agent);

        let channel = Endpoint::from_shared(format!("unix:{}", at("api.sock")))?.connect_lazy();
        let cluster = Self {
            controller,
            host_agent: Program::start(host_agent, &dir.path().join("host-agent.log"))?,
            place,
            channel,
            node_dir,
            dir,
        };
        cluster.until_node_is_connected().await?;
        Ok(cluster)
    }

    /// Waits until the controller answers and the node is connected to it.
    ///
    /// # Errors
    ///
    /// It does not come to that.
    pub async fn until_node_is_connected(&self) -> anyhow::Result<()> {
        self.until_connected(NODE).await
    }

    /// Waits until a node is connected.
    ///
    /// # Errors
    ///
    /// It does not come to that.
    pub async fn until_connected(&self, node: &str) -> anyhow::Result<()> {
        eventually(SOON, &format!("{node} to be connected"), || async {
            let mut nodes = NodeServiceClient::new(self.channel.clone());
            let answer = nodes
                .list_nodes(ListNodesRequest {})
                .await
                .map_err(|e| e.to_string())?;
            let nodes = &answer.get_ref().nodes;
            if nodes.iter().any(|one| one.node_id == node && one.connected) {
                Ok(())
            } else {
                Err(format!("{nodes:?}"))
            }
        })
        .await
    }

    /// A connection to the controller, for calls that have no method here.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A path in the cluster's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory of an instance on the node.
    #[must_use]
    pub fn instance_dir(&self, instance: &str) -> PathBuf {
        self.node_dir.join("instances").join(instance)
    }

    /// The node's data directory.
    #[must_use]
    pub fn node_dir(&self) -> &Path {
        &self.node_dir
    }

    /// The directory of the node's own templates.
    #[must_use]
    pub fn own_templates(&self) -> PathBuf {
        self.node_dir.join("templates")
    }

    /// Runs `fabctl` against this cluster, whatever comes of it.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn fabctl_output(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Command::new(self.place.program("fabctl"))
            .args([
                "--server",
                &format!("unix:{}", self.path("api.sock").display()),
            ])
            .args(arguments)
            .output()
            .context("start fabctl")
    }

    /// Runs `fabctl`, which must succeed; what it printed.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn fabctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.fabctl_output(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "fabctl {arguments:?} failed: {error}"
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Uploads the guest OS image, as `guest-os`.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub fn upload_guest_os(&self) -> anyhow::Result<()> {
        let image = self.place.guest_os.display().to_string();
        self.fabctl(&["image", "upload", "guest-os", &image])?;
        Ok(())
    }

    /// Builds a package of these files and uploads it.
    ///
    /// # Errors
    ///
    /// It cannot be built or is refused.
    pub fn upload_package(&self, name: &str, files: &[(&str, &str)]) -> anyhow::Result<()> {
        let folder = self.path(&format!("package-{name}"));
        fs::create_dir(&folder)?;
        for (file, text) in files {
            fs::write(folder.join(file), text)?;
        }
        let (folder, image) = (
            folder.display().to_string(),
            self.path(&format!("{name}.vhd")),
        );
        let image = image.display().to_string();
        self.fabctl(&["package", "build", &folder, "-o", &image])?;
        self.fabctl(&["package", "upload", name, &image])?;
        Ok(())
    }

    /// Applies a service file.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub fn apply(&self, service: &ServiceFile) -> anyhow::Result<String> {
        let file = self.path("service.toml");
        fs::write(&file, service.toml())?;
        self.fabctl(&["service", "apply", "-f", &file.display().to_string()])
    }

    /// Uploads the guest OS image, applies `service` and waits for its first
    /// instance to be `Ready`.
    ///
    /// # Errors
    ///
    /// It does not come to that.
    pub async fn run(&self, service: &ServiceFile, instance: &str) -> anyhow::Result<Instance> {
        self.upload_guest_os()?;
        self.apply(service)?;
        self.until_ready(instance).await
    }

    /// An instance as the controller shows it now.
    ///
    /// # Errors
    ///
    /// There is none, or the controller does not answer.
    pub async fn instance(&self, id: &str) -> anyhow::Result<Instance> {
        let mut client = InstanceServiceClient::new(self.channel.clone());
        let request = GetInstanceRequest {
            instance_id: id.to_owned(),
        };
        let answer = client.get_instance(request).await?;
        answer
            .into_inner()
            .instance
            .context("an answer without an instance")
    }

    /// All instances.
    ///
    /// # Errors
    ///
    /// The controller does not answer.
    pub async fn instances(&self) -> anyhow::Result<Vec<Instance>> {
        let mut client = InstanceServiceClient::new(self.channel.clone());
        let request = ListInstancesRequest {
            service: String::new(),
        };
        Ok(client.list_instances(request).await?.into_inner().instances)
    }

    /// Waits until an instance is as `wanted` says.
    ///
    /// # Errors
    ///
    /// It does not come to that within the time of a boot.
    pub async fn until(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&Instance) -> bool,
    ) -> anyhow::Result<Instance> {
        eventually(BOOT, &format!("{id} {what}"), || async {
            let instance = self
                .instance(id)
                .await
                .map_err(|error| format!("{error:#}"))?;
            if wanted(&instance) {
                Ok(instance)
            } else {
                Err(format!("{instance:#?}"))
            }
        })
        .await
    }

    /// Waits until an instance is `Ready`.
    ///
    /// # Errors
    ///
    /// It does not come to that within the time of a boot.
    pub async fn until_ready(&self, id: &str) -> anyhow::Result<Instance> {
        self.until(id, "to be Ready", |instance| instance.state == "Ready")
            .await
    }

    /// Waits until the node has these instances, with a machine that runs each, and
    /// nothing of any other, from whatever side one looks.
    ///
    /// # Errors
    ///
    /// Says what does not agree.
    pub async fn until_all_agree_on(&self, instances: &[&str]) -> anyhow::Result<()> {
        let what = format!("all to agree on {instances:?}");
        eventually(SOON, &what, || async {
            match disagreements(&self.node_dir, instances) {
                lines if lines.is_empty() => Ok(()),
                lines => Err(lines.join("\n")),
            }
        })
        .await
    }

    /// Which process the machine of an instance is.
    ///
    /// # Errors
    ///
    /// It has none.
    pub fn vmm(&self, instance: &str) -> anyhow::Result<Identity> {
        let vmms = vmms_in(&self.instance_dir(instance));
        let vmm = vmms.first().copied().and_then(Identity::of);
        vmm.with_context(|| format!("{instance} has no VMM"))
    }

    /// The steps at which a program of the node can be armed to end, `of` what:
    /// `host-agent life`.
    ///
    /// # Errors
    ///
    /// There are none in the host agent that was built.
    pub fn fail_points(&self, of: &str) -> anyhow::Result<Vec<String>> {
        let host_agent = self.place.with_fail_points().join("host-agent");
        let output = Command::new(&host_agent)
            .arg("fail-points")
            .output()
            .with_context(|| format!("run {}: cargo xtask test builds it", host_agent.display()))?;
        let text = String::from_utf8(output.stdout)?;
        let named = |line: &str| Some(line.strip_prefix(of)?.trim().to_owned());
        let steps: Vec<_> = text.lines().filter_map(named).collect();
        ensure!(!steps.is_empty(), "no fail points of {of}: {text}");
        Ok(steps)
    }

    /// Has the next process that comes to a step end there.
    ///
    /// # Errors
    ///
    /// The file system refuses.
    pub fn arm(&self, step: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.path(ARMED).join(step), "")?)
    }

    /// Whether nobody has come to a step since it was armed.
    #[must_use]
    pub fn is_armed(&self, step: &str) -> bool {
        self.path(ARMED).join(step).exists()
    }

    /// Events so far, oldest first.
    ///
    /// # Errors
    ///
    /// The controller does not answer.
    pub async fn events(&self, subject: &str) -> anyhow::Result<Vec<Event>> {
        let mut client = EventServiceClient::new(self.channel.clone());
        let subject = subject.to_owned();
        let request = ListEventsRequest {
            after_cursor: 0,
            limit: 0,
            subject,
        };
        Ok(client.list_events(request).await?.into_inner().events)
    }

    /// How often the node has said that an instance is gone.
    ///
    /// # Errors
    ///
    /// The controller does not answer.
    pub async fn removals(&self, instance: &str) -> anyhow::Result<usize> {
        self.removals_from(instance, NODE).await
    }

    /// How often that node has said that an instance is gone.
    ///
    /// # Errors
    ///
    /// The controller does not answer.
    pub async fn removals_from(&self, instance: &str, node: &str) -> anyhow::Result<usize> {
        let events = self.events(instance).await?;
        // The controller says so as well, when it wants that.
        let said = |event: &&Event| event.reason == "InstanceRemoved" && event.source == node;
        Ok(events.iter().filter(said).count())
    }

    /// Waits for an event of this kind about this subject.
    ///
    /// # Errors
    ///
    /// None comes.
    pub async fn until_event(&self, subject: &str, reason: &str) -> anyhow::Result<Event> {
        eventually(BOOT, &format!("{reason} of {subject}"), || async {
            let events = self
                .events(subject)
                .await
                .map_err(|error| format!("{error:#}"))?;
            let seen = events
                .iter()
                .map(|e| e.reason.as_str())
                .collect::<Vec<_>>()
                .join(", ");
            events
                .into_iter()
                .rev()
                .find(|event| event.reason == reason)
                .ok_or(seen)
        })
        .await
    }

    /// Tells a guest to fail in some way; see the guest agent's `fault` module.
    ///
    /// # Errors
    ///
    /// The guest cannot be reached or does not know the fault.
    pub async fn fault(&self, instance: &str, fault: &str) -> anyhow::Result<()> {
        let stream = dial(
            &self.instance_dir(instance).join("jail/vsock.sock"),
            FAULT_PORT,
        )
        .await?;
        let mut stream = BufReader::new(stream);
        stream.write_all(format!("{fault}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.take(256).read_line(&mut answer).await?;
        ensure!(
            answer.trim() == "ok",
            "the guest answers {answer:?} to {fault:?}"
        );
        Ok(())
    }
}

/// A port of loopback at which nobody listens.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Has the node join at the controller that listens there: by these programs of the two,
/// and these data directories.
async fn join(
    (controller, host_agent): (PathBuf, PathBuf),
    server: &str,
    (controller_dir, node_dir): (&Path, &Path),
) -> anyhow::Result<()> {
    let token = eventually(SOON, "the controller to make a token", || async {
        let mut create = Command::new(&controller);
        create.args(["token", "create", "--node", NODE, "--data-dir"]);
        let output = create.arg(controller_dir).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    })
    .await?;
    let mut join = Command::new(host_agent);
    join.args(["join", server, "--token", &token, "--data-dir"]);
    let output = join.arg(node_dir).output().context("start host-agent")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "host-agent join failed: {error}");
    Ok(())
}

/// Connects to a port in a guest, by the VMM's socket.
async fn dial(socket: &Path, port: u32) -> anyhow::Result<UnixStream> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("connect to {}", socket.display()))?;
    let mut stream = BufReader::new(stream);
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line is the guest's.
    while answer.last() != Some(&b'\n') && answer.len() < 64 {
        answer.push(
            stream
                .read_u8()
                .await
                .context("the guest does not listen")?,
        );
    }
    ensure!(
        answer.starts_with(b"OK "),
        "answer {:?}",
        String::from_utf8_lossy(&answer)
    );
    Ok(stream.into_inner())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The agent first: it stops its virtual machines. Then whatever is left of
        // them, if it was killed and did not come back.
        self.host_agent.end();
        for vmm in vmms_in(&self.node_dir) {
            let _ = kill(Pid::from_raw(vmm), Signal::SIGKILL);
        }
        for place in groups(&self.node_dir) {
            empty(&place);
        }
        self.controller.end();
    }
}

/// Ends what runs in a node's control groups, and removes them.
fn empty(place: &Path) {
    let end = Instant::now() + SOON;
    for group in fs::read_dir(place).into_iter().flatten().flatten() {
        let group = group.path();
        // A process is in its group until it has come to its end.
        while fs::remove_dir(&group).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy)
            && Instant::now() < end
        {
            for process in members(&group) {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    let _ = fs::remove_dir(place);
}

/// Virtual machine monitors that run in a directory or below.
#[must_use]
pub fn vmms_in(directory: &Path) -> Vec<i32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|process| {
            fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory))
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

/// What the node says of an instance; missing only before it has said anything.
///
/// # Errors
///
/// It has not.
pub fn status(instance: &Instance) -> anyhow::Result<&InstanceStatus> {
    match &instance.status {
        Some(status) => Ok(status),
        None => bail!("{} has no status yet", instance.instance_id),
    }
}

/// Whether an instance's virtual machine is the process that it was.
///
/// # Errors
///
/// It is another.
pub fn same_vmm(before: &Instance, after: &Instance) -> anyhow::Result<()> {
    ensure!(
        status(after)?.vmm_pid == status(before)?.vmm_pid,
        "another VMM: {after:#?}"
    );
    Ok(())
}

/// Whether that process runs the guest that it ran.
///
/// # Errors
///
/// It is another process, or the guest has booted again.
pub fn same_guest(before: &Instance, after: &Instance) -> anyhow::Result<()> {
    same_vmm(before, after)?;
    ensure!(
        status(after)?.boot_id == status(before)?.boot_id,
        "the guest has booted again: {after:#?}"
    );
    Ok(())
}

/// How the last virtual machine of an instance ended.
///
/// # Errors
///
/// None has.
pub fn last_end(instance: &Instance) -> anyhow::Result<&VmEnd> {
    match &status(instance)?.last_end {
        Some(end) => Ok(end),
        None => bail!("no machine of {} has ended", instance.instance_id),
    }
}
