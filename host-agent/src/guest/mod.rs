//! The VMBus: what a guest agent says to this host agent, and what it is told.
//!
//! One listener per guest, so that a guest can speak for itself alone. All that
//! comes from there is hostile: sizes, rates and the number of connections are
//! bounded, and nothing is waited for without end.

pub mod report;
pub mod server;
mod throttle;
