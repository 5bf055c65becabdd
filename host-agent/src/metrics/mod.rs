//! What is counted and measured, for Prometheus.
//!
//! [`Metrics`] is the list of it: what a metric is called and says stands there alone.
//! What happens is counted where it is told ([`events`](crate::events)) or done; what
//! *is*, virtual machines among it, is looked up whenever somebody asks, by [`look`].

pub mod look;

use fabric_metrics::list::{Labelled, Level, List, Sum};
use prometheus_client::metrics::counter::Counter;

use crate::{
    events::Reason,
    instance::state::{Cause, Launch},
};

/// See the [module](self).
#[derive(Debug)]
pub struct Metrics {
    list: List,
    info: Labelled<1, Level>,
    instances: Labelled<1, Level>,
    lease_needed: Level,
    lease: Level,
    disk: Level,
    disk_free: Level,
    unsent: Level,
    events: Labelled<1, Counter>,
    starts: Labelled<1, Counter>,
    ends: Labelled<1, Counter>,
    recoveries: Labelled<1, Counter>,
    templates: Labelled<1, Counter>,
    vm_cpu: Labelled<1, Sum>,
    vm_resident: Labelled<1, Level>,
    vm_connections: Labelled<1, Level>,
    vm_bus_held: Labelled<1, Level>,
    vm_disk_bytes: Labelled<3, Sum>,
    vm_waited: Labelled<2, Sum>,
    vm_exits: Labelled<2, Counter>,
    vm_unasked: Level,
    role_state: Labelled<2, Level>,
    role_restarts: Labelled<1, Counter>,
    role_failures: Labelled<1, Level>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut list = List::new("fabric_node");
        let it = &mut list;
        Self {
            info: it.gauges("info", ["version"], "1; the host agent's version"),
            instances: it.gauges(
                "instances",
                ["state"],
                "Instances, by the state of their virtual machines, as `vm_state` in \
                 `fabctl instance show`",
            ),
            lease_needed: it.gauge(
                "lease_needed",
                "1 if the node may run nothing without a lease, as its goal says",
            ),
            lease: it.gauge(
                "lease_remaining_seconds",
                "How long the node's lease lasts if it is not prolonged; 0 if it is over or \
                 none is needed",
            ),
            disk: it.gauge(
                "disk_bytes",
                "Size of the file system that the data directory is on",
            ),
            disk_free: it.gauge("disk_free_bytes", "Room left on it"),
            unsent: it.gauge(
                "events_unsent",
                "Events that the controller has not stored yet",
            ),
            events: it.counters("events", ["reason"], "Events, by reason"),
            starts: it.counters(
                "vm_starts",
                ["from"],
                "Virtual machines that were started, by `boot`, `template` (a copy of a guest \
                 that was booted once), `booted` (its kernel alone is such a copy, and its disk \
                 its own) or `snapshot`",
            )
            .from_zero([["boot"], ["template"], ["booted"], ["snapshot"]]),
            ends: it.counters(
                "vm_ends",
                ["cause"],
                "Virtual machines that have ended, by why, such as `Killed` or `Hung`",
            ),
            recoveries: it.counters(
                "recoveries",
                ["step"],
                "Steps of the recovery ladder that were taken: `role` (restarted in its guest), \
                 `vm` (started again), `disk` (started on a fresh one) or `give_up`",
            )
            .from_zero([["role"], ["vm"], ["disk"], ["give_up"]]),
            templates: it.counters(
                "templates",
                ["outcome"],
                "Templates that were `made`, could not be (`failed`), or were given up for what \
                 came of them (`refused`)",
            )
            .from_zero([["made"], ["failed"], ["refused"]]),
            vm_cpu: it.sums(
                "vm_cpu_seconds",
                ["instance"],
                "Processor time that the process of a virtual machine has had",
            ),
            vm_resident: it.gauges(
                "vm_resident_bytes",
                ["instance"],
                "Memory that the process of a virtual machine has, its guest's among it",
            ),
            vm_connections: it.gauges(
                "vm_bus_connections",
                ["instance"],
                "Connections of a guest over the VMBus",
            ),
            vm_bus_held: it.gauges(
                "vm_bus_held_bytes",
                ["instance"],
                "What a guest has sent over the VMBus and the host has not taken",
            ),
            vm_disk_bytes: it.sums(
                "vm_disk_bytes",
                ["instance", "disk", "direction"],
                "What a virtual machine has `read` from and `written` to a disk",
            ),
            vm_waited: it.sums(
                "vm_throttled_seconds",
                ["instance", "what"],
                "How long a virtual machine has waited for its limits, on a disk (its name) or \
                 the VMBus (`to_guest`, `to_host`)",
            ),
            vm_exits: it.counters(
                "vm_exits",
                ["instance", "kind"],
                "Exits of virtual processors to the VMM, by kind",
            ),
            vm_unasked: it.gauge(
                "vm_unanswering",
                "Virtual machines that run and did not say in time what they count",
            ),
            role_state: it.gauges(
                "role_state",
                ["instance", "state"],
                "1 for the state that a guest agent reports of its role: `starting`, `ready`, \
                 `busy` (its readiness probe fails), `unhealthy` or `stopped`",
            ),
            role_restarts: it.counters(
                "role_restarts",
                ["instance"],
                "Restarts of a role by its guest agent, after an end or a failed liveness \
                 probe, since the guest was booted",
            ),
            role_failures: it.gauges(
                "role_failures",
                ["instance"],
                "Failures of a role in a row, without its having been ready in between",
            ),
            list,
        }
    }
}

impl Metrics {
    /// The list of all of them.
    #[must_use]
    pub const fn list(&self) -> &List {
        &self.list
    }

    /// Something was told.
    pub fn told(&self, reason: Reason, warning: bool) {
        self.events.of([&format!("{reason:?}")]).inc();
        let step = match reason {
            Reason::RoleRestarted => "role",
            // Without a warning it is what somebody wanted.
            Reason::VmRestarting if warning => "vm",
            Reason::Reimaged => "disk",
            Reason::GaveUp => "give_up",
            _ => "",
        };
        if !step.is_empty() {
            self.recoveries.of([step]).inc();
        }
        let outcome = match reason {
            Reason::TemplateMade => "made",
            Reason::TemplateFailed => "failed",
            Reason::TemplateRefused => "refused",
            _ => return,
        };
        self.templates.of([outcome]).inc();
    }

    /// A virtual machine was started.
    pub fn started(&self, from: Launch) {
        let from = match from {
            Launch::Boot => "boot",
            Launch::Template => "template",
            Launch::Booted => "booted",
            Launch::Snapshot => "snapshot",
        };
        self.starts.of([from]).inc();
    }

    /// A virtual machine has ended.
    pub fn ended(&self, cause: Cause) {
        self.ends.of([&format!("{cause:?}")]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_the_ladder_are_counted_and_what_an_operator_wants_is_not() {
        let metrics = Metrics::default();
        metrics.told(Reason::VmRestarting, true);
        metrics.told(Reason::VmRestarting, false);
        metrics.told(Reason::Reimaged, true);
        let text = metrics.list().text().unwrap();
        for line in [
            "fabric_node_recoveries_total{step=\"vm\"} 1",
            "fabric_node_recoveries_total{step=\"disk\"} 1",
            "fabric_node_events_total{reason=\"VmRestarting\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
