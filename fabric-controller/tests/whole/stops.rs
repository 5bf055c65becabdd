//! Stops, as an operator asks for them: nothing but a start undoes one.

use fabric_proto::{
    node::v1::{InstancePower, InstanceStatus, RestartScope, VmState},
    v1::{
        GetUpdateRequest, PauseInstanceRequest, RestartInstanceRequest, ResumeInstanceRequest,
        SnapshotInstanceRequest, StartInstanceRequest, StopInstanceRequest,
    },
};
use tonic::Code;

use crate::framework::*;

const ID: &str = "shop-web-0";

async fn stop(client: &Client) {
    let request = StopInstanceRequest {
        instance_id: ID.to_owned(),
        request_id: "stop-1".to_owned(),
        grace: None,
    };
    client.instances().stop_instance(request).await.unwrap();
}

/// A stop with so many seconds to end.
async fn stop_within(client: &Client, seconds: i64) -> Result<(), tonic::Status> {
    let request = StopInstanceRequest {
        instance_id: ID.to_owned(),
        request_id: String::new(),
        grace: Some(prost_types::Duration { seconds, nanos: 0 }),
    };
    client.instances().stop_instance(request).await.map(drop)
}

async fn start(client: &Client) {
    let request = StartInstanceRequest {
        instance_id: ID.to_owned(),
        request_id: String::new(),
    };
    client.instances().start_instance(request).await.unwrap();
}

/// What a node that has stopped it says.
fn stopped(epoch: u64) -> InstanceStatus {
    InstanceStatus {
        vm_state: VmState::Stopped.into(),
        vm_reason: "an operator stopped it; the guest powered off".to_owned(),
        ..ready(ID, epoch)
    }
}

/// A node with an instance that an operator has stopped.
async fn stage() -> (Controller, Client, Node) {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&[ID]).await;
    node.all_ready().await;
    client.wait_for_words(&[(ID, "Ready")]).await;
    for _ in 0..2 {
        stop(&client).await;
    }
    while node.goal.instances[0].power() != InstancePower::Stopped {
        node.next_goal().await;
    }
    let epoch = node.goal.instances[0].epoch;
    node.status(vec![stopped(epoch)]).await;
    client.wait_for_words(&[(ID, "Stopped")]).await;
    (controller, client, node)
}

#[tokio::test]
async fn a_stop_lasts_until_a_start_whatever_else_is_asked() {
    let (controller, client, node) = stage().await;
    let shown = client.list().await.remove(0);
    assert_eq!(shown.power(), InstancePower::Stopped);
    assert!(shown.reason.contains("operator"), "{shown:?}");

    let instance_id = || ID.to_owned();
    let restart = RestartInstanceRequest {
        instance_id: instance_id(),
        scope: RestartScope::Vm.into(),
        request_id: String::new(),
    };
    let pause = PauseInstanceRequest {
        instance_id: instance_id(),
        request_id: String::new(),
    };
    let snapshot = SnapshotInstanceRequest {
        instance_id: instance_id(),
        snapshot: "s1".to_owned(),
        request_id: String::new(),
    };
    for refused in [
        client.instances().restart_instance(restart).await.map(drop),
        client.instances().pause_instance(pause).await.map(drop),
        client
            .instances()
            .snapshot_instance(snapshot)
            .await
            .map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let said = refused.message();
        assert!(said.contains("fabctl instance start"), "{said}");
    }
    let resume = ResumeInstanceRequest {
        instance_id: instance_id(),
        request_id: String::new(),
    };
    client.instances().resume_instance(resume).await.unwrap();

    let seen = node.goal.incarnation;
    let (_controller, client) = controller.restart().await;
    let mut node = Node::register(&client, register("n1", seen)).await.unwrap();
    node.next_goal().await;
    assert_eq!(node.goal.instances[0].power(), InstancePower::Stopped);
    node.status(vec![stopped(node.goal.instances[0].epoch)])
        .await;
    client.wait_for_words(&[(ID, "Stopped")]).await;

    let epoch = node.goal.instances[0].epoch;
    start(&client).await;
    while node.goal.instances[0].power() != InstancePower::Running {
        node.next_goal().await;
    }
    assert_eq!(node.goal.instances[0].epoch, epoch, "it keeps its disk");
    assert_eq!(
        client.reasons(ID).await,
        ["InstancePlaced", "StopRequested", "StartRequested"]
    );
}

