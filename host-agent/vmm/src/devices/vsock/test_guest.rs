//! A guest with a vsock device whose driver is played by a test: packets on one
//! side, unix sockets on the other, the real event loop between them.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use tempfile::TempDir;
use virtio_bindings::virtio_mmio as register;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::packet::{HEADER_LEN, HOST_CID, Header, Op, Ports, Shutdown, TYPE_STREAM};
use super::{Vsock, VsockEventHandler, VsockHandle};
use crate::devices::virtio::MmioTransport;
use crate::devices::virtio::test_driver::*;
use crate::memory::GuestMemory;

pub const CID: u64 = 3;
pub const RX_RINGS: u64 = 0x1_0000;
pub const TX_RINGS: u64 = 0x2_0000;
pub const EVENT_RINGS: u64 = 0x3_0000;
pub const RX_BUFFER: u32 = 4096;
pub const RX_BUFFERS: u64 = 64;
pub const TX_BUFFER: u64 = BUFFERS + RX_BUFFERS * 0x2000;
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A guest with a vsock device, its driver played by the test.
pub struct Guest {
    // Dropped in this order: sockets go before the directory they are in.
    pub manager: EventManager<VsockEventHandler>,
    pub transport: MmioTransport,
    pub memory: GuestMemory,
    pub rx: DriverQueue,
    pub tx: DriverQueue,
    pub event: DriverQueue,
    pub irq: EventFd,
    pub dir: TempDir,
    pub handle: VsockHandle,
}

impl Guest {
    /// A guest whose driver runs and has given receive buffers.
    pub fn new() -> Guest {
        let mut guest = Guest::without_driver();
        guest.start_driver();
        guest.give_buffers(RX_BUFFERS);
        guest
    }

    pub fn without_driver() -> Guest {
        Guest::with_device(|_| {})
    }

    /// A guest without a driver, its device prepared before it is plugged in.
    pub fn with_device(prepare: impl FnOnce(&Vsock)) -> Guest {
        raise_descriptor_limit();
        let dir = tempfile::tempdir().unwrap();
        let memory = guest_memory();
        let vsock = Vsock::new(CID, &dir.path().join("v")).unwrap();
        prepare(&vsock);
        let handle = vsock.handle();
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(vsock.event_handler());
        let (line, irq) = interrupt_line();
        Guest {
            manager,
            transport: MmioTransport::new(Box::new(vsock), memory.clone(), line),
            rx: DriverQueue::new(&memory, RX_RINGS, 256),
            tx: DriverQueue::new(&memory, TX_RINGS, 256),
            event: DriverQueue::new(&memory, EVENT_RINGS, 16),
            irq,
            dir,
            memory,
            handle,
        }
    }

    pub fn start_driver(&mut self) {
        bring_up(&mut self.transport, 0, &[&self.rx, &self.tx, &self.event]);
    }

    pub fn reset(&mut self) {
        write(&mut self.transport, register::VIRTIO_MMIO_STATUS, 0);
        for (queue, rings, size) in [
            (&mut self.rx, RX_RINGS, 256),
            (&mut self.tx, TX_RINGS, 256),
            (&mut self.event, EVENT_RINGS, 16),
        ] {
            self.memory
                .write_slice(&[0; 0x5000], GuestAddress(rings))
                .unwrap();
            *queue = DriverQueue::new(&self.memory, rings, size);
        }
    }

    pub fn status(&mut self) -> u32 {
        read(&mut self.transport, register::VIRTIO_MMIO_STATUS)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    /// Listens where the guest's connections to `port` arrive.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v_{port}"))).unwrap()
    }

    pub fn give_buffers(&mut self, count: u64) {
        for index in 0..count {
            let at = BUFFERS + index * 0x2000;
            self.rx.add(&[
                writable(at, HEADER_LEN as u32),
                writable(at + 0x1000, RX_BUFFER),
            ]);
        }
        self.notify(0);
    }

    pub fn notify(&mut self, queue: usize) {
        self.transport.queue_events()[queue].write(1).unwrap();
    }

    /// Runs the event loop until it has nothing to do.
    pub fn run(&mut self) {
        while self.manager.run_with_timeout(0).unwrap() > 0 {}
    }

    /// Runs the event loop until `done`.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Guest) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            self.manager.run_with_timeout(10).unwrap();
        }
    }

    /// Sends a packet as it stands.
    pub fn send_raw(&mut self, header: Header, payload: &[u8]) {
        self.memory
            .write_slice(&header.to_bytes(), GuestAddress(TX_BUFFER))
            .unwrap();
        self.memory
            .write_slice(payload, GuestAddress(TX_BUFFER + 0x1000))
            .unwrap();
        let mut chain = vec![readable(TX_BUFFER, HEADER_LEN as u32)];
        if !payload.is_empty() {
            chain.push(readable(TX_BUFFER + 0x1000, payload.len() as u32));
        }
        self.tx.add(&chain);
        self.notify(1);
        self.run();
        while self.tx.take_used().is_some() {}
    }

    pub fn send(&mut self, ports: Ports, op: Op, payload: &[u8]) {
        self.send_raw(
            Header {
                len: payload.len() as u32,
                ..from_guest(ports, op)
            },
            payload,
        );
    }

    pub fn send_shutdown(&mut self, ports: Ports, shutdown: Shutdown) {
        self.send_raw(
            Header {
                flags: shutdown.flags(),
                ..from_guest(ports, Op::Shutdown)
            },
            &[],
        );
    }

    /// The next packet that the device has put into a buffer, if any; the buffer
    /// is given back.
    pub fn try_receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.run();
        let (head, len) = self.rx.take_used()?;
        let at = BUFFERS + u64::from(head / 2) * 0x2000;
        let mut bytes = [0; HEADER_LEN];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.len as usize + HEADER_LEN, len as usize);
        let mut payload = vec![0; header.len as usize];
        self.memory
            .read_slice(&mut payload, GuestAddress(at + 0x1000))
            .unwrap();
        self.rx.add_head(head);
        self.notify(0);
        Some((header, payload))
    }

    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        let mut received = None;
        self.run_until("a packet", |guest| {
            received = guest.try_receive();
            received.is_some()
        });
        received.unwrap()
    }

    pub fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.receive();
        assert_eq!(Op::from_number(header.op), Some(op), "{header:?}");
        header
    }

    pub fn expect_nothing(&mut self) {
        let packet = self.try_receive();
        assert_eq!(packet, None);
    }

    /// A connection that the guest has asked for and the host accepted.
    pub fn connect(&mut self, listener: &UnixListener, ports: Ports) -> UnixStream {
        self.send(ports, Op::Request, &[]);
        self.expect(Op::Response);
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection that the host has asked for and the guest accepted.
    pub fn call(&mut self, port: u32) -> (UnixStream, Ports) {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        let request = self.expect(Op::Request);
        let ports = Ports {
            host: request.src_port,
            guest: request.dst_port,
        };
        self.send(ports, Op::Response, &[]);
        assert_eq!(read_line(&mut stream), format!("OK {}\n", ports.host));
        (stream, ports)
    }
}

/// Both ends of all connections are in this one process.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

pub fn from_guest(ports: Ports, op: Op) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        socket_type: TYPE_STREAM,
        op: op as u16,
        buf_alloc: 256 << 10,
        ..Header::default()
    }
}

pub fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

pub const PORTS: Ports = Ports {
    host: 1024,
    guest: 7000,
};
