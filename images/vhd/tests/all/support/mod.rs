//! What the tests share: a model of a disk, a file that can crash, and the
//! tools of others.

pub mod actions;
pub mod faulty;
pub mod tools;

use std::path::Path;

use vhd::format::TimeStamp;
use vhd::{BlockDevice, CreateOptions, Disk, Identity, OpenOptions};

pub const SECTOR: usize = 512;

/// A sector full of one tag; tag 0 is a sector of zeroes.
pub fn sector(tag: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for (word, at) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(0u64..) {
        *word = if tag == 0 {
            [0; 8]
        } else {
            (tag << 8 | at).to_le_bytes()
        };
    }
    bytes
}

/// Sectors with ascending tags.
pub fn sectors(first_tag: u64, count: u64) -> Vec<u8> {
    (first_tag..first_tag + count).flat_map(sector).collect()
}

/// Everything on a disk.
pub fn contents(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size() as usize];
    device.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Fails, naming the sectors, where two disks differ.
pub fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: length");
    let sectors = found.chunks(SECTOR).zip(wanted.chunks(SECTOR)).enumerate();
    let different: Vec<usize> = sectors
        .filter(|(_, (a, b))| a != b)
        .map(|(at, _)| at)
        .collect();
    let (first, count) = (different.first(), different.len());
    assert!(
        different.is_empty(),
        "{what}: {count} sectors differ, the first is {first:?}"
    );
}

/// Bytes that look random and are the same for one seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

pub fn identity(id: u128) -> Identity {
    Identity {
        unique_id: uuid::Uuid::from_u128(id),
        time_stamp: TimeStamp(1000),
    }
}

pub fn options(size: u64, block_size: u32) -> CreateOptions {
    CreateOptions {
        size,
        block_size,
        identity: identity(1),
    }
}

pub fn open_rw(path: &Path, parents: &[&Path]) -> Disk {
    Disk::open(
        path,
        &OpenOptions::read_write().with_parents(parents.iter().copied()),
    )
    .unwrap()
}

pub fn open_ro(path: &Path, parents: &[&Path]) -> Disk {
    Disk::open(
        path,
        &OpenOptions::read_only().with_parents(parents.iter().copied()),
    )
    .unwrap()
}
