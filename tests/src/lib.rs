//! The small framework under the whole-system tests, one file per promise in
//! `tests/stories`.
//!
//! A test starts a [`Cluster`]: a real controller and a real host agent, as
//! processes of their own, over unix sockets in a temporary directory. It talks to
//! them as users do (`fabctl`, gRPC), breaks things, and waits for conditions with
//! a deadline, never for time to pass. Whatever it started ends with it, by pid, and
//! the control groups of its node go.
//!
//! Where `/dev/kvm` is missing these tests are reported as ignored, with the
//! reason, unless `FABRIC_REQUIRE_KVM=1` makes that a failure. What needs root or
//! control groups is left out without them, unless `FABRIC_REQUIRE_ISOLATION=1` does.

#![forbid(unsafe_code)]

mod cluster;
mod neighbour;
mod peer;
mod place;
mod process;
mod runner;
mod service;
mod skip;
mod traces;

pub use cluster::{Cluster, Options, last_end, same_guest, same_vmm, status, vmms_in};
pub use neighbour::{Neighbour, stand_still};
pub use peer::{Peer, control, fill, line, patient};
pub use place::{Place, run_in_own_mounts};
pub use process::Program;
pub use runner::{Story, run};
pub use service::ServiceFile;
pub use skip::skipped;
pub use traces::{Identity, disagreements, files, groups, mounts};

use std::{future::Future, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

/// Longest wait for a guest to come to a state, from the start of its VMM. A boot
/// takes seconds where KVM interprets guest kernels, and others may be busy there.
pub const BOOT: Duration = Duration::from_secs(180);

/// Longest wait for what takes no boot.
pub const SOON: Duration = Duration::from_secs(60);

/// Waits until `look` finds something.
///
/// # Errors
///
/// `deadline` has passed; says what was waited for, and what was seen last.
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    let mut ticks = interval(Duration::from_millis(50));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match look().await {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() >= end => {
                anyhow::bail!("waited {deadline:?} for {what}; last seen: {seen}")
            }
            Err(_) => {}
        }
    }
}
