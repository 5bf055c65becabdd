//! The model as `fabric.v1` says it.

use fabric_proto::{
    node::v1::{Inventory, RestartScope as RestartScopeMessage, SnapshotState, SnapshotStatus},
    v1::{
        Blob, BlobKind as BlobKindMessage, Change, ChangeAction, Deployment as DeploymentMessage,
        Effect as EffectMessage, Event, EventCause, Instance, PlannedStep,
        Revision as RevisionMessage, Service, ServiceRole as ServiceRoleMessage,
        Slot as SlotMessage, Update as UpdateMessage, UpdateDomain,
        UpdateState as UpdateStateMessage,
    },
};
use prost_types::Timestamp;

use crate::{
    error::{Error, Result},
    events::Numbered,
    model::{
        self,
        architecture::Architecture,
        blob::{BlobKind, BlobRecord},
        change::Action,
        deployment::{Deployment, Slot},
        instance::{Effect, InstanceRecord, RestartScope},
        node::Nodes,
        revision::Revision,
        service::{ServiceRecord, ServiceRole},
        state::{Derived, InstanceState},
        time::WallTime,
        update::{Cause, Update, UpdateState},
    },
    node_session,
    reconcile::{
        foreseen::Step,
        goal::{self, role_kind},
        health, rollout,
    },
    registry::{NodeSight, Registry},
};

/// A time.
pub(super) fn timestamp(time: WallTime) -> Timestamp {
    let micros = time.as_micros();
    Timestamp {
        seconds: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
        // Less than 10^9, which fits.
        nanos: i32::try_from(micros % 1_000_000 * 1000).unwrap_or(0),
    }
}

/// What a node has.
pub(super) fn inventory(inventory: &model::node::Inventory) -> Inventory {
    Inventory {
        cpus: inventory.cpus,
        memory_bytes: inventory.memory_bytes,
        disk_bytes: inventory.disk_bytes,
        kvm_kind: inventory.kvm_kind.clone(),
        kernel_release: inventory.kernel_release.clone(),
        cpu_model: inventory.cpu_model.clone(),
        hostname: inventory.hostname.clone(),
        architecture: inventory.architecture.to_string(),
        resources: inventory.resources.to_map(),
    }
}

/// An architecture in a request, if it says one.
pub(super) fn architecture(field: &str, word: &str) -> Result<Option<Architecture>> {
    if word.is_empty() {
        return Ok(None);
    }
    let read = word.parse().map(Some);
    read.map_err(|error| Error::Invalid(format!("{field}: {error}")))
}

/// A kind in a question; unspecified is any.
pub(super) fn blob_kind(field: &str, kind: i32) -> Result<Option<BlobKind>> {
    match BlobKindMessage::try_from(kind) {
        Ok(BlobKindMessage::Unspecified) => Ok(None),
        Ok(BlobKindMessage::Image) => Ok(Some(BlobKind::Image)),
        Ok(BlobKindMessage::Package) => Ok(Some(BlobKind::Package)),
        Err(_) => Err(Error::Invalid(format!(
            "{field}: {kind} is not a kind; it is 1 or 2"
        ))),
    }
}

/// A kind that must be given.
pub(super) fn known_blob_kind(kind: i32) -> Result<BlobKind> {
    blob_kind("kind", kind)?
        .ok_or_else(|| Error::Invalid("kind: it is missing; it is image or package".to_owned()))
}

/// A blob; `used_by` are the services that use it.
pub(super) fn blob(record: BlobRecord, used_by: Vec<String>) -> Blob {
    let (kind, architecture) = match record.kind {
        BlobKind::Image => (BlobKindMessage::Image, record.architecture.to_string()),
        BlobKind::Package => (BlobKindMessage::Package, String::new()),
    };
    Blob {
        name: record.name.into(),
        kind: kind.into(),
        digest: record.digest.into(),
        size_bytes: record.size_bytes,
        virtual_bytes: record.vhd.virtual_bytes,
        vhd_type: record.vhd.vhd_type,
        created: Some(timestamp(record.created)),
        used_by,
        architecture,
    }
}

