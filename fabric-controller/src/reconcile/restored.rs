//! Where the instances are, after a restore.
//!
//! Pure. A restored store is older than what the nodes do: since its backup an instance may
//! have been moved, and started anew under an epoch that is higher than the one on record. So
//! nothing is planned before each instance whose epoch is of a former [`life`] of the store has
//! been looked for:
//!
//! - Where a node says that its VMM runs, there it is, for it never runs twice.
//! - Of any other it is not sure until every node has said what it has, or has been silent for so
//!   long that it has ended what it ran. Then it is where it was started last, or where the
//!   record says if nobody knows it.
//!
//! It is kept there under a new epoch, which no node refuses, and what is counted with it goes
//! on from where its node is. A node is given no goal before it has said what it has; what it has
//! of those that are looked for, it keeps meanwhile, but does not start ([`Look::held_on`]).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use fabric_proto::{
    id::{InstanceId, NodeId},
    node::v1::InstanceStatus,
};

use super::plan::Plan;
use crate::{
    model::{
        event::Reason,
        instance::{InstanceRecord, Phase},
        time::WallTime,
    },
    registry::Report,
    store::{Revision, life},
};

/// What is known of the instances that are looked for.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// Their records.
    sought: BTreeMap<InstanceId, InstanceRecord>,
    /// What nodes say of them.
    said: BTreeMap<InstanceId, Vec<(NodeId, InstanceStatus)>>,
    /// The nodes that have said what they have.
    heard: BTreeSet<NodeId>,
    /// Whether one that has not may run any of them.
    pub misses: bool,
}

impl Look {
    /// The instances that were given their epochs before the store was restored.
    pub fn for_those_of_before<'a>(
        instances: impl Iterator<Item = &'a InstanceRecord>,
        revision: Revision,
    ) -> Self {
        let sought = instances.filter(|one| life(one.epoch) < life(revision));
        Self {
            sought: sought.map(|one| (one.id.clone(), one.clone())).collect(),
            ..Self::default()
        }
    }

    /// Whether nothing is looked for any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.sought.is_empty()
    }

    /// A node says what it has.
    pub fn hear(&mut self, node: &NodeId, report: &Report) {
        self.heard.insert(node.clone());
        for id in self.sought.keys() {
            if let Some(status) = report.instances.get(id) {
                let said = self.said.entry(id.clone()).or_default();
                said.push((node.clone(), status.clone()));
            }
        }
    }

    /// Whether it is known what a node has, and what runs there has been found.
    #[must_use]
    pub fn may_have_goal(&self, node: &NodeId) -> bool {
        let mut said = self.said.values().flatten();
        let runs = said.any(|(by, status)| by == node && status.vmm_pid != 0);
        self.is_over() || self.heard.contains(node) && !runs
    }

    /// Whether that instance is looked for.
    #[must_use]
    pub fn is_for(&self, id: &InstanceId) -> bool {
        self.sought.contains_key(id)
    }

    /// What a node has of those that are looked for, as it is to have it meanwhile: stopped,
    /// for it may run elsewhere.
    #[must_use]
    pub fn held_on(&self, node: &NodeId) -> Vec<InstanceRecord> {
        let held = self.sought.values().filter_map(|record| {
            let said = self.said.get(&record.id)?;
            let (_, status) = said.iter().find(|(by, _)| by == node)?;
            let mut held = InstanceRecord {
                node: Some(node.clone()),
                epoch: status.epoch,
                phase: Phase::Wanted,
                ..record.clone()
            };
            held.keep.stopped = true;
            Some(held)
        });
        held.collect()
    }

    /// Who has it, as far as is known now: a node and what that says, or nobody.
    fn found(&self, id: &InstanceId) -> Option<Option<&(NodeId, InstanceStatus)>> {
        let said = self.said.get(id).into_iter().flatten();
        let best = said.max_by_key(|(node, it)| (it.vmm_pid != 0, it.epoch, Reverse(node)));
        let is_sure = best.is_some_and(|(_, it)| it.vmm_pid != 0) || !self.misses;
        is_sure.then_some(best)
    }

    /// Keeps what was found where it is.
    #[must_use]
    pub fn find(&self, next_epoch: Revision, now: WallTime) -> Plan {
        let mut plan = Plan::default();
        for (id, record) in &self.sought {
            let Some(found) = self.found(id) else {
                continue;
            };
            let mut record = InstanceRecord {
                epoch: next_epoch,
                ..record.clone()
            };
            if let Some((node, status)) = found {
                settle(&mut record, node, status, now, &mut plan);
            }
            plan.put.insert(id.clone(), record);
        }
        plan
    }
}

