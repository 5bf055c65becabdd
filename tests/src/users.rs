//! Users that nobody else is, for machines without a host agent.

use std::sync::atomic::{AtomicU32, Ordering};

/// The first of all: beyond those that host agents choose from.
const FIRST: u32 = 0x7100_0000;

static TAKEN: AtomicU32 = AtomicU32::new(0);

/// The next such user.
pub fn user() -> u32 {
    FIRST + TAKEN.fetch_add(1, Ordering::Relaxed)
}
