//! The engine: a cluster as it is promised, on which instances are placed one by one.
//!
//! Made once from a snapshot, it is kept up to date by what it decides. A node is
//! chosen by the smallest of, in this order: how many of the group its fault domain
//! has; how many of the same upgrade domain are among them, which fills the grid along
//! its diagonals; how many of the group are on the node itself; its points
//! ([`Score`]); its name. The first of them is the domain rule, and decides alone
//! whether it is kept.
//!
//! No node is looked at that need not be: domains without any of the group are found in
//! the order of their best nodes, past the few that have some; only when all have some
//! are they compared one by one, and then the group is at least as large as they are many.

use std::collections::{BTreeMap, HashMap};

use fabric_proto::id::NodeId;

use super::{
    explain::{Relaxed, Rule, Unplaceable},
    host::Host,
    score::Score,
    shelf::{Hosts, Shelf, Shelves},
    spread::Spread,
    types::{FaultDomain, Group, Instance, Needs, Node, Policy, Resources, Spreading},
};

/// A place for an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The node.
    pub node: NodeId,
    /// Its fault domain.
    pub domain: FaultDomain,
    /// Its points.
    pub score: Score,
    /// How the spread was relaxed for it, if it was.
    pub relaxed: Option<Relaxed>,
}

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Cluster {
    pub(super) hosts: Hosts,
    pub(super) domains: Vec<FaultDomain>,
    numbers: HashMap<NodeId, u32>,
    groups: HashMap<Group, Spread>,
    /// How many each group is to have.
    sizes: HashMap<Group, u32>,
    shelves: Shelves,
    /// The last instance that could not be placed, and when: the next of its role
    /// cannot be either.
    refused: Option<(usize, Group, Spreading, Needs, Unplaceable)>,
}

/// A node that is chosen: its number, and how many of the group its domain has.
struct Choice {
    node: u32,
    has: u32,
}

impl Cluster {
    /// A cluster of these nodes, with nothing on them.
    #[must_use]
    pub fn new(policy: Policy, nodes: &[Node]) -> Self {
        // By name: numbers, and whatever is decided by them, are then the same in
        // whichever order the nodes come.
        let nodes: BTreeMap<&NodeId, &Node> = nodes.iter().map(|node| (&node.id, node)).collect();
        let mut domains: Vec<_> = nodes.values().map(|node| node.domain.clone()).collect();
        domains.sort();
        domains.dedup();
        let by_name: HashMap<_, u32> = domains.iter().zip(0..).collect();
        let hosts = nodes
            .values()
            .map(|node| Host::new(node, by_name[&node.domain], policy));
        Self {
            hosts: Hosts::new(policy, hosts.collect()),
            numbers: nodes.keys().map(|id| (*id).clone()).zip(0..).collect(),
            domains,
            groups: HashMap::new(),
            sizes: HashMap::new(),
            shelves: Shelves::default(),
            refused: None,
        }
    }

    /// The same with those of the instances that have a node on theirs; room is kept
    /// for the largest of all.
    #[must_use]
    pub fn with(policy: Policy, nodes: &[Node], instances: &[Instance]) -> Self {
        let mut cluster = Self::new(policy, nodes);
        let sizes = instances.iter().map(|instance| instance.needs.resources);
        cluster.keep_room_for(sizes.max().unwrap_or_default());
        for instance in instances {
            if !instance.leaving {
                let size = match cluster.sizes.get_mut(&instance.group) {
                    Some(size) => size,
                    None => cluster.sizes.entry(instance.group.clone()).or_default(),
                };
                *size += 1;
            }
            if let Some(node) = &instance.node {
                cluster.take(instance, node);
            }
        }
        cluster
    }

    /// Nodes are preferred that do not lose room for such an instance.
    pub fn keep_room_for(&mut self, largest: Resources) {
        self.hosts.largest = largest;
        self.shelves.clear();
    }

