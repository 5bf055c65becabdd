//! Disk images in memory.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhd::storage::Storage;
use vhd::{Disk, OpenOptions};

use crate::scratch::Scratch;

/// The longest a file gets: a device that fills up, as any does.
pub const FILE_MAX: u64 = 4 << 20;
/// The size of the disks made here.
pub const SIZE: u64 = 64 << 10;
/// Their blocks.
pub const BLOCK: u32 = 4 << 10;

/// A file; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct MemoryFile(Arc<Mutex<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    bytes: Vec<u8>,
    /// After so many more changes, one fails.
    failing: Option<u8>,
}

impl MemoryFile {
    /// A file with these contents.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Contents {
            bytes,
            failing: None,
        })))
    }

    /// What is in it.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Lets a change fail, after this many.
    pub fn fail_after(&self, changes: u8) {
        self.lock().failing = Some(changes);
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, end: u64) -> io::Result<MutexGuard<'_, Contents>> {
        let mut contents = self.lock();
        match &mut contents.failing {
            Some(0) => {
                contents.failing = None;
                return Err(io::Error::other("injected"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        if end > FILE_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(contents)
    }
}

impl Storage for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().bytes.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let contents = self.lock();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(buf.len());
        let found = end.and_then(|end| contents.bytes.get(start..end));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        let mut contents = self.change(end)?;
        if contents.bytes.len() < end as usize {
            contents.bytes.resize(end as usize, 0);
        }
        contents.bytes[offset as usize..end as usize].copy_from_slice(buf);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(len)?.bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(0).map(drop)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut contents = self.change(0)?;
        let there = contents.bytes.len() as u64;
        let end = offset.saturating_add(len).min(there);
        contents.bytes[offset.min(end) as usize..end as usize].fill(0);
        Ok(())
    }

    fn data_run(&self, _offset: u64) -> io::Result<(bool, u64)> {
        Ok((true, self.len()?))
    }
}

/// An image of each kind, small and with something in it.
#[derive(Debug)]
pub struct Images {
    /// A fixed disk.
    pub fixed: Vec<u8>,
    /// A dynamic disk, a third of it there.
    pub dynamic: Vec<u8>,
    /// A differencing disk on the dynamic one.
    pub child: Vec<u8>,
    /// A differencing disk on that.
    pub grandchild: Vec<u8>,
}

impl Default for Images {
    fn default() -> Self {
        Self::new()
    }
}

impl Images {
    /// Makes them, the same each time.
    ///
    /// # Panics
    ///
    /// When they cannot be made.
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let identity = |id: u128| vhd::Identity {
            unique_id: vhd_uuid(id),
            time_stamp: vhd::format::TimeStamp(id as u32),
        };
        let options = |id| vhd::CreateOptions {
            size: SIZE,
            block_size: BLOCK,
            identity: identity(id),
        };
        let path = |name: &str| scratch.path(name);
        vhd::create_fixed(path("fixed"), &options(1)).expect("a fixed disk");
        vhd::create_dynamic(path("dynamic"), &options(2)).expect("a dynamic disk");
        write_some(&path("dynamic"), &[], 0);
        for (id, name, parents) in [
            (3, "child", &["dynamic"][..]),
            (4, "grandchild", &["child", "dynamic"][..]),
        ] {
            let options = vhd::DifferencingOptions {
                size: None,
                block_size: BLOCK,
                identity: identity(id),
            };
            let parents: Vec<_> = parents.iter().map(|name| path(name)).collect();
            vhd::create_differencing(path(name), &parents[0], &options).expect("a child");
            write_some(&path(name), &parents, id as u64);
        }
        let read = |name| std::fs::read(path(name)).expect("an image");
        Self {
            fixed: read("fixed"),
            dynamic: read("dynamic"),
            child: read("child"),
            grandchild: read("grandchild"),
        }
    }
}

fn vhd_uuid(id: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(id)
}

/// Writes five sectors in each of five blocks.
fn write_some(path: &Path, parents: &[std::path::PathBuf], from: u64) {
    use vhd::BlockDevice as _;
    let options = OpenOptions::read_write().with_parents(parents.iter());
    let disk = Disk::open(path, &options).expect("a disk that was just made");
    for block in 0..5 {
        let at = (from + 3 * block) * u64::from(BLOCK) % SIZE;
        disk.write_at(&[from as u8 + 1; 5 * 512], at)
            .expect("a write");
    }
    disk.flush().expect("a flush");
}

/// Opens an image in memory.
///
/// # Errors
///
/// As [`Disk::open_storage`].
pub fn open(
    file: &MemoryFile,
    options: &OpenOptions,
    parent: Option<Arc<Disk>>,
) -> vhd::Result<Disk> {
    Disk::open_storage(Path::new("disk"), Box::new(file.clone()), options, parent)
}
