//! Placement by example.

use super::*;

#[test]
fn instances_of_a_role_are_spread() {
    let nodes = [node("n1", 8, 8192), node("n2", 4, 4096)];
    let decisions = place(ONCE, &nodes, &role("shop-web", 2, 1, 128));
    assert_eq!(
        nodes_of(&decisions),
        [("shop-web-0", "n1"), ("shop-web-1", "n2")]
    );
}

#[test]
fn who_has_given_it_up_takes_it_only_where_nobody_else_can() {
    let id = |name: &str| name.parse::<NodeId>().unwrap();
    let mut asked = instance("a-b-0", 1, 64);
    asked.needs.avoid = [id("n1")].into();
    let nodes = |mib| [node("n1", 2, 1024), node("n2", 2, mib)];
    let placed = |mib| place(ONCE, &nodes(mib), std::slice::from_ref(&asked));
    assert_eq!(nodes_of(&placed(1024)), [("a-b-0", "n2")]);
    assert_eq!(nodes_of(&placed(32)), [("a-b-0", "n1")]);

    // Whoever asks why hears the same.
    let explained = |mib| Cluster::new(ONCE, &nodes(mib)).explain(&asked);
    let of_n1 = |explained: &Explanation| explained.verdicts[0].outcome.clone();
    let another = explained(1024);
    assert_eq!(another.decision.as_ref().unwrap().node, id("n2"));
    assert_eq!(of_n1(&another).unwrap_err(), [Refusal::GaveUp]);
    let back = explained(32);
    assert_eq!(back.decision.as_ref().unwrap().node, id("n1"));
    assert!(of_n1(&back).is_ok(), "{back:?}");

    let full = Cluster::new(ONCE, &[node("n1", 2, 32)]).explain(&asked);
    let why = full.decision.unwrap_err().to_string();
    assert!(why.contains("1 is short of memory"), "{why}");
}

#[test]
fn the_biggest_is_placed_first() {
    let nodes = [node("n1", 4, 1024), node("n2", 4, 512)];
    let instances = [instance("a-b-0", 1, 512), instance("c-d-0", 1, 1024)];
    let decisions = place(ONCE, &nodes, &instances);
    assert_eq!(nodes_of(&decisions), [("c-d-0", "n1"), ("a-b-0", "n2")]);
}

#[test]
fn what_has_a_node_stays_and_counts() {
    let there = on("n1", instance("shop-web-0", 2, 128));
    let decisions = place(
        ONCE,
        &[node("n1", 2, 1024)],
        &[there, instance("shop-web-1", 1, 64)],
    );
    assert_eq!(
        why_not(&decisions),
        "no node has room for 1 vCPU and 64 MiB: n1 has 0 vCPU and 896 MiB free; \
         1 is short of processors; to make it fit, free 1 vCPU on node n1, \
         or add a node with 1 vCPU and 64 MiB free"
    );
}

#[test]
fn a_node_that_is_not_there_takes_nothing() {
    let gone = Node {
        health: Health::Lost,
        ..node("n1", 2, 1024)
    };
    let why = |nodes: &[Node]| why_not(&place(ONCE, nodes, &[instance("a-b-0", 1, 64)]));
    assert_eq!(why(&[gone]), "no node is connected");
    assert_eq!(why(&[]), "there is no node; start a host agent");
}

#[test]
fn a_cordoned_node_takes_nothing_and_uncordoning_it_is_the_way() {
    let cordoned = Node {
        cordoned: true,
        ..node("n1", 2, 1024)
    };
    let decisions = place(
        ONCE,
        &[cordoned, node("n2", 2, 32)],
        &[instance("a-b-0", 1, 64)],
    );
    assert_eq!(
        why_not(&decisions),
        "no node has room for 1 vCPU and 64 MiB: n2 has 2 vCPU and 32 MiB free; \
         1 is cordoned, 1 is short of memory; to make it fit, uncordon node n1, \
         or add a node with 1 vCPU and 64 MiB free"
    );
}

