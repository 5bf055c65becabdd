//! Placement by property: against the rules, and against a scan of all nodes that does
//! without any index.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::placement::explain::Rule;

const LABEL: &str = "disk";

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let one = (
        1u32..16,
        64u64..4096,
        0usize..4,
        prop::bool::weighted(0.85),
        (
            prop::bool::weighted(0.1),
            prop::bool::weighted(0.1),
            prop::bool::weighted(0.1),
        ),
        0u32..2,
        (prop::bool::ANY, kvm(), architecture()),
        prop::collection::btree_set((1u8..4).prop_map(image), 0..2),
        0u64..5,
    );
    prop::collection::vec(one, 0..10).prop_map(|nodes| {
        let numbered = nodes.into_iter().enumerate();
        numbered
            .map(
                |(
                    n,
                    (
                        cpus,
                        mib,
                        rack,
                        heard,
                        (cordoned, condemned, unsteady),
                        blame,
                        (labelled, kvm, architecture),
                        images,
                        own,
                    ),
                )| {
                    let mut node = racked(&format!("n{n}"), &format!("r{rack}"), cpus, mib);
                    if !heard {
                        node.health = Health::NotConnected;
                    }
                    if labelled {
                        node.labels.insert(LABEL.to_owned(), "nvme".to_owned());
                    }
                    Node {
                        cordoned,
                        condemned,
                        unsteady,
                        blame,
                        architecture,
                        kvm,
                        stock: Stock {
                            blobs: images,
                            ..Stock::default()
                        }
                        .into(),
                        disk_bytes: u64::from(cpus) * 100 * MIB,
                        own: gpus(own),
                        ..node
                    }
                },
            )
            .collect()
    })
}

/// The KVM that a node has, if that is known, or that an instance needs, if it matters.
fn kvm() -> impl Strategy<Value = Option<Kvm>> {
    prop_oneof![
        3 => Just(Some(Kvm::Hardware)),
        1 => Just(Some(Kvm::Interpreted)),
        1 => Just(None),
    ]
}

/// What a node has, or an image is for.
fn architecture() -> impl Strategy<Value = Architecture> {
    prop_oneof![
        4 => Just(Architecture::X86_64),
        1 => Just(Architecture::Aarch64),
    ]
}

