//! A node while instances are placed: what is promised of it, and what is there.

use std::collections::{BTreeMap, BTreeSet};

use fabric_proto::id::Digest;

use super::types::{Needs, Node, OwnResources, Policy, Resources};

/// See the [module](self).
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) node: Node,
    /// Number of its fault domain.
    pub(super) domain: u32,
    pub(super) capacity: Resources,
    /// A node can have promised more than it has, if it has shrunk.
    promised: Resources,
    /// The same of an operator's own resources.
    promised_own: OwnResources,
    /// The images that are there, and the sizes of which there has been an instance.
    images: BTreeMap<Digest, BTreeSet<Resources>>,
}

impl Host {
    pub(super) fn new(node: &Node, domain: u32, policy: Policy) -> Self {
        let images = node.images.iter();
        Self {
            domain,
            capacity: node.capacity(policy),
            promised: Resources::default(),
            promised_own: OwnResources::default(),
            images: images
                .map(|image| (image.clone(), BTreeSet::new()))
                .collect(),
            node: node.clone(),
        }
    }

    pub(super) fn free(&self) -> Resources {
        self.capacity.minus(&self.promised)
    }

    /// How many of an operator's own resources are free.
    pub(super) fn free_own(&self) -> OwnResources {
        self.node.own.minus(&self.promised_own)
    }

    /// Whether there is room.
    pub(super) fn has_room(&self, needs: &Needs) -> bool {
        needs.resources.fits_in(&self.free())
            && (needs.own.is_empty() || needs.own.fits_in(&self.free_own()))
    }

    pub(super) fn take(&mut self, needs: &Needs) {
        self.promised = self.promised.plus(&needs.resources);
        self.promised_own.add(&needs.own);
        let Some(image) = &needs.image else { return };
        if let Some(sizes) = self.images.get_mut(image) {
            sizes.insert(needs.resources);
        } else {
            let sizes = BTreeSet::from([needs.resources]);
            self.images.insert(image.clone(), sizes);
        }
    }

    /// The image stays in the node's cache.
    pub(super) fn release(&mut self, needs: &Needs) {
        self.promised = self.promised.minus(&needs.resources);
        self.promised_own.subtract(&needs.own);
    }

    /// The sizes that there is a template for; `None` if the image is not there.
    pub(super) fn templates(&self, image: &Digest) -> Option<&BTreeSet<Resources>> {
        self.images.get(image)
    }
}
