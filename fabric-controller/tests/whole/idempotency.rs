//! The same call with the same id has one effect.

use fabric_proto::{
    node::v1::RestartScope,
    v1::{BlobKind, DeleteBlobRequest, DeleteServiceRequest, RestartInstanceRequest},
};
use tonic::Code;

use crate::framework::*;

#[tokio::test]
async fn a_call_that_is_made_again_is_answered_as_before() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let first = client.apply_with_id(&shop(2), "id-1").await.unwrap();
    client.apply_with_id(&shop(1), "id-2").await.unwrap();
    let again = client.apply_with_id(&shop(2), "id-1").await.unwrap();
    assert_eq!(first, again);
    assert_eq!(client.list().await.len(), 1, "the second effect stands");

    let restart = RestartInstanceRequest {
        instance_id: "shop-web-0".to_owned(),
        scope: RestartScope::Vm.into(),
        request_id: "id-3".to_owned(),
    };
    let (controller, client) = {
        client
            .instances()
            .restart_instance(restart.clone())
            .await
            .unwrap();
        controller.restart().await
    };
    let again = client
        .instances()
        .restart_instance(restart)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.restart_generation, 1);
    assert_eq!(
        client.reasons("shop-web-0").await,
        ["InstanceUnplaceable", "RestartRequested"]
    );

    let delete = DeleteServiceRequest {
        name: "shop".to_owned(),
        request_id: "id-4".to_owned(),
        ..DeleteServiceRequest::default()
    };
    client
        .services()
        .delete_service(delete.clone())
        .await
        .unwrap();
    client.services().delete_service(delete).await.unwrap();
    let delete = DeleteBlobRequest {
        name: "guest-os".to_owned(),
        kind: BlobKind::Image.into(),
        request_id: "id-5".to_owned(),
    };
    client.blobs().delete_blob(delete.clone()).await.unwrap();
    client.blobs().delete_blob(delete).await.unwrap();
    drop(controller);
}

#[tokio::test]
async fn an_id_that_was_used_for_another_call_is_refused() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    client.apply_with_id(&shop(1), "id").await.unwrap();
    let status = client.apply_with_id(&shop(2), "id").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().starts_with("request_id: "),
        "{}",
        status.message()
    );
    let status = client
        .apply_with_id(&shop(2), &"x".repeat(200))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_call_that_failed_can_be_made_again() {
    let (_controller, client) = Controller::start().await;
    assert!(client.apply_with_id(&shop(1), "id").await.is_err());
    client.upload_guest_os().await;
    assert_eq!(
        client
            .apply_with_id(&shop(1), "id")
            .await
            .unwrap()
            .changes
            .len(),
        2
    );
}

#[tokio::test]
async fn of_many_calls_at_once_with_one_id_one_is_done() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    client.apply(&shop(1)).await.unwrap();
    let restart = || {
        let request = RestartInstanceRequest {
            instance_id: "shop-web-0".to_owned(),
            scope: RestartScope::Vm.into(),
            request_id: "id".to_owned(),
        };
        let mut instances = client.instances();
        async move {
            instances
                .restart_instance(request)
                .await
                .unwrap()
                .into_inner()
        }
    };
    let all = tokio::join!(restart(), restart(), restart(), restart());
    assert_eq!(
        [all.0, all.1, all.2, all.3].map(|one| one.restart_generation),
        [1; 4]
    );
}
