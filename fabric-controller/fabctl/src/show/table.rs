//! Things as tables: columns and spaces, no borders.

use std::time::SystemTime;

use comfy_table::{Table, presets};
use fabric_proto::{
    node::v1::SnapshotStatus,
    v1::{
        Blob, BlobKind, Change, ChangeAction, Effect, Event, Instance, Node, PlannedStep, Revision,
        Service, Slot, Update,
    },
};

use super::{clean, words};

/// A table with these columns.
pub(super) fn table<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The table as text; what to say if nothing is in it.
pub(super) fn text(table: &Table, nothing: &str) -> String {
    if table.is_empty() {
        nothing.to_owned()
    } else {
        table.trim_fmt()
    }
}

/// Whether a node is heard, and why it has no new instances, if so.
fn node_state(node: &Node) -> String {
    let heard = match (node.connected, node.fenced) {
        (true, _) => "connected",
        (false, false) => "not heard",
        (false, true) => "fenced",
    };
    [&[heard], &*words::closed(node)].concat().join(", ")
}

/// Nodes.
#[must_use]
pub fn nodes(nodes: &[Node]) -> String {
    let now = SystemTime::now();
    let mut table = table([
        "NODE",
        "STATE",
        "SEEN",
        "CPUS",
        "VCPUS USED",
        "MEMORY",
        "USED",
        "KVM",
        "INSTANCES",
        "BLAME",
        "GOAL",
    ]);
    for node in nodes {
        let inventory = node.inventory.clone().unwrap_or_default();
        let goal = if node.goal_incarnation == node.applied_incarnation {
            node.goal_incarnation.to_string()
        } else {
            format!("{} of {}", node.applied_incarnation, node.goal_incarnation)
        };
        table.add_row([
            node.node_id.clone(),
            node_state(node),
            words::age(node.last_seen.as_ref(), now),
            inventory.cpus.to_string(),
            node.vcpus_used.to_string(),
            words::bytes(inventory.memory_bytes),
            words::bytes(node.memory_used_bytes),
            inventory.kvm_kind,
            node.instances.to_string(),
            node.blame.to_string(),
            goal,
        ]);
    }
    text(&table, "no nodes; `host-agent serve` joins a machine")
}

/// What a node is like, and who says so.
#[must_use]
pub fn labels(node: &Node) -> String {
    let who = |by_operator| if by_operator { "operator" } else { "node" };
    let mut table = table(["LABEL", "VALUE", "FROM"]);
    let domain = match (&node.operator_fault_domain, node.labels.get("fault-domain")) {
        (operators, _) if !operators.is_empty() => "operator",
        (_, Some(_)) => "label",
        (_, None) => "by itself",
    };
    for (key, value) in &node.labels {
        let from = who(node.operator_labels.contains_key(key));
        table.add_row([clean(key), clean(value), from.into()]);
    }
    let fault = clean(&node.fault_domain);
    table.add_row(["(fault domain)".into(), fault, domain.into()]);
    text(&table, "")
}

/// Column of images that says for which processors they are; packages have none.
const PROCESSORS: usize = 5;

/// Blobs of one kind.
#[must_use]
pub fn blobs(blobs: &[Blob], kind: BlobKind) -> String {
    let now = SystemTime::now();
    let is_image = kind == BlobKind::Image;
    let mut header = vec!["NAME", "DIGEST", "FILE", "DISK", "TYPE", "AGE", "USED BY"];
    if is_image {
        header.insert(PROCESSORS, "ARCHITECTURE");
    }
    let mut table = table(header);
    for blob in blobs {
        let mut row = vec![
            blob.name.clone(),
            blob.digest.chars().take(19).collect(),
            words::bytes(blob.size_bytes),
            words::bytes(blob.virtual_bytes),
            blob.vhd_type.clone(),
            words::age(blob.created.as_ref(), now),
            blob.used_by.join(", "),
        ];
        if is_image {
            row.insert(PROCESSORS, blob.architecture.clone());
        }
        table.add_row(row);
    }
    let kind = words::blob_kind(kind);
    text(
        &table,
        &format!("no {kind}s; `fabctl {kind} upload` brings one"),
    )
}

/// Changes, one a line.
#[must_use]
pub fn changes(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing changes".to_owned();
    }
    let lines: Vec<_> = changes
        .iter()
        .map(|change| {
            let sign = match change.action() {
                ChangeAction::Create => '+',
                ChangeAction::Delete => '-',
                ChangeAction::Update | ChangeAction::Unspecified => '~',
            };
            let colon = if change.detail.is_empty() { "" } else { ": " };
            format!("{sign} {}{colon}{}", change.subject, clean(&change.detail))
        })
        .collect();
    lines.join("\n")
}

