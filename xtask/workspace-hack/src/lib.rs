//! Nothing: its manifest is all there is to it.
//!
//! Cargo compiles a crate anew for each set of features that is asked of it. Tests and the
//! programs of guests ask for some more than the programs of the host do: Tokio for a
//! clock that tests can stop, say. Were they not asked for always, everything from Tokio
//! upward would be compiled once to be run and once more to be tested.

#![forbid(unsafe_code)]
