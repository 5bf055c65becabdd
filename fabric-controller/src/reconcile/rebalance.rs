//! Spreads that are mended, as after a failover when the lost nodes are back.
//!
//! Pure. What [`placement`](crate::placement::rebalance) proposes for the sake of fault
//! domains is carried out a little at a time, and only where nothing else is going on: two
//! instances at once in all, and one of a role of which everything is well. Nothing moves
//! while a node is drained, and nothing of a service that is updated; nor does what was
//! placed or changed just now, or has snapshots, which would stay behind. A move goes as
//! when a node is drained.

use std::{collections::BTreeSet, time::Duration};

use fabric_proto::id::{RoleName, ServiceName};

use super::{
    placing,
    plan::{Input, Plan},
    rollout::HealthOf,
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
    let mut plan = Plan::default();
    let on_their_way = |one: &&InstanceRecord| one.phase != Phase::Wanted || one.node.is_none();
    let busy = input.instances.iter().filter(on_their_way).count();
    let is_draining = input.nodes.iter().any(|node| node.draining);
    if busy >= MOST || is_draining || !is_any_settled(input, now) {
        return plan;
    }
    let asked = placing::instances(input.instances.iter(), &input.services);
    let mut roles = BTreeSet::new();
    for found in rebalance(policy, &placing::nodes(input), &asked, PROPOSED) {
        let mut instances = input.instances.iter();
        let Some(one) = instances.find(|one| one.id == found.instance) else {
            continue;
        };
        let may_move = is_settled(one, now)
            && one.keep.snapshots.is_empty()
            && !is_being_updated(input, one)
            && is_all_well(input, role_of(one), health);
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

fn role_of(one: &InstanceRecord) -> RoleOf<'_> {
    (&one.service, one.colour, &one.role)
}

fn is_settled(one: &InstanceRecord, now: WallTime) -> bool {
    now.since(one.changed.max(one.updated)) >= SETTLED
}

/// Whether it is worth to look: a look takes all nodes and instances.
fn is_any_settled(input: &Input, now: WallTime) -> bool {
    input.instances.iter().any(|one| is_settled(one, now))
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
    use super::*;
    use crate::{
        model::{
            instance::tests::{record, spec},
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
}
