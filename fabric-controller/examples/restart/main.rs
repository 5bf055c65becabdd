//! Measures a restart: how long the real controller takes, from its exec, until it has
//! answered with all instances, and with all nodes. `cargo xtask bench restart` runs it; its
//! only line of standard output is JSON.
//!
//! What is in the store got there as it always does: nodes have registered, services were
//! applied, instances placed and reported. Then the controller is killed and started again,
//! so many times; nobody has ended it well, so that the store's log is read, too.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, reason = "a measuring program")]

mod fabric;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::json;

use self::fabric::Fabric;

/// Restarts that are measured.
const RUNS: usize = 7;

/// One restart.
struct Run {
    /// Until all instances were listed.
    instances: Duration,
    /// Until all nodes were listed after them.
    nodes: Duration,
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |what: &str| {
        let given = arguments.next().and_then(|text| text.parse().ok());
        given.unwrap_or_else(|| panic!("give the number of {what}, and the program at the end"))
    };
    let (nodes, instances) = (number("nodes"), number("instances"));
    let program: PathBuf = arguments.next().expect("the program").into();
    let mut fabric = Fabric::build(program, nodes, instances).await;
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        fabric.kill();
        let begun = Instant::now();
        let client = fabric.start().await;
        assert_eq!(client.instances().await, instances, "not all instances");
        let listed = begun.elapsed();
        assert_eq!(client.nodes().await, nodes, "not all nodes");
        runs.push(Run {
            instances: listed,
            nodes: begun.elapsed(),
        });
    }
    runs.sort_by_key(|run| run.nodes);
    let (median, worst) = (&runs[RUNS / 2], &runs[RUNS - 1]);
    let figures = json!({
        "nodes": nodes,
        "instances": instances,
        "store_mib": fabric.store_bytes() >> 20,
        "runs": RUNS,
        "instances_ms": millis(median.instances),
        "nodes_ms": millis(median.nodes),
        "worst_ms": millis(worst.nodes),
    });
    println!("{figures}");
}

/// In milliseconds, to a tenth.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
