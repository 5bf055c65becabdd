//! One connection against a guest and a host that do anything.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::connection::{Connection, HostStream, LINGER, REQUEST_TIMEOUT, Readiness};
use super::credit::BUFFER_SIZE;
use super::packet::{HOST_CID, Header, Op, Ports, Shutdown, TYPE_STREAM};

const CID: u64 = 3;
const PORTS: Ports = Ports { host: 5, guest: 6 };

/// A host's socket as a script: what it has to say, how much it takes.
#[derive(Debug, Default)]
struct Script {
    says: VecDeque<u8>,
    ended: bool,
    gone: bool,
    room: usize,
    heard: Vec<u8>,
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty(), "an empty read would look like the end");
        match self.says.read(buffer)? {
            0 if self.ended || self.gone => Ok(0),
            0 => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Script {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let count = data.len().min(self.room);
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.room -= count;
        self.heard.extend_from_slice(&data[..count]);
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl HostStream for Script {
    fn shutdown(&self, _: std::net::Shutdown) -> io::Result<()> {
        Ok(())
    }
}

fn packet(op: u16, flags: u32, buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: PORTS.guest,
        dst_port: PORTS.host,
        socket_type: TYPE_STREAM,
        op,
        flags,
        buf_alloc,
        fwd_cnt,
        len: 0,
    }
}

/// What can happen to a connection.
#[derive(Clone, Debug)]
enum Event {
    Guest {
        op: u16,
        flags: u32,
        buf_alloc: u32,
        fwd_cnt: u32,
        len: usize,
    },
    HostSays(usize),
    HostTakes(usize),
    HostEnds,
    HostGoes,
    Wait(Duration),
    GuestTakes(usize),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_u16..10, 0_u32..4, any::<u32>(), any::<u32>(), 0_usize..40_000).prop_map(
            |(op, flags, buf_alloc, fwd_cnt, len)| {
                // Mostly data and credit; the end is common enough as it is.
                let op = if op == 0 || op > 7 { Op::Rw as u16 } else { op };
                Event::Guest { op, flags, buf_alloc, fwd_cnt: fwd_cnt % 1000, len }
            }
        ),
        4 => (1_usize..20_000).prop_map(Event::HostSays),
        4 => (1_usize..40_000).prop_map(Event::HostTakes),
        1 => Just(Event::HostEnds),
        1 => Just(Event::HostGoes),
        1 => (0_u64..12).prop_map(|s| Event::Wait(Duration::from_secs(s))),
        8 => (1_usize..8_000).prop_map(Event::GuestTakes),
    ]
}

