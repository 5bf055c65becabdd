//! A hypervisor without virtual machines: its guests are entries in a table that live by
//! the clock of whoever [steps](SimulatedHypervisor::step) it. What they do, how long it
//! takes and how it goes wrong is drawn from a seed.
//!
//! ```text
//!  launch ──▶ Booting ──▶ Up: hello, heartbeats, a role that starts and is ready
//!                │         │
//!                ▼         ▼      kill, stop, power off, panic
//!              Hung ──────────▶ ending ──▶ its exit
//! ```
//!
//! Like processes they outlive the host agent, which finds them again. Their way to it
//! is its [`GuestLink`] in memory, for as long as somebody listens there.

mod guest;

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use fabric_proto::guest::v1::RoleSpec;
use fabric_vmm::control::Request;
use fastrand::Rng;
use tokio::sync::watch;

use self::guest::{Guest, Link, State, draw};
use super::{Hypervisor, LaunchError, OrderError, Vm, VmRecord, VmSpec};
use crate::{
    guest::{
        report::RoleCondition,
        server::{GuestLink, GuestServer},
    },
    instance::{
        directory::{InstanceDirectory, MANIFEST},
        manifest::Manifest,
        state::{Exit, ExitKind},
    },
};

/// How guests are: what takes how long, and what goes wrong how often.
#[derive(Debug, Clone)]
pub struct Temper {
    /// From the start to the hello.
    pub boot: Range<Duration>,
    /// From the start of a role to its being ready.
    pub role: Range<Duration>,
    /// From an order to end, or a kill, to the end.
    pub end: Range<Duration>,
    /// How many of a hundred starts fail: the disk is full.
    pub launches_fail: u32,
    /// How many of a hundred boots end in a panic.
    pub boots_panic: u32,
    /// How many of a hundred boots come to no end.
    pub boots_hang: u32,
    /// How long a guest is well on average, before it hangs or panics or its role ends;
    /// none: for ever.
    pub well_for: Option<Duration>,
}

impl Temper {
    /// Nothing goes wrong.
    pub const EVEN: Self = Self {
        boot: Duration::from_millis(800)..Duration::from_millis(4_000),
        role: Duration::from_millis(200)..Duration::from_millis(2_000),
        end: Duration::from_millis(5)..Duration::from_millis(400),
        launches_fail: 0,
        boots_panic: 0,
        boots_hang: 0,
        well_for: None,
    };
}

/// A guest, as others see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its instance.
    pub instance: String,
    /// The epoch that was on record when it was started.
    pub epoch: u64,
    /// Which start on this hypervisor it was, from 1.
    pub number: u64,
    /// The role that is ready in it.
    pub ready: Option<Arc<RoleSpec>>,
}

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct SimulatedHypervisor {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug)]
struct Table {
    rng: Rng,
    now: Duration,
    temper: Temper,
    host_boot_id: String,
    launched: u64,
    guests: BTreeMap<PathBuf, Guest>,
    links: BTreeMap<PathBuf, Link>,
    listened: u64,
    last_exits: BTreeMap<PathBuf, Exit>,
    /// What went wrong, by kind.
    mishaps: BTreeMap<&'static str, u64>,
    /// See [`SimulatedHypervisor::version`].
    version: u64,
}

