//! The virtio socket device (virtio 1.2, 5.10): the guest's "VMBus".
//!
//! ```text
//!  guest ◀─ rx queue ── device ──▶ muxer ──▶ connection ──▶ unix socket
//!        ── tx queue ─▶            (ports)   (state, credit)
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | [`packet`] | the header of a packet, as bytes and as a type |
//! | [`credit`] | flow control: what may be sent, what may come |
//! | [`state`] | the life of a connection, as an enum |
//! | [`connection`] | one stream: a unix socket, its state and its credit |
//! | [`host`] | the unix sockets: listening, being called, calling |
//! | [`deadlines`] | what must happen until when |
//! | [`muxer`] | all connections, and what they have to say to the guest |
//! | [`device`] | the device behind the transport |
//! | [`event_handler`] | its part of the event loop |
//!
//! Host side after Firecracker's convention: a guest's connection to port N of
//! the host (CID 2) arrives at the unix socket `PATH_N`; whoever connects to
//! `PATH` and writes `CONNECT N\n` is connected to port N of the guest, and
//! reads `OK <host port>\n` once the guest has accepted.
//!
//! **Bounds.** At most [`muxer::MAX_CONNECTIONS`] connections, each holding at
//! most [`credit::BUFFER_SIZE`] bytes on their way to the host and none on their
//! way to the guest; a guest that takes no packets, or a host that reads none,
//! stops its own connection and no other.

pub mod connection;
pub mod credit;
pub mod deadlines;
pub mod device;
pub mod event_handler;
pub mod host;
pub mod muxer;
pub mod packet;
pub mod state;

#[cfg(test)]
mod connection_tests;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockError};
pub use event_handler::VsockEventHandler;
