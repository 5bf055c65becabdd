//! Placement by example, and by property.

use proptest::prelude::*;

use super::*;
use crate::model::size::MIB;

fn node(name: &str, cpus: u32, mib: u64) -> Node {
    Node {
        id: name.parse().unwrap(),
        cpus,
        memory_bytes: mib * MIB,
        connected: true,
    }
}

fn instance(name: &str, vcpus: u32, mib: u64) -> Instance {
    let group = name.rsplit_once('-').unwrap().0.to_owned();
    let size = Size {
        vcpus,
        memory_bytes: mib * MIB,
        cpu_weight: 0,
    };
    Instance {
        id: name.parse().unwrap(),
        group,
        size,
        node: None,
    }
}

const STRICT: Policy = Policy { vcpus_per_cpu: 1 };

fn nodes_of(decisions: &[Decision]) -> Vec<(&str, &str)> {
    decisions
        .iter()
        .map(|decision| {
            let node = decision.outcome.as_ref().map_or("-", NodeId::as_str);
            (decision.instance.as_str(), node)
        })
        .collect()
}

#[test]
fn instances_of_a_role_are_spread() {
    let nodes = [node("n1", 8, 8192), node("n2", 4, 4096)];
    let instances = [
        instance("shop-web-0", 1, 128),
        instance("shop-web-1", 1, 128),
    ];
    let decisions = place(STRICT, &nodes, &instances);
    assert_eq!(
        nodes_of(&decisions),
        [("shop-web-0", "n1"), ("shop-web-1", "n2")]
    );
}

#[test]
fn the_biggest_is_placed_first() {
    let nodes = [node("n1", 4, 1024), node("n2", 4, 512)];
    let instances = [instance("a-b-0", 1, 512), instance("c-d-0", 1, 1024)];
    let decisions = place(STRICT, &nodes, &instances);
    assert_eq!(nodes_of(&decisions), [("c-d-0", "n1"), ("a-b-0", "n2")]);
}

#[test]
fn what_has_a_node_stays_and_counts() {
    let mut there = instance("shop-web-0", 2, 128);
    there.node = Some("n1".parse().unwrap());
    let decisions = place(
        STRICT,
        &[node("n1", 2, 1024)],
        &[there, instance("shop-web-1", 1, 64)],
    );
    assert_eq!(
        decisions[0].outcome.as_ref().unwrap_err().to_string(),
        "no node has room for 1 vCPU and 64 MiB: n1 has 0 vCPU and 896 MiB free"
    );
}

#[test]
fn a_node_that_is_not_there_takes_nothing() {
    let gone = Node {
        connected: false,
        ..node("n1", 2, 1024)
    };
    let outcome = |nodes: &[Node]| {
        place(STRICT, nodes, &[instance("a-b-0", 1, 64)])[0]
            .outcome
            .clone()
            .unwrap_err()
    };
    assert_eq!(outcome(&[gone]), Unplaceable::NoneConnected);
    assert_eq!(outcome(&[]), Unplaceable::NoNodes);
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    prop::collection::vec((1u32..16, 64u64..4096, prop::bool::weighted(0.8)), 0..6).prop_map(
        |nodes| {
            let numbered = nodes.into_iter().enumerate();
            numbered
                .map(|(index, (cpus, mib, connected))| Node {
                    connected,
                    ..node(&format!("n{index}"), cpus, mib)
                })
                .collect()
        },
    )
}

fn instances() -> impl Strategy<Value = Vec<Instance>> {
    prop::collection::vec((0usize..4, 1u32..8, 32u64..2048), 0..24).prop_map(|instances| {
        let numbered = instances.into_iter().enumerate();
        numbered
            .map(|(index, (role, vcpus, mib))| instance(&format!("s-r{role}-{index}"), vcpus, mib))
            .collect()
    })
}

/// What the decisions promise of a node: processors and memory.
fn promised(node: &Node, instances: &[Instance], decisions: &[Decision]) -> (u64, u64) {
    let sizes: BTreeMap<_, _> = instances.iter().map(|one| (&one.id, one.size)).collect();
    decisions
        .iter()
        .filter(|decision| decision.outcome.as_ref() == Ok(&node.id))
        .map(|decision| sizes[&decision.instance])
        .fold((0, 0), |(vcpus, memory), size| {
            (vcpus + u64::from(size.vcpus), memory + size.memory_bytes)
        })
}

proptest! {
    #[test]
    fn nothing_is_promised_twice(nodes in nodes(), instances in instances(), ratio in 1u32..5) {
        let decisions = place(Policy { vcpus_per_cpu: ratio }, &nodes, &instances);
        prop_assert_eq!(decisions.len(), instances.len());
        for node in &nodes {
            let (vcpus, memory) = promised(node, &instances, &decisions);
            prop_assert!(vcpus <= u64::from(node.cpus * ratio));
            prop_assert!(memory <= node.memory_bytes);
            prop_assert!(node.connected || memory == 0);
        }
    }

    #[test]
    fn the_order_of_what_is_asked_does_not_matter(
        (nodes, shuffled_nodes) in nodes().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        (instances, shuffled) in instances().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        prop_assert_eq!(
            place(STRICT, &nodes, &instances),
            place(STRICT, &shuffled_nodes, &shuffled)
        );
    }

    #[test]
    fn an_instance_is_left_out_only_when_no_node_has_room(nodes in nodes(), instances in instances()) {
        let decisions = place(STRICT, &nodes, &instances);
        let sizes: BTreeMap<_, _> = instances.iter().map(|one| (&one.id, one.size)).collect();
        for decision in decisions.iter().filter(|decision| decision.outcome.is_err()) {
            let size = sizes[&decision.instance];
            for node in nodes.iter().filter(|node| node.connected) {
                let (vcpus, memory) = promised(node, &instances, &decisions);
                prop_assert!(
                    vcpus + u64::from(size.vcpus) > u64::from(node.cpus)
                        || memory + size.memory_bytes > node.memory_bytes
                );
            }
        }
    }

    #[test]
    fn a_second_round_moves_nothing(nodes in nodes(), instances in instances()) {
        let decisions = place(STRICT, &nodes, &instances);
        let mut again = instances;
        for one in &mut again {
            let decision = decisions.iter().find(|decision| decision.instance == one.id).unwrap();
            one.node = decision.outcome.as_ref().ok().cloned();
        }
        prop_assert!(place(STRICT, &nodes, &again).iter().all(|decision| decision.outcome.is_err()));
    }
}
