//! `cargo xtask demo --nodes N`: a cluster at work. Each node has a network of its own;
//! in the middle of everything that happens the controller is killed and started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{
    millis,
    service::{INSTANCE, SERVICE, Size, apply_file, upload, upload_package},
};
use crate::{
    build::Images,
    fabric::{Event, Fabric, Instance, Seen},
    machine::Machine,
    preflight::Kvm,
    progress::{Work, seconds},
    project::Project,
    table::table,
};

/// How long anything may take until all is well again.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the instances are listed meanwhile.
const LOOK: Duration = Duration::from_millis(500);
/// Instances of the service.
const INSTANCES: usize = 3;

const FILE: &str = include_str!("cluster.toml");
/// Another version: the same program, and a byte more, which it does not notice.
const SECOND: &str = "hello-web-2";
/// A version that does not work.
const BROKEN: &str = "hello-web-broken";

/// The last line on standard output.
#[derive(Debug, Serialize)]
pub struct Figures {
    demo: &'static str,
    nodes: u8,
    /// Milliseconds until all was well again.
    steps: BTreeMap<String, u64>,
    /// Most instances that were known not to be Ready at a time while one version took the place of
    /// another.
    most_down_in_update: usize,
    /// Milliseconds between the last that an instance said on a node that was cut off,
    /// and the first that it said elsewhere.
    never_both_gap_ms: u64,
    machine: Machine,
}

/// Runs the demo.
pub fn run(
    project: &Project,
    images: &Images,
    size: &Size,
    nodes: u8,
    kvm: Kvm,
) -> Result<Figures> {
    let work = Work::begin(format!(
        "Starting a controller and {nodes} nodes, each with a network of its own"
    ));
    let templates = project.cache_dir("templates")?;
    let fabric = Fabric::start_apart(project, "demo", &images.kernel, &templates, nodes)?;
    work.done(&fabric.dir().display().to_string());
    let work = Work::begin("Uploading guest OS image and packages");
    upload(project, &fabric, &images.guest_os)?;
    let mut program = fs::read(project.guest_program("hello-web")).context("reading hello-web")?;
    program.push(0);
    upload_package(&fabric, SECOND, &program)?;
    upload_package(&fabric, BROKEN, b"#!/bin/busybox false\n")?;
    work.done("done");

    let file = size.set_in(FILE)?;
    let mut story = Story {
        fabric,
        file,
        instances: BTreeMap::new(),
        events: Vec::new(),
        most_down: 0,
        steps: Vec::new(),
    };
    story.scale()?;
    let most_down_in_update = story.update()?;
    story.swap()?;
    story.drain()?;
    let never_both_gap_ms = story.cut_off()?;
    story.kill()?;

    let Story { fabric, steps, .. } = story;
    let work = Work::begin("Removing the service and ending everything");
    fabric.fabctl(&["service", "delete", SERVICE, "--wait"])?;
    fabric.end()?;
    work.done("nothing is left behind");
    let rows = steps
        .iter()
        .map(|(what, ms)| [(*what).to_owned(), seconds(Duration::from_millis(*ms))]);
    println!(
        "\n{}",
        table(["what", "until all is well"], rows.collect(), true)
    );
    Ok(Figures {
        demo: "ok",
        nodes,
        steps: steps
            .into_iter()
            .map(|(what, ms)| (what.to_owned(), ms))
            .collect(),
        most_down_in_update,
        never_both_gap_ms,
        machine: Machine::look(kvm),
    })
}

/// The cluster, and what has been seen of it.
struct Story {
    fabric: Fabric,
    /// The service as it was applied last.
    file: String,
    /// The instances, as they were listed last.
    instances: BTreeMap<String, Instance>,
    /// What has happened in this step.
    events: Vec<Event>,
    /// Most instances that were known not to be Ready at a time in this step.
    most_down: usize,
    steps: Vec<(&'static str, u64)>,
}

impl Story {
    fn scale(&mut self) -> Result<()> {
        self.step(
            "A service with three instances is applied",
            |story| story.apply("instances = 3", "instances = 3", &[]),
            |story| story.all_ready(INSTANCES),
        )?;
        let racks: BTreeSet<&String> = self.instances.values().map(|one| &one.node_id).collect();
        ensure!(racks.len() == INSTANCES, "not spread: all on {racks:?}");
        self.step(
            "It is scaled out to four",
            |story| story.apply("instances = 3", "instances = 4", &[]),
            |story| story.all_ready(4),
        )?;
        self.step(
            "It is scaled in to three",
            |story| story.apply("instances = 4", "instances = 3", &[]),
            |story| story.all_ready(INSTANCES),
        )
    }