/// Of four roles; all of a role are alike.
fn instances() -> impl Strategy<Value = Vec<Instance>> {
    let shape = (
        1u32..5,
        32u64..1024,
        0u32..150,
        0u64..200,
        0u8..4,
        prop_oneof![2 => Just(0u64), 1 => 1u64..4],
        any::<(bool, bool)>(),
        0u32..4,
        (prop::option::weighted(0.3, kvm()), architecture()),
    );
    let shapes = prop::collection::vec(shape, 4);
    (shapes, prop::collection::vec(0usize..4, 0..32)).prop_map(|(shapes, roles)| {
        let mut counts = [0u32; 4];
        let numbered = roles.into_iter();
        numbered
            .map(|role| {
                let (vcpus, mib, weight, disk, image_byte, own, rules, fault_domains, node) =
                    shapes[role];
                let (strict, labelled) = rules;
                let number = counts[role];
                counts[role] += 1;
                let mut one = instance(&format!("s-r{role}-{number}"), vcpus, mib);
                one.needs.resources = Resources {
                    disk_bytes: disk * MIB,
                    ..Resources::of(Size {
                        vcpus,
                        memory_bytes: mib * MIB,
                        cpu_weight: weight,
                    })
                };
                one.needs.own = gpus(own);
                if image_byte > 0 {
                    one = of_image(image_byte, one);
                }
                if strict {
                    one.spreading = Spreading::Strict;
                }
                if labelled {
                    one.needs.labels.insert(LABEL.to_owned(), "nvme".to_owned());
                }
                let (kvm, architecture) = node;
                one.needs.kvm = kvm.flatten();
                one.needs.architecture = architecture;
                Instance {
                    upgrade_domains: 3,
                    fault_domains,
                    ..one
                }
            })
            .collect()
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    (1u32..4, any::<bool>()).prop_map(|(vcpus_per_cpu, pack)| Policy {
        vcpus_per_cpu,
        fill: if pack { Fill::Pack } else { Fill::Spread },
    })
}

/// What is promised of a node.
fn promised(node: &Node, instances: &[Instance]) -> Resources {
    let there = instances
        .iter()
        .filter(|one| one.node.as_ref() == Some(&node.id));
    there.fold(Resources::default(), |sum, one| {
        sum.plus(&one.needs.resources)
    })
}

/// The same of the operator's own resources.
fn promised_own(node: &Node, instances: &[Instance]) -> OwnResources {
    let mut sum = OwnResources::default();
    for one in instances {
        if one.node.as_ref() == Some(&node.id) {
            sum.add(&one.needs.own);
        }
    }
    sum
}

/// Whether no more is promised of a node than it has.
fn is_kept(policy: Policy, node: &Node, instances: &[Instance]) -> bool {
    promised(node, instances).fits_in(&node.capacity(policy))
        && promised_own(node, instances).fits_in(&node.own)
}

fn usable(node: &Node, one: &Instance) -> bool {
    filter::standing(node, &one.needs).is_empty()
}

/// What a fault domain should have of an instance's group at the most.
fn share(instances: &[Instance], one: &Instance) -> u32 {
    if one.fault_domains < 2 {
        return u32::MAX;
    }
    let group = instances.iter().filter(|other| other.group == one.group);
    u32::try_from(group.count())
        .unwrap()
        .div_ceil(one.fault_domains)
}

/// The rules at the moment of each decision, all looked up from scratch.
fn check_each(policy: Policy, nodes: &[Node], instances: &[Instance], decisions: &[Decision]) {
    let mut now = instances.to_vec();
    for decision in decisions {
        let at = now
            .iter()
            .position(|one| one.id == decision.instance)
            .unwrap();
        let one = now[at].clone();
        let counts = by_domain(nodes, &now, &one.group);
        let domains: BTreeSet<_> = nodes
            .iter()
            .filter(|node| usable(node, &one))
            .map(|node| &node.domain.0)
            .collect();
        let least = domains
            .iter()
            .map(|domain| counts[*domain])
            .min()
            .unwrap_or(0);
        let fits = |node: &Node| {
            let free = node.capacity(policy).minus(&promised(node, &now));
            let free_own = node.own.minus(&promised_own(node, &now));
            let room = one.needs.resources.fits_in(&free) && one.needs.own.fits_in(&free_own);
            usable(node, &one) && room
        };
        let share = share(&now, &one);
        let keeps = |node: &Node| {
            let has = counts[&node.domain.0];
            has <= least && has < share
        };
        match &decision.outcome {
            Ok(placed) => {
                let node = nodes.iter().find(|node| node.id == placed.node).unwrap();
                assert!(fits(node), "{} cannot take {}", node.id, one.id);
                assert_eq!(placed.relaxed.is_none(), keeps(node));
                if let Some(relaxed) = &placed.relaxed {
                    let rule = match relaxed.has > least {
                        true => Rule::Even(least),
                        false => Rule::Share(share),
                    };
                    assert_eq!((relaxed.has, relaxed.rule), (counts[&node.domain.0], rule));
                    assert_eq!(one.spreading, Spreading::Preferred);
                    assert!(!nodes.iter().any(|node| fits(node) && keeps(node)));
                }
                now[at].node = Some(placed.node.clone());
            }
            Err(_) => {
                let strict = one.spreading == Spreading::Strict;
                assert!(
                    !nodes
                        .iter()
                        .any(|node| fits(node) && (!strict || keeps(node)))
                );
            }
        }
    }
}

/// In the end no fault domain has more than its share of a strict group.
fn check_shares(instances: &[Instance], decisions: &[Decision]) {
    let mut counts = BTreeMap::new();
    for decision in decisions {
        let Ok(placed) = &decision.outcome else {
            continue;
        };
        let one = instances.iter().find(|one| one.id == decision.instance);
        let one = one.unwrap();
        let count = counts.entry((&one.group, &placed.domain)).or_insert(0);
        *count += 1;
        let share = share(instances, one);
        assert!(
            one.spreading != Spreading::Strict || *count <= share,
            "{}",
            one.id
        );
    }
}

fn find<'a>(nodes: &'a mut [Node], id: &NodeId) -> &'a mut Node {
    nodes.iter_mut().find(|node| node.id == *id).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_promised_twice_and_no_domain_rule_is_broken(
        nodes in nodes(), instances in instances(), policy in policy()
    ) {
        let decisions = place(policy, &nodes, &instances);
        prop_assert_eq!(decisions.len(), instances.len());
        check_each(policy, &nodes, &instances, &decisions);
        check_shares(&instances, &decisions);
        let placed = carried_out(&instances, &decisions);
        for node in &nodes {
            prop_assert!(is_kept(policy, node, &placed));
        }
    }

    #[test]
    fn the_indexes_find_what_a_look_at_every_node_finds(
        nodes in nodes(), instances in instances(), policy in policy()
    ) {
        let mut cluster = Cluster::with(policy, &nodes, &instances);
        for one in &instances {
            let verdicts = cluster.verdicts(one);
            let best = verdicts
                .iter()
                .filter_map(|verdict| Some((verdict.outcome.as_ref().ok()?.key(), &verdict.node)))
                .min();
            let chosen = cluster.place(one);
            prop_assert_eq!(best.map(|(_, node)| node), chosen.as_ref().ok().map(|one| &one.node));
            // Some go again, so that room comes back.
            if let Ok(placed) = chosen && one.number % 3 == 2 {
                cluster.release(one, &placed.node);
            }
        }
    }

    #[test]
    fn the_order_of_what_is_asked_does_not_matter(
        (nodes, shuffled_nodes) in nodes().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        (instances, shuffled) in instances().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        policy in policy(),
    ) {
        prop_assert_eq!(
            format!("{:?}", place(policy, &nodes, &instances)),
            format!("{:?}", place(policy, &shuffled_nodes, &shuffled))
        );
    }

    #[test]
    fn a_second_round_moves_nothing(
        nodes in nodes(), instances in instances(), policy in policy()
    ) {
        let again = carried_out(&instances, &place(policy, &nodes, &instances));
        // What is preferred can have been refused before others made it fit; what is
        // strict, before the others of its role were there.
        let second = place(policy, &nodes, &again);
        let preferred = |decision: &&Decision| {
            let one = again.iter().find(|one| one.id == decision.instance).unwrap();
            one.spreading == Spreading::Preferred
        };
        prop_assert!(second.iter().filter(preferred).all(|decision| decision.outcome.is_err()));
    }

    #[test]
    fn a_remedy_that_is_followed_is_one(
        nodes in nodes(), instances in instances(), policy in policy()
    ) {
        let decisions = place(policy, &nodes, &instances);
        let all = carried_out(&instances, &decisions);
        let Some(homeless) = all.iter().find(|one| one.node.is_none()) else {
            return Ok(());
        };
        let mut cluster = Cluster::with(policy, &nodes, &all);
        let Err(why) = cluster.choose(homeless) else { return Ok(()) };
        for remedy in &why.remedies {
            let mut nodes = nodes.clone();
            let mut asked = homeless.clone();
            match remedy {
                Remedy::Uncordon(id) => {
                    let node = find(&mut nodes, id);
                    (node.cordoned, node.condemned, node.unsteady) = (false, false, false);
                }
                Remedy::Reconnect(id) => find(&mut nodes, id).health = Health::Connected,
                Remedy::Label(id, labels) => {
                    find(&mut nodes, id).labels.extend(labels.iter().cloned());
                }
                Remedy::Relax(_) => asked.spreading = Spreading::Preferred,
                Remedy::Free(id, short, own) => {
                    let node = find(&mut nodes, id);
                    node.cpus += u32::try_from(short.millicores.div_ceil(1000)).unwrap();
                    node.memory_bytes += short.memory_bytes;
                    node.disk_bytes += short.disk_bytes;
                    node.own.add(own);
                }
                Remedy::Image(other) => asked.needs.architecture = *other,
                Remedy::Add(needs, _) => nodes.push(Node {
                    labels: needs.labels.clone(),
                    architecture: needs.architecture,
                    own: needs.own.clone(),
                    kvm: needs.kvm,
                    ..node("new", 16, 8192)
                }),
            }
            // Other domains can still have their share; then the spread is in the way.
            let mut with = Cluster::with(policy, &nodes, &all);
            let now = with.choose(&asked);
            let strict = asked.spreading == Spreading::Strict;
            prop_assert!(now.is_ok() || strict, "{} does not help: {}", remedy, now.unwrap_err());
        }
    }

    #[test]
    fn moves_are_few_fit_and_bring_domains_closer(
        nodes in nodes(), instances in instances(), policy in policy(), most in 0usize..6, gone in 0usize..4
    ) {
        // Placed while some racks were not there.
        let rack = FaultDomain(format!("r{gone}"));
        let fewer: Vec<_> = nodes.iter().filter(|node| node.domain != rack).cloned().collect();
        let mut now = carried_out(&instances, &place(policy, &fewer, &instances));
        let moves = rebalance::rebalance(policy, &nodes, &now, most);
        prop_assert!(moves.len() <= most);
        let mut moved = BTreeSet::new();
        for one in &moves {
            prop_assert!(moved.insert(&one.instance), "{} is moved twice", one.instance);
            prop_assert!(one.to_domain.1 + 1 < one.from_domain.1, "{}", one);
            let counts = by_domain(&nodes, &now, &one.group);
            prop_assert_eq!(counts[&one.from_domain.0.0], one.from_domain.1);
            prop_assert_eq!(counts[&one.to_domain.0.0], one.to_domain.1);
            let instance = now.iter_mut().find(|other| other.id == one.instance).unwrap();
            prop_assert_eq!(instance.node.as_ref(), Some(&one.from));
            instance.node = Some(one.to.clone());
            let node = nodes.iter().find(|node| node.id == one.to).unwrap();
            let instance = instance.clone();
            prop_assert!(usable(node, &instance));
            prop_assert!(is_kept(policy, node, &now));
        }
    }
}
