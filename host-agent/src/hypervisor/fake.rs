//! A hypervisor that runs nothing: machines are entries in a table, which end when
//! a test says so. Cloned, it outlives a supervisor like a process would.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use fabric_vmm::control::Request;
use tokio::sync::watch;

use super::{Hypervisor, LaunchError, OrderError, Origin, Vm, VmRecord, VmSpec};
use crate::{
    instance::{
        directory::{InstanceDirectory, JAIL},
        snapshots::SNAPSHOT,
        state::{Exit, ExitKind},
    },
    template::BOOTED,
};

/// What the parts of each snapshot hold.
const PART: &str = "all that a guest believes";

/// Runs nothing.
#[derive(Debug, Clone, Default)]
pub struct FakeHypervisor {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    machines: BTreeMap<PathBuf, FakeVm>,
    last_exits: BTreeMap<PathBuf, Exit>,
    launched: u32,
    refusing: bool,
    panicking: bool,
    templates: u32,
    /// Guests that should become templates do not.
    stubborn: bool,
}

/// A machine that does not exist.
#[derive(Debug, Clone)]
pub struct FakeVm {
    record: VmRecord,
    place: PathBuf,
    /// What it was started with.
    pub spec: VmSpec,
    end: watch::Sender<Option<Exit>>,
    /// Whether it stands still.
    pub paused: watch::Sender<bool>,
    /// How long it had no processor.
    pub waited: Arc<Mutex<Duration>>,
    table: Arc<Mutex<Table>>,
}

impl FakeHypervisor {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap()
    }

    /// The machine in a directory, if one runs there.
    pub fn machine(&self, directory: &Path) -> Option<FakeVm> {
        self.lock()
            .machines
            .get(&directory.canonicalize().ok()?)
            .cloned()
    }

    /// How many have been started.
    pub fn launched(&self) -> u32 {
        self.lock().launched
    }

    /// From now on, nothing can be started, or can again.
    pub fn refuse(&self, refusing: bool) {
        self.lock().refusing = refusing;
    }

    /// From now on, whoever gives a machine an order panics, or does not again.
    pub fn panic(&self, panicking: bool) {
        self.lock().panicking = panicking;
    }

    /// How many guests were started to become templates.
    pub fn templates(&self) -> u32 {
        self.lock().templates
    }

    /// From now on, guests that should become templates hang, or do not again.
    pub fn hang_templates(&self, stubborn: bool) {
        self.lock().stubborn = stubborn;
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.lock().machines.len()
    }
}

impl FakeVm {
    /// Where it runs.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Ends it.
    pub fn end(&self, kind: ExitKind, detail: &str) {
        let exit = Exit {
            kind,
            detail: detail.to_owned(),
            json: format!("{{\"kind\":\"{kind}\"}}"),
        };
        let mut table = self.table.lock().unwrap();
        table.machines.retain(|_, vm| vm.record != self.record);
        table.last_exits.insert(self.place.clone(), exit.clone());
        drop(table);
        self.end.send_replace(Some(exit));
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn launch(
        &self,
        directory: &InstanceDirectory,
        spec: &VmSpec,
    ) -> Result<Arc<dyn Vm>, LaunchError> {
        let mut table = self.lock();
        if table.refusing {
            let source = io::ErrorKind::NotFound.into();
            return Err(LaunchError::Spawn {
                program: "fabric-vmm".into(),
                source,
            });
        }
        assert!(
            !table.machines.contains_key(directory.path()),
            "two machines in one directory"
        );
        let becomes_template = matches!(
            spec.origin,
            Origin::BecomeTemplate { .. } | Origin::BecomeRoleTemplate { .. }
        );
        if becomes_template {
            table.templates += 1;
        } else {
            table.launched += 1;
        }
        let pid = 1000 + table.launched + 10_000 * table.templates;
        let vm = FakeVm {
            record: VmRecord {
                pid,
                started: pid.into(),
                host_boot_id: "boot".to_owned(),
            },
            place: directory.path().to_owned(),
            spec: spec.clone(),
            end: watch::Sender::new(None),
            paused: watch::Sender::new(false),
            waited: Arc::default(),
            table: Arc::clone(&self.table),
        };
        table
            .machines
            .insert(directory.path().to_owned(), vm.clone());
        let stubborn = table.stubborn;
        drop(table);
        if becomes_template && !stubborn {
            write_snapshot(&directory.file(JAIL).join(SNAPSHOT));
            if let Origin::BecomeTemplate { .. } = spec.origin {
                write_snapshot(&directory.file(JAIL).join(BOOTED));
            }
            vm.end(ExitKind::TemplateMade, "");
        }
        Ok(Arc::new(vm))
    }

    async fn find(
        &self,
        directory: &InstanceDirectory,
        _record: Option<&VmRecord>,
    ) -> io::Result<Option<Arc<dyn Vm>>> {
        let found = self.lock().machines.get(directory.path()).cloned();
        Ok(found.map(|vm| Arc::new(vm) as Arc<dyn Vm>))
    }

    fn last_exit(&self, directory: &InstanceDirectory) -> Exit {
        self.lock()
            .last_exits
            .get(directory.path())
            .cloned()
            .unwrap_or(Exit {
                kind: ExitKind::Failed,
                detail: "unknown".to_owned(),
                json: String::new(),
            })
    }

    async fn end_strays(&self, _instances: &Path) -> usize {
        let strays: Vec<FakeVm> = self
            .lock()
            .machines
            .values()
            .filter(|vm| !vm.place.exists())
            .cloned()
            .collect();
        for vm in &strays {
            vm.kill();
        }
        strays.len()
    }

    async fn end_all_in(&self, directory: &Path) -> usize {
        let machines = self.lock().machines.clone();
        let inside = machines
            .into_values()
            .filter(|vm| vm.place.starts_with(directory));
        inside.map(|vm| vm.kill()).count()
    }

    fn verify_snapshot(&self, snapshot: &Path) -> Result<(), String> {
        for part in ["state.json", "memory"] {
            if fs::read_to_string(snapshot.join(part)).ok().as_deref() != Some(PART) {
                return Err(format!("{part} is not what was written"));
            }
        }
        Ok(())
    }
}

fn write_snapshot(directory: &Path) {
    fs::create_dir(directory).unwrap();
    for part in ["state.json", "memory"] {
        fs::write(directory.join(part), PART).unwrap();
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn record(&self) -> &VmRecord {
        &self.record
    }

    fn waited(&self) -> Duration {
        *self.waited.lock().unwrap()
    }

    async fn exited(&self) -> Exit {
        let mut end = self.end.subscribe();
        let end = end.wait_for(Option::is_some).await.unwrap();
        end.clone().unwrap()
    }

    async fn order(&self, order: Request) -> Result<(), OrderError> {
        let panicking = self.table.lock().unwrap().panicking;
        assert!(!panicking, "as a test wants it");
        if self.table.lock().unwrap().refusing {
            return Err(OrderError::Refused("it refuses".to_owned()));
        }
        match order {
            Request::Pause => _ = self.paused.send_replace(true),
            Request::Resume => _ = self.paused.send_replace(false),
            Request::PowerButton => self.end(ExitKind::GuestPowerOff, "by its power button"),
            Request::Snapshot { path } => write_snapshot(&self.place.join(path)),
            // The rest changes nothing that is seen here.
            _ => {}
        }
        Ok(())
    }

    async fn order_stop(&self) {
        self.end(ExitKind::Stopped, "");
    }

    fn kill(&self) {
        self.end(ExitKind::Killed, "killed");
    }
}
