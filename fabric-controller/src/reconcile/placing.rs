//! The border between what is kept and [`placement`]: records in, decisions out.

use std::collections::BTreeMap;

use fabric_proto::id::{InstanceId, NodeId, RoleName, ServiceName};

use super::plan::{Input, Plan};
use crate::{
    model::{
        event::Reason,
        instance::{InstanceRecord, InstanceSpec, Phase},
        node::NodeRecord,
        time::WallTime,
    },
    placement::{
        self, Architecture, Decision, FaultDomain, Group, Health, Instance, Kvm, Needs, Node,
        Policy, Resources, Spreading,
    },
};

/// Upgrade domains of a role, as Azure has them when nothing else is said.
pub const UPGRADE_DOMAINS: u32 = 5;

/// A node as placement sees it.
#[must_use]
pub fn node(record: &NodeRecord, connected: bool) -> Node {
    let inventory = &record.inventory;
    Node {
        id: record.node_id.clone(),
        domain: FaultDomain(record.fault_domain().to_owned()),
        cpus: inventory.cpus,
        memory_bytes: inventory.memory_bytes,
        disk_bytes: inventory.disk_bytes,
        health: match (record.lost, connected) {
            (false, true) => Health::Connected,
            (false, false) => Health::NotConnected,
            (true, _) => Health::Lost,
        },
        cordoned: record.cordoned,
        blame: record.blame,
        labels: record.labels.clone(),
        // Ours is a virtual machine monitor for x86-64.
        architecture: Architecture::X86_64,
        kvm: match inventory.kvm_kind.as_str() {
            "hardware" => Some(Kvm::Hardware),
            "interpreted" => Some(Kvm::Interpreted),
            _ => None,
        },
        images: Default::default(),
    }
}

/// An instance as placement sees it.
#[must_use]
pub fn instance(record: &InstanceRecord) -> Instance {
    Instance {
        leaving: record.phase == Phase::Removing,
        ..wanted(
            record.id.clone(),
            &record.service,
            &record.role,
            record.number,
            &record.spec,
            record.node.clone(),
        )
    }
}

/// The same of one that is wanted, whether it is there yet or not.
#[must_use]
pub fn wanted(
    id: InstanceId,
    service: &ServiceName,
    role: &RoleName,
    number: u32,
    spec: &InstanceSpec,
    node: Option<NodeId>,
) -> Instance {
    Instance {
        id,
        group: Group(format!("{service}/{role}")),
        number,
        upgrade_domains: UPGRADE_DOMAINS,
        spreading: Spreading::Preferred,
        needs: needs(spec),
        node,
        leaving: false,
    }
}

fn needs(spec: &InstanceSpec) -> Needs {
    Needs {
        resources: Resources {
            // A differencing disk can become as large as what it differs from.
            disk_bytes: spec.image.size_bytes,
            ..Resources::of(spec.size)
        },
        image: Some(spec.image.digest.clone()),
        ..Needs::default()
    }
}

/// All nodes, as the facts have them.
#[must_use]
pub fn nodes(input: &Input) -> Vec<Node> {
    let connected = |id: &NodeId| input.facts.get(id).is_some_and(|facts| facts.connected);
    let nodes = input.nodes.iter();
    nodes
        .map(|record| node(record, connected(&record.node_id)))
        .collect()
}

/// Gives a node to every instance that has none, or says why there is none for it.
pub(super) fn place(
    policy: Policy,
    input: &Input,
    instances: &BTreeMap<InstanceId, InstanceRecord>,
    now: WallTime,
    plan: &mut Plan,
) {
    if instances.values().all(|record| record.node.is_some()) {
        return;
    }
    let asked: Vec<_> = instances.values().map(instance).collect();
    for Decision { instance, outcome } in placement::place(policy, &nodes(input), &asked) {
        let Some(record) = instances.get(&instance) else {
            continue;
        };
        let mut record = record.clone();
        match outcome {
            Ok(placed) => {
                let mut message = format!("placed on node {}", placed.node);
                if let Some(relaxed) = placed.relaxed {
                    message = format!("{message}, not spread: {relaxed}");
                }
                plan.tell(now, Reason::InstancePlaced, &instance, message);
                record.node = Some(placed.node);
                record.unplaceable = String::new();
                record.changed = now;
            }
            Err(why) => {
                let why = why.to_string();
                if record.unplaceable == why {
                    continue;
                }
                // Told once, not with every figure that changes.
                if record.unplaceable.is_empty() {
                    plan.tell(now, Reason::InstanceUnplaceable, &instance, why.clone());
                }
                record.unplaceable = why;
            }
        }
        plan.put.insert(instance, record);
    }
}
