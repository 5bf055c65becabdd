//! Deployments: a version of a service in one of its two slots.
//!
//! A swap of the slots moves deployments, whole and as they are. The instances of a
//! deployment are named after its colour and not after its slot, so that nothing is
//! renamed.

use std::{collections::BTreeSet, fmt};

use fabric_proto::id::{Digest, InstanceId, InvalidId, RoleName, ServiceName};
use serde::{Deserialize, Serialize};

use super::{
    instance::{Effect, instance_id},
    service::ServiceRole,
    time::WallTime,
    update::{Cause, Update, UpdatePolicy},
};

/// Where a deployment is.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// Where its users are.
    #[default]
    Production,
    /// Where the next version is tried.
    Staging,
}

impl Slot {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Production, Self::Staging];
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Production => "production",
            Self::Staging => "staging",
        })
    }
}

/// What tells the instances of a service's two deployments apart.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Colour {
    /// The first: SERVICE-ROLE-NUMBER.
    #[default]
    Plain,
    /// The other: SERVICE-ROLE-bNUMBER. No plain number begins with a letter, so
    /// that ids of the two colours are never the same.
    B,
}

impl Colour {
    /// The one that another deployment of the service can have.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Plain => Self::B,
            Self::B => Self::Plain,
        }
    }

    /// What comes before the number.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::B => "b",
        }
    }
}

/// What a deployment is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The file that says so.
    pub definition_toml: String,
    /// Its roles, in the file's order, with their images and packages found.
    pub roles: Vec<ServiceRole>,
    /// How instances are brought to it.
    #[serde(default)]
    pub policy: UpdatePolicy,
}

impl Version {
    /// The role of that name.
    #[must_use]
    pub fn role(&self, name: &RoleName) -> Option<&ServiceRole> {
        self.roles.iter().find(|role| role.name() == name)
    }

    /// The digests of the images and packages that it needs.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.roles.iter().flat_map(|role| {
            let package = role.spec.package.as_ref().map(|package| &package.digest);
            std::iter::once(&role.spec.image.digest).chain(package)
        })
    }

    /// The roles of `new` whose instances are not what they were in this one.
    #[must_use]
    pub fn changed_roles(&self, new: &Self) -> BTreeSet<RoleName> {
        let changed = new.roles.iter().filter(|role| {
            self.role(role.name())
                .is_some_and(|old| old.spec.effect_of(&role.spec) != Effect::Nothing)
        });
        changed.map(|role| role.name().clone()).collect()
    }
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// What its instances are named after.
    pub colour: Colour,
    /// Generation of the service at which it was last given another version.
    pub revision: u64,
    /// What it is to run.
    pub version: Version,
    /// How its instances are brought to that; the last one stays when it is done.
    #[serde(default)]
    pub update: Option<Update>,
    /// OS images that it was updated to and had to be taken back from: it is not
    /// given them again unless somebody asks for it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refused: BTreeSet<Digest>,
}

impl Deployment {
    /// A new one.
    #[must_use]
    pub const fn new(colour: Colour, revision: u64, version: Version) -> Self {
        Self {
            colour,
            revision,
            version,
            update: None,
            refused: BTreeSet::new(),
        }
    }

    /// The update that is not done.
    #[must_use]
    pub fn under_way(&self) -> Option<&Update> {
        self.update.as_ref().filter(|update| update.is_under_way())
    }

    /// The same with another version, and the walk that brings its instances there.
    ///
    /// Where only counts and names change there is nothing to walk for, and an
    /// update that is under way goes on. A walk that was under way to something
    /// else ends, and what it would have gone back to is what the new one goes
    /// back to: nothing but that is known to work.
    #[must_use]
    pub fn with(&self, revision: u64, version: Version, cause: Cause, now: WallTime) -> Self {
        let mut roles = self.version.changed_roles(&version);
        let mut update = self.update.clone();
        if !roles.is_empty() {
            let (since, previous) = match self.under_way() {
                Some(unfinished) => {
                    roles.extend(unfinished.roles.iter().cloned());
                    let previous = match unfinished.cause {
                        Cause::GivenUp(_) => Some(self.version.clone()),
                        Cause::Operator | Cause::OsImage(_) => {
                            unfinished.previous.as_deref().cloned()
                        }
                    };
                    (unfinished.since_revision, previous)
                }
                None => (revision, Some(self.version.clone())),
            };
            update = Some(Update::new(cause, since, roles, previous, now));
        }
        Self {
            colour: self.colour,
            revision,
            version,
            update,
            refused: self.refused.clone(),
        }
    }

