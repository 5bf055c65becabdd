//! Every call of every service, as everyone: allowed or denied as the table says, and
//! the table says it of every call.

use std::{collections::BTreeSet, path::Path};

use fabric_controller::trust::{
    caller::Kind,
    table::{self, TABLE},
};
use fabric_trust::{dial::Dial, identity::Role, token::JoinToken};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::framework::*;

/// All calls of the services that a controller serves.
fn served() -> BTreeSet<String> {
    let sets = [
        fabric_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let mut calls = BTreeSet::new();
    for set in sets {
        for file in FileDescriptorSet::decode(set).unwrap().file {
            // What guests call is not served here.
            if file.package() == "fabric.guest.v1" {
                continue;
            }
            for service in &file.service {
                for method in &service.method {
                    let (service, method) = (service.name(), method.name());
                    calls.insert(format!("{}.{service}/{method}", file.package()));
                }
            }
        }
    }
    calls
}

#[test]
fn every_call_is_in_the_table_once_and_nothing_else_is() {
    let listed: Vec<String> = TABLE.iter().map(|rule| rule.call.to_owned()).collect();
    let set: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(set.len(), listed.len(), "a call is in it twice");
    assert_eq!(set, served());
}

#[test]
fn the_documentation_has_the_table() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../SECURITY.md");
    let text = std::fs::read_to_string(file).unwrap();
    assert!(
        text.contains(&table::markdown()),
        "put what `fabric-controller permissions` prints into SECURITY.md"
    );
}

/// Makes a call with an empty message, whatever its kind.
async fn call(client: &Client, call: &str) -> Result<(), Status> {
    let mut grpc = Grpc::new(client.channel());
    grpc.ready().await.unwrap();
    let path: PathAndQuery = format!("/{call}").parse().unwrap();
    let codec = ProstCodec::<(), ()>::default();
    let messages = Request::new(tokio_stream::once(()));
    grpc.streaming(messages, path, codec).await.map(|_| ())
}

#[tokio::test]
async fn everyone_may_do_what_the_table_says_and_nothing_else() {
    let (controller, local) = Controller::start().await;
    let server = controller.tcp.to_string().parse().unwrap();
    let token = JoinToken::generate(controller.ca().der()).unwrap();
    let nameless = Dial::joining(&server, &token).unwrap();
    let nameless = Client::of(nameless.connect().await.unwrap());
    let mut everyone = vec![(Kind::Local, local), (Kind::Joining, nameless)];
    for role in Role::ALL {
        everyone.push((
            Kind::Certified(role),
            controller.client(role, "someone").await,
        ));
    }
    for (kind, client) in &everyone {
        for rule in TABLE {
            let answer = call(client, rule.call).await;
            let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
            let denied = matches!(code, Code::PermissionDenied | Code::Unauthenticated);
            assert_eq!(
                denied,
                !rule.allows(*kind),
                "{} as {kind:?}: {answer:?}",
                rule.call
            );
            assert_ne!(code, Code::Unimplemented, "{}", rule.call);
        }
        let unknown = call(client, "fabric.v1.NodeService/Nonsense")
            .await
            .unwrap_err();
        let expected = match kind {
            Kind::Joining => Code::Unauthenticated,
            _ => Code::Unimplemented,
        };
        assert_eq!(unknown.code(), expected);
    }
}

#[tokio::test]
async fn a_denial_says_who_may() {
    let (controller, _local) = Controller::start().await;
    let reader = controller.client(Role::Reader, "bob").await;
    let denied = reader.apply(&shop(1)).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    for said in [
        "reader bob",
        "ApplyService",
        "admin, operator",
        "permissions",
    ] {
        assert!(denied.message().contains(said), "{}", denied.message());
    }
}
