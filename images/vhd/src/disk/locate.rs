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
    /// The same as it stands in the file, unknown fields included.
    pub(crate) bytes: [u8; FOOTER_LEN],
    /// Where the footer at the end begins, or would begin: the end of all
    /// else. `None` when the end of the file is no footer.
    pub(crate) tail_at: Option<u64>,
    /// What is wrong with the other footer.
    pub(crate) defect: Option<Defect>,
    /// Length of the file.
    pub(crate) file_len: u64,
}

impl Located {
    /// The end of everything in front of the footer at the end.
    pub(crate) fn limit(&self) -> u64 {
        self.tail_at.unwrap_or(self.file_len)
    }
}

/// A footer that was read, as a structure and as it stands in the file.
struct Read {
    footer: Result<Footer, Defect>,
    bytes: [u8; FOOTER_LEN],
    at: u64,
}

/// Finds the footer of the image in `storage`.
///
/// With a record that says the disk is dynamic or differencing, the copy at
/// the beginning decides: no guest can write there, while the end of the file
/// may be anything after a crash.
pub(crate) fn locate(
    path: &Path,
    storage: &dyn Storage,
    expect: Option<DiskType>,
) -> Result<Located> {
    let io = |operation| move |source| Error::io(path, operation, source);
    let file_len = storage.len().map_err(io("inspect"))?;
    if file_len < FOOTER_LEN as u64 - 1 {
        let rule = "a VHD has at least its footer, 512 bytes";
        return Err(Error::invalid(
            path,
            Defect::new(Structure::File, "length", file_len, rule),
        ));
    }
    let tail = read_tail(storage, file_len).map_err(io("read the footer"))?;
    let copy_decides = expect.is_some_and(|expect| expect != DiskType::Fixed);
    let is_fixed = |read: &Read| {
        read.footer
            .as_ref()
            .is_ok_and(|footer| footer.disk_type == DiskType::Fixed)
    };
    let copy = if is_fixed(&tail) && !copy_decides {
        None
    } else {
        let copy = read_copy(storage, file_len).map_err(io("read the copy of the footer"))?;
        (!is_fixed(&copy)).then_some(copy)
    };
    choose(tail, copy, copy_decides, file_len).map_err(|defect| Error::invalid(path, defect))
}

/// Chooses between the footer at the end and its copy.
fn choose(
    tail: Read,
    copy: Option<Read>,
    copy_decides: bool,
    file_len: u64,
) -> Result<Located, Defect> {
    let located = |footer, bytes, tail_at, defect| {
        Ok(Located {
            footer,
            bytes,
            tail_at,
            defect,
            file_len,
        })
    };
    let Some(copy) = copy else {
        return located(tail.footer?, tail.bytes, Some(tail.at), None);
    };
    match (tail.footer, copy.footer) {
        (Ok(footer), Ok(at_copy)) => match footer.difference(&at_copy) {
            None => located(footer, tail.bytes, Some(tail.at), None),
            Some(defect) if copy_decides => located(at_copy, copy.bytes, None, Some(defect)),
            Some(defect) => Err(defect),
        },
        (Ok(footer), Err(defect)) => located(footer, tail.bytes, Some(tail.at), Some(defect)),
        (Err(defect), Ok(footer)) => located(footer, copy.bytes, None, Some(defect)),
        (Err(defect), Err(_)) => Err(defect),
    }
}

fn read_copy(storage: &dyn Storage, file_len: u64) -> std::io::Result<Read> {
    read(
        storage,
        0,
        file_len.min(FOOTER_LEN as u64) as usize,
        Structure::FooterCopy,
    )
}

/// Reads the footer at the end of the file.
///
/// Versions before Virtual PC 2004 wrote only 511 bytes.
fn read_tail(storage: &dyn Storage, file_len: u64) -> std::io::Result<Read> {
    let last = |len: u64| {
        let len = len.min(file_len);
        read(storage, file_len - len, len as usize, Structure::Footer)
    };
    let whole = last(FOOTER_LEN as u64)?;
    if whole.footer.is_ok() {
        return Ok(whole);
    }
    let short = last(FOOTER_LEN as u64 - 1)?;
    Ok(if short.footer.is_ok() { short } else { whole })
}

fn read(storage: &dyn Storage, at: u64, len: usize, structure: Structure) -> std::io::Result<Read> {
    let mut bytes = [0; FOOTER_LEN];
    storage.read_exact_at(&mut bytes[..len], at)?;
    Ok(Read {
        footer: Footer::parse(&bytes, structure),
        bytes,
        at,
    })
}
