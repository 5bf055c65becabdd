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
    println!("instance was refused; best-fit knows no fault domain.");
    for line in judged(&figures) {
        println!("{line}");
    }
    println!();
    println!("{figures}");
    Ok(())
}

/// What is asked of it at 5,000 nodes, placements a second at the least.
const AT_LEAST_PER_S: f64 = 20_000.0;
/// And microseconds of the slowest but one in a hundred, at the most.
const AT_MOST_P99_US: f64 = 2_000.0;

/// The figures beside what is asked of them.
fn judged(figures: &Value) -> Vec<String> {
    let runs = figures["runs"].as_array().map_or(&[][..], Vec::as_slice);
    let figure = |run: &Value, name: &str| run[name].as_f64().unwrap_or(f64::NAN);
    let mut lines = Vec::new();
    if let Some(run) = runs.iter().find(|run| run["nodes"] == 5000) {
        let (per_s, p99) = (figure(run, "placements_per_s"), figure(run, "p99_us"));
        let is_met = per_s >= AT_LEAST_PER_S && p99 <= AT_MOST_P99_US;
        lines.push(format!(
            "Target at 5,000 nodes: {AT_LEAST_PER_S} a second, p99 {AT_MOST_P99_US} µs: {}.",
            if is_met { "met" } else { "missed" }
        ));
    }
    if let (Some(least), Some(most)) = (runs.first(), runs.last()) {
        let n_log_n = |run| figure(run, "nodes") * figure(run, "nodes").log2();
        let took = |run| figure(run, "placements") / figure(run, "placements_per_s");
        lines.push(format!(
            "From {} to {} nodes, all placements together take {:.1} times as long; n log n would \
             be {:.1} times.",
            least["nodes"],
            most["nodes"],
            took(most) / took(least),
            n_log_n(most) / n_log_n(least),
        ));
    }
    lines
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_judged_by_what_is_asked_of_them() {
        let run = |nodes: u64, per_s: u64| {
            json!({ "nodes": nodes, "placements": nodes * 10,
            "placements_per_s": per_s, "p99_us": 12.5 })
        };
        let judged = |at_5000| {
            judged(
                &json!({ "runs": [run(1000, 100_000), run(5000, at_5000), run(10_000, 50_000)] }),
            )
        };
        assert!(judged(20_000)[0].ends_with(": met."));
        assert!(judged(19_999)[0].ends_with(": missed."));
        assert!(judged(1)[1].contains("take 20.0 times as long; n log n would be 13.3 times"));
    }
}
