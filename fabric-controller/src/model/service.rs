//! Services as they are kept, and how two versions of one differ.

use std::{collections::BTreeMap, fmt};

use fabric_proto::id::{InstanceId, InvalidId, RoleName, ServiceName};
use serde::{Deserialize, Serialize};

use super::{
    blob::BlobRef,
    definition::{Endpoint, RoleDefinition},
    instance::{InstanceSpec, instance_id},
    time::WallTime,
};

/// A role with its image and package found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRole {
    /// How many instances.
    pub instances: u32,
    /// What each of them is.
    pub spec: InstanceSpec,
    /// Where it can be reached.
    pub endpoints: Vec<Endpoint>,
}

impl ServiceRole {
    /// The role as defined, with these files.
    #[must_use]
    pub fn new(definition: RoleDefinition, image: BlobRef, package: Option<BlobRef>) -> Self {
        let RoleDefinition {
            role,
            size_name,
            size,
            instances,
            endpoints,
            ..
        } = definition;
        let spec = InstanceSpec {
            size_name,
            size,
            image,
            package,
            role,
        };
        Self {
            instances,
            spec,
            endpoints,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &RoleName {
        &self.spec.role.name
    }
}

/// A service as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Its name.
    pub name: ServiceName,
    /// Counts up with every change.
    pub generation: u64,
    /// The file that it was last made by.
    pub definition_toml: String,
    /// Its roles, in the file's order.
    pub roles: Vec<ServiceRole>,
    /// When it was first made.
    pub created: WallTime,
    /// When it was last changed.
    pub updated: WallTime,
}

impl ServiceRecord {
    /// Whether it uses this file.
    #[must_use]
    pub fn uses(&self, digest: &fabric_proto::id::Digest) -> bool {
        self.roles.iter().any(|role| {
            role.spec.image.digest == *digest
                || role
                    .spec
                    .package
                    .as_ref()
                    .is_some_and(|package| package.digest == *digest)
        })
    }

    /// The instances that it wants, with their roles and numbers.
    ///
    /// # Errors
    ///
    /// An id would be too long; the check of the service file does not let such
    /// a service come to be.
    pub fn instances(&self) -> Result<Vec<(InstanceId, &ServiceRole, u32)>, InvalidId> {
        let mut all = Vec::new();
        for role in &self.roles {
            for number in 0..role.instances {
                all.push((instance_id(&self.name, role.name(), number)?, role, number));
            }
        }
        Ok(all)
    }

    /// A role of this one and a role of the other whose instances would have
    /// the same ids, as those of `a-b`/`c` and `a`/`b-c` have.
    #[must_use]
    pub fn clash(&self, other: &Self) -> Option<(&RoleName, RoleName)> {
        self.roles.iter().find_map(|mine| {
            let prefix = format!("{}-{}", self.name, mine.name());
            let theirs = other
                .roles
                .iter()
                .find(|theirs| format!("{}-{}", other.name, theirs.name()) == prefix)?;
            Some((mine.name(), theirs.name().clone()))
        })
    }
}

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
pub fn changes(name: &ServiceName, old: &[ServiceRole], new: &[ServiceRole]) -> Vec<Change> {
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
        changes.push(Change::new(
            Action::Delete,
            format!("role {}", role.name()),
            "",
        ));
        count(name, role, 0..role.instances, Action::Delete, &mut changes);
    }
    changes
}

fn created(service: &ServiceName, role: &ServiceRole, changes: &mut Vec<Change>) {
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
    count(service, role, 0..role.instances, Action::Create, changes);
}

fn updated(service: &ServiceName, old: &ServiceRole, new: &ServiceRole, changes: &mut Vec<Change>) {
    let mut details = differences(old, new);
    if old.spec.needs_reimage(&new.spec) {
        details.push("its instances start anew on fresh disks".to_owned());
    }
    if !details.is_empty() {
        let subject = format!("role {}", new.name());
        changes.push(Change::new(Action::Update, subject, details.join("; ")));
    }
    count(
        service,
        new,
        old.instances..new.instances,
        Action::Create,
        changes,
    );
    count(
        service,
        new,
        new.instances..old.instances,
        Action::Delete,
        changes,
    );
}

fn count(
    service: &ServiceName,
    role: &ServiceRole,
    numbers: std::ops::Range<u32>,
    action: Action,
    changes: &mut Vec<Change>,
) {
    changes.extend(numbers.map(|number| {
        Change::new(
            action,
            format!("instance {service}-{}-{number}", role.name()),
            "",
        )
    }));
}

/// What differs between two versions of a role, each in a few words.
fn differences(old: &ServiceRole, new: &ServiceRole) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, old: &dyn fmt::Display, new: &dyn fmt::Display| {
        let (old, new) = (old.to_string(), new.to_string());
        if old != new {
            found.push(format!("{what}: {old} → {new}"));
        }
    };
    let (was, is) = (&old.spec, &new.spec);
    let size = |spec: &InstanceSpec| {
        let mib = spec.size.memory_bytes >> 20;
        format!("{} ({} vCPU, {mib} MiB)", spec.size_name, spec.size.vcpus)
    };
    let blob = |blob: &BlobRef| format!("{} ({:.19})", blob.name, blob.digest.as_str());
    let package = |spec: &InstanceSpec| {
        spec.package
            .as_ref()
            .map_or_else(|| "none".to_owned(), blob)
    };
    let command = |spec: &InstanceSpec| format!("{:?}", spec.role.command);
    compare("instances", &old.instances, &new.instances);
    compare("size", &size(was), &size(is));
    compare("image", &blob(&was.image), &blob(&is.image));
    compare("package", &package(was), &package(is));
    compare("command", &command(was), &command(is));
    compare("user", &was.role.user, &is.role.user);
    for (what, differ) in [
        ("kind", was.role.kind != is.role.kind),
        ("environment", was.role.environment != is.role.environment),
        ("settings", was.role.settings != is.role.settings),
        ("endpoints", old.endpoints != new.endpoints),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::instance::tests::spec;

    fn role(instances: u32) -> ServiceRole {
        ServiceRole {
            instances,
            spec: spec(),
            endpoints: Vec::new(),
        }
    }

    fn told(old: &[ServiceRole], new: &[ServiceRole]) -> Vec<String> {
        changes(&"shop".parse().unwrap(), old, new)
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
                "Create instance shop-web-0 ",
                "Create instance shop-web-1 ",
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
                "Create instance shop-web-1 "
            ]
        );
        assert_eq!(
            told(&[role(2)], &[role(1)]),
            [
                "Update role web instances: 2 → 1",
                "Delete instance shop-web-1 "
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
        assert!(told[0].ends_with("settings changed; its instances start anew on fresh disks"));
    }

    #[test]
    fn two_services_whose_instances_would_be_called_the_same_clash() {
        let service = |name: &str, role_name: &str| {
            let mut role = role(1);
            role.spec.role.name = role_name.parse().unwrap();
            ServiceRecord {
                name: name.parse().unwrap(),
                generation: 1,
                definition_toml: String::new(),
                roles: vec![role],
                created: WallTime::EPOCH,
                updated: WallTime::EPOCH,
            }
        };
        assert!(service("a-b", "c").clash(&service("a", "b-c")).is_some());
        assert!(service("a-b", "c").clash(&service("a", "b")).is_none());
    }
}
