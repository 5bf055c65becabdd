//! Tokens, certificates, and nodes that speak for themselves only.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use fabric_proto::{
    node::v1::{FetchBlobRequest, OutputKind, SendOutputRequest},
    v1::{
        CreateTokenRequest, JoinNodeRequest, JoinNodeResponse, RenewCertificateRequest,
        RevokeCertificateRequest, StreamOutputRequest,
    },
};
use fabric_trust::{
    context::{Context, Contexts},
    dial::Dial,
    identity::Role,
    key::NewKey,
    token::JoinToken,
};
use tonic::{Code, Status};

use crate::framework::*;

async fn token(local: &Client, node: &str, ttl: Duration) -> JoinToken {
    let request = CreateTokenRequest {
        node_id: node.to_owned(),
        ttl: Some(ttl.try_into().unwrap()),
        request_id: String::new(),
    };
    let answer = local
        .trust()
        .create_token(request)
        .await
        .unwrap()
        .into_inner();
    answer.token.parse().unwrap()
}

/// Joins without a certificate, as a host agent does.
async fn join(
    controller: &Controller,
    token: &JoinToken,
    node: &str,
    key: &NewKey,
    request_id: &str,
) -> Result<JoinNodeResponse, Status> {
    let server = controller.tcp.to_string().parse().unwrap();
    let channel = Dial::joining(&server, token)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let request = JoinNodeRequest {
        token: token.to_string(),
        node_id: node.to_owned(),
        csr: key.request.clone().into(),
        request_id: request_id.to_owned(),
    };
    let answer = Client::of(channel).trust().join_node(request).await;
    answer.map(tonic::Response::into_inner)
}

