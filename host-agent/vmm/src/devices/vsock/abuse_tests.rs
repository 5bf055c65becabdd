//! The vsock device against guests and hosts that mean it harm, or that are just
//! many, slow or gone.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown as How;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::credit::{BUFFER_SIZE, HELD_MAX, SMALL_BUFFER_SIZE};
use super::muxer::{MAX_CALLERS, MAX_CONNECTIONS, Muxer};
use super::packet::{HEADER_LEN, Header, MAX_PAYLOAD, Op, Ports, Shutdown};
use super::test_guest::*;
use crate::devices::virtio::test_driver::*;

/// The connections of a guest without its queues: packets go in and come out.
struct Connections {
    muxer: Muxer,
    listener: UnixListener,
    hosts: Vec<UnixStream>,
    now: Instant,
    _dir: tempfile::TempDir,
}

impl Connections {
    fn new() -> Connections {
        raise_descriptor_limit();
        let dir = tempfile::tempdir().unwrap();
        let mut muxer = Muxer::new(CID, &dir.path().join("v")).unwrap();
        muxer.set_accepting(true);
        Connections {
            muxer,
            listener: UnixListener::bind(dir.path().join("v_1024")).unwrap(),
            hosts: Vec::new(),
            now: Instant::now(),
            _dir: dir,
        }
    }

    fn send(&mut self, guest_port: u32, op: Op, payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            ..from_guest(ports(guest_port), op)
        };
        self.muxer.receive(&header, payload, self.now);
    }

    /// Connects to a host that takes the connection and then does nothing.
    fn connect(&mut self, guest_port: u32) {
        self.send(guest_port, Op::Request, &[]);
        self.hosts.push(self.listener.accept().unwrap().0);
    }

    fn packets(&mut self) -> Vec<Header> {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| self.muxer.next_packet(&mut buffer, self.now)).collect()
    }
}

fn ports(guest: u32) -> Ports {
    Ports { host: 1024, guest }
}

#[test]
fn connections_that_come_and_go_unheard_leave_nothing_behind() {
    let mut guest = Connections::new();
    for _ in 0..3 * MAX_CONNECTIONS {
        guest.connect(7);
        guest.hosts.clear();
        // It has not taken the answer, and never will.
        guest.send(7, Op::Rst, &[]);
    }
    assert_eq!(guest.muxer.unsaid(), 0);
    assert_eq!(guest.muxer.connections(), 0);
}

#[test]
fn a_thousand_hosts_that_never_read_hold_no_more_than_the_guests_bound() {
    const COUNT: u32 = 1000;
    let mut guest = Connections::new();
    let mut room = HashMap::new();
    for port in 0..COUNT {
        guest.connect(port);
        for said in guest.packets() {
            room.insert(said.dst_port, (said.buf_alloc, 0, 0));
        }
    }
    // An honest guest sends what it may, until nobody may send any more.
    loop {
        let mut sent_any = false;
        for port in 0..COUNT {
            let (allowed, sent, taken) = room.get_mut(&port).unwrap();
            let some = (*allowed - (*sent - *taken)).min(16 << 10);
            if some > 0 {
                *sent += some;
                sent_any = true;
                guest.send(port, Op::Rw, &vec![5; some as usize]);
            }
            assert!(guest.muxer.held() <= HELD_MAX);
        }
        for said in guest.packets() {
            assert_eq!(said.op, Op::CreditUpdate as u16);
            room.get_mut(&said.dst_port).unwrap().2 = said.fwd_cnt;
        }
        if !sent_any {
            break;
        }
    }
    assert!(guest.muxer.held() > 0);
    assert_eq!(guest.muxer.connections(), COUNT as usize);

    guest.muxer.reset();
    assert_eq!(guest.muxer.held(), 0);
    for host in &mut guest.hosts {
        let mut taken = Vec::new();
        host.read_to_end(&mut taken).unwrap();
    }
}

