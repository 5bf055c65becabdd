//! `host-agent serve`: puts the parts together, and takes them apart again.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use fabric_proto::id::NodeId;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};

use crate::{
    blobs::BlobCache,
    clock::{self, Clock},
    events::EventLog,
    files,
    hypervisor::{jails::Jails, process::ProcessHypervisor},
    instance::{
        disks::{self, Workshop},
        machine::Limits,
        status::Board,
        supervisor::Node as Lent,
    },
    inventory,
    lease::{self, Lease},
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
    /// Where the controller is.
    pub controller: String,
    /// This node's name.
    pub node_id: NodeId,
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
    /// Where health and reflection are served.
    pub listen: Option<Listen>,
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
    /// On a loopback address.
    Tcp(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.trim_start_matches("//").into()));
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| "must be unix:PATH or ADDRESS:PORT".to_owned())?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(
                "must be a loopback address or a unix socket: there are no certificates yet"
                    .to_owned(),
            )
        }
    }
}

/// Serves until SIGTERM or SIGINT comes.
///
/// # Errors
///
/// When it cannot start. Later failures are told and survived.
pub async fn serve(options: Options) -> anyhow::Result<()> {
    // What we were started with is none of the guests' business.
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    let data = open_data(&options.data_dir)?;
    let _lock = lock(&data)?;
    let stop = stop_signal()?;
    let client = session::connect(&options.controller)?;

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
    let hypervisor = Arc::new(hypervisor(&options, &data)?);
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
        starts: disks::starts(),
    });
    let board = Arc::new(Board::default());
    let lease = Lease::open(&data, &host_boot_id)
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
        node: options.node_id,
        inventory: inventory::take(&data, &found.kvm_kind),
        labels: options.labels,
    };
    let view = node.view();
    let link = Link {
        local: session::is_local(&options.controller),
        identity,
        client,
        goals,
        view,
        board,
        workshop,
        lease: Arc::clone(&lease),
        data,
    };
    let link = tokio::spawn(link.run());
    tracing::info!(controller = options.controller, "ready");
    node.run(&mut taken, stop).await;
    if options.stop_vms_on_exit {
        tracing::info!("stopping all virtual machines");
        if node.stop_all(STOP_PATIENCE).await {
            lease.forget();
        }
    } else {
        tracing::info!("going down; virtual machines run on");
    }
    link.abort();
    outputs.abort();
    tidying.abort();
    keeping.abort();
    served.abort();
    if options.listen.is_none() {
        files::remove_if_there(&socket).context("cannot remove our socket")?;
    }
    Ok(())
}

fn hypervisor(options: &Options, data: &Path) -> anyhow::Result<ProcessHypervisor> {
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
        cgroups: options
            .jails
            .cgroups(data)
            .context("virtual machines can have no control groups")?,
        jails: options.jails.clone(),
    })
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
    let open = || {
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
    };
    let file = open().with_context(|| format!("cannot open {}", path.display()))?;
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

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

fn listener(options: &Options, data: &Path) -> anyhow::Result<Listener> {
    match &options.listen {
        Some(Listen::Tcp(address)) => {
            let bind = || {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            };
            let listener = bind().with_context(|| format!("cannot listen on {address}"))?;
            tracing::info!("listening on http://{address}");
            Ok(Listener::Tcp(listener))
        }
        Some(Listen::Unix(path)) => listen_at(path),
        None => listen_at(&data.join(SOCKET)),
    }
}

fn listen_at(path: &Path) -> anyhow::Result<Listener> {
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
    Ok(Listener::Unix(listener))
}

/// Health and reflection, for whoever looks after this process.
async fn serve_health(listener: Listener) {
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
    let served = match listener {
        Listener::Unix(listener) => {
            router
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        }
        Listener::Tcp(listener) => {
            router
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        }
    };
    if let Err(error) = served {
        tracing::error!(%error, "health is not served any longer");
    }
}
