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
//! | [`limiter`] | what may pass in a time, each way |
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
//! **Bounds.** What one guest can have of its host's memory, whatever it and
//! those who talk with it do:
//!
//! | what | at most |
//! |---|---|
//! | connections | [`muxer::MAX_CONNECTIONS`], 2,048; one more is refused, but for [`muxer::MAX_OWN_CALLS`], 8, of the VMM itself, which knocks at the guest's power button |
//! | callers that have not said which port they want | [`muxer::MAX_CALLERS`], 64, for 5 s each; others wait in the socket's queue |
//! | held on its way to the host, of one connection | [`credit::BUFFER_SIZE`], 64 KiB, of the first 128; [`credit::SMALL_BUFFER_SIZE`], 4 KiB, of those that come then |
//! | the same of all connections | [`credit::HELD_MAX`], 15.5 MiB |
//! | held on its way to the guest | nothing: it stays in the socket of who sent it until the guest has room |
//! | in the kernel, not yet read by the host | about twice what may be held, by `SO_SNDBUF` |
//! | answers to packets of no connection | 256; then the guest is not heard until it takes some |
//!
//! A guest that takes no packets or gives no credit, or a host that reads
//! nothing, stops its own connection and no other. Nothing waits for either
//! without end: a request for 5 s, a connection that is over for 10 s.

pub mod connection;
pub mod credit;
pub mod deadlines;
pub mod device;
pub mod event_handler;
pub mod host;
pub mod limiter;
pub mod muxer;
pub mod packet;
pub mod state;

#[cfg(test)]
mod abuse_tests;
#[cfg(test)]
mod connection_tests;
#[cfg(test)]
mod test_guest;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockError, VsockHandle, VsockStats};
pub use event_handler::VsockEventHandler;
