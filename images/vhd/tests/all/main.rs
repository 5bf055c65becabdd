//! Tests of the crate as a whole, from outside.
//!
//! One program, so that it is linked once. Each module tests one promise.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod chain;
mod check;
mod cli;
mod convert;
mod crash;
mod hostile;
mod libvhdi;
mod model;
mod qemu;
mod support;
mod threads;
