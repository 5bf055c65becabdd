//! The block device as a driver meets it, over a disk in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use proptest::prelude::*;
use vhd::{BlockDevice, Extent, ExtentKind, SECTOR_SIZE};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_mmio as register;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::executor::CHUNK;
use super::request::{MAX_SEGMENT_SECTORS, MAX_SEGMENTS};
use super::{Block, BlockHandle};
use crate::devices::bus::MmioDevice;
use crate::devices::virtio::test_driver::*;
use crate::devices::virtio::{MmioTransport, feature};
use crate::limits::{Rate, RateLimit};
use crate::memory::GuestMemory;

const DISK_SIZE: u64 = 1 << 20;
const QUEUE: u64 = 0x1_0000;
const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x9_0000;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A disk in memory, which can be told to fail, or to wait at a gate.
#[derive(Default)]
struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
    calls: Mutex<Vec<String>>,
    fails: AtomicBool,
    gate: Gate,
}

/// Lets readers wait until it opens, and others wait for a reader.
#[derive(Default)]
struct Gate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn close(&self) {
        self.state.lock().unwrap().0 = true;
    }
    fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        drop(
            self.changed
                .wait_while(state, |(closed, _)| *closed)
                .unwrap(),
        );
    }
    fn wait_for_arrival(&self) {
        let state = self.state.lock().unwrap();
        drop(
            self.changed
                .wait_while(state, |(_, arrived)| *arrived == 0)
                .unwrap(),
        );
    }
}

impl MemoryDisk {
    fn new() -> Arc<MemoryDisk> {
        let bytes = (0..DISK_SIZE).map(|i| (i / SECTOR_SIZE) as u8).collect();
        Arc::new(MemoryDisk {
            bytes: Mutex::new(bytes),
            ..MemoryDisk::default()
        })
    }

