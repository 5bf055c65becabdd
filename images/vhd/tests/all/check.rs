//! A check finds what is wrong, says how much it matters, and finds nothing
//! where nothing is.

use std::path::{Path, PathBuf};

use vhd::{BlockDevice, DifferencingOptions, Error, Report, Severity, check};

use crate::support::{noise, open_rw, options};

const SIZE: u64 = 8 << 20;

fn base(folder: &Path) -> PathBuf {
    let path = folder.join("base.vhd");
    vhd::create_dynamic(&path, &options(SIZE, 2 << 20)).unwrap();
    open_rw(&path, &[]).write_at(&noise(1, 3 << 20), 0).unwrap();
    path
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn worst(report: &Report) -> Option<Severity> {
    report.problems.iter().map(|problem| problem.severity).max()
}

#[test]
fn a_good_disk_has_no_problems() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let report = check(&base, &[]).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let blocks = report.blocks.unwrap();
    assert_eq!(
        (blocks.total, blocks.in_file, blocks.sectors_in_file),
        (4, 2, 8192)
    );

    let child = folder.path().join("child.vhd");
    vhd::create_differencing(&child, &base, &DifferencingOptions::default()).unwrap();
    open_rw(&child, &[&base]).write_at(&[1; 1024], 0).unwrap();
    let report = check(&child, &[base]).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.blocks.unwrap().sectors_in_file, 2);
    let report = check(&child, &[]).unwrap();
    assert!(report.is_clean() && worst(&report) == Some(Severity::Note));
}

#[test]
fn all_wrong_entries_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    change(&base, |bytes| {
        bytes[1544..1552].copy_from_slice(&[0, 0, 0, 1, 0x10, 0, 0, 0]);
    });
    let report = check(&base, &[]).unwrap();
    let fields: Vec<_> = report
        .problems
        .iter()
        .filter_map(|p| Some(p.defect.as_ref()?.field.as_str()))
        .collect();
    // Entry 2 is in the table's place and reaches into the block of entry 0.
    assert_eq!(fields, ["entry 2", "entry 3", "entry 0"]);
    assert!(!report.is_clean());
}

#[test]
fn a_lost_footer_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    change(&base, |bytes| bytes.truncate(bytes.len() - 512));
    let report = check(&base, &[]).unwrap();
    assert_eq!(worst(&report), Some(Severity::Warning));
    drop(open_rw(&base, &[]));
    assert!(check(&base, &[]).unwrap().problems.is_empty());
}

#[test]
fn data_that_other_tools_would_see_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    change(&base, |bytes| bytes[4096 - 512] = 0x7f);
    let report = check(&base, &[]).unwrap();
    assert_eq!(worst(&report), Some(Severity::Warning));
    assert!(
        report.problems[0].message.starts_with("1 sectors"),
        "{:?}",
        report.problems
    );
}

#[test]
fn space_lost_in_a_crash_is_noted_and_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let whole = std::fs::metadata(&base).unwrap().len();
    // A block that no entry names, as a killed process leaves it.
    change(&base, |bytes| {
        let footer = bytes.split_off(bytes.len() - 512);
        bytes.resize(bytes.len() + (2 << 20) + 4096, 0xEE);
        bytes.extend(footer);
    });
    let report = check(&base, &[]).unwrap();
    assert!(report.is_clean() && worst(&report) == Some(Severity::Note));
    drop(open_rw(&base, &[]));
    assert_eq!(std::fs::metadata(&base).unwrap().len(), whole);
}

#[test]
fn a_wrong_parent_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let child = folder.path().join("child.vhd");
    vhd::create_differencing(&child, &base, &DifferencingOptions::default()).unwrap();
    let other = folder.path().join("other.vhd");
    vhd::create_fixed(&other, &vhd::CreateOptions::new(SIZE)).unwrap();
    let report = check(&child, &[other]).unwrap();
    assert_eq!(worst(&report), Some(Severity::Error));
    assert!(report.problems[0].message.contains("Parent Unique ID"));
}

#[test]
fn what_is_no_vhd_is_reported_and_what_is_not_there_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    std::fs::write(&path, "x".repeat(2000)).unwrap();
    let report = check(&path, &[]).unwrap();
    assert_eq!(report.problems[0].defect.as_ref().unwrap().field, "Cookie");
    assert!(matches!(
        check(folder.path().join("none"), &[]),
        Err(Error::Io { .. })
    ));
    assert!(matches!(check(folder.path(), &[]), Err(Error::Io { .. })));
}