/// A change.
pub(super) fn change(change: model::change::Change) -> Change {
    let action = match change.action {
        Action::Create => ChangeAction::Create,
        Action::Update => ChangeAction::Update,
        Action::Delete => ChangeAction::Delete,
    };
    Change {
        action: action.into(),
        subject: change.subject,
        detail: change.detail,
    }
}

/// A slot in a request; unspecified is production.
pub(super) fn slot(slot: i32) -> Result<Slot> {
    optional_slot(slot).map(Option::unwrap_or_default)
}

/// A slot in a request, if there is one.
pub(super) fn optional_slot(slot: i32) -> Result<Option<Slot>> {
    match SlotMessage::try_from(slot) {
        Ok(SlotMessage::Unspecified) => Ok(None),
        Ok(SlotMessage::Production) => Ok(Some(Slot::Production)),
        Ok(SlotMessage::Staging) => Ok(Some(Slot::Staging)),
        Err(_) => Err(Error::Invalid(format!(
            "slot: {slot} is not one; it is 1 or 2"
        ))),
    }
}

const fn slot_message(slot: Slot) -> SlotMessage {
    match slot {
        Slot::Production => SlotMessage::Production,
        Slot::Staging => SlotMessage::Staging,
    }
}

/// A step of an update.
pub(super) fn step(step: Step) -> PlannedStep {
    let effect = match step.effect {
        Effect::Nothing => EffectMessage::Unspecified,
        Effect::Deliver => EffectMessage::Deliver,
        Effect::RestartRole => EffectMessage::RestartRole,
        Effect::Reimage => EffectMessage::Reimage,
        Effect::Replace => EffectMessage::Replace,
    };
    PlannedStep {
        upgrade_domain: step.domain,
        role: step.role.into(),
        instance_ids: step.instances.into_iter().map(String::from).collect(),
        effect: effect.into(),
        why: step.why,
        when: step.when,
    }
}

/// A service; `ready` says how many instances of a role of a deployment are.
pub(super) fn service(
    record: &ServiceRecord,
    ready: impl Fn(&Deployment, &ServiceRole) -> u32,
) -> Service {
    let deployments: Vec<_> = record
        .slots
        .iter()
        .map(|(slot, one)| deployment(*slot, one, |role| ready(one, role)))
        .collect();
    let production = deployments
        .iter()
        .find(|one| one.slot() == SlotMessage::Production);
    let production = production.cloned().unwrap_or_default();
    Service {
        name: record.name.to_string(),
        generation: record.generation,
        definition_toml: production.definition_toml,
        roles: production.roles,
        created: Some(timestamp(record.created)),
        updated: Some(timestamp(record.updated)),
        deployments,
    }
}

fn deployment(
    slot: Slot,
    deployment: &Deployment,
    ready: impl Fn(&ServiceRole) -> u32,
) -> DeploymentMessage {
    let version = &deployment.version;
    let roles = version.roles.iter().map(|role| ServiceRoleMessage {
        name: role.name().to_string(),
        kind: role_kind(role.spec.role.kind).into(),
        size: role.spec.size_name.clone(),
        instances: role.instances,
        ready: ready(role),
        image: role.spec.image.name.clone(),
        package: role
            .spec
            .package
            .as_ref()
            .map(|one| one.name.clone())
            .unwrap_or_default(),
        upgrade_domains: role.upgrade_domains,
        fault_domains: role.fault_domains,
        availability_set: role.availability_set.clone().unwrap_or_default(),
        spread: role.spread.to_string(),
        node_labels: role.spec.nodes.labels.clone(),
        kvm: role
            .spec
            .nodes
            .kvm
            .map(|kvm| kvm.to_string())
            .unwrap_or_default(),
    });
    DeploymentMessage {
        slot: slot_message(slot).into(),
        revision: deployment.revision,
        definition_toml: version.definition_toml.clone(),
        roles: roles.collect(),
        update: deployment.update.as_ref().map(update),
    }
}

