//! Rolling updates, end to end, on a node that is played by the test.

use fabric_proto::{
    node::v1::{NodeGoal, VmState},
    v1::{
        ApplyServiceRequest, BlobKind, ControlUpdateRequest, Effect, GetUpdateRequest,
        ListRevisionsRequest, Update, UpdateAction, UpdateState,
    },
};
use tonic::{Code, Status};

use crate::framework::*;

/// A service whose role runs that program, in two upgrade domains.
fn shop_with(instances: u32, program: &str, update: &str) -> String {
    let update = format!("[update]\nupgrade_domains = 2\nbake = \"0s\"\n{update}\n[sizes.tiny]");
    shop(instances)
        .replace("/bin/true", program)
        .replace("[sizes.tiny]", &update)
}

impl Client {
    async fn update(&self) -> Update {
        let request = GetUpdateRequest {
            name: "shop".to_owned(),
            ..GetUpdateRequest::default()
        };
        let answer = self.services().get_update(request).await.unwrap();
        answer.into_inner().update.unwrap_or_default()
    }

    async fn wait_for_update(&self, state: UpdateState) -> Update {
        let wished = |update: &Update| update.state() == state;
        until("the update's state", async || self.update().await, wished).await
    }

    async fn control(&self, action: UpdateAction) -> Result<Update, Status> {
        let request = ControlUpdateRequest {
            name: "shop".to_owned(),
            action: action.into(),
            ..ControlUpdateRequest::default()
        };
        let answer = self.services().control_update(request).await?;
        Ok(answer.into_inner().update.unwrap())
    }

    async fn revisions(&self) -> Vec<(u64, String)> {
        let request = ListRevisionsRequest {
            name: "shop".to_owned(),
        };
        let answer = self.services().list_revisions(request).await.unwrap();
        let revisions = answer.into_inner().revisions.into_iter();
        revisions.map(|one| (one.number, one.what)).collect()
    }
}

const OLD: [(&str, &str); 4] = [
    ("shop-web-0", "/v1"),
    ("shop-web-1", "/v1"),
    ("shop-web-2", "/v1"),
    ("shop-web-3", "/v1"),
];
const HALF: [(&str, &str); 4] = [
    ("shop-web-0", "/v2"),
    ("shop-web-1", "/v1"),
    ("shop-web-2", "/v2"),
    ("shop-web-3", "/v1"),
];
const NEW: [(&str, &str); 4] = [
    ("shop-web-0", "/v2"),
    ("shop-web-1", "/v2"),
    ("shop-web-2", "/v2"),
    ("shop-web-3", "/v2"),
];

/// Four instances that run the old program and are Ready, to be updated like this.
async fn running(client: &Client, update: &str) -> Node {
    client.upload_guest_os().await;
    let mut node = Node::join(client, "n1").await;
    client.apply(&shop_with(4, "/v1", update)).await.unwrap();
    node.goal_of(&OLD).await;
    node.all_ready().await;
    let ready = OLD.map(|(id, _)| (id, "Ready"));
    client.wait_for_words(&ready).await;
    node
}

#[tokio::test]
async fn an_update_goes_by_upgrade_domain_as_instances_become_ready() {
    let (_controller, client) = Controller::start().await;
    let mut node = running(&client, "").await;
    client.apply(&shop_with(4, "/v2", "")).await.unwrap();
    node.goal_of(&HALF).await;
    // It was Ready before, and that does not count.
    let booting = [("shop-web-2", VmState::Booting)];
    node.all_ready_but(&booting).await;
    let waits = |update: &Update| update.waits_for.contains("shop-web-2 (Booting");
    let update = until("a wait", async || client.update().await, waits).await;
    assert_eq!((update.changed, update.instances), (2, 4));
    assert_eq!(update.current.unwrap().number, 0);
    node.all_ready().await;
    node.goal_of(&NEW).await;
    assert_eq!(client.update().await.state(), UpdateState::Walking);
    node.all_ready().await;
    let update = client.wait_for_update(UpdateState::Done).await;
    assert_eq!(update.done, [0, 1]);
    assert_eq!(
        client.reasons("shop").await[1..],
        [
            "ServiceApplied",
            "UpdateDomainBegun",
            "UpdateDomainBegun",
            "UpdateFinished"
        ]
    );
}

