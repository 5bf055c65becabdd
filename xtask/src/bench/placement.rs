//! Placement: what `fabric-controller/examples/placement` measures, as a table.

use anyhow::Result;
use serde_json::Value;

use super::measured;
use crate::{project::Project, table::table};

/// The measuring program, an example of the controller's.
const PROGRAM: &str = "placement";

/// Measures.
pub fn run(project: &Project, seed: u64) -> Result<()> {
    let figures = measured(
        project,
        PROGRAM,
        &["--seed".into(), seed.to_string().into()],
    )?;
    println!("\n{}", shown(&figures));
    println!("\nOne core, seed {seed}. Packing is what was promised of all cores when the first");
    println!("instance was refused; best-fit knows no fault domain.\n");
    println!("{figures}");
    Ok(())
}

/// A column for each figure, a row for each run.
fn shown(figures: &Value) -> impl std::fmt::Display {
    let figure = |run: &Value, name: &str| match &run[name] {
        Value::Null => "-".to_owned(),
        value => value.to_string(),
    };
    let runs = figures["runs"].as_array().map(Vec::as_slice);
    let rows = runs.unwrap_or_default().iter().map(|run| {
        [
            "nodes",
            "instances",
            "placements_per_s",
            "p50_us",
            "p99_us",
            "packing_percent",
            "best_fit_packing_percent",
        ]
        .map(|name| figure(run, name))
    });
    let header = [
        "nodes",
        "instances",
        "placements/s",
        "p50 µs",
        "p99 µs",
        "packing %",
        "best-fit %",
    ];
    table(header, rows.collect(), true)
}
