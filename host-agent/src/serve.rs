//! `host-agent serve`: puts the parts together, and takes them apart again.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use fabric_metrics::serve::{Address as MetricsAddress, Listener as MetricsListener};
use fabric_proto::{id::NodeId, node::v1::Inventory};
use fabric_trust::{address::Address, context::Context, dial::Dial, token::JoinToken};
use fabric_vmm::{config::RepairMode, exit::KvmKind};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::UnixListenerStream;

use crate::{
    blobs::BlobCache,
    clock::{self, Clock},
    events::EventLog,
    files,
    hypervisor::{jails::Jails, process::ProcessHypervisor, users::Users},
    instance::{
        disks::Workshop, machine::Limits, status::Board, supervisor::Node as Lent, turn::Turns,
    },
    inventory,
    join::{self, Renewal},
    lease::{self, Lease},
    metrics::look::Places,
    node::Node,
    output::stream::send_outputs,
    preflight,
    session::{self, ControllerBlobs, Identity, Link},
    template::{self, Templates, host::Host, prune::Keep},
};

/// Name of our own socket in the data directory.
pub const SOCKET: &str = "host-agent.sock";
/// Name of the lock in the data directory.
pub(crate) const LOCK: &str = "lock";
/// Name of the templates' directory in the data directory.
const TEMPLATES: &str = "templates";
/// How often templates are looked through for what is not to be kept.
const TIDY: Duration = Duration::from_secs(3600);
/// How long stopping every virtual machine may take.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// What an operator says when starting a host agent.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the controller is; by default where this node has joined.
    pub controller: Option<Address>,
    /// This node's name; by default the one under which it has joined.
    pub node_id: Option<NodeId>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// The VMM.
    pub vmm: PathBuf,
    /// How often a status is sent at least, until the goal says otherwise.
    pub heartbeat: Duration,
    /// How often guests send a sign of life.
    pub guest_heartbeat: Duration,
    /// How long a guest may take to say hello.
    pub boot_deadline: Duration,
    /// Whether guests take faults.
    pub fault_injection: bool,
    /// Labels of the node.
    pub labels: BTreeMap<String, String>,
    /// Its resources of the operator's own.
    pub resources: BTreeMap<String, u64>,
    /// Where health and reflection are served.
    pub listen: Option<Listen>,
    /// Where metrics are served; nowhere unless somebody wants them.
    pub metrics_listen: Option<MetricsAddress>,
    /// Whether to stop the virtual machines on the way out.
    pub stop_vms_on_exit: bool,
    /// How virtual machines are jailed.
    pub jails: Jails,
    /// Whether instances are copied from templates.
    pub templates: bool,
    /// Where those are kept, unless in the data directory.
    pub template_dir: Option<PathBuf>,
    /// How many are kept.
    pub template_keep: Keep,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// On a unix socket.
    Unix(PathBuf),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.trim_start_matches("//").into()));
        }
        Err("must be unix:PATH; nothing is served over TCP".to_owned())
    }
}

