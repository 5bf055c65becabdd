//! The border between what is kept and [`placement`]: records in, decisions out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fabric_proto::id::{InstanceId, NodeId, RoleName, ServiceName};

use super::plan::{Input, Plan};
use crate::{
    model::{
        deployment::Colour,
        event::{Reason, SubjectKind},
        instance::{InstanceRecord, InstanceSpec, Phase},
        node::NodeRecord,
        service::{ServiceRecord, ServiceRole},
        time::WallTime,
        update,
    },
    placement::{
        self, Decision, FaultDomain, Group, Health, Instance, Needs, Node, Policy, Resources,
        Spreading, Stock, Template,
    },
};

/// A node as placement sees it; its stock is in no record.
#[must_use]
pub fn node(record: &NodeRecord, connected: bool, stock: Arc<Stock>) -> Node {
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
        condemned: record.condemned,
        unsteady: record.steadiness.held,
        blame: record.blame,
        labels: record.all_labels(),
        architecture: inventory.architecture,
        kvm: record.kvm(),
        stock,
        own: inventory.resources.clone(),
    }
}

/// An instance as placement sees it; `role` is what its service says of its role, if
/// that is still wanted.
#[must_use]
pub fn instance(record: &InstanceRecord, role: Option<&ServiceRole>) -> Instance {
    Instance {
        id: record.id.clone(),
        group: group_of(record, role).name(),
        number: record.number,
        upgrade_domains: role.map_or(update::UPGRADE_DOMAINS, |role| role.upgrade_domains),
        spreading: role.map_or(Spreading::Preferred, |role| role.spread),
        fault_domains: role.map_or(1, |role| role.fault_domains),
        needs: Needs {
            avoid: record.given_up.by.iter().cloned().collect(),
            ..needs(&record.spec)
        },
        node: record.node.clone(),
        leaving: record.phase != Phase::Wanted,
    }
}

/// One that is wanted of a role, whether it is there yet or not.
#[must_use]
pub fn wanted(
    id: InstanceId,
    service: &ServiceName,
    colour: Colour,
    role: &ServiceRole,
    number: u32,
    node: Option<NodeId>,
) -> Instance {
    Instance {
        id,
        group: GroupOf::new(service, colour, role.name(), Some(role)).name(),
        number,
        upgrade_domains: role.upgrade_domains,
        spreading: role.spread,
        fault_domains: role.fault_domains,
        needs: needs(&role.spec),
        node,
        leaving: false,
    }
}

/// With which others an instance should not share its fate: those of its availability set,
/// or of its role, in its own deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GroupOf<'a> {
    service: &'a ServiceName,
    colour: Colour,
    within: Within<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Within<'a> {
    Set(&'a str),
    Role(&'a RoleName),
}

impl<'a> GroupOf<'a> {
    fn new(
        service: &'a ServiceName,
        colour: Colour,
        name: &'a RoleName,
        role: Option<&'a ServiceRole>,
    ) -> Self {
        let set = role.and_then(|role| role.availability_set.as_deref());
        Self {
            service,
            colour,
            within: set.map_or(Within::Role(name), Within::Set),
        }
    }

    /// As placement knows it.
    fn name(&self) -> Group {
        let (service, prefix) = (self.service, self.colour.prefix());
        Group(match self.within {
            Within::Set(set) => format!("{service}/{prefix}/set/{set}"),
            Within::Role(name) => format!("{service}/{prefix}/role/{name}"),
        })
    }
}

/// What an instance is spread with.
pub(super) fn group_of<'a>(
    record: &'a InstanceRecord,
    role: Option<&'a ServiceRole>,
) -> GroupOf<'a> {
    GroupOf::new(&record.service, record.colour, &record.role, role)
}

/// All instances of these services, as placement sees them.
#[must_use]
pub fn instances<'a>(
    records: impl Iterator<Item = &'a InstanceRecord>,
    services: &[ServiceRecord],
) -> Vec<Instance> {
    let services: BTreeMap<_, _> = services.iter().map(|one| (&one.name, one)).collect();
    let role = |record: &'a InstanceRecord| services.get(&record.service)?.role_of(record);
    records
        .map(|record| instance(record, role(record)))
        .collect()
}

