//! The queue of the block device: transport, requests, disk.

#![no_main]

use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use fabric_fuzz::block::{Threadless, Work};
use fabric_fuzz::disk::{self, Images, MemoryFile};
use fabric_fuzz::driver::{
    ANSWERS, Piece, Poke, Queue, Registers, Setup, Shape, bring_up, get, guest_memory,
    interrupt_line, readable, set, writable,
};
use fabric_fuzz::rarely::Rarely;
use fabric_vmm::devices::block::Block;
use fabric_vmm::devices::virtio::{MmioTransport, RING_FEATURES, VirtioDevice};
use fabric_vmm::memory::GuestMemory;
use libfuzzer_sys::fuzz_target;
use vhd::{BlockDevice, OpenOptions};
use virtio_bindings::virtio_mmio as register;
use vm_memory::{Bytes, GuestAddress};

static IMAGES: LazyLock<Images> = LazyLock::new(Images::new);

#[derive(Arbitrary, Debug)]
struct Input {
    disk: Kind,
    read_only: bool,
    setup: Setup,
    acts: Vec<Act>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

#[derive(Arbitrary, Debug)]
enum Act {
    Request(Request),
    Requests(Request, u8),
    Serve,
    Again(Setup),
    Suspend,
    Registers(Registers),
    Acknowledge(u32),
    Poke(Rarely<Poke>),
}

#[derive(Arbitrary, Debug, Clone)]
struct Request {
    kind: u8,
    odd_kind: Rarely<u32>,
    sector: u8,
    odd_sector: Rarely<u64>,
    pieces: [Piece; 2],
    one_piece: bool,
    odd_length: Rarely<Piece>,
    segment: Segment,
    status: Rarely<u16>,
    shape: Shape,
}

#[derive(Arbitrary, Debug, Clone)]
struct Segment {
    sector: u8,
    sectors: u8,
    odd: Rarely<(u64, u32, u32)>,
}

struct Driver {
    transport: MmioTransport,
    memory: GuestMemory,
    work: Work,
    queues: Vec<Queue>,
    offered: u64,
    /// Whether all has been in order so far.
    careful: bool,
    answers: u64,
}

fuzz_target!(|input: Input| {
    let device = Block::new(disk(input.disk), "fuzz", input.read_only).expect("a device");
    let offered = device.device_features() | RING_FEATURES;
    let (device, work) = Threadless::new(device);
    let memory = guest_memory();
    let transport = MmioTransport::new(Box::new(device), memory.clone(), interrupt_line());
    let mut driver = Driver {
        transport,
        memory,
        work,
        queues: Vec::new(),
        offered,
        careful: true,
        answers: 0,
    };
    driver.set_up(&input.setup);
    for act in &input.acts {
        driver.act(act);
    }
    driver.serve();
});

fn disk(kind: Kind) -> Arc<dyn BlockDevice> {
    let open = |bytes: &[u8], read_only, parent| {
        let options = OpenOptions {
            read_only,
            ..OpenOptions::default()
        };
        let file = MemoryFile::new(bytes.to_vec());
        Arc::new(disk::open(&file, &options, parent).expect("an image that is in order"))
    };
    match kind {
        Kind::Fixed => open(&IMAGES.fixed, false, None),
        Kind::Dynamic => open(&IMAGES.dynamic, false, None),
        Kind::Differencing => open(
            &IMAGES.child,
            false,
            Some(open(&IMAGES.dynamic, true, None)),
        ),
    }
}

impl Driver {
    fn set_up(&mut self, setup: &Setup) {
        self.careful &= !setup.flaw.is_there();
        self.queues = bring_up(&mut self.transport, setup, self.offered, 1);
        if self.careful {
            assert_eq!(get(&mut self.transport, register::VIRTIO_MMIO_STATUS), 15);
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Request(request) => self.request(request),
            Act::Requests(request, count) => {
                for _ in 0..count % 32 {
                    self.request(request);
                }
            }
            Act::Serve => self.serve(),
            Act::Again(setup) => {
                set(&mut self.transport, register::VIRTIO_MMIO_STATUS, 0);
                // What a driver leaves in its rings is not what it begins with.
                self.memory
                    .write_slice(&[0; 0x4000], GuestAddress(0))
                    .expect("rings");
                self.answers = 0;
                self.set_up(setup);
            }
            Act::Suspend => {
                self.transport.suspend();
                let resumed = self.transport.resume();
                assert!(resumed.is_ok() || !self.careful);
            }
            Act::Registers(registers) => {
                self.careful = false;
                registers.access(&mut self.transport);
            }
            Act::Acknowledge(bits) => {
                set(
                    &mut self.transport,
                    register::VIRTIO_MMIO_INTERRUPT_ACK,
                    *bits,
                );
            }
            Act::Poke(poke) => {
                if let Some(poke) = poke.0 {
                    self.careful = false;
                    poke.write(&self.memory);
                }
            }
        }
    }

    fn request(&mut self, request: &Request) {
        self.careful &= !request.shape.flaw.is_there() && !request.status.is_there();
        if self.careful && self.queues[0].is_full(&self.memory, 4) {
            self.serve();
        }
        let answer = ANSWERS + (self.answers % 64) * 64;
        self.answers += 1;
        let kind = request
            .odd_kind
            .or([0, 1, 0, 1, 4, 8, 11, 13][usize::from(request.kind & 7)]);
        let sector = request.odd_sector.or(u64::from(request.sector));
        let mut header = [0; 32];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        let (from, sectors, flags) = request.segment.odd.or((
            u64::from(request.segment.sector),
            u32::from(request.segment.sectors),
            0,
        ));
        header[16..24].copy_from_slice(&from.to_le_bytes());
        header[24..28].copy_from_slice(&sectors.to_le_bytes());
        header[28..].copy_from_slice(&flags.to_le_bytes());
        self.memory
            .write_slice(&header, GuestAddress(answer))
            .expect("a header");
        self.memory
            .write_obj(0xff_u8, GuestAddress(answer + 32))
            .expect("a status");

        let mut chain = vec![readable((answer, 16))];
        let data = request
            .pieces
            .iter()
            .take(if request.one_piece { 1 } else { 2 });
        let data = data.map(|piece| match request.odd_length.0 {
            Some(odd) => odd.place(),
            None => piece.sectors(),
        });
        match kind {
            1 => chain.extend(data.map(readable)),
            0 => chain.extend(data.map(writable)),
            8 => chain.push(writable((answer + 40, 20))),
            11 | 13 => chain.push(readable((answer + 16, 16))),
            _ => {}
        }
        let status = request.status.0.map_or(answer + 32, u64::from);
        chain.push(writable((status, 1)));
        self.queues[0].add(&self.memory, &chain, &request.shape);
    }

    /// Has the device work; all that was asked in order is answered then.
    fn serve(&mut self) {
        set(&mut self.transport, register::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        let runs = self.work.serve();
        let status = get(&mut self.transport, register::VIRTIO_MMIO_STATUS);
        assert!(
            !runs || status == 15,
            "a device that runs is one whose driver is ready"
        );
        if !self.careful {
            return;
        }
        assert!(runs, "a careful driver's device runs");
        assert_eq!(
            self.queues[0].outstanding(&self.memory),
            0,
            "chains are not back"
        );
        while let Some((_, written)) = self.queues[0].take_used(&self.memory) {
            assert!(written > 0, "a request without a status");
        }
        for answer in 0..self.answers.min(64) {
            let at = GuestAddress(ANSWERS + answer * 64 + 32);
            let status: u8 = self.memory.read_obj(at).expect("a status");
            assert!(status <= 2, "the status is {status}");
        }
    }
}
