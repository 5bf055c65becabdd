//! The vsock device as guest and host meet it.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown as How;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::credit::BUFFER_SIZE;
use super::muxer::{MAX_CONNECTIONS, MAX_OWN_CALLS};
use super::packet::{HEADER_LEN, Header, Op, Ports, Shutdown};
use super::test_guest::*;
use super::{Vsock, VsockError};
use crate::devices::virtio::test_driver::*;

#[test]
fn a_guest_connects_to_the_host_and_both_speak() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);

    guest.send(PORTS, Op::Rw, b"hello host");
    let mut heard = [0; 10];
    host.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello host");

    host.write_all(b"hello guest").unwrap();
    let (header, payload) = guest.receive();
    assert_eq!(
        (header.op, &payload[..]),
        (Op::Rw as u16, &b"hello guest"[..])
    );
    assert_eq!((header.src_port, header.dst_port), (1024, 7000));
    assert_eq!(
        header.fwd_cnt, 10,
        "every packet says what the host has taken"
    );
}

#[test]
fn a_host_connects_to_the_guest_by_the_convention() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.call(52);
    assert_eq!(ports.guest, 52);
    guest.send(ports, Op::Rw, b"welcome");
    let mut heard = [0; 7];
    host.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"welcome");
}

#[test]
fn the_call_at_which_a_machine_becomes_a_template_is_not_answered() {
    let session = |guest| Ports { host: 1024, guest };
    for after in [None, Some(1026)] {
        let sign = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let theirs = sign.try_clone().unwrap();
        let mut guest = Guest::with_device(|vsock| vsock.stop_at_call(1024, after, theirs));
        guest.start_driver();
        guest.give_buffers(RX_BUFFERS);
        let listener = guest.listen(1024);
        let _host = after.map(|host| {
            let stream = guest.connect(&listener, session(1));
            guest.send(Ports { host, guest: 2 }, Op::Request, &[]);
            guest.expect(Op::Rst);
            stream
        });
        assert!(sign.read().is_err(), "too soon");
        guest.send(session(3), Op::Request, &[]);
        sign.read().unwrap();
        guest.expect_nothing();
    }
}

#[test]
fn a_machine_stops_at_one_call_after_the_other_and_goes_on_when_it_is_let() {
    let sign = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (booted, template) = (sign(), sign());
    for comes_early in [false, true] {
        let theirs = [&booted, &template].map(|sign| sign.try_clone().unwrap());
        let mut guest = Guest::with_device(|vsock| {
            for (port, sign) in [1028, 1024].into_iter().zip(theirs) {
                vsock.stop_at_call(port, None, sign);
            }
        });
        guest.start_driver();
        guest.give_buffers(RX_BUFFERS);
        let ports = |host| Ports { host, guest: host };
        if !comes_early {
            guest.send(ports(1028), Op::Request, &[]);
            booted.read().unwrap();
            guest.expect_nothing();
            guest.handle.go_on();
            // It is looked at again.
            guest.send(ports(1030), Op::Request, &[]);
            guest.expect(Op::Rst);
            guest.expect(Op::Rst);
        }
        assert!(template.read().is_err(), "too soon");
        guest.send(ports(1024), Op::Request, &[]);
        template.read().unwrap();
        assert!(booted.read().is_err(), "it was passed by");
        guest.expect_nothing();
    }
}

#[test]
fn what_the_host_writes_before_the_ok_is_not_lost() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.path()).unwrap();
    host.write_all(b"CONNECT 9\nearly").unwrap();
    let request = guest.expect(Op::Request);
    guest.send(
        Ports {
            host: request.src_port,
            guest: 9,
        },
        Op::Response,
        &[],
    );
    assert_eq!(guest.receive().1, b"early");
}

