//! Measures placement: decisions a second, their times, and how full a cluster becomes,
//! beside a plain best-fit. `cargo xtask bench placement` runs it; its only line of
//! standard output is JSON.
//!
//! On one core, for clusters of three sizes: deployments come until there
//! are ten instances for each node, then as many go and come again as the cluster has
//! nodes, and at the end they only come until one is refused. What was promised of all
//! cores then is the packing. Every call of `place` of the first two parts is timed;
//! indexes are brought up to date within it, so nothing is left out.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a measuring program")]

mod best_fit;
mod workload;

use std::time::{Duration, Instant};

use fabric_controller::placement::{Cluster, Fill, Instance, Node, Policy, Resources};
use serde_json::{Value, json};

use self::{
    best_fit::BestFit,
    workload::{Stream, Workload},
};

/// Instances for each node before some go.
const PER_NODE: usize = 10;

/// What places instances.
trait Placer {
    /// True if it was placed.
    fn place(&mut self, instance: &mut Instance) -> bool;
    fn release(&mut self, instance: &Instance);
}

impl Placer for Cluster {
    fn place(&mut self, instance: &mut Instance) -> bool {
        instance.node = Cluster::place(self, instance)
            .ok()
            .map(|placed| placed.node);
        instance.node.is_some()
    }

    fn release(&mut self, instance: &Instance) {
        if let Some(node) = &instance.node {
            Cluster::release(self, instance, node);
        }
    }
}

/// What became of a stream of deployments.
struct Run {
    times: Vec<Duration>,
    instances: usize,
    packing_percent: f64,
}

/// Deployments come and go until one is refused.
fn run(placer: &mut impl Placer, nodes: &[Node], mut stream: Stream) -> Run {
    let policy = policy(Fill::Pack);
    let cores: u64 = nodes
        .iter()
        .map(|node| node.capacity(policy).millicores)
        .sum();
    let target = nodes.len() * PER_NODE;
    let mut there: Vec<Vec<Instance>> = Vec::new();
    let (mut count, mut promised) = (0, Resources::default());
    let mut times = Vec::new();
    let mut churn = nodes.len();
    let mut instances = 0;
    let mut full = false;
    while !full {
        let growing = churn == 0;
        if count >= target && !growing {
            instances = count;
            let gone = there.swap_remove(stream.going(there.len()));
            for one in &gone {
                placer.release(one);
                promised = promised.minus(&one.needs.resources);
            }
            count -= gone.len();
            churn = churn.saturating_sub(gone.len());
        } else {
            let mut deployment = stream.deployment();
            for one in &mut deployment {
                let begun = Instant::now();
                let placed = placer.place(one);
                if !growing {
                    times.push(begun.elapsed());
                }
                if !placed {
                    full = true;
                    break;
                }
                count += 1;
                promised = promised.plus(&one.needs.resources);
            }
            there.push(deployment);
        }
    }
    Run {
        times,
        instances: instances.max(count.min(target)),
        packing_percent: tenths(100.0 * promised.millicores as f64 / cores as f64),
    }
}

fn policy(fill: Fill) -> Policy {
    Policy {
        vcpus_per_cpu: 1,
        fill,
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The time that so many of a thousand do not exceed, in microseconds.
fn percentile(sorted: &[Duration], per_mille: usize) -> f64 {
    let at = (sorted.len() * per_mille / 1000).min(sorted.len().saturating_sub(1));
    let time = sorted.get(at).copied().unwrap_or_default();
    tenths(time.as_secs_f64() * 1e6)
}

fn measure(count: usize, rack: usize, seed: u64, fill: Fill) -> Value {
    let workload = Workload { seed, rack };
    let nodes = workload.nodes(count);
    let mut cluster = Cluster::new(policy(fill), &nodes);
    cluster.keep_room_for(workload::largest());
    let mut ours = run(&mut cluster, &nodes, workload.stream());
    let plain = run(
        &mut BestFit::new(policy(fill), &nodes),
        &nodes,
        workload.stream(),
    );
    ours.times.sort();
    let all: Duration = ours.times.iter().sum();
    json!({
        "nodes": count,
        "instances": ours.instances,
        "placements": ours.times.len(),
        "placements_per_s": (ours.times.len() as f64 / all.as_secs_f64()).round(),
        "p50_us": percentile(&ours.times, 500),
        "p99_us": percentile(&ours.times, 990),
        "max_us": percentile(&ours.times, 1000),
        "packing_percent": ours.packing_percent,
        "best_fit_packing_percent": plain.packing_percent,
    })
}

/// A number after a flag, or what is taken without.
fn option(flag: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != flag);
    let given = arguments.nth(1);
    given.map_or(default, |given| given.parse().expect("a number"))
}

fn main() {
    let seed = option("--seed", 1);
    let rack = usize::try_from(option("--rack", 40)).expect("a small number");
    let fill = match option("--spread", 0) {
        0 => Fill::Pack,
        _ => Fill::Spread,
    };
    let runs: Vec<_> = [1000, 5000, 10_000]
        .into_iter()
        .map(|nodes| {
            eprintln!("{nodes} nodes");
            measure(nodes, rack, seed, fill)
        })
        .collect();
    println!(
        "{}",
        json!({ "seed": seed, "nodes_per_rack": rack, "runs": runs })
    );
}
