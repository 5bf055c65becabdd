//! The two slots of a service, its history and the way back.

use fabric_proto::v1::{
    ApplyServiceRequest, DeleteServiceRequest, GetServiceRequest, RollbackServiceRequest, Service,
    Slot, SwapSlotsRequest,
};
use tonic::{Code, Status};

use crate::framework::*;

impl Client {
    async fn apply_in(&self, slot: Slot, text: &str) -> Result<Service, Status> {
        let request = ApplyServiceRequest {
            definition_toml: text.to_owned(),
            slot: slot.into(),
            ..ApplyServiceRequest::default()
        };
        let answer = self.services().apply_service(request).await?;
        Ok(answer.into_inner().service.unwrap())
    }

    async fn swap(&self, request_id: &str) -> Result<Service, Status> {
        let request = SwapSlotsRequest {
            name: "shop".to_owned(),
            request_id: request_id.to_owned(),
        };
        let answer = self.services().swap_slots(request).await?;
        Ok(answer.into_inner().service.unwrap())
    }

    /// What is in which slot: instances by id.
    async fn by_slot(&self) -> Vec<(String, Slot)> {
        let all = self.list().await.into_iter();
        all.map(|one| (one.instance_id.clone(), one.slot()))
            .collect()
    }
}

fn program(program: &str) -> String {
    shop(1).replace("/bin/true", program)
}

#[tokio::test]
async fn a_swap_exchanges_the_slots_and_touches_no_instance() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    let status = client.swap("").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    client.apply(&program("/v1")).await.unwrap();
    let status = client.swap("").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    client
        .apply_in(Slot::Staging, &program("/v2"))
        .await
        .unwrap();
    let both = [("shop-web-0", "/v1"), ("shop-web-b0", "/v2")];
    node.goal_of(&both).await;
    node.all_ready().await;
    client
        .wait_for_words(&[("shop-web-0", "Ready"), ("shop-web-b0", "Ready")])
        .await;
    let before = node.goal.instances.clone();
    let slots = |production: &str, staging: &str| {
        let mut all = vec![
            (production.to_owned(), Slot::Production),
            (staging.to_owned(), Slot::Staging),
        ];
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    assert_eq!(client.by_slot().await, slots("shop-web-0", "shop-web-b0"));

    let swapped = client.swap("once").await.unwrap();
    assert!(swapped.definition_toml.contains("/v2"));
    assert_eq!(client.by_slot().await, slots("shop-web-b0", "shop-web-0"));
    // The same request again is answered and not done again.
    client.swap("once").await.unwrap();
    assert_eq!(client.by_slot().await, slots("shop-web-b0", "shop-web-0"));
    assert_eq!(
        client
            .words()
            .await
            .iter()
            .filter(|(_, word)| word == "Ready")
            .count(),
        2
    );

    // It holds when the controller comes back, and there and back is as before.
    drop(node);
    let (_controller, client) = controller.restart().await;
    assert_eq!(client.by_slot().await, slots("shop-web-b0", "shop-web-0"));
    client.swap("").await.unwrap();
    let mut node = Node::register(&client, register("n1", 0)).await.unwrap();
    node.goal_of(&both).await;
    assert_eq!(node.goal.instances.clone(), before);

    let request = DeleteServiceRequest {
        name: "shop".to_owned(),
        slot: Slot::Staging.into(),
        ..DeleteServiceRequest::default()
    };
    client.services().delete_service(request).await.unwrap();
    node.goal_of(&both[..1]).await;
}

#[tokio::test]
async fn a_service_goes_back_to_what_it_was_with_the_image_of_then() {
    let (_controller, client) = Controller::start().await;
    let first = client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    let quick = |text: String| format!("update = {{ bake = \"0s\" }}\n{text}");
    client.apply(&quick(program("/v1"))).await.unwrap();
    node.goal_of(&[("shop-web-0", "/v1")]).await;
    node.all_ready().await;
    let second = client.upload_guest_os().await;
    client.apply(&quick(program("/v2"))).await.unwrap();
    node.goal_of(&[("shop-web-0", "/v2")]).await;
    assert_eq!(node.goal.instances[0].image_digest, second.digest);
    node.all_ready().await;
    let rollback = async |to| {
        let request = RollbackServiceRequest {
            name: "shop".to_owned(),
            to,
            ..RollbackServiceRequest::default()
        };
        let answer = client.services().rollback_service(request).await;
        answer.map(|answer| answer.into_inner().to)
    };
    assert_eq!(rollback(0).await.unwrap(), 1);
    node.goal_of(&[("shop-web-0", "/v1")]).await;
    assert_eq!(node.goal.instances[0].image_digest, first.digest);
    node.all_ready().await;
    assert_eq!(rollback(2).await.unwrap(), 2);
    node.goal_of(&[("shop-web-0", "/v2")]).await;
    let status = rollback(99).await.unwrap_err();
    assert!(status.message().contains("kept are 1 to 4"), "{status:?}");
    let request = GetServiceRequest {
        name: "shop".to_owned(),
    };
    let shown = client.services().get_service(request).await.unwrap();
    assert_eq!(shown.into_inner().service.unwrap().generation, 4);
}