    fn note(&self, call: String) -> vhd::Result<()> {
        self.calls.lock().unwrap().push(call);
        if self.fails.load(Ordering::Relaxed) {
            return Err(vhd::Error::Poisoned {
                path: "disk".into(),
            });
        }
        Ok(())
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn sector(&self, sector: u64) -> Vec<u8> {
        let at = (sector * SECTOR_SIZE) as usize;
        self.bytes.lock().unwrap()[at..at + SECTOR_SIZE as usize].to_vec()
    }
}

impl BlockDevice for MemoryDisk {
    fn size(&self) -> u64 {
        DISK_SIZE
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> vhd::Result<()> {
        self.gate.pass();
        self.note(format!("read {offset}+{}", buf.len()))?;
        buf.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> vhd::Result<()> {
        self.note(format!("write {offset}+{}", buf.len()))?;
        self.bytes.lock().unwrap()[offset as usize..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&self) -> vhd::Result<()> {
        self.note("flush".to_owned())
    }
    fn discard(&self, offset: u64, len: u64) -> vhd::Result<()> {
        self.note(format!("discard {offset}+{len}"))
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> vhd::Result<()> {
        self.note(format!("zero {offset}+{len}"))?;
        self.bytes.lock().unwrap()[offset as usize..(offset + len) as usize].fill(0);
        Ok(())
    }
    fn extent_at(&self, offset: u64) -> vhd::Result<Extent> {
        Ok(Extent {
            offset,
            len: DISK_SIZE - offset,
            kind: ExtentKind::Zero,
        })
    }
}

/// A guest with one disk.
struct Guest {
    transport: MmioTransport,
    memory: GuestMemory,
    queue: DriverQueue,
    irq: EventFd,
    disk: Arc<MemoryDisk>,
    handle: BlockHandle,
}

impl Guest {
    fn new() -> Guest {
        Guest::with(false, ALL_FEATURES)
    }

    fn with(read_only: bool, features: u64) -> Guest {
        let memory = guest_memory();
        let disk = MemoryDisk::new();
        let block = Block::new(disk.clone(), "os", read_only).unwrap();
        let handle = block.handle().unwrap();
        let (line, irq) = interrupt_line();
        let mut transport = MmioTransport::new(Box::new(block), memory.clone(), line);
        let queue = DriverQueue::new(&memory, QUEUE, 256);
        bring_up(&mut transport, features, &[&queue]);
        Guest {
            transport,
            memory,
            queue,
            irq,
            disk,
            handle,
        }
    }

    fn put_header(&self, at: u64, request_type: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&request_type.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write_slice(&header, GuestAddress(at)).unwrap();
    }

    fn notify(&self) {
        self.transport.queue_events()[0].write(1).unwrap();
    }

    /// Waits until the device has given a chain back.
    fn wait(&mut self) -> (u16, u32) {
        loop {
            if let Some(used) = self.queue.take_used() {
                self.queue.set_used_event(self.queue.used_index());
                return used;
            }
            wait_for_interrupt(&self.irq);
        }
    }

    /// One request with header, data and status apart; returns status and length.
    fn request(&mut self, request_type: u32, sector: u64, data: &[Descriptor]) -> (u8, u32) {
        self.put_header(HEADER, request_type, sector);
        self.memory
            .write_obj(0xff_u8, GuestAddress(STATUS))
            .unwrap();
        let mut chain = vec![readable(HEADER, 16)];
        chain.extend_from_slice(data);
        chain.push(writable(STATUS, 1));
        self.queue.add(&chain);
        self.notify();
        let (_, len) = self.wait();
        (self.memory.read_obj(GuestAddress(STATUS)).unwrap(), len)
    }

    fn segment(&self, at: u64, sector: u64, sectors: u32, flags: u32) -> Descriptor {
        let mut segment = [0; 16];
        segment[..8].copy_from_slice(&sector.to_le_bytes());
        segment[8..12].copy_from_slice(&sectors.to_le_bytes());
        segment[12..].copy_from_slice(&flags.to_le_bytes());
        self.memory.write_slice(&segment, GuestAddress(at)).unwrap();
        readable(at, 16)
    }

    fn status(&mut self) -> u32 {
        read(&mut self.transport, register::VIRTIO_MMIO_STATUS)
    }
}

const ALL_FEATURES: u64 = feature(VIRTIO_BLK_F_FLUSH)
    | feature(VIRTIO_BLK_F_DISCARD)
    | feature(VIRTIO_BLK_F_WRITE_ZEROES);

#[test]
fn a_read_fills_the_guests_buffers_in_order() {
    let mut guest = Guest::new();
    let pieces = [writable(BUFFERS, 512), writable(BUFFERS + 0x1000, 1024)];
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 3, &pieces), (OK, 1537));
    let mut read = [0; 512];
    guest
        .memory
        .read_slice(&mut read, GuestAddress(BUFFERS))
        .unwrap();
    assert_eq!(read, [3; 512]);
    guest
        .memory
        .read_slice(&mut read, GuestAddress(BUFFERS + 0x1200))
        .unwrap();
    assert_eq!(read, [5; 512]);
}

#[test]
fn a_write_reaches_the_disk_and_a_flush_makes_it_durable() {
    let mut guest = Guest::new();
    guest
        .memory
        .write_slice(&[0xab; 1024], GuestAddress(BUFFERS))
        .unwrap();
    assert_eq!(
        guest.request(VIRTIO_BLK_T_OUT, 7, &[readable(BUFFERS, 1024)]),
        (OK, 1)
    );
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    assert_eq!(guest.disk.sector(8), [0xab; 512]);
    assert_eq!(guest.disk.calls(), ["write 3584+1024", "flush"]);
}

#[test]
fn a_driver_that_knows_no_flush_gets_every_write_durable() {
    let mut guest = Guest::with(false, 0);
    assert_eq!(
        guest.request(VIRTIO_BLK_T_OUT, 0, &[readable(BUFFERS, 512)]),
        (OK, 1)
    );
    assert_eq!(guest.disk.calls(), ["write 0+512", "flush"]);
}

#[test]
fn a_request_of_any_size_passes_in_bounded_chunks() {
    let mut guest = Guest::new();
    let len = 3 * CHUNK as u32 + 512;
    assert_eq!(
        guest.request(VIRTIO_BLK_T_IN, 0, &[writable(BUFFERS, len)]),
        (OK, len + 1)
    );
    assert_eq!(guest.disk.calls().len(), 4);
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let mut guest = Guest::new();
    guest.put_header(HEADER, VIRTIO_BLK_T_IN, 9);
    let chain = [
        readable(HEADER, 5),
        readable(HEADER + 5, 11),
        writable(BUFFERS, 100),
        // The rest of the data and the status in one buffer.
        writable(BUFFERS + 100, 413),
    ];
    guest.queue.add_indirect(0xa_0000, &chain);
    guest.notify();
    assert_eq!(guest.wait().1, 513);
    let mut read = [0xff; 513];
    guest
        .memory
        .read_slice(&mut read, GuestAddress(BUFFERS))
        .unwrap();
    assert_eq!((&read[..512], read[512]), (&[9; 512][..], OK));
}

#[test]
fn the_serial_number_is_padded_with_zeroes() {
    let mut guest = Guest::new();
    guest
        .memory
        .write_slice(&[0xff; 20], GuestAddress(BUFFERS))
        .unwrap();
    assert_eq!(
        guest.request(VIRTIO_BLK_T_GET_ID, 0, &[writable(BUFFERS, 20)]),
        (OK, 21)
    );
    let mut serial = [0xff; 20];
    guest
        .memory
        .read_slice(&mut serial, GuestAddress(BUFFERS))
        .unwrap();
    assert_eq!(&serial, b"os\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut guest = Guest::new();
    let two = [
        guest.segment(BUFFERS, 8, 8, 0),
        guest.segment(BUFFERS + 16, 64, 1, 0),
    ];
    assert_eq!(guest.request(VIRTIO_BLK_T_DISCARD, 0, &two), (OK, 1));
    let zero = [guest.segment(BUFFERS, 5, 2, 1)];
    assert_eq!(guest.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &zero), (OK, 1));
    assert_eq!(
        guest.disk.calls(),
        ["discard 4096+4096", "discard 32768+512", "zero 2560+1024"]
    );
    assert_eq!(guest.disk.sector(6), [0; 512]);
    assert_eq!(guest.disk.sector(7), [7; 512]);
}

#[test]
fn a_malformed_request_is_answered_and_touches_no_disk() {
    let mut guest = Guest::new();
    let end = DISK_SIZE / SECTOR_SIZE;
    let read = VIRTIO_BLK_T_IN;
    let write = VIRTIO_BLK_T_OUT;
    let cases = [
        (
            "a read at the end",
            read,
            end,
            vec![writable(BUFFERS, 512)],
            IOERR,
        ),
        (
            "a read across the end",
            read,
            end - 1,
            vec![writable(BUFFERS, 1024)],
            IOERR,
        ),
        (
            "a sector whose offset overflows",
            read,
            u64::MAX,
            vec![writable(BUFFERS, 512)],
            IOERR,
        ),
        (
            "a range that overflows",
            read,
            u64::MAX / 512,
            vec![writable(BUFFERS, 512)],
            IOERR,
        ),
        (
            "half a sector",
            read,
            0,
            vec![writable(BUFFERS, 256)],
            IOERR,
        ),
        ("nothing", read, 0, vec![], IOERR),
        (
            "a read with data to read",
            read,
            0,
            vec![readable(BUFFERS, 512)],
            IOERR,
        ),
        (
            "a write with data to write",
            write,
            0,
            vec![writable(BUFFERS, 512)],
            IOERR,
        ),
        (
            "a write at the end",
            write,
            end,
            vec![readable(BUFFERS, 512)],
            IOERR,
        ),
        (
            "a serial number with no room",
            VIRTIO_BLK_T_GET_ID,
            0,
            vec![],
            IOERR,
        ),
        ("an unknown type", 77, 0, vec![], UNSUPP),
        (
            "a discard of nothing",
            VIRTIO_BLK_T_DISCARD,
            0,
            vec![],
            IOERR,
        ),
        (
            "a discard cut off",
            VIRTIO_BLK_T_DISCARD,
            0,
            vec![readable(BUFFERS, 15)],
            IOERR,
        ),
        (
            "too many segments",
            VIRTIO_BLK_T_DISCARD,
            0,
            vec![readable(BUFFERS, (MAX_SEGMENTS as u32 + 1) * 16)],
            IOERR,
        ),
    ];
    for (what, request_type, sector, data, expected) in cases {
        let (status, len) = guest.request(request_type, sector, &data);
        assert_eq!((status, len), (expected, 1), "{what}");
    }
    assert!(guest.disk.calls().is_empty());
    assert_eq!(guest.status(), 15);
}

#[test]
fn malformed_segments_are_refused() {
    let mut guest = Guest::new();
    let end = DISK_SIZE / SECTOR_SIZE;
    for (request_type, sector, sectors, flags, expected) in [
        (VIRTIO_BLK_T_DISCARD, end, 1, 0, IOERR),
        (VIRTIO_BLK_T_DISCARD, 0, 0, 0, IOERR),
        (VIRTIO_BLK_T_DISCARD, 0, 1, 1, UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 2, UNSUPP),
        (
            VIRTIO_BLK_T_WRITE_ZEROES,
            0,
            MAX_SEGMENT_SECTORS + 1,
            0,
            IOERR,
        ),
        (VIRTIO_BLK_T_WRITE_ZEROES, u64::MAX, 1, 0, IOERR),
    ] {
        let segment = guest.segment(BUFFERS, sector, sectors, flags);
        assert_eq!(guest.request(request_type, 0, &[segment]), (expected, 1));
    }
    assert!(guest.disk.calls().is_empty());
}

#[test]
fn what_was_not_negotiated_is_not_supported() {
    let mut guest = Guest::with(false, feature(VIRTIO_BLK_F_FLUSH));
    let segment = guest.segment(BUFFERS, 0, 1, 0);
    assert_eq!(guest.request(VIRTIO_BLK_T_DISCARD, 0, &[segment]).0, UNSUPP);
    assert_eq!(
        guest.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[segment]).0,
        UNSUPP
    );
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let mut guest = Guest::with(true, feature(VIRTIO_BLK_F_FLUSH) | feature(VIRTIO_BLK_F_RO));
    assert_eq!(guest.status(), 15);
    assert_eq!(
        guest
            .request(VIRTIO_BLK_T_OUT, 0, &[readable(BUFFERS, 512)])
            .0,
        IOERR
    );
    assert_eq!(
        guest
            .request(VIRTIO_BLK_T_IN, 0, &[writable(BUFFERS, 512)])
            .0,
        OK
    );
    assert_eq!(guest.disk.calls(), ["read 0+512"]);
}

#[test]
fn buffers_outside_memory_fail_their_request_alone() {
    let mut guest = Guest::new();
    let outside = MEMORY_SIZE as u64 - 256;
    assert_eq!(
        guest
            .request(VIRTIO_BLK_T_IN, 0, &[writable(outside, 512)])
            .0,
        IOERR
    );
    assert_eq!(
        guest
            .request(VIRTIO_BLK_T_OUT, 0, &[readable(1 << 60, 512)])
            .0,
        IOERR
    );
    assert_eq!(
        guest
            .request(VIRTIO_BLK_T_IN, 0, &[writable(BUFFERS, 512)])
            .0,
        OK
    );
}

#[test]
fn a_chain_with_nowhere_to_answer_is_given_back() {
    let mut guest = Guest::new();
    guest.put_header(HEADER, VIRTIO_BLK_T_IN, 0);
    for chain in [
        vec![readable(HEADER, 16)],
        vec![readable(HEADER, 16), writable(1 << 60, 1)],
        vec![writable(BUFFERS, 0)],
    ] {
        let head = guest.queue.add(&chain);
        guest.notify();
        assert_eq!(guest.wait(), (head, 0));
    }
    assert_eq!(
        guest
            .request(VIRTIO_BLK_T_IN, 0, &[writable(BUFFERS, 512)])
            .0,
        OK
    );
}

#[test]
fn a_broken_ring_makes_the_device_need_a_reset_and_a_reset_repairs_it() {
    let mut guest = Guest::new();
    guest.queue.set_available_index(300);
    guest.notify();
    wait_for_interrupt(&guest.irq);
    assert_eq!(guest.status(), 15 | 64);

    write(&mut guest.transport, register::VIRTIO_MMIO_STATUS, 0);
    guest
        .memory
        .write_slice(&[0; 0x5000], GuestAddress(QUEUE))
        .unwrap();
    guest.queue = DriverQueue::new(&guest.memory, QUEUE, 256);
    bring_up(&mut guest.transport, ALL_FEATURES, &[&guest.queue]);
    assert_eq!(
        guest
            .request(VIRTIO_BLK_T_IN, 0, &[writable(BUFFERS, 512)])
            .0,
        OK
    );
}

#[test]
fn a_disk_that_fails_is_an_io_error_to_the_guest() {
    let mut guest = Guest::new();
    guest.disk.fails.store(true, Ordering::Relaxed);
    assert_eq!(
        guest.request(VIRTIO_BLK_T_IN, 0, &[writable(BUFFERS, 512)]),
        (IOERR, 1)
    );
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (IOERR, 1));
}

#[test]
fn a_reset_waits_for_the_request_in_flight() {
    let mut guest = Guest::new();
    guest.disk.gate.close();
    guest.put_header(HEADER, VIRTIO_BLK_T_IN, 1);
    let len = 2 * CHUNK as u32;
    guest.queue.add(&[
        readable(HEADER, 16),
        writable(BUFFERS, len),
        writable(STATUS, 1),
    ]);
    guest.notify();
    guest.disk.gate.wait_for_arrival();

    std::thread::scope(|scope| {
        let reset = scope.spawn(|| write(&mut guest.transport, register::VIRTIO_MMIO_STATUS, 0));
        // The disk is still reading; the reset has to wait for it, since the
        // guest may use its memory for something else as soon as it returns.
        assert!(!reset.is_finished());
        guest.disk.gate.open();
        reset.join().unwrap();
    });
    assert!(!guest.disk.calls().is_empty(), "the read had ended");
    guest
        .memory
        .write_slice(&vec![0x55; len as usize], GuestAddress(BUFFERS))
        .unwrap();
    assert_eq!(guest.status(), 0);

    // The next driver finds a device that knows nothing of all that.
    guest
        .memory
        .write_slice(&[0; 0x5000], GuestAddress(QUEUE))
        .unwrap();
    guest.queue = DriverQueue::new(&guest.memory, QUEUE, 256);
    bring_up(&mut guest.transport, ALL_FEATURES, &[&guest.queue]);
    let elsewhere = BUFFERS + u64::from(len);
    assert_eq!(
        guest.request(VIRTIO_BLK_T_IN, 2, &[writable(elsewhere, 512)]),
        (OK, 513)
    );
    let mut untouched = vec![0; len as usize];
    guest
        .memory
        .read_slice(&mut untouched, GuestAddress(BUFFERS))
        .unwrap();
    assert!(untouched.iter().all(|byte| *byte == 0x55));
}

#[test]
fn requests_made_together_are_answered_with_one_interrupt() {
    let mut guest = Guest::new();
    guest.put_header(HEADER, VIRTIO_BLK_T_IN, 0);
    for index in 0..8 {
        let data = writable(BUFFERS + index * 512, 512);
        guest
            .queue
            .add(&[readable(HEADER, 16), data, writable(STATUS, 1)]);
    }
    // Only the last one matters to this driver.
    guest.queue.set_used_event(7);
    guest.notify();
    wait_for_interrupt(&guest.irq);
    assert_eq!(guest.queue.used_index(), 8);
    assert!(!interrupted(&guest.irq));
}

#[test]
fn the_configuration_says_size_and_limits() {
    let mut guest = Guest::new();
    let mut config = [0; 60];
    guest.transport.read(0x100, &mut config);
    assert_eq!(config[..8], (DISK_SIZE / SECTOR_SIZE).to_le_bytes());
    assert_eq!(config[12..16], 254_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[36..40], MAX_SEGMENT_SECTORS.to_le_bytes());
}

#[test]
fn a_serial_number_that_does_not_fit_is_refused() {
    let error = Block::new(MemoryDisk::new(), &"x".repeat(21), false)
        .err()
        .unwrap();
    assert!(error.to_string().contains("at most 20"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A driver that writes anything into its ring can break its own device, no
    /// more; and a reset always brings it back.
    #[test]
    fn any_chains_leave_a_device_that_a_reset_brings_back(
        headers in prop::collection::vec((0_u32..16, prop_oneof![0_u64..4096, any::<u64>()]), 8),
        descriptors in prop::collection::vec(
            (0_u64..8, 0_u32..2000, 0_u16..8, 0_u16..20, any::<bool>()), 16,
        ),
        heads in prop::collection::vec(0_u16..17, 1..16),
    ) {
        let mut guest = Guest::new();
        for (index, (request_type, sector)) in headers.into_iter().enumerate() {
            guest.put_header(BUFFERS + index as u64 * 16, request_type, sector);
        }
        for (index, (slot, len, flags, next, far)) in descriptors.into_iter().enumerate() {
            let address = if far { 1 << 50 } else { BUFFERS + slot * 16 };
            guest.queue.put_descriptor(QUEUE, index as u16, Descriptor { address, len, flags, next });
        }
        for head in heads {
            guest.queue.add_head(head);
        }
        guest.notify();
        write(&mut guest.transport, register::VIRTIO_MMIO_STATUS, 0);
        guest.memory.write_slice(&[0; 0x5000], GuestAddress(QUEUE)).unwrap();
        guest.queue = DriverQueue::new(&guest.memory, QUEUE, 256);
        while interrupted(&guest.irq) {}
        bring_up(&mut guest.transport, ALL_FEATURES, &[&guest.queue]);
        prop_assert_eq!(guest.request(VIRTIO_BLK_T_IN, 0, &[writable(BUFFERS, 512)]), (OK, 513));
    }
}

mod limited {
    //! Disks that are held to limits.

    use std::time::{Duration, Instant};

    use super::*;

    /// One request of 64 KiB uses it up for sixteen seconds.
    const SLOW: RateLimit = RateLimit {
        bytes: Some(Rate {
            per_second: 4096,
            burst: 1,
        }),
        operations: None,
    };
    const LARGE: u32 = 64 << 10;

    impl Guest {
        /// Makes a read available that nobody waits for.
        fn begin(&mut self, number: u64) {
            let header = HEADER + number * 16;
            self.put_header(header, VIRTIO_BLK_T_IN, 0);
            self.queue.add(&[
                readable(header, 16),
                writable(BUFFERS, LARGE),
                writable(STATUS + number, 1),
            ]);
            self.notify();
        }

        fn until_something_waits(&self) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while self.handle.throttled().waits == 0 {
                assert!(Instant::now() < deadline, "nothing waits");
                std::thread::yield_now();
            }
        }

        /// One read that is carried out, and one that waits.
        fn exhaust(&mut self) {
            self.handle.limit(&SLOW);
            self.begin(0);
            self.wait();
            self.begin(1);
            self.until_something_waits();
            assert_eq!(self.queue.take_used(), None);
            assert_eq!(self.handle.stats().reads, 1);
        }
    }

    #[test]
    fn what_is_beyond_the_limit_waits_until_the_limit_is_lifted() {
        let mut guest = Guest::new();
        guest.exhaust();
        guest.handle.limit(&RateLimit::default());
        guest.wait();
        assert_eq!(guest.handle.stats().reads, 2);
        assert_eq!(guest.handle.throttled().waits, 1);
    }

    #[test]
    fn it_goes_on_by_itself_when_its_time_has_come() {
        let mut guest = Guest::new();
        let fast = RateLimit {
            bytes: Some(Rate {
                per_second: 2 << 20,
                burst: 1,
            }),
            operations: None,
        };
        guest.handle.limit(&fast);
        let begun = Instant::now();
        for number in 0..4 {
            guest.begin(number);
            guest.wait();
        }
        // Three times the 31 ms that a request of this size costs.
        assert!(begun.elapsed() >= Duration::from_millis(90));
        assert_eq!(guest.handle.stats().reads, 4);
    }

    #[test]
    fn operations_are_limited_whatever_they_are() {
        let mut guest = Guest::new();
        guest.handle.limit(&RateLimit {
            bytes: None,
            operations: Some(Rate {
                per_second: 100,
                burst: 1,
            }),
        });
        let begun = Instant::now();
        for _ in 0..5 {
            guest.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
            guest.request(0xbad, 0, &[]);
        }
        assert!(begun.elapsed() >= Duration::from_millis(80));
    }

    #[test]
    fn a_reset_does_not_wait_and_gives_nothing() {
        let mut guest = Guest::new();
        guest.exhaust();
        write(&mut guest.transport, register::VIRTIO_MMIO_STATUS, 0);
        guest
            .memory
            .write_slice(&[0; 0x5000], GuestAddress(QUEUE))
            .unwrap();
        guest.queue = DriverQueue::new(&guest.memory, QUEUE, 256);
        bring_up(&mut guest.transport, ALL_FEATURES, &[&guest.queue]);
        guest.begin(0);
        guest.until_something_waits();
        assert_eq!(guest.queue.take_used(), None);
        guest.handle.limit(&RateLimit::default());
        guest.wait();
    }

    #[test]
    fn a_pause_does_not_wait_and_leaves_the_request_in_the_queue() {
        let mut guest = Guest::new();
        guest.exhaust();
        guest.transport.suspend();
        assert_eq!(guest.queue.take_used(), None);
        guest.handle.limit(&RateLimit::default());
        guest.transport.resume().unwrap();
        guest.wait();
        assert_eq!(guest.handle.stats().reads, 2);
    }
}
