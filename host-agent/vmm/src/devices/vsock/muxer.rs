//! All connections of a guest, and what they have to say to it.
//!
//! Packets from the guest are routed by their ports; the sockets of the host
//! are watched by one epoll descriptor, edge-triggered; connections with
//! something to say to the guest stand in one line and say one packet each.
//!
//! It knows no virtqueue: the device feeds it packets and takes packets out.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Readiness};
use super::credit::{BUFFER_SIZE, LARGE_BUFFERS, SMALL_BUFFER_SIZE};
use super::deadlines::Deadlines;
use super::host::{Caller, ListenError, Listener, Progress, bound_unread, call};
use super::packet::{HOST_CID, Header, Op, Ports, TYPE_STREAM};

/// The most connections at a time.
pub const MAX_CONNECTIONS: usize = 2048;
/// The most that this process itself may have beside them.
pub const MAX_OWN_CALLS: usize = 8;
/// The most callers that have not yet said which port they want.
pub const MAX_CALLERS: usize = 64;
/// The most answers to packets of no connection that wait for the guest.
const MAX_REPLIES: usize = 256;
/// How long a caller may take to say which port it wants.
const CALLER_TIMEOUT: Duration = Duration::from_secs(5);
/// How many events of the host are handled before the device gets a turn.
const EVENTS_AT_A_TIME: usize = 64;
/// Host ports of connections that the host asks for.
const EPHEMERAL_PORTS: std::ops::Range<u32> = (1 << 30)..(1 << 31);

/// Names a socket in the event queue; never used twice.
type Id = u64;
const LISTENER: Id = 0;
const TIMER: Id = 1;
const FIRST_ID: Id = 2;

struct Entry {
    connection: Connection<UnixStream>,
    deadline: Option<Instant>,
    in_line: bool,
}

/// The connections of one guest.
pub struct Muxer {
    guest_cid: u64,
    /// The address that a guest had before it was restored as another; what it
    /// had said by then is still in its queue.
    former_cid: u64,
    path: PathBuf,
    listener: Listener,
    epoll: Epoll,
    deadlines: Deadlines<Id>,
    connections: HashMap<Id, Entry>,
    /// How many of them have a large buffer.
    large: usize,
    ids: HashMap<Ports, Id>,
    callers: HashMap<Id, Caller>,
    line: VecDeque<Id>,
    replies: VecDeque<Header>,
    next_id: Id,
    next_port: u32,
    accepting: bool,
}

impl Muxer {
    /// Listens at `path` for connections to the guest with address `guest_cid`.
    ///
    /// # Errors
    ///
    /// [`ListenError`] if it cannot listen there.
    pub fn new(guest_cid: u64, path: &Path) -> Result<Muxer, ListenError> {
        let listener = Listener::bind(path)?;
        let failed = |source| ListenError::Bind {
            path: path.to_owned(),
            source,
        };
        let epoll = Epoll::new().map_err(failed)?;
        let deadlines = Deadlines::new().map_err(failed)?;
        epoll
            .ctl(ControlOperation::Add, listener.as_raw_fd(), call_event())
            .map_err(failed)?;
        watch(&epoll, deadlines.timer_fd(), EventSet::IN, TIMER).map_err(failed)?;
        Ok(Muxer {
            guest_cid,
            former_cid: guest_cid,
            path: path.to_owned(),
            listener,
            epoll,
            deadlines,
            connections: HashMap::new(),
            large: 0,
            ids: HashMap::new(),
            callers: HashMap::new(),
            line: VecDeque::new(),
            replies: VecDeque::new(),
            next_id: FIRST_ID,
            next_port: EPHEMERAL_PORTS.start,
            accepting: false,
        })
    }

    /// The descriptor that is readable when [`poll_host`](Self::poll_host) has
    /// something to do.
    pub fn event_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// How many bytes are held on their way to the host, in all.
    pub fn held(&self) -> usize {
        self.connections
            .values()
            .map(|entry| entry.connection.held())
            .sum()
    }

    /// How much waits to be said to the guest.
    #[cfg(test)]
    pub(super) fn unsaid(&self) -> usize {
        self.line.len() + self.replies.len()
    }

    /// Whether callers are heard; before the guest's driver runs, they are sent
    /// away at once.
    pub fn set_accepting(&mut self, accepting: bool) {
        self.accepting = accepting;
    }

    /// Takes the guest's word as well if it comes from the address that it had
    /// before it was restored.
    pub fn set_former_cid(&mut self, cid: u64) {
        self.former_cid = cid;
    }

    /// Ends all connections without a word to the guest.
    pub fn reset(&mut self) {
        self.accepting = false;
        self.connections.clear();
        self.large = 0;
        self.ids.clear();
        self.callers.clear();
        self.line.clear();
        self.replies.clear();
        self.deadlines.clear();
        self.deadlines.arm(Instant::now());
        // Callers that wait to be heard are news again, to be sent away.
        let listener = self.listener.as_raw_fd();
        let _ = self
            .epoll
            .ctl(ControlOperation::Modify, listener, call_event());
    }

