//! Chains: who may be whose parent, how long they may be, and who may write.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use vhd::format::TimeStamp;
use vhd::{
    BlockDevice, DifferencingOptions, Disk, DiskType, Error, Identity, OpenOptions, Raw,
    create_differencing, create_dynamic, create_fixed,
};

use crate::support::{contents, identity, noise, open_ro, open_rw, options};

const SIZE: u64 = 8 << 20;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A dynamic disk with some data in front.
    fn base(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        create_dynamic(&path, &options(SIZE, 2 << 20)).unwrap();
        open_rw(&path, &[]).write_at(&noise(1, 1 << 20), 0).unwrap();
        path
    }

    fn child(&self, name: &str, parent: &Path) -> PathBuf {
        let path = self.path(name);
        create_differencing(&path, parent, &DifferencingOptions::default()).unwrap();
        path
    }
}

fn open_with(path: &Path, parents: &[&PathBuf]) -> vhd::Result<Disk> {
    Disk::open(
        path,
        &OpenOptions::read_only().with_parents(parents.iter().copied()),
    )
}

#[test]
fn a_child_reads_its_parent_until_it_is_written() {
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let child = folder.child("child.vhd", &base);
    let before = std::fs::read(&base).unwrap();
    let disk = open_rw(&child, &[&base]);
    assert!(contents(&disk)[..1 << 20] == noise(1, 1 << 20));
    disk.write_at(&noise(9, 4096), 8192).unwrap();
    let now = contents(&disk);
    assert!(now[8192..12288] == noise(9, 4096) && now[..8192] == noise(1, 1 << 20)[..8192]);
    drop(disk);
    assert!(
        std::fs::read(&base).unwrap() == before,
        "the parent changed"
    );
}

#[test]
fn discard_never_brings_the_parent_back() {
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let child = folder.child("child.vhd", &base);
    let disk = open_rw(&child, &[&base]);
    disk.write_at(&[7; 8192], 0).unwrap();
    disk.discard(0, 8192).unwrap();
    assert!(contents(&disk)[..8192].iter().all(|byte| *byte == 0));
    disk.discard(1 << 19, 4096).unwrap();
    assert!(contents(&disk)[1 << 19..][..4096] == noise(1, 1 << 20)[1 << 19..][..4096]);
}

#[test]
fn zeroes_over_nothing_take_no_space() {
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let child = folder.child("child.vhd", &base);
    let disk = open_rw(&child, &[&base]);
    disk.write_zeroes(4 << 20, 4 << 20).unwrap();
    disk.flush().unwrap();
    assert!(std::fs::metadata(&child).unwrap().len() < 4096);
    disk.write_zeroes(0, 1 << 20).unwrap();
    assert!(contents(&disk).iter().all(|byte| *byte == 0));
}

#[test]
fn a_child_may_be_larger_than_its_parent() {
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let child = folder.path("child.vhd");
    let larger = DifferencingOptions {
        size: Some(3 * SIZE),
        ..DifferencingOptions::default()
    };
    create_differencing(&child, &base, &larger).unwrap();
    let disk = open_rw(&child, &[&base]);
    assert_eq!(disk.size(), 3 * SIZE);
    assert!(contents(&disk)[1 << 20..].iter().all(|byte| *byte == 0));
    let smaller = DifferencingOptions {
        size: Some(SIZE / 2),
        ..DifferencingOptions::default()
    };
    let refused = create_differencing(folder.path("small.vhd"), &base, &smaller);
    assert!(matches!(
        refused,
        Err(Error::InvalidOption { option: "size", .. })
    ));
}

#[test]
fn eight_files_are_a_chain_and_nine_are_refused() {
    let folder = Folder::new();
    let mut chain = vec![folder.base("0.vhd")];
    for depth in 1..=8 {
        let child = folder.child(&format!("{depth}.vhd"), &chain[0]);
        if depth < 8 {
            let parents: Vec<&Path> = chain.iter().map(PathBuf::as_path).collect();
            let at = depth as u64 * 4096;
            open_rw(&child, &parents)
                .write_at(&noise(depth as u64, 4096), at)
                .unwrap();
        }
        chain.insert(0, child);
    }
    let eight: Vec<&PathBuf> = chain[2..].iter().collect();
    let disk = open_with(&chain[1], &eight).unwrap();
    let all = contents(&disk);
    assert!((1..8).all(|d: usize| all[d * 4096..][..4096] == noise(d as u64, 4096)));
    let nine: Vec<&PathBuf> = chain[1..].iter().collect();
    assert!(matches!(
        open_with(&chain[0], &nine),
        Err(Error::ChainTooLong { count: 9, .. })
    ));
}

