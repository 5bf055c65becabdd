//! Images that break the rules are refused by field, and none makes the reader
//! panic, hang or take memory without bound.

use std::path::Path;

use proptest::prelude::*;
use vhd::storage::Storage;
use vhd::{BlockDevice, Disk, DiskType, Error, OpenOptions, Structure};

use crate::support::faulty::FaultyFile;
use crate::support::{contents, identity, noise, open_rw, options};

const SIZE: u64 = 64 << 10;
const BLOCK: u32 = 16 << 10;
const HEADER: usize = 512;
const TABLE: usize = 1536;

/// A dynamic disk with two of its four blocks in the file.
fn dynamic() -> Vec<u8> {
    image(|path| vhd::create_dynamic(path, &options(SIZE, BLOCK)))
}

fn fixed() -> Vec<u8> {
    image(|path| vhd::create_fixed(path, &options(SIZE, BLOCK)))
}

fn image(make: impl FnOnce(&Path) -> vhd::Result<()>) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhd");
    make(&path).unwrap();
    open_rw(&path, &[])
        .write_at(&noise(3, BLOCK as usize + 512), 0)
        .unwrap();
    std::fs::read(path).unwrap()
}

fn open(bytes: Vec<u8>, read_only: bool) -> vhd::Result<Disk> {
    let options = OpenOptions {
        read_only,
        ..OpenOptions::default()
    };
    Disk::open_storage(
        Path::new("disk"),
        Box::new(FaultyFile::new(bytes)),
        &options,
        None,
    )
}

/// Structure and field for which the image is refused.
fn refused(bytes: Vec<u8>) -> (Structure, String) {
    match open(bytes, false) {
        Err(error @ Error::Invalid { .. }) => {
            let defect = error.defect().unwrap();
            (defect.structure, defect.field.clone())
        }
        Err(other) => panic!("refused with {other}"),
        Ok(_) => panic!("not refused"),
    }
}

