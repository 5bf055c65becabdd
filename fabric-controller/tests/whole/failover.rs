//! Nodes that fall silent, and where their instances are then: never twice.

use fabric_proto::v1::{Instance, ListInstancesRequest};
use tokio::time::Instant;

use crate::{framework::*, program::Program};

async fn shown(client: &Client) -> Instance {
    let mut instances = client.instances();
    let list = instances.list_instances(ListInstancesRequest::default());
    let instances = list.await.unwrap().into_inner().instances;
    instances.into_iter().next().unwrap()
}

/// Three nodes of which the first is silent from now on, and the instance that it has.
async fn silent_one(client: &Client) -> (Node, Vec<impl Sized>, Instant) {
    client.upload_guest_os().await;
    let mut first = Node::join(client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    first.goal_with(&["shop-web-0"]).await;
    let mut others = Vec::new();
    for name in ["n2", "n3"] {
        others.push(Node::join(client, name).await.live());
    }
    first.all_ready().await;
    let silent = Instant::now();
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    (first, others, silent)
}

#[tokio::test]
async fn what_a_silent_node_had_is_started_elsewhere_when_its_lease_has_ended() {
    let (_controller, client) = Controller::start().await;
    let (_first, _others, silent) = silent_one(&client).await;
    let before = shown(&client).await;
    let after = until(
        "another node",
        async || shown(&client).await,
        |one| one.node_id != "n1" && one.state == "Ready",
    )
    .await;
    assert!(silent.elapsed() >= LEASE.replace_after(), "too early");
    assert!(after.epoch > before.epoch);
    let reasons = client.reasons("n1").await;
    assert_eq!(reasons[2..], ["NodeLost", "NodeFenced"]);
    let reasons = client.reasons("shop-web-0").await;
    assert_eq!(
        reasons,
        ["InstancePlaced", "InstanceFailedOver", "InstancePlaced"]
    );
}

#[tokio::test]
async fn a_node_that_comes_back_has_no_lease_for_what_runs_elsewhere_by_now() {
    let (_controller, client) = Controller::start().await;
    let (first, _others, _) = silent_one(&client).await;
    let seen = first.goal.incarnation;
    until(
        "another node",
        async || shown(&client).await,
        |one| one.node_id != "n1",
    )
    .await;
    drop(first);
    let mut back = Node::register(&client, register("n1", seen)).await.unwrap();
    let grant = back.lease().await;
    assert!(grant.incarnation > seen, "it would go on with what it had");
    // Which of the two comes first is nobody's promise.
    while back.goal.incarnation < grant.incarnation {
        back.next_goal().await;
    }
    assert_eq!(back.goal.incarnation, grant.incarnation);
    assert!(back.goal.instances.is_empty());
}

#[tokio::test]
async fn a_node_that_is_back_in_time_keeps_what_it_has() {
    let (_controller, client) = Controller::start().await;
    let (first, _others, _) = silent_one(&client).await;
    let seen = first.goal.incarnation;
    drop(first);
    let mut back = Node::register(&client, register("n1", seen)).await.unwrap();
    back.next_goal().await;
    assert_eq!(back.lease().await.incarnation, seen);
    let _live = back.live();
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    assert_eq!(shown(&client).await.node_id, "n1");
}

#[tokio::test]
async fn nothing_is_moved_while_most_nodes_are_silent() {
    let (_controller, client) = Controller::start().await;
    let (_first, mut others, _) = silent_one(&client).await;
    others.truncate(1);
    until(
        "word of it",
        async || client.reasons("nodes").await,
        |told| told == &["FailoverHeld"],
    )
    .await;
    assert_eq!(shown(&client).await.node_id, "n1");
}

#[tokio::test]
async fn two_of_three_may_be_silent_where_the_command_line_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let held_to = "--lease 1s --heartbeat 50ms --lost-after 1s --silent-percent 67";
    let arguments: Vec<_> = held_to.split(' ').collect();
    let (_program, client) = Program::start_as(&[], dir.path(), &arguments).await;
    let (_first, mut others, _) = silent_one(&client).await;
    others.remove(0);
    let one = until(
        "another node",
        async || shown(&client).await,
        |one| one.node_id != "n1" && one.state == "Ready",
    )
    .await;
    assert_eq!(one.node_id, "n3");
    assert!(client.reasons("nodes").await.is_empty());
}

#[tokio::test]
async fn a_controller_that_was_down_itself_gives_every_node_its_whole_grace() {
    let (controller, client) = Controller::start().await;
    let (_first, others, _) = silent_one(&client).await;
    drop(others);
    until(
        "word of its silence",
        async || client.reasons("n1").await,
        |told| told.contains(&"NodeLost".to_owned()),
    )
    .await;
    let (_controller, client) = controller.restart().await;
    let restarted = Instant::now();
    let mut others = Vec::new();
    for name in ["n2", "n3"] {
        let mut node = Node::register(&client, register(name, 1_000))
            .await
            .unwrap();
        node.next_goal().await;
        others.push(node.live());
    }
    until(
        "another node",
        async || shown(&client).await,
        |one| one.node_id != "n1",
    )
    .await;
    assert!(restarted.elapsed() >= LEASE.replace_after());
}
