//! Leases: for how long a node may run what it was told to, and when its instances
//! may be started elsewhere.
//!
//! ```text
//!  last heard        lease ends on the node        elsewhere
//!      │◀──────── length ────────▶│                    │
//!      │◀─ length × (1 + drift) ────▶│◀─ kill ─▶│◀ slack ▶│
//! ```
//!
//! The node counts from when it asked, which is before it was heard, by a clock that
//! may be slower than ours by `drift`; it kills what it runs within `kill`.

use std::time::Duration;

/// What [`LeasePolicy::silent_percent`] is when nothing else is said: a third.
pub const SILENT_PERCENT: u32 = 33;

/// How nodes are held to their leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeasePolicy {
    /// How long a lease lasts.
    pub length: Duration,
    /// How much slower a node's clock may be than ours, in percent.
    pub drift_percent: u32,
    /// How long a node may take to kill what it runs.
    pub kill: Duration,
    /// What is waited beyond all that.
    pub slack: Duration,
    /// Percentage of the nodes that may be silent at once before that is taken for
    /// the controller's own trouble.
    pub silent_percent: u32,
}

impl LeasePolicy {
    /// Leases of that length, and the rest as usual.
    #[must_use]
    pub const fn of(length: Duration) -> Self {
        Self {
            length,
            drift_percent: 10,
            kill: Duration::from_secs(2),
            slack: Duration::from_secs(2),
            silent_percent: SILENT_PERCENT,
        }
    }

    /// How long a node must have been silent for its instances to be started
    /// elsewhere.
    #[must_use]
    pub fn replace_after(&self) -> Duration {
        let drift = self.length.saturating_mul(self.drift_percent) / 100;
        self.length
            .saturating_add(drift)
            .saturating_add(self.kill)
            .saturating_add(self.slack)
    }

    /// How many of so many nodes may be silent at once: one at least, never all.
    #[must_use]
    pub fn most_silent(&self, nodes: usize) -> usize {
        let share = nodes * usize::try_from(self.silent_percent).unwrap_or(0) / 100;
        share.max(1).min(nodes.saturating_sub(1))
    }
}

impl Default for LeasePolicy {
    fn default() -> Self {
        Self::of(Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_nothing_is_started_elsewhere_before_fifteen_seconds() {
        assert_eq!(
            LeasePolicy::default().replace_after(),
            Duration::from_secs(15)
        );
    }

    #[test]
    fn the_share_that_may_be_silent_is_the_operators_but_one_may_be_and_never_all() {
        let most = |percent, nodes| {
            let policy = LeasePolicy {
                silent_percent: percent,
                ..LeasePolicy::default()
            };
            policy.most_silent(nodes)
        };
        assert_eq!(
            [0, 10, 50, 100].map(|percent| most(percent, 10)),
            [1, 1, 5, 9]
        );
        assert_eq!(most(100, 1), 0);
    }

    #[test]
    fn a_third_of_the_nodes_may_be_silent_but_never_all() {
        let most = |nodes| LeasePolicy::default().most_silent(nodes);
        assert_eq!([1, 2, 3, 6, 9, 100].map(most), [0, 1, 1, 1, 2, 33]);
    }
}
