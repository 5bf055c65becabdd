//! A node while instances are placed: what is promised of it, and what is there.

use std::collections::BTreeSet;

use fabric_proto::id::Digest;

use super::types::{Needs, Node, OwnResources, Policy, Resources, Template};

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
    /// What instances were of that have been there: the node keeps their images, and has
    /// made templates of them where it makes any.
    instances: BTreeSet<Template>,
}

impl Host {
    pub(super) fn new(node: &Node, domain: u32, policy: Policy) -> Self {
        Self {
            domain,
            capacity: node.capacity(policy),
            promised: Resources::default(),
            promised_own: OwnResources::default(),
            instances: BTreeSet::new(),
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
        if let Some(template) = &needs.template
            && !self.instances.contains(template)
        {
            self.instances.insert(template.clone());
        }
    }

    /// Its image and its template stay.
    pub(super) fn release(&mut self, needs: &Needs) {
        self.promised = self.promised.minus(&needs.resources);
        self.promised_own.subtract(&needs.own);
    }

    /// Whether the image is there.
    pub(super) fn has_image(&self, image: &Digest) -> bool {
        self.node.stock.blobs.contains(image)
            || self.instances.iter().any(|one| one.image == *image)
    }

    /// Whether there is such a template.
    pub(super) fn has_template(&self, template: &Template) -> bool {
        self.node.stock.templates.contains(template) || self.instances.contains(template)
    }
}
