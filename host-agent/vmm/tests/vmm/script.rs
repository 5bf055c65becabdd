//! What the hostile guest does: a table of accesses, made up from a seed.
//!
//! The guest is a kernel of its own, so nothing stands between it and the devices.
//! It is a driver that brings them up as it should and then puts garbage into their
//! registers, rings and requests. It spares itself: addresses are those of its
//! buffers, or outside its memory, so that it seldom has its own code overwritten.

/// How a value is accessed; the numbers are those of the guest's code.
#[derive(Debug, Clone, Copy)]
pub enum Access {
    Write8 = 0,
    Write16 = 1,
    Write32 = 2,
    Write64 = 3,
    Read32 = 4,
    Read8 = 5,
    Out = 6,
    In = 7,
}

const WINDOWS: u64 = 0xd000_0000;
const WINDOW: u64 = 0x1000;
/// Where a device has its rings, and what each of its queues has of that.
const RINGS: u64 = 0x20_0000;
const QUEUE: u64 = 0x1_0000;
/// Where buffers are.
const BUFFERS: u64 = 0x40_0000;
const BUFFERS_END: u64 = 0xc0_0000;
/// The guest's memory.
const MEMORY: u64 = 32 << 20;

/// A device of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Block,
    Vsock,
}

/// The table, as the guest has it behind its code.
pub struct Script {
    random: u64,
    entries: Vec<u8>,
    count: u64,
}

impl Script {
    /// Makes one up for a machine with these devices, `sessions` long.
    pub fn new(seed: u64, devices: &[Device], sessions: usize) -> Script {
        let mut script = Script {
            random: seed | 1,
            entries: Vec::new(),
            count: 0,
        };
        for _ in 0..sessions {
            let index = script.below(devices.len() as u64);
            script.session(index, devices[index as usize]);
        }
        script
    }

