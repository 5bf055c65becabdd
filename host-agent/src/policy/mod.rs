//! Decisions, apart from everything that carries them out.
//!
//! These modules know neither clocks nor files nor other parts of the fabric:
//! time comes in as a number, decisions go out as values. They are tested by
//! property.

pub mod ladder;
pub mod rate;
pub mod shares;
