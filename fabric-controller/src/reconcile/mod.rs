//! Drives what is to what should be.
//!
//! One task. Woken by changes in the store, by nodes and by a timer, it reads
//! everything, lets [`plan`] decide, writes that in one guarded transaction, and
//! gives every node whose instances have changed a new goal ([`goal`]) with a
//! number that is stored before it is sent. Only then [`rollout`] lets updates take
//! their next step: whether an instance is well as what it is now can be told only
//! of what its node was told. It keeps nothing from pass to pass.

pub mod blame;
pub mod drain;
pub mod escalate;
pub mod failover;
pub mod foreseen;
pub mod goal;
pub mod health;
pub mod os_updates;
pub mod placing;
pub mod plan;
pub mod rebalance;
pub mod restored;
pub mod rollout;
pub mod steadiness;
#[cfg(test)]
mod tests;
mod uneven;
pub mod update_walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fabric_proto::{id::NodeId, node::v1::NodeGoal};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use self::{
    failover::{Silence, Verdict},
    goal::Terms,
    plan::{Input, NodeFacts, Plan},
    restored::Look,
};
use crate::{
    clock,
    error::Result,
    metrics::Metrics,
    model::{
        blame::Failures,
        event::{EventRecord, Reason, SubjectKind},
        instance::InstanceRecord,
        lease::LeasePolicy,
        node::{GoalRecord, NodeRecord},
        service::ServiceRecord,
        time::WallTime,
    },
    output::Outputs,
    placement::Policy,
    records::{self, Kept},
    registry::Registry,
    store::{Entry, Outcome, Range, Revision, Store, StoreError, Txn},
};

/// A pass at least so often, should anything have been missed.
const PERIOD: Duration = Duration::from_secs(5);
/// Before a pass that has failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Most turns of planning in one pass.
const TURNS: usize = 64;

/// Wakes the reconciler, and waits for it.
#[derive(Debug)]
pub struct Waker {
    asked: watch::Sender<u64>,
    done: watch::Sender<u64>,
}

impl Default for Waker {
    fn default() -> Self {
        Self {
            asked: watch::Sender::new(0),
            done: watch::Sender::new(0),
        }
    }
}

impl Waker {
    /// Asks for a pass.
    pub fn wake(&self) -> u64 {
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        number
    }

    /// Asks for a pass and waits until it is done, or for so long.
    pub async fn settle(&self, at_most: Duration) {
        let mut done = self.done.subscribe();
        let number = self.wake();
        // Whoever waits only wants to see the result sooner.
        let _ = time::timeout(at_most, done.wait_for(|done| *done >= number)).await;
    }
}

/// See the [module](self).
pub struct Reconciler {
    /// Where everything is.
    pub store: Arc<dyn Store>,
    /// What nodes say.
    pub registry: Arc<Registry>,
    /// What operators want to see.
    pub outputs: Arc<Outputs>,
    /// Who wakes it.
    pub waker: Arc<Waker>,
    /// How full nodes may be.
    pub policy: Policy,
    /// How nodes are held to their leases.
    pub lease: Option<LeasePolicy>,
    /// What every node is held to.
    pub terms: Terms,
    /// How many nodes may be cordoned at once for what fails on them, in percent.
    pub condemn_percent: u32,
    /// What it takes is counted.
    pub metrics: Arc<Metrics>,
    /// Whether it has been told that nothing is started elsewhere.
    pub told_held: AtomicBool,
}

/// Everything that was read at one revision.
struct Seen {
    services: Vec<Kept<ServiceRecord>>,
    instances: Vec<Kept<InstanceRecord>>,
    nodes: Vec<Kept<NodeRecord>>,
    goals: BTreeMap<NodeId, Kept<GoalRecord>>,
    failures: BTreeMap<NodeId, Failures>,
    revision: Revision,
}

impl Seen {
    /// An epoch that was never given: revisions only grow, and every transaction has a new
    /// one.
    const fn next_epoch(&self) -> Revision {
        self.revision + 1
    }
}

