//! Nodes that come, go, come back, and lie.

use fabric_proto::{
    node::v1::{FetchBlobRequest, Register, SessionRequest},
    v1::ListNodesRequest,
};
use tonic::Code;

use crate::framework::*;

#[tokio::test]
async fn a_silent_node_is_lost_and_its_instances_are_unknown_until_it_is_back() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut agent = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    agent.goal_with(&["shop-web-0"]).await;
    agent.all_ready().await;
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    assert!(client.node("n1").await.connected);

    let seen = agent.goal.incarnation;
    let epoch = agent.goal.instances[0].epoch;
    client.wait_for_words(&[("shop-web-0", "Unknown")]).await;
    until(
        "the event",
        async || client.reasons("n1").await,
        |seen| seen == &["NodeRegistered", "NodeConnected", "NodeLost"],
    )
    .await;
    let shown = client.node("n1").await;
    assert!(!shown.connected && shown.last_seen.is_some());
    drop(agent);

    let mut agent = Node::register(&client, register("n1", seen)).await.unwrap();
    agent.next_goal().await;
    assert_eq!(
        agent.goal.incarnation, seen,
        "the same goal has the same number"
    );
    assert_eq!(agent.goal.instances[0].epoch, epoch);
    agent.all_ready().await;
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
}

#[tokio::test]
async fn no_lower_incarnation_is_ever_sent() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut agent = Node::join(&client, "n1").await;
    let mut highest = agent.goal.incarnation;
    let mut current = controller;
    for round in 0..3 {
        client_apply(&current, &shop(round + 1)).await;
        let ids: Vec<String> = (0..=round)
            .map(|index| format!("shop-web-{index}"))
            .collect();
        agent
            .goal_with(&ids.iter().map(String::as_str).collect::<Vec<_>>())
            .await;
        assert!(agent.goal.incarnation > highest);
        highest = agent.goal.incarnation;
        let (next, client) = current.restart().await;
        current = next;
        agent = Node::register(&client, register("n1", highest))
            .await
            .unwrap();
        agent.next_goal().await;
        assert!(
            agent.goal.incarnation >= highest,
            "the controller went back"
        );
    }
    // A node that has seen more than the controller ever gave.
    drop(agent);
    let client = Client::connect(&current.data.path().join("s"))
        .await
        .unwrap();
    let mut agent = Node::register(&client, register("n1", highest + 50))
        .await
        .unwrap();
    agent.next_goal().await;
    assert_eq!(agent.goal.incarnation, highest + 51);
    assert_eq!(agent.goal.instances.len(), 3);
}

async fn client_apply(controller: &Controller, text: &str) {
    let client = Client::connect(&controller.data.path().join("s"))
        .await
        .unwrap();
    client.apply(text).await.unwrap();
}

#[tokio::test]
async fn events_are_stored_once_and_acknowledged() {
    let (controller, client) = Controller::start().await;
    let mut agent = Node::join(&client, "n1").await;
    agent.event(1, "shop-web-0", "VmmStarted").await;
    agent.event(2, "", "ImageFetched").await;
    agent.acknowledged(2).await;
    agent.event(2, "", "ImageFetched").await;
    agent.event(3, "shop-web-0", "GuestHello").await;
    agent.acknowledged(3).await;
    assert_eq!(
        client.reasons("shop-web-0").await,
        ["VmmStarted", "GuestHello"]
    );

    let (_controller, client) = controller.restart().await;
    let mut agent = Node::register(&client, register("n1", 1)).await.unwrap();
    agent.acknowledged(3).await;
    agent.event(3, "shop-web-0", "GuestHello").await;
    agent.event(4, "shop-web-0", "RoleReady").await;
    agent.acknowledged(4).await;
    assert_eq!(
        client.reasons("shop-web-0").await,
        ["VmmStarted", "GuestHello", "RoleReady"]
    );
    let events = client.all_events().await;
    let hello = events
        .iter()
        .find(|event| event.reason == "GuestHello")
        .unwrap();
    assert_eq!(
        (hello.source.as_str(), hello.subject_kind.as_str()),
        ("n1", "instance")
    );
}

