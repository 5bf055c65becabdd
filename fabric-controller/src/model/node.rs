//! Machines as they are kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use fabric_proto::id::{InstanceId, NodeId, ServiceName};
use serde::{Deserialize, Serialize};

use super::{
    architecture::Architecture, definition::NodeRules, own::OwnResources, steadiness::Steadiness,
    time::WallTime,
};

/// What a node has, as its host agent says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Logical processors.
    pub cpus: u32,
    /// Memory for guests, in bytes.
    pub memory_bytes: u64,
    /// Disk space for guests, in bytes.
    pub disk_bytes: u64,
    /// `"hardware"` or `"interpreted"`.
    pub kvm_kind: String,
    /// Kernel release of the host.
    pub kernel_release: String,
    /// CPU model, for people.
    pub cpu_model: String,
    /// Host name.
    pub hostname: String,
    /// Its processors.
    #[serde(default)]
    pub architecture: Architecture,
    /// Resources of the operator's own.
    #[serde(default, skip_serializing_if = "OwnResources::is_empty")]
    pub resources: OwnResources,
}

/// How a node's KVM runs guest kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kvm {
    /// On the processor.
    Hardware,
    /// In an interpreter, slowly.
    Interpreted,
}

impl Kvm {
    /// All kinds, by the words that nodes and service files have for them.
    pub const WORDS: [(&str, Self); 2] = [
        ("hardware", Self::Hardware),
        ("interpreted", Self::Interpreted),
    ];
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.iter().find(|(_, kind)| kind == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

/// A machine as it is kept. When it was last heard is not: heartbeats stay out
/// of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub node_id: NodeId,
    /// What it has.
    pub inventory: Inventory,
    /// Labels from its own configuration.
    pub labels: BTreeMap<String, String>,
    /// Labels from an operator; they win over its own. See [`Self::all_labels`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operator_labels: BTreeMap<String, String>,
    /// Version of its host agent.
    pub agent_version: String,
    /// When it first registered.
    pub registered: WallTime,
    /// True from its last `NodeLost` event until it registers again.
    pub lost: bool,
    /// True from when its instances were started elsewhere until it registers again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fenced: bool,
    /// What it fails together with, as the operator says; see [`Self::fault_domain`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_domain: Option<String>,
    /// True if an operator wants nothing new on it.
    #[serde(default)]
    pub cordoned: bool,
    /// True if an operator wants what it has on others; it is cordoned then.
    #[serde(default)]
    pub draining: bool,
    /// How many unrelated services keep failing on it.
    #[serde(default)]
    pub blame: u32,
    /// Of these services.
    #[serde(default)]
    pub blamed_for: Vec<ServiceName>,
    /// True while the controller itself wants nothing new on it for that.
    #[serde(default)]
    pub condemned: bool,
    /// How often it has come and gone lately, and whether it is held for that.
    #[serde(default)]
    pub steadiness: Steadiness,
}

/// The label by which a node says what it fails together with.
pub const FAULT_DOMAIN: &str = "fault-domain";

impl NodeRecord {
    /// One that has come just now, and of which nothing else is known.
    #[must_use]
    pub fn new(node_id: NodeId, registered: WallTime) -> Self {
        Self {
            node_id,
            inventory: Inventory::default(),
            labels: BTreeMap::new(),
            operator_labels: BTreeMap::new(),
            agent_version: String::new(),
            registered,
            lost: false,
            fenced: false,
            fault_domain: None,
            cordoned: false,
            draining: false,
            blame: 0,
            blamed_for: Vec::new(),
            condemned: false,
            steadiness: Steadiness::default(),
        }
    }

    /// Its label of that key: an operator's, else its own.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let label = self
            .operator_labels
            .get(key)
            .or_else(|| self.labels.get(key));
        label.map(String::as_str)
    }

    /// Whether it is what an instance asks of its node, whatever else is on it.
    #[must_use]
    pub fn meets(&self, rules: &NodeRules) -> bool {
        let mut labels = rules.labels.iter();
        let kvm = rules.kvm;
        kvm.is_none_or(|kvm| self.kvm() == Some(kvm))
            && labels.all(|(key, value)| self.label(key) == Some(value))
    }

