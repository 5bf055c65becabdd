//! Nodes that are to blame: told, and cordoned before more comes to harm.
//!
//! Pure. Who is to blame is in [`blame`]. What is blamed comes last
//! wherever something is placed; where [`CORDON`] unrelated services speak against a node,
//! the controller cordons it. That is another cordon than an operator's: it is lifted when
//! nothing is left against the node, or when an operator uncordons it. No more than a share
//! of the nodes is cordoned like this at once, as nothing can be so wrong with many.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use fabric_proto::id::NodeId;

use super::plan::{Input, Plan};
use crate::model::{
    blame::{self, Blame, CORDON, Failures},
    event::{Reason, SubjectKind},
    node::NodeRecord,
    time::WallTime,
};

/// Fewest nodes of which one may be cordoned.
const FEW: usize = 3;

/// How many of so many nodes may be cordoned for blame: that share, but one of a few.
fn most(nodes: usize, percent: u32) -> usize {
    let percent = usize::try_from(percent).unwrap_or(0);
    if nodes < FEW || percent == 0 {
        return 0;
    }
    (nodes * percent / 100).max(1)
}

/// Blames, cordons, and lifts that again. `percent` of the nodes may be cordoned at once.
#[must_use]
pub fn judge(
    input: &Input,
    failures: &BTreeMap<NodeId, Failures>,
    percent: u32,
    now: WallTime,
) -> Plan {
    let mut plan = Plan::default();
    let blamed = blame::blame(failures, &input.instances, now);
    let cordoned = cordoned(&input.nodes, &blamed, percent);
    for node in &input.nodes {
        let against = blamed.get(&node.node_id);
        let record = NodeRecord {
            blame: against.map_or(0, |blame| blame.count),
            blamed_for: against
                .map_or_else(Vec::new, |blame| blame.services.iter().cloned().collect()),
            condemned: cordoned.contains(&node.node_id),
            ..node.clone()
        };
        if record != *node {
            tell(node, &record, against, now, &mut plan);
            plan.nodes.insert(node.node_id.clone(), record);
        }
    }
    plan
}

/// The nodes that are cordoned for blame from here on: those that are already while
/// anything is left against them, then the worst.
fn cordoned(
    nodes: &[NodeRecord],
    blamed: &BTreeMap<NodeId, Blame>,
    percent: u32,
) -> BTreeSet<NodeId> {
    let blame = |node: &NodeRecord| blamed.get(&node.node_id).map_or(0, |blame| blame.count);
    let stays = |node: &&NodeRecord| node.condemned && blame(node) > 0;
    let due = |node: &&NodeRecord| !node.condemned && !node.cordoned && blame(node) >= CORDON;
    let staying = nodes.iter().filter(stays);
    let mut cordoned: BTreeSet<_> = staying.map(|node| node.node_id.clone()).collect();
    let mut worst: Vec<_> = nodes.iter().filter(due).collect();
    worst.sort_by_key(|node| (Reverse(blame(node)), &node.node_id));
    let there = nodes.iter().filter(|node| !node.lost).count();
    let room = most(there, percent).saturating_sub(cordoned.len());
    cordoned.extend(
        worst
            .into_iter()
            .take(room)
            .map(|node| node.node_id.clone()),
    );
    cordoned
}

