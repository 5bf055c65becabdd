//! What there is now, looked up when somebody asks.
//!
//! Each virtual machine that runs is asked over its control socket for what it counts,
//! some at a time and none for long: one that does not answer costs its own lines.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use fabric_proto::{guest::v1 as guest, id::InstanceId, node::v1 as wire};
use fabric_vmm::{
    config::DISKS_MAX,
    control::{self, Request, Stats},
};
use procfs::process::Process;
use tokio::{sync::watch, task::JoinSet};

use super::Metrics;
use crate::{
    events::EventLog,
    files,
    instance::{
        directory::{CONTROL, InstanceDirectory},
        status::Board,
    },
    lease::Lease,
    output::stream::Shown,
};

/// How long a virtual machine may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long all of them may take together.
const ALL: Duration = Duration::from_secs(5);
/// How many kinds of exits a machine may count: fewer than it can make up.
const MOST_KINDS: usize = 64;
/// How many are asked at once.
const AT_ONCE: usize = 16;
/// What a machine is doing that can be asked.
const ASKED: [wire::VmState; 3] = [
    wire::VmState::Booting,
    wire::VmState::Running,
    wire::VmState::Paused,
];
/// The states of virtual machines.
const STATES: [wire::VmState; 9] = [
    wire::VmState::Pending,
    wire::VmState::Preparing,
    wire::VmState::Booting,
    wire::VmState::Running,
    wire::VmState::Stopping,
    wire::VmState::Stopped,
    wire::VmState::Backoff,
    wire::VmState::Failed,
    wire::VmState::Paused,
];

/// Where to look.
#[derive(Debug, Clone)]
pub struct Places {
    /// The data directory.
    pub data: PathBuf,
    /// What was told.
    pub events: Arc<EventLog>,
    /// What instances report.
    pub board: Arc<Board>,
    /// The node's lease.
    pub lease: Arc<Lease>,
    /// Where instances are.
    pub shown: watch::Receiver<BTreeMap<InstanceId, Shown>>,
}

impl Places {
    /// All metrics as they are now, as OpenMetrics text.
    ///
    /// # Errors
    ///
    /// A metric cannot be written, which each of ours can.
    pub async fn text(self) -> Result<String, String> {
        let metrics = Arc::clone(self.events.metrics());
        metrics.info.of([env!("CARGO_PKG_VERSION")]).set(1.0);
        let left = self.lease.remaining();
        metrics.lease_needed.set(f64::from(left.is_some()));
        metrics.lease.set(left.unwrap_or_default().as_secs_f64());
        metrics.unsent.set(self.events.after(0).len() as f64);
        if let Ok(bytes) = files::total_bytes(&self.data) {
            metrics.disk.set(bytes as f64);
        }
        if let Ok(bytes) = files::free_bytes(&self.data) {
            metrics.disk_free.set(bytes as f64);
        }
        let reports = self.board.subscribe().borrow().clone();
        for state in STATES {
            let count = reports.values().filter(|one| one.vm_state() == state);
            let word = word(state);
            metrics.instances.of([&word]).set(count.count() as f64);
        }
        self.look_at_machines(&metrics, &reports).await;
        let text = metrics.list.text();
        text.map_err(|_| "a metric cannot be written".to_owned())
    }

    async fn look_at_machines(
        &self,
        metrics: &Metrics,
        reports: &BTreeMap<InstanceId, wire::InstanceStatus>,
    ) {
        metrics.forget_machines();
        let shown = self.shown.borrow().clone();
        let mut running = Vec::new();
        for (id, report) in reports {
            if report.vmm_pid == 0 || !ASKED.contains(&report.vm_state()) {
                continue;
            }
            metrics.look_at_process(id, report.vmm_pid);
            if let Some(role) = &report.role {
                metrics.note_role(id, role);
            }
            if let Some(shown) = shown.get(id) {
                running.push((id.clone(), Arc::clone(&shown.directory)));
            }
        }
        let (all, mut answered) = (running.len(), 0_usize);
        let asking = ask_all(running, |id, stats| {
            answered += 1;
            metrics.note(&id, &stats);
        });
        let _ = tokio::time::timeout(ALL, asking).await;
        let silent = all.saturating_sub(answered);
        metrics.vm_unasked.set(silent as f64);
    }
}

async fn ask_all(
    machines: Vec<(InstanceId, Arc<InstanceDirectory>)>,
    mut take: impl FnMut(InstanceId, Stats),
) {
    let mut waiting = machines.into_iter();
    let mut asking = JoinSet::new();
    loop {
        while asking.len() < AT_ONCE
            && let Some((id, directory)) = waiting.next()
        {
            asking.spawn_blocking(move || {
                let socket = directory.socket(CONTROL);
                let answer = control::ask(&socket, Request::Stats, PATIENCE).ok()?;
                Some((id, *answer.stats?))
            });
        }
        match asking.join_next().await {
            None => return,
            Some(Ok(Some((id, stats)))) => take(id, stats),
            Some(_) => {}
        }
    }
}

impl Metrics {
    fn forget_machines(&self) {
        self.vm_cpu.clear();
        self.vm_resident.clear();
        self.vm_connections.clear();
        self.vm_bus_held.clear();
        self.vm_disk_bytes.clear();
        self.vm_waited.clear();
        self.vm_exits.clear();
        self.role_state.clear();
        self.role_restarts.clear();
        self.role_failures.clear();
    }

