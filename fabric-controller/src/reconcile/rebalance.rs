//! Spreads that are mended, as after a failover when the lost nodes are back.
//!
//! Pure. What [`placement`](crate::placement::rebalance) proposes for the sake of fault
//! domains is carried out a little at a time, and only where nothing else is going on: two
//! instances at once in all, and one of a role of which everything is well. Nothing moves
//! while a node is drained, and nothing of a service that is updated; nor does what was
//! placed or changed just now, or has snapshots, which would stay behind. A move goes as
//! when a node is drained. Placement is asked only where [`uneven`] finds something.

use std::{collections::BTreeSet, time::Duration};

use fabric_proto::id::{RoleName, ServiceName};

use super::{
    placing,
    plan::{Input, Plan},
    rollout::HealthOf,
    uneven,
    update_walk::Health,
};
use crate::{
    model::{
        deployment::Colour,
        event::Reason,
        instance::{InstanceRecord, Phase},
        time::WallTime,
    },
    placement::{Policy, rebalance::rebalance},
};

/// Most instances that are on their way at once.
const MOST: usize = 2;
/// Most moves that are looked through for some that can be made now.
const PROPOSED: usize = 16;
/// For so long an instance has been what and where it is before it is moved.
const SETTLED: Duration = Duration::from_secs(5 * 60);

/// A role, in one deployment.
type RoleOf<'a> = (&'a ServiceName, Colour, &'a RoleName);

/// What is moved now.
#[must_use]
pub fn step(policy: Policy, input: &Input, health: &HealthOf<'_>, now: WallTime) -> Plan {
    let is_draining = input.nodes.iter().any(|node| node.draining);
    let may_move = |one: &InstanceRecord| may_move(input, one, now);
    if busy(input) >= MOST || is_draining || !uneven::is_any(input, may_move) {
        return Plan::default();
    }
    mend(policy, input, health, now)
}

/// The first moves of those that placement proposes.
fn mend(policy: Policy, input: &Input, health: &HealthOf<'_>, now: WallTime) -> Plan {
    let mut plan = Plan::default();
    let busy = busy(input);
    let asked = placing::instances(input.instances.iter(), &input.services);
    let mut roles = BTreeSet::new();
    for found in rebalance(policy, &placing::nodes(input), &asked, PROPOSED) {
        let mut instances = input.instances.iter();
        let Some(one) = instances.find(|one| one.id == found.instance) else {
            continue;
        };
        let may_move = may_move(input, one, now) && is_all_well(input, role_of(one), health);
        if !may_move || !roles.insert(role_of(one)) {
            continue;
        }
        let message = format!("{found}: started there");
        plan.start_elsewhere(now, Reason::InstanceMoving, one.clone(), message);
        if busy + plan.put.len() >= MOST {
            break;
        }
    }
    plan
}

/// How many instances are on their way.
fn busy(input: &Input) -> usize {
    let on_their_way = |one: &&InstanceRecord| one.phase != Phase::Wanted || one.node.is_none();
    input.instances.iter().filter(on_their_way).count()
}

/// Whether an instance may be moved, if all of its role is well.
fn may_move(input: &Input, one: &InstanceRecord, now: WallTime) -> bool {
    is_settled(one, now) && one.keep.snapshots.is_empty() && !is_being_updated(input, one)
}

fn role_of(one: &InstanceRecord) -> RoleOf<'_> {
    (&one.service, one.colour, &one.role)
}

fn is_settled(one: &InstanceRecord, now: WallTime) -> bool {
    now.since(one.changed.max(one.updated)) >= SETTLED
}

fn is_being_updated(input: &Input, one: &InstanceRecord) -> bool {
    let deployment = input.deployment_of(one);
    deployment.is_none_or(|deployment| deployment.under_way().is_some())
}

