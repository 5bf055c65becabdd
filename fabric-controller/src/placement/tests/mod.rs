//! Placement by example ([`prose`], [`changes`]) and by property ([`properties`]).

mod changes;
mod properties;
mod prose;

use std::collections::BTreeMap;

use fabric_proto::id::{Digest, NodeId};

use super::*;
use crate::model::size::{MIB, Size};

/// Processors are promised once.
const ONCE: Policy = Policy {
    vcpus_per_cpu: 1,
    fill: Fill::Spread,
};

/// The same, one node after another.
const PACK: Policy = Policy {
    fill: Fill::Pack,
    ..ONCE
};

/// A node that is a fault domain of its own.
fn node(name: &str, cpus: u32, mib: u64) -> Node {
    Node {
        id: name.parse().unwrap(),
        domain: FaultDomain(name.to_owned()),
        cpus,
        memory_bytes: mib * MIB,
        disk_bytes: 0,
        health: Health::Connected,
        cordoned: false,
        condemned: false,
        unsteady: false,
        blame: 0,
        labels: BTreeMap::new(),
        architecture: Architecture::X86_64,
        kvm: Some(Kvm::Hardware),
        stock: Default::default(),
        own: Default::default(),
    }
}

/// A node in a rack.
fn racked(name: &str, rack: &str, cpus: u32, mib: u64) -> Node {
    Node {
        domain: FaultDomain(rack.to_owned()),
        ..node(name, cpus, mib)
    }
}

/// An instance called SERVICE-ROLE-NUMBER.
fn instance(name: &str, vcpus: u32, mib: u64) -> Instance {
    let (group, number) = name.rsplit_once('-').unwrap();
    let size = Size {
        vcpus,
        memory_bytes: mib * MIB,
        cpu_weight: 0,
    };
    Instance {
        id: name.parse().unwrap(),
        group: Group(group.to_owned()),
        number: number.parse().unwrap(),
        upgrade_domains: 5,
        spreading: Spreading::Preferred,
        fault_domains: 1,
        needs: Needs {
            resources: Resources::of(size),
            ..Needs::default()
        },
        node: None,
        leaving: false,
    }
}

/// So many of a role.
fn role(name: &str, count: u32, vcpus: u32, mib: u64) -> Vec<Instance> {
    (0..count)
        .map(|number| instance(&format!("{name}-{number}"), vcpus, mib))
        .collect()
}

/// The same on a node.
fn on(node: &str, instance: Instance) -> Instance {
    Instance {
        node: Some(node.parse().unwrap()),
        ..instance
    }
}

/// So many GPUs.
fn gpus(count: u64) -> OwnResources {
    [("gpu".to_owned(), count)].into_iter().collect()
}

/// A node with so many GPUs.
fn with_gpus(count: u64, node: Node) -> Node {
    Node {
        own: gpus(count),
        ..node
    }
}

/// An instance that takes so many.
fn taking_gpus(count: u64, mut instance: Instance) -> Instance {
    instance.needs.own = gpus(count);
    instance
}

fn image(byte: u8) -> Digest {
    Digest::of_sha256(&[byte; 32])
}

/// An instance of such an image.
fn of_image(byte: u8, mut one: Instance) -> Instance {
    one.needs.template = Some(Template {
        image: image(byte),
        vcpus: 1,
        memory_bytes: one.needs.resources.memory_bytes,
    });
    one
}

/// A node with such an image, and perhaps with the template that an instance is of.
fn stocked(byte: u8, template: Option<&Instance>, node: Node) -> Node {
    let templates = template.and_then(|one| one.needs.template.clone());
    let stock = Stock {
        blobs: [image(byte)].into(),
        templates: templates.into_iter().collect(),
    };
    Node {
        stock: stock.into(),
        ..node
    }
}

/// Instance and node of each decision, `-` for none.
fn nodes_of(decisions: &[Decision]) -> Vec<(&str, &str)> {
    decisions
        .iter()
        .map(|decision| {
            let node = decision.outcome.as_ref();
            let node = node.map_or("-", |placed| placed.node.as_str());
            (decision.instance.as_str(), node)
        })
        .collect()
}

/// Node of the only decision.
fn only(decisions: &[Decision]) -> &str {
    assert_eq!(decisions.len(), 1);
    nodes_of(decisions)[0].1
}

/// Why the only decision is none.
fn why_not(decisions: &[Decision]) -> String {
    assert_eq!(decisions.len(), 1);
    decisions[0].outcome.as_ref().unwrap_err().to_string()
}

/// The instances with the decisions carried out.
fn carried_out(instances: &[Instance], decisions: &[Decision]) -> Vec<Instance> {
    let nodes: BTreeMap<_, NodeId> = decisions
        .iter()
        .filter_map(|one| Some((&one.instance, one.outcome.as_ref().ok()?.node.clone())))
        .collect();
    let placed = |one: &Instance| Instance {
        node: one.node.clone().or_else(|| nodes.get(&one.id).cloned()),
        ..one.clone()
    };
    instances.iter().map(placed).collect()
}

/// How many of a group each of the nodes' domains has.
fn by_domain(nodes: &[Node], instances: &[Instance], group: &Group) -> BTreeMap<String, u32> {
    let mut counts: BTreeMap<String, u32> = nodes
        .iter()
        .map(|node| (node.domain.0.clone(), 0))
        .collect();
    for one in instances.iter().filter(|one| one.group == *group) {
        let node = nodes
            .iter()
            .find(|node| Some(&node.id) == one.node.as_ref());
        if let Some(node) = node {
            *counts.entry(node.domain.0.clone()).or_default() += 1;
        }
    }
    counts
}
