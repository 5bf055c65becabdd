//! Instances as they are kept.

use fabric_proto::id::{InstanceId, InvalidId, NodeId, RoleName, ServiceName};
use serde::{Deserialize, Serialize};

use super::{
    blob::BlobRef,
    definition::{NodeRules, Role},
    deployment::Colour,
    keep::Keep,
    node::{NodeRecord, Nodes},
    own::OwnResources,
    size::Size,
    time::WallTime,
};

/// What becomes of an instance that is given another spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// It does not notice.
    Nothing,
    /// It is told, and goes on.
    Deliver,
    /// Its role's process is started anew.
    RestartRole,
    /// It gets a new virtual machine on a fresh disk, on its node.
    Reimage,
    /// It goes, and comes anew where there is room.
    Replace,
}

impl Effect {
    /// What its instances do, for people.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Nothing => "do not notice",
            Self::Deliver => "are told and go on",
            Self::RestartRole => "start their role anew",
            Self::Reimage => "start anew on fresh disks",
            Self::Replace => "are placed anew, on fresh disks",
        }
    }
}

/// What a restart restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartScope {
    /// The role's process.
    Role,
    /// The virtual machine, on its disk.
    Vm,
    /// The virtual machine, on a fresh differencing disk.
    Reimage,
    /// The virtual machine, from a snapshot.
    Restore,
    /// The guest, in the virtual machine that is there.
    Reset,
}

impl RestartScope {
    /// What is restarted, for people.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Role => "its role",
            Self::Vm => "its virtual machine",
            Self::Reimage => "its virtual machine on a fresh disk",
            Self::Restore => "its virtual machine from a snapshot",
            Self::Reset => "its guest in place",
        }
    }
}

/// The restarts that an instance was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Counts up with every restart.
    pub generation: u64,
    /// Generation of the last restart of the role alone.
    pub role_generation: u64,
    /// What the last restart restarts; `None` before the first.
    pub scope: Option<RestartScope>,
}

impl Restart {
    /// The same with one restart more.
    #[must_use]
    pub const fn again(self, scope: RestartScope) -> Self {
        let generation = self.generation + 1;
        let role_generation = match scope {
            RestartScope::Role => generation,
            RestartScope::Vm
            | RestartScope::Reimage
            | RestartScope::Restore
            | RestartScope::Reset => self.role_generation,
        };
        Self {
            generation,
            role_generation,
            scope: Some(scope),
        }
    }
}

/// Everything that its node must know to run an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Name of its size.
    pub size_name: String,
    /// Its size.
    pub size: Size,
    /// Resources of the operator's own that its size takes.
    #[serde(default, skip_serializing_if = "OwnResources::is_empty")]
    pub resources: OwnResources,
    /// The image it boots from.
    pub image: BlobRef,
    /// Its role's package.
    pub package: Option<BlobRef>,
    /// Its role.
    pub role: Role,
    /// What a node must be like to have it.
    #[serde(default, skip_serializing_if = "NodeRules::is_empty")]
    pub nodes: NodeRules,
}

impl InstanceSpec {
    /// Whether a node is what it asks for, whatever else is on it: its image is for that
    /// node's processors, and the node meets its rules.
    #[must_use]
    pub fn can_be_on(&self, node: &NodeRecord) -> bool {
        self.image.architecture == node.inventory.architecture && node.meets(&self.nodes)
    }

    /// What becomes of an instance of this kind that is to become one of `new`, on
    /// whichever node: where another kind of node is asked for, of one that must leave
    /// its own.
    #[must_use]
    pub fn effect_of(&self, new: &Self) -> Effect {
        self.effect_on(None, new)
    }

    /// The same on its node. One that is as is asked for now keeps what it has.
    #[must_use]
    pub fn effect_on(&self, node: Option<&NodeRecord>, new: &Self) -> Effect {
        let asks_the_same =
            self.nodes == new.nodes && self.image.architecture == new.image.architecture;
        match asks_the_same || node.is_some_and(|node| new.can_be_on(node)) {
            true => self.effect_in_place(new),
            false => Effect::Replace,
        }
    }

    /// The same on a node that is as is asked for.
    #[must_use]
    pub fn effect_in_place(&self, new: &Self) -> Effect {
        let digest = |blob: &Option<BlobRef>| blob.as_ref().map(|blob| blob.digest.clone());
        if self.size != new.size || self.resources != new.resources {
            Effect::Replace
        } else if self.image.digest != new.image.digest
            || digest(&self.package) != digest(&new.package)
        {
            Effect::Reimage
        } else if self.role.starts_as(&new.role) {
            if self.role == new.role {
                Effect::Nothing
            } else {
                Effect::Deliver
            }
        } else {
            Effect::RestartRole
        }
    }
}

/// Whether an instance is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its service wants it.
    Wanted,
    /// Its service wants it, and not where it is: it is placed anew when its node says
    /// that it is gone.
    Moving,
    /// Its service wants it no more; it is kept until its node says that it is gone.
    Removing,
}

