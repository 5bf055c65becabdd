//! The rules of the service file for where it is placed, how it is spread and updated.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use fabric_proto::id::RoleName;
use toml::Spanned;

use super::{NodeRules, OsUpdates, RoleKind, Spreading, check::Part, raw};
use crate::model::update::{FAULT_DOMAINS, OnFailure, UPGRADE_DOMAINS, UpdatePolicy};
use crate::model::{label, node::Kvm};

/// Time that an upgrade domain must have been Ready.
const BAKE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);
/// Time that an instance may take to be Ready.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// Domains of either kind.
const DOMAINS: RangeInclusive<u32> = 1..=20;

/// What `[update]` says for all roles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Domains {
    upgrade: u32,
    fault: u32,
}

/// Checks `[update]`.
pub(super) fn update(raw: &raw::Update, part: &mut Part<'_, '_>) -> (UpdatePolicy, Domains) {
    let default = UpdatePolicy::default();
    let on_failure = raw.on_failure.as_ref().and_then(|value| {
        let words = [("stop", OnFailure::Stop), ("rollback", OnFailure::Rollback)];
        part.word("on_failure", value, &words)
    });
    let policy = UpdatePolicy {
        bake: part.duration("bake", raw.bake.as_ref(), &BAKE, default.bake),
        timeout: part.duration("timeout", raw.timeout.as_ref(), &TIMEOUT, default.timeout),
        on_failure: on_failure.unwrap_or(default.on_failure),
    };
    let (upgrade, fault) = (&raw.upgrade_domains, &raw.fault_domains);
    let domains = Domains {
        upgrade: number("upgrade_domains", upgrade.as_ref(), UPGRADE_DOMAINS, part),
        fault: number("fault_domains", fault.as_ref(), FAULT_DOMAINS, part),
    };
    (policy, domains)
}

fn number(key: &str, value: Option<&Spanned<i64>>, default: u32, part: &mut Part<'_, '_>) -> u32 {
    value
        .and_then(|value| part.number(key, value, &DOMAINS))
        .unwrap_or(default)
}

/// How a role is spread and updated.
pub(super) struct Rollout {
    pub(super) upgrade_domains: u32,
    pub(super) fault_domains: u32,
    pub(super) spread: Spreading,
    pub(super) nodes: NodeRules,
    pub(super) availability_set: Option<String>,
    pub(super) os_updates: OsUpdates,
    pub(super) deliver_settings: bool,
}

/// Checks what a role says about that.
pub(super) fn role(
    raw: &raw::Role,
    kind: Option<RoleKind>,
    domains: Domains,
    part: &mut Part<'_, '_>,
) -> Rollout {
    let (upgrade, fault) = (&raw.upgrade_domains, &raw.fault_domains);
    let os_updates = raw.os_updates.as_ref().and_then(|value| {
        let words = [("manual", OsUpdates::Manual), ("auto", OsUpdates::Auto)];
        part.word("os_updates", value, &words)
    });
    if os_updates == Some(OsUpdates::Auto) && raw.image.get_ref().starts_with("sha256:") {
        let what = "image is a digest, of which there is nothing newer; os_updates = \"auto\" \
                    needs a line of images, such as \"guest-os/1\"";
        part.wrong(&raw.image.span(), what);
    }
    let settings_change = raw.settings_change.as_ref().and_then(|value| {
        part.word(
            "settings_change",
            value,
            &[("restart", false), ("deliver", true)],
        )
    });
    let spread = raw.spread.as_ref().and_then(|value| {
        let words = [
            ("preferred", Spreading::Preferred),
            ("strict", Spreading::Strict),
        ];
        part.word("spread", value, &words)
    });
    Rollout {
        upgrade_domains: number("upgrade_domains", upgrade.as_ref(), domains.upgrade, part),
        fault_domains: number("fault_domains", fault.as_ref(), domains.fault, part),
        spread: spread.unwrap_or_default(),
        nodes: nodes(raw, part),
        availability_set: availability_set(raw, kind, part),
        os_updates: os_updates.unwrap_or_default(),
        deliver_settings: settings_change.unwrap_or_default(),
    }
}

/// What its nodes must be like.
fn nodes(raw: &raw::Role, part: &mut Part<'_, '_>) -> NodeRules {
    let mut labels = BTreeMap::new();
    for (key, value) in &raw.node_labels {
        for text in [key, value] {
            if !label::is_valid(text.get_ref()) {
                let what = format!(
                    "node_labels: {:?} can be no node's; keys and values {}",
                    text.get_ref(),
                    label::RULE
                );
                part.wrong(&text.span(), &what);
            }
        }
        labels.insert(key.get_ref().clone(), value.get_ref().clone());
    }
    if let Some((first, _)) = raw.node_labels.first_key_value()
        && labels.len() > label::MOST_ASKED
    {
        let what = format!("node_labels: there are more than {}", label::MOST_ASKED);
        part.wrong(&first.span(), &what);
    }
    let kvm = raw.kvm.as_ref();
    NodeRules {
        labels,
        kvm: kvm.and_then(|value| part.word("kvm", value, &Kvm::WORDS)),
    }
}

/// Sets are named as roles are.
fn availability_set(
    raw: &raw::Role,
    kind: Option<RoleKind>,
    part: &mut Part<'_, '_>,
) -> Option<String> {
    let value = raw.availability_set.as_ref()?;
    if kind.is_some_and(|kind| kind != RoleKind::Vm) {
        let what = "availability_set is for roles of kind \"vm\": instances of others are spread \
                    over fault_domains as it is";
        part.wrong(&value.span(), what);
    }
    let name: Option<RoleName> = part.name("availability_set", value);
    name.map(String::from)
}
