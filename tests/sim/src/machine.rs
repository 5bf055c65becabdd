//! One node's machine: its power and its clocks, the host agent and the lease's keeper
//! on it, and its guests.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fabric_proto::{id::NodeId, node::v1::Inventory};
use host_agent::{
    blobs::BlobCache,
    clock::Clock,
    events::EventLog,
    files,
    hypervisor::simulated::{SimulatedHypervisor, Temper},
    instance::{
        disks::Workshop, machine::Limits, status::Board, supervisor::Node as Lent, turn::Turns,
    },
    lease::{Lease, record::Record},
    node::Node,
    session::{self, Identity, Link},
};
use tokio::{sync::mpsc, time::Instant};
use tonic::transport::Channel;

use crate::{
    host::{self, BEGINNING, Process},
    image::{Download, Shelf},
    network::{HostId, Network},
    plan::{FAST, NodePlan},
    world::{CONTROLLER, channel},
};

/// How often the keeper looks at the lease at least, as the real one does.
const LOOK: Duration = Duration::from_millis(200);
/// How often it kills what runs without one.
const KILL: Duration = Duration::from_millis(100);
/// After that a host agent that has ended is started again.
const AGAIN: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug)]
pub struct Machine {
    /// What it is.
    pub plan: NodePlan,
    /// Its number on the network.
    pub host: HostId,
    /// Its guests.
    pub hypervisor: SimulatedHypervisor,
    network: Network,
    shelf: Arc<Shelf>,
    data: PathBuf,
    agent: Option<Process>,
    /// When the host agent is started again; none while it runs, or is not to.
    start_at: Option<Duration>,
    has_power: bool,
    sleeps: bool,
    starts: u64,
    /// Time since its start, by its own clock, its sleep counted.
    boot_time: Duration,
    /// What of that the host agent has slept through.
    slept: Arc<AtomicU64>,
    /// What its wall clock is ahead of, or behind, by seconds.
    wall_offset: i64,
    has_keeper: bool,
    keeper_at: Duration,
    checks_epochs: bool,
    /// By its own clock: until then neither host agent nor keeper come to anything.
    stalled_until: Duration,
}

impl Machine {
    /// A machine that is switched on.
    ///
    /// # Errors
    ///
    /// Its directory cannot be made.
    pub fn new(
        plan: NodePlan,
        host: HostId,
        network: Network,
        shelf: Arc<Shelf>,
        data: PathBuf,
        temper: Temper,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(&data)?;
        let boot = boot_id(&plan.node, 1);
        Ok(Self {
            hypervisor: SimulatedHypervisor::new(plan.seed, temper, &boot),
            host,
            network,
            shelf,
            data,
            agent: None,
            start_at: Some(plan.starts),
            has_power: true,
            sleeps: false,
            starts: 1,
            boot_time: Duration::from_secs(30),
            slept: Arc::default(),
            wall_offset: 0,
            has_keeper: true,
            keeper_at: Duration::ZERO,
            checks_epochs: true,
            stalled_until: Duration::ZERO,
            plan,
        })
    }

    /// Without the process that keeps the lease.
    pub fn dismiss_keeper(&mut self) {
        self.has_keeper = false;
    }

    /// With host agents that take whatever epoch they are given.
    pub fn dismiss_epoch_check(&mut self) {
        self.checks_epochs = false;
    }

    /// Lets it run from `now` on for so long; what there is to tell.
    pub fn step(&mut self, now: Duration, by: Duration) -> Option<String> {
        if !self.has_power {
            return None;
        }
        let own = by.mul_f64(self.plan.rate);
        self.boot_time += own;
        let is_stalled = self.boot_time < self.stalled_until;
        if self.sleeps || is_stalled {
            let micros = u64::try_from(own.as_micros()).unwrap_or(u64::MAX);
            self.slept.fetch_add(micros, Ordering::Relaxed);
            if is_stalled && !self.sleeps {
                self.hypervisor.step(self.boot_time);
            }
            return None;
        }
        host::set_wall_clock(wall(now, self.wall_offset));
        let mut told = None;
        if let Some(agent) = &mut self.agent {
            agent.step(own);
            if let Some(why) = agent.ended() {
                self.agent = None;
                self.start_at = Some(now + AGAIN);
                told = Some(format!("the host agent has ended: {why}"));
            }
        } else if self.start_at.is_some_and(|at| at <= now) {
            self.start_at = None;
            match self.start() {
                Ok(agent) => self.agent = Some(agent),
                Err(error) => told = Some(format!("no host agent can be started: {error:#}")),
            }
        }
        self.hypervisor.step(self.boot_time);
        self.keep_lease().or(told)
    }

    /// What the lease's keeper does: a process of its own, that is there when the host
    /// agent is not.
    fn keep_lease(&mut self) -> Option<String> {
        if !self.has_keeper || self.boot_time < self.keeper_at {
            return None;
        }
        self.keeper_at = self.boot_time + LOOK;
        let boot = boot_id(&self.plan.node, self.starts);
        let record = Record::open(&self.data, &boot).ok()?;
        if !record.exists() {
            return None;
        }
        let left = record.left(self.boot_time).unwrap_or_default();
        if left.is_zero() {
            self.hypervisor.kill_all();
            self.keeper_at = self.boot_time + KILL;
        } else {
            self.keeper_at = self.boot_time + left.min(LOOK);
            // The worst time for a machine to be too busy for anything: its guests run on,
            // and nobody is there to end them. That is what the slack is for.
            if left < LOOK && !self.plan.late.is_zero() {
                self.stalled_until = self.boot_time + left + self.plan.late;
                let late = self.plan.late.as_secs_f64();
                return Some(format!("is too busy to end its guests for {late:.1} s"));
            }
        }
        None
    }

