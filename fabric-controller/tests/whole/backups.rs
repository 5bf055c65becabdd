//! Backups: made while everything runs, checked, and gone back to.

use std::fs;

use fabric_controller::maintenance::{self, MaintenanceError};
use fabric_proto::{
    node::v1::{InstancePower, InstanceStatus, VmState},
    v1::DrainNodeRequest,
};
use tokio::time::Instant;

use crate::{framework::*, then};

#[tokio::test]
async fn a_backup_is_made_while_the_controller_runs_and_gone_back_to() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    let epoch = node.goal.instances[0].epoch;
    let data = controller.data.path().join("d");
    let backup = controller.data.path().join("backup");
    let made = maintenance::backup(&data, &backup).unwrap();
    assert_eq!(made.problems, Vec::<String>::new());
    assert_eq!((made.records["services"], made.records["nodes"]), (1, 1));

    // What is done after it is not in it.
    client.apply(&shop(2)).await.unwrap();
    node.goal_with(&["shop-web-0", "shop-web-1"]).await;
    let seen = node.goal.incarnation;
    let in_use = maintenance::restore(&backup, &data, true).unwrap_err();
    assert!(matches!(in_use, MaintenanceError::DataDir(_)), "{in_use}");
    drop(node);
    let kept = controller.stop().await;
    let there = maintenance::restore(&backup, &data, false).unwrap_err();
    assert!(matches!(there, MaintenanceError::Replaces(_)), "{there}");
    maintenance::restore(&backup, &data, true).unwrap();
    assert!(data.join("store.db.replaced").exists());

    let (_controller, client) = Controller::start_in(kept).await;
    let mut node = Node::register(&client, register("n1", seen)).await.unwrap();
    node.status(vec![ready("shop-web-0", epoch)]).await;
    node.goal_with(&["shop-web-0"]).await;
    assert!(node.goal.incarnation > seen, "the node would refuse it");
    assert_eq!(node.goal.instances[0].power(), InstancePower::Running);
    assert!(node.goal.instances[0].epoch > 1 << 32, "one of before");
    client.apply(&shop(2)).await.unwrap();
    node.goal_with(&["shop-web-0", "shop-web-1"]).await;
    assert!(
        node.goal.instances[1].epoch > 1 << 32,
        "an epoch is given twice"
    );
}

#[tokio::test]
async fn a_backup_of_a_store_from_before_there_were_slots_is_gone_back_to() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    let seen = node.goal.incarnation;
    drop(node);
    let kept = controller.stop().await;
    let (data, backup) = (kept.path().join("d"), kept.path().join("backup"));
    then::make(&data.join("store.db"));

    let found = maintenance::check(&data, true).unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
    let made = maintenance::backup(&data, &backup).unwrap();
    assert_eq!(made.problems, Vec::<String>::new());
    for store in [&data, &backup] {
        assert_eq!(then::format(&store.join("store.db")), 1, "it was only read");
    }
    maintenance::restore(&backup, &data, true).unwrap();
    assert_eq!(then::format(&data.join("store.db")), 3);

    let (_controller, client) = Controller::start_in(kept).await;
    let mut node = Node::register(&client, register("n1", seen)).await.unwrap();
    node.status(vec![ready("shop-web-0", 1)]).await;
    node.goal_with(&["shop-web-0"]).await;
    client.apply(&shop(2)).await.unwrap();
    node.goal_with(&["shop-web-0", "shop-web-1"]).await;
}

