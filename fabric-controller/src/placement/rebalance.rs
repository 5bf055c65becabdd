//! A few moves that repair a spread, such as after a failover.
//!
//! Instances are never moved for the sake of points, only for the domain rule: a move is
//! proposed when it brings two domains' counts closer together, and never to a node that has
//! given the instance up. Nothing here carries it out, nor does it say in which order that is
//! safe: [`reconcile`](crate::reconcile::rebalance) does.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use fabric_proto::id::{InstanceId, NodeId};

use super::{
    cluster::Cluster,
    types::{FaultDomain, Group, Instance, Node, Policy},
};

/// A move that is proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The instance.
    pub instance: InstanceId,
    /// What it is spread with.
    pub group: Group,
    /// Where it is.
    pub from: NodeId,
    /// How many of the group its domain has before.
    pub from_domain: (FaultDomain, u32),
    /// Where it would be better.
    pub to: NodeId,
    /// How many that domain has before.
    pub to_domain: (FaultDomain, u32),
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((from, many), (to, few)) = (&self.from_domain, &self.to_domain);
        let group = &self.group;
        write!(
            f,
            "fault domain {from} has {many} of {group}, {to} has {few}"
        )
    }
}

/// Proposes no more than so many moves, of the most uneven groups first; none when all
/// spreads are as they should be, or there is no room to mend them. No instance is moved
/// twice.
#[must_use]
pub fn rebalance(policy: Policy, nodes: &[Node], instances: &[Instance], most: usize) -> Vec<Move> {
    let mut cluster = Cluster::with(policy, nodes, instances);
    let there: BTreeSet<&NodeId> = nodes.iter().map(|node| &node.id).collect();
    let mut groups: BTreeMap<&Group, Vec<Instance>> = BTreeMap::new();
    for one in instances.iter().filter(|one| !one.leaving) {
        if one.node.as_ref().is_some_and(|node| there.contains(node)) {
            groups.entry(&one.group).or_default().push(one.clone());
        }
    }
    let mut uneven: Vec<_> = groups
        .into_iter()
        .filter_map(|(group, members)| {
            let gap = members.iter().map(|one| cluster.gap(one)).max()?;
            (gap > 1).then_some((Reverse(gap), group, members))
        })
        .collect();
    uneven.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    let mut moves = Vec::new();
    for (_, _, mut members) in uneven {
        while moves.len() < most
            && let Some(found) = next_move(&mut cluster, &mut members)
        {
            moves.push(found);
        }
    }
    moves
}

/// The next move of a group; what is moved is no member any more.
fn next_move(cluster: &mut Cluster, members: &mut Vec<Instance>) -> Option<Move> {
    // From the fullest domain, and there from the fullest cell; the last to come first.
    members.sort_by_cached_key(|one| {
        let (gap, cell) = (cluster.gap(one), cluster.in_cell(one));
        (Reverse((gap, cell, one.number)), one.id.clone())
    });
    for at in 0..members.len() {
        let one = &members[at];
        if cluster.gap(one) < 2 {
            return None;
        }
        let from = one.node.clone()?;
        let (from_domain, many) = cluster.domain_of(one, &from)?;
        cluster.release(one, &from);
        let placed = cluster.choose_as_asked(one).ok();
        let better = placed.and_then(|placed| {
            let (domain, few) = cluster.domain_of(one, &placed.node)?;
            (few + 1 < many).then_some((placed.node, domain, few))
        });
        let Some((to, to_domain, few)) = better else {
            cluster.take(one, &from);
            continue;
        };
        let one = members.swap_remove(at);
        cluster.take(&one, &to);
        return Some(Move {
            instance: one.id,
            group: one.group,
            from,
            from_domain: (from_domain, many),
            to,
            to_domain: (to_domain, few),
        });
    }
    None
}

impl Cluster {
    /// A node's fault domain, and how many of the instance's group are in it.
    fn domain_of(&self, one: &Instance, node: &NodeId) -> Option<(FaultDomain, u32)> {
        let host = self.hosts.get(self.number(node)?);
        let domain = self.domains[host.domain as usize].clone();
        Some((domain, self.in_domain(one, host.domain)))
    }

    /// By how many its domain has more of its group than the usable one with the fewest.
    fn gap(&mut self, one: &Instance) -> u32 {
        let domain = one.node.as_ref().and_then(|node| self.number(node));
        let Some(domain) = domain.map(|node| self.hosts.get(node).domain) else {
            return 0;
        };
        let least = self.least_of(one);
        self.in_domain(one, domain).saturating_sub(least)
    }
}
