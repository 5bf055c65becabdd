//! The simulation itself: it does the same every time, finds what is broken, and holds
//! what the fabric is held to.

#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
};

use serde_json::Value;

/// A service of six.
const SHOP: &str = "name = \"shop\"\n[sizes.tiny]\nvcpus = 1\nmemory = \"128MiB\"\n[[role]]\nname \
                    = \"web\"\nkind = \"web\"\nsize = \"tiny\"\ninstances = 6\nimage = \
                    \"guest-os\"\ncommand = [\"/bin/true\"]\n";

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
    let calls = [
        "apply",
        "stage",
        "swap",
        "pause_update",
        "resume_update",
        "abort_update",
        "advance_update",
        "unstage",
        "delete",
        "stop",
        "start",
        "drain",
        "uncordon",
        "remove_node",
    ];
    for call in calls {
        assert!(summary["calls"][call].as_u64() > Some(0), "no {call}");
    }
}

#[test]
fn a_seed_that_does_not_end_in_time_has_failed() {
    let output = sim(&["--seeds", "1..2", "--seed-limit", "1ms"]);
    let text = text(&output);
    assert!(!output.status.success(), "{text}");
    assert_eq!(summary(&output)["failed"], serde_json::json!([1, 2]));
    for line in [
        "seed 2 FAILED",
        "it was not done after 1ms",
        "cargo xtask sim --seed 2",
    ] {
        assert!(text.contains(line), "no {line:?}: {text}");
    }
}

#[test]
fn what_is_broken_on_purpose_is_found() {
    let found = [
        ("skip-margins", "1..12", "runs twice"),
        // A node's clock and its work must both be as slow as they may be: one seed in thirty.
        ("skip-slack", "40..80", "runs twice"),
        ("no-keeper", "1..12", "runs twice"),
        ("drop-epoch", "1..12", "is started under epoch"),
        ("lower-epoch", "1..12", "it has not come right"),
        ("no-epoch-check", "1..12", "is started under epoch"),
        (
            "forget-write",
            "1..12",
            "was acknowledged and is not in the store",
        ),
    ];
    for (broken, seeds, how) in found {
        let output = sim(&["--seeds", seeds, "--break", broken]);
        let text = text(&output);
        assert!(
            !output.status.success() && text.contains(how),
            "{broken}: {text}"
        );
        if broken == "lower-epoch" {
            let started = "is started under epoch";
            assert!(!text.contains(started), "nodes do not refuse it: {text}");
        }
        // And it can be seen again.
        let seed = summary(&output)["failed"][0].to_string();
        let again = sim(&["--seed", &seed, "--break", broken]);
        assert!(!again.status.success(), "{broken}, seed {seed}: {text}");
    }
}

/// Instances with the times, in seconds, at which that is told of each first, from then on.
fn told(text: &str, reason: &str, from: f64) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let at = words.next().and_then(|word| word.parse::<f64>().ok());
        let (Some(at), Some("s"), Some(who)) = (at, words.next(), words.next()) else {
            continue;
        };
        if at >= from
            && words
                .next()
                .is_some_and(|word| word.strip_suffix(':') == Some(reason))
        {
            all.entry(who.to_owned()).or_insert(at);
        }
    }
    all
}

#[test]
fn by_default_what_a_dead_node_ran_is_started_elsewhere_within_twenty_seconds() {
    let place = tempfile::tempdir().expect("a place");
    let file = place.path().join("shop.toml");
    fs::write(&file, SHOP).expect("the file is written");
    let file = file.to_str().expect("a path");
    // At any moment between two of its reports.
    for (seed, at) in [20_000_u32, 20_700, 21_400, 22_900].into_iter().enumerate() {
        let (seed, kill) = (seed.to_string(), format!("node-1@{at}ms"));
        let after = f64::from(at) / 1000.0;
        let nodes = ["--service", file, "--nodes", "5", "--seed", &seed];
        let output = sim(&[&nodes[..], &["--kill-node", &kill]].concat());
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        let lost = told(&text, "InstanceFailedOver", after);
        assert!(!lost.is_empty(), "nothing ran on it: {text}");
        for reason in ["InstancePlaced", "VmmStarted"] {
            let again = told(&text, reason, after);
            for id in lost.keys() {
                let at = again.get(id).copied().unwrap_or(f64::INFINITY);
                assert!(at <= after + 20.0, "{id}: {reason} at {at}: {text}");
            }
        }
    }
}

#[test]
fn a_service_file_of_ones_own_survives_the_loss_of_a_node() {
    let place = tempfile::tempdir().expect("a place");
    let file = place.path().join("shop.toml");
    fs::write(&file, SHOP).expect("the file is written");
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
