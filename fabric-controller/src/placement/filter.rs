//! Which nodes can take an instance at all, and why each of the others cannot.

use std::fmt;

use super::{
    explain::Rule,
    types::{
        Architecture, Cores, FaultDomain, Group, Health, Kvm, Needs, Node, OwnResources, Resources,
    },
};

/// Why a node cannot take an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Its session is not open.
    NotConnected,
    /// It was not heard for too long.
    Lost,
    /// An operator wants nothing new on it.
    Cordoned,
    /// Unrelated services keep failing on it.
    Condemned,
    /// It has come and gone too often lately.
    Unsteady,
    /// It has given the instance up.
    GaveUp,
    /// Its processors are others than the image is for.
    Architecture {
        /// What it has.
        has: Architecture,
        /// What is needed.
        needed: Architecture,
    },
    /// Its KVM is of another kind.
    Kvm {
        /// What it has, if it is known.
        has: Option<Kvm>,
        /// What is needed.
        needed: Kvm,
    },
    /// A label is missing or another.
    Label {
        /// Its key.
        key: String,
        /// What it has.
        has: Option<String>,
        /// What is needed.
        needed: String,
    },
    /// It has too few of an operator's own resources, whatever is on it.
    NoResource {
        /// Of which kind.
        kind: String,
        /// How many it has.
        has: u64,
        /// What is needed.
        needed: u64,
    },
    /// Too few of an operator's own resources are free.
    Resource {
        /// Of which kind.
        kind: String,
        /// How many are free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
    /// Too few processors are free.
    Cores {
        /// Thousandths of a core that are free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
    /// Too little memory is free.
    Memory {
        /// Bytes that are free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
    /// Too little disk is free.
    Disk {
        /// Bytes that are free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
    /// Its fault domain has enough of the group, and the spread is strict.
    Spread {
        /// What is spread.
        group: Group,
        /// Its domain.
        domain: FaultDomain,
        /// How many of the group are in it.
        has: u32,
        /// Which rule one more would break.
        rule: Rule,
    },
}

impl Refusal {
    /// Whether room could be made on the node for it.
    #[must_use]
    pub const fn is_room(&self) -> bool {
        matches!(
            self,
            Self::Cores { .. } | Self::Memory { .. } | Self::Disk { .. } | Self::Resource { .. }
        )
    }

    /// It as a stable word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotConnected => "NotConnected",
            Self::Lost => "Lost",
            Self::Cordoned => "Cordoned",
            Self::Condemned => "Condemned",
            Self::Unsteady => "Unsteady",
            Self::GaveUp => "GaveUp",
            Self::Architecture { .. } => "Architecture",
            Self::Kvm { .. } => "Kvm",
            Self::Label { .. } => "Label",
            Self::NoResource { .. } => "NoResource",
            Self::Resource { .. } => "Resource",
            Self::Cores { .. } => "Cores",
            Self::Memory { .. } => "Memory",
            Self::Disk { .. } => "Disk",
            Self::Spread { .. } => "Spread",
        }
    }

    /// What several nodes have in common that refuse for such a reason.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NotConnected => "not connected",
            Self::Lost => "lost",
            Self::Cordoned => "cordoned",
            Self::Condemned => "condemned",
            Self::Unsteady => "unsteady",
            Self::GaveUp => "that gave it up",
            Self::Architecture { .. } => "of another architecture",
            Self::Kvm { .. } => "of another KVM kind",
            Self::Label { .. } => "without the labels",
            Self::NoResource { .. } => "without the own resources",
            Self::Resource { .. } => "short of own resources",
            Self::Cores { .. } => "short of processors",
            Self::Memory { .. } => "short of memory",
            Self::Disk { .. } => "short of disk",
            Self::Spread { .. } => "in a fault domain that has its share",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &u64| bytes >> 20;
        match self {
            Self::NotConnected => f.write_str("it is not connected"),
            Self::Lost => f.write_str("it is lost"),
            Self::Cordoned => f.write_str("it is cordoned"),
            Self::Condemned => f.write_str(
                "unrelated services keep failing on it: nothing new is placed on it until that \
                 is over",
            ),
            Self::Unsteady => f.write_str(
                "it has come and gone too often lately: nothing new is placed on it until it has \
                 been there steadily",
            ),
            Self::GaveUp => f.write_str("it has given the instance up"),
            Self::Architecture { has, needed } => {
                write!(f, "its processors are {has}, the image is for {needed}")
            }
            Self::Kvm {
                has: Some(has),
                needed,
            } => {
                write!(f, "its KVM is {has}, {needed} is needed")
            }
            Self::Kvm { has: None, needed } => {
                write!(f, "its KVM is not known, {needed} is needed")
            }
            Self::Label {
                key,
                has: Some(has),
                needed,
            } => {
                write!(f, "its label {key} is {has:?}, {needed:?} is needed")
            }
            Self::Label {
                key,
                has: None,
                needed,
            } => {
                write!(f, "it has no label {key}, {needed:?} is needed")
            }
            Self::NoResource { kind, has, needed } => {
                write!(f, "it has {has} {kind} in all, {needed} are needed")
            }
            Self::Resource { kind, free, needed } => {
                write!(f, "{free} {kind} are free, {needed} are needed")
            }
            Self::Cores { free, needed } => {
                write!(
                    f,
                    "{} are free, {} are needed",
                    Cores(*free),
                    Cores(*needed)
                )
            }
            Self::Memory { free, needed } => {
                let (free, needed) = (mib(free), mib(needed));
                write!(f, "{free} MiB of memory are free, {needed} MiB are needed")
            }
            Self::Disk { free, needed } => {
                let (free, needed) = (mib(free), mib(needed));
                write!(f, "{free} MiB of disk are free, {needed} MiB are needed")
            }
            Self::Spread {
                group,
                domain,
                has,
                rule,
            } => {
                write!(f, "its fault domain {domain} has {has} of {group}, and ")?;
                match rule {
                    Rule::Even(least) => write!(f, "another that can be used has {least}"),
                    Rule::Share(share) => write!(f, "is to have {share} at the most"),
                }
            }
        }
    }
}

