//! Nodes that instances leave: cordoned, drained, removed by operators, or tried in vain.

use fabric_proto::{
    node::v1::{RestartScope, VmState},
    v1::{
        CordonNodeRequest, DrainNodeRequest, Node as NodeMessage, RemoveNodeRequest,
        UncordonNodeRequest,
    },
};
use tonic::{Code, Status};

use crate::framework::*;

impl Client {
    async fn cordon(&self, node: &str) -> Result<NodeMessage, Status> {
        let request = CordonNodeRequest {
            node_id: node.to_owned(),
            request_id: String::new(),
        };
        let answer = self.nodes().cordon_node(request).await?;
        Ok(answer.into_inner().node.unwrap())
    }

    pub async fn uncordon(&self, node: &str) -> NodeMessage {
        let request = UncordonNodeRequest {
            node_id: node.to_owned(),
            request_id: String::new(),
        };
        let answer = self.nodes().uncordon_node(request).await.unwrap();
        answer.into_inner().node.unwrap()
    }

    async fn drain(&self, node: &str) -> NodeMessage {
        let request = DrainNodeRequest {
            node_id: node.to_owned(),
            request_id: String::new(),
        };
        let answer = self.nodes().drain_node(request).await.unwrap();
        answer.into_inner().node.unwrap()
    }

    async fn remove(&self, node: &str) -> Result<(), Status> {
        let request = RemoveNodeRequest {
            node_id: node.to_owned(),
            request_id: String::new(),
        };
        self.nodes().remove_node(request).await.map(drop)
    }

    /// Where each instance is.
    pub async fn places(&self) -> Vec<String> {
        let list = self.list().await.into_iter();
        list.map(|one| one.node_id).collect()
    }
}

#[tokio::test]
async fn a_cordoned_node_keeps_what_it_has_and_gets_nothing_new() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let _nodes = [
        Node::join(&client, "n1").await.live(),
        Node::join(&client, "n2").await.live(),
    ];
    client.apply(&shop(1)).await.unwrap();
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    let first = client.places().await.remove(0);
    assert!(client.cordon(&first).await.unwrap().cordoned);
    client.apply(&shop(3)).await.unwrap();
    let places = client.places().await;
    assert_eq!(places[0], first);
    assert!(!places[1..].contains(&first), "{places:?}");
    assert!(!client.uncordon(&first).await.cordoned);
    let reasons = client.reasons(&first).await;
    assert_eq!(reasons[2..], ["NodeCordoned", "NodeUncordoned"]);
    let error = client.cordon("n9").await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn a_node_is_drained_one_upgrade_domain_at_a_time() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut old = Node::join(&client, "n1").await;
    client.apply(&shop(2)).await.unwrap();
    old.goal_with(&["shop-web-0", "shop-web-1"]).await;
    old.all_ready().await;
    client
        .wait_for_words(&[("shop-web-0", "Ready"), ("shop-web-1", "Ready")])
        .await;
    let mut new = Node::join(&client, "n2").await;

    assert!(client.drain("n1").await.draining);
    old.goal_with(&["shop-web-1"]).await;
    assert!(
        new.goal.instances.is_empty(),
        "the first may still run where it was"
    );
    old.all_ready().await;
    new.goal_with(&["shop-web-0"]).await;
    // The second is left alone until the first is well where it is now.
    new.status(vec![]).await;
    old.all_ready().await;
    assert_eq!(client.places().await, ["n2", "n1"]);
    assert_eq!(client.reasons("shop-web-1").await, ["InstancePlaced"]);
    new.all_ready().await;
    let mut live = old;
    live.goal_with(&[]).await;
    live.all_ready().await;
    new.goal_with(&["shop-web-0", "shop-web-1"]).await;
    assert_eq!(client.places().await, ["n2", "n2"]);
    let reasons = client.reasons("shop-web-1").await;
    assert_eq!(
        reasons,
        ["InstancePlaced", "InstanceMoving", "InstancePlaced"]
    );
}

#[tokio::test]
async fn nothing_is_taken_from_where_it_is_while_there_is_no_other_place() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let _only = Node::join(&client, "n1").await.live();
    client.apply(&shop(1)).await.unwrap();
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    client.drain("n1").await;
    // What is decided after the drain is decided with it.
    client.apply(&shop(2)).await.unwrap();
    client
        .wait_for_words(&[("shop-web-0", "Ready"), ("shop-web-1", "Pending")])
        .await;
    let _other = Node::join(&client, "n2").await.live();
    until(
        "both to be there",
        async || client.places().await,
        |places| places == &["n2", "n2"],
    )
    .await;
}

#[tokio::test]
async fn a_node_is_removed_once_it_can_run_nothing_any_more() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let first = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    let error = client.remove("n1").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("is there"), "{error}");
    drop(first);
    let refused = until(
        "the session to end",
        async || client.remove("n1").await.unwrap_err().message().to_owned(),
        |error| !error.contains("is there"),
    )
    .await;
    assert!(refused.contains("its lease has ended in"), "{refused}");
    // The only one: nothing is moved off it by itself.
    until(
        "it to be gone",
        async || client.remove("n1").await.is_ok(),
        |gone| *gone,
    )
    .await;
    client.wait_for_words(&[("shop-web-0", "Pending")]).await;
    let mut other = Node::join(&client, "n2").await;
    other.goal_with(&["shop-web-0"]).await;
}

#[tokio::test]
async fn what_its_node_has_given_up_is_started_on_another_twice_an_hour() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut first = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    first.goal_with(&["shop-web-0"]).await;
    let given_up = [("shop-web-0", VmState::Failed)];
    first.all_ready_but(&given_up).await;
    client.wait_for_words(&[("shop-web-0", "Failed")]).await;

    let mut second = Node::join(&client, "n2").await;
    first.goal_with(&[]).await;
    first.all_ready().await;
    second.goal_with(&["shop-web-0"]).await;
    second.all_ready_but(&given_up).await;
    // Back to where it was: it may be better there by now.
    second.goal_with(&[]).await;
    second.all_ready().await;
    first.goal_with(&["shop-web-0"]).await;
    first.all_ready_but(&given_up).await;
    client.wait_for_words(&[("shop-web-0", "Failed")]).await;
    let reasons = client.reasons("shop-web-0").await;
    let moved = reasons.iter().filter(|one| *one == "InstanceGivenUp");
    assert_eq!(moved.count(), 2, "{reasons:?}");
    assert_eq!(client.places().await, ["n1"]);
}

#[tokio::test]
async fn a_removed_node_that_was_only_cut_off_is_never_given_the_goal_of_before() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    node.all_ready().await;
    let (seen, epoch) = (node.goal.incarnation, node.goal.instances[0].epoch);
    drop(node);
    // Goals that it does not see.
    for _ in 0..3 {
        client.restart("shop-web-0", RestartScope::Vm).await;
    }
    until(
        "its removal",
        async || client.remove("n1").await.is_ok(),
        |is_gone| *is_gone,
    )
    .await;

    let mut back = Node::register(&client, register("n1", seen)).await.unwrap();
    while back.goal.instances.is_empty() {
        back.next_goal().await;
        back.status(vec![]).await;
    }
    assert!(back.goal.instances[0].epoch > epoch, "what it had before");
    assert_eq!(back.lease().await.incarnation, back.goal.incarnation);
}
