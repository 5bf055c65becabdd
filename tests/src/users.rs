//! Users that nobody else is: several host agents of one machine need a range each.

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicU32, Ordering},
};

/// How many a host agent has.
const USERS: u32 = 1000;
/// The first of all: beyond those of a host agent that was told of none.
const FIRST: u32 = 0x7100_0000;

static TAKEN: AtomicU32 = AtomicU32::new(0);

/// The next such users.
pub fn users() -> RangeInclusive<u32> {
    let first = FIRST + TAKEN.fetch_add(USERS, Ordering::Relaxed);
    first..=first + USERS - 1
}

/// The same, as `host-agent serve --uid-range` takes them.
pub fn uid_range() -> String {
    let users = users();
    format!("{}-{}", users.start(), users.end())
}