#[tokio::test]
async fn an_update_goes_on_where_it_was_when_the_controller_comes_back() {
    let (controller, client) = Controller::start().await;
    let mut node = running(&client, "").await;
    client.apply(&shop_with(4, "/v2", "")).await.unwrap();
    node.goal_of(&HALF).await;
    let seen = node.goal.incarnation;
    drop(node);
    let (_controller, client) = controller.restart().await;
    assert_eq!(client.update().await.current.unwrap().number, 0);
    let mut node = Node::register(&client, register("n1", seen)).await.unwrap();
    node.goal_of(&HALF).await;
    node.all_ready().await;
    node.goal_of(&NEW).await;
    node.all_ready().await;
    client.wait_for_update(UpdateState::Done).await;
}

#[tokio::test]
async fn a_bad_version_goes_back_by_itself() {
    let (_controller, client) = Controller::start().await;
    let policy = "on_failure = \"rollback\"";
    let mut node = running(&client, policy).await;
    client.apply(&shop_with(4, "/v2", policy)).await.unwrap();
    node.goal_of(&HALF).await;
    node.all_ready_but(&[("shop-web-0", VmState::Failed)]).await;
    // First what has failed, and the other one of its domain when nothing else is down.
    node.goal_of(&OLD).await;
    let update = client.update().await;
    assert!(
        update.cause.contains("instance shop-web-0 has failed"),
        "{update:?}"
    );
    assert!(!update.has_previous);
    node.all_ready().await;
    client.wait_for_update(UpdateState::Done).await;
    let revisions = client.revisions().await;
    assert_eq!(revisions[0].0, 3);
    assert!(revisions[0].1.starts_with("back to the version before: "));
    // It is what it was, as the file of then would say.
    let again = client.apply(&shop_with(4, "/v1", policy)).await.unwrap();
    assert!(again.changes.is_empty(), "{again:?}");
}

