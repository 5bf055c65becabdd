//! Connections over TCP: how many there may be, for how long, and until when.
//!
//! ```text
//!            accept        TLS 1.3              24 bytes of HTTP/2
//!  (nobody) ───────▶ new ─────────▶ connected ────────────────────▶ served
//!                     │ 10 s, or 1,024 newer ones      │ 10 s         │ revoked, expired,
//!                     ▼                                ▼              ▼ 60 s without certificate
//!                   closed ◀──────────────────────────────────────────┘
//! ```
//!
//! Who has no certificate is always among the new ones: of those, a newer one pushes out
//! the oldest, so that a flood of silent connections keeps nobody from being served.
//! HTTP/2 pings find out afterwards who is gone.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use fabric_trust::identity::Identity;
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::Stream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::tls::{Revoked, Tls};
use crate::clock;

/// How long TLS may take, and then the first bytes of HTTP/2.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long someone without a certificate may stay.
const NAMELESS: Duration = Duration::from_secs(60);
/// Most connections that are new or have no certificate.
const NEW: usize = 1024;
/// Most connections with certificates.
const SERVED: usize = 8192;
/// Most of one name.
const OF_ONE: usize = 128;
/// Descriptors that are kept for everything else.
const OTHER_FILES: u64 = 256;
/// Bytes with which HTTP/2 begins.
const PREFACE: usize = 24;
/// How often is looked whether a certificate has expired.
const LOOK: Duration = Duration::from_secs(30);
/// What a refused client may still send before it is cut off, so that it reads why.
const REST: u64 = 64 * 1024;
/// How long it has for that.
const LINGER: Duration = Duration::from_secs(1);

/// Who is at the other end of TLS.
#[derive(Debug)]
pub struct TlsPeer {
    /// From where.
    pub address: SocketAddr,
    /// As its certificate says; `None` without one.
    pub identity: Option<Identity>,
    /// Until when it is believed, in seconds since 1970: its certificate's end, or that of
    /// the one it got over this connection.
    good_until: AtomicU64,
}

impl TlsPeer {
    fn new(address: SocketAddr, identity: Option<Identity>) -> Self {
        let until = identity
            .as_ref()
            .map_or(0, |identity| seconds(identity.not_after));
        Self {
            address,
            identity,
            good_until: AtomicU64::new(until),
        }
    }

    /// False once its certificate has expired.
    #[must_use]
    pub fn is_good(&self, now: SystemTime) -> bool {
        seconds(now) <= self.good_until.load(Ordering::Relaxed)
    }

    /// It has got another certificate, for the same name.
    pub fn renewed(&self, until: SystemTime) {
        self.good_until.fetch_max(seconds(until), Ordering::Relaxed);
    }
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// See the [module](self).
pub struct Gate {
    tls: Arc<Tls>,
    revoked: Arc<Revoked>,
    new: Mutex<VecDeque<(u64, CancellationToken)>>,
    number: AtomicU64,
    served: Mutex<BTreeMap<String, usize>>,
    most_new: usize,
    most_served: usize,
}

impl Gate {
    /// With limits that fit the descriptors that this process may have.
    #[must_use]
    pub fn new(tls: Arc<Tls>, revoked: Arc<Revoked>) -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let room = usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
        // An eighth for the new, the rest for those who are known.
        let most_new = NEW.min(room / 8).max(1);
        Self {
            tls,
            revoked,
            new: Mutex::default(),
            number: AtomicU64::new(0),
            served: Mutex::default(),
            most_new,
            most_served: SERVED.min(room - most_new.min(room)),
        }
    }

    /// The connections that come to a listener, each one through with TLS.
    #[must_use]
    pub fn connections(self: Arc<Self>, listener: TcpListener) -> Accepted {
        let (sender, receiver) = mpsc::channel(64);
        let accepting = tokio::spawn(self.accept(listener, sender));
        Accepted {
            receiver,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, sender: mpsc::Sender<Secured>) {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    // Out of descriptors, most likely.
                    time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let new = Arc::clone(&self).come();
            let (gate, sender) = (Arc::clone(&self), sender.clone());
            tokio::spawn(async move {
                let pushed_out = new.pushed_out.clone();
                tokio::select! {
                    () = pushed_out.cancelled() => {}
                    secured = gate.secure(stream, address, new) => {
                        if let Some(secured) = secured {
                            // Nobody serves any longer.
                            let _ = sender.send(secured).await;
                        }
                    }
                }
            });
        }
    }