#[test]
fn a_port_where_nobody_listens_is_refused_on_either_side() {
    let mut guest = Guest::new();
    guest.send(PORTS, Op::Request, &[]);
    guest.expect(Op::Rst);

    let mut host = UnixStream::connect(guest.path()).unwrap();
    host.write_all(b"CONNECT 1\n").unwrap();
    let request = guest.expect(Op::Request);
    guest.send(
        Ports {
            host: request.src_port,
            guest: 1,
        },
        Op::Rst,
        &[],
    );
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_caller_that_does_not_know_the_convention_is_sent_away() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.path()).unwrap();
    host.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    guest.run_until("the caller to be sent away", |_| {
        host.set_nonblocking(true).unwrap();
        !matches!(host.read(&mut [0; 8]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    });
    guest.expect_nothing();
}

#[test]
fn a_caller_before_the_driver_runs_is_sent_away() {
    let mut guest = Guest::without_driver();
    let mut host = UnixStream::connect(guest.path()).unwrap();
    guest.run();
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn the_machine_itself_calls_the_guest_however_many_connections_there_are() {
    let mut guest = Guest::without_driver();
    assert!(guest.handle.call_guest(52).unwrap().is_none());
    guest.start_driver();
    guest.give_buffers(RX_BUFFERS);
    let listener = guest.listen(1024);
    let mut hosts = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        let ports = Ports {
            host: 1024,
            guest: 10_000 + port,
        };
        hosts.push(guest.connect(&listener, ports));
    }
    let mut ours = guest.handle.call_guest(52).unwrap().unwrap();
    let request = guest.expect(Op::Request);
    assert_eq!(request.dst_port, 52);
    let ports = Ports {
        host: request.src_port,
        guest: 52,
    };
    guest.send(ports, Op::Response, &[]);
    guest.send(ports, Op::Rw, b"ok\n");
    let mut heard = [0; 32];
    let count = ours.read(&mut heard).unwrap();
    let said = format!("OK {}\nok\n", ports.host);
    assert_eq!(std::str::from_utf8(&heard[..count]), Ok(said.as_str()));

    // Of those, too, there are no more than so many.
    let calls: Vec<_> = (1..MAX_OWN_CALLS)
        .map(|_| guest.handle.call_guest(52).unwrap())
        .collect();
    guest.handle.call_guest(52).unwrap_err();
    drop(calls);
}

#[test]
fn the_guest_half_closes_and_still_hears_the_host() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    guest.send(PORTS, Op::Rw, b"question");
    guest.send_shutdown(
        PORTS,
        Shutdown {
            send: true,
            receive: false,
        },
    );
    let mut question = String::new();
    host.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");

    host.write_all(b"answer").unwrap();
    assert_eq!(guest.receive().1, b"answer");
    drop(host);
    let last = guest.expect(Op::Shutdown);
    assert_eq!(Shutdown::from_flags(last.flags), Shutdown::BOTH);
}

#[test]
fn the_host_half_closes_and_still_hears_the_guest() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    host.write_all(b"question").unwrap();
    host.shutdown(How::Write).unwrap();
    assert_eq!(guest.receive().1, b"question");
    let half = guest.expect(Op::Shutdown);
    assert_eq!(
        Shutdown::from_flags(half.flags),
        Shutdown {
            send: true,
            receive: false
        }
    );

    guest.send(PORTS, Op::Rw, b"answer");
    guest.send_shutdown(PORTS, Shutdown::BOTH);
    let mut answer = String::new();
    host.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    guest.expect(Op::Rst);
}

#[test]
fn a_guest_that_refuses_to_hear_makes_the_hosts_writes_fail() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    guest.send_shutdown(
        PORTS,
        Shutdown {
            receive: true,
            send: false,
        },
    );
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send(PORTS, Op::Rw, b"still speaking");
    let mut heard = [0; 14];
    host.read_exact(&mut heard).unwrap();
}

#[test]
fn a_reset_by_the_guest_ends_the_hosts_stream() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    guest.send(PORTS, Op::Rst, &[]);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    guest.send(PORTS, Op::Rw, b"ghost");
    guest.expect(Op::Rst);
}

