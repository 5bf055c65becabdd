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
