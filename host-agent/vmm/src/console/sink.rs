//! What the serial device writes to.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::{RingError, RingWriter, Watch};
use crate::config::ConsoleConfig;
use crate::limits::SharedThrottle;

/// Takes the console's output where the configuration says, past a [`Watch`].
///
/// Output that cannot be written is dropped: a full disk or a closed pipe costs
/// console text, never the machine. So is what is beyond the console's limit; how
/// much that was is said there when it goes on.
#[derive(Debug)]
pub struct ConsoleSink {
    target: Target,
    watch: Arc<Mutex<Watch>>,
    throttle: SharedThrottle,
    left_out: u64,
}

#[derive(Debug)]
enum Target {
    Stdout,
    Ring(RingWriter),
    Nowhere,
}

impl ConsoleSink {
    /// Opens the console's target.
    ///
    /// # Errors
    ///
    /// When a ring cannot be made.
    pub fn open(config: &ConsoleConfig) -> Result<ConsoleSink, RingError> {
        let target = match config {
            ConsoleConfig::Stdio => Target::Stdout,
            ConsoleConfig::None => Target::Nowhere,
            ConsoleConfig::Ring(ring) => Target::Ring(RingWriter::create(&ring.path, ring.bytes)?),
        };
        Ok(ConsoleSink {
            target,
            watch: Arc::default(),
            throttle: SharedThrottle::default(),
            left_out: 0,
        })
    }

    /// What holds it to its limit; stays there after the sink is gone.
    pub fn throttle(&self) -> SharedThrottle {
        self.throttle.clone()
    }

    fn may_write(&mut self, bytes: &[u8], now: Instant) -> bool {
        let mut throttle = self.throttle.lock();
        let may = throttle.ready(now).is_ok();
        if may {
            throttle.charge(bytes.len() as u64, now);
        }
        may
    }

    fn put(&mut self, bytes: &[u8]) {
        let _ = match &mut self.target {
            Target::Stdout => {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            }
            Target::Ring(ring) => ring.write(bytes),
            Target::Nowhere => Ok(()),
        };
    }

    /// What was seen so far; stays readable after the sink is gone.
    pub fn watch(&self) -> Arc<Mutex<Watch>> {
        Arc::clone(&self.watch)
    }
}

impl Write for ConsoleSink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.watch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .observe(bytes);
        if !self.may_write(bytes, Instant::now()) {
            self.left_out += bytes.len() as u64;
            return Ok(bytes.len());
        }
        if self.left_out > 0 {
            let note = format!("\r\n[{} bytes of output left out]\r\n", self.left_out);
            self.left_out = 0;
            self.put(note.as_bytes());
        }
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RingConfig;
    use crate::console::RingReader;
    use crate::limits::{Rate, RateLimit};

    #[test]
    fn output_beyond_the_limit_is_left_out_and_seen_by_the_watch_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring");
        let ring = RingConfig {
            path: path.clone(),
            bytes: 4096,
        };
        let mut sink = ConsoleSink::open(&ConsoleConfig::Ring(ring)).unwrap();
        let throttle = sink.throttle();
        let bytes = |per_second, burst| RateLimit {
            bytes: Some(Rate { per_second, burst }),
            operations: None,
        };
        throttle.lock().change(&bytes(1, 8), Instant::now());
        // A minute of debt.
        sink.write_all(&[b'x'; 68]).unwrap();
        for _ in 0..1000 {
            sink.write_all(b"too much ").unwrap();
        }
        sink.write_all(b"\nKernel panic - not syncing: out\n")
            .unwrap();
        assert!(sink.watch().lock().unwrap().panic().is_some());

        throttle
            .lock()
            .change(&RateLimit::default(), Instant::now());
        sink.write_all(b"well").unwrap();
        let written = RingReader::open(&path).unwrap().tail(4096).unwrap().bytes;
        assert_eq!(
            String::from_utf8(written).unwrap(),
            "x".repeat(68) + "\r\n[9033 bytes of output left out]\r\nwell"
        );
        assert_eq!(throttle.lock().throttled().waits, 1);
    }
}
