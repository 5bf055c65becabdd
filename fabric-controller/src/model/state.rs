//! The one word that users see for an instance, and why.
//!
//! "Running" is not "usable": the word is the role's wherever the role can be
//! seen, and its virtual machine's or its node's where it cannot.
//!
//! ```text
//! Pending → Preparing → Booting → Starting → Ready ⇄ Busy
//!                ↑          ↑                  ↓
//!                └──── Recovering ←──────── Unhealthy      Failed: given up
//!                                                          Unknown: node not heard
//! any → Stopping → (removed), or Stopped
//! Starting, Ready, Busy, Unhealthy ⇄ Paused
//! any → Stopping → Stopped → Preparing: as an operator says
//! ```

use std::fmt;

use super::{
    instance::{InstanceRecord, Phase},
    time::WallTime,
};

/// The word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceState {
    /// Not placed, or not yet taken up by its node.
    Pending,
    /// Image, package and disks are being fetched and made.
    Preparing,
    /// The guest boots for the first time, or because it was asked to.
    Booting,
    /// The guest is up and the role starts.
    Starting,
    /// The role is usable.
    Ready,
    /// The role is alive and out of rotation.
    Busy,
    /// The role has failed.
    Unhealthy,
    /// The virtual machine has failed and is being brought back.
    Recovering,
    /// It stands still, because it was asked to, or for as long as a snapshot takes.
    Paused,
    /// It goes.
    Stopping,
    /// It is down because it was asked to be.
    Stopped,
    /// Its node has given up.
    Failed,
    /// Its node is not heard.
    Unknown,
}

impl InstanceState {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Pending,
        Self::Preparing,
        Self::Booting,
        Self::Starting,
        Self::Ready,
        Self::Busy,
        Self::Unhealthy,
        Self::Recovering,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Unknown,
    ];

    /// Whether its guest is there, as far as is known.
    #[must_use]
    pub const fn has_guest(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Ready | Self::Busy | Self::Unhealthy | Self::Paused
        )
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The variants are named as the words are.
        f.pad(match self {
            Self::Pending => "Pending",
            Self::Preparing => "Preparing",
            Self::Booting => "Booting",
            Self::Starting => "Starting",
            Self::Ready => "Ready",
            Self::Busy => "Busy",
            Self::Unhealthy => "Unhealthy",
            Self::Recovering => "Recovering",
            Self::Paused => "Paused",
            Self::Stopping => "Stopping",
            Self::Stopped => "Stopped",
            Self::Failed => "Failed",
            Self::Unknown => "Unknown",
        })
    }
}

/// How an instance's node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeView {
    /// It reports.
    Heard,
    /// It has not reported since the controller started.
    NotYetHeard,
    /// It is silent since then.
    Lost(WallTime),
}

/// State of the virtual machine, as its node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // `VmState` in node.proto says what they mean.
pub enum VmState {
    Pending,
    Preparing,
    Booting,
    Running,
    Stopping,
    Stopped,
    Backoff,
    Failed,
    Paused,
}

/// State of the role, as its guest agent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // `RoleState` in guest.proto says what they mean.
pub enum RoleState {
    Starting,
    Ready,
    Busy,
    Unhealthy,
    Stopped,
}

/// What a node reports of an instance, as far as the word depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Epoch under which it runs.
    pub epoch: u64,
    /// Its virtual machine.
    pub vm: VmState,
    /// Why.
    pub vm_reason: String,
    /// Since when.
    pub vm_since: WallTime,
    /// True if its virtual machine has failed and was started again before.
    pub recovered: bool,
    /// Its role, if ever reported: state, why, since when.
    pub role: Option<(RoleState, String, WallTime)>,
}

/// The word, why, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derived {
    /// The word.
    pub state: InstanceState,
    /// Why, in one line; may be empty.
    pub reason: String,
    /// Since when.
    pub since: WallTime,
}

/// Derives the word from what is wanted, how the node stands and what it reports.
#[must_use]
pub fn derive(record: &InstanceRecord, node: NodeView, observed: Option<&Observed>) -> Derived {
    let say = |state, reason: String, since| Derived {
        state,
        reason,
        since,
    };
    let Some(name) = &record.node else {
        return say(
            InstanceState::Pending,
            record.unplaceable.clone(),
            record.changed,
        );
    };
    let silent = match node {
        NodeView::Heard => None,
        NodeView::NotYetHeard => Some((
            format!("node {name} has not reported since the controller started"),
            record.changed,
        )),
        NodeView::Lost(since) => Some((format!("node {name} is not heard"), since)),
    };
    if record.phase != Phase::Wanted {
        let (what, done) = match record.phase {
            Phase::Moving => ("being moved to another node", "moved"),
            Phase::Removing | Phase::Wanted => ("being removed", "removed"),
        };
        let reason = silent.map_or_else(
            || what.to_owned(),
            |(silent, _)| format!("{silent}; {done} once it is back and says so"),
        );
        return say(InstanceState::Stopping, reason, record.changed);
    }
    if let Some((reason, since)) = silent {
        return say(InstanceState::Unknown, reason, since);
    }
    match observed {
        Some(observed) if observed.epoch >= record.epoch => from_node(observed),
        Some(_) => say(
            InstanceState::Preparing,
            format!("node {name} is replacing it by a new one"),
            record.changed,
        ),
        None => say(
            InstanceState::Pending,
            format!("placed on node {name}"),
            record.changed,
        ),
    }
}