#[test]
fn whoever_connects_late_has_a_small_buffer_until_others_have_gone() {
    let mut guest = Connections::new();
    let buffer_of = |guest: &mut Connections, port| {
        guest.connect(port);
        guest.packets().pop().unwrap().buf_alloc as usize
    };
    let sizes: Vec<_> = (0..MAX_CONNECTIONS as u32)
        .map(|port| buffer_of(&mut guest, port))
        .collect();
    assert_eq!(sizes[0], BUFFER_SIZE);
    assert_eq!(sizes[MAX_CONNECTIONS - 1], SMALL_BUFFER_SIZE);
    assert_eq!(sizes.iter().sum::<usize>(), HELD_MAX);

    guest.send(0, Op::Rst, &[]);
    assert_eq!(buffer_of(&mut guest, 0), BUFFER_SIZE);
}

/// Newer kernels cut the payload of large packets into pieces of 32 KiB, each with
/// a descriptor of its own.
#[test]
fn the_largest_packet_may_come_in_pieces() {
    let payload: Vec<u8> = (0..MAX_PAYLOAD).map(|i| (i / 7) as u8).collect();
    let half = MAX_PAYLOAD as u32 / 2;
    let at = TX_BUFFER + 0x1000;
    let table = TX_BUFFER - 0x1000;
    let pieces: [&[(u64, u32)]; 3] = [
        &[
            (0, HEADER_LEN as u32),
            (44, half),
            (44 + u64::from(half), half),
        ],
        &[
            (0, 10),
            (10, 34 + 100),
            (144, half),
            (144 + u64::from(half), half - 100),
        ],
        &[(0, HEADER_LEN as u32 + half), (44 + u64::from(half), half)],
    ];
    for (number, pieces) in (0..).zip(pieces) {
        for in_a_table in [false, true] {
            let mut guest = Guest::new();
            let listener = guest.listen(1024);
            let mut host = guest.connect(&listener, ports(number));
            let header = Header {
                len: MAX_PAYLOAD as u32,
                ..from_guest(ports(number), Op::Rw)
            };
            let memory = &guest.memory;
            memory
                .write_slice(&header.to_bytes(), GuestAddress(at))
                .unwrap();
            memory.write_slice(&payload, GuestAddress(at + 44)).unwrap();
            let chain: Vec<_> = pieces
                .iter()
                .map(|(offset, len)| readable(at + offset, *len))
                .collect();
            if in_a_table {
                guest.tx.add_indirect(table, &chain);
            } else {
                guest.tx.add(&chain);
            }
            guest.notify(1);
            let reader = std::thread::spawn(move || {
                let mut heard = vec![0; MAX_PAYLOAD];
                host.read_exact(&mut heard).map(|()| heard)
            });
            guest.run_until("the host to have it all", |_| reader.is_finished());
            assert!(reader.join().unwrap().unwrap() == payload, "{pieces:?}");
        }
    }
}

#[test]
fn a_packet_beyond_the_largest_resets_its_connection() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    let len = MAX_PAYLOAD as u32 + 1;
    let header = Header {
        len,
        ..from_guest(PORTS, Op::Rw)
    };
    guest.send_raw(header, &vec![0; len as usize]);
    guest.expect(Op::Rst);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_guest_that_gives_no_credit_starves_its_own_connection_alone() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let miserly = Header {
        buf_alloc: 0,
        ..from_guest(PORTS, Op::Request)
    };
    guest.send_raw(miserly, &[]);
    guest.expect(Op::Response);
    let (mut starved, _) = listener.accept().unwrap();
    let mut other = guest.connect(&listener, ports(7001));
    starved.write_all(b"hungry").unwrap();
    guest.expect(Op::CreditRequest);
    // Asked once, it has nothing more to do until the guest says something.
    guest.expect_nothing();
    for _ in 0..3 {
        guest.send_raw(
            Header {
                buf_alloc: 0,
                ..from_guest(PORTS, Op::CreditUpdate)
            },
            &[],
        );
        guest.expect(Op::CreditRequest);
        guest.expect_nothing();
    }
    other.write_all(b"fed").unwrap();
    assert_eq!(guest.receive().1, b"fed");

    guest.send_raw(
        Header {
            buf_alloc: 4,
            ..from_guest(PORTS, Op::CreditUpdate)
        },
        &[],
    );
    assert_eq!(guest.receive().1, b"hung");
    // What it says in the other direction is heard meanwhile.
    guest.send_raw(
        Header {
            buf_alloc: 4,
            len: 5,
            ..from_guest(PORTS, Op::Rw)
        },
        b"sorry",
    );
    let mut heard = [0; 5];
    starved.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"sorry");
}

