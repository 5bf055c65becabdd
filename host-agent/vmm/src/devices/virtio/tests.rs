//! The transport as a driver meets it, with a device that only takes notes.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_mmio as register;
use vmm_sys_util::eventfd::EventFd;

use super::test_driver::*;
use super::*;
use crate::devices::bus::MmioDevice;

/// What a device was told.
#[derive(Debug, Default)]
struct Notes {
    activations: Vec<Activation>,
}

/// A device with two queues and one feature.
struct NoteTaker {
    notes: Arc<Mutex<Notes>>,
    events: [EventFd; 2],
}

impl NoteTaker {
    fn new() -> NoteTaker {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        NoteTaker {
            notes: Arc::default(),
            events: [event(), event()],
        }
    }
}

impl VirtioDevice for NoteTaker {
    fn suspend(&mut self) -> Option<Vec<Virtqueue>> {
        let activation = self.notes.lock().unwrap().activations.pop();
        activation.map(|activation| activation.queues)
    }

    fn device_type(&self) -> u32 {
        42
    }
    fn device_features(&self) -> u64 {
        1 << 3
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[256, 64]
    }
    fn queue_events(&self) -> &[EventFd] {
        &self.events
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        device::read_config_bytes(b"config!", offset, data);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.notes.lock().unwrap().activations.push(activation);
        Ok(())
    }
    fn reset(&mut self) {
        self.notes.lock().unwrap().activations.clear();
    }
}

struct Machine {
    transport: MmioTransport,
    notes: Arc<Mutex<Notes>>,
    irq: EventFd,
    queues: [DriverQueue; 2],
}

impl Machine {
    fn new() -> Machine {
        let memory = guest_memory();
        let device = NoteTaker::new();
        let notes = Arc::clone(&device.notes);
        let (line, irq) = interrupt_line();
        let queues = [
            DriverQueue::new(&memory, 0x1_0000, 256),
            DriverQueue::new(&memory, 0x2_0000, 64),
        ];
        Machine {
            transport: MmioTransport::new(Box::new(device), memory, line),
            notes,
            irq,
            queues,
        }
    }

    fn bring_up(&mut self) {
        let [first, second] = &self.queues;
        bring_up(&mut self.transport, 1 << 3, &[first, second]);
    }

    fn status(&mut self) -> u32 {
        read(&mut self.transport, register::VIRTIO_MMIO_STATUS)
    }

    fn is_running(&self) -> bool {
        !self.notes.lock().unwrap().activations.is_empty()
    }
}

