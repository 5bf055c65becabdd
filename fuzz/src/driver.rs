//! A guest's driver of a virtio device: it brings the device up and puts chains of
//! descriptors into its rings, as it should but for the flaws of the input.

use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use fabric_vmm::devices::bus::MmioDevice;
use fabric_vmm::devices::virtio::MmioTransport;
use fabric_vmm::memory::GuestMemory;
use virtio_bindings::virtio_mmio as register;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::rarely::Rarely;

/// How much memory the guest has.
pub const MEMORY: usize = 256 << 10;
/// Where buffers are; in front of it are the rings.
pub const BUFFERS: u64 = 0x1_0000;
/// Where the device's small answers go; no buffer reaches it.
pub const ANSWERS: u64 = 0x3_8000;
/// What a queue has for its rings.
const QUEUE_STRIDE: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where indirect tables are.
const TABLES: u64 = 0x3000;
const DESCRIPTOR: u64 = 16;
/// Descriptors of an indirect table.
const TABLE_MAX: usize = 8;
/// Chains at a time that a careful driver has in a queue; no more than tables.
const CHAINS_MAX: u16 = 32;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A guest's memory, all zero.
///
/// # Panics
///
/// When the system gives none.
pub fn guest_memory() -> GuestMemory {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]);
    Arc::new(memory.expect("memory"))
}

/// An event to be raised as an interrupt.
///
/// # Panics
///
/// When the system gives none.
pub fn interrupt_line() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an event")
}

/// A part of a buffer.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub struct Piece {
    at: u16,
    len: u16,
}

impl Piece {
    /// Where it is and how long.
    pub fn place(self) -> (u64, u32) {
        (
            BUFFERS + u64::from(self.at) * 2,
            u32::from(self.len) & 0x3fff,
        )
    }

    /// The same, a whole number of sectors.
    pub fn sectors(self) -> (u64, u32) {
        let (at, len) = self.place();
        (at, len & !511)
    }
}

/// A descriptor as it is written.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A buffer that the device may read.
pub fn readable((address, len): (u64, u32)) -> Descriptor {
    Descriptor {
        address,
        len,
        flags: 0,
        next: 0,
    }
}

/// A buffer that the device may write.
pub fn writable((address, len): (u64, u32)) -> Descriptor {
    Descriptor {
        address,
        len,
        flags: WRITE,
        next: 0,
    }
}

/// How a chain is put into the ring.
#[derive(Arbitrary, Debug, Clone)]
pub struct Shape {
    indirect: bool,
    /// What is wrong with it.
    pub flaw: Rarely<Flaw>,
}

impl Shape {
    /// Nothing is wrong with it.
    pub fn right() -> Self {
        Self {
            indirect: false,
            flaw: Rarely(None),
        }
    }
}

/// What can be wrong with a chain.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Flaw {
    /// A descriptor's address.
    Address(u8, u64),
    /// A descriptor's length.
    Length(u8, u32),
    /// A descriptor's flags.
    Flags(u8, u16),
    /// A descriptor's successor.
    Next(u8, u16),
    /// The length of the indirect table.
    Table(u32),
    /// The head in the available ring.
    Head(u16),
    /// The available index.
    Index(u16),
}

/// A driver's queue.
#[derive(Debug)]
pub struct Queue {
    number: u32,
    size: u16,
    next: u16,
    available: u16,
    seen: u16,
    /// Descriptors given to the device since it had none.
    given: usize,
}

impl Queue {
    /// Queue `number` of a device, with `size` descriptors.
    pub fn new(number: u32, size: u16) -> Self {
        Self {
            number,
            size,
            next: 0,
            available: 0,
            seen: 0,
            given: 0,
        }
    }

    fn base(&self) -> u64 {
        u64::from(self.number) * QUEUE_STRIDE
    }

    /// Whether a chain of this length has to wait for others to come back, so that
    /// none is overwritten.
    pub fn is_full(&mut self, memory: &GuestMemory, len: usize) -> bool {
        let outstanding = self.outstanding(memory);
        if outstanding == 0 {
            self.given = 0;
        }
        outstanding >= CHAINS_MAX || self.given + len > usize::from(self.size)
    }

    /// How many chains are not back.
    pub fn outstanding(&self, memory: &GuestMemory) -> u16 {
        self.available.wrapping_sub(self.used_index(memory))
    }

    fn used_index(&self, memory: &GuestMemory) -> u16 {
        read(memory, self.base() + USED + 2)
    }

    /// Where the first buffer of a chain is that was made available directly.
    pub fn buffer(&self, memory: &GuestMemory, head: u32) -> Option<u64> {
        let at = self.base() + u64::from(head) * DESCRIPTOR;
        let flags: u16 = read(memory, at + 12);
        (head < u32::from(self.size) && flags & INDIRECT == 0).then(|| read(memory, at))
    }

