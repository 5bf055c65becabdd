//! Rolling updates as they are kept: the policy, and how far one is.
//!
//! ```text
//!              resume                    every instance has what it should
//!  Paused ◀──────────▶ Walking ───────────────────────────────────▶ Done
//!              pause      │ ▲
//!          an instance    │ │ resume
//!          has failed     ▼ │
//!                      Stopped
//!
//!  Walking, Paused, Stopped ── abort, or a failure where the policy says so ──▶
//!                      Walking, back to the version before
//! ```
//!
//! [`crate::reconcile::update_walk`] decides what is next. Everything that it needs
//! to go on after a restart of the controller is in [`Update`].

use std::{collections::BTreeSet, time::Duration};

use fabric_proto::id::RoleName;
use serde::{Deserialize, Serialize};

use super::{deployment::Version, time::WallTime};

/// Upgrade domains of a role, unless its file says otherwise.
pub const UPGRADE_DOMAINS: u32 = 5;
/// Fault domains of a role, unless its file says otherwise.
pub const FAULT_DOMAINS: u32 = 2;

/// What to do when an update fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It stops where it is.
    Stop,
    /// What was changed is changed back, in the same way.
    Rollback,
}

/// How a service is updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatePolicy {
    /// How long every instance of an upgrade domain must have been Ready before
    /// the next one begins.
    pub bake: Duration,
    /// How long an instance may take to be Ready after it was changed.
    pub timeout: Duration,
    /// What to do when one takes longer, or fails.
    pub on_failure: OnFailure,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            bake: Duration::from_secs(10),
            timeout: Duration::from_secs(300),
            on_failure: OnFailure::Stop,
        }
    }
}

/// Why there is an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Somebody applied a file, or went back to a revision.
    Operator,
    /// An update was given up; why.
    GivenUp(String),
    /// There is a newer image of the line that its roles follow; its name.
    OsImage(String),
}

/// How an update stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// It goes on by itself.
    Walking,
    /// An operator has halted it.
    Paused,
    /// It has failed, and an operator must say what to do; why.
    Stopped(String),
    /// Every instance has what it should have.
    Done,
}

/// The upgrade domain that an update is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// Its number.
    pub domain: u32,
    /// Since when instances of it are changed.
    pub begun: WallTime,
    /// Since when the controller has seen all of them Ready.
    pub ready_since: Option<WallTime>,
    /// True if an operator does not want to wait for the bake time.
    pub hurried: bool,
}

/// An update, under way or done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Why there is one.
    pub cause: Cause,
    /// How it stands.
    pub state: UpdateState,
    /// Instances that were changed for this revision of the service or a later one
    /// were changed by this update.
    pub since_revision: u64,
    /// When it began.
    pub started: WallTime,
    /// When it was done.
    pub ended: Option<WallTime>,
    /// The roles whose instances it changes.
    pub roles: BTreeSet<RoleName>,
    /// The upgrade domain that it is in; `None` between two.
    pub current: Option<Current>,
    /// The upgrade domains that are through.
    pub done: BTreeSet<u32>,
    /// Since when it is held up by an instance that it has changed and that was Ready.
    pub held: Option<WallTime>,
    /// What to go back to; `None` if there is nothing.
    pub previous: Option<Box<Version>>,
}

impl Update {
    /// One that begins now.
    #[must_use]
    pub fn new(
        cause: Cause,
        since_revision: u64,
        roles: BTreeSet<RoleName>,
        previous: Option<Version>,
        now: WallTime,
    ) -> Self {
        Self {
            cause,
            state: UpdateState::Walking,
            since_revision,
            started: now,
            ended: None,
            roles,
            current: None,
            done: BTreeSet::new(),
            held: None,
            previous: previous.map(Box::new),
        }
    }

    /// Whether there is something left to do, if only for an operator.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.state != UpdateState::Done
    }

    /// The same, going on after it was paused or stopped: what was changed has its
    /// time anew.
    #[must_use]
    pub fn resumed(&self, now: WallTime) -> Self {
        let current = self.current.map(|current| Current {
            begun: now,
            ready_since: None,
            ..current
        });
        Self {
            state: UpdateState::Walking,
            current,
            held: None,
            ..self.clone()
        }
    }
}
