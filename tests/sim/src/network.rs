//! The network: byte streams between hosts that take their time, stand still, or break.
//!
//! Each direction of a stream is a queue of segments on their way, and each direction
//! between two hosts can be cut by itself. As TCP does it, what is sent into a cut waits
//! and arrives when the way is whole again; a connection is only made where both ways
//! are. The end of a process is seen by its peers, a machine without power is not: who
//! talks to it goes on until it is up again and knows nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use fabric_controller::listen::Peer;
use fastrand::Rng;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, oneshot},
};
use tonic::transport::server::{Connected, UdsConnectInfo};

/// A host's number.
pub type HostId = usize;

/// What one direction takes in that the other side has not read.
const WINDOW: usize = 256 * 1024;
/// After that a connection attempt is given up.
const DIAL: Duration = Duration::from_secs(5);
/// The usual time from one host to another.
const USUAL: std::ops::RangeInclusive<u64> = 200..=3_000;

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Network(Arc<Mutex<Wires>>);

#[derive(Debug)]
struct Wires {
    now: Duration,
    rng: Rng,
    next: u64,
    pipes: BTreeMap<u64, Pipe>,
    listeners: BTreeMap<HostId, mpsc::UnboundedSender<Stream>>,
    dials: Vec<Dial>,
    /// How many times each direction is cut.
    cuts: BTreeMap<(HostId, HostId), u32>,
    /// What each direction takes longer.
    slow: BTreeMap<(HostId, HostId), Duration>,
    /// Machines without power.
    dark: BTreeMap<HostId, bool>,
}

/// One direction of a stream.
#[derive(Debug)]
struct Pipe {
    from: HostId,
    to: HostId,
    on_the_way: VecDeque<(Duration, Segment)>,
    arrived: VecDeque<Bytes>,
    unread: usize,
    /// How it ended for the reader.
    end: Option<End>,
    /// Whether somebody still writes, and reads.
    has_writer: bool,
    has_reader: bool,
    /// The writer has been told that nobody reads.
    is_refused: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug)]
enum Segment {
    Data(Bytes),
    End(End),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

#[derive(Debug)]
struct Dial {
    from: HostId,
    to: HostId,
    at: Duration,
    give_up: Duration,
    answer: oneshot::Sender<io::Result<Stream>>,
}

impl Network {
    /// A network on which nobody is.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Wires {
            now: Duration::ZERO,
            rng: Rng::with_seed(seed),
            next: 0,
            pipes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            dials: Vec::new(),
            cuts: BTreeMap::new(),
            slow: BTreeMap::new(),
            dark: BTreeMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Wires> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass until `now`: what is due arrives.
    pub fn step(&self, now: Duration) {
        let (dials, wakers) = {
            let mut wires = self.lock();
            wires.now = now;
            (wires.due_dials(), wires.deliver())
        };
        for waker in wakers {
            waker.wake();
        }
        for dial in dials {
            self.connect(dial);
        }
    }

    /// The connections that come to a host.
    pub fn listen(&self, host: HostId) -> mpsc::UnboundedReceiver<Stream> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().listeners.insert(host, sender);
        receiver
    }

    /// Connects to a host.
    ///
    /// # Errors
    ///
    /// Nobody listens there, or nothing was heard in time.
    pub async fn dial(self, from: HostId, to: HostId) -> io::Result<Stream> {
        let (answer, answered) = oneshot::channel();
        {
            let mut wires = self.lock();
            let both_ways = wires.latency(from, to) + wires.latency(to, from);
            let dial = Dial {
                from,
                to,
                at: wires.now + both_ways,
                give_up: wires.now + DIAL,
                answer,
            };
            wires.dials.push(dial);
        }
        let gone = |_| io::Error::from(io::ErrorKind::ConnectionReset);
        answered.await.map_err(gone)?
    }

    /// Cuts the way from one host to another.
    pub fn cut(&self, from: HostId, to: HostId) {
        *self.lock().cuts.entry((from, to)).or_default() += 1;
    }