#[test]
fn the_parent_must_be_given_and_be_the_right_one() {
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let child = folder.child("child.vhd", &base);
    let other = folder.path("other.vhd");
    let another = vhd::CreateOptions {
        identity: identity(5),
        ..options(SIZE, 2 << 20)
    };
    create_dynamic(&other, &another).unwrap();

    let Err(Error::ParentMissing { parent_name, .. }) = open_with(&child, &[]) else {
        panic!()
    };
    assert_eq!(parent_name, "base.vhd");
    let Err(error) = open_with(&child, &[&other]) else {
        panic!()
    };
    assert!(
        matches!(
            error,
            Error::ParentMismatch {
                field: "Parent Unique ID",
                ..
            }
        ),
        "{error}"
    );
    let Err(error) = open_with(&base, &[&other]) else {
        panic!()
    };
    assert!(matches!(error, Error::ParentUnexpected { .. }), "{error}");
    open_with(&child, &[&base]).unwrap();
}

#[test]
fn the_time_stamp_is_that_of_the_parents_footer_or_file() {
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let child = folder.child("child.vhd", &base);
    let modified = SystemTime::from(TimeStamp(123_456));
    std::fs::File::options()
        .write(true)
        .open(&base)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    open_with(&child, &[&base]).unwrap();

    // Another base with the same id, as if the parent had been made anew.
    let stamp = |seconds| Identity {
        time_stamp: TimeStamp(seconds),
        ..identity(1)
    };
    let renewed = folder.path("renewed.vhd");
    let make = vhd::CreateOptions {
        identity: stamp(2000),
        ..options(SIZE, 2 << 20)
    };
    create_dynamic(&renewed, &make).unwrap();
    let Err(error) = open_with(&child, &[&renewed]) else {
        panic!()
    };
    assert!(
        matches!(
            error,
            Error::ParentMismatch {
                field: "Parent Time Stamp",
                ..
            }
        ),
        "{error}"
    );
    let lenient = OpenOptions {
        ignore_parent_time_stamp: true,
        ..OpenOptions::read_only().with_parents([&renewed])
    };
    Disk::open(&child, &lenient).unwrap();

    // Other tools record when the file was modified: identity(1) says 1000.
    let modified = SystemTime::from(TimeStamp(1000));
    std::fs::File::options()
        .write(true)
        .open(&renewed)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    open_with(&child, &[&renewed]).unwrap();
}

#[test]
fn no_path_inside_an_image_is_opened() {
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let child = folder.child("child.vhd", &base);
    let moved = folder.path("elsewhere");
    std::fs::rename(&base, &moved).unwrap();
    open_with(&child, &[&moved]).unwrap();
    assert!(matches!(
        open_with(&child, &[]),
        Err(Error::ParentMissing { .. })
    ));
}

#[test]
fn one_writer_or_several_readers() {
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let child = folder.child("child.vhd", &base);
    let second = folder.child("second.vhd", &base);

    let writer = open_rw(&child, &[&base]);
    assert!(matches!(
        open_with(&child, &[&base]),
        Err(Error::Locked { .. })
    ));
    let other = open_rw(&second, &[&base]);
    let base_rw = Disk::open(&base, &OpenOptions::read_write());
    assert!(
        matches!(base_rw, Err(Error::Locked { .. })),
        "a parent in use was opened to write"
    );
    assert!(matches!(Raw::open(&base, false), Err(Error::Locked { .. })));
    assert_eq!(
        vhd::info(&child).unwrap().virtual_size,
        SIZE,
        "a look takes no lock"
    );
    drop((writer, other));
    open_rw(&base, &[]);
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let folder = Folder::new();
    let disk = open_ro(&folder.base("base.vhd"), &[]);
    assert!(disk.is_read_only());
    let refused = |result| matches!(result, Err(Error::ReadOnly { .. }));
    assert!(refused(disk.write_at(&[0; 512], 0)));
    assert!(refused(disk.write_zeroes(0, 512)));
    assert!(refused(disk.discard(0, 512)));
    disk.flush().unwrap();
}

