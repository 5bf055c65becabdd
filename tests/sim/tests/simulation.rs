//! The simulation itself: it does the same every time, finds what is broken, and holds
//! what the fabric is held to.

#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::Value;

/// Runs it.
fn sim(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fabric-sim"));
    let output = command.args(arguments).env_remove("RUST_LOG").output();
    output.expect("it runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The last line.
fn summary(output: &Output) -> Value {
    let text = text(output);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).expect("its last line is JSON")
}

#[test]
fn a_seed_does_the_same_every_time() {
    for seed in ["2", "7"] {
        let once = sim(&["--seed", seed, "--timeline"]);
        assert!(once.stdout.len() > 10_000, "{}", text(&once));
        let again = sim(&["--seed", seed, "--timeline"]);
        assert_eq!(text(&once), text(&again));
    }
}

#[test]
fn what_must_hold_holds() {
    let output = sim(&["--seeds", "1..12"]);
    assert!(output.status.success(), "{}", text(&output));
    let summary = summary(&output);
    assert_eq!(summary["seeds"], 12);
    assert_eq!(summary["failed"], serde_json::json!([]));
    let kinds = [
        "controller_killed",
        "agent_killed",
        "node_killed",
        "node_sleeps",
        "partition",
        "partition_one_way",
        "delay",
        "store_full",
        "clock_jump",
    ];
    for kind in kinds {
        assert!(summary["faults"][kind].as_u64() > Some(0), "no {kind}");
    }
}

#[test]
fn what_is_broken_on_purpose_is_found() {
    let found = [
        ("skip-slack", "runs twice"),
        ("no-keeper", "runs twice"),
        ("drop-epoch", "is started under epoch"),
        ("forget-write", "was acknowledged and is not in the store"),
    ];
    for (broken, how) in found {
        let output = sim(&["--seeds", "1..12", "--break", broken]);
        let text = text(&output);
        assert!(
            !output.status.success() && text.contains(how),
            "{broken}: {text}"
        );
        // And it can be seen again.
        let seed = summary(&output)["failed"][0].to_string();
        let again = sim(&["--seed", &seed, "--break", broken]);
        assert!(!again.status.success(), "{broken}, seed {seed}: {text}");
    }
}

#[test]
fn a_service_file_of_ones_own_survives_the_loss_of_a_node() {
    let place = tempfile::tempdir().expect("a place");
    let file = place.path().join("shop.toml");
    let service = "name = \"shop\"\n[sizes.tiny]\nvcpus = 1\nmemory = \"128MiB\"\n[[role]]\n\
                   name = \"web\"\nkind = \"web\"\nsize = \"tiny\"\ninstances = 6\nimage = \
                   \"guest-os\"\ncommand = [\"/bin/true\"]\n";
    fs::write(&file, service).expect("the file is written");
    let file = file.to_str().expect("a path");
    let lost = [
        "--service",
        file,
        "--nodes",
        "3",
        "--kill-node",
        "node-1@20s",
    ];
    let output = sim(&lost);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for line in [
        "node-1 is without power",
        "InstanceFailedOver",
        "has come right",
    ] {
        assert!(text.contains(line), "no {line:?}: {text}");
    }
    let wrong = sim(&["--service", file, "--kill-node", "node-9"]);
    let why = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        why.contains("is no node: there are node-0 to node-4"),
        "{why}"
    );
}
