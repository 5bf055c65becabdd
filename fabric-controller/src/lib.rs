//! The fabric controller: holds desired state, places instances, drives every
//! node to its goal state.
//!
//! ```text
//! api (fabric.v1) ──► store ──► reconcile ──► registry ──► node_session (fabric.node.v1)
//!        operators      ▲      plan, placement    ▲               host agents
//!                       └── events, registrations ┴── what nodes report
//! ```
//!
//! - [`model`] and [`placement`] are pure: plain types and decisions.
//! - [`store`] is what must not be lost, [`records`] what is in it, and
//!   [`idempotency`] keeps a mutation from being done twice.
//! - [`reconcile`] turns what is wanted into one numbered goal per node.
//! - [`node_session`] talks to nodes, [`registry`] is what they said last.
//! - [`blobs`] are images and packages, [`output`] relays logs and consoles,
//!   [`events`] is what happened.
//! - [`trust`] is who is who, and who may do what.
//! - [`maintenance`] is what is done about a data directory as a whole.
//! - [`fail_point`] are the steps at which tests end the process.
//! - [`metrics`] is what is counted and measured, [`aside`] where long work is done.
//! - [`api`] is what operators call; [`serve`] runs all of it.
#![forbid(unsafe_code)]
#![warn(clippy::print_stderr)]

pub mod api;
pub mod aside;
pub mod blobs;
pub mod clock;
pub mod controller;
pub mod data_dir;
pub mod error;
pub mod events;
pub mod fail_point;
pub mod idempotency;
pub mod listen;
pub mod maintenance;
pub mod metrics;
pub mod model;
pub mod node_session;
pub mod output;
pub mod placement;
pub mod reconcile;
pub mod records;
pub mod registry;
pub mod serve;
pub mod store;
pub mod trust;
