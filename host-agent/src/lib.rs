//! The node's agent: drives its guests to the goal state and reports what is.
//!
//! ```text
//!  controller ◄── session ──► node ──► instance supervisors ──► hypervisor ──► fabric-vmm
//!      ▲             ▲      (goal)      │ one task each             (one process each)
//!      │             │                  ├─ machine: decides          │
//!      │          events, board ◄───────┤  policy: the ladder        │ vsock
//!      │                                ├─ blobs, disks              ▼
//!      └── output streams ◄── role log ◄┴─ guest server ◄──────── guest agent
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`session`] | the link to the controller, kept for ever |
//! | [`goal`] | the goal state, checked and kept on disk |
//! | [`node`] | a supervisor per instance of the goal |
//! | [`instance`] | one instance: decisions, record, disks |
//! | [`policy`] | the escalation ladder and rates, pure |
//! | [`hypervisor`] | the border to what runs virtual machines |
//! | [`guest`] | the border to what runs in them |
//! | [`blobs`] | images and packages by digest |
//! | [`template`] | guests that were booted once, for instances to be copied from |
//! | [`events`] | what happened, until the controller has it |
//! | [`lease`] | for how long the node may run anything |
//! | [`metrics`] | what is counted and measured |
//! | [`output`] | role logs and consoles |
//! | [`fail_point`] | steps at which tests end the process |

#![forbid(unsafe_code)]
#![warn(clippy::print_stderr)]

pub mod blobs;
pub mod cli;
pub mod clock;
pub mod events;
pub mod fail_point;
pub mod files;
pub mod goal;
pub mod guest;
pub mod hypervisor;
pub mod instance;
pub mod inventory;
pub mod join;
pub mod lease;
pub mod metrics;
pub mod node;
pub mod output;
pub mod policy;
pub mod preflight;
pub mod privileges;
pub mod serve;
pub mod session;
pub mod template;
