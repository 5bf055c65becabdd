//! Steps at which a process can be ended on purpose, to see who comes after it go on.
//!
//! Only with the feature `fail-points`, which nothing has that is released: without it
//! [`reached`] is nothing at all. A step is armed by a file of its name in the directory
//! that [`DIRECTORY`] names. Who comes to the step removes the file, so one process ends
//! there and the next one passes; a file that is still there says that nobody came.
//!
//! A VMM cannot kill itself: it is the first process of its namespace. It takes what is
//! armed when it begins, as it sees no file later, and at that step it says so on
//! standard error and stands still, to be killed.

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

fail_points! {
    "The steps of a VMM's life, in their order."
    life {
        /// It has been started.
        Started,
        /// It has opened everything, and nobody can talk to it yet.
        Assembled,
        /// Its control socket is there, and it is not jailed yet.
        Listening,
        /// It is jailed, and has no virtual CPU yet.
        Jailed,
        /// A virtual CPU is about to run the guest for the first time.
        Entering,
        /// It is known that and why the machine ends.
        Ending,
        /// The machine has been taken apart, and that is not told yet.
        Ended,
        /// Its end has been told.
        Told,
    }
    pause {
        /// The machine stands still, which is not told yet.
        Paused,
        /// It goes on, which is not told yet.
        Resumed,
    }
    snapshot {
        /// The memory is written, and the state is not.
        MemoryWritten,
        /// The snapshot is whole, which is not told yet.
        SnapshotWritten,
    }
    restore {
        /// It has what is in the snapshot, and nobody can talk to it yet.
        Restored,
    }
}

/// Takes an armed step of that name; whether there was one.
#[cfg(feature = "fail-points")]
pub fn take(step: impl std::fmt::Debug) -> bool {
    std::env::var_os(DIRECTORY).is_some_and(|directory| {
        let file = std::path::Path::new(&directory).join(format!("{step:?}"));
        std::fs::remove_file(file).is_ok()
    })
}

/// A VMM comes to a step: the last one, if that is what it has taken.
#[cfg(feature = "fail-points")]
pub fn reached(step: Step) {
    use std::sync::LazyLock;
    static TAKEN: LazyLock<Option<Step>> = LazyLock::new(|| {
        Step::ALL
            .iter()
            .map(|(_, step)| *step)
            .find(|step| take(step))
    });
    if *TAKEN == Some(step) {
        eprintln!("fabric-vmm: stands still at {step:?}");
        loop {
            std::thread::park();
        }
    }
}

/// A VMM comes to a step, and passes.
#[cfg(not(feature = "fail-points"))]
pub fn reached(_: Step) {}
