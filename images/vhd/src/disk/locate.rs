//! Finding the footer: which of the two there can be is good, and what type
//! of disk it makes.
//!
//! The footer at the end of the file is asked first, for a guest cannot write
//! there: at the beginning of a fixed disk, where dynamic disks have their
//! copy, it can write anything it likes.

use std::path::Path;

use crate::error::{Defect, Error, Result, Structure};
use crate::format::footer::FOOTER_LEN;
use crate::format::{DiskType, Footer};
use crate::storage::Storage;

/// What the footers of a file say.
#[derive(Debug)]
pub(crate) struct Located {
    /// The good footer.
    pub(crate) footer: Footer,
    /// Where the footer at the end begins, or would begin: the end of all
    /// else. `None` when the end of the file is no footer.
    pub(crate) tail_at: Option<u64>,
    /// What is wrong with the other footer.
    pub(crate) defect: Option<Defect>,
    /// Length of the file.
    pub(crate) file_len: u64,
}

/// Finds the footer of the image in `storage`.
pub(crate) fn locate(path: &Path, storage: &dyn Storage) -> Result<Located> {
    let io = |operation| move |source| Error::io(path, operation, source);
    let file_len = storage.len().map_err(io("inspect"))?;
    if file_len < FOOTER_LEN as u64 {
        let rule = "a VHD has at least its footer, 512 bytes";
        return Err(Error::invalid(path, Defect::new(Structure::File, "length", file_len, rule)));
    }
    let mut bytes = [0; FOOTER_LEN];
    let tail_at = file_len - FOOTER_LEN as u64;
    storage.read_exact_at(&mut bytes, tail_at).map_err(io("read the footer"))?;
    let (tail, tail_at) = parse_tail(bytes, tail_at);
    if let Ok(footer) = &tail
        && footer.disk_type == DiskType::Fixed
    {
        let footer = footer.clone();
        return Ok(Located { footer, tail_at: Some(tail_at), defect: None, file_len });
    }
    storage.read_exact_at(&mut bytes, 0).map_err(io("read the copy of the footer"))?;
    let copy = Footer::parse(&bytes, Structure::FooterCopy);
    match (tail, copy) {
        (Ok(tail), Ok(copy)) => match tail.difference(&copy) {
            None => Ok(Located { footer: copy, tail_at: Some(tail_at), defect: None, file_len }),
            Some(defect) => Err(Error::invalid(path, defect)),
        },
        (Ok(footer), Err(defect)) => {
            Ok(Located { footer, tail_at: Some(tail_at), defect: Some(defect), file_len })
        }
        (Err(defect), Ok(footer)) if footer.disk_type != DiskType::Fixed => {
            Ok(Located { footer, tail_at: None, defect: Some(defect), file_len })
        }
        (Err(defect), _) => Err(Error::invalid(path, defect)),
    }
}

/// Reads the last bytes of the file as a footer, and where it begins.
///
/// Versions before Virtual PC 2004 wrote a footer of 511 bytes.
fn parse_tail(bytes: [u8; FOOTER_LEN], at: u64) -> (Result<Footer, Defect>, u64) {
    let tail = Footer::parse(&bytes, Structure::Footer);
    if tail.is_err() && bytes[0] == 0 {
        let mut shifted = [0; FOOTER_LEN];
        shifted[..FOOTER_LEN - 1].copy_from_slice(&bytes[1..]);
        if let Ok(footer) = Footer::parse(&shifted, Structure::Footer) {
            return (Ok(footer), at + 1);
        }
    }
    (tail, at)
}
