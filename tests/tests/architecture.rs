//! Who may know whom: the table in ARCHITECTURE.md, held to by the build's own
//! account of itself.

#![allow(clippy::expect_used, reason = "a helper of a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Each crate of ours, and those of ours that it may use.
const MAY_USE: [(&str, &[&str]); 16] = [
    ("vhd", &[]),
    ("fabric-fail-points", &[]),
    ("fabric-vmm", &["fabric-fail-points", "vhd"]),
    ("fabric-proto", &[]),
    ("fabric-trust", &[]),
    ("fabric-metrics", &[]),
    ("guest-agent", &["fabric-proto"]),
    (
        "host-agent",
        &[
            "fabric-fail-points",
            "fabric-metrics",
            "fabric-proto",
            "fabric-trust",
            "fabric-vmm",
            "vhd",
        ],
    ),
    (
        "fabric-controller",
        &[
            "fabric-fail-points",
            "fabric-metrics",
            "fabric-proto",
            "fabric-trust",
            "vhd",
            "workspace-hack",
        ],
    ),
    (
        "fabctl",
        // Its tests ask a real controller.
        &["fabric-controller", "fabric-proto", "fabric-trust", "vhd"],
    ),
    (
        "fabric-tests",
        &["fabric-proto", "fabric-trust", "fabric-vmm", "vhd"],
    ),
    (
        "fabric-sim",
        &["fabric-proto", "fabric-controller", "host-agent", "vhd"],
    ),
    ("bus-peer", &[]),
    ("hello-web", &[]),
    ("xtask", &["vhd"]),
    ("workspace-hack", &[]),
];

/// Crates whose presence in a crate of ours would break its promise.
const NEVER: [(&str, &[&str]); 2] = [
    ("vhd", &["tokio", "tonic", "prost", "kvm-ioctls"]),
    ("fabric-vmm", &["tokio", "tonic", "prost"]),
];

/// The one crate that may hold `unsafe`.
const MAY_BE_UNSAFE: &str = "fabric-vmm";

/// What cargo says.
fn cargo(args: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {complaint}");
    output.stdout
}

/// What it says of the workspace.
fn metadata() -> Value {
    let said = cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--offline",
    ]);
    serde_json::from_slice(&said).expect("cargo metadata is JSON")
}

/// Direct dependencies of each crate of the workspace, those of tests and build
/// scripts included.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let packages = metadata()["packages"].as_array().expect("packages").clone();
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("name").to_owned();
            let uses = package["dependencies"]
                .as_array()
                .expect("dependencies")
                .iter();
            (
                name,
                uses.map(|d| d["name"].as_str().expect("name").to_owned())
                    .collect(),
            )
        })
        .collect()
}

/// Each crate as it is compiled for such a selection of packages and dependencies: its
/// name, its version and its features.
fn compiled(selection: &[&str]) -> BTreeSet<String> {
    let tree = [
        "tree", "--locked", "--prefix", "none", "--format", "{p} {f}",
    ];
    let said = cargo(&[&tree, selection].concat());
    let said = String::from_utf8_lossy(&said);
    let lines = said.lines().map(|line| line.trim_end_matches(" (*)"));
    lines.map(str::to_owned).collect()
}

#[test]
fn programs_are_compiled_with_the_features_that_their_tests_have() {
    let of_hosts = [
        "fabctl",
        "fabric-controller",
        "fabric-vmm",
        "host-agent",
        "vhd",
    ];
    let mut programs = vec!["--edges", "normal,no-proc-macro"];
    programs.extend(of_hosts.iter().flat_map(|name| ["--package", name]));
    let tests = ["--edges", "normal,dev,no-proc-macro", "--workspace"];
    let (programs, tests) = (compiled(&programs), compiled(&tests));
    assert!(programs.len() > of_hosts.len(), "{programs:?}");
    let twice: Vec<_> = programs.difference(&tests).collect();
    assert!(
        twice.is_empty(),
        "compiled once more for the tests, with more features, which belong into \
         xtask/workspace-hack/Cargo.toml: {twice:#?}"
    );
}

#[test]
fn every_crate_stands_in_the_table() {
    let mut known: Vec<_> = MAY_USE.iter().map(|(name, _)| (*name).to_owned()).collect();
    known.sort();
    let found: Vec<_> = dependencies().into_keys().collect();
    assert_eq!(
        found, known,
        "add a new crate to ARCHITECTURE.md and to this table"
    );
}

#[test]
fn no_crate_knows_more_of_ours_than_it_may() {
    let dependencies = dependencies();
    for (name, allowed) in MAY_USE {
        for used in &dependencies[name] {
            let ours = MAY_USE.iter().any(|(other, _)| other == used);
            assert!(
                !ours || allowed.contains(&used.as_str()),
                "{name} uses {used}, which ARCHITECTURE.md does not allow",
            );
        }
    }
}

#[test]
fn the_disk_format_and_the_vmm_stay_free_of_rpc_and_runtimes() {
    let dependencies = dependencies();
    for (name, never) in NEVER {
        for used in &dependencies[name] {
            assert!(!never.contains(&used.as_str()), "{name} uses {used}");
        }
    }
}

#[test]
fn unsafe_is_forbidden_everywhere_but_in_the_vmm() {
    for package in metadata()["packages"].as_array().expect("packages") {
        if package["name"] == MAY_BE_UNSAFE {
            continue;
        }
        for target in package["targets"].as_array().expect("targets") {
            let kinds: Vec<_> = target["kind"].as_array().expect("kind").iter().collect();
            if !kinds.iter().any(|kind| *kind == "lib" || *kind == "bin") {
                continue;
            }
            let root = PathBuf::from(target["src_path"].as_str().expect("src_path"));
            let source = std::fs::read_to_string(&root).expect("crate root is readable");
            assert!(
                source.contains("#![forbid(unsafe_code)]"),
                "{} does not forbid unsafe code",
                root.display(),
            );
        }
    }
}

#[test]
fn every_crate_says_in_one_line_what_it_is() {
    for package in metadata()["packages"].as_array().expect("packages") {
        let description = package["description"].as_str().unwrap_or_default();
        assert!(
            !description.is_empty() && !description.contains('\n'),
            "{} has no one-line description",
            package["name"],
        );
    }
}

/// Cargo's own harness would find no test in them, and call that well.
#[test]
fn every_story_is_run_by_its_own_main() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(here.join("Cargo.toml")).expect("the manifest");
    for entry in std::fs::read_dir(here.join("tests")).expect("the tests") {
        let path = entry.expect("a test").path();
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        if !source.lines().any(|line| line == "fn main() -> ExitCode {") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().display();
        assert!(
            manifest.contains(&format!("name = \"{name}\"\nharness = false")),
            "{name} has a main of its own, and no `harness = false` in tests/Cargo.toml"
        );
    }
}
