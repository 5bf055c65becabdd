//! Which nodes are held for coming and going, and which are let go.
//!
//! Pure. How unsteady a node is, is counted where it is noticed (see
//! [`steadiness`](crate::model::steadiness)). Of the nodes that are heard no more than a
//! third are held, the least steady first, and never all: where there are too few others,
//! an unsteady node is better than none. What runs on a node that is held is left alone.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use fabric_proto::id::NodeId;

use super::plan::Plan;
use crate::model::{
    event::{Reason, SubjectKind},
    node::NodeRecord,
    steadiness::Steadiness,
    time::WallTime,
};

/// How many of so many nodes may be held.
const fn most(nodes: usize) -> usize {
    let share = nodes / 3;
    let at_least_one = if share == 0 { 1 } else { share };
    let others = nodes.saturating_sub(1);
    if at_least_one < others {
        at_least_one
    } else {
        others
    }
}

/// Holds and lets go.
#[must_use]
pub fn judge(nodes: &[NodeRecord], now: WallTime) -> Plan {
    let mut plan = Plan::default();
    let heard: Vec<_> = nodes.iter().filter(|node| !node.lost).collect();
    let mut due: Vec<_> = heard
        .iter()
        .filter(|node| node.steadiness.is_due(now))
        .collect();
    due.sort_by_key(|node| (Reverse(node.steadiness.points(now)), &node.node_id));
    let held: BTreeSet<&NodeId> = due
        .iter()
        .take(most(heard.len()))
        .map(|node| &node.node_id)
        .collect();
    // One that is not heard has nothing placed on it anyway, and is judged when it is.
    for node in heard {
        let mut steadiness = node.steadiness.by(now);
        steadiness.held = held.contains(&node.node_id);
        if steadiness.held != node.steadiness.held {
            tell(node, &steadiness, now, &mut plan);
        }
        if steadiness != node.steadiness {
            let record = NodeRecord {
                steadiness,
                ..node.clone()
            };
            plan.nodes.insert(node.node_id.clone(), record);
        }
    }
    plan
}

fn tell(node: &NodeRecord, then: &Steadiness, now: WallTime, plan: &mut Plan) {
    let id = &node.node_id;
    let Some(until) = then.held_until() else {
        let message = match then.is_due(now) {
            true => "there are too few others: it can have new instances",
            false => "it has been there steadily: it can have new instances",
        };
        return plan.tell_of_node(now, Reason::NodeSteady, id, message.to_owned());
    };
    let minutes = until.since(now).as_secs().div_ceil(60);
    let hold = humantime::format_duration(Duration::from_secs(minutes * 60));
    let message = format!(
        "it has come and gone too often lately: nothing new is placed on it until it has been \
         there steadily for {hold}; what it has runs on"
    );
    plan.tell_of_node(now, Reason::NodeUnsteady, id, message);
    plan.because(Reason::NodeConnected, SubjectKind::Node, id);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reconcile::tests::node_record;

    fn at(seconds: u64) -> WallTime {
        WallTime::EPOCH.after(Duration::from_secs(seconds))
    }

    /// Nodes that were lost so often.
    fn nodes(losses: &[u32]) -> Vec<NodeRecord> {
        let numbered = losses.iter().enumerate();
        numbered
            .map(|(number, losses)| {
                let mut node = node_record(&format!("n{number}"));
                for _ in 0..*losses {
                    node.steadiness = node.steadiness.lost(at(0));
                }
                node
            })
            .collect()
    }

    fn write(nodes: &mut [NodeRecord], plan: &Plan) {
        for node in nodes {
            if let Some(changed) = plan.nodes.get(&node.node_id) {
                *node = changed.clone();
            }
        }
    }

    fn held(nodes: &[NodeRecord]) -> Vec<&str> {
        let held = nodes.iter().filter(|node| node.steadiness.held);
        held.map(|node| node.node_id.as_str()).collect()
    }

    #[test]
    fn one_that_flaps_is_held_and_let_go_once() {
        let mut nodes = nodes(&[3, 1, 0]);
        let plan = judge(&nodes, at(1));
        assert_eq!(plan.events[0].reason, "NodeUnsteady");
        assert!(plan.events[0].message.contains("steadily for 30m"));
        write(&mut nodes, &plan);
        assert_eq!(held(&nodes), ["n0"]);
        assert!(!nodes[0].is_open());
        for then in [2, 900, 1700] {
            assert!(judge(&nodes, at(then)).is_empty());
        }
        let plan = judge(&nodes, at(1900));
        assert_eq!(plan.events[0].reason, "NodeSteady");
        write(&mut nodes, &plan);
        assert!(held(&nodes).is_empty());
        assert!(judge(&nodes, at(1901)).is_empty());
    }

    #[test]
    fn the_only_node_that_is_heard_is_used_whatever_it_did() {
        assert!(judge(&nodes(&[9]), at(1)).is_empty());
        let mut two = nodes(&[9, 0]);
        let plan = judge(&two, at(1));
        write(&mut two, &plan);
        assert_eq!(held(&two), ["n0"]);
        two[1].lost = true;
        let plan = judge(&two, at(2));
        assert!(plan.events[0].message.contains("too few others"));
        write(&mut two, &plan);
        assert!(held(&two).is_empty());
        assert!(judge(&two, at(3)).is_empty());
    }

    #[test]
    fn a_clock_that_was_ahead_holds_nothing_for_ever() {
        let mut nodes = nodes(&[0, 0, 0]);
        for _ in 0..3 {
            nodes[0].steadiness = nodes[0].steadiness.lost(at(1_000_000));
        }
        let plan = judge(&nodes, at(1));
        write(&mut nodes, &plan);
        assert_eq!(held(&nodes), ["n0"]);
        let plan = judge(&nodes, at(3700));
        write(&mut nodes, &plan);
        assert!(held(&nodes).is_empty());
    }

    proptest! {
        #[test]
        fn never_more_than_a_third_nor_all_are_held_and_it_comes_to_rest(
            losses in proptest::collection::vec(0_u32..9, 1..30),
            lost in proptest::collection::vec(any::<bool>(), 30),
        ) {
            let mut nodes = nodes(&losses);
            for (node, lost) in nodes.iter_mut().zip(lost) {
                node.lost = lost;
            }
            let plan = judge(&nodes, at(1));
            write(&mut nodes, &plan);
            let heard = nodes.iter().filter(|node| !node.lost).count();
            prop_assert!(held(&nodes).len() <= (heard / 3).max(1));
            prop_assert!(heard == 0 || held(&nodes).len() < heard);
            prop_assert!(judge(&nodes, at(1)).is_empty());
        }
    }
}