#[test]
fn two_extra_small_instances_share_a_core() {
    let size = crate::model::size::azure("ExtraSmall").unwrap();
    let instances: Vec<_> = role("a-b", 3, 1, 1)
        .into_iter()
        .map(|one| Instance {
            needs: Needs {
                resources: Resources::of(size),
                ..Needs::default()
            },
            ..one
        })
        .collect();
    let decisions = place(ONCE, &[node("n1", 1, 8192)], &instances);
    assert_eq!(
        nodes_of(&decisions),
        [("a-b-0", "n1"), ("a-b-1", "n1"), ("a-b-2", "-")]
    );
}

#[test]
fn an_image_for_other_processors_or_another_kvm_finds_no_node() {
    let nodes = [node("n1", 4, 1024)];
    let with = |needs: fn(&mut Needs)| {
        let mut one = instance("a-b-0", 1, 64);
        needs(&mut one.needs);
        why_not(&place(ONCE, &nodes, &[one]))
    };
    let why = with(|needs| needs.architecture = Architecture::Aarch64);
    assert!(why.contains("1 is of another architecture"), "{why}");
    let remedy = "give it an image for x86_64, or add an aarch64 node with 1 vCPU and 64 MiB free";
    assert!(why.ends_with(remedy), "{why}");
    let why = with(|needs| needs.kvm = Some(Kvm::Interpreted));
    assert!(why.contains("1 is of another KVM kind"), "{why}");
}

#[test]
fn disk_counts_where_it_is_known() {
    let known = Node {
        disk_bytes: 1 << 30,
        ..node("n1", 8, 8192)
    };
    let mut big = instance("a-b-0", 1, 64);
    big.needs.resources.disk_bytes = 1 << 31;
    let (nodes, asked) = ([known, node("n2", 1, 64)], [big]);
    let why = why_not(&place(ONCE, &nodes[..1], &asked));
    assert!(why.contains("1 is short of disk"), "{why}");
    assert_eq!(only(&place(ONCE, &nodes, &asked)), "n2");
}

#[test]
fn labels_choose_nodes() {
    let mut fast = node("n2", 1, 1024);
    fast.labels.insert("disk".to_owned(), "nvme".to_owned());
    let mut picky = instance("a-b-0", 1, 64);
    picky.needs.labels = fast.labels.clone();
    let nodes = [node("n1", 8, 8192), fast];
    assert_eq!(only(&place(ONCE, &nodes, &[picky.clone()])), "n2");
    let why = why_not(&place(ONCE, &nodes[..1], &[picky]));
    assert!(
        why.contains("to make it fit, label node n1: `fabctl node label n1 disk=nvme`"),
        "{why}"
    );
    let odd = [("of".to_owned(), "Jane's lab".to_owned())];
    let remedy = Remedy::Label("n1".parse().unwrap(), odd.to_vec());
    assert_eq!(
        remedy.to_string(),
        r"label node n1: `fabctl node label n1 'of=Jane'\''s lab'`"
    );
}

#[test]
fn an_operators_own_resources_are_promised_once() {
    let nodes = [with_gpus(2, node("n1", 8, 8192)), node("n2", 8, 8192)];
    let roles = role("a-b", 3, 1, 64).into_iter();
    let asked: Vec<_> = roles.map(|one| taking_gpus(1, one)).collect();
    let decisions = place(ONCE, &nodes, &asked);
    let all = [("a-b-0", "n1"), ("a-b-1", "n1"), ("a-b-2", "-")];
    assert_eq!(nodes_of(&decisions), all);
    assert_eq!(
        why_not(&decisions[2..]),
        "no node has room for 1 vCPU and 64 MiB and 1 gpu: n1 has 6 vCPU and 8064 MiB free; \
         1 is short of own resources, 1 is without the own resources; to make it fit, free \
         1 gpu on node n1, or add a node with 1 vCPU and 64 MiB and 1 gpu free"
    );
}