#[test]
fn a_host_that_goes_away_is_told_to_the_guest_after_its_last_words() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    host.write_all(&[7; 10_000]).unwrap();
    drop(host);
    let mut heard = Vec::new();
    let last = loop {
        let (header, payload) = guest.receive();
        if header.op == Op::Shutdown as u16 && Shutdown::from_flags(header.flags).send {
            break header;
        }
        heard.extend(payload);
    };
    assert_eq!(heard, [7; 10_000]);
    assert_eq!(Shutdown::from_flags(last.flags), Shutdown::BOTH);
    guest.send(PORTS, Op::Rst, &[]);
    guest.expect_nothing();
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    guest.send_raw(
        Header {
            buf_alloc: 1000,
            ..from_guest(PORTS, Op::Request)
        },
        &[],
    );
    guest.expect(Op::Response);
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(&[1; 3000]).unwrap();

    assert_eq!(guest.receive().1.len(), 1000);
    guest.expect(Op::CreditRequest);
    guest.expect_nothing();
    let more = Header {
        buf_alloc: 1000,
        fwd_cnt: 400,
        ..from_guest(PORTS, Op::CreditUpdate)
    };
    guest.send_raw(more, &[]);
    assert_eq!(guest.receive().1.len(), 400);
}

#[test]
fn a_host_that_never_reads_stops_its_own_connection_alone() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let lazy = guest.connect(&listener, PORTS);
    let other_ports = Ports {
        guest: 7001,
        ..PORTS
    };
    let mut other = guest.connect(&listener, other_ports);

    // An honest guest sends until its credit is used up.
    let (mut sent, mut taken) = (0_u32, 0_u32);
    let mut idle = 0;
    while idle < 3 {
        let room = BUFFER_SIZE as u32 - (sent - taken);
        if room > 0 {
            let some = room.min(16 << 10);
            guest.send(PORTS, Op::Rw, &vec![5; some as usize]);
            sent += some;
        }
        match guest.try_receive() {
            Some((header, _)) => {
                assert_eq!(header.op, Op::CreditUpdate as u16);
                taken = header.fwd_cnt;
            }
            None if room == 0 => idle += 1,
            None => {}
        }
    }
    assert!(sent - taken <= BUFFER_SIZE as u32);

    guest.send(other_ports, Op::Rw, b"unhindered");
    let mut heard = [0; 10];
    other.read_exact(&mut heard).unwrap();

    // When it reads at last, everything is there and the guest hears of room.
    let mut lazy = lazy;
    let mut all = vec![0; sent as usize];
    let reader = std::thread::spawn(move || {
        lazy.read_exact(&mut all).unwrap();
        (lazy, all)
    });
    guest.run_until("room", |guest| {
        guest
            .try_receive()
            .is_some_and(|(header, _)| header.fwd_cnt == sent)
            || taken == sent
    });
    let (_lazy, all) = reader.join().unwrap();
    assert!(all.iter().all(|byte| *byte == 5));
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let _lazy = guest.connect(&listener, PORTS);
    guest.run_until("the reset", |guest| {
        guest.send(PORTS, Op::Rw, &[0; 32 << 10]);
        guest
            .try_receive()
            .is_some_and(|(header, _)| header.op == Op::Rst as u16)
    });
}

#[test]
fn a_guest_that_takes_no_packets_loses_none() {
    let mut guest = Guest::without_driver();
    guest.start_driver();
    let listener = guest.listen(1024);
    guest.send(PORTS, Op::Request, &[]);
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(b"patience").unwrap();
    guest.run();
    guest.give_buffers(2);
    guest.expect(Op::Response);
    assert_eq!(guest.receive().1, b"patience");
}

