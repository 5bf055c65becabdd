//! Which instance goes to which node, and why.
//!
//! Pure: from a snapshot of nodes and instances to decisions, with no clock, no I/O and
//! no randomness; the order of what goes in does not matter, and the same goes in, the
//! same comes out. Nodes are filtered first, then scored.
//!
//! | file | what it holds |
//! |---|---|
//! | [`types`] | nodes, instances, needs, and what the operator prefers |
//! | [`filter`] | what a node must have: the hard rules, and a reason for each refusal |
//! | [`score`] | what it should have: points |
//! | `spread` | the grid of fault and upgrade domains that a group lies on |
//! | `shelf` | the nodes for one kind of instance, best first: what makes it fast |
//! | [`cluster`] | the engine, which brings them together |
//! | [`explain`] | why here, why not there, what would make it fit |
//! | [`rebalance`] | a few moves that repair a spread |
//! | [`whatif`] | the same questions asked of a cluster that is not there |
//!
//! **Hard rules.** The node is heard, steadily, and neither cordoned nor condemned; architecture, KVM kind and labels
//! are right; processors, memory, disk and the operator's own resources are free. Of these
//! only processors are promised twice, as often as [`Policy`] says, since a lab's guests mostly wait.
//! A size whose weight is below that of whole cores takes that share of them.
//!
//! **The grid.** A fault domain is a rack, an upgrade domain an instance's number modulo
//! their number. The counts of a [`Group`] in any two fault domains that can be used
//! differ by one at the most; a domain can be used if a node in it would do, had it room.
//! No domain has more than its share of as many as the group is to lie on, should there
//! be fewer. Where a domain has no room, or there are too few, the rule yields and the
//! decision says so, or with [`Spreading::Strict`] the instance stays without a node. A group is a role, or an
//! availability set: with as many domains as instances, no two share one.
//!
//! A node that has given an instance up is asked again only where no other can take it.
//! An instance that has a node is never moved here; [`rebalance`] proposes it.

pub mod cluster;
pub mod explain;
pub mod filter;
mod host;
pub mod rebalance;
pub mod score;
mod shelf;
mod spread;
#[cfg(test)]
mod tests;
pub mod types;
pub mod whatif;

use std::cmp::Reverse;

use fabric_proto::id::InstanceId;

pub use self::{
    cluster::{Cluster, Placed},
    explain::{Explanation, Remedy, Unplaceable, Verdict},
    filter::Refusal,
    score::Score,
    types::{
        Architecture, FaultDomain, Fill, Group, Health, Instance, Kvm, Needs, Node, OwnResources,
        Policy, Resources, Spreading, Stock, Template,
    },
};

/// Where one instance goes, or why nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The instance.
    pub instance: InstanceId,
    /// Its place, or why it has none.
    pub outcome: Result<Placed, Unplaceable>,
}

/// Places every instance that has no node, biggest first.
#[must_use]
pub fn place(policy: Policy, nodes: &[Node], instances: &[Instance]) -> Vec<Decision> {
    let mut cluster = Cluster::with(policy, nodes, instances);
    place_all(&mut cluster, instances)
}

/// The same on a cluster that is there.
fn place_all(cluster: &mut Cluster, instances: &[Instance]) -> Vec<Decision> {
    let homeless = |instance: &&Instance| instance.node.is_none() && !instance.leaving;
    let mut wanting: Vec<_> = instances.iter().filter(homeless).collect();
    wanting.sort_by_key(|instance| order(instance));
    wanting
        .into_iter()
        .map(|instance| Decision {
            instance: instance.id.clone(),
            outcome: cluster.place(instance),
        })
        .collect()
}

/// What an instance is placed by before others.
type Order<'a> = (
    Reverse<&'a OwnResources>,
    Reverse<Resources>,
    &'a Group,
    u32,
    &'a InstanceId,
);

/// Those first that few nodes can take, then the biggest, since little ones fit into what
/// is left; those that are spread together one after another.
fn order(instance: &Instance) -> Order<'_> {
    (
        Reverse(&instance.needs.own),
        Reverse(instance.needs.resources),
        &instance.group,
        instance.number,
        &instance.id,
    )
}
