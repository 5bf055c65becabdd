//! The vsock device: transport, packets, connections, and the host's side of them.

#![no_main]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use arbitrary::Arbitrary;
use event_manager::{EventManager, SubscriberOps};
use fabric_fuzz::driver::{
    ANSWERS, MEMORY, Piece, Poke, Queue, Registers, Setup, Shape, bring_up, get, guest_memory,
    interrupt_line, readable, set, writable,
};
use fabric_fuzz::rarely::Rarely;
use fabric_fuzz::scratch::Scratch;
use fabric_vmm::devices::virtio::{MmioTransport, RING_FEATURES};
use fabric_vmm::devices::vsock::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use fabric_vmm::devices::vsock::{Vsock, VsockEventHandler};
use fabric_vmm::memory::GuestMemory;
use libfuzzer_sys::fuzz_target;
use virtio_bindings::virtio_mmio as register;
use vm_memory::{Bytes, GuestAddress};

const CID: u64 = 3;
/// The port at which the host listens, and one at which it does not.
const PORTS: [u32; 2] = [1024, 1025];
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Where buffers for packets to the guest are: more than a queue takes at a time.
const SLOTS: u64 = 0x1_0000;
const SLOT: u64 = 0x800;
const SLOT_COUNT: u64 = 40;
/// Turns of the event loop after which it is left alone.
const TURNS: usize = 16;

#[derive(Arbitrary, Debug)]
struct Input {
    setup: Setup,
    acts: Vec<Act>,
}

#[derive(Arbitrary, Debug)]
enum Act {
    Send(Packet),
    SendMany(Packet, u8),
    Offer(Piece, Shape),
    OfferMany(u8),
    OfferEvent(Piece, Shape),
    Turn,
    Host(Host),
    Again(Setup),
    Suspend,
    Registers(Rarely<Registers>),
    Poke(Rarely<Poke>),
}

#[derive(Arbitrary, Debug, Clone)]
struct Packet {
    op: u8,
    host_port: u8,
    guest_port: u8,
    flags: u8,
    credit: u16,
    forwarded: u16,
    payload: Piece,
    odd: Rarely<Odd>,
    shape: Shape,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Odd {
    Op(u16),
    Type(u16),
    Length(u32),
    Flags(u32),
    Source(u64),
    Target(u64),
    HostPort(u32),
    Credit(u32),
    Forwarded(u32),
}

#[derive(Arbitrary, Debug)]
enum Host {
    Connect,
    Name(u8, u8),
    Write(u8, u16),
    Line(u8, [u8; 8]),
    Read(u8, u16),
    EndWriting(u8),
    EndReading(u8),
    Close(u8),
    Accept,
}

/// What stays from one input to the next: a device of which nothing is left after a
/// reset.
struct Machine {
    transport: MmioTransport,
    memory: GuestMemory,
    manager: EventManager<VsockEventHandler>,
    listener: UnixListener,
    path: PathBuf,
    _scratch: Scratch,
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new());
}

fuzz_target!(|input: Input| {
    MACHINE.with_borrow_mut(|machine| {
        Guest::new(machine, &input.setup).run(&input.acts);
        machine.clear();
    });
});

impl Machine {
    fn new() -> Self {
        let scratch = Scratch::new();
        let path = scratch.path("v");
        let device = Vsock::new(CID, &path).expect("a device");
        let mut manager = EventManager::new().expect("an event loop");
        manager.add_subscriber(device.event_handler());
        let listener = UnixListener::bind(scratch.path("v_1024")).expect("a listener");
        listener
            .set_nonblocking(true)
            .expect("a listener that does not wait");
        let memory = guest_memory();
        Self {
            transport: MmioTransport::new(Box::new(device), memory.clone(), interrupt_line()),
            memory,
            manager,
            listener,
            path,
            _scratch: scratch,
        }
    }

    fn turn(&mut self) {
        for _ in 0..TURNS {
            if self.manager.run_with_timeout(0).expect("the event loop") == 0 {
                break;
            }
        }
    }

    fn clear(&mut self) {
        set(&mut self.transport, register::VIRTIO_MMIO_STATUS, 0);
        self.turn();
        while self.listener.accept().is_ok() {}
        self.memory
            .write_slice(&[0; MEMORY], GuestAddress(0))
            .expect("memory");
    }
}

