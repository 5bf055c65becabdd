//! The border to the nodes: what they say is checked and cut to size here.
//!
//! What names something must be right, or the session ends. What is only for
//! people is shortened and cleaned, never refused.

use std::collections::BTreeMap;

use fabric_proto::{
    PROTOCOL_VERSION,
    id::{Digest, InstanceId, NodeId},
    node::v1::{self as node, InstanceStatus, NodeEvent, NodeStatus, Register},
};

use crate::{
    clock,
    error::{Error, Result},
    model::{
        architecture::Architecture,
        event::{Because, EventRecord, SubjectKind},
        label,
        node::Inventory,
        own::OwnResources,
        stock::{Stock, Template},
        time::WallTime,
    },
    registry::Report,
};

/// Longest line for people, in characters.
const LINE: usize = 1000;
/// Longest last words of a VMM, in bytes.
const LAST_WORDS: usize = 64 * 1024;
/// Most instances on one node.
const INSTANCES: usize = 10_000;
/// Most snapshots of one instance that a node may tell of.
const SNAPSHOTS: usize = 64;
/// Most images and packages in one node's cache, and most templates on it.
const STOCK: usize = 10_000;
/// Longest reason of an event.
const REASON: usize = 64;

/// One line for people: no control characters, and not too long.
pub(super) fn line(text: &str) -> String {
    let clean = text.chars().take(LINE);
    clean
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

/// Who a node says it is.
pub(super) struct Registration {
    pub(super) node_id: NodeId,
    pub(super) agent_version: String,
    pub(super) inventory: Inventory,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) seen_incarnation: u64,
}

/// Checks the first message of a session.
pub(super) fn register(message: Register) -> Result<Registration> {
    let node_id: NodeId = message
        .node_id
        .parse()
        .map_err(|error| Error::Invalid(format!("node_id: {error}")))?;
    if message.protocol_version != PROTOCOL_VERSION {
        return Err(Error::Precondition(format!(
            "the host agent of node {node_id} speaks protocol version {}, this controller {}; \
             update the older one",
            message.protocol_version, PROTOCOL_VERSION
        )));
    }
    if message.labels.len() > label::MOST {
        return Err(Error::Invalid(format!(
            "labels: there are more than {}",
            label::MOST
        )));
    }
    // One below the highest leaves room to count on.
    if message.seen_incarnation >= u64::MAX >> 1 {
        return Err(Error::Invalid(
            "seen_incarnation: no goal has such a number".to_owned(),
        ));
    }
    let inventory = message.inventory.unwrap_or_default();
    Ok(Registration {
        node_id,
        agent_version: line(&message.agent_version),
        inventory: Inventory {
            cpus: inventory.cpus,
            memory_bytes: inventory.memory_bytes,
            disk_bytes: inventory.disk_bytes,
            kvm_kind: line(&inventory.kvm_kind),
            kernel_release: line(&inventory.kernel_release),
            cpu_model: line(&inventory.cpu_model),
            hostname: line(&inventory.hostname),
            architecture: architecture(&inventory.architecture)?,
            resources: resources(inventory.resources)?,
        },
        labels: message
            .labels
            .iter()
            .map(|(key, value)| (line(key), line(value)))
            .collect(),
        seen_incarnation: message.seen_incarnation,
    })
}

/// Placement compares it with what images are for: one that is not known is no machine
/// for any. A host agent from before there was more than one says none.
fn architecture(said: &str) -> Result<Architecture> {
    if said.is_empty() {
        return Ok(Architecture::default());
    }
    let read = line(said).parse();
    read.map_err(|error| Error::Invalid(format!("architecture: {error}")))
}

/// Placement counts by these: what is wrong is not cut to size.
fn resources(said: BTreeMap<String, u64>) -> Result<OwnResources> {
    OwnResources::checked(said).map_err(|why| Error::Invalid(format!("resources: {why}")))
}

/// Checks what a node says it has that instances need not wait for.
pub(super) fn stock(said: &NodeStatus) -> Result<Stock> {
    for (what, count) in [
        ("cached_digests", said.cached_digests.len()),
        ("templates", said.templates.len()),
    ] {
        if count > STOCK {
            return Err(Error::Invalid(format!(
                "{what}: there are more than {STOCK}"
            )));
        }
    }
    let digest = |field: &str, digest: &str| {
        let read = digest.parse::<Digest>();
        read.map_err(|error| Error::Invalid(format!("{field}: {error}")))
    };
    let blobs = said.cached_digests.iter();
    let blobs = blobs.map(|said| digest("cached_digests", said));
    let templates = said.templates.iter().map(|said| {
        Ok(Template {
            image: digest("templates: image_digest", &said.image_digest)?,
            vcpus: said.vcpus,
            memory_bytes: said.memory_bytes,
        })
    });
    Ok(Stock {
        blobs: blobs.collect::<Result<_>>()?,
        templates: templates.collect::<Result<_>>()?,
    })
}

