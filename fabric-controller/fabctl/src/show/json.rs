//! Things as JSON: names as in the `.proto` files, enums as words, times as RFC
//! 3339, durations in milliseconds.

use fabric_proto::{
    guest::v1::{RoleExit, role_exit::How},
    node::v1::SnapshotStatus,
    v1::{
        Blob, Change, Deployment, Event, GetControllerResponse, Instance, Node, PlannedStep,
        Revision, Service, Update,
    },
};
use serde_json::{Value, json};

use super::words;

/// The controller.
#[must_use]
pub fn controller(controller: &GetControllerResponse) -> Value {
    json!({
        "version": controller.version,
        "now": words::rfc3339(controller.now.as_ref()),
        "started": words::rfc3339(controller.started.as_ref()),
        "disk_bytes": controller.disk_bytes,
        "disk_free_bytes": controller.disk_free_bytes,
        "heartbeat_period_ms": words::millis(controller.heartbeat_period.as_ref()),
        "lost_after_ms": words::millis(controller.lost_after.as_ref()),
        "lease_ms": words::millis(controller.lease.as_ref()),
        "events_kept": controller.events_kept,
    })
}

/// A node.
#[must_use]
pub fn node(node: &Node) -> Value {
    let inventory = node.inventory.clone().unwrap_or_default();
    json!({
        "node_id": node.node_id,
        "connected": node.connected,
        "last_seen": words::rfc3339(node.last_seen.as_ref()),
        "inventory": {
            "cpus": inventory.cpus,
            "memory_bytes": inventory.memory_bytes,
            "disk_bytes": inventory.disk_bytes,
            "kvm_kind": inventory.kvm_kind,
            "kernel_release": inventory.kernel_release,
            "cpu_model": inventory.cpu_model,
            "hostname": inventory.hostname,
            "architecture": inventory.architecture,
            "resources": inventory.resources,
        },
        "labels": node.labels,
        "operator_labels": node.operator_labels,
        "fault_domain": node.fault_domain,
        "operator_fault_domain": node.operator_fault_domain,
        "cordoned": node.cordoned,
        "draining": node.draining,
        "fenced": node.fenced,
        "blame": node.blame,
        "blamed_for": node.blamed_for,
        "condemned": node.condemned,
        "unsteady_until": words::rfc3339(node.unsteady_until.as_ref()),
        "disk_free_bytes": node.disk_free_bytes,
        "agent_version": node.agent_version,
        "instances": node.instances,
        "vcpus_used": node.vcpus_used,
        "memory_used_bytes": node.memory_used_bytes,
        "resources_used": node.resources_used,
        "goal_incarnation": node.goal_incarnation,
        "applied_incarnation": node.applied_incarnation,
    })
}

/// An image or a package.
#[must_use]
pub fn blob(blob: &Blob) -> Value {
    json!({
        "name": blob.name,
        "kind": words::blob_kind(blob.kind()),
        "digest": blob.digest,
        "size_bytes": blob.size_bytes,
        "virtual_bytes": blob.virtual_bytes,
        "vhd_type": blob.vhd_type,
        "architecture": blob.architecture,
        "created": words::rfc3339(blob.created.as_ref()),
        "used_by": blob.used_by,
    })
}

/// A change.
#[must_use]
pub fn change(change: &Change) -> Value {
    json!({
        "action": words::change_action(change.action()),
        "subject": change.subject,
        "detail": change.detail,
    })
}

/// A step of an update.
#[must_use]
pub fn step(step: &PlannedStep) -> Value {
    json!({
        "upgrade_domain": step.upgrade_domain,
        "role": step.role,
        "instance_ids": step.instance_ids,
        "effect": words::effect(step.effect()),
        "why": step.why,
        "when": step.when,
    })
}

/// A service.
#[must_use]
pub fn service(service: &Service) -> Value {
    json!({
        "name": service.name,
        "generation": service.generation,
        "definition_toml": service.definition_toml,
        "roles": roles(&service.roles),
        "created": words::rfc3339(service.created.as_ref()),
        "updated": words::rfc3339(service.updated.as_ref()),
        "deployments": service.deployments.iter().map(deployment).collect::<Vec<_>>(),
    })
}

fn roles(roles: &[fabric_proto::v1::ServiceRole]) -> Vec<Value> {
    let roles = roles.iter().map(|role| {
        json!({
            "name": role.name,
            "kind": words::role_kind(role.kind()),
            "size": role.size,
            "instances": role.instances,
            "ready": role.ready,
            "image": role.image,
            "package": role.package,
            "upgrade_domains": role.upgrade_domains,
            "fault_domains": role.fault_domains,
            "availability_set": role.availability_set,
            "spread": role.spread,
            "node_labels": role.node_labels,
            "kvm": role.kvm,
        })
    });
    roles.collect()
}

fn deployment(one: &Deployment) -> Value {
    json!({
        "slot": words::slot(one.slot()),
        "revision": one.revision,
        "definition_toml": one.definition_toml,
        "roles": roles(&one.roles),
        "update": one.update.as_ref().map(update),
    })
}

/// An update.
#[must_use]
pub fn update(update: &Update) -> Value {
    let current = update.current.as_ref().map(|current| {
        json!({
            "upgrade_domain": current.number,
            "begun": words::rfc3339(current.begun.as_ref()),
            "ready_since": words::rfc3339(current.ready_since.as_ref()),
        })
    });
    json!({
        "state": words::update_state(update.state()),
        "stopped_because": update.stopped_because,
        "cause": update.cause,
        "roles": update.roles,
        "started": words::rfc3339(update.started.as_ref()),
        "ended": words::rfc3339(update.ended.as_ref()),
        "current": current,
        "done": update.done,
        "changed": update.changed,
        "instances": update.instances,
        "waits_for": update.waits_for,
        "can_be_aborted": update.has_previous,
    })
}

