//! Restarts of the controller: what `fabric-controller/examples/restart` measures, as a
//! table.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{CONTROLLER, measured};
use crate::{project::Project, table::table};

/// The measuring program, an example of the controller's.
const PROGRAM: &str = "restart";

/// How long it may take until all is listed, in milliseconds.
const TARGET: f64 = 2_000.0;

/// Measures.
pub fn run(project: &Project, nodes: u32, instances: u32) -> Result<()> {
    let controller = project.target.join("release").join(CONTROLLER);
    let arguments = [
        nodes.to_string().into(),
        instances.to_string().into(),
        controller.into(),
    ];
    let figures = measured(project, PROGRAM, &arguments)?;
    println!("\n{}", shown(&figures));
    let worst = figures["worst_ms"].as_f64().context("no worst_ms")?;
    let met = if worst <= TARGET { "met" } else { "missed" };
    println!("\nFrom exec, after a kill; medians, and the worst. The target, 2 s, is {met}.\n");
    println!("{figures}");
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
