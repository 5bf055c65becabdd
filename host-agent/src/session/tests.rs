//! The link over a controller that is this test.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use fabric_proto::node::v1::{
    self as wire,
    node_service_server::{NodeService, NodeServiceServer},
    session_request::Report,
    session_response::Message,
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::{
    blobs::{BlobCache, source::BlobSource as _},
    events::{EventLog, Reason},
    instance::{disks::Workshop, status::Board, turn::Turns},
    lease::Lease,
    node::View,
};

const PATIENCE: Duration = Duration::from_secs(20);
const HEARTBEAT: Duration = Duration::from_millis(100);

/// One session, as the controller sees it.
struct Session {
    reports: Streaming<wire::SessionRequest>,
    answers: mpsc::Sender<Result<wire::SessionResponse, Status>>,
}

impl Session {
    async fn report(&mut self) -> Report {
        let report = tokio::time::timeout(PATIENCE, self.reports.next())
            .await
            .expect("in time");
        report.expect("a report").unwrap().report.unwrap()
    }

    async fn register(&mut self) -> wire::Register {
        let Report::Register(register) = self.report().await else {
            panic!("not a Register")
        };
        register
    }

    async fn event(&mut self) -> wire::NodeEvent {
        loop {
            if let Report::Event(event) = self.report().await {
                return event;
            }
        }
    }

    async fn status(&mut self) -> wire::NodeStatus {
        loop {
            if let Report::Status(status) = self.report().await {
                return status;
            }
        }
    }

    async fn say(&self, message: Message) {
        self.answers
            .send(Ok(wire::SessionResponse {
                message: Some(message),
            }))
            .await
            .unwrap();
    }
}

