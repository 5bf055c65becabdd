//! The keyboard controller, of which only the reset line is there.
//!
//! A kernel with `reboot=k` writes command 0xFE to port 0x64; on a PC that
//! pulses the processor's reset pin.

/// The data port.
pub const DATA: u16 = 0x60;
/// The command port; reads give the status.
pub const COMMAND: u16 = 0x64;

/// The command that resets the machine.
pub const PULSE_RESET: u8 = 0xfe;

/// What the controller answers on either port: nothing to read, room to write.
pub const STATUS_IDLE: u8 = 0;

/// Whether a write to the command port resets the machine.
pub fn resets(command: &[u8]) -> bool {
    command.first() == Some(&PULSE_RESET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pulse_resets() {
        assert!(resets(&[0xfe]));
        assert!(!resets(&[0xff]) && !resets(&[0xd1]) && !resets(&[]));
    }
}
