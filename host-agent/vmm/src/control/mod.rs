//! The control socket: how a running machine is asked and told things.
//!
//! | file | what it is |
//! |---|---|
//! | [`protocol`] | requests and answers, one JSON object a line each |
//! | [`client`] | asks one question and waits for its answer |
//! | [`server`] | answers, in the machine's event loop |
//! | [`knock`] | a knock at the guest's power button, which it may answer |

pub mod client;
pub mod knock;
pub mod protocol;
pub mod server;

pub use client::{ClientError, ask};
pub use protocol::{Answer, Request, Stats, Status};
