//! One stream between the guest and a unix socket.
//!
//! It takes packets from the guest, readiness from the host and the time, and
//! is asked for packets to the guest. It knows neither queues nor other
//! connections.
//!
//! Data to the guest is read from the socket only when the guest has room for a
//! packet, so nothing is held in that direction. In the other, what the socket does
//! not take at once is held, up to the size of the buffer that the guest was told. Readiness is remembered: the
//! socket is watched edge-triggered, and `readable` holds until a read finds
//! nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::credit::{ReceiveBuffer, SendCredit};
use super::packet::{Header, Op, Ports, Shutdown};
use super::state::{Open, State, ToGuest, ToHost};

/// How long the guest may take to answer a request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that has ended waits for the other side to agree.
pub const LINGER: Duration = Duration::from_secs(10);

/// The host's end of a connection: a stream socket that never blocks.
pub trait HostStream: Read + Write {
    /// Passes the end of one direction on to the host.
    ///
    /// # Errors
    ///
    /// What the host answers; it means that the other end is gone.
    fn shutdown(&self, how: std::net::Shutdown) -> io::Result<()>;
}

impl HostStream for UnixStream {
    fn shutdown(&self, how: std::net::Shutdown) -> io::Result<()> {
        UnixStream::shutdown(self, how)
    }
}

/// What a socket is ready for, as the host's event queue says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There is data, or the end of it.
    pub readable: bool,
    /// There is room.
    pub writable: bool,
    /// The other end is gone in both directions.
    pub hung_up: bool,
}

/// One stream.
#[derive(Debug)]
pub struct Connection<S> {
    guest_cid: u64,
    ports: Ports,
    stream: S,
    state: State,
    credit: SendCredit,
    asked_for_credit: bool,
    received: ReceiveBuffer,
    owes_credit: bool,
    readable: bool,
}

impl<S: HostStream> Connection<S> {
    /// A connection that the guest asked for by `request`, and the host accepted.
    pub fn accepted(guest_cid: u64, request: &Header, stream: S, buffer: usize) -> Connection<S> {
        let state = State::Open(Open::new(true));
        let ports = request.ports_from_guest();
        let mut connection = Connection::new(guest_cid, ports, stream, state, buffer);
        connection.credit.update(request.buf_alloc, request.fwd_cnt);
        connection
    }

    /// A connection that the host asks for.
    pub fn requested(
        guest_cid: u64,
        ports: Ports,
        stream: S,
        buffer: usize,
        now: Instant,
    ) -> Connection<S> {
        let state = State::Requested {
            said: false,
            until: now + REQUEST_TIMEOUT,
        };
        Connection::new(guest_cid, ports, stream, state, buffer)
    }

    fn new(guest_cid: u64, ports: Ports, stream: S, state: State, buffer: usize) -> Connection<S> {
        Connection {
            guest_cid,
            ports,
            stream,
            state,
            credit: SendCredit::NONE,
            asked_for_credit: false,
            received: ReceiveBuffer::new(buffer),
            owes_credit: false,
            readable: false,
        }
    }

    /// The stream's two ends.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The host's end.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    #[cfg(test)]
    pub(super) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// When [`expire`](Self::expire) should be called, if at all.
    pub fn deadline(&self) -> Option<Instant> {
        self.state.deadline()
    }