    /// An instance is on a node, whether there is room or not. A node that is not
    /// known is no matter here.
    pub fn take(&mut self, instance: &Instance, node: &NodeId) {
        let Some(node) = self.number(node) else {
            return;
        };
        self.change(node, |host| host.take(&instance.needs));
        if !instance.leaving {
            let domain = self.hosts.get(node).domain;
            let spread = match self.groups.get_mut(&instance.group) {
                Some(spread) => spread,
                None => self.groups.entry(instance.group.clone()).or_default(),
            };
            spread.add(domain, node, instance.upgrade_domain());
        }
    }

    /// An instance that was taken is on the node no more.
    pub fn release(&mut self, instance: &Instance, node: &NodeId) {
        let Some(node) = self.number(node) else {
            return;
        };
        self.change(node, |host| host.release(&instance.needs));
        let domain = self.hosts.get(node).domain;
        if !instance.leaving
            && let Some(spread) = self.groups.get_mut(&instance.group)
        {
            spread.remove(domain, node, instance.upgrade_domain());
        }
    }

    fn change(&mut self, node: u32, how: impl FnOnce(&mut Host)) {
        if self.hosts.is_full_of_changes() {
            self.shelves.clear();
            self.hosts.forget_changes();
            self.refused = None;
        }
        self.hosts.change(node, how);
    }

    /// Places an instance, and takes the room for it.
    ///
    /// # Errors
    ///
    /// No node can take it.
    pub fn place(&mut self, instance: &Instance) -> Result<Placed, Unplaceable> {
        let placed = self.choose(instance)?;
        self.take(instance, &placed.node);
        Ok(placed)
    }

    /// Where an instance would be placed. Where no other node can take it, one that has
    /// given it up is better than none.
    ///
    /// # Errors
    ///
    /// No node can take it.
    pub fn choose(&mut self, instance: &Instance) -> Result<Placed, Unplaceable> {
        let chosen = self.choose_as_asked(instance);
        match chosen {
            Err(_) if !instance.needs.avoid.is_empty() => {
                self.choose_as_asked(&instance.avoiding_none())
            }
            _ => chosen,
        }
    }

    /// The same, where one that has given it up is not better than none.
    ///
    /// # Errors
    ///
    /// No node can take it.
    pub(super) fn choose_as_asked(&mut self, instance: &Instance) -> Result<Placed, Unplaceable> {
        let nothing = Spread::default();
        let spread = self.groups.get(&instance.group).unwrap_or(&nothing);
        let needs = &instance.needs;
        let shelf = self.shelves.get(&self.hosts, self.domains.len(), needs);
        let least = least(shelf, spread);
        let share = share(self.sizes.get(&instance.group), instance);
        let strict = instance.spreading == Spreading::Strict;
        let broken = |choice: &Choice| Rule::broken(choice.has, least, share);
        let choice = among_empty(shelf, spread)
            .or_else(|| self::among_used(shelf, spread, instance.upgrade_domain()));
        let Some(choice) = choice.filter(|choice| !strict || broken(choice).is_none()) else {
            return Err(self.refuse(instance));
        };
        let host = self.hosts.get(choice.node);
        let domain = &self.domains[host.domain as usize];
        Ok(Placed {
            node: host.node.id.clone(),
            domain: domain.clone(),
            score: self.hosts.score(choice.node, needs),
            relaxed: broken(&choice).map(|rule| Relaxed {
                group: instance.group.clone(),
                domain: domain.clone(),
                has: choice.has,
                rule,
            }),
        })
    }

    /// Why nowhere. To say so takes a look at every node, so it is kept for the next.
    fn refuse(&mut self, instance: &Instance) -> Unplaceable {
        let Instance {
            group,
            spreading,
            needs,
            ..
        } = instance;
        let now = self.hosts.age();
        if let Some((then, of, spread, asked, why)) = &self.refused
            && (*then, of, spread, asked) == (now, group, spreading, needs)
        {
            return why.clone();
        }
        let why = Unplaceable::of(self, instance);
        let kept = (now, group.clone(), *spreading, needs.clone(), why.clone());
        self.refused = Some(kept);
        why
    }

