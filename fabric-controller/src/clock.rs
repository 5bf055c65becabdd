//! The wall clock, read in one place.

use std::time::SystemTime;

use crate::model::time::WallTime;

/// Now.
#[must_use]
pub fn now() -> WallTime {
    SystemTime::now().into()
}
