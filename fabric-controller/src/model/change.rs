//! What applying a file changes: for people.
//!
//! [`crate::reconcile::foreseen`] says in which steps.

use std::{collections::BTreeMap, fmt};

use fabric_proto::id::{RoleName, ServiceName};

use super::{
    blob::BlobRef,
    deployment::Colour,
    instance::{Effect, InstanceSpec},
    service::ServiceRole,
};

/// What kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It comes to be.
    Create,
    /// It changes.
    Update,
    /// It goes.
    Delete,
}

/// One change, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What kind.
    pub action: Action,
    /// What changes.
    pub subject: String,
    /// From what to what.
    pub detail: String,
}

impl Change {
    fn new(action: Action, subject: String, detail: impl Into<String>) -> Self {
        Self {
            action,
            subject,
            detail: detail.into(),
        }
    }
}

/// Everything that changes from `old` to `new`, in the order of the file.
#[must_use]
pub fn changes(
    name: &ServiceName,
    colour: Colour,
    old: &[ServiceRole],
    new: &[ServiceRole],
) -> Vec<Change> {
    let name = &Namer { name, colour };
    let by_name = |roles: &'_ [ServiceRole]| -> BTreeMap<RoleName, ServiceRole> {
        roles
            .iter()
            .map(|role| (role.name().clone(), role.clone()))
            .collect()
    };
    let before = by_name(old);
    let after = by_name(new);
    let mut changes = Vec::new();
    for role in new {
        match before.get(role.name()) {
            None => created(name, role, &mut changes),
            Some(old) => updated(name, old, role, &mut changes),
        }
    }
    for role in old.iter().filter(|role| !after.contains_key(role.name())) {
        let subject = format!("role {}", role.name());
        changes.push(Change::new(Action::Delete, subject, "not there any more"));
        let numbers = 0..role.instances;
        let why = "its role is not there any more";
        count(name, role, numbers, Action::Delete, why, &mut changes);
    }
    changes
}

/// What instances are called.
struct Namer<'a> {
    name: &'a ServiceName,
    colour: Colour,
}

impl Namer<'_> {
    fn instance(&self, role: &RoleName, number: u32) -> String {
        let prefix = self.colour.prefix();
        format!("instance {}-{role}-{prefix}{number}", self.name)
    }
}

fn created(service: &Namer<'_>, role: &ServiceRole, changes: &mut Vec<Change>) {
    let spec = &role.spec;
    let package = spec
        .package
        .as_ref()
        .map(|package| format!(", package {}", package.name));
    let detail = format!(
        "size {}, image {}{}",
        spec.size_name,
        spec.image.name,
        package.unwrap_or_default()
    );
    changes.push(Change::new(
        Action::Create,
        format!("role {}", role.name()),
        detail,
    ));
    let numbers = 0..role.instances;
    count(service, role, numbers, Action::Create, "new role", changes);
}

fn updated(service: &Namer<'_>, old: &ServiceRole, new: &ServiceRole, changes: &mut Vec<Change>) {
    let mut details = differences(old, new);
    let effect = old.spec.effect_of(&new.spec);
    let in_place = old.spec.effect_in_place(&new.spec);
    if effect != in_place {
        let (effect, in_place) = (effect.what(), in_place.what());
        details.push(format!(
            "its instances on nodes that are not like that {effect}, others {in_place}"
        ));
    } else if effect != Effect::Nothing {
        details.push(format!("its instances {}", effect.what()));
    }
    if !details.is_empty() {
        let subject = format!("role {}", new.name());
        changes.push(Change::new(Action::Update, subject, details.join("; ")));
    }
    let why = format!("instances {} → {}", old.instances, new.instances);
    let more = old.instances..new.instances;
    count(service, new, more, Action::Create, &why, changes);
    let fewer = new.instances..old.instances;
    count(service, new, fewer, Action::Delete, &why, changes);
}

fn count(
    service: &Namer<'_>,
    role: &ServiceRole,
    numbers: std::ops::Range<u32>,
    action: Action,
    why: &str,
    changes: &mut Vec<Change>,
) {
    let names = numbers.map(|number| service.instance(role.name(), number));
    changes.extend(names.map(|name| Change::new(action, name, why)));
}

/// What differs between two versions of a role, each in a few words.
fn differences(old: &ServiceRole, new: &ServiceRole) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, old: &dyn fmt::Display, new: &dyn fmt::Display| {
        compare(&mut found, what, old, new);
    };
    compare("instances", &old.instances, &new.instances);
    compare(
        "upgrade_domains",
        &old.upgrade_domains,
        &new.upgrade_domains,
    );
    compare("fault_domains", &old.fault_domains, &new.fault_domains);
    compare("spread", &old.spread, &new.spread);
    if old.endpoints != new.endpoints {
        found.push("endpoints changed".to_owned());
    }
    found.extend(spec_differences(&old.spec, &new.spec));
    found
}

fn compare(found: &mut Vec<String>, what: &str, old: &dyn fmt::Display, new: &dyn fmt::Display) {
    let (old, new) = (old.to_string(), new.to_string());
    if old != new {
        found.push(format!("{what}: {old} → {new}"));
    }
}