    fn update(&mut self) -> Result<usize> {
        self.step(
            "It is updated to another version, one upgrade domain after another",
            |story| story.apply("\"hello-web\"", &format!("{SECOND:?}"), &[]),
            |story| story.has("UpdateFinished") && story.all_ready(INSTANCES),
        )?;
        let most_down = self.most_down;
        ensure!(most_down <= 1, "{most_down} instances were down at a time");
        self.step(
            "A version that does not work is applied, and rolls back by itself",
            |story| story.apply(&format!("{SECOND:?}"), &format!("{BROKEN:?}"), &[]),
            |story| story.has("UpdateRolledBack") && story.all_ready(INSTANCES),
        )?;
        self.file = self.file.replace(BROKEN, SECOND);
        let most_down = most_down.max(self.most_down);
        ensure!(most_down <= 1, "{most_down} instances were down at a time");
        Ok(most_down)
    }

    fn swap(&mut self) -> Result<()> {
        let production = self.file.clone();
        self.step(
            "The next version is tried in staging",
            |story| {
                let staging = ["--slot", "staging"];
                story.apply("instances = 3", "instances = 1", &staging)
            },
            |story| story.all_ready(INSTANCES + 1),
        )?;
        self.file = production;
        let before = self.starts();
        for step in ["The slots are swapped", "And swapped back"] {
            self.step(
                step,
                |story| story.fabctl(&["service", "swap", SERVICE]),
                |story| story.has("SlotsSwapped") && story.all_ready(INSTANCES + 1),
            )?;
        }
        let after = self.starts();
        ensure!(after == before, "{before:?} have become {after:?}");
        self.step(
            "What is in staging is removed",
            |story| story.fabctl(&["service", "delete", SERVICE, "--slot", "staging"]),
            |story| story.all_ready(INSTANCES),
        )
    }

    fn drain(&mut self) -> Result<()> {
        let node = self.node_of(INSTANCE)?;
        self.step(
            "A node is drained",
            |story| story.fabctl(&["node", "drain", &node]),
            |story| story.all_ready(INSTANCES) && story.none_on(&node),
        )?;
        self.fabctl(&["node", "uncordon", &node])
    }

    /// Returns how long an instance said nothing at least while it changed nodes.
    fn cut_off(&mut self) -> Result<u64> {
        let from = self.node_of(INSTANCE)?;
        let (number, there) = (number_of(&from)?, self.on(&from));
        self.step(
            "A node is cut off from the network",
            |story| story.fabric.cut_off(number, true),
            |story| story.all_ready(INSTANCES) && story.none_on(&from),
        )?;
        let gap = self.never_twice(&from, &there)?;
        self.fabric.cut_off(number, false)?;
        self.see("the node to be back", |story| story.has("NodeConnected"))?;
        Ok(gap)
    }

    /// Reads the diaries that instances kept on the node that they had, and on the one that
    /// they have: the last word there comes before the first one here. Returns the shortest
    /// time between these.
    fn never_twice(&mut self, from: &str, instances: &[String]) -> Result<u64> {
        let mut shortest = u64::MAX;
        for instance in instances {
            let to = self.node_of(instance)?;
            let old = self.fabric.instance_dir_on(from, instance);
            let new = self.fabric.instance_dir_on(&to, instance);
            let has_begun = |_: &Self| diary(&new).is_ok_and(|entries| !entries.is_empty());
            self.see("its first words there", has_begun)?;
            let (there, here) = (diary(&old)?, diary(&new)?);
            let (last, first) = (there.last(), here.first());
            let (last, first) = last.zip(first).context("it kept no diary")?;
            let gap = first.checked_sub(*last).with_context(|| {
                format!("{instance} ran twice: until {last} on {from}, from {first} on {to}")
            })?;
            println!("  {instance} said its last on {from} {gap} ms before its first on {to}");
            shortest = shortest.min(gap);
        }
        Ok(shortest)
    }

    fn kill(&mut self) -> Result<()> {
        let node = self.node_of(INSTANCE)?;
        let (number, there) = (number_of(&node)?, self.on(&node));
        self.step(
            "A node is killed, with all that it runs",
            |story| story.fabric.kill_node(number),
            |story| story.all_ready(INSTANCES) && story.none_on(&node),
        )?;
        self.never_twice(&node, &there)?;
        self.fabric.serve_node(number)
    }

