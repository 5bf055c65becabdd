//! A whole cluster in one process: the real controller and the cores of real host agents
//! on simulated machines, network and time, all of it from a seed.
//!
//! ```text
//!  plan (seed) ──▶ world ── steps ──▶ controller   a process each: a runtime with its own
//!                    │                host agents  clock, that can be ended or stand still
//!                    │                operator
//!                    ├── network      delays, cuts of one way or both
//!                    ├── machines     power, clocks, the lease's keeper, guests
//!                    ├── store        in memory; full
//!                    └── watcher      what must always hold, and in the end
//! ```
//!
//! Real are: the controller with its API, reconciler, sessions and placement; of the host
//! agent the node, its supervisors, ladder, lease, journal and session; gRPC between
//! them. Simulated are: machines and their clocks, the network without its TLS, the store,
//! and the hypervisor with its guests ([`host_agent::hypervisor::simulated`]).
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | what a seed, or an operator's file, stands for: nodes, services, calls, faults |
//! | [`world`] | lets everything live, step by step |
//! | [`watcher`] | what must hold |
//! | [`machine`] | one node's machine |
//! | [`host`] | a process |
//! | [`network`] | streams between hosts |
//! | [`store`] | the controller's store |
//! | [`operator`] | who makes calls, and remembers what was acknowledged |
//! | [`timeline`] | what happened, to be read |
//! | [`seeds`] | many seeds, each in a process of its own |

#![forbid(unsafe_code)]

pub mod host;
pub mod image;
pub mod machine;
pub mod network;
pub mod operator;
pub mod plan;
pub mod seeds;
pub mod store;
pub mod timeline;
pub mod watcher;
pub mod world;

/// What is broken on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Break {
    /// The controller waits for nothing beyond a lease's length: neither for clocks that go
    /// wrong, nor for nodes that kill, nor for slack.
    SkipMargins,
    /// It waits for all of that but the slack.
    SkipSlack,
    /// An instance that is started elsewhere keeps its epoch.
    DropEpoch,
    /// An instance that is made anew where it is gets an epoch that is over. Nodes refuse
    /// it, so that it never is as it should be.
    LowerEpoch,
    /// The same, and nodes take whatever epoch they are given.
    NoEpochCheck,
    /// The store acknowledges a service that it does not keep.
    ForgetWrite,
    /// Nobody keeps the lease of a host agent that is gone.
    NoKeeper,
}
