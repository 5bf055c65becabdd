//! Restarts of the controller: what `fabric-controller/examples/restart` measures, as a
//! table.

use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{build, process, project::Project, table::table};

/// The measuring program, an example of the controller's.
const PROGRAM: &str = "restart";

/// The program that is measured.
const CONTROLLER: &str = "fabric-controller";

/// How long it may take until all is listed, in milliseconds.
const TARGET: f64 = 2_000.0;

/// Measures.
pub fn run(project: &Project, nodes: u32, instances: u32) -> Result<()> {
    let build = ["build", "--release", "--package", CONTROLLER];
    let mut command = build::cargo(project, &build);
    command.args(["--bin", CONTROLLER, "--example", PROGRAM]);
    process::run(&mut command).context("building the programs")?;
    let built = project.target.join("release");
    let mut command = process::command(
        built.join("examples").join(PROGRAM),
        [nodes.to_string(), instances.to_string()],
    );
    command.arg(built.join(CONTROLLER)).stderr(Stdio::inherit());
    let output = process::output(&mut command)?;
    let line = output.trim();
    let figures: Value =
        serde_json::from_str(line).with_context(|| format!("it has answered {line:?}"))?;
    println!("\n{}", shown(&figures));
    let worst = figures["worst_ms"].as_f64().context("no worst_ms")?;
    let met = if worst <= TARGET { "met" } else { "missed" };
    println!("\nFrom exec, after a kill; medians, and the worst. The target, 2 s, is {met}.\n");
    println!("{line}");
    Ok(())
}

fn shown(figures: &Value) -> impl std::fmt::Display {
    let row = [
        "nodes",
        "instances",
        "store_mib",
        "instances_ms",
        "nodes_ms",
        "worst_ms",
    ]
    .map(|name| figures[name].to_string());
    let header = [
        "nodes",
        "instances",
        "store MiB",
        "all instances ms",
        "and all nodes ms",
        "worst ms",
    ];
    table(header, vec![row], true)
}