impl Reconciler {
    /// Reconciles until it is told to end.
    pub async fn run(self, end: CancellationToken) {
        let mut asked = self.waker.asked.subscribe();
        let mut nodes = self.registry.changes();
        let mut timer = time::interval(PERIOD);
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                _ = asked.changed() => {}
                _ = nodes.changed() => {}
                _ = timer.tick() => {}
            }
            nodes.mark_unchanged();
            let number = *asked.borrow_and_update();
            let begun = time::Instant::now();
            let done = self.pass().await;
            let took = begun.elapsed().as_secs_f64();
            self.metrics.reconcile_seconds.observe(took);
            match done {
                Ok(again) => {
                    self.waker.done.send_replace(number);
                    if let Some(again) = again {
                        timer.reset_after(again.since(clock::now()).min(PERIOD));
                    }
                }
                Err(error) => {
                    self.metrics.reconcile_failures.inc();
                    tracing::error!(error = %chain(&error), "reconciling failed; trying again");
                    timer.reset_after(RETRY);
                }
            }
        }
    }

    /// One pass: plans and writes until there is nothing left to do, then gives
    /// the nodes their goals, and begins again for what updates do next. Says when
    /// to look again though nothing has changed.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn pass(&self) -> Result<Option<WallTime>> {
        for _ in 0..TURNS {
            let (mut seen, look) = self.settle().await?;
            let mut has_changed = false;
            for node in &seen.nodes {
                let node = &node.value.node_id;
                if look.may_have_goal(node) {
                    has_changed |= self.give_goal(node, &seen, &look).await?;
                }
            }
            if !look.is_over() {
                return Ok(Some(clock::now().after(RETRY)));
            }
            if has_changed {
                seen = self.read().await?;
            }
            let input = self.input(&seen, &BTreeSet::new());
            let health = |record: &InstanceRecord| {
                let facts = record.node.as_ref().and_then(|node| input.facts.get(node));
                let has_taken_up =
                    facts.is_some_and(|facts| health::has_taken_up(facts, &record.id));
                health::health(record, &self.registry, has_taken_up)
            };
            let (mut plan, again) = rollout::walk(&input, &health, clock::now());
            if plan.is_empty() && os_updates::is_wanted(&input.services) {
                let images = records::list(&*self.store, &records::images()).await?;
                plan = os_updates::begin(&input, &images, &health, clock::now());
            }
            if plan.is_empty() {
                plan = drain::step(self.policy, &input, &health, clock::now());
            }
            if plan.is_empty() {
                plan = escalate::step(self.policy, &input, &health, clock::now());
            }
            if plan.is_empty() {
                plan = rebalance::step(self.policy, &input, &health, clock::now());
            }
            if plan.is_empty() {
                return Ok(again);
            }
            self.write(&seen, &BTreeSet::new(), plan).await?;
        }
        self.waker.wake();
        Ok(None)
    }

    /// Plans and writes until there is nothing left to do. Answers what there is then, and
    /// what is still looked for.
    async fn settle(&self) -> Result<(Seen, Look)> {
        let mut again = 0;
        loop {
            let seen = self.read().await?;
            let look = self.look(&seen);
            if !look.is_over() {
                let plan = look.find(seen.next_epoch(), clock::now());
                again += 1;
                if plan.is_empty() || again > TURNS {
                    return Ok((seen, look));
                }
                self.write(&seen, &BTreeSet::new(), plan).await?;
                continue;
            }
            let fence = self.fence(&seen).await?;
            let (input, now) = (self.input(&seen, &fence), clock::now());
            // What is fenced now is written before nodes are judged.
            let mut plan = match fence.is_empty() {
                true => steadiness::judge(&input.nodes, now),
                false => Plan::default(),
            };
            if plan.is_empty() && fence.is_empty() {
                plan = blame::judge(&input, &seen.failures, self.condemn_percent, now);
            }
            if plan.is_empty() {
                plan = plan::plan(self.policy, &input, now);
            }
            again += 1;
            if plan.is_empty() && fence.is_empty() || again > TURNS {
                return Ok((seen, look));
            }
            self.write(&seen, &fence, plan).await?;
        }
    }

    async fn read(&self) -> Result<Seen> {
        let prefixes = [
            records::SERVICES,
            records::INSTANCES,
            records::NODES,
            records::GOALS,
            records::FAILURES,
        ];
        let (mut all, revision) = self
            .store
            .ranges(prefixes.into_iter().map(Range::prefix).collect())
            .await?;
        let mut next = || all.pop().unwrap_or_default();
        let (failures, goals) = (
            by_node(next(), records::FAILURES)?,
            by_node(next(), records::GOALS)?,
        );
        let (nodes, instances, services) = (next(), next(), next());
        let failed = |(node, kept): (NodeId, Kept<Failures>)| (node, kept.value);
        Ok(Seen {
            services: services
                .iter()
                .map(records::decode)
                .collect::<Result<_>>()?,
            instances: instances
                .iter()
                .map(records::decode)
                .collect::<Result<_>>()?,
            nodes: nodes.iter().map(records::decode).collect::<Result<_>>()?,
            goals,
            failures: failures.into_iter().map(failed).collect(),
            revision,
        })
    }

    /// What is known of the instances that a restored store has not seen itself.
    fn look(&self, seen: &Seen) -> Look {
        let instances = seen.instances.iter().map(|kept| &kept.value);
        let mut look = Look::for_those_of_before(instances, seen.revision);
        if look.is_over() {
            return look;
        }
        // A node that is not known any more may run what it was given since the backup.
        let policy = self.lease.unwrap_or_default();
        look.misses = self.registry.uptime() < policy.replace_after();
        for node in &seen.nodes {
            let id = &node.value.node_id;
            let sight = self.registry.sight(id);
            match sight.report {
                Some(report) => look.hear(id, &report),
                None => look.misses |= sight.connected,
            }
        }
        look
    }

    /// The nodes to fence now. Each is barred from leases before anything of it is
    /// started elsewhere: one that is heard just then is left as it is.
    async fn fence(&self, seen: &Seen) -> Result<BTreeSet<NodeId>> {
        let Some(policy) = &self.lease else {
            return Ok(BTreeSet::new());
        };
        let nodes: Vec<_> = seen
            .nodes
            .iter()
            .map(|node| Silence {
                node: node.value.node_id.clone(),
                silent: self.registry.silent_for(&node.value.node_id),
                fenced: node.value.fenced,
            })
            .collect();
        let Verdict { mut fence, held } = failover::decide(policy, &nodes);
        let told = self.told_held.swap(held.is_some(), Ordering::Relaxed);
        if let Some(held) = held.filter(|_| !told) {
            tracing::error!("{held}");
            let (reason, kind) = (Reason::FailoverHeld, SubjectKind::Cluster);
            let event = EventRecord::new(clock::now(), reason, kind, "nodes", held.to_string());
            self.store
                .txn(records::add_event(Txn::new(), &event)?)
                .await?;
        }
        fence.retain(|node| self.registry.bar(node, policy.replace_after()));
        Ok(fence)
    }

    fn input(&self, seen: &Seen, fence: &BTreeSet<NodeId>) -> Input {
        let facts = seen.nodes.iter().map(|node| {
            let id = &node.value.node_id;
            let sight = self.registry.sight(id);
            let goal = seen.goals.get(id).map(|goal| &goal.value);
            let reported = sight.report.map(|report| {
                (
                    report.applied_incarnation,
                    report.instances.keys().cloned().collect(),
                )
            });
            let facts = NodeFacts {
                connected: sight.connected,
                goal_incarnation: goal.map_or(0, |goal| goal.incarnation),
                goal_instances: goal.map(|goal| goal.instances.clone()).unwrap_or_default(),
                reported,
                stock: sight.stock,
            };
            (id.clone(), facts)
        });
        Input {
            services: values(&seen.services),
            instances: values(&seen.instances),
            nodes: values(&seen.nodes),
            facts: facts.collect(),
            fenced: fenced(seen, fence),
            next_epoch: seen.next_epoch(),
        }
    }

    /// Writes a plan; if anything that it is about has changed meanwhile,
    /// nothing is written, and the next turn plans anew.
    async fn write(&self, seen: &Seen, fence: &BTreeSet<NodeId>, plan: Plan) -> Result<()> {
        let before: BTreeMap<_, _> = seen
            .instances
            .iter()
            .map(|kept| (&kept.value.id, kept.modified))
            .collect();
        let mut txn = Txn::new();
        let fence = |node: &&Kept<NodeRecord>| fence.contains(&node.value.node_id);
        for node in seen.nodes.iter().filter(fence) {
            txn = note_fenced(txn, node)?;
        }
        for (id, record) in &plan.put {
            let old = before.get(id).copied();
            txn = records::replace(txn, &records::instance(id), old, record)?;
        }
        for id in &plan.delete {
            let key = records::instance(id);
            txn = txn.when(&key, before.get(id).copied()).delete(key);
        }
        for (key, revision) in &plan.unchanged {
            txn = txn.when(key, Some(*revision));
        }
        for (id, record) in &plan.nodes {
            let old = seen.nodes.iter().find(|kept| kept.value.node_id == *id);
            let old = old.map(|kept| kept.modified);
            txn = records::replace(txn, &records::node(id), old, record)?;
        }
        for (name, service) in &plan.services {
            let old = seen.services.iter().find(|kept| kept.value.name == *name);
            let old = old.map(|kept| kept.modified);
            txn = records::replace(txn, &records::service(name), old, service)?;
        }
        for (name, revision) in &plan.revisions {
            txn = txn.put(
                records::revision(name, revision.number),
                records::encode(revision)?,
            );
        }
        for event in &plan.events {
            txn = records::add_event(txn, event)?;
        }
        self.store.txn(txn).await?;
        Ok(())
    }

    /// Gives a node its goal, with a new number if it asks for anything new; whether
    /// it does.
    async fn give_goal(&self, node: &NodeId, seen: &Seen, look: &Look) -> Result<bool> {
        let instances = seen
            .instances
            .iter()
            .map(|kept| &kept.value)
            .filter(|record| record.node.as_ref() == Some(node) && !look.is_for(&record.id));
        let held = look.held_on(node);
        let goal = goal::node_goal(
            instances.chain(&held),
            self.outputs.requests(node),
            self.terms,
        );
        let fingerprint = goal::fingerprint(&goal);
        let kept = seen.goals.get(node);
        let last = kept.map(|kept| kept.value.clone()).unwrap_or_default();
        if last.fingerprint == fingerprint {
            let published = self.registry.goal(node).map(|goal| goal.incarnation);
            if published != Some(last.incarnation) {
                self.publish(node, goal, last.incarnation);
            }
            self.registry.admit(node);
            return Ok(false);
        }
        let incarnation = last.incarnation + 1;
        let instances = goal
            .instances
            .iter()
            .filter_map(|one| one.instance_id.parse().ok());
        let record = GoalRecord {
            incarnation,
            fingerprint,
            instances: instances.collect(),
        };
        let old = kept.map(|kept| kept.modified);
        let txn = records::replace(Txn::new(), &records::goal(node), old, &record)?;
        match self.store.txn(txn).await? {
            Outcome::Committed(_) => {
                self.publish(node, goal, incarnation);
                self.registry.admit(node);
            }
            // The node has just registered; the next pass sees it.
            Outcome::Conflict { .. } => {
                self.waker.wake();
            }
        }
        Ok(true)
    }

    fn publish(&self, node: &NodeId, goal: NodeGoal, incarnation: u64) {
        tracing::debug!(%node, incarnation, instances = goal.instances.len(), "new goal");
        self.registry.set_goal(
            node,
            Arc::new(NodeGoal {
                incarnation,
                ..goal
            }),
        );
    }
}