/// Applies one event; returns the packets that the guest took.
fn apply(
    connection: &mut Connection<Script>,
    stream: impl Fn(&mut Connection<Script>) -> &mut Script,
    event: &Event,
    now: &mut Instant,
) -> Vec<(Header, Vec<u8>)> {
    let ready = Readiness::default();
    match event {
        Event::Guest {
            op,
            flags,
            buf_alloc,
            fwd_cnt,
            len,
        } => {
            let len = if *op == Op::Rw as u16 { *len } else { 0 };
            let header = packet(*op, *flags, *buf_alloc, *fwd_cnt);
            connection.receive(&header, &vec![0xaa; len], *now);
        }
        Event::HostSays(count) => {
            stream(connection)
                .says
                .extend(std::iter::repeat_n(0xbb, *count));
            connection.host_ready(
                Readiness {
                    readable: true,
                    ..ready
                },
                *now,
            );
        }
        Event::HostTakes(count) => {
            stream(connection).room += count;
            connection.host_ready(
                Readiness {
                    writable: true,
                    ..ready
                },
                *now,
            );
        }
        Event::HostEnds => {
            stream(connection).ended = true;
            connection.host_ready(
                Readiness {
                    readable: true,
                    ..ready
                },
                *now,
            );
        }
        Event::HostGoes => {
            stream(connection).gone = true;
            connection.host_ready(
                Readiness {
                    hung_up: true,
                    ..ready
                },
                *now,
            );
        }
        Event::Wait(time) => {
            *now += *time;
            connection.expire(*now);
        }
        Event::GuestTakes(room) => {
            let mut buffer = vec![0; *room];
            let promised = connection.has_packet();
            let packet = connection.next_packet(&mut buffer, *now);
            assert!(
                promised || packet.is_none(),
                "a packet that was not announced"
            );
            return packet
                .map(|header| (header, buffer[..header.len as usize].to_vec()))
                .into_iter()
                .collect();
        }
    }
    Vec::new()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens: it holds no more than its bound, keeps to the guest's
    /// credit, says nothing after a reset, and has a way to its end.
    #[test]
    fn anything_may_happen(
        host_asks: bool,
        events in prop::collection::vec(any_event(), 1..80),
    ) {
        let mut now = Instant::now();
        let script = Script { room: 100, ..Script::default() };
        let mut connection = if host_asks {
            Connection::requested(CID, PORTS, script, BUFFER_SIZE, now)
        } else {
            Connection::accepted(CID, &packet(Op::Request as u16, 0, 4096, 0), script, BUFFER_SIZE)
        };
        let (mut buf_alloc, mut fwd_cnt) = if host_asks { (0, 0) } else { (4096, 0) };
        let mut sent = 0_u32;
        let mut reset = false;
        for event in &events {
            if let Event::Guest { op, buf_alloc: new, fwd_cnt: taken, .. } = event
                && *op != Op::Rst as u16
            {
                (buf_alloc, fwd_cnt) = (*new, *taken);
            }
            for (header, payload) in apply(&mut connection, Connection::stream_mut, event, &mut now) {
                prop_assert!(!reset, "a packet after a reset");
                prop_assert!(header.op != Op::Rw as u16 || !payload.is_empty());
                sent = sent.wrapping_add(payload.len() as u32);
                if !payload.is_empty() {
                    prop_assert!(sent.wrapping_sub(fwd_cnt) <= buf_alloc);
                }
                reset = header.op == Op::Rst as u16;
            }
            prop_assert!(connection.held() <= BUFFER_SIZE);
        }
        // Both sides go away: it ends, whatever state it was in.
        apply(&mut connection, Connection::stream_mut, &Event::HostGoes, &mut now);
        let shutdown = packet(Op::Shutdown as u16, Shutdown::BOTH.flags(), 0, 0);
        connection.receive(&shutdown, &[], now);
        connection.expire(now + LINGER + REQUEST_TIMEOUT);
        let mut buffer = [0; 100];
        for _ in 0..1000 {
            connection.next_packet(&mut buffer, now);
        }
        prop_assert!(connection.is_finished());
    }

    /// A packet that is announced comes, unless the host had nothing to read.
    #[test]
    fn an_announcement_is_settled_by_one_packet_or_withdrawn(
        events in prop::collection::vec(any_event(), 1..60),
    ) {
        let mut now = Instant::now();
        let mut connection = Connection::accepted(
            CID, &packet(Op::Request as u16, 0, 1 << 20, 0), Script::default(), BUFFER_SIZE,
        );
        for event in &events {
            apply(&mut connection, Connection::stream_mut, event, &mut now);
            if connection.has_packet() && connection.next_packet(&mut [0; 4096], now).is_none() {
                prop_assert!(!connection.has_packet(), "it would be asked for ever");
            }
        }
    }

    /// Between two sides that keep the rules, every byte arrives, in order, and
    /// the end after the last.
    #[test]
    fn honest_sides_lose_nothing(
        chunks in prop::collection::vec(1_usize..30_000, 0..20),
        takes in prop::collection::vec(100_usize..30_000, 1..20),
    ) {
        let now = Instant::now();
        let request = packet(Op::Request as u16, 0, 1 << 20, 0);
        let mut connection = Connection::accepted(CID, &request, Script::default(), BUFFER_SIZE);
        let all: Vec<u8> = (0..chunks.iter().sum()).map(|i: usize| i as u8).collect();
        let mut left = &all[..];
        let (mut sent, mut known) = (0_u32, 0_u32);
        let mut takes = takes.iter().cycle();
        let mut buffer = [0; 64];
        for round in 0.. {
            if left.is_empty() && sent == known {
                break;
            }
            // 600 kB at most, taken at least 100 a round.
            prop_assert!(round < 20_000, "the guest is left without credit");
            let room = BUFFER_SIZE as u32 - (sent - known);
            let (some, rest) = left.split_at(left.len().min(room as usize).min(20_000));
            if !some.is_empty() {
                connection.receive(&packet(Op::Rw as u16, 0, 1 << 20, 0), some, now);
                sent += some.len() as u32;
                left = rest;
            }
            connection.stream_mut().room += takes.next().unwrap();
            connection.host_ready(Readiness { writable: true, ..Readiness::default() }, now);
            while let Some(header) = connection.next_packet(&mut buffer, now) {
                prop_assert_ne!(header.op, Op::Rst as u16);
                known = header.fwd_cnt;
            }
            if left.is_empty() {
                connection.receive(&packet(Op::CreditRequest as u16, 0, 1 << 20, 0), &[], now);
            }
        }
        let end = packet(Op::Shutdown as u16, Shutdown::BOTH.flags(), 1 << 20, 0);
        connection.receive(&end, &[], now);
        prop_assert_eq!(connection.next_packet(&mut buffer, now).unwrap().op, Op::Rst as u16);
        prop_assert_eq!(&connection.stream_mut().heard, &all);
    }
}

