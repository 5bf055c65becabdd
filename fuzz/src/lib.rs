//! What the fuzz targets share: a driver, a disk and a host that mostly keep the
//! rules.
//!
//! | module | what it is |
//! |---|---|
//! | [`rarely`] | the flaws in an input that is valid otherwise |
//! | [`driver`] | a guest's driver of a virtio device |
//! | [`disk`] | disk images in memory |
//! | [`block`] | the block device without its thread |
//! | [`json`] | JSON that is nearly what is expected |
//! | [`scratch`] | files for what takes a path |
//!
//! A target makes an input up with `arbitrary`: set up as a driver would, then a
//! list of acts, few of them garbled, so that the code behind the first check is
//! reached. Beside what a crash shows by itself, a target asserts what it knows:
//! without a flaw in the input every request is answered, a disk reads as it was
//! written, and what was accepted is accepted again.

pub mod block;
pub mod disk;
pub mod driver;
pub mod json;
pub mod rarely;
pub mod scratch;