/// A revision.
#[must_use]
pub fn revision(revision: &Revision) -> Value {
    json!({
        "number": revision.number,
        "time": words::rfc3339(revision.time.as_ref()),
        "who": revision.who,
        "what": revision.what,
        "slot": words::slot(revision.slot()),
        "definition_toml": revision.definition_toml,
    })
}

/// An instance, with its status flat in it.
#[must_use]
pub fn instance(instance: &Instance) -> Value {
    let status = instance.status.clone().unwrap_or_default();
    let role = status.role.clone().unwrap_or_default();
    // The VMM's last words are JSON; anything else is passed on as text.
    let last_exit = match status.last_exit_json.as_str() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
    };
    json!({
        "instance_id": instance.instance_id,
        "service": instance.service,
        "role": instance.role,
        "slot": words::slot(instance.slot()),
        "upgrade_domain": instance.upgrade_domain,
        "revision": instance.revision,
        "node_id": instance.node_id,
        "state": instance.state,
        "power": words::power(instance.power()),
        "reason": instance.reason,
        "since": words::rfc3339(instance.since.as_ref()),
        "epoch": instance.epoch,
        "size": instance.size,
        "vcpus": instance.vcpus,
        "memory_bytes": instance.memory_bytes,
        "resources": instance.resources,
        "vm_state": words::vm_state(&status),
        "vm_reason": status.vm_reason,
        "vm_since": words::rfc3339(status.vm_since.as_ref()),
        "vmm_pid": status.vmm_pid,
        "boots": status.boots,
        "vm_restarts": status.vm_restarts,
        "reimages": status.reimages,
        "boot_id": status.boot_id,
        "boot_to_hello_ms": words::millis(status.boot_to_hello.as_ref()),
        "restart_generation": status.restart_generation,
        "last_end": status.last_end.as_ref().map(words::vm_end),
        "last_end_detail": status.last_end.as_ref().map(|end| end.detail.as_str()),
        "last_end_time": words::rfc3339(status.last_end.as_ref().and_then(|end| end.time.as_ref())),
        "restored_generation": status.restored_generation,
        "restore_error": status.restore_error,
        "snapshots": instance.snapshots.iter().map(snapshot).collect::<Vec<_>>(),
        "last_exit": last_exit,
        "role_state": words::role_state(&role),
        "role_reason": role.reason,
        "role_since": words::rfc3339(role.since.as_ref()),
        "role_pid": role.pid,
        "role_restarts": role.restarts,
        "role_restart_generation": role.restart_generation,
        "role_consecutive_failures": role.consecutive_failures,
        "role_last_exit": role.last_exit.as_ref().map(role_exit),
    })
}

/// A snapshot.
#[must_use]
pub fn snapshot(snapshot: &SnapshotStatus) -> Value {
    json!({
        "name": snapshot.name,
        "state": words::snapshot_state(snapshot),
        "reason": snapshot.reason,
        "taken": words::rfc3339(snapshot.taken.as_ref()),
        "bytes": snapshot.bytes,
    })
}

fn role_exit(exit: &RoleExit) -> Value {
    let (key, value) = match &exit.how {
        Some(How::ExitCode(code)) => ("exit_code", Value::from(*code)),
        Some(How::Signal(signal)) => ("signal", Value::from(*signal)),
        Some(How::SpawnError(why)) => ("spawn_error", Value::from(why.as_str())),
        None => ("exit_code", Value::Null),
    };
    json!({ key: value, "by_agent": exit.by_agent })
}

/// An event.
#[must_use]
pub fn event(event: &Event) -> Value {
    json!({
        "cursor": event.cursor,
        "time": words::rfc3339(event.time.as_ref()),
        "reason": event.reason,
        "message": event.message,
        "warning": event.warning,
        "subject_kind": event.subject_kind,
        "subject": event.subject,
        "source": event.source,
        "cause": event.cause.as_ref().map(|cause| json!({
            "reason": cause.reason,
            "subject_kind": cause.subject_kind,
            "subject": cause.subject,
        })),
    })
}

#[cfg(test)]
mod tests {
    use fabric_proto::{
        guest::v1::{RoleState, RoleStatus},
        node::v1::{InstanceStatus, VmEnd, VmEndCause, VmState},
    };

    use super::*;

    #[test]
    fn an_instance_has_its_status_flat_in_it() {
        let status = InstanceStatus {
            vm_state: VmState::Running.into(),
            boot_to_hello: Some(prost_types::Duration {
                seconds: 6,
                nanos: 120_000_000,
            }),
            last_exit_json: r#"{"reason":"killed"}"#.to_owned(),
            last_end: Some(VmEnd {
                cause: VmEndCause::TripleFault.into(),
                detail: "at 0x0".to_owned(),
                time: None,
            }),
            role: Some(RoleStatus {
                state: RoleState::Ready.into(),
                restarts: 2,
                ..Default::default()
            }),
            ..Default::default()
        };
        let shown = instance(&Instance {
            status: Some(status),
            ..Default::default()
        });
        assert_eq!(shown["vm_state"], "running");
        assert_eq!(shown["role_state"], "ready");
        assert_eq!(shown["role_restarts"], 2);
        assert_eq!(shown["boot_to_hello_ms"], 6120);
        assert_eq!(shown["last_exit"]["reason"], "killed");
        assert_eq!(shown["last_end"], "triple_fault");
        assert_eq!(shown["last_end_detail"], "at 0x0");
    }

    #[test]
    fn an_instance_that_no_node_has_reported_is_shown_too() {
        let shown = instance(&Instance::default());
        assert_eq!(shown["vm_state"], "");
        assert_eq!(shown["last_exit"], Value::Null);
    }
}
