//! The real program, killed at any moment.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time;

use crate::{framework::*, program::*};

/// The service of one writer in its n-th version.
fn service(writer: usize, version: u32) -> String {
    shop(version % 3)
        .replace("shop", &format!("w{writer}"))
        .replace("/bin/true", &format!("/v{version}"))
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut program, client) = Program::start(dir.path()).await;
    client.upload_guest_os().await;
    // The newest version that each writer was told is there.
    let acknowledged: Arc<Mutex<[u32; 3]>> = Arc::default();
    let mut client = client;
    for round in 0..6_u64 {
        let writers: Vec<_> = (0..3)
            .map(|writer| tokio::spawn(write(client.clone(), writer, Arc::clone(&acknowledged))))
            .collect();
        // Any moment will do; this many give some before, in and after a commit.
        time::sleep(Duration::from_millis(40 + round * 17)).await;
        program.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        (program, client) = Program::start(dir.path()).await;
        let versions = *acknowledged.lock().unwrap();
        check(&client, versions).await;
    }
    let versions = *acknowledged.lock().unwrap();
    assert!(
        versions.iter().all(|version| *version > 0),
        "nobody wrote: {versions:?}"
    );
}

/// Applies version after version until the program is gone. The last one, whose
/// answer was lost, is applied again with the same id next time.
async fn write(client: Client, writer: usize, acknowledged: Arc<Mutex<[u32; 3]>>) {
    loop {
        let version = acknowledged.lock().unwrap()[writer] + 1;
        let id = format!("w{writer}-v{version}");
        if client
            .apply_with_id(&service(writer, version), &id)
            .await
            .is_err()
        {
            return;
        }
        acknowledged.lock().unwrap()[writer] = version;
    }
}

async fn check(client: &Client, acknowledged: [u32; 3]) {
    let services = client
        .services()
        .list_services(fabric_proto::v1::ListServicesRequest {})
        .await;
    let services = services.unwrap().into_inner().services;
    for (writer, version) in acknowledged
        .into_iter()
        .enumerate()
        .filter(|(_, version)| *version > 0)
    {
        let name = format!("w{writer}");
        let found = services
            .iter()
            .find(|service| service.name == name)
            .unwrap();
        // One more may have been done than was answered, and none twice.
        let next = version + 1;
        let is = |version: u32| {
            found.definition_toml == service(writer, version)
                && found.generation == u64::from(version)
        };
        assert!(
            is(version) || is(next),
            "{name} is not at {version} or {next}: {found:?}"
        );
        let reasons = client.reasons(&name).await.into_iter();
        let applied = reasons.filter(|reason| reason == "ServiceApplied");
        assert_eq!(
            applied.count() as u64,
            found.generation,
            "an event is missing or told twice"
        );
    }
}

#[tokio::test]
async fn it_ends_in_time_when_asked_though_calls_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let (mut program, client) = Program::start(dir.path()).await;
    let mut events = client
        .events()
        .watch_events(fabric_proto::v1::WatchEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let node = Node::join(&client, "n1").await;
    program.ask_to_end();
    let status = program.ended().await;
    assert!(status.success(), "{status}");
    while let Ok(Some(_)) = events.message().await {}
    drop(node);
    assert!(!socket(dir.path()).exists());
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let (_controller, client) = Controller::start().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(client.channel());
    for service in ["", "fabric.v1.ServiceService", "fabric.node.v1.NodeService"] {
        let request = tonic_health::pb::HealthCheckRequest {
            service: service.to_owned(),
        };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(
            status,
            tonic_health::pb::health_check_response::ServingStatus::Serving
        );
    }
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut reflection = ServerReflectionClient::new(client.channel());
    let ask = MessageRequest::FileContainingSymbol("fabric.v1.InstanceService".to_owned());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(ask),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    assert!(
        matches!(answer, MessageResponse::FileDescriptorResponse(_)),
        "{answer:?}"
    );
}
