//! The life of a connection.
//!
//! ```text
//!  host calls ──▶ Requested ──response──▶ Open ◀── guest calls, host accepts
//!                     │                  ╱    ╲
//!                     │      both ways  ╱      ╲ both ways over,
//!                     │      over, host╱        ╲ guest said so last
//!                     │      said last▼          ▼
//!                     │          Lingering ──▶ Finished
//!                     └──reset, timeout, hang-up──▶▲
//! ```
//!
//! In `Open` the two directions end independently. Each has a state of its own
//! with its few moves as methods; a move that makes no sense in a state is the
//! identity there, so no sequence of packets leads anywhere undefined.

use std::time::Instant;

use super::packet::Shutdown;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host wants the connection; the guest has not answered.
    Requested {
        /// Whether the request has gone out.
        said: bool,
        /// When the host gives up.
        until: Instant,
    },
    /// Data may pass.
    Open(Open),
    /// Nothing will pass any more; the guest is told and should reset.
    Lingering {
        /// Whether it has been told.
        said: bool,
        /// When it is reset without having asked.
        until: Instant,
    },
    /// Over; a reset may still be owed to the guest.
    Finished {
        /// Whether it is.
        owes_reset: bool,
    },
}

/// A connection in which data may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Whether the guest still waits to hear that it is connected.
    pub owes_response: bool,
    /// The direction from guest to host.
    pub to_host: ToHost,
    /// The direction from host to guest.
    pub to_guest: ToGuest,
    /// When a guest that has closed stops waiting for the host to take the rest.
    pub until: Option<Instant>,
}

/// The direction from guest to host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToHost {
    /// Data passes.
    Flowing,
    /// The guest will send no more; what is held still goes to the host.
    Draining,
    /// The host has had everything, and the end.
    Ended,
    /// The host takes no more.
    Refused {
        /// Whether the guest has been told.
        said: bool,
    },
}

/// The direction from host to guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToGuest {
    /// Data passes.
    Flowing,
    /// The host has sent everything.
    Ended {
        /// Whether the guest has been told.
        said: bool,
    },
    /// The guest takes no more.
    Refused,
}

impl ToHost {
    /// The guest says that it will send no more.
    pub fn guest_ends(self) -> ToHost {
        match self {
            ToHost::Flowing => ToHost::Draining,
            other => other,
        }
    }

    /// Nothing is held any more.
    pub fn drained(self) -> ToHost {
        match self {
            ToHost::Draining => ToHost::Ended,
            other => other,
        }
    }

    /// The host takes no more.
    pub fn host_refuses(self) -> ToHost {
        match self {
            ToHost::Flowing | ToHost::Draining => ToHost::Refused { said: false },
            other => other,
        }
    }

    /// Whether nothing will pass any more.
    pub fn is_over(self) -> bool {
        matches!(self, ToHost::Ended | ToHost::Refused { .. })
    }
}

impl ToGuest {
    /// The host has sent everything.
    pub fn host_ends(self) -> ToGuest {
        match self {
            ToGuest::Flowing => ToGuest::Ended { said: false },
            other => other,
        }
    }

    /// The guest takes no more.
    pub fn guest_refuses(self) -> ToGuest {
        ToGuest::Refused
    }

    /// Whether nothing will pass any more.
    pub fn is_over(self) -> bool {
        self != ToGuest::Flowing
    }
}

impl Open {
    /// A new connection, both directions flowing.
    pub fn new(owes_response: bool) -> Open {
        Open {
            owes_response,
            to_host: ToHost::Flowing,
            to_guest: ToGuest::Flowing,
            until: None,
        }
    }

    /// The state that follows from the two directions; `until` limits what has
    /// to wait for the other side.
    pub fn settle(mut self, until: Instant) -> State {
        match (self.to_host, self.to_guest) {
            // The guest closed its socket, or has no use for the connection
            // left: the reset is the answer to that.
            (to_host, ToGuest::Refused) if to_host.is_over() => {
                State::Finished { owes_reset: true }
            }
            // Everything has passed; the guest learns that nobody is there.
            (to_host, ToGuest::Ended { .. }) if to_host.is_over() && !self.owes_response => {
                State::Lingering { said: false, until }
            }
            // The guest closed, but the host has not taken everything.
            (ToHost::Draining, ToGuest::Refused) if self.until.is_none() => {
                self.until = Some(until);
                State::Open(self)
            }
            _ => State::Open(self),
        }
    }

    /// What the guest has not been told yet, if anything.
    pub fn unsaid(&self) -> Option<Shutdown> {
        let unsaid = Shutdown {
            receive: self.to_host == ToHost::Refused { said: false },
            send: self.to_guest == ToGuest::Ended { said: false },
        };
        (unsaid != Shutdown::default()).then_some(unsaid)
    }

    /// Notes that the guest has been told.
    pub fn said(&mut self) {
        if let ToHost::Refused { said } = &mut self.to_host {
            *said = true;
        }
        if let ToGuest::Ended { said } = &mut self.to_guest {
            *said = true;
        }
    }
}

impl State {
    /// When something must have happened, if it must.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            State::Requested { until, .. } | State::Lingering { until, .. } => Some(*until),
            State::Open(open) => open.until,
            State::Finished { .. } => None,
        }
    }
}