/// Serves until SIGTERM or SIGINT comes.
///
/// # Errors
///
/// When it cannot start. Later failures are told and survived.
pub async fn serve(mut options: Options) -> anyhow::Result<()> {
    // What we were started with is none of the guests' business.
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    let data = open_data(&options.data_dir)?;
    let _lock = lock(&data)?;
    let users = Users::take(options.jails.users.as_ref());
    let users = users.context("virtual machines can have no users")?;
    options.jails.users = Some(users.range.clone());
    let stop = stop_signal()?;
    let controller = controller(&options, &data)?;
    let channel = session::channel(&controller.dial);
    let client = session::client(channel.clone());

    let found = preflight::run(&options.vmm, &options.kernel, &data, &options.jails).await;
    for check in found
        .checks
        .iter()
        .filter(|check| check.finding != preflight::Finding::Good)
    {
        tracing::warn!(
            check = check.name,
            remedy = check.remedy,
            "{}",
            check.detail
        );
    }
    if !found.not_isolated_by.is_empty() {
        let names: Vec<_> = found.not_isolated_by.iter().map(|one| one.name()).collect();
        anyhow::bail!(
            "this host does not isolate virtual machines by {}: do what is said above, or allow \
             it with --allow-missing-isolation; host-agent check shows it again",
            names.join(", ")
        );
    }
    let journal = data.join("journal");
    fs::create_dir_all(&journal).with_context(|| format!("cannot create {}", journal.display()))?;
    for directory in [&data, &journal] {
        files::remove_unfinished(directory)
            .with_context(|| format!("cannot clear {}", directory.display()))?;
    }
    let events = EventLog::open(&journal)
        .with_context(|| format!("cannot open the events in {}", journal.display()))?;
    let source = Arc::new(ControllerBlobs {
        client: client.clone(),
    });
    let host_boot_id = clock::host_boot_id().context("cannot read this machine's boot id")?;
    let hypervisor = Arc::new(hypervisor(&options, &data, &found.kvm_kind)?);
    let host = Host::look(
        &hypervisor.vmm,
        &hypervisor.kernel,
        &hypervisor.cmdline,
        &found.kvm_kind,
    );
    let templates = templates(&options, &data, &hypervisor, host, &host_boot_id)?;
    let templates = Arc::new(templates);
    // Where KVM cannot be used there is nothing to make one with.
    let usable = options.templates && !found.kvm_kind.is_empty();
    let workshop = Arc::new(Workshop {
        blobs: BlobCache::open(data.join("blobs"), source)?,
        events: Arc::new(events),
        templates: usable.then(|| Arc::clone(&templates)),
        turns: Turns::of_this_machine(),
    });
    let board = Arc::new(Board::default());
    let lease = Lease::open(&data, &host_boot_id, Arc::new(clock::boot_time))
        .with_context(|| format!("cannot read the lease in {}", data.display()))?;
    let lease = Arc::new(lease);
    let lent = Lent {
        hypervisor,
        workshop: Arc::clone(&workshop),
        board: Arc::clone(&board),
        clock: Clock::system(),
        host_boot_id,
        lease: Arc::clone(&lease),
        limits: Arc::new(Limits {
            heartbeat: options.guest_heartbeat,
            boot: options.boot_deadline,
            ..Limits::default()
        }),
    };
    let mut node = Node::open(&data, lent, options.heartbeat)
        .with_context(|| format!("cannot use {}", data.display()))?;
    node.resume()
        .await
        .context("cannot take up what ran before")?;

    let keeping = tokio::spawn(lease::keeper::keep(Arc::clone(&lease), data.clone()));
    let socket = data.join(SOCKET);
    let served = tokio::spawn(serve_health(listener(&options, &data)?));
    let metrics = match &options.metrics_listen {
        Some(address) => {
            let places = Places {
                data: data.clone(),
                events: Arc::clone(&workshop.events),
                board: Arc::clone(&board),
                lease: Arc::clone(&lease),
                shown: node.view().shown,
            };
            let listener = MetricsListener::bind(address).await?;
            Some(tokio::spawn(listener.serve(move || places.clone().text())))
        }
        None => None,
    };
    let tidying = tokio::spawn(async move {
        let mut times = tokio::time::interval(TIDY);
        loop {
            times.tick().await;
            templates.tidy().await;
        }
    });
    let outputs = tokio::spawn(send_outputs(node.view(), client.clone()));
    let (goals, mut taken) = mpsc::channel(4);
    let identity = Identity {
        node: controller.node,
        inventory: Inventory {
            resources: options.resources,
            ..inventory::take(&data, &found.kvm_kind)
        },
        labels: options.labels,
    };
    let view = node.view();
    let link = Link {
        local: controller.dial.server().is_local(),
        identity,
        client,
        goals,
        view,
        board,
        workshop,
        lease: Arc::clone(&lease),
        data: data.clone(),
    };
    let kept = data.clone();
    let (renewed, server) = (data, controller.dial.server().clone());
    let link = tokio::spawn(link.run());
    let renewal = tokio::spawn(async move {
        if let Some(own) = controller.dial.own() {
            let renewal = Renewal {
                context: controller.context,
                channel,
                own: Arc::clone(own),
                data: renewed,
            };
            renewal.run().await;
        }
    });
    tracing::info!(controller = %server, "ready");
    node.run(&mut taken, stop).await;
    if options.stop_vms_on_exit {
        tracing::info!("stopping all virtual machines");
        if node.stop_all(STOP_PATIENCE).await {
            lease.forget();
            lease::keeper::end(&kept).await;
        }
    } else {
        tracing::info!("going down; virtual machines run on");
    }
    link.abort();
    renewal.abort();
    outputs.abort();
    tidying.abort();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    keeping.abort();
    served.abort();
    if options.listen.is_none() {
        files::remove_if_there(&socket).context("cannot remove our socket")?;
    }
    Ok(())
}

/// The way to the controller, and who we are to it.
struct Controller {
    context: Context,
    dial: Dial,
    node: NodeId,
}

