//! Which instance goes to which node.
//!
//! A pure function: no clock, no I/O, no randomness, and the order of what goes
//! in does not matter. First nodes are filtered (heard, enough processors, enough
//! memory), then the ones that are left are scored: fewest instances of the same
//! role, then least loaded, then by name. An instance that has a node is never
//! moved here.
//!
//! Memory is never promised twice. Processors are, as often as [`Policy`] says,
//! since a lab's guests mostly wait.

#[cfg(test)]
mod tests;

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use fabric_proto::id::{InstanceId, NodeId};

use crate::model::size::Size;

/// How full nodes may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Virtual processors per logical processor of a node.
    pub vcpus_per_cpu: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { vcpus_per_cpu: 4 }
    }
}

/// A node that may be given instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Logical processors.
    pub cpus: u32,
    /// Memory for guests, in bytes.
    pub memory_bytes: u64,
    /// True while its session is open.
    pub connected: bool,
}

/// An instance that has a node, or wants one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// What is to be spread: its service and role.
    pub group: String,
    /// Its size.
    pub size: Size,
    /// Its node, if it has one.
    pub node: Option<NodeId>,
}

/// Why no node can take an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unplaceable {
    /// No node has ever registered.
    NoNodes,
    /// No node is there that could be asked.
    NoneConnected,
    /// Every node that is there lacks room; why, by node.
    NoRoom {
        /// What was needed.
        needed: Size,
        /// What the nodes lack.
        lacks: BTreeMap<NodeId, Lack>,
    },
}

/// What a node lacks for an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    /// Virtual processors that are free.
    pub vcpus_free: u32,
    /// Memory that is free, in bytes.
    pub memory_free: u64,
}

/// Most nodes that are named in a reason.
const MOST_NAMED: usize = 3;

impl fmt::Display for Unplaceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNodes => f.write_str("there is no node; start a host agent"),
            Self::NoneConnected => f.write_str("no node is connected"),
            Self::NoRoom { needed, lacks } => {
                let mib = |bytes: u64| bytes >> 20;
                let (vcpus, memory) = (needed.vcpus, mib(needed.memory_bytes));
                write!(f, "no node has room for {vcpus} vCPU and {memory} MiB: ")?;
                for (index, (node, lack)) in lacks.iter().take(MOST_NAMED).enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    let free = mib(lack.memory_free);
                    write!(
                        f,
                        "{comma}{node} has {} vCPU and {free} MiB free",
                        lack.vcpus_free
                    )?;
                }
                match lacks.len().saturating_sub(MOST_NAMED) {
                    0 => Ok(()),
                    more => write!(f, ", and {more} more"),
                }
            }
        }
    }
}

/// Where one instance goes, or why nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The instance.
    pub instance: InstanceId,
    /// Its node, or why it has none.
    pub outcome: Result<NodeId, Unplaceable>,
}

/// What is left of a node while instances are placed.
struct Room {
    id: NodeId,
    connected: bool,
    vcpus: u32,
    memory: u64,
    vcpus_free: u32,
    memory_free: u64,
    groups: BTreeMap<String, u32>,
}

impl Room {
    fn new(node: &Node, policy: Policy) -> Self {
        let vcpus = node.cpus.saturating_mul(policy.vcpus_per_cpu);
        Self {
            id: node.id.clone(),
            connected: node.connected,
            vcpus,
            memory: node.memory_bytes,
            vcpus_free: vcpus,
            memory_free: node.memory_bytes,
            groups: BTreeMap::new(),
        }
    }

    fn fits(&self, size: Size) -> bool {
        self.vcpus_free >= size.vcpus && self.memory_free >= size.memory_bytes
    }

    /// A node can hold more than it has room for, if it has shrunk.
    fn take(&mut self, instance: &Instance) {
        self.vcpus_free = self.vcpus_free.saturating_sub(instance.size.vcpus);
        self.memory_free = self.memory_free.saturating_sub(instance.size.memory_bytes);
        *self.groups.entry(instance.group.clone()).or_default() += 1;
    }

    /// How full it is by what it has least of, in parts of 65536.
    fn load(&self) -> u128 {
        let part = |free: u64, all: u64| {
            let used = u128::from(all.saturating_sub(free)) << 16;
            used.checked_div(u128::from(all)).unwrap_or(1 << 16)
        };
        part(self.vcpus_free.into(), self.vcpus.into()).max(part(self.memory_free, self.memory))
    }

    /// Lower is better.
    fn score(&self, instance: &Instance) -> (u32, u128, NodeId) {
        let same = self.groups.get(&instance.group).copied().unwrap_or(0);
        (same, self.load(), self.id.clone())
    }
}

/// Places every instance that has no node, biggest first.
#[must_use]
pub fn place(policy: Policy, nodes: &[Node], instances: &[Instance]) -> Vec<Decision> {
    let mut rooms: BTreeMap<&NodeId, Room> = nodes
        .iter()
        .map(|node| (&node.id, Room::new(node, policy)))
        .collect();
    let (placed, mut wanting): (Vec<_>, Vec<_>) = instances
        .iter()
        .partition(|instance| instance.node.is_some());
    for instance in placed {
        if let Some(room) = instance.node.as_ref().and_then(|node| rooms.get_mut(node)) {
            room.take(instance);
        }
    }
    wanting.sort_by_key(|instance| {
        (
            Reverse(instance.size.memory_bytes),
            Reverse(instance.size.vcpus),
            &instance.id,
        )
    });
    wanting
        .into_iter()
        .map(|instance| Decision {
            instance: instance.id.clone(),
            outcome: place_one(&mut rooms, instance),
        })
        .collect()
}

fn place_one(
    rooms: &mut BTreeMap<&NodeId, Room>,
    instance: &Instance,
) -> Result<NodeId, Unplaceable> {
    let best = rooms
        .values_mut()
        .filter(|room| room.connected && room.fits(instance.size))
        .min_by_key(|room| room.score(instance));
    if let Some(room) = best {
        room.take(instance);
        return Ok(room.id.clone());
    }
    if rooms.is_empty() {
        return Err(Unplaceable::NoNodes);
    }
    let lacks: BTreeMap<_, _> = rooms
        .values()
        .filter(|room| room.connected)
        .map(|room| {
            let lack = Lack {
                vcpus_free: room.vcpus_free,
                memory_free: room.memory_free,
            };
            (room.id.clone(), lack)
        })
        .collect();
    if lacks.is_empty() {
        return Err(Unplaceable::NoneConnected);
    }
    Err(Unplaceable::NoRoom {
        needed: instance.size,
        lacks,
    })
}