#[test]
fn a_thousand_connections_are_half_closed_each_way() {
    const COUNT: u32 = 1000;
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut hosts: Vec<_> = (0..COUNT)
        .map(|port| guest.connect(&listener, ports(port)))
        .collect();
    let half = Shutdown {
        send: true,
        receive: false,
    };
    for (port, host) in (0..).zip(&mut hosts) {
        if port % 2 == 0 {
            guest.send(ports(port), Op::Rw, b"question");
            guest.send_shutdown(ports(port), half);
            let mut question = String::new();
            host.read_to_string(&mut question).unwrap();
            assert_eq!(question, "question");
            host.write_all(b"answer").unwrap();
            assert_eq!(guest.receive().1, b"answer");
        } else {
            host.shutdown(How::Write).unwrap();
            assert_eq!(Shutdown::from_flags(guest.expect(Op::Shutdown).flags), half);
            guest.send(ports(port), Op::Rw, b"answer");
            guest.send_shutdown(ports(port), Shutdown::BOTH);
            guest.expect(Op::Rst);
            let mut answer = String::new();
            host.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "answer");
        }
    }
}

#[test]
fn a_reset_mid_stream_ends_every_stream_and_nothing_of_it_reaches_the_next_driver() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut speaking = guest.connect(&listener, ports(1));
    let mut deaf = guest.connect(&listener, ports(2));
    let mut caller = UnixStream::connect(guest.path()).unwrap();
    // More than the guest's buffers take, and more than the host's socket takes.
    speaking.set_nonblocking(true).unwrap();
    while speaking.write(&[1; 4096]).is_ok() {}
    for _ in 0..4 {
        guest.send(ports(2), Op::Rw, &[2; 16 << 10]);
    }
    caller.write_all(b"CONNECT 5").unwrap();
    guest.run();
    guest.reset();

    speaking.set_nonblocking(false).unwrap();
    assert!(!matches!(speaking.read(&mut [0; 8]), Ok(count) if count > 0));
    let mut rest = Vec::new();
    let _ = deaf.read_to_end(&mut rest);
    assert!(rest.len() <= 64 << 10);
    assert!(!matches!(caller.read(&mut [0; 8]), Ok(count) if count > 0));

    guest.start_driver();
    guest.give_buffers(RX_BUFFERS);
    guest.expect_nothing();
    guest.send(ports(1), Op::Rw, b"ghost");
    guest.expect(Op::Rst);
    let (mut again, asked) = guest.call(5);
    guest.send(asked, Op::Rw, b"again");
    let mut heard = [0; 5];
    again.read_exact(&mut heard).unwrap();
}

#[test]
fn callers_in_the_queue_when_the_guest_resets_are_sent_away() {
    let mut guest = Guest::new();
    // They say nothing, so that those behind them have to wait.
    let mut callers: Vec<_> = (0..MAX_CALLERS + 20)
        .map(|_| UnixStream::connect(guest.path()).unwrap())
        .collect();
    guest.run();
    guest.reset();
    for caller in &mut callers {
        caller.set_nonblocking(true).unwrap();
        guest.run_until("the caller to be sent away", |_| {
            !matches!(caller.read(&mut [0; 8]),
                Err(error) if error.kind() == ErrorKind::WouldBlock)
        });
    }
}

mod restored {
    //! The guest is another machine now, and is told so.

    use super::*;

    const FORMER_CID: u64 = 77;
    const EVENT_BUFFER: u64 = 0x9_0000;

