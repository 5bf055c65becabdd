//! The guest's memory as a file with holes.
//!
//! Only pages that are not all zero are written and make up the digest, each
//! with its number: most of a young guest's memory was never touched, and a hole
//! costs neither disk nor time.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{SnapshotError, hex};
use crate::memory::GuestMemory;

const PAGE: usize = 4096;
/// How much is read at a time.
const CHUNK: usize = 256 * PAGE;

/// What a memory's contents are known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryDigest {
    /// SHA-256 over the pages that are not all zero, in order: the page's number,
    /// 8 bytes little-endian, then its 4096 bytes.
    pub sha256: String,
    /// How many bytes these pages are.
    pub bytes: u64,
}

/// Takes the digest page by page, and says which pages count.
#[derive(Default)]
struct Digester {
    hash: Sha256,
    bytes: u64,
}

impl Digester {
    /// Takes in whole pages from page number `first` on, and calls `each` with
    /// every run of pages that are not all zero.
    fn pages<E>(
        &mut self,
        first: u64,
        pages: &[u8],
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut run: Option<usize> = None;
        for (index, page) in pages.chunks(PAGE).enumerate() {
            if is_zero(page) {
                if let Some(start) = run.take() {
                    each(first + start as u64, &pages[start * PAGE..index * PAGE])?;
                }
                continue;
            }
            self.hash.update((first + index as u64).to_le_bytes());
            self.hash.update(page);
            self.bytes += page.len() as u64;
            run.get_or_insert(index);
        }
        match run {
            Some(start) => each(first + start as u64, &pages[start * PAGE..]),
            None => Ok(()),
        }
    }

    fn finish(self) -> MemoryDigest {
        MemoryDigest {
            sha256: hex(&self.hash.finalize()),
            bytes: self.bytes,
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks_exact(16)
        .all(|chunk| chunk == [0; 16].as_slice())
}

/// Writes memory to a new file.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(path: &Path, memory: &GuestMemory) -> Result<MemoryDigest, SnapshotError> {
    let fail = || SnapshotError::file("write", path);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(fail())?;
    let size = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(size).map_err(fail())?;
    let mut digester = Digester::default();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0_u64;
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            let count = (region.len() - offset).min(CHUNK as u64) as usize;
            let pages = &mut buffer[..count];
            region
                .read_slice(pages, MemoryRegionAddress(offset))
                .map_err(|error| fail()(std::io::Error::other(error)))?;
            digester.pages(at / PAGE as u64, pages, |page, run| {
                file.write_all_at(run, page * PAGE as u64).map_err(fail())
            })?;
            offset += count as u64;
            at += count as u64;
        }
    }
    file.sync_all().map_err(fail())?;
    Ok(digester.finish())
}

/// Reads a memory's file, but for its holes, and takes its digest.
///
/// # Errors
///
/// When it cannot be read or has another size.
pub fn digest(file: &File, path: &Path, size: u64) -> Result<MemoryDigest, SnapshotError> {
    let fail = || SnapshotError::file("read", path);
    check_size(file, path, size)?;
    let mut digester = Digester::default();
    let mut buffer = vec![0; CHUNK];
    let mut at = next_data(file, 0).map_err(fail())?;
    while let Some(start) = at {
        // Data begins at a block of the file system, which may be less than a page.
        let start = start - start % PAGE as u64;
        let count = (size - start).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut buffer[..count], start)
            .map_err(fail())?;
        digester.pages(start / PAGE as u64, &buffer[..count], |_, _| {
            Ok::<(), SnapshotError>(())
        })?;
        let end = start + count as u64;
        at = if end < size {
            next_data(file, end).map_err(fail())?
        } else {
            None
        };
    }
    Ok(digester.finish())
}

fn next_data(file: &File, from: u64) -> std::io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(std::io::Error::other)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(at) => Ok(Some(at.unsigned_abs())),
        Err(nix::Error::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Checks that a memory's file has this size.
///
/// # Errors
///
/// When it has another one.
pub fn check_size(file: &File, path: &Path, size: u64) -> Result<(), SnapshotError> {
    let metadata = file.metadata();
    let found = metadata.map_err(SnapshotError::file("open", path))?.len();
    if found == size {
        return Ok(());
    }
    Err(SnapshotError::Size {
        path: path.to_owned(),
        expected: size,
        found,
    })
}
