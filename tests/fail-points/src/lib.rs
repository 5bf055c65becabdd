//! Steps at which a process can be ended on purpose, to see who comes after it go on.
//!
//! A program lists its steps with [`fail_points!`] and says when it comes to one, in a
//! function that is empty without its feature `fail-points`, which nothing has that is
//! released. A step is armed by a file of its name in the directory that [`DIRECTORY`]
//! names. Who comes to the step removes the file, so one process ends there and the next
//! one passes; a file that is still there says that nobody came. A number in the file says
//! how many are to pass before, and counts down.
#![forbid(unsafe_code)]

use std::{fmt::Debug, path::Path};

use rustix::process::{Signal, getpid, kill_process};

/// Names the directory with the armed steps, in the environment.
pub const DIRECTORY: &str = "FABRIC_FAIL_POINTS";

/// Declares an enum of steps, and the list of them all by what they are steps of.
#[macro_export]
macro_rules! fail_points {
    ($about:literal $($of:ident { $($(#[$doc:meta])* $step:ident,)* })*) => {
        #[doc = $about]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step {
            $($($(#[$doc])* $step,)*)*
        }

        impl Step {
            /// All of them, in their order, each with what it is a step of.
            pub const ALL: &[(&str, Step)] = &[$($((stringify!($of), Step::$step),)*)*];
        }
    };
}

/// Takes an armed step of that name; whether there was one.
pub fn take(step: impl Debug) -> bool {
    std::env::var_os(DIRECTORY).is_some_and(|directory| {
        let file = Path::new(&directory).join(format!("{step:?}"));
        let passing = std::fs::read_to_string(&file).ok();
        match passing.and_then(|text| text.trim().parse::<u64>().ok()) {
            Some(left @ 1..) => {
                // Where that cannot be written they pass all the same.
                let _ = std::fs::write(file, (left - 1).to_string());
                false
            }
            _ => std::fs::remove_file(file).is_ok(),
        }
    })
}

/// Comes to a step: the last one, as by `kill -9`, if it is armed.
pub fn end_at(step: impl Debug) {
    if take(step) {
        // Nobody may refuse it to a process itself.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}