/// Its moves away from nodes that had given it up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The last of them: it is placed there again only where there is no other.
    pub by: Option<NodeId>,
    /// When it was moved, lately.
    pub moved: Vec<WallTime>,
}

/// An instance as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its id.
    pub id: InstanceId,
    /// Its service.
    pub service: ServiceName,
    /// Its role.
    pub role: RoleName,
    /// Which of its service's deployments it belongs to.
    #[serde(default)]
    pub colour: Colour,
    /// Its number in the role, from 0.
    pub number: u32,
    /// Generation of its service that it was last changed for, or came to be for.
    #[serde(default)]
    pub revision: u64,
    /// When it was last changed for one.
    #[serde(default = "WallTime::epoch")]
    pub updated: WallTime,
    /// What its node must know.
    pub spec: InstanceSpec,
    /// Its node; `None` until it is placed.
    pub node: Option<NodeId>,
    /// Epoch under which it is placed. It grows whenever the instance must be
    /// made anew, also across a removal, and never shrinks.
    pub epoch: u64,
    /// The restarts that it was asked for.
    pub restart: Restart,
    /// Whether it is to stand still or to be down, and its snapshots.
    #[serde(default)]
    pub keep: Keep,
    /// Whether it is to be.
    pub phase: Phase,
    /// Its moves away from nodes that had given it up.
    #[serde(default)]
    pub given_up: GivenUp,
    /// Why no node can take it; empty when one has or none was looked for.
    pub unplaceable: String,
    /// When it came to be, was placed or began to go.
    pub changed: WallTime,
}

impl InstanceRecord {
    /// What becomes of it, where it is, when it is to become one of `new`.
    #[must_use]
    pub fn effect_of(&self, new: &InstanceSpec, nodes: &Nodes<'_>) -> Effect {
        let node = self.node.as_ref().and_then(|name| nodes.get(name));
        self.spec.effect_on(node, new)
    }

    /// Whether it is moving because its node has given it up.
    #[must_use]
    pub fn was_given_up(&self) -> bool {
        self.phase == Phase::Moving && self.given_up.moved.last() == Some(&self.changed)
    }

    /// It does not run on its node any more, and is to be placed anew.
    pub fn leave_node(&mut self, epoch: u64, now: WallTime) {
        self.phase = Phase::Wanted;
        self.node = None;
        self.epoch = epoch;
        // They are on that node's disk.
        self.keep = self.keep.elsewhere();
        self.changed = now;
    }
}

/// Most instances of one role.
pub const MOST_INSTANCES: u32 = 1000;