fn needs(spec: &InstanceSpec) -> Needs {
    Needs {
        resources: Resources {
            disk_bytes: spec.image.disk_bytes(),
            ..Resources::of(spec.size)
        },
        own: spec.resources.clone(),
        template: Some(Template {
            image: spec.image.digest.clone(),
            vcpus: spec.size.vcpus,
            memory_bytes: spec.size.memory_bytes,
        }),
        labels: spec.nodes.labels.clone(),
        architecture: spec.image.architecture,
        kvm: spec.nodes.kvm,
        avoid: BTreeSet::new(),
    }
}

/// All nodes, as the facts have them.
#[must_use]
pub fn nodes(input: &Input) -> Vec<Node> {
    let node = |record: &NodeRecord| match input.facts.get(&record.node_id) {
        Some(facts) => node(record, facts.connected, Arc::clone(&facts.stock)),
        None => node(record, false, Arc::default()),
    };
    input.nodes.iter().map(node).collect()
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
    let before = input.instances.iter().map(|one| (&one.id, one));
    let before: BTreeMap<_, _> = before.collect();
    let asked = self::instances(instances.values(), &input.services);
    for Decision { instance, outcome } in placement::place(policy, &nodes(input), &asked) {
        let Some(record) = instances.get(&instance) else {
            continue;
        };
        let mut record = record.clone();
        match outcome {
            Ok(placed) => {
                let mut message = format!("placed on node {}", placed.node);
                if record.given_up.by.as_ref() == Some(&placed.node) {
                    message = format!("{message}, which has given it up: no other takes it");
                }
                if let Some(relaxed) = placed.relaxed {
                    message = format!("{message}, not spread: {relaxed}");
                }
                plan.tell(now, Reason::InstancePlaced, &instance, message);
                say_why_homeless(before.get(&instance).copied(), &record, plan);
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
                    say_why_homeless(before.get(&instance).copied(), &record, plan);
                }
                record.unplaceable = why;
            }
        }
        plan.put.insert(instance, record);
    }
}

/// Why it has no node: what it was before this plan tells.
fn say_why_homeless(before: Option<&InstanceRecord>, record: &InstanceRecord, plan: &mut Plan) {
    let reason = match before {
        Some(before) if before.was_given_up() => Reason::InstanceGivenUp,
        Some(before) if before.phase == Phase::Moving => Reason::InstanceMoving,
        Some(before) if before.node.is_some() => Reason::InstanceFailedOver,
        Some(before) if !before.unplaceable.is_empty() => Reason::InstanceUnplaceable,
        Some(_) => return,
        None => {
            let applied = Reason::ServiceApplied;
            return plan.because(applied, SubjectKind::Service, &record.service);
        }
    };
    plan.because(reason, SubjectKind::Instance, &record.id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{
            architecture::Architecture,
            instance::tests::{record, spec},
        },
        reconcile::tests::node_record,
    };

    #[test]
    fn an_image_goes_where_its_processors_are() {
        let mut arm = node_record("n1");
        arm.inventory.architecture = Architecture::Aarch64;
        let nodes = [arm, node_record("n2")].map(|one| node(&one, true, Arc::default()));
        for (architecture, expected) in
            [(Architecture::Aarch64, "n1"), (Architecture::X86_64, "n2")]
        {
            let mut asked = record("n1");
            asked.node = None;
            asked.spec.image.architecture = architecture;
            let placed = placement::place(Policy::default(), &nodes, &[instance(&asked, None)]);
            let placed = placed[0]
                .outcome
                .as_ref()
                .map(|placed| placed.node.as_str());
            assert_eq!(placed.ok(), Some(expected));
        }
    }

    #[test]
    fn a_disk_has_room_for_all_that_it_can_become() {
        let mut node = node_record("n1");
        node.inventory.disk_bytes = 100;
        let mut asked = [record("n1"), record("n1")];
        for (number, one) in asked.iter_mut().enumerate() {
            one.id = format!("shop-web-{number}").parse().unwrap();
            (one.spec.image.size_bytes, one.spec.image.virtual_bytes) = (1, 60);
            one.node = None;
        }
        let asked = asked.map(|one| instance(&one, None));
        let node = self::node(&node, true, Arc::default());
        let placed = placement::place(Policy::default(), &[node], &asked);
        let placed = placed.iter().filter(|one| one.outcome.is_ok());
        assert_eq!(placed.count(), 1);

        // A record of before there was a note of it.
        let mut old = spec().image;
        old.virtual_bytes = 0;
        assert_eq!(old.disk_bytes(), old.size_bytes);
    }
}
