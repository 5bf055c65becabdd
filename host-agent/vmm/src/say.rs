//! Words for people, on standard error.

/// Says a line on standard error, as `eprintln!` does. Where that cannot be written, it is
/// left unsaid and no panic: a disk that is full must not end whoever tells of it.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}