/// The same for what an instance is.
#[must_use]
pub fn spec_differences(was: &InstanceSpec, is: &InstanceSpec) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, old: &dyn fmt::Display, new: &dyn fmt::Display| {
        compare(&mut found, what, old, new);
    };
    let size = |spec: &InstanceSpec| {
        let mib = spec.size.memory_bytes >> 20;
        let own = match spec.resources.is_empty() {
            true => String::new(),
            false => format!(", {}", spec.resources),
        };
        let vcpus = spec.size.vcpus;
        format!("{} ({vcpus} vCPU, {mib} MiB{own})", spec.size_name)
    };
    compare("nodes", &was.nodes, &is.nodes);
    let blob = |blob: &BlobRef| format!("{} ({:.19})", blob.name, blob.digest.as_str());
    let package = |spec: &InstanceSpec| {
        spec.package
            .as_ref()
            .map_or_else(|| "none".to_owned(), blob)
    };
    let command = |spec: &InstanceSpec| format!("{:?}", spec.role.command);
    compare("size", &size(was), &size(is));
    compare("image", &blob(&was.image), &blob(&is.image));
    let (for_old, for_new) = (was.image.architecture, is.image.architecture);
    compare("architecture", &for_old, &for_new);
    compare("package", &package(was), &package(is));
    compare("command", &command(was), &command(is));
    compare("user", &was.role.user, &is.role.user);
    let settings = settings_that_differ(&was.role.settings, &is.role.settings);
    if !settings.is_empty() {
        found.push(format!("settings: {}", settings.join(", ")));
    }
    for (what, differ) in [
        ("kind", was.role.kind != is.role.kind),
        ("environment", was.role.environment != is.role.environment),
        (
            "settings_change",
            was.role.deliver_settings != is.role.deliver_settings,
        ),
        ("liveness", was.role.liveness != is.role.liveness),
        ("readiness", was.role.readiness != is.role.readiness),
        ("restart", was.role.restart != is.role.restart),
        (
            "startup_grace",
            was.role.startup_grace != is.role.startup_grace,
        ),
        ("stop_grace", was.role.stop_grace != is.role.stop_grace),
        ("warm_start", was.role.warm_start != is.role.warm_start),
    ] {
        if differ {
            found.push(format!("{what} changed"));
        }
    }
    found
}

/// The settings that differ, by name: values can be secrets.
fn settings_that_differ(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> Vec<String> {
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let gone = gone.map(|key| format!("-{key}"));
    let other = new.iter().filter_map(|(key, value)| match old.get(key) {
        None => Some(format!("+{key}")),
        Some(old) if old != value => Some(format!("~{key}")),
        Some(_) => None,
    });
    gone.chain(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{architecture::Architecture, instance::tests::spec};

    fn role(instances: u32) -> ServiceRole {
        ServiceRole::of(spec(), instances)
    }

    fn told(old: &[ServiceRole], new: &[ServiceRole]) -> Vec<String> {
        changes(&"shop".parse().unwrap(), Colour::Plain, old, new)
            .into_iter()
            .map(|change| format!("{:?} {} {}", change.action, change.subject, change.detail))
            .collect()
    }

    #[test]
    fn a_new_role_comes_with_its_instances() {
        assert_eq!(
            told(&[], &[role(2)]),
            [
                "Create role web size tiny, image guest-os, package hello-web",
                "Create instance shop-web-0 new role",
                "Create instance shop-web-1 new role",
            ]
        );
    }

    #[test]
    fn a_role_that_is_left_out_goes_with_its_instances() {
        assert_eq!(
            told(&[role(1)], &[]),
            [
                "Delete role web not there any more",
                "Delete instance shop-web-0 its role is not there any more",
            ]
        );
    }

    #[test]
    fn nothing_changes_between_equals() {
        assert!(told(&[role(2)], &[role(2)]).is_empty());
    }

    #[test]
    fn scaling_names_the_instances_that_come_or_go() {
        assert_eq!(
            told(&[role(1)], &[role(2)]),
            [
                "Update role web instances: 1 → 2",
                "Create instance shop-web-1 instances 1 → 2"
            ]
        );
        assert_eq!(
            told(&[role(2)], &[role(1)]),
            [
                "Update role web instances: 2 → 1",
                "Delete instance shop-web-1 instances 2 → 1"
            ]
        );
    }

    #[test]
    fn rules_for_nodes_say_who_goes_and_who_stays() {
        let mut new = role(2);
        new.spec.nodes.labels = [("disk".to_owned(), "nvme".to_owned())].into();
        assert_eq!(
            told(&[role(2)], &[new]),
            [
                "Update role web nodes: any → disk=nvme; its instances on nodes that are not \
                 like that are placed anew, on fresh disks, others do not notice"
            ]
        );
    }

    #[test]
    fn an_image_for_other_processors_says_who_goes_and_who_stays() {
        let mut new = role(1);
        new.spec.image.architecture = Architecture::Aarch64;
        assert_eq!(
            told(&[role(1)], &[new]),
            [
                "Update role web architecture: x86_64 → aarch64; its instances on nodes that are \
                 not like that are placed anew, on fresh disks, others do not notice"
            ]
        );
    }

    #[test]
    fn a_changed_image_says_that_disks_are_made_anew() {
        let mut new = role(1);
        new.spec.package = None;
        new.spec
            .role
            .settings
            .insert("colour".to_owned(), "red".to_owned());
        let told = told(&[role(1)], &[new]);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with("Update role web package: hello-web (sha256:020202020202) → none")
        );
        assert!(told[0].ends_with("settings: +colour; its instances start anew on fresh disks"));
    }
}
