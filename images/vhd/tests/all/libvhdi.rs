//! Interoperation with libvhdi, an independent reader that follows chains by
//! the locators that we write.
//!
//! Its release of 2021, Debian 12's, reads sector bitmaps wrongly in one case:
//! behind a set bit it takes the remaining bits of the same byte for set. So
//! what is written here over a parent's data ends on a multiple of 8 sectors,
//! as everything does that a file system in 4 KiB blocks writes.

use std::path::{Path, PathBuf};

use vhd::{BlockDevice, DifferencingOptions, create_differencing, create_dynamic};

use crate::support::tools::{Mounted, have, run};
use crate::support::{assert_same, contents, identity, noise, open_ro, open_rw, options};

const SIZE: u64 = (10 << 20) + 512;

/// A base with data in front, and a child over it.
fn chain(folder: &Path, base_name: &str) -> (PathBuf, PathBuf) {
    let (base, child) = (folder.join(base_name), folder.join("child.vhd"));
    create_dynamic(&base, &options(SIZE, 2 << 20)).unwrap();
    open_rw(&base, &[]).write_at(&noise(1, 3 << 20), 0).unwrap();
    let options = DifferencingOptions {
        identity: identity(2),
        ..DifferencingOptions::default()
    };
    create_differencing(&child, &base, &options).unwrap();
    (base, child)
}

#[test]
fn it_describes_our_disks_as_we_do() {
    if !have("vhdiinfo", "libvhdi-utils") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = chain(folder.path(), "Grüße.vhd");
    let said = run("vhdiinfo", &[&child]);
    for part in [
        "Differential",
        &identity(2).unique_id.to_string(),
        &identity(1).unique_id.to_string(),
        "Grüße.vhd",
        &format!("({SIZE} bytes)"),
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let said = run("vhdiinfo", &[&base]);
    assert!(
        said.contains("Dynamic") && said.contains(&format!("({SIZE} bytes)")),
        "{said}"
    );
}

#[test]
fn it_reads_our_chains_by_their_locators() {
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = chain(folder.path(), "base.vhd");
    let disk = open_rw(&child, &[&base]);
    disk.write_at(&noise(5, 15 * 512), 512).unwrap();
    disk.write_at(&noise(6, 512), SIZE - 512).unwrap();
    disk.write_zeroes(1 << 20, 1 << 19).unwrap();
    drop(disk);
    let Some(mounted) = Mounted::new(&child) else {
        return;
    };
    let theirs = std::fs::read(mounted.disk()).unwrap();
    assert_same(&theirs, &contents(&open_ro(&child, &[&base])), "libvhdi");
}

#[test]
fn it_reads_chains_of_three() {
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = chain(folder.path(), "base.vhd");
    open_rw(&child, &[&base])
        .write_at(&noise(5, 2 << 20), 1 << 20)
        .unwrap();
    let grandchild = folder.path().join("grandchild.vhd");
    let small = DifferencingOptions {
        identity: identity(3),
        ..DifferencingOptions::default()
    };
    create_differencing(&grandchild, &child, &small).unwrap();
    let parents: [&Path; 2] = [&child, &base];
    open_rw(&grandchild, &parents)
        .write_at(&noise(7, 1536), 5 << 20)
        .unwrap();
    let Some(mounted) = Mounted::new(&grandchild) else {
        return;
    };
    let theirs = std::fs::read(mounted.disk()).unwrap();
    assert_same(
        &theirs,
        &contents(&open_ro(&grandchild, &parents)),
        "libvhdi",
    );
}
