//! What is known of nodes only while the controller runs: their sessions, when
//! they were last heard, and what they reported last.
//!
//! A cache, never the truth: after a restart every node says everything again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fabric_proto::{
    id::{InstanceId, NodeId},
    node::v1::{InstanceStatus, NodeGoal},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    model::{state::NodeView, stock::Stock, time::WallTime},
};

/// A node's last report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Highest goal incarnation that it has taken up.
    pub applied_incarnation: u64,
    /// Its instances.
    pub instances: BTreeMap<InstanceId, InstanceStatus>,
}

/// What users are told of a node.
#[derive(Debug, Clone)]
pub struct NodeSight {
    /// True while its session is open and its reports arrive.
    pub connected: bool,
    /// When it was last heard; `None` if not since the controller started.
    pub last_seen: Option<WallTime>,
    /// What it reported last.
    pub report: Option<Arc<Report>>,
    /// How its instances stand.
    pub view: NodeView,
    /// Incarnation of the goal that it is given.
    pub goal_incarnation: u64,
    /// Room left on its disk, in bytes, as it said last.
    pub disk_free_bytes: Option<u64>,
    /// What it has that instances need not wait for, as it said last.
    pub stock: Arc<Stock>,
}

/// A node, live.
#[derive(Debug)]
struct Live {
    /// Number of its open session, and what ends it.
    session: Option<(u64, CancellationToken)>,
    /// Given no lease, until it has been given a goal that is known to be current.
    barred: bool,
    heard: Option<(Instant, WallTime)>,
    report: Option<Arc<Report>>,
    disk_free_bytes: Option<u64>,
    stock: Arc<Stock>,
    goal: watch::Sender<Option<Arc<NodeGoal>>>,
}

impl Live {
    fn new() -> Self {
        Self {
            session: None,
            barred: false,
            heard: None,
            report: None,
            disk_free_bytes: None,
            stock: Arc::default(),
            goal: watch::Sender::new(None),
        }
    }
}

/// A session's end of the registry.
#[derive(Debug)]
pub struct Session {
    registry: Arc<Registry>,
    node: NodeId,
    number: u64,
    /// Ends when another session takes this one's place.
    pub replaced: CancellationToken,
    /// The goal, whenever it changes.
    pub goal: watch::Receiver<Option<Arc<NodeGoal>>>,
}

impl Session {
    /// The node was heard.
    pub fn heard(&self) {
        self.registry.update(&self.node, self.number, |live| {
            live.heard = Some((Instant::now(), clock::now()));
            false
        });
    }

    /// The incarnation for which the node can be given a lease: that of its goal; none
    /// while it is barred, or has not been given one.
    #[must_use]
    pub fn leasable(&self) -> Option<u64> {
        let nodes = self.registry.lock();
        let live = nodes.get(&self.node).filter(|live| {
            let open = live.session.as_ref().map(|(number, _)| *number);
            open == Some(self.number) && !live.barred
        });
        let goal = live?.goal.borrow();
        goal.as_ref().map(|goal| goal.incarnation)
    }

    /// The goal of before is not the node's any more, and it is given no lease until one has
    /// been [found current](Registry::admit).
    pub fn begin_anew(&self) {
        self.registry.update(&self.node, self.number, |live| {
            live.barred = true;
            live.goal.send_replace(None);
            true
        });
    }

    /// The node has said what room is left on its disk, and what there is already. Nobody
    /// waits for that.
    pub fn has_disk(&self, free_bytes: u64, stock: Stock) {
        self.registry.update(&self.node, self.number, |live| {
            live.disk_free_bytes = Some(free_bytes);
            if *live.stock != stock {
                live.stock = Arc::new(stock);
            }
            false
        });
    }