/// The records of nodes under a prefix.
fn by_node<T: DeserializeOwned>(
    entries: Vec<Entry>,
    prefix: &str,
) -> Result<BTreeMap<NodeId, Kept<T>>> {
    let mut by_node = BTreeMap::new();
    for entry in &entries {
        let node = entry.key.strip_prefix(prefix).unwrap_or_default();
        if let Ok(node) = node.parse::<NodeId>() {
            by_node.insert(node, records::decode(entry)?);
        }
    }
    Ok(by_node)
}

/// The nodes whose instances may be started elsewhere: those that are fenced, or were
/// removed, which nobody can before their lease has ended.
fn fenced(seen: &Seen, fence: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let nodes = seen.nodes.iter().map(|node| &node.value);
    let there: BTreeSet<_> = nodes.clone().map(|node| &node.node_id).collect();
    let removed = seen
        .instances
        .iter()
        .filter_map(|one| one.value.node.as_ref())
        .filter(|node| !there.contains(node));
    nodes
        .filter(|node| node.fenced || fence.contains(&node.node_id))
        .map(|node| &node.node_id)
        .chain(removed)
        .cloned()
        .collect()
}

/// A node's instances may be started elsewhere from here on.
fn note_fenced(txn: Txn, node: &Kept<NodeRecord>) -> Result<Txn> {
    let id = &node.value.node_id;
    tracing::warn!(node = %id, "its lease has ended: its instances are started elsewhere");
    let record = NodeRecord {
        fenced: true,
        ..node.value.clone()
    };
    let message = "its lease has ended: its instances are started elsewhere";
    let (reason, kind) = (Reason::NodeFenced, SubjectKind::Node);
    let event = EventRecord::new(clock::now(), reason, kind, id, message);
    let event = event.because(Reason::NodeLost, kind, id);
    let txn = records::replace(txn, &records::node(id), Some(node.modified), &record)?;
    records::add_event(txn, &event)
}

/// Wakes the reconciler whenever a service, an instance, a node or a file changes.
///
/// # Errors
///
/// The store is closed.
pub async fn wake_on_changes(store: Arc<dyn Store>, waker: Arc<Waker>) -> Result<(), StoreError> {
    loop {
        let now = store
            .range(Range::prefix(records::NODES).limit(0))
            .await?
            .revision;
        waker.wake();
        let mut changes = match store.watch("", now) {
            Ok(changes) => changes,
            Err(StoreError::Compacted { .. }) => continue,
            Err(error) => return Err(error),
        };
        loop {
            match changes.next().await {
                Ok(changes) => {
                    let matters = [
                        records::SERVICES,
                        records::INSTANCES,
                        records::NODES,
                        records::FAILURES,
                        records::BLOBS,
                    ];
                    if changes
                        .iter()
                        .any(|one| matters.iter().any(|of| one.key.starts_with(of)))
                    {
                        waker.wake();
                    }
                }
                Err(StoreError::Compacted { .. }) => break,
                Err(error) => return Err(error),
            }
        }
    }
}

fn values<T: Clone>(kept: &[Kept<T>]) -> Vec<T> {
    kept.iter().map(|kept| kept.value.clone()).collect()
}

/// An error and its causes, in one line for the log.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