    /// The table's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        [&self.count.to_le_bytes()[..], &self.entries].concat()
    }

    fn number(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.number() >> 16) % end
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// An access. Bits of the value that are in `garbled` are others each time.
    fn access(&mut self, access: Access, address: u64, value: u64, garbled: u32) {
        self.count += 1;
        self.entries.extend(address.to_le_bytes());
        self.entries.extend(value.to_le_bytes());
        self.entries.extend((access as u32).to_le_bytes());
        self.entries.extend(garbled.to_le_bytes());
    }

    fn write(&mut self, address: u64, value: u64) {
        self.access(Access::Write64, address, value, 0);
    }

    /// An address as a guest should not give it, but for the first.
    fn address(&mut self) -> u64 {
        let buffer = BUFFERS + self.below(BUFFERS_END - BUFFERS);
        let offset = self.below(0x1000);
        match self.below(8) {
            0 => u64::MAX - offset,
            1 => MEMORY - 1,
            2 => WINDOWS + offset,
            3 => 0xfee0_0000 + offset,
            4 => self.number() | 1 << 40,
            _ => buffer,
        }
    }

    /// A device is brought up, used, and perhaps reset.
    fn session(&mut self, index: u64, device: Device) {
        let window = WINDOWS + index * WINDOW;
        let queues = if device == Device::Block { 1 } else { 3 };
        for status in [0, 1, 3] {
            self.register(window, 0x70, status);
        }
        // What the ring offers, some of what the device does, and VERSION_1.
        let own = match device {
            Device::Block if index == 0 => 0x6244,
            Device::Block => 0x264,
            Device::Vsock => 1,
        };
        let low = (0x3000_0000 | own) & self.number();
        for (select, features) in [(0, low), (1, 1)] {
            let garbled = if self.once_in(32) { u32::MAX } else { 0 };
            self.register(window, 0x24, select);
            self.access(Access::Write32, window + 0x20, features, garbled);
        }
        self.register(window, 0x70, 11);
        for queue in 0..queues {
            self.lay_out(window, index, queue);
        }
        self.register(window, 0x70, 15);
        for _ in 0..self.below(40) {
            let queue = self.below(queues);
            match self.below(8) {
                0 => self.any_register(window),
                1 => self.any_place_in(ring(index, queue), QUEUE / 4),
                2 => self.ports(),
                _ => self.request(window, index, queue, device),
            }
        }
    }

    /// A register, mostly with the value that belongs there.
    fn register(&mut self, window: u64, offset: u64, value: u64) {
        let garbled = if self.once_in(64) { u32::MAX } else { 0 };
        self.access(Access::Write32, window + offset, value, garbled);
    }

    fn lay_out(&mut self, window: u64, index: u64, queue: u64) {
        let base = ring(index, queue);
        let size = 1 << self.below(9);
        self.register(window, 0x30, queue);
        self.register(window, 0x38, size);
        for (register, address) in [(0x80, base), (0x90, base + 0x4000), (0xa0, base + 0x8000)] {
            let address = if self.once_in(32) {
                self.address()
            } else {
                address
            };
            self.access(Access::Write32, window + register, address & 0xffff_ffff, 0);
            self.access(Access::Write32, window + register + 4, address >> 32, 0);
        }
        self.register(window, 0x44, 1);
    }

    fn any_register(&mut self, window: u64) {
        let offset = self.below(0x200);
        // The addresses of rings are laid out on purpose only.
        let layout = (0x80..0xb0).contains(&offset);
        let kind = match self.below(4) {
            0 => Access::Read32,
            1 => Access::Read8,
            _ if layout => Access::Read32,
            2 => [Access::Write8, Access::Write16, Access::Write64][self.below(3) as usize],
            _ => Access::Write32,
        };
        let offset = if matches!(kind, Access::Write64) {
            offset & 0x78
        } else {
            offset
        };
        self.access(kind, window + offset, 0, u32::MAX);
    }

    /// Half a word of a ring: never a whole address.
    fn any_place_in(&mut self, ring: u64, len: u64) {
        let at = ring + self.below(len) * 2;
        // Of a descriptor, its length, its flags or its successor.
        let at = if at < ring + 0x1000 {
            at & !15 | 8 | at & 6
        } else {
            at
        };
        self.access(Access::Write16, at, 0, 0xffff);
    }

    /// Ports that nobody has, or that have nothing to lose.
    fn ports(&mut self) {
        let port = [0x60, 0x61, 0x70, 0x71, 0x80, 0x2f8, 0xcf8, 0xffff][self.below(8) as usize];
        let kind = if self.once_in(2) {
            Access::In
        } else {
            Access::Out
        };
        self.access(kind, port, 0, 0xff);
    }

    /// A chain with a request or a packet in it, and a notification.
    fn request(&mut self, window: u64, index: u64, queue: u64, device: Device) {
        let base = ring(index, queue);
        let header = BUFFERS + self.below(0x1000) * 64;
        match (device, queue) {
            (Device::Block, _) => self.block_header(header),
            (Device::Vsock, 1) => self.vsock_header(header),
            _ => {}
        }
        let writable = if device == Device::Vsock && queue != 1 {
            2
        } else {
            0
        };
        let head = self.below(16);
        let length = 1 + self.below(4);
        for position in 0..length {
            let last = position + 1 == length;
            let address = if position == 0 {
                header
            } else {
                self.address()
            };
            let size = match (device, position) {
                (Device::Block, 0) => 16,
                (Device::Block, _) if last => 1,
                (Device::Block, _) => 512 * self.below(64),
                (Device::Vsock, 0) => 44 + self.below(4096) * (writable / 2),
                (Device::Vsock, _) => self.below(0x1_0000),
            };
            let written = match device {
                Device::Block => [0, 2][usize::from(last || (position > 0 && self.once_in(2)))],
                Device::Vsock => writable,
            };
            let flags = if last { written } else { written | 1 };
            let at = base + (head + position) * 16;
            let second = size | flags << 32 | (head + position + 1) << 48;
            self.write(at, address);
            let garbled = if self.once_in(16) { u32::MAX } else { 0 };
            self.access(Access::Write64, at + 8, second, garbled);
        }
        let slot = self.below(256);
        self.access(Access::Write16, base + 0x4004 + slot * 2, head, 0);
        // The index goes where it pleases: to all that is in the ring, or too far.
        let garbled = if self.once_in(8) { 0xffff } else { 0x1f };
        self.access(Access::Write16, base + 0x4002, 0, garbled);
        self.register(window, 0x50, queue);
    }

    fn block_header(&mut self, at: u64) {
        let kind = [0, 1, 4, 8, 11, 13, 99][self.below(7) as usize];
        let (sector, sectors) = (self.below(2200), self.below(64));
        self.access(Access::Write32, at, kind, 0);
        self.write(at + 8, sector);
        self.write(at + 16, sector);
        let garbled = if self.once_in(8) { u32::MAX } else { 0 };
        self.access(Access::Write64, at + 24, sectors, garbled);
    }

    fn vsock_header(&mut self, at: u64) {
        let ports = (1024 + self.below(2)) << 32 | self.below(8);
        let cid = if self.once_in(16) { self.number() } else { 3 };
        let op = self.below(9);
        let len = self.below(0x4000);
        self.write(at, cid);
        self.write(at + 8, 2);
        self.write(at + 16, ports);
        // Length, then type and operation, then flags and credit.
        let garbled = if self.once_in(8) { u32::MAX } else { 0 };
        self.access(Access::Write64, at + 24, len | 1 << 32 | op << 48, garbled);
        self.access(Access::Write64, at + 32, 0x1_0000 << 32, 3);
        self.access(Access::Write32, at + 40, 0, 0xffff);
    }
}

fn ring(device: u64, queue: u64) -> u64 {
    RINGS + (device * 4 + queue) * QUEUE
}