    pub(super) fn number(&self, node: &NodeId) -> Option<u32> {
        self.numbers.get(node).copied()
    }

    /// How many of the instance's group are in a domain.
    pub(super) fn in_domain(&self, instance: &Instance, domain: u32) -> u32 {
        let spread = self.groups.get(&instance.group);
        spread.map_or(0, |spread| spread.in_domain(domain))
    }

    /// How many of its upgrade domain are in the same fault domain as it is.
    pub(super) fn in_cell(&self, instance: &Instance) -> u32 {
        let node = instance.node.as_ref().and_then(|node| self.number(node));
        let spread = self.groups.get(&instance.group);
        let (Some(node), Some(spread)) = (node, spread) else {
            return 0;
        };
        spread.in_cell(self.hosts.get(node).domain, instance.upgrade_domain())
    }

    /// The group's spread.
    pub(super) fn spread_of(&self, instance: &Instance) -> Spread {
        let spread = self.groups.get(&instance.group).cloned();
        spread.unwrap_or_default()
    }

    /// How many of the group a domain should have at the most.
    pub(super) fn share_of(&self, instance: &Instance) -> u32 {
        share(self.sizes.get(&instance.group), instance)
    }

    /// The fewest of the group that a domain has which the instance can use.
    pub(super) fn least_of(&mut self, instance: &Instance) -> u32 {
        let domains = self.domains.len();
        let shelf = self.shelves.get(&self.hosts, domains, &instance.needs);
        let spread = self.groups.get(&instance.group);
        spread.map_or(0, |spread| least(shelf, spread))
    }
}

/// How many of a group of that size a domain should have at the most.
fn share(size: Option<&u32>, instance: &Instance) -> u32 {
    match instance.fault_domains {
        0 | 1 => u32::MAX,
        domains => size.map_or(u32::MAX, |size| size.div_ceil(domains).max(1)),
    }
}

/// The fewest of the group that a usable domain has.
fn least(shelf: &Shelf, spread: &Spread) -> u32 {
    let used = spread
        .domains()
        .filter(|(domain, _)| shelf.is_usable(*domain));
    let (known, least) = used.fold((0, u32::MAX), |(known, least), (_, has)| {
        (known + 1, least.min(has))
    });
    if known == shelf.usable_domains && known > 0 {
        least
    } else {
        0
    }
}

/// The best node of all domains that have none of the group.
fn among_empty(shelf: &Shelf, spread: &Spread) -> Option<Choice> {
    let mut bests = shelf.bests();
    let ((_, node), _) = bests.find(|(_, domain)| spread.in_domain(*domain) == 0)?;
    Some(Choice { node, has: 0 })
}

/// The best node of the domains that have some.
fn among_used(shelf: &Shelf, spread: &Spread, upgrade_domain: u32) -> Option<Choice> {
    let best_of = |(domain, has)| {
        let (on_node, place) = best_in(shelf, spread, domain)?;
        let in_cell = spread.in_cell(domain, upgrade_domain);
        Some((has, in_cell, on_node, place))
    };
    let best = spread.domains().filter_map(best_of).min();
    best.map(|(has, _, _, (_, node))| Choice { node, has })
}

/// The best node of a domain: fewest of the group, then fewest points. Only nodes with
/// some of the group are passed on the way to the first with none.
fn best_in(shelf: &Shelf, spread: &Spread, domain: u32) -> Option<(u32, (u32, u32))> {
    let mut best = None;
    for place in shelf.places(domain) {
        let on_node = spread.on_node(place.1);
        if best.is_none_or(|(least, _)| on_node < least) {
            best = Some((on_node, place));
        }
        if on_node == 0 {
            break;
        }
    }
    best
}