impl SimulatedHypervisor {
    /// Nothing runs.
    #[must_use]
    pub fn new(seed: u64, temper: Temper, host_boot_id: &str) -> Self {
        let table = Table {
            rng: Rng::with_seed(seed),
            now: Duration::ZERO,
            temper,
            host_boot_id: host_boot_id.to_owned(),
            launched: 0,
            guests: BTreeMap::new(),
            links: BTreeMap::new(),
            listened: 0,
            last_exits: BTreeMap::new(),
            mishaps: BTreeMap::new(),
            version: 0,
        };
        Self {
            table: Arc::new(Mutex::new(table)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets guests live until `now`, a time since the machine's start.
    pub fn step(&self, now: Duration) {
        let mut table = self.lock();
        table.now = now;
        let table = &mut *table;
        let mut over = Vec::new();
        for (place, guest) in &mut table.guests {
            let link = table.links.get_mut(place);
            match guest.ending.filter(|(at, _)| *at <= now) {
                Some((_, kind)) => over.push((place.clone(), kind)),
                None if guest.is_paused => {}
                None => guest.live(now, link, &table.temper, &mut table.rng, &mut table.mishaps),
            }
            let ready = guest.role.as_ref();
            // The role of a guest that hangs, or is being ended, is of no use, whatever it was.
            let works = guest.state != State::Hung && guest.ending.is_none();
            let ready = ready.filter(|role| works && role.condition == RoleCondition::Ready);
            let ready = ready.map(|role| &role.spec);
            if ready != guest.seen.ready.as_ref() {
                guest.seen.ready = ready.cloned();
                table.version += 1;
            }
        }
        for (place, kind) in over {
            table.end(&place, kind);
        }
    }

    /// From now on, guests are like this.
    pub fn set_temper(&self, temper: Temper) {
        self.lock().temper = temper;
    }

    /// The machine is without power: nothing runs, and nobody sees it end. When it is
    /// started again it has another boot id.
    pub fn power_off(&self, next_host_boot_id: &str) {
        let mut table = self.lock();
        table.guests.clear();
        table.links.clear();
        table.last_exits.clear();
        table.host_boot_id = next_host_boot_id.to_owned();
        table.version += 1;
    }

    /// Kills all guests; how many are left.
    pub fn kill_all(&self) -> usize {
        let mut table = self.lock();
        let places: Vec<_> = table.guests.keys().cloned().collect();
        for place in &places {
            table.order_end(place, ExitKind::Killed);
        }
        places.len()
    }

    /// The guests that run.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.lock()
            .guests
            .values()
            .map(|one| one.seen.clone())
            .collect()
    }

    /// Counts up whenever a guest starts, ends, or becomes ready or is not any longer.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// What went wrong by itself, by kind.
    #[must_use]
    pub fn mishaps(&self) -> BTreeMap<&'static str, u64> {
        self.lock().mishaps.clone()
    }
}

impl Table {
    fn happens(&mut self, percent: u32, what: &'static str) -> bool {
        let happens = self.rng.u32(0..100) < percent;
        if happens {
            *self.mishaps.entry(what).or_default() += 1;
        }
        happens
    }

    fn order_end(&mut self, place: &Path, kind: ExitKind) {
        let at = self.now + draw(&mut self.rng, &self.temper.end);
        if let Some(guest) = self.guests.get_mut(place) {
            match &mut guest.ending {
                // It is on its way, and a kill does not wait for what was asked before.
                Some((old, _)) => *old = at.min(*old),
                none => *none = Some((at, kind)),
            }
        }
    }

    fn end(&mut self, place: &Path, kind: ExitKind) {
        let Some(guest) = self.guests.remove(place) else {
            return;
        };
        let exit = Exit {
            kind,
            detail: String::new(),
            json: format!("{{\"kind\":\"{kind}\"}}"),
        };
        self.last_exits.insert(place.to_owned(), exit.clone());
        self.version += 1;
        guest.end.send_replace(Some(exit));
    }

    fn guest_of(&mut self, record: &VmRecord) -> Option<(PathBuf, &mut Guest)> {
        let mut guests = self.guests.iter_mut();
        let (place, guest) = guests.find(|(_, guest)| guest.record == *record)?;
        Some((place.clone(), guest))
    }
}

#[async_trait]
impl Hypervisor for SimulatedHypervisor {
    async fn launch(
        &self,
        directory: &InstanceDirectory,
        spec: &VmSpec,
    ) -> Result<Arc<dyn Vm>, LaunchError> {
        let mut table = self.lock();
        let percent = table.temper.launches_fail;
        if table.happens(percent, "launch_failed") {
            return Err(LaunchError::Configuration {
                path: directory.path().to_owned(),
                source: io::ErrorKind::StorageFull.into(),
            });
        }
        // The record is written before its virtual machine is started.
        let manifest = Manifest::load(&directory.file(MANIFEST)).ok().flatten();
        table.launched += 1;
        table.version += 1;
        let number = table.launched;
        let (panics, hangs) = (table.temper.boots_panic, table.temper.boots_hang);
        let boot = table.temper.boot.clone();
        let until = table.now + draw(&mut table.rng, &boot);
        let state = if table.happens(hangs, "boot_hung") {
            State::Hung
        } else {
            let well = !table.happens(panics, "boot_panicked");
            State::Booting { until, well }
        };
        let record = VmRecord {
            pid: u32::try_from(number).unwrap_or(u32::MAX),
            started: number,
            host_boot_id: table.host_boot_id.clone(),
        };
        let end = watch::Sender::new(None);
        let vm = SimulatedVm {
            record: record.clone(),
            end: end.subscribe(),
            table: Arc::clone(&self.table),
        };
        let guest = Guest {
            seen: Seen {
                instance: spec.name.clone(),
                epoch: manifest.map_or(0, |manifest| manifest.epoch),
                number,
                ready: None,
            },
            boot_id: format!("{}-{number}", record.host_boot_id),
            record,
            state,
            is_paused: false,
            ending: None,
            mishap_at: None,
            session: None,
            call_at: Duration::ZERO,
            role: None,
            end,
        };
        table.guests.insert(directory.path().to_owned(), guest);
        Ok(Arc::new(vm))
    }