    /// Takes one such cut away.
    pub fn mend(&self, from: HostId, to: HostId) {
        if let Some(cuts) = self.lock().cuts.get_mut(&(from, to)) {
            *cuts = cuts.saturating_sub(1);
        }
    }

    /// Makes the way from one host to another take so much longer.
    pub fn slow(&self, from: HostId, to: HostId, by: Duration) {
        self.lock().slow.insert((from, to), by);
    }

    /// A machine loses its power: it says nothing more, not even that.
    pub fn power_off(&self, host: HostId) {
        let mut wires = self.lock();
        wires.dark.insert(host, true);
        wires.listeners.remove(&host);
        for pipe in wires.pipes.values_mut() {
            if pipe.from == host {
                pipe.on_the_way.clear();
                pipe.has_writer = false;
            }
            if pipe.to == host {
                pipe.has_reader = false;
            }
        }
    }

    /// It is there again.
    pub fn power_on(&self, host: HostId) {
        self.lock().dark.insert(host, false);
    }

    /// Makes the stream of an attempt that has come through.
    fn connect(&self, dial: Dial) {
        let mut wires = self.lock();
        let answer = match wires.listeners.get(&dial.to).cloned() {
            None => Err(io::ErrorKind::ConnectionRefused.into()),
            Some(listener) => {
                let (there, back) = (
                    wires.add_pipe(dial.from, dial.to),
                    wires.add_pipe(dial.to, dial.from),
                );
                let end = |read, write| Stream {
                    network: self.clone(),
                    read,
                    write,
                };
                let (ours, theirs) = (end(back, there), end(there, back));
                drop(wires);
                match listener.send(theirs) {
                    Ok(()) => Ok(ours),
                    Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
                }
            }
        };
        // Who has given up drops what comes.
        let _ = dial.answer.send(answer);
    }
}

impl Wires {
    fn latency(&mut self, from: HostId, to: HostId) -> Duration {
        let usual = Duration::from_micros(self.rng.u64(USUAL));
        usual + self.slow.get(&(from, to)).copied().unwrap_or_default()
    }

    fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|cuts| *cuts > 0)
    }

    fn is_dark(&self, host: HostId) -> bool {
        self.dark.get(&host).copied().unwrap_or(false)
    }

    fn add_pipe(&mut self, from: HostId, to: HostId) -> u64 {
        self.next += 1;
        let pipe = Pipe {
            from,
            to,
            on_the_way: VecDeque::new(),
            arrived: VecDeque::new(),
            unread: 0,
            end: None,
            has_writer: true,
            has_reader: true,
            is_refused: false,
            reader: None,
            writer: None,
        };
        self.pipes.insert(self.next, pipe);
        self.next
    }

    /// The attempts that come through now; those that never will are told.
    fn due_dials(&mut self) -> Vec<Dial> {
        let (mut due, mut waiting) = (Vec::new(), Vec::new());
        for dial in std::mem::take(&mut self.dials) {
            let open = !self.is_cut(dial.from, dial.to)
                && !self.is_cut(dial.to, dial.from)
                && !self.is_dark(dial.to);
            if dial.answer.is_closed() || self.is_dark(dial.from) {
                continue;
            } else if open && dial.at <= self.now {
                due.push(dial);
            } else if dial.give_up <= self.now {
                let _ = dial.answer.send(Err(io::ErrorKind::TimedOut.into()));
            } else {
                waiting.push(dial);
            }
        }
        self.dials = waiting;
        due
    }

    /// Lets arrive what is due; who is to be woken.
    fn deliver(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let Self {
            now,
            pipes,
            cuts,
            dark,
            ..
        } = self;
        let is_cut = |from, to| cuts.get(&(from, to)).is_some_and(|cuts| *cuts > 0);
        let mut refused = Vec::new();
        for (id, pipe) in pipes.iter_mut() {
            let is_dark = dark.get(&pipe.to).copied().unwrap_or(false);
            if pipe.on_the_way.is_empty() || is_dark || is_cut(pipe.from, pipe.to) {
                continue;
            }
            while pipe.on_the_way.front().is_some_and(|(at, _)| at <= now) {
                let Some((_, segment)) = pipe.on_the_way.pop_front() else {
                    break;
                };
                match segment {
                    _ if !pipe.has_reader => {
                        // That nobody knows of it has to find its way back as well.
                        if !is_cut(pipe.to, pipe.from) && !pipe.is_refused {
                            pipe.is_refused = true;
                            refused.push(*id);
                            wakers.extend(pipe.writer.take());
                        }
                    }
                    Segment::Data(bytes) => pipe.arrived.push_back(bytes),
                    Segment::End(end) => pipe.end = Some(end),
                }
            }
            wakers.extend(pipe.reader.take());
        }
        // What is refused one way is reset the other way.
        for id in refused {
            if let Some(pipe) = pipes.get_mut(&other_way(id))
                && pipe.end.is_none()
            {
                pipe.end = Some(End::Reset);
                wakers.extend(pipe.reader.take());
            }
        }
        pipes.retain(|_, pipe| pipe.has_writer || pipe.has_reader);
        wakers
    }

    fn send(&mut self, id: u64, segment: Segment) {
        let Some((from, to)) = self.pipes.get(&id).map(|pipe| (pipe.from, pipe.to)) else {
            return;
        };
        let at = self.now + self.latency(from, to);
        if let Some(pipe) = self.pipes.get_mut(&id) {
            let last = pipe.on_the_way.back().map_or(Duration::ZERO, |(at, _)| *at);
            pipe.on_the_way.push_back((at.max(last), segment));
        }
    }
}

