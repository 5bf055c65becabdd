//! What would be if, and what would mend it.

use super::{
    rebalance::rebalance,
    whatif::{Change, Impossible, Outcome, Snapshot},
    *,
};

/// Two racks of two nodes each, with four of a role on them.
fn two_racks() -> Snapshot {
    let nodes = vec![
        racked("n1", "r1", 2, 1024),
        racked("n2", "r1", 2, 1024),
        racked("n3", "r2", 2, 1024),
        racked("n4", "r2", 2, 1024),
    ];
    let instances = role("shop-web", 4, 1, 512);
    let instances = carried_out(&instances, &place(ONCE, &nodes, &instances));
    Snapshot {
        policy: ONCE,
        nodes,
        instances,
    }
}

fn what_if(change: Change) -> Outcome {
    let now = two_racks();
    now.clone().after(change).unwrap().outcome(&now, 4)
}

#[test]
fn a_node_that_dies_has_its_instance_started_in_the_same_rack() {
    let outcome = what_if(Change::KillNode("n1".parse().unwrap()));
    assert_eq!(outcome.found.len(), 1);
    let found = &outcome.found[0];
    assert_eq!(found.from.as_ref().unwrap().as_str(), "n1");
    assert_eq!(found.to.node.as_str(), "n2");
    assert_eq!((outcome.staying, outcome.stranded.len()), (3, 0));
    assert_eq!(outcome.moves, [], "nothing is left to mend");
}

#[test]
fn what_would_go_back_to_who_gave_it_up_is_not_stranded() {
    let mut now = two_racks();
    now.nodes.truncate(2);
    now.instances.truncate(1);
    now.instances[0].node = Some("n1".parse().unwrap());
    now.instances[0].needs.avoid = ["n2".parse().unwrap()].into();
    let dies = Change::KillNode("n1".parse().unwrap());
    let outcome = now.clone().after(dies).unwrap().outcome(&now, 4);
    assert_eq!(outcome.stranded, []);
    assert_eq!(outcome.found[0].to.node.as_str(), "n2");
}

#[test]
fn a_rack_that_dies_has_its_instances_started_in_the_other() {
    let outcome = what_if(Change::KillDomain(FaultDomain("r1".to_owned())));
    let to: Vec<_> = outcome
        .found
        .iter()
        .map(|one| one.to.domain.0.as_str())
        .collect();
    assert_eq!(to, ["r2", "r2"]);
    assert_eq!(outcome.stranded, []);
}

#[test]
fn what_finds_no_place_says_what_would_make_one() {
    let wanted = vec![instance("big-db-0", 2, 2048)];
    let outcome = what_if(Change::Replace {
        gone: Vec::new(),
        wanted,
    });
    assert_eq!(outcome.stranded.len(), 1);
    let why = outcome.stranded[0].why.to_string();
    assert!(
        why.ends_with("to make it fit, add a node with 2 vCPU and 2048 MiB free"),
        "{why}"
    );
}

#[test]
fn another_node_takes_what_had_none_and_its_share_of_the_others() {
    let mut now = two_racks();
    now.instances.push(instance("big-db-0", 2, 2048));
    let new = Box::new(node("new-1", 8, 8192));
    let outcome = now
        .clone()
        .after(Change::AddNode(new))
        .unwrap()
        .outcome(&now, 4);
    assert_eq!(outcome.found.len(), 1);
    assert_eq!(outcome.found[0].to.node.as_str(), "new-1");
    assert_eq!(outcome.moves.len(), 1);
    assert_eq!(
        outcome.moves[0].to_string(),
        "fault domain r2 has 2 of shop-web, new-1 has 0"
    );
}

#[test]
fn what_is_not_there_cannot_die() {
    let error = two_racks().after(Change::KillNode("n9".parse().unwrap()));
    assert_eq!(
        error.unwrap_err(),
        Impossible::NoNode("n9".parse().unwrap())
    );
    let error = two_racks().after(Change::KillDomain(FaultDomain("r9".to_owned())));
    assert_eq!(
        error.unwrap_err().to_string(),
        "there is no fault domain \"r9\"; there are r1, r2"
    );
}

#[test]
fn a_rack_that_is_back_gets_its_share_again_in_as_few_moves_as_are_allowed() {
    let nodes = [racked("n1", "r1", 8, 8192), racked("n2", "r2", 8, 8192)];
    let crowded: Vec<_> = role("a-b", 4, 1, 64)
        .into_iter()
        .map(|one| on("n2", one))
        .collect();
    let moves = rebalance(ONCE, &nodes, &crowded, 10);
    let ids: Vec<_> = moves
        .iter()
        .map(|one| (one.instance.as_str(), one.to.as_str()))
        .collect();
    assert_eq!(ids, [("a-b-3", "n1"), ("a-b-2", "n1")]);
    assert_eq!(rebalance(ONCE, &nodes, &crowded, 1), moves[..1]);
    assert_eq!(rebalance(ONCE, &nodes[1..], &crowded, 10), []);
}

#[test]
fn no_spread_is_mended_with_a_node_that_has_given_the_instance_up() {
    let mut old = racked("n2", "r2", 8, 8192);
    old.cordoned = true;
    let nodes = [racked("n1", "r1", 8, 8192), old];
    let crowded = role("a-b", 2, 1, 64).into_iter().map(|one| on("n2", one));
    let mut crowded: Vec<_> = crowded.collect();
    assert_eq!(rebalance(ONCE, &nodes, &crowded, 10).len(), 1);
    for one in &mut crowded {
        one.needs.avoid = ["n1".parse().unwrap()].into();
    }
    assert_eq!(rebalance(ONCE, &nodes, &crowded, 10), []);
}