#[test]
fn a_driver_finds_the_device() {
    let mut machine = Machine::new();
    let device = &mut machine.transport;
    assert_eq!(
        read(device, register::VIRTIO_MMIO_MAGIC_VALUE),
        u32::from_le_bytes(*b"virt")
    );
    assert_eq!(read(device, register::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(read(device, register::VIRTIO_MMIO_DEVICE_ID), 42);
    write(device, register::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(read(device, register::VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    write(device, register::VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(read(device, register::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
}

#[test]
fn all_features_of_device_and_ring_are_offered_and_no_others() {
    let mut machine = Machine::new();
    let mut offered = 0;
    for select in [0, 1, 2] {
        write(
            &mut machine.transport,
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL,
            select,
        );
        let half = read(
            &mut machine.transport,
            register::VIRTIO_MMIO_DEVICE_FEATURES,
        );
        offered |= u128::from(half) << (32 * select);
    }
    assert_eq!(offered, u128::from(RING_FEATURES | 1 << 3));
}

#[test]
fn a_device_starts_with_what_was_negotiated() {
    let mut machine = Machine::new();
    machine.bring_up();
    assert_eq!(machine.status(), 15);
    let notes = machine.notes.lock().unwrap();
    assert_eq!(notes.activations[0].features, RING_FEATURES | 1 << 3);
    assert_eq!(notes.activations[0].queues.len(), 2);
}

#[test]
fn a_feature_that_is_not_offered_is_not_accepted() {
    let mut machine = Machine::new();
    negotiate(&mut machine.transport, RING_FEATURES | 1 << 4);
    assert_eq!(machine.status(), 3, "FEATURES_OK must not stick");
}

#[test]
fn a_legacy_driver_is_not_accepted() {
    let mut machine = Machine::new();
    negotiate(&mut machine.transport, 1 << 3);
    assert_eq!(machine.status(), 3);
}

#[test]
fn features_cannot_change_after_features_ok() {
    let mut machine = Machine::new();
    negotiate(&mut machine.transport, RING_FEATURES);
    write(
        &mut machine.transport,
        register::VIRTIO_MMIO_DRIVER_FEATURES_SEL,
        0,
    );
    write(
        &mut machine.transport,
        register::VIRTIO_MMIO_DRIVER_FEATURES,
        u32::MAX,
    );
    for (index, queue) in machine.queues.iter().enumerate() {
        lay_out(&mut machine.transport, index as u32, &queue.config());
    }
    write(&mut machine.transport, register::VIRTIO_MMIO_STATUS, 15);
    assert_eq!(
        machine.notes.lock().unwrap().activations[0].features,
        RING_FEATURES
    );
}

#[test]
fn queues_cannot_be_laid_out_before_features_are_settled() {
    let mut machine = Machine::new();
    lay_out(&mut machine.transport, 0, &machine.queues[0].config());
    assert_eq!(
        read(&mut machine.transport, register::VIRTIO_MMIO_QUEUE_READY),
        0
    );
}

#[test]
fn a_queue_keeps_its_geometry_while_it_is_ready() {
    let mut machine = Machine::new();
    negotiate(&mut machine.transport, RING_FEATURES);
    for (index, queue) in machine.queues.iter().enumerate() {
        lay_out(&mut machine.transport, index as u32, &queue.config());
        // With this size it could not be used.
        write(&mut machine.transport, register::VIRTIO_MMIO_QUEUE_NUM, 3);
    }
    write(&mut machine.transport, register::VIRTIO_MMIO_STATUS, 15);
    assert!(machine.is_running());
}

#[test]
fn a_queue_keeps_its_geometry_once_the_driver_is_ready() {
    let mut machine = Machine::new();
    machine.bring_up();
    write(&mut machine.transport, register::VIRTIO_MMIO_QUEUE_SEL, 0);
    write(&mut machine.transport, register::VIRTIO_MMIO_QUEUE_READY, 0);
    write(&mut machine.transport, register::VIRTIO_MMIO_QUEUE_NUM, 2);
    assert_eq!(
        read(&mut machine.transport, register::VIRTIO_MMIO_QUEUE_READY),
        1
    );
    assert_eq!(machine.status(), 15);
}

#[test]
fn a_queue_that_cannot_be_used_makes_the_device_need_a_reset() {
    type Spoil = fn(&mut queue::QueueConfig);
    let spoils: [Spoil; 9] = [
        |queue| queue.size = 0,
        |queue| queue.size = 3,
        |queue| queue.size = 512,
        |queue| queue.size = 0x1_0100,
        |queue| queue.ready = false,
        |queue| queue.descriptors += 1,
        |queue| queue.available = MEMORY_SIZE as u64 - 2,
        |queue| queue.used = u64::MAX - 3,
        |queue| queue.descriptors = 1 << 40,
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        let mut machine = Machine::new();
        negotiate(&mut machine.transport, RING_FEATURES);
        let mut spoiled = machine.queues[0].config();
        spoil(&mut spoiled);
        lay_out(&mut machine.transport, 0, &spoiled);
        lay_out(&mut machine.transport, 1, &machine.queues[1].config());
        write(&mut machine.transport, register::VIRTIO_MMIO_STATUS, 15);

        assert_eq!(machine.status(), 15 | 64, "case {number}");
        assert!(!machine.is_running());
        assert!(
            interrupted(&machine.irq),
            "the driver is told by a configuration interrupt"
        );
        assert_eq!(
            read(
                &mut machine.transport,
                register::VIRTIO_MMIO_INTERRUPT_STATUS
            ),
            2
        );

        write(&mut machine.transport, register::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(machine.status(), 0);
        machine.bring_up();
        assert_eq!(machine.status(), 15, "after a reset it works again");
    }
}

#[test]
fn a_reset_forgets_everything() {
    let mut machine = Machine::new();
    machine.bring_up();
    machine.notes.lock().unwrap().activations[0]
        .interrupt
        .signal_used_buffer();
    write(&mut machine.transport, register::VIRTIO_MMIO_STATUS, 0);

    assert!(!machine.is_running(), "the device was told");
    assert_eq!(machine.status(), 0);
    for zero in [
        register::VIRTIO_MMIO_INTERRUPT_STATUS,
        register::VIRTIO_MMIO_QUEUE_READY,
    ] {
        assert_eq!(read(&mut machine.transport, zero), 0);
    }
    // Without negotiating again, nothing is left of the old features.
    for status in [1, 3, 11] {
        write(&mut machine.transport, register::VIRTIO_MMIO_STATUS, status);
    }
    assert_eq!(machine.status(), 3);
}

/// The state of a running device with one field changed.
fn state_with(field: &str, value: serde_json::Value) -> mmio::TransportState {
    let mut machine = Machine::new();
    machine.bring_up();
    let mut state = serde_json::to_value(machine.transport.suspend()).unwrap();
    state[field] = value;
    serde_json::from_value(state).unwrap()
}

#[test]
fn a_state_of_a_device_that_runs_although_its_driver_is_not_ready_is_refused() {
    let wrong = [
        ("phase", "reset".into()),
        ("phase", "features_ok".into()),
        ("phase", "failed".into()),
        ("needs_reset", true.into()),
    ];
    for (field, value) in wrong {
        let mut machine = Machine::new();
        let restored = machine.transport.restore(&state_with(field, value));
        let error = restored.unwrap_err().to_string();
        assert!(error.contains("does not run"), "{error}");
        machine.transport.resume().unwrap();
        assert!(!machine.is_running());
        assert_eq!(machine.status(), 0, "it is as it was");
        machine.bring_up();
        assert_eq!(machine.notes.lock().unwrap().activations.len(), 1);
    }
    let mut machine = Machine::new();
    let right = state_with("phase", "driver_ok".into());
    machine.transport.restore(&right).unwrap();
    machine.transport.resume().unwrap();
    assert!(machine.is_running() && machine.status() == 15);
}

#[test]
fn a_driver_that_gives_up_stops_the_device() {
    let mut machine = Machine::new();
    machine.bring_up();
    write(
        &mut machine.transport,
        register::VIRTIO_MMIO_STATUS,
        15 | 128,
    );
    assert_eq!(machine.status(), 128);
    assert!(!machine.is_running());
}

#[test]
fn interrupt_bits_stay_until_acknowledged() {
    let mut machine = Machine::new();
    machine.bring_up();
    {
        let notes = machine.notes.lock().unwrap();
        notes.activations[0].interrupt.signal_used_buffer();
        notes.activations[0].interrupt.signal_config_change();
    }
    let device = &mut machine.transport;
    assert_eq!(read(device, register::VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    write(device, register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(read(device, register::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    write(device, register::VIRTIO_MMIO_INTERRUPT_ACK, 2);
    assert_eq!(read(device, register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_notification_that_missed_its_ioeventfd_still_arrives() {
    let mut machine = Machine::new();
    let events: Vec<_> = machine
        .transport
        .queue_events()
        .iter()
        .map(|e| e.try_clone().unwrap())
        .collect();
    for index in [1, 2, u32::MAX] {
        write(
            &mut machine.transport,
            register::VIRTIO_MMIO_QUEUE_NOTIFY,
            index,
        );
    }
    assert!(events[0].read().is_err());
    assert_eq!(events[1].read().unwrap(), 1);
}

#[test]
fn configuration_space_reads_at_any_width_and_as_zero_beyond_its_end() {
    let mut machine = Machine::new();
    let mut wide = [0xff; 8];
    machine.transport.read(0x100, &mut wide);
    assert_eq!(&wide, b"config!\0");
    let mut beyond = [0xff; 4];
    machine.transport.read(0x106, &mut beyond);
    assert_eq!(&beyond, b"!\0\0\0");
    machine.transport.read(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn without_the_event_index_the_drivers_flag_suppresses_interrupts() {
    let memory = guest_memory();
    let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
    let mut device = driver.device_side(false);
    let head = driver.add(&[writable(BUFFERS, 8)]);
    assert!(device.pop().unwrap().is_some());
    driver.set_available_flags(1);
    device.push_used(head, 8).unwrap();
    assert!(!device.wants_interrupt().unwrap());
    driver.set_available_flags(0);
    assert!(device.wants_interrupt().unwrap());
}

#[test]
fn with_the_event_index_the_driver_is_interrupted_where_it_asked() {
    let memory = guest_memory();
    let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
    let mut device = driver.device_side(true);
    driver.set_used_event(2);
    let mut interrupts = Vec::new();
    for _ in 0..5 {
        let head = driver.add(&[writable(BUFFERS, 8)]);
        assert!(device.pop().unwrap().is_some());
        device.push_used(head, 0).unwrap();
        interrupts.push(device.wants_interrupt().unwrap());
    }
    assert_eq!(interrupts, [false, false, true, false, false]);
    assert!(!device.enable_notification().unwrap());
    assert_eq!(
        driver.available_event(),
        5,
        "the device wants to hear of the next chain"
    );
}

#[test]
fn a_malformed_chain_is_refused_and_can_be_given_back() {
    let memory = guest_memory();
    let next = 1_u16;
    let cases: [(&str, Vec<Descriptor>, chain::ChainError); 4] = [
        (
            "a loop",
            vec![Descriptor {
                flags: next,
                next: 0,
                ..readable(BUFFERS, 8)
            }],
            chain::ChainError::Unfinished,
        ),
        (
            "a descriptor outside the table",
            vec![Descriptor {
                flags: next,
                next: 999,
                ..readable(BUFFERS, 8)
            }],
            chain::ChainError::Unfinished,
        ),
        (
            "readable after writable",
            vec![writable(BUFFERS, 8), readable(BUFFERS, 8)],
            chain::ChainError::OutOfOrder,
        ),
        (
            "an indirect table outside memory",
            vec![indirect(1 << 50, 4)],
            chain::ChainError::Unfinished,
        ),
    ];
    for (what, descriptors, error) in cases {
        let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
        driver.set_available_index(0);
        let mut device = driver.device_side(true);
        let head = driver.add(&descriptors);
        let bad = device.pop().unwrap().unwrap().unwrap_err();
        assert_eq!((bad.head, bad.error), (head, error), "{what}");
        device.push_used(bad.head, 0).unwrap();
    }
}

#[test]
fn an_indirect_chain_longer_than_any_queue_is_refused() {
    let memory = guest_memory();
    let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
    let mut device = driver.device_side(true);
    driver.add_indirect(BUFFERS, &[readable(0x1000, 1); 257]);
    let bad = device.pop().unwrap().unwrap().unwrap_err();
    assert_eq!(bad.error, chain::ChainError::TooLong);
}

#[test]
fn an_index_that_jumped_stops_the_ring() {
    let memory = guest_memory();
    let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
    let mut device = driver.device_side(true);
    driver.set_available_index(17);
    assert!(matches!(device.pop(), Err(QueueError::Ring(_))));
}

#[test]
fn a_head_outside_the_queue_stops_the_ring() {
    let memory = guest_memory();
    let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
    let mut device = driver.device_side(true);
    driver.add_head(16);
    let bad = device.pop().unwrap().unwrap().unwrap_err();
    assert!(device.push_used(bad.head, 0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No sequence of register accesses does anything worse than nothing, and
    /// the device runs if and only if the driver is ready.
    #[test]
    fn any_accesses_leave_a_legal_status(
        accesses in prop::collection::vec(
            (any::<bool>(), 0_u64..0x120, prop_oneof![0_u32..16, Just(15), any::<u32>()], 1_usize..9),
            0..60,
        ),
    ) {
        let mut machine = Machine::new();
        for (writes, offset, value, width) in accesses {
            let offset = if width == 4 { offset & !3 } else { offset };
            let mut data = [0; 8];
            data[..4].copy_from_slice(&value.to_le_bytes());
            if writes {
                machine.transport.write(offset, &data[..width]);
            } else {
                machine.transport.read(offset, &mut data[..width]);
            }
            let status = machine.status();
            prop_assert!([0, 1, 3, 11, 15, 15 | 64, 128].contains(&status), "{status}");
            prop_assert_eq!(machine.is_running(), status == 15);
        }
    }

    /// Descriptor tables of any content are walked in bounded time and without
    /// harm.
    #[test]
    fn any_descriptors_are_walked_safely(
        descriptors in prop::collection::vec(
            (any::<u64>(), any::<u32>(), 0_u16..8, 0_u16..20), 16,
        ),
        heads in prop::collection::vec(0_u16..20, 1..16),
    ) {
        let memory = guest_memory();
        let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
        let mut device = driver.device_side(true);
        for (index, (address, len, flags, next)) in descriptors.into_iter().enumerate() {
            // Half of the addresses lie in memory.
            let address = if address & 1 == 0 { address % MEMORY_SIZE as u64 } else { address };
            driver.put_descriptor(0x1_0000, index as u16, Descriptor { address, len, flags, next });
        }
        for head in &heads {
            driver.add_head(*head);
        }
        while let Ok(Some(popped)) = device.pop() {
            let head = match popped {
                Ok(chain) => {
                    let mut some = [0; 64];
                    let _ = chain.readable.read_at(&memory, 0, &mut some);
                    let _ = chain.readable.is_in(&memory);
                    chain.head
                }
                Err(bad) => bad.head,
            };
            if device.push_used(head, 0).is_err() {
                break;
            }
        }
    }
}
