//! Services as they are kept.

use std::collections::BTreeMap;

use fabric_proto::id::{Digest, InstanceId, InvalidId, RoleName, ServiceName};
use serde::{Deserialize, Serialize};

use super::{
    blob::BlobRef,
    definition::{Endpoint, OsUpdates, RoleDefinition, Spreading},
    deployment::{Colour, Deployment, Slot, Version},
    instance::{InstanceRecord, InstanceSpec},
    time::WallTime,
    update::{self, UpdatePolicy},
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
    /// Parts that are updated one after another; at least 1.
    #[serde(default = "upgrade_domains")]
    pub upgrade_domains: u32,
    /// Parts that no single failure of the machines' surroundings should hit
    /// together; at least 1.
    #[serde(default = "fault_domains")]
    pub fault_domains: u32,
    /// How binding it is that they lie on as many fault domains, and evenly.
    #[serde(default)]
    pub spread: Spreading,
    /// Roles of a service that name the same set do not share fault domains, nor do
    /// their instances, while there are enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability_set: Option<String>,
    /// Whether it follows its line of OS images.
    #[serde(default)]
    pub os_updates: OsUpdates,
    /// The line that its image was found by, if the file names a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_line: Option<String>,
}

const fn upgrade_domains() -> u32 {
    update::UPGRADE_DOMAINS
}

const fn fault_domains() -> u32 {
    update::FAULT_DOMAINS
}

impl ServiceRole {
    /// The role as defined, with these files.
    #[must_use]
    pub fn new(definition: RoleDefinition, image: BlobRef, package: Option<BlobRef>) -> Self {
        let spec = InstanceSpec {
            size_name: definition.size_name,
            size: definition.size,
            resources: definition.resources,
            image,
            package,
            role: definition.role,
            nodes: definition.nodes,
        };
        let image_line = (definition.image != spec.image.name).then_some(definition.image);
        Self {
            instances: definition.instances,
            spec,
            endpoints: definition.endpoints,
            upgrade_domains: definition.upgrade_domains,
            fault_domains: definition.fault_domains,
            spread: definition.spread,
            availability_set: definition.availability_set,
            os_updates: definition.os_updates,
            image_line,
        }
    }

    /// So many instances of this, and everything else as it is by default.
    #[must_use]
    pub const fn of(spec: InstanceSpec, instances: u32) -> Self {
        Self {
            instances,
            spec,
            endpoints: Vec::new(),
            upgrade_domains: update::UPGRADE_DOMAINS,
            fault_domains: update::FAULT_DOMAINS,
            spread: Spreading::Preferred,
            availability_set: None,
            os_updates: OsUpdates::Manual,
            image_line: None,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &RoleName {
        &self.spec.role.name
    }

    /// The upgrade domain of the instance of that number.
    #[must_use]
    pub const fn upgrade_domain(&self, number: u32) -> u32 {
        match number.checked_rem(self.upgrade_domains) {
            Some(domain) => domain,
            None => 0,
        }
    }
}

/// A service as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct ServiceRecord {
    /// Its name.
    pub name: ServiceName,
    /// Counts up with every change of what it is to be.
    pub generation: u64,
    /// Its deployments; never empty.
    pub slots: BTreeMap<Slot, Deployment>,
    /// When it was first made.
    pub created: WallTime,
    /// When it was last changed.
    pub updated: WallTime,
}

/// A service as any version of the controller has written it: before there were
/// slots, what is in production now stood beside the rest.
#[derive(Deserialize)]
struct Stored {
    name: ServiceName,
    generation: u64,
    #[serde(default)]
    slots: BTreeMap<Slot, Deployment>,
    #[serde(default)]
    definition_toml: String,
    #[serde(default)]
    roles: Option<Vec<ServiceRole>>,
    created: WallTime,
    updated: WallTime,
}

impl From<Stored> for ServiceRecord {
    fn from(stored: Stored) -> Self {
        let mut slots = stored.slots;
        if let Some(roles) = stored.roles {
            let version = Version {
                definition_toml: stored.definition_toml,
                roles,
                policy: UpdatePolicy::default(),
            };
            let deployment = Deployment::new(Colour::Plain, stored.generation, version);
            slots.entry(Slot::Production).or_insert(deployment);
        }
        Self {
            name: stored.name,
            generation: stored.generation,
            slots,
            created: stored.created,
            updated: stored.updated,
        }
    }
}

impl ServiceRecord {
    /// Its deployment in that slot.
    #[must_use]
    pub fn deployment(&self, slot: Slot) -> Option<&Deployment> {
        self.slots.get(&slot)
    }

