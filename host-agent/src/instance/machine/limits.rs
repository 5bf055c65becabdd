//! How long what may take, and how often what may happen.

use std::time::Duration;

use crate::policy::ladder::LadderLimits;

/// How long what may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the VMM's start to the guest agent's hello.
    pub boot: Duration,
    /// The same where the guest goes on from a template.
    pub from_template: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// So many periods without one, and the guest is taken for hung.
    pub heartbeats_missed: u32,
    /// After its hello, a guest starts its roles, and may have no time for
    /// heartbeats on a node where many do; until a role is ready, or for so long.
    pub settle: Duration,
    /// Waiting for a processor, if it is longer, is not held against a guest.
    pub starved: Duration,
    /// Until a guest agent is back after a restart of the host agent.
    pub reconnect: Duration,
    /// For a guest to power off, beyond the role's own grace.
    pub power_off: Duration,
    /// For a guest that said goodbye to be down.
    pub leave: Duration,
    /// For a VMM to end when told.
    pub order: Duration,
    /// Failures of a role in a row at which its machine is restarted.
    pub role_failures: u32,
    /// What happens after a failure.
    pub ladder: LadderLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(60),
            from_template: Duration::from_secs(20),
            heartbeat: Duration::from_secs(2),
            heartbeats_missed: 3,
            settle: Duration::from_secs(20),
            starved: Duration::from_millis(500),
            reconnect: Duration::from_secs(30),
            power_off: Duration::from_secs(5),
            leave: Duration::from_secs(15),
            order: Duration::from_secs(3),
            role_failures: 5,
            ladder: LadderLimits::default(),
        }
    }
}

impl Limits {
    /// Silence after which a guest is taken for hung.
    pub(super) fn silence(&self) -> Duration {
        self.heartbeat.saturating_mul(self.heartbeats_missed)
    }
}