/// A cluster of two nodes that has gone back to a backup, by which `n1` has the instance. It
/// has been moved to `n2` since. Answers the epoch that it has there, and from when on the
/// controller has run again at the earliest.
async fn moved_since_the_backup() -> (Controller, Client, u64, Instant) {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut first = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    first.goal_with(&["shop-web-0"]).await;
    first.all_ready().await;
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    let data = controller.data.path().join("d");
    let backup = controller.data.path().join("backup");
    maintenance::backup(&data, &backup).unwrap();

    let mut second = Node::join(&client, "n2").await;
    let _first = first.live();
    let request = DrainNodeRequest {
        node_id: "n1".to_owned(),
        ..DrainNodeRequest::default()
    };
    client.nodes().drain_node(request).await.unwrap();
    second.goal_with(&["shop-web-0"]).await;
    let epoch = second.goal.instances[0].epoch;
    drop(second);
    let kept = controller.stop().await;
    maintenance::restore(&backup, &data, true).unwrap();
    let started = Instant::now();
    let (controller, client) = Controller::start_in(kept).await;
    (controller, client, epoch, started)
}

#[tokio::test]
async fn what_was_moved_since_the_backup_stays_where_it_runs_and_runs_nowhere_else() {
    let (_controller, client, epoch, _) = moved_since_the_backup().await;
    let mut first = Node::register(&client, register("n1", 9)).await.unwrap();
    first.status(vec![]).await;
    first.goal_with(&[]).await;
    let mut second = Node::register(&client, register("n2", 9)).await.unwrap();
    second.status(vec![ready("shop-web-0", epoch)]).await;
    second.goal_with(&["shop-web-0"]).await;
    assert!(second.goal.instances[0].epoch > 1 << 32);
    let _live = (first.live(), second.live());
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    assert_eq!(client.list().await[0].node_id, "n2");
    assert_eq!(
        client.reasons("shop-web-0").await.last().unwrap(),
        "InstanceFound"
    );
}

#[tokio::test]
async fn what_ran_nowhere_at_a_restore_is_kept_stopped_until_all_nodes_can_have_spoken() {
    let (_controller, client, epoch, started) = moved_since_the_backup().await;
    let mut second = Node::register(&client, register("n2", 9)).await.unwrap();
    second.status(vec![down("shop-web-0", epoch)]).await;
    second.goal_with(&["shop-web-0"]).await;
    let held = &second.goal.instances[0];
    assert_eq!((held.power(), held.epoch), (InstancePower::Stopped, epoch));
    let _live = second.live_as(|goal| match goal.power() {
        InstancePower::Running => ready_as(goal),
        _ => down(&goal.instance_id, goal.epoch),
    });
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    assert!(started.elapsed() >= LEASE.replace_after(), "too early");
    let shown = &client.list().await[0];
    assert_eq!(
        (shown.node_id.as_str(), shown.epoch > 1 << 32),
        ("n2", true)
    );
}

fn down(instance_id: &str, epoch: u64) -> InstanceStatus {
    InstanceStatus {
        vmm_pid: 0,
        vm_state: VmState::Backoff.into(),
        ..ready(instance_id, epoch)
    }
}

#[tokio::test]
async fn what_is_not_sound_is_named_and_not_restored() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let data = controller.data.path().join("d");
    let backup = controller.data.path().join("backup");
    maintenance::backup(&data, &backup).unwrap();
    let again = maintenance::backup(&data, &backup).unwrap_err();
    assert!(matches!(again, MaintenanceError::Exists(_)), "{again}");

    let image = fs::read_dir(backup.join("blobs")).unwrap().next().unwrap();
    let image = image.unwrap().path();
    let mut bytes = fs::read(&image).unwrap();
    bytes[100] ^= 1;
    fs::write(&image, bytes).unwrap();
    let quick = maintenance::check(&backup, false).unwrap();
    assert_eq!(quick.problems, Vec::<String>::new(), "not looked into");
    let whole = maintenance::check(&backup, true).unwrap();
    assert!(whole.problems[0].starts_with("image guest-os: its file is sha256:"));
    let place = controller.data.path().join("new");
    let refused = maintenance::restore(&backup, &place, false).unwrap_err();
    assert!(refused.to_string().contains("is not sound"), "{refused}");
    assert!(!place.exists(), "something was touched");
    let nothing = maintenance::check(&place, false).unwrap_err();
    assert!(matches!(nothing, MaintenanceError::NoStore(_)));
}