    /// The slot of the deployment of that colour.
    #[must_use]
    pub fn slot_of(&self, colour: Colour) -> Option<Slot> {
        let found = self.slots.iter().find(|(_, one)| one.colour == colour);
        found.map(|(slot, _)| *slot)
    }

    /// The colour for a new deployment.
    #[must_use]
    pub fn free_colour(&self) -> Colour {
        match self.slot_of(Colour::Plain) {
            None => Colour::Plain,
            Some(_) => Colour::B,
        }
    }

    /// The role of one of its instances, unless that is not wanted any more.
    #[must_use]
    pub fn role_of(&self, instance: &InstanceRecord) -> Option<&ServiceRole> {
        self.deployment_of(instance)?.version.role(&instance.role)
    }

    /// The deployment that an instance belongs to, if it is still there.
    #[must_use]
    pub fn deployment_of(&self, instance: &InstanceRecord) -> Option<&Deployment> {
        let mut deployments = self.slots.values();
        deployments.find(|one| one.colour == instance.colour)
    }

    /// The roles of all of its deployments.
    pub fn roles(&self) -> impl Iterator<Item = &ServiceRole> {
        self.slots.values().flat_map(|one| &one.version.roles)
    }

    /// The digests of the images and packages that it needs, or would need if an
    /// update that is under way were given up.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.slots.values().flat_map(|one| {
            let previous = one
                .under_way()
                .and_then(|update| update.previous.as_deref());
            std::iter::once(&one.version)
                .chain(previous)
                .flat_map(Version::digests)
        })
    }

    /// Whether it uses this file.
    #[must_use]
    pub fn uses(&self, digest: &Digest) -> bool {
        self.digests().any(|one| one == digest)
    }

    /// The instances that it wants, with their deployments, roles and numbers.
    ///
    /// # Errors
    ///
    /// An id would be too long; the check of the service file does not let such
    /// a service come to be.
    pub fn instances(
        &self,
    ) -> Result<Vec<(InstanceId, &Deployment, &ServiceRole, u32)>, InvalidId> {
        let mut all = Vec::new();
        for deployment in self.slots.values() {
            let instances = deployment.instances(&self.name)?.into_iter();
            all.extend(instances.map(|(id, role, number)| (id, deployment, role, number)));
        }
        Ok(all)
    }

    /// A role of this one and a role of the other whose instances would have
    /// the same ids, as those of `a-b`/`c` and `a`/`b-c` have.
    #[must_use]
    pub fn clash(&self, other: &Self) -> Option<(&RoleName, RoleName)> {
        self.roles().find_map(|mine| {
            let prefix = format!("{}-{}", self.name, mine.name());
            let theirs = other
                .roles()
                .find(|theirs| format!("{}-{}", other.name, theirs.name()) == prefix)?;
            Some((mine.name(), theirs.name().clone()))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::instance::tests::spec;

    /// A service with these roles in production.
    pub(crate) fn service(name: &str, roles: Vec<ServiceRole>) -> ServiceRecord {
        let version = Version {
            definition_toml: String::new(),
            roles,
            policy: UpdatePolicy::default(),
        };
        let deployment = Deployment::new(Colour::Plain, 1, version);
        ServiceRecord {
            name: name.parse().unwrap(),
            generation: 1,
            slots: [(Slot::Production, deployment)].into(),
            created: WallTime::EPOCH,
            updated: WallTime::EPOCH,
        }
    }

    #[test]
    fn two_services_whose_instances_would_be_called_the_same_clash() {
        let service = |name: &str, role_name: &str| {
            let mut role = ServiceRole::of(spec(), 1);
            role.spec.role.name = role_name.parse().unwrap();
            service(name, vec![role])
        };
        assert!(service("a-b", "c").clash(&service("a", "b-c")).is_some());
        assert!(service("a-b", "c").clash(&service("a", "b")).is_none());
    }

    #[test]
    fn a_service_from_before_there_were_slots_is_in_production() {
        let role = serde_json::json!({
            "instances": 2,
            "spec": serde_json::to_value(spec()).unwrap(),
            "endpoints": [],
        });
        let old = serde_json::json!({
            "name": "shop", "generation": 7, "definition_toml": "x", "roles": [role],
            "created": 1, "updated": 2,
        });
        let record: ServiceRecord = serde_json::from_value(old).unwrap();
        let deployment = record.deployment(Slot::Production).unwrap();
        assert_eq!((deployment.colour, deployment.revision), (Colour::Plain, 7));
        let role = &deployment.version.roles[0];
        assert_eq!((role.upgrade_domains, role.fault_domains), (5, 2));
        assert_eq!(role.upgrade_domain(7), 2);
        let again = serde_json::to_value(&record).unwrap();
        assert_eq!(
            serde_json::from_value::<ServiceRecord>(again).unwrap(),
            record
        );
    }
}