    fn guest() -> Guest {
        let mut guest = Guest::with_device(|vsock| vsock.handle().restored(FORMER_CID));
        guest.event.add(&[writable(EVENT_BUFFER, 4)]);
        guest
            .memory
            .write_slice(&[0xff; 4], GuestAddress(EVENT_BUFFER))
            .unwrap();
        guest
    }

    fn call_from(guest: &mut Guest, cid: u64, port: u32) {
        let header = Header {
            src_cid: cid,
            ..from_guest(ports(port), Op::Request)
        };
        let at = TX_BUFFER + u64::from(port) * 64;
        guest
            .memory
            .write_slice(&header.to_bytes(), GuestAddress(at))
            .unwrap();
        guest.tx.add(&[readable(at, HEADER_LEN as u32)]);
        guest.notify(1);
    }

    #[test]
    fn it_is_told_once_and_heard_when_it_has_taken_note() {
        let mut guest = guest();
        let listener = guest.listen(1024);
        // What it had said before is still in its queue.
        call_from(&mut guest, FORMER_CID, 1);
        guest.start_driver();
        guest.give_buffers(RX_BUFFERS);
        guest.run();
        let (_, written) = guest.event.take_used().unwrap();
        let event: u32 = guest.memory.read_obj(GuestAddress(EVENT_BUFFER)).unwrap();
        assert_eq!(
            (written, event),
            (4, 0),
            "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET"
        );
        assert!(guest.tx.take_used().is_none(), "it was heard too early");
        guest.expect_nothing();

        guest.event.add(&[writable(EVENT_BUFFER, 4)]);
        guest.notify(2);
        let answer = guest.expect(Op::Response);
        assert_eq!(answer.dst_cid, CID, "by its own address");
        let _host = listener.accept().unwrap();
        call_from(&mut guest, CID, 2);
        assert_eq!(guest.expect(Op::Response).dst_port, 2);
        call_from(&mut guest, CID + 1, 3);
        guest.expect_nothing();
        assert!(guest.event.take_used().is_none(), "it was told twice");
    }