fn context(controller: &Controller, ca: &str, certificate: &str, key: &NewKey) -> Context {
    Context {
        server: controller.tcp.to_string().parse().unwrap(),
        ca: ca.to_owned(),
        certificate: certificate.to_owned(),
        key: key.key_pem.clone(),
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_node_joins_with_a_token_once_and_has_its_session_over_tls() {
    let (controller, local) = Controller::start().await;
    let token = token(&local, "n1", HOUR).await;
    let key = NewKey::generate().unwrap();
    let joined = join(&controller, &token, "", &key, "id").await.unwrap();
    assert_eq!(joined.node_id, "n1");

    // The answer was lost: the same request again has the same one.
    let again = join(&controller, &token, "", &key, "id").await.unwrap();
    assert_eq!(again, joined);
    // Another request is another node.
    for request_id in ["", "other"] {
        let used = join(&controller, &token, "", &key, request_id)
            .await
            .unwrap_err();
        assert_eq!(used.code(), Code::PermissionDenied);
        assert!(used.message().contains("used before"), "{}", used.message());
    }

    let context = context(&controller, &joined.ca_pem, &joined.certificate_pem, &key);
    let node = Client::over_tls(&context).await.unwrap();
    Node::join(&node, "n1").await;
    let shown = local.reasons("n1").await;
    assert_eq!(shown, ["NodeRegistered", "NodeConnected"]);
}

#[tokio::test]
async fn a_token_is_for_its_node_and_for_its_time() {
    let (controller, local) = Controller::start().await;
    let key = NewKey::generate().unwrap();
    let named = token(&local, "n1", HOUR).await;
    let wrong = join(&controller, &named, "n2", &key, "").await.unwrap_err();
    assert!(
        wrong.message().contains("for node n1, not for n2"),
        "{}",
        wrong.message()
    );
    join(&controller, &named, "n1", &key, "").await.unwrap();

    // One without a name takes nobody's.
    let free = token(&local, "", HOUR).await;
    let taken = join(&controller, &free, "n1", &key, "").await.unwrap_err();
    assert_eq!(taken.code(), Code::FailedPrecondition);
    let nameless = join(&controller, &free, "", &key, "").await.unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument);
    assert_eq!(
        join(&controller, &free, "n2", &key, "")
            .await
            .unwrap()
            .node_id,
        "n2"
    );

    let short = token(&local, "n3", Duration::from_secs(1)).await;
    until(
        "the token's end",
        async || match join(&controller, &short, "n4", &key, "").await {
            // Its name is wrong, so that it is not spent meanwhile.
            Err(status) => status.message().to_owned(),
            Ok(_) => String::new(),
        },
        |said| said.contains("has expired"),
    )
    .await;
    let unknown = JoinToken::generate(controller.ca().der()).unwrap();
    let unknown = join(&controller, &unknown, "n5", &key, "")
        .await
        .unwrap_err();
    assert!(
        unknown.message().contains("is not known"),
        "{}",
        unknown.message()
    );
}

#[tokio::test]
async fn a_token_leads_to_its_own_controller_only() {
    let (controller, local) = Controller::start().await;
    let (other, _other_local) = Controller::start().await;
    let token = token(&local, "n1", HOUR).await;
    let server = other.tcp.to_string().parse().unwrap();
    let error = Dial::joining(&server, &token)
        .unwrap()
        .connect()
        .await
        .unwrap_err();
    let said = format!("{error:?}");
    assert!(said.contains("wrong CA"), "{said}");
    drop(controller);
}

#[tokio::test]
async fn nothing_secret_is_kept_of_a_token() {
    let (controller, local) = Controller::start().await;
    let request = CreateTokenRequest {
        node_id: "n1".to_owned(),
        ttl: Some(HOUR.try_into().unwrap()),
        request_id: "id".to_owned(),
    };
    let answer = local.trust().create_token(request.clone()).await.unwrap();
    let token = answer.into_inner().token;
    // It cannot be had again.
    let again = local.trust().create_token(request).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    let data = controller.stop().await;
    let secret = token.split('-').nth(1).unwrap();
    for file in ["d/store.db", "d/store.db-wal"] {
        let Ok(bytes) = std::fs::read(data.path().join(file)) else {
            continue;
        };
        let found = bytes
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        assert!(!found, "the secret is in {file}");
    }
}

#[tokio::test]
async fn a_node_speaks_for_itself_only() {
    let (controller, local) = Controller::start().await;
    let image = local.upload_guest_os().await;
    let one = controller.client(Role::Node, "n1").await;
    let other = controller.client(Role::Node, "n2").await;

    let mut liar = Node::register(&other, register("n1", 0)).await.unwrap();
    let denied = liar.answer().await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(
        denied
            .message()
            .contains("node n2 may not speak for node n1"),
        "{denied:?}"
    );

    let (mut n1, mut n2) = (Node::join(&one, "n1").await, Node::join(&other, "n2").await);
    local.apply(&shop(1)).await.unwrap();
    let fetch = |client: &Client| {
        let request = FetchBlobRequest {
            digest: image.digest.clone(),
            offset: 0,
        };
        let mut client = client.host_agent();
        async move { client.fetch_blob(request).await.map(|_| ()) }
    };
    // Both have room; whichever has it, the other has not.
    let placed = until(
        "the instance's node",
        async || local.list().await[0].node_id.clone(),
        |node| !node.is_empty(),
    )
    .await;
    let (has, has_not, node) = if placed == "n1" {
        (&one, &other, &mut n1)
    } else {
        (&other, &one, &mut n2)
    };
    until("its image", async || fetch(has).await.is_ok(), |got| *got).await;
    assert_eq!(
        fetch(has_not).await.unwrap_err().code(),
        Code::PermissionDenied
    );

    // What an operator is shown comes from the node that was asked for it.
    let request = StreamOutputRequest {
        instance_id: "shop-web-0".to_owned(),
        kind: OutputKind::Log.into(),
        ..StreamOutputRequest::default()
    };
    let shown = local.instances().stream_output(request).await.unwrap();
    let mut shown = shown.into_inner();
    while node.goal.outputs.is_empty() {
        node.next_goal().await;
    }
    let stream_id = node.goal.outputs[0].stream_id.clone();
    let send = |client: &Client, said: &'static str| {
        let piece = SendOutputRequest {
            stream_id: stream_id.clone(),
            data: said.as_bytes().into(),
            ..SendOutputRequest::default()
        };
        let mut client = client.host_agent();
        async move { client.send_output(tokio_stream::iter([piece])).await }
    };
    let refused = send(has_not, "a lie").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    // The stream is still there for who was asked.
    send(has, "the truth").await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = shown.message().await.unwrap() {
        text.extend_from_slice(&piece.data);
    }
    assert_eq!(String::from_utf8(text).unwrap(), "the truth");
}

