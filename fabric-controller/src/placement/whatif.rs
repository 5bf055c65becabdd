//! What would be if: changes to a snapshot, and what placement would make of it.

use std::collections::{BTreeMap, BTreeSet};

use fabric_proto::id::{InstanceId, NodeId};

use super::{
    Decision,
    cluster::{Cluster, Placed},
    explain::Unplaceable,
    place_all,
    rebalance::{self, Move},
    types::{FaultDomain, Health, Instance, Node, Policy},
};

/// A cluster as it is, or as it might be.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// How full nodes may be.
    pub policy: Policy,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The instances.
    pub instances: Vec<Instance>,
}

/// Something that might happen.
#[derive(Debug, Clone)]
pub enum Change {
    /// Nodes die.
    KillNode(NodeId),
    /// All nodes of a fault domain die.
    KillDomain(FaultDomain),
    /// Another node.
    AddNode(Box<Node>),
    /// What is there of some service is to be this instead.
    Replace {
        /// Those that go.
        gone: Vec<InstanceId>,
        /// Those that come or stay; what stays has its node.
        wanted: Vec<Instance>,
    },
}

/// A change that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// There is no such node.
    #[error("there is no node {0}")]
    NoNode(NodeId),
    /// There is no such domain.
    #[error("there is no fault domain {0:?}; there are {1}")]
    NoDomain(String, String),
}

/// An instance that would find a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The instance.
    pub instance: InstanceId,
    /// The node that it is on now.
    pub from: Option<NodeId>,
    /// Its new one.
    pub to: Placed,
}

/// An instance that would find none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranded {
    /// The instance.
    pub instance: InstanceId,
    /// The node that it is on now.
    pub from: Option<NodeId>,
    /// Why, and what would help.
    pub why: Unplaceable,
}

/// What would come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Those that would find a node, by id.
    pub found: Vec<Found>,
    /// Those that would not, by id.
    pub stranded: Vec<Stranded>,
    /// How many would stay where they are.
    pub staying: usize,
    /// Moves that would then repair spreads.
    pub moves: Vec<Move>,
}

impl Snapshot {
    /// The same after a change.
    ///
    /// # Errors
    ///
    /// It is about something that is not there.
    pub fn after(mut self, change: Change) -> Result<Self, Impossible> {
        match change {
            Change::KillNode(id) => {
                if !self.kill(|node| node.id == id) {
                    return Err(Impossible::NoNode(id));
                }
            }
            Change::KillDomain(domain) => {
                if !self.kill(|node| node.domain == domain) {
                    let mut all: Vec<_> =
                        self.nodes.into_iter().map(|node| node.domain.0).collect();
                    all.sort();
                    all.dedup();
                    return Err(Impossible::NoDomain(domain.0, all.join(", ")));
                }
            }
            Change::AddNode(node) => self.nodes.push(*node),
            Change::Replace { gone, wanted } => {
                let wanting = wanted.iter().map(|one| one.id.clone());
                let replaced: BTreeSet<_> = gone.into_iter().chain(wanting).collect();
                self.instances.retain(|one| !replaced.contains(&one.id));
                self.instances.extend(wanted);
            }
        }
        Ok(self)
    }

    /// False if there is none such.
    fn kill(&mut self, which: impl Fn(&Node) -> bool) -> bool {
        let mut any = false;
        for node in self.nodes.iter_mut().filter(|node| which(node)) {
            node.health = Health::Lost;
            any = true;
        }
        any
    }

    /// What would come of it. `before` is where instances are now; those on nodes that
    /// are lost by then are placed anew, at most `most` moves are proposed.
    #[must_use]
    pub fn outcome(mut self, before: &Self, most: usize) -> Outcome {
        let lost: BTreeSet<_> = self
            .nodes
            .iter()
            .filter(|node| node.health == Health::Lost)
            .map(|node| node.id.clone())
            .collect();
        let is_lost = |id: &NodeId| lost.contains(id);
        // What was to go, is gone with its node.
        self.instances
            .retain(|one| !(one.leaving && one.node.as_ref().is_some_and(is_lost)));
        for one in &mut self.instances {
            one.node.take_if(|node| is_lost(node));
        }
        let mut cluster = Cluster::with(self.policy, &self.nodes, &self.instances);
        let staying = self
            .instances
            .iter()
            .filter(|one| one.node.is_some())
            .count();
        let mut decisions = place_all(&mut cluster, &self.instances);
        decisions.sort_by(|a, b| a.instance.cmp(&b.instance));
        let was: BTreeMap<_, _> = before
            .instances
            .iter()
            .map(|one| (&one.id, &one.node))
            .collect();
        let from = |id: &InstanceId| was.get(id).and_then(|node| (*node).clone());
        let (mut found, mut stranded) = (Vec::new(), Vec::new());
        let mut now: BTreeMap<InstanceId, NodeId> = BTreeMap::new();
        for Decision { instance, outcome } in decisions {
            let from = from(&instance);
            match outcome {
                Ok(to) => {
                    now.insert(instance.clone(), to.node.clone());
                    found.push(Found { instance, from, to });
                }
                Err(why) => stranded.push(Stranded {
                    instance,
                    from,
                    why,
                }),
            }
        }
        for one in &mut self.instances {
            if let Some(node) = now.remove(&one.id) {
                one.node = Some(node);
            }
        }
        Outcome {
            found,
            stranded,
            staying,
            moves: rebalance::rebalance(self.policy, &self.nodes, &self.instances, most),
        }
    }
}
