//! What follows from the facts. Pure: the same facts, the same findings.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use fabric_proto::{
    node::v1::InstancePower,
    v1::{GetControllerResponse, Instance, Node, Slot, UpdateState},
};
use fabric_trust::identity::Identity;
use prost_types::Timestamp;

use super::{
    Finding,
    facts::{Facts, Missing, UnderWay},
};
use crate::show::{clean, words};

/// A certificate that ends within that time is told of.
const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// Clocks may be that far from one another: what is written down stays readable.
const SKEW_MILLIS: i64 = 2_000;
/// A disk of which less is left than this part, or less than so many bytes, is low.
const LOW_PART: u64 = 10;
const LOW_BYTES: u64 = 1 << 30;
/// How long an update may wait in one upgrade domain before that is told.
const STUCK: Duration = Duration::from_secs(600);

/// What is wrong, problems first. Instances may not be Ready for `patience`.
#[must_use]
pub fn findings(facts: &Facts, patience: Duration) -> Vec<Finding> {
    let now = facts.now.unwrap_or(SystemTime::UNIX_EPOCH);
    let mut found: Vec<Finding> = facts.missing.iter().map(missing).collect();
    found.extend(
        facts
            .identity
            .as_ref()
            .and_then(|one| certificate(one, now)),
    );
    if let Some(controller) = &facts.controller {
        found.extend(controller_of(facts, controller));
    }
    if facts.nodes.is_empty() && facts.controller.is_some() {
        found.push(Finding::notice(
            "nodes",
            "there are none, so nothing can run",
            "`fabric-controller token create --node` makes a token, `host-agent join` uses it on \
             a machine",
        ));
    }
    for node in &facts.nodes {
        found.extend(node_of(node, facts.controller.as_ref(), now));
    }
    for update in &facts.updates {
        found.extend(update_of(update, now));
    }
    for instance in &facts.instances {
        found.extend(instance_of(instance, facts, patience, now));
    }
    found.sort_by_key(|finding| finding.severity);
    found
}

fn missing(missing: &Missing) -> Finding {
    Finding::problem(
        "controller",
        format!("could not be asked for {}: {}", missing.what, missing.why),
        "who may see what is in SECURITY.md; if it is of another version than fabctl, use that",
    )
}

fn certificate(identity: &Identity, now: SystemTime) -> Option<Finding> {
    let left = identity.not_after.duration_since(now).unwrap_or_default();
    (left < ENDS_SOON).then(|| {
        let ends = humantime::format_rfc3339_seconds(identity.not_after);
        Finding::problem(
            "context",
            format!("your certificate ({identity}) ends at {ends}"),
            format!(
                "have an administrator run `fabric-controller certificate create --name {} --role \
                 {}`, and `fabctl context import` what comes of it",
                identity.name,
                identity.role.word()
            ),
        )
    })
}

fn controller_of(facts: &Facts, controller: &GetControllerResponse) -> Vec<Finding> {
    let mut found = Vec::new();
    let ours = env!("CARGO_PKG_VERSION");
    if controller.version != ours {
        found.push(Finding::notice(
            "controller",
            format!(
                "is of version {}, and this fabctl of {ours}",
                clean(&controller.version)
            ),
            "use a fabctl of the controller's version",
        ));
    }
    let off = SKEW_MILLIS
        .saturating_add(i64::try_from(facts.round_trip.as_millis()).unwrap_or(i64::MAX) / 2);
    if facts.ahead_millis.abs() > off {
        let way = if facts.ahead_millis > 0 {
            "ahead of"
        } else {
            "behind"
        };
        let seconds = facts.ahead_millis.unsigned_abs() as f64 / 1000.0;
        found.push(Finding::problem(
            "controller",
            format!("its clock is {seconds:.1} s {way} this machine's"),
            "have both follow a time server; certificates and the times of events depend on it",
        ));
    }
    if is_low(controller.disk_free_bytes, controller.disk_bytes) {
        found.push(Finding::problem(
            "controller",
            format!(
                "its data directory's disk has {} of {} left; without room nothing can be changed",
                words::bytes(controller.disk_free_bytes),
                words::bytes(controller.disk_bytes)
            ),
            "delete images and packages that nobody uses (`fabctl image list`), or give it more \
             room",
        ));
    }
    found
}

