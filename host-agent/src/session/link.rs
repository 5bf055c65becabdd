//! The session with the controller, opened again for ever.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use fabric_proto::{
    PROTOCOL_VERSION,
    id::NodeId,
    node::v1::{
        self as wire, node_service_client::NodeServiceClient, session_request::Report,
        session_response::Message,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, transport::Channel};

use crate::{
    events::EventLog,
    files,
    instance::{disks::Workshop, status::Board},
    lease::Lease,
    node::View,
};

/// How long the controller may take to take a message.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the controller is left alone that is not there, at most.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Reports on their way.
const QUEUE: usize = 64;

/// Who this node is, as it tells the controller.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name.
    pub node: NodeId,
    /// What it has.
    pub inventory: wire::Inventory,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// The link to the controller.
#[derive(Debug)]
pub struct Link {
    /// Whether the controller is on this machine.
    pub local: bool,
    /// Who we are.
    pub identity: Identity,
    /// The way to the controller.
    pub client: NodeServiceClient<Channel>,
    /// Where goals go.
    pub goals: mpsc::Sender<wire::NodeGoal>,
    /// What the node is doing.
    pub view: View,
    /// Reports on instances.
    pub board: Arc<Board>,
    /// What the node has in its cache, and what happened.
    pub workshop: Arc<Workshop>,
    /// What is asked for with every status.
    pub lease: Arc<Lease>,
    /// The data directory.
    pub data: PathBuf,
}

impl Link {
    /// Keeps a session for ever.
    pub async fn run(mut self) {
        let mut waits = self.waits();
        loop {
            let mut useful = false;
            let request = self.lease.request();
            let status = match self.session(&mut useful).await {
                Ok(()) => Status::unavailable("the controller ended the session"),
                Err(status) => status,
            };
            if useful {
                waits = self.waits();
            } else if self.local && nobody_listens(&status) {
                self.lease.nobody_grants(request);
            }
            let wait = waits.next().unwrap_or(LONGEST_WAIT);
            let wait = self.often_enough(wait);
            if useful {
                tracing::warn!(code = ?status.code(), message = status.message(), ?wait,
                    "lost the controller; everything goes on without it");
            } else {
                tracing::debug!(code = ?status.code(), message = status.message(), ?wait,
                    "no session with the controller");
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// So long, or as long as there is time for if a lease is to be got before the last
    /// one ends.
    fn often_enough(&self, wait: Duration) -> Duration {
        let lease = *self.lease.length().borrow();
        lease.map_or(wait, |length| wait.min(length / 4))
    }

    fn waits(&self) -> backon::ExponentialBackoff {
        ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(LONGEST_WAIT)
            .without_max_times()
            .build()
    }

    /// One session, until it breaks. It was useful if a goal came.
    async fn session(&mut self, useful: &mut bool) -> Result<(), Status> {
        let (reports, receiver) = mpsc::channel(QUEUE);
        let up = Up { reports };
        up.send(Report::Register(self.register())).await?;
        let answers = self.client.session(ReceiverStream::new(receiver));
        let answers = tokio::time::timeout(PATIENCE, answers)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer"))??;
        let mut answers = answers.into_inner();

        let mut board = self.board.subscribe();
        let events = Arc::clone(&self.workshop.events);
        let mut newest = events.subscribe();
        let mut applied = self.view.applied.clone();
        let mut period = self.view.heartbeat.clone();
        let mut sent_event = 0;
        board.mark_changed();
        newest.mark_changed();
        let mut heartbeat = tokio::time::Instant::now();
        loop {
            tokio::select! {
                answer = answers.next() => match answer {
                    None => return Ok(()),
                    Some(answer) => match self.take(answer?).await? {
                        true => *useful = true,
                        // It asks for no answer.
                        false => continue,
                    },
                },
                _ = board.changed() => {}
                _ = applied.changed() => {}
                _ = period.changed() => {}
                _ = newest.changed() => {
                    sent_event = send_events(&up, &events, sent_event).await?;
                    continue;
                }
                () = tokio::time::sleep_until(heartbeat) => {}
            }
            board.mark_unchanged();
            up.send(Report::Status(self.status())).await?;
            let rest = self.often_enough(*period.borrow_and_update());
            heartbeat = tokio::time::Instant::now() + rest;
        }
    }

    /// Whether it was a goal.
    async fn take(&self, answer: wire::SessionResponse) -> Result<bool, Status> {
        match answer.message {
            Some(Message::Goal(goal)) => {
                let gone = |_| Status::cancelled("the node is going down");
                self.goals.send(goal).await.map_err(gone)?;
                Ok(true)
            }
            Some(Message::AcknowledgedEvent(sequence)) => {
                self.workshop.events.acknowledge(sequence);
                Ok(false)
            }
            Some(Message::Lease(grant)) => {
                if grant.incarnation <= *self.view.applied.borrow() {
                    self.lease.granted(grant.request);
                }
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn register(&self) -> wire::Register {
        wire::Register {
            node_id: self.identity.node.to_string(),
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            inventory: Some(self.identity.inventory.clone()),
            seen_incarnation: *self.view.applied.borrow(),
            labels: self.identity.labels.clone(),
        }
    }

    /// What instances here can be copies of.
    fn templates(&self) -> Vec<wire::Template> {
        let there = self.workshop.templates.iter().flat_map(|all| all.there());
        there
            .map(|one| wire::Template {
                image_digest: one.image,
                vcpus: one.vcpus.into(),
                memory_bytes: u64::from(one.memory_mib) << 20,
            })
            .collect()
    }

    fn status(&self) -> wire::NodeStatus {
        let cached = self.workshop.blobs.digests();
        wire::NodeStatus {
            applied_incarnation: *self.view.applied.borrow(),
            instances: self.board.subscribe().borrow().values().cloned().collect(),
            cached_digests: cached.iter().map(ToString::to_string).collect(),
            disk_free_bytes: files::free_bytes(&self.data).unwrap_or(0),
            lease_request: self.lease.request(),
            templates: self.templates(),
        }
    }
}

/// Whether the connection was refused, or there is no socket: no controller runs there.
fn nobody_listens(status: &Status) -> bool {
    use std::error::Error as _;
    let causes = std::iter::successors(status.source(), |cause| (*cause).source());
    causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| {
            let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
            kinds.contains(&error.kind())
        })
}

async fn send_events(up: &Up, events: &EventLog, after: u64) -> Result<u64, Status> {
    let mut last = after;
    for event in events.after(after) {
        last = event.sequence;
        up.send(Report::Event(event.to_wire())).await?;
    }
    Ok(last)
}

struct Up {
    reports: mpsc::Sender<wire::SessionRequest>,
}

impl Up {
    async fn send(&self, report: Report) -> Result<(), Status> {
        let request = wire::SessionRequest {
            report: Some(report),
        };
        tokio::time::timeout(PATIENCE, self.reports.send(request))
            .await
            .map_err(|_| Status::deadline_exceeded("the controller takes no reports"))?
            .map_err(|_| Status::unavailable("the session is closed"))
    }
}
