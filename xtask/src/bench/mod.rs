//! `cargo xtask bench`: figures, as a table and as JSON.

mod boot;
mod bus;
mod first_line;
mod neighbours;
mod peer;
mod placement;
mod restart;
mod telling;
mod vmm;

use std::{
    ffi::OsString,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::Value;

use crate::{
    build::{self, Prepare},
    demo::service::{INSTANCE, Size},
    fabric::{Fabric, Instance, Seen},
    process,
    project::Project,
};

/// How long a guest may take until its role is Ready.
const PATIENCE: Duration = Duration::from_secs(180);

/// Measure the system: `bench boot` times the way of a guest from start to Ready.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time the way of a guest from the start of its VMM to a role that is Ready
    ///
    /// Through the whole system: controller, host agent, VMM, guest agent; booted
    /// cold, without a template. Prints medians as a table, and as JSON in the
    /// last line.
    Boot {
        /// Boots to measure
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        #[command(flatten)]
        size: Size,
        #[command(flatten)]
        prepare: Prepare,
    },
    /// Measure what a guest notices of a neighbour at full tilt on disk, vsock or console
    ///
    /// Its latency at the 99th percentile, alone and beside each, with the ratio, as a
    /// table, and as JSON in the last line.
    Neighbours {
        #[command(flatten)]
        size: Size,
        #[command(flatten)]
        prepare: Prepare,
    },
    /// Measure the VMM: cold and from templates, many clones at once, pauses,
    /// snapshots, idling, the VMBus
    ///
    /// Through the whole system, so that what is measured is what users have.
    /// Prints medians as a table, and as JSON in the last line.
    Vmm {
        /// Starts to measure, of each kind
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// Instances to create at once
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
        clones: u32,
        #[command(flatten)]
        size: Size,
        #[command(flatten)]
        prepare: Prepare,
    },
    /// Measure placement: decisions a second, their times, how full a cluster becomes
    ///
    /// The engine alone, on one core, at 1,000, 5,000 and 10,000 nodes with ten
    /// instances each, beside a plain best-fit. Prints a table, and JSON in the last
    /// line.
    Placement {
        /// Which load; the same number gives the same
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Measure how soon a controller that was killed has all nodes and instances again
    ///
    /// From exec until it has answered with all of them; nodes and their guests are
    /// played, the controller and its store are real. Prints a table, and JSON in the
    /// last line.
    Restart {
        /// Nodes that have registered
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        nodes: u32,
        /// Instances that they have
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
        instances: u32,
    },
}

/// The controller: its package and its program.
const CONTROLLER: &str = "fabric-controller";

/// What a measuring program says, an example of the controller's.
fn measured(project: &Project, program: &str, arguments: &[OsString]) -> Result<Value> {
    let build = ["build", "--release", "--package", CONTROLLER];
    let mut command = build::cargo(project, &build);
    command.args(["--bin", CONTROLLER, "--example", program]);
    process::run(&mut command).context("building the measuring program")?;
    let program = project.target.join("release/examples").join(program);
    let mut command = process::command(program, arguments);
    let output = process::output(command.stderr(Stdio::inherit()))?;
    let line = output.trim();
    serde_json::from_str(line).with_context(|| format!("it has answered {line:?}"))
}

/// Runs the task.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    match &options.what {
        What::Boot {
            runs,
            size,
            prepare,
        } => boot::run(project, *runs, size, prepare),
        What::Vmm {
            runs,
            clones,
            size,
            prepare,
        } => vmm::run(project, *runs, *clones, size, prepare),
        What::Neighbours { size, prepare } => neighbours::run(project, size, prepare),
        What::Placement { seed } => placement::run(project, *seed),
        What::Restart { nodes, instances } => restart::run(project, *nodes, *instances),
    }
}

/// Waits until the only instance's role is Ready; looks at everything on the way.
fn until_ready(fabric: &mut Fabric, mut look: impl FnMut(&Seen)) -> Result<Instance> {
    fabric.wait("the role to be Ready", PATIENCE, |seen| {
        look(seen);
        match seen {
            Seen::Instance(now) if now.instance_id == INSTANCE && now.is_ready() => {
                Some(Instance::clone(now))
            }
            _ => None,
        }
    })
}

/// Time since then in milliseconds, to a tenth.
fn millis(begun: Instant) -> f64 {
    (begun.elapsed().as_secs_f64() * 10_000.0).round() / 10.0
}

/// The median of one figure of all samples.
fn median_of<T>(samples: &[T], figure: fn(&T) -> f64) -> f64 {
    median(samples.iter().map(figure).collect())
}

/// The middle one; of an even number, the mean of the two in the middle. Rounded to
/// a tenth.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let value = match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    };
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}
