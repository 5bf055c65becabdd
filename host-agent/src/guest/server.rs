//! Serves `fabric.guest.v1.GuestService` to one guest.
//!
//! Takes reports in and hands the goal out; decides nothing. A newer session ends
//! the one before: after a restart of the guest agent, the old connection may hang
//! about for a while.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use fabric_proto::{
    PROTOCOL_VERSION,
    guest::v1::{
        self as wire,
        guest_service_server::{GuestService, GuestServiceServer},
        session_request::Report,
    },
    id::InstanceId,
    vmbus::SESSION_PORT,
};
use sha2::{Digest as _, Sha256};
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

use super::{
    report::{RoleReport, cut},
    throttle::throttled,
};
use crate::{
    clock::{self, Clock},
    instance::directory::InstanceDirectory,
    instance::state::GuestSaid,
    output::role_log::RoleLog,
    policy::rate::Rate,
};

/// Connections of one guest at a time: the session, and one that is about to
/// replace it, and some that hang about.
const MOST_CONNECTIONS: usize = 4;
/// Largest message from a guest.
const LARGEST_MESSAGE: usize = 128 * 1024;
/// What a connection may send ahead of us.
const WINDOW: u32 = 128 * 1024;
/// How long a guest agent may take to say hello on a connection.
const HELLO_PATIENCE: Duration = Duration::from_secs(20);
/// Random bytes for a guest's kernel.
const ENTROPY: usize = 64;

/// What a guest is to be told, but for what is new in every message.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestGoal {
    /// Which start of the machine this is for; what is heard belongs to it.
    pub boot: u32,
    /// How often it went on after it had stood still: it is told the time anew.
    pub resumes: u32,
    /// Its number.
    pub incarnation: u64,
    /// The instance, also its host name; none for a guest that is nobody, and is to
    /// become a template when its role is as far as it goes there.
    pub instance: Option<InstanceId>,
    /// How often to send a heartbeat.
    pub heartbeat: Duration,
    /// Whether the guest should power off.
    pub off: bool,
    /// The role to run; none before there is a goal.
    pub role: Option<Arc<wire::RoleSpec>>,
    /// Whether it is not told any of this yet.
    pub withheld: bool,
}

impl GuestGoal {
    fn to_wire(&self) -> wire::Goal {
        let power = if self.off {
            wire::GuestPower::Off
        } else {
            wire::GuestPower::Run
        };
        let goal = wire::Goal {
            incarnation: self.incarnation,
            heartbeat_period: self.heartbeat.try_into().ok(),
            power: power.into(),
            roles: self.role.iter().map(|role| role.as_ref().clone()).collect(),
            ..wire::Goal::default()
        };
        let Some(instance) = &self.instance else {
            return wire::Goal {
                becomes_template: true,
                ..goal
            };
        };
        wire::Goal {
            instance_id: instance.to_string(),
            hostname: instance.to_string(),
            wall_clock: Some(clock::wall_time().into()),
            entropy: entropy(),
            machine_id: machine_id(instance),
            ..goal
        }
    }
}

/// An instance's machine id: 32 hexadecimal digits that only its name decides, and
/// that say nothing of it. In the form of a random UUID, as machine-id(5) has it.
fn machine_id(instance: &InstanceId) -> String {
    let mut sum = Sha256::new();
    sum.update(b"fabric machine id\0");
    sum.update(instance.as_str());
    let mut id = [0; 16];
    for (byte, digest) in id.iter_mut().zip(sum.finalize()) {
        *byte = digest;
    }
    // RFC 9562, 5.4: version and variant.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entropy() -> Bytes {
    let mut bytes = vec![0; ENTROPY];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(ENTROPY) => bytes.into(),
        _ => Bytes::new(),
    }
}

/// What a guest said, and which start of its machine said it.
#[derive(Debug)]
pub struct Heard {
    /// Value of [`GuestGoal::boot`] when its connection was made.
    pub boot: u32,
    /// What it said.
    pub said: GuestSaid,
}

/// A guest's listener; dropping it closes it.
#[derive(Debug)]
pub struct GuestServer {
    _task: Option<AbortOnDropHandle<()>>,
}

/// What the listener works with.
#[derive(Debug, Clone)]
pub struct GuestLink {
    /// What the guest is told.
    pub goal: watch::Receiver<Option<GuestGoal>>,
    /// Where what it says goes.
    pub heard: mpsc::Sender<Heard>,
    /// Where its role's output goes.
    pub log: Arc<RoleLog>,
    /// Time, for rates.
    pub clock: Clock,
}

impl GuestServer {
    /// Listens in an instance's directory.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made.
    pub fn listen(directory: &InstanceDirectory, link: GuestLink) -> io::Result<Self> {
        let listener = directory.listen(SESSION_PORT)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let service = service(link);
        let task = tokio::spawn(async move {
            let served = tonic::transport::Server::builder()
                .initial_connection_window_size(WINDOW)
                .initial_stream_window_size(WINDOW)
                .max_concurrent_streams(4)
                .http2_max_header_list_size(16 * 1024)
                .add_service(service)
                .serve_with_incoming(throttled(listener, MOST_CONNECTIONS))
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "a guest's listener failed");
            }
        });
        Ok(Self {
            _task: Some(AbortOnDropHandle::new(task)),
        })
    }

    /// For a guest that has its link in memory, and knows by itself when that is gone.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { _task: None }
    }
}

/// What a guest's listener serves; apart from it, so that it can be served without
/// a socket.
#[must_use]
pub fn service(link: GuestLink) -> GuestServiceServer<impl GuestService> {
    let newest = watch::Sender::new(0);
    GuestServiceServer::new(Service { link, newest }).max_decoding_message_size(LARGEST_MESSAGE)
}