/// Id of an instance: SERVICE-ROLE-NUMBER, with the colour before the number.
///
/// # Errors
///
/// The id would be too long.
pub fn instance_id(
    service: &ServiceName,
    role: &RoleName,
    colour: Colour,
    number: u32,
) -> Result<InstanceId, InvalidId> {
    format!("{service}-{role}-{}{number}", colour.prefix()).parse()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::model::{
        architecture::Architecture,
        definition::{RestartPolicy, RoleKind},
        node::Kvm,
        size::MIB,
    };

    /// An instance of 1 processor and 128 MiB on that node.
    pub(crate) fn record(node: &str) -> InstanceRecord {
        InstanceRecord {
            id: "shop-web-0".parse().unwrap(),
            service: "shop".parse().unwrap(),
            role: "web".parse().unwrap(),
            colour: Colour::Plain,
            number: 0,
            revision: 1,
            updated: WallTime::EPOCH,
            spec: spec(),
            node: Some(node.parse().unwrap()),
            epoch: 1,
            restart: Restart::default(),
            keep: Keep::default(),
            phase: Phase::Wanted,
            given_up: GivenUp::default(),
            unplaceable: String::new(),
            changed: WallTime::EPOCH,
        }
    }

    /// What the node must know of it.
    pub(crate) fn spec() -> InstanceSpec {
        let blob = |name: &str, byte| BlobRef {
            name: name.to_owned(),
            digest: fabric_proto::id::Digest::of_sha256(&[byte; 32]),
            size_bytes: 1 << 20,
            virtual_bytes: 1 << 20,
            architecture: Architecture::X86_64,
        };
        InstanceSpec {
            size_name: "tiny".to_owned(),
            size: Size {
                vcpus: 1,
                memory_bytes: 128 * MIB,
                cpu_weight: 0,
            },
            resources: OwnResources::default(),
            image: blob("guest-os", 1),
            package: Some(blob("hello-web", 2)),
            role: Role {
                name: "web".parse().unwrap(),
                kind: RoleKind::Web,
                command: vec!["/bin/true".to_owned()],
                environment: BTreeMap::new(),
                settings: BTreeMap::new(),
                deliver_settings: false,
                user: 1000,
                liveness: None,
                readiness: None,
                startup_grace: Duration::from_secs(10),
                stop_grace: Duration::from_secs(5),
                restart: RestartPolicy::default(),
                warm_start: None,
            },
            nodes: NodeRules::default(),
        }
    }

    #[test]
    fn what_changes_says_what_becomes_of_an_instance() {
        let effect = |change: &dyn Fn(&mut InstanceSpec)| {
            let mut new = spec();
            change(&mut new);
            spec().effect_of(&new)
        };
        assert_eq!(effect(&|_| {}), Effect::Nothing);
        let renamed = |new: &mut InstanceSpec| new.image.name = "other-name".to_owned();
        assert_eq!(effect(&renamed), Effect::Nothing);
        let grace = |new: &mut InstanceSpec| new.role.stop_grace = Duration::ZERO;
        assert_eq!(effect(&grace), Effect::Deliver);
        let command = |new: &mut InstanceSpec| new.role.command.push("x".to_owned());
        assert_eq!(effect(&command), Effect::RestartRole);
        assert_eq!(effect(&|new| new.package = None), Effect::Reimage);
        assert_eq!(effect(&|new| new.size.vcpus = 2), Effect::Replace);
        let gpu = |new: &mut InstanceSpec| {
            new.resources = [("gpu".to_owned(), 1)].into_iter().collect();
        };
        assert_eq!(effect(&gpu), Effect::Replace);
        let kvm = |new: &mut InstanceSpec| new.nodes.kvm = Some(Kvm::Hardware);
        assert_eq!(effect(&kvm), Effect::Replace);
    }

    #[test]
    fn other_rules_for_nodes_are_nothing_to_who_is_on_one_that_meets_them() {
        let mut fast = NodeRecord::new("n1".parse().unwrap(), WallTime::EPOCH);
        fast.labels = [("disk".to_owned(), "nvme".to_owned())].into();
        let slow = NodeRecord::new("n2".parse().unwrap(), WallTime::EPOCH);
        let mut new = spec();
        new.nodes.labels = fast.labels.clone();
        assert_eq!(spec().effect_on(Some(&fast), &new), Effect::Nothing);
        assert_eq!(spec().effect_on(Some(&slow), &new), Effect::Replace);
        assert_eq!(spec().effect_on(None, &new), Effect::Replace);
        // What else changes has the effect that it has.
        new.package = None;
        assert_eq!(spec().effect_on(Some(&fast), &new), Effect::Reimage);
        new.size.vcpus = 2;
        assert_eq!(spec().effect_on(Some(&fast), &new), Effect::Replace);
        // Rules that are dropped are met everywhere.
        assert_eq!(new.effect_on(Some(&slow), &new), Effect::Nothing);
        let mut free = new.clone();
        free.nodes = NodeRules::default();
        assert_eq!(new.effect_on(Some(&slow), &free), Effect::Nothing);
        let nodes = [&fast, &slow].into_iter().collect();
        let at = |node: &str| InstanceRecord {
            spec: free.clone(),
            ..record(node)
        };
        assert_eq!(at("n1").effect_of(&new, &nodes), Effect::Nothing);
        assert_eq!(at("n2").effect_of(&new, &nodes), Effect::Replace);
        assert_eq!(at("n3").effect_of(&new, &nodes), Effect::Replace);
    }

    #[test]
    fn who_is_to_have_an_image_for_other_processors_goes_where_those_are() {
        let intel = NodeRecord::new("n1".parse().unwrap(), WallTime::EPOCH);
        let mut arm = NodeRecord::new("n2".parse().unwrap(), WallTime::EPOCH);
        arm.inventory.architecture = Architecture::Aarch64;
        assert!(spec().can_be_on(&intel) && !spec().can_be_on(&arm));
        let mut new = spec();
        new.image.architecture = Architecture::Aarch64;
        new.image.digest = fabric_proto::id::Digest::of_sha256(&[9; 32]);
        assert!(!new.can_be_on(&intel) && new.can_be_on(&arm));
        assert_eq!(spec().effect_of(&new), Effect::Replace);
        assert_eq!(spec().effect_on(Some(&intel), &new), Effect::Replace);
        assert_eq!(spec().effect_on(Some(&arm), &new), Effect::Reimage);
        // What was said wrong of the same file is no matter to who is right by it.
        new.image.digest = spec().image.digest;
        assert_eq!(spec().effect_on(Some(&intel), &new), Effect::Replace);
        assert_eq!(spec().effect_on(Some(&arm), &new), Effect::Nothing);
    }

    #[test]
    fn a_changed_setting_is_delivered_to_a_role_that_asks_for_it() {
        let with = |deliver, colour: &str| {
            let mut spec = spec();
            spec.role.deliver_settings = deliver;
            let setting = ("colour".to_owned(), colour.to_owned());
            spec.role.settings.extend([setting]);
            spec
        };
        let effect = |deliver| with(deliver, "red").effect_of(&with(deliver, "blue"));
        assert_eq!(effect(false), Effect::RestartRole);
        assert_eq!(effect(true), Effect::Deliver);
    }

    #[test]
    fn a_restart_of_the_role_travels_in_the_role_as_well() {
        let restart = Restart::default()
            .again(RestartScope::Vm)
            .again(RestartScope::Role);
        assert_eq!((restart.generation, restart.role_generation), (2, 2));
        let restart = restart.again(RestartScope::Reimage);
        assert_eq!((restart.generation, restart.role_generation), (3, 2));
    }
}
