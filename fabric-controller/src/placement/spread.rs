//! How a group's instances lie on the grid of fault and upgrade domains.

use std::collections::BTreeMap;

/// See the [module](self). Domains and nodes are known by their numbers; those that
/// have none of the group are not in here.
#[derive(Debug, Clone, Default)]
pub(super) struct Spread {
    domains: BTreeMap<u32, Column>,
    nodes: BTreeMap<u32, u32>,
}

/// A fault domain's column of the grid.
#[derive(Debug, Clone, Default)]
struct Column {
    all: u32,
    /// By upgrade domain.
    cells: BTreeMap<u32, u32>,
}

impl Spread {
    pub(super) fn add(&mut self, domain: u32, node: u32, upgrade_domain: u32) {
        let column = self.domains.entry(domain).or_default();
        column.all += 1;
        *column.cells.entry(upgrade_domain).or_default() += 1;
        *self.nodes.entry(node).or_default() += 1;
    }

    pub(super) fn remove(&mut self, domain: u32, node: u32, upgrade_domain: u32) {
        if let Some(column) = self.domains.get_mut(&domain) {
            column.all = column.all.saturating_sub(1);
            less(&mut column.cells, upgrade_domain);
            if column.all == 0 {
                self.domains.remove(&domain);
            }
        }
        less(&mut self.nodes, node);
    }

    /// How many are in a fault domain.
    pub(super) fn in_domain(&self, domain: u32) -> u32 {
        self.domains.get(&domain).map_or(0, |column| column.all)
    }

    /// How many of an upgrade domain are in a fault domain.
    pub(super) fn in_cell(&self, domain: u32, upgrade_domain: u32) -> u32 {
        let column = self.domains.get(&domain);
        let cell = column.and_then(|column| column.cells.get(&upgrade_domain));
        cell.copied().unwrap_or(0)
    }

    /// How many are on a node.
    pub(super) fn on_node(&self, node: u32) -> u32 {
        self.nodes.get(&node).copied().unwrap_or(0)
    }

    /// The fault domains that have any, with how many.
    pub(super) fn domains(&self) -> impl Iterator<Item = (u32, u32)> {
        self.domains
            .iter()
            .map(|(domain, column)| (*domain, column.all))
    }
}

fn less(counts: &mut BTreeMap<u32, u32>, key: u32) {
    if let Some(count) = counts.get_mut(&key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&key);
        }
    }
}
