//! The node's goal state, checked where it enters.
//!
//! A goal with one bad instance is still a goal for the others: each instance is
//! checked by itself, and one that is refused is left as it is.

mod epochs;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fabric_proto::{
    guest::v1 as guest,
    id::{Digest, InstanceId, RoleName, SnapshotName},
    node::v1 as wire,
};
use prost::Message as _;

pub use epochs::EpochStore;
pub use store::GoalStore;

use crate::{
    guest::report::duration,
    hypervisor::USUAL_CPU_WEIGHT,
    instance::state::{Presence, Scope, SnapshotWanted, Wanted},
};

/// Largest weight of a control group (admin-guide/cgroup-v2.rst).
const MOST_CPU_WEIGHT: u32 = 10_000;
/// Longest time that a role is given to end.
const LONGEST_GRACE: Duration = Duration::from_secs(3600);
/// Most instances that one node is given.
const MOST_INSTANCES: usize = 4096;
/// Longest role in a goal, encoded, in bytes.
const LONGEST_ROLE: usize = 256 * 1024;
/// Least memory that a guest kernel starts in.
const LEAST_MEMORY_MIB: u64 = 32;
/// Most memory of one guest.
const MOST_MEMORY_MIB: u64 = 1024 * 1024;
const MIB: u64 = 1024 * 1024;
/// Shortest lease that can be kept.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);
/// Most snapshots of one instance.
const MOST_SNAPSHOTS: usize = 64;

/// What is wrong with a goal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoalError {
    /// A field of an instance holds what it must not.
    #[error("{field} is {value}, must be {rule}")]
    Field {
        /// Its name in the contract.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// An epoch that has been superseded.
    #[error("epoch {given} is lower than {seen}, which this node has seen for it")]
    Epoch {
        /// What was sent.
        given: u64,
        /// What had been seen.
        seen: u64,
    },
    /// A goal that has been superseded.
    #[error("goal incarnation {given} is lower than {seen}, which this node has seen")]
    Incarnation {
        /// What was sent.
        given: u64,
        /// What had been seen.
        seen: u64,
    },
}

/// A file that is named by its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRef {
    /// Its digest.
    pub digest: Digest,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// One instance to have.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceGoal {
    /// Which.
    pub id: InstanceId,
    /// Under which epoch.
    pub epoch: u64,
    /// Whether it runs.
    pub presence: Presence,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Its part of the processors where others want them too.
    pub cpu_weight: u32,
    /// Its operating system.
    pub image: BlobRef,
    /// What its role needs.
    pub package: Option<BlobRef>,
    /// Its role, as the guest agent is told.
    pub role: Arc<guest::RoleSpec>,
    /// Counts operators' restarts.
    pub restart_generation: u64,
    /// What the last of them restarts.
    pub restart_scope: Scope,
    /// Snapshots to have.
    pub snapshots: Vec<SnapshotWanted>,
    /// The snapshot to go back to, when that is the scope.
    pub restore: Option<SnapshotName>,
    /// How long the role has to end, where an operator chose that.
    pub stop_grace: Option<Duration>,
}

impl InstanceGoal {
    /// What its machine must know.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        let package = self
            .package
            .as_ref()
            .map_or("", |package| package.digest.as_str());
        let policy = self
            .role
            .restart_policy
            .as_ref()
            .map(guest::RestartPolicy::mode);
        Wanted {
            presence: self.presence,
            disk: self.image.digest.to_string(),
            epoch: self.epoch,
            shape: format!("{} vcpus, {} MiB, {package}", self.vcpus, self.memory_mib),
            restart_generation: self.restart_generation,
            restart_scope: self.restart_scope,
            always_on: matches!(
                policy,
                None | Some(guest::RestartMode::Unspecified | guest::RestartMode::Always)
            ),
            stop_grace: self
                .stop_grace
                .or_else(|| duration(self.role.stop_grace))
                .unwrap_or_default(),
            snapshots: self.snapshots.clone(),
            restore: self.restore.clone(),
        }
    }
}

/// The node's whole goal state.
#[derive(Debug, Clone, Default)]
pub struct NodeGoal {
    /// Its number.
    pub incarnation: u64,
    /// Instances to have; those that were refused with the reason.
    pub instances: BTreeMap<InstanceId, Result<InstanceGoal, GoalError>>,
    /// What is wrong with instances that do not even have an id.
    pub nameless: Vec<GoalError>,
    /// Output that operators want to see.
    pub outputs: Vec<wire::OutputRequest>,
    /// How often to send a status at least.
    pub heartbeat_period: Option<Duration>,
    /// How long a lease lasts, if one is needed.
    pub lease: Option<Duration>,
}