#[derive(Debug)]
struct Service {
    link: GuestLink,
    /// Number of the newest session.
    newest: watch::Sender<u64>,
}

#[tonic::async_trait]
impl GuestService for Service {
    type SessionStream = ReceiverStream<Result<wire::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (answers, receiver) = mpsc::channel(2);
        let mut superseded = self.newest.subscribe();
        let mut number = 0;
        self.newest.send_modify(|newest| {
            *newest += 1;
            number = *newest;
        });
        superseded.mark_unchanged();
        let boot = self.link.goal.borrow().as_ref().map_or(0, |goal| goal.boot);
        let session = Session {
            link: self.link.clone(),
            reports: request.into_inner(),
            answers,
            boot,
            // Far above what a guest agent has to say, far below what would hurt.
            rate: Rate::new(100, Duration::from_millis(50)),
        };
        let heard = self.link.heard.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = session.run() => {}
                _ = superseded.wait_for(|newest| *newest > number) => return,
            }
            if *superseded.borrow() == number {
                let said = GuestSaid::Gone;
                // It may be gone itself, with who would want to know.
                heard.send(Heard { boot, said }).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Session {
    link: GuestLink,
    reports: Streaming<wire::SessionRequest>,
    answers: mpsc::Sender<Result<wire::SessionResponse, Status>>,
    boot: u32,
    rate: Rate,
}

impl Session {
    async fn run(mut self) {
        if let Err(refusal) = self.converse().await {
            tracing::info!(
                boot = self.boot,
                message = refusal.message(),
                "a guest's session ended"
            );
            // It may be gone; then there is nobody to tell.
            self.answers.send(Err(refusal)).await.ok();
        }
    }

    async fn converse(&mut self) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_PATIENCE, self.reports.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello in time"))?
            .ok_or_else(|| Status::cancelled("it ended before a Hello"))??;
        let Some(Report::Hello(hello)) = first.report else {
            return Err(Status::failed_precondition(
                "the first message must be a Hello",
            ));
        };
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "protocol version {} is not spoken here, only {PROTOCOL_VERSION}",
                hello.protocol_version
            )));
        }
        self.hello(&hello).await?;
        self.link.goal.mark_changed();
        loop {
            tokio::select! {
                changed = self.link.goal.changed() => {
                    changed.map_err(|_| Status::unavailable("the host agent is going down"))?;
                    self.tell().await?;
                }
                report = self.reports.next() => match report {
                    None => return Ok(()),
                    Some(report) => self.take(report?).await?,
                },
            }
        }
    }

    async fn tell(&mut self) -> Result<(), Status> {
        let goal = self
            .link
            .goal
            .borrow_and_update()
            .as_ref()
            .filter(|goal| !goal.withheld)
            .map(GuestGoal::to_wire);
        let Some(goal) = goal else { return Ok(()) };
        let answer = wire::SessionResponse { goal: Some(goal) };
        self.answers
            .send(Ok(answer))
            .await
            .map_err(|_| Status::cancelled("the guest agent is gone"))
    }

    async fn take(&mut self, request: wire::SessionRequest) -> Result<(), Status> {
        match request.report {
            Some(Report::Heartbeat(_)) => self.pass_on(GuestSaid::Heartbeat).await,
            Some(Report::RoleStatus(status)) => match RoleReport::from_wire(status) {
                Some(report) if self.is_ours(&report.role) => {
                    self.pass_on(GuestSaid::Role(report)).await
                }
                _ => Ok(()),
            },
            Some(Report::Log(chunk)) => {
                self.log(&chunk);
                Ok(())
            }
            Some(Report::Goodbye(goodbye)) => {
                let reboot = goodbye.reason() == wire::GoodbyeReason::Reboot;
                self.pass_on(GuestSaid::Goodbye { reboot }).await
            }
            // What it says of the guest agent cannot change; the boot id comes late.
            Some(Report::Hello(hello)) => self.hello(&hello).await,
            None => Ok(()),
        }
    }

    async fn hello(&mut self, hello: &wire::Hello) -> Result<(), Status> {
        let boot_id = cut(&hello.boot_id);
        self.pass_on(GuestSaid::Hello { boot_id }).await
    }

    /// A guest has one role; what it says of others is of no interest.
    fn is_ours(&self, name: &str) -> bool {
        let goal = self.link.goal.borrow();
        goal.as_ref()
            .and_then(|goal| goal.role.as_ref())
            .is_some_and(|role| role.name == name)
    }

    /// Each of these costs the node a write or two; output has bounds of its own.
    async fn pass_on(&mut self, said: GuestSaid) -> Result<(), Status> {
        let wait = self.rate.wait(self.link.clock.now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        self.rate.take(self.link.clock.now());
        let heard = Heard {
            boot: self.boot,
            said,
        };
        self.link
            .heard
            .send(heard)
            .await
            .map_err(|_| Status::unavailable("the instance is being removed"))
    }

    fn log(&self, chunk: &wire::LogChunk) {
        let write = || {
            if chunk.dropped_bytes > 0 {
                let remark = format!("[fabric: {} bytes were lost here]\n", chunk.dropped_bytes);
                self.link.log.append(remark.as_bytes())?;
            }
            self.link.log.append(&chunk.data)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "cannot keep a role's output");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instance_has_one_machine_id_that_looks_like_any_other() {
        let id = |instance: &str| machine_id(&instance.parse().unwrap());
        let one = id("shop-web-0");
        assert_eq!(one, id("shop-web-0"));
        assert_ne!(one, id("shop-web-1"));
        assert_eq!(one.len(), 32);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(one.as_bytes()[12], b'4');
    }
}
