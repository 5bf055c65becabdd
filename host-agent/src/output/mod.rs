//! What guests write, kept within bounds and shown to who asks.

pub mod role_log;
pub mod stream;