fn is_low(free: u64, of: u64) -> bool {
    of > 0 && (free < of / LOW_PART || free < LOW_BYTES.min(of / 2))
}

fn node_of(
    node: &Node,
    controller: Option<&GetControllerResponse>,
    now: SystemTime,
) -> Vec<Finding> {
    let name = &node.node_id;
    let subject = || format!("node {name}");
    let mut found = Vec::new();
    if !node.connected {
        let since = match node.last_seen {
            Some(_) => format!("for {}", words::age(node.last_seen.as_ref(), now)),
            None => "since the controller was started".to_owned(),
        };
        let then = match (node.fenced, node.instances) {
            (true, _) => ", and what it had was started elsewhere".to_owned(),
            (false, 0) => String::new(),
            (false, count) => {
                format!(
                    "; {count} instances of it are Unknown until it is, or until its lease ends"
                )
            }
        };
        found.push(Finding::problem(
            subject(),
            format!("is not heard {since}{then}"),
            format!(
                "see to the machine, its network and its host agent's log; `host-agent serve` \
                 takes up where it was. If it is gone for good: `fabctl node remove {name}`"
            ),
        ));
    }
    if node.blame > 0 {
        found.push(Finding::problem(
            subject(),
            format!(
                "is blamed: {} unrelated services keep failing on it and do well elsewhere \
                 ({}){}",
                node.blame,
                clean(&node.blamed_for.join(", ")),
                match node.condemned {
                    true => "; nothing new is placed on it",
                    false => "",
                }
            ),
            format!(
                "`fabctl node drain {name}`, then look for broken hardware: `host-agent check`, \
                 the kernel's log. Once that is mended: `fabctl node uncordon {name}`"
            ),
        ));
    }
    if let Some(until) = words::rfc3339(node.unsteady_until.as_ref()) {
        found.push(Finding::problem(
            subject(),
            format!(
                "has come and gone too often lately: nothing new is placed on it before {until}, \
                 and later if that goes on"
            ),
            format!(
                "`fabctl events --about {name}` says when; look for what breaks its link or ends \
                 its host agent. Once that is mended: `fabctl node uncordon {name}`"
            ),
        ));
    }
    match (node.draining, node.cordoned) {
        (true, _) => {
            let left = match node.instances {
                0 => "has nothing left".to_owned(),
                count => format!("still has {count} instances"),
            };
            found.push(Finding::notice(
                subject(),
                format!("is being drained, and {left}"),
                format!("when you are done with it: `fabctl node uncordon {name}`"),
            ));
        }
        (false, true) => found.push(Finding::notice(
            subject(),
            "is cordoned: nothing new is placed on it",
            format!("when you are done with it: `fabctl node uncordon {name}`"),
        )),
        (false, false) => {}
    }
    let inventory = node.inventory.clone().unwrap_or_default();
    if inventory.kvm_kind.is_empty() {
        found.push(Finding::problem(
            subject(),
            "has no KVM that can be used, so nothing can run on it",
            "run `host-agent check` there: it says what is missing",
        ));
    }
    let free = node.disk_free_bytes;
    if node.connected && free > 0 && is_low(free, inventory.disk_bytes) {
        found.push(Finding::problem(
            subject(),
            format!(
                "its disk has {} of {} left; guests may get I/O errors",
                words::bytes(free),
                words::bytes(inventory.disk_bytes)
            ),
            "make room on it: delete snapshots (`fabctl instance snapshots`), drain it, or lower \
             `host-agent serve --template-max-size`",
        ));
    }
    let theirs = controller.map_or("", |controller| controller.version.as_str());
    if !theirs.is_empty() && !node.agent_version.is_empty() && node.agent_version != theirs {
        found.push(Finding::notice(
            subject(),
            format!(
                "its host agent is of version {}, the controller of {}",
                clean(&node.agent_version),
                clean(theirs)
            ),
            "replace its programs by those of the controller's version and start its host agent \
             again; its guests run on",
        ));
    }
    found
}