    fn start(&mut self) -> anyhow::Result<Process> {
        let agent = Agent {
            identity: Identity {
                node: self.plan.node.clone(),
                inventory: Inventory {
                    cpus: self.plan.cpus,
                    memory_bytes: self.plan.memory_bytes,
                    disk_bytes: 1 << 40,
                    kvm_kind: "hardware".to_owned(),
                    hostname: self.plan.node.to_string(),
                    ..Inventory::default()
                },
                labels: labels(&self.plan),
            },
            host: self.host,
            network: self.network.clone(),
            shelf: Arc::clone(&self.shelf),
            hypervisor: self.hypervisor.clone(),
            host_boot_id: boot_id(&self.plan.node, self.starts),
            boot_time: self.boot_time,
            slept: Arc::clone(&self.slept),
            data: self.data.clone(),
            checks_epochs: self.checks_epochs,
        };
        self.slept.store(0, Ordering::Relaxed);
        Process::start(|| agent.run())
    }

    /// Ends the host agent, wherever it is.
    pub fn end_agent(&mut self) {
        self.agent = None;
        self.start_at = None;
    }

    /// Has it started again.
    pub fn start_agent(&mut self, now: Duration) {
        if self.agent.is_none() {
            self.start_at = Some(now);
        }
    }

    /// Takes its power.
    pub fn power_off(&mut self) {
        self.network.power_off(self.host);
        self.has_power = false;
        self.agent = None;
        self.start_at = None;
        self.starts += 1;
        let boot = boot_id(&self.plan.node, self.starts);
        self.hypervisor.power_off(&boot);
    }

    /// Gives it back.
    pub fn power_on(&mut self, now: Duration) {
        self.network.power_on(self.host);
        self.has_power = true;
        self.boot_time = Duration::from_secs(5);
        self.keeper_at = Duration::ZERO;
        self.stalled_until = Duration::ZERO;
        self.start_at = Some(now + Duration::from_secs(3));
    }

    /// Sends it to sleep, or wakes it up.
    pub fn set_sleeps(&mut self, sleeps: bool) {
        self.sleeps = sleeps;
    }

    /// Whether its guests run.
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.has_power && !self.sleeps
    }

    /// Sets its wall clock so many seconds off.
    pub fn set_wall_offset(&mut self, seconds: i64) {
        self.wall_offset = seconds;
    }
}

/// What a wall clock says that is so many seconds off.
#[must_use]
pub fn wall(now: Duration, offset: i64) -> Duration {
    let by = Duration::from_secs(offset.unsigned_abs());
    match offset {
        0.. => BEGINNING + now + by,
        _ => (BEGINNING + now).saturating_sub(by),
    }
}

fn labels(plan: &NodePlan) -> BTreeMap<String, String> {
    let rack = ("fault-domain", plan.rack.as_str());
    let labels = [Some(rack), plan.is_fast.then_some(FAST)];
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    labels.into_iter().flatten().map(owned).collect()
}

fn boot_id(node: &NodeId, starts: u64) -> String {
    format!("{node}-start-{starts}")
}

/// What a host agent is started with.
struct Agent {
    identity: Identity,
    host: HostId,
    network: Network,
    shelf: Arc<Shelf>,
    hypervisor: SimulatedHypervisor,
    host_boot_id: String,
    boot_time: Duration,
    slept: Arc<AtomicU64>,
    data: PathBuf,
    checks_epochs: bool,
}

impl Agent {
    /// As `host_agent::serve` does it, without what is the machine's own.
    async fn run(self) -> anyhow::Result<()> {
        let journal = self.data.join("journal");
        fs::create_dir_all(&journal)?;
        for directory in [&self.data, &journal] {
            files::remove_unfinished(directory)?;
        }
        let source = Arc::new(Download {
            shelf: self.shelf,
            network: self.network.clone(),
            host: self.host,
        });
        let workshop = Arc::new(Workshop {
            blobs: BlobCache::open(self.data.join("blobs"), source)?,
            events: Arc::new(EventLog::open(&journal)?),
            templates: None,
            turns: Turns::of_this_machine(),
        });
        let (begun, at, slept) = (Instant::now(), self.boot_time, self.slept);
        let boot_time = move || {
            let slept = Duration::from_micros(slept.load(Ordering::Relaxed));
            at + begun.elapsed() + slept
        };
        let lease = Lease::open(&self.data, &self.host_boot_id, Arc::new(boot_time))?;
        let lease = Arc::new(lease);
        let board = Arc::new(Board::default());
        let lent = Lent {
            hypervisor: Arc::new(self.hypervisor),
            workshop: Arc::clone(&workshop),
            board: Arc::clone(&board),
            clock: Clock::at(self.boot_time),
            host_boot_id: self.host_boot_id,
            lease: Arc::clone(&lease),
            limits: Arc::new(Limits::default()),
        };
        let mut node = Node::open(&self.data, lent, Duration::from_secs(2))?;
        if !self.checks_epochs {
            node = node.without_epoch_check();
        }
        node.resume().await?;
        let way: Channel = channel(&self.network, self.host, CONTROLLER);
        let (goals, mut taken) = mpsc::channel(4);
        let link = Link {
            local: false,
            identity: self.identity,
            client: session::client(way),
            goals,
            view: node.view(),
            board,
            workshop,
            lease,
            data: self.data,
        };
        tokio::spawn(link.run());
        node.run(&mut taken, std::future::pending()).await;
        Ok(())
    }
}