    /// The same on its way back to the version before; `None` if there is none.
    #[must_use]
    pub fn back(&self, revision: u64, why: String, now: WallTime) -> Option<Self> {
        let update = self.under_way()?;
        let version = update.previous.as_deref()?.clone();
        let mut refused = self.refused.clone();
        if matches!(update.cause, Cause::OsImage(_)) {
            let images = |version: &Version| -> BTreeSet<Digest> {
                let images = version.roles.iter().map(|role| &role.spec.image.digest);
                images.cloned().collect()
            };
            refused.extend(&images(&self.version) - &images(&version));
        }
        let cause = Cause::GivenUp(why);
        let roles = update.roles.clone();
        Some(Self {
            colour: self.colour,
            revision,
            version,
            update: Some(Update::new(cause, revision, roles, None, now)),
            refused,
        })
    }

    /// The instances that it wants, with their roles and numbers.
    ///
    /// # Errors
    ///
    /// An id would be too long; such a deployment is refused when it is applied.
    pub fn instances(
        &self,
        service: &ServiceName,
    ) -> Result<Vec<(InstanceId, &ServiceRole, u32)>, InvalidId> {
        let mut all = Vec::new();
        for role in &self.version.roles {
            for number in 0..role.instances {
                let id = instance_id(service, role.name(), self.colour, number)?;
                all.push((id, role, number));
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{instance::tests::spec, update::UpdateState};

    fn version(command: &str) -> Version {
        let mut spec = spec();
        spec.role.command = vec![command.to_owned()];
        Version {
            definition_toml: command.to_owned(),
            roles: vec![ServiceRole::of(spec, 2)],
            policy: UpdatePolicy::default(),
        }
    }

    const T: WallTime = WallTime::from_micros(7);

    fn to(from: &Deployment, revision: u64, command: &str) -> Deployment {
        from.with(revision, version(command), Cause::Operator, T)
    }

    #[test]
    fn a_walk_that_ends_in_another_goes_back_to_what_worked() {
        let first = Deployment::new(Colour::Plain, 1, version("/v1"));
        let third = to(&to(&first, 2, "/v2"), 3, "/v3");
        let update = third.update.as_ref().unwrap();
        assert_eq!(update.since_revision, 2);
        assert_eq!(update.previous.as_deref(), Some(&version("/v1")));
        let back = third.back(4, "bad".to_owned(), T).unwrap();
        assert_eq!(back.version, version("/v1"));
        assert!(
            back.back(5, "worse".to_owned(), T).is_none(),
            "no ping-pong"
        );
    }

    #[test]
    fn scaling_does_not_touch_a_walk() {
        let first = Deployment::new(Colour::Plain, 1, version("/v1"));
        let mut walking = to(&first, 2, "/v2");
        walking.update.as_mut().unwrap().state = UpdateState::Paused;
        let mut more = version("/v2");
        more.roles[0].instances = 9;
        let scaled = walking.with(3, more, Cause::Operator, T);
        assert_eq!(scaled.update, walking.update);
    }

    #[test]
    fn ids_of_the_two_colours_differ() {
        let name = "shop".parse().unwrap();
        let ids = |colour| -> Vec<String> {
            let deployment = Deployment::new(colour, 1, version("/v1"));
            let all = deployment.instances(&name).unwrap();
            all.into_iter().map(|(id, ..)| id.to_string()).collect()
        };
        assert_eq!(ids(Colour::Plain), ["shop-web-0", "shop-web-1"]);
        assert_eq!(ids(Colour::B), ["shop-web-b0", "shop-web-b1"]);
    }
}
