//! What placement is told: machines, instances, and what the operator prefers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use fabric_proto::id::{InstanceId, NodeId};

use crate::model::size::Size;
pub use crate::model::{
    architecture::Architecture,
    definition::Spreading,
    node::Kvm,
    own::OwnResources,
    stock::{Stock, Template},
};

/// Thousandths of a core in one.
const MILLI: u64 = 1000;
/// [`Size::cpu_weight`] of a whole core.
const WHOLE: u64 = 100;

/// What an instance takes and a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Thousandths of a core.
    pub millicores: u64,
    /// Disk, in bytes.
    pub disk_bytes: u64,
}

impl Resources {
    /// What a size takes, without disk. A weight below that of whole cores is a share
    /// of them: the processors are shared with others from the start.
    #[must_use]
    pub fn of(size: Size) -> Self {
        let whole = u64::from(size.vcpus) * MILLI;
        let millicores = match u64::from(size.cpu_weight) {
            0 => whole,
            weight => whole.min(weight * MILLI / WHOLE),
        };
        Self {
            memory_bytes: size.memory_bytes,
            millicores,
            disk_bytes: 0,
        }
    }

    /// Whether there is so much in what is free.
    #[must_use]
    pub const fn fits_in(&self, free: &Self) -> bool {
        self.millicores <= free.millicores
            && self.memory_bytes <= free.memory_bytes
            && self.disk_bytes <= free.disk_bytes
    }

    /// Both together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            millicores: self.millicores.saturating_add(other.millicores),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
        }
    }

    /// What is left of it without the other; nothing where there is less.
    #[must_use]
    pub const fn minus(&self, other: &Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            millicores: self.millicores.saturating_sub(other.millicores),
            disk_bytes: self.disk_bytes.saturating_sub(other.disk_bytes),
        }
    }

    /// How many of that there is room for.
    #[must_use]
    pub fn times(&self, one: &Self) -> u64 {
        let of = |all: u64, one: u64| all.checked_div(one).unwrap_or(u64::MAX);
        of(self.millicores, one.millicores)
            .min(of(self.memory_bytes, one.memory_bytes))
            .min(of(self.disk_bytes, one.disk_bytes))
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} and {} MiB",
            Cores(self.millicores),
            self.memory_bytes >> 20
        )
    }
}

/// So much of everything, for people: "1 vCPU and 64 MiB and 1 gpu".
pub(super) struct Amount<'a>(pub(super) &'a Resources, pub(super) &'a OwnResources);

impl fmt::Display for Amount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(resources, own) = self;
        write!(f, "{resources}")?;
        match own.is_empty() {
            true => Ok(()),
            false => write!(f, " and {own}"),
        }
    }
}

/// Thousandths of a core, for people: "1 vCPU", "0.5 vCPU".
pub(super) struct Cores(pub(super) u64);

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / MILLI, self.0 % MILLI);
        if part == 0 {
            return write!(f, "{whole} vCPU");
        }
        let digits = format!("{part:03}");
        write!(f, "{whole}.{} vCPU", digits.trim_end_matches('0'))
    }
}

/// Whether nodes are filled one after another or all alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fill {
    /// All alike: what fails takes the fewest with it.
    #[default]
    Spread,
    /// One after another: room stays for big ones, and nodes for nothing can be
    /// switched off.
    Pack,
}

/// How full nodes may be, and which are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Virtual processors per logical processor of a node.
    pub vcpus_per_cpu: u32,
    /// Which nodes are filled first.
    pub fill: Fill,
}

impl Policy {
    /// What holds when nothing else is said.
    pub const DEFAULT: Self = Self {
        vcpus_per_cpu: 4,
        fill: Fill::Spread,
    };
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What fails together: a rack, with its power and its switch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultDomain(pub String);

impl fmt::Display for FaultDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is to be spread: the instances of a role, or those of an availability set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub String);

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a node can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Its session is open and it is heard.
    Connected,
    /// Its session is not open.
    NotConnected,
    /// It was not heard for so long that it counts as lost.
    Lost,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// What it fails together with.
    pub domain: FaultDomain,
    /// Logical processors.
    pub cpus: u32,
    /// Memory for guests, in bytes.
    pub memory_bytes: u64,
    /// Disk for guests, in bytes; 0 if it is not known, and then not counted.
    pub disk_bytes: u64,
    /// Whether it can be asked.
    pub health: Health,
    /// True if an operator wants nothing new on it.
    pub cordoned: bool,
    /// True if unrelated services keep failing on it.
    pub condemned: bool,
    /// True if it has come and gone too often lately.
    pub unsteady: bool,
    /// How many unrelated services keep failing on it.
    pub blame: u32,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its processors.
    pub architecture: Architecture,
    /// Its KVM, if it is known.
    pub kvm: Option<Kvm>,
    /// What is there, although no instance there may be of it.
    pub stock: Arc<Stock>,
    /// Resources of the operator's own.
    pub own: OwnResources,
}

impl Node {
    /// All that can be promised of it.
    #[must_use]
    pub fn capacity(&self, policy: Policy) -> Resources {
        let vcpus = u64::from(self.cpus) * u64::from(policy.vcpus_per_cpu);
        Resources {
            memory_bytes: self.memory_bytes,
            millicores: vcpus * MILLI,
            disk_bytes: match self.disk_bytes {
                0 => u64::MAX,
                known => known,
            },
        }
    }
}

/// What an instance asks of a node, whichever it is. Instances with equal needs are
/// placed by one index.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    /// How much.
    pub resources: Resources,
    /// How much of an operator's own resources.
    pub own: OwnResources,
    /// Labels that the node must have.
    pub labels: BTreeMap<String, String>,
    /// Architecture of its image.
    pub architecture: Architecture,
    /// The KVM it must have, if it matters.
    pub kvm: Option<Kvm>,
    /// The guest that it could be a copy of: its image, in its size.
    pub template: Option<Template>,
    /// Nodes that have given it up: it goes back there only where no other can take it.
    pub avoid: BTreeSet<NodeId>,
}

/// An instance that has a node, or wants one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// What it is spread with.
    pub group: Group,
    /// Its number in the group, from 0.
    pub number: u32,
    /// How many upgrade domains the group has; 0 is taken as 1.
    pub upgrade_domains: u32,
    /// How binding the spread is.
    pub spreading: Spreading,
    /// On how many fault domains the group is to lie: none has more than its share then.
    /// 0 is taken as 1.
    pub fault_domains: u32,
    /// What it asks of a node.
    pub needs: Needs,
    /// Its node, if it has one.
    pub node: Option<NodeId>,
    /// True if it goes: it takes room until it is gone, and counts for no spread.
    pub leaving: bool,
}

impl Instance {
    /// Its upgrade domain: by number, so that they are balanced from the start.
    #[must_use]
    pub const fn upgrade_domain(&self) -> u32 {
        match self.number.checked_rem(self.upgrade_domains) {
            Some(domain) => domain,
            None => 0,
        }
    }

    /// The same, to which it is no matter who has given it up.
    pub(super) fn avoiding_none(&self) -> Self {
        let mut same = self.clone();
        same.needs.avoid.clear();
        same
    }
}