struct Service(mpsc::Sender<Session>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl NodeService for Service {
    type SessionStream = ReceiverStream<Result<wire::SessionResponse, Status>>;
    type FetchBlobStream = Answers<wire::FetchBlobResponse>;

    async fn session(
        &self,
        request: Request<Streaming<wire::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (answers, receiver) = mpsc::channel(8);
        let session = Session {
            reports: request.into_inner(),
            answers,
        };
        self.0
            .send(session)
            .await
            .map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fetch_blob(
        &self,
        request: Request<wire::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let offset = request.into_inner().offset;
        let pieces = [&b"one "[..], b"two"].map(|data| {
            Ok(wire::FetchBlobResponse {
                total_bytes: offset,
                data: data.into(),
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn send_output(
        &self,
        _request: Request<Streaming<wire::SendOutputRequest>>,
    ) -> Result<Response<wire::SendOutputResponse>, Status> {
        Ok(Response::new(wire::SendOutputResponse {}))
    }
}

/// A node with a link, and the place where its controller would be.
struct Stage {
    data: TempDir,
    board: Arc<Board>,
    workshop: Arc<Workshop>,
    lease: Arc<Lease>,
    goals: mpsc::Receiver<wire::NodeGoal>,
    applied: tokio::sync::watch::Sender<u64>,
    heartbeat: tokio::sync::watch::Sender<Duration>,
    _link: AbortOnDropHandle<()>,
}

impl Stage {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let client = connect(data.path());
        let source = Arc::new(ControllerBlobs {
            client: client.clone(),
        });
        let workshop = Arc::new(Workshop {
            blobs: BlobCache::open(data.path().join("blobs"), source).unwrap(),
            events: Arc::new(EventLog::open(data.path()).unwrap()),
            templates: None,
            turns: Turns::of_this_machine(),
        });
        let board = Arc::new(Board::default());
        let (applied, applied_view) = tokio::sync::watch::channel(7);
        let (heartbeat, heartbeat_view) = tokio::sync::watch::channel(HEARTBEAT);
        let view = View {
            applied: applied_view,
            heartbeat: heartbeat_view,
            outputs: tokio::sync::watch::channel(Vec::new()).1,
            shown: tokio::sync::watch::channel(BTreeMap::new()).1,
        };
        let (sender, goals) = mpsc::channel(4);
        let lease = crate::lease::unneeded();
        let link = Link {
            local: true,
            lease: Arc::clone(&lease),
            identity: Identity {
                node: "node-1".parse().unwrap(),
                inventory: wire::Inventory {
                    cpus: 2,
                    ..wire::Inventory::default()
                },
                labels: BTreeMap::new(),
            },
            client,
            goals: sender,
            view,
            board: Arc::clone(&board),
            workshop: Arc::clone(&workshop),
            data: data.path().to_owned(),
        };
        let link = AbortOnDropHandle::new(tokio::spawn(link.run()));
        Self {
            data,
            board,
            workshop,
            lease,
            goals,
            applied,
            heartbeat,
            _link: link,
        }
    }

    /// A controller, up from now on until its handle is dropped.
    fn controller(&self) -> (mpsc::Receiver<Session>, oneshot::Sender<()>) {
        let path = self.data.path().join("controller.sock");
        std::fs::remove_file(&path).ok();
        let listener = UnixListenerStream::new(UnixListener::bind(path).unwrap());
        let (sender, sessions) = mpsc::channel(4);
        let (handle, dropped) = oneshot::channel();
        let server = tonic::transport::Server::builder()
            .add_service(NodeServiceServer::new(Service(sender)))
            .serve_with_incoming_shutdown(listener, async { _ = dropped.await });
        tokio::spawn(async { server.await.unwrap() });
        (sessions, handle)
    }
}

/// A client of the controller whose socket is in that directory.
fn connect(directory: &std::path::Path) -> NodeServiceClient<Channel> {
    let at = crate::serve::unix(directory.join("controller.sock"));
    client(channel(&Dial::new(&at).unwrap()))
}

async fn next(sessions: &mut mpsc::Receiver<Session>) -> Session {
    tokio::time::timeout(PATIENCE, sessions.recv())
        .await
        .expect("a session in time")
        .unwrap()
}

#[tokio::test]
async fn the_controller_is_told_who_we_are_and_what_is_and_gives_a_goal() {
    let mut stage = Stage::new();
    let (mut sessions, server) = stage.controller();
    let mut session = next(&mut sessions).await;
    let register = session.register().await;
    assert_eq!(
        (register.node_id.as_str(), register.seen_incarnation),
        ("node-1", 7)
    );
    assert_eq!(register.inventory.unwrap().cpus, 2);
    assert_eq!(session.status().await.applied_incarnation, 7);

    session
        .say(Message::Goal(wire::NodeGoal {
            incarnation: 8,
            ..Default::default()
        }))
        .await;
    assert_eq!(stage.goals.recv().await.unwrap().incarnation, 8);
    stage.applied.send_replace(8);
    while session.status().await.applied_incarnation != 8 {}

    let report = wire::InstanceStatus {
        instance_id: "a".to_owned(),
        ..Default::default()
    };
    stage.board.put(&"a".parse().unwrap(), report.clone());
    while session.status().await.instances != std::slice::from_ref(&report) {}
    drop(server);
}

#[tokio::test]
async fn events_are_sent_again_until_they_are_acknowledged() {
    let stage = Stage::new();
    for number in 0..3 {
        stage
            .workshop
            .events
            .tell("a", Reason::VmmStarted, &format!("number {number}"), false);
    }
    let (mut sessions, server) = stage.controller();
    let mut session = next(&mut sessions).await;
    for sequence in 1..=3 {
        assert_eq!(session.event().await.sequence, sequence);
    }
    session.say(Message::AcknowledgedEvent(2)).await;
    // The acknowledgement has arrived once a later message has been answered.
    while stage.workshop.events.after(0).len() != 1 {
        tokio::task::yield_now().await;
    }
    drop(session);
    let mut session = next(&mut sessions).await;
    assert_eq!(session.event().await.sequence, 3);
    stage
        .workshop
        .events
        .tell("a", Reason::VmmExited, "later", true);
    let event = session.event().await;
    assert_eq!(
        (event.sequence, event.reason.as_str(), event.warning),
        (4, "VmmExited", true)
    );
    drop(server);
}

#[tokio::test]
async fn a_controller_that_comes_late_or_comes_back_is_found() {
    let stage = Stage::new();
    // Long enough for attempts to fail.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (mut sessions, server) = stage.controller();
    let mut session = next(&mut sessions).await;
    session.register().await;
    drop(server);
    drop(session);
    drop(sessions);
    let (mut sessions, server) = stage.controller();
    next(&mut sessions).await.register().await;
    drop(server);
}

#[tokio::test]
async fn blobs_come_in_pieces() {
    let stage = Stage::new();
    let (_sessions, server) = stage.controller();
    let source = ControllerBlobs {
        client: connect(stage.data.path()),
    };
    let digest = fabric_proto::id::Digest::of_sha256(&[0; 32]);
    let pieces: Vec<_> = source.fetch(&digest, 5).await.unwrap().collect().await;
    let bytes: Vec<u8> = pieces
        .into_iter()
        .flat_map(|piece| piece.unwrap())
        .collect();
    assert_eq!(bytes, b"one two");
    drop(server);
}

#[tokio::test]
async fn a_lease_is_asked_for_with_every_status_and_counts_for_the_goal_that_is_followed() {
    let stage = Stage::new();
    stage.lease.require(Some(PATIENCE));
    let (mut sessions, _up) = stage.controller();
    let mut session = sessions.recv().await.unwrap();
    session.register().await;
    let status = session.status().await;
    assert!(status.lease_request > 0);
    let grant = |incarnation| {
        Message::Lease(wire::LeaseGrant {
            request: status.lease_request,
            incarnation,
        })
    };
    session.say(grant(8)).await;
    // What comes after it is taken after it.
    session.say(Message::AcknowledgedEvent(0)).await;
    session.status().await;
    assert!(stage.lease.is_over(), "that goal is still to come");
    let mut over = stage.lease.watch();
    session.say(grant(7)).await;
    over.turned().await;
    assert!(!stage.lease.is_over());
}

#[tokio::test]
async fn a_lease_is_no_reason_to_report_again() {
    let stage = Stage::new();
    stage.lease.require(Some(PATIENCE));
    let (mut sessions, _up) = stage.controller();
    let mut session = sessions.recv().await.unwrap();
    session.register().await;
    let first = tokio::time::Instant::now();
    for _ in 0..6 {
        let request = session.status().await.lease_request;
        let grant = wire::LeaseGrant {
            request,
            incarnation: 7,
        };
        session.say(Message::Lease(grant)).await;
    }
    assert!(first.elapsed() >= HEARTBEAT * 4, "it spins");
}

#[tokio::test]
async fn a_lease_that_is_shorter_than_the_time_between_reports_is_kept() {
    let stage = Stage::new();
    let length = Duration::from_secs(1);
    stage.heartbeat.send_replace(PATIENCE * 3);
    stage.lease.require(Some(length));
    let (mut sessions, _up) = stage.controller();
    let mut session = sessions.recv().await.unwrap();
    session.register().await;
    let first = tokio::time::Instant::now();
    while first.elapsed() < length * 3 {
        let asked = tokio::time::timeout(length, session.status()).await;
        let request = asked.expect("it asks before its lease ends").lease_request;
        let grant = wire::LeaseGrant {
            request,
            incarnation: 7,
        };
        session.say(Message::Lease(grant)).await;
    }
}

#[tokio::test]
async fn while_no_controller_runs_on_this_machine_a_lease_goes_on() {
    let stage = Stage::new();
    let length = Duration::from_millis(1_500);
    stage.lease.require(Some(length));
    stage.lease.granted(stage.lease.request());
    let mut over = stage.lease.watch();
    let ended = tokio::time::timeout(length * 3, over.turned()).await;
    assert!(ended.is_err(), "it ended, though nothing can be moved");
}