    /// Whether so many answers wait for the guest that it must take some before
    /// it is listened to again.
    pub fn is_congested(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// Whether [`next_packet`](Self::next_packet) may have something.
    pub fn has_packet(&self) -> bool {
        !self.replies.is_empty() || !self.line.is_empty()
    }

    /// Takes a packet from the guest.
    pub fn receive(&mut self, header: &Header, payload: &[u8], now: Instant) {
        // A guest can only speak for itself, and only to its host.
        if !self.is_from_guest(header) {
            return;
        }
        let ports = header.ports_from_guest();
        if header.socket_type != TYPE_STREAM {
            self.refuse(header);
        } else if let Some(id) = self.ids.get(&ports).copied() {
            self.with(id, now, |connection| {
                connection.receive(header, payload, now);
            });
        } else if Op::from_number(header.op) == Some(Op::Request) {
            self.guest_calls(header, now);
        } else {
            self.refuse(header);
        }
        self.deadlines.arm(now);
    }

    /// Takes a packet whose payload is not what its header says.
    pub fn receive_malformed(&mut self, header: &Header, now: Instant) {
        if !self.is_from_guest(header) {
            return;
        }
        match self.ids.get(&header.ports_from_guest()).copied() {
            Some(id) => self.with(id, now, Connection::abort),
            None => self.refuse(header),
        }
        self.deadlines.arm(now);
    }

    /// The next packet to the guest, its payload in `buffer`.
    pub fn next_packet(&mut self, buffer: &mut [u8], now: Instant) -> Option<Header> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        while let Some(id) = self.line.pop_front() {
            // Who is over has left the line.
            let Some(entry) = self.connections.get_mut(&id) else {
                continue;
            };
            entry.in_line = false;
            let packet = entry.connection.next_packet(buffer, now);
            self.settle(id);
            if packet.is_some() {
                self.deadlines.arm(now);
                return packet;
            }
        }
        self.deadlines.arm(now);
        None
    }