struct Guest<'a> {
    machine: &'a mut Machine,
    queues: Vec<Queue>,
    host: Vec<UnixStream>,
    careful: bool,
    sent: u64,
    offered: u64,
    /// Ports, of the host and here, of the calls that have come from the host.
    calls: Vec<(u32, u32)>,
}

impl<'a> Guest<'a> {
    fn new(machine: &'a mut Machine, setup: &Setup) -> Self {
        let mut guest = Self {
            machine,
            queues: Vec::new(),
            host: Vec::new(),
            careful: true,
            sent: 0,
            offered: 0,
            calls: Vec::new(),
        };
        guest.set_up(setup);
        guest
    }

    fn set_up(&mut self, setup: &Setup) {
        self.careful &= !setup.flaw.is_there();
        let offered = 1 | RING_FEATURES;
        self.queues = bring_up(&mut self.machine.transport, setup, offered, 3);
    }

    fn run(&mut self, acts: &[Act]) {
        for act in acts {
            self.act(act);
        }
        self.turn();
        if self.careful {
            let status = get(&mut self.machine.transport, register::VIRTIO_MMIO_STATUS);
            assert_eq!(status, 15, "a careful driver's device runs");
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Send(packet) => self.send(packet),
            Act::SendMany(packet, count) => {
                for _ in 0..count % 32 {
                    self.send(packet);
                }
            }
            Act::Offer(piece, shape) => {
                let len = piece.place().1.min(SLOT as u32);
                self.offer_slot(len, shape);
            }
            Act::OfferMany(count) => {
                for _ in 0..count % 16 {
                    self.offer_slot(SLOT as u32, &Shape::right());
                }
            }
            Act::OfferEvent(piece, shape) => {
                self.offer(EVENT, piece.place(), shape);
            }
            Act::Turn => self.turn(),
            Act::Host(act) => self.host(act),
            Act::Again(setup) => {
                set(&mut self.machine.transport, register::VIRTIO_MMIO_STATUS, 0);
                self.machine
                    .memory
                    .write_slice(&[0; 0xc000], GuestAddress(0))
                    .expect("rings");
                self.set_up(setup);
            }
            Act::Suspend => {
                self.machine.transport.suspend();
                self.machine.turn();
                self.machine
                    .transport
                    .resume()
                    .expect("a device that goes on");
            }
            Act::Registers(registers) => {
                if let Some(registers) = registers.0 {
                    self.careful = false;
                    registers.access(&mut self.machine.transport);
                }
            }
            Act::Poke(poke) => {
                if let Some(poke) = poke.0 {
                    self.careful = false;
                    poke.write(&self.machine.memory);
                }
            }
        }
    }

    fn send(&mut self, packet: &Packet) {
        self.careful &= !packet.shape.flaw.is_there();
        if self.queues[TX].is_full(&self.machine.memory, 2) {
            self.turn();
            if self.queues[TX].is_full(&self.machine.memory, 2) {
                // It waits for the guest to take what it has to say.
                return;
            }
        }
        let at = ANSWERS + (self.sent % 64) * 64;
        self.sent += 1;
        let (payload, len) = packet.payload.place();
        let header = self.header(packet, len).to_bytes();
        self.machine
            .memory
            .write_slice(&header, GuestAddress(at))
            .expect("a header");
        let chain = [readable((at, HEADER_LEN as u32)), readable((payload, len))];
        let chain = if len == 0 { &chain[..1] } else { &chain };
        self.queues[TX].add(&self.machine.memory, chain, &packet.shape);
        self.notify(TX);
    }

    /// Offers a buffer; whether there was room for it.
    fn offer(&mut self, queue: usize, place: (u64, u32), shape: &Shape) -> bool {
        // One too short for a header is the driver's mistake, and stops the device.
        self.careful &= !shape.flaw.is_there() && place.1 > HEADER_LEN as u32;
        if self.queues[queue].is_full(&self.machine.memory, 1) {
            return false;
        }
        self.queues[queue].add(&self.machine.memory, &[writable(place)], shape);
        self.notify(queue);
        true
    }

    /// Offers a buffer for a packet that no other one overlaps.
    fn offer_slot(&mut self, len: u32, shape: &Shape) {
        let at = SLOTS + self.offered % SLOT_COUNT * SLOT;
        if self.offer(RX, (at, len), shape) {
            self.offered += 1;
        }
    }

