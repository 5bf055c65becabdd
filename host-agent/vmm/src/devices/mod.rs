//! The devices of a virtual machine.

pub mod block;
pub mod bus;
pub mod virtio;
pub mod vsock;
