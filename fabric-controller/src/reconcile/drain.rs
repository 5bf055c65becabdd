//! Draining: what a node has is started on others, as far as nobody notices.
//!
//! Pure. Of each role at most one upgrade domain is moved at a time, and only while
//! everything of it in other domains is well, as a rolling update would have it; what
//! is known to be down, or paused or stopped, may go at once. Nothing is taken from where it is
//! unless there is a place for it elsewhere. What is moved is *moving*
//! ([`Phase::Moving`]) until its node says that it is gone; then it is placed anew like
//! any other.

use std::collections::{BTreeMap, BTreeSet};

use fabric_proto::id::NodeId;

use super::{
    placing,
    plan::{Input, Plan},
    rollout::HealthOf,
    update_walk::Health,
};
use crate::{
    model::{
        event::{Reason, SubjectKind},
        instance::{InstanceRecord, Phase},
        service::ServiceRecord,
        time::WallTime,
        update,
    },
    placement::{self, Policy},
};

/// What draining moves now.
#[must_use]
pub fn step(policy: Policy, input: &Input, health: &HealthOf<'_>, now: WallTime) -> Plan {
    let mut plan = Plan::default();
    let draining = input.nodes.iter().filter(|node| node.draining);
    let draining: BTreeSet<_> = draining.map(|node| &node.node_id).collect();
    if draining.is_empty() {
        return plan;
    }
    let mut roles: BTreeMap<_, Vec<&InstanceRecord>> = BTreeMap::new();
    for one in &input.instances {
        let role = (&one.service, one.colour, &one.role);
        roles.entry(role).or_default().push(one);
    }
    for instances in roles.into_values() {
        let service = input
            .services
            .iter()
            .find(|one| one.name == instances[0].service);
        let taken = take(&instances, service, &draining, health);
        for one in with_a_place(policy, input, taken) {
            let node = one.node.as_ref().map_or("", NodeId::as_str);
            let message = format!("node {node} is being drained: started on another");
            plan.start_elsewhere(now, Reason::InstanceMoving, one.clone(), message);
            plan.because(Reason::NodeDraining, SubjectKind::Node, node);
        }
    }
    plan
}

/// Those of one role that may go now.
fn take<'a>(
    instances: &[&'a InstanceRecord],
    service: Option<&ServiceRecord>,
    draining: &BTreeSet<&NodeId>,
    health: &HealthOf<'_>,
) -> Vec<&'a InstanceRecord> {
    let role = |one: &InstanceRecord| service.and_then(|service| service.role_of(one));
    let domain = |one: &InstanceRecord| match role(one) {
        Some(role) => role.upgrade_domain(one.number),
        None => one.number % update::UPGRADE_DOMAINS,
    };
    // One that goes and is wanted all the same comes anew: an update replaces it.
    let is_to_be = |one: &InstanceRecord| {
        one.phase != Phase::Removing || role(one).is_some_and(|role| one.number < role.instances)
    };
    let leaves = |one: &&&InstanceRecord| {
        let here = one
            .node
            .as_ref()
            .is_some_and(|node| draining.contains(node));
        here && one.phase == Phase::Wanted
    };
    let is_well =
        |one: &InstanceRecord| one.phase == Phase::Wanted && matches!(health(one), Health::Ready);
    // Of what nothing can be said, as right after its node was told something else, it is
    // not known that nobody would notice.
    let is_useless = |one: &InstanceRecord| {
        one.keep.is_held() || matches!(health(one), Health::Down(_) | Health::Failed(_))
    };
    let down: BTreeSet<u32> = instances
        .iter()
        .filter(|one| is_to_be(one) && !is_well(one))
        .map(|one| domain(one))
        .collect();
    let leaving = || instances.iter().filter(leaves);
    // The domain that is down already, if it is one; else the first that has to go.
    let next = match down.len() {
        0 => leaving().map(|one| domain(one)).min(),
        1 => down.first().copied(),
        _ => None,
    };
    leaving()
        .filter(|one| Some(domain(one)) == next || is_useless(one))
        .copied()
        .collect()
}

/// Those of them that would find a node.
fn with_a_place<'a>(
    policy: Policy,
    input: &Input,
    taken: Vec<&'a InstanceRecord>,
) -> Vec<&'a InstanceRecord> {
    if taken.is_empty() {
        return taken;
    }
    let ids: BTreeSet<_> = taken.iter().map(|one| &one.id).collect();
    let mut asked = placing::instances(input.instances.iter(), &input.services);
    for one in &mut asked {
        if ids.contains(&one.id) {
            one.node = None;
        }
    }
    let decisions = placement::place(policy, &placing::nodes(input), &asked);
    let placed: BTreeSet<_> = decisions
        .into_iter()
        .filter(|one| one.outcome.is_ok())
        .map(|one| one.instance)
        .collect();
    taken
        .into_iter()
        .filter(|one| placed.contains(&one.id))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        instance::tests::{record, spec},
        service::{ServiceRole, tests::service},
    };

    /// Those that leave n1, of a role with one instance in each of three upgrade domains.
    fn leave(
        change: impl Fn(&mut InstanceRecord),
        health: impl Fn(u32) -> Health + Sync,
    ) -> Vec<u32> {
        let role = ServiceRole {
            upgrade_domains: 3,
            ..ServiceRole::of(spec(), 3)
        };
        let service = service("shop", vec![role]);
        let instances = [0, 1, 2].map(|number| {
            let mut one = record("n1");
            one.number = number;
            change(&mut one);
            one
        });
        let n1 = "n1".parse().unwrap();
        let instances: Vec<_> = instances.iter().collect();
        let health = |one: &InstanceRecord| health(one.number);
        let taken = take(&instances, Some(&service), &[&n1].into(), &health);
        taken.into_iter().map(|one| one.number).collect()
    }

    #[test]
    fn one_domain_leaves_at_a_time_and_what_is_known_to_be_down_at_once() {
        let leave = |health: fn(u32) -> Health| leave(|_| {}, health);
        assert_eq!(leave(|_| Health::Ready), [0]);
        let down = |number| match number {
            0 => Health::Ready,
            _ => Health::Down(String::new()),
        };
        assert_eq!(leave(down), [1, 2]);
        let unseen = |number| match number {
            0 => Health::Down(String::new()),
            _ => Health::Unseen(String::new()),
        };
        assert_eq!(leave(unseen), [0]);
    }

    #[test]
    fn an_instance_that_an_update_replaces_is_down() {
        let replaced = |one: &mut InstanceRecord| {
            if one.number == 2 {
                one.phase = Phase::Removing;
                one.node = Some("n2".parse().unwrap());
            }
        };
        assert!(leave(replaced, |_| Health::Ready).is_empty());
    }
}