#[test]
fn no_receive_buffer_is_lost_over_many_messages() {
    let mut guest = Guest::without_driver();
    guest.start_driver();
    guest.give_buffers(4);
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    for message in 0..300_u32 {
        host.write_all(&message.to_le_bytes()).unwrap();
        assert_eq!(guest.receive().1, message.to_le_bytes());
        guest.expect_nothing();
    }
}

#[test]
fn a_flood_of_nonsense_is_answered_in_bounded_memory() {
    let mut guest = Guest::without_driver();
    guest.start_driver();
    // Every one asks for an answer, and there is nowhere to put it.
    let mut given_back = 0;
    for guest_port in 0..400 {
        let header = from_guest(
            Ports {
                host: 9,
                guest: guest_port,
            },
            Op::Rw,
        );
        guest
            .memory
            .write_slice(&header.to_bytes(), GuestAddress(TX_BUFFER))
            .unwrap();
        guest.tx.add(&[readable(TX_BUFFER, HEADER_LEN as u32)]);
        guest.notify(1);
        guest.run();
        while guest.tx.take_used().is_some() {
            given_back += 1;
        }
        if given_back <= guest_port {
            break;
        }
    }
    assert_eq!(given_back, 256, "then the guest has to wait");

    // As soon as it takes its answers, it is heard again.
    guest.give_buffers(RX_BUFFERS);
    guest.run_until("the last packet to be heard", |guest| {
        while guest.try_receive().is_some() {}
        guest.tx.take_used().is_some()
    });
}

#[test]
fn packets_for_others_or_from_others_are_ignored() {
    let mut guest = Guest::new();
    let _listener = guest.listen(1024);
    let request = from_guest(PORTS, Op::Request);
    guest.send_raw(
        Header {
            src_cid: CID + 1,
            ..request
        },
        &[],
    );
    guest.send_raw(
        Header {
            dst_cid: 1,
            ..request
        },
        &[],
    );
    guest.expect_nothing();
    guest.send_raw(
        Header {
            socket_type: 2,
            ..request
        },
        &[],
    );
    guest.expect(Op::Rst);
}

#[test]
fn a_packet_that_lies_about_its_length_resets_its_connection() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    guest.send_raw(
        Header {
            len: 100,
            ..from_guest(PORTS, Op::Rw)
        },
        b"short",
    );
    guest.expect(Op::Rst);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    guest.send_raw(
        Header {
            len: u32::MAX,
            ..from_guest(PORTS, Op::Rw)
        },
        &[],
    );
    guest.expect(Op::Rst);
}

#[test]
fn chains_without_a_header_are_given_back() {
    let mut guest = Guest::new();
    for chain in [
        vec![readable(TX_BUFFER, 10)],
        vec![writable(TX_BUFFER, 44)],
        vec![readable(1 << 50, 44)],
    ] {
        guest.tx.add(&chain);
        guest.notify(1);
        guest.run();
        assert!(guest.tx.take_used().is_some());
    }
    assert_eq!(guest.status(), 15);
    guest.expect_nothing();
}

#[test]
fn a_receive_buffer_outside_memory_makes_the_device_need_a_reset() {
    let mut guest = Guest::without_driver();
    guest.start_driver();
    guest.rx.add(&[writable(1 << 50, 4096)]);
    guest.send(PORTS, Op::Request, &[]);
    assert_eq!(guest.status(), 15 | 64);
}

#[test]
fn a_device_reset_ends_all_connections_and_the_next_driver_starts_afresh() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    guest.reset();
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);

    guest.start_driver();
    guest.give_buffers(RX_BUFFERS);
    let mut again = guest.connect(&listener, PORTS);
    guest.send(PORTS, Op::Rw, b"again");
    let mut heard = [0; 5];
    again.read_exact(&mut heard).unwrap();
}

