//! The ladder's last step: another node.
//!
//! Pure. What its node has given up, after it has restarted the role, the virtual
//! machine and the disk, is started on another, so often in a while and only where there
//! is a place; beyond that it stays where it is, and its node tries again now and then.
//! While an update walks over it, that decides: a version that does not work would fail
//! anywhere.

use std::{collections::BTreeSet, time::Duration};

use fabric_proto::id::{InstanceId, NodeId};

use super::{
    placing,
    plan::{Input, Plan},
    rollout::HealthOf,
    update_walk::Health,
};
use crate::{
    model::{
        event::Reason,
        instance::{GivenUp, InstanceRecord, Phase},
        time::WallTime,
    },
    placement::{self, Policy},
};

/// So many moves of one instance ...
const MOST: usize = 2;
/// ... in such a while.
const WINDOW: Duration = Duration::from_secs(60 * 60);

/// What is moved now.
#[must_use]
pub fn step(policy: Policy, input: &Input, health: &HealthOf<'_>, now: WallTime) -> Plan {
    let mut plan = Plan::default();
    for one in &input.instances {
        let (Some(node), Phase::Wanted, Health::Failed(why)) = (&one.node, one.phase, health(one))
        else {
            continue;
        };
        let Some(given_up) = another(&one.given_up, node, now) else {
            continue;
        };
        if is_being_updated(input, one) || !has_a_place(policy, input, &one.id, node) {
            continue;
        }
        let number = given_up.moved.len();
        let message = format!(
            "node {node} has given it up ({why}): started on another, move {number} of {MOST} in \
             {}",
            humantime::format_duration(WINDOW)
        );
        let record = InstanceRecord {
            given_up,
            ..one.clone()
        };
        plan.start_elsewhere(now, Reason::InstanceGivenUp, record, message);
    }
    plan
}

/// The same with one move more, if there may be one.
fn another(before: &GivenUp, node: &NodeId, now: WallTime) -> Option<GivenUp> {
    let recent = |at: &&WallTime| now.since(**at) < WINDOW;
    let mut moved: Vec<_> = before.moved.iter().filter(recent).copied().collect();
    if moved.len() >= MOST {
        return None;
    }
    moved.push(now);
    Some(GivenUp {
        by: Some(node.clone()),
        moved,
    })
}

fn is_being_updated(input: &Input, one: &InstanceRecord) -> bool {
    let deployment = input.deployment_of(one);
    deployment.is_some_and(|deployment| deployment.under_way().is_some())
}

/// Whether it would find another node than that.
fn has_a_place(policy: Policy, input: &Input, id: &InstanceId, but: &NodeId) -> bool {
    let mut asked = placing::instances(input.instances.iter(), &input.services);
    if let Some(one) = asked.iter_mut().find(|one| one.id == *id) {
        one.node = None;
        one.needs.avoid = BTreeSet::from([but.clone()]);
    }
    placement::place(policy, &placing::nodes(input), &asked)
        .into_iter()
        .any(|decision| {
            let elsewhere = decision.outcome.is_ok_and(|placed| placed.node != *but);
            decision.instance == *id && elsewhere
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::instance::tests::record,
        reconcile::{plan::NodeFacts, tests::node_record},
    };

    fn cluster() -> Input {
        let nodes = ["n1", "n2"].map(node_record);
        let facts = nodes.iter().map(|node| {
            let facts = NodeFacts {
                connected: true,
                ..NodeFacts::default()
            };
            (node.node_id.clone(), facts)
        });
        Input {
            facts: facts.collect(),
            instances: vec![record("n1")],
            nodes: nodes.to_vec(),
            ..Input::default()
        }
    }

    fn failed(_: &InstanceRecord) -> Health {
        Health::Failed("it keeps failing".to_owned())
    }

    #[test]
    fn what_its_node_has_given_up_goes_elsewhere_and_not_for_ever() {
        let mut input = cluster();
        let policy = Policy::default();
        let at = |seconds| WallTime::EPOCH.after(Duration::from_secs(seconds));
        for second in [0, 1] {
            let mut plan = step(policy, &input, &failed, at(second));
            let moved = plan.put.pop_first().unwrap().1;
            assert_eq!(moved.phase, Phase::Moving);
            assert_eq!(moved.given_up.by, moved.node);
            assert!(plan.events[0].message.contains("has given it up"));
            input.instances = vec![InstanceRecord {
                phase: Phase::Wanted,
                ..moved
            }];
        }
        assert!(step(policy, &input, &failed, at(2)).is_empty());
        let later = at(WINDOW.as_secs());
        assert!(!step(policy, &input, &failed, later).is_empty());
    }

    #[test]
    fn what_is_well_or_has_nowhere_to_go_stays() {
        let policy = Policy::default();
        let mut input = cluster();
        let ready = |_: &InstanceRecord| Health::Ready;
        assert!(step(policy, &input, &ready, WallTime::EPOCH).is_empty());
        input.nodes.truncate(1);
        assert!(step(policy, &input, &failed, WallTime::EPOCH).is_empty());
    }
}