    /// The next chain that is back, its length written.
    pub fn take_used(&mut self, memory: &GuestMemory) -> Option<(u32, u32)> {
        if self.seen == self.used_index(memory) {
            return None;
        }
        let slot = self.base() + USED + 4 + u64::from(self.seen % self.size) * 8;
        self.seen = self.seen.wrapping_add(1);
        Some((read(memory, slot), read(memory, slot + 4)))
    }

    /// Makes a chain available; returns its head.
    pub fn add(&mut self, memory: &GuestMemory, chain: &[Descriptor], shape: &Shape) -> u16 {
        self.given += chain.len();
        let head = self.next;
        let fits = chain.len() <= usize::from(self.size / 2);
        if (shape.indirect || !fits) && chain.len() <= TABLE_MAX {
            let table = self.table();
            for (index, descriptor) in linked(chain, |index| index as u16 + 1).enumerate() {
                put(
                    memory,
                    table + index as u64 * DESCRIPTOR,
                    index,
                    descriptor,
                    shape,
                );
            }
            let mut len = chain.len() as u32 * DESCRIPTOR as u32;
            if let Some(Flaw::Table(flaw)) = shape.flaw.0 {
                len = flaw;
            }
            let entry = Descriptor {
                address: table,
                len,
                flags: INDIRECT,
                next: 0,
            };
            put(
                memory,
                self.base() + u64::from(head) * DESCRIPTOR,
                usize::MAX,
                entry,
                shape,
            );
            self.next = (head + 1) % self.size;
        } else {
            let size = self.size;
            let at = |index: usize| (head + index as u16) % size;
            for (index, descriptor) in linked(chain, |index| at(index + 1)).enumerate() {
                let place = self.base() + u64::from(at(index)) * DESCRIPTOR;
                put(memory, place, index, descriptor, shape);
            }
            self.next = at(chain.len());
        }
        self.publish(memory, head, shape);
        head
    }

    /// A place for an indirect table, of which there are as many as chains.
    fn table(&self) -> u64 {
        let number = u64::from(self.available % CHAINS_MAX);
        self.base() + TABLES + number * DESCRIPTOR * TABLE_MAX as u64
    }

    fn publish(&mut self, memory: &GuestMemory, head: u16, shape: &Shape) {
        let slot = self.base() + AVAILABLE + 4 + u64::from(self.available % self.size) * 2;
        let named = match shape.flaw.0 {
            Some(Flaw::Head(flaw)) => flaw,
            _ => head,
        };
        write(memory, slot, named);
        self.available = match shape.flaw.0 {
            Some(Flaw::Index(flaw)) => flaw,
            _ => self.available.wrapping_add(1),
        };
        write(memory, self.base() + AVAILABLE + 2, self.available);
    }
}

fn linked(chain: &[Descriptor], next: impl Fn(usize) -> u16) -> impl Iterator<Item = Descriptor> {
    chain.iter().enumerate().map(move |(index, descriptor)| {
        if index + 1 == chain.len() {
            return *descriptor;
        }
        let flags = descriptor.flags | NEXT;
        Descriptor {
            flags,
            next: next(index),
            ..*descriptor
        }
    })
}

fn put(memory: &GuestMemory, at: u64, index: usize, descriptor: Descriptor, shape: &Shape) {
    let Descriptor {
        mut address,
        mut len,
        mut flags,
        mut next,
    } = descriptor;
    let here = |which: u8| usize::from(which % 8) == index;
    match shape.flaw.0 {
        Some(Flaw::Address(which, flaw)) if here(which) => address = flaw,
        Some(Flaw::Length(which, flaw)) if here(which) => len = flaw,
        Some(Flaw::Flags(which, flaw)) if here(which) => flags = flaw,
        Some(Flaw::Next(which, flaw)) if here(which) => next = flaw,
        _ => {}
    }
    write(memory, at, address);
    write(memory, at + 8, len);
    write(memory, at + 12, flags);
    write(memory, at + 14, next);
}

fn write<T: vm_memory::ByteValued>(memory: &GuestMemory, at: u64, value: T) {
    // Outside memory there is nothing to write.
    let _ = memory.write_obj(value, GuestAddress(at));
}

fn read<T: vm_memory::ByteValued + Default>(memory: &GuestMemory, at: u64) -> T {
    memory.read_obj(GuestAddress(at)).unwrap_or_default()
}

/// How a device is brought up.
#[derive(Arbitrary, Debug, Clone)]
pub struct Setup {
    features: u64,
    size: u8,
    /// What is wrong with the layout of a queue, or with the order of things.
    pub flaw: Rarely<SetupFlaw>,
}