/// An update as it is kept.
pub(super) fn update(update: &Update) -> UpdateMessage {
    let (state, why) = match &update.state {
        UpdateState::Walking => (UpdateStateMessage::Walking, ""),
        UpdateState::Paused => (UpdateStateMessage::Paused, ""),
        UpdateState::Stopped(why) => (UpdateStateMessage::Stopped, why.as_str()),
        UpdateState::Done => (UpdateStateMessage::Done, ""),
    };
    let cause = match &update.cause {
        Cause::Operator => "an operator wants it".to_owned(),
        Cause::GivenUp(why) => format!("back to the version before: {why}"),
        Cause::OsImage(image) => format!("there is a newer OS image, {image}"),
    };
    UpdateMessage {
        state: state.into(),
        stopped_because: why.to_owned(),
        cause,
        started: Some(timestamp(update.started)),
        ended: update.ended.map(timestamp),
        current: update.current.map(|current| UpdateDomain {
            number: current.domain,
            begun: Some(timestamp(current.begun)),
            ready_since: current.ready_since.map(timestamp),
        }),
        done: update.done.iter().copied().collect(),
        roles: update.roles.iter().map(ToString::to_string).collect(),
        has_previous: update.previous.is_some(),
        ..UpdateMessage::default()
    }
}

/// An update and how it gets on; `instances` are those of its service.
pub(super) fn progress(
    deployment: &Deployment,
    of: &Update,
    instances: &[InstanceRecord],
    nodes: &Nodes<'_>,
    registry: &Registry,
) -> UpdateMessage {
    // What its node has not taken up yet is a matter of moments.
    let health = |record: &InstanceRecord| health::health(record, registry, true);
    let now = crate::clock::now();
    let instances: Vec<_> = instances
        .iter()
        .filter(|one| one.colour == deployment.colour)
        .collect();
    let look = rollout::look(deployment, of, &instances, nodes, &health, now);
    let count = |old: bool| {
        let counted = rollout::see_all(deployment, of, &instances, nodes, &health)
            .into_iter()
            .filter(|one| of.roles.contains(&one.role) && one.old == old);
        u32::try_from(counted.count()).unwrap_or(u32::MAX)
    };
    let (changed, old) = (count(false), count(true));
    UpdateMessage {
        waits_for: look.waits_for,
        changed,
        instances: changed.saturating_add(old),
        ..update(of)
    }
}

/// A revision.
pub(super) fn revision(revision: Revision) -> RevisionMessage {
    RevisionMessage {
        number: revision.number,
        time: Some(timestamp(revision.time)),
        who: revision.who,
        what: revision.what,
        slot: slot_message(revision.slot).into(),
        definition_toml: revision
            .version
            .map(|version| version.definition_toml)
            .unwrap_or_default(),
    }
}

/// The word for an instance, as its node stands now.
pub(super) fn derive(record: &InstanceRecord, registry: &Registry) -> (Derived, Option<NodeSight>) {
    let sight = record.node.as_ref().map(|node| registry.sight(node));
    let view = sight
        .as_ref()
        .map_or(model::state::NodeView::NotYetHeard, |sight| sight.view);
    let report = sight.as_ref().and_then(|sight| sight.report.as_ref());
    let observed = report
        .and_then(|report| report.instances.get(&record.id))
        .map(node_session::observed);
    (model::state::derive(record, view, observed.as_ref()), sight)
}

/// Whether an instance is Ready.
pub(super) fn is_ready(record: &InstanceRecord, registry: &Registry) -> bool {
    derive(record, registry).0.state == InstanceState::Ready
}

