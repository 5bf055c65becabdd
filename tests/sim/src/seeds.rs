//! One seed, or many: each of many in a process of its own, so that nothing of one is in
//! another, and as many at a time as there are processors.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    str::FromStr,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::Context as _;
use fabric_controller::model::blob::BlobKind;
use rand::{SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::{
    Break, host,
    image::Shelf,
    plan::{IMAGES, PACKAGE, Plan},
    world::{Outcome, World, panics},
};

/// Seeds, first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    last: u64,
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.parse::<u64>().ok();
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err("must be FIRST..LAST, two numbers in order; the last is run too".to_owned()),
        }
    }
}

/// What has become of one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// What does not hold, and since when, in seconds.
    pub failure: Option<(f64, String)>,
    /// What was wrong on purpose, by kind.
    pub faults: BTreeMap<String, u64>,
}

impl Report {
    /// Of how a seed has ended.
    #[must_use]
    pub fn of(seed: u64, outcome: &Outcome) -> Self {
        let failure = outcome.failure.as_ref();
        Self {
            seed,
            failure: failure.map(|(at, what)| (at.as_secs_f64(), what.clone())),
            faults: outcome.faults.clone(),
        }
    }
}

/// The last line: what has become of all of them.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// How many were run.
    pub seeds: u64,
    /// Those that failed.
    pub failed: Vec<u64>,
    /// What was wrong on purpose, by kind.
    pub faults: BTreeMap<String, u64>,
}

impl Summary {
    /// Counts one more.
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        if report.failure.is_some() {
            self.failed.push(report.seed);
        }
        for (kind, times) in &report.faults {
            *self.faults.entry(kind.clone()).or_default() += times;
        }
    }
}

/// Images and the package that plans of seeds name.
///
/// # Errors
///
/// They cannot be made.
pub fn shelf() -> anyhow::Result<Shelf> {
    let mut shelf = Shelf::default();
    for image in IMAGES {
        shelf.add(BlobKind::Image, image)?;
    }
    shelf.add(BlobKind::Package, PACKAGE)?;
    Ok(shelf)
}

/// Lives through a plan, in this process. Whatever is random in it comes from the seed;
/// there can be one only.
///
/// # Errors
///
/// There is no room for it.
pub fn run_here(
    plan: Plan,
    broken: Option<Break>,
    shelf: impl FnOnce() -> anyhow::Result<Shelf> + Send + 'static,
) -> anyhow::Result<Outcome> {
    fabric_controller::clock::simulate(host::wall_clock);
    host_agent::clock::simulate(host::wall_clock);
    panics::watch();
    // What hashes and picks at random takes its keys from here when it is first used by a
    // thread.
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(plan.seed));
    let thread = thread::spawn(move || {
        fastrand::seed(plan.seed);
        Ok(World::new(plan, shelf()?, broken)?.run())
    });
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the simulation has panicked: {:?}", panics::take()))?
}

/// Runs seeds in processes of their own; `told` hears of each when it has ended.
///
/// # Errors
///
/// A process cannot be started, or does not say what has become of it.
pub fn run_all(
    seeds: Seeds,
    broken: Option<&str>,
    told: impl Fn(&Report) + Sync,
) -> anyhow::Result<Summary> {
    let program = std::env::current_exe().context("this program cannot be found")?;
    let next = Mutex::new(seeds.first..=seeds.last);
    let summary = Mutex::new(Summary::default());
    let work = || -> anyhow::Result<()> {
        loop {
            let seed = next.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(seed) = seed else { return Ok(()) };
            let mut command = Command::new(&program);
            command.args(["--seed", &seed.to_string(), "--report"]);
            if let Some(broken) = broken {
                command.args(["--break", broken]);
            }
            let output = command.stderr(Stdio::inherit()).output();
            let output = output.context("a seed's process cannot be started")?;
            let text = String::from_utf8_lossy(&output.stdout);
            let report = serde_json::from_str(text.lines().last().unwrap_or_default());
            let report = report.unwrap_or_else(|_| Report {
                seed,
                failure: Some((0.0, format!("its process has ended: {}", output.status))),
                faults: BTreeMap::new(),
            });
            told(&report);
            let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
            summary.add(&report);
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| -> anyhow::Result<()> {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker has panicked"))??;
        }
        Ok(())
    })?;
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.failed.sort_unstable();
    Ok(summary)
}
