//! What a service was to be at each of its generations.

use serde::{Deserialize, Serialize};

use super::{
    deployment::{Slot, Version},
    time::WallTime,
};

/// Most revisions of a service that are kept. Images and packages that one of them
/// needs are kept with it.
pub const MOST_REVISIONS: usize = 20;

/// A change of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Generation of the service that it made.
    pub number: u64,
    /// When.
    pub time: WallTime,
    /// Who.
    pub who: String,
    /// What was done, in one line.
    pub what: String,
    /// In which slot.
    pub slot: Slot,
    /// What was to run there from then on; `None` if that was nothing, or nothing else.
    pub version: Option<Version>,
}
