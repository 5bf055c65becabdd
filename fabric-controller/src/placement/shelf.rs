//! The nodes that can take instances of one kind, best first.
//!
//! A cluster has few kinds of instances ([`Needs`]) and many nodes, so a shelf is kept
//! for each kind: built when it is first asked for, and brought up to date by the nodes
//! that have changed since, as Protean's caches are (OSDI 2020, section 4). To find the
//! best node is then a look at the front; a change costs O(log n) for each kind in use.

use std::collections::{BTreeSet, HashMap};

use super::{
    filter,
    host::Host,
    score::{self, Score},
    types::{Needs, Policy, Resources},
};

/// Most shelves that are kept; the one that was not used for longest goes first.
const MOST: usize = 256;

/// Points and number of a node: what nodes of one domain are ordered by.
pub(super) type Place = (u32, u32);

/// The nodes, and which of them have changed.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    pub(super) policy: Policy,
    pub(super) all: Vec<Host>,
    /// The size to keep room for.
    pub(super) largest: Resources,
    /// Numbers of the nodes that have changed, in order.
    changes: Vec<u32>,
}

impl Hosts {
    pub(super) fn new(policy: Policy, all: Vec<Host>) -> Self {
        Self {
            policy,
            all,
            largest: Resources::default(),
            changes: Vec::new(),
        }
    }

    pub(super) fn get(&self, node: u32) -> &Host {
        &self.all[node as usize]
    }

    pub(super) fn change(&mut self, node: u32, how: impl FnOnce(&mut Host)) {
        how(&mut self.all[node as usize]);
        self.changes.push(node);
    }

    /// Whether shelves are quicker built anew than kept up to date by all of them.
    pub(super) const fn is_full_of_changes(&self) -> bool {
        self.changes.len() > 1024 + 16 * self.all.len()
    }

    /// No shelf may be left that has seen some of them.
    pub(super) fn forget_changes(&mut self) {
        self.changes.clear();
    }

    /// How many changes there have been.
    pub(super) const fn age(&self) -> usize {
        self.changes.len()
    }

    pub(super) fn score(&self, node: u32, needs: &Needs) -> Score {
        score::score(self.policy, self.get(node), needs, &self.largest)
    }

    /// Points of a node, if it has room.
    fn points(&self, node: u32, needs: &Needs) -> Option<u32> {
        let room = self.get(node).has_room(needs);
        room.then(|| self.score(node, needs).total())
    }
}

/// See the [module](self).
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    /// Changes that it has seen.
    seen: usize,
    /// When it was last used.
    used: u64,
    /// By node: whether it could take one if it had room, and its points if it has.
    nodes: Vec<(bool, Option<u32>)>,
    /// By fault domain: whether a node in it could take one if it had room.
    usable: Vec<bool>,
    /// How many such domains there are.
    pub(super) usable_domains: usize,
    /// The nodes with room: domain, points, number.
    rooms: BTreeSet<(u32, u32, u32)>,
    /// By fault domain: its best node.
    best: Vec<Option<Place>>,
    /// The same, best domain first.
    bests: BTreeSet<(Place, u32)>,
}

impl Shelf {
    fn build(hosts: &Hosts, domains: usize, needs: &Needs) -> Self {
        let mut nodes = Vec::with_capacity(hosts.all.len());
        let mut usable = vec![false; domains];
        let mut rooms = Vec::new();
        let mut best: Vec<Option<Place>> = vec![None; domains];
        for (number, host) in (0..).zip(&hosts.all) {
            let fit = filter::would_do(&host.node, needs);
            let points = if fit {
                hosts.points(number, needs)
            } else {
                None
            };
            nodes.push((fit, points));
            let domain = host.domain as usize;
            usable[domain] |= fit;
            if let Some(points) = points {
                let place = (points, number);
                rooms.push((host.domain, points, number));
                best[domain] = Some(best[domain].map_or(place, |best| best.min(place)));
            }
        }
        let bests = (0..).zip(&best);
        Self {
            seen: hosts.age(),
            used: 0,
            nodes,
            usable_domains: usable.iter().filter(|usable| **usable).count(),
            usable,
            rooms: rooms.into_iter().collect(),
            bests: bests
                .filter_map(|(domain, best)| best.map(|best| (best, domain)))
                .collect(),
            best,
        }
    }

    fn catch_up(&mut self, hosts: &Hosts, needs: &Needs) {
        for node in &hosts.changes[self.seen..] {
            let (fit, old) = self.nodes[*node as usize];
            let new = if fit {
                hosts.points(*node, needs)
            } else {
                None
            };
            if new == old {
                continue;
            }
            self.nodes[*node as usize] = (fit, new);
            let domain = hosts.get(*node).domain;
            if let Some(points) = old {
                self.rooms.remove(&(domain, points, *node));
            }
            if let Some(points) = new {
                self.rooms.insert((domain, points, *node));
            }
            let best = self.places(domain).next();
            let old = std::mem::replace(&mut self.best[domain as usize], best);
            if old != best {
                if let Some(old) = old {
                    self.bests.remove(&(old, domain));
                }
                if let Some(best) = best {
                    self.bests.insert((best, domain));
                }
            }
        }
        self.seen = hosts.age();
    }

    /// Whether a domain has a node that could take one if it had room.
    pub(super) fn is_usable(&self, domain: u32) -> bool {
        self.usable[domain as usize]
    }

    /// The nodes of a domain with room, best first.
    pub(super) fn places(&self, domain: u32) -> impl Iterator<Item = Place> {
        let of = (domain, 0, 0)..=(domain, u32::MAX, u32::MAX);
        self.rooms
            .range(of)
            .map(|(_, points, node)| (*points, *node))
    }

    /// Each domain's best node, best first.
    pub(super) fn bests(&self) -> impl Iterator<Item = (Place, u32)> {
        self.bests.iter().copied()
    }
}

/// The shelves of a cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelves {
    shelves: HashMap<Needs, Shelf>,
    uses: u64,
}

impl Shelves {
    /// The shelf for such instances, up to date.
    pub(super) fn get(&mut self, hosts: &Hosts, domains: usize, needs: &Needs) -> &Shelf {
        self.uses += 1;
        // When most nodes have changed, it is quicker built than mended.
        let stale = |shelf: &Shelf| hosts.age() - shelf.seen > hosts.all.len();
        if self.shelves.get(needs).is_some_and(stale) {
            self.shelves.remove(needs);
        }
        if self.shelves.len() >= MOST && !self.shelves.contains_key(needs) {
            self.drop_oldest();
        }
        let shelf = self
            .shelves
            .entry(needs.clone())
            .or_insert_with(|| Shelf::build(hosts, domains, needs));
        shelf.catch_up(hosts, needs);
        shelf.used = self.uses;
        shelf
    }

    /// Another size is to have room kept for it: all points are others.
    pub(super) fn clear(&mut self) {
        self.shelves.clear();
    }

    fn drop_oldest(&mut self) {
        // No two were used at once, so that the order of the map is no matter.
        let oldest = self.shelves.iter().min_by_key(|(_, shelf)| shelf.used);
        if let Some(needs) = oldest.map(|(needs, _)| needs.clone()) {
            self.shelves.remove(&needs);
        }
    }
}