impl NodeGoal {
    /// Checks what the controller sent.
    #[must_use]
    pub fn check(goal: wire::NodeGoal) -> Self {
        let mut checked = Self {
            incarnation: goal.incarnation,
            outputs: goal.outputs,
            heartbeat_period: duration(goal.heartbeat_period).filter(|period| !period.is_zero()),
            lease: duration(goal.lease).map(|lease| lease.max(SHORTEST_LEASE)),
            ..Self::default()
        };
        for instance in goal.instances.into_iter().take(MOST_INSTANCES) {
            match instance.instance_id.parse::<InstanceId>() {
                Ok(id) => {
                    let result = check_instance(id.clone(), instance);
                    checked.instances.insert(id, result);
                }
                Err(error) => checked.nameless.push(GoalError::Field {
                    field: "instance_id",
                    value: error.to_string(),
                    rule: "the id of an instance",
                }),
            }
        }
        checked
    }
}

fn check_instance(id: InstanceId, goal: wire::InstanceGoal) -> Result<InstanceGoal, GoalError> {
    let presence = match goal.power() {
        wire::InstancePower::Stopped => Presence::Stop,
        wire::InstancePower::Paused => Presence::Pause,
        wire::InstancePower::Running | wire::InstancePower::Unspecified => Presence::Run,
    };
    let restart_scope = match goal.restart_scope() {
        wire::RestartScope::Role | wire::RestartScope::Unspecified => Scope::Role,
        wire::RestartScope::Vm => Scope::Vm,
        wire::RestartScope::Reimage => Scope::Reimage,
        wire::RestartScope::Restore => Scope::Restore,
        wire::RestartScope::Reset => Scope::Reset,
    };
    let restore = match goal.restore_snapshot.as_str() {
        "" if restart_scope == Scope::Restore => {
            let rule = "the snapshot to go back to";
            return Err(refused("restore_snapshot", &"empty", rule));
        }
        "" => None,
        name => Some(check_snapshot("restore_snapshot", name)?),
    };
    let vcpus = u8::try_from(goal.vcpus)
        .ok()
        .filter(|vcpus| (1..=8).contains(vcpus))
        .ok_or_else(|| refused("vcpus", &goal.vcpus, "1 to 8"))?;
    let memory = goal.memory_bytes;
    let memory_mib = (memory / MIB)
        .try_into()
        .ok()
        .filter(|_| memory.is_multiple_of(MIB))
        .filter(|_| (LEAST_MEMORY_MIB..=MOST_MEMORY_MIB).contains(&(memory / MIB)))
        .ok_or_else(|| refused("memory_bytes", &memory, "whole MiB, 32 MiB to 1 TiB"))?;
    let cpu_weight = match goal.cpu_weight {
        0 => USUAL_CPU_WEIGHT * u32::from(vcpus),
        weight @ 1..=MOST_CPU_WEIGHT => weight,
        weight => return Err(refused("cpu_weight", &weight, "0 to 10000")),
    };
    let package = if goal.package_digest.is_empty() {
        None
    } else {
        Some(check_blob(
            "package_digest",
            &goal.package_digest,
            goal.package_bytes,
        )?)
    };
    Ok(InstanceGoal {
        id,
        epoch: goal.epoch,
        presence,
        vcpus,
        memory_mib,
        cpu_weight,
        image: check_blob("image_digest", &goal.image_digest, goal.image_bytes)?,
        role: Arc::new(check_role(goal.role, package.is_some())?),
        package,
        restart_generation: goal.restart_generation,
        restart_scope,
        snapshots: check_snapshots(&goal.snapshots)?,
        restore,
        stop_grace: check_grace(goal.stop_grace)?,
    })
}

fn check_grace(goal: Option<prost_types::Duration>) -> Result<Option<Duration>, GoalError> {
    let Some(given) = goal else { return Ok(None) };
    let grace = Duration::try_from(given).ok();
    let grace = grace.filter(|grace| *grace <= LONGEST_GRACE);
    let seconds = given.seconds;
    grace.map(Some).ok_or_else(|| {
        let given = format!("{seconds} s");
        refused("stop_grace", &given, "0 s to 1 h")
    })
}

fn check_snapshots(goals: &[wire::SnapshotGoal]) -> Result<Vec<SnapshotWanted>, GoalError> {
    if goals.len() > MOST_SNAPSHOTS {
        return Err(refused("snapshots", &goals.len(), "64 at most"));
    }
    let mut names = BTreeSet::new();
    let checked = goals.iter().map(|goal| {
        let name = check_snapshot("snapshots.name", &goal.name)?;
        if !names.insert(name.clone()) {
            return Err(refused("snapshots.name", &name, "there once"));
        }
        let generation = goal.generation;
        Ok(SnapshotWanted { name, generation })
    });
    checked.collect()
}

fn check_snapshot(field: &'static str, name: &str) -> Result<SnapshotName, GoalError> {
    name.parse()
        .map_err(|_| refused(field, &format!("{name:.80?}"), "the name of a snapshot"))
}