    /// The node has reported.
    pub fn report(&self, report: Report) {
        self.registry.update(&self.node, self.number, |live| {
            let changed = live.report.as_deref() != Some(&report);
            live.report = Some(Arc::new(report));
            changed
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.registry.update(&self.node, self.number, |live| {
            live.session = None;
            true
        });
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Registry {
    nodes: Mutex<BTreeMap<NodeId, Live>>,
    sessions: std::sync::atomic::AtomicU64,
    started: Instant,
    lost_after: Duration,
    changes: watch::Sender<u64>,
}

impl Registry {
    /// No node is known; one that is silent for so long counts as lost.
    #[must_use]
    pub fn new(lost_after: Duration) -> Self {
        Self {
            nodes: Mutex::default(),
            sessions: std::sync::atomic::AtomicU64::new(1),
            started: Instant::now(),
            lost_after,
            changes: watch::Sender::new(0),
        }
    }

    /// How long a silent node is waited for.
    #[must_use]
    pub const fn lost_after(&self) -> Duration {
        self.lost_after
    }

    /// Everything in there stays whole whoever panics.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Live>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told whenever a node's session or report has changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells everyone who waits for changes.
    pub fn touch(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    fn update(&self, node: &NodeId, number: u64, change: impl FnOnce(&mut Live) -> bool) {
        let mut nodes = self.lock();
        let current = nodes.get_mut(node).filter(|live| {
            live.session
                .as_ref()
                .is_some_and(|(open, _)| *open == number)
        });
        let changed = current.is_some_and(change);
        drop(nodes);
        if changed {
            self.touch();
        }
    }

    /// Opens a session for a node; one that is open is told that it is replaced.
    #[must_use]
    pub fn open(self: &Arc<Self>, node: &NodeId) -> Session {
        let number = self
            .sessions
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let replaced = CancellationToken::new();
        let mut nodes = self.lock();
        let live = nodes.entry(node.clone()).or_insert_with(Live::new);
        if let Some((_, older)) = live.session.replace((number, replaced.clone())) {
            older.cancel();
        }
        live.heard = Some((Instant::now(), clock::now()));
        let goal = live.goal.subscribe();
        drop(nodes);
        self.touch();
        Session {
            registry: Arc::clone(self),
            node: node.clone(),
            number,
            replaced,
            goal,
        }
    }

    /// Gives a silent node no more leases until its goal has been [found
    /// current](Self::admit); false if it has been heard within that time. Its session
    /// ends: what it says from here on says it anew.
    #[must_use]
    pub fn bar(&self, node: &NodeId, silent: Duration) -> bool {
        let mut nodes = self.lock();
        let live = nodes.entry(node.clone()).or_insert_with(Live::new);
        if self.silence(Some(live)) < silent {
            return false;
        }
        live.barred = true;
        if let Some((_, session)) = live.session.take() {
            session.cancel();
        }
        true
    }

    /// The goal that the node is given is what is wanted now.
    pub fn admit(&self, node: &NodeId) {
        if let Some(live) = self.lock().get_mut(node) {
            live.barred = false;
        }
    }

    /// For how long the controller has been running.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// For how long a node has not been heard, counted from the controller's start at
    /// the earliest.
    #[must_use]
    pub fn silent_for(&self, node: &NodeId) -> Duration {
        self.silence(self.lock().get(node))
    }

    fn silence(&self, live: Option<&Live>) -> Duration {
        let heard = live.and_then(|live| live.heard);
        heard.map_or(self.started, |(heard, _)| heard).elapsed()
    }

    /// Gives a node its goal, now and at its next session.
    pub fn set_goal(&self, node: &NodeId, goal: Arc<NodeGoal>) {
        let mut nodes = self.lock();
        nodes
            .entry(node.clone())
            .or_insert_with(Live::new)
            .goal
            .send_replace(Some(goal));
    }

    /// The goal that a node is given.
    #[must_use]
    pub fn goal(&self, node: &NodeId) -> Option<Arc<NodeGoal>> {
        self.lock()
            .get(node)
            .and_then(|live| live.goal.borrow().clone())
    }

    /// What is known of a node.
    #[must_use]
    pub fn sight(&self, node: &NodeId) -> NodeSight {
        let nodes = self.lock();
        let live = nodes.get(node);
        let heard = live.and_then(|live| live.heard);
        let silent = self.silence(live) > self.lost_after;
        let report = live.and_then(|live| live.report.clone());
        let view = match (silent, &report, heard) {
            (false, Some(_), _) => NodeView::Heard,
            (true, _, Some((_, seen))) => NodeView::Lost(seen),
            (_, None, _) | (true, _, None) => NodeView::NotYetHeard,
        };
        NodeSight {
            connected: !silent && live.is_some_and(|live| live.session.is_some()),
            last_seen: heard.map(|(_, seen)| seen),
            report,
            view,
            disk_free_bytes: live.and_then(|live| live.disk_free_bytes),
            stock: live.map_or_else(Arc::default, |live| Arc::clone(&live.stock)),
            goal_incarnation: live
                .and_then(|live| live.goal.borrow().as_ref().map(|goal| goal.incarnation))
                .unwrap_or(0),
        }
    }

    /// Whether a node has been silent for too long, counted from the
    /// controller's start at the earliest.
    #[must_use]
    pub fn is_lost(&self, node: &NodeId) -> bool {
        self.silent_for(node) > self.lost_after
    }

    /// The nodes whose sessions are open.
    #[must_use]
    pub fn connected(&self) -> BTreeSet<NodeId> {
        let nodes = self.lock();
        nodes
            .iter()
            .filter(|(_, live)| live.session.is_some())
            .map(|(node, _)| node.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_is_new_has_no_lease_for_the_goal_of_before() {
        let registry = Arc::new(Registry::new(Duration::ZERO));
        let node: NodeId = "n1".parse().unwrap();
        let goal = |incarnation| {
            Arc::new(NodeGoal {
                incarnation,
                ..NodeGoal::default()
            })
        };
        let first = registry.open(&node);
        registry.set_goal(&node, goal(5));
        assert_eq!(first.leasable(), Some(5));
        // An operator removes it; before that is stored its goal is found current.
        assert!(registry.bar(&node, Duration::ZERO));
        assert_eq!(first.leasable(), None);
        registry.admit(&node);
        // It comes again, and nobody knows it.
        let again = registry.open(&node);
        again.begin_anew();
        assert_eq!(again.leasable(), None, "what was in it may run elsewhere");
        assert_eq!(registry.goal(&node), None);
        registry.set_goal(&node, goal(6));
        registry.admit(&node);
        assert_eq!(again.leasable(), Some(6));
    }
}