/// Whether a node would do for such an instance, had it room.
#[must_use]
pub fn would_do(node: &Node, needs: &Needs) -> bool {
    standing(node, needs).is_empty()
}

/// Why a node cannot take it whatever else is on the node.
pub(super) fn standing(node: &Node, needs: &Needs) -> Vec<Refusal> {
    let mut why = Vec::new();
    match node.health {
        Health::Connected => {}
        Health::NotConnected => why.push(Refusal::NotConnected),
        Health::Lost => why.push(Refusal::Lost),
    }
    if node.cordoned {
        why.push(Refusal::Cordoned);
    }
    if node.condemned {
        why.push(Refusal::Condemned);
    }
    if node.unsteady {
        why.push(Refusal::Unsteady);
    }
    if needs.avoid.contains(&node.id) {
        why.push(Refusal::GaveUp);
    }
    if node.architecture != needs.architecture {
        why.push(Refusal::Architecture {
            has: node.architecture,
            needed: needs.architecture,
        });
    }
    if let Some(needed) = needs.kvm
        && node.kvm != Some(needed)
    {
        why.push(Refusal::Kvm {
            has: node.kvm,
            needed,
        });
    }
    for (key, needed) in &needs.labels {
        let has = node.labels.get(key);
        if has != Some(needed) {
            why.push(Refusal::Label {
                key: key.clone(),
                has: has.cloned(),
                needed: needed.clone(),
            });
        }
    }
    for (kind, needed) in needs.own.iter() {
        let has = node.own.of(kind);
        if has < needed {
            let kind = kind.to_owned();
            why.push(Refusal::NoResource { kind, has, needed });
        }
    }
    why
}

/// Why a node that could have it cannot take it with so many of its own resources free.
pub(super) fn own_room(node: &Node, free: &OwnResources, needed: &OwnResources) -> Vec<Refusal> {
    let short =
        |(kind, needed): &(&str, u64)| free.of(kind) < *needed && *needed <= node.own.of(kind);
    let refusal = |(kind, needed): (&str, u64)| Refusal::Resource {
        kind: kind.to_owned(),
        free: free.of(kind),
        needed,
    };
    needed.iter().filter(short).map(refusal).collect()
}

/// Why it cannot take it with so much free.
pub(super) fn room(free: &Resources, needed: &Resources) -> Vec<Refusal> {
    let mut why = Vec::new();
    if needed.millicores > free.millicores {
        why.push(Refusal::Cores {
            free: free.millicores,
            needed: needed.millicores,
        });
    }
    if needed.memory_bytes > free.memory_bytes {
        why.push(Refusal::Memory {
            free: free.memory_bytes,
            needed: needed.memory_bytes,
        });
    }
    if needed.disk_bytes > free.disk_bytes {
        why.push(Refusal::Disk {
            free: free.disk_bytes,
            needed: needed.disk_bytes,
        });
    }
    why
}
