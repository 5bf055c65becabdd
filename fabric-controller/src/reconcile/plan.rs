//! What must change in the store for services to be as they should be.
//!
//! A pure function from everything that is known to the records to put and to
//! delete. It is asked again after every change; when there is nothing left to
//! do, it says so.
//!
//! - A service's instance that is not there comes to be, without a node.
//! - An instance without a node is placed, or says why it cannot be.
//! - An instance that is there keeps what it is until its update reaches it
//!   ([`super::rollout`]); only what it would not notice is written at once. Rules for
//!   nodes are that where its node meets them.
//! - An instance that no service wants goes: its node is no longer told to have
//!   it, and the record stays until the node has taken that up and reports it no
//!   more. A node that is not there cannot say so, and the record waits for it, until
//!   it is fenced: what may still run is not forgotten.
//! - One that is moving goes the same way, and has no node then.
//! - What a fenced node had is placed anew ([`failover`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use fabric_proto::id::{InstanceId, NodeId, RoleName, ServiceName};

use super::{failover, placing};
use crate::{
    model::{
        deployment::Deployment,
        event::{Because, EventRecord, Reason, SubjectKind},
        instance::{Effect, GivenUp, InstanceRecord, Phase, Restart, RestartScope},
        keep::Keep,
        node::{NodeRecord, Nodes},
        revision::Revision,
        service::{ServiceRecord, ServiceRole},
        stock::Stock,
        time::WallTime,
    },
    placement::Policy,
};

/// What a node was told and has reported, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// True while its session is open.
    pub connected: bool,
    /// Incarnation of the goal that it was given last.
    pub goal_incarnation: u64,
    /// The instances in that goal.
    pub goal_instances: BTreeSet<InstanceId>,
    /// The incarnation it has taken up, and the instances it reports; `None`
    /// until it has reported.
    pub reported: Option<(u64, BTreeSet<InstanceId>)>,
    /// What it has that instances need not wait for.
    pub stock: Arc<Stock>,
}

/// Everything that the plan depends on.
#[derive(Debug, Clone, Default)]
pub struct Input {
    /// The services.
    pub services: Vec<ServiceRecord>,
    /// The instances.
    pub instances: Vec<InstanceRecord>,
    /// The nodes.
    pub nodes: Vec<NodeRecord>,
    /// What is known of them beside.
    pub facts: BTreeMap<NodeId, NodeFacts>,
    /// Nodes that have ended what they ran, and are not heard.
    pub fenced: BTreeSet<NodeId>,
    /// An epoch greater than any that was ever given.
    pub next_epoch: u64,
}

/// What must change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Instances that come to be or change.
    pub put: BTreeMap<InstanceId, InstanceRecord>,
    /// Instances that are gone.
    pub delete: BTreeSet<InstanceId>,
    /// Services whose updates have gone on.
    pub services: BTreeMap<ServiceName, ServiceRecord>,
    /// Their changes, to be remembered.
    pub revisions: Vec<(ServiceName, Revision)>,
    /// Nodes that are judged otherwise than before.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Records that must be as they were when this was planned, by key.
    pub unchanged: BTreeMap<String, u64>,
    /// What to tell about it.
    pub events: Vec<EventRecord>,
}

impl Input {
    /// What an instance is of, if that is wanted.
    pub(super) fn deployment_of(&self, one: &InstanceRecord) -> Option<&Deployment> {
        let service = self.services.iter().find(|it| it.name == one.service);
        service.and_then(|service| service.deployment_of(one))
    }
}

impl Plan {
    /// True if everything is as it should be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.put.is_empty()
            && self.delete.is_empty()
            && self.services.is_empty()
            && self.nodes.is_empty()
    }

    pub(super) fn tell_of_node(
        &mut self,
        now: WallTime,
        reason: Reason,
        node: &NodeId,
        message: String,
    ) {
        let kind = SubjectKind::Node;
        self.events
            .push(EventRecord::new(now, reason, kind, node, message));
    }

    pub(super) fn tell(&mut self, now: WallTime, reason: Reason, id: &InstanceId, message: String) {
        let kind = SubjectKind::Instance;
        self.events
            .push(EventRecord::new(now, reason, kind, id, message));
    }

    /// An instance leaves its node, to be started on another; and why, to be told.
    pub(super) fn start_elsewhere(
        &mut self,
        now: WallTime,
        reason: Reason,
        one: InstanceRecord,
        message: String,
    ) {
        self.tell(now, reason, &one.id, message);
        let record = InstanceRecord {
            phase: Phase::Moving,
            changed: now,
            ..one
        };
        self.put.insert(record.id.clone(), record);
    }

    /// What led to what was told last, by its name.
    pub(super) fn led_by(&mut self, because: Because) {
        if let Some(event) = self.events.last_mut() {
            event.because = Some(because);
        }
    }

    /// What led to what was told last.
    pub(super) fn because(&mut self, reason: Reason, kind: SubjectKind, of: impl fmt::Display) {
        if let Some(event) = self.events.pop() {
            self.events.push(event.because(reason, kind, of));
        }
    }
}