#[test]
fn nodes_say_how_many_own_resources_are_missing() {
    let nodes = [
        with_gpus(2, node("n1", 8, 8192)),
        with_gpus(1, node("n2", 8, 8192)),
    ];
    let asked = taking_gpus(2, instance("a-b-1", 1, 64));
    let there = on("n1", taking_gpus(1, instance("a-b-0", 1, 64)));
    let mut cluster = Cluster::with(ONCE, &nodes, &[there, asked.clone()]);
    let said: Vec<_> = cluster
        .verdicts(&asked)
        .into_iter()
        .map(|verdict| verdict.outcome.unwrap_err()[0].to_string())
        .collect();
    let all = [
        "1 gpu are free, 2 are needed",
        "it has 1 gpu in all, 2 are needed",
    ];
    assert_eq!(said, all);
}

#[test]
fn what_few_nodes_can_take_is_placed_before_what_is_bigger() {
    let nodes = [with_gpus(1, node("n1", 2, 1024)), node("n2", 2, 512)];
    let big = instance("a-b-0", 2, 512);
    let special = taking_gpus(1, instance("c-d-0", 1, 1024));
    let decisions = place(ONCE, &nodes, &[big, special]);
    assert_eq!(nodes_of(&decisions), [("c-d-0", "n1"), ("a-b-0", "n2")]);
}

#[test]
fn racks_without_a_resource_do_not_count_for_the_spread_of_what_needs_it() {
    let nodes = [
        with_gpus(4, racked("n1", "r1", 8, 8192)),
        with_gpus(4, racked("n2", "r2", 8, 8192)),
        racked("n3", "r3", 8, 8192),
    ];
    let strict = |one| Instance {
        spreading: Spreading::Strict,
        ..taking_gpus(1, one)
    };
    let asked: Vec<_> = role("a-b", 4, 1, 64).into_iter().map(strict).collect();
    let decisions = place(ONCE, &nodes, &asked);
    assert!(
        decisions.iter().all(|one| one.outcome.is_ok()),
        "{decisions:?}"
    );
}

#[test]
fn a_role_fills_the_grid_of_two_racks_along_its_diagonals() {
    let nodes = [
        racked("n1", "r1", 8, 8192),
        racked("n2", "r1", 8, 8192),
        racked("n3", "r2", 8, 8192),
        racked("n4", "r2", 8, 8192),
    ];
    let mut instances = role("shop-web", 8, 1, 64);
    for one in &mut instances {
        one.upgrade_domains = 2;
    }
    let placed = carried_out(&instances, &place(ONCE, &nodes, &instances));
    let mut grid = BTreeMap::new();
    for one in &placed {
        let node = nodes
            .iter()
            .find(|node| Some(&node.id) == one.node.as_ref());
        let cell = (node.unwrap().domain.0.as_str(), one.upgrade_domain());
        *grid.entry(cell).or_insert(0) += 1;
    }
    let even = [
        (("r1", 0), 2),
        (("r1", 1), 2),
        (("r2", 0), 2),
        (("r2", 1), 2),
    ];
    assert_eq!(grid, BTreeMap::from(even));
}

#[test]
fn a_rack_that_is_full_gives_its_share_to_others_and_that_is_said() {
    let nodes = [racked("n1", "r1", 1, 1024), racked("n2", "r2", 8, 8192)];
    let decisions = place(ONCE, &nodes, &role("a-b", 4, 1, 64));
    assert_eq!(
        nodes_of(&decisions),
        [
            ("a-b-0", "n2"),
            ("a-b-1", "n1"),
            ("a-b-2", "n2"),
            ("a-b-3", "n2")
        ]
    );
    let relaxed = decisions[3].outcome.as_ref().unwrap().relaxed.as_ref();
    assert_eq!(
        relaxed.unwrap().to_string(),
        "fault domain r2 has 2 of a-b already and another has 1, which has no room"
    );
}

