//! The guest agent's conversation with its host agent: connects, says what waits
//! in the [`Outbox`], hands goals on, and connects again for ever.
//!
//! It knows the wire and nothing of roles.

mod alarm;
pub mod channel;
pub mod logs;
pub mod outbox;

use std::{
    fmt, io,
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use fabric_proto::{
    guest::v1::{Hello, guest_service_client::GuestServiceClient},
    vmbus::{HOST_CID, SESSION_PORT, TEMPLATE_PORT},
};
use hyper::http::Uri;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::mpsc::Sender,
    time::{error::Elapsed, sleep, timeout},
};
use tokio_vsock::{VsockAddr, VsockStream};
use tonic::Status;

use self::{alarm::Alarm, channel::Channel, outbox::Outbox};
use crate::{console, model::Goal};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for the first goal, which the contract says comes at once.
const FIRST_GOAL: Duration = Duration::from_secs(10);
/// Waits between attempts: from the first to the second, doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A session that was shorter is not followed by the next at once.
const SHORT: Duration = Duration::from_secs(1);
/// Longest message taken from the host agent, in bytes.
const LONGEST_MESSAGE: usize = 1 << 20;

/// Where the host agent is.
#[derive(Debug, Clone)]
pub enum Address {
    /// The VMBus of this guest.
    Vmbus,
    /// A unix socket, for trying the guest agent outside a guest.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmbus => write!(f, "vsock:{HOST_CID}:{SESSION_PORT}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What the session tells the rest of the guest agent.
#[derive(Debug)]
pub enum Event {
    /// The host agent has answered: a session is on. All that it should know must
    /// be said now.
    Up,
    /// The host agent says what should be.
    Goal(Box<Goal>),
    /// The session, or the attempt at one, is over.
    Down,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("no connection within {} s", CONNECT.as_secs())]
    NoConnection(#[source] Elapsed),
    #[error("cannot speak HTTP/2")]
    Http(#[source] hyper::Error),
    #[error("no goal within {} s", FIRST_GOAL.as_secs())]
    NoGoal(#[source] Elapsed),
    #[error("the host agent ended the session")]
    Ended,
    #[error("the VMBus was reset")]
    Reset,
    #[error("the session broke: {0}")]
    Broken(String),
}

/// Keeps a session with the host agent at `address`, until a goodbye has been said.
/// `hello` makes the first message of each.
pub async fn keep(
    address: Address,
    outbox: Outbox,
    hello: impl Fn() -> Hello,
    events: Sender<Event>,
) {
    // A line on the console costs a guest time: one when the session is lost, and
    // one when it is back.
    let mut said = false;
    let waits = ExponentialBuilder::new()
        .with_min_delay(RETRY.0)
        .with_max_delay(RETRY.1)
        .without_max_times();
    loop {
        let mut delays = waits.build();
        let mut begun;
        let lost = loop {
            let session = Session {
                address: &address,
                outbox: &outbox,
                events: &events,
            };
            let mut heard = false;
            begun = Instant::now();
            let lost = match session.converse(hello(), &mut heard).await {
                Ok(()) => Lost::Ended,
                Err(lost) => lost,
            };
            if events.send(Event::Down).await.is_err() || outbox.is_over() {
                return;
            }
            if heard {
                break lost;
            }
            if !said {
                console::say(format_args!(
                    "{address}: {}; trying on",
                    console::chain(&lost)
                ));
                said = true;
            }
            sleep(delays.next().unwrap_or(RETRY.1)).await;
        };
        console::say(format_args!(
            "{address}: {}; connecting again",
            console::chain(&lost)
        ));
        said = true;
        if begun.elapsed() < SHORT {
            sleep(RETRY.0).await;
        }
    }
}

/// Calls the host where a guest that becomes a template does: it becomes one when it next
/// asks for a session. The answer is of no interest.
pub async fn call(address: &Address) {
    if let Address::Vmbus = address {
        let address = VsockAddr::new(HOST_CID, TEMPLATE_PORT);
        _ = timeout(CONNECT, VsockStream::connect(address)).await;
    }
}

/// A status by its message: the rest of its text is about gRPC.
fn broken(status: Status) -> Lost {
    Lost::Broken(status.message().to_owned())
}

struct Session<'a> {
    address: &'a Address,
    outbox: &'a Outbox,
    events: &'a Sender<Event>,
}

impl Session<'_> {
    /// Connects and converses until the host agent ends it; `heard` becomes true
    /// with the first goal.
    async fn converse(&self, hello: Hello, heard: &mut bool) -> Result<(), Lost> {
        let (channel, alarm) = timeout(CONNECT, self.connect())
            .await
            .map_err(Lost::NoConnection)??;
        tokio::select! {
            ended = self.converse_on(channel, hello, heard) => ended,
            () = alarm.raised() => Err(Lost::Reset),
        }
    }

    async fn converse_on(
        &self,
        channel: Channel,
        hello: Hello,
        heard: &mut bool,
    ) -> Result<(), Lost> {
        // The authority says nothing here, but a request must have one.
        let origin = Uri::from_static("http://host-agent");
        let mut client = GuestServiceClient::with_origin(channel, origin)
            .max_decoding_message_size(LONGEST_MESSAGE);
        let mut answers = timeout(FIRST_GOAL, client.session(self.outbox.open(hello)))
            .await
            .map_err(Lost::NoGoal)?
            .map_err(broken)?
            .into_inner();
        loop {
            let answer = if *heard {
                answers.message().await
            } else {
                timeout(FIRST_GOAL, answers.message())
                    .await
                    .map_err(Lost::NoGoal)?
            };
            let Some(answer) = answer.map_err(broken)? else {
                return Ok(());
            };
            let Some(goal) = answer.goal else { continue };
            if !*heard {
                *heard = true;
                console::say(format_args!("{}: in session", self.address));
                _ = self.events.send(Event::Up).await;
            }
            _ = self.events.send(Event::Goal(Box::new(goal.into()))).await;
        }
    }

    async fn connect(&self) -> Result<(Channel, Alarm), Lost> {
        match self.address {
            Address::Vmbus => {
                let address = VsockAddr::new(HOST_CID, SESSION_PORT);
                open(VsockStream::connect(address).await).await
            }
            Address::Unix(path) => open(UnixStream::connect(path).await).await,
        }
    }
}

async fn open<S>(stream: io::Result<S>) -> Result<(Channel, Alarm), Lost>
where
    S: AsFd + AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = stream.map_err(Lost::Connect)?;
    let alarm = Alarm::on(&stream).map_err(Lost::Connect)?;
    let channel = Channel::open(stream).await.map_err(Lost::Http)?;
    Ok((channel, alarm))
}
