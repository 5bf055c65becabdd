//! The virtual machine monitor: one process, one microVM on KVM.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | what a machine is made of, and the rules for it |
//! | [`machine`] | puts a machine together, runs it, takes it apart, says why it ended |
//! | [`memory`] | the guest's memory |
//! | [`boot`] | kernel, command line and tables, as the Linux boot protocol wants them |
//! | [`kvm`] | opens the host's KVM |
//! | [`vcpu`] | virtual CPUs: set-up, the run loop, what an exit means |
//! | [`msr`] | model-specific registers of a virtual CPU |
//! | [`repair`] | what a KVM that interprets guest kernels lacks; not built elsewhere |
//! | [`devices`] | serial port, keyboard controller, virtio block and vsock |
//! | [`console`] | where the serial port's output goes; the ring and its reader |
//! | [`control`] | the control socket: protocol, client, server |
//! | [`limits`] | what a guest may use of its host's disks and sockets |
//! | [`snapshot`] | a paused machine as files |
//! | [`jail`] | what the process gives up before the guest runs |
//! | [`probe`] | whether this host can run machines, and what to do where not |
//! | [`exit`] | the report at a machine's end |
//! | [`say!`] | words for people, which may be lost |
//! | [`fail_point`] | steps at which tests have the process stand still |
//!
//! Threads: one per virtual CPU, one for the event loop with everything that is
//! not hot, and the block devices' own. Everything from the guest is hostile:
//! it can end its own machine, and that is all it can do.
//!
//! The host agent uses [`config`], [`limits`], [`exit`], [`console`], [`control`],
//! [`snapshot::verify`], [`jail::launch`] and [`fail_point`] only.

#![warn(clippy::print_stderr)]

pub mod boot;
pub mod config;
pub mod console;
pub mod control;
pub mod devices;
pub mod exit;
pub mod fail_point;
pub mod jail;
pub mod kvm;
pub mod limits;
pub mod machine;
pub mod memory;
pub mod msr;
pub mod probe;
pub mod repair;
mod say;
pub mod snapshot;
pub mod vcpu;