#[test]
fn a_strict_spread_is_rather_not_placed() {
    let nodes = [racked("n1", "r1", 1, 1024), racked("n2", "r2", 8, 8192)];
    let mut instances = role("a-b", 4, 1, 64);
    for one in &mut instances {
        one.spreading = Spreading::Strict;
    }
    let decisions = place(ONCE, &nodes, &instances);
    assert!(
        decisions[..3]
            .iter()
            .all(|decision| decision.outcome.is_ok())
    );
    assert_eq!(
        decisions[3].outcome.as_ref().unwrap_err().to_string(),
        "no node has room for 1 vCPU and 64 MiB: n1 has 0 vCPU and 960 MiB free; \
         1 is in a fault domain that has its share, 1 is short of processors; to make it \
         fit, let the spread of a-b be preferred instead of strict, or free 1 vCPU on node n1"
    );
}

#[test]
fn a_rack_that_is_dead_is_no_reason_to_wait() {
    let dead = Node {
        health: Health::Lost,
        ..racked("n1", "r1", 8, 8192)
    };
    let mut instances = role("a-b", 3, 1, 64);
    for one in &mut instances {
        one.spreading = Spreading::Strict;
    }
    let decisions = place(ONCE, &[dead, racked("n2", "r2", 8, 8192)], &instances);
    assert!(decisions.iter().all(|decision| decision.outcome.is_ok()));
}

/// Four instances that are to lie on two fault domains, and a node of each of these.
fn on_two_domains(spreading: Spreading, racks: &[&str]) -> Vec<Decision> {
    let nodes = racks.iter().enumerate();
    let nodes: Vec<_> = nodes
        .map(|(n, rack)| racked(&format!("n{n}"), rack, 8, 4096))
        .collect();
    let instances: Vec<_> = (0..4)
        .map(|number| Instance {
            spreading,
            fault_domains: 2,
            ..instance(&format!("shop-web-{number}"), 1, 64)
        })
        .collect();
    place(ONCE, &nodes, &instances)
}

#[test]
fn no_fault_domain_has_more_than_its_share_though_it_is_the_only_one() {
    let placed = |decisions: &[Decision]| {
        let placed = decisions.iter().filter(|one| one.outcome.is_ok());
        placed.count()
    };
    let strict = on_two_domains(Spreading::Strict, &["r1", "r1"]);
    assert_eq!(placed(&strict), 2);
    let why = strict[3].outcome.as_ref().unwrap_err().to_string();
    assert!(
        why.contains("2 are in a fault domain that has its share"),
        "{why}"
    );
    assert!(why.contains("preferred instead of strict"), "{why}");

    let preferred = on_two_domains(Spreading::Preferred, &["r1", "r1"]);
    let relaxed = |at: usize| preferred[at].outcome.as_ref().unwrap().relaxed.clone();
    assert_eq!(relaxed(1), None);
    assert_eq!(
        relaxed(2).unwrap().to_string(),
        "fault domain r1 has 2 of shop-web already and should have 2 at the most: there are \
         fewer fault domains than it wants"
    );
    let enough = on_two_domains(Spreading::Strict, &["r1", "r2"]);
    assert_eq!(placed(&enough), 4);
}