fn accepted(script: Script) -> Connection<Script> {
    Connection::accepted(
        CID,
        &packet(Op::Request as u16, 0, 4096, 0),
        script,
        BUFFER_SIZE,
    )
}

fn next(connection: &mut Connection<Script>, now: Instant) -> Option<Op> {
    let header = connection.next_packet(&mut [0; 4096], now)?;
    Op::from_number(header.op)
}

#[test]
fn a_request_that_the_guest_never_answers_is_given_up() {
    let now = Instant::now();
    let mut connection = Connection::requested(CID, PORTS, Script::default(), BUFFER_SIZE, now);
    assert_eq!(next(&mut connection, now), Some(Op::Request));
    connection.expire(now + REQUEST_TIMEOUT / 2);
    assert!(!connection.has_packet());
    connection.expire(connection.deadline().unwrap());
    assert_eq!(next(&mut connection, now), Some(Op::Rst));
    assert!(connection.is_finished());
}

#[test]
fn a_caller_that_gives_up_before_the_guest_was_asked_leaves_no_trace() {
    let now = Instant::now();
    let mut connection = Connection::requested(CID, PORTS, Script::default(), BUFFER_SIZE, now);
    connection.host_ready(
        Readiness {
            hung_up: true,
            ..Readiness::default()
        },
        now,
    );
    assert!(connection.is_finished());
}

#[test]
fn a_guest_that_closes_gives_the_host_time_to_take_the_rest() {
    let now = Instant::now();
    let mut connection = accepted(Script {
        room: 10,
        ..Script::default()
    });
    assert_eq!(next(&mut connection, now), Some(Op::Response));
    connection.receive(&packet(Op::Rw as u16, 0, 4096, 0), &[1; 100], now);
    let close = packet(Op::Shutdown as u16, Shutdown::BOTH.flags(), 4096, 0);
    connection.receive(&close, &[], now);
    assert_eq!(next(&mut connection, now), None, "90 bytes are still here");
    assert_eq!(connection.deadline(), Some(now + LINGER));

    connection.stream_mut().room = 90;
    connection.host_ready(
        Readiness {
            writable: true,
            ..Readiness::default()
        },
        now,
    );
    assert_eq!(next(&mut connection, now), Some(Op::Rst));
    assert_eq!(connection.stream_mut().heard.len(), 100);
}

#[test]
fn a_host_that_never_takes_the_rest_is_given_up() {
    let now = Instant::now();
    let mut connection = accepted(Script::default());
    assert_eq!(next(&mut connection, now), Some(Op::Response));
    connection.receive(&packet(Op::Rw as u16, 0, 4096, 0), &[1; 100], now);
    let close = packet(Op::Shutdown as u16, Shutdown::BOTH.flags(), 4096, 0);
    connection.receive(&close, &[], now);
    connection.expire(now + LINGER);
    assert_eq!(next(&mut connection, now), Some(Op::Rst));
    assert_eq!(connection.held(), 0);
}

#[test]
fn a_guest_that_does_not_acknowledge_the_end_is_reset() {
    let now = Instant::now();
    let mut connection = accepted(Script::default());
    assert_eq!(next(&mut connection, now), Some(Op::Response));
    connection.stream_mut().gone = true;
    connection.host_ready(
        Readiness {
            hung_up: true,
            ..Readiness::default()
        },
        now,
    );
    // First that nothing is taken, then, when the end was read, that all is over.
    while let Some(op) = next(&mut connection, now) {
        assert_eq!(op, Op::Shutdown);
    }
    connection.expire(connection.deadline().unwrap());
    assert_eq!(next(&mut connection, now), Some(Op::Rst));
}

#[test]
fn data_after_the_guests_own_end_breaks_the_protocol() {
    let now = Instant::now();
    let mut connection = accepted(Script {
        room: 100,
        ..Script::default()
    });
    assert_eq!(next(&mut connection, now), Some(Op::Response));
    let end = Shutdown {
        send: true,
        receive: false,
    };
    connection.receive(&packet(Op::Shutdown as u16, end.flags(), 4096, 0), &[], now);
    connection.receive(&packet(Op::Rw as u16, 0, 4096, 0), b"more", now);
    assert_eq!(next(&mut connection, now), Some(Op::Rst));
}