#[test]
fn requests_are_whole_sectors_inside_the_disk() {
    let folder = Folder::new();
    let fixed = folder.path("fixed.vhd");
    create_fixed(&fixed, &options(SIZE, 2 << 20)).unwrap();
    for disk in [open_rw(&folder.base("base.vhd"), &[]), open_rw(&fixed, &[])] {
        let mut sector = [0; 512];
        let outside = |result| matches!(result, Err(Error::OutOfRange { .. }));
        assert!(outside(disk.read_at(&mut sector, SIZE)));
        assert!(outside(disk.write_at(&sector, u64::MAX - 511)));
        assert!(outside(disk.discard(512, SIZE)));
        assert!(outside(disk.extent_at(SIZE).map(drop)));
        assert!(matches!(
            disk.read_at(&mut sector, 1),
            Err(Error::Unaligned { .. })
        ));
        assert!(matches!(
            disk.write_at(&[0; 100], 0),
            Err(Error::Unaligned { .. })
        ));
        disk.read_at(&mut [], SIZE).unwrap();
        disk.write_zeroes(SIZE, 0).unwrap();
    }
}

#[test]
fn the_record_says_the_type() {
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let wrong = Disk::open(&base, &OpenOptions::read_only().expecting(DiskType::Fixed));
    assert!(matches!(
        wrong,
        Err(Error::UnexpectedType {
            found: DiskType::Dynamic,
            ..
        })
    ));

    // A guest writes what a dynamic disk begins with onto its fixed disk.
    let fixed = folder.path("fixed.vhd");
    create_fixed(&fixed, &options(SIZE, 2 << 20)).unwrap();
    let trap = std::fs::read(&base).unwrap();
    open_rw(&fixed, &[]).write_at(&trap[..4096], 0).unwrap();
    let disk = open_ro(&fixed, &[]);
    assert_eq!(disk.disk_type(), DiskType::Fixed);
    assert!(contents(&disk)[..4096] == trap[..4096]);
}

#[test]
fn making_a_child_takes_no_longer_for_a_larger_parent() {
    let folder = Folder::new();
    let base = folder.path("large.vhd");
    create_fixed(&base, &options(100 << 30, 2 << 20)).unwrap();
    let begun = Instant::now();
    let child = folder.child("child.vhd", &base);
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(open_ro(&child, &[&base]).size(), 100 << 30);
}

#[test]
fn a_disk_that_has_used_up_its_quota_keeps_what_it_has_and_takes_no_more() {
    const BLOCK: u64 = 2 << 20;
    let folder = Folder::new();
    let base = folder.base("base.vhd");
    let child = folder.child("child.vhd", &base);
    // Headers and table, and two of the four blocks with their bitmaps.
    let quota = std::fs::metadata(&child).unwrap().len() + 2 * (BLOCK + 4096);
    let options = OpenOptions::read_write()
        .with_parents([&base])
        .with_quota(Some(quota));
    let disk = Disk::open(&child, &options).unwrap();
    let within = || std::fs::metadata(&child).unwrap().len() <= quota;
    disk.write_at(&noise(1, 4096), 0).unwrap();
    disk.write_at(&noise(2, 4096), BLOCK).unwrap();
    for block in [2, 3] {
        let error = disk.write_at(&noise(3, 4096), block * BLOCK).unwrap_err();
        assert!(matches!(error, Error::Quota { .. }), "{error}");
        assert!(within());
    }
    // What has a place in the file is written as before, and flushed.
    disk.write_at(&noise(4, 4096), 512 << 10).unwrap();
    disk.write_at(&noise(5, 4096), 0).unwrap();
    disk.flush().unwrap();
    let now = contents(&disk);
    assert!(now[..4096] == noise(5, 4096) && now[BLOCK as usize..][..4096] == noise(2, 4096));
    assert!(now[2 * BLOCK as usize..].iter().all(|byte| *byte == 0));
    drop(disk);
    assert!(within());

    // With a larger one it goes on.
    let more = options.with_quota(None);
    let disk = Disk::open(&child, &more).unwrap();
    disk.write_at(&noise(6, 4096), 3 * BLOCK).unwrap();
}
