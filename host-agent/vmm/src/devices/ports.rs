//! The I/O ports of a PC, as far as a kernel without PCI touches them.

use std::sync::{Arc, Mutex, PoisonError};

use super::i8042;
use super::serial::{COM1, PORTS, SerialPort};

/// The real-time clock's index and data ports.
const RTC: std::ops::RangeInclusive<u16> = 0x70..=0x71;
/// System control port B, with the speaker and the timer's output.
const SYSTEM_CONTROL_B: u16 = 0x61;
/// The timer's second channel has run out: whoever waits for it goes on.
const TIMER_2_OUT: u8 = 0x20;

/// What a port write means for the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortEffect {
    /// Nothing beyond the device.
    None,
    /// The guest asks for a reset.
    Reset,
}

/// The ports, shared by all virtual CPUs.
#[derive(Debug, Clone)]
pub struct Ports {
    serial: Arc<Mutex<SerialPort>>,
}

impl Ports {
    /// Ports with this serial port among them.
    pub fn new(serial: Arc<Mutex<SerialPort>>) -> Ports {
        Ports { serial }
    }

    /// Answers an `in` of `data.len()` bytes; all ones where nobody is.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            i8042::DATA | i8042::COMMAND => data.fill(i8042::STATUS_IDLE),
            port if RTC.contains(&port) => data.fill(0),
            SYSTEM_CONTROL_B => data.fill(TIMER_2_OUT),
            port => match serial_register(port) {
                Some(register) => {
                    let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                    data.fill_with(|| serial.read(register));
                }
                None => data.fill(0xff),
            },
        }
    }

    /// Takes an `out` of `data`.
    pub fn write(&self, port: u16, data: &[u8]) -> PortEffect {
        if port == i8042::COMMAND && i8042::resets(data) {
            return PortEffect::Reset;
        }
        if let Some(register) = serial_register(port) {
            let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
            for byte in data {
                serial.write(register, *byte);
            }
        }
        PortEffect::None
    }
}

fn serial_register(port: u16) -> Option<u8> {
    let register = port
        .checked_sub(COM1)
        .filter(|register| *register < PORTS)?;
    u8::try_from(register).ok()
}
