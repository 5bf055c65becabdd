//! A node's goal state from the instances that it is to have.
//!
//! Pure; this is where the model meets `fabric.node.v1`. The fingerprint says
//! whether two goals ask for the same, whatever their numbers.

use std::time::Duration;

use fabric_proto::{
    guest::v1::{
        ExecProbe, HttpProbe, Probe as ProbeMessage, RestartMode as RestartModeMessage,
        RestartPolicy as RestartPolicyMessage, RoleKind as RoleKindMessage, RoleSpec, TcpProbe,
        WarmStart, probe,
    },
    node::v1::{
        InstanceGoal, InstancePower, NodeGoal, OutputRequest, RestartScope as RestartScopeMessage,
        SnapshotGoal,
    },
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::model::{
    definition::{Check, Probe, RestartMode, Role, RoleKind},
    instance::{InstanceRecord, Phase, RestartScope},
    keep::Snapshot,
};

/// What every node is held to.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How often it reports at least.
    pub heartbeat_period: Duration,
    /// How long its lease lasts, if it needs one.
    pub lease: Option<Duration>,
}

/// The goal, without its number. `instances` are those placed on the node.
#[must_use]
pub fn node_goal<'a>(
    instances: impl Iterator<Item = &'a InstanceRecord>,
    outputs: Vec<OutputRequest>,
    terms: Terms,
) -> NodeGoal {
    let mut instances: Vec<_> = instances
        .filter(|record| record.phase == Phase::Wanted)
        .map(instance_goal)
        .collect();
    instances.sort_by(|a, b| a.instance_id.cmp(&b.instance_id));
    NodeGoal {
        incarnation: 0,
        instances,
        outputs,
        heartbeat_period: Some(duration(terms.heartbeat_period)),
        lease: terms.lease.map(duration),
    }
}

/// What the goal asks for, in short.
#[must_use]
pub fn fingerprint(goal: &NodeGoal) -> String {
    let content = NodeGoal {
        incarnation: 0,
        ..goal.clone()
    };
    let sum: [u8; 32] = Sha256::digest(content.encode_to_vec()).into();
    fabric_proto::id::Digest::of_sha256(&sum).hex().to_owned()
}

fn instance_goal(record: &InstanceRecord) -> InstanceGoal {
    let spec = &record.spec;
    let package = spec.package.as_ref();
    InstanceGoal {
        instance_id: record.id.to_string(),
        epoch: record.epoch,
        power: power(record).into(),
        vcpus: spec.size.vcpus,
        memory_bytes: spec.size.memory_bytes,
        cpu_weight: spec.size.cpu_weight,
        image_digest: spec.image.digest.to_string(),
        image_bytes: spec.image.size_bytes,
        package_digest: package
            .map(|package| package.digest.to_string())
            .unwrap_or_default(),
        package_bytes: package.map_or(0, |package| package.size_bytes),
        role: Some(role_spec(&spec.role, record.restart.role_generation)),
        restart_generation: record.restart.generation,
        restart_scope: record
            .restart
            .scope
            .map_or(RestartScopeMessage::Unspecified, scope)
            .into(),
        snapshots: record.keep.snapshots.iter().map(snapshot_goal).collect(),
        restore_snapshot: record
            .keep
            .restore
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        stop_grace: record.keep.stop_grace.map(duration),
    }
}

/// What its node is to do with it.
#[must_use]
pub const fn power(record: &InstanceRecord) -> InstancePower {
    if record.keep.stopped {
        InstancePower::Stopped
    } else if record.keep.paused {
        InstancePower::Paused
    } else {
        InstancePower::Running
    }
}

fn snapshot_goal(snapshot: &Snapshot) -> SnapshotGoal {
    SnapshotGoal {
        name: snapshot.name.to_string(),
        generation: snapshot.generation,
    }
}

const fn scope(scope: RestartScope) -> RestartScopeMessage {
    match scope {
        RestartScope::Role => RestartScopeMessage::Role,
        RestartScope::Vm => RestartScopeMessage::Vm,
        RestartScope::Reimage => RestartScopeMessage::Reimage,
        RestartScope::Restore => RestartScopeMessage::Restore,
        RestartScope::Reset => RestartScopeMessage::Reset,
    }
}