/// Checks a status.
pub(super) fn status(message: NodeStatus) -> Result<Report> {
    if message.instances.len() > INSTANCES {
        return Err(Error::Invalid(format!(
            "instances: there are more than {INSTANCES}"
        )));
    }
    let mut instances = BTreeMap::new();
    for status in message.instances {
        let id: InstanceId = status
            .instance_id
            .parse()
            .map_err(|error| Error::Invalid(format!("instance_id: {error}")))?;
        instances.insert(id, tidy(status));
    }
    Ok(Report {
        applied_incarnation: message.applied_incarnation,
        instances,
    })
}

fn tidy(mut status: InstanceStatus) -> InstanceStatus {
    status.vm_reason = line(&status.vm_reason);
    status.boot_id = line(&status.boot_id);
    status.restore_error = line(&status.restore_error);
    status.snapshots.truncate(SNAPSHOTS);
    for snapshot in &mut status.snapshots {
        snapshot.name = line(&snapshot.name);
        snapshot.reason = line(&snapshot.reason);
    }
    if status.last_exit_json.len() > LAST_WORDS {
        status.last_exit_json.clear();
    }
    if let Some(end) = &mut status.last_end {
        end.detail = line(&end.detail);
    }
    if let Some(role) = &mut status.role {
        role.role = line(&role.role);
        role.reason = line(&role.reason);
        if let Some(exit) = &mut role.last_exit
            && let Some(fabric_proto::guest::v1::role_exit::How::SpawnError(why)) = &mut exit.how
        {
            *why = line(why);
        }
    }
    status
}

/// An event as it is kept. One that names no valid instance is about the node.
pub(super) fn event(node: &NodeId, message: &NodeEvent) -> EventRecord {
    let instance = message.instance_id.parse::<InstanceId>().ok();
    let (subject_kind, subject) = instance.map_or_else(
        || (SubjectKind::Node, node.to_string()),
        |instance| (SubjectKind::Instance, instance.to_string()),
    );
    let word = |text: &str| -> String {
        let letters = text.chars().filter(char::is_ascii_alphanumeric);
        letters.take(REASON).collect()
    };
    let because = Some(word(&message.cause)).filter(|reason| !reason.is_empty());
    EventRecord {
        time: message.time.as_ref().map_or_else(clock::now, time),
        reason: word(&message.reason),
        message: line(&message.message),
        warning: message.warning,
        because: because.map(|reason| Because {
            reason,
            subject_kind,
            subject: subject.clone(),
        }),
        subject_kind,
        subject,
        source: node.to_string(),
    }
}

/// A time on the wire; anything before 1970 is 1970.
pub(super) fn time(time: &prost_types::Timestamp) -> WallTime {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    let micros = u64::try_from(time.nanos).unwrap_or(0) / 1000;
    WallTime::from_micros(seconds.saturating_mul(1_000_000).saturating_add(micros))
}

/// What the word for an instance depends on, of its node's report.
#[must_use]
pub(crate) fn observed(status: &InstanceStatus) -> crate::model::state::Observed {
    use fabric_proto::guest::v1::RoleState as RoleMessage;

    use crate::model::state::{Observed, RoleState, VmState};

    let vm = match status.vm_state() {
        node::VmState::Unspecified | node::VmState::Pending => VmState::Pending,
        node::VmState::Preparing => VmState::Preparing,
        node::VmState::Booting => VmState::Booting,
        node::VmState::Running => VmState::Running,
        node::VmState::Stopping => VmState::Stopping,
        node::VmState::Stopped => VmState::Stopped,
        node::VmState::Backoff => VmState::Backoff,
        node::VmState::Failed => VmState::Failed,
        node::VmState::Paused => VmState::Paused,
    };
    let wall = |at: &Option<prost_types::Timestamp>| at.as_ref().map_or(WallTime::EPOCH, time);
    let role = status.role.as_ref().and_then(|role| {
        let state = match role.state() {
            RoleMessage::Unspecified => return None,
            RoleMessage::Starting => RoleState::Starting,
            RoleMessage::Ready => RoleState::Ready,
            RoleMessage::Busy => RoleState::Busy,
            RoleMessage::Unhealthy => RoleState::Unhealthy,
            RoleMessage::Stopped => RoleState::Stopped,
        };
        Some((state, role.reason.clone(), wall(&role.since)))
    });
    Observed {
        epoch: status.epoch,
        vm,
        vm_reason: status.vm_reason.clone(),
        vm_since: wall(&status.vm_since),
        recovered: status.vm_restarts > 0 || status.reimages > 0,
        role,
    }
}