#[tokio::test]
async fn how_long_it_has_to_stop_can_be_chosen_and_chosen_anew_until_it_is_started() {
    let (controller, client, mut node) = stage().await;
    assert_eq!(node.goal.instances[0].stop_grace, None);
    for seconds in [-1, 3601, i64::MAX] {
        let refused = stop_within(&client, seconds).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let said = refused.message();
        assert!(
            said.contains(&format!("grace {seconds}s")) && said.contains("0s to 1h"),
            "{said}"
        );
    }
    for seconds in [600, 0] {
        for _ in 0..2 {
            stop_within(&client, seconds).await.unwrap();
        }
        while node.goal.instances[0]
            .stop_grace
            .is_none_or(|grace| grace.seconds != seconds)
        {
            node.next_goal().await;
        }
        assert_eq!(node.goal.instances[0].power(), InstancePower::Stopped);
    }
    // What does not say how long leaves it as it is.
    stop(&client).await;
    let seen = node.goal.incarnation;
    let (_controller, client) = controller.restart().await;
    let mut node = Node::register(&client, register("n1", seen)).await.unwrap();
    node.next_goal().await;
    let grace = node.goal.instances[0].stop_grace.as_ref();
    assert_eq!(grace.map(|grace| grace.seconds), Some(0));

    start(&client).await;
    while node.goal.instances[0].power() != InstancePower::Running {
        node.next_goal().await;
    }
    assert_eq!(node.goal.instances[0].stop_grace, None);
    assert_eq!(
        client.reasons(ID).await,
        [
            "InstancePlaced",
            "StopRequested",
            "StopRequested",
            "StopRequested",
            "StartRequested"
        ],
        "each stop that changes something, once"
    );
}

#[tokio::test]
async fn an_update_waits_for_what_is_stopped_and_does_not_touch_it() {
    let (_controller, client, mut node) = stage().await;
    let before = node.goal.instances[0].clone();
    let newer = shop(1).replace("/bin/true", "/bin/newer");
    client.apply(&newer).await.unwrap();
    let request = || GetUpdateRequest {
        name: "shop".to_owned(),
        ..GetUpdateRequest::default()
    };
    let update = until(
        "the update to wait for it",
        async || {
            let answer = client.services().get_update(request()).await;
            answer.unwrap().into_inner().update.unwrap()
        },
        |update| update.waits_for.contains("Stopped"),
    )
    .await;
    assert!(update.waits_for.contains(ID), "{update:?}");
    start(&client).await;
    while node.goal.instances[0].power() != InstancePower::Running {
        assert_eq!(node.goal.instances[0], before);
        node.next_goal().await;
    }
    node.status(vec![ready(ID, before.epoch)]).await;
    node.goal_of(&[(ID, "/bin/newer")]).await;
}

#[tokio::test]
async fn what_is_stopped_waits_for_its_silent_node_and_fails_over_once_it_is_started() {
    let (_controller, client, node) = stage().await;
    let _others = [
        Node::join(&client, "n2").await.live(),
        Node::join(&client, "n3").await.live(),
    ];
    until(
        "its node to be fenced",
        async || client.reasons("n1").await,
        |told| told.contains(&"NodeFenced".to_owned()),
    )
    .await;
    let shown = client.list().await.remove(0);
    assert_eq!((&*shown.node_id, &*shown.state), ("n1", "Unknown"));
    let epoch = shown.epoch;
    start(&client).await;
    until(
        "another node",
        async || client.list().await.remove(0),
        |one| one.node_id != "n1" && one.state == "Ready" && one.epoch > epoch,
    )
    .await;
    drop(node);
}

#[tokio::test]
async fn what_is_stopped_is_stopped_where_a_drain_takes_it() {
    let (_controller, client, mut node) = stage().await;
    let mut other = Node::join(&client, "n2").await;
    let request = fabric_proto::v1::DrainNodeRequest {
        node_id: "n1".to_owned(),
        ..Default::default()
    };
    client.nodes().drain_node(request).await.unwrap();
    while !node.goal.instances.is_empty() {
        node.next_goal().await;
    }
    node.status(Vec::new()).await;
    other.goal_with(&[ID]).await;
    assert_eq!(other.goal.instances[0].power(), InstancePower::Stopped);
}
