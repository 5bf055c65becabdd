//! Connections that are not what they should be.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use fabric_controller::trust::ca::Ca;
use fabric_proto::v1::JoinNodeRequest;
use fabric_trust::{context::Context, dial::Dial, identity::Role, token::JoinToken};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tonic::Code;

use crate::framework::*;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn another_ca_is_told_as_such_from_both_ends() {
    let (controller, _local) = Controller::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (other, _) = Ca::open(dir.path()).unwrap();
    // The client does not know the controller.
    let strange = context(&other, controller.tcp, Role::Admin, "eve", HOUR);
    let refused = Client::over_tls(&strange).await.err().unwrap();
    assert!(
        refused.contains("wrong CA") && refused.contains("that we know"),
        "{refused}"
    );
    // The controller does not know the client.
    let forged = Context {
        ca: controller.ca().pem().to_owned(),
        ..strange
    };
    let refused = Client::over_tls(&forged).await.err().unwrap();
    assert!(
        refused.contains("wrong CA") && refused.contains("does not accept"),
        "{refused}"
    );
}

#[tokio::test]
async fn an_expired_certificate_is_told_with_what_to_do() {
    let (controller, _local) = Controller::start().await;
    let short = controller.context(Role::Reader, "bob", Duration::from_secs(1));
    let open = Client::over_tls(&short).await.unwrap();
    let refused = until(
        "its end",
        async || Client::over_tls(&short).await.err().unwrap_or_default(),
        |said| !said.is_empty(),
    )
    .await;
    for said in ["expired", "clocks", "certificate create"] {
        assert!(refused.contains(said), "{refused}");
    }
    // A connection of before does not outlive it.
    let request = fabric_proto::v1::ListNodesRequest {};
    let denied = open.nodes().list_nodes(request).await.unwrap_err();
    assert_ne!(denied.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_controller_of_another_name_is_not_believed() {
    let (controller, _local) = Controller::start().await;
    let context = Context {
        // Also this machine, by a name that is not in the certificate.
        server: format!("127.0.0.2:{}", controller.tcp.port())
            .parse()
            .unwrap(),
        ..controller.context(Role::Reader, "bob", HOUR)
    };
    let error = Client::over_tls(&context).await.err().unwrap();
    // Nobody listens at 127.0.0.2; what listens at all addresses is another test's.
    assert!(
        error.contains("refused") || error.contains("--name 127.0.0.2"),
        "{error}"
    );
}

/// What the controller says to these first bytes, until it closes.
async fn answer_to(tcp: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(tcp).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = time::timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    answer
}

#[tokio::test]
async fn without_tls_nothing_is_said() {
    let (controller, _local) = Controller::start().await;
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[0xff; 4096],
    ] {
        let answer = answer_to(controller.tcp, bytes).await;
        // At most an alert of TLS (RFC 8446, section 6): record type 21, 7 bytes.
        assert!(
            answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 21),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn tls_1_2_is_refused_as_such() {
    let (controller, _local) = Controller::start().await;
    // ClientHello of RFC 5246, section 7.4.1.2: no `supported_versions`, so 1.2 at most.
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let extensions = [
        // supported_groups: secp256r1; signature_algorithms: ecdsa_secp256r1_sha256
        &[0, 10, 0, 4, 0, 2, 0, 0x17][..],
        &[0, 13, 0, 4, 0, 2, 4, 3],
        &[0, 11, 0, 2, 1, 0],
    ]
    .concat();
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u16::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, 1];
    record.extend((length + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(length.to_be_bytes());
    record.extend(body);
    let answer = answer_to(controller.tcp, &record).await;
    // A fatal alert, protocol_version (70).
    assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]));
}

#[tokio::test]
async fn an_oversized_message_is_refused() {
    let (controller, _local) = Controller::start().await;
    let token = JoinToken::generate(controller.ca().der()).unwrap();
    let server = controller.tcp.to_string().parse().unwrap();
    let channel = Dial::joining(&server, &token)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let request = JoinNodeRequest {
        token: "x".repeat(8 << 20),
        ..JoinNodeRequest::default()
    };
    let refused = Client::of(channel)
        .trust()
        .join_node(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    let operator = controller.client(Role::Operator, "alice").await;
    let refused = operator.apply(&"x".repeat(64 << 20)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    operator.list().await;
}

#[tokio::test]
async fn one_name_has_no_more_than_its_share() {
    let (controller, _local) = Controller::start().await;
    let bob = controller.context(Role::Reader, "bob", HOUR);
    let mut open = Vec::new();
    let refused = loop {
        match Client::over_tls(&bob).await {
            Ok(client) => open.push(client),
            Err(said) => break said,
        }
    };
    assert_eq!(open.len(), 128);
    assert!(refused.contains("too many connections"), "{refused}");
    let alice = controller.client(Role::Reader, "alice").await;
    alice.list().await;
}

/// How many silent connections are opened.
const SILENT: usize = 10_000;
/// What else this process has open: the controller is in it, and takes a descriptor for
/// each connection that it keeps.
const BESIDE: usize = 3000;

/// Raises the limit on open files so far that there is room for all of them; how many
/// there is room for. Fewer than all only where the hard limit is lower and cannot be
/// raised, which is said.
fn room_for_silent() -> usize {
    let needed = u64::try_from(SILENT + BESIDE).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let raised = setrlimit(Resource::RLIMIT_NOFILE, needed.max(hard), needed.max(hard));
    if raised.is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft >= needed {
        return SILENT;
    }
    assert_eq!(soft, hard, "the soft limit stays below the hard one");
    let count = usize::try_from(soft).unwrap().saturating_sub(BESIDE);
    // Not by a macro: what those print of a test that passes is not shown.
    let said = format!(
        "skipped: {SILENT} silent connections; the hard limit on open files is {hard}, below \
         {needed}, and cannot be raised: {count} instead\n"
    );
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    count
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let count = room_for_silent();
    let (controller, _local) = Controller::start().await;
    let mut silent = Vec::with_capacity(count);
    for _ in 0..count {
        silent.push(TcpStream::connect(controller.tcp).await.unwrap());
    }
    // Someone who is known comes in, and the oldest silent ones are closed.
    let reader = controller.client(Role::Reader, "bob").await;
    reader.list().await;
    if count > 2048 {
        let mut byte = [0];
        let read = time::timeout(SOON, silent[0].read(&mut byte))
            .await
            .unwrap();
        assert!(!matches!(read, Ok(1)), "it was spoken to");
    }
    // The last one is closed, too, once it has had its time.
    let mut last = silent.pop().unwrap();
    let mut byte = [0];
    let read = time::timeout(Duration::from_secs(60), last.read(&mut byte))
        .await
        .unwrap();
    assert!(!matches!(read, Ok(1)), "it was spoken to");
}
