//! Lets the whole cluster live, step by step, until everything has come right, or
//! something that must hold does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use fabric_controller::{
    controller::{Config, Controller},
    data_dir::DataDir,
    model::lease::LeasePolicy,
    records, serve,
    store::{Store, Txn},
};
use fabric_proto::id::NodeId;
use host_agent::{hypervisor::simulated::Temper, session};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::{
    Break, host,
    host::Process,
    image::Shelf,
    machine::{self, Machine},
    network::{HostId, Network},
    operator::{Notes, Operator},
    plan::{Fault, FaultKind, Plan},
    store::SimulatedStore,
    timeline::Timeline,
    watcher::{Site, Violation, Watcher},
};

/// The controller's number on the network.
pub const CONTROLLER: HostId = 0;
/// The operator's.
const OPERATOR: HostId = 1;
/// The first node's.
const NODES: HostId = 2;
/// What passes in one step.
const STEP: Duration = Duration::from_millis(10);
/// After that a controller that has ended is started again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often is looked whether everything has come right.
const LOOK: u32 = 50;
/// How long it has to stay so.
const STAYS: Duration = Duration::from_secs(5);
/// Where machines keep their files: memory, if there is such a place.
const MEMORY: &str = "/dev/shm";

/// How it has ended.
#[derive(Debug)]
pub struct Outcome {
    /// What does not hold, and since when; none if everything does.
    pub failure: Option<(Duration, Violation)>,
    /// What was wrong on purpose, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Calls of the operator that were acknowledged, by kind.
    pub calls: BTreeMap<String, u64>,
    /// What happened.
    pub timeline: Timeline,
    /// When everything had come right.
    pub ended: Duration,
}

/// See the [module](self).
pub struct World {
    plan: Plan,
    broken: Option<Break>,
    now: Duration,
    network: Network,
    store: Arc<SimulatedStore>,
    shelf: Arc<Shelf>,
    place: TempDir,
    controller: Option<Process>,
    running: Running,
    controller_at: Option<Duration>,
    controller_offset: i64,
    machines: Vec<Machine>,
    sites: Vec<Site>,
    versions: Vec<(u64, bool)>,
    operator: Process,
    notes: Notes,
    calm: watch::Sender<bool>,
    watcher: Watcher,
    connected: BTreeSet<NodeId>,
    timeline: Timeline,
    faults: BTreeMap<String, u64>,
    /// What begins or ends, latest first.
    to_come: Vec<(Duration, bool, FaultKind)>,
}

/// The controller that runs, to be asked whom it hears.
type Running = Arc<Mutex<Weak<Controller>>>;

/// A channel over the simulated network.
#[must_use]
pub fn channel(network: &Network, from: HostId, to: HostId) -> Channel {
    let network = network.clone();
    let endpoint = session::kept_alive(Endpoint::from_static("http://controller"));
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let dial = network.clone().dial(from, to);
        async move { dial.await.map(TokioIo::new) }
    }))
}

impl World {
    /// A world in which nothing has happened.
    ///
    /// # Errors
    ///
    /// It has no room in this one.
    pub fn new(plan: Plan, shelf: Shelf, broken: Option<Break>) -> anyhow::Result<Self> {
        let memory = Path::new(MEMORY);
        let place =
            tempfile::Builder::new()
                .prefix("fabric-sim-")
                .tempdir_in(if memory.is_dir() {
                    memory.to_owned()
                } else {
                    std::env::temp_dir()
                })?;
        let network = Network::new(plan.seed ^ 0x6e65_7477);
        let shelf = Arc::new(shelf);
        let mut machines = Vec::new();
        for (index, node) in plan.nodes.iter().enumerate() {
            let mut machine = Machine::new(
                node.clone(),
                NODES + index,
                network.clone(),
                Arc::clone(&shelf),
                place.path().join(node.node.as_str()),
                plan.temper.clone(),
            )?;
            match broken {
                Some(Break::NoKeeper) => machine.dismiss_keeper(),
                Some(Break::NoEpochCheck) => machine.dismiss_epoch_check(),
                _ => {}
            }
            machines.push(machine);
        }
        let (calm, calmed) = watch::channel(false);
        let notes = Notes::default();
        let (way, calls, noted) = (network.clone(), plan.calls.clone(), notes.clone());
        let operator = Process::start(|| async move {
            let operator = Operator {
                channel: channel(&way, OPERATOR, CONTROLLER),
                calls,
                notes: noted,
                calm: calmed,
            };
            operator.run().await
        })?;
        let nodes = plan.nodes.iter();
        let sites: Vec<_> = nodes.map(|node| Site::new(node.node.clone())).collect();
        Ok(Self {
            store: SimulatedStore::new(plan.seed ^ 0x73_746f_7265, broken),
            watcher: Watcher::new(plan.lease.kill),
            to_come: to_come(&plan.faults),
            versions: vec![(0, true); sites.len()],
            plan,
            broken,
            now: Duration::ZERO,
            network,
            shelf,
            place,
            controller: None,
            running: Running::default(),
            controller_at: Some(Duration::ZERO),
            controller_offset: 0,
            machines,
            sites,
            operator,
            notes,
            calm,
            connected: BTreeSet::new(),
            timeline: Timeline::default(),
            faults: BTreeMap::new(),
        })
    }