/// It is on that node, which counts on from what it has counted.
fn settle(
    record: &mut InstanceRecord,
    node: &NodeId,
    status: &InstanceStatus,
    now: WallTime,
    plan: &mut Plan,
) {
    let restarts = [status.restart_generation, status.restored_generation];
    for counted in restarts {
        record.restart.generation = record.restart.generation.max(counted);
    }
    let snapshots = status.snapshots.iter().map(|one| one.generation).max();
    let keep = &mut record.keep;
    keep.snapshot_generation = keep.snapshot_generation.max(snapshots.unwrap_or(0));
    if record.node.as_ref() == Some(node) {
        return;
    }
    let before = match &record.node {
        Some(node) => format!("on node {node}"),
        None => "without a node".to_owned(),
    };
    let message = format!("found on node {node}; when the backup was made it was {before}");
    plan.tell(now, Reason::InstanceFound, &record.id, message);
    if record.phase == Phase::Moving {
        record.phase = Phase::Wanted;
    }
    record.keep = record.keep.elsewhere();
    record.node = Some(node.clone());
    record.unplaceable = String::new();
    record.changed = now;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::instance::tests::record, store::LIFE};

    const NOW: WallTime = WallTime::from_micros(7);

    /// What a store that was restored would give next.
    const NEXT: Revision = LIFE + 5;

    /// Such a store, with an instance on `n1` by its record.
    fn look(misses: bool) -> Look {
        Look {
            misses,
            ..Look::for_those_of_before([&record("n1")].into_iter(), NEXT)
        }
    }

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn report(epoch: u64, vmm_pid: u32) -> Report {
        let record = record("n1");
        let status = InstanceStatus {
            instance_id: record.id.to_string(),
            epoch,
            vmm_pid,
            restart_generation: 3,
            ..InstanceStatus::default()
        };
        Report {
            applied_incarnation: 9,
            instances: [(record.id, status)].into(),
        }
    }

    /// Where the only instance is then, and under which epoch.
    fn settled(look: &Look) -> Option<(String, u64)> {
        let plan = look.find(NEXT, NOW);
        let one = plan.put.into_values().next()?;
        Some((one.node.unwrap().to_string(), one.epoch))
    }

    #[test]
    fn what_was_given_since_the_restore_is_not_looked_for() {
        let is_over = |epoch, revision| {
            let one = InstanceRecord {
                epoch,
                ..record("n1")
            };
            Look::for_those_of_before([&one].into_iter(), revision).is_over()
        };
        assert!(is_over(LIFE + 1, NEXT));
        assert!(!is_over(4, NEXT));
        assert!(is_over(4, 5));
    }

    #[test]
    fn what_runs_is_where_it_runs_whatever_the_record_says() {
        let mut look = look(true);
        assert_eq!(settled(&look), None, "it may run on either");
        look.hear(&id("n2"), &report(4, 77));
        let plan = look.find(NEXT, NOW);
        let one = plan.put.values().next().unwrap();
        assert_eq!((one.node.clone(), one.epoch), (Some(id("n2")), LIFE + 5));
        assert_eq!(one.restart.generation, 3, "its node would not see the next");
        assert_eq!(plan.events[0].reason, "InstanceFound");
    }

    #[test]
    fn what_runs_nowhere_waits_until_all_have_spoken_and_is_where_it_was_last() {
        let mut sought = look(true);
        sought.hear(&id("n1"), &report(4, 0));
        assert_eq!(settled(&sought), None, "it may run on the other");
        sought.misses = false;
        assert_eq!(settled(&sought), Some(("n1".into(), LIFE + 5)));
        sought.hear(&id("n2"), &report(6, 0));
        assert_eq!(settled(&sought), Some(("n2".into(), LIFE + 5)));

        let nobody_knows_it = look(false);
        let plan = nobody_knows_it.find(NEXT, NOW);
        assert_eq!(settled(&nobody_knows_it), Some(("n1".into(), LIFE + 5)));
        assert!(plan.events.is_empty());
    }

    #[test]
    fn a_node_keeps_what_it_has_and_does_not_start_it_before_it_is_sure() {
        let (mut look, node) = (look(true), id("n2"));
        assert!(!look.may_have_goal(&node), "it has said nothing");
        look.hear(&node, &report(4, 0));
        assert!(look.may_have_goal(&node));
        let mut runs = look.clone();
        runs.hear(&node, &report(4, 77));
        assert!(!runs.may_have_goal(&node), "it would be stopped");
        let held = look.held_on(&node);
        assert_eq!((held.len(), held[0].epoch), (1, 4));
        assert!(held[0].keep.stopped);
        assert!(look.held_on(&id("n1")).is_empty());
    }
}
