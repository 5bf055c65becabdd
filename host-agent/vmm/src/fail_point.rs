//! Steps at which a VMM can be made to end, to see the host agent go on; see
//! [`fabric_fail_points`]. Only with the feature `fail-points`.
//!
//! A VMM cannot kill itself: it is the first process of its namespace. It takes what is
//! armed when it begins, as it sees no file later, and at that step it says so on
//! standard error and stands still, to be killed.

fabric_fail_points::fail_points! {
    "The steps of a VMM's life, in their order."
    life {
        /// It has been started.
        Started,
        /// It has opened everything, and nobody can call it yet.
        Opened,
        /// Its control socket is there, and it is not jailed yet.
        Listening,
        /// It is jailed, and has read nothing yet.
        Jailed,
        /// It has put its machine together, and has no virtual CPU's thread yet.
        Assembled,
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
    reset {
        /// All that the guest had changed is gone, and nothing is there instead.
        TakenAway,
        /// It is about to begin anew, which is not told yet.
        BegunAnew,
    }
    restore {
        /// It has what is in the snapshot, and nobody can talk to it yet.
        Restored,
    }
}

/// A VMM comes to a step: the last one, if that is what it has taken.
#[cfg(feature = "fail-points")]
pub fn reached(step: Step) {
    use std::sync::LazyLock;
    static TAKEN: LazyLock<Option<Step>> = LazyLock::new(|| {
        Step::ALL
            .iter()
            .map(|(_, step)| *step)
            .find(|step| fabric_fail_points::take(step))
    });
    if *TAKEN == Some(step) {
        crate::say!("fabric-vmm: stands still at {step:?}");
        loop {
            std::thread::park();
        }
    }
}

/// A VMM comes to a step, and passes.
#[cfg(not(feature = "fail-points"))]
pub fn reached(_: Step) {}