fn check_blob(field: &'static str, digest: &str, bytes: u64) -> Result<BlobRef, GoalError> {
    let digest = digest.parse().map_err(|_| {
        refused(
            field,
            &format!("{digest:.80?}"),
            "\"sha256:\" and 64 hex digits",
        )
    })?;
    Ok(BlobRef { digest, bytes })
}

fn check_role(
    role: Option<guest::RoleSpec>,
    has_package: bool,
) -> Result<guest::RoleSpec, GoalError> {
    let mut role = role.ok_or_else(|| refused("role", &"absent", "there"))?;
    if role.name.parse::<RoleName>().is_err() {
        return Err(refused(
            "role.name",
            &format!("{:.80?}", role.name),
            "the name of a role",
        ));
    }
    if role.encoded_len() > LONGEST_ROLE {
        return Err(refused(
            "role",
            &format!("{} bytes", role.encoded_len()),
            "256 KiB at most",
        ));
    }
    role.package_disk_serial = if has_package {
        crate::instance::disks::PACKAGE_SERIAL.to_owned()
    } else {
        String::new()
    };
    Ok(role)
}

fn refused(field: &'static str, value: &dyn ToString, rule: &'static str) -> GoalError {
    GoalError::Field {
        field,
        value: value.to_string(),
        rule,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A goal that nothing is wrong with.
    pub(crate) fn instance(id: &str) -> wire::InstanceGoal {
        wire::InstanceGoal {
            instance_id: id.to_owned(),
            epoch: 1,
            power: wire::InstancePower::Running.into(),
            vcpus: 1,
            memory_bytes: 128 * MIB,
            image_digest: format!("sha256:{}", "ab".repeat(32)),
            image_bytes: 1 << 20,
            role: Some(guest::RoleSpec {
                name: "web".to_owned(),
                ..guest::RoleSpec::default()
            }),
            ..wire::InstanceGoal::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut wire::InstanceGoal)) -> String {
        let mut goal = instance("shop-web-0");
        change(&mut goal);
        let goal = wire::NodeGoal {
            instances: vec![goal],
            ..wire::NodeGoal::default()
        };
        let checked = NodeGoal::check(goal);
        checked
            .instances
            .into_values()
            .next()
            .unwrap()
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn each_wrong_field_is_named_with_its_value_and_the_rule() {
        assert_eq!(refusal(|goal| goal.vcpus = 9), "vcpus is 9, must be 1 to 8");
        assert_eq!(
            refusal(|goal| goal.memory_bytes += 1),
            "memory_bytes is 134217729, must be whole MiB, 32 MiB to 1 TiB"
        );
        assert!(refusal(|goal| goal.memory_bytes = u64::MAX).starts_with("memory_bytes"));
        assert!(refusal(|goal| goal.image_digest = "x".repeat(999)).starts_with("image_digest"));
        assert!(refusal(|goal| goal.role = None).starts_with("role is absent"));
        let hours = |hours: i64| prost_types::Duration {
            seconds: hours * 3600,
            nanos: 0,
        };
        assert_eq!(
            refusal(|goal| goal.stop_grace = Some(hours(2))),
            "stop_grace is 7200 s, must be 0 s to 1 h"
        );
        assert!(refusal(|goal| goal.stop_grace = Some(hours(-1))).starts_with("stop_grace"));
        assert!(
            refusal(|goal| {
                "../etc".clone_into(&mut goal.role.as_mut().unwrap().name);
            })
            .starts_with("role.name")
        );
    }

    #[test]
    fn one_bad_instance_does_not_cost_the_others() {
        let mut bad = instance("bad");
        bad.vcpus = 0;
        let goal = NodeGoal::check(wire::NodeGoal {
            incarnation: 3,
            instances: vec![instance("good"), bad, instance("../worse")],
            ..wire::NodeGoal::default()
        });
        assert!(goal.instances[&"good".parse().unwrap()].is_ok());
        assert!(goal.instances[&"bad".parse().unwrap()].is_err());
        assert_eq!((goal.instances.len(), goal.nameless.len()), (2, 1));
    }

    #[test]
    fn the_package_disk_is_named_to_the_guest_only_if_there_is_one() {
        let mut with = instance("with");
        with.package_digest.clone_from(&with.image_digest);
        let goal = NodeGoal::check(wire::NodeGoal {
            instances: vec![with, instance("without")],
            ..wire::NodeGoal::default()
        });
        let serial = |id: &str| {
            let goal = goal.instances[&id.parse().unwrap()].as_ref().unwrap();
            goal.role.package_disk_serial.clone()
        };
        assert_eq!(
            (serial("with").as_str(), serial("without").as_str()),
            ("package", "")
        );
    }
}