    /// Whether nothing is left to do, not even to tell the guest.
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished { owes_reset: false }
    }

    /// How many bytes may be held on their way to the host.
    pub fn buffer_size(&self) -> usize {
        self.received.size()
    }

    /// How many bytes are held on their way to the host.
    pub fn held(&self) -> usize {
        self.received.len()
    }

    /// Takes a packet from the guest.
    pub fn receive(&mut self, header: &Header, payload: &[u8], now: Instant) {
        let op = Op::from_number(header.op);
        if op == Some(Op::Rst) {
            self.finish(false);
            return;
        }
        self.credit.update(header.buf_alloc, header.fwd_cnt);
        self.asked_for_credit = false;
        match (self.state, op) {
            (State::Requested { said: true, .. }, Some(Op::Response)) => self.greet_host(),
            (State::Open(_), Some(Op::Rw)) => self.receive_data(payload, now),
            (State::Open(_), Some(Op::Shutdown)) => {
                self.receive_shutdown(Shutdown::from_flags(header.flags), now);
            }
            (State::Open(_), Some(Op::CreditRequest)) => self.owes_credit = true,
            (State::Open(_), Some(Op::CreditUpdate)) => {}
            (State::Lingering { .. }, Some(Op::Shutdown)) => {
                if Shutdown::from_flags(header.flags) == Shutdown::BOTH {
                    self.finish(true);
                }
            }
            // It had sent this before it learnt that nobody is there.
            (State::Lingering { .. }, Some(Op::Rw | Op::CreditUpdate | Op::CreditRequest)) => {}
            (State::Finished { .. }, _) => {}
            // Anything else breaks the protocol.
            _ => self.finish(true),
        }
    }

    /// Takes what the host's event queue says of the socket.
    pub fn host_ready(&mut self, ready: Readiness, now: Instant) {
        self.readable |= ready.readable || ready.hung_up;
        match self.state {
            // Whoever called has gone; the guest may have accepted meanwhile.
            State::Requested { said, .. } if ready.hung_up => self.finish(said),
            State::Open(_) => {
                if ready.hung_up {
                    self.host_refuses(now);
                } else if ready.writable {
                    self.flush(now);
                }
            }
            _ => {}
        }
    }

    /// Takes the time.
    pub fn expire(&mut self, now: Instant) {
        if self
            .state
            .deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            let guest_knows = !matches!(self.state, State::Requested { said: false, .. });
            self.finish(guest_knows);
        }
    }

    /// Ends the connection for a reason of the host's own.
    pub fn abort(&mut self) {
        self.finish(true);
    }

    /// Whether [`next_packet`](Self::next_packet) has something to say.
    pub fn has_packet(&self) -> bool {
        match self.state {
            State::Requested { said, .. } | State::Lingering { said, .. } => !said,
            State::Finished { owes_reset } => owes_reset,
            State::Open(open) => {
                open.owes_response
                    || open.unsaid().is_some()
                    || self.owes_credit
                    || self.received.should_tell()
                    || self.may_read(&open)
                    || self.should_ask_for_credit(&open)
            }
        }
    }

    /// The next packet to the guest. Its payload, `len` bytes, is put into
    /// `buffer`, which must not be empty.
    pub fn next_packet(&mut self, buffer: &mut [u8], now: Instant) -> Option<Header> {
        match &mut self.state {
            State::Requested { said, .. } if !*said => {
                *said = true;
                Some(self.header(Op::Request))
            }
            State::Lingering { said, .. } if !*said => {
                *said = true;
                Some(self.shutdown_header(Shutdown::BOTH))
            }
            State::Finished { owes_reset } if *owes_reset => {
                *owes_reset = false;
                Some(self.header(Op::Rst))
            }
            State::Open(open) if open.owes_response => {
                open.owes_response = false;
                let open = *open;
                self.settle(open, now);
                Some(self.header(Op::Response))
            }
            State::Open(_) => self.next_open_packet(buffer, now),
            _ => None,
        }
    }

    fn next_open_packet(&mut self, buffer: &mut [u8], now: Instant) -> Option<Header> {
        if let Some(header) = self.say_shutdown() {
            return Some(header);
        }
        if let Some(header) = self.read_host(buffer, now) {
            return Some(header);
        }
        // Reading may have found the end.
        if matches!(self.state, State::Lingering { .. }) {
            return self.next_packet(buffer, now);
        }
        if let Some(header) = self.say_shutdown() {
            return Some(header);
        }
        if self.owes_credit || self.received.should_tell() {
            return Some(self.header(Op::CreditUpdate));
        }
        if let State::Open(open) = self.state
            && self.should_ask_for_credit(&open)
        {
            self.asked_for_credit = true;
            return Some(self.header(Op::CreditRequest));
        }
        None
    }

    fn may_read(&self, open: &Open) -> bool {
        open.to_guest == ToGuest::Flowing && self.readable && self.credit.available() > 0
    }

    fn should_ask_for_credit(&self, open: &Open) -> bool {
        open.to_guest == ToGuest::Flowing
            && self.readable
            && self.credit.available() == 0
            && !self.asked_for_credit
    }

    fn say_shutdown(&mut self) -> Option<Header> {
        let State::Open(open) = &mut self.state else {
            return None;
        };
        let unsaid = open.unsaid()?;
        open.said();
        Some(self.shutdown_header(unsaid))
    }

    /// Reads from the host as much as fits the buffer and the guest's credit.
    fn read_host(&mut self, buffer: &mut [u8], now: Instant) -> Option<Header> {
        let State::Open(mut open) = self.state else {
            return None;
        };
        if !self.may_read(&open) || buffer.is_empty() {
            return None;
        }
        let limit = buffer.len().min(self.credit.available());
        match self.stream.read(&mut buffer[..limit]) {
            Ok(0) => {}
            Ok(count) => {
                self.credit.consume(count);
                let mut header = self.header(Op::Rw);
                header.len = count as u32;
                return Some(header);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                return None;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return None,
            // The other end went away without reading everything.
            Err(_) => open.to_host = self.refuse_to_host(open.to_host),
        }
        self.readable = false;
        open.to_guest = open.to_guest.host_ends();
        self.settle(open, now);
        None
    }

    fn receive_data(&mut self, payload: &[u8], now: Instant) {
        let State::Open(open) = self.state else {
            return;
        };
        if self.received.admit(payload.len()).is_err() {
            self.finish(true);
            return;
        }
        match open.to_host {
            ToHost::Flowing => {
                // Most of the time the host takes it at once, and nothing is held.
                let written = if self.received.is_empty() {
                    self.write_host(payload)
                } else {
                    Ok(0)
                };
                match written {
                    Ok(count) => {
                        self.received.pass(count);
                        self.received.hold(&payload[count..]);
                    }
                    Err(_) => {
                        self.received.pass(payload.len());
                        self.host_refuses(now);
                    }
                }
            }
            // Sent before the guest learnt that nobody takes it.
            ToHost::Refused { .. } => self.received.pass(payload.len()),
            // It had said that it would send no more.
            ToHost::Draining | ToHost::Ended => self.finish(true),
        }
    }

    fn receive_shutdown(&mut self, shutdown: Shutdown, now: Instant) {
        let State::Open(mut open) = self.state else {
            return;
        };
        if shutdown.receive && open.to_guest != ToGuest::Refused {
            open.to_guest = open.to_guest.guest_refuses();
            // Fails only if the other end is gone, which its hang-up says.
            let _ = self.stream.shutdown(std::net::Shutdown::Read);
        }
        if shutdown.send {
            open.to_host = open.to_host.guest_ends();
        }
        self.settle(open, now);
        self.flush(now);
    }

    /// Gives to the host what is held, and the end when the guest said so.
    fn flush(&mut self, now: Instant) {
        while !self.received.is_empty() {
            match write_some(&mut self.stream, self.received.next()) {
                Ok(0) => return,
                Ok(count) => self.received.take(count),
                Err(_) => return self.host_refuses(now),
            }
        }
        let State::Open(mut open) = self.state else {
            return;
        };
        if open.to_host == ToHost::Draining {
            open.to_host = open.to_host.drained();
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
            self.settle(open, now);
        }
    }

    /// Writes as much as the host takes.
    fn write_host(&mut self, payload: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < payload.len() {
            match write_some(&mut self.stream, &payload[done..])? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    fn host_refuses(&mut self, now: Instant) {
        let State::Open(mut open) = self.state else {
            return;
        };
        open.to_host = self.refuse_to_host(open.to_host);
        self.settle(open, now);
    }

    fn refuse_to_host(&mut self, to_host: ToHost) -> ToHost {
        self.received.discard();
        to_host.host_refuses()
    }

    /// The guest has accepted: whoever called is told so, by the convention.
    fn greet_host(&mut self) {
        let greeting = format!("OK {}\n", self.ports.host);
        match self.write_host(greeting.as_bytes()) {
            Ok(count) if count == greeting.len() => self.state = State::Open(Open::new(false)),
            _ => self.finish(true),
        }
    }

    fn settle(&mut self, open: Open, now: Instant) {
        self.state = open.settle(now + LINGER);
        if matches!(self.state, State::Finished { .. } | State::Lingering { .. }) {
            self.leave_host();
        }
    }

    fn finish(&mut self, owes_reset: bool) {
        if matches!(self.state, State::Finished { .. }) && owes_reset {
            return;
        }
        self.state = State::Finished { owes_reset };
        self.leave_host();
    }

    /// Nothing will pass any more: the host need not wait for the guest to know.
    fn leave_host(&mut self) {
        self.received.discard();
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    fn shutdown_header(&mut self, shutdown: Shutdown) -> Header {
        Header {
            flags: shutdown.flags(),
            ..self.header(Op::Shutdown)
        }
    }

    /// A header of this connection; every one tells the guest its credit.
    fn header(&mut self, op: Op) -> Header {
        self.owes_credit = false;
        let (buf_alloc, fwd_cnt) = self.received.tell();
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::to_guest(self.guest_cid, self.ports, op)
        }
    }
}

/// Writes once; zero means that there is no room now.
fn write_some(stream: &mut impl Write, data: &[u8]) -> io::Result<usize> {
    match stream.write(data) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => Ok(0),
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted) => Ok(0),
        result => result,
    }
}
