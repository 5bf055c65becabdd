//! A file in memory that records all that is done to it, so that a test can
//! have it as it is after a crash at any moment; and that fails when told.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};

use vhd::storage::Storage;

use super::SECTOR;

/// What was done to the file.
#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, bytes: Vec<u8> },
    SetLen(u64),
    Zero { at: u64, len: u64 },
    Sync,
}

#[derive(Debug, Default)]
struct Log {
    initial: Vec<u8>,
    now: Vec<u8>,
    changes: Vec<Change>,
    /// Changes, by number, that fail.
    failing: HashSet<usize>,
}

/// A handle to the file; clones share it.
#[derive(Debug, Clone, Default)]
pub struct FaultyFile(Arc<Mutex<Log>>);

impl FaultyFile {
    pub fn new(bytes: Vec<u8>) -> Self {
        let log = Log {
            now: bytes.clone(),
            initial: bytes,
            ..Log::default()
        };
        Self(Arc::new(Mutex::new(log)))
    }

    /// Makes the change with this number fail when it comes.
    pub fn fail_at(&self, number: usize) {
        self.0.lock().unwrap().failing.insert(number);
    }

    /// How many changes have been made.
    pub fn changes(&self) -> usize {
        self.0.lock().unwrap().changes.len()
    }

    /// The file as it is.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().now.clone()
    }

    /// The file after the process died when it had made `count` changes.
    pub fn after_kill(&self, count: usize) -> Vec<u8> {
        self.after_power_loss(count, || true)
    }

    /// The file after the machine died when `count` changes had been made: all
    /// up to the last sync, and of those behind it what `survives` says, whole
    /// changes and single sectors of writes.
    pub fn after_power_loss(&self, count: usize, mut survives: impl FnMut() -> bool) -> Vec<u8> {
        let log = self.0.lock().unwrap();
        let changes = &log.changes[..count];
        let is_sync = |change: &Change| matches!(change, Change::Sync);
        let synced = changes.iter().rposition(is_sync).unwrap_or(0);
        let mut bytes = log.initial.clone();
        for change in &changes[..synced] {
            apply(&mut bytes, change);
        }
        for change in &changes[synced..] {
            for part in torn(change) {
                if survives() {
                    apply(&mut bytes, &part);
                }
            }
        }
        bytes
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut log = self.0.lock().unwrap();
        let number = log.changes.len();
        if log.failing.remove(&number) {
            return Err(io::Error::other("injected"));
        }
        apply(&mut log.now, &change);
        log.changes.push(change);
        Ok(())
    }
}

/// The parts of a change that can survive by themselves.
fn torn(change: &Change) -> Vec<Change> {
    let Change::Write { at, bytes } = change else {
        return vec![change.clone()];
    };
    let mut parts = Vec::new();
    let (mut at, mut left) = (*at, bytes.as_slice());
    while !left.is_empty() {
        let len = left.len().min(SECTOR - at as usize % SECTOR);
        parts.push(Change::Write {
            at,
            bytes: left[..len].to_vec(),
        });
        left = &left[len..];
        at += len as u64;
    }
    parts
}

fn apply(file: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, bytes } => {
            let end = *at as usize + bytes.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[*at as usize..end].copy_from_slice(bytes);
        }
        Change::SetLen(len) => file.resize(*len as usize, 0),
        Change::Zero { at, len } => {
            let end = file.len().min((at + len) as usize);
            let start = end.min(*at as usize);
            file[start..end].fill(0);
        }
        Change::Sync => {}
    }
}

impl Storage for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let log = self.0.lock().unwrap();
        let start = offset as usize;
        let found = log.now.get(start..start + buf.len());
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change(Change::Write {
            at: offset,
            bytes: buf.to_vec(),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(Change::Sync)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Change::Zero { at: offset, len })
    }

    fn data_run(&self, _offset: u64) -> io::Result<(bool, u64)> {
        Ok((true, self.len()?))
    }
}
