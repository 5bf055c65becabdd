//! What is counted and measured, for Prometheus.
//!
//! [`Metrics`] is the list of it: what a metric is called and says stands there alone.
//! What happens is counted where it does: calls by the [guard](crate::trust::guard),
//! transactions and the events in them by [`store`]; what *is* is looked up whenever
//! somebody asks, by [`look`].

pub mod look;
pub mod store;

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use fabric_metrics::list::{Labelled, Level, List};
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use crate::model::event::{EventRecord, Reason};

/// Most reasons of events that are told apart: nodes bring theirs.
const REASONS: usize = 128;
/// What stands for all others.
const OTHER: &str = "other";

/// See the [module](self).
#[derive(Debug)]
pub struct Metrics {
    list: List,
    info: Labelled<1, Level>,
    start: Level,
    nodes: Labelled<1, Level>,
    nodes_cordoned: Level,
    nodes_draining: Level,
    node_silent: Labelled<1, Level>,
    node_disk_free: Labelled<1, Level>,
    instances: Labelled<1, Level>,
    instances_unplaceable: Level,
    services: Level,
    updates: Labelled<1, Level>,
    sessions: Level,
    disk: Level,
    disk_free: Level,
    transactions: Labelled<1, Counter>,
    transaction_seconds: Histogram,
    /// How long passes of the reconciler take.
    pub reconcile_seconds: Histogram,
    /// Passes that failed.
    pub reconcile_failures: Counter,
    placements: Labelled<1, Counter>,
    moves: Labelled<1, Counter>,
    calls: Labelled<2, Counter>,
    call_seconds: Labelled<1, Histogram>,
    /// Leases that nodes were granted.
    pub leases: Counter,
    events: Labelled<1, Counter>,
    reasons: Mutex<BTreeSet<String>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut list = List::new("fabric_controller");
        let it = &mut list;
        Self {
            info: it.gauges("info", ["version"], "1; its version"),
            start: it.gauge("start_time_seconds", "When it was started, since 1970"),
            nodes: it.gauges(
                "nodes",
                ["state"],
                "Nodes, by `connected`, `silent` (not heard, or not yet), `lost` (silent for \
                 --lost-after) or `fenced` (what they had was started elsewhere)",
            ),
            nodes_cordoned: it.gauge("nodes_cordoned", "Nodes that are given nothing new"),
            nodes_draining: it.gauge("nodes_draining", "Nodes whose instances are being moved"),
            node_silent: it.gauges(
                "node_silent_seconds",
                ["node"],
                "For how long a node has not been heard, at most since the controller's start",
            ),
            node_disk_free: it.gauges(
                "node_disk_free_bytes",
                ["node"],
                "Room left on the disk of a node, as it said last",
            ),
            instances: it.gauges(
                "instances",
                ["state"],
                "Instances, by the word that `fabctl instance list` shows",
            ),
            instances_unplaceable: it.gauge(
                "instances_unplaceable",
                "Instances that have no node, for there is none for them",
            ),
            services: it.gauge("services", "Services"),
            updates: it.gauges(
                "updates",
                ["state"],
                "Last updates of deployments, by `walking`, `paused`, `stopped` or `done`",
            ),
            sessions: it.gauge("sessions", "Open sessions of nodes"),
            disk: it.gauge(
                "disk_bytes",
                "Size of the file system that the data directory is on",
            ),
            disk_free: it.gauge("disk_free_bytes", "Room left on it"),
            transactions: it
                .counters(
                    "store_transactions",
                    ["outcome"],
                    "Transactions of the store, by `committed`, `conflict` (something else was \
                 faster) or `failed`",
                )
                .from_zero([["committed"], ["conflict"], ["failed"]]),
            transaction_seconds: it.histogram(
                "store_transaction_seconds",
                "How long a transaction took until it was on the disk",
            ),
            reconcile_seconds: it.histogram(
                "reconcile_seconds",
                "How long a pass of the reconciler took",
            ),
            reconcile_failures: it
                .counter("reconcile_failures", "Passes of the reconciler that failed"),
            placements: it
                .counters(
                    "placements",
                    ["outcome"],
                    "Instances that were given a node (`placed`) or for which there was none \
                 (`unplaceable`, once until they are placed)",
                )
                .from_zero([["placed"], ["unplaceable"]]),
            moves: it
                .counters(
                    "moves",
                    ["why"],
                    "Instances that had to leave their node, by `failover` (it was silent), \
                 `drain` or `given_up`",
                )
                .from_zero([["failover"], ["drain"], ["given_up"]]),
            calls: it.counters(
                "calls",
                ["method", "code"],
                "gRPC calls that were answered, by method (`other` if there is none of that \
                 name) and status as far as it is known when the answer begins",
            ),
            call_seconds: it.histograms(
                "call_seconds",
                ["method"],
                "How long calls took until the answer began",
            ),
            leases: it.counter("lease_grants", "Leases that nodes were granted"),
            events: it.counters(
                "events",
                ["reason"],
                "Events that were stored, by reason (`other` beyond 128 of them)",
            ),
            reasons: Mutex::default(),
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

    /// A call was answered; `method` is one of the table's, or none.
    pub fn call(&self, method: Option<&str>, code: &str, seconds: f64) {
        let method = method.unwrap_or(OTHER);
        self.calls.of([method, code]).inc();
        self.call_seconds.of([method]).observe(seconds);
    }

    /// A transaction of the store has ended.
    fn transaction(&self, outcome: &str, seconds: f64) {
        self.transactions.of([outcome]).inc();
        self.transaction_seconds.observe(seconds);
    }

    /// An event is stored.
    fn event(&self, event: &EventRecord) {
        self.events.of([self.known(&event.reason)]).inc();
        let is = |reason: Reason| event.reason == reason.to_string();
        if is(Reason::InstancePlaced) {
            self.placements.of(["placed"]).inc();
        } else if is(Reason::InstanceUnplaceable) {
            self.placements.of(["unplaceable"]).inc();
        } else if is(Reason::InstanceFailedOver) {
            self.moves.of(["failover"]).inc();
        } else if is(Reason::InstanceMoving) {
            self.moves.of(["drain"]).inc();
        } else if is(Reason::InstanceGivenUp) {
            self.moves.of(["given_up"]).inc();
        }
    }

    /// The reason, if it is among those that are told apart.
    fn known<'a>(&self, reason: &'a str) -> &'a str {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.contains(reason) {
            return reason;
        }
        if reasons.len() < REASONS {
            reasons.insert(reason.to_owned());
            return reason;
        }
        OTHER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{event::SubjectKind, time::WallTime};

    fn event(reason: &str) -> EventRecord {
        EventRecord {
            reason: reason.to_owned(),
            ..EventRecord::new(
                WallTime::EPOCH,
                Reason::NodeLost,
                SubjectKind::Instance,
                "shop-web-0",
                "",
            )
        }
    }

    #[test]
    fn a_node_cannot_make_metrics_without_end() {
        let metrics = Metrics::default();
        for number in 0..10 * REASONS {
            metrics.event(&event(&format!("Reason{number}")));
        }
        let text = metrics.list().text().unwrap();
        let lines = text.lines().filter(|line| line.contains("_events_total{"));
        assert_eq!(lines.count(), REASONS + 1);
    }

    #[test]
    fn the_document_has_the_list() {
        let document = include_str!("../../../METRICS.md");
        let list = Metrics::default().list().markdown();
        assert!(
            document.contains(&list),
            "METRICS.md does not have what `fabric-controller metrics` prints:\n{list}"
        );
    }

    #[test]
    fn what_becomes_of_instances_is_counted_by_what_is_told() {
        let metrics = Metrics::default();
        metrics.event(&event("InstancePlaced"));
        metrics.event(&event("InstanceFailedOver"));
        let text = metrics.list().text().unwrap();
        assert!(text.contains("fabric_controller_placements_total{outcome=\"placed\"} 1"));
        assert!(text.contains("fabric_controller_moves_total{why=\"failover\"} 1"));
    }
}