fn from_node(observed: &Observed) -> Derived {
    let vm = |state| Derived {
        state,
        reason: observed.vm_reason.clone(),
        since: observed.vm_since,
    };
    match observed.vm {
        VmState::Pending => vm(InstanceState::Pending),
        VmState::Preparing | VmState::Booting if observed.recovered => {
            vm(InstanceState::Recovering)
        }
        VmState::Preparing => vm(InstanceState::Preparing),
        VmState::Booting => vm(InstanceState::Booting),
        VmState::Running => running(observed),
        VmState::Stopping => vm(InstanceState::Stopping),
        VmState::Stopped => vm(InstanceState::Stopped),
        VmState::Backoff => vm(InstanceState::Recovering),
        VmState::Failed => vm(InstanceState::Failed),
        VmState::Paused => vm(InstanceState::Paused),
    }
}

fn running(observed: &Observed) -> Derived {
    let Some((role, reason, since)) = &observed.role else {
        return Derived {
            state: InstanceState::Starting,
            reason: "the guest agent is up; the role is not reported yet".to_owned(),
            since: observed.vm_since,
        };
    };
    let state = match role {
        RoleState::Starting => InstanceState::Starting,
        RoleState::Ready => InstanceState::Ready,
        RoleState::Busy => InstanceState::Busy,
        RoleState::Unhealthy => InstanceState::Unhealthy,
        RoleState::Stopped => InstanceState::Stopped,
    };
    // A role cannot have been in a state for longer than its guest has run,
    // whatever the guest's clock says.
    Derived {
        state,
        reason: reason.clone(),
        since: (*since).max(observed.vm_since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::instance::tests::record;

    const T1: WallTime = WallTime::from_micros(1);
    const T2: WallTime = WallTime::from_micros(2);

    fn observed(vm: VmState, role: Option<RoleState>) -> Observed {
        Observed {
            epoch: 1,
            vm,
            vm_reason: "vm".to_owned(),
            vm_since: T1,
            recovered: false,
            role: role.map(|state| (state, "role".to_owned(), T2)),
        }
    }

    fn word(vm: VmState, role: Option<RoleState>) -> InstanceState {
        derive(&record("n1"), NodeView::Heard, Some(&observed(vm, role))).state
    }

    #[test]
    fn the_word_is_the_roles_while_its_guest_runs() {
        use RoleState as R;
        for (role, expected) in [
            (R::Starting, InstanceState::Starting),
            (R::Ready, InstanceState::Ready),
            (R::Busy, InstanceState::Busy),
            (R::Unhealthy, InstanceState::Unhealthy),
            (R::Stopped, InstanceState::Stopped),
        ] {
            assert_eq!(word(VmState::Running, Some(role)), expected);
        }
        assert_eq!(word(VmState::Running, None), InstanceState::Starting);
    }

    #[test]
    fn the_last_report_of_a_guest_that_is_down_does_not_count() {
        let ready = Some(RoleState::Ready);
        assert_eq!(word(VmState::Backoff, ready), InstanceState::Recovering);
        assert_eq!(word(VmState::Booting, ready), InstanceState::Booting);
        assert_eq!(word(VmState::Failed, ready), InstanceState::Failed);
        assert_eq!(word(VmState::Stopped, ready), InstanceState::Stopped);
        assert_eq!(word(VmState::Paused, ready), InstanceState::Paused);
    }

    #[test]
    fn a_boot_after_a_failure_is_a_recovery() {
        let again = Observed {
            recovered: true,
            ..observed(VmState::Booting, None)
        };
        let state = derive(&record("n1"), NodeView::Heard, Some(&again)).state;
        assert_eq!(state, InstanceState::Recovering);
    }

    #[test]
    fn nothing_is_known_of_an_instance_whose_node_is_not_heard() {
        let ready = observed(VmState::Running, Some(RoleState::Ready));
        let derived = derive(&record("n1"), NodeView::Lost(T2), Some(&ready));
        assert_eq!((derived.state, derived.since), (InstanceState::Unknown, T2));
        assert_eq!(derived.reason, "node n1 is not heard");
        let derived = derive(&record("n1"), NodeView::NotYetHeard, None);
        assert_eq!(derived.state, InstanceState::Unknown);
    }

    #[test]
    fn one_that_goes_is_stopping_whatever_its_node_says() {
        let mut going = record("n1");
        going.phase = Phase::Removing;
        let ready = observed(VmState::Running, Some(RoleState::Ready));
        for node in [NodeView::Heard, NodeView::NotYetHeard, NodeView::Lost(T1)] {
            assert_eq!(
                derive(&going, node, Some(&ready)).state,
                InstanceState::Stopping
            );
        }
    }

    #[test]
    fn an_instance_without_a_node_says_why() {
        let mut homeless = record("n1");
        homeless.node = None;
        homeless.unplaceable = "no node is connected".to_owned();
        let derived = derive(&homeless, NodeView::NotYetHeard, None);
        assert_eq!(derived.state, InstanceState::Pending);
        assert_eq!(derived.reason, "no node is connected");
    }

    #[test]
    fn a_report_under_an_older_epoch_is_of_its_predecessor() {
        let mut renewed = record("n1");
        renewed.epoch = 9;
        let ready = observed(VmState::Running, Some(RoleState::Ready));
        let derived = derive(&renewed, NodeView::Heard, Some(&ready));
        assert_eq!(derived.state, InstanceState::Preparing);
    }

    #[test]
    fn a_guests_clock_that_is_wrong_does_not_age_its_state() {
        let mut skewed = observed(VmState::Running, Some(RoleState::Ready));
        skewed.vm_since = WallTime::from_micros(50);
        assert_eq!(
            derive(&record("n1"), NodeView::Heard, Some(&skewed)).since,
            skewed.vm_since
        );
    }
}
