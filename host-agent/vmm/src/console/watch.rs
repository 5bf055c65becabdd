//! Watches the console's stream for the three things a report tells: its first
//! byte, its first whole line, and the kernel's last words.

use std::time::Instant;

/// What the kernel prints before the reason of a panic.
const PANIC: &str = "Kernel panic - not syncing:";
/// How much of a line is kept; a guest may never end one.
const LINE_MAX: usize = 1024;
/// The longest panic text that is reported, in bytes.
const PANIC_MAX: usize = 512;

/// What was seen on the console so far.
#[derive(Debug, Default)]
pub struct Watch {
    line: Vec<u8>,
    first_byte: Option<Instant>,
    first_line: Option<Instant>,
    panic: Option<String>,
}

impl Watch {
    /// Looks at the next bytes of the stream.
    pub fn observe(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.first_byte.get_or_insert_with(Instant::now);
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
        }
    }

    /// When the first byte came.
    pub fn first_byte(&self) -> Option<Instant> {
        self.first_byte
    }

    /// When the first line was whole.
    pub fn first_line(&self) -> Option<Instant> {
        self.first_line
    }

    /// What the kernel said it panicked of; the first time counts.
    pub fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// Forgets the last words of a kernel that was reset. When things first happened
    /// stays what it is.
    pub fn begin_anew(&mut self) {
        self.line.clear();
        self.panic = None;
    }

    fn end_line(&mut self) {
        self.first_line.get_or_insert_with(Instant::now);
        if self.panic.is_none() {
            self.panic = panic_text(&self.line);
        }
        self.line.clear();
    }
}

fn panic_text(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line);
    let (_, text) = line.split_once(PANIC)?;
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    let end = text.floor_char_boundary(PANIC_MAX);
    Some(text[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_across_pieces() {
        let mut watch = Watch::default();
        watch.observe(b"[    1.0] Kernel panic - not");
        assert!(watch.first_byte().is_some() && watch.first_line().is_none());
        watch.observe(b" syncing: VFS: Unable to mount root fs\r\n");
        watch.observe(b"Kernel panic - not syncing: a second one\n");
        assert!(watch.first_line().is_some());
        assert_eq!(watch.panic(), Some("VFS: Unable to mount root fs"));
    }

    #[test]
    fn a_line_without_end_takes_no_memory_without_end() {
        let mut watch = Watch::default();
        watch.observe(&[b'x'; 100_000]);
        assert!(watch.line.capacity() <= 2 * LINE_MAX);
        watch.observe(b"\nKernel panic - not syncing: \xff\x1b[2J!\n");
        assert_eq!(watch.panic(), Some("\u{fffd}[2J!"));
    }
}
