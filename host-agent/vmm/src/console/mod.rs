//! Where the guest's serial console goes, and what is learned on its way.
//!
//! | file | what it is |
//! |---|---|
//! | [`ring`] | a file of bounded size that keeps the end of the output; writer and reader |
//! | [`watch`] | notices the first byte, the first line and a kernel panic |
//! | [`sink`] | the writer that the serial device writes to |
//! | [`escape`] | the keys on a terminal that are not the guest's |
//!
//! The host agent reads the ring while the machine runs and after it is gone.

pub mod escape;
pub mod ring;
pub mod sink;
pub mod watch;

pub use escape::EscapeFilter;
pub use ring::{Chunk, RingError, RingReader, RingWriter};
pub use sink::ConsoleSink;
pub use watch::Watch;
