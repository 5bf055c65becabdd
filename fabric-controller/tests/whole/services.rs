//! From a service file to Ready and back to nothing.

use fabric_proto::{
    node::v1::{InstanceStatus, RestartScope, VmState},
    v1::{
        ApplyServiceRequest, DeleteServiceRequest, GetServiceRequest, WatchEventsRequest,
        WatchInstancesRequest,
    },
};
use tonic::Code;

use crate::framework::*;

#[tokio::test]
async fn a_service_goes_from_its_file_to_ready_and_away() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;

    let answer = client.apply(&shop(2)).await.unwrap();
    assert_eq!(answer.changes.len(), 3);
    node.goal_with(&["shop-web-0", "shop-web-1"]).await;
    client
        .wait_for_words(&[("shop-web-0", "Pending"), ("shop-web-1", "Pending")])
        .await;

    let starting = InstanceStatus {
        instance_id: "shop-web-0".to_owned(),
        epoch: node.goal.instances[0].epoch,
        vm_state: VmState::Booting.into(),
        ..InstanceStatus::default()
    };
    node.status(vec![starting]).await;
    client
        .wait_for_words(&[("shop-web-0", "Booting"), ("shop-web-1", "Pending")])
        .await;
    node.all_ready().await;
    client
        .wait_for_words(&[("shop-web-0", "Ready"), ("shop-web-1", "Ready")])
        .await;
    let shown = client
        .services()
        .get_service(GetServiceRequest {
            name: "shop".to_owned(),
        })
        .await;
    let shown = shown.unwrap().into_inner();
    assert_eq!(shown.service.unwrap().roles[0].ready, 2);
    assert_eq!(shown.instances[0].status.as_ref().unwrap().vmm_pid, 42);

    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    client
        .wait_for_words(&[("shop-web-0", "Ready"), ("shop-web-1", "Stopping")])
        .await;
    node.all_ready().await;
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;

    let request = DeleteServiceRequest {
        name: "shop".to_owned(),
        request_id: String::new(),
        ..DeleteServiceRequest::default()
    };
    client.services().delete_service(request).await.unwrap();
    node.goal_with(&[]).await;
    client.wait_for_words(&[("shop-web-0", "Stopping")]).await;
    node.status(vec![]).await;
    client.wait_for_words(&[]).await;
    assert_eq!(
        client.reasons("shop-web-0").await,
        ["InstancePlaced", "InstanceRemoved"]
    );
    assert_eq!(
        client.reasons("shop").await,
        ["ServiceApplied", "ServiceApplied", "ServiceDeleted"]
    );
}