    #[test]
    fn one_that_never_takes_note_hurts_itself_alone() {
        let mut guest = guest();
        guest.start_driver();
        guest.give_buffers(RX_BUFFERS);
        let mut caller = UnixStream::connect(guest.path()).unwrap();
        caller.write_all(b"CONNECT 9\n").unwrap();
        guest.run();
        guest.expect_nothing();
        guest.reset();
        assert_eq!(caller.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn one_without_a_buffer_for_it_is_left_to_find_out() {
        let mut guest = Guest::with_device(|vsock| vsock.handle().restored(FORMER_CID));
        let listener = guest.listen(1024);
        guest.start_driver();
        guest.give_buffers(RX_BUFFERS);
        drop(guest.connect(&listener, PORTS));
    }
}

mod limited {
    //! Each direction is held to limits of its own.

    use super::*;
    use crate::limits::{Rate, RateLimit};

    const NONE: RateLimit = RateLimit {
        bytes: None,
        operations: None,
    };

    const fn bytes(per_second: u64) -> RateLimit {
        RateLimit {
            bytes: Some(Rate {
                per_second,
                burst: 1,
            }),
            operations: None,
        }
    }

    /// One packet of four KiB uses it up for a second, and twenty for long.
    const SLOW: RateLimit = bytes(4096);

    #[test]
    fn a_guest_that_says_too_much_waits_and_loses_nothing() {
        let mut guest = Guest::new();
        let listener = guest.listen(1024);
        let mut host = guest.connect(&listener, PORTS);
        guest.handle.limit(&NONE, &SLOW);
        guest.send(PORTS, Op::Rw, &[7; 48 << 10]);
        guest.send(PORTS, Op::Rw, b"later");
        assert_eq!(guest.handle.stats().to_host.waits, 1);
        guest.expect(Op::CreditUpdate);
        // The loop has nothing to do meanwhile, and the other direction is open.
        guest.run();
        host.write_all(b"to the guest").unwrap();
        assert_eq!(guest.receive().1, b"to the guest");
        host.set_nonblocking(true).unwrap();
        let mut heard = vec![0; 64 << 10];
        let mut count = 0;
        while let Ok(more) = host.read(&mut heard[count..]) {
            count += more;
        }
        assert_eq!(count, 48 << 10);

        guest.handle.limit(&NONE, &NONE);
        guest.run_until("the rest", |_| {
            host.read(&mut heard).is_ok_and(|count| count == 5)
        });
        assert_eq!(&heard[..5], b"later");
    }

    #[test]
    fn a_host_that_says_too_much_waits_and_loses_nothing() {
        let mut guest = Guest::new();
        let listener = guest.listen(1024);
        let mut host = guest.connect(&listener, PORTS);
        guest.handle.limit(&bytes(256), &NONE);
        host.write_all(&[1; 4096]).unwrap();
        host.write_all(b"later").unwrap();
        assert_eq!(guest.receive().1.len(), 4096);
        guest.expect_nothing();
        assert_eq!(guest.handle.stats().to_guest.waits, 1);
        guest.send(PORTS, Op::Rw, b"to the host");
        let mut heard = [0; 11];
        host.read_exact(&mut heard).unwrap();

        guest.handle.limit(&NONE, &NONE);
        assert_eq!(guest.receive().1, b"later");
    }

    #[test]
    fn both_go_on_by_themselves_when_their_time_has_come() {
        let mut guest = Guest::new();
        let listener = guest.listen(1024);
        let mut host = guest.connect(&listener, PORTS);
        let fast = bytes(100 << 10);
        guest.handle.limit(&fast, &fast);
        let begun = Instant::now();
        for _ in 0..3 {
            host.write_all(&[1; 4096]).unwrap();
            guest.send(PORTS, Op::Rw, &[2; 4096]);
        }
        let (mut to_guest, mut to_host) = (0, 0);
        host.set_nonblocking(true).unwrap();
        guest.run_until("everything", |guest| {
            while let Some((_, payload)) = guest.try_receive() {
                to_guest += payload.len();
            }
            to_host += host.read(&mut [0; 4096]).unwrap_or(0);
            (to_guest, to_host) == (3 * 4096, 3 * 4096)
        });
        // Twice the 40 ms that a packet costs.
        assert!(begun.elapsed().as_millis() >= 79);
        let stats = guest.handle.stats();
        assert!(
            stats.to_guest.waited_ms > 0 && stats.to_host.waited_ms > 0,
            "{stats:?}"
        );
    }

    #[test]
    fn a_reset_gives_nothing_and_leaves_no_timer() {
        let mut guest = Guest::new();
        let listener = guest.listen(1024);
        let _host = guest.connect(&listener, PORTS);
        guest.handle.limit(&NONE, &SLOW);
        guest.send(PORTS, Op::Rw, &[7; 48 << 10]);
        guest.send(PORTS, Op::Rw, b"later");
        guest.reset();
        guest.run();
        guest.start_driver();
        guest.give_buffers(RX_BUFFERS);
        guest.send(PORTS, Op::Rw, b"still too much");
        guest.expect_nothing();
        guest.handle.limit(&NONE, &NONE);
        guest.expect(Op::Rst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest does to many connections, what is held for it, and what
    /// waits to be said to it, stays within bounds.
    #[test]
    fn no_order_of_packets_exceeds_the_guests_bounds(
        packets in prop::collection::vec((0_u32..200, 0_u16..9, 0_usize..20_000), 1..300),
        listens in any::<bool>(),
    ) {
        let mut guest = Connections::new();
        guest.listener.set_nonblocking(true).unwrap();
        for (port, op, len) in packets {
            let op = Op::from_number(op).unwrap_or(Op::Request);
            let payload = vec![0; if op == Op::Rw { len } else { 0 }];
            guest.send(port, op, &payload);
            guest.hosts.extend(guest.listener.accept().map(|(host, _)| host));
            if listens {
                guest.packets();
            }
            prop_assert!(guest.muxer.held() <= HELD_MAX);
            prop_assert!(guest.muxer.unsaid() <= guest.muxer.connections() + 256);
        }
    }
}
