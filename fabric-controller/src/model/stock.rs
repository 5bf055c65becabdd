//! What a node has that an instance need not wait for.

use std::collections::BTreeSet;

use fabric_proto::id::Digest;

/// What is in a node's cache, and what it can copy guests from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stock {
    /// Images and packages that it need not fetch.
    pub blobs: BTreeSet<Digest>,
    /// Guests that it need not boot.
    pub templates: BTreeSet<Template>,
}

/// A guest that was booted once, and can be copied: by what tells the controller whether
/// an instance can be such a copy. Only the node knows the rest, such as its own kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Template {
    /// Of this image.
    pub image: Digest,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}
