//! `cargo xtask sim`: a whole cluster in one process, and everything that can go wrong.

#![forbid(unsafe_code)]

use std::{fs, path::PathBuf, process::ExitCode, str::FromStr, time::Duration};

use anyhow::Context as _;
use clap::{Parser, ValueEnum as _};
use fabric_controller::model::{blob::BlobKind, definition};
use fabric_sim::{
    Break,
    image::Shelf,
    plan::{Fault, FaultKind, Plan},
    seeds::{self, Report, Seeds, Summary, Terms},
    world::Outcome,
};

/// Lines that are shown of a failure, unless all are asked for.
const TAIL: usize = 60;

/// A whole cluster in one process: the real controller and the cores of real host agents on
/// simulated machines, network and time; faults from a seed, and what must always hold.
///
/// The last line of the output is JSON: seeds, failed, and faults and an operator's calls by
/// kind. A seed always does the same; one that fails says how to see it again.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
struct Cli {
    /// Run these seeds, the last one too
    #[arg(long, value_name = "FIRST..LAST", default_value = "1..500")]
    seeds: Seeds,
    /// Run this seed alone
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Take a seed that is not done after so long, by the clock on the wall, for failed
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration, conflicts_with = "seed")]
    seed_limit: Duration,
    /// Show everything that happened
    #[arg(long)]
    timeline: bool,
    /// Run this service file instead of what a seed draws
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    service: Option<PathBuf>,
    /// On so many nodes, node-0 and on, with 8 processors and 32 GiB each
    #[arg(long, requires = "service", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    nodes: u16,
    /// Take the power of a node, by default after 30 s and for good
    #[arg(long, requires = "service", value_name = "NODE[@FROM[..UNTIL]]")]
    kill_node: Vec<Moment>,
    /// Kill the host agent of a node
    #[arg(long, requires = "service", value_name = "NODE[@FROM[..UNTIL]]")]
    kill_agent: Vec<Moment>,
    /// Cut a node off from the controller
    #[arg(long, requires = "service", value_name = "NODE[@FROM[..UNTIL]]")]
    cut_node: Vec<Moment>,
    /// Kill the controller
    #[arg(long, requires = "service", value_name = "FROM..UNTIL")]
    kill_controller: Vec<Span>,
    /// Break something on purpose, to see that it is found
    #[arg(long, value_enum, hide = true)]
    r#break: Option<Break>,
    /// Say what has become of it in one line of JSON
    #[arg(long, hide = true, requires = "seed")]
    report: bool,
}

/// From when to when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: Duration,
    until: Duration,
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = |text: &str| {
            humantime::parse_duration(text).map_err(|error| format!("{text:?}: {error}"))
        };
        let (from, until) = match text.split_once("..") {
            Some((from, until)) => (time(from)?, time(until)?),
            None => (time(text)?, Duration::MAX),
        };
        if from >= until {
            return Err(format!("{text:?}: it must begin before it ends"));
        }
        Ok(Self { from, until })
    }
}

/// A node, and from when to when.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Moment {
    node: String,
    span: Span,
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (node, span) = text.split_once('@').unwrap_or((text, "30s"));
        Ok(Self {
            node: node.to_owned(),
            span: span.parse()?,
        })
    }
}

fn main() -> ExitCode {
    // What the programs log is told by the timeline better, unless somebody asks for it.
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    }
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything holds.
fn run(cli: &Cli) -> anyhow::Result<bool> {
    if let Some(file) = &cli.service {
        let (plan, shelf) = from_file(cli, file)?;
        let outcome = seeds::run_here(plan, cli.r#break, || Ok(shelf))?;
        print!("{}", outcome.timeline);
        return finish(&summary(cli.seed.unwrap_or(1), &outcome));
    }
    if let Some(seed) = cli.seed {
        let outcome = seeds::run_here(Plan::of_seed(seed), cli.r#break, seeds::shelf)?;
        if cli.report {
            let report = Report::of(seed, &outcome);
            println!("{}", serde_json::to_string(&report)?);
            return Ok(true);
        }
        match (cli.timeline, &outcome.failure) {
            (true, _) => print!("{}", outcome.timeline),
            (false, Some(_)) => print!("{}", outcome.timeline.tail(TAIL)),
            (false, None) => println!("seed {seed}: {} s, well", outcome.ended.as_secs()),
        }
        return finish(&summary(seed, &outcome));
    }
    let broken = cli.r#break.and_then(|one| one.to_possible_value());
    let broken = broken.as_ref().map(clap::builder::PossibleValue::get_name);
    let also = broken.map_or_else(String::new, |name| format!(" --break {name}"));
    let told = |report: &Report| {
        if let Some((at, what)) = &report.failure {
            let seed = report.seed;
            println!("seed {seed} FAILED after {at:.3} s: {what}");
            println!("  see it again: cargo xtask sim --seed {seed} --timeline{also}");
        }
    };
    let terms = Terms {
        broken,
        longest: cli.seed_limit,
    };
    finish(&seeds::run_all(cli.seeds, terms, told)?)
}

fn summary(seed: u64, outcome: &Outcome) -> Summary {
    let mut summary = Summary::default();
    summary.add(&Report::of(seed, outcome));
    summary
}

fn finish(summary: &Summary) -> anyhow::Result<bool> {
    println!("{}", serde_json::to_string(summary)?);
    Ok(summary.failed.is_empty())
}

/// What an operator's file and wishes stand for.
fn from_file(cli: &Cli, file: &PathBuf) -> anyhow::Result<(Plan, Shelf)> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let service = definition::parse(&text, &name)?;
    let mut shelf = Shelf::default();
    for role in &service.roles {
        shelf.add(BlobKind::Image, &role.image)?;
        if let Some(package) = &role.package {
            shelf.add(BlobKind::Package, package)?;
        }
    }
    let nodes = usize::from(cli.nodes);
    let mut faults = Vec::new();
    let mut add = |moments: &[Moment], kind: &dyn Fn(usize) -> FaultKind| {
        for moment in moments {
            let number = moment.node.strip_prefix("node-").unwrap_or(&moment.node);
            let number = number.parse().ok().filter(|number| *number < nodes);
            let number = number.with_context(|| {
                format!(
                    "{:?} is no node: there are node-0 to node-{}",
                    moment.node,
                    nodes - 1
                )
            })?;
            faults.push(Fault {
                from: moment.span.from,
                until: moment.span.until,
                kind: kind(number),
            });
        }
        anyhow::Ok(())
    };
    add(&cli.kill_node, &FaultKind::NodeKilled)?;
    add(&cli.kill_agent, &FaultKind::AgentKilled)?;
    add(&cli.cut_node, &|node| FaultKind::Cut {
        nodes: vec![node],
        from_nodes: true,
        to_nodes: true,
    })?;
    faults.extend(cli.kill_controller.iter().map(|span| Fault {
        from: span.from,
        until: span.until,
        kind: FaultKind::ControllerKilled,
    }));
    let plan = Plan::of_file(cli.seed.unwrap_or(1), nodes, text, faults);
    Ok((plan, shelf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_they_are_written() {
        let seconds = Duration::from_secs;
        let moment = |text: &str| text.parse::<Moment>().map(|one| (one.node, one.span));
        let span = |from, until| Span { from, until };
        let node = "node-2".to_owned();
        assert_eq!(
            moment("node-2"),
            Ok((node.clone(), span(seconds(30), Duration::MAX)))
        );
        assert_eq!(
            moment("node-2@1m..90s"),
            Ok((node, span(seconds(60), seconds(90))))
        );
        assert!(moment("node-2@9s..3s").is_err() && moment("node-2@soon").is_err());
    }
}
