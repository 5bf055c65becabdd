//! The `vhd` program: what it prints, and how it ends.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::noise;

/// Runs `vhd` in a folder.
fn vhd(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vhd"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn json(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_slice(&ok(folder, args).stdout).unwrap()
}

fn ok(folder: &Path, args: &[&str]) -> Output {
    let output = vhd(folder, args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn error(folder: &Path, code: i32, args: &[&str]) -> String {
    let output = vhd(folder, args);
    assert_eq!(output.status.code(), Some(code), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn from_raw_to_a_chain_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("disk.raw"), noise(1, 1 << 20)).unwrap();
    ok(
        folder,
        &[
            "convert", "disk.raw", "base.vhd", "--from", "raw", "--to", "dynamic",
        ],
    );
    ok(folder, &["create", "child.vhd", "--parent", "base.vhd"]);
    let info = json(folder, &["info", "child.vhd", "--output", "json"]);
    assert_eq!(info["disk_type"], "differencing");
    assert_eq!(info["virtual_size"], 1 << 20);
    assert_eq!(info["dynamic"]["header"]["parent_unicode_name"], "base.vhd");
    let map = json(
        folder,
        &[
            "map",
            "child.vhd",
            "--parent",
            "base.vhd",
            "--output",
            "json",
        ],
    );
    assert_eq!(map[0]["kind"], "data");
    assert_eq!(map[0]["depth"], 1);
    ok(folder, &["check", "child.vhd", "--parent", "base.vhd"]);
    ok(
        folder,
        &[
            "convert",
            "child.vhd",
            "back.raw",
            "--parent",
            "base.vhd",
            "--to",
            "raw",
        ],
    );
    assert!(std::fs::read(folder.join("back.raw")).unwrap() == noise(1, 1 << 20));
}

#[test]
fn the_same_id_and_time_make_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let id = "6f1d0a52-0e2c-4a55-9d3b-1f1f7f0f2b11";
        let args = [
            "create",
            name,
            "--size",
            "1MiB",
            "--unique-id",
            id,
            "--time-stamp",
        ];
        ok(
            folder.path(),
            &[&args[..], &["2024-01-01T00:00:00Z"]].concat(),
        );
        std::fs::read(folder.path().join(name)).unwrap()
    };
    assert!(make("a.vhd") == make("b.vhd"));
}

#[test]
fn exit_codes_tell_what_happened() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    ok(
        folder,
        &["create", "disk.vhd", "--size", "4MiB", "--type", "fixed"],
    );
    let said = error(folder, 1, &["create", "disk.vhd", "--size", "4MiB"]);
    assert!(said.contains("disk.vhd: exists already"), "{said}");
    let said = error(folder, 1, &["create", "odd.vhd", "--size", "1000"]);
    assert!(
        said.contains("size 1000: must be a multiple of 512"),
        "{said}"
    );
    let said = error(folder, 1, &["check", "none.vhd"]);
    assert!(
        said.contains("none.vhd: cannot open: No such file"),
        "{said}"
    );
    error(folder, 2, &["create", "disk.vhd"]);
    std::fs::write(folder.join("bad.vhd"), [0; 4096]).unwrap();
    error(folder, 4, &["check", "bad.vhd"]);
    let said = error(folder, 1, &["info", "bad.vhd"]);
    assert!(said.contains("hard disk footer, Cookie is"), "{said}");
}

#[test]
fn every_command_has_help_and_completions_work() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["info", "check", "create", "convert", "map"] {
        let help = String::from_utf8(ok(folder.path(), &[command, "--help"]).stdout).unwrap();
        assert!(help.contains("Examples:"), "{command}");
    }
    let script = ok(folder.path(), &["completions", "bash"]).stdout;
    assert!(String::from_utf8(script).unwrap().contains("_vhd"));
}
