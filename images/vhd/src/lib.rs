//! Virtual Hard Disk images: fixed, dynamic and differencing disks, after
//! Microsoft's Virtual Hard Disk Image Format Specification 1.0.
//!
//! ```no_run
//! use vhd::{BlockDevice, Disk, DifferencingOptions, OpenOptions};
//!
//! # fn main() -> vhd::Result<()> {
//! vhd::create_differencing("scratch.vhd", "base.vhd", &DifferencingOptions::default())?;
//! let options = OpenOptions::read_write().with_parents(["base.vhd"]);
//! let disk = Disk::open("scratch.vhd", &options)?;
//! disk.write_at(&[7; 512], 0)?;
//! disk.flush()?;
//! # Ok(())
//! # }
//! ```
//!
//! | to | see |
//! |---|---|
//! | read and write a disk | [`BlockDevice`], implemented by [`Disk`] and [`Raw`] |
//! | make a new image | [`create_fixed`], [`create_dynamic`], [`create_differencing`] |
//! | look at one | [`info()`], [`check()`], [`extents`] |
//! | change its type | [`convert()`] |
//! | know the format | [`mod@format`] |
//!
//! # What it holds to
//!
//! - **Every image is hostile.** Whoever made it can have put anything into
//!   it, and a guest anything into its own. Structures are checked before they
//!   are used, memory is bounded whatever they say, and what breaks a rule is
//!   refused by field, value and rule ([`Defect`]).
//! - **No path inside an image is opened.** The caller names the files of a
//!   chain; the image says, by id and time stamp, whether they are the right
//!   ones.
//! - **The type is the record's to say.** A caller who has a record of what the
//!   image is passes it ([`OpenOptions::expect`]); a [`Raw`] image is opened as
//!   such and never looked at.
//! - **Data survives.** A flush is an `fdatasync`, and a crash at any write
//!   leaves a disk that opens and holds every flushed write. The argument is
//!   with the code, in `disk/sparse/mod.rs`.
//! - **One writer.** A file that is open for writing is locked (`flock`)
//!   against every other user of this crate, one that is read against writers.
//!
//! # How big a disk is
//!
//! The format says it twice: "Current Size" in bytes, and "Disk Geometry",
//! which is a little less for most sizes. This crate goes by "Current Size", as
//! Hyper-V and Azure do, and accepts every geometry that fits it. Virtual PC
//! goes by the geometry; QEMU by either, depending on who made the image:
//!
//! | "Creator Application" | QEMU goes by |
//! |---|---|
//! | `vpc `, `qemu`, any unknown one | geometry, unless it is the largest there is |
//! | `qem2` (`force_size=on`), `win `, `d2v `, `tap`, `CTXS`, `wa` | "Current Size" |
//!
//! New images say `win `, so that both have the same size in every tool.
//! `qemu-img create` without `force_size` rounds the size up until the two
//! agree; with it, it writes the largest geometry whatever the size.
//!
//! # What it does not do
//!
//! No VHDX, no compaction in place (convert to a new dynamic disk instead), no
//! resizing, no merging of a child into its parent, no asynchronous I/O.

#![forbid(unsafe_code)]

mod check;
mod convert;
mod create;
mod device;
mod disk;
mod error;
pub mod format;
mod info;
mod newfile;
pub mod storage;

pub use check::{BlockCounts, MAX_LISTED, Problem, Report, Severity, check};
pub use convert::{ConvertOptions, Converted, Target, convert};
pub use create::{
    CreateOptions, DifferencingOptions, Identity, create_differencing, create_dynamic, create_fixed,
};
pub use device::{BlockDevice, Extent, ExtentKind, SECTOR_SIZE, extents};
pub use disk::{Disk, Files, MAX_CHAIN, OpenOptions, Raw, open};
pub use error::{Defect, Error, Result, Structure};
pub use format::DiskType;
pub use info::{DynamicInfo, Info, LocatorInfo, info};
