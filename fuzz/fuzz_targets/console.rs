//! The I/O ports: serial port, console ring and watch, keyboard controller.

#![no_main]

use std::sync::{Arc, Mutex, PoisonError};

use arbitrary::Arbitrary;
use fabric_fuzz::driver::interrupt_line;
use fabric_fuzz::rarely::Rarely;
use fabric_fuzz::scratch::Scratch;
use fabric_vmm::config::{ConsoleConfig, RingConfig};
use fabric_vmm::console::{ConsoleSink, RingReader};
use fabric_vmm::devices::ports::{PortEffect, Ports};
use fabric_vmm::devices::serial::{COM1, SerialPort};
use fabric_vmm::snapshot::state::UartState;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[derive(Arbitrary, Debug)]
struct Input {
    capacity: u16,
    acts: Vec<Act>,
    offset: u64,
    most: u16,
}

#[derive(Arbitrary, Debug)]
enum Act {
    Out(Port, [u8; 4], u8),
    In(Port, u8),
    Say(Vec<u8>),
    Panic(String),
    Input(Vec<u8>),
    Restore(Vec<(u8, u8)>),
}

#[derive(Arbitrary, Debug)]
struct Port {
    serial: u8,
    other: Rarely<u16>,
}

impl Port {
    fn number(&self) -> u16 {
        self.other.or(COM1 + u16::from(self.serial & 7))
    }
}

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

fuzz_target!(|input: Input| {
    SCRATCH.with(|scratch| run(scratch, &input));
});

fn run(scratch: &Scratch, input: &Input) {
    let path = scratch.path("console");
    let ring = RingConfig {
        path: path.clone(),
        bytes: 4096 + u64::from(input.capacity),
    };
    let sink = || ConsoleSink::open(&ConsoleConfig::Ring(ring.clone())).expect("a ring");
    let first = sink();
    let mut watch = first.watch();
    let mut port = Arc::new(Mutex::new(SerialPort::new(interrupt_line(), first)));
    let mut ports = Ports::new(Arc::clone(&port));
    for act in &input.acts {
        match act {
            Act::Out(to, data, len) => {
                let number = to.number();
                let data = &data[..usize::from(len % 5)];
                let effect = ports.write(number, data);
                let resets = number == 0x64 && data.first() == Some(&0xfe);
                assert_eq!(effect == PortEffect::Reset, resets);
            }
            Act::In(from, len) => ports.read(from.number(), &mut vec![0; usize::from(len % 9)]),
            Act::Say(bytes) => say(&ports, bytes),
            Act::Panic(reason) => {
                say(
                    &ports,
                    format!("\nKernel panic - not syncing: {reason}\n").as_bytes(),
                );
            }
            Act::Input(bytes) => {
                let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
                let room = port.room();
                port.input(&bytes[..bytes.len().min(room)]);
                assert!(port.room() <= room);
            }
            Act::Restore(edits) => {
                let state = port.lock().unwrap_or_else(PoisonError::into_inner).state();
                let Some(state) = edited(UartState(state), edits) else {
                    continue;
                };
                let next = sink();
                watch = next.watch();
                let Ok(restored) = SerialPort::restore(&state.0, interrupt_line(), next) else {
                    continue;
                };
                port = Arc::new(Mutex::new(restored));
                ports = Ports::new(Arc::clone(&port));
            }
        }
    }
    let watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(watch.panic().is_none_or(|text| text.len() <= 512));
    let chunk = RingReader::open(&path)
        .and_then(|reader| reader.read_from(input.offset, usize::from(input.most)))
        .expect("a ring is read");
    assert!(chunk.bytes.len() <= usize::from(input.most) && chunk.next_offset() <= chunk.total);
}

fn say(ports: &Ports, bytes: &[u8]) {
    for byte in bytes {
        ports.write(COM1, &[*byte]);
    }
}

/// The state with some of its registers changed, if that is a state.
fn edited(state: UartState, edits: &[(u8, u8)]) -> Option<UartState> {
    let mut document = serde_json::to_value(state).ok()?;
    let registers = document.as_object_mut()?;
    for (which, value) in edits.iter().take(8) {
        let count = registers.len();
        let register = registers.values_mut().nth(usize::from(*which) % count)?;
        *register = match register {
            Value::Array(_) => vec![*value; usize::from(*value)].into(),
            _ => (*value).into(),
        };
    }
    serde_json::from_value(document).ok()
}