#[tokio::test]
async fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let request = ApplyServiceRequest {
        definition_toml: shop(1),
        dry_run: true,
        ..ApplyServiceRequest::default()
    };
    let answer = client
        .services()
        .apply_service(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.changes.len(), 2);
    assert!(client.list().await.is_empty());
    let status = client
        .services()
        .get_service(GetServiceRequest {
            name: "shop".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn applying_the_same_again_changes_nothing() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    client.apply(&shop(1)).await.unwrap();
    let again = client.apply(&shop(1)).await.unwrap();
    assert!(again.changes.is_empty());
    assert_eq!(again.service.unwrap().generation, 1);
}

#[tokio::test]
async fn a_wrong_file_is_refused_with_its_line() {
    let (_controller, client) = Controller::start().await;
    let text = shop(1).replace("\"tiny\"\ninst", "\"Smal\"\ninst");
    let status = client.apply(&text).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let expected = "service.toml:8: role \"web\": size \"Smal\" is not known; sizes are ";
    assert!(
        status.message().starts_with(expected),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn an_image_that_is_not_there_is_named_with_what_to_do() {
    let (_controller, client) = Controller::start().await;
    let status = client.apply(&shop(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let said = status.message();
    assert!(
        said.contains("role \"web\": there is no image \"guest-os\""),
        "{said}"
    );
    assert!(said.contains("fabctl image upload"), "{said}");
}

#[tokio::test]
async fn a_restart_reaches_the_node_with_its_scope() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    let restart = async |scope| client.restart("shop-web-0", scope).await;
    assert_eq!(restart(RestartScope::Role).await, 1);
    node.next_goal().await;
    let goal = &node.goal.instances[0];
    assert_eq!(
        (goal.restart_generation, goal.restart_scope()),
        (1, RestartScope::Role)
    );
    assert_eq!(goal.role.as_ref().unwrap().restart_generation, 1);
    assert_eq!(restart(RestartScope::Reimage).await, 2);
    node.next_goal().await;
    let goal = &node.goal.instances[0];
    assert_eq!(
        (goal.restart_generation, goal.restart_scope()),
        (2, RestartScope::Reimage)
    );
    assert_eq!(goal.role.as_ref().unwrap().restart_generation, 1);
}

#[tokio::test]
async fn a_changed_role_is_delivered_and_a_changed_image_is_a_fresh_disk() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    node.all_ready().await;
    let first = node.goal.instances[0].clone();
    client
        .apply(&shop(1).replace("/bin/true", "/bin/false"))
        .await
        .unwrap();
    node.next_goal().await;
    let second = node.goal.instances[0].clone();
    assert_eq!(second.role.as_ref().unwrap().command, ["/bin/false"]);
    assert_eq!((second.epoch, second.restart_generation), (first.epoch, 1));
    assert_eq!(second.restart_scope(), RestartScope::Role);
    node.all_ready().await;

    let image = client.upload_guest_os().await;
    let answer = client
        .apply(&shop(1).replace("/bin/true", "/bin/false"))
        .await
        .unwrap();
    assert!(
        answer.changes[0]
            .detail
            .contains("start anew on fresh disks"),
        "{answer:?}"
    );
    node.next_goal().await;
    let third = node.goal.instances[0].clone();
    assert_eq!(third.image_digest, image.digest);
    assert!(third.epoch > second.epoch);
    assert_eq!(
        (third.restart_generation, third.restart_scope()),
        (2, RestartScope::Reimage)
    );
}

#[tokio::test]
async fn an_instance_that_has_no_room_waits_and_says_why() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    client.apply(&shop(1)).await.unwrap();
    client.wait_for_words(&[("shop-web-0", "Pending")]).await;
    assert_eq!(
        client.list().await[0].reason,
        "there is no node; start a host agent"
    );
    let mut node = Node::join(&client, "n1").await;
    node.goal_with(&["shop-web-0"]).await;
    let big = shop(2).replace("128MiB", "1500MiB").replace("shop", "big");
    client.apply(&big).await.unwrap();
    until(
        "one placed, one not",
        async || client.list().await,
        |all| {
            all.iter()
                .filter(|one| one.reason.contains("no node has room"))
                .count()
                == 1
        },
    )
    .await;
    let unplaceable = client.all_events().await;
    assert_eq!(
        unplaceable
            .iter()
            .filter(|one| one.reason == "InstanceUnplaceable")
            .count(),
        2
    );
}

#[tokio::test]
async fn watchers_see_instances_come_change_and_go() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    let mut watch = client
        .instances()
        .watch_instances(WatchInstancesRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut events = client
        .events()
        .watch_events(WatchEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    node.all_ready().await;
    loop {
        let change = watch.message().await.unwrap().unwrap();
        if change.instance.unwrap().state == "Ready" {
            break;
        }
    }
    let request = DeleteServiceRequest {
        name: "shop".to_owned(),
        request_id: String::new(),
        ..DeleteServiceRequest::default()
    };
    client.services().delete_service(request).await.unwrap();
    node.goal_with(&[]).await;
    node.status(vec![]).await;
    while !watch.message().await.unwrap().unwrap().deleted {}
    let mut last = 0;
    loop {
        let event = events.message().await.unwrap().unwrap().event.unwrap();
        assert!(event.cursor > last);
        last = event.cursor;
        if event.reason == "InstanceRemoved" {
            break;
        }
    }
}

#[tokio::test]
async fn a_service_that_comes_again_before_it_was_gone_is_made_anew() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    let first = node.goal.instances[0].epoch;
    let request = DeleteServiceRequest {
        name: "shop".to_owned(),
        request_id: String::new(),
        ..DeleteServiceRequest::default()
    };
    client.services().delete_service(request).await.unwrap();
    node.goal_with(&[]).await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    assert!(node.goal.instances[0].epoch > first);
}
