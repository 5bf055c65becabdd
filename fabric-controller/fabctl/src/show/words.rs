//! Enums, times and sizes in words.

use std::time::{Duration, SystemTime};

use fabric_proto::{
    guest::v1::{RoleKind, RoleState, RoleStatus},
    node::v1::{InstancePower, InstanceStatus, SnapshotStatus, VmEnd, VmEndCause, VmState},
    v1::{BlobKind, ChangeAction, Effect, Node, Slot, UpdateState},
};
use prost_types::Timestamp;

/// The word of an enum's value without its prefix, in lower case.
fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        Some("UNSPECIFIED") | None => String::new(),
        Some(word) => word.to_lowercase(),
    }
}

/// State of a virtual machine.
#[must_use]
pub fn vm_state(status: &InstanceStatus) -> String {
    word(VmState::as_str_name(&status.vm_state()), "VM_STATE_")
}

/// What an operator wants of an instance.
#[must_use]
pub fn power(power: InstancePower) -> String {
    word(power.as_str_name(), "INSTANCE_POWER_")
}

/// Why a virtual machine ended.
#[must_use]
pub fn vm_end(end: &VmEnd) -> String {
    word(VmEndCause::as_str_name(&end.cause()), "VM_END_CAUSE_")
}

/// State of a snapshot.
#[must_use]
pub fn snapshot_state(snapshot: &SnapshotStatus) -> String {
    word(snapshot.state().as_str_name(), "SNAPSHOT_STATE_")
}

/// State of a role.
#[must_use]
pub fn role_state(role: &RoleStatus) -> String {
    word(RoleState::as_str_name(&role.state()), "ROLE_STATE_")
}

/// Kind of a role.
#[must_use]
pub fn role_kind(kind: RoleKind) -> String {
    word(kind.as_str_name(), "ROLE_KIND_")
}

/// Kind of a blob.
#[must_use]
pub fn blob_kind(kind: BlobKind) -> String {
    word(kind.as_str_name(), "BLOB_KIND_")
}

/// Kind of a change.
#[must_use]
pub fn change_action(action: ChangeAction) -> String {
    word(action.as_str_name(), "CHANGE_ACTION_")
}

/// Where a deployment is.
#[must_use]
pub fn slot(slot: Slot) -> String {
    word(slot.as_str_name(), "SLOT_")
}

/// How an update stands.
#[must_use]
pub fn update_state(state: UpdateState) -> String {
    word(state.as_str_name(), "UPDATE_STATE_")
}

/// What becomes of an instance that is changed.
#[must_use]
pub fn effect(effect: Effect) -> String {
    word(effect.as_str_name(), "EFFECT_")
}

/// Why a node is given no new instances though it may be there.
#[must_use]
pub fn closed(node: &Node) -> Vec<&'static str> {
    let order = match (node.draining, node.cordoned) {
        (true, _) => Some("draining"),
        (false, true) => Some("cordoned"),
        (false, false) => None,
    };
    let condemned = node.condemned.then_some("condemned");
    let unsteady = node.unsteady_until.map(|_| "unsteady");
    order.into_iter().chain(condemned).chain(unsteady).collect()
}

/// A time as RFC 3339 says it; `None` if there is none that can be said so.
#[must_use]
pub fn rfc3339(time: Option<&Timestamp>) -> Option<String> {
    let time = SystemTime::try_from(*time?).ok()?;
    // Years beyond 9999 cannot be written, and are wrong.
    let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    (SystemTime::UNIX_EPOCH..=latest)
        .contains(&time)
        .then(|| humantime::format_rfc3339_millis(time).to_string())
}

/// How long ago that was, in its biggest unit.
#[must_use]
pub fn age(time: Option<&Timestamp>, now: SystemTime) -> String {
    let Some(time) = time.and_then(|time| SystemTime::try_from(*time).ok()) else {
        return "-".to_owned();
    };
    let seconds = now.duration_since(time).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Clock time of a point in time, for a line of a log.
#[must_use]
pub fn clock(time: Option<&Timestamp>) -> String {
    rfc3339(time)
        .and_then(|text| text.get(11..23).map(str::to_owned))
        .unwrap_or_default()
}

/// A size for people.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// A duration in milliseconds.
#[must_use]
pub fn millis(duration: Option<&prost_types::Duration>) -> Option<u64> {
    let duration = Duration::try_from(*duration?).ok()?;
    u64::try_from(duration.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_their_biggest_unit() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ago = |seconds: i64| {
            age(
                Some(&Timestamp {
                    seconds: 1_000_000 - seconds,
                    nanos: 0,
                }),
                now,
            )
        };
        assert_eq!(
            [ago(5), ago(119), ago(600), ago(7200), ago(900_000)],
            ["5s", "119s", "10m", "2h", "10d"]
        );
        assert_eq!(ago(-50), "0s");
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn a_time_that_cannot_be_is_none() {
        assert_eq!(
            rfc3339(Some(&Timestamp {
                seconds: 0,
                nanos: 5_000_000
            }))
            .as_deref(),
            Some("1970-01-01T00:00:00.005Z")
        );
        assert_eq!(
            rfc3339(Some(&Timestamp {
                seconds: i64::MAX,
                nanos: 0
            })),
            None
        );
        assert_eq!(
            rfc3339(Some(&Timestamp {
                seconds: -1,
                nanos: 0
            })),
            None
        );
    }

    #[test]
    fn enums_are_lower_case_words_without_their_prefix() {
        let status = InstanceStatus {
            vm_state: VmState::Backoff.into(),
            ..Default::default()
        };
        assert_eq!(vm_state(&status), "backoff");
        assert_eq!(role_kind(RoleKind::Web), "web");
        assert_eq!(blob_kind(BlobKind::Unspecified), "");
    }
}