/// Puts bytes somewhere and mends the checksum of the structure there.
fn patch(bytes: &mut [u8], at: usize, field: usize, value: &[u8]) {
    let (len, sum_at) = if &bytes[at..at + 8] == b"cxsparse" {
        (1024, 36)
    } else {
        (512, 64)
    };
    let structure = &mut bytes[at..at + len];
    structure[field..field + value.len()].copy_from_slice(value);
    structure[sum_at..sum_at + 4].fill(0);
    let sum = structure
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    structure[sum_at..sum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// The dynamic disk with something else in both footers.
fn with_footer(field: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = dynamic();
    let tail = bytes.len() - 512;
    patch(&mut bytes, 0, field, value);
    patch(&mut bytes, tail, field, value);
    bytes
}

fn with_header(field: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = dynamic();
    patch(&mut bytes, HEADER, field, value);
    bytes
}

fn with_entry(index: usize, value: u32) -> Vec<u8> {
    let mut bytes = dynamic();
    bytes[TABLE + 4 * index..][..4].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn entry(index: usize) -> u32 {
    u32::from_be_bytes(dynamic()[TABLE + 4 * index..][..4].try_into().unwrap())
}

#[test]
fn footers_are_refused_by_field() {
    let footer = |field: &str| (Structure::Footer, field.to_owned());
    assert_eq!(refused(with_footer(0, b"connectx")), footer("Cookie"));
    assert_eq!(refused(with_footer(8, &[0x80])), footer("Features"));
    assert_eq!(
        refused(with_footer(12, &[0, 2])),
        footer("File Format Version")
    );
    assert_eq!(
        refused(with_footer(48, &u64::MAX.to_be_bytes())),
        footer("Current Size")
    );
    assert_eq!(
        refused(with_footer(48, &513u64.to_be_bytes())),
        footer("Current Size")
    );
    let too_large = ((2040u64 << 30) + 512).to_be_bytes();
    assert_eq!(refused(with_footer(48, &too_large)), footer("Current Size"));
    assert_eq!(refused(with_footer(56, &[1])), footer("Disk Geometry"));
    assert_eq!(refused(with_footer(63, &[6])), footer("Disk Type"));
    assert_eq!(
        refused(with_footer(16, &100u64.to_be_bytes())),
        footer("Data Offset")
    );
    assert_eq!(
        refused(with_footer(16, &(1u64 << 40).to_be_bytes())),
        footer("Data Offset")
    );
    let mut bytes = dynamic();
    let tail = bytes.len() - 512;
    bytes[70] ^= 1;
    bytes[tail + 70] ^= 1;
    assert_eq!(refused(bytes), footer("Checksum"));
}

#[test]
fn headers_are_refused_by_field() {
    let header = |field: &str| (Structure::Header, field.to_owned());
    assert_eq!(refused(with_header(0, b"cxsparsX")), header("Cookie"));
    assert_eq!(
        refused(with_header(16, &u64::MAX.to_be_bytes())),
        header("Table Offset")
    );
    assert_eq!(
        refused(with_header(16, &(1u64 << 40).to_be_bytes())),
        header("Table Offset")
    );
    assert_eq!(
        refused(with_header(16, &1024u64.to_be_bytes())),
        header("Table Offset")
    );
    assert_eq!(refused(with_header(24, &[0, 2])), header("Header Version"));
    assert_eq!(
        refused(with_header(28, &3u32.to_be_bytes())),
        header("Max Table Entries")
    );
    assert_eq!(
        refused(with_header(28, &u32::MAX.to_be_bytes())),
        header("Max Table Entries")
    );
    assert_eq!(
        refused(with_header(32, &3000u32.to_be_bytes())),
        header("Block Size")
    );
    assert_eq!(
        refused(with_header(32, &0u32.to_be_bytes())),
        header("Block Size")
    );
    let mut bytes = dynamic();
    bytes[HEADER + 100] ^= 1;
    assert_eq!(refused(bytes), header("Checksum"));
}

#[test]
fn tables_are_refused_by_entry() {
    let table = |index: u32| (Structure::BlockAllocationTable, format!("entry {index}"));
    assert_eq!(refused(with_entry(3, 1 << 30)), table(3));
    assert_eq!(refused(with_entry(3, 0xFFFF_FFFE)), table(3));
    assert_eq!(refused(with_entry(3, 0)), table(3));
    assert_eq!(refused(with_entry(3, 3)), table(3));
    assert_eq!(refused(with_entry(3, entry(1))), table(3));
    assert_eq!(refused(with_entry(3, entry(1) + 1)), table(3));
}

#[test]
fn a_locator_outside_the_file_is_refused() {
    let locator = [
        &b"W2ru"[..],
        &[0, 0, 0, 1],
        &[0, 0, 0, 9],
        &[0; 4],
        &[0xff; 8],
    ]
    .concat();
    let (structure, field) = refused(with_header(576, &locator));
    assert_eq!(structure, Structure::ParentLocator);
    assert_eq!(field, "Platform Data Offset of entry 1");
}

#[test]
fn truncated_files_are_refused() {
    let mut bytes = fixed();
    bytes.drain(..1024);
    assert_eq!(
        refused(bytes),
        (Structure::Footer, "Current Size".to_owned())
    );
    let mut bytes = fixed();
    bytes.truncate(SIZE as usize);
    assert_eq!(refused(bytes).0, Structure::Footer);
    let mut bytes = dynamic();
    bytes.truncate(bytes.len() - 1024);
    assert_eq!(
        refused(bytes),
        (Structure::BlockAllocationTable, "entry 1".to_owned())
    );
    assert_eq!(
        refused(vec![0; 100]),
        (Structure::File, "length".to_owned())
    );
    assert_eq!(refused(vec![]).0, Structure::File);
}

#[test]
fn footers_that_contradict_each_other_are_refused() {
    let mut bytes = dynamic();
    patch(&mut bytes, 0, 68, identity(77).unique_id.as_bytes());
    assert_eq!(
        refused(bytes),
        (Structure::FooterCopy, "Unique Id".to_owned())
    );
}

#[test]
fn either_footer_is_enough_and_writing_mends_the_other() {
    let whole = contents(&open(dynamic(), true).unwrap());
    for lost in [0, dynamic().len() - 512] {
        let mut bytes = dynamic();
        bytes[lost..lost + 512].fill(0);
        let disk = open(bytes.clone(), true).unwrap();
        assert!(disk.repaired().is_some());
        assert!(contents(&disk) == whole);

        let file = FaultyFile::new(bytes);
        let options = OpenOptions::read_write();
        let open = || {
            Disk::open_storage(Path::new("disk"), Box::new(file.clone()), &options, None).unwrap()
        };
        assert!(open().repaired().is_some());
        let disk = open();
        assert!(disk.repaired().is_none());
        assert!(contents(&disk) == whole);
    }
}

#[test]
fn a_footer_of_511_bytes_is_read() {
    let mut bytes = fixed();
    bytes.pop();
    assert!(contents(&open(bytes, true).unwrap())[..512] == noise(3, 512));
    let mut bytes = dynamic();
    bytes.pop();
    assert!(open(bytes, true).unwrap().repaired().is_none());
}

#[test]
fn a_guest_cannot_pass_its_data_for_a_footer() {
    // The end was lost in a crash just where the guest had written what a
    // fixed disk ends with.
    let mut bytes = dynamic();
    bytes.truncate(bytes.len() - 512);
    let mut trap = fixed();
    let trap = trap.split_off(trap.len() - 512);
    bytes.extend(trap);
    let options = OpenOptions::read_only().expecting(DiskType::Dynamic);
    let storage = Box::new(FaultyFile::new(bytes));
    let disk = Disk::open_storage(Path::new("disk"), storage, &options, None).unwrap();
    assert_eq!(disk.disk_type(), DiskType::Dynamic);
}

#[test]
fn a_failed_flush_takes_no_more_writes() {
    let file = FaultyFile::new(dynamic());
    let options = OpenOptions::read_write();
    let disk = Disk::open_storage(Path::new("d"), Box::new(file.clone()), &options, None).unwrap();
    disk.write_at(&[1; 512], SIZE - 512).unwrap();
    file.fail_at(file.changes());
    assert!(matches!(
        disk.flush(),
        Err(Error::Io {
            operation: "flush",
            ..
        })
    ));
    assert!(matches!(disk.flush(), Err(Error::Poisoned { .. })));
    assert!(matches!(
        disk.write_at(&[1; 512], 0),
        Err(Error::Poisoned { .. })
    ));
    let length = file.len().unwrap();
    drop(disk);
    assert_eq!(file.len().unwrap(), length);
}

/// Opens whatever it is, and reads and writes it if that works.
fn use_it(bytes: Vec<u8>) {
    if let Ok(disk) = open(bytes, false)
        && disk.size() <= 1 << 20
    {
        let mut buffer = vec![0; disk.size() as usize];
        let _ = disk.read_at(&mut buffer, 0);
        let _ = disk.write_at(&buffer, 0);
        let _ = disk.write_zeroes(0, disk.size());
        let _ = disk.extent_at(0);
        let _ = disk.flush();
    }
}

proptest! {
    #[test]
    fn damaged_structures_do_no_harm(
        footer in prop::collection::vec((8usize..85, any::<u8>()), 0..3),
        header in prop::collection::vec((8usize..768, any::<u8>()), 0..4),
        table in prop::collection::vec((0usize..16, any::<u8>()), 0..4),
        cut in prop_oneof![4 => Just(0usize), 1 => 0usize..40_000],
    ) {
        let mut bytes = dynamic_once();
        for (field, value) in footer {
            patch(&mut bytes, 0, field, &[value]);
        }
        for (field, value) in header {
            patch(&mut bytes, HEADER, field, &[value]);
        }
        for (field, value) in table {
            bytes[TABLE + field] = value;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        use_it(bytes);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(open(bytes, false).is_err());
    }
}

fn dynamic_once() -> Vec<u8> {
    static IMAGE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(dynamic);
    IMAGE.clone()
}