    async fn find(
        &self,
        directory: &InstanceDirectory,
        _record: Option<&VmRecord>,
    ) -> io::Result<Option<Arc<dyn Vm>>> {
        let table = self.lock();
        let found = table.guests.get(directory.path()).map(|guest| SimulatedVm {
            record: guest.record.clone(),
            end: guest.end.subscribe(),
            table: Arc::clone(&self.table),
        });
        Ok(found.map(|vm| Arc::new(vm) as Arc<dyn Vm>))
    }

    fn listen(&self, directory: &InstanceDirectory, link: GuestLink) -> io::Result<GuestServer> {
        let mut table = self.lock();
        table.listened += 1;
        let number = table.listened;
        table
            .links
            .insert(directory.path().to_owned(), Link { number, link });
        Ok(GuestServer::in_memory())
    }

    fn last_exit(&self, directory: &InstanceDirectory) -> Exit {
        let exit = self.lock().last_exits.get(directory.path()).cloned();
        exit.unwrap_or_else(|| Exit {
            kind: ExitKind::Failed,
            detail: "it left no last words".to_owned(),
            json: String::new(),
        })
    }

    async fn end_strays(&self, _instances: &Path) -> usize {
        let mut table = self.lock();
        let places = table.guests.keys().filter(|place| !place.exists());
        let places: Vec<_> = places.cloned().collect();
        for place in &places {
            table.order_end(place, ExitKind::Killed);
        }
        places.len()
    }

    async fn end_all_in(&self, directory: &Path) -> usize {
        let mut table = self.lock();
        let places = table.guests.keys().filter(|one| one.starts_with(directory));
        let places: Vec<_> = places.cloned().collect();
        for place in &places {
            table.order_end(place, ExitKind::Killed);
        }
        places.len()
    }

    fn verify_snapshot(&self, _snapshot: &Path) -> Result<(), String> {
        Err("there are no snapshots of simulated guests".to_owned())
    }
}

/// The host agent's hand on a guest.
#[derive(Debug)]
struct SimulatedVm {
    record: VmRecord,
    end: watch::Receiver<Option<Exit>>,
    table: Arc<Mutex<Table>>,
}

impl SimulatedVm {
    fn order_end(&self, kind: ExitKind) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((place, _)) = table.guest_of(&self.record) {
            table.order_end(&place, kind);
        }
    }
}

#[async_trait]
impl Vm for SimulatedVm {
    fn record(&self) -> &VmRecord {
        &self.record
    }

    /// There are processors enough.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }

    async fn exited(&self) -> Exit {
        let mut end = self.end.clone();
        let exit = match end.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone(),
            Err(_) => None,
        };
        match exit {
            Some(exit) => exit,
            // The machine is gone, and with it whoever waits here.
            None => std::future::pending().await,
        }
    }

    async fn order(&self, order: Request) -> Result<(), OrderError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, guest)) = table.guest_of(&self.record) else {
            return Err(OrderError::Refused("it has ended".to_owned()));
        };
        match order {
            Request::Pause => guest.is_paused = true,
            Request::Resume => guest.is_paused = false,
            _ => {
                return Err(OrderError::Refused(
                    "no simulated guest can do that".to_owned(),
                ));
            }
        }
        Ok(())
    }

    async fn order_stop(&self) {
        self.order_end(ExitKind::Stopped);
    }

    fn kill(&self) {
        self.order_end(ExitKind::Killed);
    }
}