/// The steps of an update, one a line.
#[must_use]
pub fn steps(steps: &[PlannedStep]) -> String {
    let lines = steps.iter().enumerate().map(|(index, step)| {
        let what = match step.effect() {
            Effect::Deliver => "told, and going on",
            Effect::RestartRole => "role started anew",
            Effect::Reimage => "started anew on a fresh disk",
            Effect::Replace => "placed anew, on a fresh disk",
            Effect::Unspecified => "changed",
        };
        let when = match step.when.as_str() {
            "" => String::new(),
            when => format!("; {}", clean(when)),
        };
        format!(
            "{:>3}. upgrade domain {}: {}: {what}, because {}{when}",
            index + 1,
            step.upgrade_domain,
            step.instance_ids.join(", "),
            clean(&step.why)
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// An update.
#[must_use]
pub fn update(update: &Update) -> String {
    let now = SystemTime::now();
    let domain = update.current.as_ref().map_or_else(String::new, |current| {
        let ready = match &current.ready_since {
            Some(since) => format!(", Ready for {}", words::age(Some(since), now)),
            None => String::new(),
        };
        let since = words::age(current.begun.as_ref(), now);
        format!("{}, for {since}{ready}", current.number)
    });
    let through: Vec<_> = update.done.iter().map(ToString::to_string).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (key, value) in [
        ("state", words::update_state(update.state())),
        ("stopped because", clean(&update.stopped_because)),
        ("cause", clean(&update.cause)),
        ("roles", update.roles.join(", ")),
        (
            "begun",
            words::rfc3339(update.started.as_ref()).unwrap_or_default(),
        ),
        (
            "done",
            words::rfc3339(update.ended.as_ref()).unwrap_or_default(),
        ),
        ("upgrade domain", domain),
        ("domains through", through.join(", ")),
        (
            "instances",
            format!("{} of {}", update.changed, update.instances),
        ),
        ("waits for", clean(&update.waits_for)),
    ] {
        if !value.is_empty() {
            table.add_row([format!("{key}:"), value]);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Revisions.
#[must_use]
pub fn revisions(revisions: &[Revision]) -> String {
    let now = SystemTime::now();
    let mut table = table(["REVISION", "AGE", "SLOT", "WHO", "WHAT"]);
    for revision in revisions {
        table.add_row([
            revision.number.to_string(),
            words::age(revision.time.as_ref(), now),
            words::slot(revision.slot()),
            clean(&revision.who),
            clean(&revision.what),
        ]);
    }
    text(&table, "no revisions are kept")
}

/// Services, a line for each role.
#[must_use]
pub fn services(services: &[Service]) -> String {
    let now = SystemTime::now();
    let mut table = table([
        "SERVICE",
        "GENERATION",
        "ROLE",
        "KIND",
        "SIZE",
        "READY",
        "IMAGE",
        "PACKAGE",
        "UPDATED",
    ]);
    for service in services {
        let deployments = service.deployments.iter();
        for (slot, role) in deployments.flat_map(|one| {
            let slot = one.slot();
            one.roles.iter().map(move |role| (slot, role))
        }) {
            let name = match slot {
                Slot::Staging => format!("{} (staging)", service.name),
                Slot::Production | Slot::Unspecified => service.name.clone(),
            };
            table.add_row([
                name,
                service.generation.to_string(),
                role.name.clone(),
                words::role_kind(role.kind()),
                role.size.clone(),
                format!("{}/{}", role.ready, role.instances),
                role.image.clone(),
                role.package.clone(),
                words::age(service.updated.as_ref(), now),
            ]);
        }
    }
    text(
        &table,
        "no services; `fabctl service apply -f FILE` makes one",
    )
}

/// Instances.
#[must_use]
pub fn instances(instances: &[Instance]) -> String {
    let now = SystemTime::now();
    let mut table = table([
        "INSTANCE", "STATE", "SINCE", "NODE", "BOOTS", "RESTARTS", "SIZE", "REASON",
    ]);
    for instance in instances {
        let status = instance.status.clone().unwrap_or_default();
        let role_restarts = status.role.as_ref().map_or(0, |role| role.restarts);
        table.add_row([
            instance.instance_id.clone(),
            instance.state.clone(),
            words::age(instance.since.as_ref(), now),
            or_dash(&instance.node_id),
            status.boots.to_string(),
            format!("{} vm, {role_restarts} role", status.vm_restarts),
            instance.size.clone(),
            clean(&instance.reason),
        ]);
    }
    text(&table, "no instances")
}

/// Snapshots of one instance.
#[must_use]
pub fn snapshots(snapshots: &[SnapshotStatus]) -> String {
    let now = SystemTime::now();
    let mut table = table(["SNAPSHOT", "STATE", "AGE", "ON DISK", "REASON"]);
    for snapshot in snapshots {
        table.add_row([
            clean(&snapshot.name),
            words::snapshot_state(snapshot),
            words::age(snapshot.taken.as_ref(), now),
            words::bytes(snapshot.bytes),
            clean(&snapshot.reason),
        ]);
    }
    text(
        &table,
        "no snapshots; `fabctl instance snapshot ID NAME` takes one",
    )
}

/// Everything about one thing: its JSON as lines of key and value.
#[must_use]
pub fn details(value: &serde_json::Value) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let Some(object) = value.as_object() else {
        return value.to_string();
    };
    for (key, value) in object {
        let value = match value {
            serde_json::Value::Null => "-".to_owned(),
            serde_json::Value::String(text) => or_dash(&clean(text)),
            other => other.to_string(),
        };
        table.add_row([format!("{}:", key.replace('_', " ")), value]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// An event, as a line.
#[must_use]
pub fn event(event: &Event) -> String {
    let mark = if event.warning { "!" } else { " " };
    format!(
        "{:>6} {} {mark} {:<18} {:<20} {}",
        event.cursor,
        words::clock(event.time.as_ref()),
        clean(&event.reason),
        clean(&event.subject),
        clean(&event.message)
    )
    .trim_end()
    .to_owned()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}
