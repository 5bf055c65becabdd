//! Going on from a snapshot: its state, its memory, and the devices that get them.

#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use fabric_fuzz::block::Threadless;
use fabric_fuzz::disk::{self, Images, MemoryFile};
use fabric_fuzz::driver::{
    Queue, Registers, Setup, Shape, bring_up, get, guest_memory, interrupt_line, set, writable,
};
use fabric_fuzz::json::Edit;
use fabric_fuzz::rarely::Rarely;
use fabric_fuzz::scratch::Scratch;
use fabric_vmm::config::{ConsoleConfig, VmConfig};
use fabric_vmm::console::ConsoleSink;
use fabric_vmm::devices::block::Block;
use fabric_vmm::devices::serial::SerialPort;
use fabric_vmm::devices::virtio::mmio::TransportState;
use fabric_vmm::devices::virtio::{MmioTransport, RING_FEATURES};
use fabric_vmm::exit::KvmKind;
use fabric_vmm::machine::restore;
use fabric_vmm::snapshot::state::MachineState;
use fabric_vmm::snapshot::{self, MEMORY_FILE, STATE_FILE, memory, parse};
use kvm_bindings::{
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_pit_state2, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vhd::OpenOptions;
use virtio_bindings::virtio_mmio as register;
use vm_memory::{Bytes, GuestAddress};

static IMAGES: LazyLock<Images> = LazyLock::new(Images::new);
/// What KVM tells of a virtual CPU and of the chips, in the form of a snapshot.
static VCPU: LazyLock<Value> = LazyLock::new(vcpu);
static CHIPS: LazyLock<Value> = LazyLock::new(chips);

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// How the snapshot's device was.
    setup: Setup,
    requests: u8,
    vcpus: Rarely<u8>,
    positions: Rarely<(u16, u16)>,
    /// Few of all fields, more of the device's, which are the most.
    edits: Rarely<Edit>,
    device_edits: Vec<Edit>,
    envelope_edit: Rarely<Edit>,
    digest: Rarely<String>,
    text: Rarely<String>,
    acts: Vec<Registers>,
    pages: Vec<(u8, u8)>,
    damage: Option<(u16, u8)>,
    whole: u8,
    files: bool,
}

fuzz_target!(|input: Input| {
    let device = device(&input);
    // All of a snapshot is long, and costs most of the time that it is given.
    if input.whole & 15 != 15 {
        if let Ok(device) = serde_json::from_value(device) {
            restore_disk(&device, &input);
        }
        return;
    }
    let state = state(&input, device);
    let text = match &input.text.0 {
        Some(text) => text.clone(),
        None => envelope(&state, &input),
    };
    if let Ok(state) = parse(&text, Path::new(STATE_FILE)) {
        go_on(&state, &input);
    }
    if input.files {
        SCRATCH.with(|scratch| keep(scratch, &text, &input));
    }
});

fn block(memory: &fabric_vmm::memory::GuestMemory) -> (MmioTransport, fabric_fuzz::block::Work) {
    let file = MemoryFile::new(IMAGES.dynamic.clone());
    let disk = disk::open(&file, &OpenOptions::default(), None).expect("an image in order");
    let device = Block::new(Arc::new(disk), "fuzz", false).expect("a device");
    let (device, work) = Threadless::new(device);
    (
        MmioTransport::new(Box::new(device), memory.clone(), interrupt_line()),
        work,
    )
}

/// The state of a device, as it really was but for the edits.
fn device(input: &Input) -> Value {
    let memory = guest_memory();
    let (mut transport, work) = block(&memory);
    let mut queues = bring_up(
        &mut transport,
        &input.setup,
        u64::MAX >> 8 & RING_FEATURES,
        1,
    );
    add_requests(&memory, &mut queues[0], input.requests);
    work.serve();
    let device = transport.suspend();
    let mut device = serde_json::to_value(device).expect("a device's state is JSON");
    if let (Some((available, used)), Some(positions)) = (
        input.positions.0,
        device.get_mut("positions").filter(|value| value.is_array()),
    ) {
        positions[0] = json!({ "available": available, "used": used });
    }
    input
        .device_edits
        .iter()
        .take(3)
        .for_each(|edit| edit.apply(&mut device));
    device
}

/// A snapshot's state: this device, the rest by its defaults.
fn state(input: &Input, device: Value) -> Value {
    let mut state = json!({
        "vmm_version": "0", "kvm": "interpreted", "memory_mib": 32,
        "memory": { "sha256": "0", "bytes": 0 },
        "vcpus": vec![VCPU.clone(); usize::from(input.vcpus.or(0) % 4)], "chips": CHIPS.clone(),
        "serial": {
            "baud_divisor_low": 12, "baud_divisor_high": 0, "interrupt_enable": 0,
            "interrupt_identification": 1, "line_control": 3, "line_status": 96,
            "modem_control": 8, "modem_status": 176, "scratch": 0, "in_buffer": [1, 2],
        },
        "disks": [{
            "serial": "fuzz", "readonly": false, "size_bytes": disk::SIZE, "transport": device,
        }],
    });
    if let Some(edit) = &input.edits.0 {
        edit.apply(&mut state);
    }
    state
}