    /// Does something, kills the controller in the middle of what follows, and waits
    /// until it is over.
    fn step(
        &mut self,
        what: &'static str,
        act: impl FnOnce(&mut Self) -> Result<()>,
        over: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        // What is of the step before comes first.
        while self.fabric.next(Instant::now())?.is_some() {}
        println!("\n{what}:");
        let begun = Instant::now();
        self.events.clear();
        self.most_down = 0;
        let done = act(self)
            .and_then(|()| self.see("something to happen", |story| !story.events.is_empty()))
            .and_then(|()| {
                println!("  {:>10}  the controller is killed, and started again", "");
                self.fabric.restart_controller()
            })
            .and_then(|()| self.see("all to be well", over));
        done.with_context(|| format!("after: {what}"))?;
        println!("  {:>10}  all is well", seconds(begun.elapsed()));
        self.steps.push((what, millis(begun)));
        Ok(())
    }

    /// Prints what happens until something is so.
    fn see(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> Result<()> {
        let begun = Instant::now();
        let mut looked: Option<Instant> = None;
        loop {
            if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
                self.list()?;
                looked = Some(Instant::now());
            }
            if so(self) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "waited {} s for {what}: {:#?}\n{}",
                PATIENCE.as_secs(),
                self.instances,
                self.fabric.logs()
            );
            if let Some(Seen::Event(event)) = self.fabric.next(begun + PATIENCE)? {
                let Event {
                    reason,
                    subject,
                    message,
                } = &event;
                println!("  {subject:>10}  {reason:<18} {message}");
                self.events.push(event);
            }
        }
    }

    fn list(&mut self) -> Result<()> {
        let list = self.fabric.fabctl(&["instance", "list"])?;
        let list: Vec<Instance> = serde_json::from_value(list).context("the list of instances")?;
        // A controller that was just started has not heard of all yet.
        let down = |one: &&Instance| !one.is_ready() && !one.is_unknown();
        let down = list.iter().filter(down).count();
        self.most_down = self.most_down.max(down);
        let named = |one: Instance| (one.instance_id.clone(), one);
        self.instances = list.into_iter().map(named).collect();
        Ok(())
    }

    fn apply(&mut self, from: &str, to: &str, more: &[&str]) -> Result<()> {
        self.file = self.file.replace(from, to);
        apply_file(&self.fabric, &self.file, more)
    }

    fn fabctl(&self, args: &[&str]) -> Result<()> {
        self.fabric.fabctl(args).map(drop)
    }

    fn has(&self, reason: &str) -> bool {
        self.events.iter().any(|event| event.reason == reason)
    }

    fn all_ready(&self, number: usize) -> bool {
        self.instances.len() == number && self.instances.values().all(Instance::is_ready)
    }

    fn none_on(&self, node: &str) -> bool {
        self.instances.values().all(|one| one.node_id != node)
    }

    /// The instances on a node.
    fn on(&self, node: &str) -> Vec<String> {
        let there = self.instances.iter();
        let there = there.filter(|(_, one)| one.node_id == node);
        there.map(|(id, _)| id.clone()).collect()
    }

    fn node_of(&self, instance: &str) -> Result<String> {
        let found = self.instances.get(instance);
        let found = found.with_context(|| format!("there is no {instance}"))?;
        Ok(found.node_id.clone())
    }

    /// How often each instance was started, and where.
    fn starts(&self) -> BTreeMap<String, (String, u32)> {
        let start = |one: &Instance| (one.node_id.clone(), one.boots);
        let each = self.instances.iter();
        each.map(|(id, one)| (id.clone(), start(one))).collect()
    }
}

fn number_of(node: &str) -> Result<u8> {
    let number = node
        .strip_prefix("node-")
        .and_then(|text| text.parse().ok());
    number.with_context(|| format!("{node:?} is no node of this cluster"))
}

/// When an instance's role wrote that it was there, in milliseconds since 1970.
fn diary(instance_dir: &Path) -> Result<Vec<u64>> {
    let log = instance_dir.join("role.log");
    let text = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    let entries = text.lines().filter_map(|line| line.strip_prefix("diary "));
    Ok(entries.filter_map(|time| time.parse().ok()).collect())
}
