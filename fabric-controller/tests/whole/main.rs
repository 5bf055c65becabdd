//! The controller as operators and host agents see it, with a node that is
//! played by the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod crash;
mod framework;
mod idempotency;
mod keeps;
mod nodes;
mod output;
mod services;
mod slots;
mod updates;
mod uploads;