    /// Lets it live until everything has come right, or something is wrong.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        let mut right_since = None;
        let failure = loop {
            if let Err(what) = self.step() {
                break Some((self.now, what));
            }
            let steps = u32::try_from(self.now.as_millis() / STEP.as_millis()).unwrap_or(0);
            if !*self.calm.borrow() || !steps.is_multiple_of(LOOK) {
                continue;
            }
            let done = self.notes.lock().done;
            match self.watcher.unsettled(&self.sites) {
                None if done && self.now >= self.plan.at_least => {
                    let since = *right_since.get_or_insert(self.now);
                    if self.now >= since + STAYS {
                        break None;
                    }
                }
                None => {}
                Some(what) if self.now >= self.plan.deadline => {
                    let calm = self.plan.calm.as_secs();
                    break Some((
                        self.now,
                        format!("it has not come right since faults were over at {calm} s: {what}"),
                    ));
                }
                Some(_) => right_since = None,
            }
        };
        match &failure {
            Some((at, what)) => self.timeline.tell(*at, "FAILED", what),
            None => self
                .timeline
                .tell(self.now, "fabric", "everything has come right"),
        }
        for machine in &self.machines {
            for (what, times) in machine.hypervisor.mishaps() {
                *self.faults.entry(what.to_owned()).or_default() += times;
            }
        }
        let made = &self.notes.lock().made;
        let calls = made
            .iter()
            .map(|(kind, count)| ((*kind).to_owned(), *count));
        Outcome {
            failure,
            faults: self.faults,
            calls: calls.collect(),
            timeline: self.timeline,
            ended: self.now,
        }
    }

    fn step(&mut self) -> Result<(), Violation> {
        self.network.step(self.now);
        self.begin_and_end_faults();
        self.step_controller();
        host::set_wall_clock(machine::wall(self.now, 0));
        self.operator.step(STEP);
        for machine in &mut self.machines {
            if let Some(told) = machine.step(self.now, STEP) {
                self.timeline
                    .tell(self.now, machine.plan.node.as_str(), told);
            }
        }
        self.now += STEP;
        if let Some(panic) = panics::take() {
            return Err(format!("there was a panic: {panic}"));
        }
        self.look()
    }

    /// Looks at everything that may have changed.
    fn look(&mut self) -> Result<(), Violation> {
        let mut changed = false;
        for ((machine, site), seen) in self
            .machines
            .iter()
            .zip(&mut self.sites)
            .zip(&mut self.versions)
        {
            let now = (machine.hypervisor.version(), machine.runs());
            if *seen != now {
                *seen = now;
                site.guests = machine.hypervisor.seen();
                site.runs = machine.runs();
                changed = true;
            }
        }
        let connected = self.connected();
        let all_along = self.connected.intersection(&connected).cloned().collect();
        for ops in self.store.take_committed() {
            for event in self
                .watcher
                .committed(self.now, &ops, &self.sites, &all_along)?
            {
                let what = format!("{}: {}", event.reason, event.message);
                let what = what.replace(&*self.place.path().to_string_lossy(), "DATA");
                self.timeline.tell(self.now, event.subject, what);
            }
        }
        self.connected = connected;
        if changed {
            self.watcher.runs(self.now, &mut self.sites)?;
        }
        let mut noted = self.notes.lock();
        for told in noted.told.drain(..) {
            self.timeline.tell(self.now, "operator", told);
        }
        self.watcher.acknowledged(&noted)
    }

    /// The nodes that the controller hears.
    fn connected(&self) -> BTreeSet<NodeId> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let controller = running.upgrade();
        controller.map_or_else(BTreeSet::new, |one| one.registry.connected())
    }

    fn step_controller(&mut self) {
        host::set_wall_clock(machine::wall(self.now, self.controller_offset));
        if let Some(controller) = &mut self.controller {
            controller.step(STEP.mul_f64(self.plan.controller_rate));
            if let Some(why) = controller.ended() {
                self.timeline
                    .tell(self.now, "controller", format!("has ended: {why}"));
                self.controller = None;
                self.controller_at = Some(self.now + AGAIN);
            }
        } else if self.controller_at.is_some_and(|at| at <= self.now) {
            self.controller_at = None;
            match self.start_controller() {
                Ok(controller) => self.controller = Some(controller),
                Err(error) => {
                    let why = format!("cannot be started: {error:#}");
                    self.timeline.tell(self.now, "controller", why);
                }
            }
        }
    }

    fn start_controller(&self) -> anyhow::Result<Process> {
        let incoming = UnboundedReceiverStream::new(self.network.listen(CONTROLLER));
        let start = Start {
            place: self.place.path().join("controller"),
            store: Arc::clone(&self.store),
            shelf: Arc::clone(&self.shelf),
            lease: self.lease(),
            running: Arc::clone(&self.running),
        };
        Process::start(|| async move {
            let controller = start.open().await?;
            let stop = CancellationToken::new();
            serve::serve(controller, vec![incoming.map(Ok)], stop).await?;
            Ok(())
        })
    }

    /// How the controller holds nodes to their leases.
    fn lease(&self) -> LeasePolicy {
        match self.broken {
            Some(Break::SkipMargins) => LeasePolicy {
                drift_percent: 0,
                kill: Duration::ZERO,
                slack: Duration::ZERO,
                ..self.plan.lease
            },
            Some(Break::SkipSlack) => LeasePolicy {
                slack: Duration::ZERO,
                ..self.plan.lease
            },
            _ => self.plan.lease,
        }
    }

    fn begin_and_end_faults(&mut self) {
        while self.to_come.last().is_some_and(|(at, ..)| *at <= self.now) {
            let Some((_, begins, kind)) = self.to_come.pop() else {
                return;
            };
            let word = if begins { "begins" } else { "ends" };
            self.timeline.tell(
                self.now,
                "FAULT",
                format!("{word}: {}", self.describe(&kind)),
            );
            if begins {
                *self.faults.entry(kind.word().to_owned()).or_default() += 1;
            }
            self.set(&kind, begins);
        }
        if self.now >= self.plan.calm && !*self.calm.borrow() {
            self.timeline.tell(
                self.now,
                "fabric",
                "from here on nothing more is made to fail",
            );
            for machine in &self.machines {
                machine.hypervisor.set_temper(Temper::EVEN);
            }
            self.calm.send_replace(true);
        }
    }

    fn set(&mut self, kind: &FaultKind, begins: bool) {
        match kind {
            FaultKind::ControllerKilled if begins => {
                self.controller = None;
                self.controller_at = None;
            }
            FaultKind::ControllerKilled => self.controller_at = Some(self.now),
            FaultKind::AgentKilled(node) if begins => self.machines[*node].end_agent(),
            FaultKind::AgentKilled(node) => self.machines[*node].start_agent(self.now),
            FaultKind::NodeKilled(node) if begins => self.machines[*node].power_off(),
            FaultKind::NodeKilled(node) => self.machines[*node].power_on(self.now),
            FaultKind::NodeSleeps(node) => {
                self.machines[*node].set_sleeps(begins);
                self.sites[*node].woke = (!begins).then_some(self.now);
            }
            FaultKind::Cut {
                nodes,
                from_nodes,
                to_nodes,
            } => {
                for host in nodes.iter().map(|node| NODES + node) {
                    if *from_nodes {
                        self.cut(host, CONTROLLER, begins);
                    }
                    if *to_nodes {
                        self.cut(CONTROLLER, host, begins);
                    }
                }
            }
            FaultKind::Slow(node, by) => {
                let by = if begins { *by } else { Duration::ZERO };
                self.network.slow(NODES + node, CONTROLLER, by);
                self.network.slow(CONTROLLER, NODES + node, by);
            }
            FaultKind::StoreFull => self.store.set_full(begins),
            FaultKind::NodeClock(node, seconds) => {
                self.machines[*node].set_wall_offset(if begins { *seconds } else { 0 });
            }
            FaultKind::ControllerClock(seconds) => {
                self.controller_offset = if begins { *seconds } else { 0 };
            }
        }
    }

    fn cut(&self, from: HostId, to: HostId, begins: bool) {
        if begins {
            self.network.cut(from, to);
        } else {
            self.network.mend(from, to);
        }
    }

    fn describe(&self, kind: &FaultKind) -> String {
        let name = |node: &usize| self.plan.nodes[*node].node.to_string();
        match kind {
            FaultKind::ControllerKilled => "the controller is killed".to_owned(),
            FaultKind::AgentKilled(node) => format!("the host agent of {} is killed", name(node)),
            FaultKind::NodeKilled(node) => format!("{} is without power", name(node)),
            FaultKind::NodeSleeps(node) => format!("{} sleeps", name(node)),
            FaultKind::Cut {
                nodes,
                from_nodes,
                to_nodes,
            } => {
                let nodes: Vec<_> = nodes.iter().map(name).collect();
                let nodes = nodes.join(", ");
                match (from_nodes, to_nodes) {
                    (true, true) => format!("no way between {nodes} and the controller"),
                    (true, false) => format!("no way from {nodes} to the controller"),
                    _ => format!("no way from the controller to {nodes}"),
                }
            }
            FaultKind::Slow(node, by) => {
                let by = by.as_secs_f64();
                format!("{by:.1} s more between {} and the controller", name(node))
            }
            FaultKind::StoreFull => "the disk of the controller's store is full".to_owned(),
            FaultKind::NodeClock(node, seconds) => {
                format!("the wall clock of {} is {seconds} s off", name(node))
            }
            FaultKind::ControllerClock(seconds) => {
                format!("the controller's wall clock is {seconds} s off")
            }
        }
    }
}

