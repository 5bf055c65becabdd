//! The devices of a virtual machine.

pub mod block;
pub mod bus;
pub mod i8042;
pub mod ports;
pub mod serial;
pub mod virtio;
pub mod vsock;
