//! Whose instances are started elsewhere.
//!
//! Pure. A node that has been silent for long enough has killed what it ran (see
//! [`lease`](crate::model::lease)); it is *fenced*, and its instances are placed anew
//! under a new epoch. Where too many nodes are silent at once, it is taken for the
//! controller's own trouble, and nothing is moved until some are heard again.
//!
//! A node that is fenced does not count any more, neither as silent nor at all, until
//! it registers again: a second failure is not held up by the first.
//!
//! What an operator has stopped stays where it is, with its disk, while its node is
//! silent: nothing would run elsewhere either. It goes elsewhere when it is started, or its
//! node is removed; where it comes, it is stopped as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use fabric_proto::id::{InstanceId, NodeId};

use super::plan::{Input, Plan};
use crate::model::{
    event::{Reason, SubjectKind},
    instance::{InstanceRecord, Phase},
    lease::LeasePolicy,
    time::WallTime,
};

/// How a node is heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// Which.
    pub node: NodeId,
    /// For how long nothing was heard of it, counted from the controller's start at
    /// the earliest.
    pub silent: Duration,
    /// Whether it is fenced already.
    pub fenced: bool,
}

/// What follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The nodes to fence.
    pub fence: BTreeSet<NodeId>,
    /// Why none is fenced though some are due.
    pub held: Option<Held>,
}

/// Too many nodes are silent at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// So many.
    pub silent: usize,
    /// Of so many.
    pub of: usize,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { silent, of } = self;
        write!(
            f,
            "{silent} of {of} nodes are silent at once, which is taken for trouble of the \
             controller's own network: nothing is started elsewhere until some are heard again; \
             if they are gone for good, `fabctl node remove NODE` says so"
        )
    }
}

/// Decides who is fenced.
#[must_use]
pub fn decide(policy: &LeasePolicy, nodes: &[Silence]) -> Verdict {
    let counted: Vec<_> = nodes.iter().filter(|one| !one.fenced).collect();
    let silent = counted.iter().filter(|one| one.silent > policy.length);
    let due = counted
        .iter()
        .filter(|one| one.silent >= policy.replace_after());
    let due: BTreeSet<_> = due.map(|one| one.node.clone()).collect();
    let (silent, of) = (silent.count(), counted.len());
    if due.is_empty() || silent <= policy.most_silent(of) {
        return Verdict {
            fence: due,
            held: None,
        };
    }
    Verdict {
        fence: BTreeSet::new(),
        held: Some(Held { silent, of }),
    }
}

/// Takes what fenced nodes had off them: what is wanted is placed anew, the rest is
/// gone.
pub(super) fn take_off(
    input: &Input,
    instances: &mut BTreeMap<InstanceId, InstanceRecord>,
    now: WallTime,
    plan: &mut Plan,
) {
    for record in instances.values_mut() {
        let Some(node) = record
            .node
            .clone()
            .filter(|node| input.fenced.contains(node))
        else {
            continue;
        };
        if record.phase == Phase::Removing {
            // The plan sees that it is gone.
            continue;
        }
        let is_there = input.nodes.iter().any(|one| one.node_id == node);
        if record.phase == Phase::Wanted && record.keep.stopped && is_there {
            continue;
        }
        record.leave_node(input.next_epoch, now);
        plan.put.insert(record.id.clone(), record.clone());
        let message = format!(
            "node {node} is silent, and its lease has ended: started elsewhere, as epoch {}",
            record.epoch
        );
        plan.tell(now, Reason::InstanceFailedOver, &record.id, message);
        let reason = if is_there {
            Reason::NodeFenced
        } else {
            Reason::NodeRemoved
        };
        plan.because(reason, SubjectKind::Node, node);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn silences(seconds: &[u64]) -> Vec<Silence> {
        let nodes = seconds.iter().enumerate();
        nodes
            .map(|(index, seconds)| Silence {
                node: format!("n{index}").parse().unwrap(),
                silent: Duration::from_secs(*seconds),
                fenced: false,
            })
            .collect()
    }

    fn fenced(verdict: &Verdict) -> Vec<&str> {
        verdict.fence.iter().map(NodeId::as_str).collect()
    }

    #[test]
    fn one_silent_node_of_three_is_fenced_once_it_has_killed_what_it_ran() {
        let policy = LeasePolicy::default();
        assert_eq!(decide(&policy, &silences(&[14, 0, 1])), Verdict::default());
        assert_eq!(fenced(&decide(&policy, &silences(&[15, 0, 1]))), ["n0"]);
    }

    #[test]
    fn many_silent_nodes_are_the_controllers_own_trouble() {
        let policy = LeasePolicy::default();
        let verdict = decide(&policy, &silences(&[15, 11, 1]));
        assert_eq!(verdict.held, Some(Held { silent: 2, of: 3 }));
        assert!(verdict.fence.is_empty());
        let only = decide(&policy, &silences(&[100]));
        assert_eq!(only.held, Some(Held { silent: 1, of: 1 }));
    }

    #[test]
    fn how_many_are_many_is_the_operators_to_say() {
        let policy = LeasePolicy {
            silent_percent: 67,
            ..LeasePolicy::default()
        };
        let verdict = decide(&policy, &silences(&[15, 16, 1]));
        assert_eq!(fenced(&verdict), ["n0", "n1"]);
        let held = decide(&policy, &silences(&[15, 16, 17])).held;
        assert_eq!(held, Some(Held { silent: 3, of: 3 }));
    }

    #[test]
    fn a_second_failure_is_not_held_up_by_the_first() {
        let policy = LeasePolicy::default();
        let mut nodes = silences(&[1_000, 15, 1]);
        nodes[0].fenced = true;
        assert_eq!(fenced(&decide(&policy, &nodes)), ["n1"]);
    }

    proptest! {
        #[test]
        fn nobody_is_fenced_early_and_never_all_or_too_many_at_once(
            seconds in proptest::collection::vec(0_u64..30, 0..20),
        ) {
            let policy = LeasePolicy::default();
            let nodes = silences(&seconds);
            let verdict = decide(&policy, &nodes);
            for one in nodes.iter().filter(|one| verdict.fence.contains(&one.node)) {
                prop_assert!(one.silent >= policy.replace_after());
            }
            prop_assert!(verdict.fence.len() <= policy.most_silent(nodes.len()));
            let due = nodes.iter().any(|one| one.silent >= policy.replace_after());
            prop_assert_eq!(due, !verdict.fence.is_empty() || verdict.held.is_some());
        }
    }
}