fn tell(
    before: &NodeRecord,
    then: &NodeRecord,
    against: Option<&Blame>,
    now: WallTime,
    plan: &mut Plan,
) {
    let id = &before.node_id;
    let names: Vec<_> = then.blamed_for.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    if then.blame > before.blame
        && let Some(against) = against
    {
        let message = format!("unrelated services keep failing on it: {names}");
        plan.tell_of_node(now, Reason::NodeBlamed, id, message);
        plan.led_by(against.because.clone());
    }
    match (before.condemned, then.condemned) {
        (false, true) => {
            let message = format!(
                "{} unrelated services keep failing on it ({names}): nothing new is placed on it; \
                 `fabctl node uncordon {id}` if that is wrong, or mended",
                then.blame
            );
            plan.tell_of_node(now, Reason::NodeCondemned, id, message);
            plan.because(Reason::NodeBlamed, SubjectKind::Node, id);
        }
        (true, false) => {
            let message = "nothing speaks against it any more: it can have new instances";
            plan.tell_of_node(now, Reason::NodeCleared, id, message.to_owned());
        }
        (false, false) | (true, true) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::{
            event::EventRecord,
            instance::{InstanceRecord, tests::record},
        },
        reconcile::tests::node_record,
    };

    fn at(minutes: u64) -> WallTime {
        WallTime::EPOCH.after(Duration::from_secs(minutes * 60))
    }

    /// So many nodes with an instance of each of three services on each.
    fn cluster(nodes: usize) -> Input {
        let names = (1..=nodes).map(|number| format!("n{number}"));
        let nodes: Vec<_> = names.map(|name| node_record(&name)).collect();
        let on = |node: &NodeRecord| {
            let node = node.node_id.to_string();
            ["a", "b", "c"].map(|service| InstanceRecord {
                service: service.parse().unwrap(),
                ..record(&node)
            })
        };
        Input {
            instances: nodes.iter().flat_map(on).collect(),
            nodes,
            ..Input::default()
        }
    }

    /// All of these services fail again and again on these nodes.
    fn fail(input: &Input, services: &[&str], nodes: &[&str]) -> BTreeMap<NodeId, Failures> {
        let mut failures: BTreeMap<NodeId, Failures> = BTreeMap::new();
        for one in &input.instances {
            let node = one.node.clone().unwrap();
            let fails = services.contains(&one.service.as_str()) && nodes.contains(&node.as_str());
            for _ in 0..if fails { 4 } else { 0 } {
                let mut event = EventRecord::new(
                    at(0),
                    Reason::InstanceGivenUp,
                    SubjectKind::Instance,
                    &one.id,
                    "",
                );
                event.reason = "VmRestarting".to_owned();
                failures
                    .entry(node.clone())
                    .or_default()
                    .note(one, &event, at(0));
            }
        }
        failures
    }

    fn write(input: &mut Input, plan: &Plan) {
        for node in &mut input.nodes {
            if let Some(changed) = plan.nodes.get(&node.node_id) {
                *node = changed.clone();
            }
        }
    }

    fn condemned(input: &Input) -> Vec<&str> {
        let condemned = input.nodes.iter().filter(|node| node.condemned);
        condemned.map(|node| node.node_id.as_str()).collect()
    }

    fn reasons(plan: &Plan) -> Vec<&str> {
        plan.events
            .iter()
            .map(|event| event.reason.as_str())
            .collect()
    }

    #[test]
    fn a_node_is_blamed_then_cordoned_and_cleared_when_it_is_over() {
        let mut input = cluster(4);
        let failures = fail(&input, &["a", "b"], &["n1"]);
        let plan = judge(&input, &failures, 10, at(1));
        assert_eq!(reasons(&plan), ["NodeBlamed"]);
        assert_eq!(
            plan.events[0].because.as_ref().unwrap().reason,
            "VmRestarting"
        );
        write(&mut input, &plan);
        assert_eq!((input.nodes[0].blame, input.nodes[0].is_open()), (2, true));

        let failures = fail(&input, &["a", "b", "c"], &["n1"]);
        let plan = judge(&input, &failures, 10, at(1));
        assert_eq!(reasons(&plan), ["NodeBlamed", "NodeCondemned"]);
        assert!(plan.events[1].message.contains("(a, b, c)"));
        write(&mut input, &plan);
        assert_eq!(condemned(&input), ["n1"]);
        assert!(!input.nodes[0].is_open() && !input.nodes[0].cordoned);
        assert!(judge(&input, &failures, 10, at(2)).is_empty());

        let plan = judge(&input, &failures, 10, at(60));
        assert_eq!(reasons(&plan), ["NodeCleared"]);
        write(&mut input, &plan);
        assert_eq!((input.nodes[0].blame, input.nodes[0].is_open()), (0, true));
        assert!(judge(&input, &failures, 10, at(61)).is_empty());
    }

    #[test]
    fn of_two_nodes_or_with_no_share_none_is_cordoned() {
        for (nodes, percent) in [(2, 10), (5, 0)] {
            let input = cluster(nodes);
            let failures = fail(&input, &["a", "b", "c"], &["n1"]);
            let plan = judge(&input, &failures, percent, at(1));
            assert!(!reasons(&plan).contains(&"NodeCondemned"));
        }
    }

    proptest! {
        #[test]
        fn no_more_than_a_share_is_cordoned_whatever_fails_and_it_comes_to_rest(
            nodes in 1_usize..40, percent in 0_u32..50,
            failing in proptest::collection::vec((0_usize..3, 0_usize..40), 0..60),
        ) {
            let mut input = cluster(nodes);
            let mut failures = BTreeMap::new();
            for (service, node) in failing {
                let node = format!("n{}", node + 1);
                let more = fail(&input, &[["a", "b", "c"][service]], &[&node]);
                failures.extend(more);
            }
            let plan = judge(&input, &failures, percent, at(1));
            write(&mut input, &plan);
            let share = nodes * percent as usize / 100;
            let few = usize::from(nodes >= FEW && percent > 0);
            prop_assert!(condemned(&input).len() <= share.max(few));
            prop_assert!(judge(&input, &failures, percent, at(1)).is_empty());
        }

        #[test]
        fn one_service_that_fails_everywhere_or_anywhere_blames_nobody(
            nodes in 1_usize..20, failing in proptest::collection::vec(0_usize..20, 0..20),
        ) {
            let input = cluster(nodes);
            let names: Vec<_> = failing.iter().map(|node| format!("n{}", node + 1)).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let failures = fail(&input, &["a"], &names);
            prop_assert!(judge(&input, &failures, 50, at(1)).is_empty());
        }
    }
}
