//! What led to what: events name their causes.

use fabric_proto::{node::v1::NodeEvent, node::v1::session_request::Report, v1::Event};

use crate::framework::*;

/// What happened to something, each with the reason and the subject of its cause.
async fn causes(client: &Client, subject: &str) -> Vec<(String, String)> {
    let events = client.all_events().await.into_iter();
    let own = events.filter(|event| event.subject == subject);
    let cause = |event: Event| {
        let cause = event
            .cause
            .map(|cause| format!("{} {}", cause.reason, cause.subject));
        (event.reason, cause.unwrap_or_default())
    };
    own.map(cause).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(what, cause): &(&str, &str)| ((*what).to_owned(), (*cause).to_owned());
    expected.iter().map(owned).collect()
}

#[tokio::test]
async fn a_move_leads_back_to_the_node_that_was_lost() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut first = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    first.goal_with(&["shop-web-0"]).await;
    let mut others = Vec::new();
    for name in ["n2", "n3"] {
        others.push(Node::join(&client, name).await.live());
    }
    first.all_ready().await;
    let expected = pairs(&[
        ("InstancePlaced", "ServiceApplied shop"),
        ("InstanceFailedOver", "NodeFenced n1"),
        ("InstancePlaced", "InstanceFailedOver shop-web-0"),
    ]);
    until(
        "the move, and why",
        async || causes(&client, "shop-web-0").await,
        |told| *told == expected,
    )
    .await;
    let node = causes(&client, "n1").await;
    assert_eq!(
        node[2..],
        pairs(&[("NodeLost", ""), ("NodeFenced", "NodeLost n1")])
    );
}

#[tokio::test]
async fn what_a_node_takes_for_a_cause_is_kept_and_is_about_the_same_instance() {
    let (_controller, client) = Controller::start().await;
    let mut node = Node::join(&client, "n1").await;
    for (sequence, reason, cause) in [(1, "VmmExited", ""), (2, "VmRestarting", "Vmm\u{1b}Exited")]
    {
        let event = NodeEvent {
            sequence,
            instance_id: "shop-web-0".to_owned(),
            reason: reason.to_owned(),
            cause: cause.to_owned(),
            ..NodeEvent::default()
        };
        node.report(Report::Event(event)).await;
    }
    node.acknowledged(2).await;
    assert_eq!(
        causes(&client, "shop-web-0").await,
        pairs(&[("VmmExited", ""), ("VmRestarting", "VmmExited shop-web-0")])
    );
}

#[tokio::test]
async fn a_drain_leads_back_to_the_node_that_is_drained() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut first = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    first.goal_with(&["shop-web-0"]).await;
    let _first = first.live();
    let _second = Node::join(&client, "n2").await.live();
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    let request = fabric_proto::v1::DrainNodeRequest {
        node_id: "n1".to_owned(),
        request_id: String::new(),
    };
    client.nodes().drain_node(request).await.unwrap();
    let expected = pairs(&[
        ("InstancePlaced", "ServiceApplied shop"),
        ("InstanceMoving", "NodeDraining n1"),
        ("InstancePlaced", "InstanceMoving shop-web-0"),
    ]);
    until(
        "the move, and why",
        async || causes(&client, "shop-web-0").await,
        |told| *told == expected,
    )
    .await;
}