    async fn secure(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        new: New,
    ) -> Option<Secured> {
        // Messages are small and waited for.
        let _ = stream.set_nodelay(true);
        let acceptor = TlsAcceptor::from(self.tls.config());
        let stream = match time::timeout(HANDSHAKE, acceptor.accept(stream).into_fallible()).await {
            Err(_) => return None,
            Ok(Ok(stream)) => stream,
            Ok(Err((error, stream))) => {
                tracing::debug!(%address, %error, "refused a connection");
                linger(stream).await;
                return None;
            }
        };
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(<[_]>::first);
        let identity = certificate.and_then(|one| Identity::of(one).ok());
        let (place, revoked) = match &identity {
            None => (Place::New(new), CancellationToken::new()),
            Some(identity) => {
                let place = Arc::clone(&self).take_place(identity)?;
                (Place::Served(place), self.revoked.token(&identity.serial))
            }
        };
        let peer = Arc::new(TlsPeer::new(address, identity));
        Some(Secured {
            over: Box::pin(over(Arc::clone(&peer), revoked, place.pushed_out())),
            greeting: Some(Box::pin(time::sleep(HANDSHAKE))),
            greeted: 0,
            ended: false,
            stream,
            peer,
            _place: place,
        })
    }

    /// One more that is new; the oldest goes if there are too many.
    fn come(self: Arc<Self>) -> New {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let pushed_out = CancellationToken::new();
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        if new.len() >= self.most_new
            && let Some((_, oldest)) = new.pop_front()
        {
            oldest.cancel();
        }
        new.push_back((number, pushed_out.clone()));
        drop(new);
        New {
            gate: self,
            number,
            pushed_out,
        }
    }

    /// One more with a certificate, unless there are too many.
    fn take_place(self: Arc<Self>, identity: &Identity) -> Option<Served> {
        let who = identity.to_string();
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = served.values().sum();
        let own = served.get(&who).copied().unwrap_or(0);
        if own >= OF_ONE || all >= self.most_served {
            tracing::warn!(who, own, all, "too many connections; refused one more");
            return None;
        }
        served.insert(who.clone(), own + 1);
        drop(served);
        Some(Served { gate: self, who })
    }

    /// How many connections there are: new ones, and served ones.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let new = self
            .new
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len();
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        (new, served.values().sum())
    }
}

/// Lets a client read why it was refused: a socket that is closed with something
/// unread in it takes the last words with it.
async fn linger(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut rest = stream.take(REST);
    let _ = time::timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}

/// Ends when a connection has to.
async fn over(peer: Arc<TlsPeer>, revoked: CancellationToken, pushed_out: CancellationToken) {
    let expired = async {
        if peer.identity.is_none() {
            return time::sleep(NAMELESS).await;
        }
        loop {
            let now = clock::system();
            if !peer.is_good(now) {
                return;
            }
            let left = peer
                .good_until
                .load(Ordering::Relaxed)
                .saturating_sub(seconds(now));
            time::sleep(LOOK.min(Duration::from_secs(left + 1))).await;
        }
    };
    tokio::select! {
        () = revoked.cancelled() => {}
        () = pushed_out.cancelled() => {}
        () = expired => {}
    }
}

struct New {
    gate: Arc<Gate>,
    number: u64,
    pushed_out: CancellationToken,
}

impl Drop for New {
    fn drop(&mut self) {
        let mut new = self.gate.new.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(at) = new.binary_search_by_key(&self.number, |(number, _)| *number) {
            new.remove(at);
        }
    }
}

struct Served {
    gate: Arc<Gate>,
    who: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut served = self
            .gate
            .served
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = served.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                served.remove(&self.who);
            }
        }
    }
}

enum Place {
    New(New),
    #[allow(dead_code, reason = "it is held, and given back when it is dropped")]
    Served(Served),
}

impl Place {
    fn pushed_out(&self) -> CancellationToken {
        match self {
            Self::New(new) => new.pushed_out.clone(),
            Self::Served(_) => CancellationToken::new(),
        }
    }
}

/// The connections of a listener. It is closed when this is dropped.
pub struct Accepted {
    receiver: mpsc::Receiver<Secured>,
    _accepting: AbortOnDropHandle<()>,
}

impl Stream for Accepted {
    type Item = Secured;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Secured>> {
        self.receiver.poll_recv(context)
    }
}

/// A connection that is through with TLS.
pub struct Secured {
    stream: TlsStream<TcpStream>,
    peer: Arc<TlsPeer>,
    /// Ends when the connection has to.
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Ends when HTTP/2 should have begun; `None` once it has.
    greeting: Option<Pin<Box<time::Sleep>>>,
    greeted: usize,
    /// It had to end.
    ended: bool,
    _place: Place,
}

impl Secured {
    /// Who is at the other end.
    #[must_use]
    pub const fn peer(&self) -> &Arc<TlsPeer> {
        &self.peer
    }

    /// Ready when the connection has to end.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let late =
            |greeting: &mut Pin<Box<time::Sleep>>| greeting.as_mut().poll(context).is_ready();
        self.ended = self.ended
            || self.greeting.as_mut().is_some_and(late)
            || self.over.as_mut().poll(context).is_ready();
        if self.ended {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.poll_over(context).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.greeting.is_some() {
            self.greeted += buffer.filled().len() - before;
            if self.greeted >= PREFACE {
                self.greeting = None;
            }
        }
        polled
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