    /// Its labels, for whoever looks for a node: its own, and those from an operator.
    #[must_use]
    pub fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.extend(self.operator_labels.clone());
        labels
    }

    /// What it fails together with: what the operator says, else its label
    /// `fault-domain`, else it is a domain of its own.
    #[must_use]
    pub fn fault_domain(&self) -> &str {
        self.fault_domain
            .as_deref()
            .or_else(|| self.label(FAULT_DOMAIN))
            .unwrap_or(self.node_id.as_str())
    }

    /// Its KVM, if it is of a kind that is known.
    #[must_use]
    pub fn kvm(&self) -> Option<Kvm> {
        let mut words = Kvm::WORDS.iter();
        let found = words.find(|(word, _)| *word == self.inventory.kvm_kind);
        found.map(|(_, kind)| *kind)
    }

    /// Whether new instances can be placed on it while it is there.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !self.cordoned && !self.condemned && !self.steadiness.held
    }
}

/// Machines, to be found by name.
#[derive(Debug, Clone, Default)]
pub struct Nodes<'a>(BTreeMap<&'a NodeId, &'a NodeRecord>);

impl Nodes<'_> {
    /// The one of that name, if it is there.
    #[must_use]
    pub fn get(&self, name: &NodeId) -> Option<&NodeRecord> {
        self.0.get(name).copied()
    }
}

impl<'a> FromIterator<&'a NodeRecord> for Nodes<'a> {
    fn from_iter<T: IntoIterator<Item = &'a NodeRecord>>(all: T) -> Self {
        let named = all.into_iter().map(|node| (&node.node_id, node));
        Self(named.collect())
    }
}

/// The goal state that a node was given last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoalRecord {
    /// Its number. It is stored before it is sent, so that no later one can be lower.
    pub incarnation: u64,
    /// SHA-256 of what it says, in hexadecimal; empty when the node must be
    /// given a new one in any case.
    pub fingerprint: String,
    /// The instances in it.
    pub instances: BTreeSet<InstanceId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        of.iter().map(owned).collect()
    }

    #[test]
    fn an_operators_labels_win_over_those_of_the_node() {
        let node = NodeRecord {
            labels: labels(&[("disk", "hdd"), ("rack", "r1")]),
            operator_labels: labels(&[("disk", "nvme")]),
            ..NodeRecord::new("n1".parse().unwrap(), WallTime::EPOCH)
        };
        let all = labels(&[("disk", "nvme"), ("rack", "r1")]);
        assert_eq!(node.all_labels(), all);
    }

    #[test]
    fn a_node_of_which_nothing_else_was_noted_has_x86_64_processors() {
        let mut then = serde_json::to_value(Inventory::default()).unwrap();
        let noted = then.as_object_mut().unwrap().remove("architecture");
        assert_eq!(noted, Some("x86_64".into()));
        let read: Inventory = serde_json::from_value(then).unwrap();
        assert_eq!(read.architecture, Architecture::X86_64);
    }

    #[test]
    fn a_node_meets_rules_by_its_kvm_and_by_the_labels_that_count() {
        let mut node = NodeRecord {
            labels: labels(&[("disk", "hdd"), ("rack", "r1")]),
            operator_labels: labels(&[("disk", "nvme")]),
            ..NodeRecord::new("n1".parse().unwrap(), WallTime::EPOCH)
        };
        let asking = |of: &[(&str, &str)], kvm| NodeRules {
            labels: labels(of),
            kvm,
        };
        assert!(node.meets(&NodeRules::default()));
        assert!(node.meets(&asking(&[("disk", "nvme"), ("rack", "r1")], None)));
        assert!(!node.meets(&asking(&[("disk", "hdd")], None)));
        assert!(!node.meets(&asking(&[("gpu", "a")], None)));
        let hardware = asking(&[], Some(Kvm::Hardware));
        assert!(!node.meets(&hardware), "its KVM is not known");
        node.inventory.kvm_kind = "hardware".to_owned();
        assert!(node.meets(&hardware));
        assert!(!node.meets(&asking(&[], Some(Kvm::Interpreted))));
    }

    #[test]
    fn a_fault_domain_is_the_operators_then_a_label_then_the_node_itself() {
        let mut node = NodeRecord::new("n1".parse().unwrap(), WallTime::EPOCH);
        assert_eq!(node.fault_domain(), "n1");
        node.labels = labels(&[(FAULT_DOMAIN, "r1")]);
        assert_eq!(node.fault_domain(), "r1");
        node.operator_labels = labels(&[(FAULT_DOMAIN, "r2")]);
        assert_eq!(node.fault_domain(), "r2");
        node.fault_domain = Some("r3".to_owned());
        assert_eq!(node.fault_domain(), "r3");
    }
}