/// What we have joined, or a unix socket on this machine, which needs no certificate.
fn controller(options: &Options, data: &Path) -> anyhow::Result<Controller> {
    if let Some(Address::Unix(path)) = &options.controller {
        let context = unix(path.clone());
        return Ok(Controller {
            dial: Dial::new(&context)?,
            context,
            node: options
                .node_id
                .clone()
                .context("--node-id: say what this node is called")?,
        });
    }
    let mut context = join::read(data)?.with_context(|| {
        format!(
            "this node has not joined a controller (nothing of that is in {}): make a token on \
             the controller's machine with `fabric-controller token create --node`, then run \
             `host-agent join ADDRESS --token TOKEN --data-dir {0}` here",
            data.display()
        )
    })?;
    if let Some(server) = &options.controller {
        context.server = server.clone();
    }
    let named = context
        .identity()
        .context("this node's certificate cannot be used")?
        .name;
    let node: NodeId = named
        .parse()
        .context("this node's certificate names no node")?;
    if let Some(other) = options.node_id.as_ref().filter(|other| **other != node) {
        anyhow::bail!(
            "this node has joined as {node}, not as {other}: leave --node-id out, or join again \
             under that name"
        );
    }
    Ok(Controller {
        dial: Dial::new(&context)?,
        context,
        node,
    })
}

/// A controller's unix socket.
pub(crate) fn unix(path: PathBuf) -> Context {
    Context {
        server: Address::Unix(path),
        ca: String::new(),
        certificate: String::new(),
        key: String::new(),
    }
}

/// Takes the data directory and joins a controller.
///
/// # Errors
///
/// Another host agent uses it, or the controller says no.
pub async fn join(
    server: &Address,
    token: &JoinToken,
    node: Option<&NodeId>,
    data: &Path,
) -> anyhow::Result<NodeId> {
    let data = open_data(data)?;
    let _lock = lock(&data)?;
    join::join(server, token, node, &data).await
}

fn hypervisor(options: &Options, data: &Path, kvm_kind: &str) -> anyhow::Result<ProcessHypervisor> {
    let absolute = |path: &Path| {
        std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
    };
    let cmdline = if options.fault_injection {
        fabric_proto::vmbus::FAULTS_ARGUMENT
    } else {
        ""
    };
    Ok(ProcessHypervisor {
        vmm: absolute(&options.vmm)?,
        kernel: absolute(&options.kernel)?,
        cmdline: cmdline.to_owned(),
        repair: repair(kvm_kind),
        cgroups: options
            .jails
            .cgroups(data)
            .context("virtual machines can have no control groups")?,
        jails: options.jails.clone(),
    })
}

/// What each VMM need not find out anew.
fn repair(kvm_kind: &str) -> RepairMode {
    match kvm_kind.parse() {
        Ok(KvmKind::Hardware) => RepairMode::Off,
        Ok(KvmKind::Interpreted) => RepairMode::On,
        Err(_) => RepairMode::Auto,
    }
}

fn templates(
    options: &Options,
    data: &Path,
    hypervisor: &Arc<ProcessHypervisor>,
    host: Host,
    host_boot_id: &str,
) -> anyhow::Result<Templates> {
    let directory = match &options.template_dir {
        Some(directory) => directory.clone(),
        None => data.join(TEMPLATES),
    };
    let templates = Templates::open(
        &directory,
        Arc::clone(hypervisor) as _,
        host,
        host_boot_id.to_owned(),
        template::Limits {
            boot: options.boot_deadline,
            wait: options.boot_deadline.saturating_mul(2),
            keep: options.template_keep,
        },
    );
    templates.context("there can be no templates; --template-dir names another directory")
}

/// The data directory, for us alone.
fn open_data(path: &Path) -> anyhow::Result<PathBuf> {
    files::private_directory(path)
        .with_context(|| format!("cannot use {} as the data directory", path.display()))
}

/// One host agent per data directory.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join(LOCK);
    let file =
        files::open_or_make(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => anyhow::bail!(
            "another host agent uses {}: stop it, or choose another --data-dir",
            data.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn listener(options: &Options, data: &Path) -> anyhow::Result<UnixListener> {
    match &options.listen {
        Some(Listen::Unix(path)) => listen_at(path),
        None => listen_at(&data.join(SOCKET)),
    }
}

fn listen_at(path: &Path) -> anyhow::Result<UnixListener> {
    let name = path
        .file_name()
        .context("the socket to listen on has no name")?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let bind = || -> io::Result<UnixListener> {
        use std::os::fd::AsRawFd as _;
        files::remove_if_there(path)?;
        // A short name, however long the path is.
        let handle = File::open(directory)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd())).join(name);
        UnixListener::bind(short)
    };
    let listener = bind().with_context(|| format!("cannot listen on {}", path.display()))?;
    tracing::info!("listening on unix:{}", path.display());
    Ok(listener)
}

/// Health and reflection, for whoever looks after this process.
async fn serve_health(listener: UnixListener) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(fabric_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = match reflection {
        Ok(reflection) => Some(reflection),
        Err(error) => {
            tracing::error!(%error, "no reflection");
            None
        }
    };
    let router = tonic::transport::Server::builder()
        .add_service(health)
        .add_optional_service(reflection);
    let served = router
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "health is not served any longer");
    }
}