/// Whether nobody would notice if one of the role were down.
fn is_all_well(input: &Input, role: RoleOf<'_>, health: &HealthOf<'_>) -> bool {
    let mut of_role = input.instances.iter().filter(|one| role_of(one) == role);
    of_role.all(|one| one.phase == Phase::Wanted && health(one) == Health::Ready)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::{
            instance::tests::{record, spec},
            keep::Keep,
            service::{ServiceRole, tests::service},
        },
        reconcile::{plan::NodeFacts, tests::node_record},
    };

    const LATER: WallTime = WallTime::from_micros(600_000_000);

    fn ready(_: &InstanceRecord) -> Health {
        Health::Ready
    }

    /// Two roles of two instances, all of them on the first of two nodes.
    fn uneven() -> Input {
        let nodes = ["n1", "n2"].map(node_record);
        let facts = nodes.iter().map(|node| {
            let facts = NodeFacts {
                connected: true,
                ..NodeFacts::default()
            };
            (node.node_id.clone(), facts)
        });
        let roles = ["web", "api", "job"].map(|name| {
            let mut role = ServiceRole::of(spec(), 2);
            role.spec.role.name = name.parse().unwrap();
            role
        });
        let of = |role: &ServiceRole| {
            let name = role.name().clone();
            [0, 1].map(|number| InstanceRecord {
                id: format!("shop-{name}-{number}").parse().unwrap(),
                role: name.clone(),
                number,
                ..record("n1")
            })
        };
        Input {
            instances: roles.iter().flat_map(of).collect(),
            services: vec![service("shop", roles.to_vec())],
            facts: facts.collect(),
            nodes: nodes.to_vec(),
            ..Input::default()
        }
    }

    fn moved(input: &Input, health: &HealthOf<'_>, now: WallTime) -> Vec<String> {
        let plan = step(Policy::default(), input, health, now);
        plan.put.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_few_move_at_once_and_one_of_a_role() {
        let mut input = uneven();
        let plan = step(Policy::default(), &input, &ready, LATER);
        let first = moved(&input, &ready, LATER);
        assert_eq!(first.len(), MOST, "{first:?}");
        let roles: BTreeSet<_> = plan.put.values().map(|one| &one.role).collect();
        assert_eq!(roles.len(), MOST);
        let said = &plan.events[0].message;
        assert!(said.starts_with("fault domain n1 has 2 of"), "{said}");
        for one in &mut input.instances {
            if let Some(moving) = plan.put.get(&one.id) {
                *one = moving.clone();
            }
        }
        assert!(moved(&input, &ready, LATER).is_empty());
    }

    #[test]
    fn nothing_moves_while_something_else_goes_on() {
        let down = |one: &InstanceRecord| match one.number {
            0 => Health::Ready,
            _ => Health::Down("Starting".to_owned()),
        };
        assert!(moved(&uneven(), &down, LATER).is_empty());
        let just_now = WallTime::from_micros(1_000_000);
        assert!(moved(&uneven(), &ready, just_now).is_empty());
        let mut draining = uneven();
        draining.nodes[1].draining = true;
        assert!(moved(&draining, &ready, LATER).is_empty());
        let mut nowhere = uneven();
        nowhere.nodes[1].cordoned = true;
        assert!(moved(&nowhere, &ready, LATER).is_empty());
        let mut gone = uneven();
        gone.services.clear();
        assert!(moved(&gone, &ready, LATER).is_empty());
    }

    const ROLES: [&str; 3] = ["web", "api", "job"];

    /// Nodes of all kinds in some racks, some of which cannot be used; and roles, two of
    /// which may be a set and each of which may want other nodes, whose instances are
    /// anywhere, of whichever kind they are.
    fn clusters() -> impl Strategy<Value = Input> {
        let node = (0..5, any::<bool>(), 0_u8..8, prop::bool::weighted(0.9));
        let nodes = prop::collection::vec(node, 1..9);
        let kind = (any::<bool>(), 1_u32..5);
        let roles = prop::collection::vec(kind, ROLES.len());
        let instance = (
            0..ROLES.len(),
            0_usize..9,
            0_u8..8,
            prop::bool::weighted(0.6),
        );
        let instances = prop::collection::vec(instance, 0..30);
        let parts = (nodes, roles, any::<bool>(), instances);
        parts.prop_map(|(nodes, kinds, is_a_set, all)| {
            let label = || [("disk".to_owned(), "nvme".to_owned())].into();
            let mut input = Input::default();
            for (number, (rack, labelled, how, connected)) in (0..).zip(nodes) {
                let mut node = node_record(&format!("n{number}"));
                node.fault_domain = Some(format!("r{rack}"));
                if labelled {
                    node.labels = label();
                }
                (node.cordoned, node.condemned, node.lost) = (how == 0, how == 1, how == 2);
                let facts = NodeFacts {
                    connected,
                    ..NodeFacts::default()
                };
                input.facts.insert(node.node_id.clone(), facts);
                input.nodes.push(node);
            }
            let roles = ROLES.iter().zip(kinds);
            let roles = roles.map(|(name, (labelled, vcpus))| {
                let mut role = ServiceRole::of(spec(), 30);
                role.spec.role.name = name.parse().unwrap();
                role.spec.size.vcpus = vcpus;
                if labelled {
                    role.spec.nodes.labels = label();
                }
                role.availability_set = (is_a_set && *name != "job").then(|| "s".to_owned());
                role
            });
            let roles: Vec<_> = roles.collect();
            for (number, (role, node, how, is_old)) in (0..).zip(all) {
                let mut one = InstanceRecord {
                    id: format!("shop-{}-{number}", ROLES[role]).parse().unwrap(),
                    role: ROLES[role].parse().unwrap(),
                    number,
                    spec: roles[role].spec.clone(),
                    ..record(&format!("n{node}"))
                };
                one.changed = if is_old { WallTime::EPOCH } else { LATER };
                match how {
                    0 => one.given_up.by = Some("n0".parse().unwrap()),
                    1 => one.keep = Keep::default().with("early".parse().unwrap()).unwrap(),
                    2 if number == 0 => one.phase = Phase::Moving,
                    _ => {}
                }
                input.instances.push(one);
            }
            input.services = vec![service("shop", roles)];
            input
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn the_quick_look_changes_no_decision(input in clusters()) {
            let step = step(Policy::default(), &input, &ready, LATER);
            prop_assert_eq!(step, mend(Policy::default(), &input, &ready, LATER));
        }
    }
}