    fn notify(&mut self, queue: usize) {
        let number = queue as u32;
        set(
            &mut self.machine.transport,
            register::VIRTIO_MMIO_QUEUE_NOTIFY,
            number,
        );
    }

    fn turn(&mut self) {
        self.machine.turn();
        set(
            &mut self.machine.transport,
            register::VIRTIO_MMIO_INTERRUPT_ACK,
            3,
        );
        while let Some((head, written)) = self.queues[RX].take_used(&self.machine.memory) {
            self.receive(head, written);
        }
    }

    fn receive(&mut self, head: u32, written: u32) {
        let Some(at) = self.queues[RX].buffer(&self.machine.memory, head) else {
            return;
        };
        let mut bytes = [0; HEADER_LEN];
        if self
            .machine
            .memory
            .read_slice(&mut bytes, GuestAddress(at))
            .is_err()
        {
            return;
        }
        let header = Header::from_bytes(&bytes);
        if self.careful {
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            assert!(Op::from_number(header.op).is_some());
            assert_eq!(header.len.checked_add(HEADER_LEN as u32), Some(written));
        }
        if header.op == Op::Request as u16 {
            self.calls.push((header.src_port, header.dst_port));
        }
    }

    fn header(&self, packet: &Packet, len: u32) -> Header {
        let index = usize::from(packet.host_port >> 1);
        let of_a_call = packet.host_port & 1 == 1 && !self.calls.is_empty();
        let (host, guest) = if of_a_call {
            self.calls[index % self.calls.len()]
        } else {
            (PORTS[index & 1], u32::from(packet.guest_port % 4))
        };
        let mut header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            len,
            socket_type: TYPE_STREAM,
            op: [1, 2, 3, 4, 5, 6, 7, 5][usize::from(packet.op & 7)],
            flags: u32::from(packet.flags & 3),
            buf_alloc: u32::from(packet.credit),
            fwd_cnt: u32::from(packet.forwarded),
        };
        match packet.odd.0 {
            Some(Odd::Op(op)) => header.op = op,
            Some(Odd::Type(socket_type)) => header.socket_type = socket_type,
            Some(Odd::Length(len)) => header.len = len,
            Some(Odd::Flags(flags)) => header.flags = flags,
            Some(Odd::Source(cid)) => header.src_cid = cid,
            Some(Odd::Target(cid)) => header.dst_cid = cid,
            Some(Odd::HostPort(port)) => header.dst_port = port,
            Some(Odd::Credit(credit)) => header.buf_alloc = credit,
            Some(Odd::Forwarded(count)) => header.fwd_cnt = count,
            None => {}
        }
        header
    }

    fn host(&mut self, act: &Host) {
        match *act {
            Host::Connect => {
                if self.host.len() < 16
                    && let Ok(stream) = UnixStream::connect(&self.machine.path)
                {
                    self.keep(stream);
                }
            }
            Host::Accept => {
                if let Ok((stream, _)) = self.machine.listener.accept() {
                    self.keep(stream);
                }
            }
            Host::Name(which, port) => {
                self.write(which, format!("CONNECT {}\n", port % 4).as_bytes());
            }
            Host::Write(which, len) => self.write(which, &vec![b'x'; usize::from(len)]),
            Host::Line(which, bytes) => self.write(which, &bytes),
            Host::Read(which, len) => {
                if let Some(stream) = self.stream(which) {
                    let _ = stream.read(&mut vec![0; usize::from(len)]);
                }
            }
            Host::EndWriting(which) => self.end(which, Shutdown::Write),
            Host::EndReading(which) => self.end(which, Shutdown::Read),
            Host::Close(which) => {
                if !self.host.is_empty() {
                    let index = usize::from(which) % self.host.len();
                    self.host.swap_remove(index);
                }
            }
        }
    }

    fn keep(&mut self, stream: UnixStream) {
        stream
            .set_nonblocking(true)
            .expect("a stream that does not wait");
        self.host.push(stream);
    }

    fn stream(&mut self, which: u8) -> Option<&mut UnixStream> {
        let count = self.host.len().max(1);
        self.host.get_mut(usize::from(which) % count)
    }

    fn write(&mut self, which: u8, bytes: &[u8]) {
        if let Some(stream) = self.stream(which) {
            let _ = stream.write(bytes);
        }
    }

    fn end(&mut self, which: u8, how: Shutdown) {
        if let Some(stream) = self.stream(which) {
            let _ = stream.shutdown(how);
        }
    }
}
