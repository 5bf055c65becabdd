//! Pauses, snapshots and restores, as an operator asks for them and a node is told.

use fabric_proto::{
    node::v1::{
        InstancePower, InstanceStatus, RestartScope, SnapshotState, SnapshotStatus, VmState,
    },
    v1::{
        DeleteSnapshotRequest, PauseInstanceRequest, RestartInstanceRequest,
        RestoreInstanceRequest, ResumeInstanceRequest, SnapshotInstanceRequest,
    },
};
use tonic::{Code, Status};

use crate::framework::*;

const ID: &str = "shop-web-0";

async fn stage() -> (Controller, Client, Node) {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&[ID]).await;
    (controller, client, node)
}

async fn pause(client: &Client, request_id: &str) -> Result<(), Status> {
    let request = PauseInstanceRequest {
        instance_id: ID.to_owned(),
        request_id: request_id.to_owned(),
    };
    client.instances().pause_instance(request).await.map(drop)
}

async fn snapshot(client: &Client, name: &str) -> Result<(), Status> {
    let request = SnapshotInstanceRequest {
        instance_id: ID.to_owned(),
        snapshot: name.to_owned(),
        request_id: String::new(),
    };
    client
        .instances()
        .snapshot_instance(request)
        .await
        .map(drop)
}

async fn restore(client: &Client, name: &str) -> Result<u64, Status> {
    let request = RestoreInstanceRequest {
        instance_id: ID.to_owned(),
        snapshot: name.to_owned(),
        request_id: "restore-1".to_owned(),
    };
    let answer = client.instances().restore_instance(request).await?;
    Ok(answer.into_inner().restart_generation)
}

#[tokio::test]
async fn a_pause_reaches_the_node_and_is_shown_until_it_is_over() {
    let (controller, client, mut node) = stage().await;
    let refused = pause(&client, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let said = refused.message();
    assert!(
        said.contains("Pending") && said.contains("wait until"),
        "{said}"
    );

    node.all_ready().await;
    client.wait_for_words(&[(ID, "Ready")]).await;
    for _ in 0..2 {
        pause(&client, "pause-1").await.unwrap();
    }
    while node.goal.instances[0].power() != InstancePower::Paused {
        node.next_goal().await;
    }
    let epoch = node.goal.instances[0].epoch;
    let paused = InstanceStatus {
        vm_state: VmState::Paused.into(),
        ..ready(ID, epoch)
    };
    node.status(vec![paused.clone()]).await;
    client.wait_for_words(&[(ID, "Paused")]).await;
    let request = RestartInstanceRequest {
        instance_id: ID.to_owned(),
        ..RestartInstanceRequest::default()
    };
    let refused = client.instances().restart_instance(request).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("resume"), "{refused:?}");

    // It is no matter of the controller's memory.
    let seen = node.goal.incarnation;
    let (_controller, client) = controller.restart().await;
    let mut node = Node::register(&client, register("n1", seen)).await.unwrap();
    node.next_goal().await;
    assert_eq!(node.goal.instances[0].power(), InstancePower::Paused);
    node.status(vec![paused]).await;
    client.wait_for_words(&[(ID, "Paused")]).await;
    let request = ResumeInstanceRequest {
        instance_id: ID.to_owned(),
        request_id: String::new(),
    };
    client.instances().resume_instance(request).await.unwrap();
    while node.goal.instances[0].power() != InstancePower::Running {
        node.next_goal().await;
    }
    let told = client.reasons(ID).await;
    assert_eq!(
        told,
        ["InstancePlaced", "PauseRequested", "ResumeRequested"]
    );
}

#[tokio::test]
async fn a_snapshot_is_asked_for_by_name_restored_once_and_deleted() {
    let (_controller, client, mut node) = stage().await;
    node.all_ready().await;
    client.wait_for_words(&[(ID, "Ready")]).await;
    let refused = snapshot(&client, "../etc").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    snapshot(&client, "early").await.unwrap();
    while node.goal.instances[0].snapshots.is_empty() {
        node.next_goal().await;
    }
    let refused = snapshot(&client, "early").await.unwrap_err();
    assert!(refused.message().contains("delete that"), "{refused:?}");
    assert_eq!(
        client.list().await[0].snapshots[0].state(),
        SnapshotState::Taking
    );

    let refused = restore(&client, "late").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = restore(&client, "early").await.unwrap_err();
    assert!(refused.message().contains("not there yet"), "{refused:?}");
    let epoch = node.goal.instances[0].epoch;
    let taken = SnapshotStatus {
        name: "early".to_owned(),
        generation: node.goal.instances[0].snapshots[0].generation,
        state: SnapshotState::Ready.into(),
        bytes: 7,
        ..SnapshotStatus::default()
    };
    let with_it = InstanceStatus {
        snapshots: vec![taken],
        ..ready(ID, epoch)
    };
    node.status(vec![with_it]).await;
    until(
        "the snapshot",
        async || client.list().await[0].snapshots[0].bytes,
        |bytes| *bytes == 7,
    )
    .await;

    let generation = restore(&client, "early").await.unwrap();
    assert_eq!(restore(&client, "early").await.unwrap(), generation);
    while node.goal.instances[0].restart_generation != generation {
        node.next_goal().await;
    }
    let goal = &node.goal.instances[0];
    assert_eq!(goal.restart_scope(), RestartScope::Restore);
    assert_eq!(goal.restore_snapshot, "early");
    assert_eq!(goal.epoch, epoch);

    let request = DeleteSnapshotRequest {
        instance_id: ID.to_owned(),
        snapshot: "early".to_owned(),
        request_id: String::new(),
    };
    client.instances().delete_snapshot(request).await.unwrap();
    while !node.goal.instances[0].snapshots.is_empty() {
        node.next_goal().await;
    }
    assert!(client.list().await[0].snapshots.is_empty());
}