    /// What a guest agent reports of its role.
    fn note_role(&self, id: &InstanceId, role: &guest::RoleStatus) {
        let id = id.as_str();
        let state = role.state().as_str_name().trim_start_matches("ROLE_STATE_");
        self.role_state.of([id, &state.to_lowercase()]).set(1.0);
        self.role_restarts.of([id]).inc_by(role.restarts.into());
        let failures = f64::from(role.consecutive_failures);
        self.role_failures.of([id]).set(failures);
    }

    fn look_at_process(&self, id: &InstanceId, pid: u32) {
        let process = i32::try_from(pid)
            .ok()
            .and_then(|pid| Process::new(pid).ok());
        let Some(stat) = process.and_then(|process| process.stat().ok()) else {
            return;
        };
        let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        self.vm_cpu.of([id.as_str()]).inc_by(seconds);
        let resident = stat.rss.saturating_mul(procfs::page_size());
        self.vm_resident.of([id.as_str()]).set(resident as f64);
    }

    fn note(&self, id: &InstanceId, stats: &Stats) {
        let id = id.as_str();
        for (kind, count) in stats.exits.iter().take(MOST_KINDS) {
            self.vm_exits.of([id, kind]).inc_by(*count);
        }
        let waited = |what: &str, milliseconds: u64| {
            let seconds = milliseconds as f64 / 1000.0;
            self.vm_waited.of([id, what]).inc_by(seconds);
        };
        for disk in stats.disks.iter().take(DISKS_MAX) {
            let moved = |direction: &str, bytes: u64| {
                let sum = self.vm_disk_bytes.of([id, &disk.serial, direction]);
                sum.inc_by(bytes as f64);
            };
            moved("read", disk.done.read_bytes);
            moved("written", disk.done.write_bytes);
            waited(&disk.serial, disk.throttled.waited_ms);
        }
        if let Some(bus) = &stats.vsock {
            self.vm_connections.of([id]).set(bus.connections as f64);
            self.vm_bus_held.of([id]).set(bus.held_bytes as f64);
            waited("to_guest", bus.to_guest.waited_ms);
            waited("to_host", bus.to_host.waited_ms);
        }
    }
}

/// The word for a state, as `fabctl` has it.
fn word(state: wire::VmState) -> String {
    let name = state.as_str_name().trim_start_matches("VM_STATE_");
    name.to_lowercase()
}

#[cfg(test)]
mod tests {
    use fabric_metrics::list::exposed;

    use super::*;
    use crate::instance::state::{Cause, Launch};

    /// One of everything, so that each metric has a value.
    fn one_of_everything(metrics: &Metrics) {
        use crate::events::Reason;
        metrics.told(Reason::Reimaged, true);
        metrics.told(Reason::TemplateMade, false);
        metrics.started(Launch::Template);
        metrics.ended(Cause::Hung);
        let id: InstanceId = "shop-web-0".parse().unwrap();
        metrics.look_at_process(&id, std::process::id());
        let recorded = include_str!("../../vmm/src/control/recorded/2.jsonl");
        let mut answers = recorded.lines().filter_map(|line| {
            let answer: control::Answer = serde_json::from_str(line).ok()?;
            answer.stats
        });
        let stats = answers.next().unwrap();
        metrics.note(&id, &stats);
        metrics.note_role(&id, &guest::RoleStatus::default());
    }

    #[test]
    fn a_role_is_told_as_its_guest_agent_reports_it() {
        let metrics = Metrics::default();
        let role = guest::RoleStatus {
            state: guest::RoleState::Busy.into(),
            restarts: 3,
            consecutive_failures: 2,
            ..guest::RoleStatus::default()
        };
        metrics.note_role(&"shop-web-0".parse().unwrap(), &role);
        let text = metrics.list.text().unwrap();
        for line in [
            "fabric_node_role_state{instance=\"shop-web-0\",state=\"busy\"} 1",
            "fabric_node_role_restarts_total{instance=\"shop-web-0\"} 3",
            "fabric_node_role_failures{instance=\"shop-web-0\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        metrics.forget_machines();
        assert!(!metrics.list.text().unwrap().contains("shop-web-0"));
    }

    #[tokio::test]
    async fn everything_that_is_listed_is_exposed_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let events = Arc::new(EventLog::open(data.path()).unwrap());
        let places = Places {
            data: data.path().to_owned(),
            events: Arc::clone(&events),
            board: Arc::new(Board::default()),
            lease: crate::lease::unneeded(),
            shown: watch::channel(BTreeMap::new()).1,
        };
        let metrics = events.metrics();
        places.text().await.unwrap();
        one_of_everything(metrics);
        let text = metrics.list().text().unwrap();
        let rows = metrics.list().rows().iter();
        let listed: Vec<_> = rows
            .map(|row| (row.name.clone(), row.kind.to_string()))
            .collect();
        assert_eq!(exposed(&text), listed);
        for row in metrics.list().rows() {
            let sample = |line: &str| line.starts_with(&row.name);
            assert!(
                text.lines().any(sample),
                "{} has no value in\n{text}",
                row.name
            );
        }
    }

    #[test]
    fn the_document_has_the_list() {
        let document = include_str!("../../../METRICS.md");
        let list = Metrics::default().list().markdown();
        assert!(
            document.contains(&list),
            "METRICS.md does not have what `host-agent metrics` prints:\n{list}"
        );
    }
}