    /// Handles some of what happened at the host's sockets and to the time.
    ///
    /// # Errors
    ///
    /// If the event queue itself fails.
    pub fn poll_host(&mut self, now: Instant) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS_AT_A_TIME];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(now),
                TIMER => self.expire(now),
                id if self.callers.contains_key(&id) => self.advance_caller(id, now),
                id => {
                    let ready = readiness(event.event_set());
                    self.with(id, now, |connection| connection.host_ready(ready, now));
                }
            }
        }
        self.deadlines.arm(now);
        Ok(())
    }

    fn is_from_guest(&self, header: &Header) -> bool {
        [self.guest_cid, self.former_cid].contains(&header.src_cid) && header.dst_cid == HOST_CID
    }

    fn guest_calls(&mut self, request: &Header, now: Instant) {
        if self.connections.len() >= MAX_CONNECTIONS {
            return self.refuse(request);
        }
        let Ok(stream) = call(&self.path, request.dst_port) else {
            return self.refuse(request);
        };
        let buffer = self.next_buffer_size();
        let connection = Connection::accepted(self.guest_cid, request, stream, buffer);
        let id = self.fresh_id();
        self.insert(id, connection, ControlOperation::Add, now);
    }

    /// Answers a packet that belongs to no connection, but never a reset.
    fn refuse(&mut self, header: &Header) {
        if Op::from_number(header.op) != Some(Op::Rst) && !self.is_congested() {
            let ports = header.ports_from_guest();
            self.replies
                .push_back(Header::to_guest(self.guest_cid, ports, Op::Rst));
        }
    }

    /// Hears the callers that wait, as many as there is room for.
    fn accept(&mut self, now: Instant) {
        while self.callers.len() < MAX_CALLERS {
            // No descriptors left: whoever waits is heard when one is free.
            let Ok(Some(stream)) = self.listener.accept() else {
                return;
            };
            if !self.accepting {
                continue;
            }
            let id = self.fresh_id();
            let until = now + CALLER_TIMEOUT;
            let interest = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
            if watch(&self.epoll, stream.as_raw_fd(), interest, id).is_ok() {
                self.deadlines.change(id, None, Some(until));
                self.callers.insert(id, Caller::new(stream, until));
            }
        }
    }

    fn advance_caller(&mut self, id: Id, now: Instant) {
        let Some(caller) = self.callers.get_mut(&id) else {
            return;
        };
        let progress = caller.advance();
        if progress == Progress::Waiting {
            return;
        }
        let Some(caller) = self.callers.remove(&id) else {
            return;
        };
        self.deadlines.change(id, Some(caller.until), None);
        if let Progress::Port(port) = progress
            && self.connections.len() < MAX_CONNECTIONS
            && let Some(ports) = self.free_ports(port)
        {
            let stream = caller.into_stream();
            let buffer = self.next_buffer_size();
            let connection = Connection::requested(self.guest_cid, ports, stream, buffer, now);
            self.insert(id, connection, ControlOperation::Modify, now);
        }
        self.accept(now);
    }

    /// Calls a port of the guest for this process itself, over `stream`; false if it
    /// cannot be. A guest that has all its connections is called all the same: it must
    /// not be able to keep out who asks it to go.
    pub fn call_guest(&mut self, port: u32, stream: UnixStream, now: Instant) -> bool {
        if !self.accepting || self.connections.len() >= MAX_CONNECTIONS + MAX_OWN_CALLS {
            return false;
        }
        let Some(ports) = self.free_ports(port) else {
            return false;
        };
        let id = self.fresh_id();
        let size = SMALL_BUFFER_SIZE;
        let connection = Connection::requested(self.guest_cid, ports, stream, size, now);
        self.insert(id, connection, ControlOperation::Add, now);
        self.deadlines.arm(now);
        true
    }

    fn free_ports(&mut self, guest: u32) -> Option<Ports> {
        // Some port is free within as many as there are connections.
        for _ in 0..=self.connections.len() {
            let ports = Ports {
                host: self.next_port,
                guest,
            };
            self.next_port += 1;
            if self.next_port == EPHEMERAL_PORTS.end {
                self.next_port = EPHEMERAL_PORTS.start;
            }
            if !self.ids.contains_key(&ports) {
                return Some(ports);
            }
        }
        None
    }

    /// The first connections have large buffers, and all together no more than a
    /// guest may have.
    fn next_buffer_size(&self) -> usize {
        if self.large < LARGE_BUFFERS {
            BUFFER_SIZE
        } else {
            SMALL_BUFFER_SIZE
        }
    }

    fn fresh_id(&mut self) -> Id {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn insert(
        &mut self,
        id: Id,
        mut connection: Connection<UnixStream>,
        operation: ControlOperation,
        now: Instant,
    ) {
        let interest = EventSet::IN
            | EventSet::OUT
            | EventSet::READ_HANG_UP
            | EventSet::HANG_UP
            | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(interest, id);
        let stream = connection.stream();
        let size = connection.buffer_size();
        let watched = bound_unread(stream, size)
            .and_then(|()| self.epoll.ctl(operation, stream.as_raw_fd(), event));
        if watched.is_err() {
            connection.abort();
        }
        self.large += usize::from(size == BUFFER_SIZE);
        self.ids.insert(connection.ports(), id);
        self.connections.insert(
            id,
            Entry {
                connection,
                deadline: None,
                in_line: false,
            },
        );
        self.with(id, now, |_| {});
    }

    fn expire(&mut self, now: Instant) {
        self.deadlines.acknowledge();
        while let Some(id) = self.deadlines.pop_passed(now) {
            if self.callers.remove(&id).is_some() {
                self.accept(now);
                continue;
            }
            if let Some(entry) = self.connections.get_mut(&id) {
                entry.deadline = None;
            }
            self.with(id, now, |connection| connection.expire(now));
        }
    }

    /// Does something to a connection and sees to what follows from it.
    fn with(&mut self, id: Id, now: Instant, act: impl FnOnce(&mut Connection<UnixStream>)) {
        let Some(entry) = self.connections.get_mut(&id) else {
            return;
        };
        act(&mut entry.connection);
        if self.settle(id) {
            // A descriptor has become free, for which somebody may wait.
            self.accept(now);
        }
    }

    /// Removes a connection that is over, which it returns; puts one that has
    /// something to say in line; notes its deadline.
    fn settle(&mut self, id: Id) -> bool {
        let Some(entry) = self.connections.get_mut(&id) else {
            return false;
        };
        let deadline = entry.connection.deadline();
        self.deadlines.change(id, entry.deadline, deadline);
        entry.deadline = deadline;
        if entry.connection.is_finished() {
            if entry.in_line {
                self.line.retain(|waiting| *waiting != id);
            }
            self.large -= usize::from(entry.connection.buffer_size() == BUFFER_SIZE);
            self.ids.remove(&entry.connection.ports());
            self.connections.remove(&id);
            return true;
        }
        if !entry.in_line && entry.connection.has_packet() {
            entry.in_line = true;
            self.line.push_back(id);
        }
        false
    }
}

/// That somebody calls.
fn call_event() -> EpollEvent {
    EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER)
}

fn watch(epoll: &Epoll, descriptor: RawFd, interest: EventSet, id: Id) -> io::Result<()> {
    epoll.ctl(
        ControlOperation::Add,
        descriptor,
        EpollEvent::new(interest, id),
    )
}

fn readiness(events: EventSet) -> Readiness {
    Readiness {
        readable: events.intersects(EventSet::IN | EventSet::READ_HANG_UP),
        writable: events.contains(EventSet::OUT),
        hung_up: events.intersects(EventSet::HANG_UP | EventSet::ERROR),
    }
}