#[test]
fn a_thousand_connections_speak_at_once() {
    const COUNT: u32 = 1024;
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let ports: Vec<_> = (0..COUNT)
        .map(|i| Ports {
            host: 1024,
            guest: 10_000 + i,
        })
        .collect();
    let mut hosts: Vec<_> = ports
        .iter()
        .map(|ports| guest.connect(&listener, *ports))
        .collect();
    for (index, host) in hosts.iter_mut().enumerate() {
        host.write_all(&(index as u32).to_le_bytes()).unwrap();
    }
    let mut heard = 0;
    while heard < COUNT {
        let (header, payload) = guest.receive();
        assert_eq!(payload, (header.dst_port - 10_000).to_le_bytes());
        heard += 1;
    }
}

#[test]
fn a_full_table_refuses_until_a_connection_ends() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let ports = |index| Ports {
        host: 1024,
        guest: index,
    };
    let mut hosts = Vec::new();
    for index in 0..MAX_CONNECTIONS as u32 {
        hosts.push(guest.connect(&listener, ports(index)));
    }
    let one_more = ports(MAX_CONNECTIONS as u32);
    guest.send(one_more, Op::Request, &[]);
    guest.expect(Op::Rst);

    guest.send_shutdown(ports(7), Shutdown::BOTH);
    guest.expect(Op::Rst);
    hosts.push(guest.connect(&listener, one_more));
}

#[test]
fn connections_with_much_to_say_take_turns() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let other_ports = Ports {
        guest: 7001,
        ..PORTS
    };
    let mut talker = guest.connect(&listener, PORTS);
    let mut other = guest.connect(&listener, other_ports);
    talker.write_all(&[1; 64 << 10]).unwrap();
    other.write_all(b"a word").unwrap();
    let mut before = 0;
    while guest.receive().0.dst_port != other_ports.guest {
        before += 1;
    }
    assert!(before <= 2, "{before} packets of the other came first");
}

#[test]
fn interrupts_come_only_where_the_driver_asked() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.connect(&listener, PORTS);
    guest.run();
    while interrupted(&guest.irq) {}
    // The driver looks at the ring by itself and wants no interrupt.
    guest
        .rx
        .set_used_event(guest.rx.used_index().wrapping_sub(1));
    host.write_all(b"quiet").unwrap();
    assert_eq!(guest.receive().1, b"quiet");
    assert!(!interrupted(&guest.irq));
    guest.rx.set_used_event(guest.rx.used_index());
    host.write_all(b"loud").unwrap();
    assert_eq!(guest.receive().1, b"loud");
    assert!(interrupted(&guest.irq));
}

#[test]
fn reserved_addresses_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        let error = Vsock::new(cid, &dir.path().join("v")).err().unwrap();
        assert!(matches!(error, VsockError::Cid { .. }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Packets of any content, among some that make sense, neither break the
    /// device nor hold memory beyond its bounds.
    #[test]
    fn any_packets_are_survived(
        packets in prop::collection::vec(
            (0_u32..3, 0_u16..10, any::<u32>(), 0_u32..2000, 0_usize..2000, any::<bool>()), 1..60,
        ),
    ) {
        let mut guest = Guest::new();
        let listener = guest.listen(1024);
        listener.set_nonblocking(true).unwrap();
        let mut hosts = Vec::new();
        for (port, op, credit, len, actual, honest) in packets {
            let header = Header {
                op,
                len: if honest { actual as u32 } else { len },
                flags: credit & 3,
                buf_alloc: credit,
                fwd_cnt: credit.rotate_left(7),
                ..from_guest(Ports { host: 1024, guest: port }, Op::Rw)
            };
            guest.send_raw(header, &vec![0; actual]);
            if let Ok((mut host, _)) = listener.accept() {
                let _ = host.write_all(b"from the host");
                hosts.push(host);
            }
            while guest.try_receive().is_some() {}
        }
        prop_assert_eq!(guest.status(), 15);
        // It still works.
        let ports = Ports { host: 1024, guest: 99 };
        guest.send(ports, Op::Request, &[]);
        guest.expect(Op::Response);
    }
}