/// The two directions of a stream have neighbouring numbers, an odd one first.
const fn other_way(id: u64) -> u64 {
    if id % 2 == 1 { id + 1 } else { id - 1 }
}

/// One end of a stream.
#[derive(Debug)]
pub struct Stream {
    network: Network,
    read: u64,
    write: u64,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut wires = self.network.lock();
        if let Some(pipe) = wires.pipes.get_mut(&self.read) {
            pipe.has_reader = false;
            pipe.arrived.clear();
        }
        let open = wires.pipes.get_mut(&self.write).is_some_and(|pipe| {
            let open = pipe.has_writer;
            pipe.has_writer = false;
            open
        });
        if open {
            wires.send(self.write, Segment::End(End::Closed));
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wires = self.network.lock();
        let Some(pipe) = wires.pipes.get_mut(&self.read) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let mut taken = 0;
        while let Some(front) = pipe.arrived.front_mut() {
            let count = front.len().min(buffer.remaining());
            if count == 0 {
                break;
            }
            buffer.put_slice(&front[..count]);
            front.advance(count);
            taken += count;
            if front.is_empty() {
                pipe.arrived.pop_front();
            }
        }
        if taken > 0 {
            pipe.unread = pipe.unread.saturating_sub(taken);
            if let Some(writer) = pipe.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
        match pipe.end {
            Some(End::Closed) => Poll::Ready(Ok(())),
            Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None => {
                pipe.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wires = self.network.lock();
        let Some(pipe) = wires.pipes.get_mut(&self.write) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if pipe.is_refused {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = bytes.len().min(WINDOW.saturating_sub(pipe.unread));
        if count == 0 && !bytes.is_empty() {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        pipe.unread += count;
        let data = Bytes::copy_from_slice(&bytes[..count]);
        wires.send(self.write, Segment::Data(data));
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wires = self.network.lock();
        let open = wires.pipes.get_mut(&self.write).is_some_and(|pipe| {
            let open = pipe.has_writer;
            pipe.has_writer = false;
            open
        });
        if open {
            wires.send(self.write, Segment::End(End::Closed));
        }
        Poll::Ready(Ok(()))
    }
}

impl Connected for Stream {
    type ConnectInfo = Peer;

    /// The gate and its certificates stay outside: who comes is taken for a local caller.
    fn connect_info(&self) -> Peer {
        Peer::Unix(UdsConnectInfo {
            peer_addr: None,
            peer_cred: None,
        })
    }
}
