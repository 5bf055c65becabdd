//! The program `fabric-vmm` on real KVM, with guests of a few instructions.

// clippy knows test functions as tests, but not what they call.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod calls;
mod endings;
mod guest;
mod hostile;
mod refusals;
mod repairs;
mod resets;
mod script;
mod snapshots;
mod tracer;
