//! What the serial device writes to.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use super::{RingError, RingWriter, Watch};
use crate::config::ConsoleConfig;

/// Takes the console's output where the configuration says, past a [`Watch`].
///
/// Output that cannot be written is dropped: a full disk or a closed pipe costs
/// console text, never the machine.
#[derive(Debug)]
pub struct ConsoleSink {
    target: Target,
    watch: Arc<Mutex<Watch>>,
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
        })
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
        let _ = match &mut self.target {
            Target::Stdout => {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            }
            Target::Ring(ring) => ring.write(bytes),
            Target::Nowhere => Ok(()),
        };
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