/// Beginnings and ends, the latest first; of one time, ends first.
fn to_come(faults: &[Fault]) -> Vec<(Duration, bool, FaultKind)> {
    let mut all = Vec::new();
    for fault in faults {
        all.push((fault.from, true, fault.kind.clone()));
        if fault.until < Duration::MAX {
            all.push((fault.until, false, fault.kind.clone()));
        }
    }
    all.sort_by_key(|(at, begins, _)| (std::cmp::Reverse(*at), std::cmp::Reverse(*begins)));
    all
}

/// What a controller is started with.
struct Start {
    place: PathBuf,
    store: Arc<SimulatedStore>,
    shelf: Arc<Shelf>,
    lease: LeasePolicy,
    running: Running,
}

impl Start {
    async fn open(self) -> anyhow::Result<Arc<Controller>> {
        for record in &self.shelf.records {
            let key = records::blob(record.kind, &record.name);
            if self.store.get(&key).await?.is_none() {
                let txn = Txn::new().put(key, records::encode(record)?);
                self.store.txn(txn).await?;
            }
        }
        let config = Config {
            lease: Some(self.lease),
            ..Config::default()
        };
        let data_dir = DataDir::open(&self.place)?;
        let controller = Controller::with_store(self.store, data_dir, config).await?;
        for (digest, bytes) in self.shelf.files() {
            let file = controller.blobs.file(digest);
            if !file.exists() {
                std::fs::write(file, bytes)?;
            }
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = Arc::downgrade(&controller);
        drop(running);
        Ok(controller)
    }
}

/// Panics anywhere in the process.
pub mod panics {
    use std::sync::{Mutex, PoisonError};

    static LAST: Mutex<Option<String>> = Mutex::new(None);

    /// Takes note of them from here on.
    pub fn watch() {
        std::panic::set_hook(Box::new(|panic| {
            let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
            last.get_or_insert_with(|| panic.to_string());
        }));
    }

    /// The first one since this was asked last.
    pub fn take() -> Option<String> {
        LAST.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