fn update_of(under_way: &UnderWay, now: SystemTime) -> Option<Finding> {
    let UnderWay {
        service,
        slot,
        update,
    } = under_way;
    let staging = match slot {
        Slot::Staging => " --slot staging",
        Slot::Production | Slot::Unspecified => "",
    };
    let subject = format!("update of {service}");
    match update.state() {
        UpdateState::Stopped => Some(Finding::problem(
            subject,
            format!("has stopped: {}", clean(&update.stopped_because)),
            format!(
                "`fabctl update resume {service}{staging}` tries again, `fabctl update abort \
                 {service}{staging}` goes back"
            ),
        )),
        UpdateState::Paused => Some(Finding::notice(
            subject,
            "was paused by an operator",
            format!("`fabctl update resume {service}{staging}` lets it go on"),
        )),
        UpdateState::Walking => {
            let begun = update.current.as_ref().and_then(|current| current.begun);
            let waits = age(begun.or(update.started).as_ref(), now)?;
            (waits > STUCK && !update.waits_for.is_empty()).then(|| {
                Finding::problem(
                    subject,
                    format!(
                        "has waited for {}: {}",
                        humantime::format_duration(Duration::from_secs(waits.as_secs())),
                        clean(&update.waits_for)
                    ),
                    format!(
                        "see to what it waits for, or give it up: `fabctl update abort \
                         {service}{staging}`"
                    ),
                )
            })
        }
        UpdateState::Done | UpdateState::Unspecified => None,
    }
}

fn instance_of(
    instance: &Instance,
    facts: &Facts,
    patience: Duration,
    now: SystemTime,
) -> Option<Finding> {
    let id = &instance.instance_id;
    let state = instance.state.as_str();
    let since = age(instance.since.as_ref(), now).unwrap_or_default();
    let reason = clean(&instance.reason);
    let subject = format!("instance {id}");
    let explained = facts.explained.get(id);
    if let Some(explained) = explained.filter(|one| !one.unplaceable.is_empty()) {
        let remedy = match explained.remedies.as_slice() {
            [] => format!("`fabctl explain {id}` says what each node says to it"),
            remedies => format!("any of: {}", clean(&remedies.join("; "))),
        };
        let what = format!("no node can take it: {}", clean(&explained.unplaceable));
        return Some(Finding::problem(subject, what, remedy));
    }
    let known: BTreeSet<&str> = unheard(facts);
    let what = format!(
        "is {state} for {}{}",
        words::age(instance.since.as_ref(), now),
        if reason.is_empty() {
            String::new()
        } else {
            format!(": {reason}")
        }
    );
    match state {
        "Stopped" if instance.power() == InstancePower::Stopped => Some(Finding::notice(
            subject,
            what,
            format!("`fabctl instance start {id}` starts it"),
        )),
        "Ready" | "Stopped" | "Stopping" => None,
        "Paused" => Some(Finding::notice(
            subject,
            what,
            format!("`fabctl instance resume {id}` lets it go on"),
        )),
        "Failed" => Some(Finding::problem(
            subject,
            what,
            format!(
                "`fabctl why {id}` and `fabctl instance console {id}` tell more; `fabctl instance \
                 restart {id} --scope reimage` tries again"
            ),
        )),
        _ if since <= patience => None,
        // Its node is told of.
        "Unknown" if known.contains(instance.node_id.as_str()) => None,
        "Unhealthy" | "Busy" | "Starting" => Some(Finding::problem(
            subject,
            what,
            format!(
                "its role does not pass its probes: see what it writes, `fabctl instance logs \
                 {id}`"
            ),
        )),
        _ => Some(Finding::problem(
            subject,
            what,
            format!("`fabctl why {id}` and `fabctl instance console {id}` tell more"),
        )),
    }
}

fn unheard(facts: &Facts) -> BTreeSet<&str> {
    let silent = facts.nodes.iter().filter(|node| !node.connected);
    silent.map(|node| node.node_id.as_str()).collect()
}

fn age(time: Option<&Timestamp>, now: SystemTime) -> Option<Duration> {
    let time = SystemTime::try_from(*time?).ok()?;
    now.duration_since(time).ok()
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