fn add_requests(memory: &fabric_vmm::memory::GuestMemory, queue: &mut Queue, count: u8) {
    for _ in 0..count % 8 {
        // Too short for a request: given back at once, which moves the positions.
        queue.add(memory, &[writable((0x2_0000, 8))], &Shape::right());
    }
}

fn envelope(state: &Value, input: &Input) -> String {
    let state = state.to_string();
    let sum: String = Sha256::digest(&state)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut envelope = json!({
        "format": "fabric-vmm snapshot", "version": 1, "sha256": input.digest.or(sum),
    });
    if let Some(edit) = &input.envelope_edit.0 {
        edit.apply(&mut envelope);
    }
    // The state is bytes to the envelope, which a digest is of.
    let text = envelope.to_string();
    let text = text.strip_suffix('}').unwrap_or(&text);
    let comma = if text.len() > 1 { "," } else { "" };
    format!("{text}{comma}\"state\":{state}}}")
}

/// Gives a state to a machine like the one that it is of.
fn go_on(state: &MachineState, input: &Input) {
    let mut config = VmConfig::new("kernel");
    config.memory_mib = 32;
    let _ = restore::check(&config, KvmKind::Interpreted, state);
    let sink = ConsoleSink::open(&ConsoleConfig::None).expect("a console");
    if let Ok(mut port) = SerialPort::restore(&state.serial.0, interrupt_line(), sink) {
        port.input(b"x");
        (0..8).for_each(|register| port.write(register, port_value(register)));
        for register in 0..8 {
            let _ = port.read(register);
        }
    }
    for disk in &state.disks {
        restore_disk(&disk.transport, input);
    }
}

fn restore_disk(state: &TransportState, input: &Input) {
    let memory = guest_memory();
    let (mut transport, work) = block(&memory);
    if transport.restore(state).is_err() {
        return;
    }
    transport
        .resume()
        .expect("a device that was restored goes on");
    let runs = work.serve();
    let status = get(&mut transport, register::VIRTIO_MMIO_STATUS);
    assert!(!runs || status == 15, "it runs in status {status}");
    for act in input.acts.iter().take(32) {
        act.access(&mut transport);
        work.serve();
    }
    set(&mut transport, register::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(get(&mut transport, register::VIRTIO_MMIO_STATUS), 0);
    assert!(!work.serve(), "a device that was reset does not run");
}

fn port_value(register: u8) -> u8 {
    register.wrapping_mul(37)
}

/// Writes a memory, damages the file, and has the damage found.
fn keep(scratch: &Scratch, text: &str, input: &Input) {
    let memory = guest_memory();
    for (page, value) in input.pages.iter().take(16) {
        let at = u64::from(page % 64) * 4096 + u64::from(*value) * 16;
        memory.write_obj(*value, GuestAddress(at)).expect("a page");
    }
    let path = scratch.path(MEMORY_FILE);
    let _ = std::fs::remove_file(&path);
    let written = memory::write(&path, &memory).expect("memory is written");
    let digest = || {
        let file = std::fs::File::open(&path).expect("the memory's file");
        memory::digest(&file, &path, fabric_fuzz::driver::MEMORY as u64).expect("memory is read")
    };
    assert_eq!(digest(), written);
    if let Some((at, value)) = input.damage {
        let mut bytes = std::fs::read(&path).expect("the memory's file");
        let at = usize::from(at) * 4;
        let changed = bytes[at] != value;
        bytes[at] = value;
        std::fs::write(&path, &bytes).expect("the memory's file");
        assert_eq!(digest() != written, changed);
    }
    scratch.file(STATE_FILE, text.as_bytes());
    let _ = snapshot::verify(scratch.folder());
}

fn value<T: serde::Serialize>(value: T) -> Value {
    serde_json::to_value(value).expect("KVM's structures are JSON")
}

fn vcpu() -> Value {
    json!({
        "cpuid": [], "regs": value(kvm_regs::default()), "sregs": value(kvm_sregs::default()),
        "xsave": value(kvm_xsave::default()), "xcrs": value(kvm_xcrs::default()),
        "debug_registers": value(kvm_debugregs::default()),
        "lapic": value(kvm_lapic_state::default()), "msrs": [],
        "events": value(kvm_vcpu_events::default()), "mp_state": value(kvm_mp_state::default()),
    })
}

fn chips() -> Value {
    let chip = value(kvm_irqchip::default());
    json!({
        "clock_ns": 1, "irqchips": [chip, chip, chip], "pit": value(kvm_pit_state2::default()),
    })
}