/// An instance, as its node stands now.
///
/// Its slot and its upgrade domain are its service's to know: see [`placed_in`].
pub(super) fn instance(record: &InstanceRecord, registry: &Registry) -> Instance {
    let (derived, sight) = derive(record, registry);
    let report = sight.and_then(|sight| sight.report);
    Instance {
        instance_id: record.id.to_string(),
        service: record.service.to_string(),
        role: record.role.to_string(),
        node_id: record
            .node
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        state: derived.state.to_string(),
        reason: derived.reason,
        since: Some(timestamp(derived.since)),
        status: report.and_then(|report| report.instances.get(&record.id).cloned()),
        epoch: record.epoch,
        size: record.spec.size_name.clone(),
        vcpus: record.spec.size.vcpus,
        memory_bytes: record.spec.size.memory_bytes,
        resources: record.spec.resources.to_map(),
        snapshots: snapshots(record, registry),
        slot: SlotMessage::Unspecified.into(),
        upgrade_domain: 0,
        revision: record.revision,
        power: goal::power(record).into(),
    }
}

/// The instance with what its service knows of it.
pub(super) fn placed_in(
    instance: Instance,
    record: &InstanceRecord,
    service: Option<&ServiceRecord>,
) -> Instance {
    let slot = service.and_then(|service| service.slot_of(record.colour));
    let role = service.and_then(|service| service.role_of(record));
    Instance {
        slot: slot.map_or(SlotMessage::Unspecified, slot_message).into(),
        upgrade_domain: role.map_or(0, |role| role.upgrade_domain(record.number)),
        ..instance
    }
}

/// The snapshots that an instance is to have, and how its node sees them.
pub(super) fn snapshots(record: &InstanceRecord, registry: &Registry) -> Vec<SnapshotStatus> {
    let report = record
        .node
        .as_ref()
        .and_then(|node| registry.sight(node).report);
    let status = report.and_then(|report| report.instances.get(&record.id).cloned());
    let seen = status.map(|status| status.snapshots).unwrap_or_default();
    let each = record.keep.snapshots.iter().map(|wanted| {
        let is_it = |one: &&SnapshotStatus| {
            one.generation == wanted.generation && one.name == wanted.name.as_str()
        };
        seen.iter().find(is_it).cloned().unwrap_or(SnapshotStatus {
            name: wanted.name.to_string(),
            generation: wanted.generation,
            state: SnapshotState::Taking.into(),
            ..SnapshotStatus::default()
        })
    });
    each.collect()
}

/// What to restart; unspecified is the role.
pub(super) fn restart_scope(scope: i32) -> Result<RestartScope> {
    match RestartScopeMessage::try_from(scope) {
        Ok(RestartScopeMessage::Unspecified | RestartScopeMessage::Role) => Ok(RestartScope::Role),
        Ok(RestartScopeMessage::Vm) => Ok(RestartScope::Vm),
        Ok(RestartScopeMessage::Reimage) => Ok(RestartScope::Reimage),
        Ok(RestartScopeMessage::Reset) => Ok(RestartScope::Reset),
        Ok(RestartScopeMessage::Restore) => Err(Error::Invalid(
            "scope: 4 needs a snapshot; call RestoreInstance".to_owned(),
        )),
        Err(_) => Err(Error::Invalid(format!(
            "scope: {scope} is not one; it is 1, 2, 3 or 5"
        ))),
    }
}

/// An event.
pub(super) fn event(numbered: Numbered) -> Event {
    let Numbered { cursor, event } = numbered;
    Event {
        cursor,
        time: Some(timestamp(event.time)),
        reason: event.reason,
        message: event.message,
        warning: event.warning,
        subject_kind: event.subject_kind.word().to_owned(),
        subject: event.subject,
        source: event.source,
        cause: event.because.map(|cause| EventCause {
            reason: cause.reason,
            subject_kind: cause.subject_kind.word().to_owned(),
            subject: cause.subject,
        }),
    }
}