fn role_spec(role: &Role, restart_generation: u64) -> RoleSpec {
    let mode = match role.restart.mode {
        RestartMode::Always => RestartModeMessage::Always,
        RestartMode::OnFailure => RestartModeMessage::OnFailure,
        RestartMode::Never => RestartModeMessage::Never,
    };
    RoleSpec {
        name: role.name.to_string(),
        kind: role_kind(role.kind).into(),
        command: role.command.clone(),
        environment: role.environment.clone(),
        settings: role.settings.clone(),
        uid: role.user,
        package_disk_serial: String::new(),
        liveness: role.liveness.as_ref().map(probe_message),
        readiness: role.readiness.as_ref().map(probe_message),
        startup_grace: Some(duration(role.startup_grace)),
        restart_policy: Some(RestartPolicyMessage {
            mode: mode.into(),
            backoff_initial: Some(duration(role.restart.backoff_initial)),
            backoff_max: Some(duration(role.restart.backoff_max)),
        }),
        stop_grace: Some(duration(role.stop_grace)),
        restart_generation,
        warm_start: role.warm_start.as_ref().map(|warm| WarmStart {
            before_snapshot: warm.before_snapshot.clone(),
            after_start: warm.after_start.clone(),
        }),
        deliver_settings: role.deliver_settings,
    }
}

/// The kind, as guests and operators are told it.
#[must_use]
pub const fn role_kind(kind: RoleKind) -> RoleKindMessage {
    match kind {
        RoleKind::Web => RoleKindMessage::Web,
        RoleKind::Worker => RoleKindMessage::Worker,
        RoleKind::Vm => RoleKindMessage::Vm,
    }
}

fn probe_message(probe: &Probe) -> ProbeMessage {
    let check = match &probe.check {
        Check::Exec(command) => probe::Check::Exec(ExecProbe {
            command: command.clone(),
        }),
        Check::Tcp(port) => probe::Check::Tcp(TcpProbe {
            port: (*port).into(),
        }),
        Check::Http { port, path } => probe::Check::Http(HttpProbe {
            port: (*port).into(),
            path: path.clone(),
        }),
    };
    ProbeMessage {
        check: Some(check),
        period: Some(duration(probe.period)),
        timeout: Some(duration(probe.timeout)),
        failure_threshold: probe.failure_threshold,
        success_threshold: probe.success_threshold,
    }
}

/// Durations in service files are bounded to hours, far from what does not fit.
fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::instance::tests::record;

    const TERMS: Terms = Terms {
        heartbeat_period: Duration::from_secs(2),
        lease: None,
    };

    #[test]
    fn an_instance_that_goes_is_not_in_the_goal() {
        let mut going = record("n1");
        going.phase = Phase::Removing;
        let goal = node_goal([going].iter(), Vec::new(), TERMS);
        assert!(goal.instances.is_empty());
    }

    #[test]
    fn the_goal_says_everything_that_a_node_must_know() {
        let mut web = record("n1");
        web.restart = web
            .restart
            .again(RestartScope::Role)
            .again(RestartScope::Vm);
        let goal = node_goal([web].iter(), Vec::new(), TERMS);
        let instance = &goal.instances[0];
        assert_eq!(instance.instance_id, "shop-web-0");
        assert_eq!(instance.memory_bytes, 128 << 20);
        assert_eq!(instance.image_bytes, 1 << 20);
        assert_eq!(
            (instance.restart_generation, instance.restart_scope()),
            (2, RestartScopeMessage::Vm)
        );
        let role = instance.role.as_ref().unwrap();
        assert_eq!(
            (role.name.as_str(), role.uid, role.restart_generation),
            ("web", 1000, 1)
        );
    }

    #[test]
    fn what_is_stopped_is_in_the_goal_and_stays_down() {
        let mut stopped = record("n1");
        stopped.keep.stopped = true;
        for paused in [false, true] {
            stopped.keep.paused = paused;
            let goal = node_goal([&stopped].into_iter(), Vec::new(), TERMS);
            assert_eq!(goal.instances[0].power(), InstancePower::Stopped);
        }
    }

    #[test]
    fn the_fingerprint_is_of_the_content_alone() {
        let goal = |record: &InstanceRecord| node_goal(std::iter::once(record), Vec::new(), TERMS);
        let web = record("n1");
        let numbered = NodeGoal {
            incarnation: 7,
            ..goal(&web)
        };
        assert_eq!(fingerprint(&goal(&web)), fingerprint(&numbered));
        let mut other = web.clone();
        other.epoch = 2;
        assert_ne!(fingerprint(&goal(&web)), fingerprint(&goal(&other)));
    }
}