#[tokio::test]
async fn a_certificate_is_renewed_while_the_session_goes_on() {
    let (controller, _local) = Controller::start().await;
    // Its certificate ends soon; what it gets over the connection does not.
    let soon = controller.context(Role::Node, "n1", Duration::from_secs(2));
    let client = Client::over_tls(&soon).await.unwrap();
    let mut agent = Node::join(&client, "n1").await;
    let key = NewKey::generate().unwrap();
    let request = RenewCertificateRequest {
        csr: key.request.clone().into(),
        request_id: "renewal".to_owned(),
    };
    let renewed = client
        .trust()
        .renew_certificate(request)
        .await
        .unwrap()
        .into_inner();
    let new = context(&controller, &renewed.ca_pem, &renewed.certificate_pem, &key);
    assert_eq!(new.identity().unwrap().name, "n1");
    until(
        "the first certificate's end",
        async || {
            // It is heard all the while.
            agent.status(vec![]).await;
            Client::over_tls(&soon).await.err().unwrap_or_default()
        },
        |said| said.contains("expired"),
    )
    .await;
    // The session is the one of before, and calls beside it are taken.
    agent.status(vec![]).await;
    agent.event(1, "", "DiskCreated").await;
    agent.acknowledged(1).await;
    let fetch = client
        .host_agent()
        .fetch_blob(FetchBlobRequest::default())
        .await;
    assert_eq!(fetch.unwrap_err().code(), Code::InvalidArgument);
    Client::over_tls(&new).await.unwrap();
}

#[tokio::test]
async fn who_is_revoked_is_cut_off_and_not_let_in_again() {
    let (controller, local) = Controller::start().await;
    let (token, key) = (token(&local, "n1", HOUR).await, NewKey::generate().unwrap());
    let joined = join(&controller, &token, "", &key, "").await.unwrap();
    let context = context(&controller, &joined.ca_pem, &joined.certificate_pem, &key);
    let client = Client::over_tls(&context).await.unwrap();
    let mut agent = Node::join(&client, "n1").await;

    let request = |name: &str| RevokeCertificateRequest {
        serial: String::new(),
        name: name.to_owned(),
        request_id: String::new(),
    };
    let revoked = local
        .trust()
        .revoke_certificate(request("n1"))
        .await
        .unwrap();
    assert_eq!(revoked.into_inner().certificates.len(), 1);
    // Its session, calls on its connection, and new connections.
    agent.answer().await.unwrap_err();
    let call = client
        .host_agent()
        .fetch_blob(FetchBlobRequest::default())
        .await;
    assert_ne!(call.unwrap_err().code(), Code::InvalidArgument);
    let refused = Client::over_tls(&context).await.err().unwrap();
    assert!(refused.contains("revoked"), "{refused}");

    let unknown = local
        .trust()
        .revoke_certificate(request("n9"))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    // It is so after a restart.
    let tcp_before = controller.tcp;
    let (controller, _local) = controller.restart().await;
    let moved = Context {
        server: controller.tcp.to_string().parse().unwrap(),
        ..context
    };
    let refused = Client::over_tls(&moved).await.err().unwrap();
    assert!(refused.contains("revoked"), "{refused} ({tcp_before})");
}

#[tokio::test]
async fn a_new_data_directory_has_an_administrator_who_can_be_revoked() {
    let (controller, local) = Controller::start().await;
    let file = controller.data.path().join("d/admin.toml");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut contexts = Contexts::read(&file).unwrap().contexts;
    let context = contexts.remove("fabric").unwrap();
    assert_eq!(context.server.to_string(), controller.tcp.to_string());
    let admin = Client::over_tls(&context).await.unwrap();
    admin.list().await;
    let request = RevokeCertificateRequest {
        serial: context.identity().unwrap().serial,
        ..RevokeCertificateRequest::default()
    };
    local.trust().revoke_certificate(request).await.unwrap();
    let refused = Client::over_tls(&context).await.err().unwrap();
    assert!(refused.contains("revoked"), "{refused}");
}
