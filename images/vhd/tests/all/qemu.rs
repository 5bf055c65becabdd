//! Interoperation with `qemu-img`, both ways, byte for byte.

use std::path::{Path, PathBuf};

use vhd::{
    BlockDevice, ConvertOptions, DiskType, Raw, Target, convert, create_dynamic, create_fixed,
};

use crate::support::tools::{have, run};
use crate::support::{contents, identity, noise, open_ro, open_rw, options};

/// Sizes of which few are a product of cylinders, heads and sectors.
const SIZES: [u64; 5] = [512, 1_000_448, 4 << 20, 12_345_856, 40 << 20];

fn have_qemu() -> bool {
    have("qemu-img", "qemu-utils")
}

/// A raw image with data here and there, the last sector included.
fn raw(folder: &Path, size: u64) -> PathBuf {
    let path = folder.join("disk.raw");
    let disk = Raw::create(&path, size).unwrap();
    for at in [0, size / 3, size / 2, size - 512] {
        let at = at / 512 * 512;
        let len = (size - at).min(100 * 512);
        disk.write_at(&noise(at + 1, len as usize), at).unwrap();
    }
    path
}

/// What qemu-img takes for the size of a VHD.
fn qemu_size(path: &Path) -> u64 {
    let json = run(
        "qemu-img",
        &[&"info", &"-f", &"vpc", &"--output=json", &path],
    );
    let info: serde_json::Value = serde_json::from_str(&json).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

/// qemu-img finds the same in both; zeroes behind the shorter do not count.
fn compare(raw: &Path, vhd: &Path) {
    run(
        "qemu-img",
        &[&"compare", &"-f", &"raw", &"-F", &"vpc", &raw, &vhd],
    );
}

#[test]
fn we_read_what_qemu_makes() {
    if !have_qemu() {
        return;
    }
    for size in SIZES {
        for (kind, force) in [
            ("fixed", "on"),
            ("fixed", "off"),
            ("dynamic", "on"),
            ("dynamic", "off"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let raw = raw(folder.path(), size);
            let vhd = folder.path().join("disk.vhd");
            let options = format!("subformat={kind},force_size={force}");
            run(
                "qemu-img",
                &[
                    &"convert", &"-f", &"raw", &"-O", &"vpc", &"-o", &options, &raw, &vhd,
                ],
            );
            let disk = open_ro(&vhd, &[]);
            assert_eq!(disk.disk_type().to_string(), kind);
            assert_eq!(disk.size(), qemu_size(&vhd), "{size} {options}");
            assert!(disk.size() == size || force == "off" && disk.size() > size);
            let all = contents(&disk);
            let (data, beyond) = all.split_at(size as usize);
            assert!(data == std::fs::read(&raw).unwrap(), "{size} {options}");
            assert!(beyond.iter().all(|byte| *byte == 0));
            let report = vhd::check(&vhd, &[]).unwrap();
            assert!(
                report.problems.is_empty(),
                "{size} {options}: {:?}",
                report.problems
            );
        }
    }
}

#[test]
fn qemu_reads_what_we_make() {
    if !have_qemu() {
        return;
    }
    for size in SIZES {
        for target in [Target::Fixed, Target::Dynamic] {
            let folder = tempfile::tempdir().unwrap();
            let raw = raw(folder.path(), size);
            let vhd = folder.path().join("disk.vhd");
            let options = ConvertOptions {
                identity: identity(1),
                ..ConvertOptions::new(target)
            };
            convert(&Raw::open(&raw, true).unwrap(), &vhd, &options, &mut |_| {}).unwrap();
            assert_eq!(qemu_size(&vhd), size, "{target:?}");
            compare(&raw, &vhd);
            let back = folder.path().join("back.raw");
            run(
                "qemu-img",
                &[&"convert", &"-f", &"vpc", &"-O", &"raw", &vhd, &back],
            );
            assert!(std::fs::read(&back).unwrap() == std::fs::read(&raw).unwrap());
        }
    }
}

#[test]
fn qemu_reads_ours_after_scattered_writes() {
    if !have_qemu() {
        return;
    }
    const SIZE: u64 = 12_345_856;
    for block_size in [4096, 512 << 10, 2 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let vhd = folder.path().join("disk.vhd");
        let raw = folder.path().join("disk.raw");
        create_dynamic(&vhd, &options(SIZE, block_size)).unwrap();
        let (disk, model) = (open_rw(&vhd, &[]), Raw::create(&raw, SIZE).unwrap());
        for step in 0..40u64 {
            let at = (step * 7_919 * 512) % (SIZE - 8192) / 512 * 512;
            for device in [&disk as &dyn BlockDevice, &model] {
                match step % 5 {
                    4 => device.write_zeroes(at, 8192).unwrap(),
                    _ => device.write_at(&noise(step, 1536), at).unwrap(),
                }
            }
        }
        disk.flush().unwrap();
        drop(disk);
        compare(&raw, &vhd);
    }
}

#[test]
fn we_write_on_where_qemu_stopped_and_it_on_ours() {
    if !have_qemu() || !have("qemu-io", "qemu-utils") {
        return;
    }
    const SIZE: u64 = 20 << 20;
    let folder = tempfile::tempdir().unwrap();
    let (vhd, raw) = (
        folder.path().join("disk.vhd"),
        folder.path().join("disk.raw"),
    );
    create_dynamic(&vhd, &options(SIZE, 2 << 20)).unwrap();
    let model = Raw::create(&raw, SIZE).unwrap();
    for turn in 0..4u64 {
        let at = turn * (5 << 20);
        let disk = open_rw(&vhd, &[]);
        disk.write_at(&noise(turn, 5120), at).unwrap();
        drop(disk);
        model.write_at(&noise(turn, 5120), at).unwrap();

        let at = at + (3 << 20);
        let write = format!("write -P {} {at} 3072", turn + 1);
        run("qemu-io", &[&"-f", &"vpc", &"-c", &write, &vhd]);
        model.write_at(&[turn as u8 + 1; 3072], at).unwrap();
        let report = vhd::check(&vhd, &[]).unwrap();
        assert!(report.is_clean(), "{:?}", report.problems);
    }
    drop(model);
    compare(&raw, &vhd);
    assert!(contents(&open_ro(&vhd, &[])) == std::fs::read(&raw).unwrap());
}

#[test]
fn qemu_reads_an_empty_disk_of_any_size() {
    if !have_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (number, size) in [512, 69_632, 1_000_448, (127 << 30) + 512, 2040 << 30]
        .iter()
        .enumerate()
    {
        let path = folder.path().join(format!("{number}.vhd"));
        create_dynamic(&path, &options(*size, 2 << 20)).unwrap();
        assert_eq!(qemu_size(&path), *size);
        let fixed = folder.path().join(format!("{number}.fixed.vhd"));
        create_fixed(&fixed, &options(*size, 2 << 20)).unwrap();
        assert_eq!(qemu_size(&fixed), *size);
        assert_eq!(open_ro(&fixed, &[]).disk_type(), DiskType::Fixed);
    }
}
