//! The fabric's contracts: everything that crosses a process border.
//!
//! | package | between | over |
//! |---|---|---|
//! | [`v1`] | operators and the controller | gRPC |
//! | [`node`] | host agents and the controller | gRPC, opened by the host agent |
//! | [`guest`] | guest agents and their host agent | gRPC over vsock, the "VMBus" |
//!
//! The `.proto` files are the documentation of every message; this crate adds
//! only typed identifiers ([`id`]), what labels may be ([`label`]) and what both ends of the
//! VMBus must agree on ([`vmbus`]). Business types live in the crates that use them and are converted
//! at their edges.

#![forbid(unsafe_code)]

pub mod id;
pub mod label;
pub mod vmbus;

/// Package `fabric.v1`: operators to the controller.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("fabric.v1");
}

/// Package `fabric.node.v1`: host agents to the controller.
pub mod node {
    /// Version 1.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("fabric.node.v1");
    }
}

/// Package `fabric.guest.v1`: guest agents to their host agent.
pub mod guest {
    /// Version 1.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("fabric.guest.v1");
    }
}

/// Encoded `FileDescriptorSet` of all packages, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Protocol version that this build speaks, in `Hello` and `Register`.
pub const PROTOCOL_VERSION: u32 = 1;
