//! Conversion keeps every byte, leaves out zeroes, and is reproducible.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vhd::{
    BlockDevice, ConvertOptions, DifferencingOptions, Disk, Error, OpenOptions, Raw, Target,
    convert, create_differencing,
};

use crate::support::{contents, identity, noise, open_ro, open_rw, options};

const SIZE: u64 = (20 << 20) + 512;

/// A raw image with data at its beginning, in its middle and at its end.
fn raw(folder: &Path) -> PathBuf {
    let path = folder.join("disk.raw");
    let disk = Raw::create(&path, SIZE).unwrap();
    for (seed, at) in [(1, 0), (2, 9 << 20), (3, SIZE - 4608)] {
        disk.write_at(&noise(seed, 4608), at).unwrap();
    }
    path
}

fn to(target: Target) -> ConvertOptions {
    ConvertOptions {
        identity: identity(4),
        ..ConvertOptions::new(target)
    }
}

fn space(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn there_and_back_through_every_type() {
    let folder = tempfile::tempdir().unwrap();
    let raw = raw(folder.path());
    let original = std::fs::read(&raw).unwrap();
    let name = |name: &str| folder.path().join(name);
    let source = Raw::open(&raw, true).unwrap();
    let mut steps = 0;
    convert(&source, name("a"), &to(Target::Dynamic), &mut |done| {
        assert!(done <= SIZE);
        steps += 1;
    })
    .unwrap();
    assert!(steps > 1);
    convert(
        &open_ro(&name("a"), &[]),
        name("b"),
        &to(Target::Fixed),
        &mut |_| {},
    )
    .unwrap();
    convert(
        &open_ro(&name("b"), &[]),
        name("c"),
        &to(Target::Raw),
        &mut |_| {},
    )
    .unwrap();
    for vhd in ["a", "b"] {
        assert!(contents(&open_ro(&name(vhd), &[])) == original, "{vhd}");
        assert!(
            vhd::check(name(vhd), &[]).unwrap().problems.is_empty(),
            "{vhd}"
        );
    }
    assert!(std::fs::read(name("c")).unwrap() == original);
    for path in ["a", "b", "c"] {
        assert!(
            space(&name(path)) < 1 << 20,
            "{path} takes {}",
            space(&name(path))
        );
    }
}

#[test]
fn a_chain_becomes_one_image() {
    let folder = tempfile::tempdir().unwrap();
    let name = |name: &str| folder.path().join(name);
    vhd::create_dynamic(name("base"), &options(SIZE, 2 << 20)).unwrap();
    open_rw(&name("base"), &[])
        .write_at(&noise(1, 1 << 20), 0)
        .unwrap();
    create_differencing(name("child"), name("base"), &DifferencingOptions::default()).unwrap();
    let child = open_rw(&name("child"), &[&name("base")]);
    child.write_at(&noise(2, 4096), 4096).unwrap();
    child.write_zeroes(1 << 19, 1 << 18).unwrap();
    convert(&child, name("whole"), &to(Target::Dynamic), &mut |_| {}).unwrap();
    assert!(contents(&open_ro(&name("whole"), &[])) == contents(&child));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let source = Raw::open(raw(folder.path()), true).unwrap();
    let make = |name: &str| {
        let path = folder.path().join(name);
        convert(&source, &path, &to(Target::Dynamic), &mut |_| {}).unwrap();
        std::fs::read(path).unwrap()
    };
    assert!(make("a") == make("b"));
}

#[test]
fn a_raw_image_of_odd_length_is_filled_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd");
    std::fs::write(&path, noise(1, 1000)).unwrap();
    let source = Raw::open(&path, true).unwrap();
    assert_eq!(source.size(), 1024);
    let target = folder.path().join("vhd");
    convert(&source, &target, &to(Target::Fixed), &mut |_| {}).unwrap();
    let all = contents(&open_ro(&target, &[]));
    assert!(all[..1000] == noise(1, 1000) && all[1000..] == [0; 24]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1000);
}

#[test]
fn a_file_is_never_replaced_and_a_failure_leaves_none() {
    let folder = tempfile::tempdir().unwrap();
    let source = Raw::open(raw(folder.path()), true).unwrap();
    let there = folder.path().join("there");
    std::fs::write(&there, "mine").unwrap();
    let refused = convert(&source, &there, &to(Target::Raw), &mut |_| {});
    assert!(matches!(refused, Err(Error::Exists { .. })));
    assert_eq!(std::fs::read(&there).unwrap(), b"mine");

    let options = ConvertOptions {
        block_size: 1000,
        ..to(Target::Dynamic)
    };
    let path = folder.path().join("new");
    let refused = convert(&source, &path, &options, &mut |_| {});
    assert!(matches!(
        refused,
        Err(Error::InvalidOption {
            option: "block size",
            ..
        })
    ));
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
}

#[test]
fn the_largest_disk_can_be_made_and_used_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.vhd");
    let largest = vhd::format::MAX_DISK_SIZE;
    let too_large = vhd::create_dynamic(&path, &options(largest + 512, 2 << 20));
    assert!(matches!(
        too_large,
        Err(Error::InvalidOption { option: "size", .. })
    ));
    vhd::create_dynamic(&path, &options(largest, 2 << 20)).unwrap();
    let disk = open_rw(&path, &[]);
    disk.write_at(&noise(1, 512), largest - 512).unwrap();
    drop(disk);
    let disk = Disk::open(&path, &OpenOptions::read_only()).unwrap();
    let mut last = [0; 512];
    disk.read_at(&mut last, largest - 512).unwrap();
    assert!(last[..] == noise(1, 512));
    assert!(space(&path) < 8 << 20);
}
