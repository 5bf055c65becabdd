//! The controller as operators and host agents see it, with a node that is
//! played by the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod audit;
mod backups;
mod causes;
mod commands;
mod crash;
mod drain;
mod failover;
mod framework;
mod full_disk;
mod idempotency;
mod keeps;
mod links;
mod metrics;
mod nodes;
mod output;
mod placement;
mod program;
mod rebalance;
mod roles;
mod services;
mod slots;
mod standing;
mod stops;
mod then;
mod trust;
mod updates;
mod uploads;
