//! The serial port: an 8250 at COM1 whose output is the machine's console.

use std::io;

use vm_superio::Trigger;
use vm_superio::serial::{self, NoEvents, Serial, SerialState};
use vmm_sys_util::eventfd::EventFd;

use crate::console::ConsoleSink;

/// The first of COM1's eight ports.
pub const COM1: u16 = 0x3f8;
/// How many ports an 8250 has.
pub const PORTS: u16 = 8;
/// COM1's interrupt line.
pub const IRQ: u32 = 4;

// The 16550's registers (PC16550D data sheet, table II).
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const SCRATCH: u8 = 7;
const DATA_READY: u8 = 1;

/// What a driver would have to write for what is there at power on: 9600 baud, the
/// divisor by way of the line control's highest bit, eight bits, no interrupts.
const POWER_ON: [(u8, u8); 7] = [
    (LINE_CONTROL, 0x83),
    (DATA, 12),
    (INTERRUPT_ENABLE, 0),
    (LINE_CONTROL, 3),
    (INTERRUPT_ENABLE, 0),
    (MODEM_CONTROL, 8),
    (SCRATCH, 0),
];

/// An interrupt line behind an irqfd.
#[derive(Debug)]
pub struct IrqLine(EventFd);

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port.
pub struct SerialPort {
    uart: Serial<IrqLine, NoEvents, ConsoleSink>,
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl SerialPort {
    /// A port that raises `irq` and writes to `sink`.
    pub fn new(irq: EventFd, sink: ConsoleSink) -> SerialPort {
        SerialPort {
            uart: Serial::new(IrqLine(irq), sink),
        }
    }

    /// A port that has the state of another.
    ///
    /// # Errors
    ///
    /// When there is more input in it than fits.
    pub fn restore(
        state: &SerialState,
        irq: EventFd,
        sink: ConsoleSink,
    ) -> Result<SerialPort, serial::Error<io::Error>> {
        Ok(SerialPort {
            uart: Serial::from_state(state, IrqLine(irq), NoEvents, sink)?,
        })
    }

    /// Forgets what its driver told it and what has not been read, as at power on.
    pub fn reset(&mut self) {
        for (register, value) in POWER_ON {
            self.write(register, value);
        }
        while self.read(LINE_STATUS) & DATA_READY != 0 {
            self.read(DATA);
        }
        self.read(INTERRUPT_IDENTIFICATION);
    }

    /// Has its driver find the registers as they were when that state was taken, and nothing
    /// to read.
    pub fn go_back(&mut self, state: &SerialState) {
        self.reset();
        let divisor_latch = state.line_control | 0x80;
        for (register, value) in [
            (LINE_CONTROL, divisor_latch),
            (DATA, state.baud_divisor_low),
            (INTERRUPT_ENABLE, state.baud_divisor_high),
            (LINE_CONTROL, state.line_control),
            (MODEM_CONTROL, state.modem_control),
            (SCRATCH, state.scratch),
            (INTERRUPT_ENABLE, state.interrupt_enable),
        ] {
            self.write(register, value);
        }
    }

    /// The registers and what has not been read.
    pub fn state(&self) -> SerialState {
        self.uart.state()
    }

    /// Reads one of the eight registers.
    pub fn read(&mut self, register: u8) -> u8 {
        self.uart.read(register)
    }

    /// Writes one of the eight registers.
    pub fn write(&mut self, register: u8, value: u8) {
        // The sink drops what it cannot write, and an irqfd that cannot be
        // written is raised already.
        let _ = self.uart.write(register, value);
    }

    /// How many bytes of input fit.
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Gives the guest input; what does not fit is lost, as on a real line.
    pub fn input(&mut self, bytes: &[u8]) {
        let _ = self.uart.enqueue_raw_bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::config::ConsoleConfig;

    #[test]
    fn a_port_that_was_reset_is_as_at_power_on() {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let sink = ConsoleSink::open(&ConsoleConfig::None).unwrap();
        let mut port = SerialPort::new(irq, sink);
        let at_power_on = port.state();
        for (register, value) in [
            (3, 0x80),
            (0, 1),
            (1, 1),
            (3, 0x1b),
            (1, 3),
            (4, 0xb),
            (7, 9),
        ] {
            port.write(register, value);
        }
        let driven = port.state();
        port.input(b"never read");
        assert_ne!(port.state(), at_power_on);
        port.reset();
        assert_eq!(port.state(), at_power_on);
        port.go_back(&driven);
        assert_eq!(port.state(), driven);
    }

    #[test]
    fn output_passes_the_watch_and_input_raises_the_line() {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let sink = ConsoleSink::open(&ConsoleConfig::None).unwrap();
        let watch = sink.watch();
        let mut port = SerialPort::new(irq.try_clone().unwrap(), sink);
        for byte in b"hello\n" {
            port.write(0, *byte);
        }
        assert!(watch.lock().unwrap().first_line().is_some());

        port.write(1, 1);
        port.input(b"a");
        assert_eq!(irq.read().unwrap(), 1);
        assert_eq!(port.read(0), b'a');
        port.input(&[b'x'; 1000]);
    }
}
