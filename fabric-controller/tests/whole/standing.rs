//! Nodes that are given nothing new for what they did.

use fabric_proto::node::v1::{NodeEvent, session_request::Report};

use crate::framework::*;

#[tokio::test]
async fn a_node_that_comes_and_goes_is_given_nothing_new_until_it_is_trusted_again() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let steady = ["n2", "n3"].map(|name| Node::join(&client, name));
    let [n2, n3] = steady;
    let _steady = [n2.await.live(), n3.await.live()];
    drop(Node::join(&client, "n1").await);
    // Each is a new session of a node that was not lost.
    for seen in 1..=12 {
        let again = Node::register(&client, register("n1", 10 * seen)).await;
        again.unwrap().next_goal().await;
    }
    until(
        "word of it",
        async || client.reasons("n1").await,
        |told| told.contains(&"NodeUnsteady".to_owned()),
    )
    .await;
    assert!(client.node("n1").await.unsteady_until.is_some());

    let mut n1 = Node::register(&client, register("n1", 500)).await.unwrap();
    n1.next_goal().await;
    let _n1 = n1.live();
    client.apply(&shop(3)).await.unwrap();
    client
        .wait_for_words(&[
            ("shop-web-0", "Ready"),
            ("shop-web-1", "Ready"),
            ("shop-web-2", "Ready"),
        ])
        .await;
    let places = client.places().await;
    assert!(!places.contains(&"n1".to_owned()), "{places:?}");

    // It is not forgotten with the controller; an operator knows better.
    let (_controller, client) = controller.restart().await;
    assert!(client.node("n1").await.unsteady_until.is_some());
    assert!(client.uncordon("n1").await.unsteady_until.is_none());
    let mut n1 = Node::register(&client, register("n1", 1_000))
        .await
        .unwrap();
    n1.next_goal().await;
    client.apply(&shop(4)).await.unwrap();
    n1.goal_with(&["shop-web-3"]).await;
    assert!(client.node("n1").await.unsteady_until.is_none());
}

/// A service like `shop`, of that name.
fn service(name: &str) -> String {
    shop(3).replace("\"shop\"", &format!("{name:?}"))
}

#[tokio::test]
async fn a_node_on_which_unrelated_services_keep_failing_is_cordoned_for_it() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut n1 = Node::join(&client, "n1").await;
    let [n2, n3] = ["n2", "n3"].map(|name| Node::join(&client, name));
    let _others = [n2.await.live(), n3.await.live()];
    for name in ["a", "b", "c"] {
        client.apply(&service(name)).await.unwrap();
    }
    while n1.goal.instances.len() < 3 {
        n1.next_goal().await;
    }
    let goals = n1.goal.instances.clone();
    let ids: Vec<_> = goals.into_iter().map(|one| one.instance_id).collect();
    let mut sequence = 0;
    let mut fail = async |id: &str| {
        for _ in 0..4 {
            sequence += 1;
            let event = NodeEvent {
                sequence,
                instance_id: id.to_owned(),
                reason: "VmRestarting".to_owned(),
                warning: true,
                ..NodeEvent::default()
            };
            n1.report(Report::Event(event)).await;
        }
        n1.all_ready().await;
    };

    // A service that fails may be its own fault.
    fail(&ids[0]).await;
    fail(&ids[1]).await;
    let told = async || client.reasons("n1").await;
    until("blame", told, |told| {
        told.contains(&"NodeBlamed".to_owned())
    })
    .await;
    let node = client.node("n1").await;
    assert_eq!((node.blame, node.condemned), (2, false));
    fail(&ids[2]).await;
    until("cordon", told, |told| {
        told.contains(&"NodeCondemned".to_owned())
    })
    .await;
    let node = client.node("n1").await;
    assert_eq!(
        (node.blame, node.condemned, node.cordoned),
        (3, true, false)
    );
    assert_eq!(node.blamed_for, ["a", "b", "c"]);
    let events = client.all_events().await;
    let cause = |reason: &str| {
        let event = events.iter().rfind(|event| event.reason == reason);
        event.unwrap().cause.as_ref().unwrap().reason.clone()
    };
    assert_eq!(cause("NodeBlamed"), "VmRestarting");
    assert_eq!(cause("NodeCondemned"), "NodeBlamed");

    // What runs there is left alone, and an operator knows better.
    client.apply(&service("d")).await.unwrap();
    let list = client.list().await;
    let on_n1 = list.iter().filter(|one| one.node_id == "n1");
    assert_eq!(on_n1.count(), 3);
    let node = client.uncordon("n1").await;
    assert_eq!((node.blame, node.condemned), (0, false));
}