/// Plans. `now` is only written into records and events.
#[must_use]
pub fn plan(policy: Policy, input: &Input, now: WallTime) -> Plan {
    let mut plan = Plan::default();
    let mut instances: BTreeMap<InstanceId, InstanceRecord> = input
        .instances
        .iter()
        .map(|one| (one.id.clone(), one.clone()))
        .collect();
    let wanted = wanted(&input.services);
    let nodes = input.nodes.iter().collect();
    for (id, want) in &wanted {
        let renewed = match instances.get(id) {
            None => Some(new_instance(id, want, input.next_epoch, now)),
            Some(there) => renewed(there, want, &nodes, input.next_epoch, now),
        };
        if let Some(record) = renewed {
            instances.insert(id.clone(), record.clone());
            plan.put.insert(id.clone(), record);
        }
    }
    failover::take_off(input, &mut instances, now, &mut plan);
    for record in instances.values_mut() {
        let unwanted = !wanted.contains_key(&record.id);
        if unwanted && record.phase != Phase::Removing {
            record.phase = Phase::Removing;
            record.changed = now;
            plan.put.insert(record.id.clone(), record.clone());
        }
        if record.phase == Phase::Moving && is_gone(record, input) {
            record.leave_node(input.next_epoch, now);
            plan.put.insert(record.id.clone(), record.clone());
        }
        if record.phase == Phase::Removing && is_gone(record, input) {
            plan.put.remove(&record.id);
            plan.delete.insert(record.id.clone());
            plan.tell(now, Reason::InstanceRemoved, &record.id, removed(record));
        }
    }
    instances.retain(|id, _| !plan.delete.contains(id));
    placing::place(policy, input, &instances, now, &mut plan);
    plan
}

/// An instance that a service wants.
pub(super) struct Want<'a> {
    pub(super) service: &'a ServiceName,
    pub(super) deployment: &'a Deployment,
    pub(super) role: &'a ServiceRole,
    pub(super) number: u32,
}

fn wanted(services: &[ServiceRecord]) -> BTreeMap<InstanceId, Want<'_>> {
    let mut wanted = BTreeMap::new();
    for service in services {
        // Ids were checked when the service was applied.
        for (id, deployment, role, number) in service.instances().unwrap_or_default() {
            wanted.entry(id).or_insert(Want {
                service: &service.name,
                deployment,
                role,
                number,
            });
        }
    }
    wanted
}

fn new_instance(id: &InstanceId, want: &Want<'_>, epoch: u64, now: WallTime) -> InstanceRecord {
    InstanceRecord {
        id: id.clone(),
        service: want.service.clone(),
        role: RoleName::clone(want.role.name()),
        colour: want.deployment.colour,
        number: want.number,
        revision: want.deployment.revision,
        updated: now,
        spec: want.role.spec.clone(),
        node: None,
        epoch,
        restart: Restart::default(),
        keep: Keep::default(),
        phase: Phase::Wanted,
        given_up: GivenUp::default(),
        unplaceable: String::new(),
        changed: now,
    }
}

/// The record as it is to be, as far as that has nothing to do with an update;
/// `None` if it is so already.
fn renewed(
    there: &InstanceRecord,
    want: &Want<'_>,
    nodes: &Nodes<'_>,
    next_epoch: u64,
    now: WallTime,
) -> Option<InstanceRecord> {
    let spec = &want.role.spec;
    let effect = || there.effect_of(spec, nodes);
    if there.phase == Phase::Removing {
        // Wanted again before it was gone. One that must be placed anew goes all the
        // same; any other is made anew where it is.
        return (effect() != Effect::Replace).then(|| InstanceRecord {
            service: want.service.clone(),
            role: want.role.name().clone(),
            colour: want.deployment.colour,
            number: want.number,
            revision: want.deployment.revision,
            updated: now,
            spec: spec.clone(),
            epoch: next_epoch,
            phase: Phase::Wanted,
            restart: there.restart.again(RestartScope::Reimage),
            keep: there.keep.forgotten(),
            changed: now,
            ..there.clone()
        });
    }
    if there.phase == Phase::Moving {
        return None;
    }
    let unnoticed = there.spec != *spec && effect() == Effect::Nothing;
    unnoticed.then(|| InstanceRecord {
        spec: spec.clone(),
        ..there.clone()
    })
}

fn is_gone(record: &InstanceRecord, input: &Input) -> bool {
    let Some(node) = &record.node else {
        return true;
    };
    if input.fenced.contains(node) {
        return true;
    }
    let Some(facts) = input.facts.get(node) else {
        return false;
    };
    let Some((applied, reported)) = &facts.reported else {
        return false;
    };
    !facts.goal_instances.contains(&record.id)
        && *applied >= facts.goal_incarnation
        && !reported.contains(&record.id)
}

fn removed(record: &InstanceRecord) -> String {
    match &record.node {
        Some(node) => format!("removed from node {node}"),
        None => "removed; it had no node".to_owned(),
    }
}
