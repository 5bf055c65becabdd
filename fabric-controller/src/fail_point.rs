//! Steps at which the controller can be made to end, as by `kill -9`, to see the next one
//! go on; see [`fabric_fail_points`]. Only with the feature `fail-points`.
//!
//! `tests/killed` walks them all.

fabric_fail_points::fail_points! {
    "The steps of whatever changes something that is kept, in their order."
    call {
        /// A transaction has come to the writer, which has done nothing about it.
        TransactionTaken,
        /// All of it is written, and not committed.
        TransactionWritten,
        /// It is committed, and nobody knows.
        Committed,
        /// Whoever asked for it knows, and has told nobody.
        Answering,
    }
    upload {
        /// A piece has been written.
        PieceWritten,
        /// All of the file is on the disk, and nobody has looked at it.
        FileArrived,
        /// It is what it should be, and where uploads are.
        FileChecked,
        /// It is where whole files are, and has no name.
        FileMoved,
    }
    discard {
        /// What was uploaded is wrong and thrown away, and the upload is on record.
        FileDiscarded,
    }
    delete {
        /// A file that nothing refers to is gone, and what goes with it is there.
        FileSwept,
    }
    open {
        /// A new store has its tables, which are not committed.
        TablesMade,
    }
    migrate {
        /// A store from before is of this version's format, which is not committed.
        Migrated,
    }
    init {
        /// The CA has a key, and no certificate.
        CaKeyMade,
        /// The CA is there, and no administrator.
        CaMade,
        /// The administrator's context is there, and the directory is not set up yet.
        AdminMade,
    }
    backup {
        /// The store is copied, and nothing else.
        StoreBackedUp,
        /// A file is copied, and does not have its name yet.
        FileCopied,
        /// The backup is whole, and does not have its name yet.
        BackedUp,
    }
    restore {
        /// The backup's images and packages are there, and nothing else of it.
        BlobsRestored,
        /// A CA is copied, and does not have its name yet.
        TrustCopied,
        /// The store is copied, and counts as the backup did.
        StoreCopied,
        /// It counts on from further up, and the one of before is in its place.
        StoreRaised,
        /// It is to be the store.
        RestoreDecided,
        /// The store of before is aside, and its log is not.
        StoreAside,
        /// Both are aside, and there is no store.
        LogAside,
    }
}

/// Comes to a step: the last one, if it is armed.
#[cfg(feature = "fail-points")]
pub fn reached(step: Step) {
    fabric_fail_points::end_at(step);
}

/// Comes to a step, and passes.
#[cfg(not(feature = "fail-points"))]
pub fn reached(_: Step) {}