#[test]
fn an_availability_set_shares_no_rack_while_there_are_enough() {
    let nodes: Vec<_> = (0..6)
        .map(|n| racked(&format!("n{n}"), &format!("r{}", n / 2), 8, 8192))
        .collect();
    // Machines of two kinds, in one set.
    let set = |one: Instance| Instance {
        group: Group("set:dc".to_owned()),
        ..one
    };
    let instances = [
        set(instance("a-vm-0", 1, 512)),
        set(instance("b-vm-0", 2, 1024)),
        set(instance("c-vm-0", 1, 64)),
    ];
    let placed = carried_out(&instances, &place(ONCE, &nodes, &instances));
    let counts = by_domain(&nodes, &placed, &instances[0].group);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

#[test]
fn packing_fills_one_node_after_another_and_leaves_room_for_big_ones() {
    let nodes = [node("n1", 8, 8192), node("n2", 8, 8192)];
    // Of different roles, since one role is spread whatever the policy.
    let mut instances: Vec<_> = (0..8)
        .map(|n| instance(&format!("s{n}-r-0"), 1, 512))
        .collect();
    let packed = carried_out(&instances, &place(PACK, &nodes, &instances));
    assert!(packed.iter().all(|one| one.node == packed[0].node));
    instances = packed;
    instances.push(instance("big-r-0", 8, 8192));
    assert_eq!(only(&place(PACK, &nodes, &instances)), "n2");
}

#[test]
fn an_image_that_is_there_is_worth_a_fuller_node() {
    let one = of_image(1, instance("a-b-0", 1, 64));
    let busy = on("n2", instance("c-d-0", 1, 64));
    let nodes = [node("n1", 8, 8192), stocked(1, None, node("n2", 8, 8192))];
    assert_eq!(only(&place(Policy::DEFAULT, &nodes, &[busy, one])), "n2");
}

#[test]
fn a_template_is_where_one_of_the_same_size_and_image_has_been() {
    let like = |name: &str| of_image(1, instance(name, 1, 64));
    let nodes = [stocked(1, None, node("n1", 8, 8192)), node("n2", 8, 8192)];
    let there = on("n2", like("a-b-0"));
    let decisions = place(Policy::DEFAULT, &nodes, &[there, like("c-d-0")]);
    assert_eq!(only(&decisions), "n2");
}

#[test]
fn a_template_that_outlived_its_instances_counts_where_it_is() {
    let one = of_image(1, instance("a-b-0", 1, 64));
    let other = of_image(1, instance("c-d-0", 1, 128));
    let nodes = [
        stocked(1, Some(&other), node("n1", 8, 8192)),
        stocked(1, Some(&one), node("n2", 8, 8192)),
    ];
    let placed = |one: &Instance| place(Policy::DEFAULT, &nodes, std::slice::from_ref(one));
    assert_eq!(only(&placed(&one)), "n2");
    assert_eq!(only(&placed(&other)), "n1");
}

#[test]
fn a_blamed_node_is_taken_when_there_is_no_other() {
    let blamed = Node {
        blame: 3,
        ..node("n1", 8, 8192)
    };
    let decisions = place(
        ONCE,
        &[blamed, node("n2", 1, 256)],
        &[instance("a-b-0", 1, 64), instance("c-d-0", 1, 64)],
    );
    assert_eq!(nodes_of(&decisions), [("a-b-0", "n2"), ("c-d-0", "n1")]);
}

#[test]
fn what_leaves_takes_room_and_is_not_spread() {
    let leaving = Instance {
        leaving: true,
        ..on("n1", instance("a-b-0", 1, 64))
    };
    let nodes = [node("n1", 8, 8192), node("n2", 1, 128)];
    // The emptier one by far, and nothing of the role counts there.
    assert_eq!(
        only(&place(ONCE, &nodes, &[leaving, instance("a-b-1", 1, 64)])),
        "n1"
    );
}

#[test]
fn an_explanation_says_why_here_and_why_not_there() {
    let nodes = [
        node("n1", 8, 8192),
        node("n2", 8, 8192),
        node("n3", 1, 32),
        Node {
            cordoned: true,
            ..node("n4", 8, 8192)
        },
    ];
    let asked = on("n2", instance("a-b-1", 1, 64));
    let all = [on("n1", instance("a-b-0", 1, 64)), asked.clone()];
    let explained = Cluster::with(ONCE, &nodes, &all).explain(&asked);
    assert_eq!(explained.decision.as_ref().unwrap().node.as_str(), "n2");
    let chosen = *explained.verdicts[1].outcome.as_ref().unwrap();
    let said: Vec<_> = explained
        .verdicts
        .iter()
        .map(|verdict| match &verdict.outcome {
            Ok(standing) => standing.behind(&chosen),
            Err(why) => why
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "),
        })
        .collect();
    assert_eq!(said[0], "more of its group in this fault domain: 1, not 0");
    assert_eq!(said[2], "32 MiB of memory are free, 64 MiB are needed");
    assert_eq!(said[3], "it is cordoned");
}
