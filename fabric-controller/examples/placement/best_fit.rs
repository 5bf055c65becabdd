//! A plain best-fit to compare with: of the nodes with room, the one with the fewest
//! cores left, then the least memory. It knows no fault domain and no image.

use fabric_controller::placement::{Instance, Node, Policy, Resources};

use super::Placer;

/// See the [module](self).
pub struct BestFit<'a> {
    nodes: &'a [Node],
    free: Vec<Resources>,
}

impl<'a> BestFit<'a> {
    pub fn new(policy: Policy, nodes: &'a [Node]) -> Self {
        let free = nodes.iter().map(|node| node.capacity(policy)).collect();
        Self { nodes, free }
    }
}

impl Placer for BestFit<'_> {
    fn place(&mut self, instance: &mut Instance) -> bool {
        let needed = &instance.needs.resources;
        let room = self.free.iter().enumerate();
        let best = room
            .filter(|(_, free)| needed.fits_in(free))
            .min_by_key(|(_, free)| (free.millicores, free.memory_bytes));
        let Some((at, _)) = best else { return false };
        self.free[at] = self.free[at].minus(needed);
        instance.node = Some(self.nodes[at].id.clone());
        true
    }

    fn release(&mut self, instance: &Instance) {
        // Nodes are in the order of their names.
        let node = |node: &Node| Some(&node.id).cmp(&instance.node.as_ref());
        if let Ok(at) = self.nodes.binary_search_by(node) {
            self.free[at] = self.free[at].plus(&instance.needs.resources);
        }
    }
}