#[tokio::test]
async fn a_bad_version_stops_until_an_operator_says_what_to_do() {
    let (_controller, client) = Controller::start().await;
    let mut node = running(&client, "").await;
    client.apply(&shop_with(4, "/v2", "")).await.unwrap();
    node.goal_of(&HALF).await;
    let failed = [("shop-web-0", VmState::Failed)];
    node.all_ready_but(&failed).await;
    let update = client.wait_for_update(UpdateState::Stopped).await;
    assert!(update.stopped_because.contains("shop-web-0"), "{update:?}");
    client.control(UpdateAction::Abort).await.unwrap();
    node.goal_of(&OLD).await;
    node.all_ready().await;
    client.wait_for_update(UpdateState::Done).await;
    let status = client.control(UpdateAction::Abort).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_update_is_paused_hurried_and_resumed() {
    let (_controller, client) = Controller::start().await;
    let slow = "timeout = \"1h\"";
    let mut node = running(&client, slow).await;
    let bake = |text: String| text.replace("bake = \"0s\"", "bake = \"1h\"");
    client
        .apply(&bake(shop_with(4, "/v2", slow)))
        .await
        .unwrap();
    node.goal_of(&HALF).await;
    client.control(UpdateAction::Pause).await.unwrap();
    node.all_ready().await;
    let status = client.control(UpdateAction::Advance).await.unwrap_err();
    assert!(status.message().contains("stands still"), "{status:?}");
    assert_eq!(client.update().await.waits_for, "an operator to resume it");
    client.control(UpdateAction::Resume).await.unwrap();
    let baking = |update: &Update| update.waits_for.contains("Ready for 1h");
    until("the bake time", async || client.update().await, baking).await;
    assert_eq!(programs_of(&node.goal), HALF);
    client.control(UpdateAction::Advance).await.unwrap();
    node.goal_of(&NEW).await;
}

#[tokio::test]
async fn a_second_failure_elsewhere_makes_it_wait() {
    let (_controller, client) = Controller::start().await;
    let mut node = running(&client, "").await;
    client.apply(&shop_with(4, "/v2", "")).await.unwrap();
    node.goal_of(&HALF).await;
    node.all_ready_but(&[
        ("shop-web-0", VmState::Booting),
        ("shop-web-1", VmState::Backoff),
    ])
    .await;
    client
        .wait_for_words(&[
            ("shop-web-0", "Booting"),
            ("shop-web-1", "Recovering"),
            ("shop-web-2", "Ready"),
            ("shop-web-3", "Ready"),
        ])
        .await;
    // The domain is through now, and one of the next is down already: that one is
    // changed, and 3 too, for nothing is down anywhere else.
    node.all_ready_but(&[("shop-web-1", VmState::Backoff)])
        .await;
    node.goal_of(&NEW).await;
}

#[tokio::test]
async fn a_plan_says_to_whom_what_happens_in_which_order_and_why() {
    let (_controller, client) = Controller::start().await;
    let _node = running(&client, "").await;
    let request = ApplyServiceRequest {
        definition_toml: shop_with(3, "/v2", ""),
        dry_run: true,
        ..ApplyServiceRequest::default()
    };
    let answer = client.services().apply_service(request).await.unwrap();
    let answer = answer.into_inner();
    let changes: Vec<_> = answer
        .changes
        .iter()
        .map(|one| one.subject.as_str())
        .collect();
    assert_eq!(changes, ["role web", "instance shop-web-3"]);
    assert!(
        answer.changes[0]
            .detail
            .ends_with("its instances start their role anew")
    );
    let steps: Vec<_> = answer
        .steps
        .iter()
        .map(|one| (one.upgrade_domain, one.instance_ids.join(" "), one.effect()))
        .collect();
    let anew = Effect::RestartRole;
    assert_eq!(
        steps,
        [
            (0, "shop-web-0 shop-web-2".to_owned(), anew),
            (1, "shop-web-1".to_owned(), anew),
        ]
    );
    assert_eq!(answer.steps[0].why, "command: [\"/v1\"] → [\"/v2\"]");
}

#[tokio::test]
async fn a_changed_setting_reaches_a_role_that_asks_for_it_without_a_restart() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    let with = |colour: &str| {
        let settings = format!(
            "settings_change = \"deliver\"\nsettings = {{ colour = \"{colour}\" }}\n{}",
            "command"
        );
        shop(1).replace("command", &settings)
    };
    client.apply(&with("red")).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    node.all_ready().await;
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    let answer = client.apply(&with("blue")).await.unwrap();
    assert_eq!(answer.steps[0].effect(), Effect::Deliver);
    assert_eq!(answer.steps[0].why, "settings: ~colour");
    node.next_goal().await;
    let goal = &node.goal.instances[0];
    let role = goal.role.as_ref().unwrap();
    assert_eq!(role.settings["colour"], "blue");
    assert!(role.deliver_settings);
    assert_eq!((goal.restart_generation, role.restart_generation), (0, 0));
}

#[tokio::test]
async fn services_follow_their_line_of_images_one_after_another() {
    let (_controller, client) = Controller::start().await;
    let image = async |name: &str| client.upload(BlobKind::Image, name, &vhd()).await.unwrap();
    image("guest-os/1.9").await;
    let mut node = Node::join(&client, "n1").await;
    let following = |name: &str| {
        let auto = "image = \"guest-os/1\"\nos_updates = \"auto\"";
        shop_with(1, "/v1", "")
            .replace("image = \"guest-os\"", auto)
            .replace("shop", name)
    };
    client.apply(&following("a")).await.unwrap();
    client.apply(&following("b")).await.unwrap();
    node.goal_with(&["a-web-0", "b-web-0"]).await;
    node.all_ready().await;
    client
        .wait_for_words(&[("a-web-0", "Ready"), ("b-web-0", "Ready")])
        .await;
    let old = node.goal.instances[1].image_digest.clone();
    let newest = image("guest-os/1.10").await.digest;
    for instances in [[&newest, &old], [&newest, &newest]] {
        let images = |goal: &NodeGoal| -> Vec<String> {
            let all = goal.instances.iter();
            all.map(|one| one.image_digest.clone()).collect()
        };
        while images(&node.goal) != instances.map(Clone::clone) {
            node.next_goal().await;
        }
        node.all_ready().await;
    }
    let reasons = until(
        "the end of both",
        async || [client.reasons("a").await, client.reasons("b").await],
        |[a, b]| a.last() == b.last() && a.last().is_some_and(|last| last == "UpdateFinished"),
    )
    .await;
    assert_eq!(
        reasons[1],
        [
            "ServiceApplied",
            "OsUpdateBegun",
            "UpdateDomainBegun",
            "UpdateFinished"
        ]
    );
}