#[tokio::test]
async fn a_node_that_has_forgotten_everything_counts_anew() {
    let (_controller, client) = Controller::start().await;
    let mut agent = Node::join(&client, "n1").await;
    agent.event(7, "", "ImageFetched").await;
    agent.acknowledged(7).await;
    drop(agent);
    let mut agent = Node::register(&client, register("n1", 0)).await.unwrap();
    agent.event(1, "", "DiskCreated").await;
    agent.acknowledged(1).await;
    assert!(
        client
            .reasons("n1")
            .await
            .contains(&"DiskCreated".to_owned())
    );
}

#[tokio::test]
async fn the_newer_of_two_sessions_of_one_name_stays() {
    let (_controller, client) = Controller::start().await;
    let mut first = Node::join(&client, "n1").await;
    let mut second = Node::register(&client, register("n1", first.goal.incarnation))
        .await
        .unwrap();
    second.next_goal().await;
    let ended = first.answer().await.unwrap_err();
    assert_eq!(ended.code(), Code::Aborted);
    assert!(
        ended.message().contains("two host agents"),
        "{}",
        ended.message()
    );
    second.event(1, "", "DiskCreated").await;
    second.acknowledged(1).await;
}

#[tokio::test]
async fn a_first_message_that_is_wrong_ends_the_session_by_field() {
    let (_controller, client) = Controller::start().await;
    for (register, code, said) in [
        (
            Register {
                node_id: "../x".to_owned(),
                ..register("n", 0)
            },
            Code::InvalidArgument,
            "node_id",
        ),
        (
            Register {
                protocol_version: 9,
                ..register("n1", 0)
            },
            Code::FailedPrecondition,
            "speaks protocol version 9, this controller 1",
        ),
    ] {
        let mut node = Node::register(&client, register).await.unwrap();
        let status = node.answer().await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains(said), "{}", status.message());
    }
    let reports = tokio_stream::iter([SessionRequest { report: None }]);
    let mut answers = client
        .host_agent()
        .session(reports)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        answers.message().await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert!(
        client
            .nodes()
            .list_nodes(ListNodesRequest {})
            .await
            .unwrap()
            .into_inner()
            .nodes
            .is_empty()
    );
}

#[tokio::test]
async fn an_instance_on_a_lost_node_is_not_forgotten_when_its_service_goes() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut agent = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    agent.goal_with(&["shop-web-0"]).await;
    agent.all_ready().await;
    let seen = agent.goal.incarnation;
    drop(agent);
    client.wait_for_words(&[("shop-web-0", "Unknown")]).await;
    let request = fabric_proto::v1::DeleteServiceRequest {
        name: "shop".to_owned(),
        request_id: String::new(),
        ..fabric_proto::v1::DeleteServiceRequest::default()
    };
    client.services().delete_service(request).await.unwrap();
    client.wait_for_words(&[("shop-web-0", "Stopping")]).await;
    assert!(
        client.list().await[0]
            .reason
            .contains("removed once it is back")
    );
    let mut agent = Node::register(&client, register("n1", seen)).await.unwrap();
    agent.next_goal().await;
    assert!(agent.goal.instances.is_empty());
    agent.status(vec![]).await;
    client.wait_for_words(&[]).await;
}

#[tokio::test]
async fn a_node_fetches_what_was_uploaded_from_any_offset() {
    let (_controller, client) = Controller::start().await;
    let bytes = vhd();
    client
        .upload(fabric_proto::v1::BlobKind::Image, "guest-os", &bytes)
        .await
        .unwrap();
    for offset in [0, 100, bytes.len()] {
        let request = FetchBlobRequest {
            digest: digest(&bytes).to_string(),
            offset: offset as u64,
        };
        let mut answers = client
            .host_agent()
            .fetch_blob(request)
            .await
            .unwrap()
            .into_inner();
        let mut got = Vec::new();
        let mut total = 0;
        while let Some(piece) = answers.message().await.unwrap() {
            total = total.max(piece.total_bytes);
            got.extend_from_slice(&piece.data);
        }
        assert_eq!(total, bytes.len() as u64);
        assert!(got == bytes[offset..]);
    }
    for (digest, offset, code) in [
        (digest(b"other").to_string(), 0, Code::NotFound),
        ("../store.db".to_owned(), 0, Code::InvalidArgument),
        (digest(&bytes).to_string(), u64::MAX, Code::InvalidArgument),
    ] {
        let request = FetchBlobRequest { digest, offset };
        assert_eq!(
            client
                .host_agent()
                .fetch_blob(request)
                .await
                .unwrap_err()
                .code(),
            code
        );
    }
}
