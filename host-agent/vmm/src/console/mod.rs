//! Where the guest's serial console goes, and what is learned on its way.
//!
//! | file | what it is |
//! |---|---|
//! | [`ring`] | a file of bounded size that keeps the end of the output; writer and reader |
//! | [`watch`] | notices the first byte, the first line and a kernel panic |
//! | [`sink`] | the writer that the serial device writes to |
//! | [`terminal`] | the user's terminal in raw mode, and back |
//!
//! The host agent reads the ring while the machine runs and after it is gone.

pub mod ring;
pub mod sink;
pub mod terminal;
pub mod watch;

pub use ring::{Chunk, RingError, RingReader, RingWriter};
pub use sink::ConsoleSink;
pub use terminal::RawTerminal;
pub use watch::Watch;