/// What can be wrong with it.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum SetupFlaw {
    /// A register of a queue's layout.
    Layout(u8, u8, u32),
    /// The feature bits that are taken, whether offered or not.
    Features(u64),
    /// A step of the status that is left out.
    Skipped(u8),
    /// Where the device's place in the rings does not matter: a step in between.
    Step(Registers),
}

/// `VIRTIO_F_VERSION_1`, without which a device does not run.
const VERSION_1: u64 = 1 << 32;

/// Brings a device of `count` queues up that offers `offered`.
pub fn bring_up(
    transport: &mut MmioTransport,
    setup: &Setup,
    offered: u64,
    count: u32,
) -> Vec<Queue> {
    let mut features = (setup.features & offered) | VERSION_1;
    if let Some(SetupFlaw::Features(flaw)) = setup.flaw.0 {
        features = flaw;
    }
    // From 2 to 256 descriptors, mostly many.
    let size = 256 >> (setup.size & 7);
    for (step, status) in [0, 1, 3].into_iter().enumerate() {
        set_status(transport, setup, step, status);
    }
    for (select, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
        set(transport, register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        set(transport, register::VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
    set_status(transport, setup, 3, 11);
    let queues: Vec<Queue> = (0..count).map(|number| Queue::new(number, size)).collect();
    for queue in &queues {
        lay_out(transport, setup, queue);
    }
    if let Some(SetupFlaw::Step(registers)) = setup.flaw.0 {
        registers.access(transport);
    }
    set_status(transport, setup, 4, 15);
    queues
}

fn set_status(transport: &mut MmioTransport, setup: &Setup, step: usize, status: u32) {
    let skipped =
        matches!(setup.flaw.0, Some(SetupFlaw::Skipped(which)) if usize::from(which % 5) == step);
    if !skipped {
        set(transport, register::VIRTIO_MMIO_STATUS, status);
    }
}

fn lay_out(transport: &mut MmioTransport, setup: &Setup, queue: &Queue) {
    let base = queue.base();
    set(transport, register::VIRTIO_MMIO_QUEUE_SEL, queue.number);
    let layout = [
        (register::VIRTIO_MMIO_QUEUE_NUM, u32::from(queue.size)),
        (register::VIRTIO_MMIO_QUEUE_DESC_LOW, base as u32),
        (register::VIRTIO_MMIO_QUEUE_DESC_HIGH, 0),
        (
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
            (base + AVAILABLE) as u32,
        ),
        (register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 0),
        (register::VIRTIO_MMIO_QUEUE_USED_LOW, (base + USED) as u32),
        (register::VIRTIO_MMIO_QUEUE_USED_HIGH, 0),
        (register::VIRTIO_MMIO_QUEUE_READY, 1),
    ];
    for (index, (offset, value)) in layout.into_iter().enumerate() {
        let value = match setup.flaw.0 {
            Some(SetupFlaw::Layout(number, which, flaw))
                if u32::from(number % 3) == queue.number && usize::from(which % 8) == index =>
            {
                flaw
            }
            _ => value,
        };
        set(transport, offset, value);
    }
}

/// Writes a register as a driver does.
pub fn set(transport: &mut MmioTransport, offset: u32, value: u32) {
    transport.write(u64::from(offset), &value.to_le_bytes());
}

/// Reads a register as a driver does.
pub fn get(transport: &mut MmioTransport, offset: u32) -> u32 {
    let mut bytes = [0; 4];
    transport.read(u64::from(offset), &mut bytes);
    u32::from_le_bytes(bytes)
}

/// Accesses to registers, of any kind.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    offset: u16,
    value: u32,
    width: u8,
    write: bool,
}

impl<'a> Arbitrary<'a> for Registers {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let offset = u16::arbitrary(input)?;
        let (value, write) = <(u32, bool)>::arbitrary(input)?;
        let odd = <Rarely<u8>>::arbitrary(input)?;
        Ok(Self {
            // Whole registers, mostly.
            offset: if odd.is_there() {
                offset
            } else {
                offset & 0x1fc
            },
            value,
            width: odd.0.map_or(4, |width| width % 9),
            write,
        })
    }
}

impl Registers {
    /// Makes the access.
    pub fn access(self, transport: &mut MmioTransport) {
        let mut data = [0; 8];
        data[..4].copy_from_slice(&self.value.to_le_bytes());
        let data = &mut data[..usize::from(self.width)];
        if self.write {
            transport.write(u64::from(self.offset), data);
        } else {
            transport.read(u64::from(self.offset), data);
        }
    }
}

/// Writes of the guest's into its own memory: rings, mostly.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub struct Poke {
    at: u16,
    value: u32,
}

impl Poke {
    /// Makes the write.
    pub fn write(self, memory: &GuestMemory) {
        write(memory, u64::from(self.at), self.value);
    }
}
